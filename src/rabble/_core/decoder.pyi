"""The decoder: msgpack to messages and envelopes."""

from typing import Any, final

__all__ = ["Decoder"]

@final
class Decoder:
    def __new__(
        cls, registry: Any, message_bytes_max: int, depth_max: int, elements_max: int
    ) -> Decoder: ...
