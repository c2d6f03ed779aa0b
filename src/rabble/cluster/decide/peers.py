"""The peers that `ConnectionManager` may dial: members by name, and seeds by address."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, MutableMapping
from typing import Literal

from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.addresses import Address, is_numeric
from rabble.cluster.decide.actions import ConnectionStatus
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.decide.token_bucket import TokenBucket

__all__ = ["DialTarget", "Member", "PendingDial", "refusal_of_stranger"]


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
    :param resolved: what `addr` stands for; `None` if each dial is to look it up.
    :param answered: somebody has proven to be at `addr`.
    :param held_back_until: until then at most the dial leaves the other side time to dial first.
    :param ban_s: for how many seconds a ban went on when it was the reason.
    """

    addr: str
    is_desired: bool = False
    join: bool = False
    barred: bool = False
    attempts: int = 0
    due: float | None = None
    pending_dial: PendingDial | None = None
    refusal: RefusalCode | None = None
    resolved: Address | None = None
    answered: bool = False
    held_back_until: float = 0.0
    ban_s: float = 0.0

    @property
    def up(self) -> bool:
        """Whether there is a connection. Never of a seed: by then it has a name."""
        return False

    @property
    def whom(self) -> NodeId | None:
        """Who is expected at the address."""
        return None

    @property
    def next_addr(self) -> str:
        """Where it is dialled next."""
        return self.addr

    @property
    def is_hearsay(self) -> bool:
        """Whether only others say that it is where it is dialled next."""
        return False

    @property
    def is_looked_up(self) -> bool:
        """Whether a dial has to have its host looked up, which may take any time."""
        return self.resolved is None and not is_numeric(self.next_addr)

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

    :param bucket: of which it has a token; see `DialRates`.
    :param begun_at: when, in monotonic seconds.
    :param is_looked_up: as of the target.
    :param authenticating: who answered, and its incarnation, once it may have this node's PROOF.
        Until then nobody can take this dial for a connection, and it can be dropped.
    :param answered_at: when that was.
    """

    connection_id: int
    target: DialTarget
    addr: str
    join: bool
    begun_at: float
    bucket: TokenBucket | None = None
    is_looked_up: bool = False
    authenticating: tuple[NodeId, int] | None = None
    answered_at: float | None = None

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether its host is looked up, and whether it is hearsay."""
        return self.is_looked_up, self.bucket is not None


@dataclasses.dataclass(slots=True, eq=False)
class Member(DialTarget):
    """What is known of the bearer of a name.

    :param node: whom to dial.
    :param peer: who was connected last, with the highest incarnation that was ever connected.
    :param connection_id: the present connection.
    :param holes: how many connections in turn fell silent though packets of the peer came.
    :param held_until: until then there is to be no connection, as it would be of no use.
    """

    node: NodeId = dataclasses.field(kw_only=True)
    peer: NodeId | None = None
    incarnation: int = -1
    connection_id: int | None = None
    up_since: float = 0.0
    holes: int = 0
    held_until: float = 0.0

    @property
    def up(self) -> bool:
        return self.connection_id is not None

    @property
    def is_guest(self) -> bool:
        """Whether who is connected, or was last, is a guest: it is forgotten when it goes."""
        return self.peer is not None and is_guest(self.peer)

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants it, and it is neither connected nor dialled."""
        return not self.is_desired and not self.up and self.pending_dial is None

    @property
    def whom(self) -> NodeId | None:
        return self.node

    @property
    def next_addr(self) -> str:
        """Where others say that it is; and where it was, in turn, as what they say may be wrong."""
        return self.peer.addr if self.peer is not None and self.attempts % 2 else self.addr

    @property
    def is_hearsay(self) -> bool:
        return not (self.join or self.answered or self.next_addr != self.addr)

    @staticmethod
    def forget_idle(members: MutableMapping[str, Member], most: int) -> None:
        """Of the names that nobody wants, those that were connected last are kept.

        :param members: in the order in which they were connected.
        :param most: of the names that nobody wants.
        """
        if len(members) <= most:
            return
        idle = [name for name, member in members.items() if member.is_idle]
        for name in idle[: max(len(idle) - most, 0)]:
            del members[name]

    def verdict(self, newcomer: NodeId, incarnation: int, silent: bool) -> Refusal | None:
        """A newcomer of this name against who is known: why it may not be connected.

        :param silent: the present connection has been silent for too long to be trusted.
        """
        if is_guest(newcomer) and self.is_desired:
            return Refusal(RefusalCode.NAME_CONFLICT, "a member has your name, so no guest can")
        if self.peer is None or (self.is_guest and not is_guest(newcomer)):
            # A member takes its name from a guest.
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


def refusal_of_stranger(
    peer: NodeId, up: Iterable[Member], members_max: int, guests_max: int
) -> Refusal | None:
    """Why there is no room for a connection of somebody who is not expected.

    Members are bounded by themselves: strangers that say nothing, or are guests, keep none of them
    out.

    :param up: those that are connected.
    """
    kinds = [each.is_guest for each in up]
    guests = sum(kinds)
    if is_guest(peer):
        text = f"there are {guests} guests already; Limits.guests_max is {guests_max}"
        return Refusal(RefusalCode.LIMIT, text) if guests >= guests_max else None
    text = "there are as many connections as there may be members"
    return Refusal(RefusalCode.LIMIT, text) if len(kinds) - guests >= members_max else None
