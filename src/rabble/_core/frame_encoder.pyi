from typing import final

from rabble._core.encoder import Encoder
from rabble._core.ids import NodeId, Pid

__all__ = ["FrameEncoder"]

@final
class FrameEncoder:
    def __new__(
        cls,
        own: NodeId,
        peer: NodeId,
        executor: Pid,
        encoder: Encoder,
        fragment_bytes: int,
        message_bytes_max: int,
        slots: int,
    ) -> FrameEncoder: ...
