"""Producers over real sockets: threads, services and coroutines that send more than is taken."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rabble import (
    CallTimeout,
    CorrelationId,
    Drain,
    Drained,
    EncodeError,
    Envelope,
    MessageRegistry,
    Node,
    NodeStopped,
    NoProcess,
    NotConnected,
    Output,
    Pid,
    Process,
    QueueFull,
    Service,
    ServiceHandler,
)
from tests.cluster.mesh import meet, nothing_left, rouse
from tests.support import PATIENCE_S, TINY, TRACED, Does, Echo, until

#: What each of four sends: slow builds are given less.
TOTAL_BYTES = (4 if TINY or TRACED else 64) << 20
SENDERS = 4
QUEUE_BYTES = (1 if TINY or TRACED else 8) << 20
#: The peer is a minute behind and still no peer that is down.
LIMITS: dict[str, Any] = {
    "peer_queue_bytes_max": QUEUE_BYTES,
    "down_after_ms": 60_000,
    "stalled_after_ms": 60_000,
}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


class Slow(Process):
    """Takes what each sender numbers, once the test lets it."""

    def __init__(self) -> None:
        self.lets = threading.Event()
        self.blocks = threading.Event()
        self.got: dict[Any, list[int]] = {}
        self.bytes = 0

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "block":
            self.blocks.set()
            assert self.lets.wait(10 * PATIENCE_S)
            return None
        who, number, data = msg
        self.got.setdefault(who, []).append(number)
        self.bytes += len(data)
        return None


class Rig:
    """A node that produces, and a peer whose executor stands still until it is let go."""

    def __init__(self, a: Node, b: Node) -> None:
        self.a, self.b = a, b
        self.slow = Slow()
        self.to = b.spawn(self.slow, "slow")
        self.most = 0
        self._ends = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def queued(self) -> int:
        return sum(link.queued_bytes for link in self.a.cluster_status().connections)

    def _sample(self) -> None:
        while not self._ends.wait(0.001):
            self.most = max(self.most, self.queued())

    def block(self) -> None:
        self.a.send(self.to, "block")
        assert self.slow.blocks.wait(PATIENCE_S)
        self._sampler.start()

    def let_go(self) -> None:
        self.slow.lets.set()

    def end(self) -> None:
        self.slow.lets.set()
        self._ends.set()
        if self._sampler.ident is not None:
            self._sampler.join()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(rouse("a", limits=LIMITS))
        b = stack.enter_context(rouse("b", limits=LIMITS))
        meet(a, b)
        rig = Rig(a, b)
        yield rig
        rig.end()
        # pytest keeps what it was given, and a node that has ended has some descriptors still.
        del a, b, rig.a, rig.b


def fill(rig: Rig) -> None:
    """Have so much wait that a producer has to."""
    rig.block()
    with pytest.raises(CallTimeout):
        for number in range(10_000):
            rig.a.send_wait(rig.to, ("fill", number, bytes(QUEUE_BYTES // 16)), timeout=0.5)


class Produces(ServiceHandler):
    def __init__(self, to: Pid, who: int, size: int, count: int, done: Callable[[], None]) -> None:
        self.to, self.who, self.size, self.count, self.done = to, who, size, count, done

    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        for number in range(self.count):
            service.send_wait(self.to, (self.who, number, bytes(self.size)))
        self.done()
        return None


@pytest.mark.parametrize("size", [64 << 10, QUEUE_BYTES // 8])
@pytest.mark.parametrize("kind", ["threads", "services", "coroutines"])
def test_four_senders_to_a_slow_peer_lose_nothing(rig: Rig, kind: str, size: int) -> None:
    """64 MiB each; and the queue stays within its bound."""
    a, to = rig.a, rig.to
    count = TOTAL_BYTES // size
    left = threading.Semaphore(0)
    rig.block()
    threads = []

    def produce(who: int) -> None:
        for number in range(count):
            a.send_wait(to, (who, number, bytes(size)))
        left.release()

    async def produce_async(who: int) -> None:
        for number in range(count):
            await a.send_wait_async(to, (who, number, bytes(size)))
        left.release()

    async def produce_all() -> None:
        await asyncio.gather(*map(produce_async, range(SENDERS)))

    if kind == "threads":
        threads = [threading.Thread(target=produce, args=(who,)) for who in range(SENDERS)]
    elif kind == "coroutines":
        threads = [threading.Thread(target=lambda: asyncio.run(produce_all()))]
    else:
        for who in range(SENDERS):
            handler = Produces(to, who, size, count, left.release)
            a.send(a.register_service(handler, f"produces-{who}").pid, "go")
    for thread in threads:
        thread.start()
    # They come to a stand.
    until(lambda: rig.queued() >= QUEUE_BYTES // 2)
    rig.let_go()
    for _ in range(SENDERS):
        assert left.acquire(timeout=10 * PATIENCE_S)
    for thread in threads:
        thread.join()
    until(lambda: rig.slow.bytes == SENDERS * count * size)
    assert rig.slow.got == {who: list(range(count)) for who in range(SENDERS)}
    assert a.executor_status().dead_letters == {}
    assert rig.b.executor_status().dead_letters == {}
    assert rig.most <= QUEUE_BYTES


def test_a_producer_gives_up_in_time_and_nothing_is_sent(rig: Rig) -> None:
    fill(rig)
    with pytest.raises(CallTimeout, match="no room for a message to slow::b@"):
        rig.a.send_wait(rig.to, ("late", 0, b""), timeout=0.05)
    with pytest.raises(CallTimeout, match="no room"):
        asyncio.run(rig.a.send_wait_async(rig.to, ("late", 1, b""), timeout=0.05))
    rig.let_go()
    rig.a.send_wait(rig.to, ("later", 2, b""))
    until(lambda: "later" in rig.slow.got)
    assert "late" not in rig.slow.got
    assert rig.a.executor_status().dead_letters == {}


class Stubborn:
    """Is encoded when the test says so, and then cannot be."""

    begun, lets = threading.Event(), threading.Event()

    def encode(self) -> None:
        self.begun.set()
        assert self.lets.wait(PATIENCE_S)
        raise ValueError("not this one")


def test_a_coroutine_whose_time_is_over_while_it_is_encoded_is_told_what_comes_of_it() -> None:
    registry = MessageRegistry()
    registry.register_type(Stubborn, "test.Stubborn", Stubborn.encode, lambda data: data)

    async def produce(a: Node, to: Pid) -> None:
        task = asyncio.ensure_future(a.send_wait_async(to, Stubborn(), timeout=0.05))
        assert await asyncio.to_thread(Stubborn.begun.wait, PATIENCE_S)
        done, _ = await asyncio.wait([task], timeout=0.5)
        Stubborn.lets.set()
        assert not done, "it is being encoded still"
        with pytest.raises(EncodeError, match="not this one"):
            await task

    with rouse("a", registry=registry) as a, rouse("b") as b:
        meet(a, b)
        asyncio.run(produce(a, b.spawn(Echo(), "echo")))
        assert a.metrics().gauges["calls_waiting"] == 0


def test_a_task_that_is_cancelled_sends_nothing_and_leaves_nothing(rig: Rig) -> None:
    fill(rig)

    async def cancel() -> None:
        tasks = [
            asyncio.ensure_future(rig.a.send_wait_async(rig.to, (who, 0, b""))) for who in range(20)
        ]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in results)
        rig.let_go()
        await asyncio.gather(*tasks[1::2])

    asyncio.run(cancel())
    until(lambda: 19 in rig.slow.got)
    assert [who for who in rig.slow.got if who != "fill"] == list(range(1, 20, 2))
    assert rig.a.metrics().gauges["calls_waiting"] == 0


def test_several_loops_in_several_threads(rig: Rig) -> None:
    rig.block()
    done = []

    async def produce(who: int) -> None:
        for number in range(50):
            await rig.a.send_wait_async(rig.to, (who, number, bytes(QUEUE_BYTES // 64)))
        done.append(who)

    threads = [
        threading.Thread(target=lambda who=who: asyncio.run(produce(who)))  # type: ignore[misc]
        for who in range(3)
    ]
    for thread in threads:
        thread.start()
    until(lambda: rig.queued() >= QUEUE_BYTES // 2)
    rig.let_go()
    for thread in threads:
        thread.join()
    until(lambda: len(rig.slow.got) == 3 and all(len(got) == 50 for got in rig.slow.got.values()))
    assert sorted(done) == [0, 1, 2]
    assert rig.slow.got == {who: list(range(50)) for who in range(3)}


def waiting_in_a_thread(rig: Rig) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            rig.a.send_wait(rig.to, ("waits", 0, b""))
        except BaseException as error:
            failures.append(error)

    before = rig.a.metrics().gauges["calls_waiting"]
    thread = threading.Thread(target=produce)
    thread.start()
    until(lambda: rig.a.metrics().gauges["calls_waiting"] == before + 1)
    return thread, failures


def test_the_end_of_the_peer_ends_the_wait(rig: Rig) -> None:
    fill(rig)
    thread, failures = waiting_in_a_thread(rig)
    rig.a.leave(rig.b.node_id)
    thread.join(PATIENCE_S)
    (error,) = failures
    assert isinstance(error, NotConnected) and str(rig.b.node_id) in str(error)
    with pytest.raises(NotConnected):
        rig.a.send_wait(rig.to, "there is nobody")


def test_the_end_of_the_node_ends_the_wait(rig: Rig) -> None:
    fill(rig)
    thread, failures = waiting_in_a_thread(rig)
    rig.a.request_shutdown(0.5)
    thread.join(PATIENCE_S)
    assert isinstance(failures[0], NodeStopped)
    with pytest.raises(NodeStopped):
        rig.a.send_wait(rig.to, "too late")
    rig.let_go()


class Streams(Process):
    """A process that sends part by part, and the next ones when those before have gone."""

    def __init__(self, to: Pid, parts: int, size: int) -> None:
        self.to, self.parts, self.size, self.sent = to, parts, size, 0

    def init(self) -> Output:
        return self.some()

    def some(self) -> Iterator[Envelope]:
        for _ in range(min(4, self.parts - self.sent)):
            yield Envelope(self.to, ("streams", self.sent, bytes(self.size)))
            self.sent += 1
        if self.sent < self.parts:
            yield Envelope(self.executor, Drain(self.to.node))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        assert msg == Drained(self.to.node, True)
        return self.some()


def test_a_process_that_drains_loses_nothing(rig: Rig) -> None:
    rig.block()
    rig.a.spawn(Streams(rig.to, 64, QUEUE_BYTES // 8), "streams")
    until(lambda: rig.queued() >= QUEUE_BYTES // 4)
    rig.let_go()
    until(lambda: len(rig.slow.got.get("streams", ())) == 64)
    assert rig.slow.got["streams"] == list(range(64))
    assert rig.a.executor_status().dead_letters == {} and rig.most <= QUEUE_BYTES


# One node.


def test_on_this_node_the_receiver_has_it(rig: Rig) -> None:
    got: list[Any] = []
    pid = rig.a.spawn(Does(lambda process, msg, sender: got.append((msg, sender))), "here")  # type: ignore[func-returns-value]
    rig.a.send_wait(pid, 1)
    asyncio.run(rig.a.send_wait_async(pid, 2, sender=rig.a.pid("me")))
    assert got == [(1, None), (2, rig.a.pid("me"))]


def test_threads_fill_no_mailbox_and_a_full_inbox_is_told(rig: Rig) -> None:
    got: list[int] = []
    small = rig.a.spawn(
        Does(lambda process, msg, sender: got.append(msg)),  # type: ignore[func-returns-value]
        "small",
        mailbox_max=1,
    )

    def produce() -> None:
        for number in range(200):
            rig.a.send_wait(small, number)

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(4 * list(range(200)))
    assert rig.a.executor_status().dead_letters == {}
    with rig.a.mailbox(envelopes_max=1) as box:
        rig.a.send_wait(box.pid, 1)
        with pytest.raises(QueueFull):
            rig.a.send_wait(box.pid, 2)


def test_what_fails_is_said_at_once(rig: Rig) -> None:
    with pytest.raises(NoProcess):
        rig.a.send_wait(rig.a.pid("nobody"), 1)
    with pytest.raises(EncodeError, match="object"):
        rig.a.send_wait(rig.to, object())
    with pytest.raises(TypeError, match="must be a Pid"):
        rig.a.send_wait("slow", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Pid"):
        rig.a.send_wait_async(None, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        rig.a.send_wait(rig.to, 1, timeout="long")  # type: ignore[arg-type]

    async def in_a_loop() -> None:
        with pytest.raises(RuntimeError, match="await node.send_wait_async"):
            rig.a.send_wait(rig.to, 1)

    asyncio.run(in_a_loop())
    echo = rig.a.spawn(Echo(), "echo")
    told: list[str] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        for send in (
            lambda: rig.a.send_wait(echo, 1),
            lambda: asyncio.run(rig.a.send_wait_async(echo, 1)),
        ):
            try:
                send()
            except RuntimeError as error:
                told.append(str(error))
        return None if sender is None else Envelope(sender, told)

    rig.a.send_wait(rig.a.spawn(Does(react), "blocks"), 1)
    assert len(told) == 2 and all("executor" in text for text in told)
