"""The bounded texts in plain Python: as the compiled ones, of whatever a user hands in."""

from __future__ import annotations

from typing import Any

import pytest

from rabble import _plain_texts
from rabble._core import texts


class Raises:
    def __repr__(self) -> str:
        raise ValueError

    __str__ = __repr__


@pytest.mark.parametrize("most", [20, 1_000])
@pytest.mark.parametrize("value", [None, 5, "x" * 30, [1, 2], ValueError("why"), int, "ü" * 20])
def test_they_say_the_same(value: Any, most: int) -> None:
    assert _plain_texts.bounded_repr(value, most) == texts.bounded_repr(value, most)
    assert _plain_texts.bounded_str(value, most) == texts.bounded_str(value, most)
    assert _plain_texts.type_name(value) == texts.type_name(value)


def test_what_has_no_text_is_said() -> None:
    for one, other in (
        (_plain_texts.bounded_repr, texts.bounded_repr),
        (_plain_texts.bounded_str, texts.bounded_str),
    ):
        assert one(Raises(), 100) == other(Raises(), 100)
