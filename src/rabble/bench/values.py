"""What it costs to send the types that Python programs say every day, beside msgpack's own."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import msgpack

from rabble.bench.codec import DIFFERENT, Rival, against, msgpack_of, msgspec_of
from rabble.bench.model import Case, Target
from rabble.bench.typed import has_msgspec

__all__ = ["values"]

NOON = datetime.datetime(2026, 11, 29, 12, 0, 0, 250_000, tzinfo=datetime.UTC)

#: By what the lines of the table call it: the n-th value, and its type as msgspec has it.
EVERYDAY: tuple[tuple[str, Callable[[int], Any], Any], ...] = (
    ("tuple", lambda n: ("add", n, n / 8), tuple[str, int, float]),
    ("set", lambda n: {n, n + 1, n + 2}, set[int]),
    ("datetime", lambda n: NOON + datetime.timedelta(minutes=n), datetime.datetime),
    ("uuid", lambda n: uuid.UUID(int=(n << 64) + 1), uuid.UUID),
    ("decimal", lambda n: decimal.Decimal(n * 10 + 5) / 100, decimal.Decimal),
)


def values(envelopes: int = 100_000) -> list[Case]:
    """Encode and decode envelopes with a tuple, a set, a datetime, a UUID and a Decimal, as `codec`
    does.

    The limit is msgspec with the type given to its decoder, which alone tells it what the bytes
    are; beside it msgpack with hooks for extension types. Where msgspec is not installed, that is
    the limit.
    """
    return [
        against(f"values-{name}", made, 1, envelopes, rivals(made, types), Target(1.0))
        for name, made, types in (
            (name, [make(n) for n in range(DIFFERENT)], types) for name, make, types in EVERYDAY
        )
    ]


def rivals(payloads: list[Any], types: Any) -> dict[str, Rival]:
    """What the values are held against; the first is the limit."""
    hooked = {"msgpack": msgpack_of(payloads, to_extension, from_extension)}
    return {"msgspec": msgspec_of(payloads, types), **hooked} if has_msgspec() else hooked


def to_extension(value: Any) -> msgpack.ExtType:
    """msgpack's `default`: what a program writes that sends such values by it."""
    pack = msgpack.packb
    match value:
        case tuple():
            return msgpack.ExtType(1, pack(list(value)))
        case set():
            return msgpack.ExtType(2, pack(list(value)))
        case datetime.datetime():
            return msgpack.ExtType(3, value.isoformat().encode())
        case uuid.UUID():
            return msgpack.ExtType(4, value.bytes)
        case decimal.Decimal():
            return msgpack.ExtType(5, str(value).encode())
    raise TypeError(f"{type(value).__name__} is none of the everyday types")


def from_extension(code: int, data: bytes) -> Any:
    """msgpack's `ext_hook`."""
    match code:
        case 1:
            return tuple(msgpack.unpackb(data))
        case 2:
            return set(msgpack.unpackb(data))
        case 3:
            return datetime.datetime.fromisoformat(data.decode())
        case 4:
            return uuid.UUID(bytes=data)
        case 5:
            return decimal.Decimal(data.decode())
    raise ValueError(f"extension {code} is none of the everyday types")
