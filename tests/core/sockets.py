"""What tests of sockets share: pollers, connections over socket pairs, and their frames."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rabble._core.codec import Codec
from rabble._core.connection import Connection
from rabble._core.debug import CAPACITIES
from rabble._core.frame import FRAME_KINDS, REFUSAL_CODES, split_frame
from rabble._core.ids import NodeId, Pid
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.registry import MessageRegistry
from tests.reference.session import frame
from tests.support import PATIENCE_S, TINY
from tests.support import descriptors as descriptors

A, B = NodeId("a", "h:1"), NodeId("b", "h:2")
ENVELOPE, FRAGMENT, LOST = (FRAME_KINDS[name] for name in ("ENVELOPE", "FRAGMENT", "LOST"))
PING, PONG, BYE, MEMBERSHIP, WINDOW_UPDATE = (
    FRAME_KINDS[name] for name in ("PING", "PONG", "BYE", "MEMBERSHIP", "WINDOW_UPDATE")
)
FRAME_TOO_LARGE, PROTOCOL, TIMEOUT, LIMIT, SHUTDOWN = (
    REFUSAL_CODES[name] for name in ("FRAME_TOO_LARGE", "PROTOCOL", "TIMEOUT", "LIMIT", "SHUTDOWN")
)
#: Of whole frames that wait, where the reading stops; and of control frames, either way.
HEARD_HIGH, HEARD_BULK_HIGH = CAPACITIES["RECV_HIGH"], CAPACITIES["RECV_BULK_HIGH"]

CONTROL_MAX = 8 << 20


def poller(**more: int) -> Poller:
    limits = {
        "heartbeat_ms": 60_000,
        "frame_bytes_max": 1 << 20,
        "queue_bytes_max": 8 << 20,
        "partial_ms_max": 60_000,
    }
    return Poller(**{**limits, **more})


def session(own: NodeId = A, peer: NodeId = B, **more: int) -> Session:
    codec = Codec(MessageRegistry(), elements_max=1 << 20)
    return Session(own, peer, 7, Pid("executor", own, "rabble"), codec=codec, **more)


def attach(
    at: Poller, sock: socket.socket, own: NodeId = A, peer: NodeId = B, leftover: bytes = b""
) -> Connection:
    sock.setblocking(False)
    connection = at.attach(sock.fileno(), session(own, peer), leftover)
    sock.detach()
    return connection


def pair(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.settimeout(PATIENCE_S)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return left, right


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname(), PATIENCE_S)
        right, _ = listener.accept()
    right.settimeout(PATIENCE_S)
    return left, right


def until(holds: Callable[[], object], *pollers: Poller) -> None:
    """Look at the sockets until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        for each in pollers:
            each.poll()
        time.sleep(0)


def look(at: Poller) -> None:
    """Look at the sockets, until what came by now, which is not much, is heard."""
    for _ in range(1_000 if TINY else 1):
        at.poll()


def hear(connection: Connection, most: int = 65536) -> bytes:
    """All whole frames that were heard so far."""
    heard = b""
    while data := connection.poller.take_frames(connection, most):
        heard += data
    return heard


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, flags and body of each frame; nothing may be left over."""
    found = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        kind, flags, body, _ = split_frame(data[at:end]) or pytest.fail(
            f"no frame: {data[at:end]!r}"
        )
        found.append((kind, flags, body))
        at = end
    return found


def kinds(data: bytes) -> list[int]:
    return [kind for kind, _, _ in frames(data)]


def whole_frames(data: bytes) -> bytes:
    """Without what has not come to its end yet."""
    at = 0
    while len(data) >= at + 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        at = end
    return data[:at]


def recv_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data)) or pytest.fail(f"it ended after {data!r}")
    return data


def bye(code: int, text: bytes = b"") -> bytes:
    return frame(BYE, 0, bytes([code, len(text)]) + text)


def ping(number: int, progress: int = 0, idle: bool = False) -> bytes:
    return frame(PING, idle, struct.pack(">QQ", number, progress))


def lost(count: int) -> bytes:
    """The simplest frame of the data lane."""
    return frame(LOST, 0, struct.pack(">I", count))


def read_all(sock: socket.socket, at: Poller) -> bytes:
    """What comes until the end, while the other side is looked after."""
    said = b""
    sock.setblocking(False)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        at.poll()
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            return said
        said += data
    pytest.fail("it does not end")


def read_until(
    sock: socket.socket, at: Poller, enough: Callable[[bytes], object], said: bytes = b""
) -> bytes:
    sock.setblocking(False)
    end = time.monotonic() + PATIENCE_S
    while not enough(said):
        assert time.monotonic() < end, f"{len(said)} bytes came"
        at.poll()
        with contextlib.suppress(BlockingIOError):
            said += sock.recv(1 << 20)
    return said


def read_more(sock: socket.socket, at: Poller, said: bytes) -> bytes:
    """Read until something has come."""
    return read_until(sock, at, lambda s: len(s) > len(said), said)


def polled_descriptors(at: Poller) -> set[int]:
    """The descriptors in the poller's epoll set, as the kernel has them."""
    mine = at.fileno()
    found = set()
    known = descriptors()
    for fd, what in known.items():
        # The set is made directly before the two eventfds, of which `fileno` is the second.
        if what == "anon_inode:[eventpoll]" and fd < mine:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            found |= {int(number) for number in re.findall(r"^tfd:\s*(\d+)", text, re.M)}
    # Besides the sockets there is an eventfd of the poller's own.
    return {fd for fd in found if known[fd].startswith("socket:")}


@contextlib.contextmanager
def running(at: Poller) -> Iterator[None]:
    """With the poll thread."""
    thread = threading.Thread(target=at.run)
    thread.start()
    try:
        yield
    finally:
        at.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def descriptor_of(at: Poller) -> int:
    (fd,) = polled_descriptors(at)
    return fd
