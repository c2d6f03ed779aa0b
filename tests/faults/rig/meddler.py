"""A man in the middle of two nodes: lets the handshake pass, and then does what it likes.

with Meddler(("127.0.0.1", port), meddle) as meddler:
    node.join(meddler.address)

`meddle(direction, number, unit)` is called with each unit of a stream behind the handshake, which
is a record if the stream is authenticated and a frame otherwise, and returns the bytes to pass on.
Before the frames come the messages of the handshake, by `handshake(direction, number, message)`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from rabble.cluster.decide import handshake_wire as wire
from tests.faults.rig.proxy import DOWN, UP
from tests.reference.records import HEAD
from tests.support import PATIENCE_S

__all__ = ["DOWN", "UP", "Meddler", "passes"]

Meddle = Callable[[str, int, bytes], bytes]
#: How many messages of the handshake each side sends: HELLO and PROOF; HELLO, PROOF and ACCEPT.
MESSAGES = {UP: 2, DOWN: 3}
#: The lower byte of a HELLO's flags.
FLAGS_AT = 13


def passes(direction: str, number: int, unit: bytes) -> bytes:
    """What honest networks do."""
    return unit


class Way:
    """One direction of one connection, cut into what it is made of."""

    def __init__(self, direction: str, meddler: Meddler, link: Link) -> None:
        self.direction = direction
        self.meddler = meddler
        self.link = link
        self.waits = b""
        self.messages = 0
        self.units = 0

    def take(self, data: bytes) -> bytes:
        """What to pass on for what came."""
        self.waits += data
        passed = b""
        while (size := self.size()) and size <= len(self.waits):
            unit, self.waits = self.waits[:size], self.waits[size:]
            if self.messages < MESSAGES[self.direction]:
                if self.messages == 0 and unit[FLAGS_AT] & wire.STREAM_FLAG:
                    self.link.is_authenticated = True
                passed += self.meddler.handshake(self.direction, self.messages, unit)
                self.messages += 1
            else:
                self.meddler.seen.append((self.direction, unit))
                passed += self.meddler.meddle(self.direction, self.units, unit)
                self.units += 1
        return passed

    def size(self) -> int | None:
        """Of the next message, record or frame, as soon as that can be told."""
        data = self.waits
        if self.messages == 0 and data[:1] == wire.MAGIC[:1]:
            return wire.HELLO_HEAD + int.from_bytes(data[8:10], "big") if len(data) >= 10 else None
        if self.messages < MESSAGES[self.direction]:
            return 3 + int.from_bytes(data[1:3], "big") if len(data) >= 3 else None
        if len(data) < 4:
            return None
        return int.from_bytes(data[:4], "big") + (HEAD if self.link.is_authenticated else 4)


class Link:
    """One connection to the meddler, and its own to the target."""

    def __init__(self, meddler: Meddler, client: socket.socket, target: socket.socket) -> None:
        self.socks = {UP: client, DOWN: target}
        self.sinks = {UP: target, DOWN: client}
        self.is_authenticated = False
        self.ways = {each: Way(each, meddler, self) for each in (UP, DOWN)}

    def carry(self, ended: socket.socket) -> None:
        """Until both sides have closed, or one is gone, or the meddler ends."""
        open_ways = dict(self.socks)
        try:
            while open_ways:
                ready, _, _ = select.select([*open_ways.values(), ended], [], [])
                if ended in ready:
                    return
                for direction, sock in list(open_ways.items()):
                    if sock not in ready:
                        continue
                    data = sock.recv(65_536)
                    if data:
                        self.sinks[direction].sendall(self.ways[direction].take(data))
                    else:
                        self.sinks[direction].shutdown(socket.SHUT_WR)
                        del open_ways[direction]
        except OSError:
            # One of them is gone.
            return
        finally:
            for sock in self.socks.values():
                sock.close()


class Meddler:
    """Accepts connections and makes one to the target for each, one after the other."""

    def __init__(
        self, target: tuple[str, int], meddle: Meddle = passes, handshake: Meddle = passes
    ) -> None:
        self.target = target
        self.meddle = meddle
        self.handshake = handshake
        #: Each unit that came, before it was changed: direction and bytes.
        self.seen: list[tuple[str, bytes]] = []
        self.links: list[Link] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Meddler:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="meddler")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._server.close()
        self._stopped.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._server, self._stopped], [], [])
            if self._stopped in ready:
                return
            client, _ = self._server.accept()
            with contextlib.ExitStack() as stack:
                stack.enter_context(client)
                try:
                    target = stack.enter_context(socket.create_connection(self.target, PATIENCE_S))
                except OSError:
                    continue
                link = Link(self, client, target)
                self.links.append(link)
                link.carry(self._stopped)
