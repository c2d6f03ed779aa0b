"""Annotations of fields become checks, for whatever can be checked without asking a user's code."""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import sys
import typing
import uuid
from typing import Annotated, Any, Generic, Literal, NewType, Optional, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import CorrelationId, NodeId, Pid
from rabble._annotations import field_checks, guarded
from rabble._core.codec import Codec
from rabble._core.errors import DecodeError
from rabble.registry import MessageRegistry, message

T = TypeVar("T")
B = TypeVar("B", bound=int)
C = TypeVar("C", int, str)
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Shape:
    pass


class Circle(Shape):
    pass


class Abstract(abc.ABC):  # noqa: B024
    pass


class Box(Generic[T]):
    pass


class Options(typing.TypedDict):
    n: int


NODE = NodeId("n", "127.0.0.1:1")
PID = Pid("p", NODE)
DAY = datetime.datetime(2020, 1, 2)


def compiled(annotation, registered=()):
    cls = type("Holder", (), {"__annotations__": {"field": annotation}})
    (found,) = field_checks(cls, ("field",), lambda cls: any(cls is one for one in registered))
    return found


FITTING = [
    (int, [1, True, 2**70], ["1", 1.0, None, b"1"]),
    (str, ["x"], [b"x", 1, None]),
    (float, [1.5, 1], ["1.5", 1j, None]),
    (complex, [1j, 1.5, 1], ["1"]),
    (bool, [True], [1, "True"]),
    (bytes, [b"x"], ["x", bytearray(b"x")]),
    (bytearray, [bytearray(b"x")], [b"x"]),
    (None, [None], [0, False]),
    (datetime.date, [DAY.date(), DAY], ["2020-01-02", 1]),
    (datetime.datetime, [DAY], [DAY.date()]),
    (decimal.Decimal, [decimal.Decimal("1.5")], [1.5]),
    (uuid.UUID, [uuid.UUID(int=1)], ["1"]),
    (list, [[1, "x"]], [(1,)]),
    (list[int], [[], [1]], [["x"], (1,), [[1]]]),
    (typing.List[int], [[1]], [["x"]]),  # noqa: UP006
    (tuple[int, ...], [(), (1, 2)], [("x",), [1]]),
    (tuple[()], [()], [(1,)]),
    (tuple[int, str], [(1, "x")], [(1,), (1, 2), (1, "x", 2), [1, "x"]]),
    (set[int], [{1}, set()], [{"x"}, frozenset({1})]),
    (frozenset[int], [frozenset({1})], [{1}, frozenset({"x"})]),
    (dict[str, int], [{}, {"a": 1}], [{1: 1}, {"a": "x"}, [("a", 1)]]),
    (dict[Any, list[str]], [{1: ["x"]}], [{1: [1]}]),
    (collections.abc.Sequence[int], [[1], (1,), range(3), b"x"], [["x"], {1}, 1, "x"]),
    (typing.Sequence[str], [["x"], "x"], [[1], b"x"]),
    (collections.abc.Mapping[str, int], [{"a": 1}], [{"a": "x"}, []]),
    (collections.abc.Iterable[int], [[1], {1}, {1: "x"}], [["x"], 5, None]),
    (collections.abc.Set[int], [{1}, frozenset({1})], [[1], {"x"}]),
    (collections.abc.Mapping, [{}], [[]]),
    (Union[int, str], [1, "x"], [None, b"x"]),  # noqa: UP007
    (int | None, [1, None], ["x"]),
    (Optional[list[int]], [None, [1]], [["x"]]),  # noqa: UP045
    (Literal[1, "a", None, b"b", Colour.RED], [1, "a", None, b"b", Colour.RED], [
        True, "b", 2, Colour.BLUE, 1.0,
    ]),
    (Annotated[int, "metres"], [1], ["x"]),
    (typing.Final[int], [1], ["x"]),
    (UserId, [1], ["x"]),
    (Colour, [Colour.RED], [1, "RED"]),
    (Shape, [Shape(), Circle()], [1, "Shape"]),
    (Pid, [PID], [NODE, "p"]),
    (NodeId, [NODE], [PID]),
    (CorrelationId, [CorrelationId(PID)], [PID]),
    ("int", [1], ["x"]),
    ("list['int']", [[1]], [["x"]]),
    (type(None), [None], [1]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "good", "bad"), FITTING)
def test_what_an_annotation_lets_pass(annotation, good, bad):
    check, complete = compiled(annotation)
    assert complete
    for value in good:
        assert check.fits(value), value
    for value in bad:
        assert not check.fits(value), value


@pytest.mark.parametrize("annotation", [Any, object])
def test_anything_passes_and_that_is_all_it_says(annotation):
    assert compiled(annotation) == (None, True)
    assert compiled(int | annotation) == (None, True)
    check, complete = compiled(list[annotation])
    assert complete
    assert check.fits([1, "x"])
    assert not check.fits(1)


@pytest.mark.parametrize(
    "annotation",
    [T, collections.abc.Callable[[int], str], type[int], collections.abc.Hashable, Abstract,
     typing.Protocol, "NoSuchName", "1 +", "1 / 0", 5, typing.SupportsInt],
)  # fmt: skip
def test_what_is_left(annotation):
    assert compiled(annotation) == (None, False)


def test_what_is_partly_checked():
    for annotation, good, bad in (
        (B, 1, "x"),
        (C, "x", b"x"),
        (Box[int], Box(), 1),
        (list[T], [1], 1),
        (dict[str, T], {"a": 1}, {1: 1}),
        (tuple[int, T], (1, 2), ("x", 2)),
        (Options, {"n": 1}, 1),
    ):
        check, complete = compiled(annotation)
        assert not complete
        assert check.fits(good)
        assert not check.fits(bad)


def test_a_registered_class_is_known_whatever_its_metaclass_says():
    check, complete = compiled(Abstract, [Abstract])
    assert complete
    assert check.fits(Abstract())
    assert not check.fits(1)


def test_a_nesting_without_end_is_left():
    annotation: Any = int
    for _ in range(100):
        annotation = list[annotation]
    check, complete = compiled(annotation)
    assert not complete
    assert check.fits([[[]]])
    assert not check.fits([[[1]]])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="has no `type` statement")
def test_an_alias_that_refers_to_itself():
    names: dict[str, Any] = {}
    exec("type Json = dict[str, Json] | list[Json] | str\ntype Pair[T] = tuple[T, T]", names)  # noqa: S102
    check, complete = compiled(names["Json"])
    assert not complete
    assert check.fits({"a": ["x"]})
    assert not check.fits({"a": [1]})
    assert not compiled(names["Pair"][int])[0].fits((1, "x"))


def test_names_are_resolved_at_first_use():
    registry = MessageRegistry()

    @message(name="Node", registry=registry)
    class Tree:
        value: int
        below: list[Tree]
        later: Later  # noqa: F821
        never: NoSuchName  # noqa: F821

    assert registry.unchecked(Tree) == ("later", "never")
    globals()["Later"] = int
    try:
        codec = Codec(registry)
        assert registry.unchecked(Tree) == ("never",)
        tree = Tree(1, [Tree(2, [], 3, None)], 4, "x")
        assert codec.decode_message(codec.encode_message(tree)) == tree
        for wrong, text in (
            (Tree(1, [2], 3, None), r"Node\.below: expected Tree at \[0\], but an int \(2\) came"),
            (Tree(1, [], "x", None), r"Node\.later: expected int, but a str \('x'\) came"),
        ):
            with pytest.raises(DecodeError, match=text):
                codec.decode_message(codec.encode_message(wrong))
    finally:
        del globals()["Later"]


def test_what_is_not_checked_is_all_of_it_if_nothing_is():
    registry = MessageRegistry()

    @message(registry=registry, check=False)
    class Loose:
        a: int
        b: str

    assert registry.unchecked(Loose) == ("a", "b")
    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message(Loose("x", 1))) == Loose("x", 1)
    with pytest.raises(LookupError):
        registry.unchecked(int)


scalars = [
    (int, st.integers(-(2**63), 2**64 - 1)),
    (str, st.text(max_size=5)),
    (float, st.floats(allow_nan=False) | st.integers(0, 9)),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=5)),
    (None, st.none()),
    (Any, st.integers() .filter(lambda n: -(2**63) <= n < 2**64)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
]  # fmt: skip
#: Fits none of them, nor anything made of them, but `Any`.
MISFIT = {"misfit": 1.5}


def containers(inner):
    def made(pair):
        annotation, values = pair
        return st.sampled_from([
            (list[annotation], st.lists(values, max_size=3)),
            (collections.abc.Sequence[annotation], st.lists(values, max_size=3)),
            (dict[str, annotation], st.dictionaries(st.text(max_size=3), values, max_size=3)),
            (Optional[annotation], st.none() | values),  # noqa: UP045
            (Annotated[annotation, "note"], values),
        ])  # fmt: skip

    return inner.flatmap(made)


annotated = st.recursive(st.sampled_from(scalars), containers, max_leaves=4)


@given(st.lists(annotated, min_size=1, max_size=5), st.data())
def test_random_classes(fields, data):
    registry = MessageRegistry()
    names = [f"f{n}" for n in range(len(fields))]
    made = dataclasses.make_dataclass(
        "Made",
        [(name, annotation) for name, (annotation, _) in zip(names, fields, strict=True)],
        frozen=True,
        slots=data.draw(st.booleans()),
    )
    registry.register(made, "Made")
    assert registry.unchecked(made) == ()
    codec = Codec(registry)
    values = [data.draw(values) for _, values in fields]
    value = made(*values)
    found = codec.decode_message(codec.encode_message(value))
    assert found == value
    assert repr(found) == repr(value)
    place = data.draw(st.integers(0, len(fields) - 1))
    check, _ = compiled(fields[place][0])
    values[place] = MISFIT
    data = codec.encode_message(made(*values))
    if check is None or check.fits(MISFIT):
        codec.decode_message(data)
    else:
        with pytest.raises(DecodeError, match=f"Made.f{place}: expected "):
            codec.decode_message(data)


def test_a_field_stays_checked_though_there_was_no_memory_for_its_annotation_once(monkeypatch):
    registry = MessageRegistry()

    @message(name="Till", registry=registry)
    class Till:
        price: int

    codec = Codec(registry)
    data = codec.encode_message(Till("x"))  # type: ignore[arg-type]
    hints = typing.get_type_hints

    def fails(*args, **more):
        monkeypatch.setattr(typing, "get_type_hints", hints)
        raise MemoryError

    monkeypatch.setattr(typing, "get_type_hints", fails)
    with pytest.raises(DecodeError, match="cannot be built here: MemoryError"):
        codec.decode_message(data)
    with pytest.raises(DecodeError, match="Till.price: expected int, but a str"):
        codec.decode_message(data)


@pytest.mark.parametrize(
    ("bare", "fitting"),
    [
        (typing.Tuple, (1, 2)),  # noqa: UP006
        (typing.List, [1]),  # noqa: UP006
        (typing.Dict, {1: 2}),  # noqa: UP006
        (typing.Set, {1}),  # noqa: UP006
        (typing.FrozenSet, frozenset({1})),  # noqa: UP006
    ],
)
def test_an_older_name_of_a_builtin_class_is_that_class(bare, fitting):
    check, complete = compiled(bare)
    assert complete
    assert check.fits(fitting) and check.fits(type(fitting)())
    assert not check.fits(None) and not check.fits("x")
    check, complete = compiled(Optional[bare])  # noqa: UP045
    assert complete and check.fits(fitting) and check.fits(None)


def test_values_of_a_long_literal_are_looked_up():
    values = (*range(10), "a", b"b", None, Colour.RED)
    check, complete = compiled(Literal[values])
    assert complete
    assert all(check.fits(value) for value in values)
    assert not any(check.fits(value) for value in (10, True, 1.0, "b", b"a", Colour.BLUE, [1]))


def test_an_annotation_of_too_many_parts_is_left_before_anybody_follows_it():
    """The parts are shared, so it is small; but to follow it, or to print it, has no end."""
    shared = int
    for _ in range(60):
        shared = list[shared] | tuple[shared, ...]
    Deep = type("Deep", (), {})  # noqa: N806
    assert guarded(shared, Deep, lambda cls: False) == (None, False)
