"""The encoder of the wire's values in plain Python: byte for byte what the compiled one writes."""

from __future__ import annotations

import datetime
import enum
import fractions
import struct
import zoneinfo
from collections.abc import Callable
from typing import Any

from rabble._core.errors import EncodeError
from rabble.client.values import (
    BODIES,
    COST_ATTRIBUTES,
    COST_CONTAINER,
    COST_ELEMENT,
    COST_ENTRY,
    COST_MEMBER,
    COST_PID,
    COST_SET,
    COST_VALUE,
    EXT_CORRELATION_ID,
    EXT_DATETIME,
    EXT_DECIMAL,
    EXT_ENUM,
    EXT_FRACTION,
    EXT_FROZENSET,
    EXT_INT,
    EXT_MESSAGE,
    EXT_NODE_ID,
    EXT_PID,
    EXT_RANGE,
    EXT_SET,
    EXT_TIME,
    EXT_TIMEZONE,
    EXT_TUPLE,
    EXT_TYPE,
    NUMBER_BYTES_MAX,
    OpaqueId,
    core_ids,
    date_bytes,
    fraction_parts,
    int_bytes,
    time_bytes,
    timezone_parts,
)
from rabble.registry import MessageRegistry

__all__ = ["Writer"]

pack_double = struct.Struct(">Bd").pack
pack_16 = struct.Struct(">BH").pack
pack_32 = struct.Struct(">BI").pack
pack_64 = struct.Struct(">BQ").pack
pack_signed = (
    (1 << 7, struct.Struct(">Bb").pack, 0xD0),
    (1 << 15, struct.Struct(">Bh").pack, 0xD1),
    (1 << 31, struct.Struct(">Bi").pack, 0xD2),
    (1 << 63, struct.Struct(">Bq").pack, 0xD3),
)


class Writer:
    """Writes one message.

    :param registry: the classes that may be sent.
    :param message_bytes_max: as of `PlainCodec`, and so are the other bounds.
    """

    __slots__ = (
        "bytes_max",
        "depth",
        "depth_max",
        "elements",
        "hashed",
        "memory",
        "out",
        "registry",
    )

    def __init__(
        self,
        registry: MessageRegistry,
        message_bytes_max: int,
        depth_max: int,
        elements_max: int,
        decoded_bytes_max: int,
    ) -> None:
        self.registry = registry
        self.out = bytearray()
        self.bytes_max = message_bytes_max
        self.depth_max = self.depth = depth_max
        self.elements = elements_max
        self.memory = decoded_bytes_max
        #: Sets and keys of dicts around what is written.
        self.hashed = 0

    def write(self, value: Any) -> None:
        """Append a value.

        :raises EncodeError: if it does not travel, or a bound is exceeded.
        """
        cls = type(value)
        if cls is str:
            self.write_str(value)
        elif cls is int:
            self.write_int(value)
        elif value is None:
            self.out.append(0xC0)
        elif cls is bool:
            self.out.append(0xC3 if value else 0xC2)
        elif cls is float:
            self.out += pack_double(0xCB, value)
        elif cls is bytes:
            self.write_bytes(value)
        elif cls is dict:
            self.write_dict(value)
        elif cls is list:
            self.enter(value, len(value))
            self.write_head(0x90, 0xDC, len(value))
            self.write_items(list(value))
            self.depth += 1
        else:
            self.write_other(cls, value)
        if len(self.out) > self.bytes_max:
            raise EncodeError(
                f"the message takes more than {self.bytes_max} bytes; send it in parts"
            )

    def write_items(self, items: list[Any] | tuple[Any, ...]) -> None:
        for item in items:
            self.write(item)

    def write_str(self, value: str) -> None:
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise EncodeError(
                f"the str {ascii(value[:40])} has lone surrogates, which UTF-8 does not carry"
            ) from None
        size = len(data)
        if size < 32:
            self.out.append(0xA0 | size)
        elif size < 1 << 8:
            self.out += bytes((0xD9, size))
        elif size < 1 << 16:
            self.out += pack_16(0xDA, size)
        else:
            self.out += pack_32(0xDB, size)
        self.out += data

    def write_bytes(self, value: bytes) -> None:
        size = len(value)
        if size < 1 << 8:
            self.out += bytes((0xC4, size))
        elif size < 1 << 16:
            self.out += pack_16(0xC5, size)
        else:
            self.out += pack_32(0xC6, size)
        self.out += value

    def write_int(self, value: int) -> None:
        out = self.out
        if 0 <= value < 128:
            out.append(value)
        elif -32 <= value < 0:
            out.append(value & 0xFF)
        elif value >= 0:
            if value < 1 << 8:
                out += bytes((0xCC, value))
            elif value < 1 << 16:
                out += pack_16(0xCD, value)
            elif value < 1 << 32:
                out += pack_32(0xCE, value)
            elif value < 1 << 64:
                out += pack_64(0xCF, value)
            else:
                self.write_large(value)
        else:
            for most, pack, tag in pack_signed:
                if value >= -most:
                    out += pack(tag, value)
                    return
            self.write_large(value)

    def write_large(self, value: int) -> None:
        self.spend(COST_VALUE)
        body = int_bytes(value)
        if self.hashed and len(body) > NUMBER_BYTES_MAX:
            raise EncodeError(
                f"an int of {len(body)} bytes is in a set or a dict's key, where "
                f"{NUMBER_BYTES_MAX} are allowed; send it as bytes, or the set as a list"
            )
        self.write_body(EXT_INT, body)

    def write_head(self, short: int, tag: int, n: int) -> None:
        if n < 16:
            self.out.append(short | n)
        elif n < 1 << 16:
            self.out += pack_16(tag, n)
        else:
            self.out += pack_32(tag + 1, n)

    def write_dict(self, value: dict[Any, Any]) -> None:
        self.enter(value, len(value))
        self.spend(COST_ENTRY * len(value))
        self.write_head(0x80, 0xDE, len(value))
        for key, item in list(value.items()):
            if type(key) is str:
                self.write_str(key)
            else:
                self.hashed += 1
                self.write(key)
                self.hashed -= 1
            self.write(item)
        self.depth += 1

    def enter(self, value: object, n: int) -> None:
        """Go into a container of `n` elements."""
        if self.depth == 0:
            raise EncodeError(
                f"a {type(value).__qualname__} is nested deeper than {self.depth_max} containers, "
                f"or contains itself"
            )
        self.depth -= 1
        self.elements -= n
        if self.elements < 0:
            raise EncodeError(
                "the message has too many elements in its containers; send it in parts, or as bytes"
            )
        self.spend(COST_CONTAINER + COST_ELEMENT * n)

    def spend(self, cost: int) -> None:
        """Charge what it will take in memory where it is decoded."""
        self.memory -= cost
        if self.memory < 0:
            raise EncodeError(
                "the message would take too much memory where it is decoded, by estimate; send it "
                "in parts, or as bytes"
            )

    def write_body(self, code: int, body: bytes) -> None:
        size = len(body)
        self.out += bytes((0xC7, size, code)) if size < 256 else long_head(size, code)
        self.out += body

    def begin(self) -> int:
        """Leave room for the header of an extension."""
        self.out += b"\xc7\0\0"
        return len(self.out)

    def end(self, start: int, code: int) -> None:
        """Fill the header in, for what was written since `begin`."""
        size = len(self.out) - start
        if size < 256:
            self.out[start - 2] = size
            self.out[start - 1] = code
        else:
            self.out[start - 3 : start] = long_head(size, code)

    def write_other(self, cls: type, value: Any) -> None:
        known = OTHERS.get(cls)
        if known is not None:
            known(self, value)
            return
        body = BODIES.get(cls)
        if body is not None:
            self.spend(COST_VALUE)
            self.write_body(body[0], self.body_of(body, value))
            return
        registration = self.registry.registration_of(cls)
        if registration is not None:
            self.write_registered(registration, value)
        elif cls.__module__ == "rabble._core.ids":
            self.write_id(value)
        else:
            raise EncodeError(self.refusal(cls))

    def body_of(self, known: tuple[int, Callable[[Any], bytes]], value: Any) -> bytes:
        code, make = known
        try:
            body = make(value)
        except (ValueError, OverflowError) as error:
            raise EncodeError(str(error)) from None
        if code == EXT_DECIMAL and self.hashed and len(body) > NUMBER_BYTES_MAX:
            raise EncodeError(
                f"a Decimal of {len(body)} digits is in a set or a dict's key, where "
                f"{NUMBER_BYTES_MAX} are allowed; send it as str, or the set as a list"
            )
        return body

    def write_tuple(self, value: tuple[Any, ...], code: int = EXT_TUPLE) -> None:
        start = self.begin()
        self.enter(value, len(value))
        self.write_head(0x90, 0xDC, len(value))
        self.write_items(value)
        self.depth += 1
        self.end(start, code)

    def write_set(self, value: set[Any] | frozenset[Any]) -> None:
        items = tuple(value)
        self.spend(COST_SET + COST_MEMBER * len(items))
        self.hashed += 1
        self.write_tuple(items, EXT_SET if type(value) is set else EXT_FROZENSET)
        self.hashed -= 1

    def write_moment(self, value: datetime.datetime | datetime.time) -> None:
        self.spend(COST_VALUE)
        start = self.begin()
        code = EXT_TIME
        if isinstance(value, datetime.datetime):
            code = EXT_DATETIME
            self.out += date_bytes(value)
        self.out += time_bytes(value)
        zone = value.tzinfo
        if zone is datetime.UTC:
            # UTC alone costs nothing more.
            self.out += bytes((0xC7, 0, EXT_TIMEZONE))
        elif type(zone) is datetime.timezone or type(zone) is zoneinfo.ZoneInfo:
            self.write(zone)
        elif zone is not None:
            raise EncodeError(
                f"the tzinfo of a datetime or time is a {type(zone).__qualname__}; a "
                f"datetime.timezone and a zoneinfo.ZoneInfo travel: send "
                f"value.astimezone(ZoneInfo(...)), or in UTC"
            )
        self.end(start, code)

    def write_timezone(self, value: datetime.timezone) -> None:
        self.write_parts(EXT_TIMEZONE, timezone_parts(value))

    def write_fraction(self, value: fractions.Fraction) -> None:
        try:
            self.write_numbers(EXT_FRACTION, fraction_parts(value), "Fraction")
        except ValueError as error:
            raise EncodeError(str(error)) from None

    def write_range(self, value: range) -> None:
        self.write_numbers(EXT_RANGE, (value.start, value.stop, value.step), "range")

    def write_numbers(self, code: int, numbers: tuple[int, ...], what: str) -> None:
        for number in numbers:
            if type(number) is not int or len(int_bytes(number)) > NUMBER_BYTES_MAX:
                raise EncodeError(
                    f"a number of a {what} is no int, or has more than "
                    f"{8 * NUMBER_BYTES_MAX - 1} bits; send a tuple of its ints"
                )
        self.write_parts(code, numbers)

    def write_parts(self, code: int, parts: tuple[Any, ...]) -> None:
        self.spend(COST_VALUE)
        start = self.begin()
        self.write_items(parts)
        self.end(start, code)

    def write_opaque(self, value: OpaqueId) -> None:
        self.spend(COST_PID)
        self.write_body(value.kind, value.body)

    def write_id(self, value: Any) -> None:
        ids = core_ids()
        cls = type(value)
        if ids is None or cls not in (ids.Pid, ids.NodeId, ids.CorrelationId):
            raise EncodeError(self.refusal(cls))
        self.spend(COST_PID)
        if cls is not ids.CorrelationId:
            self.write_body(EXT_PID if cls is ids.Pid else EXT_NODE_ID, str(value).encode())
            return
        text = str(value.pid).encode()
        start = self.begin()
        self.out += pack_16(0xDA, len(text)) + text
        self.write(value.connection)
        self.write(value.request)
        self.end(start, EXT_CORRELATION_ID)

    def write_registered(self, registration: Any, value: Any) -> None:
        if registration.members is not None:
            start = self.begin()
            self.write_str(registration.name)
            if not isinstance(value, enum.Enum) or value not in registration.members:
                raise EncodeError(f"{value!r:.200} is no member of {registration.name}")
            self.write(value.value)
            self.end(start, EXT_ENUM)
            return
        fields = registration.fields
        if registration.encode is not None:
            self.enter(value, 1)
            items = [self.encoded(registration, value)]
        else:
            self.enter(value, len(fields))
            if registration.build not in ("slots", "tuple"):
                self.spend(COST_ATTRIBUTES)
            try:
                items = [getattr(value, field) for field in fields]
            except AttributeError as error:
                raise EncodeError(f"{registration.name}: a field was never set: {error}") from error
        start = self.begin()
        self.write_str(registration.name)
        if registration.encode is None:
            self.write_head(0x90, 0xDC, len(fields))
        self.write_items(items)
        self.depth += 1
        self.end(start, EXT_MESSAGE if registration.encode is None else EXT_TYPE)

    def encoded(self, registration: Any, value: Any) -> Any:
        try:
            return registration.encode(value)
        except Exception as error:
            raise EncodeError(
                f"the encode function of {registration.name} raised {type(error).__name__}: "
                f"{str(error)[:500]}"
            ) from error

    def refusal(self, cls: type) -> str:
        name = self.registry.replaced_by(cls)
        if name is not None:
            return (
                f"the object was made by an older declaration of {name}, which was declared anew "
                f"since: make the object again"
            )
        return (
            f"a {cls.__qualname__} cannot be in a message: declare its class with @rabble.message. "
            f"Allowed are None, bool, int, float, complex, str, bytes, bytearray, list, tuple, "
            f"dict, set, frozenset, range, date, time, datetime, timedelta, timezone, ZoneInfo, "
            f"Decimal, Fraction, UUID and registered classes"
        )


def long_head(size: int, code: int) -> bytes:
    return pack_32(0xC9, size) + bytes((code,))


OTHERS: dict[type, Callable[[Writer, Any], None]] = {
    tuple: Writer.write_tuple,
    set: Writer.write_set,
    frozenset: Writer.write_set,
    datetime.datetime: Writer.write_moment,
    datetime.time: Writer.write_moment,
    datetime.timezone: Writer.write_timezone,
    fractions.Fraction: Writer.write_fraction,
    range: Writer.write_range,
    OpaqueId: Writer.write_opaque,
}
