"""Classes that grow: fields that do not come, and fields that are not known here."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.codec import Codec
from rabble._core.errors import DecodeError, DecodeLimitError, UnknownMessageError
from rabble.registry import MessageRegistry, message
from tests.core.codecs import ext


class Tuple(NamedTuple):
    a: int
    b: str = "b"
    c: Any = 5


def classes(kind):
    """A class of three fields, of which the latter two have defaults."""
    registry = MessageRegistry()
    if kind == "struct":
        msgspec = pytest.importorskip("msgspec")
        fields = [("a", int), ("b", str, "b"), ("c", Any, msgspec.field(default_factory=list))]
        cls = msgspec.defstruct("Grown", fields)
        registry.register(cls, "Grown")
    elif kind == "pydantic":
        pydantic = pytest.importorskip("pydantic")
        cls = pydantic.create_model(
            "Grown",
            __config__={"frozen": True},
            a=(int, ...),
            b=(str, "b"),
            c=(Any, pydantic.Field(default_factory=list)),
        )
        registry.register(cls, "Grown")
    elif kind == "attrs":
        attrs = pytest.importorskip("attrs")
        fields = {"a": attrs.field(), "b": attrs.field(default="b")}
        cls = attrs.make_class("Grown", {**fields, "c": attrs.field(factory=list)}, frozen=True)
        registry.register(cls, "Grown")
    elif kind == "tuple":
        cls = Tuple
        registry.register(cls, "Grown")
    else:
        fields = [("a", int), ("b", str, "b"), ("c", Any, dataclasses.field(default_factory=list))]
        namespace = {"__post_init__": lambda self: None} if kind == "call" else {}
        cls = dataclasses.make_dataclass(
            "Grown", fields, frozen=True, slots=kind != "attributes", namespace=namespace
        )
        registry.register(cls, "Grown", post_init=kind == "call")
    return registry, cls


KINDS = ["slots", "attributes", "call", "tuple", "struct", "pydantic", "attrs"]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_do_not_come_have_their_defaults(kind):
    registry, cls = classes(kind)
    codec = Codec(registry)
    last = 5 if kind == "tuple" else []
    assert codec.decode_message(ext(1, "Grown", [1])) == cls(a=1, b="b", c=last)
    assert codec.decode_message(ext(1, "Grown", [1, "x"])) == cls(a=1, b="x", c=last)
    if kind != "tuple":
        one, other = codec.decode_message(b"\x92" + 2 * ext(1, "Grown", [1]))
        assert one.c is not other.c
    with pytest.raises(DecodeError, match="Grown has 3 fields here, but 0 came.*default for a$"):
        codec.decode_message(ext(1, "Grown", []))
    assert codec.fields_dropped == 0


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_are_not_known_are_dropped_and_counted(kind):
    registry, cls = classes(kind)
    codec = Codec(registry)
    assert codec.decode_message(ext(1, "Grown", [1, "x", 3, [4], "five"])) == cls(a=1, b="x", c=3)
    assert codec.fields_dropped == 2
    # Nothing of them is built: no class is looked up, no text decoded.
    nobody = ext(1, "Nobody", [1])
    data = b"\xa5Grown\x94\x01\xa1x\x03" + b"\x92" + nobody + b"\xa1\xff"
    found = codec.decode_message(bytes([0xC7, len(data), 1]) + data)
    assert found == cls(a=1, b="x", c=3)
    assert codec.fields_dropped == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_does_not_fit_is_named(kind):
    registry, _ = classes(kind)
    if kind == "attrs":
        return  # the class that is made here has no annotations
    for codec in (Codec(registry), Codec(registry)):
        with pytest.raises(DecodeError, match=r"Grown\.b: expected str, but an int \(2\) came"):
            codec.decode_message(ext(1, "Grown", [1, 2]))
    registry.register(registry.class_of("Grown"), "Grown", check=False)
    if kind != "pydantic":
        assert codec.decode_message(ext(1, "Grown", [1, 2])).b == 2


def wrap(body):
    return b"\xc9" + len(body).to_bytes(4, "big") + b"\x01" + body


@pytest.mark.parametrize(
    ("dropped", "error"),
    [
        (b"\x91" * 70 + b"\x01", DecodeLimitError),
        (b"\xdd\xff\xff\xff\xff", DecodeLimitError),
        (b"\xdf\xff\xff\xff\xff", DecodeLimitError),
        (b"\xc6\xff\xff\xff\xff", DecodeLimitError),
        (b"\xc9\xff\xff\xff\xff\x01", DecodeLimitError),
        (b"\xa5abc", DecodeLimitError),
        (b"\xdc\x00\x20" + b"\x01" * 32, DecodeLimitError),
        (b"\xc1", DecodeError),
        (b"\xcb\x00", DecodeError),
        (b"\xdc\x00", DecodeError),
        (b"", DecodeError),
        (b"\x01\x01", DecodeError),
    ],
)
def test_what_is_dropped_is_held_to_the_same_bounds(dropped, error):
    registry, _ = classes("slots")
    codec = Codec(registry, elements_max=20)
    with pytest.raises(error):
        codec.decode_message(wrap(b"\xa5Grown\x94\x01\xa1x\x03" + dropped))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(values, max_size=4))
def test_any_values_are_passed_over(more):
    registry, cls = classes("slots")
    codec = Codec(registry)
    body = b"\xa5Grown" + codec.encode_message([1, "x", 3, *more])
    assert codec.decode_message(b"\x92" + wrap(body) + b"\x07") == [cls(1, "x", 3), 7]
    assert codec.fields_dropped == len(more)


def test_a_factory_that_raises_is_what_refuses():
    registry = MessageRegistry()

    def fails():
        raise SystemExit("no default today")

    @message(name="Fails", registry=registry)
    class Fails:
        a: int = dataclasses.field(default_factory=fails)

    with pytest.raises(DecodeError, match="Fails refuses: SystemExit: no default today"):
        Codec(registry).decode_message(ext(1, "Fails", []))


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x

    __hash__ = None


class Further(Point):
    pass


def typed(encode=lambda point: [point.x], decode=lambda parts: Point(*parts)):
    registry = MessageRegistry()
    registry.register_type(Point, "Point", encode, decode)
    return Codec(registry)


def test_types_with_functions_of_their_own():
    codec = typed()
    data = codec.encode_message([Point(1), Point({"a": [2]})])
    assert data.startswith(b"\x92" + ext(6, "Point", [1]))
    found = codec.decode_message(data)
    assert found == [Point(1), Point({"a": [2]})]
    assert type(found[0]) is Point
    # Only the very class, as a subclass would arrive as another one.
    with pytest.raises(ValueError, match="Further cannot be in a message"):
        codec.encode_message(Further(1))


def test_what_functions_of_a_type_do_wrong():
    with pytest.raises(ValueError, match="encode function of Point raised KeyError: 'x'"):
        typed(encode=lambda point: {}["x"]).encode_message(Point(1))
    with pytest.raises(ValueError, match="nested deeper than"):
        typed(encode=lambda point: point).encode_message(Point(1))
    with pytest.raises(DecodeError, match="Point refuses: SystemExit"):
        typed(decode=lambda parts: exit()).decode_message(ext(6, "Point", [1]))
    with pytest.raises(
        DecodeError, match="its decode function returned a list, and no instance of its class"
    ):
        typed(decode=lambda parts: parts).decode_message(ext(6, "Point", [1]))
    for data, text in (
        (ext(1, "Point", [1]), "no message class here, but a type"),
        (ext(2, "Point", 1), "no enum here, but a type"),
        (ext(6, "Grown", [1]), "no registered type here, but a message class"),
        (ext(6, "Nobody", [1]), "no class is registered"),
        (ext(6, 1, [1]), "begins with its wire name"),
        (ext(6, "Point"), "elements are announced"),
        (ext(6, "Point", 1, 2), "bytes too many"),
    ):
        registry, _ = classes("slots")
        registry.register_type(Point, "Point", lambda point: point.x, Point)
        with pytest.raises(DecodeError, match=text):
            Codec(registry).decode_message(data)


def test_types_that_cannot_be_registered():
    registry = MessageRegistry()
    for cls in (int, list, type(None)):
        with pytest.raises(TypeError, match="travels as it is"):
            registry.register_type(cls, "x", repr, repr)
    with pytest.raises(TypeError, match="two functions"):
        registry.register_type(Point, "Point", repr, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="only a class"):
        registry.register_type(5, "Point", repr, repr)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wire name"):
        registry.register_type(Point, "a b", repr, repr)
    assert len(registry) == 0


def test_a_named_tuple_that_is_not_all_there_may_look_at_itself_when_it_goes():
    registry, seen = MessageRegistry(), []

    @message(name="Looks", registry=registry)
    class Looks(NamedTuple):
        a: int
        b: int

        def __del__(self):
            seen.append((self.a, self.b, len(repr(self)) > 0))

    with pytest.raises(DecodeError, match="Looks.b: expected int"):
        Codec(registry).decode_message(ext(1, "Looks", [1, None]))
    assert seen == [(1, None, True)]


def test_what_grew_apart_is_dropped_where_two_are_one():
    """Two elements that differ by a field which is not known here: an honest program sent them."""
    newer, older = MessageRegistry(), MessageRegistry()

    @message(name="Grown", registry=newer)
    class Newer:
        a: int
        b: str = ""

    @message(name="Grown", registry=older)
    class Older:
        a: int

    two = (Newer(1, "x"), Newer(1, "y"))
    for msg in (set(two), dict.fromkeys(two)):
        with pytest.raises(UnknownMessageError, match="twice"):
            Codec(older).decode_message(Codec(newer).encode_message(msg))


def test_annotations_are_looked_up_without_the_lock_of_the_registry(monkeypatch):
    """They may import modules, and one that is imported elsewhere meanwhile declares a class."""
    registry = MessageRegistry()

    @message(name="Lazy", registry=registry)
    class Lazy:
        x: int

    checks_of = MessageRegistry.checks_of

    def slowly(self, registration):
        def declare():
            message(name="Another", registry=registry)(type("Another", (), {}))

        declaring = threading.Thread(target=declare)
        declaring.start()
        declaring.join(30)
        assert not declaring.is_alive()
        monkeypatch.setattr(MessageRegistry, "checks_of", checks_of)
        return checks_of(self, registration)

    monkeypatch.setattr(MessageRegistry, "checks_of", slowly)
    assert Codec(registry).decode_message(ext(1, "Lazy", [1])) == Lazy(1)
    assert "Another" in [registry.name_of(registry.class_of("Another"))]


def test_nobody_builds_an_abstract_class():
    registry = MessageRegistry()

    @message(name="Shape", registry=registry)
    class Shape(abc.ABC):
        side: int

        @abc.abstractmethod
        def area(self) -> int: ...

    with pytest.raises(DecodeError, match="abstract"):
        Codec(registry).decode_message(ext(1, "Shape", [1]))


def test_a_named_tuple_with_a_constructor_of_its_own_is_built_by_it():
    registry = MessageRegistry()

    class Base(NamedTuple):
        a: int

    @message(name="Positive", registry=registry)
    class Positive(Base):
        def __new__(cls, a):
            if a <= 0:
                raise ValueError(f"{a} is not positive")
            return super().__new__(cls, a)

    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message(Positive(1))) == (1,)
    with pytest.raises(DecodeError, match="0 is not positive"):
        codec.decode_message(ext(1, "Positive", [0]))


def test_no_code_of_a_metaclass_runs_for_a_check():
    registry = MessageRegistry()

    class Raises(type):
        def __eq__(cls, other):
            raise SystemExit(3)

        __hash__ = type.__hash__

    class Odd(metaclass=Raises):
        pass

    registry.register_type(Odd, "Odd", lambda odd: 1, lambda one: Odd())

    @message(name="Holds", registry=registry)
    class Holds:
        items: Sequence[int]

    codec = Codec(registry)
    # Of a class of a user's nobody else knows whether it is a Sequence.
    assert type(codec.decode_message(codec.encode_message(Holds(Odd()))).items) is Odd
