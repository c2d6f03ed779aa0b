"""Large payloads between two operating-system processes, and the small messages beside them."""

from __future__ import annotations

import socket
import time
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId
from rabble.bench.model import Case, Limit, Sample, Target, expect, percentile
from rabble.bench.remote_side import Pinger
from rabble.bench.sides import RAW_SIDE, Pair, Side
from rabble.process import Output, Process

__all__ = ["remote_large"]


class Pusher(Process):
    """Sends a payload again and again, so many bytes ahead of what the sink has said it got."""

    def __init__(self, pair: Pair, payload: bytes, count: int) -> None:
        self.to = pair.there("sink")
        self.payload = payload
        self.left = count
        self.under_way = 0
        self.taken = 0
        self.main = pair.main.pid
        self.ahead = max(2, (4 << 20) // len(payload))

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg != "go":
            self.under_way -= 1
            self.taken += msg
        out = [
            Envelope(self.to, self.payload)
            for _ in range(min(self.ahead - self.under_way, self.left))
        ]
        self.under_way += len(out)
        self.left -= len(out)
        if not self.under_way:
            out.append(Envelope(self.main, ("pushed", self.taken)))
        return out


def push(pair: Pair, size: int, count: int) -> Sample:
    """Bytes per second of payloads alone."""
    pusher = Pusher(pair, bytes(size), count)
    start = time.perf_counter()
    pair.start(pusher)
    _, taken = pair.receive()
    seconds = time.perf_counter() - start
    expect("remote-large", taken, size * count)
    return Sample(taken, seconds)


def push_beside(pair: Pair, size: int, count: int, rounds: int = 2_000) -> Sample:
    """How long the round trips of small messages take before payloads are sent, and meanwhile."""
    alone = Pinger(pair.there("echo"), rounds, pair.main.pid)
    pair.start(alone)
    pair.receive()
    beside = Pinger(pair.there("echo"), 1 << 30, pair.main.pid)
    pair.start(beside)
    pusher = Pusher(pair, bytes(size), count)
    start = time.perf_counter()
    pair.start(pusher)
    _, taken = pair.receive()
    seconds = time.perf_counter() - start
    beside_ns = list(beside.rounds_ns)
    beside.rounds = 0
    pair.receive()
    expect("remote-large beside", taken, size * count)
    return Sample(
        taken,
        seconds,
        details={
            "small_alone_p99_us": percentile(alone.rounds_ns, 99) / 1e3,
            "small_beside_p99_us": percentile(beside_ns, 99) / 1e3,
        },
    )


def raw_push(size: int, count: int) -> Sample:
    """The same bytes through a plain socket, each payload acknowledged."""
    payload = bytes(size)
    ahead = max(2, (4 << 20) // size)
    with Side("raw", "sink", file=RAW_SIDE) as side:
        host, _, port = side.read().rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = size.to_bytes(8, "big")
            under_way = 0
            start = time.perf_counter()
            for _ in range(count):
                sock.sendall(head)
                sock.sendall(payload)
                under_way += 1
                while under_way >= ahead:
                    under_way -= len(sock.recv(ahead))
            while under_way:
                under_way -= len(sock.recv(ahead))
            seconds = time.perf_counter() - start
    return Sample(size * count, seconds)


def remote_large(megabytes: int = 512) -> list[Case]:
    """Payloads of 64 KiB and 4 MiB, and the small messages that share the connection."""
    cases = []
    for name, size, target in (
        ("64KiB", 64 << 10, 0.6),
        ("4MiB", 4 << 20, 0.6),
        ("64KiB-authenticated", 64 << 10, 0.4),
    ):
        count = max((megabytes << 20) // size, 2)
        params = {"payload_bytes": size, "payloads": count}

        pair = Pair(authenticated=name.endswith("authenticated"))

        def run(pair: Pair = pair, size: int = size, count: int = count) -> Sample:
            return push(pair, size, count)

        def limit(size: int = size, count: int = count) -> Sample:
            return raw_push(size, count)

        cases.append(
            Case(
                f"remote-{name}",
                params,
                "bytes/s",
                run,
                Limit("raw TCP", limit),
                Target(target),
                session=pair,
            )
        )
    beside: list[Sample] = []
    shared = Pair()

    def small_beside() -> Sample:
        sample = push_beside(shared, 64 << 10, max(megabytes * 4, 2))
        beside.append(sample)
        return Sample(1, sample.seconds, sample.details["small_beside_p99_us"])

    def small_alone() -> Sample:
        sample = beside.pop() if beside else push_beside(shared, 64 << 10, 2)
        return Sample(1, sample.seconds, sample.details["small_alone_p99_us"])

    cases.append(
        Case(
            "remote-large-small",
            {"payload_bytes": 64 << 10},
            "µs p99",
            small_beside,
            Limit("unloaded", small_alone),
            Target(3.0, "<="),
            session=shared,
        )
    )
    return cases
