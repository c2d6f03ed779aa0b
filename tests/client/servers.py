"""A scripted server of plain sockets: what a test says, it says, and it does nothing by itself.

Its bytes are made by the msgpack package, and not by what is tested.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from rabble.client import AsyncClient, Client
from tests.support import until

__all__ = ["PatientAsyncClient", "PatientClient", "Peer", "Script", "frame_of", "requests"]

WAIT_S = 60


class PatientClient(Client):
    """With the time that a machine may take which has much else to do."""

    def call(self, msg: Any, timeout: float = 60.0, *, priority: int = 0) -> Any:
        return super().call(msg, timeout, priority=priority)

    def send(self, msg: Any, timeout: float = 60.0) -> None:
        super().send(msg, timeout)


class PatientAsyncClient(AsyncClient):
    """As `PatientClient`."""

    async def call(self, msg: Any, timeout: float = 60.0, *, priority: int = 0) -> Any:
        return await super().call(msg, timeout, priority=priority)

    async def send(self, msg: Any, timeout: float = 60.0) -> None:
        await super().send(msg, timeout)


def frame_of(*parts: Any) -> bytes:
    """The bytes of a frame."""
    data = msgpack.packb(list(parts))
    return struct.pack(">I", len(data)) + data


class Peer:
    """One connection, as the server has it. The methods return nothing, or None, at its end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT_S)
        self.file = sock.makefile("rb")
        self.last = b""

    def frame(self) -> list[Any] | None:
        """The next frame; None if there is none any more. Its bytes are in `last`."""
        try:
            head = self.file.read(4)
            if len(head) < 4:
                return None
            self.last = self.file.read(int.from_bytes(head, "big"))
            found: list[Any] = msgpack.unpackb(self.last, strict_map_key=False)
            return found
        except OSError:
            return None

    def line(self) -> str | None:
        try:
            return self.file.readline().decode().removesuffix("\n") or None
        except OSError:
            return None

    def say(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def send(self, *parts: Any) -> None:
        """Say a frame."""
        self.say(frame_of(*parts))

    def send_encoded(self, request_id: int, value: bytes) -> None:
        """Answer by a value that is encoded already."""
        data = b"\x93\0" + msgpack.packb(request_id) + value
        self.say(struct.pack(">I", len(data)) + data)

    def echo(self) -> None:
        """Answer each request by what it asks, byte for byte, until the end."""
        while (said := self.frame()) is not None:
            if said[0] == 0 and len(said) == 3:
                head = b"\x93\0" + msgpack.packb(said[1])
                self.send_encoded(said[1], self.last[len(head) :])

    def ended(self) -> bool:
        """Wait for the client's end of the connection."""
        while (said := self.frame()) is not None:
            del said
        return True


class Script:
    """Runs a script for each connection, in a thread of its own.

    :param scripts: for the first connection, the second, and so on; the last one for all others.
        The connection is closed when it returns.
    :param path: of a Unix socket.
    :param tls: what the server has for TLS.
    """

    def __init__(
        self,
        *scripts: Callable[[Peer], object],
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.scripts = scripts
        self.path = path
        self.tls = tls
        self.errors: list[BaseException] = []
        self.connections = 0
        self.threads: list[threading.Thread] = []
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Script:
        if self.path is None:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(self.path))
            self.listener.listen()
            self.address = str(self.path)
        self.acceptor = threading.Thread(target=self.accept)
        self.acceptor.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.acceptor.join()
        self.listener.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        if self.errors and kind is None:
            raise self.errors[0]

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(sock)
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self.run, args=(script, sock))
            self.threads.append(thread)
            thread.start()

    def join_first(self) -> None:
        """Wait for the end of the first connection, which may not have been accepted yet."""
        until(lambda: self.threads and self.threads[0].ident)
        self.threads[0].join(WAIT_S)

    def run(self, script: Callable[[Peer], object], sock: socket.socket) -> None:
        try:
            if self.tls is not None:
                sock.settimeout(WAIT_S)
                sock = self.tls.wrap_socket(sock, server_side=True)
            peer = Peer(sock)
            script(peer)
        except (OSError, ValueError) as error:
            if self.tls is None:
                self.errors.append(error)
        except BaseException as error:
            self.errors.append(error)
        finally:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(UnboundLocalError):
                peer.file.close()
            sock.close()


def requests(peer: Peer, count: int) -> Iterator[tuple[int, Any]]:
    """The ids and messages of so many requests."""
    for _ in range(count):
        said = peer.frame()
        assert said is not None and said[0] == 0, said
        yield said[1], said[2]
