from typing import final

from rabble._core.client_desk import ClientDesk
from rabble._core.client_server import ClientServer
from rabble._core.envelope import Envelope

__all__ = ["ClientReceiver"]

@final
class ClientReceiver:
    def __new__(cls, desk: ClientDesk, server: ClientServer) -> ClientReceiver: ...
    def deliver(self, envelope: Envelope) -> None: ...
