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
import hashlib
from collections.abc import Collection, Iterable
from typing import Any

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.membership_state import (
    COUNTER_MAX,
    INCARNATION_MAX,
    Dot,
    Join,
    MembershipError,
    News,
    Replica,
    Rows,
    Seen,
    Start,
    checked_int,
    read_state,
)
from rabble.limits import Limits
from rabble.messages import MessageRegistry

__all__ = ["Changes", "MemberStatus", "Membership", "MembershipError"]

#: Of a state to be encoded. Its size is bounded by the limits of membership.
ELEMENTS_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What a merge did. A member whose address changed is in both `added` and `removed`."""

    #: In the order of their names.
    added: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]
    #: Whether the state is another one, so that the peers have to be told.
    state_changed: bool


UNCHANGED = Changes((), (), False)


@dataclasses.dataclass(frozen=True, slots=True)
class MemberStatus:
    """A member, as `Membership.status` lists it."""

    name: str
    addr: str
    #: The highest incarnation that it was seen with, 0 if it has never been up.
    incarnation: int


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
        self._seen: dict[Replica, Seen] = {}
        self._joins: dict[Dot, Join] = {}
        # Made from the above: joins by whom they are of, and who is a member thereby.
        self._joins_of: dict[str, set[Dot]] = {}
        self._members: dict[str, NodeId] = {}
        # How many starts and joins this replica has said. Its entries may be forgotten like those
        # of others, yet no dot may be made twice.
        self._starts_said = 0
        self._joins_said = 0
        # The highest logical time that was seen.
        self._time = 0
        # Kept until the next change.
        self._rows: Rows | None = None
        self._state: dict[str, Any] | None = None
        self._encoded: bytes | None = None
        self._digest: bytes | None = None
        self._say_start()

    # What it knows.

    def members(self) -> dict[str, NodeId]:
        """All members by name, in the order of their names; this node too unless it was removed.

        A name with several addresses has the one that its own last start said, or else the one of
        the highest join (by name, incarnation and counter of who made it).
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

    def status(self) -> tuple[MemberStatus, ...]:
        """All members with their address and incarnation, in the order of their names."""
        return tuple(
            MemberStatus(name, node.addr, self.incarnation_of(name))
            for name, node in self.members().items()
        )

    # What others are told of it.

    def state(self) -> dict[str, Any]:
        """The state to be sent to peers, see MEMBERSHIP in docs/internals/wire-protocol.md.

        It is the same object until the next change: do not alter it.
        """
        if self._state is None:
            self._state = {
                "s": [list(row) for _, row in sorted(self._starts.items())],
                "v": [list(row) for _, row in sorted(self._seen.items())],
                "m": [list(row) for _, row in sorted(self._joins.items())],
            }
        return self._state

    def encoded(self) -> bytes:
        """The state as msgpack. Equal states are equal bytes: keys and arrays have an order."""
        if self._encoded is None:
            self._encoded = self._codec.encode_message(self.state())
        return self._encoded

    def digest(self) -> bytes:
        """The SHA-256 of `encoded()`, 32 bytes."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.encoded()).digest()
        return self._digest

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
        self._joins_said += 1
        ended = self._seen[replica].ended if replica in self._seen else 0
        self._seen[replica] = Seen(*replica, self._joins_said, ended)
        self._put_join(Join(*replica, self._joins_said, node.name, node.addr))
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
        self._starts_said = 0
        self._joins_said = self._counter((self.own.name, incarnation))
        self._say_start()

    def merge(self, state: object) -> Changes:
        """Take in what a peer knows.

        :param state: what the peer's `state()` returned, decoded; trusted in nothing.
        :raises MembershipError: if it is no state, if it claims dots of this start which it never
            made, or if the members would be too many. Nothing of it was taken in then.

        If others have another address of this node than its own, it says its start again. It never
        does so if it finds itself removed.
        """
        if self._state is not None and state == self._state:
            return UNCHANGED
        if self._rows is None:
            starts, seen = set(self._starts.values()), set(self._seen.values())
            self._rows = Rows(starts, seen, set(self._joins.values()))
        news = read_state(state, self._rows, self._limits)
        self._check_own(news)
        return self._merge(news)

    # How it does that.

    def _check_own(self, news: News) -> None:
        """Refuse what this start of the node is said to have said, but has not."""
        own = (self.own.name, self.incarnation)
        said = max((start.counter for start in news.starts if start[:2] == own), default=0)
        joins = news.seen[own].counter if own in news.seen else 0
        if said > self._starts_said or joins > self._joins_said:
            raise MembershipError(
                f"the state has more said by {self.own} than it has said. Do two nodes have its "
                f"name and incarnation?"
            )

    def _merge(self, news: News) -> Changes:
        """Compute the whole outcome first, so that a bound that is exceeded changes nothing."""
        new_starts = {}
        for start in news.starts:
            mine = self._starts.get(start.name)
            last = start if mine is None else last_start(mine, start)
            if last != mine:
                new_starts[start.name] = last
        new_seen = {}
        for replica, seen in news.seen.items():
            known = self._seen.get(replica, seen)
            most = Seen(*replica, max(seen.counter, known.counter), max(seen.ended, known.ended))
            if most != self._seen.get(replica):
                new_seen[replica] = most
        lost = [
            dot
            for dot, join in self._joins.items()
            if join not in news.all.joins
            and dot not in news.joins
            and dot[2] <= self._counter_of(news, dot[:2])
        ]
        gained = []
        for dot, join in news.joins.items():
            mine_of_it = self._joins.get(dot)
            if mine_of_it is None:
                if dot[2] > self._counter(dot[:2]):
                    gained.append(join)
            elif join > mine_of_it:
                # No correct node makes a dot twice. Even so all have to agree; and the lower of the
                # two is no news, or its speaker could have this state told again and again.
                lost.append(dot)
                gained.append(join)
        if not (new_starts or new_seen or lost or gained):
            return UNCHANGED

        touched = {*new_starts, *(self._joins[dot].member for dot in lost)}
        touched.update(join.member for join in gained)
        self._check_size(touched, new_starts, lost, gained)
        before = {name: self._members.get(name) for name in touched}
        before.setdefault(self.own.name, self._members.get(self.own.name))
        # If what is new is forgotten at once, nothing has changed.
        entries_max = self._retired_max - max(len(new_starts), len(new_seen))
        is_crowded = max(len(self._starts), len(self._seen)) > entries_max
        old = self._entries(copied=True) if is_crowded else None

        self._starts.update(new_starts)
        self._seen.update(new_seen)
        for dot in lost:
            self._take_join(dot)
        for join in gained:
            self._put_join(join)
        self._time = max(
            self._time,
            *(start.ended for start in new_starts.values()),
            *(seen.ended for seen in new_seen.values()),
            0,
        )
        dropped = {dot[:2] for dot in lost}
        for name in touched:
            dropped |= self._drop_surplus(name)
        left = {name for name, node in before.items() if node is not None}
        self._settle(touched, left, dropped)
        self._correct_address()
        if old is not None and self._entries() == old:
            return UNCHANGED
        return changes_between(before, self._members)

    def _entries(self, *, copied: bool = False) -> tuple[dict[Any, Any], ...]:
        """All that the state consists of."""
        parts = (self._starts, self._seen, self._joins)
        return tuple(part.copy() for part in parts) if copied else parts

    def _check_size(
        self,
        touched: Iterable[str],
        starts: dict[str, Start],
        lost: Iterable[Dot],
        gained: Iterable[Join],
    ) -> None:
        """Refuse a merge after which there would be too many members."""
        joins = {name: len(self._joins_of.get(name, ())) for name in touched}
        for dot in lost:
            joins[self._joins[dot].member] -= 1
        for join in gained:
            joins[join.member] += 1
        size = len(self._members)
        for name, count in joins.items():
            start = starts.get(name, self._starts.get(name))
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

    def _say_start(self) -> None:
        """Become a member by an own word, which takes the place of what others said."""
        name = self.own.name
        known = self._starts.get(name)
        dropped = self._drop_dots(name)
        self._starts_said += 1
        ended = known.ended if known is not None else 0
        self._starts[name] = Start(name, self.incarnation, self._starts_said, ended, self.own.addr)
        self._settle((name,), (), dropped)

    def _correct_address(self) -> None:
        """Contradict a join that has this node at another address than it is at.

        The last start of a name is believed before any join, so this is done once a wrong join. An
        earlier start has no say: its word would be worth nothing.
        """
        known = self._members.get(self.own.name)
        if known is not None and known != self.own and not self.is_superseded:
            self._say_start()

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
            self._seen[dot[:2]] = self._seen[dot[:2]]._replace(ended=now)
        return {dot[:2] for dot in dots}

    def _drop_surplus(self, name: str) -> set[Replica]:
        """Keep a name's highest joins only, so that a thousand nodes may join one at a time."""
        dots = self._joins_of.get(name, ())
        if len(dots) <= self._dots_per_member_max:
            return set()
        return self._drop_joins(sorted(dots)[: -self._dots_per_member_max])

    def _put_join(self, join: Join) -> None:
        self._joins[join.dot] = join
        self._joins_of.setdefault(join.member, set()).add(join.dot)

    def _take_join(self, dot: Dot) -> None:
        member = self._joins.pop(dot).member
        dots = self._joins_of[member]
        dots.remove(dot)
        if not dots:
            del self._joins_of[member]

    def _counter(self, replica: Replica) -> int:
        """How many joins of a replica were seen here."""
        seen = self._seen.get(replica)
        return seen.counter if seen is not None else 0

    def _counter_of(self, news: News, replica: Replica) -> int:
        """How many joins of a replica were seen where a state comes from."""
        seen = news.seen.get(replica) or self._seen.get(replica)
        return seen.counter if seen is not None and seen in news.all.seen else 0

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
        if len(self._seen) > self._retired_max:
            self._forget_seen(dropped)
        self._rows = self._state = self._encoded = self._digest = None

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

    def _forget_seen(self, dropped: Collection[Replica]) -> None:
        retired = self._seen.keys() - {dot[:2] for dot in self._joins}
        if len(retired) <= self._retired_max:
            return
        now = min(self._time + 1, COUNTER_MAX)
        for replica in retired.intersection(dropped):
            self._seen[replica] = self._seen[replica]._replace(ended=now)
            self._time = now
        ranked = sorted(retired, key=lambda replica: (self._seen[replica].ended, replica))
        for replica in ranked[: -self._retired_max]:
            del self._seen[replica]


def last_start(a: Start, b: Start) -> Start:
    """The later of two starts of a name; of equal ones the dropped one, as who has it knows more.

    Two addresses of one dot, which no correct node makes, are decided by their order.
    """
    ended = max(a.ended, b.ended)
    if a[1:3] == b[1:3]:
        addr = None if a.addr is None or b.addr is None else max(a.addr, b.addr)
        return a._replace(ended=ended, addr=addr)
    return max(a, b, key=lambda start: start[1:3])._replace(ended=ended)


def changes_between(before: dict[str, NodeId | None], members: dict[str, NodeId]) -> Changes:
    """What became of some names."""
    added, removed = [], []
    for name, old in sorted(before.items()):
        new = members.get(name)
        if new != old:
            if old is not None:
                removed.append(old)
            if new is not None:
                added.append(new)
    return Changes(tuple(added), tuple(removed), True)
