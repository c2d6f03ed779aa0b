"""Values of all types that travel, built by Hypothesis, and what it means that two are the same.

`values` is for tests of everything that carries messages: the codec, a
node, a mesh, strict mode.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import fractions
import math
import zoneinfo
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from rabble._core.ids import CorrelationId, NodeId, Pid

__all__ = ["decimals", "keys", "of_msgpack", "pids", "plain_scalars", "same", "values"]

#: Of `values.pxd`: more bytes are refused in a set, a key, a Fraction or a range.
NUMBER_BYTES_MAX = 1024
NOTHING = st.nothing()
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")


def named(name: str, strategy: Any) -> Any:
    """The same with a short text: that of a union words all that it is of."""

    def draw_one(draw: Any) -> Any:
        return draw(strategy)

    draw_one.__name__ = draw_one.__qualname__ = name
    return st.composite(draw_one)()


numbers = st.none() | st.integers(0, 2**63 - 1)
names = st.text("abcxyz0189-_é", min_size=1, max_size=40)
nodes = st.builds(NodeId, names, st.sampled_from(["127.0.0.1:1", "[::1]:65535", "host:80"]))
pids = st.builds(Pid, names, nodes, st.none() | names)
cids = st.builds(CorrelationId, pids, numbers, numbers)

#: Such as msgpack has a type for.
plain_scalars = named(
    "plain_scalars",
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from([b"x" * 255, b"x" * 256, b"x" * 65536, "y" * 31, "y" * 32, "y" * 65536]),
)

#: Around the ends of 64 bits, and of one, two and four bytes of a header's size.
large_ints = named("large_ints", st.integers() | st.sampled_from(
    [sign * (1 << bits) + n for bits in (63, 64, 71, 72, 127, 128, 2039, 2040) for n in (-1, 0, 1)
     for sign in (1, -1)]
))  # fmt: skip
largest_ints = named(
    "largest_ints", large_ints | st.sampled_from([1 << 8191, -(1 << 8192), 3**50_000])
)
part_ints = named("part_ints", large_ints | st.sampled_from([1 << 8190, -(1 << 8190)]))

zones = named(
    "zones",
    st.just(datetime.UTC)
    | st.builds(
        datetime.timezone,
        st.timedeltas(
            datetime.timedelta(days=-1, microseconds=1),
            datetime.timedelta(days=1, microseconds=-1),
        ),
    )
    | st.builds(datetime.timezone, st.just(datetime.timedelta(hours=-3)), st.text(max_size=300))
    | st.builds(zoneinfo.ZoneInfo, st.sampled_from(ZONES)),
)
folds = st.sampled_from([0, 1])
times = st.builds(
    lambda value, fold, zone: value.replace(fold=fold, tzinfo=zone),
    st.times(),
    folds,
    st.none() | zones,
)
datetimes = st.builds(
    lambda value, fold, zone: value.replace(fold=fold, tzinfo=zone),
    st.datetimes(),
    folds,
    st.none() | zones,
)
decimals = named(
    "decimals",
    st.decimals(allow_nan=True, allow_infinity=True)
    | st.builds(
        lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
        folds,
        st.lists(st.integers(0, 9), max_size=40).map(tuple),
        st.integers(-500, 500) | st.sampled_from([10**17, -(10**17)]),
    )
    | st.sampled_from(
        [Decimal(text) for text in ("-0", "0E+5", "NaN", "-NaN123", "sNaN7", "1E-1000000", "1.10")]
    ),
)
ranges = st.builds(range, part_ints, part_ints, part_ints.filter(bool))
complexes = st.complex_numbers(allow_nan=False) | st.just(complex(-0.0, -0.0))

#: Hashable, and equal to nothing but themselves; as keys and elements they have to be of one line.
hashable_scalars = named(
    "hashable_scalars",
    plain_scalars
    | part_ints
    | complexes
    | st.dates()
    | times
    | datetimes
    | st.timedeltas()
    | zones
    | decimals.filter(lambda value: not value.is_snan())
    | st.fractions()
    | st.builds(fractions.Fraction, part_ints, part_ints.filter(bool))
    | st.uuids()
    | ranges
    | nodes
    | pids
    | cids,
)
scalars = named("scalars", hashable_scalars | largest_ints | decimals | st.binary().map(bytearray))


def keys(more: Any = NOTHING) -> Any:
    """What can be a key, or in a set; `more` are such scalars besides."""
    return st.recursive(
        hashable_scalars | more,
        lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
        max_leaves=6,
    )


def of_msgpack(leaves: Any = plain_scalars, *more: Any) -> Any:
    """What msgpack has types for, if the leaves are such; `more` build containers of theirs."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=20),
            st.dictionaries(st.text(max_size=40), inner, max_size=20),
            *(build(inner) for build in more),
        ),
        max_leaves=30,
    )


def values(hashable: Any = NOTHING, other: Any = NOTHING, *more: Any) -> Any:
    """Values of every type that travels, and in containers of every type.

    :param hashable: further scalars that can be keys, as members of enums.
    :param other: further scalars.
    :param more: each builds a strategy, say of a class's instances, of one for what is in them.
    """
    known = keys(hashable)
    return of_msgpack(
        scalars | hashable | other,
        lambda inner: st.lists(inner, max_size=8).map(tuple),
        lambda inner: st.dictionaries(known, inner, max_size=6),
        lambda inner: st.sets(known, max_size=6),
        lambda inner: st.frozensets(known, max_size=6),
        *more,
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types at every depth, a NaN being one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and match(list(one), list(other))
    if isinstance(one, dict):
        # In the same order.
        return same(list(one.items()), list(other.items()))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, range):
        return (one.start, one.stop, one.step) == (other.start, other.stop, other.step)
    if isinstance(one, datetime.timezone):
        return repr(one) == repr(other)
    if isinstance(one, zoneinfo.ZoneInfo):
        return one.key == other.key
    if isinstance(one, (datetime.datetime, datetime.time)):
        naive = one.replace(tzinfo=None), other.replace(tzinfo=None)
        return naive[0] == naive[1] and one.fold == other.fold and same(one.tzinfo, other.tzinfo)
    if dataclasses.is_dataclass(one) and not isinstance(one, (type, enum.Enum)):
        fields = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return bool(one == other)


def match(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether the elements are the same ones, in any order."""
    for each in ours:
        found = next((i for i, other in enumerate(theirs) if same(each, other)), None)
        if found is None:
            return False
        del theirs[found]
    return not theirs
