"""A gate that goes by canaries: when it closes, what it lets in then, when it opens."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rabble.services.gate import NEVER, CanaryGate, CanaryPolicy, GateChanged

MS = 1_000_000
S = 1_000_000_000


class Driver:
    """A server that does what a gate wants, and an executor whose queue takes so long as is said.

    :param nodes: the other nodes through which canaries go.
    """

    def __init__(self, policy: CanaryPolicy | None = None, nodes: tuple[str, ...] = ()) -> None:
        uniform = random.Random(1).uniform
        self.gate = CanaryGate(policy or CanaryPolicy(), uniform, nodes)
        self.now = 0
        self.queue_ns = 0
        self.remote_ns = dict.fromkeys(nodes, MS)
        self.changes: list[tuple[int, GateChanged]] = []
        self.out: deque[tuple[int, int]] = deque()
        self.requests: deque[tuple[int, int]] = deque()
        self.canaries = 0
        self.admitted = 0
        self.refused = 0

    def look(self) -> None:
        """What a server does after whatever happened."""
        gate = self.gate
        if gate.next_tick(self.now) <= self.now:
            change = gate.tick(self.now)
            if change is not None:
                self.changes.append((self.now, change))
        for node, latency in {"": self.queue_ns, **self.remote_ns}.items():
            if gate.canary_due(self.now, node):
                self.canaries += 1
                gate.canary_sent(self.now, self.canaries, node)
                self.out.append((self.now + latency, self.canaries))
        assert gate.next_tick(self.now) > self.now

    def run(self, ms: int, *, per_ms: int = 1, priority: int = 0) -> None:
        """So many milliseconds, in each of which so many requests come."""
        for _ in range(ms):
            self.now += MS
            for back, number in sorted(self.out):
                if back <= self.now:
                    self.out.remove((back, number))
                    self.gate.canary_back(self.now, number)
            while self.requests and self.requests[0][0] <= self.now:
                self.gate.ended(self.now, self.requests.popleft()[1])
            for _ in range(per_ms):
                if self.gate.admit(self.now, priority):
                    self.refused += 1
                else:
                    self.admitted += 1
                    self.gate.began(self.now)
                    self.requests.append((self.now + self.queue_ns, self.now))
            self.look()

    @property
    def reasons(self) -> list[tuple[bool, str]]:
        return [(change.is_open, change.reason) for _, change in self.changes]


def test_without_requests_nothing_is_due() -> None:
    driver = Driver()
    assert driver.gate.next_tick(0) == NEVER
    driver.run(50)
    assert driver.canaries > 0
    for _ in range(30):
        driver.run(10, per_ms=0)
    sent = driver.canaries
    assert driver.gate.next_tick(driver.now) == NEVER
    driver.run(1_000, per_ms=0)
    assert driver.canaries == sent
    # The next request is followed by the next canary at once.
    driver.run(1)
    assert driver.canaries == sent + 1


def test_a_canary_is_due_each_interval_while_requests_come() -> None:
    driver = Driver()
    driver.run(1_000)
    assert 99 <= driver.canaries <= 101
    assert driver.gate.is_open and driver.changes == []


def test_it_closes_when_a_window_is_slow_and_opens_when_the_queue_has_drained() -> None:
    driver = Driver()
    driver.run(500)
    driver.queue_ns = 80 * MS
    driver.run(300)
    ((closed_at, change),) = driver.changes
    # The first slow one is seen after 50 ms, and the window takes 100 ms.
    assert 640 * MS <= closed_at <= 670 * MS
    assert change == GateChanged(False, "canaries", change.latency_us, change.in_flight)
    assert change.latency_us >= 50_000
    assert change.in_flight > 0
    status = driver.gate.status()
    assert (status.is_open, status.reason, status.closings) == (False, "canaries", 1)
    assert 0 < status.rate_per_s < 1_000
    assert status.latency_usual_us == 10_000
    driver.queue_ns = MS
    driver.run(3_000)
    assert driver.reasons == [(False, "canaries"), (True, "canaries")]
    assert driver.gate.status().rate_per_s == float("inf")
    assert driver.gate.admit(driver.now) == 0


def test_between_the_thresholds_nothing_changes() -> None:
    driver = Driver()
    driver.queue_ns = 45 * MS
    driver.run(2_000)
    assert driver.changes == []
    driver.queue_ns = 80 * MS
    driver.run(400)
    driver.queue_ns = 20 * MS
    driver.run(3_000)
    assert driver.reasons == [(False, "canaries")]


def test_while_it_is_closed_it_does_not_starve() -> None:
    driver = Driver()
    driver.run(500)
    driver.queue_ns = 60 * MS
    driver.run(500)
    assert not driver.gate.is_open
    before = driver.admitted
    driver.run(1_000)
    # What ends is measured, and about as much is let in; a queue of 60 ms is to get shorter.
    assert 300 < driver.admitted - before < 1_000


def test_where_nothing_ends_hardly_anything_is_let_in() -> None:
    driver = Driver()
    driver.run(500)
    driver.queue_ns = 60 * S
    driver.run(5_000)
    before = driver.admitted
    driver.run(1_000)
    assert driver.admitted - before <= 10
    # And when it goes on, it does not take long.
    driver.out = deque((driver.now, number) for _, number in driver.out)
    driver.requests = deque((driver.now, begun) for _, begun in driver.requests)
    driver.queue_ns = MS
    driver.run(2_000)
    assert driver.gate.is_open


def test_a_stalled_executor_is_noticed_though_nothing_comes_back() -> None:
    driver = Driver()
    driver.run(100)
    driver.queue_ns = 10**15
    driver.run(200)
    assert driver.reasons == [(False, "canaries")]


@pytest.mark.parametrize("stopped_s", [1, 5, 60])
def test_a_stopped_process_is_one_sample_and_no_verdict(stopped_s: int) -> None:
    """Row 97: nobody ran, and what was under way came back late."""
    driver = Driver()
    driver.queue_ns = 5 * MS
    driver.run(500)
    for _ in range(5):
        # A canary is under way whenever the signal comes.
        driver.gate.canary_sent(driver.now, 10**6 + driver.now)
        driver.out.append((driver.now, 10**6 + driver.now))
        driver.now += stopped_s * S
        driver.look()
        driver.run(500)
    assert driver.changes == []
    assert driver.gate.status().pauses == 5
    assert driver.gate.is_open


def test_priorities() -> None:
    driver = Driver()
    driver.run(300)
    # Retries are refused as soon as something stands in the queue.
    driver.queue_ns = 20 * MS
    driver.run(300)
    gate = driver.gate
    assert gate.is_open
    assert [gate.admit(driver.now, priority) > 0 for priority in (-1, 0, 1)] == [True, False, False]
    # Health checks are let in while it is closed, up to a harder bound.
    driver.queue_ns = 70 * MS
    driver.run(500)
    assert not gate.is_open
    while not gate.admit(driver.now, 0):
        gate.began(driver.now)
    assert gate.admit(driver.now, -1) > 0
    checks = 0
    while not gate.admit(driver.now, 1):
        gate.began(driver.now)
        checks += 1
    assert 16 <= checks <= 300
    status = gate.status()
    assert status.refused[1] == 1 and status.refused[-1] == 2
    # A priority that nobody knows is the nearest that there is.
    assert gate.admit(driver.now, 7) > 0
    assert gate.status().refused[1] == 2


def test_canaries_through_another_node_have_their_own_thresholds() -> None:
    driver = Driver(nodes=("b@host:1", "c@host:1"))
    driver.remote_ns["b@host:1"] = 200 * MS
    driver.run(2_000)
    assert driver.changes == []
    driver.remote_ns["b@host:1"] = 700 * MS
    driver.run(2_000)
    assert driver.reasons == [(False, "canaries through b@host:1")]
    assert driver.gate.status().latency_us >= 500_000
    driver.remote_ns["b@host:1"] = 10 * MS
    driver.run(8_000)
    assert driver.reasons[1:] == [(True, "canaries through b@host:1")]


def test_a_node_that_is_down_says_nothing_of_overload() -> None:
    driver = Driver(nodes=("b@host:1",))
    driver.run(200)
    driver.remote_ns["b@host:1"] = 10**15
    driver.run(400)
    driver.gate.canary_lost(driver.now, "b@host:1")
    driver.run(400)
    driver.gate.canary_lost(driver.now, "b@host:1")
    driver.run(400)
    assert driver.changes == []
    assert driver.gate.status().canaries_lost > 10


def test_canaries_that_nobody_waits_for_are_passed_over() -> None:
    driver = Driver()
    driver.gate.canary_back(0, 12)
    assert driver.gate.status().canaries_back == 0
    with pytest.raises(KeyError):
        driver.gate.canary_sent(0, 1, "nobody@host:1")


def test_who_is_refused_comes_after_the_queue_has_drained() -> None:
    driver = Driver()
    driver.run(500)
    driver.queue_ns = 700 * MS
    driver.run(1_500)
    while not driver.gate.admit(driver.now):
        driver.gate.began(driver.now)
    waits = [driver.gate.admit(driver.now) for _ in range(200)]
    assert min(waits) >= 300
    assert len(set(waits)) > 50


def test_a_closing_is_not_told_twice() -> None:
    driver = Driver()
    driver.queue_ns = 70 * MS
    driver.run(1_000)
    driver.gate.pressure(driver.now, "a", 1.0)
    driver.look()
    driver.gate.pressure(driver.now, "a", 0.0)
    driver.run(100)
    assert driver.reasons == [(False, "canaries")]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(1, 300), st.integers(0, 3)), max_size=12),
    st.integers(50, 200),
    st.integers(50, 400),
)
def test_it_does_not_flap_faster_than_its_windows(
    loads: list[tuple[int, int, int]], window_ms: int, open_after_ms: int
) -> None:
    driver = Driver(CanaryPolicy(window_ms=window_ms, open_after_ms=open_after_ms))
    for queue_ms, for_ms, per_ms in loads:
        driver.queue_ns = queue_ms * MS
        driver.run(for_ms, per_ms=per_ms)
    states = [change.is_open for _, change in driver.changes]
    assert states == [n % 2 == 1 for n in range(len(states))]
    times: list[Any] = [at for at, _ in driver.changes]
    for n, (earlier, later) in enumerate(zip(times, times[1:], strict=False)):
        # It was closed at least until the while was over, and open for at least a window.
        assert later - earlier >= (window_ms if n % 2 else open_after_ms) * MS


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200), st.integers(0, 4)), max_size=12)
)
def test_admit_says_what_has_room_says(loads: list[tuple[int, int, int]]) -> None:
    driver = Driver()
    gate = driver.gate
    for queue_ms, for_ms, per_ms in loads:
        driver.queue_ns = queue_ms * MS
        driver.run(for_ms, per_ms=per_ms)
        rooms = [gate.has_room(driver.now, priority) for priority in (-1, 0, 1)]
        assert rooms == sorted(rooms)
        assert rooms == [gate.has_room(driver.now, priority) for priority in (-1, 0, 1)]
        assert rooms == [gate.admit(driver.now, priority) == 0 for priority in (-1, 0, 1)]
        if gate.is_open:
            assert rooms[1:] == [True, True]
    status = gate.status()
    assert status.in_flight == len(driver.requests)
    assert status.admitted == driver.admitted
