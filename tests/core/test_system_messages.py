"""System messages: what a process asks of its executor, how it is answered, and how refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from rabble import (
    CancelTimer,
    CorrelationId,
    DeadLetterReason,
    Demonitor,
    Down,
    DownReason,
    Envelope,
    GetMetrics,
    Metrics,
    Monitor,
    NodeId,
    NodeUp,
    Output,
    Pid,
    Process,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    SubscribeDeadLetters,
    SubscribeNodes,
)
from rabble._core.executor import Executor
from rabble._core.timers import TimerWheel
from tests.core.peers import Hub
from tests.core.processes import OUTSIDE, Recorder, returning, spawn_recorder
from tests.support import BARE, Does, Witness, bare_executor, settle

CALLS = Pid("calls", BARE, "rabble")
ELSEWHERE = Pid("far", NodeId("far", "h:2"))
TIMER = CorrelationId(OUTSIDE, None, 1)


def ask(executor: Executor, sender: Pid | None, message: object, **more: Any) -> None:
    """Send a control message on behalf of a process."""
    executor.send(executor.pid, message, sender=sender, **more)
    settle(executor)


def stop_for(reason: object) -> Stop:
    """A `Stop` whose reason its constructor would have refused."""
    stop = Stop(OUTSIDE)
    object.__setattr__(stop, "reason", reason)
    return stop


# What is refused. A process that asks for it crashes, and its monitors are told why.

#: What is asked for, and how the text of the error begins.
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "what is no control message": (
        lambda: "a text",
        "TypeError: the executor was sent a str; it understands Ask, CancelTimer, Demonitor, "
        "Drain, GetGroupMembers, GetMetrics, JoinGroup, LeaveGroup, Link, Monitor, Register, "
        "Spawn, "
        "StartTimer, Stop, Sub",
    ),
    "a Timer of the wheel": (
        lambda: TimerWheel().start(OUTSIDE, TIMER, 1),
        "TypeError: a Timer is nothing to be sent",
    ),
    "StartTimer without a correlation id": (
        lambda: StartTimer(None, 1),  # type: ignore[arg-type]
        "TypeError: StartTimer: correlation_id must be a CorrelationId, not None",
    ),
    "StartTimer of a name": (
        lambda: StartTimer("timer", 1),  # type: ignore[arg-type]
        "TypeError: StartTimer: correlation_id must be a CorrelationId, not the str 'timer'; write "
        "CorrelationId(pid, request=1), or pass on",
    ),
    "CancelTimer of None": (
        lambda: CancelTimer(None),  # type: ignore[arg-type]
        "TypeError: CancelTimer: correlation_id must be a CorrelationId, not None; write",
    ),
    "StartTimer of a text": (
        lambda: StartTimer(TIMER, "1"),  # type: ignore[arg-type]
        "TypeError: a delay must be milliseconds as an int or float, not str: '1'",
    ),
    "StartTimer of less than nothing": (
        lambda: StartTimer(TIMER, -1),
        "ValueError: a delay must be from 0 to 31622400000 milliseconds (366 days)",
    ),
    "Monitor of None": (
        lambda: Monitor(None),  # type: ignore[arg-type]
        "TypeError: Monitor: pid must be a Pid, not None",
    ),
    "Demonitor of None": (
        lambda: Demonitor(None),  # type: ignore[arg-type]
        "TypeError: Demonitor: pid must be a Pid, not None",
    ),
    "Stop of a name": (
        lambda: Stop("worker"),  # type: ignore[arg-type]
        "TypeError: Stop: pid must be a Pid, not the str 'worker'; write node.pid('worker')",
    ),
    "Spawn of a number": (
        lambda: Spawn(5, "name"),  # type: ignore[arg-type]
        "TypeError: only a Process can be spawned, not the int 5",
    ),
    "Spawn in the runtime's group": (
        lambda: Spawn(Recorder(), "name", "rabble"),
        "ValueError: the group 'rabble' is for the node's own services",
    ),
    "Spawn with a mailbox of nothing": (
        lambda: Spawn(Recorder(), "name", mailbox_max=0),
        "ValueError: mailbox_max must be 1 to 2**31 - 1, not 0",
    ),
    "Stop of the executor": (
        lambda: Stop(Pid("executor", BARE, "rabble")),
        "ValueError: the executor is not stopped by a message; use node.shutdown()",
    ),
    "Stop of the runtime's own": (
        lambda: Stop(CALLS),
        "ValueError: rabble::calls::bare@h:1 is the runtime's own and is not stopped by a message",
    ),
    "Stop of another node's process": (
        lambda: Stop(ELSEWHERE),
        "ValueError: Stop: far::far@h:2 is no process of bare@h:1; a node stops its own processes "
        "only, so send that process a message that has it stop itself",
    ),
    "Stop for a text": (
        lambda: stop_for("a text"),
        "TypeError: Stop: reason must be a DownReason of kind stopped, crashed, shutdown, or None, "
        "not 'a text'",
    ),
    "Stop for what the runtime says": (
        lambda: stop_for(DownReason("no_process")),
        "TypeError: Stop: reason must be a DownReason of kind stopped, crashed, shutdown, or None, "
        "not DownReason(kind='no_process'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_process_that_asks_for_what_is_refused_crashes_with_what_was_wrong(
    executor: Executor, what: str
) -> None:
    make, text = REFUSED[what]
    executor.add_callback(CALLS, lambda envelope: None)
    monitoring, told = spawn_recorder(executor, "monitoring")
    asker = executor.spawn(returning(Envelope(executor.pid, make())), "asker")
    ask(executor, monitoring, Monitor(asker))
    executor.send(asker, "go")
    settle(executor)
    (down,) = told
    assert down.pid == asker and down.reason.kind == "crashed"
    assert down.reason.detail.startswith(text)
    # And nothing was done, not by half.
    assert executor.processes == 1 and executor.timers == 0 and CALLS in executor.table


@pytest.mark.parametrize("what", REFUSED)
def test_what_another_thread_asks_and_is_refused_is_reported_and_a_dead_letter(
    executor: Executor, witness: Witness, what: str
) -> None:
    make, text = REFUSED[what]
    executor.add_callback(CALLS, lambda envelope: None)
    sender = Pid("nobody", BARE)
    ask(executor, sender, make())
    ((pid, error),) = witness.errors
    # Who is not there asks for nothing, but may be wrong all the same.
    assert pid == sender and f"{type(error).__name__}: {error}".startswith(text)
    assert executor.dead_letters == {DeadLetterReason.REFUSED: 1} and executor.crashes == 0


@pytest.mark.parametrize(
    "message",
    [
        StartTimer(TIMER, 1),
        CancelTimer(TIMER),
        Monitor(OUTSIDE),
        Demonitor(OUTSIDE),
        SubscribeNodes(),
        SubscribeDeadLetters(),
        GetMetrics(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_concerns_its_sender_needs_one(
    executor: Executor, witness: Witness, message: object
) -> None:
    ask(executor, None, message)
    ((pid, error),) = witness.errors
    name = type(message).__name__
    assert (
        pid is None
        and str(error) == f"{name} needs a sender: it concerns the process that sends it"
    )
    assert executor.dead_letters == {DeadLetterReason.REFUSED: 1}


# What is answered.


def test_a_spawn_that_cannot_be_done_is_answered_with_its_correlation_id(
    executor: Executor,
) -> None:
    answers: list[Envelope] = []
    executor.add_callback(CALLS, answers.append)
    taken, _ = spawn_recorder(executor, "taken")
    request = CorrelationId(CALLS, None, 1)
    ask(executor, CALLS, Spawn(Recorder(), "taken"), correlation_id=request)
    ask(executor, CALLS, Spawn(Recorder(), "free"), correlation_id=request)
    assert [(answer.msg, answer.correlation_id) for answer in answers] == [
        (SpawnFailed(taken, "the name is taken"), request)
    ]
    assert executor.processes == 2


class Asks(Process):
    """Asks for a process once, and keeps the answer."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.answers: list[Any] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "go":
            return Envelope(self.executor, Spawn(self.child, "child"), correlation_id=TIMER)
        self.answers.append((msg, correlation_id))
        return None


class Async(Process):
    async def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:  # type: ignore[override]
        pass


class RaisingReceive(Process):
    @property
    def receive(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit(8)


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (Async(), "TypeError: Async.receive is async, but the executor waits for nothing"),
        (RaisingReceive(), "SystemExit: 8"),
        ("its asker", "ValueError: this Asks runs already, as asker::bare@h:1; spawn a new"),
    ],
)
def test_who_asks_for_a_process_that_cannot_run_is_told_why_and_goes_on(
    executor: Executor, child: Any, why: str
) -> None:
    asks = Asks(child)
    if child == "its asker":
        asks.child = asks
    asker = executor.spawn(asks, "asker")
    executor.send(asker, "go")
    settle(executor)
    ((answer, correlation_id),) = asks.answers
    assert answer.pid == Pid("child", BARE) and answer.reason.startswith(why)
    assert correlation_id == TIMER and asker in executor.table
    assert executor.processes == 1 and executor.crashes == 0


def test_a_process_that_cannot_run_and_whose_asker_is_gone_is_reported(
    executor: Executor, witness: Witness
) -> None:
    executor.send(executor.pid, Spawn(Async(), "child"))
    settle(executor)
    ((pid, error),) = witness.errors
    assert pid is None and "Async.receive is async" in str(error)
    assert executor.dead_letters == {DeadLetterReason.REFUSED: 1}


def test_a_node_that_ends_spawns_nobody_and_says_so() -> None:
    answers: list[object] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        if isinstance(msg, Shutdown):
            return Envelope(process.executor, Spawn(Recorder(), "late"))
        answers.append(msg)
        return None

    with bare_executor() as executor:
        asker = executor.spawn(Does(react), "asker")
        ask(executor, asker, Monitor(executor.pid))
        executor.request_stop(60)
        executor.run()
    assert answers == [SpawnFailed(Pid("late", BARE), "the node shuts down")]


def test_metrics_are_answered_with_the_correlation_id_of_who_asks(hub: Hub) -> None:
    cids: list[CorrelationId | None] = []

    class Asker(Recorder):
        def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
            cids.append(correlation_id)
            return super().receive(msg, sender, correlation_id)

    asker = Asker()
    pid = hub.executor.spawn(asker, "asker")
    request = CorrelationId(pid, None, 1)
    ask(hub.executor, pid, GetMetrics(), correlation_id=request)
    assert asker.got == [Metrics({}, {})] and cids == [request]


def test_who_subscribes_is_told_once_of_each_node_that_is_there_until_it_unsubscribes(
    hub: Hub,
) -> None:
    first = hub.connect("first")
    subscriber, told = spawn_recorder(hub.executor, "subscriber")
    for _ in range(2):
        ask(hub.executor, subscriber, SubscribeNodes())
    second = hub.connect("second")
    assert hub.executor.node_subscribed == (subscriber,)
    ask(hub.executor, subscriber, SubscribeNodes(wanted=False))
    hub.connect("third")
    assert told == [NodeUp(first.node, 1), NodeUp(second.node, 1)]
    assert hub.executor.node_subscribed == ()


def test_a_stop_of_nobody_is_done(executor: Executor, witness: Witness) -> None:
    ask(executor, None, Stop(OUTSIDE))
    assert witness.errors == [] and executor.dead_letters == {}


@pytest.mark.parametrize("kind", DownReason.STOP_KINDS)
def test_a_stop_ends_a_process_for_the_reason_that_it_gives(executor: Executor, kind: str) -> None:
    monitoring, told = spawn_recorder(executor, "monitoring")
    stopped, _ = spawn_recorder(executor, "stopped")
    ask(executor, monitoring, Monitor(stopped))
    ask(executor, None, Stop(stopped, DownReason(kind, "enough")))
    assert told == [Down(stopped, DownReason(kind, "enough"))]
    assert executor.crashes == 0


def test_a_stop_takes_no_reason_that_is_none() -> None:
    with pytest.raises(TypeError, match="reason must be a DownReason or None, not 'a text'"):
        Stop(OUTSIDE, "a text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of stopped, crashed, shutdown"):
        Stop(OUTSIDE, DownReason("disconnected"))
    with pytest.raises(TypeError, match="detail must be a str"):
        DownReason("stopped", b"x")  # type: ignore[arg-type]


def test_the_runtimes_own_pids_are_not_stopped(executor: Executor, witness: Witness) -> None:
    calls = Pid("calls", BARE, "rabble")
    executor.add_callback(calls, lambda envelope: None)
    for pid in (calls, executor.pid):
        executor.send(executor.pid, Stop(pid))
    settle(executor)
    assert calls in executor.table and executor.pid in executor.table
    assert [type(error) for _, error in witness.errors] == [ValueError, ValueError]


def test_a_process_of_another_executor_is_not_started_here(executor: Executor) -> None:
    began: list[Process] = []
    process = Does(lambda *_: None, lambda process: began.append(process))
    with bare_executor() as other:
        other.spawn(process, "process", mailbox_max=1)
        executor.send(executor.pid, process._runtime)
        settle(executor)
        assert not began and executor.processes == 0
        settle(other)
        assert began == [process]
