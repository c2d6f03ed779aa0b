"""Listening: the sockets that other nodes dial, and the handshakes that begin there."""

from __future__ import annotations

import errno
import functools
import selectors
import socket
import ssl
from collections.abc import Callable, Sequence

from rabble.cluster.decide.address import is_loopback, split_address
from rabble.cluster.decide.handshake import Failed, Handshake, Role
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_runner import HandshakeOwner, HandshakeRunner
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.limits import Limits

__all__ = ["Listener", "open_listeners"]

BACKLOG = 512
#: Seconds without accepting after the process ran out of descriptors or memory.
EXHAUSTED_PAUSE_S = 0.5
#: What accept says of one connection, which says nothing about the next.
GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
ACCEPTED_PER_TURN = 64


class Listener:
    """Accepts the connections of others. Belongs to the cluster server's thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param socks: listen; owned from now on.
    :param context: of TLS, or `None`.
    """

    def __init__(
        self,
        owner: HandshakeOwner,
        runner: HandshakeRunner,
        selector: selectors.BaseSelector,
        socks: Sequence[socket.socket],
        *,
        context: ssl.SSLContext | None,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._runner = runner
        self._selector = selector
        self._socks = list(socks)
        self._context = context
        self._handshake_s = limits.handshake_ms / 1000
        self._accepted_max = limits.handshakes_max
        self._clock = clock
        self._resume_at: float | None = None
        for sock in self._socks:
            self._listen_to(sock)

    def tick(self, now: float) -> None:
        """Accept again after a rest."""
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for sock in self._socks:
                self._listen_to(sock)

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        return self._resume_at

    def close(self) -> None:
        """Listen no longer. Handshakes that have begun go on."""
        while self._socks:
            sock = self._socks[-1]
            if self._resume_at is None and sock.fileno() in self._selector.get_map():
                self._selector.unregister(sock)
            sock.close()
            self._socks.pop()
        self._resume_at = None

    def _listen_to(self, sock: socket.socket) -> None:
        self._selector.register(sock, selectors.EVENT_READ, functools.partial(self._accept, sock))

    def _accept(self, listening: socket.socket, events: int) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, where = listening.accept()
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
            self._begin(sock, f"{where[0]}:{where[1]}")

    def _make_room(self) -> None:
        """Of too many handshakes the oldest gives way: an honest one takes milliseconds."""
        accepted = self._runner.accepted()
        if len(accepted) >= self._accepted_max:
            failed = Failed(RefusalCode.BUSY, "too many handshakes", False, silent=True)
            self._runner.end(accepted[0], failed)

    def _begin(self, sock: socket.socket, remote: str) -> None:
        def make_handshake(certified: frozenset[str] | None) -> Handshake:
            return self._runner.make_handshake(Role.RESPONDER, certified)

        self._runner.add_accepted(
            HandshakeSocket(
                sock,
                self._owner.next_connection_id(),
                initiated=False,
                context=self._context,
                make_handshake=make_handshake,
                remote=remote,
                deadline=self._clock() + self._handshake_s,
            )
        )

    def _rest(self, problem: str) -> None:
        self._resume_at = self._clock() + EXHAUSTED_PAUSE_S
        for sock in self._socks:
            self._selector.unregister(sock)
        failed = Failed(RefusalCode.LIMIT, f"cannot accept: {problem}", False, silent=True)
        self._owner.failed(0, failed, "anybody", False)


def open_listeners(
    addr: str, *, loopback_only: bool, listeners: list[socket.socket] | None = None
) -> list[socket.socket]:
    """Listen on all addresses that `addr` means. Resolves names, so it may take a while.

    :param addr: `host:port`; port 0 takes a free one, the same for all.
    :param loopback_only: refuse other addresses: nothing would prove who dials them.
    :param listeners: is filled, and returned; its sockets are closed if this raises.
    :raises ValueError: if that would be open to all of a network.
    :raises OSError: if it cannot be done; says what and where.
    """
    host, port = split_address(addr)
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )
    listeners = [] if listeners is None else listeners
    try:
        for family, kind, proto, _, where in dict.fromkeys(found):
            if loopback_only and not is_loopback(str(where[0])):
                raise ValueError(
                    f"listening on {addr} would take in anybody who can reach it: give the mesh a "
                    f"key (`rabble keygen FILE`) or certificates, or listen on 127.0.0.1"
                )
            listeners.append(socket.socket(family, kind, proto))
            sock = listeners[-1]
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((where[0], port, *where[2:]))
                sock.listen(BACKLOG)
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot listen on {addr} ({where[0]}): {error.strerror}"
                ) from error
            port = sock.getsockname()[1]
    except BaseException:
        for sock in listeners:
            sock.close()
        raise
    return listeners
