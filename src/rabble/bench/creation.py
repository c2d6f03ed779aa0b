"""How fast processes are made, and how much they take: skynet and spawn."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.alone import alone
from rabble.bench.footprint import Idle
from rabble.bench.messaging import HERE, MAIN, PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.messages import Spawn
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["skynet", "spawn"]

CHILDREN = 10
OVERHEAD_BYTES_MAX = 150.0


class Skynet(Process):
    """One of the tree: makes ten children and reports their sum, or reports its own number."""

    __slots__ = ("left", "number", "parent", "size", "sum")

    def __init__(self, parent: Pid, number: int, size: int) -> None:
        self.parent = parent
        self.number = number
        self.size = size
        self.left = CHILDREN
        self.sum = 0

    def init(self) -> Output:
        if self.size == 1:
            return Envelope(self.parent, self.number)
        executor, pid, size = self.executor, self.pid, self.size // CHILDREN
        numbers = range(self.number, self.number + self.size, size)
        return [
            Envelope(executor, Spawn(Skynet(pid, number, size), f"{size}-{number}"))
            for number in numbers
        ]

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        self.sum += msg
        self.left -= 1
        return None if self.left else Envelope(self.parent, self.sum)


def skynet(leaves: int = 1_000_000) -> list[Case]:
    """A tree of processes, ten children each, whose leaves' numbers are added up; creation
    included. The limit constructs the same processes, names, pids, `Spawn`s and envelopes and puts
    the processes into a dict; it calls no method of them.

    :param leaves: a power of ten.
    """
    levels = len(str(leaves)) - 1
    if leaves != CHILDREN**levels:
        raise ValueError(f"skynet's leaves must be a power of ten, not {leaves}")
    processes = sum(CHILDREN**level for level in range(levels + 1))
    expected = leaves * (leaves - 1) // 2

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            start = time.perf_counter()
            node.spawn(Skynet(main.pid, 0, leaves), f"{leaves}-0")
            total = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
            made = node.executor_status().processes
        expect("skynet's sum", total, expected)
        expect("skynet", made, processes)
        return Sample(made, seconds)

    def bare() -> Sample:
        table: dict[Pid, Skynet] = {}
        executor = Pid("executor", HERE)
        start = time.perf_counter()
        parents = [MAIN]
        size = leaves
        while size:
            pids: list[Pid] = []
            for number in range(0, leaves, size):
                parent = parents[len(pids) // CHILDREN]
                asked = Envelope(executor, Spawn(Skynet(parent, number, size), f"{size}-{number}"))
                pid = Pid(asked.msg.name, HERE)
                table[pid] = asked.msg.process
                pids.append(pid)
                Envelope(parent, number)
            parents = pids
            size //= CHILDREN
        seconds = time.perf_counter() - start
        expect("skynet constructed", len(table), processes)
        return Sample(processes, seconds)

    params = {"leaves": leaves, "children": CHILDREN}
    return [Case("skynet", params, "processes/s", run, Limit("constructing", bare), Target(0.5))]


def spawn(processes: int = 1_000_000, weighed: int = 1_000_000) -> list[Case]:
    """Idle processes with distinct names: how fast they are made, and the resident bytes of each
    beyond those of the objects themselves, their pids and a dict.

    :param processes: how many are made for the rate.
    :param weighed: how many are made for the bytes.
    """

    def run() -> Sample:
        with rouse() as node, node.mailbox() as main:
            start = time.perf_counter()
            for n in range(processes):
                last = node.spawn(Idle(), f"idle-{n}")
            # The last one's answer says that all were begun before.
            main.send(last, "begun?")
            main.receive(PATIENCE_S)
            seconds = time.perf_counter() - start
            made = node.executor_status().processes
        expect("spawn", made, processes)
        return Sample(made, seconds)

    def bare() -> Sample:
        table: dict[Pid, Idle] = {}
        start = time.perf_counter()
        for n in range(processes):
            table[Pid(f"idle-{n}", HERE)] = Idle()
        seconds = time.perf_counter() - start
        expect("spawn constructed", len(table), processes)
        return Sample(processes, seconds)

    def overhead() -> Sample:
        start = time.perf_counter()
        # Beside each other: it is memory that is measured, not time.
        with ThreadPoolExecutor(2) as pool:
            bytes_each, bare_bytes_each = pool.map(
                footprint, ("rabble", "bare"), (weighed, weighed)
            )
        return Sample(
            weighed,
            time.perf_counter() - start,
            bytes_each - bare_bytes_each,
            {"bytes_each": bytes_each, "bare_bytes_each": bare_bytes_each},
        )

    return [
        Case(
            "spawn",
            {"processes": processes},
            "processes/s",
            run,
            Limit("constructing", bare),
            Target(0.5),
        ),
        Case(
            "spawn-overhead",
            {"processes": weighed},
            "bytes each",
            overhead,
            Limit("allowance", OVERHEAD_BYTES_MAX),
            Target(1.0, "<="),
            warm_ups=0,
        ),
    ]


def footprint(kind: str, processes: int) -> float:
    """Resident bytes of each process, seen in an interpreter that does nothing else."""
    printed = alone(Idle.__module__, kind, processes, patience_s=PATIENCE_S)
    return float(printed)
