"""The wire format once more: slow, short, and written from its description alone."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import math
import re
import struct
import typing
import uuid
import zoneinfo
from collections import Counter
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import MessageRegistry

#: Of an int that is in a Fraction, a range, a set or the key of a dict.
NUMBER_BYTES_MAX = 1024
#: How many elements of a set, or keys of a dict, may have one hash.
SAME_HASH_MAX = 32
DECIMAL = re.compile(
    rb"-?(?:[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]{1,19})?|Infinity|s?NaN[0-9]*)", re.DOTALL
)
DAY_US = 86_400_000_000


class Malformed(ValueError):
    pass


def encode_envelope(registry: MessageRegistry, e: Envelope) -> bytes:
    parts = (e.to, e.sender, e.correlation_id, e.msg)
    return b"\x94" + b"".join(encode(registry, part) for part in parts)


def encode(registry: MessageRegistry, value: Any) -> bytes:
    if value is None:
        return b"\xc0"
    if value is False or value is True:
        return b"\xc3" if value else b"\xc2"
    if type(value) is int:
        return encode_int(value)
    if type(value) is float:
        return b"\xcb" + struct.pack(">d", value)
    if type(value) is str:
        data = value.encode()
        return sized(len(data), {32: 0xA0}, "\xd9\xda\xdb") + data
    if type(value) is bytes:
        return sized(len(value), {}, "\xc4\xc5\xc6") + value
    if type(value) is list:
        parts = [encode(registry, item) for item in value]
        return sized(len(parts), {16: 0x90}, "\0\xdc\xdd") + b"".join(parts)
    if type(value) is dict:
        parts = [encode(registry, k) + encode(registry, v) for k, v in value.items()]
        return sized(len(parts), {16: 0x80}, "\0\xde\xdf") + b"".join(parts)
    if type(value) is NodeId:
        return extension(3, str(value).encode())
    if type(value) is Pid:
        return extension(4, str(value).encode())
    if type(value) is CorrelationId:
        text = str(value.pid).encode()
        body = b"\xda" + struct.pack(">H", len(text)) + text
        return extension(
            5, body + encode(registry, value.connection) + encode(registry, value.request)
        )
    if type(value) in EXTENSIONS:
        code, write, _ = EXTENSIONS[type(value)]
        return extension(code, write(registry, value))
    registration = registry.registration_of(type(value))
    if registration is not None and registration.encode is not None:
        return extension(
            6,
            encode(registry, registration.name) + encode(registry, registration.encode(value)),
        )
    name = encode(registry, registry.name_of(type(value)))
    if isinstance(value, enum.Enum):
        return extension(2, name + encode(registry, value.value))
    fields = [getattr(value, field) for field in registry.fields_of(type(value))]
    return extension(1, name + encode(registry, fields))


def encode_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value)
    tags = "\xcc\xcd\xce\xcf" if value >= 0 else "\xd0\xd1\xd2\xd3"
    for tag, form in zip(tags, "BHIQ" if value >= 0 else "bhiq", strict=True):
        try:
            return tag.encode("latin-1") + struct.pack(">" + form, value)
        except struct.error:
            continue
    return extension(11, large_int(value))


def large_int(value: int) -> bytes:
    """The two's complement, in as few bytes as hold it with its sign."""
    size = 1
    while not -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1:
        size += 1
    return value.to_bytes(size, "big", signed=True)


def naive(value: datetime.datetime | datetime.time) -> bytes:
    date = date_bytes(value) if isinstance(value, datetime.datetime) else b""
    us = value.microsecond | value.fold << 23
    return date + bytes([value.hour, value.minute, value.second]) + us.to_bytes(3, "big")


def date_bytes(value: datetime.date) -> bytes:
    return struct.pack(">HBB", value.year, value.month, value.day)


def zoned(registry: MessageRegistry, value: Any) -> bytes:
    return naive(value) + (b"" if value.tzinfo is None else encode(registry, value.tzinfo))


def timezone_bytes(registry: MessageRegistry, value: datetime.timezone) -> bytes:
    offset, *name = value.__reduce__()[1]
    if value is datetime.UTC:
        return b""
    us = offset // datetime.timedelta(microseconds=1)
    return encode(registry, us) + b"".join(encode(registry, each) for each in name)


def numbers_of(registry: MessageRegistry, *numbers: int) -> bytes:
    if any(len(large_int(number)) > NUMBER_BYTES_MAX for number in numbers):
        raise Malformed("number")
    return b"".join(encode(registry, number) for number in numbers)


def numbers_from(registry: MessageRegistry, body: bytes, count: int) -> list[int]:
    numbers = []
    while body:
        number, body = read(registry, body)
        if type(number) is not int or len(large_int(number)) > NUMBER_BYTES_MAX:
            raise Malformed("number")
        numbers.append(number)
    if len(numbers) != count:
        raise Malformed("numbers")
    return numbers


def read_array(registry: MessageRegistry, body: bytes) -> list[Any]:
    items, rest = read(registry, body)
    if rest or type(items) is not list:
        raise Malformed("array")
    return items


def read_set(registry: MessageRegistry, body: bytes, kind: type) -> Any:
    items = read_array(registry, body)
    check_hashes(items)
    if len(set(items)) != len(items):
        raise Malformed("twice")
    return kind(items)


def check_hashes(items: list[Any]) -> None:
    if items and max(Counter(map(hash, items)).values()) > SAME_HASH_MAX:
        raise Malformed("hashes")
    for item in items:
        if type(item) is int and len(large_int(item)) > NUMBER_BYTES_MAX:
            raise Malformed("number")


def read_large_int(registry: MessageRegistry, body: bytes) -> int:
    value = int.from_bytes(body, "big", signed=True)
    if -(2**63) <= value < 2**64 or large_int(value) != body:
        raise Malformed("int")
    return value


def read_date(registry: MessageRegistry, body: bytes) -> datetime.date:
    return datetime.date(*struct.unpack(">HBB", body))


def read_time(registry: MessageRegistry, body: bytes) -> datetime.time:
    us = int.from_bytes(body[3:6], "big")
    naive = datetime.time(body[0], body[1], body[2], us & 0x7FFFFF, fold=us >> 23)
    if len(body) == 6:
        return naive
    zone, rest = read(registry, body[6:])
    if len(body) < 6 or rest or type(zone) not in (datetime.timezone, zoneinfo.ZoneInfo):
        raise Malformed("zone")
    return naive.replace(tzinfo=zone)


def read_datetime(registry: MessageRegistry, body: bytes) -> datetime.datetime:
    time = read_time(registry, body[4:])
    return datetime.datetime.combine(read_date(registry, body[:4]), time)


def read_timedelta(registry: MessageRegistry, body: bytes) -> datetime.timedelta:
    days, seconds, us = struct.unpack(">iII", body)
    if seconds >= 86_400 or us >= 1_000_000 or abs(days) > 999_999_999:
        raise Malformed("timedelta")
    return datetime.timedelta(days, seconds, us)


def read_timezone(registry: MessageRegistry, body: bytes) -> datetime.timezone:
    if not body:
        return datetime.UTC
    offset, rest = read(registry, body)
    if type(offset) is not int or abs(offset) >= DAY_US or (not rest and not offset):
        raise Malformed("offset")
    delta = datetime.timedelta(microseconds=offset)
    if not rest:
        return datetime.timezone(delta)
    name, rest = read(registry, rest)
    if type(name) is not str or rest:
        raise Malformed("name")
    return datetime.timezone(delta, name)


def read_zone(registry: MessageRegistry, body: bytes) -> zoneinfo.ZoneInfo:
    key = body.decode()
    if key not in zoneinfo.available_timezones():
        raise Malformed("zone")
    return zoneinfo.ZoneInfo(key)


def read_decimal(registry: MessageRegistry, body: bytes) -> decimal.Decimal:
    if not DECIMAL.fullmatch(body):
        raise Malformed("decimal")
    try:
        return decimal.Decimal(body.decode())
    except decimal.InvalidOperation as error:
        raise Malformed("exponent") from error


def read_fraction(registry: MessageRegistry, body: bytes) -> fractions.Fraction:
    numerator, denominator = numbers_from(registry, body, 2)
    if denominator <= 0 or math.gcd(numerator, denominator) != 1:
        raise Malformed("fraction")
    return fractions.Fraction(numerator, denominator)


EXTENSIONS: dict[type, tuple[int, Any, Any]] = {
    tuple: (7, lambda r, v: encode(r, list(v)), lambda r, b: tuple(read_array(r, b))),
    set: (8, lambda r, v: encode(r, list(v)), lambda r, b: read_set(r, b, set)),
    frozenset: (9, lambda r, v: encode(r, list(v)), lambda r, b: read_set(r, b, frozenset)),
    bytearray: (10, lambda r, v: bytes(v), lambda r, b: bytearray(b)),
    int: (11, lambda r, v: large_int(v), read_large_int),
    datetime.date: (12, lambda r, v: date_bytes(v), read_date),
    datetime.time: (13, zoned, read_time),
    datetime.datetime: (14, zoned, read_datetime),
    datetime.timedelta: (
        15,
        lambda r, v: struct.pack(">iII", v.days, v.seconds, v.microseconds),
        read_timedelta,
    ),
    datetime.timezone: (16, timezone_bytes, read_timezone),
    zoneinfo.ZoneInfo: (17, lambda r, v: v.key.encode(), read_zone),
    decimal.Decimal: (18, lambda r, v: str(v).encode(), read_decimal),
    fractions.Fraction: (
        19,
        lambda r, v: numbers_of(r, v.numerator, v.denominator),
        read_fraction,
    ),
    complex: (
        20,
        lambda r, v: struct.pack(">dd", v.real, v.imag),
        lambda r, b: complex(*struct.unpack(">dd", b)),
    ),
    uuid.UUID: (21, lambda r, v: v.bytes, lambda r, b: uuid.UUID(bytes=b)),
    range: (
        22,
        lambda r, v: numbers_of(r, v.start, v.stop, v.step),
        lambda r, b: range(*numbers_from(r, b, 3)),
    ),
}
READERS = {code: reader for code, _, reader in EXTENSIONS.values()}


def sized(size: int, short: dict[int, int], tags: str) -> bytes:
    for limit, tag in short.items():
        if size < limit:
            return bytes([tag | size])
    for tag, form, limit in zip(tags, "BHI", (1 << 8, 1 << 16, 1 << 32), strict=True):
        if tag != "\0" and size < limit:
            return tag.encode("latin-1") + struct.pack(">" + form, size)
    raise Malformed("too long")


def extension(code: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes([0xC7, len(body), code]) + body
    return b"\xc9" + struct.pack(">I", len(body)) + bytes([code]) + body


def decode(registry: MessageRegistry, data: bytes) -> Any:
    try:
        value, rest = read(registry, data)
    except (IndexError, struct.error, LookupError, TypeError) as error:
        raise Malformed(str(error)) from error
    if rest:
        raise Malformed("bytes too many")
    return value


NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
SIZES = {
    **dict(zip((0xC4, 0xC5, 0xC6), "BHI", strict=True)),
    **dict(zip((0xC7, 0xC8, 0xC9), "BHI", strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), "BHI", strict=True)),
    **dict(zip((0xDC, 0xDD), "HI", strict=True)),
    **dict(zip((0xDE, 0xDF), "HI", strict=True)),
}


def read(registry: MessageRegistry, data: bytes) -> tuple[Any, bytes]:
    tag, data = data[0], data[1:]
    if tag < 0x80 or tag >= 0xE0:
        return struct.unpack("b", bytes([tag]))[0], data
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], data
    if tag in NUMBERS:
        size = struct.calcsize(NUMBERS[tag])
        return struct.unpack(">" + NUMBERS[tag], data[:size])[0], data[size:]
    if tag < 0xC0:
        size = tag & (0x1F if tag >= 0xA0 else 0x0F)
    elif 0xD4 <= tag <= 0xD8:
        size = 1 << (tag - 0xD4)
    elif tag in SIZES:
        width = struct.calcsize(SIZES[tag])
        (size,) = struct.unpack(">" + SIZES[tag], data[:width])
        data = data[width:]
    else:
        raise Malformed(f"tag {tag}")
    if tag < 0x90 or tag in (0xDE, 0xDF):
        found: dict[Any, Any] = {}
        for _ in range(size):
            key, data = read(registry, data)
            if key in found:
                raise Malformed("key")
            found[key], data = read(registry, data)
        check_hashes(list(found))
        return found, data
    if tag < 0xA0 or tag in (0xDC, 0xDD):
        items = []
        for _ in range(size):
            item, data = read(registry, data)
            items.append(item)
        return items, data
    code = 0
    if 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8:
        code, data = data[0], data[1:]
    if len(data) < size:
        raise Malformed("short")
    body, data = data[:size], data[size:]
    if code:
        return read_extension(registry, code, body), data
    if 0xC4 <= tag <= 0xC6:
        return body, data
    if tag < 0xC0 or 0xD9 <= tag <= 0xDB:
        return body.decode(), data
    raise Malformed("extension 0")


def read_extension(registry: MessageRegistry, code: int, body: bytes) -> Any:
    if code == 3:
        return NodeId.parse(body.decode())
    if code == 4:
        return Pid.parse(body.decode())
    if code in READERS:
        return READERS[code](registry, body)
    if code == 1:
        return read_message(registry, body)
    parts = []
    while body:
        part, body = read(registry, body)
        parts.append(part)
    if code == 5:
        text, connection, request = parts
        return CorrelationId(Pid.parse(text), connection, request)
    name, content = parts
    cls = registry.class_of(name)
    decode = registry.registration_of(cls).decode
    if code == 6 and decode is not None:
        return decode(content)
    if code == 2 and issubclass(cls, enum.Enum):
        member = cls(content)
        if type(member.value) is type(content):
            return member
    raise Malformed(f"extension {code}")


def read_message(registry: MessageRegistry, body: bytes) -> Any:
    """A message, of which fields that came last may be missing, here or there."""
    name, body = read(registry, body)
    cls = registry.class_of(name)
    if issubclass(cls, enum.Enum) or registry.registration_of(cls).decode is not None:
        raise Malformed("no message class")
    names, given = registry.fields_of(cls), {}
    hints = typing.get_type_hints(cls)
    count, body = array_size(body)
    for field in names[:count]:
        given[field], body = read(registry, body)
        wanted = (int, float) if hints[field] is float else hints[field]
        if not isinstance(given[field], wanted):
            raise Malformed(f"field {field}")
    for _ in range(count - len(names)):
        body = skipped(body)
    if body:
        raise Malformed("bytes too many")
    return cls(**given)


def array_size(data: bytes) -> tuple[int, bytes]:
    tag, data = data[0], data[1:]
    if 0x90 <= tag < 0xA0:
        return tag & 15, data
    if tag not in (0xDC, 0xDD):
        raise Malformed("fields")
    width = 2 if tag == 0xDC else 4
    if len(data) < width:
        raise Malformed("short")
    return int.from_bytes(data[:width], "big"), data[width:]


def skipped(data: bytes) -> bytes:
    """What comes behind a value. Texts and extensions within it are not looked at."""
    tag, data = data[0], data[1:]
    if tag < 0x80 or tag >= 0xE0 or tag in (0xC0, 0xC2, 0xC3):
        return data
    if tag < 0xC0:
        size = tag & (0x1F if tag >= 0xA0 else 0x0F)
    elif tag in NUMBERS:
        size = struct.calcsize(NUMBERS[tag])
    elif 0xD4 <= tag <= 0xD8:
        size = 1 << (tag - 0xD4)
    elif tag in SIZES:
        width = struct.calcsize(SIZES[tag])
        (size,) = struct.unpack(">" + SIZES[tag], data[:width])
        data = data[width:]
    else:
        raise Malformed(f"tag {tag}")
    if tag < 0xA0 or tag >= 0xDC:
        for _ in range(2 * size if tag < 0x90 or tag >= 0xDE else size):
            data = skipped(data)
        return data
    # An extension has its number besides.
    size += 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8
    if len(data) < size:
        raise Malformed("short")
    return data[size:]
