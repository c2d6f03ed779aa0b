"""Tasks that wait are cancelled at random moments: nothing is lost, given twice, or left behind.

Each thread has a mailbox and runs one event loop after another, of which each closes with tasks
that still wait in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import rabble
from rabble import CallTimeout, Envelope, Mailbox, Node, Output, Pid, Process, StartTimer
from tests.support import PATIENCE_S, SANITIZED, TINY, Echo

THREADS = 3
#: Cancellations in one loop, until it closes; tasks that wait in it at a time.
IN_A_LOOP, TASKS = 150, 5
SLOWER = 10 if TINY or SANITIZED else 1


class Slow(Process):
    """Answers a little later: so a task that asks is cancelled while it waits, too."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        if isinstance(msg, Envelope):
            return msg
        answer = rabble.reply(msg, sender, correlation_id)
        return Envelope(self.executor, StartTimer(msg, self.random.uniform(0, 3), answer))


class Life:
    """What one thread does: its loops, one after another, and what came of their tasks."""

    def __init__(self, node: Node, seed: int, number: int, cancellations: int) -> None:
        self.node = node
        self.rng = random.Random(f"{seed}:{number}")
        self.cancellations = cancellations
        self.box: Mailbox = node.mailbox(f"box-{number}")
        self.got: list[int] = []
        self.sent = 0
        self.words = itertools.count()
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None
        #: Of loops that have closed: their coroutines may be let go of at any time.
        self.left: list[asyncio.Task[None]] = []
        self.over = threading.Event()

    def run(self) -> None:
        sends = threading.Thread(target=self.send)
        sends.start()
        try:
            while self.counts["cancelled"] < self.cancellations:
                self.one_loop()
        except BaseException as error:
            self.failure = error
        finally:
            self.over.set()
            sends.join()
            while self.left:
                self.let_go()

    def send(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(rabble.QueueFull):
                self.node.send(self.box.pid, self.sent)
                self.sent += 1
            self.over.wait(0.0001)

    def one_loop(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            left = loop.run_until_complete(self.cancel_some())
        finally:
            loop.close()
        self.counts["loops"] += 1
        self.counts["left in a loop"] += len(left)
        for task in left:
            # Pending for ever, which asyncio would complain of.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.left += left
        while len(self.left) > TASKS:
            self.let_go()

    def let_go(self) -> None:
        task = self.left.pop(self.rng.randrange(len(self.left)))
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()

    async def cancel_some(self) -> list[asyncio.Task[None]]:
        """Cancel tasks at random; those that wait in the end."""
        kinds: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.take,
            self.take_for_a_time,
            self.take_within_a_time,
            self.take_all,
            self.ask,
            self.ask_slow,
            self.ask_for_a_time,
        ]
        tasks: list[asyncio.Task[None]] = []
        before = self.counts["cancelled"]
        while self.counts["cancelled"] < before + IN_A_LOOP:
            while len(tasks) < TASKS:
                tasks.append(asyncio.create_task(self.rng.choice(kinds)()))
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(self.rng.choice([0, 0, 0, 0, 0.0003]))
            task = tasks.pop(self.rng.randrange(len(tasks)))
            if task.cancel():
                self.counts["cancelled"] += 1
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return tasks

    # What tasks do.

    async def take(self) -> None:
        self.got.append((await self.box.receive_async()).msg)

    async def take_for_a_time(self) -> None:
        with contextlib.suppress(CallTimeout):
            self.got.append((await self.box.receive_async(self.rng.uniform(0, 0.001))).msg)

    async def take_within_a_time(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.uniform(0, 0.001)):
                self.got.append((await self.box.receive_async()).msg)

    async def take_all(self) -> None:
        async for envelope in self.box:
            self.got.append(envelope.msg)

    async def ask(self, name: str = "echo", timeout: float = PATIENCE_S) -> None:
        word = [self.box.pid.name, next(self.words)]
        # Twice: the one after the other is a request of its own.
        for _ in range(2):
            assert await self.node.call_async(self.node.pid(name), tuple(word), timeout) == (*word,)
            self.counts["answered"] += 1

    async def ask_slow(self) -> None:
        await self.ask("slow")

    async def ask_for_a_time(self) -> None:
        with contextlib.suppress(CallTimeout):
            await self.ask("slow", self.rng.uniform(0, 0.003))


@pytest.mark.parametrize(
    "cancellations",
    [
        pytest.param(3_000 // SLOWER, id="quick"),
        pytest.param(
            100_000 // SLOWER, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(1_800)]
        ),
    ],
)
def test_nothing_is_lost_or_given_twice(cancellations: int) -> None:
    seed = int(os.environ.get("RABBLE_SEED") or secrets.randbits(32))
    print(f"seed {seed} (RABBLE_SEED repeats what is done, not how threads take turns)")
    counts: Counter[str] = Counter()
    with rabble.rouse(seed=seed) as node:
        node.spawn(Echo(), "echo")
        node.spawn(Slow(), "slow")
        lives = [Life(node, seed, n, cancellations // THREADS) for n in range(THREADS)]
        threads = [threading.Thread(target=life.run) for life in lives]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for life in lives:
            if life.failure is not None:
                raise AssertionError(f"seed {seed}") from life.failure
            # What was sent before this has come before it.
            node.send(life.box.pid, -1)
            while (received := life.box.receive(PATIENCE_S)).msg != -1:
                life.got.append(received.msg)
            assert life.got == list(range(life.sent)), f"seed {seed}"
            assert not life.box._loop_waits._waiters
            counts += life.counts
            counts["sent"] += life.sent
        calls = node._runtime.calls
        # Those of tasks that are gone are forgotten when somebody looks.
        calls.sweep()
        assert len(calls) == 0, f"seed {seed}"
        # Each loop that has closed is let go of.
        assert node.call(node.pid("echo"), "still there", PATIENCE_S) == "still there"
    print(dict(counts))
    assert counts["cancelled"] >= cancellations // THREADS * THREADS
    assert min(counts["answered"], counts["sent"], counts["left in a loop"]) > 10


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(40 // SLOWER, id="quick"),
        pytest.param(
            2_000 // SLOWER, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(1_800)]
        ),
    ],
)
def test_a_node_that_ends_ends_whoever_is_cancelled(nodes: int) -> None:
    seed = int(os.environ.get("RABBLE_SEED") or secrets.randbits(32))
    print(f"seed {seed}")
    rng = random.Random(seed)
    counts: Counter[str] = Counter()

    async def end(number: int) -> None:
        node = rabble.rouse(seed=number)
        box = node.mailbox()
        node.send(box.pid, number)
        receives = asyncio.create_task(box.receive_async())
        ends = [asyncio.create_task(node.shutdown_async()) for _ in range(rng.randint(1, 3))]
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(rng.choice([0, 0, 0.0005]))
            counts["cancelled"] += rng.choice([receives, *ends]).cancel()
        await asyncio.wait([receives, *ends])
        for task in ends:
            counts["ended"] += not task.cancelled()
        # A task that was cancelled before its first step asked for nothing.
        await node.shutdown_async()
        assert node.status == "stopped"
        # It was taken, or is there to be taken.
        if receives.cancelled():
            assert box.receive(0).msg == number
        else:
            assert receives.result().msg == number
        with pytest.raises(rabble.NodeStopped):
            box.receive(0)

    async def main() -> None:
        for number in range(nodes):
            await end(number)

    asyncio.run(main())
    print(dict(counts))
    assert counts["cancelled"] and counts["ended"]
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rabble:")]
