from typing import final

from rabble._core.decoder import Decoder
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.session import Session

__all__ = ["FrameDecoder", "PeerEvent"]

@final
class PeerEvent:
    @property
    def session(self) -> Session: ...
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
    def reference(self) -> int: ...
    @property
    def life(self) -> int: ...
    @property
    def crash(self) -> int: ...
    @property
    def detail(self) -> str: ...
    @property
    def count(self) -> int: ...

@final
class FrameDecoder:
    def __new__(
        cls,
        session: Session,
        own: NodeId,
        peer: NodeId,
        executor: Pid,
        decoder: Decoder,
        open_names: frozenset[str],
        message_bytes_max: int,
        frame_bytes_max: int,
    ) -> FrameDecoder: ...
