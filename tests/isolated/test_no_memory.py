"""Memory runs out within the core: what it keeps stays consistent, and nothing crashes."""

from __future__ import annotations

import pytest

from tests.isolated.nomemory import available
from tests.isolated.script import FORKS, run
from tests.support import SANITIZED

pytestmark = [
    pytest.mark.skipif(not available(), reason="this Python has no _testcapi"),
    pytest.mark.skipif(SANITIZED, reason="its allocator says it aborts where none is left"),
]

BEGIN = """
from rabble import NodeId, Pid
from tests.isolated.nomemory import without_memory

"""


def test_a_helper_that_injects_nothing_would_find_nothing() -> None:
    said = run(
        BEGIN
        + """
def attempt(state):
    state.append([bytes(1000) for _ in range(30)])

def check(state):
    assert len(state) <= 1

def dies(state):
    try:
        bytes(1000)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)

assert without_memory(list, attempt, check) >= 30
try:
    without_memory(list, dies)
except AssertionError as error:
    print(error)
""",
        *FORKS,
    )
    assert "0+1: SIGKILL" in said


def test_timers_are_started_cancelled_and_fired_whole_or_not_at_all() -> None:
    run(
        BEGIN
        + """
from rabble._core.timers import TimerWheel

def begin():
    wheel = TimerWheel()
    timers = [wheel.start("owner", n, delay) for n, delay in enumerate((1, 1, 5, 300, 70_000))]
    return wheel, timers, []

def attempt(state):
    wheel, timers, fired = state
    timers.append(wheel.start(object(), 5, 1000))
    wheel.cancel(timers[2])
    while tick := wheel.next_deadline():
        fired.extend(wheel.advance(tick))

def check(state):
    wheel, timers, fired = state
    running = sum(timer.active for timer in timers)
    assert len(wheel) == running, (len(wheel), running)
    wheel.advance(2**40)
    assert not any(timer.active for timer in timers) and len(wheel) == 0

without_memory(begin, attempt, check)
"""
    )
