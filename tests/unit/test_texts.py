"""Texts of what a user handed in are bounded, whatever its methods do."""

from __future__ import annotations

from rabble.texts import ARGUMENT_CHARS_MAX, TEXT_CHARS_MAX, argument_text, cut, described, text_of


class Silent(Exception):
    def __str__(self) -> str:
        raise LookupError

    __repr__ = __str__


def test_a_long_text_is_cut_and_says_so() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcdef", 5) == "ab..."
    assert len(cut("x" * 10_000)) == TEXT_CHARS_MAX


def test_an_error_is_described_by_its_class_and_text() -> None:
    assert described(ValueError("no")) == "ValueError: no"
    assert text_of(ValueError("no")) == "no"
    assert len(text_of(ValueError("x" * 10_000))) <= 2 * TEXT_CHARS_MAX


def test_an_error_without_a_text_is_described_all_the_same() -> None:
    assert described(Silent()).startswith("Silent: ")


def test_an_argument_is_shown_in_short() -> None:
    assert argument_text("a") == "'a'"
    assert len(argument_text("x" * 10_000)) <= 2 * ARGUMENT_CHARS_MAX
    assert argument_text(Silent())
