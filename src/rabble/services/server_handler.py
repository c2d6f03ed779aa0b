"""`ConnectionHandler`: what a server does for one client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

from rabble._core.client_messages import (
    Answer,
    ClientAsk,
    CloseConnection,
    Fail,
    Push,
    ask,
)
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid

__all__ = [
    "Answer",
    "CloseConnection",
    "Connection",
    "ConnectionHandler",
    "Fail",
    "Push",
    "RequestId",
    "ServerOutput",
    "ask",
]

#: Names one request of one connection, for as long as that waits: its numbers are of a slot and a
#: generation, so what comes later finds nobody. As the correlation id of an envelope it brings the
#: answer back to the handler.
RequestId: TypeAlias = CorrelationId

#: One thing that a handler returns.
ServerItem: TypeAlias = "Envelope | Answer | Fail | Push | CloseConnection | ClientAsk"
#: What its methods may return.
ServerOutput: TypeAlias = "ServerItem | Iterable[ServerItem] | None"


class Connection(Protocol):
    """What a handler knows of its connection: the server's own, or a test's."""

    @property
    def peer(self) -> str:
        """The client's address."""

    @property
    def server_pid(self) -> Pid:
        """The pid of the server."""

    @property
    def id(self) -> CorrelationId:
        """By which envelopes to the server's pid reach this handler."""

    @property
    def now(self) -> float:
        """Monotonic seconds."""


class ConnectionHandler:
    """What a server does for one client: one object for each connection, as pure as a process.

    Its methods run in the executor's thread, so they do no I/O, never block, and can be tested by
    calling them. What they return is sent all or not at all. A method that raises ends this
    connection and nothing else; it is reported as the crash of a process is.
    """

    __slots__ = ("__weakref__", "_connection")

    _connection: Connection

    def init(self) -> ServerOutput:
        """The connection is there. Called once, before all else."""
        return None

    def handle_message(self, msg: Any, request: RequestId | None, /) -> ServerOutput:
        """Handle a message of the client.

        :param msg: what it said.
        :param request: names the request until it is answered; `None`: no answer is expected.
        :returns: see `ServerOutput`. The answer may be among them, or come later.
        """
        raise TypeError(f"{type(self).__name__} does not define handle_message(msg, request)")

    def handle_envelope(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None, /
    ) -> ServerOutput:
        """Handle a message of a process: an answer, if the handler sent it an envelope.

        :param msg: it may be shared with others and must not be changed.
        :param sender: who said it.
        :param correlation_id: that of the connection, or a `RequestId` of it, to be answered. Of a
            request that has ended nothing is handed over.
        """
        raise TypeError(
            f"{type(self).__name__} does not define handle_envelope(msg, sender, correlation_id)"
        )

    def closed(self, reason: str, /) -> ServerOutput:
        """The connection is over. Called once, last of all, but not if a method raised.

        :param reason: `closed` by the client, `error`, or the code of the goodbye.
        :returns: envelopes: all else has nobody to go to. Not called if the node ended first.
        """
        return None

    def attach(self, connection: Connection) -> None:
        """Give the handler its connection. The server does it first of all, a test may instead."""
        self._connection = connection

    @property
    def peer(self) -> str:
        """The client's address: `host:port`, or the path of a Unix socket."""
        return self._connection.peer

    @property
    def server(self) -> Pid:
        """The pid of the server: where envelopes for this handler go."""
        return self._connection.server_pid

    @property
    def connection_id(self) -> CorrelationId:
        """The correlation id by which envelopes to the server's pid reach this handler.

        Envelopes that the handler sends without one have it.
        """
        return self._connection.id

    @property
    def now(self) -> float:
        """Monotonic seconds at which the executor's current batch of deliveries began."""
        return self._connection.now
