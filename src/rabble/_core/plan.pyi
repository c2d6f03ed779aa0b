from typing import Any, Self, final

from typing_extensions import disjoint_base

__all__ = ["CodecBounds", "Plan"]

@disjoint_base
class CodecBounds:
    def __new__(
        cls,
        registry: Any,
        *,
        message_bytes_max: int = 67108864,
        depth_max: int = 64,
        elements_max: int = 67108864,
        decoded_bytes_max: int = 536870912,
    ) -> Self: ...
    @property
    def registry(self) -> Any: ...
    @property
    def message_bytes_max(self) -> int: ...
    @property
    def depth_max(self) -> int: ...
    @property
    def elements_max(self) -> int: ...
    @property
    def decoded_bytes_max(self) -> int: ...

@final
class Plan: ...
