"""Codecs of clients: how the frames of a server's connections are cut, read and written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Protocol

from rabble._core.client_codec import ClientCodec
from rabble._core.client_messages import Incoming, Outgoing
from rabble._core.codec import Codec
from rabble.registry import MessageRegistry
from rabble.texts import argument_text

__all__ = [
    "FunctionCodec",
    "Incoming",
    "JsonLines",
    "LengthFraming",
    "LineFraming",
    "MsgpackCodec",
    "Outgoing",
    "PlainLines",
    "Protobuf",
    "ServerCodec",
]


@dataclasses.dataclass(frozen=True)
class LengthFraming:
    """Each frame begins with its length: 4 bytes, the greatest first."""


@dataclasses.dataclass(frozen=True)
class LineFraming:
    """Each frame ends with a byte that no frame has in it.

    :param delimiter: that byte; a newline unless it is given.
    :raises ValueError: if it is not one byte.
    """

    delimiter: bytes = b"\n"

    def __post_init__(self) -> None:
        if type(self.delimiter) is not bytes or len(self.delimiter) != 1:
            raise ValueError(
                f"LineFraming: delimiter must be one byte, not {argument_text(self.delimiter)}"
            )


class ServerCodec(Protocol):
    """What `TcpServer` takes as a codec."""

    def compiled(
        self, registry: MessageRegistry, *, message_bytes_max: int, decoded_bytes_max: int
    ) -> ClientCodec:
        """The codec of one server.

        :param registry: the message classes of its node.
        :param message_bytes_max: of one message, either way.
        :param decoded_bytes_max: of the memory that a message of a client may take, by estimate.
        """


@dataclasses.dataclass(frozen=True)
class MsgpackCodec:
    """The rabble client protocol in msgpack: 4 bytes of length, and an array.

    Its values are those of the mesh's wire, so a client sends and gets tuples, datetimes and the
    registered message classes as another node would. docs/guides/server.md has the protocol.

    :param registry: the message classes; `None` takes those of the node.
    """

    registry: MessageRegistry | None = None

    def compiled(
        self, registry: MessageRegistry, *, message_bytes_max: int, decoded_bytes_max: int
    ) -> ClientCodec:
        """See `ServerCodec.compiled`."""
        return ClientCodec(
            Codec(
                self.registry or registry,
                message_bytes_max=message_bytes_max,
                elements_max=max(message_bytes_max, 1),
                decoded_bytes_max=decoded_bytes_max,
            )
        )


@dataclasses.dataclass(frozen=True)
class FunctionCodec:
    """A codec of two functions. They run in the executor's thread, for each frame.

    :param decode: from the bytes of a frame, without its length or delimiter, to an `Incoming`.
        What it raises closes the connection with the goodbye `malformed`.
    :param encode: from an `Outgoing` to the bytes of a frame. It has to take the kinds `answer`,
        `failure`, `nack`, `push` and `goodbye`; no bytes are a frame, too.
    :param framing: how frames are cut.
    :param in_order: answers carry no id and go in the order of the requests: then one request of a
        connection has its turn when the one before has ended. The ids of `decode` are not used.
    """

    decode: Callable[[bytes], Incoming]
    encode: Callable[[Outgoing], bytes]
    framing: LengthFraming | LineFraming = LengthFraming()
    in_order: bool = False

    def compiled(
        self, registry: MessageRegistry, *, message_bytes_max: int, decoded_bytes_max: int
    ) -> ClientCodec:
        """See `ServerCodec.compiled`."""
        delimiter = self.framing.delimiter[0] if isinstance(self.framing, LineFraming) else -1
        return ClientCodec(
            None, self.decode, self.encode, delimiter=delimiter, is_ordered=self.in_order
        )


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is none of JSON's values")


# Kept, where `json.loads` and `json.dumps` with options look at these, and make one, for each line.
_from_json = json.JSONDecoder(parse_constant=refuse_constant).decode
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def decode_json(data: bytes) -> Incoming:
    """A line of the protocol in JSON, in UTF-8.

    :raises ValueError: if it is none.
    """
    frame = _from_json(data.decode())
    if type(frame) is not dict or "msg" not in frame:
        raise ValueError('a line is an object with "msg", and "id" if it is a request')
    return Incoming(frame["msg"], frame.get("id"), frame.get("priority", 0))


def json_bytes(frame: dict[str, Any]) -> bytes:
    return _to_json(frame).encode()


def encode_json(out: Outgoing) -> bytes:
    """A line of the protocol in JSON.

    :raises TypeError: if a value has no JSON, and `ValueError` if it is no number.
    """
    match out.kind:
        case "answer":
            return json_bytes({"id": out.id, "value": out.value})
        case "failure":
            return json_bytes({"id": out.id, "error": out.code, "text": out.text})
        case "nack":
            return json_bytes({"id": out.id, "nack_ms": out.retry_after_ms, "text": out.text})
        case "push":
            return json_bytes({"push": out.value})
        case "goodbye":
            return json_bytes({"goodbye": out.code, "text": out.text})


#: The rabble client protocol as JSON: an object a line. What JSON has is carried, and nothing else:
#: a tuple arrives as a list, and what has no JSON makes its request fail.
JsonLines = FunctionCodec(decode_json, encode_json, LineFraming())


def decode_line(data: bytes) -> Incoming:
    """A line of text.

    :raises UnicodeDecodeError: if it is not UTF-8.
    """
    return Incoming(data.removesuffix(b"\r").decode(), 0)


def encode_line(out: Outgoing) -> bytes:
    """A line of text: the answer itself, or in capitals why there is none.

    :raises TypeError: if the answer is no str.
    """
    match out.kind:
        case "answer" | "push":
            if type(out.value) is not str:
                raise TypeError(f"a line is a str, not {argument_text(out.value)}")
            return out.value.encode()
        case "nack":
            return f"BUSY {out.retry_after_ms}".encode()
        case "failure":
            return f"ERROR {out.code} {' '.join(out.text.split())}".rstrip().encode()
        case "goodbye":
            return f"GOODBYE {out.code} {' '.join(out.text.split())}".rstrip().encode()


#: Lines of text, for `nc` and people: each is a request, and its answer a line. In their order.
PlainLines = FunctionCodec(decode_line, encode_line, LineFraming(), in_order=True)


class ProtobufMessage(Protocol):
    """As much of a protobuf message as the codec asks for."""

    def SerializeToString(self) -> bytes: ...


class ProtobufClass(Protocol):
    """As much of the class of one."""

    def FromString(self, data: bytes, /) -> Any: ...

    def __call__(self, **fields: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Protobuf:
    """Protobuf in frames of 4 bytes of length: a message class of the user's for each direction.

    :param request: the class of what clients send. Of its fields these are looked at: `id`, an
        unsigned integer that is optional and there for requests alone, and `priority`, if it has
        one. The handler is given the whole message.
    :param response: the class of what they are sent, with the fields `id`, `code`, `text` and
        `retry_after_ms`, and one named as `value_field` says.
    :param value_field: the field of a response that an answer or a push is: the handler answers
        with a message of its type, or with a number or text if it has such a type.

    Needs no package of its own: the classes bring what they need (`pip install rabble[protobuf]`).
    A failure has `code` and `text`; a Nack `retry_after_ms`; a goodbye `code`, and no `id`.
    """

    request: ProtobufClass
    response: ProtobufClass
    value_field: str = "value"

    def compiled(
        self, registry: MessageRegistry, *, message_bytes_max: int, decoded_bytes_max: int
    ) -> ClientCodec:
        """See `ServerCodec.compiled`."""
        return ClientCodec(None, self.decode, self.encode)

    def decode(self, data: bytes) -> Incoming:
        """Read a frame."""
        msg = self.request.FromString(data)
        number = msg.id if msg.HasField("id") else None
        return Incoming(msg, number, getattr(msg, "priority", 0))

    def encode(self, out: Outgoing) -> bytes:
        """Write a frame."""
        fields: dict[str, Any] = {} if out.id is None else {"id": out.id}
        if out.kind in ("answer", "push"):
            fields[self.value_field] = out.value
        else:
            fields.update(code=out.code, text=out.text)
            if out.kind == "nack":
                fields["retry_after_ms"] = out.retry_after_ms
        data = self.response(**fields).SerializeToString()
        assert type(data) is bytes
        return data
