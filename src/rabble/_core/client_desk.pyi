from typing import final

from rabble._core.client_server import ClientServer
from rabble._core.executor import Executor
from rabble._core.poller import Poller

__all__ = ["ClientDesk"]

@final
class ClientDesk:
    def __new__(cls, executor: Executor) -> ClientDesk: ...
    @property
    def poller(self) -> Poller: ...
    def open(self, server: ClientServer) -> None: ...
    def forget(self, server: ClientServer) -> None: ...
