"""What a supervisor takes for a tree of many children: to start, to restart some, and to end."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.messaging import PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, expect
from rabble.families import ChildSpec, Supervisor
from rabble.messages import Down, DownReason, Monitor, Shutdown, Spawn, Stop
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["supervision"]

#: Of how many children one crashes.
EACH = 10
PHASES = ("start", "crash", "end")


class Worker(Process):
    """Tells when it starts, and crashes on its first message."""

    __slots__ = ("tally",)

    def __init__(self, tally: Pid) -> None:
        self.tally = tally

    def init(self) -> Output:
        return Envelope(self.tally, "up")

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        raise RuntimeError(msg)


class Tally(Process):
    """Counts who has started: tells when it is all of them, and when all that crashed are back. At
    the end it tells how the keeper ended, which it monitors."""

    def __init__(self, marks: tuple[int, int], main: Pid) -> None:
        self.marks = marks
        self.main = main
        self.up = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "up":
            self.up += 1
            return Envelope(self.main, self.up) if self.up in self.marks else None
        if isinstance(msg, Down):
            return Envelope(self.main, msg.reason.kind)
        # Whom to watch.
        return Envelope(self.executor, Monitor(msg))


class Keeper(Process):
    """What a supervisor stands on, and no more: it spawns and monitors all children at once, spawns
    anew what has ended, and stops all at once in the end."""

    def __init__(self, children: int, tally: Pid) -> None:
        self.children = children
        self.tally = tally
        self.left = children
        self.ends = False

    def init(self) -> Output:
        return [envelope for n in range(self.children) for envelope in self.begin(f"child-{n}")]

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Shutdown):
            self.ends = True
            node, executor = self.pid.node, self.executor
            reason = DownReason("shutdown", msg.reason)
            return [
                Envelope(executor, Stop(Pid(f"child-{n}", node), reason))
                for n in reversed(range(self.children))
            ]
        if not self.ends:
            return self.begin(msg.pid.name)
        self.left -= 1
        return None if self.left else Envelope(self.executor, Stop(self.pid))

    def begin(self, name: str) -> list[Envelope]:
        executor = self.executor
        return [
            Envelope(executor, Spawn(Worker(self.tally), name)),
            Envelope(executor, Monitor(Pid(name, self.pid.node))),
        ]


def supervisor(children: int, tally: Pid) -> Process:
    """Of that many children, each of which is restarted alone."""
    specs = [ChildSpec(f"child-{n}", Worker, (tally,)) for n in range(children)]
    return Supervisor(specs, intensity=children)


@contextlib.contextmanager
def crashes_unheard() -> Iterator[None]:
    """What crashes here is meant to."""
    logger = logging.getLogger("rabble")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def tree(make: Callable[[int, Pid], Process], children: int) -> dict[str, Sample]:
    """The whole life of a tree of that many children, by its phases."""
    crashes = len(range(0, children, EACH))
    took: dict[str, float] = {}
    with crashes_unheard(), rouse() as node, node.mailbox() as main:
        tally = node.spawn(Tally((children, children + crashes), main.pid), "tally")
        victims = [node.pid(f"child-{n}") for n in range(0, children, EACH)]

        start = time.perf_counter()
        keeper = node.spawn(make(children, tally), "keeper")
        expect("supervision, start", main.receive(PATIENCE_S).msg, children)
        took["start"] = time.perf_counter() - start

        node.send(tally, keeper)
        start = time.perf_counter()
        for victim in victims:
            node.send(victim, "crash")
        expect("supervision, crash", main.receive(PATIENCE_S).msg, children + crashes)
        took["crash"] = time.perf_counter() - start
        expect("supervision, the tree", node.executor_status().processes, children + 2)

        start = time.perf_counter()
        node.send(keeper, Shutdown("it is late"))
        how = main.receive(PATIENCE_S).msg
        took["end"] = time.perf_counter() - start
        expect(
            f"supervision, what is left of a tree that {how}", node.executor_status().processes, 1
        )
    counts = {"start": children, "crash": crashes, "end": children}
    return {phase: Sample(counts[phase], took[phase]) for phase in PHASES}


class Trees:
    """Whole lives of trees: each phase is given what was seen of all so far, and has another tree
    live only when it has had them all."""

    def __init__(self, make: Callable[[int, Pid], Process], children: int) -> None:
        self._make = make
        self._children = children
        self._seen: list[dict[str, Sample]] = []
        self._given = dict.fromkeys(PHASES, 0)

    def next(self, phase: str) -> Sample:
        """The next one of that phase."""
        n = self._given[phase]
        self._given[phase] += 1
        if n == len(self._seen):
            self._seen.append(tree(self._make, self._children))
        return self._seen[n][phase]


def supervision(children: int = 10_000) -> list[Case]:
    """A supervisor of so many children: their start, one after the other; the restart of every
    tenth, which crashes; and their end in order, the last one first.

    The limit of each phase is a process that asks for the same spawns, monitors and stops, all at
    once: without waiting for one before the next, and without looking at how often.
    """
    trees, plain = Trees(supervisor, children), Trees(Keeper, children)
    return [
        Case(
            f"supervision-{phase}",
            {"children": children, "crashes": len(range(0, children, EACH))},
            "children/s",
            functools.partial(trees.next, phase),
            Limit("spawns, monitors, stops", functools.partial(plain.next, phase)),
        )
        for phase in PHASES
    ]
