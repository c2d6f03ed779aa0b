"""Which classes may travel, and how what arrives is built."""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import io
import types
import typing
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._classes import has_generated_init
from rabble._core.codec import Codec
from rabble._core.errors import DecodeError, EncodeError
from rabble.registry import MessageRegistry, message

T = TypeVar("T")


@pytest.fixture
def registry():
    return MessageRegistry()


def round_trip(registry, value):
    codec = Codec(registry)
    return codec.decode_message(codec.encode_message(value))


def check_same(registry, value):
    found = round_trip(registry, value)
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)
    return found


class Place(NamedTuple):
    x: int
    y: int = 0

    @property
    def total(self):
        return self.x + self.y


def test_named_tuples(registry):
    registry.register(Place, "Place")
    found = check_same(registry, Place(1, 2))
    assert hash(found) == hash(Place(1, 2))
    assert found.total == 3
    assert {found: 1}[Place(1, 2)] == 1
    assert tuple(found) == (1, 2)


def test_a_named_tuple_of_collections(registry):
    import collections

    Pair = collections.namedtuple("Pair", "a b", defaults=[5])
    message(name="Pair", registry=registry)(Pair)
    check_same(registry, Pair(1))
    with pytest.raises(EncodeError, match="Pair: field b was never set"):
        Codec(registry).encode_message(tuple.__new__(Pair, (1,)))


def test_frozen_dataclasses_of_every_make(registry):
    made = []

    @dataclasses.dataclass(frozen=True)
    class Plain:
        a: int
        b: list[int] = dataclasses.field(default_factory=list)
        kind: ClassVar[str] = "k"

        def __post_init__(self):
            made.append(self.a)

    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted:
        a: int
        b: str = "b"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Keyword:
        a: int = 1
        b: int

    @dataclasses.dataclass(frozen=True)
    class Derived(Plain):
        c: int = 3

    for cls, value in (
        (Plain, Plain(1, [2])),
        (Slotted, Slotted(1)),
        (Keyword, Keyword(b=2)),
        (Derived, Derived(1, [2], 4)),
    ):
        registry.register(cls)
        made.clear()
        check_same(registry, value)
        assert made == []


def test_post_init_runs_again_if_it_is_asked_for(registry):
    @message(registry=registry, post_init=True)
    class Positive:
        n: int

        def __post_init__(self):
            if self.n < 1:
                raise ValueError(f"{self.n} is not positive")

    value = check_same(registry, Positive(1))
    object.__setattr__(value, "n", 0)
    with pytest.raises(DecodeError, match="Positive refuses: ValueError: 0 is not positive"):
        round_trip(registry, value)
    with pytest.raises(TypeError, match="no __post_init__"):

        @message(registry=registry, post_init=True)
        class Without:
            n: int


def test_an_init_that_only_looks_generated_is_called(registry):
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Own:
        n: int

        def __init__(self, n):
            calls.append(n)
            object.__setattr__(self, "n", n)

    @dataclasses.dataclass(frozen=True)
    class Wrapped:
        n: int

    init = Wrapped.__init__

    @functools.wraps(init)
    def traced(self, n):
        calls.append(n)
        init(self, n)

    Wrapped.__init__ = traced
    for cls in (Own, Wrapped):
        assert not has_generated_init(cls)
        registry.register(cls)
        value = cls(1)
        calls.clear()
        check_same(registry, value)
        assert calls == [1]


@given(st.data())
def test_a_generated_init_is_known(data):
    fields = []
    for n in range(data.draw(st.integers(0, 5))):
        init = data.draw(st.booleans())
        kinds: list[dict[str, Any]] = [{}, {"default": n}, {"default_factory": list}]
        kind = data.draw(st.sampled_from(kinds))
        if any(f[2].default is not f[2].default_factory for f in fields) and not kind:
            kind = {"default": None}
        field = dataclasses.field(init=init, kw_only=data.draw(st.booleans()), **kind)
        annotation = data.draw(st.sampled_from([int, "str", dataclasses.InitVar[int]]))
        if not init or "default_factory" in kind:
            annotation = int
        fields.append((f"f{n}", annotation, field))
    namespace = {"__post_init__": lambda self, *_: None} if data.draw(st.booleans()) else {}
    slots = data.draw(st.booleans())
    made = dataclasses.make_dataclass("Made", fields, namespace=namespace, frozen=True, slots=slots)
    assert has_generated_init(made)


def test_super_and_class_in_methods_of_a_slotted_class(registry):
    class Base:
        __slots__ = ()

        def name(self):
            return "base"

    def deco(function):
        def inner(*args):
            return function(*args)

        return inner

    @message(registry=registry)
    class Named(Base):
        n: int

        def name(self):
            return f"{super().name()} {self.n}"

        @property
        def own(self):
            return __class__

        @deco
        def hidden(self):
            return super().name()

        @classmethod
        def make(cls):
            return super().__new__(cls)

    value = check_same(registry, Named(1))
    assert value.name() == "base 1"
    assert value.hidden() == "base"
    assert value.own is Named
    assert type(Named.make()) is Named
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.other = 1

    @message(registry=registry)
    class OnlyHidden(Base):
        @functools.lru_cache  # noqa: B019
        @deco
        def name(self):
            return super().name()

    assert OnlyHidden().name() == "base"


def test_generics(registry):
    @message(registry=registry)
    class Box(Generic[T]):
        item: T

        def get(self) -> T:
            return self.item

    check_same(registry, Box(1))
    value = check_same(registry, Box[str]("x"))
    assert value.get() == "x"
    assert registry.unchecked(Box) == ("item",)


def test_string_and_int_enums(registry):
    @message(registry=registry)
    class Name(enum.StrEnum):
        A = "a"

    @message(registry=registry)
    class Size(enum.IntEnum):
        S = 1

    @message(registry=registry)
    class Both:
        name: str
        size: int
        sizes: list[Size]

    value = round_trip(registry, Both(Name.A, Size.S, [Size.S]))
    assert value.name is Name.A
    assert value.size is Size.S


def test_what_cannot_travel_says_what_to_do(registry):
    class Settings(typing.TypedDict):
        n: int

    class Maker(type):
        def __call__(cls, *args):
            return super().__call__(*args)

    class Made(metaclass=Maker):
        n: int

    class Shape(typing.Protocol):
        n: int

    class Numbers(dict):
        n: int

    for cls, advice in (
        (Settings, "TypedDict.*leave the decorator out"),
        (Made, "metaclass .*Maker.*register_type"),
        (Shape, "Protocol"),
        (Numbers, "dict besides its fields"),
        (type("Odd", (tuple,), {}), "no dataclass, NamedTuple"),
    ):
        with pytest.raises(TypeError, match=advice):
            message(registry=registry)(cls)

    with pytest.raises(TypeError, match="does not take its fields by name"):

        @message(registry=registry)
        class Own:
            n: int

            def __init__(self, other):
                raise AssertionError

    assert len(registry) == 0


def test_an_abstract_base_is_no_obstacle(registry):
    class Base(abc.ABC):
        @abc.abstractmethod
        def go(self): ...

    @message(registry=registry)
    class Goes(Base):
        n: int

        def go(self):
            return self.n

    assert check_same(registry, Goes(1)).go() == 1


def test_structs(registry):
    msgspec = pytest.importorskip("msgspec")
    made = []

    class Point(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
        x: int
        tags: list[str] = []
        y: int = 0

        def __post_init__(self):
            made.append(self.x)

    class Flat(msgspec.Struct, dict=True, weakref=True):
        x: Any

    class Untracked(msgspec.Struct, gc=False):
        x: int

    registry.register(Point)
    registry.register(Flat)
    registry.register(Untracked)
    check_same(registry, Untracked(1))
    value = Point(x=1)
    made.clear()
    check_same(registry, value)
    assert made == []
    found = check_same(registry, Flat(Flat(2)))
    found.more = 1
    assert found.more == 1
    registry2 = MessageRegistry()
    registry2.register(Point, post_init=True)
    check_same(registry2, value)
    assert made == [1]


def test_a_hash_that_a_struct_keeps_is_its_own(registry):
    msgspec = pytest.importorskip("msgspec")

    class Key(msgspec.Struct, frozen=True, cache_hash=True):
        x: str

    registry.register(Key)
    value = Key("a")
    assert hash(round_trip(registry, value)) == hash(value)


def test_pydantic_models(registry):
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel, frozen=True):
        id: int = pydantic.Field(alias="item")
        item: str = pydantic.Field(alias="id", default="i")
        tags: list[str] = pydantic.Field(default_factory=list)
        _cache: dict = pydantic.PrivateAttr(default_factory=dict)

    message(name="Order", registry=registry)(Order)
    value = Order(item=1, id="x")
    found = check_same(registry, value)
    assert (found.id, found.item) == (1, "x")
    assert found.model_dump() == value.model_dump()
    assert found.model_copy(update={"id": 5}).id == 5
    assert found._cache == {}
    with pytest.raises(DecodeError, match=r"Order\.id: expected int, but a str \('x'\) came"):
        round_trip(registry, value.model_copy(update={"id": "x"}))

    class Changing(pydantic.BaseModel):
        id: int

    with pytest.raises(TypeError, match="frozen=True"):
        message(registry=registry)(Changing)

    class More(pydantic.BaseModel, frozen=True, extra="allow"):
        id: int

    with pytest.raises(TypeError, match="extra fields"):
        message(registry=registry)(More)


def test_pydantic_models_that_validate_on_arrival(registry):
    pydantic = pytest.importorskip("pydantic")

    @message(registry=registry, post_init=True)
    class Positive(pydantic.BaseModel, frozen=True):
        n: int = pydantic.Field(gt=0, alias="N")

    value = check_same(registry, Positive(N=1))
    with pytest.raises(DecodeError, match="Positive refuses: ValidationError"):
        round_trip(registry, value.model_copy(update={"n": 0}))


def test_attrs_classes(registry):
    attrs = pytest.importorskip("attrs")
    seen = []

    def positive(instance, attribute, value):
        seen.append(value)
        if value < 1:
            raise ValueError(f"{value} is not positive")

    @message(name="Slotted", registry=registry)
    @attrs.frozen
    class Slotted:
        n: int = attrs.field(validator=positive)
        _more: list = attrs.field(factory=list)

    @message(name="Plain", registry=registry)
    @attrs.frozen(slots=False)
    class Plain:
        n: int = 1
        double: int = attrs.field(init=False, default=2)

    value = Slotted(1, more=[2])
    seen.clear()
    check_same(registry, value)
    assert seen == []
    check_same(registry, Plain(5))
    again = MessageRegistry()
    again.register(Slotted, "Slotted", post_init=True)
    check_same(again, value)
    assert seen == [1]
    object.__setattr__(value, "n", 0)
    with pytest.raises(DecodeError, match="0 is not positive"):
        round_trip(again, value)

    @attrs.define
    class Changing:
        n: int

    with pytest.raises(TypeError, match="attrs.frozen"):
        registry.register(Changing)

    @attrs.frozen(cache_hash=True)
    class Keeps:
        n: int

    with pytest.raises(TypeError, match="cache_hash"):
        registry.register(Keeps)


def test_an_object_of_a_class_declared_anew(registry):
    def declare():
        @message(name="cell.Order", registry=registry)
        class Order:
            n: int

        return Order

    old = declare()(1)
    new = declare()(1)
    check_same(registry, new)
    with pytest.raises(EncodeError, match=r"an older declaration of cell\.Order"):
        round_trip(registry, old)


# Content that is no field.


class Plain:
    """Written in Python, so all that it has are attributes."""


@pytest.mark.parametrize(
    "base",
    [
        list, dict, set, frozenset, bytearray, int, float, complex, str, bytes, Exception,
        collections.deque, collections.OrderedDict, collections.UserDict, collections.UserList,
        types.SimpleNamespace, io.BytesIO,
    ],
)  # fmt: skip
@pytest.mark.parametrize("plain", [True, False])
def test_a_class_that_has_content_besides_its_fields_is_refused(base, plain, registry):
    class Bag(base):
        owner: str

    with pytest.raises(TypeError, match=r"Bag is a .+ besides its fields, which would not travel"):
        if plain:
            message(registry=registry)(Bag)
        else:
            registry.register(dataclasses.dataclass(frozen=True)(Bag))


@pytest.mark.parametrize("base", [object, Plain, abc.ABC, Generic[T]])
def test_a_class_that_has_none_is_not(base, registry):
    @dataclasses.dataclass(frozen=True)
    class Bag(base):
        owner: str

    registry.register(Bag)
    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message(Bag("ann"))) == Bag("ann")


def test_a_class_whose_new_makes_something_else_is_refused_where_it_arrives(registry):
    @dataclasses.dataclass(frozen=True)
    class Odd:
        side: int

        def __new__(cls, side: int):
            return object.__new__(cls) if side < 5 else 5

    registry.register(Odd)
    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message(Odd(2))) == Odd(2)
    odd = object.__new__(Odd)
    object.__setattr__(odd, "side", 7)
    sent = codec.encode_message(odd)
    with pytest.raises(DecodeError, match="Odd: a int was built instead"):
        codec.decode_message(sent)


def test_a_root_model_travels(registry):
    pydantic = pytest.importorskip("pydantic")

    class Numbers(pydantic.RootModel[list[int]], frozen=True):
        pass

    registry.register(Numbers)
    codec = Codec(registry)
    sent = Numbers([1, 2])
    arrived = codec.decode_message(codec.encode_message(sent))
    assert arrived == sent and type(arrived) is Numbers
