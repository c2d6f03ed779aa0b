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
latest are kept. This is what can go wrong: a node that heard nothing while `retired_max` other
names left (or other replicas' joins were dropped) after some name did, may bring that name back, as
if it had been joined anew, and `standing` calls its old incarnation unknown. Never is a member lost
by this, and the nodes agree all the same. Likewise of more than `dots_per_member_max` concurrent
joins of one name the lower ones are dropped: a removal that has not seen these wins against them.
Below these bounds merging is commutative, associative and idempotent, byte for byte.

These three bounds belong to the protocol: nodes of one mesh should have the same ones.

**What is claimed.** A member may say what it likes of others. Rows with numbers beyond belief (see
`belief`) are left out of what is taken in, and so are passed on to nobody. Of the rest a node has
the last word on itself: a dot of its own that it did not make it goes beyond, and a later start of
its name, whoever made that up, by `rejoin`. Its removal anybody may ask for; it comes back by a
join.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.cluster.decide.belief import BELIEVED_WITHOUT_CLOCK
from rabble.cluster.decide.membership_delta import (
    UNCHANGED,
    Changes,
    Part,
    changes_between,
)
from rabble.cluster.decide.membership_state import (
    COUNTER_MAX,
    FRAME_HEAD_BYTES,
    INCARNATION_MAX,
    ROW_BYTES_MAX,
    STATE_HEAD_BYTES,
    Dot,
    Join,
    MembershipError,
    MembershipLimit,
    News,
    Replica,
    Rows,
    Start,
    State,
    Version,
    believed,
    by_end,
    bytes_of,
    check_cells,
    checked_int,
    read_state,
)
from rabble.limits import Limits
from rabble.registry import MessageRegistry

__all__ = ["Changes", "Membership", "MembershipError", "MembershipLimit"]

#: Of a state to be encoded. Its size is bounded by the limits of membership.
ELEMENTS_MAX = 2**31 - 1


class Membership:
    """The members of a mesh as one node knows them; it is a member itself from the beginning,
    unless it is a guest, which is none and says nothing.

    :param own: this node.
    :param incarnation: of this start of it, 1 to 2**64 - 1; higher than that of any earlier one.
    :param limits: the `membership_*` bounds are used, and `frame_bytes_max`.
    :param highest_believed: of the numbers of others, now; see `belief`.
    :raises MembershipError: if the incarnation is out of range.

    Neither thread-safe nor locked: one thread owns it. It never blocks and knows no clock. `add`,
    `remove`, `rejoin` and a merge that changes it take time that grows with the members, all else
    is O(1) until the next change.
    """

    def __init__(
        self,
        own: NodeId,
        incarnation: int,
        limits: Limits | None = None,
        highest_believed: Callable[[], int] = lambda: BELIEVED_WITHOUT_CLOCK,
    ) -> None:
        self._limits = limits = limits or Limits()
        self._highest_believed = highest_believed
        self.own = own
        self.incarnation = checked_int(incarnation, 1, INCARNATION_MAX, "an incarnation")
        self._members_max = limits.membership_members_max
        self._retired_max = limits.membership_retired_max
        self._dots_per_member_max = limits.membership_dots_per_member_max
        self._bytes_max = limits.frame_bytes_max - FRAME_HEAD_BYTES
        self._codec = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
        self._starts: dict[str, Start] = {}
        self._versions: dict[Replica, Version] = {}
        self._joins: dict[Dot, Join] = {}
        # Made from the above: joins by whom they are of, and who is a member thereby.
        self._joins_of: dict[str, set[Dot]] = {}
        self._members: dict[str, NodeId] = {}
        # How many starts and joins this replica has announced, or others say that it has. Its
        # entries may be forgotten like those of others, yet no dot may be made twice.
        self._starts_announced = 0
        self._joins_announced = 0
        # The highest logical time that was seen.
        self._time = 0
        # All of it as a value, kept until the next change; and so are the members.
        self._known: State | None = None
        self._nodes: tuple[NodeId, ...] | None = None
        # What to go back to, and its numbers, as long as a change of it is broken off.
        self._before: tuple[State, tuple[int, int, int, int]] | None = None
        self._is_guest = is_guest(own)
        if not self._is_guest:
            self._announce_start()

    # What it knows.

    def members(self) -> dict[str, NodeId]:
        """All members by name, in the order of their names; this node too unless it was removed.

        A name with several addresses has the one that its own last start announced, or else the one
        of the highest join (by name, incarnation and counter of who made it).
        """
        self._repair()
        return dict(sorted(self._members.items()))

    def nodes(self) -> tuple[NodeId, ...]:
        """The same as a tuple, which is the same object until something changes."""
        if self._nodes is None:
            self._nodes = tuple(self.members().values())
        return self._nodes

    def __contains__(self, name: object) -> bool:
        """Whether a name is a member's."""
        return name in self._members

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    def standing(self, name: str, incarnation: int) -> str:
        """How a node stands here that calls itself so.

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
        """Whether this node is no member, as far as it knows, though it should be one."""
        return not self._is_guest and self.own.name not in self._members

    @property
    def is_superseded(self) -> bool:
        """Whether a later start of this node's name was seen: only `rejoin` makes it count again.

        Another node has its name, or its clock went back before it started.
        """
        return not self._is_guest and self.incarnation_of(self.own.name) > self.incarnation

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
        self._repair()
        if self._known is None:
            rows = Rows(
                frozenset(self._starts.values()),
                frozenset(self._versions.values()),
                frozenset(self._joins.values()),
            )
            self._known = State(rows, self._codec, self._starts.copy(), self._versions.copy())
        return self._known

    def delta(self, parts: Iterable[Part]) -> State:
        """These parts of the state, as a state to be merged; those that are forgotten are left out.

        See `membership_delta`.
        """
        starts, versions, joins = [], [], []
        for part in parts:
            if isinstance(part, str):
                if (start := self._starts.get(part)) is not None:
                    starts.append(start)
            elif (version := self._versions.get(part)) is not None:
                versions.append(version)
                # All of them, or one that is left out would count as dropped.
                joins += [join for join in self._joins.values() if join[:2] == part]
        return State(Rows(frozenset(starts), frozenset(versions), frozenset(joins)), self._codec)

    def own_parts(self) -> tuple[Part, Part]:
        """The parts that this start of the node makes itself."""
        return self.own.name, (self.own.name, self.incarnation)

    def row_of(self, part: Part) -> Start | Version | None:
        """The row that is another one after each change of a part; `None` if it is not known."""
        if isinstance(part, str):
            return self._starts.get(part)
        return self._versions.get(part)

    # What changes it.

    def add(self, node: NodeId) -> bool:
        """Join a node, because somebody asked for it: it wins against a removal not seen yet.

        It takes the place of all that made the node a member so far, its address included. The
        state changes even if nothing else does.

        :returns: whether it was no member, or one of another address.
        :raises MembershipError: if as many members are there as may be, or as a frame holds; if
            `node` has this node's name and another address; or if this node was removed, for which
            there is `rejoin`.
        """
        if node.name == self.own.name:
            if node != self.own:
                raise MembershipError(f"{node} has the name of this node, which is {self.own}")
            if self.is_removed:
                raise MembershipError(f"{node} is this node, which was removed: it has to rejoin")
            return False
        with self._all_or_nothing():
            before = self._members.get(node.name)
            self._check_room(node)
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
        with self._all_or_nothing():
            dropped = self._drop_dots(name)
            if name in self._starts:
                self._starts[name] = self._starts[name]._replace(ended=self._tick())
            self._settle((name,), (name,), dropped)
        return True

    def rejoin(self, incarnation: int) -> None:
        """Be a member again, as a later start: after a removal, or if this start is superseded.

        :param incarnation: higher than this node's and than any that was seen of its name.
        :raises MembershipError: if it is not, or if as many members are there as may be, or as a
            frame holds.
        """
        lowest = max(self.incarnation, self.incarnation_of(self.own.name)) + 1
        checked_int(incarnation, lowest, INCARNATION_MAX, "the incarnation of a rejoin")
        if self._is_guest:
            self.incarnation = incarnation
            return
        with self._all_or_nothing():
            self._check_room(self.own)
            self.incarnation = incarnation
            self._starts_announced = 0
            self._joins_announced = self._counter((self.own.name, incarnation))
            self._announce_start()

    def merge(self, state: object) -> Changes:
        """Take in what a peer knows.

        :param state: what the peer's `state()` returned, decoded; trusted in nothing. Or a `State`,
            which was checked before.
        :raises MembershipError: if it is no state; `MembershipLimit` if the members would be too
            many, or the state too long to be sent. Nothing of it was taken in then.

        If others have another address of this node than its own, a dot of it that it never made, or
        made it a member and know nothing of its start, it announces that again. It never does so if
        it finds a start of its own removed.
        """
        known = self.known()
        if not isinstance(state, State):
            cells = check_cells(state)
            if known.equals(cells):
                return UNCHANGED
            state = read_state(cells, known, self._limits)
        if state is known:
            return UNCHANGED
        claimed, news = state, state.news_for(known)
        state = believed(claimed, news, self._highest_believed())
        if state is claimed:
            return self._merge(known, state, news)
        changes = self._merge(known, state, state.news_for(known))
        counts = (sum(map(len, each.rows)) for each in (claimed, state))
        return dataclasses.replace(changes, disbelieved=operator.sub(*counts))

    # How it does that.

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Go back to what was before, if anything is raised inside of it."""
        known = self.known()
        numbers = self.incarnation, self._time, self._starts_announced, self._joins_announced
        before = known, numbers
        try:
            yield
        except BaseException:
            self._before = before
            self._repair()
            raise

    def _repair(self) -> None:
        """Go back to what was before a change that was broken off; if that fails, the next time."""
        if self._before is None:
            return
        known, numbers = self._before
        self._starts = {start.name: start for start in known.rows.starts}
        self._versions = {version[:2]: version for version in known.rows.versions}
        self._joins = {join.dot: join for join in known.rows.joins}
        self.incarnation, self._time, self._starts_announced, self._joins_announced = numbers
        self._joins_of = {}
        for dot, join in self._joins.items():
            self._joins_of.setdefault(join.member, set()).add(dot)
        winners = ((name, self._winner(name)) for name in {*self._starts, *self._joins_of})
        self._members = {name: NodeId(name, addr) for name, addr in winners if addr is not None}
        self._known, self._nodes = known, None
        self._before = None

    def _merge(self, known: State, state: State, news: News) -> Changes:
        """Take in the whole of it, or nothing if a bound would be exceeded thereby."""
        if not (news.starts or news.versions or news.lost or news.gained):
            if news.is_all:
                self._known = state
            return UNCHANGED
        lost, gained, touched = news.lost, news.gained, news.touched
        before = dict(zip(touched, map(self._members.get, touched), strict=True))
        before.setdefault(self.own.name, self._members.get(self.own.name))
        # If what is new is forgotten at once, nothing has changed.
        entries_max = self._retired_max - max(len(news.starts), len(news.versions))
        is_crowded = max(len(self._starts), len(self._versions)) > entries_max
        may_exceed = self._may_exceed(news)
        with self._all_or_nothing():
            self._starts.update(news.starts)
            self._versions.update(news.versions)
            for join in lost:
                self._take_join(join.dot)
            self._joins.update(gained)
            crowded: dict[str, None] = {}
            for dot, join in gained.items():
                dots = self._joins_of.setdefault(join.member, set())
                dots.add(dot)
                if len(dots) > self._dots_per_member_max:
                    crowded[join.member] = None
            self._time = max(self._time, news.time)
            dropped = {join[:2] for join in lost}
            for name in crowded:
                dropped |= self._drop_surplus(name)
            left = {name for name, node in before.items() if node is not None}
            self._settle(touched, left, dropped)
            # Whatever is dropped or forgotten beyond what was received makes it less.
            is_less = [*map(len, self._entries())] != [*map(len, state.rows)]
            if not self._correct_own() and news.is_all and not is_less:
                self._known = state
            if may_exceed:
                self._check_bounds(known)
            if (is_crowded or may_exceed) and self.known().rows == known.rows:
                self._known = known
                return UNCHANGED
            return changes_between(before, self._members)

    def _entries(self) -> tuple[dict[Any, Any], ...]:
        """All that the state consists of."""
        return self._starts, self._versions, self._joins

    def _may_exceed(self, news: News) -> bool:
        """Whether a merge could exceed a bound: so far that is cheap to say."""
        rows = sum(map(len, self._entries())) + len(news.starts) + len(news.versions)
        return (
            len(self._members) + len(news.touched) >= self._members_max
            or STATE_HEAD_BYTES + (rows + len(news.gained)) * ROW_BYTES_MAX > self._bytes_max
        )

    def _check_bounds(self, before: State) -> None:
        """Refuse a merge after which there is more than there may be."""
        if len(self._members) > self._members_max:
            raise MembershipLimit(
                f"after the merge there would be {len(self._members)} members; "
                f"Limits.membership_members_max is {self._members_max}"
            )
        size = bytes_of(*(part.values() for part in self._entries()))
        if size > self._bytes_max and size > bytes_of(*before.rows):
            raise MembershipLimit(
                f"after the merge the state of {len(self._members)} members would take "
                f"{size} bytes, which do not fit into a frame that may be sent; "
                f"Limits.frame_bytes_max is {self._bytes_max + FRAME_HEAD_BYTES}"
            )

    def _check_room(self, node: NodeId) -> None:
        """Refuse one more member, if there are so many, or such long ones."""
        if node.name not in self._members and len(self._members) >= self._members_max:
            raise MembershipLimit(
                f"there are {len(self._members)} members already; "
                f"Limits.membership_members_max is {self._members_max}"
            )
        entries = self._entries()
        if STATE_HEAD_BYTES + (sum(map(len, entries)) + 3) * ROW_BYTES_MAX <= self._bytes_max:
            return
        own = self.own.name
        size = bytes_of(*(part.values() for part in entries)) + bytes_of(
            [Start(node.name, 1, 1, 0, node.addr)],
            [Version(own, 1, 1, 0)],
            [Join(own, 1, 1, node.name, node.addr)],
        )
        if size > self._bytes_max:
            raise MembershipLimit(
                f"the state of {len(self._members)} members takes {size} bytes with one more, "
                f"which do not fit into a frame that may be sent; "
                f"Limits.frame_bytes_max is {self._bytes_max + FRAME_HEAD_BYTES}"
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

    def _correct_own(self) -> bool:
        """Go beyond dots of this start that it never made, and contradict what is wrong of it.

        :returns: whether the start was announced again.

        Wrong is another address, and that this node is a member by an earlier start of it or by a
        join alone, while its own start and the removal of that are forgotten. The last start of a
        name is believed before any join, so this is done once a wrong join. An earlier start has no
        say: its word would be worth nothing. Nor has a guest.
        """
        if self._is_guest:
            return False
        self._joins_announced = max(
            self._joins_announced, self._counter((self.own.name, self.incarnation))
        )
        start = self._starts.get(self.own.name)
        if (
            start is not None
            and start.incarnation == self.incarnation
            and start.counter > self._starts_announced
        ):
            # Its removal, too: nobody can have removed what was never there.
            self._starts_announced = start.counter
        else:
            known = self._members.get(self.own.name)
            if known is None or self.is_superseded:
                return False
            if known == self.own and start is not None and start.incarnation == self.incarnation:
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
        members = self._members
        for name in touched:
            addr = self._winner(name)
            if addr is None:
                members.pop(name, None)
            elif (node := members.get(name)) is None or node.addr != addr:
                members[name] = NodeId(name, addr)
        if len(self._starts) > self._retired_max:
            self._forget_starts(left)
        if len(self._versions) > self._retired_max:
            self._forget_versions(dropped)
        self._known = self._nodes = None

    def _winner(self, name: str) -> str | None:
        """A name's address as a member, which one of its dots says; `None` if it is none."""
        start = self._starts.get(name)
        if start is not None and start.addr is not None:
            return start.addr
        dots = self._joins_of.get(name)
        return self._joins[max(dots)].addr if dots else None

    def _forget_starts(self, left: Collection[str]) -> None:
        members_with_starts = sum(map(self._starts.__contains__, self._members))
        excess = len(self._starts) - members_with_starts - self._retired_max
        if excess <= 0:
            return
        retired = [self._starts[name] for name in self._starts.keys() - self._members.keys()]
        # A removal that is news here may be old elsewhere, or comes from where few names left. It
        # has to be passed on before it is forgotten, so it counts as one of now.
        now = min(self._time + 1, COUNTER_MAX)
        for i, start in enumerate(retired):
            if start.name in left:
                retired[i] = self._starts[start.name] = start._replace(ended=now)
                self._time = now
        for start in heapq.nsmallest(excess, retired, key=by_end):
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
