"""What a state of the membership consists of, and how one from the wire is checked.

See MEMBERSHIP in docs/internals/wire-protocol.md. A state has three arrays of rows. Here a row is a
tuple, so what two states have in common is found by sets, and only the rest is looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Collection, Iterable
from types import NoneType
from typing import Any, NamedTuple, TypeVar

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.decide.belief import INCARNATION_MAX
from rabble.limits import Limits

__all__ = [
    "COUNTER_MAX",
    "Dot",
    "FRAME_HEAD_BYTES",
    "INCARNATION_MAX",
    "Join",
    "MembershipError",
    "MembershipLimit",
    "Replica",
    "ROW_BYTES_MAX",
    "Rows",
    "STATE_HEAD_BYTES",
    "Start",
    "State",
    "Version",
    "believed",
    "by_end",
    "bytes_of",
    "check_cells",
    "checked_int",
    "checked_node",
    "read_state",
    "shown",
]

#: Counters and logical times.
COUNTER_MAX = 2**63 - 1
#: Bytes of the frame that carries a state besides its body: kind and flags.
FRAME_HEAD_BYTES = 2
#: Bytes of a state besides its rows: a map, three keys and three arrays, and the digest that goes
#: with it, as msgpack.
STATE_HEAD_BYTES = 1 + 3 * (2 + 5) + 2 + 2 + 32
NUMBER_BYTES_MAX = 9
#: Bytes of the longest row: a join's two names, two numbers and address.
ROW_BYTES_MAX = 1 + 3 * (2 + 255) + 2 * NUMBER_BYTES_MAX

Replica = tuple[str, int]  # name, incarnation
Dot = tuple[str, int, int]  # name, incarnation, counter


class MembershipError(ValueError):
    """A state that cannot be one, a bound that is reached, or a change that makes no sense.

    Says what is wrong; nothing was changed.
    """


class MembershipLimit(MembershipError):
    """A bound that is reached: of how many members there may be, or of what may be sent."""


class Start(NamedTuple):
    """The last start that was seen of a name: a row of `s`."""

    name: str
    incarnation: int
    #: How often the node announced it; again if others have a wrong address of it.
    counter: int
    #: The logical time at which the name was last removed, 0 if it never was.
    ended: int
    #: Where the node is; `None` if the start is no longer in force.
    addr: str | None


class Version(NamedTuple):
    """What is known of one replica's joins: a row of `v`."""

    name: str
    incarnation: int
    #: The highest counter of them that was seen.
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

    starts: frozenset[Start]
    versions: frozenset[Version]
    joins: frozenset[Join]


class News(NamedTuple):
    """What one state adds to another: it depends on nothing but these two."""

    #: The rows of both together, where they are other than the known ones.
    starts: dict[str, Start]
    versions: dict[Replica, Version]
    #: Joins that are not in force any more, and that are in force now.
    lost: list[Join]
    gained: dict[Dot, Join]
    #: Names whose starts or joins changed.
    touched: set[str]
    #: The highest logical time in it.
    time: int
    #: The rows of the one that are other than those of the other.
    received_starts: frozenset[Start]
    received_versions: frozenset[Version]
    #: The highest of their incarnations, counters and times.
    highest: int
    #: Whether the two together are the received one, as no row of the known one adds to it.
    is_all: bool


class State:
    """All that a node knows at a time: a value, which several memberships may share.

    :param rows: checked.
    :param codec: with which it is encoded.
    :param starts: those rows by name, if they are at hand; nobody alters it.
    :param versions: those rows by replica, likewise.

    What is sent of it is made once, when it is first asked for.
    """

    __slots__ = ("_digest", "_encoded", "_plain", "_starts", "_versions", "codec", "rows")

    def __init__(
        self,
        rows: Rows,
        codec: Codec,
        starts: dict[str, Start] | None = None,
        versions: dict[Replica, Version] | None = None,
    ) -> None:
        self.rows = rows
        self.codec = codec
        self._plain: dict[str, list[list[Any]]] | None = None
        self._encoded: bytes | None = None
        self._digest: bytes | None = None
        self._starts = starts
        self._versions = versions

    def plain(self) -> dict[str, list[list[Any]]]:
        """The map that is encoded. It is the same object every time: do not alter it."""
        if self._plain is None:
            # No two rows of an array have the same key, and the key comes first in a row.
            arrays = (list(map(list, sorted(rows))) for rows in self.rows)
            self._plain = dict(zip("svm", arrays, strict=True))
        return self._plain

    def encoded(self) -> bytes:
        """As msgpack. Equal states are equal bytes: keys and arrays have an order."""
        if self._encoded is None:
            self._encoded = self.codec.encode_message(self.plain())
        return self._encoded

    def digest(self) -> bytes:
        """The SHA-256 of `encoded()`, 32 bytes."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.encoded()).digest()
        return self._digest

    def equals(self, plain: object) -> bool:
        """Whether this is the state of a peer; False if finding out would take some work."""
        return self._plain is not None and self._plain == plain

    def starts(self) -> dict[str, Start]:
        """Those rows by name. It is the same object every time: do not alter it."""
        if self._starts is None:
            self._starts = {row[0]: row for row in self.rows.starts}
        return self._starts

    def versions(self) -> dict[Replica, Version]:
        """Those rows by replica. It is the same object every time: do not alter it."""
        if self._versions is None:
            self._versions = {row[:2]: row for row in self.rows.versions}
        return self._versions

    def news_for(self, known: State) -> News:
        """What this one adds to a known one. Looks at what differs only."""
        rows, known_rows = self.rows, known.rows
        received_starts = rows.starts - known_rows.starts
        starts, all_starts = combined(
            received_starts,
            known.starts() if received_starts else {},
            len(known_rows.starts) - len(rows.starts) + len(received_starts),
            BY_NAME,
            last_start,
        )
        received_versions = rows.versions - known_rows.versions
        versions, all_versions = combined(
            received_versions,
            known.versions() if received_versions else {},
            len(known_rows.versions) - len(rows.versions) + len(received_versions),
            BY_REPLICA,
            merged_version,
        )
        received_joins = rows.joins - known_rows.joins
        known_joins = known_rows.joins - rows.joins
        gained: dict[Dot, Join] = {}
        if received_joins:
            seen = known.versions()
            for join in received_joins:
                version = seen.get(join[:2])
                if version is None or join[2] > version[2]:
                    gained[join[:3]] = join
        lost = []
        if known_joins:
            seen = self.versions()
            received_dots = {row[:3]: row for row in received_joins}
            for join in known_joins:
                dot = join[:3]
                if (received := received_dots.get(dot)) is not None:
                    # No correct node makes a dot twice. Even so all have to agree; and the lower of
                    # the two is no news, or its sender could have this state sent again and again.
                    if received > join:
                        lost.append(join)
                        gained[dot] = received
                elif (version := seen.get(dot[:2])) is not None and dot[2] <= version[2]:
                    lost.append(join)

        changed = itertools.chain(starts.values(), versions.values())
        return News(
            starts,
            versions,
            lost,
            gained,
            {*starts, *(row[3] for row in lost), *(row[3] for row in gained.values())},
            max(map(ENDED, changed), default=0),
            received_starts,
            received_versions,
            highest_in(itertools.chain(received_starts, received_versions)),
            # A known join that stays is of a replica of which more was seen than is received.
            all_starts and all_versions and len(gained) == len(received_joins),
        )


#: What a cell of a row may be. Whatever else can be decoded may fail when it is compared or shown.
CELL_TYPES = {str, int, NoneType}


def check_cells(state: object) -> dict[str, Any]:
    """Check the shape of a state, so that it can be compared with another one.

    :raises MembershipError: says what is wrong.
    """
    if type(state) is not dict or state.keys() != {"s", "v", "m"}:
        raise MembershipError("a state is a map with the keys 's', 'v' and 'm', and no others")
    for key, rows in state.items():
        if type(rows) is not list:
            raise MembershipError(f"{key!r} must be an array, not {shown(rows)}")
        if set(map(type, rows)) - {list}:
            raise MembershipError(f"{key!r} has an entry that is no array")
        if set(map(type, itertools.chain.from_iterable(rows))) - CELL_TYPES:
            raise MembershipError(f"{key!r} has an entry of other elements than it should")
    return state


def read_state(state: dict[str, Any], known: State, limits: Limits) -> State:
    """Check a state: its order and bounds, each field, and that it can be one.

    :param state: decoded, and seen by `check_cells`.
    :param known: whose rows were checked before: they are not checked again, but shared.
    :raises MembershipError: says what is wrong.
    """
    members_max = limits.membership_members_max
    joins_max = members_max * limits.membership_dots_per_member_max
    retired_max = limits.membership_retired_max
    rows = Rows(
        checked(
            rows_of(state, "s", BY_NAME, members_max + retired_max),
            known.rows.starts,
            checked_start,
        ),
        checked(
            rows_of(state, "v", BY_REPLICA, joins_max + retired_max),
            known.rows.versions,
            checked_version,
        ),
        checked(rows_of(state, "m", BY_DOT, joins_max), known.rows.joins, checked_join),
    )
    starts, versions, joins = rows
    if len(starts) + len(joins) > members_max:
        names = {start.name for start in starts if start.addr is not None}
        names.update(join.member for join in joins)
        if len(names) > members_max:
            raise MembershipLimit(
                f"the state has {len(names)} members; "
                f"Limits.membership_members_max is {members_max} here"
            )
    if joins:
        counters = {row[:2]: row[2] for row in versions}
        for join in joins:
            if join.counter > counters.get(join[:2], 0):
                raise MembershipError(f"a join by {shown(join.name)} is in force and was not seen")
    return State(rows, known.codec)


def bytes_of(starts: Iterable[Start], versions: Iterable[Version], joins: Iterable[Join]) -> int:
    """The most bytes that a state of these takes, whatever numbers they will have."""
    size = STATE_HEAD_BYTES
    for start in starts:
        size += 1 + text_bytes(start.name) + 3 * NUMBER_BYTES_MAX
        size += 1 if start.addr is None else text_bytes(start.addr)
    for version in versions:
        size += 1 + text_bytes(version.name) + 3 * NUMBER_BYTES_MAX
    for join in joins:
        size += 1 + text_bytes(join.name) + 2 * NUMBER_BYTES_MAX
        size += text_bytes(join.member) + text_bytes(join.addr)
    return size


def text_bytes(text: str) -> int:
    """What a text of at most 255 bytes takes."""
    size = len(text) if text.isascii() else len(text.encode())
    return size + 1 + (size >= 32)


NUMBERS = operator.itemgetter(1, 2, 3)
ENDED = operator.itemgetter(3)
#: In this order starts that are no more are forgotten: the one that ended first, by its name else.
by_end = operator.itemgetter(3, 0)


def highest_in(rows: Iterable[Start | Version]) -> int:
    """The highest of the numbers of some rows; 0 if there are none."""
    return max(map(max, map(NUMBERS, rows)), default=0)


def believed(state: State, news: News, highest: int) -> State:
    """What is believed of a state: the same one, if all of it is.

    :param news: what it adds to what is known and believed already.
    :param highest: see `belief`. A replica that has more joins than that has none.
    """
    if news.highest <= highest:
        return state
    starts = [row for row in news.received_starts if max(NUMBERS(row)) > highest]
    versions = [row for row in news.received_versions if max(NUMBERS(row)) > highest]
    replicas = {row[:2] for row in versions}
    rows = Rows(
        state.rows.starts.difference(starts),
        state.rows.versions.difference(versions),
        frozenset(row for row in state.rows.joins if row[:2] not in replicas),
    )
    return State(rows, state.codec)


Row = TypeVar("Row", Start, Version, Join)


def checked(
    rows: set[tuple[Any, ...]], known: frozenset[Row], check: Callable[[tuple[Any, ...]], Row]
) -> frozenset[Row]:
    """The same rows, each of `known` or checked."""
    return (known - (known - rows)).union(map(check, rows - known))


BY_NAME = operator.itemgetter(0)
BY_REPLICA = operator.itemgetter(0, 1)
BY_DOT = operator.itemgetter(0, 1, 2)


def rows_of(
    state: dict[str, Any], key: str, by: Callable[[Any], object], rows_max: int
) -> set[tuple[Any, ...]]:
    """The rows of one array, of which no two have the same key, and which are in order."""
    rows = state[key]
    if len(rows) > rows_max:
        raise MembershipLimit(f"{key!r} has {len(rows)} entries; at most {rows_max} are allowed")
    try:
        tuples = set(map(tuple, rows))
        in_order = sorted(rows) == rows and len(set(map(by, rows))) == len(rows)
    except (IndexError, TypeError):
        # Too short an entry; or elements of other types in one place.
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


def checked_version(row: tuple[Any, ...]) -> Version:
    checked_width(row, Version)
    version = Version._make(row)
    what = f"what was seen of {shown(version.name)}"
    checked_int(version.incarnation, 1, INCARNATION_MAX, f"{what}: the incarnation")
    checked_int(version.counter, 1, COUNTER_MAX, f"{what}: the counter")
    checked_int(version.ended, 0, COUNTER_MAX, f"{what}: the end")
    checked_node(version.name, ANY_ADDR)
    return version


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


def checked_width(row: tuple[Any, ...], kind: type[Start] | type[Version] | type[Join]) -> None:
    if len(row) != len(kind._fields):
        raise MembershipError(f"an entry has {len(kind._fields)} elements, not {len(row)}")


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
    if type(value) is int and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if type(value) is str:
        # Cut first: it may be long.
        value = value[:80]
    elif type(value) not in (int, float, bool, bytes, NoneType):
        return f"a value of type {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


Key = TypeVar("Key", str, Replica)


def combined(
    received: Collection[Row],
    known: dict[Key, Row],
    others: int,
    key_of: Callable[[Any], Key],
    both: Callable[[Row, Row], Row],
) -> tuple[dict[Key, Row], bool]:
    """What received rows and known ones say together.

    :param received: rows that are not known.
    :param known: by key.
    :param others: how many of the known rows were not received.
    :param both: of a known and a received row of one key; the same object as one that it equals.
    :returns: the rows of both together that are not known; and whether the known ones say nothing
        that was not received.
    """
    news: dict[Key, Row] = {}
    adds = False
    for row in received:
        key = key_of(row)
        before = known.get(key)
        if before is None:
            news[key] = row
            continue
        others -= 1
        together = both(before, row)
        adds = adds or together is not row
        if together is not before:
            news[key] = together
    return news, not (adds or others)


def last_start(a: Start, b: Start) -> Start:
    """The later of two starts of a name; of equal ones the dropped one, as who has it knows more.

    Two addresses of one dot, which no correct node makes, are decided by their order.

    :returns: one of the two objects if it is equal to one.
    """
    ended = max(a.ended, b.ended)
    if a[1:3] == b[1:3]:
        addr = None if a.addr is None or b.addr is None else max(a.addr, b.addr)
        last = a if a.addr == addr and (a.ended == ended or b.addr != addr) else b
    else:
        last = a if a[1:3] > b[1:3] else b
    return last if last.ended == ended else last._replace(ended=ended)


def merged_version(a: Version, b: Version) -> Version:
    """What two know of one replica, together.

    :returns: one of the two objects if it is equal to one.
    """
    if a.counter >= b.counter and a.ended >= b.ended:
        return a
    if a.counter <= b.counter and a.ended <= b.ended:
        return b
    return a._replace(counter=max(a.counter, b.counter), ended=max(a.ended, b.ended))
