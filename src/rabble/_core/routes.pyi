"""Routes: which connection leads to another node."""

from typing import final

from rabble._core.ids import NodeId
from rabble._core.poll import Connection, Poller

__all__ = ["Routes"]

@final
class Routes:
    def __new__(cls, poller: Poller) -> Routes: ...
    @property
    def poller(self) -> Poller: ...
    @property
    def said(self) -> int: ...
    @property
    def heard(self) -> int: ...
    def get(self, node: NodeId) -> Connection | None: ...
    def __len__(self) -> int: ...
