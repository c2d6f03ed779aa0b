"""`@message` and the registry: which classes may cross a wire, and as what."""

from __future__ import annotations

import abc
import dataclasses
import datetime
import decimal
import enum
import fractions
import uuid
import zoneinfo
from typing import Any

import pytest

from rabble import CorrelationId, NodeId, Pid
from rabble._core.codec import Codec
from rabble.registry import PLAIN_TYPES, MessageRegistry, default_registry, message


@pytest.fixture
def registry():
    return MessageRegistry()


def round_trip(registry, value):
    codec = Codec(registry)
    return codec.decode_message(codec.encode_message(value))


def test_a_class_becomes_a_frozen_slotted_dataclass(registry):
    @message(registry=registry)
    class Order:
        id: int
        item: str = "apple"

    order = Order(1)
    assert order == Order(1, "apple")
    assert hash(order) == hash(Order(1, "apple"))
    assert not hasattr(order, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        order.id = 2
    assert registry.name_of(Order) == f"{__name__}.{Order.__qualname__}"
    assert registry.class_of(registry.name_of(Order)) is Order
    assert registry.fields_of(Order) == ("id", "item")
    assert Order in registry
    assert len(registry) == 1
    assert round_trip(registry, order) == order


def test_bare_it_fills_the_default_registry():
    @message
    class Bare:
        n: int

    assert Bare in default_registry
    assert round_trip(default_registry, Bare(1)) == Bare(1)


def test_lookups_say_what_is_missing(registry):
    with pytest.raises(LookupError, match="@rabble.message"):
        registry.name_of(int)
    with pytest.raises(LookupError, match="nobody"):
        registry.class_of("nobody")
    with pytest.raises(LookupError):
        registry.fields_of(int)
    assert registry.registration_of(int) is None


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 256, "é" * 128, "e\u0301", "\ud800"])
def test_wire_names_are_checked(registry, name):
    with pytest.raises(ValueError, match="wire name"):

        @message(name=name, registry=registry)
        class Order:
            pass


def test_a_wire_name_is_a_str(registry):
    with pytest.raises(TypeError, match="wire name"):
        message(name=1, registry=registry)(type("Order", (), {}))  # type: ignore[call-overload]


def test_a_name_belongs_to_one_class(registry):
    @message(name="shop.Order", registry=registry)
    class Order:
        pass

    with pytest.raises(ValueError, match=r"shop\.Order.*belongs to"):

        @message(name="shop.Order", registry=registry)
        class Other:
            pass

    with pytest.raises(ValueError, match="registered already"):
        registry.register(Order, "shop.Another")
    registry.register(Order, "shop.Order")
    assert len(registry) == 1


def test_a_reload_takes_the_place(registry):
    def declare():
        @message(registry=registry)
        class Order:
            pass

        return Order

    old, new = declare(), declare()
    assert old not in registry
    assert registry.class_of(registry.name_of(new)) is new


@pytest.mark.parametrize("bad", [int, object(), "Order"])
def test_what_is_no_message_class_is_refused(registry, bad):
    with pytest.raises(TypeError):
        registry.register(bad)


def test_decorating_no_class_is_refused():
    with pytest.raises(TypeError, match="decorates a class"):
        message(len)  # type: ignore[call-overload]


def test_dataclasses_must_be_frozen(registry):
    @dataclasses.dataclass
    class Changing:
        n: int

    with pytest.raises(TypeError, match="frozen"):
        message(registry=registry)(Changing)

    @dataclasses.dataclass(frozen=True)
    class Fixed:
        n: int

    assert message(registry=registry)(Fixed) is Fixed
    assert round_trip(registry, Fixed(1)) == Fixed(1)


def test_what_the_receiver_cannot_know_is_refused(registry):
    """An InitVar is gone when the object is sent; it is in the way of a constructor only."""
    with pytest.raises(TypeError, match="InitVar"):

        @message(registry=registry, post_init=True)
        class Order:
            n: dataclasses.InitVar[int]

            def __post_init__(self, n):
                raise AssertionError

    @message(registry=registry)
    class Doubled:
        n: dataclasses.InitVar[int]
        double: int = dataclasses.field(init=False)

        def __post_init__(self, n):
            object.__setattr__(self, "double", 2 * n)

    assert registry.fields_of(Doubled) == ("double",)
    assert round_trip(registry, Doubled(4)).double == 8


def test_constructors_that_do_more_are_called(registry):
    calls = []

    @message(registry=registry)
    class Own:
        n: int

        def __init__(self, n):
            calls.append(n)
            object.__setattr__(self, "n", n)

    @message(registry=registry)
    class New:
        n: int

        def __new__(cls, n):
            calls.append(n)
            return object.__new__(cls)

    @message(registry=registry, post_init=True)
    class Computed:
        n: int
        double: int = dataclasses.field(init=False)

        def __post_init__(self):
            calls.append(self.n)
            object.__setattr__(self, "double", 2 * self.n)

    @message(registry=registry)
    class Abstract(abc.ABC):  # noqa: B024
        n: int

    @message(registry=registry)
    class KeywordOnly:
        _: dataclasses.KW_ONLY
        n: int

    for cls in (Own, New, Computed):
        value = cls(4)
        calls.clear()
        assert round_trip(registry, value) == value
        assert calls == [4]
    assert registry.fields_of(Computed) == ("n",)
    assert round_trip(registry, Computed(4)).double == 8
    assert round_trip(registry, Abstract(1)) == Abstract(1)
    assert round_trip(registry, KeywordOnly(n=1)) == KeywordOnly(n=1)


def test_messages_inherit(registry):
    @message(registry=registry)
    class Base:
        a: int

    @message(registry=registry)
    class Derived(Base):
        b: Any = None

    value = Derived(1, Base(2))
    assert registry.fields_of(Derived) == ("a", "b")
    assert round_trip(registry, value) == value


def test_enums_travel_by_value(registry):
    @message(registry=registry)
    class Level(enum.IntEnum):
        LOW = 1
        ALSO_LOW = 1
        HIGH = 2

    for level in Level:
        assert round_trip(registry, level) is level
    assert registry.fields_of(Level) == ()


def test_enums_that_cannot_travel_are_refused(registry):
    class Flags(enum.Flag):
        A = 1

    class Tuples(enum.Enum):
        A = (1, 2)

    class Sizes(enum.IntEnum):
        SMALLEST = -(1 << 63)
        LARGEST = (1 << 64) - 1

    class Larger(enum.IntEnum):
        SMALL = 1
        HUGE = 1 << 64

    with pytest.raises(TypeError, match="int value"):
        registry.register(Flags)
    with pytest.raises(TypeError, match="tuple"):
        registry.register(Tuples)
    # Else no member of it could be encoded, though this is no fault of theirs.
    with pytest.raises(TypeError, match=r"Larger\.HUGE has an int of 65 bits"):
        registry.register(Larger)
    registry.register(Sizes)
    for size in Sizes:
        assert round_trip(registry, size) is size


def test_structs_are_registered(registry):
    msgspec = pytest.importorskip("msgspec")

    class Point(msgspec.Struct, kw_only=True):
        x: int
        y: int = 0

    assert message(registry=registry)(Point) is Point
    assert registry.fields_of(Point) == ("x", "y")
    assert round_trip(registry, Point(x=1)) == Point(x=1)


NODE = NodeId("n", "h:1")
PLAIN = [
    *(None, True, 1, 1.5, 1j, "text", b"bytes", bytearray(b"bytes"), [1], {1: 2}, (1,), {1}),
    *(frozenset({1}), range(3), datetime.datetime(2026, 11, 29), datetime.date(2026, 11, 29)),
    *(datetime.time(1), datetime.timedelta(1), datetime.UTC, zoneinfo.ZoneInfo("UTC")),
    *(decimal.Decimal(1), fractions.Fraction(1, 2), uuid.UUID(int=1)),
    *(NODE, Pid("p", NODE), CorrelationId(Pid("p", NODE), None, 1)),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_what_travels_as_it_is_needs_no_functions_and_gets_none(registry, value):
    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message(value)) == value
    with pytest.raises(TypeError, match="travels as it is"):
        registry.register_type(type(value), "Mine", str, str)


def test_every_type_that_travels_as_it_is_was_looked_at():
    assert {type(value) for value in PLAIN} == set(PLAIN_TYPES)
