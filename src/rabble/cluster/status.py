"""What the cluster server shows to other threads."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable

from rabble._core.connection import Connection
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.bans import BanInForce
from rabble.messages import BanStatus, ClusterStatus, PeerStatus

__all__ = ["StatusBoard"]

DAY_S = 86_400


class StatusBoard:
    """The latest view of the mesh: written by the cluster server's thread, read by any.

    :param own: this node.
    :param wall_clock: seconds since 1970.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        own: NodeId,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._clock = clock
        self._wall_clock = wall_clock
        #: When this node's certificate ends, in seconds since 1970; `None` without TLS.
        self.certificate_ends_at: float | None = None
        #: What tells the keys apart; the first is of that which this node proves itself with.
        self.key_ids: tuple[str, ...] = ()
        self._refusals: collections.Counter[str] = collections.Counter()
        self._published: tuple[
            tuple[NodeId, ...], tuple[PeerConnection, ...], tuple[BanInForce, ...]
        ] = (() if is_guest(own) else (own,), (), ())
        #: Whether there is something to be published, and then connections for the executor.
        self.has_changed = False
        self._came_up: list[Connection] = []

    @property
    def is_unpublished(self) -> bool:
        """Whether `publish_changes` has something to do."""
        return self.has_changed or bool(self._came_up)

    def came_up(self, connection: Connection) -> None:
        """Have the executor told of a connection once it is published."""
        self.has_changed = True
        self._came_up.append(connection)

    def publish_changes(
        self,
        members: Callable[[], Iterable[NodeId]],
        connections: Callable[[], Iterable[PeerConnection]],
        bans: Callable[[], Iterable[BanInForce]],
        connection_up: Callable[[Connection], None],
    ) -> None:
        """Show other threads what has changed since the last call, if anything has.

        :param connection_up: tells the executor of a connection: a subscriber that is told NodeUp
            finds it in `ClusterStatus`.
        """
        if self.has_changed:
            # If that fails it is published at the next call.
            self.publish(members(), connections(), bans())
            self.has_changed = False
        while self._came_up:
            connection_up(self._came_up[0])
            self._came_up.pop(0)

    def publish(
        self,
        members: Iterable[NodeId],
        connections: Iterable[PeerConnection],
        bans: Iterable[BanInForce] = (),
    ) -> None:
        """Show these from now on."""
        self._published = (tuple(members), tuple(connections), tuple(bans))

    def count_refusal(self, reason: str) -> None:
        """A handshake failed, or a connection ended, for that reason."""
        self._refusals[reason] += 1

    def certificate_days_left(self) -> float | None:
        """Days until this node's certificate ends; `None` without TLS."""
        ends_at = self.certificate_ends_at
        return None if ends_at is None else (ends_at - self._wall_clock()) / DAY_S

    def gauges(self) -> dict[str, float]:
        """What of this is for `Metrics.gauges`. Never blocks."""
        gauges: dict[str, float] = {}
        if self.key_ids:
            gauges["keys"] = len(self.key_ids)
        days = self.certificate_days_left()
        if days is not None:
            gauges["certificate_days_left"] = days
        return gauges

    def status(self, incarnation: int, removed: bool) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks.

        :param incarnation: of this node.
        :param removed: this node was removed from the cluster.
        """
        members, connections, bans = self._published
        now = self._clock()
        return ClusterStatus(
            node=self._own,
            incarnation=incarnation,
            members=members,
            removed=removed,
            connections=tuple(peer_status(each) for each in connections if each.connection.open),
            refusals=dict(self._refusals),
            certificate_days_left=self.certificate_days_left(),
            key_ids=self.key_ids,
            bans=tuple(ban_status(ban, now) for ban in bans if ban.until > now),
        )


def ban_status(ban: BanInForce, now: float) -> BanStatus:
    """How a ban stands."""
    subject = ban.subject
    return BanStatus(
        node=subject if isinstance(subject, str) else None,
        key=subject.hex() if isinstance(subject, bytes) else None,
        by=ban.by,
        seconds_left=ban.until - now,
    )


def peer_status(peer: PeerConnection) -> PeerStatus:
    """How an established connection stands."""
    counters = peer.connection.status()
    return PeerStatus(
        node=peer.node,
        incarnation=peer.incarnation,
        stalled=peer.stalled,
        bytes_received=counters["bytes_received"],
        bytes_sent=counters["bytes_sent"],
        queued_bytes=counters["queued_bytes"],
        round_trip_us=counters["round_trip_ns"] / 1000,
        authenticated=peer.connection.authenticated,
        keys=tuple(key.hex() for key in peer.keys),
    )
