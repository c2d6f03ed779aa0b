"""What a peer says, turned from frames into envelopes and all else, one batch at a time."""

from typing import final

from rabble._core.decode import Decoder
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.link import Link

__all__ = ["Heard", "Hearer", "LinkError"]

class LinkError(ValueError):
    code: int
    text: str
    def __init__(self, code: int, text: str) -> None: ...

@final
class Heard:
    @property
    def link(self) -> Link: ...
    @property
    def kind(self) -> int: ...
    @property
    def to(self) -> Pid | None: ...
    @property
    def about(self) -> Pid | None: ...
    @property
    def correlation_id(self) -> CorrelationId | None: ...
    @property
    def why(self) -> int: ...
    @property
    def life(self) -> int: ...
    @property
    def detail(self) -> str: ...
    @property
    def count(self) -> int: ...

@final
class Hearer:
    def __new__(
        cls,
        link: Link,
        own: NodeId,
        peer: NodeId,
        executor: Pid,
        decoder: Decoder,
        open_names: frozenset[str],
        message_bytes_max: int,
        frame_bytes_max: int,
    ) -> Hearer: ...
