"""The watchdog: a `receive` that does not return is reported once, and makes the node stalled."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rabble import Pid
from rabble.watchdog import Watchdog
from tests.support import BARE

ONE = Pid("one", BARE)
REPORT_S, STALLED_S = 1.0, 5.0


class Executor:
    """How far an executor is, as it shows to other threads."""

    def __init__(self) -> None:
        self.delivered = 0
        self.current_pid: Pid | None = None

    def begin(self, pid: Pid) -> None:
        self.delivered += 1
        self.current_pid = pid


class Watched:
    """A watchdog, what it looks at, and what it reports; the time is the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.executor: Any = Executor()
        self.reports: list[tuple[Pid, float]] = []
        self.watchdog = Watchdog(
            self.executor,
            threading.current_thread(),
            report_after_s=REPORT_S,
            stalled_after_s=STALLED_S,
            clock=lambda: self.now,
        )

    def report_stack(self, pid: Pid, thread: int, seconds: float) -> None:
        assert thread == threading.get_ident()
        self.reports.append((pid, seconds))

    def look_after(self, seconds: float) -> None:
        self.now += seconds
        reporter: Any = self
        self.watchdog.look(reporter)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_receive_that_goes_on_is_reported_once(watched: Watched) -> None:
    watched.executor.begin(ONE)
    watched.look_after(0.0)
    watched.look_after(REPORT_S - 0.1)
    assert watched.reports == []
    for _ in range(3):
        watched.look_after(0.1)
    assert watched.reports == [(ONE, pytest.approx(REPORT_S))]


def test_the_node_is_stalled_until_the_delivery_has_ended(watched: Watched) -> None:
    watched.executor.begin(ONE)
    watched.look_after(0.0)
    watched.now += STALLED_S - 0.1
    assert not watched.watchdog.stalled
    watched.now += 0.1
    assert watched.watchdog.stalled
    # Before anybody has looked again.
    watched.executor.current_pid = None
    assert not watched.watchdog.stalled


def test_the_time_of_a_delivery_begins_when_it_was_first_seen(watched: Watched) -> None:
    watched.executor.begin(ONE)
    watched.look_after(0.0)
    # Others that took as long together.
    for _ in range(20):
        watched.executor.begin(ONE)
        watched.look_after(REPORT_S / 2)
    assert watched.reports == []
    assert not watched.watchdog.stalled


def test_an_idle_executor_is_never_stalled(watched: Watched) -> None:
    for _ in range(3):
        watched.look_after(STALLED_S)
        assert not watched.watchdog.stalled
    assert watched.reports == []
