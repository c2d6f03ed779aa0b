"""Three ways to put requests into bytes and to read what comes back: no I/O, and no ids of its own.

One framing belongs to one connection. See docs/internals/client-protocol.md.
"""

from __future__ import annotations

import collections
import json
import re
import struct
from typing import Any, Protocol

from rabble._core.errors import DecodeError, EncodeError, UnknownMessageError
from rabble.client.codec import codec_of, plain_codec
from rabble.client.decoding import Reader
from rabble.client.errors import ProtocolError
from rabble.client.events import Answer, Event, Failure, Goodbye, Push, Refusal, Undecoded
from rabble.client.limits import ClientLimits
from rabble.registry import MessageRegistry

__all__ = ["ID_MAX", "Framing", "JsonLines", "MsgpackFrames", "PlainLines"]

#: The greatest id of a request, and number of milliseconds: all that a double has exactly.
ID_MAX = 2**53 - 1

length_prefix = struct.Struct(">I")
#: How an answer of plain lines says that it is none.
BUSY = re.compile(r"BUSY ([0-9]{1,15})")
#: A string, ended or not, or a bracket. It never goes back, so it takes no longer than the line is.
JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*+"?+|[\[{]|[\]}]')
ERROR = re.compile(r"ERROR (\S+)(?: (.*))?", re.DOTALL)
GOODBYE = re.compile(r"GOODBYE (\S+)(?: (.*))?", re.DOTALL)


class Framing(Protocol):
    """What a connection's bytes mean.

    Made by its class, with the registry of the classes that may travel and the `ClientLimits`.
    """

    def request(self, request_id: int, msg: Any, priority: int) -> bytes:
        """The bytes of a request, which are sent in the order of these calls.

        :raises EncodeError: if the message cannot be sent; then it counts as not called.
        """

    def message(self, msg: Any) -> bytes:
        """The bytes of a message that has no answer.

        :raises EncodeError: as of `request`.
        """

    def feed(self, data: bytes) -> None:
        """Take bytes that came."""

    def next_event(self) -> Event | None:
        """What they say next; `None`: there is more to come.

        :raises ProtocolError: if they say nothing that the protocol has.
        """


class MsgpackFrames:
    """A length of four bytes and an array of msgpack, whose values are those of the mesh.

    :param registry: the classes that may travel.
    :param limits: the bounds.
    """

    def __init__(self, registry: MessageRegistry, limits: ClientLimits) -> None:
        self._codec = codec_of(registry, limits)
        self._heads = plain_codec(registry, limits)
        self._frame_bytes_max = limits.frame_bytes_max
        self._received = bytearray()

    def request(self, request_id: int, msg: Any, priority: int) -> bytes:
        """As of `Framing`."""
        head = self._heads.encode_message(request_id)
        encoded = self._codec.encode_message(msg)
        if priority == 0:
            return self._framed(b"\x93\x00", head, encoded)
        return self._framed(b"\x94\x00", head, encoded, self._heads.encode_message(priority))

    def message(self, msg: Any) -> bytes:
        """As of `Framing`."""
        return self._framed(b"\x92\x01", self._codec.encode_message(msg))

    def _framed(self, *parts: bytes) -> bytes:
        size = sum(map(len, parts))
        if size > self._frame_bytes_max:
            raise EncodeError(
                f"the message takes {size} bytes, and a frame at most {self._frame_bytes_max} "
                f"(ClientLimits.frame_bytes_max); send it in parts"
            )
        return b"".join((length_prefix.pack(size), *parts))

    def feed(self, data: bytes) -> None:
        """As of `Framing`."""
        self._received += data

    def next_event(self) -> Event | None:
        """As of `Framing`."""
        received = self._received
        if len(received) < 4:
            return None
        (size,) = length_prefix.unpack_from(received)
        if size > self._frame_bytes_max:
            raise ProtocolError(
                f"a frame of {size} bytes was announced, {self._frame_bytes_max} are allowed "
                f"(ClientLimits.frame_bytes_max)"
            )
        if len(received) < 4 + size:
            return None
        with memoryview(received) as view:
            frame = bytes(view[4 : 4 + size])
        del received[: 4 + size]
        try:
            return self._event_of(self._heads.reader(frame))
        except DecodeError as error:
            raise ProtocolError(f"a frame is malformed: {error}") from error

    def _event_of(self, reader: Reader) -> Event:
        n = reader.array_header()
        if n < 2:
            raise reader.malformed("a frame is an array of two elements at least")
        kind = number_of(reader, 255)
        if kind > 4:
            raise reader.malformed(f"frames of kind {kind} are unknown")
        least = (3, 4, 4, 2, 3)[kind]
        if n < least:
            raise reader.malformed(f"a frame of kind {kind} has {n} elements, not {least}")
        event: Event
        if kind == 4:
            event = Goodbye(text_of(reader), text_of(reader))
        elif kind == 3:
            event = self._value_of(reader, None, n == least)
        else:
            request_id = number_of(reader, ID_MAX)
            if kind == 0:
                event = self._value_of(reader, request_id, n == least)
            elif kind == 1:
                event = Failure(request_id, text_of(reader), text_of(reader))
            else:
                event = Refusal(request_id, number_of(reader, ID_MAX), text_of(reader))
        # Elements of a later version.
        for _ in range(n - least):
            reader.skip()
        if reader.at != reader.end:
            raise reader.malformed(f"{reader.end - reader.at} bytes too many")
        return event

    def _value_of(self, reader: Reader, request_id: int | None, is_last: bool) -> Event:
        start = reader.at
        if is_last:
            reader.at = reader.end
        else:
            reader.skip()
        try:
            value = self._codec.decode_message(reader.data[start : reader.at])
        except UnknownMessageError as error:
            # As in the mesh: an honest server may know more classes.
            return Undecoded(request_id, error)
        return Push(value) if request_id is None else Answer(request_id, value)


def number_of(reader: Reader, most: int) -> int:
    value = reader.read()
    if type(value) is not int or not 0 <= value <= most:
        raise reader.malformed(f"a number of the frame is not 0 to {most}")
    return value


def text_of(reader: Reader) -> str:
    value = reader.read()
    if type(value) is not str:
        raise reader.malformed("a text of the frame is no str")
    return value


class LineBuffer:
    """Bytes that came, cut into lines.

    :param line_bytes_max: of a line, without its end.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._received = bytearray()
        #: Of these, which have no end of a line.
        self._searched = 0

    def feed(self, data: bytes) -> None:
        self._received += data

    def next_line(self) -> str | None:
        """The next line, without its end; `None` if there is none yet.

        :raises ProtocolError: if it is too long, or no text.
        """
        end = self._received.find(b"\n", self._searched)
        size = len(self._received) if end < 0 else end
        if size > self._line_bytes_max + 1:
            raise ProtocolError(
                f"a line has more than {self._line_bytes_max} bytes (ClientLimits.frame_bytes_max)"
            )
        if end < 0:
            self._searched = len(self._received)
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        line = line.removesuffix(b"\r")
        if len(line) > self._line_bytes_max:
            raise ProtocolError(
                f"a line has more than {self._line_bytes_max} bytes (ClientLimits.frame_bytes_max)"
            )
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a line is not UTF-8: {error}") from None


def ended_line(text: str, line_bytes_max: int) -> bytes:
    """A line with its end, or the `EncodeError` of what is none."""
    try:
        line = text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"the text cannot be sent: {error}") from None
    if len(line) > line_bytes_max:
        raise EncodeError(
            f"the message takes {len(line)} bytes, and a line at most {line_bytes_max} "
            f"(ClientLimits.frame_bytes_max); send it in parts"
        )
    return line + b"\n"


class JsonLines:
    """An object of JSON in each line. Values are those of JSON: no tuples, sets or classes.

    :param registry: not used.
    :param limits: the bounds; a line is a frame.
    """

    def __init__(self, registry: MessageRegistry, limits: ClientLimits) -> None:
        self._line_bytes_max = limits.frame_bytes_max
        self._depth_max = limits.message_depth_max
        self._lines = LineBuffer(limits.frame_bytes_max)

    def request(self, request_id: int, msg: Any, priority: int) -> bytes:
        """As of `Framing`."""
        said = {"id": request_id, "msg": msg}
        return self._line(said if priority == 0 else {**said, "priority": priority})

    def message(self, msg: Any) -> bytes:
        """As of `Framing`."""
        return self._line({"msg": msg})

    def _line(self, said: dict[str, Any]) -> bytes:
        try:
            text = json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"JSON does not carry the message: {error}") from None
        if most_nested(text, self._depth_max + 1) > self._depth_max + 1:
            raise EncodeError(
                f"the message is nested deeper than {self._depth_max} containers "
                f"(ClientLimits.message_depth_max)"
            )
        return ended_line(text, self._line_bytes_max)

    def feed(self, data: bytes) -> None:
        """As of `Framing`."""
        self._lines.feed(data)

    def next_event(self) -> Event | None:
        """As of `Framing`."""
        line = self._lines.next_line()
        if line is None:
            return None
        if most_nested(line, self._depth_max + 1) > self._depth_max + 1:
            raise ProtocolError(f"a line of JSON is nested deeper than {self._depth_max}")
        try:
            said = json.loads(line, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a line is no JSON: {error}") from None
        if type(said) is not dict:
            raise ProtocolError("a line of JSON is no object")
        return self._event_of(said)

    def _event_of(self, said: dict[str, Any]) -> Event:
        if "goodbye" in said:
            return Goodbye(json_text(said, "goodbye"), json_text(said, "text", ""))
        if "push" in said:
            return Push(said["push"])
        request_id = json_number(said, "id")
        if "value" in said:
            return Answer(request_id, said["value"])
        if "error" in said:
            return Failure(request_id, json_text(said, "error"), json_text(said, "text", ""))
        if "nack_ms" in said:
            return Refusal(request_id, json_number(said, "nack_ms"), json_text(said, "text", ""))
        raise ProtocolError("a line of JSON has neither value, error, nack_ms, push nor goodbye")


def most_nested(line: str, looked_for: int = 1) -> int:
    """How deep arrays and objects are nested at the most, before anything is built of them.

    :param looked_for: up to this it need not be exact: most lines do not have as many brackets.
    """
    if (brackets := line.count("[") + line.count("{")) <= looked_for:
        return min(brackets, 1)
    depth = most = 0
    for part in JSON_PARTS.finditer(line):
        if part[0] in "[{":
            depth += 1
            most = max(most, depth)
        elif part[0] in "]}":
            depth -= 1
    return most


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is none of JSON's values")


def json_number(said: dict[str, Any], key: str) -> int:
    value = said.get(key)
    if type(value) is not int or not 0 <= value <= ID_MAX:
        raise ProtocolError(f"{key} of a line of JSON is no number from 0 to {ID_MAX}")
    return value


def json_text(said: dict[str, Any], key: str, default: str | None = None) -> str:
    value = said.get(key, default)
    if type(value) is not str:
        raise ProtocolError(f"{key} of a line of JSON is no text")
    return value


class PlainLines:
    """A request in each line, answered by lines in order. Messages are str without ends of lines.

    A line that comes while nothing is in flight is a push, but for a goodbye. A message without an
    answer is a request for the server, whose answer goes to nobody. Priorities are not sent.

    :param registry: not used.
    :param limits: the bounds; a line is a frame.
    """

    def __init__(self, registry: MessageRegistry, limits: ClientLimits) -> None:
        self._line_bytes_max = limits.frame_bytes_max
        self._lines = LineBuffer(limits.frame_bytes_max)
        #: Ids of the requests in flight, in order; `None` of those whose answer goes to nobody.
        self._in_flight: collections.deque[int | None] = collections.deque()

    def request(self, request_id: int, msg: Any, priority: int) -> bytes:
        """As of `Framing`."""
        line = self._line(msg)
        self._in_flight.append(request_id)
        return line

    def message(self, msg: Any) -> bytes:
        """As of `Framing`."""
        line = self._line(msg)
        self._in_flight.append(None)
        return line

    def _line(self, msg: Any) -> bytes:
        if type(msg) is not str or "\n" in msg or msg.endswith("\r"):
            raise EncodeError(
                "a message of plain lines is a str without ends of lines; for others take "
                "MsgpackFrames or JsonLines"
            )
        return ended_line(msg, self._line_bytes_max)

    def feed(self, data: bytes) -> None:
        """As of `Framing`."""
        self._lines.feed(data)

    def next_event(self) -> Event | None:
        """As of `Framing`."""
        while (line := self._lines.next_line()) is not None:
            if goodbye := GOODBYE.fullmatch(line):
                return Goodbye(goodbye[1], goodbye[2] or "")
            if not self._in_flight:
                return Push(line)
            request_id = self._in_flight.popleft()
            if request_id is None:
                continue
            if busy := BUSY.fullmatch(line):
                return Refusal(request_id, int(busy[1]), "")
            if error := ERROR.fullmatch(line):
                return Failure(request_id, error[1], error[2] or "")
            return Answer(request_id, line)
        return None
