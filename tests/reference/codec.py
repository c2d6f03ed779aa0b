"""The wire format once more: slow, short, and written from its description alone."""

from __future__ import annotations

import enum
import struct
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import MessageRegistry


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
    if type(value) in (list, tuple):
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
    raise Malformed("too large")


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
        found: dict[str, Any] = {}
        for _ in range(size):
            key, data = read(registry, data)
            if type(key) is not str or key in found:
                raise Malformed("key")
            found[key], data = read(registry, data)
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
    parts = []
    while body:
        part, body = read(registry, body)
        parts.append(part)
    if code == 5:
        text, connection, request = parts
        return CorrelationId(Pid.parse(text), connection, request)
    name, content = parts
    cls = registry.class_of(name)
    if code == 1 and not issubclass(cls, enum.Enum):
        fields = registry.fields_of(cls)
        if type(content) is not list or len(fields) != len(content):
            raise Malformed("fields")
        return cls(**dict(zip(fields, content, strict=True)))
    if code == 2 and issubclass(cls, enum.Enum):
        member = cls(content)
        if type(member.value) is type(content):
            return member
    raise Malformed(f"extension {code}")
