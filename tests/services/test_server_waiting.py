"""Requests that wait for the gate of a server: whose turn it is, and whatever ends meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node, Process
from rabble.services.gate import GradientGate, GradientPolicy
from rabble.services.server import Answer, ConnectionHandler, RequestId, ServerOutput
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Asking, Client, Ended, adding
from tests.services.test_server_gate import Noting
from tests.support import PATIENCE_S, until

#: So long that no time decides.
PATIENT = ServerLimits(gate_wait_ms_max=60_000, gate_requests_per_connection_max=128)


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Shut(Noting):
    """Has no room but for priority 1, until it is told to have some."""

    def __init__(self) -> None:
        super().__init__(tick_ns=1_000_000)
        self.is_open = False

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        return self.is_open or priority > 0


class Slow(Process):
    """Keeps the executor busy for a moment with each message."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
        sum(range(20_000))
        return rabble.reply(msg, sender, correlation_id)


def test_who_pipelines_ten_thousand_does_not_starve_who_sends_one(node: Node) -> None:
    limit = GradientPolicy(limit_min=2, limit_first=2, limit_max=2)
    gate = GradientGate(limit, random.Random(1).uniform)
    pid = node.spawn(Slow(), "slow")
    with TcpServer(node, lambda: Asking(pid), gate=gate, limits=PATIENT) as server:
        greedy, modest = Client(server.address), Client(server.address)
        # From a thread of its own, as no more is read of it than waits.
        frames = b"".join(greedy.frame([0, number, number]) for number in range(10_000))
        sending = threading.Thread(target=greedy.sock.sendall, args=(frames,))
        sending.start()
        until(lambda: server.status().waiting >= 100)
        with modest:
            # Each waits for those in flight and one more of the other's, not for all that wait. How
            # many more are answered until its answer is here depends on what else the machine does.
            meanwhile = []
            for number in range(20):
                before = server.status().answered
                assert modest.ask(number, "modest") == [0, number, "modest"]
                meanwhile.append(server.status().answered - before)
            assert sorted(meanwhile)[5] < 64, meanwhile
        assert server.status().refused == 0
        assert server.status().answered < 10_000
        sending.join(PATIENCE_S)
        greedy.reset()
        until(lambda: server.status().waiting == 0 and gate.in_flight == 0)


def test_what_waits_is_begun_in_turns_when_there_is_room(node: Node) -> None:
    gate, begun = Shut(), []

    class Noticing(ConnectionHandler):
        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            begun.append(msg)
            assert request is not None
            return Answer(request, msg)

    with (
        TcpServer(node, Noticing, gate=gate, limits=PATIENT) as server,
        Client(server.address) as greedy,
        Client(server.address) as modest,
    ):
        greedy.send(*([0, number, f"greedy {number}"] for number in range(5)))
        until(lambda: server.status().waiting == 5)
        modest.send([0, 1, "modest"])
        until(lambda: server.status().waiting == 6)
        assert (server.status().in_flight, begun) == (0, [])
        gate.is_open = True
        assert modest.receive() == [0, 1, "modest"]
        assert [greedy.receive()[1] for _ in range(5)] == list(range(5))
        assert begun.index("modest") <= 1
        assert (server.status().answered, server.status().waiting) == (6, 0)
        assert gate.of("ended") == [("ended", True)] * 6


def test_who_has_priority_waits_for_nobody_and_who_tries_again_does_not_wait(node: Node) -> None:
    gate = Shut()
    with adding(node, gate=gate, limits=PATIENT) as server, Client(server.address) as client:
        client.send([0, 1, 5])
        until(lambda: server.status().waiting == 1)
        client.send([0, 2, 7, 1])
        assert client.receive() == [0, 2, 7]
        client.send([0, 3, 5, -1])
        assert client.receive()[:3] == [2, 3, gate.retry_ms]
        assert server.status().waiting == 1
        client.reset()


def test_who_waits_for_too_long_is_refused(node: Node) -> None:
    gate = Shut()
    limits = ServerLimits(gate_wait_ms_max=1)
    with adding(node, gate=gate, limits=limits) as server, Client(server.address) as client:
        client.send(*([0, number, 5] for number in range(3)))
        assert [client.receive()[:3] for _ in range(3)] == [
            [2, number, gate.retry_ms] for number in range(3)
        ]
        assert (server.status().refused, server.status().waiting) == (3, 0)
        # Its id is free again, and so is its place.
        gate.is_open = True
        assert client.ask(1, 5) == [0, 1, 5]
        assert gate.of("began") and len(gate.of("began")) == 1


def test_of_one_connection_so_many_wait_and_the_others_are_refused_at_once(node: Node) -> None:
    limits = ServerLimits(gate_wait_ms_max=60_000, gate_requests_per_connection_max=2)
    gate = Shut()
    with adding(node, gate=gate, limits=limits) as server, Client(server.address) as client:
        client.send(*([0, number, 5] for number in range(6)))
        assert sorted(client.receive()[1] for _ in range(4)) == [2, 3, 4, 5]
        assert server.status().waiting == 2
        client.reset()


def test_an_id_that_waits_is_taken(node: Node) -> None:
    gate = Shut()
    with adding(node, gate=gate, limits=PATIENT) as server, Client(server.address) as client:
        client.send([0, 1, 5])
        until(lambda: server.status().waiting == 1)
        client.send([0, 1, 5])
        assert client.receive()[:3] == [1, 1, "duplicate"]
        gate.is_open = True
        assert client.receive() == [0, 1, 5]


def test_what_waits_goes_with_its_connection(node: Node) -> None:
    gate = Shut()
    with adding(node, gate=gate, limits=PATIENT) as server:
        client = Client(server.address)
        client.send(*([0, number, 5] for number in range(10)))
        until(lambda: server.status().waiting == 10)
        client.reset()
        until(lambda: server.status().connections == 0)
        assert (server.status().waiting, server.status().failed) == (0, 10)
        # Nothing of it is begun when there is room.
        gate.is_open = True
        with Client(server.address) as other:
            assert other.ask(1, 5) == [0, 1, 5]
        assert len(gate.of("began")) == 1


def test_a_server_that_ends_refuses_what_waits(node: Node) -> None:
    gate = Shut()
    with adding(node, gate=gate, limits=PATIENT) as server, Client(server.address) as client:
        client.send([0, 1, 5], [0, 2, 5])
        until(lambda: server.status().waiting == 2)
        server.close()
        frames = client.rest()
        assert [frame[:2] for frame in frames] == [[2, 1], [2, 2], [4, "drain"]]
        assert not gate.of("began")


def test_a_node_that_ends_refuses_what_waits() -> None:
    gate = Shut()
    with (
        rabble.rouse("served@127.0.0.1:0") as node,
        adding(node, gate=gate, limits=PATIENT) as server,
    ):
        client = Client(server.address)
        client.send([0, 1, 5])
        until(lambda: server.status().waiting == 1)
    with client:
        assert [frame[:2] for frame in client.rest()] == [[2, 1], [4, "drain"]]


@pytest.mark.parametrize("method", ["has_room", "next_tick", "tick", "pressure"])
def test_when_the_gate_fails_all_that_waits_is_begun(
    node: Node, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Shut()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("the gate is broken")

    with adding(node, gate=gate, limits=PATIENT) as server, Client(server.address) as client:
        client.send(*([0, number, 1] for number in range(5)))
        until(lambda: server.status().waiting == 5)
        setattr(gate, method, fail)
        assert sorted(client.receive()[1] for _ in range(5)) == list(range(5))
        until(lambda: "the gate is broken" in caplog.text)
        assert server.gate_status() is None


def test_a_handler_that_fails_ends_its_connection_and_what_it_has_waiting(node: Node) -> None:
    gate = Shut()

    class Failing(ConnectionHandler):
        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            raise ValueError("as it does")

    with TcpServer(node, Failing, gate=gate, limits=PATIENT) as server:
        with Client(server.address) as client:
            client.send([0, 1, 5], [0, 2, 5], [0, 3, 5])
            until(lambda: server.status().waiting == 3)
            gate.is_open = True
            assert client.receive()[:2] == [4, "crashed"]
            with pytest.raises(Ended):
                client.receive()
        until(lambda: server.status().connections == 0)
        # Each of which the gate was told that it began has ended for it.
        assert len(gate.of("began")) == len(gate.of("ended"))
        assert (server.status().waiting, server.status().in_flight) == (0, 0)
