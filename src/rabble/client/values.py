"""The wire's values in plain Python: the numbers of its extensions, and what stands in which.

Written from docs/internals/wire-protocol.md, as whoever writes a client in another language would.
The bytes are those that the compiled core writes; the tests hold the two to each other.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import importlib
import math
import re
import struct
import uuid
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["OpaqueId"]

# Extension types of msgpack.
EXT_MESSAGE = 1
EXT_ENUM = 2
EXT_NODE_ID = 3
EXT_PID = 4
EXT_CORRELATION_ID = 5
EXT_TYPE = 6
EXT_TUPLE = 7
EXT_SET = 8
EXT_FROZENSET = 9
EXT_BYTEARRAY = 10
EXT_INT = 11
EXT_DATE = 12
EXT_TIME = 13
EXT_DATETIME = 14
EXT_TIMEDELTA = 15
EXT_TIMEZONE = 16
EXT_ZONEINFO = 17
EXT_DECIMAL = 18
EXT_FRACTION = 19
EXT_COMPLEX = 20
EXT_UUID = 21
EXT_RANGE = 22

# What a container or value takes in memory where it is decoded, in bytes, by the wire's estimate.
COST_CONTAINER = 80
COST_ELEMENT = 40
COST_ENTRY = 120
COST_SET = 152
COST_MEMBER = 88
COST_ATTRIBUTES = 256
COST_PID = 256
COST_VALUE = 128

#: Of an int in a Fraction, a range, a set or a key.
NUMBER_BYTES_MAX = 1024
#: Of the key of a time zone.
ZONE_BYTES_MAX = 255
#: How many elements of a set, or keys of a map, may have one hash.
SAME_HASH_MAX = 32

DAY_US = 86_400_000_000
DATE = struct.Struct(">HBB")
TIMEDELTA = struct.Struct(">iII")
COMPLEX = struct.Struct(">dd")
DECIMAL = re.compile(
    rb"-?(?:[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]{1,19})?|Infinity|s?NaN[0-9]*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class OpaqueId:
    """A pid, node id or correlation id, where the compiled core is not: to be sent back as it came.

    :ivar kind: the number of its extension: 3, 4 or 5.
    :ivar body: its bytes.
    """

    kind: int
    body: bytes

    def __str__(self) -> str:
        """The text of a pid or node id."""
        return self.body.decode("utf-8", "replace")


def int_bytes(value: int) -> bytes:
    """The two's complement, in as few bytes as hold it with its sign."""
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return value.to_bytes(size, "big", signed=True)


def int_from(body: bytes) -> int:
    if len(body) < 9 or (len(body) == 9 and body[0] == 0):
        raise ValueError("a large int is one that 64 bits hold")
    if (body[0] == 0 and body[1] < 0x80) or (body[0] == 0xFF and body[1] >= 0x80):
        raise ValueError("a large int has more bytes than it needs")
    return int.from_bytes(body, "big", signed=True)


def date_bytes(value: datetime.date) -> bytes:
    return DATE.pack(value.year, value.month, value.day)


def date_from(body: bytes) -> datetime.date:
    check_body(body, 4, "date")
    return datetime.date(*DATE.unpack(body))


def time_bytes(value: datetime.time | datetime.datetime) -> bytes:
    """Of a time, or of the time of a datetime; without its zone."""
    us = value.microsecond | value.fold << 23
    return bytes((value.hour, value.minute, value.second)) + us.to_bytes(3, "big")


def time_from(body: bytes, zone: datetime.tzinfo | None) -> datetime.time:
    us = int.from_bytes(body[3:6], "big")
    return datetime.time(body[0], body[1], body[2], us & 0x7FFFFF, zone, fold=us >> 23)


def datetime_from(body: bytes, zone: datetime.tzinfo | None) -> datetime.datetime:
    year, month, day = DATE.unpack_from(body)
    us = int.from_bytes(body[7:10], "big")
    return datetime.datetime(
        *(year, month, day, body[4], body[5], body[6], us & 0x7FFFFF, zone), fold=us >> 23
    )


def timedelta_bytes(value: datetime.timedelta) -> bytes:
    return TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


def timedelta_from(body: bytes) -> datetime.timedelta:
    check_body(body, 12, "timedelta")
    days, seconds, us = TIMEDELTA.unpack(body)
    if seconds >= 86_400 or us >= 1_000_000 or abs(days) > 999_999_999:
        raise ValueError("a timedelta is not normalized, or has more than 999999999 days")
    return datetime.timedelta(days, seconds, us)


def timezone_parts(value: datetime.timezone) -> tuple[Any, ...]:
    """Nothing for UTC; else the offset in microseconds, and the name if it was given one."""
    if value is datetime.UTC:
        return ()
    # The name that it was given is nowhere else.
    arguments: Any = value.__reduce__()[1]
    offset, *name = arguments
    return offset // datetime.timedelta(microseconds=1), *name


def timezone_of(offset: object, name: str | None) -> datetime.timezone:
    if type(offset) is not int or not -DAY_US < offset < DAY_US:
        raise ValueError("the offset of a timezone is no number of less than a day")
    if name is None and offset == 0:
        raise ValueError("the timezone utc is written without an offset")
    delta = datetime.timedelta(microseconds=offset)
    return datetime.timezone(delta) if name is None else datetime.timezone(delta, name)


def zone_key(value: zoneinfo.ZoneInfo) -> bytes:
    key: object = value.key
    if type(key) is not str:
        raise ValueError(
            "a ZoneInfo that was read from a file has no key: make it by ZoneInfo(key), or send "
            "value.astimezone(timezone.utc)"
        )
    if not (key.isascii() and 1 <= len(key) <= ZONE_BYTES_MAX):
        raise ValueError(
            f"the key of a ZoneInfo must be ASCII, of 1 to {ZONE_BYTES_MAX} characters"
        )
    return key.encode()


def decimal_bytes(value: decimal.Decimal) -> bytes:
    return str(value).encode()


def decimal_from(body: bytes) -> decimal.Decimal:
    # Its constructor takes much more.
    if not DECIMAL.fullmatch(body):
        raise ValueError("the text of a Decimal is none")
    try:
        found = decimal.Decimal(body.decode())
    except ArithmeticError:
        raise ValueError("a Decimal's exponent is too large") from None
    if found.is_nan() and b"N" not in body:
        raise ValueError("a Decimal's exponent is too large")
    return found


def fraction_parts(value: fractions.Fraction) -> tuple[int, int]:
    parts = value.numerator, value.denominator
    if math.gcd(*parts) != 1:
        raise ValueError(
            "a Fraction is not in lowest terms: send Fraction(value.numerator, value.denominator)"
        )
    return parts


def fraction_of(numerator: Any, denominator: Any) -> fractions.Fraction:
    check_number(numerator, "Fraction")
    check_number(denominator, "Fraction")
    if denominator <= 0 or math.gcd(numerator, denominator) != 1:
        raise ValueError("a Fraction is not in lowest terms, or its denominator is not above 0")
    return fractions.Fraction(numerator, denominator)


def range_of(start: Any, stop: Any, step: Any) -> range:
    for number in (start, stop, step):
        check_number(number, "range")
    return range(start, stop, step)


def check_number(value: object, what: str) -> None:
    if type(value) is not int:
        raise ValueError(f"a number of a {what} is no int")
    if value.bit_length() > 8 * NUMBER_BYTES_MAX - 1 and len(int_bytes(value)) > NUMBER_BYTES_MAX:
        raise ValueError(f"a number of a {what} takes more than {NUMBER_BYTES_MAX} bytes")


def complex_bytes(value: complex) -> bytes:
    return COMPLEX.pack(value.real, value.imag)


def complex_from(body: bytes) -> complex:
    check_body(body, 16, "complex")
    return complex(*COMPLEX.unpack(body))


def uuid_from(body: bytes) -> uuid.UUID:
    check_body(body, 16, "UUID")
    return uuid.UUID(bytes=body)


def check_body(body: bytes, wanted: int, what: str) -> None:
    if len(body) != wanted:
        raise ValueError(f"a {what} takes {wanted} bytes, not {len(body)}")


def core_ids() -> Any:
    """The classes of pids and the like, where the compiled core is; else None."""
    try:
        return importlib.import_module("rabble._core.ids")
    except ModuleNotFoundError:
        return None


#: Of values that are written as one body: their number, and how that is made.
BODIES: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    bytearray: (EXT_BYTEARRAY, bytes),
    datetime.date: (EXT_DATE, date_bytes),
    datetime.timedelta: (EXT_TIMEDELTA, timedelta_bytes),
    zoneinfo.ZoneInfo: (EXT_ZONEINFO, zone_key),
    decimal.Decimal: (EXT_DECIMAL, decimal_bytes),
    complex: (EXT_COMPLEX, complex_bytes),
    uuid.UUID: (EXT_UUID, lambda value: value.bytes),
}
#: How a body is read.
BODY_READERS: dict[int, Callable[[bytes], Any]] = {
    EXT_BYTEARRAY: bytearray,
    EXT_INT: int_from,
    EXT_DATE: date_from,
    EXT_TIMEDELTA: timedelta_from,
    EXT_DECIMAL: decimal_from,
    EXT_COMPLEX: complex_from,
    EXT_UUID: uuid_from,
}
