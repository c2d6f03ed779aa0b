"""Idle: what an executor does while it has nothing to do, and how it is called back."""

from __future__ import annotations

import threading

import pytest

from rabble import CorrelationId, Pid, StartTimer, Timeout
from rabble._core.executor import Executor
from rabble._core.idle import Idle
from tests.support import PATIENCE_S, Does, bare_executor, running, until

#: Of `Idle`.
SPIN_US_MAX = 1_000_000


def spawn_event(executor: Executor) -> tuple[Pid, threading.Event]:
    """A process that sets an event when it is given a message."""
    event = threading.Event()
    return executor.spawn(Does(lambda *_: event.set()), "sets an event"), event


def test_out_of_work_an_executor_sleeps_and_is_woken_by_what_is_sent() -> None:
    with bare_executor() as executor:
        to, event = spawn_event(executor)
        with running(executor):
            until(lambda: executor.sleeps)
            assert executor.wakeups == 0 and not event.is_set()
            executor.send(to, 1)
            assert event.wait(PATIENCE_S)
            assert executor.wakeups == 1 and executor.spins == 0


def test_out_of_work_an_executor_that_may_spin_does_so_first_and_sees_what_is_sent() -> None:
    with bare_executor(spin_us=SPIN_US_MAX) as executor:
        to, event = spawn_event(executor)
        with running(executor):
            until(lambda: executor.spins)
            # Unless this thread stood still for a second it has not slept yet.
            executor.send(to, 1)
            assert event.wait(PATIENCE_S)
            assert executor.wakeups <= executor.sleeps


def test_a_sleep_ends_when_a_timer_is_due() -> None:
    told = threading.Event()

    def react(process: object, msg: object, sender: Pid | None) -> None:
        if isinstance(msg, Timeout):
            told.set()

    with bare_executor() as executor, running(executor):
        pid = executor.spawn(Does(react), "asker")
        executor.send(executor.pid, StartTimer(CorrelationId(pid, None, 1), 1), sender=pid)
        assert told.wait(PATIENCE_S)


@pytest.mark.parametrize("spin_us", [0, SPIN_US_MAX])
def test_a_request_to_stop_ends_whatever_it_does(spin_us: int) -> None:
    with bare_executor(spin_us=spin_us) as executor:
        with running(executor) as thread:
            until(lambda: executor.sleeps or executor.spins)
        assert not thread.is_alive() and not executor.running


@pytest.mark.parametrize("spin_us", [-1, SPIN_US_MAX + 1])
def test_a_time_to_spin_out_of_bounds_is_refused(spin_us: int) -> None:
    with pytest.raises(ValueError, match=f"must be 0 to 1000000 microseconds, not {spin_us}"):
        Idle(spin_us)
