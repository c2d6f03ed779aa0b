"""The servers that `api` is held against: asyncio, on uvloop where it is installed. Run as a file.

It prints its address, answers until its standard input ends, and returns; rabble is not imported.
As a good engineer would write it: a Protocol and no streams, a codec that is kept, one look at what
came, and one write for all answers to it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from struct import Struct
from typing import Any, cast

LENGTH = Struct(">I")


def answer(msg: Any) -> Any:
    """What a process does, as a plain function."""
    return msg


class Frames(asyncio.Protocol):
    """msgpack in frames of 4 bytes of length: `[0, id, msg]` is answered by `[0, id, value]`."""

    transport: asyncio.Transport

    def __init__(self, unpacker: Any, pack: Callable[[Any], bytes]) -> None:
        self.feed = unpacker.feed
        self.read = unpacker.read_bytes
        self.unpack = unpacker.unpack
        self.pack = pack
        #: Bytes that the unpacker has and were not looked at, and that the next frame takes.
        self.left = 0
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        read, unpack, pack = self.read, self.unpack, self.pack
        length_in, length_of = LENGTH.unpack, LENGTH.pack
        out = []
        # One copy for all that came, and none for each frame.
        self.feed(data)
        left, size = self.left + len(data), self.size
        while True:
            if not size:
                if left < 4:
                    break
                (size,) = length_in(read(4))
                left -= 4
            if left < size:
                break
            kind, number, msg = unpack()
            left -= size
            size = 0
            if kind == 0:
                body = pack((0, number, answer(msg)))
                out.append(length_of(len(body)))
                out.append(body)
        self.left, self.size = left, size
        if out:
            self.transport.write(b"".join(out))


class Lines(asyncio.Protocol):
    """JSON, an object a line."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.rest = b""
        self.encode = json.JSONEncoder(separators=(",", ":")).encode
        self.decode = json.JSONDecoder().decode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        encode, decode = self.encode, self.decode
        out = []
        for line in lines:
            said = decode(line.decode())
            if "id" in said:
                out.append(encode({"id": said["id"], "value": answer(said["msg"])}))
        if out:
            out.append("")
            self.transport.write("\n".join(out).encode())


def frames() -> Callable[[], asyncio.Protocol]:
    """Makes a protocol for each connection, each with an unpacker; the packer is that of all."""
    msgpack: Any = importlib.import_module("msgpack")
    pack = msgpack.Packer().pack
    return lambda: Frames(msgpack.Unpacker(), pack)


PROTOCOLS: dict[str, Callable[[], Callable[[], asyncio.Protocol]]] = {
    "msgpack": frames,
    "json": lambda: Lines,
}


async def serve(make: Callable[[], asyncio.Protocol]) -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main(kind: str, protocol: str) -> None:
    """Serve on a loop of that kind."""
    make = PROTOCOLS[protocol]()
    if kind == "uvloop":
        uvloop: Any = importlib.import_module("uvloop")
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.run_until_complete(serve(make))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
