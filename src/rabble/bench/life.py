"""How fast processes live and die, and what millions of them cost, then and afterwards."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.alone import alone
from rabble.bench.crowd import FIRST_PART, PATIENCE_S, Crowd
from rabble.bench.messaging import HERE
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.messages import Down, DownReason, Monitor, Spawn, Stop
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["life"]

#: How many live at a time.
AT_A_TIME = 100
PAUSE_MS_MAX = 50.0
LEFT_PERCENT_MAX = 20.0


class Mayfly(Process):
    """Stops on its first message."""

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        return Envelope(self.executor, Stop(self.pid))


class Keeper(Process):
    """Spawns, monitors and wakes one after the other, each when another one's `Down` came."""

    def __init__(self, lives: int, main: Pid) -> None:
        self.lives = lives
        self.main = main
        self.begun = 0
        self.ended = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "go":
            return [
                envelope for _ in range(min(AT_A_TIME, self.lives)) for envelope in self.begin()
            ]
        if isinstance(msg, Down) and msg.reason.kind == "stopped":
            self.ended += 1
        if self.begun < self.lives:
            return self.begin()
        return Envelope(self.main, self.ended) if self.ended == self.lives else None

    def begin(self) -> list[Envelope]:
        """The next life, up to its first message."""
        executor, name = self.executor, f"mayfly-{self.begun}"
        self.begun += 1
        pid = Pid(name, self.pid.node)
        return [
            Envelope(executor, Spawn(Mayfly(), name)),
            Envelope(executor, Monitor(pid)),
            Envelope(pid, "wake"),
        ]


def lives_of(lives: int) -> Sample:
    """Whole lives: spawned, woken, stopped, and the `Down` received."""
    with rouse() as node, node.mailbox() as main:
        keeper = node.spawn(Keeper(lives, main.pid), "keeper")
        start = time.perf_counter()
        node.send(keeper, "go")
        ended = main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
        left = node.executor_status().processes
    expect("life", ended, lives)
    expect("life, what is left", left, 1)
    return Sample(ended, seconds)


def constructed(lives: int) -> Sample:
    """The same processes, pids, requests, envelopes and answers made and dropped, so many kept at a
    time in a dict. No method of theirs is called."""
    table: dict[Pid, Mayfly] = {}
    oldest: collections.deque[Pid] = collections.deque()
    executor = Pid("executor", HERE)
    ended = 0
    start = time.perf_counter()
    for n in range(lives):
        name = f"mayfly-{n}"
        pid = Pid(name, HERE)
        asked = Envelope(executor, Spawn(Mayfly(), name))
        Envelope(executor, Monitor(pid))
        Envelope(pid, "wake")
        table[Pid(asked.msg.name, HERE)] = asked.msg.process
        oldest.append(pid)
        Envelope(executor, Stop(pid))
        if n >= AT_A_TIME:
            gone = oldest.popleft()
            del table[gone]
            Envelope(executor, Down(gone, DownReason("stopped"), n))
            ended += 1
    seconds = time.perf_counter() - start
    expect("life constructed", ended + len(table), lives)
    return Sample(lives, seconds)


class Crowds:
    """Tables of processes, each in an interpreter of its own: what of them each case wants.

    One table shows all of it, so each case is given what was seen of all tables so far, and has
    another one filled only when it has had them all.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._seen: list[Crowd] = []
        self._given: collections.Counter[str] = collections.Counter()

    def next(self, whose: str) -> Crowd:
        """The next one of that case."""
        n = self._given[whose]
        self._given[whose] += 1
        if n == len(self._seen):
            self._seen.append(crowd(self._processes))
        return self._seen[n]


def crowd(processes: int) -> Crowd:
    """What is seen of so many processes in an interpreter that does nothing else."""
    printed = alone(Crowd.__module__, processes, patience_s=PATIENCE_S)
    seen = Crowd(**json.loads(printed))
    expect("life, the table", seen.processes, processes)
    return seen


def life(lives: int = 200_000, processes: int = 3_000_000) -> list[Case]:
    """Whole lives a second; and a large table: how the rate at which it is filled falls, how long a
    thread that sends has to pause meanwhile, and how much memory stays when all have gone."""
    crowds = Crowds(processes)

    def table() -> Sample:
        seen = crowds.next("table")
        slowest = (seen.processes / FIRST_PART) / seen.last_s
        return Sample(processes, seen.all_s, details={"last_sixth_per_s": slowest})

    def first() -> Sample:
        seen = crowds.next("first")
        return Sample(processes // FIRST_PART, seen.first_s)

    def pause() -> Sample:
        seen = crowds.next("pause")
        details = {"spawning_ms": seen.spawning_pause_ms, "stopping_ms": seen.stopping_pause_ms}
        return Sample(processes, seen.all_s + seen.gone_s, max(details.values()), details)

    def memory() -> Sample:
        seen = crowds.next("memory")
        return Sample(
            processes,
            seen.gone_s,
            100 * seen.bytes_left / seen.bytes_taken,
            {"bytes_taken": seen.bytes_taken, "bytes_left": seen.bytes_left},
        )

    def line(name: str, unit: str, run: Callable[[], Sample], limit: Limit, target: Target) -> Case:
        return Case(name, {"processes": processes}, unit, run, limit, target, warm_ups=0)

    most = Target(1.0, "<=")
    return [
        Case(
            "life",
            {"lives": lives, "at_a_time": AT_A_TIME},
            "lives/s",
            lambda: lives_of(lives),
            Limit("constructing", lambda: constructed(lives)),
            Target(0.3),
        ),
        line("life-table", "processes/s", table, Limit("its first sixth", first), Target(0.7)),
        line("life-pause", "ms at most", pause, Limit("allowance", PAUSE_MS_MAX), most),
        line("life-memory", "% that stays", memory, Limit("allowance", LEFT_PERCENT_MAX), most),
    ]
