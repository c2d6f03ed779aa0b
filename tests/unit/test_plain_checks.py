"""The checks in plain Python: what the compiled ones accept and say, these do, too."""

from __future__ import annotations

import collections.abc
import datetime
import typing
from typing import Any

import pytest

import rabble._annotations
from rabble import _plain_checks
from rabble._annotations import field_checks


class Odd:
    def __eq__(self, other: object) -> bool:
        raise AssertionError

    def __hash__(self) -> int:
        raise AssertionError

    def __repr__(self) -> str:
        raise AssertionError


class Some(list):
    def __iter__(self):
        raise AssertionError


ANNOTATIONS: list[Any] = [
    *(int, float, complex, str, None, list, dict, tuple, set, Odd, datetime.date, object),
    *(list[int], list[list[int]], dict[str, list[int]], dict[str, int], set[int], frozenset[str]),
    *(tuple[int, ...], tuple[int, str], tuple[()], tuple[typing.Any, int], tuple[int, *tuple[str]]),
    *(int | str, int | None, typing.Literal[1, "a", b"b", True, None]),
    typing.Literal[tuple(range(20))],
    collections.abc.Sequence[int],
    collections.abc.Sequence,
    collections.abc.Mapping[str, int],
    collections.abc.Iterable[str],
    collections.abc.Set[int],
]
VALUES: list[Any] = [
    *(1, 1.5, 1j, "x", b"b", True, None, [], {}, (), set(), frozenset(), range(3), 2**70),
    *([1, 2, "x"], [[1], ["x"]], {"a": [1, Odd()]}, {1: 1}, {"a": 1}, {"a": "b"}, {1, "x"}),
    *((1,), (1, 2), (1, "x"), (1, "x", "y"), ("x", 1), frozenset("ab"), bytearray(b"x"), 15),
    *(Odd(), Some([1]), Some(["x"]), datetime.datetime(2020, 1, 1), "x" * 500, int),
]


def checks_of(annotation: Any) -> Any:
    cls = type("Holder", (), {"__annotations__": {"field": annotation}})
    ((check, complete),) = field_checks(cls, ("field",), lambda cls: False)
    return check, complete


def test_both_accept_the_same_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = [checks_of(annotation) for annotation in ANNOTATIONS]
    monkeypatch.setattr(rabble._annotations, "Check", _plain_checks.Check)
    plain = [checks_of(annotation) for annotation in ANNOTATIONS]
    misfits = 0
    for (one, whole), (other, other_whole) in zip(compiled, plain, strict=True):
        assert whole == other_whole
        assert (one is None) == (other is None)
        if one is None:
            continue
        assert type(other) is _plain_checks.Check
        assert one.text == other.text
        for value in VALUES:
            assert one.fits(value) == other.fits(value)
            assert one.misfit(value) == other.misfit(value)
            misfits += not one.fits(value)
    assert misfits > 100


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("nothing", {}),
        ("instance", {}),
        ("instance", {"base": 5}),
        ("literal", {"base": int}),
        ("types", {"parts": (5,)}),
        ("union", {"parts": (None,)}),
        ("places", {"parts": (int,)}),
    ],
)
def test_what_makes_no_check_is_refused(kind: str, arguments: dict[str, Any]) -> None:
    for cls in (_plain_checks.Check, rabble._annotations.Check):
        with pytest.raises(TypeError):
            cls(kind, "text", **arguments)
