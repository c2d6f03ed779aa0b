"""Routes: which connection leads to another node."""

from typing import final

from rabble._core.ids import NodeId
from rabble._core.poller import Connection, Poller

__all__ = ["Routes"]

@final
class Routes:
    def __new__(cls, poller: Poller) -> Routes: ...
    @property
    def poller(self) -> Poller: ...
    @property
    def envelopes_sent(self) -> int: ...
    @property
    def batches_received(self) -> int: ...
    def get(self, node: NodeId) -> Connection | None: ...
    def __len__(self) -> int: ...
