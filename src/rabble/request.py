"""`Request`: what type checkers know of the reply to a message."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Generic

if TYPE_CHECKING:
    from typing import Any

    # Type checkers bring this module themselves.
    from typing_extensions import TypeVar

    ReplyType = TypeVar("ReplyType", covariant=True, default=Any)
else:
    from typing import TypeVar

    ReplyType = TypeVar("ReplyType", covariant=True)

__all__ = ["Replied", "Request"]

#: What replies to the `Request` that is at hand.
Replied = typing.TypeVar("Replied")


class Request(Generic[ReplyType]):
    """A base class for messages that are answered: `class Get(Request[Value])`.

    Then `node.call(pid, Get(...))` returns a `Value` for type checkers. It is for them alone:
    nothing of it is checked when it runs, it has no fields, and it travels nowhere.

    .. code-block:: python

        @rabble.message
        class Get(rabble.Request[int]):
            key: str
    """

    __slots__ = ()
