"""The codecs of servers once more, from their descriptions: what a client's bytes ask, and what it
is told. Frames are cut, and read, by code that has nothing in common with the compiled one.
"""

from __future__ import annotations

import functools
import json
import struct
from typing import Any, NamedTuple

import msgpack

from rabble._core.codec import Codec
from rabble.services.codecs import (
    FunctionCodec,
    Incoming,
    JsonLines,
    LengthFraming,
    LineFraming,
    MsgpackCodec,
    Outgoing,
    PlainLines,
    Protobuf,
    ServerCodec,
)
from tests.core import sessions
from tests.core.strategies import same
from tests.reference import codec as slow_codec

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError:
    descriptor_pb2 = None  # type: ignore[assignment]

ID_MAX = (1 << 53) - 1
TEXT_CHARS_MAX = 500
CODE_CHARS_MAX = 32
GENEROUS = Codec(sessions.REGISTRY, depth_max=256)
#: As a server has it: what is nested deeper is refused by both.
BOUNDED = Codec(sessions.REGISTRY, depth_max=64)
#: A shorter frame has no room for what is nested deeper.
SHORT_BYTES = 64


class Planned(Exception):
    """What a user's code raises, as it was told to."""


class Asked(NamedTuple):
    """What a frame of a client says. `id` is `None` if no answer is expected."""

    id: int | None
    msg: Any


class Unknown(NamedTuple):
    """A request whose message cannot be built here, which fails for itself."""

    id: int


class Told(NamedTuple):
    """What a frame of the server says; `id` is `None` where answers are in order, too."""

    kind: str
    id: int | None = None
    value: Any = None
    code: str = ""
    text: str = ""


class Malformed(Exception):
    """A frame is none. `id` is that of its request, as far as it can be known."""

    def __init__(self, id: int | None = None) -> None:
        super().__init__(id)
        self.id = id


class Speech:
    """One codec of a server.

    :param made: what the server is given.
    :param delimiter: the byte that ends a frame; `None`: each begins with its length.
    """

    is_ordered = False
    #: Failures and goodbyes that the codec could not write, as it was told.
    unsaid = 0

    def __init__(self, made: ServerCodec, delimiter: bytes | None) -> None:
        self.made = made
        self.delimiter = delimiter

    def cut(self, stream: bytes, frame_bytes_max: int) -> tuple[list[bytes], bool]:
        """The frames of a stream, and whether what follows can only become too large."""
        found = []
        while True:
            if self.delimiter is not None:
                frame, end, rest = stream.partition(self.delimiter)
                if len(frame) > frame_bytes_max:
                    return found, True
                if not end:
                    return found, False
            else:
                size = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")
                if size > frame_bytes_max:
                    return found, True
                if len(stream) < 4 + size:
                    return found, False
                frame, rest = stream[4 : 4 + size], stream[4 + size :]
            found.append(frame)
            stream = rest

    def framed(self, frame: bytes) -> bytes:
        if self.delimiter is not None:
            return frame + self.delimiter
        return struct.pack(">I", len(frame)) + frame

    def told(self, stream: bytes) -> list[Told]:
        """What a server said, all of it well-formed and whole."""
        frames, is_wrong = self.cut(stream, 1 << 20)
        assert not is_wrong, stream
        assert b"".join(map(self.framed, frames)) == stream, "the last frame is not whole"
        return [self.checked(self.read_told(frame)) for frame in frames]

    def checked(self, told: Told) -> Told:
        assert told.id is None or 0 <= told.id <= ID_MAX
        assert len(told.code) <= CODE_CHARS_MAX and len(told.text) <= TEXT_CHARS_MAX + 3, told
        assert told.kind != "goodbye" or told.code
        return told

    def read(self, frame: bytes) -> Asked:
        """What a frame of a client says.

        :raises Malformed: if it is none.
        """
        raise NotImplementedError

    def read_told(self, frame: bytes) -> Told:
        raise NotImplementedError

    def request(self, number: int, text: str) -> bytes:
        """A frame of a client that means well."""
        raise NotImplementedError

    def value(self, tag: str, msg: Any) -> Any:
        """The answer to a message, in which its tag is known again."""
        return [tag, msg]

    def pushed(self) -> Any:
        """What is pushed."""
        return self.value("push", "")

    def tagged(self, value: Any) -> tuple[str, Any]:
        """The tag of an answer, and the message that it answers."""
        tag, msg = value
        return tag, msg

    def same(self, one: Any, other: Any) -> bool:
        """Whether two messages are one, NaNs included."""
        return repr(one) == repr(other)


class OfMsgpack(Speech):
    def __init__(self) -> None:
        super().__init__(MsgpackCodec(sessions.REGISTRY), None)

    def read(self, frame: bytes) -> Asked:
        key: int | None = None
        try:
            count, rest = slow_codec.array_size(frame)
            kind, rest = slow_codec.read(sessions.REGISTRY, rest)
            if type(kind) is not int or kind not in (0, 1) or count < (3, 2)[kind]:
                raise Malformed
            if kind == 0:
                number, rest = slow_codec.read(sessions.REGISTRY, rest)
                if not is_id(number):
                    raise Malformed
                key = number
            said = rest
            msg, rest = slow_codec.read(sessions.REGISTRY, rest)
            if len(frame) > SHORT_BYTES:
                BOUNDED.decode_message(said[: len(said) - len(rest)])
            count -= 3 - kind
            if kind == 0 and count:
                priority, rest = slow_codec.read(sessions.REGISTRY, rest)
                if type(priority) is not int or priority not in (-1, 0, 1):
                    raise Malformed
                count -= 1
            for _ in range(count):
                rest = slow_codec.skipped(rest)
            if rest:
                raise Malformed(key)
        except (ValueError, LookupError, TypeError, struct.error, RecursionError):
            raise Malformed(key) from None
        return Asked(key, msg)

    def read_told(self, frame: bytes) -> Told:
        match GENEROUS.decode_message(frame):
            case [0, int(key), value]:
                return Told("answer", key, value)
            case [1, int(key), str(code), str(text)]:
                return Told("failure", key, None, code, text)
            case [2, int(key), int(ms), str(text)] if ms > 0:
                return Told("nack", key, None, "", text)
            case [3, value]:
                return Told("push", None, value)
            case [4, str(code), str(text)]:
                return Told("goodbye", None, None, code, text)
        raise AssertionError(f"no frame of a server: {frame!r}")

    def request(self, number: int, text: str) -> bytes:
        return self.framed(msgpack.packb([0, number, text]))

    def same(self, one: Any, other: Any) -> bool:
        return same(one, other)


class OfJson(Speech):
    def __init__(self) -> None:
        super().__init__(JsonLines, b"\n")

    def read(self, frame: bytes) -> Asked:
        try:
            said = json.loads(frame, parse_constant=refused)
        except (ValueError, RecursionError):
            raise Malformed from None
        if type(said) is not dict or "msg" not in said:
            raise Malformed
        key, priority = said.get("id"), said.get("priority", 0)
        if key is not None and not is_id(key):
            raise Malformed
        if type(priority) is not int or priority not in (-1, 0, 1):
            raise Malformed
        return Asked(key, said["msg"])

    def read_told(self, frame: bytes) -> Told:
        said = json.loads(frame, parse_constant=refused)
        match sorted(said):
            case ["id", "value"]:
                return Told("answer", said["id"], said["value"])
            case ["error", "id", "text"]:
                return Told("failure", said["id"], None, said["error"], said["text"])
            case ["id", "nack_ms", "text"]:
                assert said["nack_ms"] > 0
                return Told("nack", said["id"], None, "", said["text"])
            case ["push"]:
                return Told("push", None, said["push"])
            case ["goodbye", "text"]:
                return Told("goodbye", None, None, said["goodbye"], said["text"])
        raise AssertionError(f"no line of a server: {frame!r}")

    def request(self, number: int, text: str) -> bytes:
        return self.framed(json.dumps({"id": number, "msg": text}).encode())


class OfLines(Speech):
    """Plain lines. So that answers and pushes are told from all else they begin with = and !."""

    is_ordered = True

    def __init__(self) -> None:
        super().__init__(PlainLines, b"\n")

    def read(self, frame: bytes) -> Asked:
        try:
            return Asked(0, frame.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise Malformed from None

    def read_told(self, frame: bytes) -> Told:
        line = frame.decode()
        if line.startswith("="):
            return Told("answer", None, line[1:])
        if line.startswith("!"):
            return Told("push", None, line[1:])
        word, _, rest = line.partition(" ")
        code, _, text = rest.partition(" ")
        match word:
            case "BUSY":
                assert int(rest) > 0
                return Told("nack")
            case "ERROR":
                return Told("failure", None, None, code, text)
            case "GOODBYE":
                return Told("goodbye", None, None, code, text)
        raise AssertionError(f"no line of a server: {frame!r}")

    def request(self, number: int, text: str) -> bytes:
        return self.framed(text.encode())

    def value(self, tag: str, msg: Any) -> Any:
        return f"={tag}:{msg}"

    def pushed(self) -> Any:
        return "!push"

    def tagged(self, value: Any) -> tuple[str, Any]:
        tag, _, msg = value.partition(":")
        return tag, msg


class OfProtobuf(Speech):
    def __init__(self) -> None:
        self.asking, self.telling = protobuf_classes()
        super().__init__(Protobuf(self.asking, self.telling), None)

    def read(self, frame: bytes) -> Asked:
        try:
            msg = self.asking.FromString(frame)
        except Exception:
            raise Malformed from None
        key = msg.id if msg.HasField("id") else None
        if key is not None and not is_id(key):
            raise Malformed
        return Asked(key, msg)

    def read_told(self, frame: bytes) -> Told:
        msg = self.telling.FromString(frame)
        key = msg.id if msg.HasField("id") else None
        if msg.retry_after_ms:
            return Told("nack", key, None, "", msg.text)
        if msg.code:
            return Told("goodbye" if key is None else "failure", key, None, msg.code, msg.text)
        return Told("push" if key is None else "answer", key, msg.value)

    def request(self, number: int, text: str) -> bytes:
        return self.framed(self.asking(id=number, text=text).SerializeToString())

    def value(self, tag: str, msg: Any) -> Any:
        return f"{tag}:{msg.text}"

    def pushed(self) -> Any:
        return "push"

    def tagged(self, value: Any) -> tuple[str, Any]:
        tag, _, text = value.partition(":")
        return tag, text

    def same(self, one: Any, other: Any) -> bool:
        return bool(getattr(one, "text", one) == getattr(other, "text", other))


@functools.cache
def protobuf_classes() -> tuple[Any, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fuzzed_clients.proto", syntax="proto3")
    fields = {
        "Request": [("id", kinds.TYPE_UINT64), ("text", kinds.TYPE_STRING)],
        "Response": [
            ("id", kinds.TYPE_UINT64),
            ("code", kinds.TYPE_STRING),
            ("text", kinds.TYPE_STRING),
            ("retry_after_ms", kinds.TYPE_UINT32),
            ("value", kinds.TYPE_STRING),
        ],
    }
    for name, of in fields.items():
        msg = file.message_type.add(name=name)
        msg.oneof_decl.add(name="_id")
        for number, (field, kind) in enumerate(of, 1):
            is_id = {"proto3_optional": True, "oneof_index": 0} if field == "id" else {}
            msg.field.add(name=field, number=number, type=kind, label=1, **is_id)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    asking, telling = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in fields
    )
    return asking, telling


def decode_words(data: bytes) -> Incoming:
    """A user's own: `7 text`, `-1 7 text` with a priority, ` text` without an id; and more odd."""
    head, _, text = data.decode().partition(" ")
    if text.startswith("raise"):
        raise Planned(text)
    if text.startswith("odd"):
        return text  # type: ignore[return-value]
    if text.startswith("yes"):
        return Incoming(text, True)
    if text.startswith("float"):
        return Incoming(text, 1.0)  # type: ignore[arg-type]
    if head.startswith("p"):
        return Incoming(text, 3, int(head[1:]))
    return Incoming(text, int(head) if head else None)


class OfWords(Speech):
    """A codec of a user's two functions.

    :param delimiter: as of `Speech`.
    :param is_ordered: as of `FunctionCodec.in_order`.
    """

    def __init__(self, delimiter: bytes | None, is_ordered: bool) -> None:
        framing = LengthFraming() if delimiter is None else LineFraming(delimiter)
        super().__init__(
            FunctionCodec(decode_words, self.encode, framing, in_order=is_ordered), delimiter
        )
        self.is_ordered = is_ordered

    def encode(self, out: Outgoing) -> bytes:
        is_value = out.kind in ("answer", "push")
        said = out.value if is_value else f"{out.code}:{out.text}"
        if "unwritable" in said:
            self.unsaid += not is_value
            raise Planned(said)
        if "unframable" in said and self.delimiter is not None and is_value:
            return self.delimiter
        if "unbyted" in said and is_value:
            return said  # type: ignore[return-value]
        number = "" if out.id is None else out.id
        return f"{out.kind} {number} {said}".replace("\0", "?").encode(errors="replace")

    def read(self, frame: bytes) -> Asked:
        try:
            made = decode_words(frame)
        except Exception:
            raise Malformed from None
        if type(made) is not Incoming or not (made.id is None or is_id(made.id)):
            raise Malformed
        if made.priority not in (-1, 0, 1):
            raise Malformed
        return Asked(made.id, made.msg)

    def read_told(self, frame: bytes) -> Told:
        kind, number, said = frame.decode().split(" ", 2)
        key = int(number) if number and not self.is_ordered else None
        if kind in ("answer", "push"):
            return Told(kind, key, said)
        code, _, text = said.partition(":")
        assert kind in ("failure", "nack", "goodbye"), frame
        return Told(kind, key, None, code, text)

    def request(self, number: int, text: str) -> bytes:
        return self.framed(f"{number} {text}".encode())

    def value(self, tag: str, msg: Any) -> Any:
        return f"{tag}:{msg}"

    def tagged(self, value: Any) -> tuple[str, Any]:
        tag, _, msg = value.partition(":")
        return tag, msg

    def same(self, one: Any, other: Any) -> bool:
        return bool(written_words(one) == written_words(other))


def written_words(text: str) -> str:
    return text.replace("\0", "?").encode(errors="replace").decode()


def is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= ID_MAX


def refused(name: str) -> Any:
    raise ValueError(name)


#: Of which the first byte of an input chooses.
SPEECHES: tuple[Speech, ...] = (
    OfMsgpack(),
    OfJson(),
    OfLines(),
    OfWords(None, False),
    OfWords(b"\0", True),
    # Without the package the number means another one.
    OfProtobuf() if descriptor_pb2 is not None else OfWords(None, False),
)
