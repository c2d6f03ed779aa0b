"""The other operating-system process of the remote benchmarks.

`main(ROLE, ARGUMENT...)` prints one line when it is ready, its address, does what its role says
until its standard input ends, and returns.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.bench.typed import REGISTRY
from rabble.cluster.config import Mesh
from rabble.messages import NodeUp
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = [
    "ACK_EVERY",
    "ANSWERED_ROUNDS",
    "GROUP",
    "KEYED",
    "Counter",
    "Exchanger",
    "Member",
    "Pinger",
    "main",
]

#: How many messages a counter takes before it says so, and how many may be under way.
ACK_EVERY = 8_192
WINDOW = 8 * ACK_EVERY
#: How often a member of a group answers.
ANSWERED_ROUNDS = 4
GROUP = "members"
PATIENCE_S = 120.0
#: Of nodes whose stream is authenticated; that key opens nothing else.
KEYED = Mesh(key=bytes(range(32)), authenticate_loopback=True)


class Counter(Process):
    """Counts what it is sent, and says every now and then how far it got."""

    def __init__(self) -> None:
        self.counted = 0

    def receive(
        self, msg: Any, sender: Any, correlation_id: CorrelationId | None
    ) -> Envelope | None:
        self.counted += 1
        if self.counted % ACK_EVERY:
            return None
        return Envelope(sender, self.counted)


class Pinger(Process):
    """Sends a ball to and fro and notes how long each round took, in nanoseconds."""

    def __init__(self, to: Pid, rounds: int, main: Pid) -> None:
        self.to = to
        self.rounds = rounds
        self.main = main
        self.started_ns = 0
        self.rounds_ns: list[int] = []

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        now_ns = time.perf_counter_ns()
        if self.started_ns:
            self.rounds_ns.append(now_ns - self.started_ns)
        if len(self.rounds_ns) >= self.rounds:
            return Envelope(self.main, "done")
        self.started_ns = time.perf_counter_ns()
        return Envelope(self.to, "ball")


class Echo(Process):
    """Returns everything."""

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        return Envelope(sender, msg)


class Sink(Process):
    """Takes payloads, and says of each how long it was."""

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        return Envelope(sender, len(msg))


class Exchanger(Process):
    """Sends to its like on another node, counts what comes from there, and tells when it is done.

    Of what it sends only so much is under way as it has counted itself, and a window.
    """

    def __init__(self, messages: int, main: Pid) -> None:
        self.messages = messages
        self.main = main
        self.to: Pid | None = None
        self.sent = 0
        self.counted = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Pid):
            self.to = msg
            return self.more()
        self.counted += 1
        if self.counted % 1_024 == 0 or self.counted == self.messages:
            return self.more()
        return None

    def more(self) -> list[Envelope]:
        """What may be sent by now."""
        to = self.to
        if to is None:
            return []
        allowed = min(self.messages, self.counted + 8_192)
        out = [Envelope(to, ("add", n)) for n in range(self.sent, allowed)]
        self.sent = allowed
        if self.counted == self.messages:
            out.append(Envelope(self.main, self.counted))
        return out


def ready(line: object) -> None:
    """Say that this side is ready, and where."""
    print(line, flush=True)


def node_side(spin_us: str, authenticated: str = "") -> None:
    """A node with something of each kind. For each line of input it says that it marked where it
    is, by the call at which callgrind writes down what it counted."""
    mesh = KEYED if authenticated else Mesh()
    with rouse("side@127.0.0.1:0", mesh=mesh, spin_us=int(spin_us), registry=REGISTRY) as node:
        node.spawn(Counter(), "counter")
        node.spawn(Echo(), "echo")
        node.spawn(Sink(), "sink")
        ready(node.node_id)
        while sys.stdin.readline():
            os.getppid()
            ready("marked")


def mesh_side(name: str) -> None:
    """A node that exchanges with all others: its input says who they are, and then, for each run,
    how many messages and to go."""
    with rouse(f"{name}@127.0.0.1:0", mesh=Mesh()) as node, node.mailbox() as main:
        ready(node.node_id)
        others = [NodeId.parse(text) for text in json.loads(sys.stdin.readline())]
        node.subscribe_nodes(main.pid)
        for other in others:
            node.join(other)
        up: set[NodeId] = set()
        while up != set(others):
            msg = main.receive(PATIENCE_S).msg
            if isinstance(msg, NodeUp):
                up.add(msg.node)
        ready("up")
        run = 0
        while messages := sys.stdin.readline():
            run += 1
            exchangers = {
                other: node.spawn(Exchanger(int(messages), main.pid), f"with-{other.name}-{run}")
                for other in others
            }
            ready("set")
            sys.stdin.readline()
            start = time.perf_counter()
            for other, pid in exchangers.items():
                node.send(pid, Pid(f"with-{name}-{run}", other))
            counted = 0
            finished = 0
            while finished < len(others):
                msg = main.receive(PATIENCE_S).msg
                if isinstance(msg, int):
                    finished += 1
                    counted += msg
            ready(json.dumps([counted, time.perf_counter() - start]))


class Member(Process):
    """One of a group. It answers each so many-th round: then all before it have come."""

    def receive(
        self, msg: Any, sender: Any, correlation_id: CorrelationId | None
    ) -> Envelope | None:
        return Envelope(sender, msg) if msg % ANSWERED_ROUNDS == 0 else None


def group_side(name: str, members: str) -> None:
    """A node with so many members of a group. Its input says whom to join."""
    with rouse(f"{name}@127.0.0.1:0", mesh=Mesh()) as node:
        for number in range(int(members)):
            node.groups.join(GROUP, node.spawn(Member(), f"member-{number}"))
        ready(node.node_id)
        node.join(NodeId.parse(sys.stdin.readline().strip()))
        sys.stdin.read()


def zmq_side() -> None:
    """Counts what comes in frames of pyzmq, and tells the total when it is asked.

    Its counter is found by its name, and called as a node calls it.
    """
    zmq: Any = importlib.import_module("zmq")
    decode = importlib.import_module("msgspec.msgpack").Decoder().decode
    counter = Counter()
    sender = Pid("producer", NodeId("raw", "127.0.0.1:1"))
    totals = 0

    def tell(msg: Any, sender: Any, correlation_id: CorrelationId | None) -> None:
        nonlocal totals
        pair.send(str(counter.counted - totals).encode())
        totals = counter.counted

    by_name: dict[str, Callable[..., Any]] = {"counter": counter.receive, "main": tell}
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        ready(f"127.0.0.1:{pair.bind_to_random_port('tcp://127.0.0.1')}")
        receive_frame = pair.recv
        while frame := receive_frame():
            for name, msg in decode(frame):
                by_name[name](msg, sender, None)


ROLES: dict[str, Callable[..., None]] = {
    "node": node_side,
    "mesh": mesh_side,
    "group": group_side,
    "zmq": zmq_side,
}


def main(role: str, *arguments: str) -> None:
    """Play a role."""
    ROLES[role](*arguments)
