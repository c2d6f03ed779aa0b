"""The codec in plain Python and the compiled one: the same bytes, values and refusals."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import typing
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble._core.codec import Codec
from rabble.client.codec import PlainCodec, codec_of
from rabble.client.limits import ClientLimits
from rabble.client.values import OpaqueId
from rabble.errors import DecodeError, DecodeLimitError, EncodeError
from rabble.registry import MessageRegistry, message
from tests.core.codecs import CODEC, REGISTRY, Colour, Empty, Order, Positive
from tests.core.strategies import pids, same, values

PLAIN = PlainCodec(REGISTRY)

EVERYTHING = values(
    st.sampled_from(Colour),
    st.just(Empty()),
    lambda inner: st.builds(Order, st.integers(0, 9), inner, st.floats(allow_nan=False)),
)


def refused(decode: Any, data: bytes) -> type[Exception] | None:
    try:
        decode(data)
    except DecodeError as error:
        return type(error)
    return None


@given(EVERYTHING)
@settings(max_examples=100)
def test_both_write_the_same_bytes_and_read_the_same_value(value):
    data = CODEC.encode_message(value)
    # But for the order of a set, which is that of each object.
    assert len(PLAIN.encode_message(value)) == len(data)
    assert same(PLAIN.decode_message(data), value)
    assert same(CODEC.decode_message(PLAIN.encode_message(value)), value)


@given(st.recursive(st.integers() | st.text() | pids, lambda i: st.lists(i).map(tuple)))
def test_where_no_set_is_they_are_equal_byte_for_byte(value):
    assert PLAIN.encode_message(value) == CODEC.encode_message(value)


@st.composite
def damaged(draw: Any) -> bytes:
    """A message's bytes with some changed, or a piece taken out, or put in."""
    data = bytearray(CODEC.encode_message(draw(EVERYTHING)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 3)))
        data[at:until] = draw(st.binary(max_size=3))
    return bytes(data)


@given(damaged() | st.binary(max_size=60))
@settings(max_examples=300)
def test_both_take_and_refuse_the_same_bytes(data):
    try:
        found = CODEC.decode_message(data)
    except DecodeError:
        assert refused(PLAIN.decode_message, data) is not None
    else:
        assert same(PLAIN.decode_message(data), found)


class Colours(enum.Flag):
    RED = 1


NOT_SENT = [
    object(),
    memoryview(b"x"),
    type("Text", (str,), {})("x"),
    "\ud800",
    [object()],
    {object(): 1},
    Colours.RED,
    datetime.time(tzinfo=type("Zone", (datetime.tzinfo,), {})()),
    {1 << 8200},
    frozenset([Decimal("1" * 1025)]),
    Fraction(1 << 8200),
    range(1 << 8200),
    int,
]


@pytest.mark.parametrize("value", NOT_SENT, ids=lambda value: type(value).__name__)
def test_both_refuse_to_write_the_same(value):
    for codec in (CODEC, PLAIN):
        with pytest.raises(EncodeError):
            codec.encode_message(value)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth - 1):
        found = [found]
    return found


@pytest.mark.parametrize("cls", [Codec, PlainCodec])
@pytest.mark.parametrize(
    ("name", "value", "larger"),
    [
        ("message_bytes_max", "x" * 98, "x" * 99),
        ("depth_max", nested(100), nested(101)),
        ("elements_max", [0] * 100, [0] * 101),
    ],
)
def test_the_bounds_hold_both_ways(cls, name, value, larger):
    codec: Any = cls(REGISTRY, **{name: 100})
    assert codec.decode_message(codec.encode_message(value)) == value
    with pytest.raises(EncodeError):
        codec.encode_message(larger)
    with pytest.raises(DecodeLimitError):
        codec.decode_message(Codec(REGISTRY, depth_max=200).encode_message(larger))


@given(EVERYTHING, st.integers(1, 5_000))
def test_both_take_the_same_memory_by_estimate(value, most):
    plain, compiled = (cls(REGISTRY, decoded_bytes_max=most) for cls in (PlainCodec, Codec))
    data = CODEC.encode_message(value)
    assert (refused(plain.decode_message, data) is None) == (
        refused(compiled.decode_message, data) is None
    )
    for codec in (plain, compiled):
        try:
            codec.encode_message(value)
        except EncodeError:
            assert refused(plain.decode_message, data) is not None
        else:
            assert refused(plain.decode_message, data) is None


def test_a_depth_that_the_stack_does_not_have_is_a_refusal():
    codec = PlainCodec(REGISTRY, depth_max=256)
    value: Any = ()
    for _ in range(250):
        value = (value,)
    data = Codec(REGISTRY, depth_max=256).encode_message(value)

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
            return
        with pytest.raises(DecodeLimitError, match="stack"):
            codec.decode_message(data)
        with pytest.raises(EncodeError, match="stack"):
            codec.encode_message(value)

    deep(600)


def test_a_claimed_count_takes_no_memory():
    # A thousand levels of arrays that each claim 4 G.
    for data in (
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x07",
    ):
        with pytest.raises(DecodeLimitError):
            PLAIN.decode_message(data)


def test_elements_of_one_hash_are_refused_as_the_mesh_does():
    collisions = [n * (2**61 - 1) for n in range(1, 40)]
    for value in (set(collisions), dict.fromkeys(collisions)):
        data = CODEC.encode_message(value)
        assert refused(CODEC.decode_message, data) is not None
        assert refused(PLAIN.decode_message, data) is refused(CODEC.decode_message, data)


# Classes.


def registered() -> tuple[MessageRegistry, dict[str, Any]]:
    registry = MessageRegistry()

    @message(name="Old", registry=registry)
    class Grown:
        n: int
        more: list[int] = dataclasses.field(default_factory=list)
        name: str = "unnamed"

    class Pair(typing.NamedTuple):
        a: int
        b: str = "b"

    registry.register(Pair, "Pair")

    @dataclasses.dataclass(frozen=True)
    class Loose:
        n: int

    registry.register(Loose, "Loose")
    registry.register_type(collections.Counter, "Counter", dict, collections.Counter)
    return registry, {"Grown": Grown, "Pair": Pair, "Loose": Loose}


def test_classes_of_every_kind_go_both_ways():
    registry, classes = registered()
    sent = [
        classes["Grown"](1, [2], "x"),
        classes["Pair"](1, "x"),
        classes["Loose"](3),
        collections.Counter("abba"),
    ]
    plain, compiled = PlainCodec(registry), Codec(registry)
    assert plain.encode_message(sent) == compiled.encode_message(sent)
    for got in (
        plain.decode_message(compiled.encode_message(sent)),
        compiled.decode_message(plain.encode_message(sent)),
    ):
        assert got == sent
        assert [type(one) for one in got] == [type(one) for one in sent]


def old_class() -> MessageRegistry:
    registry = MessageRegistry()

    @message(name="Old", registry=registry)
    class Old:
        n: int

    return registry


def test_versions_of_a_class_differ_by_fields_at_the_end():
    registry, classes = registered()
    old = old_class()
    fresh = PlainCodec(registry).decode_message(Codec(old).encode_message(old.class_of("Old")(1)))
    assert fresh == classes["Grown"](1, [], "unnamed")
    aged = PlainCodec(old).decode_message(
        Codec(registry).encode_message(classes["Grown"](1, [{"a": (1, 2)}], "x"))
    )
    assert aged == old.class_of("Old")(1)
    assert old.fields_dropped == 2


def test_fields_are_held_against_their_annotations():
    registry, _ = registered()
    bad = Codec(old_class()).encode_message("x")
    data = b"\xc7" + bytes([5 + len(bad)]) + b"\x01\xa3Old\x91" + bad
    for cls in (Codec, PlainCodec):
        with pytest.raises(DecodeError, match="expected int, but a str"):
            cls(registry).decode_message(data)


def test_what_a_class_refuses_is_a_decode_error():
    data = CODEC.encode_message(Positive(1)).replace(b"\x91\x01", b"\x91\x00")
    with pytest.raises(DecodeError, match="0 is not positive"):
        PLAIN.decode_message(data)


def test_a_struct_travels():
    msgspec = pytest.importorskip("msgspec")

    class Point(msgspec.Struct, frozen=True):
        x: int
        y: int = 2

    registry = MessageRegistry()
    registry.register(Point, "Point")
    plain, compiled = PlainCodec(registry), Codec(registry)
    assert plain.encode_message(Point(1)) == compiled.encode_message(Point(1))
    assert plain.decode_message(compiled.encode_message(Point(1, 3))) == Point(1, 3)


def test_without_the_core_ids_are_opaque_and_can_be_sent_back(monkeypatch):
    monkeypatch.setattr("rabble.client.decoding.core_ids", lambda: None)

    @given(st.lists(pids))
    @settings(max_examples=20)
    def there_and_back(sent):
        data = CODEC.encode_message(sent)
        got = PLAIN.decode_message(data)
        assert all(type(one) is OpaqueId for one in got)
        assert [str(one) for one in got] == [str(one) for one in sent]
        assert PLAIN.encode_message(got) == data

    there_and_back()


def test_the_compiled_one_is_taken_where_it_is():
    assert type(codec_of(REGISTRY, ClientLimits())) is Codec
