"""The handshakes that go on: each socket in the selector, each action carried out."""

from __future__ import annotations

import functools
import selectors
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from rabble._core.ids import NodeId
from rabble.cluster.decide.handshake import (
    Action,
    Authorize,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Peer,
    Role,
    Send,
)
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.io.handshake_socket import HandshakeSocket

__all__ = ["HandshakeOwner", "HandshakeRunner", "Ready"]

#: Called with the events when a file object of the selector is ready.
Ready = Callable[[int], None]


class HandshakeOwner(Protocol):
    """Decides about handshakes, and takes what comes of them: the control plane."""

    def next_connection_id(self) -> int:
        """The id for a connection that another node began."""

    def authorize(self, peer: Peer) -> Refusal | None:
        """Whether to accept a peer that dialled and has authenticated itself."""

    def may_authenticate(self, connection_id: int, peer: Peer) -> bool:
        """Whether to send PROOF to whom this node dialled."""

    def established(
        self,
        connection_id: int,
        sock: socket.socket,
        peer: Peer,
        leftover: bytes,
        initiated: bool,
    ) -> None:
        """A handshake is done. The socket is the owner's from now on."""

    def failed(self, connection_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        """A handshake, or a dial, came to nothing. The socket is closed."""

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the server's thread. For any thread."""


class HandshakeRunner:
    """The handshakes under way, of listener and connector. Belongs to the cluster server's thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param config: what this node brings to a handshake; asked anew for each.
    :param token_bytes: a cryptographic random source.
    """

    def __init__(
        self,
        owner: HandshakeOwner,
        selector: selectors.BaseSelector,
        *,
        config: Callable[[], HandshakeConfig],
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._owner = owner
        self._selector = selector
        self._config = config
        self._clock = clock
        self._token_bytes = token_bytes
        self._sockets: dict[int, HandshakeSocket] = {}

    def make_handshake(
        self,
        role: Role,
        certified: frozenset[str] | None,
        join: bool = False,
        expected: NodeId | None = None,
    ) -> Handshake:
        """A handshake that begins now; the parameters are those of `Handshake`."""
        return Handshake(
            role,
            self._config(),
            self._token_bytes(32),
            self._clock(),
            join,
            expected,
            certified=certified,
        )

    def add_dialled(self, handshake_socket: HandshakeSocket) -> None:
        """Go on with a socket that is connecting."""
        self._sockets[handshake_socket.connection_id] = handshake_socket
        self._watch(handshake_socket)

    def add_accepted(self, handshake_socket: HandshakeSocket) -> None:
        """Go on with a socket that was accepted."""
        self.add_dialled(handshake_socket)
        self._go_on(handshake_socket, lambda: handshake_socket.begin())

    def accepted(self) -> list[HandshakeSocket]:
        """Those that other nodes began, the oldest first."""
        return [each for each in self._sockets.values() if not each.initiated]

    def drop(self, connection_id: int) -> bool:
        """Forget a handshake. False if there is none."""
        handshake_socket = self._sockets.get(connection_id)
        if handshake_socket is None:
            return False
        try:
            self._forget(handshake_socket)
        finally:
            handshake_socket.close()
        return True

    def drop_unauthenticated_dials(self) -> None:
        """Drop the dials that no peer can take for a connection yet."""
        for each in list(self._sockets.values()):
            if each.initiated and not each.may_authenticate:
                self.drop(each.connection_id)

    def end(self, handshake_socket: HandshakeSocket, failed: Failed) -> None:
        """End a handshake; the owner's `failed` gets that reason."""
        self._forget(handshake_socket)
        handshake_socket.close()
        self._owner.failed(
            handshake_socket.connection_id,
            failed,
            handshake_socket.remote,
            handshake_socket.initiated,
        )

    def tick(self, now: float) -> None:
        """End what takes too long."""
        for each in list(self._sockets.values()):
            if each.connection_id in self._sockets and now >= each.next_tick:
                self._go_on(each, functools.partial(each.tick, now))

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        return min((each.next_tick for each in self._sockets.values()), default=None)

    def __len__(self) -> int:
        return len(self._sockets)

    def close(self) -> None:
        """Close all sockets."""
        for connection_id in list(self._sockets):
            self.drop(connection_id)

    # The rest is internal.

    def _watch(self, handshake_socket: HandshakeSocket) -> None:
        def ready(events: int) -> None:
            self._go_on(handshake_socket, lambda: handshake_socket.ready(self._clock()))

        self._selector.register(handshake_socket.sock, handshake_socket.interest, ready)

    def _go_on(self, handshake_socket: HandshakeSocket, step: Callable[[], list[Action]]) -> None:
        """Take a step and do what it asks for, whatever becomes of it."""
        before = handshake_socket.sock
        try:
            actions = step()
            if handshake_socket.sock is not before:
                # Wrapped for TLS: another object, under the same number.
                data = self._selector.unregister(before).data
                self._selector.register(handshake_socket.sock, handshake_socket.interest, data)
            self._carry_out(handshake_socket, actions)
        except (OSError, EOFError) as error:
            if handshake_socket.connection_id in self._sockets:
                self._connection_failed(handshake_socket, error)
            return
        if handshake_socket.connection_id in self._sockets:
            self._selector.modify(
                handshake_socket.sock,
                handshake_socket.interest,
                self._selector.get_key(handshake_socket.sock).data,
            )

    def _carry_out(self, handshake_socket: HandshakeSocket, actions: list[Action]) -> None:
        handshake = handshake_socket.handshake
        for action in actions:
            match action:
                case Send(data):
                    if not self._may_write(handshake_socket):
                        return
                    handshake_socket.write(data)
                case Authorize(peer):
                    assert handshake is not None
                    refusal = self._owner.authorize(peer)
                    self._carry_out(handshake_socket, handshake.decide(refusal))
                    return
                case Established(peer, leftover):
                    if handshake_socket.flushed:
                        self._forget(handshake_socket)
                        self._owner.established(
                            handshake_socket.connection_id,
                            handshake_socket.sock,
                            peer,
                            leftover,
                            handshake_socket.initiated,
                        )
                        return
                    problem = Failed(RefusalCode.TIMEOUT, "the peer does not read", True)
                    self.end(handshake_socket, problem)
                case Failed():
                    self.end(handshake_socket, action)

    def _may_write(self, handshake_socket: HandshakeSocket) -> bool:
        """Before an initiator's PROOF the owner is asked. What it closes has gone by then."""
        handshake = handshake_socket.handshake
        if not handshake_socket.initiated or handshake_socket.may_authenticate:
            return True
        if handshake is None or handshake.peer is None or handshake.done:
            return True
        handshake_socket.may_authenticate = self._owner.may_authenticate(
            handshake_socket.connection_id, handshake.peer
        )
        if not handshake_socket.may_authenticate:
            self.drop(handshake_socket.connection_id)
        return handshake_socket.may_authenticate

    def _connection_failed(
        self, handshake_socket: HandshakeSocket, error: OSError | EOFError
    ) -> None:
        problem = str(error) or type(error).__name__
        if handshake_socket.handshake is None and handshake_socket.has_more_addresses:
            self._forget(handshake_socket)
            handshake_socket.close()
            handshake_socket.try_next_address(problem)
            return
        self.end(handshake_socket, Failed(code_of(error), problem, False, silent=True))

    def _forget(self, handshake_socket: HandshakeSocket) -> None:
        del self._sockets[handshake_socket.connection_id]
        self._selector.unregister(handshake_socket.sock)


def code_of(error: OSError | EOFError) -> RefusalCode:
    """What a failed connection counts as: AUTH if TLS itself refused it, on either side."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ended):
        return RefusalCode.AUTH
    return RefusalCode.TIMEOUT
