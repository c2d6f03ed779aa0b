"""A TCP proxy on loopback that mistreats what passes; needs no rights at all.

with Proxy(("127.0.0.1", port)) as proxy:
    client = socket.create_connection(proxy.address)
    proxy.set(Manners(split_bytes=1), UP)         # towards the target
    proxy.set(Manners(stalled=True), DOWN)
    proxy.drop(reset=True)
    print(proxy.recordings[0].up)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

UP, DOWN = "up", "down"
CHUNK_BYTES = 64 * 1024
RECORD_BYTES_MAX = 64 << 20
COMMAND_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Manners:
    """How the proxy treats one direction of all its connections."""

    #: Nothing is read any more, so the sender's queue fills. At most 64 KiB are on their way.
    stalled: bool = False
    #: Written in pieces of so many bytes, each of which waits `delay_s`; 0: as it comes.
    split_bytes: int = 0
    delay_s: float = 0.0
    #: Probability that a piece has one bit flipped.
    flip: float = 0.0
    #: Read and thrown away: the sender believes that it arrived.
    swallow: bool = False


@dataclasses.dataclass
class Recording:
    """What passed through one connection, as it was read, so before it was mistreated."""

    up: bytearray = dataclasses.field(default_factory=bytearray)
    down: bytearray = dataclasses.field(default_factory=bytearray)
    #: Both directions in the order in which they were read.
    turns: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)


class Proxy:
    """Accepts connections and makes one to the target for each. Runs in a thread of its own."""

    def __init__(self, target: tuple[str, int], seed: int = 0, record: bool = True) -> None:
        self.target = target
        self.recordings: list[Recording] = []
        self.flipped = 0
        self._record = record
        self._rng = random.Random(seed)
        self._manners = {UP: Manners(), DOWN: Manners()}
        self._refusing = False
        self._links: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}
        self.address: tuple[str, int] = ("", 0)

    def __enter__(self) -> Proxy:
        self._server = socket.socket()
        self._server.setblocking(False)
        self._server.bind(("127.0.0.1", 0))
        self._server.listen()
        self.address = self._server.getsockname()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._in_loop(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._in_loop(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._server.close()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(COMMAND_TIMEOUT_S)

    async def _begin(self) -> None:
        self._changed = asyncio.Event()
        self._accepting = self._loop.create_task(self._accept())

    async def _end(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        await self._close(reset=True)

    def set(self, manners: Manners, direction: str | None = None) -> None:
        """Change how a direction is treated, or both; in force for what is read after it."""

        async def change() -> None:
            for each in (UP, DOWN) if direction is None else (direction,):
                if each not in self._manners:
                    raise ValueError(f"{each!r}: up or down")
                self._manners[each] = manners
            self._stir()

        self._in_loop(change())

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections as soon as they are made."""

        async def change() -> None:
            self._refusing = refusing

        self._in_loop(change())

    def drop(self, reset: bool = False) -> int:
        """Close all connections on both sides, with RST if `reset`; how many there were."""

        return self._in_loop(self._close(reset))

    def wait(
        self, condition: Callable[[Proxy], bool], timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        """Wait until something holds that changes with what passes, e.g. of the recordings."""

        async def until() -> None:
            while not condition(self):
                await self._changed.wait()

        async def bounded() -> None:
            await asyncio.wait_for(until(), timeout_s)

        try:
            asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        except TimeoutError:
            raise TimeoutError(f"not in {timeout_s} s") from None

    def _stir(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _close(self, reset: bool) -> int:
        links = dict(self._links)
        for task, pair in links.items():
            if reset:
                for sock in pair:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        for task, pair in links.items():
            # One that was cancelled before its first step could not do it.
            if self._links.pop(task, None):
                for sock in pair:
                    sock.close()
        return len(links)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._server)
            if self._refusing:
                client.close()
                continue
            target = socket.socket(socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET)
            for sock in (client, target):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = self._loop.create_task(self._link(client, target))
            self._links[link] = (client, target)

    async def _link(self, client: socket.socket, target: socket.socket) -> None:
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._loop.sock_connect(target, self.target)
            recording = Recording()
            self.recordings.append(recording)
            self._stir()
            for source, sink, direction in ((client, target, UP), (target, client, DOWN)):
                work = self._pump(source, sink, direction, recording)
                pumps.append(self._loop.create_task(work))
            # A direction that is closed leaves the other one open; an error ends both.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        except OSError:  # nobody listens there
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            # The pumps let go of the descriptors before another socket can get their numbers.
            await asyncio.gather(*pumps, return_exceptions=True)
            client.close()
            target.close()
            task = asyncio.current_task()
            assert task is not None
            del self._links[task]
            self._stir()

    async def _pump(
        self, source: socket.socket, target: socket.socket, direction: str, recording: Recording
    ) -> None:
        while True:
            await self._moving(direction)
            data = await self._loop.sock_recv(source, CHUNK_BYTES)
            await self._moving(direction)
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            if self._record and len(recording.up) + len(recording.down) < RECORD_BYTES_MAX:
                (recording.up if direction == UP else recording.down).extend(data)
                recording.turns.append((direction, data))
            self._stir()
            manners = self._manners[direction]
            if manners.swallow:
                continue
            size = manners.split_bytes or len(data)
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                if manners.delay_s:
                    await asyncio.sleep(manners.delay_s)
                if self._rng.random() < manners.flip:
                    at = self._rng.randrange(len(piece) * 8)
                    changed = bytearray(piece)
                    changed[at // 8] ^= 1 << at % 8
                    piece = bytes(changed)
                    self.flipped += 1
                await self._loop.sock_sendall(target, piece)

    async def _moving(self, direction: str) -> None:
        while self._manners[direction].stalled:
            await self._changed.wait()


def replay(data: bytes, address: tuple[str, int], timeout_s: float) -> bytes:
    """Say what was recorded to somebody, close that direction, and return all that it answers."""
    heard = bytearray()
    with socket.create_connection(address, timeout_s) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(CHUNK_BYTES):
                heard += part
        except ConnectionError:  # it closed before it had heard, or read, all
            pass
    return bytes(heard)
