"""What the gate of a server is told of queues and other nodes, and what is shown of it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    CorrelationId,
    DeadLetterReason,
    Envelope,
    Limits,
    Mesh,
    Node,
    NodeId,
    Pid,
    Process,
    ServiceHandler,
)
from rabble.services.gate import CanaryGate, CanaryPolicy, GradientGate, GradientPolicy
from tests.clients import Client, adding
from tests.services.test_server_gate import Noting
from tests.support import KEY, PATIENCE_S, Echo, until, until_up


class Watching(Noting):
    """Keeps what it is told of each queue, and wants canaries through other nodes alone."""

    def __init__(self, *nodes: str) -> None:
        super().__init__()
        self.nodes = nodes
        self.told: dict[str, float] = {}
        self.sent: list[tuple[int, str]] = []
        self.back: list[int] = []
        self.lost: list[str] = []

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        assert 0.0 <= fraction <= 1.0
        self.told[name] = fraction

    def canary_due(self, now_ns: int, node: str = "") -> bool:
        return bool(node) and len(self.sent) < 3

    def canary_sent(self, now_ns: int, number: int, node: str = "") -> None:
        self.sent.append((number, node))

    def canary_back(self, now_ns: int, number: int) -> None:
        self.back.append(number)

    def canary_lost(self, now_ns: int, node: str = "") -> None:
        self.lost.append(node)

    def next_tick(self, now_ns: int) -> int:
        return now_ns + 1_000_000


@contextlib.contextmanager
def two_nodes(**options: Any) -> Iterator[tuple[Node, Node]]:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh(key=KEY), **options) as a,
        rabble.rouse("b@127.0.0.1:0", mesh=Mesh(key=KEY), strict=options.get("strict", False)) as b,
    ):
        a.join(b.node_id)
        until_up(a, b)
        yield a, b


class Standing(Process):
    """Does not return until it is told."""

    def __init__(self) -> None:
        self.stands = threading.Event()
        self.goes_on = threading.Event()

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        if msg == "stand":
            self.stands.set()
            self.goes_on.wait(PATIENCE_S)


@pytest.mark.parametrize("strict", [False, True, "changes"])
def test_canaries_through_another_node_come_back(strict: Any) -> None:
    with two_nodes(strict=strict) as (a, b):
        gate = Watching(str(b.node_id))
        with adding(a, gate=gate) as server, Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            until(lambda: len(gate.back) == 3)
            assert gate.sent == [(number, str(b.node_id)) for number in (1, 2, 3)]
            assert gate.back == [1, 2, 3]
            assert not gate.lost
            # Nobody on the way takes them for lost mail.
            assert not b.executor_status().dead_letters
            assert not a.executor_status().dead_letters
        # What is no request is.
        a.send(Pid("canary", b.node_id, "rabble"), "sing")
        until(lambda: b.executor_status().dead_letters == {"refused": 1})


def test_a_node_that_was_never_there_or_has_gone_says_nothing_of_overload() -> None:
    nowhere = str(NodeId("c", "127.0.0.1:1"))
    with two_nodes() as (a, b):
        gate = Watching(nowhere)
        with adding(a, gate=gate) as server, Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            until(lambda: gate.lost == [nowhere] * 3)
            assert not a.executor_status().dead_letters
        standing = Standing()
        b.send(b.spawn(standing, "standing"), "stand")
        assert standing.stands.wait(PATIENCE_S)
        gate = Watching(str(b.node_id))
        with adding(a, gate=gate, adder="more") as server, Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            until(lambda: len(gate.sent) == 3)
            assert not gate.back
            a.leave(b.node_id)
            # They were under way when the connection ended.
            until(lambda: gate.lost == [str(b.node_id)] * 3)
        standing.goes_on.set()


def test_another_node_that_stands_still_closes_the_gate_until_it_goes_on() -> None:
    policy = CanaryPolicy(high_ms=5_000, remote_high_ms=50, remote_low_ms=25)
    with two_nodes() as (a, b):
        gate = CanaryGate(policy, random.Random(1).uniform, nodes=(str(b.node_id),))
        standing = Standing()
        pid = b.spawn(standing, "standing")
        with adding(a, gate=gate) as server, Client(server.address) as client:
            assert client.ask(0, 1)[0] == 0
            b.send(pid, "stand")
            assert standing.stands.wait(PATIENCE_S)
            numbers = iter(range(1, 1 << 30))

            def reason() -> str:
                # There are no canaries without requests.
                client.ask(next(numbers), 1)
                return gate.status().reason

            until(lambda: reason() == f"canaries through {b.node_id}")
            standing.goes_on.set()
            until(lambda: reason() == "")


def test_nodes_of_a_gate_are_to_be_nodes() -> None:
    gate = Watching("b")
    with rabble.rouse("served@127.0.0.1:0") as node, pytest.raises(ValueError, match="b"):
        with adding(node, gate=gate):
            raise AssertionError("it was made")


class Turning(Process):
    """Sends itself each message again, until it is told to stop."""

    def __init__(self) -> None:
        self.stops = False

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
        if msg == "stop":
            self.stops = True
        return None if self.stops else Envelope(self.pid, msg)


def test_a_mailbox_that_fills_is_told_by_its_name_and_again_when_it_is_empty() -> None:
    gate = Watching()
    with rabble.rouse("served@127.0.0.1:0") as node:
        with adding(node, gate=gate) as server, Client(server.address) as client:
            turning = Turning()
            pid = node.spawn(turning, "turning", mailbox_max=20)
            small = node.spawn(Turning(), "small", mailbox_max=5)
            for number in range(12):
                node.send(pid, number)
            for number in range(4):
                node.send(small, number)
            name = f"mailbox of {pid}"
            numbers = iter(range(1 << 30))
            until(lambda: client.ask(next(numbers), 1) and gate.told.get(name, 0.0) >= 0.5)
            turning.stops = True
            until(lambda: gate.told[name] == 0.0)
            # One that holds so few says nothing.
            assert f"mailbox of {small}" not in gate.told
            # One that has ended is spoken of no more.
            fresh = node.spawn(Turning(), "fresh", mailbox_max=20)
            for number in range(12):
                node.send(fresh, number)
            until(lambda: client.ask(next(numbers), 1) and gate.told.get(f"mailbox of {fresh}"))
            node.stop(fresh)
            until(lambda: gate.told[f"mailbox of {fresh}"] == 0.0)
            node.stop(small)


class Busy(ServiceHandler):
    """Takes nothing more until it is told."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def handle_envelope(self, envelope: Any, service: Any) -> None:
        self.goes_on.wait(PATIENCE_S)


def test_a_service_that_falls_behind_is_told_by_its_name() -> None:
    gate, busy = Watching(), Busy()
    limits = Limits(service_inbox_envelopes_max=1_000)
    with rabble.rouse("served@127.0.0.1:0", limits=limits) as node:
        with adding(node, gate=gate) as server, Client(server.address) as client:
            service = node.register_service(busy, "busy")
            name = f"inbox of {service.pid}"
            try:
                for number in range(900):
                    node.send(service.pid, number)
                numbers = iter(range(1 << 30))
                until(lambda: client.ask(next(numbers), 1) and gate.told.get(name, 0.0) > 0.25)
            finally:
                busy.goes_on.set()
            until(lambda: gate.told[name] == 0.0)


def test_the_queue_to_a_node_that_takes_nothing_is_told_by_its_name() -> None:
    with two_nodes(limits=Limits(peer_queue_bytes_max=1 << 20)) as (a, b):
        gate, standing = Watching(), Standing()
        pid = b.spawn(standing, "standing")
        with adding(a, gate=gate) as server, Client(server.address) as client:
            a.send(pid, "stand")
            assert standing.stands.wait(PATIENCE_S)
            name = f"queue to {b.node_id}"
            numbers = iter(range(1 << 30))

            def is_told() -> bool:
                a.send(pid, bytes(50_000))
                client.ask(next(numbers), 1)
                return gate.told.get(name, 0.0) > 0.25

            until(is_told)
            standing.goes_on.set()
            until(lambda: gate.told[name] == 0.0)


def test_a_full_mailbox_closes_each_gate_though_nobody_asks_anything_of_it() -> None:
    """Of the gradient alone it would never be known: it has nothing to do by the clock."""
    gate = GradientGate(GradientPolicy(), random.Random(1).uniform)
    with rabble.rouse("served@127.0.0.1:0") as node:
        with adding(node, gate=gate) as server, Client(server.address) as client:
            turning = Turning()
            pid = node.spawn(turning, "turning", mailbox_max=20)
            for number in range(19):
                node.send(pid, number)
            numbers = iter(range(1 << 30))
            until(lambda: client.ask(next(numbers), 1)[0] == 2)
            assert gate.status().reason == f"pressure of mailbox of {pid}"
            gauges = node.metrics().gauges
            assert gauges["server.tcp.gate.open"] == 0
            assert gauges["server.tcp.gate.closed_for_pressure"] == 1
            assert gauges["server.tcp.gate.closed_for_limit"] == 0
            turning.stops = True
            until(lambda: gate.status().is_open)
            assert client.ask(next(numbers), 1)[0] == 0


def test_a_server_and_its_gate_are_in_the_metrics_of_the_node() -> None:
    gate = GradientGate(GradientPolicy(), random.Random(1).uniform)
    with rabble.rouse("served@127.0.0.1:0") as node:
        before = node.metrics()
        with (
            adding(node, gate=gate) as server,
            adding(node, name="plain", group="tenant", adder="other") as plain,
        ):
            with Client(server.address) as client, Client(plain.address) as other:
                assert client.ask(1, 5) == [0, 1, 5]
                assert other.ask(1, 5) == [0, 1, 5]
                metrics = node.metrics()
                assert metrics.gauges["server.tcp.connections"] == 1
                assert metrics.gauges["server.tcp.gate.open"] == 1
                assert metrics.gauges["server.tcp.gate.limit"] == gate.limit
                assert metrics.counters["server.tcp.answered"] == 1
                assert metrics.counters["server.tcp.gate.admitted"] == 1
                assert metrics.counters["server.tenant.plain.answered"] == 1
                assert not any(
                    name.startswith("server.tenant.plain.gate") for name in metrics.gauges
                )
            assert server.gate_status() == gate.status()
            assert plain.gate_status() is None
        assert node.metrics().gauges.keys() == before.gauges.keys()


def test_a_gate_that_cannot_say_how_it_stands_is_reported_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Noting()
    with rabble.rouse("served@127.0.0.1:0") as node, adding(node, gate=gate):
        metrics = node.metrics()
        assert "server.tcp.connections" in metrics.gauges
        assert not any("gate" in name for name in metrics.gauges)
        # Its status is an int.
        until(lambda: "tcp::served" in caplog.text and "AttributeError" in caplog.text)


def test_what_answers_canaries_answers_nothing_but_a_gate_s_question() -> None:
    """Not itself, nor the notice that an answer went to nobody: that would go on for ever."""
    with rabble.rouse("a@127.0.0.1:0") as node, node.mailbox() as box:
        canary = Pid("canary", node.node_id, "rabble")
        node.subscribe_dead_letters(box.pid)
        for sender in (canary, box.pid, None):
            node.send(canary, None, sender=sender, correlation_id=CorrelationId(canary, None, 1))
            letter = box.receive(PATIENCE_S).msg
            assert letter.reason is DeadLetterReason.REFUSED, letter
        echo = node.spawn(Echo(), "echo")
        delivered = node.metrics().counters["delivered"]
        for number in range(50):
            assert node.call(echo, number) == number
        # Were one of them under way for ever, each call would wait behind some of its turns.
        assert node.metrics().counters["delivered"] - delivered < 50 * 6
