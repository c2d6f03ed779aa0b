"""The established connections: from a socket whose handshake is done to a descriptor closed."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence

from rabble._core.ids import NodeId
from rabble._core.poller import Connection, Poller
from rabble.cluster.decide import failure_detector
from rabble.cluster.decide.actions import Up
from rabble.cluster.decide.failure_detector import FailureDetector
from rabble.cluster.decide.refusal import RefusalCode, known_code
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits
from rabble.messages import NodeStalled

__all__ = ["Connections", "Ending", "PeerConnection", "ending_of"]

#: Bytes that the kernel holds unsent at most, so that a heartbeat does not queue behind megabytes.
UNSENT_BYTES_MAX = 256 << 10


@dataclasses.dataclass(eq=False)
class PeerConnection:
    """An established connection, as the cluster server knows it."""

    connection_id: int
    connection: Connection
    node: NodeId
    incarnation: int
    stalled: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended.

    :param code: of the BYE, on either side; `None` without one, or if it is unknown here.
    :param counted_as: the key of `ClusterStatus.refusals`; `None` if it is not counted.
    :param text: for the log.
    """

    code: RefusalCode | None
    counted_as: str | None
    text: str


class Connections:
    """The connections to peers, and those that are parting. For the cluster server's thread.

    :param own: this node.
    :param tls_proxy: carries the bytes of TLS connections; `None` without TLS.
    """

    def __init__(
        self,
        own: NodeId,
        poller: Poller,
        runtime: ClusterRuntime,
        limits: Limits,
        clock: Callable[[], float],
        tls_proxy: TlsProxy | None,
    ) -> None:
        self._own = own
        self._poller = poller
        self._runtime = runtime
        self._heartbeat_s = max(limits.heartbeat_ms // 1000, 1)
        self._clock = clock
        self._tls_proxy = tls_proxy
        self._failure_detector = FailureDetector(limits)
        self._by_id: dict[int, PeerConnection] = {}
        #: Connections that send their BYE; kept until their descriptor is closed.
        self._parting: list[Connection] = []

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self._by_id

    def get(self, connection_id: int) -> PeerConnection | None:
        """The connection of that id, if it is established and not parting."""
        return self._by_id.get(connection_id)

    def all(self) -> list[PeerConnection]:
        """Those that are established, as of now."""
        return list(self._by_id.values())

    @property
    def are_parting(self) -> bool:
        """Whether some have not sent their BYE yet."""
        return bool(self._parting)

    # From a handshake to a connection.

    def open(
        self, up: Up, sock: socket.socket, leftover: bytes, initiated: bool
    ) -> PeerConnection | None:
        """Have the poller drive a socket whose handshake is done.

        :param sock: owned from now on.
        :param leftover: the first bytes of frames.
        :returns: `None` if it cannot be used; that has been reported.
        """
        session = self._runtime.make_session(up.peer, up.incarnation)
        try:
            fd = self._descriptor_of(sock)
            try:
                connection = self._poller.attach(fd, session, leftover, initiated=initiated)
            except BaseException:
                os.close(fd)
                raise
        except (OSError, RuntimeError) as error:
            # No descriptors, or no more threads, are left; or the TLS proxy has failed.
            text = f"{self._own.name}: the connection to {up.peer} cannot be used: {error}"
            self._runtime.report(logging.ERROR, lambda: text)
            sock.close()
            return None
        peer = PeerConnection(up.connection_id, connection, up.peer, up.incarnation)
        self._by_id[up.connection_id] = peer
        self._failure_detector.add(up.connection_id, up.peer.name, self._clock())
        return peer

    def _descriptor_of(self, sock: socket.socket) -> int:
        """The descriptor that the poller gets, tuned for what it does."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._heartbeat_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self._heartbeat_s)
        # No TCP_USER_TIMEOUT: on a lossy line it counts from the first segment that was sent again,
        # and goes on as long as more is lost, though the peer lives. Silence ends a connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        if isinstance(sock, ssl.SSLSocket):
            assert self._tls_proxy is not None
            return self._tls_proxy.adopt(sock)
        return sock.detach()

    # To the end of one.

    def close(self, connection_id: int, code: RefusalCode, text: str) -> None:
        """Send a peer BYE, and close. Nothing happens if there is no such connection."""
        peer = self._by_id.pop(connection_id, None)
        if peer is not None:
            self._failure_detector.remove(connection_id)
            # The peer is to learn the state that says why.
            peer.connection.close(code, text, after_all=code is RefusalCode.REMOVED)
            self._parting.append(peer.connection)

    def close_all(self, code: RefusalCode, text: str) -> None:
        """Send all peers BYE, behind what was sent to them, and close."""
        for peer in self.all():
            peer.connection.close(code, text, after_all=True)
            self._parting.append(peer.connection)
        self._by_id.clear()

    def remove(self, peer: PeerConnection) -> None:
        """A connection has ended by itself, or was aborted."""
        del self._by_id[peer.connection_id]
        self._failure_detector.remove(peer.connection_id)
        if not peer.connection.closed:
            self._parting.append(peer.connection)

    def forget_closed(self) -> None:
        """Let go of those whose descriptors are closed."""
        self._parting = [each for each in self._parting if not each.closed]

    def abort_all(self) -> None:
        """Cut whatever is left."""
        while self._by_id:
            # There are some only if the server's thread failed: that is no end in order.
            connection_id, peer = next(iter(self._by_id.items()))
            peer.connection.abort(0)
            del self._by_id[connection_id]
        while self._parting:
            self._parting[-1].abort(RefusalCode.SHUTDOWN)
            del self._parting[-1]

    # How the peers are.

    def silent_s(self, connection_id: int) -> float | None:
        """For how many seconds nothing came; `None` if there is no such connection."""
        peer = self._by_id.get(connection_id)
        return None if peer is None else peer.connection.silent_ns / 1e9

    def check_peers(self, now: float) -> Sequence[failure_detector.Action]:
        """Who is down, who stands still, and who goes on again."""
        for peer in self._by_id.values():
            progress, idle, told_ns = peer.connection.progress
            self._failure_detector.observe(
                peer.connection_id,
                now,
                peer.connection.silent_ns / 1e9,
                progress,
                idle,
                progress_ago_s=told_ns / 1e9,
            )
        return self._failure_detector.tick(now)

    def next_check(self, now: float) -> float | None:
        """When to call `check_peers`, in monotonic seconds; `None` without peers."""
        return self._failure_detector.next_tick(now)

    def set_stalled(self, name: str, stalled: bool) -> None:
        """Note that a peer's executor stands still or goes on, and send `NodeStalled`."""
        for peer in self._by_id.values():
            if peer.node.name == name and peer.stalled != stalled:
                peer.stalled = stalled
                self._runtime.notify_nodes(NodeStalled(peer.node, stalled))


def ending_of(connection: Connection) -> Ending:
    """Why a connection ended that is open no longer."""
    code = known_code(connection.code)
    if code is not None:
        return Ending(code, code.name, code.name)
    text = os.strerror(connection.error) if connection.error else "it closed the connection"
    if connection.ended_mid_frame:
        return Ending(None, "TORN", f"{text}, in the middle of a frame")
    return Ending(None, None, text)
