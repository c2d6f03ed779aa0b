"""The encoder: what cannot travel is refused, whatever a user's objects do meanwhile."""

from __future__ import annotations

import dataclasses
import enum

import pytest

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.errors import DecodeError, EncodeError
from rabble.registry import MessageRegistry, message
from tests.core.codecs import CODEC, PID, Colour, Equal, Order, declared, ext
from tests.reference import codec as reference

#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")


class Int(int):
    pass


def looped():
    value = []
    value.append(value)
    return value


# The codec's part.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "@rabble.message"),
        (memoryview(b"x"), "bytes"),
        (Int(1), "subclass of int"),
        (len, "functions do not travel"),
        (int, "functions do not travel"),
        ({len: 2}, "functions do not travel"),
        ({"a": {(Int(1),): 2}}, "subclass of int"),
        ({"a": {Int(1)}}, "subclass of int"),
        (looped(), "contains itself"),
        ("\ud800", "lone surrogates"),
        ({"\ud800": 1}, "lone surrogates"),
        (Order.__new__(Order), "never set"),
        (Order(1, {object()}, 3.0), "@rabble.message"),
    ],
)
def test_what_cannot_be_encoded_says_why(value, text):
    with pytest.raises(EncodeError, match=text):
        CODEC.encode_message(value)
    with pytest.raises(EncodeError, match=text):
        CODEC.encode_envelope(Envelope(PID, [value]))
    assert CODEC.decode_message(CODEC.encode_message([1])) == [1]


def test_of_a_property_that_lacks_something_itself_the_cause_is_said():
    registry = MessageRegistry()

    @dataclasses.dataclass(frozen=True)
    class Lacking:
        a: int

        def __getattribute__(self, name):
            if name == "a":
                raise AttributeError("no attribute 'other'")
            return object.__getattribute__(self, name)

    registry.register(Lacking, "Lacking")
    with pytest.raises(EncodeError, match="field a was never set") as caught:
        Codec(registry).encode_message(Lacking(1))
    assert "other" in str(caught.value.__cause__)


def test_what_a_property_replaces_is_written_to_its_end():
    registry = MessageRegistry()

    @message(name="Outer", registry=registry)
    class Outer:
        first: object
        then: object

    def replace():
        object.__setattr__(outer, "first", None)
        listed[1] = None
        mapped["also"] = None
        return 7

    meddler = declared(registry, field=replace)
    listed, mapped = [[meddler(), 1], ["x" * 40]], {"k": [meddler(), 2], "also": "y" * 40}
    outer = Outer([meddler(), ["z" * 40] * 20], [listed, mapped])
    data = Codec(registry).encode_message(outer)
    back = Codec(MessageRegistry()).decode_message
    with pytest.raises(DecodeError):
        back(data)
    # The slot's old value was written whole, what was changed before its turn as it then was.
    meddled = ext(1, "Meddler", [7])
    assert data[-len(reference.encode(registry, {"also": None})[1:]) :].endswith(b"also\xc0")
    assert data.count(meddled) == 3
    assert data.count(b"z" * 40) == 20
    assert b"x" * 40 not in data and b"y" * 40 not in data


def test_a_dict_that_grows_with_each_look_has_an_end():
    registry = MessageRegistry()
    looks = []

    def grow():
        looks.append(0)
        mapped[f"k{len(looks)}"] = meddler()
        return 1

    meddler = declared(registry, field=grow)
    mapped = {"k": meddler()}
    with pytest.raises(EncodeError, match="changed its size"):
        Codec(registry).encode_message(mapped)
    assert len(looks) == 1
    mapped = {"first" + "x" * 100: meddler(), "second" + "x" * 100: 1}
    looks[:] = [0] * 10

    def clear():
        mapped.clear()
        return 1

    declared_again = declared(MessageRegistry(), field=clear)
    registry = MessageRegistry()
    registry.register(declared_again, "Clears")
    mapped = {"first" + "x" * 100: declared_again(), "second" + "x" * 100: 1}
    with pytest.raises(EncodeError, match="changed its size"):
        Codec(registry).encode_message(mapped)


def test_classes_that_are_registered_meanwhile():
    registry = MessageRegistry()

    def register():
        name = f"New{len(registry)}"
        registry.register(
            type(name, (enum.Enum,), enum.EnumType.__prepare__(name, (enum.Enum,))), name
        )
        return Colour.RED

    meddler = declared(registry, field=register)
    registry.register(Colour, "Colour")
    codec = Codec(registry)
    expected = [ext(1, "Meddler", [Colour.RED])]
    assert codec.encode_message([meddler()] * 3) == b"\x93" + expected[0] * 3
    assert len(registry) == 5
    assert codec.encode_message([meddler()]) == b"\x91" + expected[0]


@pytest.mark.parametrize("error", [SystemExit, KeyError, MemoryError, GeneratorExit])
def test_what_a_property_raises_comes_out_as_it_is(error):
    registry = MessageRegistry()

    def fail():
        raise error("no")

    meddler = declared(registry, field=fail)
    codec = Codec(registry)
    for value in (meddler(), [meddler()], {"k": meddler()}):
        with pytest.raises(error, match="no"):
            codec.encode_message(value)
    assert codec.decode_message(codec.encode_message([1])) == [1]


def test_classes_that_say_they_are_equal_are_told_apart():
    """By another class's plan memory would be read that the instance does not have."""
    registry = MessageRegistry()

    class Wide(metaclass=Equal):
        fields = [f"f{n}" for n in range(200)]
        __annotations__ = dict.fromkeys(fields, int)

    del Wide.fields
    wide = message(name="Wide", registry=registry)(Wide)

    class Thin(metaclass=Equal):
        __slots__ = ()

    codec = Codec(registry)
    one = wide(*range(200))
    expected = reference.extension(
        1, CODEC.encode_message("Wide") + CODEC.encode_message(list(range(200)))
    )
    assert codec.encode_message(one) == expected
    assert Thin not in registry
    with pytest.raises(EncodeError, match="a Thin cannot be in a message"):
        codec.encode_message(Thin())
    assert codec.encode_message(one) == expected


def test_an_object_that_lies_about_its_class_is_refused_all_the_same():
    class Liar:
        @property
        def __class__(self):
            raise SystemExit("asked")

    class Name(str):
        __slots__ = ()

    for value, text in ((Liar(), "a Liar cannot"), (Name("x"), "it is a subclass of str")):
        with pytest.raises(EncodeError, match=text):
            CODEC.encode_message(value)
    with pytest.raises(EncodeError, match="a Liar cannot be in a message"):
        CODEC.encode_message({Liar(): 1})


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("size", [0, 1, 5, 40, 3000])
def test_a_set_is_written_in_its_order_without_what_was_taken_out_of_it(kind, size):
    """Its table still has places of the elements that were."""
    value = {f"element {n}" for n in range(size)} | set(range(size)) | {None}
    for n in range(0, size, 3):
        value.discard(n)
        value.discard(f"element {n}")
    if kind is frozenset:
        value = frozenset(value)
    code = 8 if kind is set else 9
    written = CODEC.encode_message(value)
    assert written.endswith(CODEC.encode_message(list(value)))
    assert written[: written.index(CODEC.encode_message(list(value)))][-1] == code
    found = CODEC.decode_message(written)
    assert found == value
    assert type(found) is kind
