"""The members of a mesh, as a set that nodes change and merge in any order.

Two facts make a node a member. Its own *start*: a node that starts is a member, by its own word,
until it is removed. And a *join*: another node was told to join it, whether it is up or not. Each
such fact is a *dot*, made once by one replica, where a replica is a name and an incarnation, so
that a node which starts again never makes a dot of an earlier start. Removing a member drops the
dots of it that the remover has seen. One that it has not seen stays: adding wins against a
concurrent removal.

Joins are the optimized observed-remove set of Bieniusa, Zawirski, Preguiça, Shapiro, Baquero,
Balegas and Duarte ("An optimized conflict-free replicated set", 2012): for each replica how many
of its joins were *seen*, and the joins in force. A join that is seen and not in force was dropped,
so dropping leaves nothing behind. Of a name's own starts only the last matters, since it ends the
earlier ones wherever it is known. They are ordered by incarnation and counter, so there one entry
a name does the same: the last start seen, and whether it is in force.

**What is forgotten.** An entry of a name that is no member, or of a replica without joins in force,
has *ended*, and says only what was dropped. Such entries carry the logical time (Lamport, "Time,
clocks and the ordering of events", 1978) of the drop, and of either kind only the `retired_max`
latest are kept. This is what can go wrong: who heard nothing while `retired_max` other names left
(or other replicas' joins were dropped) after some name did, may bring that name back, as if it had
been joined anew, and `standing` calls its old incarnation unknown. Never is a member lost by this,
and the nodes agree all the same. Likewise of more than `dots_per_member_max` concurrent joins of
one name the lower ones are dropped: a removal that has not seen these wins against them.
Below these bounds merging is commutative, associative and idempotent, byte for byte.

These three bounds belong to the protocol: nodes of one mesh should have the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.decide.membership_state import (
    COUNTER_MAX,
    INCARNATION_MAX,
    Dot,
    Join,
    MembershipError,
    News,
    Replica,
    Rows,
    Start,
    State,
    Version,
    checked_int,
    read_state,
)
from rabble.limits import Limits
from rabble.registry import MessageRegistry

__all__ = ["Changes", "Membership", "MembershipError"]

#: Of a state to be encoded. Its size is bounded by the limits of membership.
ELEMENTS_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What a merge did. A member whose address changed is in both `added` and `removed`."""

    #: In the order of their names.
    added: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]
    #: Whether the state is another one, which the peers have to get.
    state_changed: bool


UNCHANGED = Changes((), (), False)


class Membership:
    """The members of a mesh as one node knows them; it is a member itself from the beginning.

    :param own: this node.
    :param incarnation: of this start of it, 1 to 2**64 - 1; higher than that of any earlier one.
    :param limits: the `membership_*` bounds are used.
    :raises MembershipError: if the incarnation is out of range.

    Neither thread-safe nor locked: one thread owns it. It never blocks and knows no clock. `add`,
    `remove`, `rejoin` and a merge that changes it take time that grows with the members, all else
    is O(1) until the next change.
    """

    def __init__(self, own: NodeId, incarnation: int, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self.own = own
        self.incarnation = checked_int(incarnation, 1, INCARNATION_MAX, "an incarnation")
        self._members_max = limits.membership_members_max
        self._retired_max = limits.membership_retired_max
        self._dots_per_member_max = limits.membership_dots_per_member_max
        self._codec = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
        self._starts: dict[str, Start] = {}
        self._versions: dict[Replica, Version] = {}
        self._joins: dict[Dot, Join] = {}
        # Made from the above: joins by whom they are of, and who is a member thereby.
        self._joins_of: dict[str, set[Dot]] = {}
        self._members: dict[str, NodeId] = {}
        # How many starts and joins this replica has announced. Its entries may be forgotten like
        # those of others, yet no dot may be made twice.
        self._starts_announced = 0
        self._joins_announced = 0
        # The highest logical time that was seen.
        self._time = 0
        # All of it as a value, kept until the next change.
        self._known: State | None = None
        self._announce_start()

    # What it knows.

    def members(self) -> dict[str, NodeId]:
        """All members by name, in the order of their names; this node too unless it was removed.

        A name with several addresses has the one that its own last start announced, or else the one
        of the highest join (by name, incarnation and counter of who made it).
        """
        return dict(sorted(self._members.items()))

    def __contains__(self, name: object) -> bool:
        """Whether a name is a member's."""
        return name in self._members

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    def standing(self, name: str, incarnation: int) -> str:
        """What a node that calls itself so is here.

        :returns: `"member"` if the name is a member's, whatever the incarnation (for an earlier one
            see `incarnation_of`). `"removed"` if it is not, but this incarnation or a higher one
            was seen. `"unknown"` otherwise: a node never heard of, or a later start of one that
            was removed, for which `incarnation_of` is not 0.
        """
        if name in self._members:
            return "member"
        start = self._starts.get(name)
        return "removed" if start is not None and incarnation <= start.incarnation else "unknown"

    def incarnation_of(self, name: str) -> int:
        """The highest incarnation that was seen of a name; 0 if none was, or it is forgotten."""
        start = self._starts.get(name)
        return start.incarnation if start is not None else 0

    @property
    def is_removed(self) -> bool:
        """Whether this node is no member, as far as it knows."""
        return self.own.name not in self._members

    @property
    def is_superseded(self) -> bool:
        """Whether a later start of this node's name was seen: only `rejoin` makes it count again.

        Another node has its name, or its clock went back before it started.
        """
        return self.incarnation_of(self.own.name) > self.incarnation

    # What is sent of it.

    def state(self) -> dict[str, Any]:
        """The state to be sent to peers, see MEMBERSHIP in docs/internals/wire-protocol.md.

        It is the same object until the next change: do not alter it.
        """
        return self.known().plain()

    def encoded(self) -> bytes:
        """The state as msgpack. Equal states are equal bytes: keys and arrays have an order."""
        return self.known().encoded()

    def digest(self) -> bytes:
        """The SHA-256 of `encoded()`, 32 bytes."""
        return self.known().digest()

    def known(self) -> State:
        """The state as a value, which does not change with this membership."""
        if self._known is None:
            rows = Rows(
                frozenset(self._starts.values()),
                frozenset(self._versions.values()),
                frozenset(self._joins.values()),
            )
            self._known = State(rows, self._codec)
        return self._known

    # What changes it.

    def add(self, node: NodeId) -> bool:
        """Join a node, because somebody asked for it: it wins against a removal not seen yet.

        It takes the place of all that made the node a member so far, its address included. The
        state changes even if nothing else does.

        :returns: whether it was no member, or one of another address.
        :raises MembershipError: if as many members are there as may be; if `node` has this node's
            name and another address; or if this node was removed, for which there is `rejoin`.
        """
        if node.name == self.own.name:
            if node != self.own:
                raise MembershipError(f"{node} has the name of this node, which is {self.own}")
            if self.is_removed:
                raise MembershipError(f"{node} is this node, which was removed: it has to rejoin")
            return False
        before = self._members.get(node.name)
        self._check_room(node.name)
        replica = (self.own.name, self.incarnation)
        dropped = self._drop_dots(node.name)
        self._joins_announced += 1
        ended = self._versions[replica].ended if replica in self._versions else 0
        self._versions[replica] = Version(*replica, self._joins_announced, ended)
        join = Join(*replica, self._joins_announced, node.name, node.addr)
        self._joins[join.dot] = join
        self._joins_of[node.name] = {join.dot}
        self._settle((node.name,), (), dropped)
        return before != node

    def remove(self, name: str) -> bool:
        """Make a name no member, this node's own too.

        :returns: whether it was one.
        """
        if name not in self._members:
            return False
        dropped = self._drop_dots(name)
        if name in self._starts:
            self._starts[name] = self._starts[name]._replace(ended=self._tick())
        self._settle((name,), (name,), dropped)
        return True

    def rejoin(self, incarnation: int) -> None:
        """Be a member again, as a later start: after a removal, or if this start is superseded.

        :param incarnation: higher than this node's and than any that was seen of its name.
        :raises MembershipError: if it is not, or if as many members are there as may be.
        """
        lowest = max(self.incarnation, self.incarnation_of(self.own.name)) + 1
        checked_int(incarnation, lowest, INCARNATION_MAX, "the incarnation of a rejoin")
        self._check_room(self.own.name)
        self.incarnation = incarnation
        self._starts_announced = 0
        self._joins_announced = self._counter((self.own.name, incarnation))
        self._announce_start()

    def merge(self, state: object) -> Changes:
        """Take in what a peer knows.

        :param state: what the peer's `state()` returned, decoded; trusted in nothing. Or a `State`,
            which was checked before.
        :raises MembershipError: if it is no state, if it claims dots of this start which it never
            made, or if the members would be too many. Nothing of it was taken in then.

        If others have another address of this node than its own, it announces its start again. It
        never does so if it finds itself removed.
        """
        known = self.known()
        if not isinstance(state, State):
            if known.equals(state):
                return UNCHANGED
            state = read_state(state, known, self._limits)
        if state is known:
            return UNCHANGED
        news = state.news_for(known)
        self._check_own(news)
        return self._merge(state, news)

    # How it does that.

    def _check_own(self, news: News) -> None:
        """Refuse a state with starts or joins of this node that it never announced."""
        start = news.received_starts.get(self.own.name)
        version = news.received_versions.get((self.own.name, self.incarnation))
        if start is not None and start.incarnation != self.incarnation:
            start = None
        if (start is not None and start.counter > self._starts_announced) or (
            version is not None and version.counter > self._joins_announced
        ):
            raise MembershipError(
                f"the state has more said by {self.own} than it has said. Do two nodes have its "
                f"name and incarnation?"
            )

    def _merge(self, state: State, news: News) -> Changes:
        """Check the whole outcome first, so that a bound that is exceeded changes nothing."""
        _, _, lost, gained, touched, *_ = news
        if not (news.starts or news.versions or lost or gained):
            if news.is_all:
                self._known = state
            return UNCHANGED
        if len(self._members) + len(touched) > self._members_max:
            self._check_size(news)
        before = {name: self._members.get(name) for name in touched}
        before.setdefault(self.own.name, self._members.get(self.own.name))
        # If what is new is forgotten at once, nothing has changed.
        entries_max = self._retired_max - max(len(news.starts), len(news.versions))
        is_crowded = max(len(self._starts), len(self._versions)) > entries_max
        old = self._entries(copied=True) if is_crowded else None

        self._starts.update(news.starts)
        self._versions.update(news.versions)
        for join in lost:
            self._take_join(join.dot)
        self._joins.update(gained)
        for dot, join in gained.items():
            self._joins_of.setdefault(join.member, set()).add(dot)
        self._time = max(self._time, news.time)
        dropped = {join[:2] for join in lost}
        for join in gained.values():
            if len(self._joins_of[join.member]) > self._dots_per_member_max:
                dropped |= self._drop_surplus(join.member)
        left = {name for name, node in before.items() if node is not None}
        self._settle(touched, left, dropped)
        # Whatever is dropped or forgotten beyond what was received makes it less.
        is_less = tuple(map(len, self._entries())) != tuple(map(len, state.rows))
        if not self._correct_address() and news.is_all and not is_less:
            self._known = state
        if old is not None and self._entries() == old:
            return UNCHANGED
        return changes_between(before, self._members)

    def _entries(self, *, copied: bool = False) -> tuple[dict[Any, Any], ...]:
        """All that the state consists of."""
        parts = (self._starts, self._versions, self._joins)
        return tuple(part.copy() for part in parts) if copied else parts

    def _check_size(self, news: News) -> None:
        """Refuse a merge after which there would be too many members."""
        joins = {name: len(self._joins_of.get(name, ())) for name in news.touched}
        for join in news.lost:
            joins[join.member] -= 1
        for join in news.gained.values():
            joins[join.member] += 1
        size = len(self._members)
        for name, count in joins.items():
            start = news.starts.get(name, self._starts.get(name))
            is_member = count > 0 or (start is not None and start.addr is not None)
            size += is_member - (name in self._members)
        if size > self._members_max:
            raise MembershipError(
                f"after the merge there would be {size} members; "
                f"Limits.membership_members_max is {self._members_max}"
            )

    def _check_room(self, name: str) -> None:
        if name not in self._members and len(self._members) >= self._members_max:
            raise MembershipError(
                f"there are {len(self._members)} members already; "
                f"Limits.membership_members_max is {self._members_max}"
            )

    def _announce_start(self) -> None:
        """Become a member by an own word, which takes the place of what others announced."""
        name = self.own.name
        known = self._starts.get(name)
        dropped = self._drop_dots(name)
        self._starts_announced += 1
        ended = known.ended if known is not None else 0
        self._starts[name] = Start(
            name, self.incarnation, self._starts_announced, ended, self.own.addr
        )
        self._settle((name,), (), dropped)

    def _correct_address(self) -> bool:
        """Contradict a join that has this node at another address than it is at.

        :returns: whether that was needed.

        The last start of a name is believed before any join, so this is done once a wrong join. An
        earlier start has no say: its word would be worth nothing.
        """
        known = self._members.get(self.own.name)
        if known is None or known == self.own or self.is_superseded:
            return False
        self._announce_start()
        return True

    def _tick(self) -> int:
        """The next logical time. It stands still at its maximum, which only malice reaches."""
        self._time = min(self._time + 1, COUNTER_MAX)
        return self._time

    def _drop_dots(self, name: str) -> set[Replica]:
        """Drop all that makes a name a member; the replicas whose joins were among it."""
        start = self._starts.get(name)
        if start is not None:
            self._starts[name] = start._replace(addr=None)
        return self._drop_joins(list(self._joins_of.get(name, ())))

    def _drop_joins(self, dots: Collection[Dot]) -> set[Replica]:
        """Drop some joins for good; the replicas that made them."""
        if not dots:
            return set()
        now = self._tick()
        for dot in dots:
            self._take_join(dot)
            self._versions[dot[:2]] = self._versions[dot[:2]]._replace(ended=now)
        return {dot[:2] for dot in dots}

    def _drop_surplus(self, name: str) -> set[Replica]:
        """Keep a name's highest joins only, so that a thousand nodes may join one at a time."""
        return self._drop_joins(sorted(self._joins_of[name])[: -self._dots_per_member_max])

    def _take_join(self, dot: Dot) -> None:
        member = self._joins.pop(dot).member
        dots = self._joins_of[member]
        dots.remove(dot)
        if not dots:
            del self._joins_of[member]

    def _counter(self, replica: Replica) -> int:
        """How many joins of a replica were seen here."""
        version = self._versions.get(replica)
        return version.counter if version is not None else 0

    def _settle(
        self, touched: Iterable[str], left: Collection[str], dropped: Collection[Replica]
    ) -> None:
        """After a change: who is a member, and what need not be kept.

        :param touched: names whose starts or joins changed.
        :param left: those of them that may just have ceased to be members.
        :param dropped: replicas of which joins were just dropped.
        """
        for name in touched:
            node = self._winner(name)
            if node is None:
                self._members.pop(name, None)
            else:
                self._members[name] = node
        if len(self._starts) > self._retired_max:
            self._forget_starts(left)
        if len(self._versions) > self._retired_max:
            self._forget_versions(dropped)
        self._known = None

    def _winner(self, name: str) -> NodeId | None:
        """A name's member, which one of its dots says."""
        start = self._starts.get(name)
        if start is not None and start.addr is not None:
            return NodeId(name, start.addr)
        dots = self._joins_of.get(name)
        if not dots:
            return None
        join = self._joins[max(dots)]
        return NodeId(name, join.addr)

    def _forget_starts(self, left: Collection[str]) -> None:
        retired = [start for start in self._starts.values() if start.name not in self._members]
        if len(retired) <= self._retired_max:
            return
        # A removal that is news here may be old elsewhere, or comes from where few names left. It
        # has to be passed on before it is forgotten, so it counts as one of now.
        now = min(self._time + 1, COUNTER_MAX)
        for i, start in enumerate(retired):
            if start.name in left:
                retired[i] = self._starts[start.name] = start._replace(ended=now)
                self._time = now
        retired.sort(key=lambda start: (start.ended, start.name))
        for start in retired[: -self._retired_max]:
            del self._starts[start.name]

    def _forget_versions(self, dropped: Collection[Replica]) -> None:
        retired = self._versions.keys() - {dot[:2] for dot in self._joins}
        if len(retired) <= self._retired_max:
            return
        now = min(self._time + 1, COUNTER_MAX)
        for replica in retired.intersection(dropped):
            self._versions[replica] = self._versions[replica]._replace(ended=now)
            self._time = now
        ranked = sorted(retired, key=lambda replica: (self._versions[replica].ended, replica))
        for replica in ranked[: -self._retired_max]:
            del self._versions[replica]


def changes_between(before: dict[str, NodeId | None], members: dict[str, NodeId]) -> Changes:
    """What became of some names."""
    added, removed = [], []
    for name in sorted(name for name, old in before.items() if members.get(name) != old):
        old, new = before[name], members.get(name)
        if old is not None:
            removed.append(old)
        if new is not None:
            added.append(new)
    return Changes(tuple(added), tuple(removed), True)
