"""Timeouts: the timers of processes, from `StartTimer` until they fire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rabble import (
    CancelTimer,
    CorrelationId,
    Envelope,
    Output,
    Process,
    StartTimer,
    Stop,
    Tick,
    Timeout,
    TimerCancelled,
)
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from tests.core.processes import Refilling, spawn_recorder
from tests.core.starvation import Starvation
from tests.support import Does, HandClock, Witness, bare_executor, settle


def ask(executor: Executor, sender: Any, message: object) -> None:
    """Send a control message on behalf of a process."""
    executor.send(executor.pid, message, sender=sender)
    settle(executor)


def test_a_timer_fires_when_its_milliseconds_are_over_and_not_before() -> None:
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        timer = CorrelationId(asker, None, 1)
        ask(executor, asker, StartTimer(timer, 10))
        assert executor.timers == 1
        clock.go_on(9)
        settle(executor)
        assert told == []
        clock.go_on(2)
        settle(executor)
        assert told == [Timeout(timer)] and executor.timers == 0


def test_of_timers_that_are_due_at_once_no_more_are_queued_than_others_can_wait_behind() -> None:
    most = CAPACITIES["DUE_QUEUED_MAX"]
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        timers = [CorrelationId(asker, None, number) for number in range(3 * most)]
        for timer in timers:
            executor.send(executor.pid, StartTimer(timer, 1), sender=asker)
        settle(executor)
        clock.go_on(5)
        executor.step(0)
        assert executor.queue_depth == most
        settle(executor)
        assert told == [Timeout(timer) for timer in timers]


def test_a_timer_that_is_started_again_fires_once_and_when_it_was_last_told() -> None:
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        timer = CorrelationId(asker, None, 1)
        ask(executor, asker, StartTimer(timer, 5))
        ask(executor, asker, StartTimer(timer, 10))
        assert executor.timers == 1
        clock.go_on(9)
        settle(executor)
        assert told == []
        clock.go_on(2)
        settle(executor)
        assert told == [Timeout(timer)]


def test_a_cancel_is_answered_where_that_is_asked_for() -> None:
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        running, fired, never = (CorrelationId(asker, None, n) for n in range(3))
        ask(executor, asker, StartTimer(fired, 1))
        clock.go_on(2)
        settle(executor)
        ask(executor, asker, StartTimer(running, 1))
        for cid in (running, fired, never):
            ask(executor, asker, CancelTimer(cid, acknowledge=True))
        ask(executor, asker, CancelTimer(never))
        clock.go_on(2)
        settle(executor)
        assert told == [
            Timeout(fired),
            TimerCancelled(running, True),
            TimerCancelled(fired, False),
            TimerCancelled(never, False),
        ]


def test_timers_end_with_the_life_that_started_them() -> None:
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "mortal")
        timer = CorrelationId(pid, None, 1)
        for delay_ms in (1, 5):
            timer = timer.next_request()
            executor.send(executor.pid, StartTimer(timer, delay_ms), sender=pid)
        settle(executor)
        assert executor.timers == 2
        clock.go_on(2)
        # The first one has fired, and stands in the queue behind this.
        executor.send(executor.pid, Stop(pid))
        settle(executor)
        assert executor.timers == 0
        _, told_next = spawn_recorder(executor, "mortal")
        clock.go_on(10)
        settle(executor)
        assert told == told_next == []


def test_a_timer_waits_for_no_flood_from_outside(witness: Witness) -> None:
    clock = HandClock()
    codec = Refilling()
    with bare_executor(clock, witness, codec) as executor:
        codec.executor = executor
        to, got = spawn_recorder(executor)
        executor.send(executor.pid, StartTimer(CorrelationId(to, None, 1), 1), sender=to)
        executor.step()
        clock.go_on(2)
        executor.send(to, "flood")
        for _ in range(3):
            executor.step()
        assert any(isinstance(msg, Timeout) for msg in got)
        settle(executor)


# With a message of one's own, and again and again.


def test_a_timer_brings_the_very_message_that_it_was_given() -> None:
    heard: list[tuple[Any, Any, Any]] = []

    class Asker(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            heard.append((msg, sender, correlation_id))
            return None

    with bare_executor(clock := HandClock()) as executor:
        pid = executor.spawn(Asker(), "asker")
        msg, cid = object(), CorrelationId(pid, None, 1)
        ask(executor, pid, StartTimer("key", 10, msg))
        ask(executor, pid, StartTimer(cid, 10, [msg]))
        clock.go_on(9)
        settle(executor)
        assert heard == []
        clock.go_on(2)
        settle(executor)
        assert heard == [(msg, executor.pid, None), ([msg], executor.pid, cid)]
        assert heard[0][0] is msg and executor.timers == 0


@pytest.mark.parametrize("key", ["beat", 7, ("a", 1), frozenset({1}), Process, 2.5, False])
def test_any_hashable_key_names_a_timer(key: Any) -> None:
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "asker")
        ask(executor, pid, StartTimer(key, 5, "never"))
        # That replaces it, and this cancels what it was replaced by.
        ask(executor, pid, StartTimer(key, 5, "neither", repeat=True))
        ask(executor, pid, CancelTimer(key, acknowledge=True))
        clock.go_on(100)
        settle(executor)
        ask(executor, pid, CancelTimer(key, acknowledge=True))
        assert told == [TimerCancelled(key, True), TimerCancelled(key, False)]
        assert executor.timers == 0


@pytest.mark.parametrize("period_ms", [1, 10, 16.5, 1.000_001, 333.3])
def test_the_nth_firing_is_due_n_periods_after_the_start(period_ms: float) -> None:
    """However late those before it came, and to the nanosecond but for the tick of the wheel."""
    with bare_executor(clock := HandClock(123_456)) as executor:
        came: list[int] = []
        pid = executor.spawn(Does(lambda *_: came.append(clock.ns)), "asker")
        ask(executor, pid, StartTimer("beat", period_ms, repeat=True))
        start, period_ns = clock.ns, round(period_ms * 1e6)
        for n in range(1, 200):
            due = start + n * period_ns
            # A tick is a whole millisecond of the wheel, which began with the clock.
            tick = start + -(-(due - start) // 1_000_000) * 1_000_000
            clock.ns = tick - 1
            settle(executor)
            assert len(came) == n - 1
            # Late, and now and then later; but before the next one is due.
            clock.ns = max(tick, due + period_ns * (n % 3) // 4)
            settle(executor)
            assert len(came) == n
        assert executor.timers == 1


def test_firings_that_were_missed_are_told_and_not_made_up_for() -> None:
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "asker")
        ask(executor, pid, StartTimer("beat", 10, "tick", repeat=True))
        clock.go_on(10)
        settle(executor)
        # Those of 20, 30 and 40 ms come to nothing, and that of 50 stands for them.
        clock.go_on(45)
        settle(executor)
        assert told == [Tick("beat", "tick"), Tick("beat", "tick", missed=3)]
        clock.go_on(4)
        settle(executor)
        assert len(told) == 2
        clock.go_on(1)
        settle(executor)
        assert told[2:] == [Tick("beat", "tick")]
        # For a year.
        clock.go_on(366 * 24 * 3_600_000)
        settle(executor)
        (last,) = told[3:]
        assert last.missed == 366 * 24 * 360_000 - 1
        assert sum(1 + tick.missed for tick in told) == clock.ns // 10_000_000


def test_a_thousand_firings_of_a_process_that_works_end_when_the_last_one_is_due() -> None:
    """A `receive` of 3 ms with a period of 10: 10 s in all, and not 13."""
    with bare_executor(clock := HandClock(123_456)) as executor:
        came: list[float] = []

        def react(process: Process, msg: Any, sender: Any) -> Output:
            assert msg == Tick("beat")
            came.append((clock.ns - start) / 1e6)
            clock.go_on(3)
            return None

        pid = executor.spawn(Does(react), "works")
        ask(executor, pid, StartTimer("beat", 10, repeat=True))
        start = clock.ns
        while len(came) < 1_000:
            clock.go_on(1)
            settle(executor)
        assert came == [10.0 * n for n in range(1, 1_001)]


def test_a_slow_process_is_told_what_it_missed_and_gets_no_burst() -> None:
    """A `receive` of 12 ms with a period of 10: never two firings for one time."""
    with bare_executor(clock := HandClock()) as executor:
        came: list[tuple[float, int]] = []

        def react(process: Process, msg: Any, sender: Any) -> Output:
            came.append((clock.ns / 1e6, msg.missed))
            clock.go_on(12)
            return None

        pid = executor.spawn(Does(react), "asker")
        ask(executor, pid, StartTimer("beat", 10, repeat=True))
        while len(came) < 60:
            clock.go_on(0.25)
            # One at a time: it keeps the next one busy for ever.
            executor.step(1)
        # A multiple of the period, in all; and never two for one time.
        seen = 0
        for at, missed in came:
            seen += 1 + missed
            assert at // 10 == seen
        assert sum(missed for _, missed in came) > 0


def test_a_cancelled_tick_does_not_come_though_it_stands_in_the_queue() -> None:
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "asker")
        for key in ("once", "often"):
            ask(executor, pid, StartTimer(key, 5, key, repeat=key == "often"))
        clock.go_on(20)
        for key in ("once", "often"):
            # They are taken in first, and the timers that are due stand behind them.
            executor.send(executor.pid, CancelTimer(key, acknowledge=True), sender=pid)
        settle(executor)
        clock.go_on(100)
        settle(executor)
        assert told == [TimerCancelled("once", True), TimerCancelled("often", True)]
        assert executor.timers == 0


def test_a_process_stops_its_own_beat_and_starts_another_from_within_it() -> None:
    with bare_executor(clock := HandClock()) as executor:
        beats: list[Any] = []

        def react(process: Process, msg: Any, sender: Any) -> Output:
            beats.append(msg)
            if len(beats) == 3:
                return Envelope(process.executor, StartTimer("beat", 7, "slower", repeat=True))
            if len(beats) == 5:
                return Envelope(process.executor, CancelTimer("beat"))
            return None

        pid = executor.spawn(Does(react), "asker")
        ask(executor, pid, StartTimer("beat", 1, repeat=True))
        for _ in range(100):
            clock.go_on(1)
            settle(executor)
        assert beats == [Tick("beat")] * 3 + [Tick("beat", "slower")] * 2
        assert executor.timers == 0


def test_a_beat_ends_with_the_life_that_started_it() -> None:
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "mortal")
        ask(executor, pid, StartTimer("beat", 1, repeat=True))
        clock.go_on(2)
        # It has fired, and stands in the queue behind this.
        executor.send(executor.pid, Stop(pid))
        settle(executor)
        _, told_next = spawn_recorder(executor, "mortal")
        clock.go_on(10)
        settle(executor)
        assert told == told_next == [] and executor.timers == 0


class Key:
    """A key whose hash or equality fails from a certain look-up on."""

    def __init__(self, good: int, error: BaseException) -> None:
        self.good = good
        self.error = error

    def __hash__(self) -> int:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return 1

    def __eq__(self, other: object) -> bool:
        hash(self)
        return self is other


@pytest.mark.parametrize("error", [ValueError("no hash"), SystemExit(3), MemoryError()])
@pytest.mark.parametrize("good", range(6))
@pytest.mark.parametrize("repeat", [False, True])
def test_a_key_that_fails_ends_its_process_and_nobody_else(
    error: BaseException, good: int, repeat: bool
) -> None:
    with bare_executor(clock := HandClock(), Witness()) as executor:
        pid, told = spawn_recorder(executor, "mortal")
        other, told_other = spawn_recorder(executor, "other")
        ask(executor, other, StartTimer("beat", 5, "goes on"))
        key = Key(good, error)
        ask(executor, pid, StartTimer(1, 1_000, "of the same hash"))
        ask(executor, pid, StartTimer(key, 1, "ring", repeat))
        for _ in range(5):
            clock.go_on(1)
            settle(executor)
        ask(executor, pid, CancelTimer(key))
        clock.go_on(5)
        settle(executor)
        assert told_other == ["goes on"]
        ended = pid not in executor.table
        assert executor.crashes == ended
        assert executor.timers == (0 if ended else 1)
        key.good = 1 << 30


def test_what_a_timer_refers_to_is_let_go_of_when_it_ends() -> None:
    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            gone.append(self.name)

    gone: list[str] = []
    with bare_executor(clock := HandClock()) as executor:
        pid, told = spawn_recorder(executor, "asker")
        for name in ("fired", "replaced", "cancelled", "kept"):
            ask(executor, pid, StartTimer(name, 5, Noted(name), repeat=name != "fired"))
        ask(executor, pid, StartTimer("replaced", 50, "another"))
        ask(executor, pid, CancelTimer("cancelled"))
        assert gone == ["replaced", "cancelled"]
        clock.go_on(5)
        settle(executor)
        told.clear()
        assert gone == ["replaced", "cancelled", "fired"]
        ask(executor, executor.pid, Stop(pid))
        assert gone[3:] == ["kept"]


@pytest.mark.parametrize("lasting", [1, 1_000])
def test_without_memory_a_beat_goes_on_or_the_node_ends(
    starvation: Starvation, lasting: int
) -> None:
    """Whatever cannot be had: nothing is told twice, and a timer runs or does not."""
    done = False
    for nth in range(200):
        with bare_executor(clock := HandClock()) as executor:
            pid, told = spawn_recorder(executor, "asker")
            executor.send(executor.pid, StartTimer("beat", 10, "tick", repeat=True), sender=pid)
            executor.send(executor.pid, StartTimer("once", 15, "ring"), sender=pid)
            ended = False

            def run() -> None:
                for _ in range(4):
                    executor.step()
                    clock.go_on(10)
                    executor.step()

            starvation.starve(nth, nth + lasting)
            try:
                run()
            except MemoryError:
                ended = True
            finally:
                starvation.feed()
            done = not ended and told.count("ring") == 1 and len(told) == 5
            assert told.count("ring") <= 1
            assert sum(1 + msg.missed for msg in told if isinstance(msg, Tick)) <= 4
            alive = pid in executor.table
            assert alive or executor.timers == 0
        if done and nth > 60:
            return
    assert done, "it never had all that it needs"


#: What is wrong with a request, and what is said of it.
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: StartTimer(["list"], 1, "msg"), "TypeError: StartTimer: the key of a timer must be h"),
    (lambda: CancelTimer({}), "TypeError: CancelTimer: the key of a timer must be hashable"),
    (lambda: StartTimer(("a", []), 1, "msg"), "TypeError: unhashable type: 'list'"),
    (lambda: StartTimer(None, 1, "msg"), "TypeError: StartTimer: correlation_id must be"),
    (lambda: StartTimer("name", 1), "TypeError: StartTimer: correlation_id must be"),
    (lambda: StartTimer("k", 0, repeat=True), "ValueError: a timer that repeats does so every 1 "),
    (lambda: StartTimer("k", 0.9, repeat=True), "ValueError: a timer that repeats does so every"),
    (lambda: StartTimer("k", -1, repeat=True), "ValueError: a delay must be from 0 to"),
    (lambda: StartTimer("k", float("nan"), "msg"), "ValueError: a delay must be from 0 to"),
    (lambda: StartTimer("k", "1", "msg"), "TypeError: a delay must be milliseconds"),
]


@pytest.mark.parametrize(("request_of", "said"), WRONG)
def test_a_timer_that_cannot_be_ends_who_asks_and_says_why(
    executor: Executor, witness: Witness, request_of: Callable[[], object], said: str
) -> None:
    asker, _ = spawn_recorder(executor, "asker")
    ask(executor, asker, request_of())
    ((pid, error),) = witness.errors
    kind, words = said.split(": ", 1)
    # Newer Pythons say more of what cannot be hashed.
    assert (pid, type(error).__name__) == (asker, kind) and words in str(error)
    assert executor.timers == 0
