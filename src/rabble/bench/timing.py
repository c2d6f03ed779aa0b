"""How dear timers are and how late they fire, and how long a message takes to wake a node."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble._core.timers import TimerWheel
from rabble.bench.messaging import PATIENCE_S
from rabble.bench.model import Case, Limit, Sample, Target, expect, percentile
from rabble.messages import StartTimer, Stop, Timeout
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["timers", "wake"]

SEED = 74755
DELAY_MS_MAX = 3_600_000
LATENESS_MS_MAX = 2.0
#: Of a timer that repeats: its period, how long its process takes for each firing, and how late the
#: last of very many may be.
BEAT_MS = 10
BEAT_WORK_MS = 3.0
BEAT_LATENESS_MS_MAX = 15.0
#: How recently an executor must have worked to count as active.
ACTIVE_NS = 50_000
IDLE_PERCENT_MAX = 0.1


class Chain(Process):
    """Starts one timer after the other and notes how late each fires."""

    def __init__(self, delays_ms: list[int], main: Pid) -> None:
        self.delays_ms = delays_ms
        self.main = main
        self.due_ns = 0
        self.lateness_ns: list[int] = []

    def init(self) -> Output:
        return self.start()

    def start(self) -> Envelope:
        delay_ms = self.delays_ms[len(self.lateness_ns)]
        timer = CorrelationId(self.pid, request=len(self.lateness_ns))
        self.due_ns = time.perf_counter_ns() + delay_ms * 1_000_000
        return Envelope(self.executor, StartTimer(timer, delay_ms))

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Timeout():
                self.lateness_ns.append(time.perf_counter_ns() - self.due_ns)
                if len(self.lateness_ns) < len(self.delays_ms):
                    return self.start()
                return Envelope(self.main, len(self.lateness_ns))
        return None


class Beat(Process):
    """Has one timer fire again and again, takes its time for each, and notes how late each was."""

    def __init__(self, beats: int, main: Pid) -> None:
        self.beats = beats
        self.main = main
        self.start_ns = 0
        self.fired = 0
        self.missed = 0
        self.lateness_ns: list[int] = []

    def init(self) -> Output:
        self.start_ns = time.perf_counter_ns()
        return Envelope(self.executor, StartTimer("beat", BEAT_MS, repeat=True))

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        now_ns = time.perf_counter_ns()
        self.missed += msg.missed
        self.fired += 1 + msg.missed
        self.lateness_ns.append(now_ns - self.start_ns - self.fired * BEAT_MS * 1_000_000)
        while time.perf_counter_ns() - now_ns < BEAT_WORK_MS * 1e6:
            pass
        if self.fired >= self.beats:
            stop = Envelope(self.executor, Stop(self.pid))
            return [stop, Envelope(self.main, self.fired)]
        return None


def timers(
    outstanding: int = 1_000_000, chains: int = 8, per_chain: int = 75, beats: int = 100
) -> list[Case]:
    """Outstanding timers of mixed lengths, of which half are cancelled and half fire; how late
    timers of an otherwise idle node are; and how late the last firing of one that repeats is.

    The limit is a heap of the same timers, used as asyncio uses its own: cancelling marks the
    entry, and when half are marked the heap is rebuilt without them. The rate is that of starting
    and cancelling; `fire_ratio` compares how both then let the other half fire.
    """
    source = random.Random(SEED)
    delays = [int(DELAY_MS_MAX ** source.random()) + 1 for _ in range(outstanding)]
    cancelled = source.sample(range(outstanding), outstanding // 2)
    operations = outstanding + len(cancelled)
    owner = object()

    def run() -> Sample:
        wheel = TimerWheel()
        start_timer, cancel = wheel.start, wheel.cancel
        start = time.perf_counter()
        started = [start_timer(owner, None, delay) for delay in delays]
        for n in cancelled:
            cancel(started[n])
        seconds = time.perf_counter() - start
        expect("timers outstanding", len(wheel), outstanding - len(cancelled))
        start = time.perf_counter()
        fired = len(wheel.advance(DELAY_MS_MAX + 2))
        fire_seconds = time.perf_counter() - start
        expect("timers fired", fired, outstanding - len(cancelled))
        return Sample(operations, seconds, details={"fired_per_s": fired / fire_seconds})

    def heap() -> Sample:
        push, pop = heapq.heappush, heapq.heappop
        waiting: list[list[Any]] = []
        started = []
        now = 0
        start = time.perf_counter()
        for n, delay in enumerate(delays):
            entry = [now + delay, n, owner, None]
            push(waiting, entry)
            started.append(entry)
        for n in cancelled:
            started[n][2] = None
        waiting = [entry for entry in waiting if entry[2] is not None]
        heapq.heapify(waiting)
        seconds = time.perf_counter() - start
        expect("heap outstanding", len(waiting), outstanding - len(cancelled))
        start = time.perf_counter()
        fired = []
        while waiting and waiting[0][0] <= DELAY_MS_MAX + 2:
            fired.append(pop(waiting))
        fire_seconds = time.perf_counter() - start
        expect("heap fired", len(fired), outstanding - len(cancelled))
        return Sample(operations, seconds, details={"fired_per_s": len(fired) / fire_seconds})

    def lateness() -> Sample:
        lengths = random.Random(SEED)
        with rouse() as node, node.mailbox() as main:
            every = [
                Chain([lengths.randint(1, 20) for _ in range(per_chain)], main.pid)
                for _ in range(chains)
            ]
            start = time.perf_counter()
            for n, chain in enumerate(every):
                node.spawn(chain, f"chain-{n}")
            fired = sum(main.receive(PATIENCE_S).msg for _ in every)
            seconds = time.perf_counter() - start
        expect("timers of an idle node", fired, chains * per_chain)
        late_ms = [ns / 1e6 for chain in every for ns in chain.lateness_ns]
        return Sample(
            fired,
            seconds,
            percentile(late_ms, 99),
            {"p50_ms": percentile(late_ms, 50), "max_ms": max(late_ms), "min_ms": min(late_ms)},
        )

    def beat() -> Sample:
        with rouse() as node, node.mailbox() as main:
            process = Beat(beats, main.pid)
            start = time.perf_counter()
            node.spawn(process, "beat")
            # More than that, where the last one stands for some that were missed.
            expect(
                "beats", min(main.receive(PATIENCE_S + beats * BEAT_MS / 1_000).msg, beats), beats
            )
            seconds = time.perf_counter() - start
        late_ms = [ns / 1e6 for ns in process.lateness_ns]
        return Sample(
            beats, seconds, late_ms[-1], {"max_ms": max(late_ms), "missed": process.missed}
        )

    return [
        Case(
            "timers",
            {"outstanding": outstanding, "cancelled": len(cancelled)},
            "starts+cancels/s",
            run,
            Limit("heapq", heap),
            Target(5.0),
        ),
        Case(
            "timers-lateness",
            {"timers": chains * per_chain},
            "ms p99",
            lateness,
            Limit("allowance", LATENESS_MS_MAX),
            Target(1.0, "<="),
        ),
        Case(
            "timers-beat",
            {"beats": beats, "period_ms": BEAT_MS, "work_ms": BEAT_WORK_MS},
            "ms late at the end",
            beat,
            Limit("allowance", BEAT_LATENESS_MS_MAX),
            Target(1.0, "<="),
        ),
    ]


class Sleeper(Process):
    """Notes how long each message took to reach it, and how long it had been idle before."""

    def __init__(self, received: threading.Lock) -> None:
        self.received = received
        self.latest_ns = 0
        #: (from `send` to `receive`, from the `receive` before to `send`), in nanoseconds
        self.seen: list[tuple[int, int]] = []

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> None:
        now_ns = time.perf_counter_ns()
        self.seen.append((now_ns - msg, msg - self.latest_ns))
        # Last of all, as the sender goes on from here.
        self.latest_ns = time.perf_counter_ns()
        self.received.release()


def latencies(all_ns: list[int], seconds: float) -> Sample:
    """The sample of measured latencies: its value is the median in microseconds."""
    return Sample(
        len(all_ns),
        seconds,
        percentile(all_ns, 50) / 1e3,
        {"p99_us": percentile(all_ns, 99) / 1e3, "min_us": min(all_ns) / 1e3},
    )


def wait_for(lock: threading.Lock) -> None:
    """Take the lock, or give the run up."""
    if not lock.acquire(timeout=PATIENCE_S):
        raise TimeoutError(f"nothing was received in {PATIENCE_S} s")


def send_to_sleeper(messages: int, pause_s: float) -> tuple[list[tuple[int, int]], float]:
    """Send one message after the other to a process, each when the one before was received."""
    received = threading.Lock()
    received.acquire()
    sleeper = Sleeper(received)
    with rouse() as node:
        pid = node.spawn(sleeper, "sleeper")
        start = time.perf_counter()
        for _ in range(messages):
            if pause_s:
                time.sleep(pause_s)
            node.send(pid, time.perf_counter_ns())
            wait_for(received)
        seconds = time.perf_counter() - start
    expect("wake", len(sleeper.seen), messages)
    return sleeper.seen, seconds


def hand_over(messages: int, pause_s: float) -> Sample:
    """One thread wakes another by a semaphore (which is what a lock is on Linux), in turn."""
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()
    sent_ns = 0
    latencies_ns: list[int] = []

    def other() -> None:
        for _ in range(messages):
            wait_for(there)
            latencies_ns.append(time.perf_counter_ns() - sent_ns)
            back.release()

    thread = threading.Thread(target=other, name="rabble:bench:hand-over")
    thread.start()
    start = time.perf_counter()
    for _ in range(messages):
        if pause_s:
            time.sleep(pause_s)
        sent_ns = time.perf_counter_ns()
        there.release()
        wait_for(back)
    seconds = time.perf_counter() - start
    thread.join()
    expect("hand-over", len(latencies_ns), messages)
    return latencies(latencies_ns, seconds)


def wake(messages: int = 2_000, idle_messages: int = 100, idle_s: float = 2.0) -> list[Case]:
    """From `node.send` in a thread to `receive`: to an executor that was active within the last
    50 µs, and to one that sleeps; and how much of a processor an idle node takes.

    The limit is the hand-over from one Python thread to another by a semaphore, with the same
    pauses.
    """
    pause_s = 0.005

    def active() -> Sample:
        seen, seconds = send_to_sleeper(messages, 0.0)
        recent = [latency for latency, idle in seen if idle <= ACTIVE_NS]
        # Where the sender itself takes longer than that to come back there is none such.
        chosen = recent or [latency for latency, _ in seen]
        sample = latencies(chosen, seconds)
        return Sample(
            messages,
            seconds,
            sample.value,
            {**sample.details, "within_50us_percent": 100 * len(recent) / messages},
        )

    def idle() -> Sample:
        seen, seconds = send_to_sleeper(idle_messages, pause_s)
        return latencies([latency for latency, _ in seen], seconds)

    def pausing(count: int, seconds: float) -> Callable[[], Sample]:
        return lambda: hand_over(count, seconds)

    def processor() -> Sample:
        with rouse() as node:
            node.spawn(Sleeper(threading.Lock()), "sleeper")
            time.sleep(0.1)
            start, used = time.perf_counter(), time.process_time()
            time.sleep(idle_s)
            used, seconds = time.process_time() - used, time.perf_counter() - start
        return Sample(0, seconds, 100 * used / seconds)

    return [
        Case(
            "wake-active",
            {"messages": messages},
            "µs p50",
            active,
            Limit("hand-over", pausing(messages, 0.0)),
            Target(0.3, "<="),
        ),
        Case(
            "wake-idle",
            {"messages": idle_messages, "pause_s": pause_s},
            "µs p50",
            idle,
            Limit("hand-over", pausing(idle_messages, pause_s)),
            Target(1.2, "<="),
        ),
        Case(
            "wake-processor",
            {"idle_s": idle_s},
            "% of a core",
            processor,
            Limit("allowance", IDLE_PERCENT_MAX),
            Target(1.0, "<="),
            warm_ups=0,
        ),
    ]
