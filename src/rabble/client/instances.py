"""What the decoder in plain Python builds by code that is not its own: instances, time zones."""

from __future__ import annotations

import functools
import zoneinfo
from typing import Any

from rabble._classes import Registration

__all__ = ["instance_of", "reason_of", "zone_names"]


@functools.lru_cache(1)
def known_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def zone_names() -> frozenset[str]:
    names = known_zones()
    if not names:
        # None at all are no answer: the files could not be read just then, say.
        known_zones.cache_clear()
    return names


def instance_of(registration: Registration, given: dict[str, Any]) -> Any:
    """An instance of what came, without its constructor wherever that only fills fields."""
    cls: Any = registration.cls
    build = registration.build
    if build == "call" or not (build == "tuple" or cls.__new__ is object.__new__):
        return (registration.maker or cls)(**given)
    for field, default in zip(registration.fields, registration.defaults, strict=True):
        if field not in given:
            assert default is not None
            is_factory, value = default
            given[field] = value() if is_factory else value
    if build == "tuple":
        return tuple.__new__(cls, [given[field] for field in registration.fields])
    try:
        value = object.__new__(cls)
    except TypeError:
        # A `msgspec.Struct`, whose memory its own base takes.
        return cls(**given)
    for field in registration.fields:
        object.__setattr__(value, field, given[field])
    return value


def reason_of(error: BaseException) -> str:
    """What an exception of the user's says of itself, if it can."""
    try:
        return f"{type(error).__name__}: {str(error)[:500]}"
    except Exception:  # noqa: BLE001 - its `__str__` may raise anything
        return type(error).__name__
