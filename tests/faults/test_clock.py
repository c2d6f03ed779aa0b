"""Timers and clocks: the wall clock jumps, the node stands still, delays are nonsense."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import (
    CorrelationId,
    Down,
    Envelope,
    Monitor,
    Pid,
    Process,
    StartTimer,
    Timeout,
)
from tests.support import BARE, PATIENCE_S, Does, HandClock, bare_executor, settle

HOUR_S = 3600.0
SOURCES = Path(rabble.__file__).parent


class Recorder(Process):
    """Starts the timers it is told to, and writes down which ones fired, and when."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.fired: list[tuple[int, float]] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if isinstance(msg, Timeout):
            self.fired.append((msg.correlation_id.request, self.clock.ns / 1e6))
            return None
        return [self.start(number, delay_ms) for number, delay_ms in msg]

    def start(self, number: int, delay_ms: float) -> Envelope:
        return Envelope(self.executor, StartTimer(CorrelationId(self.pid, None, number), delay_ms))


class Periodic(Recorder):
    """Starts its timer again at each timeout."""

    def __init__(self, clock: HandClock, period_ms: float) -> None:
        super().__init__(clock)
        self.period_ms = period_ms

    def init(self) -> Any:
        return self.start(0, self.period_ms)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        super().receive(msg, sender, correlation_id)
        return self.start(0, self.period_ms)


# The wall clock jumps an hour to and fro.


def test_a_jumping_wall_clock_moves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([HOUR_S, -HOUR_S, 0.0])
    wall_s, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall_s() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(next(jumps) * 1e9))
    with rabble.rouse() as node, node.mailbox() as box:
        executor = node.pid("executor", "rabble")
        start = time.monotonic()
        for delay_ms in (60, 40, 20, 1):
            box.send(executor, StartTimer(CorrelationId(box.pid, None, delay_ms), delay_ms))
        box.send(executor, StartTimer(CorrelationId(box.pid, None, 9), HOUR_S * 1000 / 2))
        for delay_ms in (1, 20, 40, 60):
            assert box.receive(PATIENCE_S).msg.correlation_id.request == delay_ms
            assert time.monotonic() - start >= delay_ms / 1000
        # The one of half an hour did not come with the hour.
        assert node.executor_status().timers == 1
        assert len(box) == 0


#: What may: the dates of certificates, the incarnation that is drawn when a node starts, and since
#: when a name is held, which says who keeps it when two owners meet (`_assembly.py` hands it in).
DATED = {
    "_assembly.py",
    "cli/cert.py",
    "cluster/io/certificates.py",
    "cluster/server.py",
    "cluster/status.py",
}


def test_nothing_that_waits_asks_the_wall_clock() -> None:
    asks = re.compile(
        r"\btime\.time\b|\btime_ns\b|\.(?:utc)?now\(|\.today\(|CLOCK_REALTIME|gettimeofday"
    )
    sources = [p for end in ("py", "pyx", "pxd") for p in SOURCES.rglob(f"*.{end}")]
    found = [
        f"{path}:{number}"
        for path in sources
        if path.relative_to(SOURCES).parts[0] != "bench"  # notes when it was run
        and str(path.relative_to(SOURCES)) not in DATED
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asks.search(line)
    ]
    assert len(sources) > 20
    assert found == []


# A node that was stopped for a while.


def test_after_ten_seconds_each_due_timer_fires_once_in_order() -> None:
    clock = HandClock()
    recorder, periodic = Recorder(clock), Periodic(clock, 100)
    with bare_executor(clock) as executor:
        pid = executor.spawn(recorder, "recorder")
        executor.spawn(periodic, "periodic")
        delays = {n: n * 7919 % 12_000 for n in range(3_000)}
        executor.send(pid, list(delays.items()))
        settle(executor)
        clock.go_on(10_000)
        settle(executor)
        missed = [n for n, _ in recorder.fired]
        assert [delays[n] for n in missed] == sorted(d for d in delays.values() if d <= 10_000)
        assert len(set(missed)) == len(missed)
        assert {at for _, at in recorder.fired} == {10_000}
        # One timeout for a hundred missed ones, and the next one a whole period later.
        assert [at for _, at in periodic.fired] == [10_000]
        for _ in range(25):
            clock.go_on(10)
            settle(executor)
        assert [at for _, at in periodic.fired] == [10_000, 10_100, 10_200]
        clock.go_on(10_000)
        settle(executor)
        assert sorted(n for n, _ in recorder.fired) == sorted(delays)
        assert len(periodic.fired) == 4
        assert executor.timers == 1


STOPPED_FOR_S = 1.0
CHILD = """
    import json, sys, time
    import rabble
    from rabble import CorrelationId, Envelope, StartTimer, Timeout

    fired, beats = [], []

    class Timers(rabble.Process):
        def start(self, number, delay_ms):
            cid = CorrelationId(self.pid, None, number)
            return Envelope(self.executor, StartTimer(cid, delay_ms))

        def init(self):
            return [self.start(n, n * 10) for n in range(1, 151)] + [self.start(0, 50)]

        def receive(self, msg, sender, correlation_id):
            number = msg.correlation_id.request
            if number:
                fired.append((number, time.monotonic()))
                if len(fired) == 150:
                    return Envelope(box.pid, "done")
                if len(fired) == 10:
                    print("ready", flush=True)
                return None
            beats.append(time.monotonic())
            return self.start(0, 50)

    with rabble.rouse() as node, node.mailbox() as box:
        begun = time.monotonic()
        node.spawn(Timers(), "timers")
        box.receive(60)
        print(json.dumps({"begun": begun, "fired": fired, "beats": beats}), flush=True)
"""


def test_a_process_that_was_stopped_and_continued_has_no_storm() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES.parent)},
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            assert child.stdout.readline() == "ready\n", child.stderr.read()
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            # Nothing happens in it that could be awaited: that is the point.
            time.sleep(STOPPED_FOR_S)
            child.send_signal(signal.SIGCONT)
            history = json.loads(child.stdout.readline())
            assert child.wait(PATIENCE_S) == 0
            assert child.stderr.read() == ""
        finally:
            child.kill()
    assert [number for number, _ in history["fired"]] == list(range(1, 151))
    for number, at in history["fired"]:
        assert at - history["begun"] >= number * 0.01
    gaps = [late - early for early, late in itertools.pairwise(history["beats"])]
    assert min(gaps) >= 0.05  # none to make up for what was missed
    assert max(gaps) >= STOPPED_FOR_S  # it was stopped indeed


# Delays that are none. validate_delay_ms itself: tests/core/test_timers.py.


@pytest.mark.parametrize(
    ("delay", "error"),
    [
        (-1, "ValueError"),
        (-0.001, "ValueError"),
        (math.nan, "ValueError"),
        (math.inf, "ValueError"),
        (-math.inf, "ValueError"),
        (2**53 + 1, "ValueError"),
        (float(2**53), "ValueError"),
        (10**400, "ValueError"),
        (366 * 24 * HOUR_S * 1000 + 1, "ValueError"),
        (True, "TypeError"),
        ("1", "TypeError"),
        (None, "TypeError"),
    ],
)
def test_a_delay_that_is_none_ends_who_asked_for_it(delay: Any, error: str) -> None:
    with rabble.rouse() as node, node.mailbox() as box:
        executor = node.pid("executor", "rabble")

        def ask(process: Process, msg: Any, sender: Pid | None) -> Envelope:
            return Envelope(process.executor, StartTimer(CorrelationId(process.pid), delay))

        pid = node.spawn(Does(ask), "asker")
        box.send(executor, Monitor(pid))
        box.send(pid, "go")
        down = box.receive(PATIENCE_S).msg
        assert isinstance(down, Down)
        assert down.reason.kind == "crashed"
        assert down.reason.detail.startswith(f"{error}: a delay must be ")
        # A thread is told by the log and a dead letter: it cannot be ended.
        box.send(executor, StartTimer(CorrelationId(box.pid), delay))
        box.send(executor, StartTimer(CorrelationId(box.pid), 0))
        assert box.receive(PATIENCE_S).msg == Timeout(CorrelationId(box.pid))
        status = node.executor_status()
        assert (status.timers, status.dead_letters["refused"]) == (0, 1)


# The boundaries of the wheel, by way of the executor. The wheel itself: tests/core/test_timers.py.


@pytest.mark.parametrize("off_ns", [0, 1, 999_999])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_at_each_boundary_of_the_wheel_a_timer_is_on_time(level: int, off_ns: int) -> None:
    """Started between two ticks it is rounded up to the next: not early, by less than 1 ms late."""
    span = 256**level
    clock = HandClock()
    recorder = Recorder(clock)
    with bare_executor(clock) as executor:
        pid = executor.spawn(recorder, "recorder")
        for begin in (span - 2, span - 1, span, span + 1):
            for delay in (1, 2, 3, 255, 256, 257, span - 1, span, span + 1):
                recorder.fired.clear()
                # From before the boundary to beyond it.
                rounds = clock.ns // 1_000_000 // (2 * span) + 1
                clock.ns = (rounds * 2 * span + begin) * 1_000_000 + off_ns
                settle(executor)
                executor.send(pid, [(1, delay)])
                settle(executor)
                due = clock.ns + delay * 1_000_000
                clock.ns = due - 1
                settle(executor)
                assert recorder.fired == []
                clock.ns = -(-due // 1_000_000) * 1_000_000
                settle(executor)
                assert [n for n, _ in recorder.fired] == [1]
        assert executor.timers == 0


def test_what_is_started_far_apart_fires_in_order() -> None:
    """A year and a millisecond at once; the clock goes in steps of days."""
    clock = HandClock(123_456_789)
    recorder = Recorder(clock)
    with bare_executor(clock) as executor:
        pid = executor.spawn(recorder, "recorder")
        day_ms = 24 * 3600 * 1000
        delays = {1: 366 * day_ms, 2: 1, 3: 49 * day_ms, 4: 50 * day_ms, 5: 365 * day_ms}
        executor.send(pid, list(delays.items()))
        settle(executor)
        for _ in range(367):
            clock.go_on(day_ms)
            settle(executor)
    assert [n for n, _ in recorder.fired] == sorted(delays, key=lambda n: delays[n])
    assert pid.node == BARE
