"""What may be a timeout, wherever one is given: checked before anything is done."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import rabble
from rabble import CallTimeout, Node, NodeStopped, Pid, ShutdownTimeout
from rabble.timeouts import TIMEOUT_S_MAX, checked_timeout
from tests.support import PATIENCE_S, Does, Echo


class Cunning(float):
    """Another number each time that it is looked at."""

    def __float__(self) -> float:
        return math.nan


class Liar:
    """Says that it is a number."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float

    def __repr__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0.0),
        (2, 2.0),
        (2.5, 2.5),
        (Fraction(1, 2), 0.5),
        (-1, 0.0),
        (-math.inf, 0.0),
        (-(10**400), 0.0),
        (math.inf, TIMEOUT_S_MAX),
        (1e300, TIMEOUT_S_MAX),
        (10**400, TIMEOUT_S_MAX),
        (TIMEOUT_S_MAX + 1, TIMEOUT_S_MAX),
    ],
)
def test_a_number_is_bounded(given: float, seconds: float) -> None:
    taken = checked_timeout(given)
    assert (taken, type(taken)) == (seconds, float)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (math.nan, ValueError, "timeout must be a number of seconds, such as 2.5, and NaN is none"),
    (Cunning(1.0), ValueError, "NaN"),
    ("5", TypeError, "timeout must be a number of seconds, such as 2.5, not '5'"),
    (True, TypeError, "not True"),
    ([], TypeError, r"not \[\]"),
    (1j, TypeError, "not 1j"),
    (Decimal(1), TypeError, "not Decimal"),
    (Liar(), TypeError, "."),
]


@pytest.mark.parametrize(("given", "error", "said"), WRONG, ids=lambda each: type(each).__name__)
def test_what_is_no_number_is_refused(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        checked_timeout(given)


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse() as node:
        yield node


TAKERS: dict[str, Callable[[Node, Pid, Any], Any]] = {
    "call": lambda node, to, timeout: node.call(to, 1, timeout),
    "call_async": lambda node, to, timeout: asyncio.run(node.call_async(to, 1, timeout)),
    "spawn_on": lambda node, to, timeout: node.spawn_on(
        node.node_id, "echo", "spawned", timeout=timeout
    ),
    "spawn_on_async": lambda node, to, timeout: asyncio.run(
        node.spawn_on_async(node.node_id, "echo", "spawned", timeout=timeout)
    ),
    "receive": lambda node, to, timeout: node.mailbox().receive(timeout),
    "shutdown": lambda node, to, timeout: node.shutdown(timeout),
    "request_shutdown": lambda node, to, timeout: node.request_shutdown(timeout),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("wrong", [math.nan, "5", True], ids=str)
def test_a_wrong_one_is_refused_before_anything_happens(node: Node, taker: str, wrong: Any) -> None:
    node.export("echo", Echo)
    got: list[Any] = []
    pid = node.spawn(Does(lambda process, msg, sender: got.append(msg)), "one")
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        TAKERS[taker](node, pid, wrong)
    assert node.status == "running"
    # What had been sent would have come before this.
    assert node.call(node.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
    assert got == []
    assert node.pid("spawned") not in node.processes()


@pytest.mark.parametrize("endless", [math.inf, 10**400, 1e300], ids=["inf", "int", "float"])
def test_one_without_end_is_one(node: Node, endless: float) -> None:
    node.export("echo", Echo)
    echo = node.spawn(Echo(), "echo")
    assert node.call(echo, 1, endless) == 1
    assert asyncio.run(node.call_async(echo, 1, endless)) == 1
    assert node.spawn_on(node.node_id, "echo", "spawned", timeout=endless).name == "spawned"
    with node.mailbox() as box:
        box.send(echo, 1)
        assert box.receive(endless).msg == 1


@pytest.mark.parametrize("over", [0, -1, -math.inf], ids=str)
def test_one_that_is_over_still_looks(node: Node, over: float) -> None:
    silent = node.spawn(Does(lambda process, msg, sender: None), "silent")
    with pytest.raises(CallTimeout):
        node.call(silent, 1, over)
    with node.mailbox() as box:
        with pytest.raises(CallTimeout):
            box.receive(over)


@pytest.mark.parametrize("endless", [math.inf, 10**400])
@pytest.mark.parametrize("end", ["shutdown", "request_shutdown"])
def test_a_drain_without_end_delivers_all(endless: float, end: str) -> None:
    node = rabble.rouse()
    got: list[int] = []
    pid = node.spawn(Does(lambda process, msg, sender: got.append(msg)), "one")
    began = threading.Event()
    go_on = threading.Event()

    def holds(process: object, msg: Any, sender: object) -> None:
        began.set()
        assert go_on.wait(PATIENCE_S)

    node.send(node.spawn(Does(holds), "holds"), "on")
    assert began.wait(PATIENCE_S)
    for number in range(500):
        node.send(pid, number)
    node.request_shutdown(endless)
    go_on.set()
    getattr(node, end)(endless)
    node.shutdown(PATIENCE_S)
    assert got == list(range(500))
    assert node.status == "stopped"


def test_an_end_without_time_says_what_keeps_the_node() -> None:
    node = rabble.rouse()
    began = threading.Event()
    go_on = threading.Event()

    def holds(process: object, msg: Any, sender: object) -> None:
        began.set()
        assert go_on.wait(PATIENCE_S)

    node.send(node.spawn(Does(holds), "holds"), "on")
    assert began.wait(PATIENCE_S)
    with pytest.raises(ShutdownTimeout, match="receive of holds"):
        node.shutdown(-5)
    go_on.set()
    node.shutdown()
    with pytest.raises(NodeStopped):
        node.mailbox()
