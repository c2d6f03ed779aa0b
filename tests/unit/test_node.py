"""What a node does for a process, a thread and a script."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    CallTimeout,
    CancelTimer,
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    Demonitor,
    Down,
    DownReason,
    Envelope,
    GetMetrics,
    Limits,
    Metrics,
    Monitor,
    NameTaken,
    Node,
    NodeId,
    NodeStopped,
    NoProcess,
    Pid,
    Process,
    ProcessCrashed,
    QueueFull,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Timeout,
    TimerCancelled,
)
from tests.support import PATIENCE_S, Does, Echo, Relay


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("test@127.0.0.1:0", seed=1) as node:
        yield node


def raising(process: Process, msg: Any, sender: Pid | None) -> None:
    raise RuntimeError(f"as {msg} says")


# Spawning.


def test_a_process_gets_what_a_thread_sends_in_order(node: Node) -> None:
    with node.mailbox() as box:
        relay = node.spawn(Relay(box.pid), "relay")
        for number in range(1_000):
            box.send(relay, number)
        got = [box.receive(PATIENCE_S) for _ in range(1_000)]
    assert [e.msg for e in got] == [(box.pid, number) for number in range(1_000)]
    assert {e.sender for e in got} == {relay}


def test_init_runs_before_the_first_message_and_may_send(node: Node) -> None:
    with node.mailbox() as box:
        said: list[str] = []

        def begin(process: Process) -> Envelope:
            said.append(f"init of {process.pid.name}")
            return Envelope(box.pid, "born")

        def react(process: Process, msg: Any, sender: Pid | None) -> Envelope:
            said.append(msg)
            return Envelope(box.pid, "got it")

        pid = node.spawn(Does(react, begin), "child")
        node.send(pid, "hello")
        assert box.receive(PATIENCE_S).msg == "born"
        assert box.receive(PATIENCE_S).msg == "got it"
    assert said == ["init of child", "hello"]


def test_a_name_is_taken_once_per_group_until_its_process_ends(node: Node) -> None:
    first = node.spawn(Echo(), "one")
    with pytest.raises(NameTaken, match="one::test@127.0.0.1:0 runs already"):
        node.spawn(Echo(), "one")
    assert node.spawn(Echo(), "one", group="tenant") == node.pid("one", "tenant")
    node.stop(first)
    with node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), Monitor(first))
        assert isinstance(box.receive(PATIENCE_S).msg, Down)
    assert node.spawn(Echo(), "one") == first


def test_one_instance_is_one_process(node: Node) -> None:
    echo = Echo()
    node.spawn(echo, "one")
    with pytest.raises(ValueError, match="this Echo runs already, as one::"):
        node.spawn(echo, "two")


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, 2**31])
def test_a_mailbox_limit_out_of_range_is_refused(node: Node, limit: Any) -> None:
    with pytest.raises(ValueError, match="mailbox_max must be 1 to"):
        node.spawn(Echo(), "one", mailbox_max=limit)


def test_what_is_no_process_is_refused(node: Node) -> None:
    with pytest.raises(TypeError, match="only a Process can be spawned"):
        node.spawn(object(), "one")  # type: ignore[arg-type]


def test_the_runtimes_own_group_is_closed_to_others(node: Node) -> None:
    with pytest.raises(ValueError, match="'rabble' is for the node's own"):
        node.spawn(Echo(), "one", group="rabble")
    with pytest.raises(ValueError, match="'rabble' is for the node's own"):
        node.mailbox("one", group="rabble")
    sneaky = Does(lambda p, msg, sender: Envelope(p.executor, Spawn(Echo(), "one", "rabble")))
    with node.mailbox() as box:
        pid = node.spawn(sneaky, "sneaky")
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        box.send(pid, "go")
        assert "for the node's own" in box.receive(PATIENCE_S).msg.reason.detail


def test_a_process_spawns_and_stops_another(node: Node) -> None:
    with node.mailbox() as box:

        def react(process: Process, msg: Any, sender: Pid | None) -> list[Envelope]:
            child = Pid("child", process.node_id)
            return (
                [
                    Envelope(process.executor, Spawn(Relay(box.pid), "child")),
                    Envelope(child, "to the first"),
                    Envelope(process.executor, Spawn(Relay(box.pid), "child")),
                    Envelope(process.executor, Monitor(child)),
                    Envelope(process.executor, Stop(child, DownReason("stopped", "enough"))),
                    Envelope(child, "too late"),
                ]
                if msg == "go"
                else [Envelope(box.pid, msg)]
            )

        parent = node.spawn(Does(react), "parent")
        node.send(parent, "go")
        child = node.pid("child")
        got = [box.receive(PATIENCE_S).msg for _ in range(3)]
    # The child's own message passes the parent, which says in its turn what it was told.
    assert (parent, "to the first") in got
    got.remove((parent, "to the first"))
    assert got == [
        SpawnFailed(child, "the name is taken"),
        Down(child, DownReason("stopped", "enough")),
    ]
    assert node.executor_status().dead_letters == {"no_process": 1}


def test_a_bad_control_message_ends_who_sent_it(node: Node) -> None:
    with node.mailbox() as box:
        bad = [
            StartTimer(CorrelationId(box.pid), -1),
            Spawn(Echo(), "not::a::name"),
            Stop("no pid"),  # type: ignore[arg-type]
            "no control message",
        ]
        for number, control in enumerate(bad):
            pid = node.spawn(
                Does(lambda process, msg, sender: Envelope(process.executor, msg)), f"p{number}"
            )
            box.send(node.pid("executor", "rabble"), Monitor(pid))
            node.send(pid, control)
            down = box.receive(PATIENCE_S).msg
            assert down.pid == pid
            assert down.reason.kind == "crashed"
    assert node.executor_status().crashes == len(bad)


def test_the_executor_is_not_stopped_by_a_message(node: Node) -> None:
    with node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), Stop(node.pid("executor", "rabble")))
        assert node.call(node.spawn(Echo(), "echo"), "still there") == "still there"
    assert node.executor_status().dead_letters == {"refused": 1}


# Crashes.


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        RecursionError(),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("where", ["call", "generator"])
def test_a_raising_receive_ends_its_process_and_sends_nothing(
    node: Node, error: BaseException, where: str
) -> None:
    with node.mailbox() as box:

        def react(process: Process, msg: Any, sender: Pid | None) -> Any:
            if msg != "boom":
                return Envelope(box.pid, msg)
            if where == "call":
                raise error
            return generator()

        def generator() -> Iterator[Envelope]:
            yield Envelope(box.pid, "discarded")
            raise error

        other = node.spawn(Relay(box.pid), "other")
        pid = node.spawn(Does(react), "victim")
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        for msg in ("before", "boom", "after"):
            box.send(pid, msg)
        box.send(other, "alive")
        got = [box.receive(PATIENCE_S).msg for _ in range(3)]
        assert got[0] == "before"
        down = Down(pid, DownReason("crashed", f"{type(error).__name__}: {error}"))
        assert got[1:] in ([down, (box.pid, "alive")], [(box.pid, "alive"), down])
        assert len(box) == 0
    assert node.executor_status().dead_letters == {"process_crashed": 1, "no_process": 1}


@pytest.mark.parametrize("junk", [5, "text", object(), [5], (Envelope,), {1: 2}])
def test_returning_something_else_ends_the_process_with_a_type_error(
    node: Node, junk: object
) -> None:
    with node.mailbox() as box:
        pid = node.spawn(Does(lambda process, msg, sender: junk), "odd")  # type: ignore[arg-type, return-value]
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        box.send(pid, "go")
        down = box.receive(PATIENCE_S).msg
    assert down.reason.kind == "crashed"
    assert down.reason.detail.startswith("TypeError: Does.receive returned ")


def test_a_raising_init_ends_the_process_before_its_first_message(node: Node) -> None:
    with node.mailbox() as box:

        def begin(process: Process) -> None:
            raise RuntimeError("stillborn")

        pid = node.spawn(Does(lambda process, msg, sender: None, begin), "one")
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        down = box.receive(PATIENCE_S).msg
        assert down.reason.kind in ("crashed", "no_process")
        with pytest.raises(NoProcess):
            node.call(pid, "hello", PATIENCE_S)


def test_monitors_hear_once_and_after_the_last_message(node: Node) -> None:
    with node.mailbox() as box:

        def last_words(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
            for number in range(100):
                yield Envelope(box.pid, number)
            yield Envelope(process.executor, Stop(process.pid))

        pid = node.spawn(Does(last_words), "mortal")
        for _ in range(3):
            box.send(node.pid("executor", "rabble"), Monitor(pid))
        box.send(pid, "die")
        got = [box.receive(PATIENCE_S).msg for _ in range(101)]
        assert got == [*range(100), Down(pid, DownReason("stopped"))]
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("no_process"))
        assert len(box) == 0


def test_a_monitor_taken_back_is_not_told(node: Node) -> None:
    with node.mailbox() as box:
        executor = node.pid("executor", "rabble")
        pid = node.spawn(Echo(), "one")
        box.send(executor, Monitor(pid))
        box.send(executor, Demonitor(pid))
        box.send(executor, Stop(pid))
        box.send(executor, Monitor(pid))
        assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("no_process"))
        assert len(box) == 0


# Dead letters, limits, strict mode.


def test_dead_letters_are_told_to_whom_subscribed(node: Node) -> None:
    with node.mailbox() as box:
        node.subscribe_dead_letters(box.pid)
        box.send(node.pid("nobody"), "lost")
        letter = box.receive(PATIENCE_S).msg
        assert letter == DeadLetter(
            Envelope(node.pid("nobody"), "lost", box.pid), DeadLetterReason.NO_PROCESS
        )
        node.subscribe_dead_letters(box.pid, False)
        box.send(node.pid("nobody"), "lost again")
        assert node.call(node.spawn(Echo(), "echo"), 1) == 1
        assert len(box) == 0


def test_a_subscriber_that_is_gone_makes_no_endless_letters(node: Node) -> None:
    with node.mailbox() as box:
        node.subscribe_dead_letters(box.pid)
    node.send(node.pid("nobody"), "lost")
    assert node.call(node.spawn(Echo(), "echo"), 1) == 1
    # And it is told of none: its subscription has ended with it.
    assert node.executor_status().dead_letters == {"no_process": 1}


def test_mail_beyond_a_mailboxs_limit_becomes_dead_letters(node: Node) -> None:
    with node.mailbox() as box:
        started = threading.Event()
        go_on = threading.Event()

        def slow(process: Process, msg: Any, sender: Pid | None) -> Envelope:
            started.set()
            assert go_on.wait(PATIENCE_S)
            return Envelope(box.pid, msg)

        pid = node.spawn(Does(slow), "slow", mailbox_max=3)
        node.send(pid, 0)
        assert started.wait(PATIENCE_S)
        for number in range(1, 10):
            node.send(pid, number)
        go_on.set()
        assert [box.receive(PATIENCE_S).msg for _ in range(4)] == [0, 1, 2, 3]
        assert node.executor_status().dead_letters == {"mailbox_full": 6}
        node.send(pid, "room again")
        assert box.receive(PATIENCE_S).msg == "room again"


def test_a_full_inbox_refuses_what_a_thread_sends() -> None:
    with rabble.rouse(limits=Limits(inbox_envelopes_max=3)) as node:
        started = threading.Event()
        go_on = threading.Event()

        def block(process: Process, msg: Any, sender: Pid | None) -> None:
            started.set()
            assert go_on.wait(PATIENCE_S)

        pid = node.spawn(Does(block), "block")
        node.send(pid, 1)
        assert started.wait(PATIENCE_S)
        for _ in range(3):
            node.send(pid, 1)
        with pytest.raises(QueueFull, match="inbox_envelopes_max is 3"):
            node.send(pid, 1)
        go_on.set()


def test_the_strict_mode_hands_over_copies_and_stops_what_cannot_travel() -> None:
    with rabble.rouse(strict=True) as node, node.mailbox() as box:
        node.subscribe_dead_letters(box.pid)
        relay = node.spawn(Does(lambda process, msg, sender: Envelope(box.pid, msg)), "relay")
        message = {"list": [1, 2]}
        box.send(relay, message)
        got = box.receive(PATIENCE_S).msg
        assert got == message
        assert got is not message
        cycle: list[Any] = []
        cycle.append(cycle)
        deep: list[Any] = []
        for _ in range(2_000):
            deep = [deep]
        bad = [lambda: 1, [object()], object(), cycle, deep]
        for msg in bad:
            box.send(relay, msg)
            assert box.receive(PATIENCE_S).msg.reason is DeadLetterReason.UNENCODABLE
        batch = [Envelope(relay, m) for m in ("first", object(), "last")]
        sender = node.spawn(Does(lambda process, msg, sender: batch), "sender")
        box.send(sender, "go")
        got3 = [box.receive(PATIENCE_S).msg for _ in range(3)]
        assert [m for m in got3 if not isinstance(m, DeadLetter)] == ["first", "last"]
        assert node.executor_status().crashes == 0


def test_an_envelope_that_is_kept_and_sent_again_keeps_its_sender_open(node: Node) -> None:
    with node.mailbox() as box:
        shared = Envelope(box.pid, "from whom?")
        pids = [
            node.spawn(Does(lambda process, msg, sender, n=n: [shared, (shared)][: n + 1]), f"p{n}")  # type: ignore[misc]
            for n in range(2)
        ]
        for pid in pids:
            node.send(pid, "go")
        got = [box.receive(PATIENCE_S).sender for _ in range(3)]
    assert got == [pids[0], pids[1], pids[1]]
    assert shared.sender is None


# Timers.


def cid(node: Node, number: int) -> CorrelationId:
    return CorrelationId(node.pid("timers"), request=number)


def test_timers_fire_in_order_of_their_deadlines_and_not_early(node: Node) -> None:
    with node.mailbox("timers") as box:
        fired: list[tuple[int, float]] = []

        def react(process: Process, msg: Any, sender: Pid | None) -> Any:
            if isinstance(msg, Timeout):
                assert msg.correlation_id.request is not None
                fired.append((msg.correlation_id.request, node.monotonic()))
                return Envelope(box.pid, "fired") if len(fired) == 5 else None
            # In that order: a machine that stalls between two must not turn their deadlines round.
            return [
                Envelope(process.executor, StartTimer(cid(node, int(ms)), ms))
                for ms in (0, 1, 20.5, 40, 300)
            ]

        start = node.monotonic()
        node.send(node.spawn(Does(react), "clock"), "go")
        box.receive(PATIENCE_S)
    assert [n for n, _ in fired] == [0, 1, 20, 40, 300]
    assert all(at - start >= n / 1000 for n, at in fired)
    assert node.executor_status().timers == 0


def test_an_acknowledged_cancel_is_final(node: Node) -> None:
    with node.mailbox("timers") as box:
        executor = node.pid("executor", "rabble")
        for number in range(200):
            box.send(executor, StartTimer(cid(node, number), number % 3))
            box.send(executor, CancelTimer(cid(node, number), acknowledge=True))
        box.send(executor, StartTimer(cid(node, 999), 50))
        got: list[Any] = []
        while not got or got[-1] != Timeout(cid(node, 999)):
            got.append(box.receive(PATIENCE_S).msg)
        for number in range(200):
            about = [m for m in got if m.correlation_id == cid(node, number)]
            # Either it was cancelled, or it had fired before, and then it is known to have.
            assert about in (
                [TimerCancelled(cid(node, number), True)],
                [Timeout(cid(node, number)), TimerCancelled(cid(node, number), False)],
            )
        assert len(got) >= 201


def test_starting_a_running_timer_again_replaces_it(node: Node) -> None:
    with node.mailbox("timers") as box:
        executor = node.pid("executor", "rabble")
        box.send(executor, StartTimer(cid(node, 1), 100_000))
        box.send(executor, StartTimer(cid(node, 1), 10))
        envelope = box.receive(PATIENCE_S)
        assert envelope.msg == Timeout(cid(node, 1))
        assert envelope.correlation_id == cid(node, 1)
    assert node.executor_status().timers == 0


def test_a_later_process_of_the_same_name_gets_no_old_timer(node: Node) -> None:
    with node.mailbox("timers") as box:
        executor = node.pid("executor", "rabble")

        def start(process: Process, msg: Any, sender: Pid | None) -> Envelope:
            return Envelope(process.executor, StartTimer(cid(node, 1), 20))

        first = node.spawn(Does(start), "name")
        node.send(first, "go")
        box.send(executor, Monitor(first))
        node.stop(first)
        assert isinstance(box.receive(PATIENCE_S).msg, Down)
        assert node.executor_status().timers == 0
        node.spawn(Relay(box.pid), "name")
        box.send(executor, StartTimer(cid(node, 2), 60))
        assert box.receive(PATIENCE_S).msg == Timeout(cid(node, 2))
        assert len(box) == 0


# Calls.


def test_a_call_brings_the_reply_back_to_any_thread(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")
    results: list[list[int]] = []

    def ask(base: int) -> None:
        results.append([node.call(echo, base + n, PATIENCE_S) for n in range(200)])

    threads = [threading.Thread(target=ask, args=(1_000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[1_000 * n + m for m in range(200)] for n in range(4)]


def test_each_call_ends_in_its_own_way(node: Node) -> None:
    silent = node.spawn(Does(lambda process, msg, sender: None), "silent")
    crashing = node.spawn(Does(raising), "crashing")
    with pytest.raises(CallTimeout, match="did not reply in 0.01 s"):
        node.call(silent, "hello", 0.01)
    with pytest.raises(NoProcess):
        node.call(node.pid("nobody"), "hello", PATIENCE_S)
    with pytest.raises(ProcessCrashed):
        node.call(crashing, "hello", PATIENCE_S)
    with pytest.raises(NoProcess):
        node.call(crashing, "hello", PATIENCE_S)
    assert node.metrics().gauges["calls_waiting"] == 0


def test_a_late_reply_is_dropped_and_counted(node: Node) -> None:
    held: list[tuple[Pid | None, Any]] = []

    class Late(Process):
        def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
            if msg == "now":
                to, their_id = held[0]
                assert to is not None
                return [
                    Envelope(to, "late", correlation_id=their_id),
                    Envelope(sender, "in time", correlation_id=correlation_id),  # type: ignore[arg-type]
                ]
            held.append((sender, correlation_id))
            return None

    late = node.spawn(Late(), "late")
    with pytest.raises(CallTimeout):
        node.call(late, "wait", 0.01)
    assert node.call(late, "now", PATIENCE_S) == "in time"
    assert node.metrics().counters["late_replies"] == 1


def test_a_call_waits_no_longer_than_the_node_lives() -> None:
    with rabble.rouse() as node:
        silent = node.spawn(Does(lambda process, msg, sender: None), "silent")
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                node.call(silent, "hello", PATIENCE_S)
            except NodeStopped as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while node.metrics().gauges["calls_waiting"] == 0:
            pass
        node.shutdown()
        thread.join()
    assert len(caught) == 1


def test_a_call_from_a_process_says_that_it_cannot_wait(node: Node) -> None:
    def react(process: Process, msg: Any, sender: Pid | None) -> None:
        node.call(process.pid, "myself")

    with pytest.raises(ProcessCrashed):
        node.call(node.spawn(Does(react), "one"), "go", PATIENCE_S)


def test_too_many_calls_are_refused() -> None:
    with rabble.rouse(limits=Limits(calls_max=1)) as node:
        silent = node.spawn(Does(lambda process, msg, sender: None), "silent")

        async def both() -> None:
            first = asyncio.ensure_future(node.call_async(silent, 1, PATIENCE_S))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="calls_max is 1"):
                await node.call_async(silent, 2)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first

        asyncio.run(both())
        assert node.metrics().gauges["calls_waiting"] == 0


def test_asyncio_awaits_many_calls_at_once(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")
    silent = node.spawn(Does(lambda process, msg, sender: None), "silent")

    async def ask() -> None:
        replies = await asyncio.gather(*(node.call_async(echo, n, PATIENCE_S) for n in range(100)))
        assert replies == list(range(100))
        with pytest.raises(CallTimeout):
            await node.call_async(silent, "hello", 0.01)
        with pytest.raises(NoProcess):
            await node.call_async(node.pid("nobody"), "hello", PATIENCE_S)

    asyncio.run(ask())


# Status, and several nodes.


def test_snapshots_tell_what_happened(node: Node) -> None:
    echo = node.spawn(Echo(), "echo")
    for number in range(10):
        assert node.call(echo, number) == number
    status = node.executor_status()
    assert status.node == NodeId.parse("test@127.0.0.1:0")
    assert (status.status, status.processes, status.queue_depth) == ("running", 1, 0)
    assert node.processes() == {echo: 10}
    metrics = node.metrics()
    assert metrics.gauges["processes"] == 1
    assert metrics.counters["delivered"] >= 20
    assert metrics.counters["crashes"] == 0
    with pytest.raises(TypeError):
        metrics.counters["crashes"] = 1  # type: ignore[index]
    with node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), GetMetrics())
        assert isinstance(box.receive(PATIENCE_S).msg, Metrics)


def test_several_nodes_live_in_one_process() -> None:
    with rabble.rouse("a@h:1") as a, rabble.rouse("b@h:2") as b:
        assert a.call(a.spawn(Echo(), "echo"), 1) == 1
        assert b.call(b.spawn(Echo(), "echo"), 2) == 2
        with pytest.raises(NoProcess):
            a.call(b.pid("echo"), 3, PATIENCE_S)


def test_random_sources_follow_from_the_seed_and_the_name() -> None:
    def throws(seed: int, name: str) -> Any:
        with rabble.rouse(seed=seed) as node, node.mailbox() as box:
            dice = Does(lambda process, msg, sender: Envelope(box.pid, process.random.random()))
            node.send(node.spawn(dice, name), "throw")
            return box.receive(PATIENCE_S).msg

    assert throws(1, "a") == throws(1, "a")
    assert len({throws(1, "a"), throws(1, "b"), throws(2, "a")}) == 3


# The end.


def test_what_was_sent_before_the_end_is_delivered() -> None:
    got: list[int] = []
    with rabble.rouse() as node:
        sink = node.spawn(Does(lambda process, msg, sender: got.append(msg)), "sink")  # type: ignore[func-returns-value, return-value]
        for number in range(50_000):
            node.send(sink, number)
    assert got == list(range(50_000))
    assert node.status == "stopped"


def test_a_stopped_node_refuses_everything_and_says_so() -> None:
    node = rabble.rouse()
    pid = node.spawn(Echo(), "echo")
    node.shutdown()
    node.shutdown()
    for refused in (
        lambda: node.send(pid, 1),
        lambda: node.spawn(Echo(), "another"),
        lambda: node.call(pid, 1),
        lambda: node.stop(pid),
        lambda: node.mailbox(),
        lambda: node.subscribe_dead_letters(pid),
        lambda: asyncio.run(node.call_async(pid, 1)),
    ):
        with pytest.raises(NodeStopped, match="was shut down"):
            refused()
    assert not any(t.name.startswith("rabble:") for t in threading.enumerate())


def test_who_monitors_the_executor_has_a_last_word() -> None:
    last: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Any:
        if isinstance(msg, Shutdown):
            return Envelope(Pid("notary", process.node_id), "my will")
        return Envelope(process.executor, Monitor(process.executor))

    with rabble.rouse() as node:
        node.spawn(Does(lambda process, msg, sender: last.append(msg)), "notary")  # type: ignore[func-returns-value, return-value]
        node.send(node.spawn(Does(react), "one"), "go")
    # Its monitor may come before the node's end begins or after.
    assert last == ["my will"]


def test_who_monitors_the_executor_while_its_node_ends_has_a_last_word_too() -> None:
    last: list[Any] = []

    def watch(process: Process) -> Envelope:
        return Envelope(process.executor, Monitor(process.executor))

    def tell_late(process: Process, msg: Any, sender: Pid | None) -> Envelope:
        assert isinstance(msg, Shutdown)
        return Envelope(Pid("late", process.node_id), "it ends")

    def late(process: Process, msg: Any, sender: Pid | None) -> Envelope | None:
        last.append(msg)
        return None if isinstance(msg, Shutdown) else watch(process)

    with rabble.rouse() as node:
        node.spawn(Does(late), "late")
        node.spawn(Does(tell_late, watch), "first")
        node.call(node.spawn(Echo(), "echo"), "first has begun", PATIENCE_S)
    assert last == ["it ends", Shutdown("the node shuts down")]


def test_who_monitors_the_executor_again_and_again_is_told_of_its_end_once() -> None:
    told: list[Any] = []

    def again(process: Process, msg: Any, sender: Pid | None) -> list[Envelope]:
        told.append(msg)
        return [Envelope(process.executor, Monitor(process.executor)) for _ in range(2)]

    with rabble.rouse() as node:
        node.send(node.spawn(Does(again), "one"), "go")
        node.call(node.spawn(Echo(), "echo"), "one was there", PATIENCE_S)
    assert told == ["go", Shutdown("the node shuts down")]


def test_an_endless_exchange_ends_with_the_time_to_drain_and_is_counted() -> None:
    node = rabble.rouse()
    node.send(node.spawn(Does(lambda p, msg, sender: Envelope(p.pid, msg)), "busy"), "on")
    node.shutdown(1.0)
    assert node.executor_status().dead_letters == {"node_shutdown": 1}


def test_a_receive_that_goes_on_makes_the_node_stalled() -> None:
    returned = threading.Event()
    with rabble.rouse(limits=Limits(stalled_after_ms=1)) as node:

        def wait(process: Process, msg: Any, sender: Pid | None) -> None:
            while node.status != "stalled":
                time.sleep(0.001)
            returned.set()

        node.send(node.spawn(Does(wait), "waits"), "go")
        assert returned.wait(PATIENCE_S)
        node.call(node.spawn(Echo(), "echo"), 1, PATIENCE_S)
        assert node.status == "running"


def test_who_is_spawned_under_a_free_name_is_not_stopped_by_what_was_said_before(
    node: Node,
) -> None:
    for n in range(200):
        pid = node.pid(f"free-{n}")
        node.stop(pid)
        assert node.spawn(Echo(), pid.name) == pid
        assert node.call(pid, n, PATIENCE_S) == n


def test_stop_takes_a_pid_only(node: Node) -> None:
    with pytest.raises(TypeError, match="stop takes a Pid, not 'echo'"):
        node.stop("echo")  # type: ignore[arg-type]
