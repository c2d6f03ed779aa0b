"""The thread of a server that accepts: caps, TLS handshakes, and the end of the server."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import logging
import selectors
import socket
import ssl
from collections.abc import Callable

from rabble._core.client_server import ClientServer
from rabble._core.inbox import Inbox
from rabble.cluster.failures import Failures
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.io.watched_files import WatchedFiles
from rabble.errors import KeyFileError
from rabble.reports import Reporter
from rabble.services.server_limits import ServerLimits
from rabble.services.server_sockets import ListeningSockets, peer_of
from rabble.services.server_tls import SETTLED_S, Handshake, Handshakes, ServerTls

__all__ = ["Acceptor"]

#: Seconds without accepting after the process ran out of descriptors or memory.
EXHAUSTED_PAUSE_S = 0.5
#: Errors of accept that are about one connection, and say nothing about the next.
GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
ACCEPTED_PER_TURN = 64
#: Seconds between two looks at whether what is left has closed, when nobody says so any more.
END_LOOK_S = 0.02


class Acceptor:
    """Accepts the clients of one server. All but `wake_up` and the counts is for its own thread.

    :param name: of the server, for the log and the threads.
    :param core: is given the sockets.
    :param listening: owned from now on.
    :param full: the frame of the goodbye for who finds no room.
    :param failed: called with what ends the thread of the TLS proxy.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        core: ClientServer,
        listening: ListeningSockets,
        limits: ServerLimits,
        *,
        tls: ServerTls | None,
        full: bytes,
        wake_up: Inbox,
        closed: collections.deque[str],
        reporter: Reporter,
        failed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._core = core
        self._listening = listening
        self._limits = limits
        self._full = full
        self._wake_up = wake_up
        #: The hosts of connections that have closed, as the executor tells them.
        self._closed = closed
        self._reporter = reporter
        self._clock = clock
        self._watched: WatchedFiles[ssl.SSLContext] | None = None
        self._proxy: TlsProxy | None = None
        self._refresh_at: float | None = None
        if tls is not None:
            self._watched = tls.watched()
            self._refresh_at = clock()
            self._proxy = TlsProxy(
                f"{name}:tls",
                buffer_bytes_max=limits.tls_buffer_bytes_max,
                clock=clock,
                failed=failed,
                failures=Failures(name, reporter.report, self._count_failure),
            )
        self._selector = selectors.DefaultSelector()
        self._handshakes = Handshakes(
            self._selector,
            limits.handshakes_max,
            limits.handshake_ms_max / 1000,
            self._handshake_done,
            self._forget,
        )
        #: Connections by address, those that shake hands included; and all of them.
        self._by_host: collections.Counter[str] = collections.Counter()
        self._count = 0
        self._resume_at: float | None = None
        self._is_listening = False
        #: Connections that were accepted, ever; that found no room; that failed for themselves.
        self.accepted = self.refused = self.failures = 0

    def run(self, stopping: Callable[[], bool], ends_at: Callable[[], float | None]) -> None:
        """Accept until the server ends, and then until no connection is left.

        :param stopping: whether nobody serves clients any more.
        :param ends_at: when a server that ends is to be over.
        """
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        self._listen()
        while True:
            is_stopping = stopping()
            if self._core.draining or is_stopping:
                self._stop_listening()
                left = self._core.sockets if is_stopping else self._core.open
                end = ends_at()
                if left == 0:
                    return
                if end is not None and self._clock() >= end:
                    if is_stopping:
                        return
                    # What is left is cut by the executor, which says so.
                    self._core.close()
                    self._turn(is_stopping, None)
                    continue
            self._turn(is_stopping, ends_at())

    def _turn(self, is_stopping: bool, end: float | None) -> None:
        now = self._clock()
        times = [
            time
            for time in (self._handshakes.next_end(), self._resume_at, self._refresh_at, end)
            if time is not None
        ]
        if is_stopping:
            times.append(now + END_LOOK_S)
        # Arming fails when there is something to look at already.
        left = max(min(times) - now, 0.0) if times else None
        for key, _ in self._selector.select(left if self._wake_up.arm() else 0):
            if key.fileobj is self._wake_up:
                self._wake_up.take(0)
            elif isinstance(key.data, Handshake):
                self._handshakes.proceed(key.data)
            elif self._is_listening:
                self._accept(key.data)
        now = self._clock()
        self._handshakes.expire(now)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            if not self._core.draining:
                self._listen()
        if self._refresh_at is not None and now >= self._refresh_at:
            self._renew(now)

    def close(self) -> None:
        """Close all that is left. Idempotent."""
        self._stop_listening()
        self._core.close()
        if self._proxy is not None:
            self._proxy.stop()
        self._selector.close()

    def close_inherited(self) -> None:
        """In a forked child: close its copies, whose selector is the parent's as well."""
        self._listening.close_inherited()
        self._handshakes.close_inherited()
        if self._proxy is not None:
            self._proxy.close_inherited()

    def _listen(self) -> None:
        for sock in self._listening.sockets:
            self._selector.register(sock, selectors.EVENT_READ, sock)
        self._is_listening = True

    def _rest(self) -> None:
        for sock in self._listening.sockets:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
        self._is_listening = False

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._rest()
        self._resume_at = self._refresh_at = None
        self._listening.close()
        self._handshakes.drop_all()

    def _accept(self, listening: socket.socket) -> None:
        """Accept the connections that wait, some of them if they are many."""
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
                self._resume_at = self._clock() + EXHAUSTED_PAUSE_S
                self._note("cannot accept", error)
                return
            self.accepted += 1
            try:
                self._take_in(sock, where)
            except Exception as error:
                self._note("a connection is dropped", error)

    def _take_in(self, sock: socket.socket, where: object) -> None:
        try:
            sock.setblocking(False)
            peer, host = peer_of(sock, where)
            self._settle_closed()
            most = self._limits.connections_per_address_max
            if self._count >= self._limits.connections_max or (
                host and self._by_host[host] >= most
            ):
                self._refuse(sock)
                return
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        self._count += 1
        if host:
            self._by_host[host] += 1
        if self._watched is not None:
            context = self._watched.content
            self._handshakes.begin(context, sock, peer, host, self._clock())
        else:
            self._attach(sock.detach(), peer, host)

    def _refuse(self, sock: socket.socket) -> None:
        """There is no room: say so, if it can be said without waiting."""
        self.refused += 1
        with sock:
            if self._watched is None:
                with contextlib.suppress(OSError):
                    sock.send(self._full)
                    sock.shutdown(socket.SHUT_WR)

    def _handshake_done(self, stream: ssl.SSLSocket, peer: str, host: str) -> None:
        assert self._proxy is not None
        try:
            fd = self._proxy.adopt(stream)
        except Exception as error:
            stream.close()
            self._forget(host)
            self._note("a connection is dropped", error)
            return
        self._attach(fd, peer, host)

    def _attach(self, fd: int, peer: str, host: str) -> None:
        try:
            self._core.attach(fd, peer, host)
        except BaseException as error:
            with contextlib.suppress(OSError):
                socket.socket(fileno=fd).close()
            self._forget(host)
            if not isinstance(error, Exception):
                raise
            self._note("a connection is dropped", error)

    def _settle_closed(self) -> None:
        while self._closed:
            self._forget(self._closed.popleft())

    def _forget(self, host: str) -> None:
        self._count -= 1
        if host:
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]

    def _renew(self, now: float) -> None:
        """Look at the files of the certificate."""
        assert self._watched is not None
        self._refresh_at = now + self._limits.credentials_refresh_ms / 1000
        try:
            if self._watched.renew():
                text = f"{self._name}: the certificate has changed; new connections use it"
                self._reporter.report(logging.INFO, functools.partial(str, text))
        except KeyFileError as error:
            self._note("the certificate stays that of before", error)
        if self._watched.is_settling:
            self._refresh_at = min(self._refresh_at, now + SETTLED_S)

    def _count_failure(self) -> None:
        self.failures += 1

    def _note(self, what: str, error: BaseException) -> None:
        self._count_failure()
        text = f"{self._name}: {what}: {error}"
        self._reporter.report(logging.WARNING, functools.partial(str, text))
