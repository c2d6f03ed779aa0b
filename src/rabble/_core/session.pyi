from collections.abc import Set
from typing import final

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.fragments import UnfinishedMessages
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.queue import EnvelopeQueue

__all__ = ["Session"]

@final
class Session:
    def __new__(
        cls,
        own: NodeId,
        peer: NodeId,
        incarnation: int,
        executor: Pid,
        *,
        codec: Codec,
        fragment_bytes: int = 65536,
        message_bytes_max: int | None = None,
        peer_message_bytes_max: int | None = None,
        frame_bytes_max: int = 1048576,
        open_names: Set[str] = frozenset(),
        pid_cache_slots: int = ...,
        unfinished: UnfinishedMessages | None = None,
        labels: frozenset[str] | None = frozenset(),
        version: int = 2,
    ) -> Session: ...
    @property
    def own(self) -> NodeId: ...
    @property
    def peer(self) -> NodeId: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def labels(self) -> frozenset[str]: ...
    @property
    def version(self) -> int: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def fragment_bytes(self) -> int: ...
    @property
    def message_bytes_max(self) -> int: ...
    @property
    def frame_bytes_max(self) -> int: ...
    @property
    def unfinished_ns(self) -> int: ...
    def write(self, envelope: Envelope, forwarder: Pid | None = None) -> None: ...
    def write_all(self, envelopes: list[Envelope]) -> None: ...
    def monitor(self, monitoring: Pid, monitored: Pid, reference: int) -> None: ...
    def demonitor(self, monitoring: Pid, monitored: Pid, reference: int) -> None: ...
    def down(
        self,
        monitoring: Pid,
        monitored: Pid,
        reference: int,
        why: int,
        life: int,
        detail: str = "",
    ) -> None: ...
    def link(self, linking: Pid, linked: Pid, reference: int) -> None: ...
    def unlink(self, linking: Pid, linked: Pid, reference: int) -> None: ...
    def exit(
        self,
        linked: Pid,
        ended: Pid,
        reference: int,
        why: int,
        life: int,
        detail: str = "",
    ) -> None: ...
    def undelivered(
        self,
        to: Pid,
        correlation_id: CorrelationId | None,
        why: int,
        crash: int = 0,
        about: Pid | None = None,
        detail: str = "",
    ) -> None: ...
    def refuse(self, envelope: Envelope) -> None: ...
    def lost(self, count: int) -> None: ...
    def take_data(self) -> bytes: ...
    def take_bulk(self, unsent: int = 0) -> bytes: ...
    def encode(self, envelope: Envelope) -> bytes: ...
    def decode(self, data: bytes) -> list[Envelope]: ...
    def decode_into(self, data: bytes, queue: EnvelopeQueue) -> None: ...
