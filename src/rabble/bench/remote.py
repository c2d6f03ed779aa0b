"""What crosses a connection between two operating-system processes on this machine.

The other side is a process of its own, started anew for each run; see `remote_side`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.link import Link
from rabble._core.queue import EnvelopeQueue
from rabble.bench.codec import Order
from rabble.bench.messaging import HERE, PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect, percentile
from rabble.bench.remote_side import ACK_EVERY, RAW_BYTES, WINDOW, Pinger, registry
from rabble.cluster.config import Mesh
from rabble.messages import NodeUp
from rabble.node import Node, rouse
from rabble.process import Output, Process
from rabble.services.mailbox import Mailbox

__all__ = ["mesh", "remote", "remote_large", "remote_typed", "rtt"]

BATCH = 256
#: Not with -m: the package imports that module before.
START = "import sys; from rabble.bench.remote_side import main; main(*sys.argv[1:])"
FRAME = b"x" * 48
THERE = NodeId("there", "127.0.0.1:2")


class Side:
    """The other operating-system process."""

    def __init__(self, role: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, role, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def read(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the other process ended with status {self._process.wait()}")
        return line.strip()

    def write(self, line: str) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def two_nodes(spin_us: int = 50) -> Iterator[tuple[Node, Mailbox, NodeId]]:
    """This node, a mailbox on it, and the other process's node, connected."""
    with (
        Side("node", spin_us) as side,
        rouse("main@127.0.0.1:0", mesh=Mesh(), spin_us=spin_us, registry=registry()) as node,
        node.mailbox() as main,
    ):
        other = NodeId.parse(side.read())
        node.subscribe_nodes(main.pid)
        node.join(other)
        while not isinstance(main.receive(PATIENCE_S).msg, NodeUp):
            pass
        yield node, main, other


# One way.


class Producer(Process):
    """Sends messages to a counter, no more than a window ahead of what that has said it got."""

    def __init__(self, to: Pid, messages: Sequence[Any], count: int, main: Pid) -> None:
        self.to = to
        self.messages = messages
        self.count = self.left = count
        self.main = main
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


def one_way(messages: Sequence[Any], count: int) -> Sample:
    """From the first send to the word that all were counted."""
    count = -(-count // ACK_EVERY) * ACK_EVERY
    with two_nodes() as (node, main, other):
        producer = Producer(Pid("counter", other), messages, count, main.pid)
        pid = node.spawn(producer, "producer")
        start = time.perf_counter()
        node.send(pid, "more")
        counted = main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
    expect("remote", counted, count)
    return Sample(counted, seconds)


def slower_side(messages: Sequence[Any], count: int) -> Sample:
    """Encoding and decoding alone, in batches: the rate of the slower of the two."""
    speaker = Link(HERE, THERE, 1, Pid("executor", HERE), codec=Codec(registry()))
    hearer = Link(THERE, HERE, 1, Pid("executor", THERE), codec=Codec(registry()))
    to, sender = Pid("counter", THERE), Pid("producer", HERE)
    envelopes = [Envelope(to, msg, sender) for msg in messages]
    encoding = decoding = 0.0
    done = 0
    while done < count:
        start = time.perf_counter()
        speaker.say_all(envelopes)
        data = speaker.take_data()
        encoding += time.perf_counter() - start
        queue = EnvelopeQueue()
        start = time.perf_counter()
        hearer.decode_into(data, queue)
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
    with Side("zmq", count) as side, zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        pair.connect(f"tcp://{side.read()}")
        start = time.perf_counter()
        for _ in range(count):
            pair.send(FRAME)
        answer = pair.recv()
        seconds = time.perf_counter() - start
    expect("pyzmq", int(answer == b"all"), 1)
    return Sample(count, seconds)


def one_way_case(name: str, messages: Sequence[Any], count: int) -> Case:
    return Case(
        name,
        {"messages": count},
        "messages/s",
        lambda: one_way(messages, count),
        Limit("codec, slower side", lambda: slower_side(messages, count)),
        Target(0.5),
    )


def remote(messages: int = 2_000_000) -> list[Case]:
    """One way, small envelopes to a counting process on another node.

    The sender keeps a window of messages under way, as the mesh has no back pressure of its own.
    """
    small = [["add", n % 100] for n in range(BATCH)]
    cases = [one_way_case("remote", small, messages)]
    if importlib.util.find_spec("zmq") is not None:
        cases.append(
            Case(
                "remote-zmq",
                {"messages": messages},
                "messages/s",
                lambda: one_way(small, messages),
                Limit("pyzmq, raw frames", lambda: zmq_one_way(messages // 2)),
                Target(2.0),
            )
        )
    return cases


def remote_typed(messages: int = 1_000_000) -> list[Case]:
    """The same with a dataclass of three fields."""
    orders = [Order(n % 100, f"lamp {n % 100}", n / 8) for n in range(BATCH)]
    return [one_way_case("remote-typed", orders, messages)]


# Large payloads.


class Pusher(Process):
    """Sends a payload again and again, so many bytes ahead of what the sink has said it got."""

    def __init__(self, to: Pid, payload: bytes, count: int, main: Pid) -> None:
        self.to = to
        self.payload = payload
        self.left = count
        self.under_way = 0
        self.taken = 0
        self.main = main
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


def push(size: int, count: int) -> Sample:
    """Bytes per second of payloads alone."""
    with two_nodes() as (node, main, other):
        pusher = Pusher(Pid("sink", other), bytes(size), count, main.pid)
        pid = node.spawn(pusher, "pusher")
        start = time.perf_counter()
        node.send(pid, "go")
        _, taken = main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
    expect("remote-large", taken, size * count)
    return Sample(taken, seconds)


def push_beside(size: int, count: int) -> Sample:
    """How long the round trips of small messages take before payloads are sent, and meanwhile."""
    payload = bytes(size)
    rounds = 300
    with two_nodes() as (node, main, other):

        def ping(name: str, rounds: int) -> Pinger:
            pinger = Pinger(Pid("echo", other), rounds, main.pid)
            node.send(node.spawn(pinger, name), "go")
            return pinger

        ping("warm-up", rounds)
        main.receive(PATIENCE_S)
        alone = ping("alone", rounds)
        main.receive(PATIENCE_S)
        beside = ping("beside", 1_000_000)
        pusher = node.spawn(Pusher(Pid("sink", other), payload, count, main.pid), "pusher")
        start = time.perf_counter()
        node.send(pusher, "go")
        _, taken = main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
        beside_ns = list(beside.rounds_ns)
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
    with Side("raw", "sink") as side:
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
    for name, size in (("64KiB", 64 << 10), ("4MiB", 4 << 20)):
        count = max((megabytes << 20) // size, 2)
        params = {"payload_bytes": size, "payloads": count}

        def run(size: int = size, count: int = count) -> Sample:
            return push(size, count)

        def limit(size: int = size, count: int = count) -> Sample:
            return raw_push(size, count)

        cases.append(
            Case(f"remote-{name}", params, "bytes/s", run, Limit("raw TCP", limit), Target(0.6))
        )
    beside: list[Sample] = []

    def small_beside() -> Sample:
        sample = push_beside(64 << 10, max(megabytes * 4, 2))
        beside.append(sample)
        return Sample(1, sample.seconds, sample.details["small_beside_p99_us"])

    def small_alone() -> Sample:
        sample = beside.pop() if beside else push_beside(64 << 10, 2)
        return Sample(1, sample.seconds, sample.details["small_alone_p99_us"])

    cases.append(
        Case(
            "remote-large-small",
            {"payload_bytes": 64 << 10},
            "µs p99",
            small_beside,
            Limit("unloaded", small_alone),
            Target(3.0, "<="),
        )
    )
    return cases


# Round trips.


def round_trips(rounds: int, spin_us: int) -> list[int]:
    """Nanoseconds of each round between two nodes."""
    with two_nodes(spin_us) as (node, main, other):
        for name, count in (("warm-up", rounds // 10 + 1), ("timed", rounds)):
            pinger = Pinger(Pid("echo", other), count, main.pid)
            node.send(node.spawn(pinger, name), "go")
            main.receive(PATIENCE_S)
    expect("rtt", len(pinger.rounds_ns), rounds)
    return pinger.rounds_ns


def raw_round_trips(rounds: int, *, spins: bool) -> list[int]:
    """The same with 64 bytes on plain sockets."""
    with Side("raw", "spin" if spins else "block") as side:
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
        return Case(
            name,
            {"rounds": rounds, "spin_us": spin_us},
            f"µs p{percent:g}",
            lambda: summary(round_trips(rounds, spin_us), percent),
            Limit("raw, spinning" if spins else "raw, blocking", limit),
            Target(target, "<="),
        )

    return [
        case("rtt", 50, 50, True, 2.5),
        case("rtt-p99", 50, 99, False, 0.5),
        case("rtt-asleep", 0, 50, False, 2.0),
    ]


# Many nodes.


def exchange(nodes: int, messages: int) -> Sample:
    """So many nodes, each pair exchanging so many messages each way."""
    with contextlib.ExitStack() as stack:
        names = [f"n{n}" for n in range(nodes)]
        sides = [stack.enter_context(Side("mesh", name, messages)) for name in names]
        ids = [side.read() for side in sides]
        for own, side in zip(ids, sides, strict=True):
            side.write(json.dumps([other for other in ids if other != own]))
        for side in sides:
            expect("mesh", int(side.read() == "up"), 1)
        for side in sides:
            side.write("go")
        done = [json.loads(side.read()) for side in sides]
    counted = sum(count for count, _ in done)
    expect("mesh", counted, nodes * (nodes - 1) * messages)
    return Sample(counted, max(seconds for _, seconds in done))


def mesh(messages: int = 50_000) -> list[Case]:
    """Five nodes, every pair exchanging: all that is delivered, held against two nodes."""
    return [
        Case(
            "mesh",
            {"nodes": 5, "messages_per_pair": messages},
            "messages/s",
            lambda: exchange(5, messages),
            Limit("two nodes", lambda: exchange(2, 10 * messages)),
            Target(0.8),
        )
    ]
