"""Listening, dialling, and every handshake that goes on: all sockets that are no connection yet."""

from __future__ import annotations

import errno
import functools
import selectors
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from rabble.cluster.codes import Refusal, RefusalCode
from rabble.cluster.config import is_loopback
from rabble.cluster.handshake import (
    Action,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Judge,
    Peer,
    Role,
    Send,
)
from rabble.cluster.link_actions import Dial
from rabble.cluster.names import Address, Resolver
from rabble.cluster.pending import Pending
from rabble.limits import Limits

__all__ = ["Decider", "Handshakes", "Ready"]

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

    def judge(self, peer: Peer) -> Refusal | None:
        """Whether to accept a peer that dialled and has proven itself."""

    def may_prove(self, link_id: int, peer: Peer) -> bool:
        """Whether to say PROOF to whom this node dialled."""

    def established(
        self, link_id: int, sock: socket.socket, peer: Peer, leftover: bytes, initiated: bool
    ) -> None:
        """A handshake is done. The socket is the decider's from now on."""

    def failed(self, link_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        """A handshake, or a dial, came to nothing. The socket is closed."""

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the server's thread. For any thread."""


class Handshakes:
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
        self._pending: dict[int, Pending] = {}
        for listener in self._listeners:
            self._listen_to(listener)

    # Dialling.

    def dial(self, dial: Dial) -> None:
        """Begin a dial; `failed` or `established` follows, unless it is dropped."""
        self._looking[dial.link_id] = dial
        deadline = self._clock() + self._handshake_s

        def answer(found: list[Address] | OSError) -> None:
            self._decider.post(functools.partial(self._found, dial, found, deadline))

        self._resolver.resolve(dial.addr, answer)

    def _found(self, dial: Dial, found: list[Address] | OSError, deadline: float) -> None:
        if self._looking.get(dial.link_id) is not dial:
            return
        if isinstance(found, OSError):
            del self._looking[dial.link_id]
            self._fail(dial.link_id, dial.addr, str(found))
            return
        self._more[dial.link_id] = found
        self._try_next(dial, deadline, "it has no address")

    def _try_next(self, dial: Dial, deadline: float, problem: str) -> None:
        """Dial the next address there is; the dial has failed when there is none."""
        addresses = self._more[dial.link_id]
        while addresses and self._clock() < deadline:
            family, where = addresses.pop(0)
            host = str(where[0])
            if self._loopback_only and not is_loopback(host):
                problem = f"{host} is not of this machine, and nothing would prove who answers"
                continue
            try:
                pending = self._dial_address(dial, family, where, deadline)
            except OSError as error:
                problem = str(error)
                continue
            self._pending[dial.link_id] = pending
            self._watch(pending)
            return
        del self._looking[dial.link_id], self._more[dial.link_id]
        self._fail(dial.link_id, dial.addr, problem)

    def _dial_address(
        self, dial: Dial, family: int, where: tuple[object, ...], deadline: float
    ) -> Pending:
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

        pending = Pending(
            sock,
            dial.link_id,
            initiated=True,
            context=None if self._contexts is None else self._contexts[0],
            make_handshake=make_handshake,
            remote=dial.addr,
            deadline=deadline,
            connect_by=self._clock() + self._connect_s,
        )
        try:
            pending.connect(where)
        except OSError:
            sock.close()
            raise
        return pending

    def drop(self, link_id: int) -> bool:
        """Forget a dial or a handshake. False if there is none."""
        dialled = self._looking.pop(link_id, None) is not None
        self._more.pop(link_id, None)
        pending = self._pending.get(link_id)
        if pending is not None:
            try:
                self._forget(pending)
            finally:
                pending.close()
        return dialled or pending is not None

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
        accepted = [pending for pending in self._pending.values() if not pending.initiated]
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

        pending = Pending(
            sock,
            self._decider.number(),
            initiated=False,
            context=None if self._contexts is None else self._contexts[1],
            make_handshake=make_handshake,
            remote=remote,
            deadline=self._clock() + self._handshake_s,
        )
        self._pending[pending.link_id] = pending
        self._watch(pending)
        self._go_on(pending, lambda: pending.begin())

    def _rest(self, problem: str) -> None:
        self._resume_at = self._clock() + EXHAUSTED_PAUSE_S
        for listener in self._listeners:
            self._selector.unregister(listener)
        failed = Failed(RefusalCode.LIMIT, f"cannot accept: {problem}", False, silent=True)
        self._decider.failed(0, failed, "anybody", False)

    # What goes on.

    def _watch(self, pending: Pending) -> None:
        def ready(events: int) -> None:
            self._go_on(pending, lambda: pending.ready(self._clock()))

        self._selector.register(pending.sock, pending.interest, ready)

    def _go_on(self, pending: Pending, step: Callable[[], list[Action]]) -> None:
        """Take a step and do what it asks for, whatever becomes of it."""
        before = pending.sock
        try:
            actions = step()
            if pending.sock is not before:
                # Wrapped for TLS: another object, under the same number.
                data = self._selector.unregister(before).data
                self._selector.register(pending.sock, pending.interest, data)
            self._carry_out(pending, actions)
        except (OSError, EOFError) as error:
            if pending.link_id in self._pending:
                self._end_or_try_next(pending, str(error) or type(error).__name__, code_of(error))
            return
        if pending.link_id in self._pending:
            self._selector.modify(
                pending.sock, pending.interest, self._selector.get_key(pending.sock).data
            )

    def _carry_out(self, pending: Pending, actions: list[Action]) -> None:
        handshake = pending.handshake
        for action in actions:
            match action:
                case Send(data):
                    if not self._may_say(pending):
                        return
                    pending.say(data)
                case Judge(peer):
                    assert handshake is not None
                    self._carry_out(pending, handshake.decide(self._decider.judge(peer)))
                    return
                case Established(peer, leftover):
                    self._forget(pending)
                    if pending.spoken:
                        self._decider.established(
                            pending.link_id, pending.sock, peer, leftover, pending.initiated
                        )
                        return
                    pending.close()
                    problem = Failed(RefusalCode.TIMEOUT, "the peer does not read", True)
                    self._decider.failed(
                        pending.link_id, problem, pending.remote, pending.initiated
                    )
                case Failed():
                    self._end(pending, action)

    def _may_say(self, pending: Pending) -> bool:
        """Before an initiator's PROOF, `Links` is asked. What it closes has gone by then."""
        handshake = pending.handshake
        if not pending.initiated or pending.may_prove:
            return True
        if handshake is None or handshake.peer is None or handshake.done:
            return True
        pending.may_prove = self._decider.may_prove(pending.link_id, handshake.peer)
        if not pending.may_prove:
            self.drop(pending.link_id)
        return pending.may_prove

    def _end_or_try_next(self, pending: Pending, problem: str, code: RefusalCode) -> None:
        dial = self._looking.get(pending.link_id)
        if dial is not None and pending.handshake is None and self._more.get(pending.link_id):
            self._forget(pending, keep_dial=True)
            pending.close()
            self._try_next(dial, pending.deadline, problem)
            return
        self._forget(pending)
        pending.close()
        failed = Failed(code, problem, False, silent=True)
        self._decider.failed(pending.link_id, failed, pending.remote, pending.initiated)

    def _end(self, pending: Pending, failed: Failed) -> None:
        self._forget(pending)
        pending.close()
        self._decider.failed(pending.link_id, failed, pending.remote, pending.initiated)

    def _fail(self, link_id: int, remote: str, problem: str) -> None:
        """A dial came to nothing: the network, and no peer, was why."""
        failed = Failed(RefusalCode.TIMEOUT, problem, False, silent=True)
        self._decider.failed(link_id, failed, remote, True)

    def _forget(self, pending: Pending, *, keep_dial: bool = False) -> None:
        del self._pending[pending.link_id]
        self._selector.unregister(pending.sock)
        if not keep_dial:
            self._looking.pop(pending.link_id, None)
            self._more.pop(pending.link_id, None)

    # Time, and the end.

    def tick(self, now: float) -> None:
        """End what takes too long; accept again after a rest."""
        for pending in list(self._pending.values()):
            if pending.link_id in self._pending and now >= pending.next_tick:
                self._go_on(pending, functools.partial(pending.tick, now))
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for listener in self._listeners:
                self._listen_to(listener)

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        times = [pending.next_tick for pending in self._pending.values()]
        if self._resume_at is not None:
            times.append(self._resume_at)
        return min(times, default=None)

    def __len__(self) -> int:
        return len(self._pending)

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
        for link_id in list(self._looking):
            if link_id not in self._pending:
                self.drop(link_id)
        for pending in list(self._pending.values()):
            if pending.initiated and not pending.may_prove:
                self.drop(pending.link_id)

    def close(self) -> None:
        """Close all sockets."""
        self.stop_listening()
        for link_id in [*self._looking, *self._pending]:
            self.drop(link_id)
        self._resolver.close()


def code_of(error: OSError | EOFError) -> RefusalCode:
    """What a failed connection counts as: AUTH if TLS itself refused it, on either side."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ended):
        return RefusalCode.AUTH
    return RefusalCode.TIMEOUT
