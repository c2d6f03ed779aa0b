"""An executor among other nodes, which the test plays: no thread, no handshake, no listener."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rabble import CorrelationId, Envelope, Metrics, NodeId, Pid
from rabble._core.codec import Codec
from rabble._core.frame import split_frame
from rabble._core.frame_decoder import PeerEvent
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.registry import MessageRegistry, default_registry
from tests.reference.session import (
    BYE,
    DEMONITOR,
    DOWN,
    EXIT,
    FLAG_FULL,
    FRAGMENT,
    LINK,
    LOST,
    MONITOR,
    PING,
    UNDELIVERED,
    UNLINK,
    WINDOW_UPDATE,
    frame,
)
from tests.support import BARE, Witness, bare_executor

if TYPE_CHECKING:
    from rabble._core.connection import Connection

#: Milliseconds in which no test gets: of all that an open connection does by the clock.
NEVER_MS = 3_600_000
#: Of the pid caches, in the tiny build too: few are there the way of an envelope depends on who
#: else was named before.
PID_CACHE_SLOTS = 64
#: After so many rounds in which nothing has changed nothing will: a step may find that something
#: has come, the next take it, and a third one see that it was the last.
QUIET_ROUNDS = 4
#: Names of the reserved group that a peer may send to.
OPEN_NAMES = frozenset({"calls"})


class HubWitness(Witness):
    """Keeps what it is told of connections, and says why they end."""

    def __init__(self) -> None:
        super().__init__()
        #: The `reason` of the next `NodeDown`.
        self.why = "lost"
        #: The connections whose end it was told, in order.
        self.ended: list[Connection] = []
        #: The envelopes whose messages could not be built, with the reason.
        self.undecodables: list[tuple[Envelope, str]] = []
        #: The envelopes whose messages could not be put into bytes.
        self.unencodables: list[Envelope] = []

    def why_ended(self, connection: Connection) -> str:
        return self.why

    def disconnected(self, connection: Connection) -> None:
        self.ended.append(connection)

    def undecodable(self, envelope: Envelope, detail: str) -> None:
        self.undecodables.append((envelope, detail))

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        self.unencodables.append(envelope)

    def metrics(self) -> Metrics:
        return Metrics({}, {})


class Peer:
    """Another node: the far end of a socket pair, and what it has read there.

    :param hub: whom it is connected to.
    :param addr: of its node id.
    :param incarnation: which start of it this is.
    :param registry: the classes that it knows.
    :param version: of the protocol, that the two use.
    """

    def __init__(
        self,
        hub: Hub,
        name: str,
        addr: str,
        incarnation: int,
        registry: MessageRegistry,
        version: int = 2,
    ) -> None:
        self.node = NodeId(name, addr)
        near, self.socket = socket.socketpair()
        for each in (near, self.socket):
            each.setblocking(False)
        #: What it writes with, and reads.
        self.session = self._session(self.node, BARE, 1, registry, version)
        #: What the hub has of it.
        self.connection = hub.poller.attach(
            near.detach(),
            self._session(BARE, self.node, incarnation, default_registry, version),
        )
        #: What came in the data and bulk lanes, in order: tuples as the reference has them.
        self.received: list[tuple[Any, ...]] = []
        #: The code of the BYE that came.
        self.goodbye: int | None = None
        #: Whether it reads. Whoever does not fills the socket, and then its queue at the hub.
        self.reads = True
        self._unread = b""
        self._unsent = b""
        self._bulk_bytes = 0

    @staticmethod
    def _session(
        own: NodeId, to: NodeId, incarnation: int, registry: MessageRegistry, version: int
    ) -> Session:
        return Session(
            own,
            to,
            incarnation,
            Pid("executor", own, "rabble"),
            codec=Codec(registry),
            open_names=OPEN_NAMES,
            pid_cache_slots=PID_CACHE_SLOTS,
            version=version,
        )

    @property
    def envelopes(self) -> list[Envelope]:
        """Those of what came."""
        return [what[1] for what in self.received if what[0] == "envelope"]

    @property
    def messages(self) -> list[Any]:
        """Those of the envelopes."""
        return [envelope.msg for envelope in self.envelopes]

    @property
    def events(self) -> list[tuple[Any, ...]]:
        """What came and is no envelope."""
        return [what for what in self.received if what[0] != "envelope"]

    def pid(self, name: str) -> Pid:
        """The pid of a process of this node."""
        return Pid(name, self.node)

    def send(
        self, to: Pid, msg: object, sender: Pid | None = None, cid: CorrelationId | None = None
    ) -> None:
        """Send an envelope of a process of this node."""
        self.session.write(Envelope(to, msg, sender or self.pid("somebody"), cid))
        self.flush()

    def write(self, what: str, *fields: Any) -> None:
        """Send what is no envelope: `monitor`, `down`, `link`, `lost` and so on: see `Session`."""
        getattr(self.session, what)(*fields)
        self.flush()

    def write_bytes(self, data: bytes) -> None:
        """Send whatever that is."""
        self._unsent += data

    def flush(self) -> None:
        self._unsent += self.session.take_data() + self.session.take_bulk()

    def close(self) -> None:
        """End without a word, behind what was sent before."""
        self.exchange()
        self.socket.close()

    def exchange(self) -> None:
        """Send what waits, and read what has come."""
        if self.socket.fileno() < 0:
            return
        if self._unsent:
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                self._unsent = b""
        while self.reads:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.socket.close()
                return
            self._unread += data
            while (found := split_frame(self._unread)) is not None:
                kind, flags, body, size = found
                self._read(kind, flags, body, self._unread[:size])
                self._unread = self._unread[size:]
            if self.goodbye is not None:
                self.socket.close()
                return

    def _read(self, kind: int, flags: int, body: bytes, data: bytes) -> None:
        if kind == BYE:
            self.goodbye = body[0]
        if kind >= PING:
            return
        for envelope in self.session.decode(data):
            is_event = isinstance(envelope.msg, PeerEvent)
            self.received.append(event_fields(envelope.msg) if is_event else ("envelope", envelope))
        if kind == FRAGMENT or flags & FLAG_FULL:
            # Of the bulk lane, which is sent only so far ahead of this.
            self._bulk_bytes += len(data)
            self._unsent += frame(WINDOW_UPDATE, 0, struct.pack(">Q", self._bulk_bytes))


def event_fields(event: PeerEvent) -> tuple[Any, ...]:
    """What a frame that is no ENVELOPE says, as the reference has it."""
    to, about = event.to, event.about
    fields: dict[int, tuple[Any, ...]] = {
        MONITOR: ("monitor", about, to, event.reference),
        DEMONITOR: ("demonitor", about, to, event.reference),
        DOWN: ("down", to, about, event.reference, event.why, event.life, event.detail),
        UNDELIVERED: (
            *("undelivered", to, event.correlation_id, event.why),
            *(event.crash, about, event.detail),
        ),
        LOST: ("lost", event.count),
        LINK: ("link", about, to, event.reference),
        UNLINK: ("unlink", about, to, event.reference),
        EXIT: ("exit", to, about, event.reference, event.why, event.life, event.detail),
    }
    return fields[event.kind]


class Hub:
    """An executor that has joined a mesh, its witness, and its peers; a context manager.

    :param queue_bytes_max: how many bytes may wait for each peer.
    :param peer_monitors_max: how many processes each peer may monitor.
    :param more: for `bare_executor`.
    """

    def __init__(
        self, queue_bytes_max: int = 1 << 20, peer_monitors_max: int = 100, **more: Any
    ) -> None:
        self.witness = HubWitness()
        self._context = bare_executor(witness=self.witness, **more)
        self.poller = Poller(
            heartbeat_ms=NEVER_MS,
            frame_bytes_max=1 << 20,
            queue_bytes_max=queue_bytes_max,
            partial_ms_max=NEVER_MS,
        )
        self._peer_monitors_max = peer_monitors_max
        self.peers: list[Peer] = []

    def __enter__(self) -> Hub:
        self.executor = self._context.__enter__()
        self.executor.join_mesh(self.poller, self._peer_monitors_max)
        return self

    def __exit__(
        self,
        cls: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for peer in self.peers:
            peer.close()
        self._context.__exit__(cls, error, traceback)

    def attach(
        self,
        name: str = "peer",
        addr: str = "h:2",
        incarnation: int = 1,
        registry: MessageRegistry = default_registry,
        version: int = 2,
    ) -> Peer:
        """A peer whose connection the executor has still to be told of."""
        peer = Peer(self, name, addr, incarnation, registry, version)
        self.peers.append(peer)
        return peer

    def connect(
        self,
        name: str = "peer",
        addr: str = "h:2",
        incarnation: int = 1,
        registry: MessageRegistry = default_registry,
        version: int = 2,
    ) -> Peer:
        """A peer that is connected."""
        peer = self.attach(name, addr, incarnation, registry, version)
        self.executor.connection_up(peer.connection)
        self.settle()
        return peer

    def settle(self, most: int = 1 << 30) -> None:
        """Step and exchange until nothing moves any more.

        :param most: how many deliveries each step makes; with 0 what comes is queued, and stays so.
        """
        before: Any = None
        quiet = 0
        while quiet < QUIET_ROUNDS:
            self.executor.step(most)
            for peer in self.peers:
                peer.exchange()
            now = (
                self.executor.delivered,
                self.executor.queue_depth,
                self.executor.inbox_depth,
                dict(self.executor.dead_letters),
                len(self.witness.ended),
                [(peer.connection.status(), peer.socket.fileno()) for peer in self.peers],
            )
            quiet = quiet + 1 if now == before else 0
            before = now
