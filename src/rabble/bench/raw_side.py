"""The other operating-system process of a limit: plain sockets. Run as a file.

It prints its address, does what its role says, and returns; rabble is not imported.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

RAW_BYTES = 64


def ready(line: object) -> None:
    """Say that this side is ready, and where."""
    print(line, flush=True)


def raw_side(kind: str) -> None:
    """One plain TCP connection whose bytes are sent back, spinning or blocking; or just counted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready(f"127.0.0.1:{listener.getsockname()[1]}")
        sock, _ = listener.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if kind == "sink":
                count(sock)
            else:
                echo(sock, spins=kind == "spin")


def echo(sock: socket.socket, *, spins: bool) -> None:
    """Send everything back until the peer closes."""
    sock.setblocking(not spins)
    while True:
        try:
            data = sock.recv(RAW_BYTES)
        except BlockingIOError:
            continue
        if not data:
            return
        sock.sendall(data)


def count(sock: socket.socket) -> None:
    """For every 8 bytes of length that many bytes are read, and one is sent back."""
    buffer = bytearray(1 << 20)
    with sock.makefile("rb") as head:
        while size := head.read(8):
            left = int.from_bytes(size, "big")
            while left:
                left -= head.readinto(memoryview(buffer)[: min(left, len(buffer))])
            sock.sendall(b"!")


ROLES: dict[str, Callable[..., None]] = {"raw": raw_side}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
