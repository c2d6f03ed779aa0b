"""What a server says to a client, decoded: the events of `rabble.client.protocol`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rabble.client.errors import Nack, RequestFailed
from rabble.errors import DecodeError

__all__ = ["Answer", "Event", "Failure", "Goodbye", "Push", "Refusal", "Undecoded", "error_of"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `id`."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Request `id` failed."""

    id: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Request `id` was not begun, and may come again after so many milliseconds."""

    id: int
    retry_after_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Undecoded:
    """Request `id` was answered by what cannot be built here, say by a class that is not known.

    :ivar id: `None`: it was a push.
    """

    id: int | None
    error: DecodeError


@dataclass(frozen=True, slots=True)
class Push:
    """A message that nobody asked for."""

    msg: Any


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last that the server says."""

    code: str
    text: str


Event = Answer | Failure | Refusal | Undecoded | Push | Goodbye


def error_of(event: Event) -> Exception | None:
    """What whoever made the request is raised; `None` if it was answered."""
    if isinstance(event, Refusal):
        nack = Nack(
            f"the server is busy, and asks to come again after {event.retry_after_ms} ms"
            + (f": {event.text}" if event.text else "")
        )
        nack.retry_after = event.retry_after_ms / 1000
        return nack
    if isinstance(event, Failure):
        failed = RequestFailed(f"{event.code}: {event.text}" if event.text else event.code)
        failed.code = event.code
        failed.detail = event.text
        return failed
    if isinstance(event, Undecoded):
        return event.error
    return None
