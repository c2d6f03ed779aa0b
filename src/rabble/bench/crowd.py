"""A table full of processes, filled and emptied while a thread sends: run in an interpreter of its
own by `life`.

`main` prints, as JSON, the fields of `Crowd`.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.footprint import Idle, resident_bytes
from rabble.bench.messaging import Counter
from rabble.messages import Stop
from rabble.node import Node, rouse
from rabble.process import Output, Process

__all__ = ["Crowd", "main", "meet"]

PATIENCE_S = 300.0
#: How many processes are asked to stop for each message that the stopper is sent.
STOPPED_AT_ONCE = 1_000
#: Between two sends, and what an idle node has to give its memory back.
PAUSE_S = 0.001
SETTLE_S = 0.2
#: The first part of the table, whose rate the whole one's is held against: 0.5 M of 3 M.
FIRST_PART = 6


@dataclasses.dataclass(frozen=True)
class Crowd:
    """What was seen of a table of processes."""

    processes: int
    #: Seconds until the first sixth of them were there, all of them were, and all had gone.
    first_s: float
    all_s: float
    last_s: float
    gone_s: float
    #: The longest time between two sends of a thread, beyond the millisecond that it means to wait.
    spawning_pause_ms: float
    stopping_pause_ms: float
    #: Resident bytes that the processes took, and those of them that stayed when they had gone.
    bytes_taken: int
    bytes_left: int


class Stopper(Process):
    """Stops all of them, and tells when the last one has gone."""

    def __init__(self, processes: int, main: Pid) -> None:
        self.left = processes
        self.main = main

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        executor, node = self.executor, self.pid.node
        last = max(0, self.left - STOPPED_AT_ONCE)
        out = [Envelope(executor, Stop(Pid(f"idle-{n}", node))) for n in range(last, self.left)]
        self.left = last
        out.append(Envelope(self.pid, "more") if last else Envelope(self.main, "gone"))
        return out


class Sender:
    """A thread that sends every millisecond, and notes the longest pause between two sends."""

    def __init__(self, node: Node) -> None:
        self._send = node.send
        self._to = node.spawn(Counter(), "counter")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rabble:bench:sender")
        self.worst_s = 0.0

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def take_worst_s(self) -> float:
        """The longest pause since this was asked last."""
        worst_s, self.worst_s = self.worst_s, 0.0
        return worst_s

    def _work(self) -> None:
        before = time.perf_counter()
        while not self._ends.is_set():
            self._send(self._to, 1)
            now = time.perf_counter()
            self.worst_s = max(self.worst_s, now - before - PAUSE_S)
            before = now
            time.sleep(PAUSE_S)


def meet(processes: int) -> Crowd:
    """Fill a node's table with so many processes, and empty it."""
    parts = [processes // FIRST_PART * part for part in range(FIRST_PART)] + [processes]
    seconds: list[float] = []
    with rouse() as node, node.mailbox() as main:
        before = resident_bytes()
        with Sender(node) as sender:
            sender.take_worst_s()
            for first, last in zip(parts, parts[1:], strict=False):
                start = time.perf_counter()
                for n in range(first, last):
                    pid = node.spawn(Idle(), f"idle-{n}")
                # Its answer says that all were begun before.
                main.send(pid, "begun?")
                main.receive(PATIENCE_S)
                seconds.append(time.perf_counter() - start)
            spawning_pause_s = sender.take_worst_s()
            full = resident_bytes()
            start = time.perf_counter()
            node.send(node.spawn(Stopper(processes, main.pid), "stopper"), "go")
            main.receive(PATIENCE_S)
            gone_s = time.perf_counter() - start
            stopping_pause_s = sender.take_worst_s()
        left = node.executor_status().processes
        time.sleep(SETTLE_S)
        after = resident_bytes()
    if left != 2:
        raise RuntimeError(f"{left} processes are there and not the counter and the stopper alone")
    return Crowd(
        processes,
        first_s=seconds[0],
        all_s=sum(seconds),
        last_s=seconds[-1],
        gone_s=gone_s,
        spawning_pause_ms=spawning_pause_s * 1e3,
        stopping_pause_ms=stopping_pause_s * 1e3,
        bytes_taken=full - before,
        bytes_left=after - before,
    )


def main(processes: str) -> None:
    """Print what was seen."""
    print(json.dumps(dataclasses.asdict(meet(int(processes)))))
