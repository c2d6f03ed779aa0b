from collections.abc import Callable
from typing import Any, Literal, final

from rabble._core.client_messages import Incoming, Outgoing
from rabble._core.codec import Codec

__all__ = ["ClientCodec"]

@final
class ClientCodec:
    def __new__(
        cls,
        codec: Codec | None,
        decode: Callable[[bytes], Incoming] | None = None,
        encode: Callable[[Outgoing], bytes] | None = None,
        *,
        delimiter: int = -1,
        is_ordered: bool = False,
    ) -> ClientCodec: ...
    @property
    def framing(self) -> int: ...
    @property
    def delimiter(self) -> int: ...
    @property
    def is_ordered(self) -> bool: ...
    def read_frame(self, data: bytes) -> tuple[Any, int | None, int]: ...
    def write_frame(
        self,
        kind: Literal["answer", "failure", "nack", "push", "goodbye"],
        key: int | None = None,
        value: Any = None,
        code: str = "",
        text: str = "",
        retry_ms: int = 0,
    ) -> bytes: ...
