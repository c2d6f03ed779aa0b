"""What a state of the membership consists of, and how one from the wire is checked.

See MEMBERSHIP in docs/internals/wire-protocol.md. A state has three arrays of rows. Here a row is a
tuple, so what two states have in common is found by sets, and only the rest is looked at.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Set
from typing import Any, NamedTuple

from rabble._core.ids import NodeId
from rabble.limits import Limits

__all__ = [
    "COUNTER_MAX",
    "INCARNATION_MAX",
    "Dot",
    "Join",
    "MembershipError",
    "News",
    "Replica",
    "Rows",
    "Seen",
    "Start",
    "checked_int",
    "read_state",
]

INCARNATION_MAX = 2**64 - 1
#: Counters and logical times.
COUNTER_MAX = 2**63 - 1

Replica = tuple[str, int]  # name, incarnation
Dot = tuple[str, int, int]  # name, incarnation, counter


class MembershipError(ValueError):
    """A state that cannot be one, a bound that is reached, or a change that makes no sense.

    Says what is wrong; nothing was changed.
    """


class Start(NamedTuple):
    """The last start that was seen of a name: a row of `s`."""

    name: str
    incarnation: int
    #: How often the node has said so; it says it again if others have a wrong address of it.
    counter: int
    #: The logical time at which the name was last removed, 0 if it never was.
    ended: int
    #: Where the node is; `None` if the start is no longer in force.
    addr: str | None


class Seen(NamedTuple):
    """What is known of one replica's joins: a row of `v`."""

    name: str
    incarnation: int
    #: How many of them were seen.
    counter: int
    #: The logical time at which one was last dropped, 0 if none was.
    ended: int


class Join(NamedTuple):
    """A join in force: a row of `m`."""

    name: str
    incarnation: int
    counter: int
    member: str
    addr: str

    @property
    def dot(self) -> Dot:
        return self[:3]


class Rows(NamedTuple):
    """All rows of a state."""

    starts: Set[Start]
    seen: Set[Seen]
    joins: Set[Join]


@dataclasses.dataclass(frozen=True, slots=True)
class News:
    """A checked state: all its rows, and of those the ones that differ from the known ones."""

    all: Rows
    starts: list[Start]
    seen: dict[Replica, Seen]
    joins: dict[Dot, Join]


def read_state(state: object, known: Rows, limits: Limits) -> News:
    """Check a state: its shape, order and bounds, each field, and that it can be one.

    :param known: rows that were checked before.
    :raises MembershipError: says what is wrong.
    """
    if type(state) is not dict or state.keys() != {"s", "v", "m"}:
        raise MembershipError("a state is a map with the keys 's', 'v' and 'm', and no others")
    members_max = limits.membership_members_max
    joins_max = members_max * limits.membership_dots_per_member_max
    retired_max = limits.membership_retired_max
    starts = rows_of(state, "s", BY_NAME, members_max + retired_max)
    seen = rows_of(state, "v", BY_REPLICA, joins_max + retired_max)
    joins = rows_of(state, "m", BY_DOT, joins_max)
    news = News(
        Rows(starts, seen, joins),
        [checked_start(row) for row in starts - known.starts],
        {row[:2]: checked_seen(row) for row in seen - known.seen},
        {row[:3]: checked_join(row) for row in joins - known.joins},
    )
    if len(starts) + len(joins) > members_max:
        names = {start.name for start in map(Start._make, starts) if start.addr is not None}
        names.update(join.member for join in map(Join._make, joins))
        if len(names) > members_max:
            raise MembershipError(
                f"the state has {len(names)} members; "
                f"Limits.membership_members_max is {members_max} here"
            )
    if joins:
        counters = {row[:2]: row[2] for row in seen}
        for join in map(Join._make, joins):
            if join.counter > counters.get(join[:2], 0):
                raise MembershipError(f"a join by {shown(join.name)} is in force and was not seen")
    return news


BY_NAME = operator.itemgetter(0)
BY_REPLICA = operator.itemgetter(0, 1)
BY_DOT = operator.itemgetter(0, 1, 2)


def rows_of(
    state: dict[str, Any], key: str, by: Callable[[Any], object], rows_max: int
) -> Set[Any]:
    """The rows of one array, of which no two have the same key, and which are in order."""
    rows = state[key]
    if type(rows) is not list:
        raise MembershipError(f"{key!r} must be an array, not {shown(rows)}")
    if len(rows) > rows_max:
        raise MembershipError(f"{key!r} has {len(rows)} entries; at most {rows_max} are allowed")
    if set(map(type, rows)) - {list}:
        raise MembershipError(f"{key!r} has an entry that is no array")
    try:
        tuples = set(map(tuple, rows))
        in_order = sorted(rows) == rows and len(set(map(by, rows))) == len(rows)
    except (IndexError, TypeError):
        # Too short an entry; or an element that has no order or hash, so it is of a wrong type.
        raise MembershipError(f"{key!r} has an entry of other elements than it should") from None
    if not in_order:
        raise MembershipError(f"{key!r} is not in order, or has an entry twice")
    return tuples


def checked_start(row: tuple[Any, ...]) -> Start:
    checked_width(row, Start)
    start = Start._make(row)
    what = f"the start of {shown(start.name)}"
    checked_int(start.incarnation, 1, INCARNATION_MAX, f"{what}: its incarnation")
    checked_int(start.counter, 1, COUNTER_MAX, f"{what}: its counter")
    checked_int(start.ended, 0, COUNTER_MAX, f"{what}: its end")
    checked_node(start.name, start.addr if start.addr is not None else ANY_ADDR)
    return start


def checked_seen(row: tuple[Any, ...]) -> Seen:
    checked_width(row, Seen)
    seen = Seen._make(row)
    what = f"what was seen of {shown(seen.name)}"
    checked_int(seen.incarnation, 1, INCARNATION_MAX, f"{what}: the incarnation")
    checked_int(seen.counter, 1, COUNTER_MAX, f"{what}: the counter")
    checked_int(seen.ended, 0, COUNTER_MAX, f"{what}: the end")
    checked_node(seen.name, ANY_ADDR)
    return seen


def checked_join(row: tuple[Any, ...]) -> Join:
    checked_width(row, Join)
    join = Join._make(row)
    what = f"a join by {shown(join.name)}"
    checked_int(join.incarnation, 1, INCARNATION_MAX, f"{what}: the incarnation")
    checked_int(join.counter, 1, COUNTER_MAX, f"{what}: the counter")
    checked_node(join.name, ANY_ADDR)
    checked_node(join.member, join.addr)
    if join.member == join.name:
        raise MembershipError(f"{what} is of itself")
    return join


def checked_width(row: tuple[Any, ...], kind: type[Start] | type[Seen] | type[Join]) -> None:
    if len(row) != len(kind._fields):
        raise MembershipError(f"an entry has {len(kind._fields)} elements; this is {shown(row)}")


def checked_int(value: object, lowest: int, highest: int, what: str) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise MembershipError(f"{what} must be {lowest} to {highest}, not {shown(value)}")
    return value


#: For checking a name alone.
ANY_ADDR = "localhost:0"


def checked_node(name: object, addr: object) -> None:
    try:
        NodeId(name, addr)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise MembershipError(str(error)) from None


def shown(value: object) -> str:
    """A value of somebody else's in a message of ours: ASCII, and short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
