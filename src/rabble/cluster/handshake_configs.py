"""What a node brings to its handshakes: the same to most of them."""

from __future__ import annotations

from collections.abc import Callable

from rabble._core.ids import NodeId
from rabble.cluster.config import Credentials, Mesh
from rabble.cluster.decide.handshake_config import HandshakeConfig
from rabble.limits import Limits

__all__ = ["HandshakeConfigs"]

#: For how many seconds the numbers that are believed of others, which move with the clock, are the
#: same.
CONFIG_S = 1.0


class HandshakeConfigs:
    """Makes them, and checks what is in them, only when something changes. For one thread.

    :param credentials: of this node at the time.
    :param incarnation: of this node at the time.
    :param highest_believed: of the numbers of others at the time; see `belief`.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        limits: Limits,
        clock: Callable[[], float],
        *,
        credentials: Callable[[], Credentials],
        incarnation: Callable[[], int],
        highest_believed: Callable[[], int],
    ) -> None:
        self._own, self._mesh, self._limits = own, mesh, limits
        self._clock, self._credentials = clock, credentials
        self._incarnation = incarnation
        self._highest_believed = highest_believed
        self._latest: HandshakeConfig | None = None
        #: Those with which it was made.
        self._latest_credentials: Credentials | None = None
        self._ends_at = 0.0

    def current(self) -> HandshakeConfig:
        """That of a handshake which begins now."""
        now = self._clock()
        credentials, incarnation = self._credentials(), self._incarnation()
        latest = self._latest
        if (
            latest is None
            or credentials is not self._latest_credentials
            or latest.incarnation != incarnation
            or now >= self._ends_at
        ):
            latest = self._latest = self._make(credentials, incarnation)
            self._latest_credentials, self._ends_at = credentials, now + CONFIG_S
        return latest

    def _make(self, credentials: Credentials, incarnation: int) -> HandshakeConfig:
        keys, node_key = credentials.keys, credentials.node_key
        return HandshakeConfig(
            own=self._own,
            incarnation=incarnation,
            cluster=self._mesh.cluster,
            key=keys[0] if keys else None,
            other_keys=keys[1:],
            node_key=node_key,
            secured=not keys and node_key is None,
            authenticate_loopback=self._mesh.authenticate_loopback,
            deadline_s=self._limits.handshake_ms / 1000,
            highest_believed=self._highest_believed(),
            message_bytes_max=self._limits.message_bytes_max,
            labels=frozenset(self._mesh.labels),
        )
