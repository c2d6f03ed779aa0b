"""The gate of a server: what it is asked and told, its canaries, and one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node
from rabble.services.gate import NEVER
from rabble.services.server_limits import ServerLimits
from tests.clients import Client, adding
from tests.support import PATIENCE_S, until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Noting:
    """Lets in all but those of priority -1, and notes what it is asked and told."""

    def __init__(self, retry_ms: int = 120, tick_ns: int | None = None) -> None:
        self.retry_ms = retry_ms
        self.tick_ns = tick_ns
        self.noted: list[tuple[Any, ...]] = []
        self.changes: list[Any] = []
        self.due = 0
        self.in_flight = 0
        self.nodes: tuple[str, ...] = ()

    def admit(self, now_ns: int, priority: int = 0) -> int:
        return 0 if self.has_room(now_ns, priority) else self.refuse(now_ns, priority)

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        self.noted.append(("has_room", priority))
        return priority >= 0

    def refuse(self, now_ns: int, priority: int = 0) -> int:
        self.noted.append(("refuse", priority))
        return self.retry_ms

    def began(self, now_ns: int) -> None:
        self.noted.append(("began", now_ns))

    def ended(self, now_ns: int, begun_ns: int, ok: bool = True) -> None:
        assert begun_ns <= now_ns and ("began", begun_ns) in self.noted
        self.noted.append(("ended", ok))

    def canary_due(self, now_ns: int, node: str = "") -> bool:
        self.due -= 1
        return self.due >= 0

    def canary_sent(self, now_ns: int, number: int, node: str = "") -> None:
        self.noted.append(("sent", number))

    def canary_back(self, now_ns: int, number: int) -> None:
        self.noted.append(("back", number))

    def canary_lost(self, now_ns: int, node: str = "") -> None:
        self.noted.append(("lost", node))

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        assert 0.0 <= fraction <= 1.0
        self.noted.append(("pressure", name))

    def next_tick(self, now_ns: int) -> int:
        return NEVER if self.tick_ns is None else now_ns + self.tick_ns

    def tick(self, now_ns: int) -> Any:
        return self.changes.pop() if self.changes else None

    def status(self) -> Any:
        return len(self.noted)

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [each for each in list(self.noted) if each[0] in kinds]


def test_each_request_is_admitted_began_and_ended(node: Node) -> None:
    gate = Noting()
    with adding(node, gate=gate, limits=ServerLimits(drain_ms=20)) as server:
        with Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            client.send([0, 2, 5, -1])
            assert client.receive()[:3] == [2, 2, 120]
            client.send([0, 3, 5, 1])
            assert client.receive() == [0, 3, 10]
            client.send([1, "no request"])
            assert client.receive() == [3, "no request"]
            client.send([0, 4, "boom"])
            assert client.receive()[:3] == [1, 4, "crashed"]
            assert server.status().refused == 1
        assert gate.of("has_room") == [("has_room", each) for each in (0, -1, 1, 0)]
        assert gate.of("refuse") == [("refuse", -1)]
        assert gate.of("ended") == [("ended", True), ("ended", True), ("ended", False)]
        assert len(gate.of("began")) == 3


def test_requests_that_end_with_their_connection_are_told(node: Node) -> None:
    gate = Noting()
    with adding(node, gate=gate) as server:
        client = Client(server.address)
        client.send([0, 1, "hold"], [0, 2, "hold"])
        until(lambda: len(gate.of("began")) == 2)
        client.reset()
        until(lambda: gate.of("ended") == [("ended", False)] * 2)


def test_canaries_go_through_the_run_queue_by_the_clock(node: Node) -> None:
    gate = Noting(tick_ns=1_000_000)
    gate.due = 5
    with adding(node, gate=gate):
        until(lambda: len(gate.of("back")) == 5)
        assert gate.of("sent", "back") == [
            (kind, number) for number in range(1, 6) for kind in ("sent", "back")
        ]
        until(
            lambda: ("pressure", "requests") in gate.noted and ("pressure", "inbox") in gate.noted
        )


def test_changes_of_its_state_go_to_subscribers(node: Node) -> None:
    gate = Noting(tick_ns=1_000_000)
    with adding(node, gate=gate) as server, node.mailbox() as box:
        server.subscribe_gate(box.pid)
        gate.changes.append("closed")
        envelope = box.receive(PATIENCE_S)
        assert (envelope.msg, envelope.sender) == ("closed", server.pid)
        server.subscribe_gate(box.pid, False)
        with pytest.raises(ValueError, match="on its own node"):
            server.subscribe_gate(rabble.Pid("x", rabble.NodeId("other", "h:1")))


@pytest.mark.parametrize("method", ["has_room", "began", "ended", "tick", "next_tick"])
def test_a_gate_that_raises_is_reported_and_stands_open(
    node: Node, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Noting()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("the gate is broken")

    setattr(gate, method, fail)
    with adding(node, gate=gate) as server, Client(server.address) as client:
        assert client.ask(1, 5) == [0, 1, 5]
        assert client.ask(2, 5) == [0, 2, 10]
        until(lambda: "the gate is broken" in caplog.text)
        client.send([0, 3, 5, -1])
        assert client.receive() == [0, 3, 15]


@pytest.mark.parametrize("method", ["refuse", "next_tick"])
@pytest.mark.parametrize("value", ["soon", -1, 2**63, 2**70, float("inf"), 1.5, True])
def test_a_gate_that_returns_no_number_is_one_that_failed(
    node: Node, method: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Noting(tick_ns=1_000_000)
    setattr(gate, method, lambda *arguments: value)
    with adding(node, gate=gate) as server, Client(server.address) as client:
        # What is refused by an answer that is none is begun, as all that comes then.
        client.send([0, 1, 5, -1])
        assert client.receive()[:2] in ([0, 1], [2, 1])
        until(lambda: f"{method}() of a gate returned" in caplog.text)
        client.send([0, 2, 5, -1])
        assert client.receive()[:2] == [0, 2]


def test_a_gate_may_ask_for_more_patience_than_the_protocol_has_a_number_for(node: Node) -> None:
    class Patient(Noting):
        def has_room(self, now_ns: int, priority: int = 0) -> bool:
            return False

        def refuse(self, now_ns: int, priority: int = 0) -> int:
            return 2**60

    with adding(node, gate=Patient()) as server, Client(server.address) as client:
        client.send([0, 1, 5, -1])
        assert client.receive()[:3] == [2, 1, 2**53 - 1]
