"""How fast messages are handed over: pingpong, ring, count, inject and big.

Each is held against the same classes called by hand, in a plain Python loop that knows where each
message goes; the envelopes are those that `receive` builds.
"""

from __future__ import annotations

import collections
import time
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.node import rouse
from rabble.process import Process

__all__ = ["big", "count", "inject", "pingpong", "ring"]

#: How long a run may take before it is given up.
PATIENCE_S = 120.0

HERE = NodeId("bare", "127.0.0.1:1")
MAIN = Pid("main", HERE)


class Ping(Process):
    """Sends a ping for each pong, and at the end tells how many pongs it was given."""

    def __init__(self, turns: int, main: Pid) -> None:
        self.turns = turns
        self.main = main
        self.pongs = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        self.pongs += 1
        if self.pongs < self.turns:
            return Envelope(sender, msg)
        return Envelope(self.main, self.pongs)


class Pong(Process):
    """Returns each ping, and counts them."""

    def __init__(self) -> None:
        self.pings = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        self.pings += 1
        return Envelope(sender, msg)


def pingpong(turns: int = 1_000_000) -> list[Case]:
    """Two processes, one envelope each way per turn."""

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            pong = Pong()
            to_pong = node.spawn(pong, "pong")
            to_ping = node.spawn(Ping(turns, main.pid), "ping")
            start = time.perf_counter()
            node.send(to_pong, "ball", sender=to_ping)
            pongs = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
        expect("pingpong", pongs + pong.pings, 2 * turns)
        return Sample(2 * turns, seconds)

    def bare() -> Sample:
        ping, pong = Ping(turns, MAIN), Pong()
        to_ping, to_pong = Pid("ping", HERE), Pid("pong", HERE)
        ping_receive, pong_receive = ping.receive, pong.receive
        start = time.perf_counter()
        out = Envelope(to_pong, "ball", to_ping)
        for _ in range(turns):
            out = pong_receive(out.msg, to_ping, None)
            out = ping_receive(out.msg, to_pong, None)
        seconds = time.perf_counter() - start
        expect("pingpong bare", out.msg + pong.pings, 2 * turns)
        return Sample(2 * turns, seconds)

    return [Case("pingpong", {"turns": turns}, "messages/s", run, Limit("bare", bare), Target(1.0))]


class Link(Process):
    """Hands the token on, and counts down the hops that it has left."""

    def __init__(self, main: Pid) -> None:
        self.main = main
        self.next = main
        self.seen = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        self.seen += 1
        if msg > 1:
            return Envelope(self.next, msg - 1)
        return Envelope(self.main, "done")


def ring(processes: int = 100, hops: int = 1_000_000) -> list[Case]:
    """Processes in a ring, and one token that goes round (Savina threadring)."""

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            links = [Link(main.pid) for _ in range(processes)]
            pids = [node.spawn(link, f"link-{n}") for n, link in enumerate(links)]
            for n, link in enumerate(links):
                link.next = pids[(n + 1) % processes]
            start = time.perf_counter()
            node.send(pids[0], hops)
            main.receive(PATIENCE_S)
            seconds = time.perf_counter() - start
        delivered = sum(link.seen for link in links)
        expect("ring", delivered, hops)
        return Sample(delivered, seconds)

    def bare() -> Sample:
        links = [Link(MAIN) for _ in range(processes)]
        pids = [Pid(f"link-{n}", HERE) for n in range(processes)]
        for n, link in enumerate(links):
            link.next = pids[(n + 1) % processes]
        senders = [pids[n - 1] for n in range(processes)]
        calls = [(link.receive, sender) for link, sender in zip(links, senders, strict=True)]
        rounds, rest = divmod(hops, processes)
        start = time.perf_counter()
        out = Envelope(pids[0], hops)
        for _ in range(rounds):
            for receive, sender in calls:
                out = receive(out.msg, sender, None)
        for receive, sender in calls[:rest]:
            out = receive(out.msg, sender, None)
        seconds = time.perf_counter() - start
        delivered = sum(link.seen for link in links)
        expect("ring bare", delivered, hops)
        return Sample(delivered, seconds)

    params = {"processes": processes, "hops": hops}
    return [Case("ring", params, "messages/s", run, Limit("bare", bare), Target(1.0))]


class Counter(Process):
    """Adds up what it is sent, and tells the total when it is asked."""

    def __init__(self) -> None:
        self.total = 0

    def receive(
        self, msg: Any, sender: Any, correlation_id: CorrelationId | None
    ) -> Envelope | None:
        if msg == "total":
            return Envelope(sender, self.total)
        self.total += msg
        return None


class Producer(Process):
    """Sends increments in batches, one for each message to itself, and then asks for the total."""

    def __init__(self, counter: Pid, increments: int, batch: int) -> None:
        self.counter = counter
        self.left = increments
        self.batch = batch

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Any:
        if msg == "more":
            counter = self.counter
            batch = [Envelope(counter, 1) for _ in range(min(self.batch, self.left))]
            self.left -= len(batch)
            if self.left:
                batch.append(Envelope(self.pid, "more", sender))
            else:
                batch.append(Envelope(counter, "total", sender))
            return batch
        return None


class ByHand:
    """What a process needs of its surroundings when no node runs it."""

    def __init__(self, pid: Pid) -> None:
        self.pid = pid
        self.executor = Pid("executor", HERE)
        self.now = 0.0
        self.random: Any = None


def count(increments: int = 1_000_000, batch: int = 100) -> list[Case]:
    """One process sends increments to another, then asks for the total (Savina count)."""

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            counter = node.spawn(Counter(), "counter")
            producer = node.spawn(Producer(counter, increments, batch), "producer")
            start = time.perf_counter()
            main.send(producer, "more")
            total = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
        expect("count", total, increments)
        return Sample(total, seconds)

    def bare() -> Sample:
        counter = Counter()
        to_counter, to_producer = Pid("counter", HERE), Pid("producer", HERE)
        producer = Producer(to_counter, increments, batch)
        producer.attach(ByHand(to_producer))
        receive = counter.receive
        start = time.perf_counter()
        answer = None
        while answer is None:
            out = producer.receive("more", MAIN, None)
            last = out.pop()
            for envelope in out:
                receive(envelope.msg, to_producer, None)
            if last.to is to_counter:
                answer = receive(last.msg, MAIN, None)
        seconds = time.perf_counter() - start
        expect("count bare", answer.msg, increments)
        return Sample(answer.msg, seconds)

    params = {"increments": increments, "batch": batch}
    return [Case("count", params, "messages/s", run, Limit("bare", bare), Target(1.0))]


def inject(messages: int = 1_000_000, burst: int = 1_000) -> list[Case]:
    """A plain thread sends to a process. The limit is one thread that appends bursts of the same
    envelopes to a deque and calls `receive` with what it takes out again."""

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            counter = node.spawn(Counter(), "counter")
            send = node.send
            start = time.perf_counter()
            for _ in range(messages):
                send(counter, 1)
            main.send(counter, "total")
            total = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
        expect("inject", total, messages)
        return Sample(total, seconds)

    def bare() -> Sample:
        counter = Counter()
        to_counter = Pid("counter", HERE)
        receive = counter.receive
        queue: collections.deque[Envelope] = collections.deque()
        append, popleft = queue.append, queue.popleft
        left = messages
        start = time.perf_counter()
        while left:
            some = min(burst, left)
            left -= some
            for _ in range(some):
                append(Envelope(to_counter, 1))
            while queue:
                envelope = popleft()
                receive(envelope.msg, envelope.sender, envelope.correlation_id)
        seconds = time.perf_counter() - start
        expect("inject bare", counter.total, messages)
        return Sample(messages, seconds)

    params = {"messages": messages, "burst": burst}
    return [Case("inject", params, "messages/s", run, Limit("deque", bare), Target(0.7))]


SAVINA_SEED = 74755


def savina_next(value: int) -> int:
    """The generator of Savina's benchmarks."""
    return (value * 1309 + 13849) & 65535


class Player(Process):
    """Pings others at random, one after the other's pong, and answers the pings it is sent."""

    def __init__(self, seed: int, pings: int, sink: Pid) -> None:
        self.value = seed
        self.pings_left = pings
        self.sink = sink
        self.others: list[Pid] = []
        self.pings = 0
        self.pongs = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        if msg == "ping":
            self.pings += 1
            return Envelope(sender, "pong")
        if msg == "pong":
            self.pongs += 1
        if self.pings_left:
            self.pings_left -= 1
            self.value = (self.value * 1309 + 13849) & 65535
            return Envelope(self.others[self.value % len(self.others)], "ping")
        return Envelope(self.sink, self.pongs)


class Sink(Process):
    """Adds up what the players report, and tells it when all of them have."""

    def __init__(self, players: int, main: Pid) -> None:
        self.players_left = players
        self.main = main
        self.pongs = 0

    def receive(
        self, msg: Any, sender: Any, correlation_id: CorrelationId | None
    ) -> Envelope | None:
        self.pongs += msg
        self.players_left -= 1
        if self.players_left:
            return None
        return Envelope(self.main, self.pongs)


def seeds(count: int) -> list[int]:
    """A start of its own for each process: with one seed for all they would move in step."""
    values = [savina_next(SAVINA_SEED)]
    while len(values) < count:
        values.append(savina_next(values[-1]))
    return values


def big(processes: int = 120, pings: int = 20_000) -> list[Case]:
    """Processes that ping random others and wait for each pong (Savina big)."""

    def players_for(sink: Pid) -> list[Player]:
        return [Player(seed, pings, sink) for seed in seeds(processes)]

    def introduce(players: list[Player], pids: list[Pid]) -> None:
        for n, player in enumerate(players):
            player.others = pids[:n] + pids[n + 1 :]

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            sink = node.spawn(Sink(processes, main.pid), "sink")
            players = players_for(sink)
            pids = [node.spawn(player, f"player-{n}") for n, player in enumerate(players)]
            introduce(players, pids)
            start = time.perf_counter()
            for pid in pids:
                node.send(pid, "start")
            pongs = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
        delivered = pongs + sum(player.pings for player in players)
        expect("big", delivered, 2 * processes * pings)
        return Sample(delivered, seconds)

    def bare() -> Sample:
        to_sink = Pid("sink", HERE)
        sink = Sink(processes, MAIN)
        players = players_for(to_sink)
        pids = [Pid(f"player-{n}", HERE) for n in range(processes)]
        introduce(players, pids)
        by_pid = {pid: player.receive for pid, player in zip(pids, players, strict=True)}
        calls = list(by_pid.items())
        start = time.perf_counter()
        outs = [player.receive("start", MAIN, None) for player in players]
        for _ in range(pings):
            for n, (pid, receive) in enumerate(calls):
                ping = outs[n]
                pong = by_pid[ping.to](ping.msg, pid, None)
                outs[n] = receive(pong.msg, ping.to, None)
        for pid, out in zip(pids, outs, strict=True):
            sink.receive(out.msg, pid, None)
        seconds = time.perf_counter() - start
        delivered = sink.pongs + sum(player.pings for player in players)
        expect("big bare", delivered, 2 * processes * pings)
        return Sample(delivered, seconds)

    params = {"processes": processes, "pings": pings}
    return [Case("big", params, "messages/s", run, Limit("bare", bare), Target(0.7))]
