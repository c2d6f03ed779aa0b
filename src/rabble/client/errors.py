"""What a client raises, besides `CallTimeout`, `QueueFull`, `EncodeError` and `DecodeError`.

Each is a `RabbleError`, and those of the mesh that mean the same are the same.
"""

from __future__ import annotations

from rabble.errors import RabbleError

__all__ = [
    "ClientClosed",
    "ConnectionLost",
    "ForkedClient",
    "Nack",
    "ProtocolError",
    "PushesLost",
    "RequestFailed",
]


class Nack(RabbleError):
    """The server has not begun with the request, as it has too much to do. Nothing happened.

    :ivar retry_after: seconds after which it may be asked again; the server has jittered them.
    """

    retry_after: float = 0.0


class RequestFailed(RabbleError):
    """The request failed at the server; `str` says why.

    :ivar code: what sort of failure: `failed`, `timeout`, `no_process`, `crashed`, `disconnected`,
        `malformed`, `duplicate`, `too_many`, or another one of a later version.
    """

    code: str = ""


class ConnectionLost(RabbleError, ConnectionError):
    """There is no connection, or it ended before the answer came; says why.

    :ivar sent: whether the request had been sent: then it may have happened, or not. If not, it has
        not happened.
    :ivar code: what the server said as its goodbye: `drain`, `idle`, `slow` and so on; else empty.
    """

    sent: bool = False
    code: str = ""


class ProtocolError(RabbleError, ValueError):
    """What the server sent is not of the protocol; says what. It is the end of the connection."""


class ClientClosed(RabbleError):
    """The client was closed."""


class ForkedClient(RabbleError):
    """The client belongs to the parent of this forked process: make another one here."""


class PushesLost(RabbleError):
    """More pushes came than are kept, and the oldest were dropped.

    Raised where they would have come; iterating again goes on behind them.

    :ivar count: how many were dropped.
    """

    count: int = 0
