"""The established connections: from a socket whose handshake is done to a descriptor closed."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import socket
import ssl
from collections.abc import Callable

from rabble._core.connection import Connection
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble._core.poller import Poller
from rabble.cluster.decide import failure_detector
from rabble.cluster.decide.actions import Up
from rabble.cluster.decide.failure_detector import FailureDetector
from rabble.cluster.decide.handshake_actions import Established
from rabble.cluster.decide.refusal import RefusalCode, known_code
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits
from rabble.messages import NodeStalled
from rabble.texts import described

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
    #: The fingerprints of the keys that it alone has.
    keys: tuple[bytes, ...] = ()
    #: How many segments had come when it fell silent; `None` while it is not.
    segments_before: int | None = None
    #: Control frames that were taken of it, and are not read yet.
    unread: collections.deque[tuple[int, bytes]] = dataclasses.field(
        default_factory=collections.deque
    )
    #: When it was last reported that its membership does not fit in here.
    limit_reported_at: float = float("-inf")
    #: It fell silent though packets of its host came, only not the next ones in order.
    is_holed: bool = False


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
        self._keep_alive_s = max(limits.heartbeat_ms // 1000, 1)
        self._clock = clock
        self._tls_proxy = tls_proxy
        self._failure_detector = FailureDetector(limits)
        self._partial_ns_max = limits.frame_partial_ms_max * 1_000_000
        self._by_id: dict[int, PeerConnection] = {}
        #: Connections that send their BYE; kept until their descriptor is closed.
        self._parting: list[Connection] = []
        self._is_ending = False

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self._by_id

    def get(self, connection_id: int | None) -> PeerConnection | None:
        """The connection of that id, if there is one that is established and not parting."""
        return None if connection_id is None else self._by_id.get(connection_id)

    def all(self) -> list[PeerConnection]:
        """Those that are established, as of now."""
        return list(self._by_id.values())

    @property
    def are_parting(self) -> bool:
        """Whether some have not sent their BYE yet."""
        return bool(self._parting)

    # From a handshake to a connection.

    def open(
        self,
        up: Up,
        sock: socket.socket,
        established: Established,
        initiated: bool,
    ) -> PeerConnection | None:
        """Have the poller drive a socket whose handshake is done.

        :param sock: owned from now on.
        :param established: what the handshake has agreed on.
        :returns: `None` if it cannot be used; that has been reported.
        """
        fd = -1
        connection: Connection | None = None
        try:
            session = self._runtime.make_session(
                up.peer,
                up.incarnation,
                established.peer.message_bytes_max,
                established.peer.labels,
                established.peer.version,
            )
            fd = self._descriptor_of(sock)
            connection = self._poller.attach(
                fd,
                session,
                established.leftover,
                initiated=initiated,
                stream_keys=established.stream_keys,
            )
            peer = PeerConnection(
                up.connection_id,
                connection,
                up.peer,
                up.incarnation,
                keys=established.peer.keys,
            )
            self._failure_detector.add(up.connection_id, up.peer.name, self._clock())
            self._by_id[up.connection_id] = peer
        except BaseException as error:
            # No descriptors, threads or memory are left, say; or the TLS proxy has failed. Each of
            # these has owned the stream in its time.
            if connection is not None:
                connection.abort(RefusalCode.LIMIT)
                self._parting.append(connection)
            elif fd >= 0:
                os.close(fd)
            else:
                sock.close()
            self._failure_detector.remove(up.connection_id)
            what = f"the connection to {up.peer} cannot be used: {described(error)}"
            self._runtime.report(logging.ERROR, lambda: f"{self._own.name}: {what}")
            return None
        return peer

    def _descriptor_of(self, sock: socket.socket) -> int:
        """The descriptor that the poller gets, tuned for what it does."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._keep_alive_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self._keep_alive_s)
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
            tells_why = code in (RefusalCode.REMOVED, RefusalCode.BANNED)
            peer.connection.close(code, text, after_all=tells_why)
            self._parting.append(peer.connection)

    def abort(self, connection_id: int) -> None:
        """Cut a connection that cannot go on. Nothing happens if there is no such connection."""
        peer = self._by_id.pop(connection_id, None)
        if peer is not None:
            self._failure_detector.remove(connection_id)
            peer.connection.abort(RefusalCode.LIMIT)
            self._parting.append(peer.connection)

    def close_all(self, code: RefusalCode, text: str, patience_s: float, within_s: float) -> None:
        """Send all peers BYE, behind what was sent to them, and close.

        :param patience_s: seconds for which one may take nothing of it.
        :param within_s: seconds that they have for all of it.
        """
        self._is_ending = True
        for peer in self.all():
            peer.connection.close(
                code, text, after_all=True, linger_s=patience_s, within_s=within_s
            )
            self._parting.append(peer.connection)
        self._by_id.clear()

    def ended(self, peer: PeerConnection, *, reported: bool) -> Ending:
        """A connection has ended: forget it; returns why, which is reported if that is wanted."""
        self.remove(peer)
        ending = ending_of(peer.connection)
        if reported:
            # Somebody on the way, or the network itself, changed what this mesh relies on.
            level = logging.DEBUG if is_guest(peer.node) else logging.INFO
            level = logging.WARNING if ending.code is RefusalCode.INTEGRITY else level
            text = f"{self._own.name}: the connection to {peer.node} ended: {ending.text}"
            self._runtime.report(level, lambda: text)
        return ending

    def remove(self, peer: PeerConnection) -> None:
        """A connection has ended by itself, or was aborted."""
        del self._by_id[peer.connection_id]
        self._failure_detector.remove(peer.connection_id)
        if not peer.connection.closed:
            self._parting.append(peer.connection)

    def forget_closed(self) -> None:
        """Let go of those whose descriptors are closed."""
        parting, self._parting = self._parting, []
        for connection in parting:
            if connection.closed:
                self._report_unsent(connection)
            else:
                self._parting.append(connection)

    def _report_unsent(self, connection: Connection) -> None:
        """At the end of the node nobody else could tell what is lost."""
        if self._is_ending and (unsent := connection.unsent):
            text = (
                f"{self._own.name}: {connection.session.peer} has not taken the last {unsent:,} "
                "bytes or so that were sent to it: the messages in them are lost "
                "(shutdown_ms is how long the end may take)"
            )
            self._runtime.report(logging.WARNING, lambda: text)

    def abort_all(self) -> None:
        """Cut whatever is left."""
        while self._by_id:
            # There are some only if the server's thread failed: that is no end in order.
            connection_id, peer = next(iter(self._by_id.items()))
            peer.connection.abort(0)
            del self._by_id[connection_id]
        while self._parting:
            self._parting[-1].abort(RefusalCode.SHUTDOWN)
            self._report_unsent(self._parting.pop())

    # How the peers are.

    def silent_s(self, connection_id: int) -> float | None:
        """For how many seconds nothing came; `None` if there is no such connection."""
        peer = self._by_id.get(connection_id)
        return None if peer is None else peer.connection.silent_ns / 1e9

    def silent(self, now: float) -> list[tuple[PeerConnection, float]]:
        """Peers that are down, and for how many seconds they were silent; the caller calls `cut`.

        Who stands still, or goes on again, is noted.
        """
        # An idle node does little else: of most peers nothing is to be noted.
        observe, to_observe = self._failure_detector.observe, self._failure_detector.to_observe(now)
        well_s = self._failure_detector.well_s
        well_ns = int(well_s * 1e9)
        for peer in self._by_id.values():
            connection = peer.connection
            if (
                peer.segments_before is None
                and peer.connection_id not in to_observe
                and connection.is_well(well_ns)
            ):
                continue
            progress, idle, told_ns = connection.progress
            silence_s = connection.silent_ns / 1e9
            if silence_s <= well_s:
                peer.segments_before = None
            elif peer.segments_before is None:
                peer.segments_before = connection.segments[0]
            observe(
                peer.connection_id, now, silence_s, progress, idle, progress_ago_s=told_ns / 1e9
            )
            if connection.session.unfinished_ns > self._partial_ns_max:
                connection.close(RefusalCode.TIMEOUT, "a message in fragments is not finished")
        silent: list[tuple[PeerConnection, float]] = []
        for action in self._failure_detector.tick(now):
            match action:
                case failure_detector.Down(connection_id, silence_s):
                    if (peer := self._by_id[connection_id]).connection.open:
                        silent.append((peer, silence_s))
                case failure_detector.Stalled(name, _):
                    self.set_stalled(name, True)
                case failure_detector.Recovered(name):
                    self.set_stalled(name, False)
        return silent

    def cut(self, peer: PeerConnection, silence_s: float) -> None:
        """End the connection to a peer that is silent, and say what is known of it."""
        text = f"{self._own.name}: nothing was heard of {peer.node} for {silence_s:.1f} s"
        received, out_of_order = peer.connection.segments
        if out_of_order or received > (peer.segments_before or received):
            peer.is_holed = True
            text += ", though small packets of its host come"
        level = logging.INFO if is_guest(peer.node) else logging.WARNING
        self._runtime.report(level, lambda: text)
        peer.connection.abort(RefusalCode.TIMEOUT)

    def next_check(self, now: float) -> float | None:
        """When to call `silent`, in monotonic seconds; `None` without peers."""
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
        return Ending(None, "PARTIAL_FRAME", f"{text}, in the middle of a frame")
    return Ending(None, None, text)
