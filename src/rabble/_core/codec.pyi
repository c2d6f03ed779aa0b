"""The codec: envelopes and messages to msgpack and back."""

from typing import Any, final

from rabble._core.buffer_reader import DecodeError, DecodeLimitError, UnknownMessageError
from rabble._core.encoder import EncodeError
from rabble._core.envelope import Envelope

__all__ = ["Codec", "DecodeError", "DecodeLimitError", "EncodeError", "UnknownMessageError"]

@final
class Codec:
    def __new__(
        cls,
        registry: Any,
        *,
        message_bytes_max: int = ...,
        depth_max: int = ...,
        elements_max: int = ...,
    ) -> Codec: ...
    @property
    def registry(self) -> Any: ...
    @property
    def message_bytes_max(self) -> int: ...
    @property
    def depth_max(self) -> int: ...
    @property
    def elements_max(self) -> int: ...
    def encode_message(self, msg: object) -> bytes: ...
    def decode_message(self, data: bytes) -> Any: ...
    def encode_envelope(self, env: Envelope) -> bytes: ...
    def decode_envelope(self, data: bytes) -> Envelope: ...
