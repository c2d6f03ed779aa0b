"""One way and to and fro between the nodes of two operating-system processes on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.queue import EnvelopeQueue
from rabble._core.session import Session
from rabble.bench.codec import Order
from rabble.bench.messaging import HERE
from rabble.bench.model import Case, Limit, Sample, Target, expect, percentile
from rabble.bench.raw_side import RAW_BYTES
from rabble.bench.remote_side import ACK_EVERY, WINDOW, Pinger, registry
from rabble.bench.sides import Pair, Side
from rabble.process import Output, Process

__all__ = ["remote", "remote_typed", "rtt"]

BATCH = 256
FRAME = b"x" * 48
THERE = NodeId("there", "127.0.0.1:2")


# One way.


class Producer(Process):
    """Sends messages to a counter, no more than a window ahead of what that has said it got."""

    def __init__(self, pair: Pair, messages: Sequence[Any], count: int) -> None:
        self.to = pair.there("counter")
        self.messages = messages
        self.left = count
        pair.counted += count
        self.count = pair.counted
        self.main = pair.main.pid
        self.allowed = WINDOW

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "more":
            return self.more()
        starved = self.allowed == 0
        self.allowed += ACK_EVERY
        if msg == self.count:
            return [Envelope(self.main, msg)]
        return self.more() if starved else None

    def more(self) -> list[Envelope]:
        """The next batch, and a word to itself to go on."""
        to = self.to
        size = min(BATCH, self.left, self.allowed)
        out = [Envelope(to, msg) for msg in self.messages[:size]]
        self.left -= size
        self.allowed -= size
        if self.left and self.allowed:
            out.append(Envelope(self.pid, "more"))
        return out


def one_way(pair: Pair, messages: Sequence[Any], count: int) -> Sample:
    """From the first send to the word that all were counted."""
    count = -(-count // ACK_EVERY) * ACK_EVERY
    before = pair.counted
    producer = Producer(pair, messages, count)
    start = time.perf_counter()
    pair.start(producer, "more")
    counted = pair.receive() - before
    seconds = time.perf_counter() - start
    expect("remote", counted, count)
    return Sample(counted, seconds)


def slower_side(messages: Sequence[Any], count: int) -> Sample:
    """Encoding and decoding alone, in batches: the rate of the slower of the two."""
    writer = Session(HERE, THERE, 1, Pid("executor", HERE), codec=Codec(registry()))
    reader = Session(THERE, HERE, 1, Pid("executor", THERE), codec=Codec(registry()))
    to, sender = Pid("counter", THERE), Pid("producer", HERE)
    envelopes = [Envelope(to, msg, sender) for msg in messages]
    encoding = decoding = 0.0
    done = 0
    while done < count:
        start = time.perf_counter()
        writer.write_all(envelopes)
        data = writer.take_data()
        encoding += time.perf_counter() - start
        queue = EnvelopeQueue()
        start = time.perf_counter()
        reader.decode_into(data, queue)
        decoding += time.perf_counter() - start
        done += len(queue)
    expect("codec", done % len(envelopes), 0)
    return Sample(
        done,
        max(encoding, decoding),
        details={"encoded_per_s": done / encoding, "decoded_per_s": done / decoding},
    )


def zmq_one_way(count: int) -> Sample:
    """Raw frames through a PAIR of sockets."""
    zmq: Any = importlib.import_module("zmq")
    with (
        Side("zmq", count, raw=True) as side,
        zmq.Context() as context,
        context.socket(zmq.PAIR) as pair,
    ):
        pair.connect(f"tcp://{side.read()}")
        start = time.perf_counter()
        for _ in range(count):
            pair.send(FRAME)
        answer = pair.recv()
        seconds = time.perf_counter() - start
    expect("pyzmq", int(answer == b"all"), 1)
    return Sample(count, seconds)


def one_way_case(
    name: str, messages: Sequence[Any], count: int, limit: Limit | None = None
) -> Case:
    pair = Pair()
    return Case(
        name,
        {"messages": count},
        "messages/s",
        lambda: one_way(pair, messages, count),
        limit or Limit("codec, slower side", lambda: slower_side(messages, count)),
        Target(0.5 if limit is None else 2.0),
        session=pair,
    )


def remote(messages: int = 2_000_000) -> list[Case]:
    """One way, small envelopes to a counting process on another node.

    The sender keeps a window of messages under way, as the mesh has no back pressure of its own.
    """
    small = [["add", n % 100] for n in range(BATCH)]
    cases = [one_way_case("remote", small, messages)]
    if importlib.util.find_spec("zmq") is not None:
        limit = Limit("pyzmq, raw frames", lambda: zmq_one_way(messages // 2))
        cases.append(one_way_case("remote-zmq", small, messages, limit))
    return cases


def remote_typed(messages: int = 1_000_000) -> list[Case]:
    """The same with a dataclass of three fields."""
    orders = [Order(n % 100, f"lamp {n % 100}", n / 8) for n in range(BATCH)]
    return [one_way_case("remote-typed", orders, messages)]


# Round trips.


def round_trips(pair: Pair, rounds: int) -> list[int]:
    """Nanoseconds of each round between two nodes."""
    pinger = Pinger(pair.there("echo"), rounds, pair.main.pid)
    pair.start(pinger)
    pair.receive()
    expect("rtt", len(pinger.rounds_ns), rounds)
    return pinger.rounds_ns


def raw_round_trips(rounds: int, *, spins: bool) -> list[int]:
    """The same with 64 bytes on plain sockets."""
    with Side("raw", "spin" if spins else "block", raw=True) as side:
        host, _, port = side.read().rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(not spins)
            data = bytes(RAW_BYTES)
            times = []
            for _ in range(rounds):
                start = time.perf_counter_ns()
                sock.send(data)
                while True:
                    try:
                        sock.recv(RAW_BYTES)
                        break
                    except BlockingIOError:
                        continue
                times.append(time.perf_counter_ns() - start)
    return times


def summary(times: list[int], percent: float) -> Sample:
    details = {f"p{p:g}_us": percentile(times, p) / 1e3 for p in (50, 99, 99.9)}
    return Sample(len(times), sum(times) / 1e9, percentile(times, percent) / 1e3, details)


def rtt(rounds: int = 20_000) -> list[Case]:
    """A ball to and fro between two nodes, against 64 bytes on plain sockets, whose sides both spin
    or both block."""

    def case(name: str, spin_us: int, percent: float, spins: bool, target: float) -> Case:
        limit: Callable[[], Sample] = lambda: summary(  # noqa: E731
            raw_round_trips(rounds, spins=spins), percent
        )
        pair = Pair(spin_us)
        return Case(
            name,
            {"rounds": rounds, "spin_us": spin_us},
            f"µs p{percent:g}",
            lambda: summary(round_trips(pair, rounds), percent),
            Limit("raw, spinning" if spins else "raw, blocking", limit),
            Target(target, "<="),
            session=pair,
        )

    return [
        case("rtt", 50, 50, True, 2.5),
        case("rtt-p99", 50, 99, False, 0.5),
        case("rtt-asleep", 0, 50, False, 2.0),
    ]
