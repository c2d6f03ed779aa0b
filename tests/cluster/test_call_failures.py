"""Calls whose answer cannot come, near and far: each ends at once, and says why."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    Ask,
    CallTimeout,
    CorrelationId,
    DecodeError,
    EncodeError,
    Envelope,
    Failed,
    MessageRegistry,
    Node,
    NoProcess,
    NotConnected,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    QueueFull,
    Reply,
    StartTimer,
    Stop,
    Timeout,
)
from tests.cluster.mesh import meet, rouse
from tests.support import PATIENCE_S, Echo, until

#: Seconds of a call that is not to wait for them.
LONG_S = 3 * PATIENCE_S
THEIRS = MessageRegistry()


@rabble.message(name="failures.Theirs", registry=THEIRS)
@dataclasses.dataclass(frozen=True)
class Theirs:
    """Only node b knows it."""

    x: int


@rabble.message(name="failures.Theirs", registry=MessageRegistry())
@dataclasses.dataclass(frozen=True)
class Unknown:
    """No node knows it."""


class Odd(Process):
    """Answers in its own way, or not."""

    def __init__(self, to: Pid | None = None) -> None:
        self.to = to
        self.asked: tuple[Pid, CorrelationId] | None = None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        def answer(value: Any) -> Envelope:
            assert sender is not None
            return Envelope(sender, value, correlation_id=correlation_id)

        def later() -> Envelope:
            return Envelope(self.executor, StartTimer(CorrelationId(self.pid, None, 1), 5))

        match msg:
            case "lambda":
                return answer(lambda: 1)
            case "deep":
                value: list[Any] = []
                for _ in range(100):
                    value = [value]
                return answer(value)
            case "large":
                return answer(bytes(200_000))
            case "theirs":
                return answer(Theirs(1))
            case "crash" | Theirs():
                raise ZeroDivisionError("division by zero")
            case "crash with a huge text":
                raise ValueError("x" * 1_000_000)
            case "crash with no text":
                raise Wordless
            case "crash later":
                return later()
            case "stop":
                return Envelope(self.executor, Stop(self.pid))
            case "stop later":
                self.to = self.pid
                return later()
            case "pass on":
                assert self.to is not None and sender is not None
                return Envelope(self.to, "crash later", sender, correlation_id)
            case "pass on a lambda":
                assert self.to is not None and sender is not None
                return Envelope(self.to, lambda: 1, sender, correlation_id)
            case "pass on and stop":
                assert self.to is not None and sender is not None
                return [
                    Envelope(self.to, "late", sender, correlation_id),
                    Envelope(self.executor, Stop(self.pid)),
                ]
            case "late":
                assert sender is not None and correlation_id is not None
                self.asked = (sender, correlation_id)
                return later()
            case "answer and crash":
                assert sender is not None
                return [answer("answered"), Envelope(self.pid, "crash")]
            case "no correlation id":
                assert sender is not None
                return Envelope(sender, "which one?")
            case Timeout() if self.asked is not None:
                return Envelope(self.asked[0], "late answer", None, self.asked[1])
            case Timeout() if self.to == self.pid:
                return Envelope(self.executor, Stop(self.pid))
            case Timeout():
                raise ZeroDivisionError("division by zero")
        return None


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.fixture(scope="module")
def three() -> Iterator[dict[str, Node]]:
    """Node a asks; b, and c, are far."""
    # All of their crashes are in the log, however soon they follow each other.
    limits = {"message_bytes_max": 100_000, "log_reports_per_second_max": 1_000}
    with (
        rouse("a", limits=limits, registry=MessageRegistry()) as a,
        rouse("b", limits=limits, registry=THEIRS) as b,
        rouse("c", limits=limits, registry=MessageRegistry()) as c,
    ):
        meet(a, b, c)
        yield {"a": a, "near": a, "b": b, "far": b, "c": c}


Way = Callable[[Node, Pid, Any, float], Any]


def by_thread(node: Node, pid: Pid, msg: Any, timeout: float = LONG_S) -> Any:
    return node.call(pid, msg, timeout)


def by_asyncio(node: Node, pid: Pid, msg: Any, timeout: float = LONG_S) -> Any:
    return asyncio.run(node.call_async(pid, msg, timeout))


class Asks(Process):
    """Asks once, and says how that ended."""

    def __init__(self, pid: Pid, msg: Any, timeout: float, ended: queue.SimpleQueue[Any]) -> None:
        self.ask = Ask(pid, msg, timeout * 1_000, self)
        self.ended = ended

    def init(self) -> Output:
        return Envelope(self.executor, self.ask)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        assert msg.tag is self and sender == self.executor and correlation_id is None
        self.ended.put(msg)
        return Envelope(self.executor, Stop(self.pid))


def by_process(node: Node, pid: Pid, msg: Any, timeout: float = LONG_S) -> Any:
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    node.spawn(Asks(pid, msg, timeout, ended), f"asks-{next(numbers)}")
    end = ended.get(timeout=LONG_S + PATIENCE_S)
    if isinstance(end, Failed):
        raise end.reason
    assert isinstance(end, Reply)
    return end.value


ways = pytest.mark.parametrize("ask", [by_thread, by_asyncio, by_process])
places = pytest.mark.parametrize("where", ["near", "far"])


def failure(ask: Way, three: dict[str, Node], pid: Pid, msg: Any) -> rabble.RabbleError:
    """How the call ends: long before its time is over, and the same as a copy of it."""
    start = time.monotonic()
    with pytest.raises(rabble.RabbleError) as raised:
        ask(three["a"], pid, msg, LONG_S)
    assert time.monotonic() - start < LONG_S / 2
    error = raised.value
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert repr(again) == repr(error) and type(again) is type(error)
        assert vars(again) == vars(error)
    assert len(str(error)) < 1_000
    return error


numbers = iter(range(1_000_000))


def odd(node: Node, to: Pid | None = None, **more: Any) -> Pid:
    return node.spawn(Odd(to), f"odd-{next(numbers)}", **more)


CRASHES = {
    "crash": "ZeroDivisionError: division by zero",
    "crash later": "ZeroDivisionError: division by zero",
    "crash with a huge text": "ValueError: xxx",
    "crash with no text": "Wordless: a Wordless whose str raises RuntimeError",
}


@ways
@places
@pytest.mark.parametrize("what", CRASHES)
def test_a_crash_says_what_was_raised_and_where(
    three: dict[str, Node], ask: Way, where: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = three[where]
    pid = odd(node)
    error = failure(ask, three, pid, what)
    assert isinstance(error, ProcessCrashed)
    assert str(error).startswith(f"{pid} crashed: {CRASHES[what]}")
    assert str(error).endswith(f"(crash {error.crash} in the log of {node.node_id})")
    assert (error.pid, error.node) == (pid, node.node_id)
    kind, _, text = CRASHES[what].partition(": ")
    assert error.error_type == kind and error.error_text.startswith(text)
    assert error.crash == node.executor_status().crashes
    until(lambda: f"{pid} crashed (crash {error.crash})" in caplog.text)


@ways
@places
@pytest.mark.parametrize("what", ["stop", "stop later"])
def test_an_orderly_end_without_an_answer_says_so(
    three: dict[str, Node], ask: Way, where: str, what: str
) -> None:
    pid = odd(three[where])
    error = failure(ask, three, pid, what)
    assert isinstance(error, NoProcess) and not isinstance(error, NotConnected)
    assert str(error) == f"{pid} stopped before it replied"


@ways
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("lambda", "function cannot be in a message"),
        ("large", "100000 allowed"),
        ("deep", "deep"),
    ],
)
def test_a_reply_that_cannot_be_encoded_says_why(
    three: dict[str, Node], ask: Way, what: str, said: str
) -> None:
    pid = odd(three["far"])
    error = failure(ask, three, pid, what)
    assert isinstance(error, EncodeError) and said in str(error)
    assert str(error).startswith(f"the reply of {pid} cannot be encoded: ")
    assert (error.pid, error.node) == (pid, three["far"].node_id)
    # The process lives.
    assert isinstance(failure(ask, three, pid, "crash"), ProcessCrashed)


@ways
def test_a_reply_that_cannot_be_encoded_says_why_in_strict_mode_too(ask: Way) -> None:
    with rabble.rouse("s@h:1", strict=True) as node:
        pid = node.spawn(Odd(), "odd")
        error = failure(ask, {"a": node}, pid, "lambda")
        assert isinstance(error, EncodeError)
        assert str(error).startswith(f"the reply of {pid} cannot be encoded: ")
        error = failure(ask, {"a": node}, pid, lambda: 1)
        assert isinstance(error, EncodeError)
        assert str(error).startswith(f"the message for {pid} cannot be encoded: ")


@ways
def test_a_reply_that_this_node_cannot_build_says_why(three: dict[str, Node], ask: Way) -> None:
    pid = odd(three["far"])
    error = failure(ask, three, pid, "theirs")
    assert isinstance(error, DecodeError) and "failures.Theirs" in str(error)
    assert str(error).startswith(f"the reply of {pid} cannot be decoded here: ")
    assert error.pid == pid


@ways
def test_a_request_that_cannot_travel_says_why(three: dict[str, Node], ask: Way) -> None:
    error = failure(ask, three, odd(three["far"]), lambda: 1)
    assert isinstance(error, EncodeError) and "function cannot be in a message" in str(error)
    assert str(error).startswith("the message for odd-")


@ways
def test_a_request_that_the_other_node_cannot_build_says_why(
    three: dict[str, Node], ask: Way
) -> None:
    pid = odd(three["c"])
    with pytest.raises(DecodeError, match=r"cannot be decoded by c@.*failures\.Theirs") as raised:
        ask(three["b"], pid, Theirs(1), LONG_S)
    assert (raised.value.pid, raised.value.node) == (pid, three["c"].node_id)


@ways
@places
def test_a_full_mailbox_says_so(three: dict[str, Node], ask: Way, where: str) -> None:
    class Endless(Process):
        """There is always one of its own before any other."""

        def init(self) -> Output:
            return Envelope(self.pid, 1)

        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            return None if msg == "stop" or over else Envelope(self.pid, 1)

    over = False
    pid = three[where].spawn(Endless(), f"endless-{next(numbers)}", mailbox_max=1)
    try:
        while not three[where].processes()[pid]:
            pass
        assert isinstance(failure(ask, three, pid, 1), QueueFull)
    finally:
        over = True


@ways
@places
def test_an_answer_that_was_sent_before_the_end_wins(
    three: dict[str, Node], ask: Way, where: str
) -> None:
    assert ask(three["a"], odd(three[where]), "answer and crash", LONG_S) == "answered"


@ways
@places
def test_a_request_is_that_of_the_life_that_took_it(
    three: dict[str, Node], ask: Way, where: str
) -> None:
    """The next life of that name answers what was sent to it, whatever became of the one before."""
    node = three[where]
    pid = odd(node)
    assert isinstance(failure(ask, three, pid, "crash"), ProcessCrashed)
    node.spawn(Echo(), pid.name)
    assert ask(three["a"], pid, "again", LONG_S) == "again"


@ways
@pytest.mark.parametrize(("via", "to"), ["aa", "ab", "ba", "bb", "bc"])
def test_who_has_it_now_is_who_matters_and_not_who_passed_it_on(
    three: dict[str, Node], ask: Way, via: str, to: str
) -> None:
    last = odd(three[to])
    error = failure(ask, three, odd(three[via], last), "pass on")
    assert isinstance(error, ProcessCrashed)
    assert str(error).startswith(f"{last} crashed: ZeroDivisionError: division by zero")
    assert error.node == three[to].node_id
    last = odd(three[to])
    assert ask(three["a"], odd(three[via], last), "pass on and stop", LONG_S) == "late answer"


@ways
@pytest.mark.parametrize(("via", "to"), ["aa", "ab", "ba", "bc"])
def test_a_request_that_was_passed_on_to_nobody_says_so(
    three: dict[str, Node], ask: Way, via: str, to: str
) -> None:
    nobody = three[to].pid("nobody")
    error = failure(ask, three, odd(three[via], nobody), "pass on")
    assert type(error) is NoProcess and str(error) == f"{nobody} could not be reached: no_process"


@ways
def test_a_request_that_cannot_be_passed_on_names_who_passed_it_on(
    three: dict[str, Node], ask: Way
) -> None:
    a, b = three["a"], three["b"]
    offline = Pid("nobody", rabble.NodeId("offline", "127.0.0.1:1"))
    for to, asked, kind, text in (
        (offline, "pass on", NotConnected, "no connection leads from {b} to where {via} passed"),
        (odd(three["c"]), "pass on a lambda", EncodeError, "the request, which {via} passed on, "),
    ):
        via = odd(b, to)
        error = failure(ask, three, via, asked)
        assert type(error) is kind
        assert text.format(b=b.node_id, via=via) in str(error)
        assert (error.pid, error.node) == (via, b.node_id)
    via = odd(a, offline)
    error = failure(ask, three, via, "pass on")
    assert str(error) == f"no connection leads to the node of {offline}"


@places
def test_an_answer_without_the_correlation_id_is_mentioned(
    three: dict[str, Node], where: str
) -> None:
    pid = odd(three[where])
    with pytest.raises(CallTimeout, match="an envelope without the correlation id of a call"):
        three["a"].call(pid, "no correlation id", 0.3)
    with pytest.raises(CallTimeout) as raised:
        three["a"].call(pid, "nothing", 0.01)
    assert str(raised.value) == f"{pid} did not reply in 0.01 s"
    assert raised.value.pid == pid


@ways
@pytest.mark.parametrize("passed_on", [False, True])
def test_the_end_of_the_node_that_has_it_ends_it(
    three: dict[str, Node], ask: Way, passed_on: bool
) -> None:
    """Also if it was sent to another node, which is there and has passed it on."""
    with rouse("d") as d:
        meet(three["a"], three["b"], d)

        class Ends(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                d.request_shutdown(0.0)
                return None

        last = d.spawn(Ends(), "ends")
        error = failure(ask, three, odd(three["b"], last) if passed_on else last, "pass on")
        assert isinstance(error, NotConnected)
        assert str(error).startswith(f"the connection to {d.node_id} ended before {last} replied")
        assert ("had passed the request on" in str(error)) == passed_on
        assert error.node == d.node_id


@ways
@places
def test_whoever_calls_takes_no_calls(three: dict[str, Node], ask: Way, where: str) -> None:
    """And the number of another node's call is none of this one's."""
    pid = three[where].pid("calls", "rabble")
    error = failure(ask, three, pid, "echo?")
    assert type(error) is NoProcess and str(error) == f"{pid} could not be reached: refused"
