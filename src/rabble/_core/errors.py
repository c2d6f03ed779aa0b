"""The errors that the core raises, below the one root of all that rabble raises of its own.

`rabble.errors` shows those that are a user's to catch, with the errors of the layers above.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "DecodeError",
    "DecodeLimitError",
    "DecodedSizeError",
    "EncodeError",
    "FrameError",
    "Interrupted",
    "RabbleError",
    "SessionError",
    "UnknownMessageError",
]


class RabbleError(Exception):
    """Base of all that rabble raises of its own.

    The text says everything. What a program may want to look at is there as well, where it is
    known; it goes along when the exception is pickled or copied.

    :ivar pid: the `Pid` that failed, or that could not be reached; or `None`.
    :ivar node: the `NodeId` where that happened, or `None`.
    :ivar detail: why, as text: of a crash the exception's class and text.
    :ivar crash: the number of the crash in the log of that node; 0: it was none.
    """

    pid: Any = None
    node: Any = None
    detail: str = ""
    crash: int = 0


class EncodeError(RabbleError, ValueError):
    """A message cannot be put into bytes; says what is in the way."""


class DecodeError(RabbleError, ValueError):
    """The bytes are no message; says what is wrong and where."""


class DecodeLimitError(DecodeError):
    """The bytes exceed a bound, or announce more than they hold."""


class UnknownMessageError(DecodeError):
    """The bytes are well-formed so far, but the registry has no such class, or it refuses."""


class DecodedSizeError(DecodeLimitError, UnknownMessageError):
    """What the bytes stand for takes more memory than is allowed.

    How much that is depends on the receiver's classes, which may have grown by fields that the
    sender does not know. So it is the end of that message, and not of its connection.
    """


class FrameError(RabbleError, ValueError):
    """The bytes are no frame.

    :ivar code: the refusal code that the peer is told.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"no frame: code {code}")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code,)


class SessionError(RabbleError, ValueError):
    """What the peer sent ends the connection.

    :ivar code: the refusal code that BYE tells the peer.
    :ivar text: what is wrong.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"code {code}: {text}")
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.text)


class Interrupted(BaseException):
    """Raised in a `receive` that had not returned when its node had to end.

    No `RabbleError`, nor any `Exception`: what a program catches of its own must not hold it up.
    """
