"""A client of a server, for tests: a plain socket that speaks the protocol, with the pure codec."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

from rabble import Node, Pid, Process, reply
from rabble._core.codec import Codec
from rabble.registry import MessageRegistry, default_registry
from rabble.services.server_handler import (
    ConnectionHandler,
    Push,
    RequestId,
    ServerOutput,
    ask,
)
from rabble.services.tcp_server import TcpServer
from tests.support import PATIENCE_S


class Ended(Exception):
    """The server closed the connection; what came of a frame by then."""


class Client:
    """One connection. Frames are lists, as the protocol has them.

    :param address: as `TcpServer.address`.
    :param sock: one that is connected already, in its place.
    """

    def __init__(
        self,
        address: str = "",
        *,
        sock: socket.socket | None = None,
        registry: MessageRegistry = default_registry,
    ) -> None:
        self.codec = Codec(registry)
        self.sock = sock or connect(address)
        self.sock.settimeout(PATIENCE_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close it by a reset: so the server knows at once that nobody reads answers any more."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, *frames: list[Any]) -> None:
        """Send frames, all in one piece."""
        self.sock.sendall(b"".join(map(self.frame, frames)))

    def frame(self, frame: list[Any]) -> bytes:
        data = self.codec.encode_message(frame)
        return struct.pack(">I", len(data)) + data

    def receive(self) -> list[Any]:
        """The next frame; `Ended` if there is none any more."""
        (size,) = struct.unpack(">I", self.take(4))
        frame = self.codec.decode_message(self.take(size))
        assert type(frame) is list
        return frame

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                got = self.sock.recv(size - len(data))
            except ConnectionResetError:
                got = b""
            if not got:
                raise Ended(data)
            data += got
        return data

    def ask(self, number: int, msg: Any) -> list[Any]:
        """Send one request, and return the next frame."""
        self.send([0, number, msg])
        return self.receive()

    def rest(self) -> list[list[Any]]:
        """All frames until the server closes."""
        frames = []
        with contextlib.suppress(Ended):
            while True:
                frames.append(self.receive())
        return frames

    def line(self) -> str:
        """The next line, of a codec of lines; `Ended` if there is none any more."""
        data = b""
        while not data.endswith(b"\n"):
            data += self.take(1)
        return data[:-1].decode()

    def json(self) -> Any:
        return json.loads(self.line())


def connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.removeprefix("unix:"))
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


class Adder(Process):
    """Adds what it is told, and answers with the sum so far; with nothing to `hold`."""

    def __init__(self) -> None:
        self.total = 0

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
        if msg == "hold":
            return None
        if msg == "boom":
            raise ValueError("as asked")
        self.total += msg
        return reply(self.total, sender, correlation_id)


class Asking(ConnectionHandler):
    """Passes each request on to one process; pushes back what is no request."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return Push(msg) if request is None else ask(self.to, msg, request)


@contextlib.contextmanager
def adding(node: Node, **options: Any) -> Iterator[TcpServer]:
    """A server whose clients ask an `Adder`."""
    pid = node.spawn(Adder(), options.pop("adder", "adder"))
    with TcpServer(node, lambda: Asking(pid), **options) as server:
        yield server
