"""Whom this node takes a connection of."""

from __future__ import annotations

from collections.abc import Callable

from rabble.cluster.connections import Connections
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake_actions import Peer
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.decide.standing import refusal_by_standing
from rabble.cluster.own_life import OwnLife
from rabble.cluster.shut_out import ShutOut

__all__ = ["Admission"]


class Admission:
    """Decides on peers by all that is known of them. For the cluster server's thread."""

    def __init__(
        self,
        life: OwnLife,
        membership: Membership,
        connection_manager: ConnectionManager,
        connections: Connections,
        shut_out: ShutOut,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._life = life
        self._membership = membership
        self._connection_manager = connection_manager
        self._connections = connections
        self._shut_out = shut_out
        self._clock = clock
        #: No new peer is let in: the node is about to end.
        self.is_draining = False

    def refusal_of_answer(self, connection_id: int, peer: Peer) -> Refusal | None:
        """Why not to send a PROOF, now that it is known who answers a dial. That has ended then,
        unless the peer is banned.
        """
        now = self._clock()
        return self._shut_out.refusal(peer, now) or self._connection_manager.authenticating(
            connection_id, peer.node, peer.incarnation, now
        )

    def refusal(self, peer: Peer) -> Refusal | None:
        """Why not to accept a peer that dialled and has authenticated itself."""
        now = self._clock()
        if self.is_draining:
            return Refusal(RefusalCode.SHUTDOWN)
        if self._life.is_removed:
            # The name is last, as it may be long, and the text is cut.
            text = (
                f"the node that answers was removed from its cluster and lets nobody in: "
                f"call join() there, or start it anew; it is {self._membership.own.name}"
            )
            return Refusal(RefusalCode.NOT_JOINED, text)
        connection_id = self._connection_manager.connection_of(peer.node.name)
        silent_s = None if connection_id is None else self._connections.silent_s(connection_id)
        return (
            self._shut_out.refusal(peer, now)
            or refusal_by_standing(self._membership, peer)
            or self._connection_manager.authorize(peer.node, peer.incarnation, now, silent_s)
        )
