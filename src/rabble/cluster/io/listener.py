"""Listening: the sockets that other nodes dial, and the handshakes that begin there."""

from __future__ import annotations

import contextlib
import errno
import functools
import selectors
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rabble.addresses import is_loopback, split_address
from rabble.cluster.decide.handshake import Failed, Handshake, Role
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_runner import HandshakeRunner
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.tls import PeerCertificate
from rabble.limits import Limits
from rabble.texts import described

__all__ = ["Listener", "open_listeners"]

#: Connections that wait to be accepted; the kernel may allow fewer. One for which there is no room
#: tries again after a second, then after two more, and so on.
BACKLOG = 4_096
#: Seconds without accepting after the process ran out of descriptors or memory.
EXHAUSTED_PAUSE_S = 0.5
#: Errors of accept that are about one connection, and say nothing about the next.
GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
ACCEPTED_PER_TURN = 64
#: How many ports are tried where any will do, until one is free for all addresses of a host.
PORTS_TRIED = 16


class Listener:
    """Accepts the connections of others. Belongs to the cluster server's thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param socks: listen; owned from now on.
    :param ready: what the keys of these lead to; it calls `accept`.
    :param next_id: gives the connection that another node began its id.
    :param context: of TLS, or `None`.
    """

    def __init__(
        self,
        runner: HandshakeRunner,
        selector: selectors.BaseSelector,
        socks: Sequence[socket.socket],
        *,
        ready: Callable[[socket.socket, int], None],
        next_id: Callable[[], int],
        context: ssl.SSLContext | None,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._selector = selector
        self._socks = list(socks)
        self._ready = ready
        self._next_id = next_id
        self._context = context
        self._handshake_s = limits.handshake_ms / 1000
        self._clock = clock
        self._resume_at: float | None = None
        for sock in self._socks:
            self._listen_to(sock)

    def tick(self, now: float) -> None:
        """Accept again after a rest."""
        if self._resume_at is not None and now >= self._resume_at:
            # Once more after another rest, if one of them cannot be watched now.
            self._resume_at = now + EXHAUSTED_PAUSE_S
            for sock in self._socks:
                self._listen_to(sock)
            self._resume_at = None

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        return self._resume_at

    def renew(self, context: ssl.SSLContext) -> None:
        """Use another context for what is accepted from now on."""
        self._context = context

    def close(self) -> None:
        """Listen no longer. Handshakes that have begun go on."""
        while self._socks:
            sock = self._socks[-1]
            self._ignore(sock)
            sock.close()
            self._socks.pop()
        self._resume_at = None

    def close_inherited(self) -> None:
        """In a forked child: close its copies, whose selector is the parent's as well."""
        for sock in self._socks:
            sock.close()

    def _listen_to(self, sock: socket.socket) -> None:
        if sock.fileno() not in self._selector.get_map():
            ready = functools.partial(self._ready, sock)
            self._selector.register(sock, selectors.EVENT_READ, ready)

    def _ignore(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            # It is not watched, or was closed by what failed before.
            self._selector.unregister(sock)

    def accept(self, listening: socket.socket) -> Iterator[HandshakeSocket | Failed]:
        """Accept the connections that wait, some of them if they are many.

        :returns: each of them, before the next is accepted; or why none can be for a while.
        """
        if self._resume_at is not None:
            # Another one of the same look at the selector has found that there is no room.
            return
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, where = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                # Out of descriptors or memory: what waits in the backlog would wake us for ever.
                self._rest()
                yield Failed(RefusalCode.LIMIT, f"cannot accept: {error}", False, silent=True)
                return
            try:
                sock.setblocking(False)
                accepted = self._accepted(sock, str(where[0]), f"{where[0]}:{where[1]}")
            except BaseException as error:
                sock.close()
                text = f"cannot accept: {described(error)}"
                yield Failed(RefusalCode.LIMIT, text, False, silent=True)
                continue
            yield accepted

    def _accepted(self, sock: socket.socket, host: str, remote: str) -> HandshakeSocket:
        def make_handshake(certificate: PeerCertificate | None) -> Handshake:
            return self._runner.make_handshake(
                Role.RESPONDER, certificate, on_loopback=is_loopback(host)
            )

        return HandshakeSocket(
            sock,
            self._next_id(),
            context=self._context,
            make_handshake=make_handshake,
            remote=remote,
            deadline=self._runner.patient_now() + self._handshake_s,
        )

    def _rest(self) -> None:
        self._resume_at = self._clock() + EXHAUSTED_PAUSE_S
        for sock in self._socks:
            self._ignore(sock)


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
    for _, _, _, _, where in found:
        if loopback_only and not is_loopback(str(where[0])):
            raise ValueError(
                f"listening on {addr} would take in anybody who can reach it: give the mesh a "
                f"key (`rabble keygen FILE`) or certificates, or listen on 127.0.0.1"
            )
    listeners = [] if listeners is None else listeners
    tries = PORTS_TRIED
    while True:
        tries -= 1
        try:
            listen_at(found, addr, port, listeners)
            return listeners
        except BaseException as error:
            for sock in listeners:
                sock.close()
            # A port that is free for the first address may be another program's for the next.
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if port or not tries or not in_use or len(listeners) < 2:
                raise
            listeners.clear()


def listen_at(found: Sequence[Any], addr: str, port: int, listeners: list[socket.socket]) -> None:
    """Listen on each address that was found for `addr`, all with the same port."""
    for family, kind, proto, _, where in dict.fromkeys(found):
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
