"""Checks of fields: what an annotation says, and what of a value is not that."""

from __future__ import annotations

import datetime
import time

import pytest

from rabble._annotations import field_checks
from rabble._core.checks import Check


class Liar(type):
    """Its classes say that everything is an instance."""

    def __instancecheck__(cls, instance):
        raise AssertionError

    def __subclasscheck__(cls, subclass):
        raise AssertionError


class Odd(metaclass=Liar):
    def __eq__(self, other):
        raise AssertionError

    def __hash__(self):
        raise AssertionError

    def __repr__(self):
        raise AssertionError


def check_of(annotation):
    cls = type("Holder", (), {"__annotations__": {"field": annotation}})
    ((check, _),) = field_checks(cls, ("field",), lambda cls: False)
    return check


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("instance",),
        ("instance", 5),
        ("literal", int),
    ],
)
def test_what_makes_no_check_is_refused(arguments):
    kind, *base = arguments
    with pytest.raises(TypeError):
        Check(kind, "text", base=base[0] if base else None)
    with pytest.raises(TypeError):
        Check("types", "text", parts=(5,))
    with pytest.raises(TypeError):
        Check("union", "text", parts=(None,))
    with pytest.raises(TypeError):
        Check("places", "text", parts=(int,))


def test_the_real_class_is_what_counts():
    check = Check("instance", "Odd", base=Odd)
    assert check.fits(Odd())
    assert not check.fits(1)
    assert check.misfit(1) == "expected Odd, but an int (1) came"
    assert Check("instance", "date", base=datetime.date).fits(datetime.datetime(2020, 1, 1))
    assert Check("literal", "1", parts=(1,)).misfit(Odd()) == "expected 1, but an Odd came"


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (int, "x", "expected int, but a str ('x') came"),
        (int, None, "expected int, but None came"),
        (str, Odd(), "expected str, but an Odd came"),
        (list[int], [1, 2, "x"], "expected int at [2], but a str ('x') came"),
        (list[int], (1,), "expected list[int], but a tuple of 1 came"),
        (dict[str, list[int]], {"a": [1, Odd()]}, "expected int at ['a'][1], but an Odd came"),
        (dict[str, int], {1: 1}, "expected str at a key, but an int (1) came"),
        (tuple[int, str], (1, 2), "expected str at [1], but an int (2) came"),
        (tuple[int, str], (1,), "expected tuple[int, str], but a tuple of 1 came"),
        (set[int], {"x"}, "expected int at an element, but a str ('x') came"),
        (int | None, "x", "expected int | None, but a str ('x') came"),
        (str, b"x" * 1000, "expected str, but a bytes (b'" + "x" * 95 + "...) came"),
    ],
)
def test_what_does_not_fit_is_named(annotation, value, text):
    check = check_of(annotation)
    assert not check.fits(value)
    assert check.misfit(value) == text


def test_what_fits_has_no_misfit():
    assert check_of(dict[str, tuple[int, ...]]).misfit({"a": (1, 2)}) is None


def test_a_deep_value_takes_time_in_proportion():
    """Each part is looked at once for each check of its depth, whatever unions stand above it."""
    annotation = int | str
    for _ in range(10):
        annotation = list[annotation] | tuple[annotation, ...]
    check = check_of(annotation)
    value = 1
    for _ in range(10):
        value = (value,)
    start = time.process_time()
    for _ in range(100):
        check.fits(value)
    assert time.process_time() - start < 20
