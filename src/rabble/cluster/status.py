"""What the cluster server shows to other threads."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from rabble._core.ids import NodeId
from rabble.cluster.connections import PeerConnection
from rabble.messages import ClusterStatus, PeerStatus

__all__ = ["StatusBoard"]


class StatusBoard:
    """The latest view of the mesh: written by the cluster server's thread, read by any.

    :param own: this node.
    """

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._refusals: collections.Counter[str] = collections.Counter()
        self._published: tuple[tuple[NodeId, ...], tuple[PeerConnection, ...]] = ((own,), ())

    def publish(self, members: Iterable[NodeId], connections: Iterable[PeerConnection]) -> None:
        """Show these from now on."""
        self._published = (tuple(members), tuple(connections))

    def count_refusal(self, reason: str) -> None:
        """A handshake failed, or a connection ended, for that reason."""
        self._refusals[reason] += 1

    def status(self, incarnation: int, removed: bool) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks.

        :param incarnation: of this node.
        :param removed: this node was removed from the cluster.
        """
        members, connections = self._published
        return ClusterStatus(
            node=self._own,
            incarnation=incarnation,
            members=members,
            removed=removed,
            connections=tuple(peer_status(each) for each in connections if each.connection.open),
            refusals=dict(self._refusals),
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
    )
