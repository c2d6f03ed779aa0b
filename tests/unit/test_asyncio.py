"""What blocks has a twin for asyncio that does not, and loses nothing when it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import CallTimeout, Envelope, Mailbox, Node, NodeStopped, Process, ShutdownTimeout
from tests.support import PATIENCE_S, SANITIZED, TINY, Does, Echo


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("test@127.0.0.1:0") as node:
        yield node


def test_a_task_waits_for_an_envelope_and_the_loop_goes_on(node: Node) -> None:
    async def main() -> None:
        with node.mailbox("box") as box:
            waits = asyncio.create_task(box.receive_async(PATIENCE_S))
            # It waits: the loop gets to this.
            await asyncio.sleep(0)
            assert not waits.done()
            box.send(node.spawn(Echo(), "echo"), "hello", correlation_id=None)
            received = await waits
            assert (received.msg, received.to, received.sender) == (
                "hello",
                box.pid,
                node.pid("echo"),
            )

    asyncio.run(main())


def test_a_wait_has_an_end(node: Node) -> None:
    async def main() -> None:
        with node.mailbox("box") as box:
            with pytest.raises(CallTimeout, match=r"box::test@\S+ received nothing in 0.01 s"):
                await box.receive_async(0.01)
            with pytest.raises(CallTimeout):
                await box.receive_async(0)
            node.send(box.pid, 1)
            assert (await box.receive_async(float("inf"))).msg == 1
        with pytest.raises(NodeStopped):
            await box.receive_async(PATIENCE_S)

    asyncio.run(main())


def test_a_loop_over_a_mailbox_ends_with_it(node: Node) -> None:
    async def main() -> list[Any]:
        box = node.mailbox()
        for number in range(3):
            node.send(box.pid, number)
        got = []
        async for envelope in box:
            got.append(envelope.msg)
            if len(got) == 3:
                asyncio.get_running_loop().call_soon(box.close)
        return got

    assert asyncio.run(main()) == [0, 1, 2]


def test_a_loop_over_a_mailbox_ends_with_its_node() -> None:
    async def main() -> int:
        count = 0
        async with rabble.rouse("short@127.0.0.1:0") as node:
            box = node.mailbox()
            node.send(box.pid, 1)
            node.request_shutdown()
            async for _ in box:
                count += 1
        assert node.status == "stopped"
        return count

    assert asyncio.run(main()) == 1


def test_tasks_share_a_mailbox_and_each_envelope_goes_to_one(node: Node) -> None:
    count = 200 if TINY or SANITIZED else 2_000

    async def main() -> None:
        box = node.mailbox()
        got: list[int] = []

        async def take() -> None:
            async for envelope in box:
                got.append(envelope.msg)
                if len(got) == count:
                    box.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(take())
            for number in range(count):
                node.send(box.pid, number)
                if number % 7 == 0:
                    await asyncio.sleep(0)
        assert sorted(got) == list(range(count))

    asyncio.run(main())


def test_a_task_that_is_cancelled_loses_nothing(node: Node) -> None:
    """A thread sends all the time, and the task that waits is cancelled at any moment."""
    cancellations = 1_000 if TINY or SANITIZED else 10_000
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    over = threading.Event()
    sent = 0

    def send(box: Mailbox) -> None:
        nonlocal sent
        while not over.is_set():
            with contextlib.suppress(rabble.QueueFull):
                node.send(box.pid, sent)
                sent += 1
            over.wait(0.00005)

    async def main() -> list[int]:
        got: list[int] = []
        box = node.mailbox()

        async def take() -> None:
            while True:
                got.append((await box.receive_async()).msg)

        sends = threading.Thread(target=send, args=(box,))
        sends.start()
        try:
            for _ in range(cancellations):
                task = asyncio.create_task(take())
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
        finally:
            over.set()
            sends.join()
        # What was sent before this has come before it.
        node.send(box.pid, -1)
        while (received := await box.receive_async(PATIENCE_S)).msg != -1:
            got.append(received.msg)
        return got

    got = asyncio.run(main())
    assert got == list(range(sent)), seed


def test_wait_for_loses_nothing(node: Node) -> None:
    async def main() -> None:
        box = node.mailbox()
        got = []
        for number in range(500):
            node.send(box.pid, number)
            with contextlib.suppress(asyncio.TimeoutError):
                got.append((await asyncio.wait_for(box.receive_async(), 0.00001)).msg)
        while len(got) < 500:
            got.append((await box.receive_async(PATIENCE_S)).msg)
        assert got == list(range(500))

    asyncio.run(main())


def test_loops_of_several_threads_have_mailboxes_of_one_node(node: Node) -> None:
    results: list[int] = []
    echo = node.spawn(Echo(), "echo")

    async def main() -> int:
        async def ask(box: Mailbox, number: int) -> int:
            box.send(echo, number)
            return int((await box.receive_async(PATIENCE_S)).msg)

        boxes = [node.mailbox() for _ in range(10)]
        return sum([sum(await asyncio.gather(*(ask(box, n) for box in boxes))) for n in range(20)])

    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(main()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [190 * 10] * 4


def test_a_mailbox_outlives_a_loop_that_closes_with_a_task_in_it(node: Node) -> None:
    box = node.mailbox()
    loop = asyncio.new_event_loop()
    task = loop.create_task(box.receive_async())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    node.send(box.pid, 1)

    async def next_one() -> Any:
        return (await box.receive_async(PATIENCE_S)).msg

    assert asyncio.run(next_one()) == 1
    node.send(box.pid, 2)
    assert asyncio.run(next_one()) == 2
    task.get_coro().close()
    node.send(box.pid, 3)
    assert asyncio.run(next_one()) == 3
    # Pending for ever, which asyncio would complain of when it is dropped.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["in a thread", "in another loop"])
def test_more_than_one_envelope_outlives_a_loop_that_closes_with_a_task_in_it(
    node: Node, how: str
) -> None:
    box = node.mailbox()
    loop = asyncio.new_event_loop()
    task = loop.create_task(box.receive_async())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for number in range(3):
        node.send(box.pid, number)
    assert node.call(node.spawn(Echo(), "echo"), "all there") == "all there"

    async def take_all() -> list[Any]:
        return [(await box.receive_async(PATIENCE_S)).msg for _ in range(3)]

    if how == "in a thread":
        assert [box.receive(0).msg for _ in range(3)] == [0, 1, 2]
    else:
        assert asyncio.run(take_all()) == [0, 1, 2]
    task.get_coro().close()
    # Pending for ever, which asyncio would complain of when it is dropped.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_two_loops_at_a_time_may_not_wait_for_one_mailbox(node: Node) -> None:
    box = node.mailbox()
    waits = threading.Event()

    async def wait() -> Any:
        task = asyncio.create_task(box.receive_async(PATIENCE_S))
        await asyncio.sleep(0)
        waits.set()
        return (await task).msg

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(wait())))
    thread.start()
    assert waits.wait(PATIENCE_S)
    with pytest.raises(RuntimeError, match="give each thread a mailbox of its own"):
        asyncio.run(wait())
    with pytest.raises(RuntimeError, match="give each thread a mailbox of its own"):
        box.receive(0)
    node.send(box.pid, "one")
    thread.join()
    assert results == ["one"]


def test_a_loop_that_stands_still_has_its_mailbox_for_itself(node: Node) -> None:
    box = node.mailbox()
    loop = asyncio.new_event_loop()
    task = loop.create_task(box.receive_async())
    loop.run_until_complete(asyncio.sleep(0))

    async def wait() -> Any:
        return (await box.receive_async(PATIENCE_S)).msg

    with pytest.raises(RuntimeError, match="give each loop a mailbox of its own"):
        asyncio.run(wait())
    node.send(box.pid, 1)
    assert loop.run_until_complete(task).msg == 1
    loop.close()
    node.send(box.pid, 2)
    assert asyncio.run(wait()) == 2


def test_who_takes_between_leaves_the_others_waiting_for_the_next(node: Node) -> None:
    """One that takes what has woken another one, before that one has its turn."""

    async def main() -> None:
        box = node.mailbox()
        for take in (lambda: box.receive_async(PATIENCE_S), lambda: asyncio.sleep(0)):
            waits = asyncio.create_task(box.receive_async())
            await asyncio.sleep(0)
            node.send(box.pid, "one")
            while not len(box):
                # Without the loop, which would see it.
                threading.Event().wait(0.001)
            one = await take()
            one = box.receive(0) if one is None else one
            assert one.msg == "one"
            assert not waits.done()
            node.send(box.pid, "two")
            assert (await asyncio.wait_for(waits, PATIENCE_S)).msg == "two"

    asyncio.run(main())


def test_what_would_block_a_loop_says_what_to_write(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="would block the event loop .* node.call_async"):
            node.call(echo, 1)
        with pytest.raises(RuntimeError, match="node.spawn_on_async"):
            node.spawn_on(node.node_id, "worker", "name")
        with node.mailbox() as box:
            with pytest.raises(RuntimeError, match="await mailbox.receive_async"):
                box.receive(1.0)
            # These do not wait.
            with pytest.raises(CallTimeout):
                box.receive(0)
            node.send(box.pid, 1)
            while not len(box):
                await asyncio.sleep(0.001)
            assert box.receive(1.0).msg == 1
        assert await node.call_async(echo, 2) == 2
        assert await asyncio.to_thread(node.call, echo, 3) == 3

    asyncio.run(main())


@pytest.mark.parametrize("what", ["receive", "receive_async"])
def test_a_process_waits_for_no_mailbox(node: Node, what: str) -> None:
    box = node.mailbox()

    def wait(process: Process, msg: Any, sender: Any) -> None:
        if what == "receive":
            box.receive(PATIENCE_S)
        else:
            asyncio.run(box.receive_async(PATIENCE_S))

    pid = node.spawn(Does(wait), "waits")
    with pytest.raises(rabble.ProcessCrashed, match="in the executor's own thread"):
        node.call(pid, 1)


def test_the_end_of_a_node_does_not_block_the_loop() -> None:
    async def main() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def hold(process: Process, msg: Any, sender: Any) -> None:
            begun.set()
            assert go_on.wait(PATIENCE_S)

        async with rabble.rouse("test@127.0.0.1:0") as node:
            node.send(node.spawn(Does(hold), "holds"), 1)
            await asyncio.to_thread(begun.wait, PATIENCE_S)
            ends = asyncio.create_task(node.shutdown_async())
            while node.status == "running":
                await asyncio.sleep(0.001)
            assert not ends.done()
            go_on.set()
            await ends
            assert node.status == "stopped"
        await node.shutdown_async()

    asyncio.run(main())
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rabble:test")]


def test_who_is_cancelled_while_a_node_ends_waits_for_its_end() -> None:
    async def main() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def hold(process: Process, msg: Any, sender: Any) -> None:
            begun.set()
            assert go_on.wait(PATIENCE_S)

        node = rabble.rouse("test@127.0.0.1:0")
        node.send(node.spawn(Does(hold), "holds"), 1)
        await asyncio.to_thread(begun.wait, PATIENCE_S)

        async def live() -> None:
            async with node:
                await asyncio.sleep(PATIENCE_S)

        task = asyncio.create_task(live())
        await asyncio.sleep(0)
        for _ in range(2):
            task.cancel("it is over")
            await asyncio.sleep(0.01)
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert node.status == "stopped"

    asyncio.run(main())


def test_a_node_that_does_not_end_in_time_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        go_on = threading.Event()

        def hold(process: Process, msg: Any, sender: Any) -> None:
            while not go_on.is_set():
                with contextlib.suppress(BaseException):
                    go_on.wait(PATIENCE_S)

        node = rabble.rouse("test@127.0.0.1:0")
        node.send(node.spawn(Does(hold), "holds"), 1)
        try:
            with pytest.raises(ShutdownTimeout, match="receive of holds::test"):
                await node.shutdown_async(0.2)
        finally:
            go_on.set()
            await node.shutdown_async()

    asyncio.run(main())


def test_a_service_that_asks_for_the_end_does_not_wait_for_itself() -> None:
    ended = threading.Event()

    class Ends(rabble.ServiceHandler):
        def handle_envelope(self, envelope: Envelope, service: rabble.Service) -> None:
            asyncio.run(node.shutdown_async(PATIENCE_S))
            ended.set()

    node = rabble.rouse("test@127.0.0.1:0")
    node.send(node.register_service(Ends(), "ends").pid, 1)
    assert ended.wait(PATIENCE_S)
    node.shutdown()


@pytest.mark.parametrize("wrong", [0, -1, 1 << 40, 1.0, "3", True])
def test_the_bound_of_a_mailbox_is_one(node: Node, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="mailbox: envelopes_max must be"):
        node.mailbox(envelopes_max=wrong)


def test_what_is_more_than_a_mailbox_takes_is_a_dead_letter(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")
    box = node.mailbox(envelopes_max=2)
    for number in range(5):
        node.send(box.pid, number)
    assert node.call(echo, "later") == "later"
    assert [box.receive(0).msg for _ in range(len(box))] == [0, 1]
    assert node.executor_status().dead_letters == {"mailbox_full": 3}
