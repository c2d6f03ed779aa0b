"""What a node stands on: when it may be used, how it fails, and what its status is."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    Envelope,
    ForkedNode,
    Limits,
    NameTaken,
    Node,
    NodeId,
    NodeStopped,
    NoProcess,
    Pid,
    Process,
    QueueFull,
)
from rabble._core.inbox import Inbox
from rabble._runtime import LocalRuntime
from rabble.messages import DeadLetterReason, DownReason
from tests.support import BARE, PATIENCE_S, Does, Echo

ONE = Pid("one", BARE)
FAR = Pid("one", NodeId("far", "127.0.0.1:1"))


class Executor:
    """What a runtime asks of its executor; keeps what it is told to do."""

    def __init__(self) -> None:
        self.forked = self.stopping = self.failed = False
        self.is_full = False
        self.inbox_depth = 3
        self.stops: list[float] = []
        self.posted: list[Envelope] = []
        self.dead: list[tuple[Envelope, DeadLetterReason]] = []
        self.discarded: list[Pid] = []

    def request_stop(self, drain_s: float) -> None:
        self.stops.append(drain_s)
        self.stopping = True

    def post(self, envelope: Envelope) -> bool:
        if self.is_full or self.stopping:
            return False
        self.posted.append(envelope)
        return True

    def undeliverable(
        self, envelope: Envelope, reason: DeadLetterReason, detail: str = "", crash: int = 0
    ) -> None:
        self.dead.append((envelope, reason))

    def discard(self, pid: Pid, inbox: Inbox, reason: DownReason, crash: int = 0) -> None:
        self.discarded.append(pid)


class Reporter:
    """Keeps what is reported, or fails at it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.errors: list[BaseException | None] = []
        self.fails = False

    def report(
        self, level: int, words: Callable[[], str], error: BaseException | None = None
    ) -> None:
        if self.fails:
            raise MemoryError
        self.texts.append(words())
        self.errors.append(error)


class Watchdog:
    stalled = False


@pytest.fixture
def runtime() -> LocalRuntime:
    runtime = LocalRuntime(BARE, Limits(inbox_envelopes_max=3))
    made: Any = runtime
    made.executor, made.reporter, made.watchdog = Executor(), Reporter(), Watchdog()
    return runtime


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("test@127.0.0.1:0") as node:
        yield node


# The state of a node.


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (set(), "running"),
        ({"stalled"}, "stalled"),
        ({"stalled", "stopping"}, "stopping"),
        ({"stopping", "ended"}, "stopped"),
        ({"stopping", "ended", "failure"}, "failed"),
        ({"failed"}, "failed"),  # without the memory to say why
        ({"stopping", "ended", "failure", "forked"}, "forked"),
    ],
)
def test_the_status_is_the_worst_that_is_known(
    runtime: LocalRuntime, state: set[str], status: str
) -> None:
    executor: Any = runtime.executor
    for name in state & {"forked", "failed", "stopping"}:
        setattr(executor, name, True)
    watchdog: Any = runtime.watchdog
    watchdog.stalled = "stalled" in state
    if "failure" in state:
        runtime.failure = "the executor: LookupError"
    if "ended" in state:
        runtime.ended.close()
    assert runtime.status == status


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("forked", ForkedNode, "rouse a node of its own here"),
        ("stopping", NodeStopped, "bare@h:1 was shut down"),
    ],
)
def test_a_node_that_cannot_be_used_says_why(
    runtime: LocalRuntime, state: str, error: type[Exception], said: str
) -> None:
    runtime.check_usable()
    setattr(runtime.executor, state, True)
    with pytest.raises(error, match=said):
        runtime.check_usable()


def test_what_is_not_accepted_is_refused_for_the_reason_there_is(runtime: LocalRuntime) -> None:
    with pytest.raises(NameTaken, match="one::bare@h:1 runs already"):
        runtime.refuse(ONE)
    with pytest.raises(QueueFull, match=r"3 envelopes wait .* Limits\.inbox_envelopes_max is 3"):
        runtime.refuse()
    runtime.executor.request_stop(0.0)
    for pid in (None, ONE):
        with pytest.raises(NodeStopped):
            runtime.refuse(pid)


def test_a_node_by_itself_has_no_side_of_a_mesh(runtime: LocalRuntime) -> None:
    with pytest.raises(RuntimeError, match="bare@h:1 is a node by itself"):
        runtime.mesh_side()


# Failures.


def test_the_first_failure_is_the_reason_and_ends_the_node(runtime: LocalRuntime) -> None:
    executor: Any = runtime.executor
    reporter: Any = runtime.reporter
    runtime.fail("the reporter", LookupError("a defect"))
    runtime.fail("the executor", ZeroDivisionError())
    assert runtime.why_failed() == "the reporter: LookupError: a defect"
    assert runtime.why_stopped() == "bare@h:1 failed (the reporter: LookupError: a defect)"
    assert executor.stops == [0.0, 0.0]
    # A thread that waits for the end is woken.
    assert select.select([runtime.ended], [], [], 0)[0]
    first, second = reporter.texts
    assert first == "bare@h:1: the reporter failed"
    assert second == "bare@h:1: the executor failed, too"
    assert [type(error) for error in reporter.errors] == [LookupError, ZeroDivisionError]


def test_a_failure_that_cannot_be_reported_ends_the_node_all_the_same(
    runtime: LocalRuntime,
) -> None:
    executor: Any = runtime.executor
    reporter: Any = runtime.reporter
    reporter.fails = True
    runtime.fail("the executor", MemoryError())
    assert (runtime.status, executor.stops) == ("failed", [0.0])


def test_an_executor_that_failed_without_memory_is_named(runtime: LocalRuntime) -> None:
    assert runtime.why_failed() is None
    executor: Any = runtime.executor
    executor.failed = True
    assert runtime.why_failed() == "the executor"


def test_a_node_that_fails_ends_itself_and_says_why() -> None:
    node = rabble.rouse()
    echo = node.spawn(Echo(), "echo")
    silent = node.spawn(Does(lambda process, msg, sender: None), "silent")
    assert node.call(echo, 1, PATIENCE_S) == 1
    assert node.failure is None
    box = node.mailbox()
    waits: list[BaseException] = []

    def wait() -> None:
        try:
            node.call(silent, 1, PATIENCE_S)
        except NodeStopped as error:
            waits.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not len(node._runtime.calls):
        time.sleep(0.001)

    def look(reporter: object) -> None:
        raise LookupError("a defect")

    node._runtime.reporter._watch = look  # type: ignore[assignment]
    with pytest.raises(NodeStopped):
        box.receive(PATIENCE_S)
    thread.join(PATIENCE_S)
    why = "the reporter: LookupError: a defect"
    assert str(waits[0]) == f"{node.node_id} failed ({why}) before the reply came"
    node.shutdown()
    assert (node.status, node.failure) == ("failed", why)
    assert node.executor_status().status == "failed"
    with pytest.raises(NodeStopped, match="a defect"):
        node.mailbox()


# What services and mailboxes do with it.


def test_a_service_is_heard_while_the_node_drains_and_then_no_more(runtime: LocalRuntime) -> None:
    executor: Any = runtime.executor
    envelope = Envelope(ONE, "hello")
    runtime.post_from_service(envelope)
    assert executor.posted == [envelope]
    executor.is_full = True
    with pytest.raises(QueueFull):
        runtime.post_from_service(envelope)
    runtime.ending = True
    runtime.post_from_service(envelope)
    assert executor.dead == [(envelope, DeadLetterReason.NODE_SHUTDOWN)]


def test_a_forked_child_writes_into_nothing_that_it_shares(runtime: LocalRuntime) -> None:
    executor: Any = runtime.executor
    executor.forked = True
    with pytest.raises(ForkedNode):
        runtime.post_from_service(Envelope(ONE, "hello"))
    runtime.undelivered(Envelope(ONE, "hello"))
    assert executor.posted == executor.dead == []


def test_a_pid_is_given_back_until_the_executor_has_ended(runtime: LocalRuntime) -> None:
    executor: Any = runtime.executor
    inbox = Inbox(1)
    runtime.discard(ONE, inbox, DownReason("stopped"))
    executor.request_stop(0.0)
    # While it drains somebody may wait for that end.
    two = Pid("two", BARE)
    runtime.discard(two, inbox, DownReason("stopped"))
    runtime.ending = True
    runtime.discard(Pid("three", BARE), inbox, DownReason("stopped"))
    assert executor.discarded == [ONE, two]


# Who may be asked what.


def test_a_process_of_another_node_is_not_stopped_from_here(node: Node) -> None:
    with pytest.raises(ValueError, match="one::far@127.0.0.1:1 does not: send it a message, on "):
        node.stop(FAR)
    with pytest.raises(TypeError, match="stop takes a Pid, not 'one'"):
        node.stop("one")  # type: ignore[arg-type]


@pytest.mark.parametrize("subscribe", ["subscribe_dead_letters", "subscribe_nodes"])
def test_only_who_runs_here_may_subscribe(node: Node, subscribe: str) -> None:
    ask = getattr(node, subscribe)
    with pytest.raises(ValueError, match="let it subscribe on its own node"):
        ask(FAR)
    with pytest.raises(NoProcess, match="one::test@127.0.0.1:0 cannot subscribe: no process"):
        ask(node.pid("one"))
    with pytest.raises(TypeError, match="a subscription takes a Pid, not None"):
        ask(None)
    # What there is not can be given up.
    ask(node.pid("one"), False)
    ask(node.spawn(Echo(), "one"))


def test_a_call_that_cannot_be_sent_waits_for_nothing() -> None:
    gate = threading.Event()
    taken = threading.Event()

    def wait(process: Process, msg: Any, sender: Pid | None) -> None:
        taken.set()
        gate.wait(PATIENCE_S)

    with rabble.rouse(limits=Limits(inbox_envelopes_max=10)) as node:
        waits = node.spawn(Does(wait), "waits")
        node.send(waits, "go")
        assert taken.wait(PATIENCE_S)
        for _ in range(10):
            node.send(waits, "fill the inbox")
        with pytest.raises(QueueFull):
            node.call(waits, "no room", PATIENCE_S)
        assert node.metrics().gauges["calls_waiting"] == 0
        gate.set()
