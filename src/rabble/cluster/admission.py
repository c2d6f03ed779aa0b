"""Whom this node takes a connection of, and what it brings to a handshake itself."""

from __future__ import annotations

from collections.abc import Callable

from rabble._core.ids import NodeId
from rabble.cluster.config import Mesh
from rabble.cluster.connections import Connections
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake_actions import Peer
from rabble.cluster.decide.handshake_config import HandshakeConfig
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.decide.standing import refusal_by_standing
from rabble.cluster.identity import Identity
from rabble.cluster.own_life import OwnLife
from rabble.cluster.shut_out import ShutOut
from rabble.limits import Limits

__all__ = ["Admission"]


class Admission:
    """Decides on peers by all that is known of them. For the cluster server's thread.

    :param identity: what this node proves itself with.
    :param highest_believed: of the incarnations of others, now; see `belief`.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        identity: Identity,
        life: OwnLife,
        membership: Membership,
        connection_manager: ConnectionManager,
        connections: Connections,
        shut_out: ShutOut,
        limits: Limits,
        *,
        clock: Callable[[], float],
        highest_believed: Callable[[], int],
    ) -> None:
        self._own = own
        self._mesh = mesh
        self._identity = identity
        self._life = life
        self._membership = membership
        self._connection_manager = connection_manager
        self._connections = connections
        self._shut_out = shut_out
        self._limits = limits
        self._clock = clock
        self._highest_believed = highest_believed
        #: No new peer is let in: the node is about to end.
        self.is_draining = False

    def handshake_config(self) -> HandshakeConfig:
        """What this node brings to a handshake that begins now."""
        identity = self._identity
        return HandshakeConfig(
            own=self._own,
            incarnation=self._life.incarnation,
            cluster=self._mesh.cluster,
            key=identity.key,
            other_keys=identity.other_keys,
            node_key=identity.node_key,
            secured=identity.key is None and identity.node_key is None,
            authenticate_loopback=self._mesh.authenticate_loopback,
            deadline_s=self._limits.handshake_ms / 1000,
            highest_believed=self._highest_believed(),
            message_bytes_max=self._limits.message_bytes_max,
        )

    def refusal_of_answer(self, connection_id: int, peer: Peer) -> Refusal | None:
        """Why not to send a PROOF, now that it is known who answers a dial; that has ended then."""
        now = self._clock()
        refusal = self._shut_out.refusal(peer, now)
        if refusal is None:
            refusal = self._connection_manager.authenticating(
                connection_id, peer.node, peer.incarnation, now
            )
        else:
            # It has proven nothing, so no action follows.
            self._connection_manager.dial_failed(
                connection_id, now, code=refusal.code, ban_s=refusal.ban_s
            )
        return refusal

    def refusal(self, peer: Peer) -> Refusal | None:
        """Why not to accept a peer that dialled and has authenticated itself."""
        now = self._clock()
        if self.is_draining:
            return Refusal(RefusalCode.SHUTDOWN)
        if self._life.is_removed:
            return Refusal(RefusalCode.STATE, "this node was removed from the cluster")
        connection_id = self._connection_manager.connection_of(peer.node.name)
        silent_s = None if connection_id is None else self._connections.silent_s(connection_id)
        return (
            self._shut_out.refusal(peer, now)
            or refusal_by_standing(self._membership, peer)
            or self._connection_manager.authorize(peer.node, peer.incarnation, now, silent_s)
        )
