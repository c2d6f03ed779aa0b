"""The peers that `ConnectionManager` may dial: members by name, and seeds by address."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rabble._core.ids import NodeId
from rabble.cluster.decide.actions import ConnectionStatus
from rabble.cluster.decide.refusal import Refusal, RefusalCode

__all__ = ["DialTarget", "Member", "PendingDial"]


@dataclasses.dataclass(slots=True, eq=False)
class DialTarget:
    """Something to dial: a member of the cluster, or a seed whose name nobody knows yet.

    :param addr: where.
    :param is_desired: somebody wants a connection to it.
    :param join: the HELLO of the dial has the flag JOIN: somebody asked this node to join.
    :param barred: it is not to be dialled, though desired: it is this node, or removed this node.
    :param attempts: failures since the last connection that lasted.
    :param due: when to dial it, in monotonic seconds; `None` while there is no reason to.
    :param pending_dial: the dial that is on its way.
    :param refusal: why the last dial failed; `None` if the network, or nothing, was why.
    """

    addr: str
    is_desired: bool = False
    join: bool = False
    barred: bool = False
    attempts: int = 0
    due: float | None = None
    pending_dial: PendingDial | None = None
    refusal: RefusalCode | None = None

    @property
    def up(self) -> bool:
        """Whether there is a connection. Never of a seed: by then it has a name."""
        return False

    @property
    def whom(self) -> NodeId | None:
        """Who is expected at the address."""
        return None

    def status(self, now: float) -> ConnectionStatus:
        """How it stands, for people."""
        wait = None if self.due is None else max(self.due - now, 0.0)
        state: Literal["up", "dialling", "waiting", "unwanted"] = "unwanted"
        if self.up:
            state = "up"
        elif self.pending_dial is not None:
            state = "dialling"
        elif wait is not None:
            state = "waiting"
        return ConnectionStatus(state, self.attempts, wait, self.refusal)


@dataclasses.dataclass(slots=True, eq=False)
class PendingDial:
    """A dial on its way.

    :param authenticating: who answered, and its incarnation, once it may have this node's PROOF.
        Until then nobody can take this dial for a connection, and it can be dropped.
    """

    connection_id: int
    target: DialTarget
    addr: str
    join: bool
    authenticating: tuple[NodeId, int] | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Member(DialTarget):
    """What is known of the bearer of a name.

    :param node: whom to dial.
    :param peer: who was connected last, with the highest incarnation that was ever connected.
    :param connection_id: the present connection.
    """

    node: NodeId = dataclasses.field(kw_only=True)
    peer: NodeId | None = None
    incarnation: int = -1
    connection_id: int | None = None
    up_since: float = 0.0

    @property
    def up(self) -> bool:
        return self.connection_id is not None

    @property
    def whom(self) -> NodeId | None:
        return self.node

    def verdict(self, newcomer: NodeId, incarnation: int, silent: bool) -> Refusal | None:
        """A newcomer of this name against who is known: why it may not be connected.

        :param silent: the present connection has been silent for too long to be trusted.
        """
        if self.peer is None:
            return None
        same = incarnation == self.incarnation
        if newcomer.addr != self.peer.addr and (self.up or same):
            # Even with a later start: as long as the bearer of the name lives, it keeps it.
            text = f"{newcomer.name} is at {self.peer.addr}"
            return Refusal(RefusalCode.NAME_CONFLICT, text)
        if incarnation < self.incarnation:
            text = "a later start of you is known"
            return Refusal(RefusalCode.STALE_INCARNATION, text, self.incarnation)
        if self.up and same and not silent:
            return Refusal(RefusalCode.DUPLICATE, "there is a connection already")
        return None
