"""Texts of what a user handed in, as of `rabble._core.texts`, where the compiled core is not."""

from __future__ import annotations

__all__ = ["bounded_repr", "bounded_str", "type_name"]


def type_name(value: object) -> str:
    """The name of a value's class."""
    return type(value).__name__[:200]


def bounded_repr(value: object, most: int) -> str:
    """`repr(value)`, cut to `most` characters; what is wrong with it if there is none."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - it may raise anything
        return f"a {type_name(value)} whose repr raises {type_name(error)}"
    return text if len(text) <= most else text[: max(most - 3, 0)] + "..."


def bounded_str(value: object, most: int) -> str:
    """As `bounded_repr`, of `str(value)`."""
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - it may raise anything
        return f"a {type_name(value)} whose str raises {type_name(error)}"
    return text if len(text) <= most else text[: max(most - 3, 0)] + "..."
