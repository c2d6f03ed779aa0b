"""Whatever is raised in what a user gives a server ends one connection, or the gate; no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node
from rabble.services.server import (
    Answer,
    CloseConnection,
    ConnectionHandler,
    FunctionCodec,
    Incoming,
    LineFraming,
    Outgoing,
    RequestId,
    ServerOutput,
    TcpServer,
)
from tests.clients import Client, Ended
from tests.faults.test_crashes import hostile
from tests.support import until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Ill(ConnectionHandler):
    """Raises where it is told to; answers otherwise.

    :param where: the method.
    """

    def __init__(self, where: str, make: Any) -> None:
        self.where, self.make = where, make
        if where == "made":
            raise make()

    def raise_in(self, where: str) -> None:
        if where == self.where:
            raise self.make()

    def init(self) -> ServerOutput:
        return self.raise_in("init")

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        assert request is not None
        self.raise_in("handle_message")
        if self.where == "iteration":
            return self.said(request)
        if self.where == "handle_envelope":
            return rabble.Envelope(self.server, msg, correlation_id=request)
        return [Answer(request, msg), CloseConnection("enough")]

    def said(self, request: RequestId) -> Iterator[Any]:
        yield Answer(request, 1)
        self.raise_in("iteration")

    def handle_envelope(self, msg: Any, sender: Any, request: Any) -> ServerOutput:
        return self.raise_in("handle_envelope")

    def closed(self, reason: str) -> ServerOutput:
        return self.raise_in("closed")


class Well(ConnectionHandler):
    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return None if request is None else Answer(request, msg)


@hostile
@pytest.mark.parametrize(
    "where", ["made", "init", "handle_message", "iteration", "handle_envelope", "closed"]
)
def test_whatever_a_handler_raises_ends_its_connection(node: Node, make: Any, where: str) -> None:
    made: list[ConnectionHandler] = []

    def handler() -> ConnectionHandler:
        made.append(Well())
        return made[-1] if len(made) == 1 else Ill(where, make)

    with TcpServer(node, handler) as server, Client(server.address) as well:
        assert well.ask(1, "x") == [0, 1, "x"]
        with Client(server.address) as ill:
            ill.send([0, 1, "x"])
            frames = [frame[:2] for frame in ill.rest()]
            # What was said before stays said.
            said = [[0, 1], [4, "enough"]] if where == "closed" else [[4, "crashed"]]
            assert frames == said
        assert well.ask(2, "y") == [0, 2, "y"]
        until(lambda: server.status().connections == 1)
        assert server.status().in_flight == 0
    assert node.status == "running"


@hostile
@pytest.mark.parametrize("where", ["decode", "answer", "goodbye"])
def test_whatever_a_codec_raises_ends_its_connection_or_the_request(
    node: Node, make: Any, where: str
) -> None:
    is_armed: list[bool] = []

    def decode(data: bytes) -> Incoming:
        if data == b"ill" and where in ("decode", "goodbye"):
            raise make()
        return Incoming(data.decode(), 1)

    def encode(out: Outgoing) -> bytes:
        if where == out.kind and is_armed and out.value in (None, "ill"):
            raise make()
        return f"{out.kind} {out.code} {out.value}".encode()

    codec = FunctionCodec(decode, encode, LineFraming())
    with TcpServer(node, Well, codec=codec) as server, Client(server.address) as well:
        is_armed.append(True)
        with Client(server.address) as ill:
            ill.sock.sendall(b"ill\n")
            if where == "answer":
                # It cannot be written, and the client is told so.
                assert ill.line().startswith("failure failed")
            elif where == "decode":
                assert ill.line().startswith("goodbye malformed")
            with pytest.raises(Ended):
                ill.sock.shutdown(1)
                ill.line()
        well.sock.sendall(b"well\n")
        assert well.line() == "answer  well"
        until(lambda: server.status().connections == 1)
        assert server.status().in_flight == 0
    assert node.status == "running"


class RaisingGate:
    """A gate of which one method raises."""

    nodes = ()
    in_flight = 0

    def __init__(self, where: str, make: Any) -> None:
        self.where, self.make = where, make
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any) -> Any:
            if name == self.where:
                self.raised += 1
                raise self.make()
            returned = {"has_room": self.where != "refuse", "refuse": 1, "next_tick": 0}
            return returned.get(name)

        return method


@hostile
@pytest.mark.parametrize(
    "where", ["has_room", "refuse", "began", "ended", "tick", "next_tick", "pressure"]
)
def test_whatever_a_gate_raises_it_is_asked_no_more(node: Node, make: Any, where: str) -> None:
    gate = RaisingGate(where, make)
    with TcpServer(node, Well, gate=gate) as server, Client(server.address) as client:
        for number in range(3):
            assert client.ask(number, "x") == [0, number, "x"]
        until(lambda: gate.raised)
        assert client.ask(3, "x") == [0, 3, "x"]
        assert gate.raised == 1
        assert server.status().in_flight == 0
    assert node.status == "running"
