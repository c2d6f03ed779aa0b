"""The other side of an API server: a blocking client and one for asyncio, in plain Python.

Nothing here needs the compiled core; where that is, values are encoded by it.

.. code-block:: python

    with Client("127.0.0.1:7000") as client:
        print(client.call(Get("key")))
"""

from rabble.client.aio import AsyncClient
from rabble.client.blocking import Client
from rabble.client.errors import (
    ClientClosed,
    ConnectionLost,
    ForkedClient,
    Nack,
    ProtocolError,
    PushesLost,
    RequestFailed,
)
from rabble.client.framing import JsonLines, MsgpackFrames, PlainLines
from rabble.client.limits import ClientLimits
from rabble.client.retries import RetryBudget, RetryPolicy
from rabble.client.values import OpaqueId

__all__ = [
    "AsyncClient",
    "Client",
    "ClientClosed",
    "ClientLimits",
    "ConnectionLost",
    "ForkedClient",
    "JsonLines",
    "MsgpackFrames",
    "Nack",
    "OpaqueId",
    "PlainLines",
    "ProtocolError",
    "PushesLost",
    "RequestFailed",
    "RetryBudget",
    "RetryPolicy",
]
