"""The processes of the measurement of crowds: a server, clients that mean well, and a crowd.

    python -m tests.faults.clients_crowds serve|well|crowd '{"address": "127.0.0.1:1", ...}'

Each says `ready` when it is, and does what it does until its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import ssl
import sys
import threading
import time
from typing import Any

import msgpack

import rabble
from rabble.services.server import RequestId, ServerLimits, ServerOutput, ServerTls, TcpServer, ask
from tests.clients import connect
from tests.support import Echo

#: Of the server, of all cases: long, so that a crowd is there for the time of a measurement.
LIMITS = {"partial_frame_ms_max": 600_000, "handshake_ms_max": 60_000}
WELL = 64
#: Seconds between two requests of one that means well.
THINK_S = 0.05
DRIP_S = 1.0
#: Until those that read nothing are given no more.
SETTLED_S = 5.0


class Asks(rabble.services.server.ConnectionHandler):
    __slots__ = ("to",)

    def __init__(self, to: rabble.Pid) -> None:
        self.to = to

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        if isinstance(msg, int):
            return rabble.services.server.Push("x" * msg)
        return None if request is None else ask(self.to, msg, request)


def say(line: str) -> None:
    print(line, flush=True)


def framed(msg: Any) -> bytes:
    data = msgpack.packb(msg)
    return len(data).to_bytes(4, "big") + bytes(data)


def serve(spec: dict[str, Any]) -> None:
    limits = ServerLimits(**LIMITS)
    with rabble.rouse("crowded@127.0.0.1:0") as node:
        pid = node.spawn(Echo(), "echo")
        tls = ServerTls(spec["cert"], spec["key"])
        with (
            TcpServer(node, lambda: Asks(pid), limits=limits) as plain,
            TcpServer(node, lambda: Asks(pid), limits=limits, tls=tls, name="tls") as secured,
        ):
            say(f"ready {plain.address} {secured.address}")
            for _ in sys.stdin:
                say(f"= {plain.status().connections} {secured.status().connections}")


def well(spec: dict[str, Any]) -> None:
    """Each asks, has its answer, and thinks. Told `measure S` it says how long answers took."""
    draw = random.Random(1)
    request = framed([0, 1, "x" * 100])
    selector = selectors.DefaultSelector()
    socks = [connect(spec["address"]) for _ in range(WELL)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ)
    say("ready")
    for line in sys.stdin:
        end = time.monotonic() + float(line.split()[1])
        due = {sock: time.monotonic() + draw.uniform(0, THINK_S) for sock in socks}
        asked: dict[Any, float] = {}
        took: list[float] = []
        while (now := time.monotonic()) < end or asked:
            for sock in [sock for sock, at in due.items() if at <= now]:
                del due[sock]
                if now < end:
                    asked[sock] = time.monotonic()
                    sock.sendall(request)
            for key, _ in selector.select(0.001 if due else 0.1):
                got = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                assert got
                took.append(time.monotonic() - asked.pop(key.fileobj))
                due[key.fileobj] = time.monotonic() + draw.uniform(0.5, 1.5) * THINK_S
        took.sort()
        p50_us, p99_us = (took[len(took) * part // 100] * 1e6 for part in (50, 99))
        say(f"= {len(took)} {p50_us:.0f} {p99_us:.0f}")


def crowd(spec: dict[str, Any]) -> None:
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    with contextlib.ExitStack() as stack:
        if spec["kind"] == "flood":
            say("ready")
            count = 0
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connect(spec["address"]).close()
                count += 1
            say(f"= {count}")
            return
        socks = [stack.enter_context(connect(spec["address"])) for _ in range(spec["count"])]
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        if spec["kind"] == "tls":
            hello = first_flight()
            for number, sock in enumerate(socks):
                sock.sendall(hello[: (0, 5, len(hello))[number % 3]])
        if spec["kind"] in ("burst", "mute"):
            for sock in socks[::2]:
                # Half of them are owed 8 MiB each, and read nothing of it.
                sock.sendall(framed([1, 60_000]) * 130)
        if spec["kind"] == "mute":
            over.wait(SETTLED_S)
        say("ready")
        request = framed([0, 1, "x" * 1_000])
        for byte in request * 100 if spec["kind"] == "mute" else ():
            for sock in socks[1::2]:
                with contextlib.suppress(OSError):
                    sock.sendall(bytes([byte]))
            if over.wait(DRIP_S):
                return
        over.wait()


def first_flight() -> bytes:
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


if __name__ == "__main__":
    {"serve": serve, "well": well, "crowd": crowd}[sys.argv[1]](json.loads(sys.argv[2]))
