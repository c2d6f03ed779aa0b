"""Handlers by themselves: they are tested by calling them, with a connection of the test's."""

from __future__ import annotations

import dataclasses

import pytest

from rabble import CorrelationId, NodeId, Pid
from rabble._core.client_server import ClientConnection
from rabble.services.server import (
    Answer,
    CloseConnection,
    ConnectionHandler,
    Fail,
    Incoming,
    Outgoing,
    Push,
    RequestId,
    ServerOutput,
    ask,
)

PID = Pid("tcp", NodeId("n", "h:1"))


@dataclasses.dataclass
class Made:
    """A connection of a test's."""

    peer: str = "10.0.0.1:7"
    server_pid: Pid = PID
    id: CorrelationId = CorrelationId(PID, 3)
    now: float = 12.5


class Greeter(ConnectionHandler):
    def init(self) -> ServerOutput:
        return [Push(self.peer), Push(self.now), Push(self.connection_id), Push(self.server)]

    def handle_message(self, msg: object, request: RequestId | None) -> ServerOutput:
        return None if request is None else ask(self.server, msg, request, 5)


def test_a_handler_knows_the_connection_that_it_was_given() -> None:
    handler = Greeter()
    handler.attach(Made())
    assert handler.init() == [
        Push("10.0.0.1:7"),
        Push(12.5),
        Push(CorrelationId(PID, 3)),
        Push(PID),
    ]
    request = CorrelationId(PID, 3, 9)
    assert handler.handle_message("x", request) == ask(PID, "x", request, 5)
    assert handler.handle_message("x", None) is None


def test_what_a_handler_does_not_define() -> None:
    handler = ConnectionHandler()
    assert handler.init() is None and handler.closed("closed") is None
    with pytest.raises(TypeError, match=r"does not define handle_message\(msg, request\)"):
        handler.handle_message("x", None)
    with pytest.raises(TypeError, match="does not define handle_envelope"):
        handler.handle_envelope("x", None, None)


def test_what_handlers_return_are_values() -> None:
    request = CorrelationId(PID, 3, 9)
    for value, same, other in (
        (Answer(request, 1), Answer(request, 1), Answer(request, 2)),
        (Fail(request, "failed"), Fail(request, "failed", ""), Fail(request, "timeout")),
        (Push(1), Push(1), Push(2)),
        (CloseConnection(), CloseConnection("closed"), CloseConnection("x")),
        (Incoming(1), Incoming(1, None, 0), Incoming(1, 0)),
        (Outgoing("push", value=1), Outgoing("push", value=1), Outgoing("push")),
        (ask(PID, 1, request), ask(PID, 1, request), ask(PID, 1, request, 5)),
    ):
        assert value == same and value != other and repr(value) == repr(same)
        with pytest.raises(AttributeError):
            value.msg = 5  # type: ignore[union-attr,misc]


def test_only_a_server_makes_the_connection_itself() -> None:
    with pytest.raises(TypeError, match="cannot be made by itself"):
        ClientConnection()
