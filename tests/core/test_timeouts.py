"""Timeouts: the timers of processes, from `StartTimer` until they fire."""

from __future__ import annotations

from typing import Any

from rabble import CancelTimer, CorrelationId, StartTimer, Stop, Timeout, TimerCancelled
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from tests.core.processes import Refilling, spawn_recorder
from tests.support import HandClock, Witness, bare_executor, settle


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
