"""The encoder: messages and envelopes to msgpack."""

from typing import Any, final

__all__ = ["EncodeError", "Encoder"]

class EncodeError(ValueError): ...

@final
class Encoder:
    def __new__(
        cls, registry: Any, message_bytes_max: int, depth_max: int, elements_max: int
    ) -> Encoder: ...
