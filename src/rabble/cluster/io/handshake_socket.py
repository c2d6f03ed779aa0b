"""A socket whose handshake goes on: connecting, TLS, and the messages of the handshake itself."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import ssl
from collections.abc import Callable, Sequence

from rabble.addresses import Address
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import Action, Failed, Handshake
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.tls import PeerCertificate, peer_certificate

__all__ = ["HandshakeSocket"]

RECV_BYTES = 4_096
#: Results of a connect that goes on.
UNDER_WAY = {0, errno.EINPROGRESS, errno.EINTR, errno.EALREADY}


class HandshakeSocket:
    """One connection from its first moment to the end of its handshake. For one thread.

    :param sock: non-blocking; owned until the handshake is done, or `close`.
    :param connection_id: given by `ConnectionManager`.
    :param context: for TLS, or `None`.
    :param make_handshake: called with the peer's certificate, once it is known.
    :param remote: the address at the other side, for the log.
    :param deadline: monotonic seconds by which all of it must be done.
    :param connect_by: the same for the connect alone, which a network that swallows packets
        would keep waiting; of no use to an accepted one.
    :param dial: of which it is; `None` for an accepted one.
    :param other_addresses: of the same host, which may be tried if this one cannot be reached.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection_id: int,
        *,
        context: ssl.SSLContext | None,
        make_handshake: Callable[[PeerCertificate | None], Handshake],
        remote: str,
        deadline: float,
        connect_by: float | None = None,
        dial: Dial | None = None,
        other_addresses: Sequence[Address] = (),
    ) -> None:
        self.sock = sock
        self.connection_id = connection_id
        self.remote = remote
        self.deadline = deadline
        self.dial = dial
        self.other_addresses = other_addresses
        self.handshake: Handshake | None = None
        #: Whether an initiator's PROOF was written: the peer may take this for a connection.
        self.is_authenticating = False
        #: Whether the peer has said anything.
        self.has_spoken = False
        self._connect_by = connect_by
        self._make_handshake = make_handshake
        self._context = context
        self._connecting = dial is not None
        self._in_tls_handshake = False
        self._outgoing = b""
        self._interest = 0
        self._is_taken = False

    @property
    def initiated(self) -> bool:
        """Whether this node dialled."""
        return self.dial is not None

    @property
    def own_incarnation(self) -> int | None:
        """As which start of this node it was begun; `None` as long as it only connects."""
        return None if self.handshake is None else self.handshake.own_incarnation

    @property
    def remote_host(self) -> str:
        """The other side without its port."""
        return self.remote.rpartition(":")[0]

    # Sockets and selectors.

    @property
    def interest(self) -> int:
        """The events of `selectors` that it waits for."""
        if self._connecting:
            return selectors.EVENT_WRITE
        if self._in_tls_handshake:
            return self._interest
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def connect(self, address: tuple[object, ...]) -> None:
        """Begin to connect. Raises `OSError` if that fails at once."""
        status = self.sock.connect_ex(address)
        if status not in UNDER_WAY:
            raise OSError(status, os.strerror(status))

    def begin(self) -> list[Action]:
        """An accepted connection begins."""
        return self._start_tls()

    def ready(self, now: float) -> list[Action]:
        """Go on after the socket became ready.

        :raises OSError: if the connection failed (ssl's errors are such, too).
        :raises EOFError: if the peer closed it.
        """
        if self._connecting:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connecting = False
            return self._start_tls()
        if self._in_tls_handshake:
            return self._continue_tls()
        self._send()
        return self._receive(now)

    def _start_tls(self) -> list[Action]:
        if self._context is None:
            return self._start(None)
        # Of one that was reset by now `wrap_socket` raises as if TLS had refused it, or leaves a
        # wrapped socket to the garbage collector.
        self.sock.getpeername()
        self.sock = self._context.wrap_socket(
            self.sock, server_side=not self.initiated, do_handshake_on_connect=False
        )
        self._in_tls_handshake = True
        return self._continue_tls()

    def _continue_tls(self) -> list[Action]:
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._interest = selectors.EVENT_READ
            return []
        except ssl.SSLWantWriteError:
            self._interest = selectors.EVENT_WRITE
            return []
        self._in_tls_handshake = False
        return self._start(peer_certificate(self.sock))

    def _start(self, certificate: PeerCertificate | None) -> list[Action]:
        self.handshake = self._make_handshake(certificate)
        return self.handshake.start()

    def _receive(self, now: float) -> list[Action]:
        assert self.handshake is not None
        actions: list[Action] = []
        # With TLS there may be more inside than the selector sees.
        while not self.handshake.done:
            try:
                data = self.sock.recv(RECV_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                raise EOFError("the peer closed the connection")
            self.has_spoken = True
            actions += self.handshake.receive(data, now)
            if actions:
                break
        return actions

    def write(self, data: bytes) -> None:
        """Send, now or when the socket takes it."""
        self._outgoing += data
        self._send()

    def _send(self) -> None:
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            self._outgoing = self._outgoing[sent:]

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do."""
        if self._connecting and self._connect_by is not None:
            return min(self.deadline, self._connect_by)
        return self.deadline

    def tick(self, now: float) -> list[Action]:
        """Note the time. Raises `OSError` if the connect takes too long."""
        if self._connecting and self._connect_by is not None and now >= self._connect_by:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if self.handshake is not None and (late := self.handshake.tick(now)):
            return late
        if now < self.deadline:
            return []
        return [Failed(RefusalCode.TIMEOUT, "no connection in time", False, silent=True)]

    def extend(self, now: float) -> None:
        """Wait as long again, see `Handshake.extend`."""
        assert self.handshake is not None
        self.handshake.extend(now)
        self.deadline = self.handshake.deadline

    def has_hung_up(self) -> bool:
        """Whether the peer has closed its side, behind whatever may still be unread."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    @property
    def flushed(self) -> bool:
        """Whether all that was written is sent."""
        return not self._outgoing

    def take(self) -> socket.socket:
        """The socket of an established one, which is the caller's from now on."""
        self._is_taken = True
        return self.sock

    def close(self) -> None:
        """Give it up, unless its socket was taken."""
        if not self._is_taken:
            self.sock.close()
