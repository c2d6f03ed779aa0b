"""One way and to and fro between the nodes of two operating-system processes on this machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.queue import EnvelopeQueue
from rabble.bench.codec import session
from rabble.bench.messaging import HERE, PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect, percentile
from rabble.bench.raw_side import RAW_BYTES
from rabble.bench.remote_side import ACK_EVERY, WINDOW, Counter, Pinger
from rabble.bench.sides import RAW_SIDE, Pair, Side
from rabble.bench.typed import KINDS, has_msgspec
from rabble.process import Output, Process

__all__ = ["AUTHENTICATED", "remote", "remote_typed", "rtt"]

BATCH = 256
#: The case whose stream is verified, as it is between two machines with a key.
AUTHENTICATED = "remote-authenticated"
#: What is sent one way, again and again, by the name of the case.
SMALL: Sequence[Any] = [["add", n % 100] for n in range(BATCH)]
MESSAGES: Mapping[str, Sequence[Any]] = MappingProxyType(
    {
        "remote": SMALL,
        AUTHENTICATED: SMALL,
        "remote-typed-3": [KINDS[0].order(n % 100) for n in range(BATCH)],
        "remote-typed-10": [KINDS[0].sale(n % 100) for n in range(BATCH)],
    }
)
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


def receiving_core(messages: Sequence[Any], count: int) -> Sample:
    """What the receiving core has to do in any case, in one warm loop: decode, free, and call that
    `receive`.

    Of the ways to write it down this takes the fewest instructions: frames are decoded into a queue
    and freed with it, and the calls are given messages that were decoded before.
    """
    writer, reader = session(HERE, THERE), session(THERE, HERE)
    to, sender = Pid("counter", THERE), Pid("producer", HERE)
    envelopes = [Envelope(to, msg, sender) for msg in messages]
    # The first frame tells the names of the pids; the next ones have their indexes.
    writer.write_all(envelopes)
    received = [envelope.msg for envelope in reader.decode(writer.take_data())]
    writer.write_all(envelopes)
    data = writer.take_data()
    counter = Counter()
    receive, decode_into = counter.receive, reader.decode_into
    decoded = 0
    start = time.perf_counter()
    for _ in range(-(-count // len(messages))):
        queue = EnvelopeQueue()
        decode_into(data, queue)
        decoded += len(queue)
        del queue
        for msg in received:
            receive(msg, sender, None)
    seconds = time.perf_counter() - start
    expect("the receiving core", counter.counted, decoded)
    return Sample(decoded, seconds)


class ZmqPair(contextlib.AbstractContextManager["ZmqPair"]):
    """Two operating-system processes, a socket of pyzmq each, and msgspec: messages go in frames
    of `BATCH`, each with the name of its counter."""

    def __enter__(self) -> ZmqPair:
        zmq: Any = importlib.import_module("zmq")
        self._encode: Any = importlib.import_module("msgspec.msgpack").Encoder().encode
        with contextlib.ExitStack() as stack:
            side = stack.enter_context(Side("zmq"))
            self._socket = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PAIR))
            # In milliseconds: a side that has gone ends the run and not the benchmark.
            self._socket.rcvtimeo = self._socket.linger = int(PATIENCE_S * 1_000)
            self._socket.connect(f"tcp://{side.read()}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing in a frame, and so the other side ends.
        self._socket.send(b"")
        self._stack.close()

    def one_way(self, messages: Sequence[Any], count: int) -> Sample:
        """From the first frame to the word that all of their messages were counted."""
        encode, send = self._encode, self._socket.send
        frames = -(-count // len(messages))
        start = time.perf_counter()
        for _ in range(frames):
            send(encode([("counter", msg) for msg in messages]))
        send(encode([("main", "total")]))
        counted = int(self._socket.recv())
        seconds = time.perf_counter() - start
        expect("pyzmq", counted, frames * len(messages))
        return Sample(counted, seconds)


class Pairs(contextlib.AbstractContextManager["Pairs"]):
    """Two ways between two operating-system processes, of which one is the limit of the other."""

    def __init__(self) -> None:
        self.nodes = Pair()
        self.zmq = ZmqPair()

    def __enter__(self) -> Pairs:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.nodes)
            stack.enter_context(self.zmq)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def one_way_case(name: str, count: int) -> Case:
    """Held against the receiving core alone."""
    messages = MESSAGES[name]
    is_authenticated = name == AUTHENTICATED
    pair = Pair(authenticated=is_authenticated)
    return Case(
        name,
        {"messages": count},
        "messages/s",
        lambda: one_way(pair, messages, count),
        Limit("receiving core", lambda: receiving_core(messages, count)),
        Target(0.8 if is_authenticated else 0.85),
        session=pair,
    )


def remote(messages: int = 2_000_000) -> list[Case]:
    """One way, small envelopes to a counting process on another node.

    The sender keeps a window of messages under way, as the mesh has no back pressure of its own.
    """
    cases = [one_way_case("remote", messages), one_way_case(AUTHENTICATED, messages)]
    if importlib.util.find_spec("zmq") is not None and has_msgspec():
        pairs = Pairs()
        cases.append(
            Case(
                "remote-zmq",
                {"messages": messages},
                "messages/s",
                lambda: one_way(pairs.nodes, SMALL, messages),
                Limit("pyzmq and msgspec", lambda: pairs.zmq.one_way(SMALL, messages)),
                Target(1.8),
                session=pairs,
            )
        )
    return cases


def remote_typed(messages: int = 1_000_000) -> list[Case]:
    """The same with `@rabble.message` classes of three and of ten fields; and ten fields held
    against small envelopes."""
    sales = MESSAGES["remote-typed-10"]
    pair = Pair()
    return [
        one_way_case("remote-typed-3", messages),
        one_way_case("remote-typed-10", messages),
        Case(
            "remote-typed-10-small",
            {"messages": messages},
            "messages/s",
            lambda: one_way(pair, sales, messages),
            Limit("remote, small", lambda: one_way(pair, SMALL, messages)),
            Target(0.24),
            session=pair,
        ),
    ]


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
    with Side("raw", "spin" if spins else "block", file=RAW_SIDE) as side:
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
