"""How fast requests are answered: `call`, for which threads wait, and `call_async`, for tasks."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.messaging import PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.bench.timing import wait_for
from rabble.messages import Ask, CancelTimer, Demonitor, Monitor, Reply, StartTimer
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["ask", "calls"]

UNIT = "round trips/s"
#: Milliseconds that an `Ask` may take.
ASK_MS = 60_000

#: Runs a coroutine to its end in a loop of its own.
Runner = Callable[[Coroutine[Any, Any, Sample]], Sample]


class Answerer(Process):
    """Answers each request with the next number."""

    def __init__(self) -> None:
        self.answered = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        self.answered += 1
        return Envelope(sender, msg, correlation_id=correlation_id)


class Asker(Process):
    """Asks a number, again and again, and tells at the end how many answers it was given."""

    def __init__(self, to: Pid, asks: int, main: Pid) -> None:
        self.to = to
        self.asks = asks
        self.main = main
        self.answered = 0

    def init(self) -> Output:
        return Envelope(self.executor, Ask(self.to, 0, ASK_MS))

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if type(msg) is Reply and msg.value == self.answered:
            self.answered += 1
            if self.answered < self.asks:
                return Envelope(self.executor, Ask(self.to, self.answered, ASK_MS))
        return Envelope(self.main, self.answered)


class Sender(Asker):
    """Does the same by envelopes, each with a correlation id by which the answer is known: without
    a timeout, and without learning that none comes."""

    def init(self) -> Output:
        self.request = CorrelationId(self.pid, request=0)
        return Envelope(self.to, 0, None, self.request)

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if correlation_id == self.request and msg == self.answered:
            self.answered += 1
            if self.answered < self.asks:
                self.request = self.request.next_request()
                return Envelope(self.to, self.answered, None, self.request)
        return Envelope(self.main, self.answered)


class ByHand(Sender):
    """Does by hand what an `Ask` does: it has a timer, and monitors whom it sends to."""

    def init(self) -> Output:
        self.request = CorrelationId(self.pid, request=0)
        return self.send()

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if correlation_id == self.request and msg == self.answered:
            self.answered += 1
            done = [
                Envelope(self.executor, CancelTimer(self.request)),
                Envelope(self.executor, Demonitor(self.to)),
            ]
            if self.answered < self.asks:
                self.request = self.request.next_request()
                return [*done, *self.send()]
        # Also of a timeout, or the end of the other one: then it counts wrong.
        return Envelope(self.main, self.answered)

    def send(self) -> list[Envelope]:
        """The next request."""
        return [
            Envelope(self.executor, Monitor(self.to)),
            Envelope(self.executor, StartTimer(self.request, ASK_MS)),
            Envelope(self.to, self.answered, None, self.request),
        ]


def ask(round_trips: int = 20_000) -> list[Case]:
    """Round trips of `Ask` between two processes of a node. One limit is the plain envelopes that
    each stands for, there and back; another one those with a timer and a monitor, as who writes it
    by hand needs them to learn that no answer comes.
    """

    def run(asker: type[Asker]) -> Sample:
        with rouse() as node, node.mailbox() as main:
            to = node.spawn(Answerer(), "answerer")
            start = time.perf_counter()
            node.spawn(asker(to, round_trips, main.pid), "asker")
            answered = main.receive(PATIENCE_S).msg
            seconds = time.perf_counter() - start
        expect("asks answered", answered, round_trips)
        return Sample(answered, seconds)

    return [
        Case(
            name,
            {"round_trips": round_trips},
            UNIT,
            bound(run, Asker),
            Limit(what, bound(run, asker)),
            Target(ratio),
        )
        for name, what, asker, ratio in (
            ("calls-ask", "plain envelopes", Sender, 0.5),
            ("calls-ask-by-hand", "timer and monitor by hand", ByHand, 2.0),
        )
    ]


def calls(round_trips: int = 20_000, awaited: int = 100_000) -> list[Case]:
    """Round trips of `Node.call` from 1 and 16 threads, of `Node.call_async` from 1, 100 and 1,000
    tasks of one loop, and of `Ask` from a process, all to one process of the same node.

    The limit of threads is the hand-over by semaphores to a thread that answers, and back. That of
    tasks is written by hand: an `asyncio.Queue`, a task that takes from it, and a future for each
    request; beside it the same on uvloop, where that is installed.

    :param round_trips: of threads, in all.
    :param awaited: round trips of tasks, in all.
    """
    cases = [
        Case(
            f"calls-{threads}-threads" if threads > 1 else "calls-1-thread",
            {"round_trips": round_trips, "threads": threads},
            UNIT,
            bound(from_threads, threads, round_trips // threads),
            Limit("hand-over", bound(hand_over, threads, round_trips // threads)),
        )
        for threads in (1, 16)
    ]
    uvloop = importlib.util.find_spec("uvloop") is not None
    for tasks in (1, 100, 1_000):
        # One task waits for a hand-over to another thread and back each time.
        each = max(1, (awaited if tasks > 1 else round_trips) // tasks)
        by_hand = bound(from_futures, tasks, each, asyncio.run)
        cases.append(
            Case(
                f"calls-{tasks}-tasks" if tasks > 1 else "calls-1-task",
                {"round_trips": tasks * each, "tasks": tasks},
                UNIT,
                bound(from_tasks, tasks, each),
                Limit("asyncio by hand", by_hand),
                Target(0.7) if tasks == 100 else None,
                beside={"uvloop by hand": bound(from_futures, tasks, each, run_on_uvloop)}
                if uvloop
                else {},
            )
        )
    return cases + ask(round_trips)


def bound(run: Callable[..., Sample], *arguments: Any) -> Callable[[], Sample]:
    """The run with its arguments."""
    return lambda: run(*arguments)


def run_on_uvloop(main: Coroutine[Any, Any, Sample]) -> Sample:
    """As `asyncio.run`."""
    uvloop: Any = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


# Threads.


def timed_threads(threads: int, work: Callable[[], None]) -> float:
    """Seconds that it takes until so many threads have done the work, of one of them here."""
    go = threading.Barrier(threads + 1)

    def start_together() -> None:
        go.wait(PATIENCE_S)
        work()

    started = [
        threading.Thread(target=start_together, name=f"rabble:bench:caller-{n}")
        for n in range(threads)
    ]
    for thread in started:
        thread.start()
    go.wait(PATIENCE_S)
    start = time.perf_counter()
    for thread in started:
        thread.join()
    return time.perf_counter() - start


def from_threads(threads: int, each: int) -> Sample:
    """`call` from so many threads at a time."""
    answerer = Answerer()
    replies: list[int] = []
    with rouse() as node:
        pid = node.spawn(answerer, "answerer")
        call = node.call

        def work() -> None:
            got = 0
            for n in range(each):
                got += call(pid, n) == n
            replies.append(got)

        seconds = timed_threads(threads, work)
    expect("calls", sum(replies), threads * each)
    expect("calls answered", answerer.answered, threads * each)
    return Sample(sum(replies), seconds)


def hand_over(threads: int, each: int) -> Sample:
    """So many threads wake one that answers by waking each again: by semaphores, which is what a
    `SimpleQueue` and a lock are made of on Linux."""
    requests: queue.SimpleQueue[threading.Lock] = queue.SimpleQueue()
    answered = 0

    def answer() -> None:
        nonlocal answered
        while answered < threads * each:
            requests.get(timeout=PATIENCE_S).release()
            answered += 1

    def work() -> None:
        mine = threading.Lock()
        mine.acquire()
        for _ in range(each):
            requests.put(mine)
            wait_for(mine)

    answering = threading.Thread(target=answer, name="rabble:bench:answerer")
    answering.start()
    seconds = timed_threads(threads, work)
    answering.join()
    expect("hand-over", answered, threads * each)
    return Sample(answered, seconds)


# Tasks.


async def timed_tasks(tasks: int, each: int, ask: Callable[[int], Any]) -> Sample:
    """So many tasks that ask one thing after the other."""

    async def work() -> int:
        got = 0
        for n in range(each):
            got += await ask(n) == n
        return got

    start = time.perf_counter()
    counts = await asyncio.gather(*(work() for _ in range(tasks)))
    seconds = time.perf_counter() - start
    expect("tasks", sum(counts), tasks * each)
    return Sample(sum(counts), seconds)


def from_tasks(tasks: int, each: int) -> Sample:
    """`call_async` from so many tasks of one loop."""
    with rouse() as node:
        pid = node.spawn(Answerer(), "answerer")
        call_async = node.call_async
        return asyncio.run(timed_tasks(tasks, each, lambda n: call_async(pid, n)))


def from_futures(tasks: int, each: int, runner: Runner) -> Sample:
    """A future for each request, put into a queue, for a task that answers what it takes."""

    async def play() -> Sample:
        loop = asyncio.get_running_loop()
        requests: asyncio.Queue[tuple[asyncio.Future[int], int]] = asyncio.Queue()

        async def answer() -> None:
            while True:
                reply, msg = await requests.get()
                reply.set_result(msg)

        def ask(n: int) -> asyncio.Future[int]:
            reply = loop.create_future()
            requests.put_nowait((reply, n))
            return reply

        answering = asyncio.create_task(answer())
        try:
            return await timed_tasks(tasks, each, ask)
        finally:
            answering.cancel()

    return runner(play())
