"""All that a program needs of servers: what to serve with, its bounds, codecs and TLS."""

from rabble.services.codecs import (
    FunctionCodec,
    Incoming,
    JsonLines,
    LengthFraming,
    LineFraming,
    MsgpackCodec,
    Outgoing,
    PlainLines,
    Protobuf,
    ServerCodec,
)
from rabble.services.gate.gate import Gate
from rabble.services.server_handler import (
    Answer,
    CloseConnection,
    Connection,
    ConnectionHandler,
    Fail,
    Push,
    RequestId,
    ServerOutput,
    ask,
)
from rabble.services.server_limits import ServerLimits
from rabble.services.server_tls import ServerTls
from rabble.services.tcp_server import ServerStatus, TcpServer

__all__ = [
    "Answer",
    "CloseConnection",
    "Connection",
    "ConnectionHandler",
    "Fail",
    "FunctionCodec",
    "Gate",
    "Incoming",
    "JsonLines",
    "LengthFraming",
    "LineFraming",
    "MsgpackCodec",
    "Outgoing",
    "PlainLines",
    "Protobuf",
    "Push",
    "RequestId",
    "ServerCodec",
    "ServerLimits",
    "ServerOutput",
    "ServerStatus",
    "ServerTls",
    "TcpServer",
    "ask",
]
