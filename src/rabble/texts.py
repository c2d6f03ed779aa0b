"""Bounded texts: what an error, a report or an answer shows of what a user handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rabble._core.texts import bounded_repr, bounded_str, type_name
else:
    try:
        from rabble._core.texts import bounded_repr, bounded_str, type_name
    except ModuleNotFoundError:
        # Where only clients run, without the compiled core.
        from rabble._plain_texts import bounded_repr, bounded_str, type_name

__all__ = ["ARGUMENT_CHARS_MAX", "TEXT_CHARS_MAX", "argument_text", "cut", "described", "text_of"]

#: Characters of an exception's text, and of an answer to another node.
TEXT_CHARS_MAX = 500
#: Characters of an argument that cannot be used.
ARGUMENT_CHARS_MAX = 100


def cut(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A text of `chars_max` characters at the most; what was cut ends with an ellipsis."""
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."


def text_of(error: BaseException) -> str:
    """An exception's text, whatever its `__str__` does; bounded."""
    return bounded_str(error, TEXT_CHARS_MAX)


def described(error: BaseException) -> str:
    """An exception's class and text, whatever its class and its `__str__` do; bounded."""
    return f"{type_name(error)}: {text_of(error)}"


def argument_text(value: Any) -> str:
    """What a caller gave, as the text of an error shows it, whatever its `__repr__` does."""
    return bounded_repr(value, ARGUMENT_CHARS_MAX)
