"""What very many messages and processes leave behind: nothing.

Each test has a quick size, for every run, and one of minutes (`make soak`). Both warm up first, so
that what is kept on purpose is there already: free lists, the capacity of rings and dicts, the
arenas of malloc.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import rabble
from rabble import (
    Ask,
    CancelTimer,
    CorrelationId,
    Demonitor,
    Envelope,
    Monitor,
    Pid,
    Process,
    Spawn,
    StartTimer,
    Stop,
)
from rabble._core import debug
from rabble._core.executor import Executor
from tests.support import (
    BARE,
    PATIENCE_S,
    SANITIZED,
    TINY,
    Echo,
    HandClock,
    Witness,
    bare_executor,
    subscribe_dead_letters,
)

MIB = 1024 * 1024
BATCH = 10


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What is there at one time."""

    blocks: int
    tracked: int
    resident: int
    live: dict[str, int]

    @classmethod
    def take(cls) -> Footprint:
        for _ in range(3):
            gc.collect()
        return cls(
            sys.getallocatedblocks(),
            len(gc.get_objects()),
            psutil.Process().memory_info().rss,
            debug.live_counts(),
        )

    def assert_no_more_than(self, before: Footprint, objects: int, mib: float) -> None:
        """`objects`: by how many two looks may differ that find a different queue."""
        print(
            f"growth: {self.blocks - before.blocks} blocks, {self.tracked - before.tracked} "
            f"tracked objects, {(self.resident - before.resident) / MIB:.2f} MiB"
        )
        assert self.blocks - before.blocks < objects
        assert self.tracked - before.tracked < objects
        assert SANITIZED or self.resident - before.resident < mib * MIB
        more = {n: c - before.live[n] for n, c in self.live.items() if c - before.live[n] > objects}
        assert more == {}


# Envelopes in many shapes. Each process keeps itself, and so the executor, busy for ever.


class Single(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        return Envelope(self.pid, msg)


class Batches(Process):
    """One to itself, the others to who says nothing; as a list and as a tuple in turn."""

    def receive(self, msg: int, sender: Pid | None, correlation_id: Any) -> Any:
        sink = Pid("sink", BARE)
        out = [Envelope(sink, (msg, n), correlation_id=correlation_id) for n in range(BATCH)]
        out.append(Envelope(self.pid, msg + 1, self.pid, CorrelationId(self.pid, None, msg)))
        return tuple(out) if msg % 2 else out


class Generators(Batches):
    def receive(self, msg: int, sender: Pid | None, correlation_id: Any) -> Any:
        yield from super().receive(msg, sender, correlation_id)


class Kept(Process):
    """Sends the same envelopes again and again, which the executor has to copy."""

    def init(self) -> Any:
        self.envelopes = [Envelope(Pid("sink", BARE), "kept"), Envelope(self.pid, "on")]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        return self.envelopes


class Losing(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        nobody = Pid(f"nobody-{msg % 100}", BARE)
        return [Envelope(nobody, "lost") for _ in range(BATCH)] + [Envelope(self.pid, msg + 1)]


class Controlling(Process):
    """Timers, monitors and a child that lives for one message."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if not isinstance(msg, int):
            return None
        child = Pid(f"child of {self.pid.name}", BARE)
        first, second = (CorrelationId(self.pid, None, 2 * msg + n) for n in range(2))
        return [
            Envelope(self.executor, control)
            for control in (
                StartTimer(first, 1),
                StartTimer(second, 1_000_000),
                CancelTimer(second, acknowledge=True),
                Spawn(Sink(), child.name),
                Monitor(child),
                Monitor(Pid("sink", BARE)),
                Demonitor(Pid("sink", BARE)),
            )
        ] + [
            Envelope(child, msg),
            Envelope(self.executor, Stop(child)),
            Envelope(self.pid, msg + 1),
        ]


class Asking(Process):
    """Asks one that answers, one that does not, nobody, and a child that ends; and has a beat."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if not isinstance(msg, int):
            return None
        child = Pid(f"child of {self.pid.name}", BARE)
        asked = (Pid("echo", BARE), Pid("sink", BARE), Pid("nobody", BARE), child)
        return [
            Envelope(self.executor, Spawn(Sink(), child.name)),
            *(Envelope(self.executor, Ask(to, msg, 1, [msg])) for to in asked),
            Envelope(self.executor, StartTimer(("beat", msg % 3), 1, [msg], repeat=True)),
            Envelope(self.executor, Stop(child)),
            Envelope(self.pid, msg + 1),
        ]


class Crashing(Process):
    """Each life has one message."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        raise RuntimeError(msg)


class Spawning(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        return [
            Envelope(self.executor, Spawn(Crashing(), "victim")),
            Envelope(Pid("victim", BARE), msg),
            Envelope(self.pid, msg),
        ]


class Sink(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        return None


class Crowd(Witness):
    """Takes what the executor reports, and keeps nothing."""

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        pass


SHAPES: dict[str, tuple[type[Process], int]] = {
    # Which process, and how many million envelopes it has in the long run.
    "single": (Single, 10),
    "batches": (Batches, 10),
    "generators": (Generators, 10),
    "kept": (Kept, 10),
    "losing": (Losing, 10),
    "controlling": (Controlling, 10),
    "crashing": (Spawning, 3),
    "asking": (Asking, 10),
}
sizes = pytest.mark.parametrize(
    "share", [pytest.param(0.005, id="quick"), pytest.param(1.0, id="long", marks=pytest.mark.soak)]
)


@sizes
@pytest.mark.parametrize("shape", SHAPES)
def test_envelopes_leave_nothing_behind(shape: str, share: float) -> None:
    if TINY and shape in ("controlling", "asking"):
        pytest.skip("of timers that are due its queue has one at a time, and more are started")
    process_class, millions = SHAPES[shape]
    count = int(millions * 1_000_000 * share)
    with bare_executor(clock := HandClock(), Crowd()) as executor:
        executor.spawn(Sink(), "sink")
        executor.spawn(Echo(), "echo")
        subscribe_dead_letters(executor, executor.spawn(Sink(), "undertaker"))
        for n in range(10):
            executor.send(executor.spawn(process_class(), f"p{n}"), n)
        make_envelopes(executor, clock, max(count // 10, 20_000))
        before = Footprint.take()
        make_envelopes(executor, clock, count)
        Footprint.take().assert_no_more_than(before, objects=3_000, mib=2)


def make_envelopes(executor: Executor, clock: HandClock, count: int) -> None:
    """Letters that are lost are not delivered: they count as well."""

    def done() -> int:
        return executor.delivered + sum(executor.dead_letters.values())

    goal = done() + count
    while done() < goal:
        # A millisecond is as long in the tiny build, whose steps are of one delivery.
        delivered = 0
        while delivered < 1_024 and (more := executor.step()):
            delivered += more
        clock.go_on(1)


@sizes
def test_what_threads_send_and_call_leaves_nothing_behind(share: float) -> None:
    """A million sends and 200,000 calls, by four threads."""
    sends, calls = int(250_000 * share), int(50_000 * share)
    failures: list[BaseException] = []

    def in_threads(work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with rabble.rouse() as node:
        echo = node.spawn(Echo(), "echo")

        def work() -> None:
            with node.mailbox() as box:
                for n in range(sends):
                    box.send(echo, n)
                    if n % 100 == 99:
                        for _ in range(100):
                            box.receive(PATIENCE_S)
            for n in range(calls):
                assert node.call(echo, n, PATIENCE_S) == n

        in_threads(work)
        before = Footprint.take()
        in_threads(work)
        assert failures == []
        Footprint.take().assert_no_more_than(before, objects=1_000, mib=4)


# Processes.


@pytest.mark.parametrize(
    ("count", "mib"),
    [
        pytest.param(20_000, 4, id="quick"),
        pytest.param(1_000_000, 16, id="long", marks=pytest.mark.soak),
    ],
)
def test_a_million_processes_leave_memory_where_it_was(count: int, mib: int) -> None:
    """All at once, then all stopped; the third round ends where the first one did.

    A million take 350 MiB. What stays of that are some 40 MiB of the table's dict, which keeps its
    capacity until it is full again, and what malloc keeps: bounded by the most there ever were.
    """
    me = psutil.Process()

    def one_round(node: rabble.Node) -> int:
        for n in range(count):
            node.spawn(Sink(), f"p{n}")
        most = me.memory_info().rss
        for n in range(count):
            node.stop(node.pid(f"p{n}"))
        # Of the last lives it forgets the names when the queue has passed what they sent, twice.
        for _ in range(3):
            node.call(echo, "all stopped", 600)
        assert node.executor_status().processes == 1
        return most

    begin = Footprint.take()
    with rabble.rouse() as node:
        echo = node.spawn(Echo(), "echo")
        most = one_round(node)
        first = Footprint.take()
        for _ in range(2):
            one_round(node)
        third = Footprint.take()
        print(
            f"{count} processes: {(most - begin.resident) / MIB:.1f} MiB while they live, "
            f"{(first.resident - begin.resident) / MIB:.1f} MiB after the first round, "
            f"{(third.resident - begin.resident) / MIB:.1f} MiB after the third"
        )
        third.assert_no_more_than(first, objects=1_000, mib=mib)
    ended = Footprint.take()
    print(f"{(ended.resident - begin.resident) / MIB:.1f} MiB after the end of the node")
