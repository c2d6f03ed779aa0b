"""What one node says to another: envelopes and all else, as frames."""

from typing import final

from rabble._core.encode import Encoder
from rabble._core.ids import NodeId, Pid

__all__ = ["Speaker"]

@final
class Speaker:
    def __new__(
        cls,
        own: NodeId,
        peer: NodeId,
        executor: Pid,
        encoder: Encoder,
        fragment_bytes: int,
        message_bytes_max: int,
        places: int,
    ) -> Speaker: ...
