"""The codec of a client: that of the compiled core where it is, else the one in plain Python."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from rabble._core.errors import DecodeLimitError, EncodeError
from rabble.client.decoding import Checks, Reader
from rabble.client.encoding import Writer
from rabble.client.limits import ClientLimits
from rabble.registry import MessageRegistry

__all__ = ["Codec", "PlainCodec", "codec_of", "plain_codec"]


class Codec(Protocol):
    """What turns values into bytes and back. For any thread."""

    def encode_message(self, msg: Any, /) -> bytes:
        """The bytes of a value.

        :raises EncodeError: if something in it does not travel, or a bound is exceeded.
        """

    def decode_message(self, data: bytes, /) -> Any:
        """The value of these bytes.

        :raises DecodeError: if they are none, or the registry has no such class.
        """


class PlainCodec:
    """As `rabble._core.codec.Codec`, in plain Python: the same bytes, the same bounds.

    :param registry: the classes that may be sent and built.
    :param message_bytes_max: bytes of one encoded message.
    :param depth_max: how deep containers may be nested.
    :param elements_max: elements of all containers of one message together.
    :param decoded_bytes_max: bytes of memory that the objects of one message may take where it is
        decoded, by the wire's estimate.
    """

    def __init__(
        self,
        registry: MessageRegistry,
        *,
        message_bytes_max: int = 64 << 20,
        depth_max: int = 64,
        elements_max: int = 64 << 20,
        decoded_bytes_max: int = 512 << 20,
    ) -> None:
        self.registry = registry
        self.bounds = message_bytes_max, depth_max, elements_max, decoded_bytes_max
        self.checks: Checks = {}

    def encode_message(self, msg: Any) -> bytes:
        """As of `Codec`."""
        writer = Writer(self.registry, *self.bounds)
        try:
            writer.write(msg)
        except RecursionError:
            raise EncodeError("the message is nested deeper than this Python's stack") from None
        return bytes(writer.out)

    def decode_message(self, data: bytes) -> Any:
        """As of `Codec`."""
        try:
            return self.reader(data).whole()
        except RecursionError:
            raise DecodeLimitError(
                "the message is nested deeper than this Python's stack"
            ) from None

    def reader(self, data: bytes) -> Reader:
        """What reads parts of a frame."""
        return Reader(self.registry, data, self.checks, *self.bounds)


def bounds_of(limits: ClientLimits) -> dict[str, int]:
    return {
        "message_bytes_max": limits.frame_bytes_max,
        "depth_max": limits.message_depth_max,
        "elements_max": limits.message_elements_max,
        "decoded_bytes_max": limits.message_decoded_bytes_max,
    }


def plain_codec(registry: MessageRegistry, limits: ClientLimits) -> PlainCodec:
    """The codec in plain Python."""
    return PlainCodec(registry, **bounds_of(limits))


def codec_of(registry: MessageRegistry, limits: ClientLimits) -> Codec:
    """The fastest codec that is here. Both give the same bytes and refuse the same."""
    try:
        core: Any = importlib.import_module("rabble._core.codec")
    except ModuleNotFoundError:
        return plain_codec(registry, limits)
    found: Codec = core.Codec(registry, **bounds_of(limits))
    return found
