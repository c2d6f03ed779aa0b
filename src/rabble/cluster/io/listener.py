"""Listening, dialling, and every handshake that goes on: all sockets that are no connection yet."""

from __future__ import annotations

import errno
import functools
import selectors
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.address import is_loopback
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
from rabble.cluster.io.resolver import Address, Resolver
from rabble.limits import Limits

__all__ = ["Decider", "Listener", "Ready"]

#: Seconds without accepting after the process ran out of descriptors or memory.
EXHAUSTED_PAUSE_S = 0.5
#: What accept says of one connection, which says nothing about the next.
GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
ACCEPTED_PER_TURN = 64

#: Called with the events when a file object of the selector is ready.
Ready = Callable[[int], None]


class Decider(Protocol):
    """Who decides, and takes what comes of it: the cluster server."""

    def number(self) -> int:
        """A link id for a connection that another node began."""

    def authorize(self, peer: Peer) -> Refusal | None:
        """Whether to accept a peer that dialled and has proven itself."""

    def may_authenticate(self, connection_id: int, peer: Peer) -> bool:
        """Whether to say PROOF to whom this node dialled."""

    def established(
        self, connection_id: int, sock: socket.socket, peer: Peer, leftover: bytes, initiated: bool
    ) -> None:
        """A handshake is done. The socket is the decider's from now on."""

    def failed(self, connection_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        """A handshake, or a dial, came to nothing. The socket is closed."""

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the server's thread. For any thread."""


class Listener:
    """The sockets before they are connections. Belongs to the cluster server's thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param listeners: owned from now on.
    :param config: what this node says of itself; asked anew for each handshake.
    :param contexts: of TLS, for dialling and for accepting; or `None`.
    :param loopback_only: dial no other addresses: nothing proves who answers there.
    :param token_bytes: a cryptographic random source.
    """

    def __init__(
        self,
        decider: Decider,
        selector: selectors.BaseSelector,
        listeners: Sequence[socket.socket],
        *,
        config: Callable[[], HandshakeConfig],
        contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None,
        loopback_only: bool,
        resolver: Resolver,
        limits: Limits,
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._decider = decider
        self._selector = selector
        self._listeners = list(listeners)
        self._config = config
        self._contexts = contexts
        self._loopback_only = loopback_only
        self._resolver = resolver
        self._handshake_s = limits.handshake_ms / 1000
        self._connect_s = limits.connect_ms / 1000
        self._accepted_max = limits.handshakes_max
        self._clock = clock
        self._token_bytes = token_bytes
        self._resume_at: float | None = None
        #: Dials whose host is being looked up, or that have more addresses to try.
        self._looking: dict[int, Dial] = {}
        self._more: dict[int, list[Address]] = {}
        self._attempts: dict[int, HandshakeSocket] = {}
        for listener in self._listeners:
            self._listen_to(listener)

    # Dialling.

    def dial(self, dial: Dial) -> None:
        """Begin a dial; `failed` or `established` follows, unless it is dropped."""
        self._looking[dial.connection_id] = dial
        deadline = self._clock() + self._handshake_s

        def answer(found: list[Address] | OSError) -> None:
            self._decider.post(functools.partial(self._found, dial, found, deadline))

        self._resolver.resolve(dial.addr, answer)

    def _found(self, dial: Dial, found: list[Address] | OSError, deadline: float) -> None:
        if self._looking.get(dial.connection_id) is not dial:
            return
        if isinstance(found, OSError):
            del self._looking[dial.connection_id]
            self._fail(dial.connection_id, dial.addr, str(found))
            return
        self._more[dial.connection_id] = found
        self._try_next(dial, deadline, "it has no address")

    def _try_next(self, dial: Dial, deadline: float, problem: str) -> None:
        """Dial the next address there is; the dial has failed when there is none."""
        addresses = self._more[dial.connection_id]
        while addresses and self._clock() < deadline:
            family, where = addresses.pop(0)
            host = str(where[0])
            if self._loopback_only and not is_loopback(host):
                problem = f"{host} is not of this machine, and nothing would prove who answers"
                continue
            try:
                attempt = self._dial_address(dial, family, where, deadline)
            except OSError as error:
                problem = str(error)
                continue
            self._attempts[dial.connection_id] = attempt
            self._watch(attempt)
            return
        del self._looking[dial.connection_id], self._more[dial.connection_id]
        self._fail(dial.connection_id, dial.addr, problem)

    def _dial_address(
        self, dial: Dial, family: int, where: tuple[object, ...], deadline: float
    ) -> HandshakeSocket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)

        def make_handshake(certified: frozenset[str] | None) -> Handshake:
            return Handshake(
                Role.INITIATOR,
                self._config(),
                self._token_bytes(32),
                self._clock(),
                dial.join,
                dial.node,
                certified=certified,
            )

        attempt = HandshakeSocket(
            sock,
            dial.connection_id,
            initiated=True,
            context=None if self._contexts is None else self._contexts[0],
            make_handshake=make_handshake,
            remote=dial.addr,
            deadline=deadline,
            connect_by=self._clock() + self._connect_s,
        )
        try:
            attempt.connect(where)
        except OSError:
            sock.close()
            raise
        return attempt

    def drop(self, connection_id: int) -> bool:
        """Forget a dial or a handshake. False if there is none."""
        dialled = self._looking.pop(connection_id, None) is not None
        self._more.pop(connection_id, None)
        attempt = self._attempts.get(connection_id)
        if attempt is not None:
            try:
                self._forget(attempt)
            finally:
                attempt.close()
        return dialled or attempt is not None

    # Accepting.

    def _listen_to(self, listener: socket.socket) -> None:
        self._selector.register(
            listener, selectors.EVENT_READ, functools.partial(self._accept, listener)
        )

    def _accept(self, listener: socket.socket, events: int) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, where = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                # Out of descriptors or memory: what waits in the backlog would wake us for ever.
                self._rest(str(error))
                return
            sock.setblocking(False)
            self._make_room()
            self._begin_accepted(sock, f"{where[0]}:{where[1]}")

    def _make_room(self) -> None:
        """Of too many handshakes the oldest gives way: an honest one takes milliseconds."""
        accepted = [attempt for attempt in self._attempts.values() if not attempt.initiated]
        if len(accepted) >= self._accepted_max:
            failed = Failed(RefusalCode.BUSY, "too many handshakes", False, silent=True)
            self._end(accepted[0], failed)

    def _begin_accepted(self, sock: socket.socket, remote: str) -> None:
        def make_handshake(certified: frozenset[str] | None) -> Handshake:
            return Handshake(
                Role.RESPONDER,
                self._config(),
                self._token_bytes(32),
                self._clock(),
                certified=certified,
            )

        attempt = HandshakeSocket(
            sock,
            self._decider.number(),
            initiated=False,
            context=None if self._contexts is None else self._contexts[1],
            make_handshake=make_handshake,
            remote=remote,
            deadline=self._clock() + self._handshake_s,
        )
        self._attempts[attempt.connection_id] = attempt
        self._watch(attempt)
        self._go_on(attempt, lambda: attempt.begin())

    def _rest(self, problem: str) -> None:
        self._resume_at = self._clock() + EXHAUSTED_PAUSE_S
        for listener in self._listeners:
            self._selector.unregister(listener)
        failed = Failed(RefusalCode.LIMIT, f"cannot accept: {problem}", False, silent=True)
        self._decider.failed(0, failed, "anybody", False)

    # What goes on.

    def _watch(self, attempt: HandshakeSocket) -> None:
        def ready(events: int) -> None:
            self._go_on(attempt, lambda: attempt.ready(self._clock()))

        self._selector.register(attempt.sock, attempt.interest, ready)

    def _go_on(self, attempt: HandshakeSocket, step: Callable[[], list[Action]]) -> None:
        """Take a step and do what it asks for, whatever becomes of it."""
        before = attempt.sock
        try:
            actions = step()
            if attempt.sock is not before:
                # Wrapped for TLS: another object, under the same number.
                data = self._selector.unregister(before).data
                self._selector.register(attempt.sock, attempt.interest, data)
            self._carry_out(attempt, actions)
        except (OSError, EOFError) as error:
            if attempt.connection_id in self._attempts:
                self._end_or_try_next(attempt, str(error) or type(error).__name__, code_of(error))
            return
        if attempt.connection_id in self._attempts:
            self._selector.modify(
                attempt.sock, attempt.interest, self._selector.get_key(attempt.sock).data
            )

    def _carry_out(self, attempt: HandshakeSocket, actions: list[Action]) -> None:
        handshake = attempt.handshake
        for action in actions:
            match action:
                case Send(data):
                    if not self._may_write(attempt):
                        return
                    attempt.write(data)
                case Authorize(peer):
                    assert handshake is not None
                    self._carry_out(attempt, handshake.decide(self._decider.authorize(peer)))
                    return
                case Established(peer, leftover):
                    self._forget(attempt)
                    if attempt.flushed:
                        self._decider.established(
                            attempt.connection_id, attempt.sock, peer, leftover, attempt.initiated
                        )
                        return
                    attempt.close()
                    problem = Failed(RefusalCode.TIMEOUT, "the peer does not read", True)
                    self._decider.failed(
                        attempt.connection_id, problem, attempt.remote, attempt.initiated
                    )
                case Failed():
                    self._end(attempt, action)

    def _may_write(self, attempt: HandshakeSocket) -> bool:
        """Before an initiator's PROOF the owner is asked. What it closes has gone by then."""
        handshake = attempt.handshake
        if not attempt.initiated or attempt.may_authenticate:
            return True
        if handshake is None or handshake.peer is None or handshake.done:
            return True
        attempt.may_authenticate = self._decider.may_authenticate(
            attempt.connection_id, handshake.peer
        )
        if not attempt.may_authenticate:
            self.drop(attempt.connection_id)
        return attempt.may_authenticate

    def _end_or_try_next(self, attempt: HandshakeSocket, problem: str, code: RefusalCode) -> None:
        dial = self._looking.get(attempt.connection_id)
        if dial is not None and attempt.handshake is None and self._more.get(attempt.connection_id):
            self._forget(attempt, keep_dial=True)
            attempt.close()
            self._try_next(dial, attempt.deadline, problem)
            return
        self._forget(attempt)
        attempt.close()
        failed = Failed(code, problem, False, silent=True)
        self._decider.failed(attempt.connection_id, failed, attempt.remote, attempt.initiated)

    def _end(self, attempt: HandshakeSocket, failed: Failed) -> None:
        self._forget(attempt)
        attempt.close()
        self._decider.failed(attempt.connection_id, failed, attempt.remote, attempt.initiated)

    def _fail(self, connection_id: int, remote: str, problem: str) -> None:
        """A dial came to nothing: the network, and no peer, was why."""
        failed = Failed(RefusalCode.TIMEOUT, problem, False, silent=True)
        self._decider.failed(connection_id, failed, remote, True)

    def _forget(self, attempt: HandshakeSocket, *, keep_dial: bool = False) -> None:
        del self._attempts[attempt.connection_id]
        self._selector.unregister(attempt.sock)
        if not keep_dial:
            self._looking.pop(attempt.connection_id, None)
            self._more.pop(attempt.connection_id, None)

    # Time, and the end.

    def tick(self, now: float) -> None:
        """End what takes too long; accept again after a rest."""
        for attempt in list(self._attempts.values()):
            if attempt.connection_id in self._attempts and now >= attempt.next_tick:
                self._go_on(attempt, functools.partial(attempt.tick, now))
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for listener in self._listeners:
                self._listen_to(listener)

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        times = [attempt.next_tick for attempt in self._attempts.values()]
        if self._resume_at is not None:
            times.append(self._resume_at)
        return min(times, default=None)

    def __len__(self) -> int:
        return len(self._attempts)

    def stop_listening(self) -> None:
        """Close the listeners."""
        while self._listeners:
            listener = self._listeners[-1]
            if self._resume_at is None and listener.fileno() in self._selector.get_map():
                self._selector.unregister(listener)
            listener.close()
            self._listeners.pop()
        self._resume_at = None

    def stop_dialling(self) -> None:
        """Drop the dials that no peer can take for a connection yet."""
        for connection_id in list(self._looking):
            if connection_id not in self._attempts:
                self.drop(connection_id)
        for attempt in list(self._attempts.values()):
            if attempt.initiated and not attempt.may_authenticate:
                self.drop(attempt.connection_id)

    def close(self) -> None:
        """Close all sockets."""
        self.stop_listening()
        for connection_id in [*self._looking, *self._attempts]:
            self.drop(connection_id)
        self._resolver.close()


def code_of(error: OSError | EOFError) -> RefusalCode:
    """What a failed connection counts as: AUTH if TLS itself refused it, on either side."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ended):
        return RefusalCode.AUTH
    return RefusalCode.TIMEOUT
