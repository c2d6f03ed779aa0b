"""A gate that limits the requests in flight by their latency."""

from __future__ import annotations

import heapq
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rabble.services.gate import NEVER, GateChanged, GradientGate, GradientPolicy

MS = 1_000_000
S = 1_000_000_000


def gate_of(**numbers: int) -> GradientGate:
    return GradientGate(GradientPolicy(**numbers), random.Random(1).uniform)


class Work:
    """What is in flight behind a gate, each with the latency that it will have."""

    def __init__(self, gate: GradientGate) -> None:
        self.gate = gate
        self.now = 0
        self.in_flight: list[tuple[int, int, bool]] = []
        self.refused = 0

    def run(self, ms: int, latency_ms: float, per_ms: int, ok: bool = True) -> None:
        """So many milliseconds, in each of which so many requests come."""
        for _ in range(ms):
            self.now += MS
            while self.in_flight and self.in_flight[0][0] <= self.now:
                _, begun, was_ok = heapq.heappop(self.in_flight)
                self.gate.ended(self.now, begun, was_ok)
            for _ in range(per_ms):
                if self.gate.admit(self.now):
                    self.refused += 1
                else:
                    self.gate.began(self.now)
                    end = self.now + int(latency_ms * MS)
                    heapq.heappush(self.in_flight, (end, self.now, ok))


def test_no_more_than_the_limit_are_in_flight() -> None:
    gate = gate_of()
    for _ in range(8):
        assert gate.admit(0) == 0
        gate.began(0)
    assert not gate.has_room(0)
    assert 10 <= gate.admit(0) <= 2_000
    # Retries are refused earlier, and health checks are let in for longer.
    gate.ended(MS, 0)
    assert [gate.has_room(MS, priority) for priority in (-1, 0, 1)] == [False, True, True]
    gate.ended(MS, 0)
    assert gate.has_room(MS, -1)
    checks = 0
    while gate.admit(MS, 1) == 0:
        gate.began(MS)
        checks += 1
    assert gate.in_flight == 8 + 16
    assert gate.status().refused == {-1: 0, 0: 1, 1: 1}


def test_the_limit_doubles_until_latency_rises() -> None:
    gate = gate_of()
    work = Work(gate)
    work.run(1_000, 60, 8)
    # 8 in each ms of 60 need 480 in flight; none is refused any more.
    assert gate.limit == 512
    before = work.refused
    work.run(1_000, 60, 8)
    assert work.refused == before
    work.run(1_000, 300, 8)
    limit = gate.limit
    assert limit < 512
    work.run(3_000, 300, 8)
    assert gate.limit < limit / 2


def test_when_latency_is_as_usual_again_the_limit_grows() -> None:
    gate = gate_of()
    work = Work(gate)
    work.run(1_000, 60, 4)
    work.run(2_000, 600, 4)
    limit = gate.limit
    work.run(8_000, 60, 4)
    assert gate.limit > limit + 50
    assert gate.status().latency_us == pytest.approx(60_000, rel=0.02)


def test_latency_that_harms_nobody_is_none_of_overload() -> None:
    gate = gate_of()
    work = Work(gate)
    work.run(1_000, 1, 8)
    work.run(2_000, 45, 8)
    assert gate.limit >= 360
    strict = gate_of(harmless_ms=0)
    work = Work(strict)
    work.run(1_000, 1, 8)
    work.run(2_000, 45, 8)
    assert strict.limit < 50


def test_the_limit_stays_as_it_is_while_less_than_half_of_it_is_used() -> None:
    gate = gate_of(limit_first=100)
    work = Work(gate)
    for latency in (60, 600, 60, 1_000):
        work.run(3_000, latency, 1 if latency < 100 else 0)
    assert gate.limit == 100


def test_it_stays_between_its_bounds() -> None:
    gate = gate_of(limit_min=20, limit_first=30, limit_max=40)
    work = Work(gate)
    work.run(1_000, 60, 2)
    assert gate.limit == 40
    work.run(20_000, 1_000, 2)
    assert gate.limit == 20


def test_requests_that_fail_at_once_measure_nothing_and_those_that_fail_late_do() -> None:
    gate = gate_of()
    work = Work(gate)
    work.run(1_000, 60, 4)
    usual = gate.status().latency_usual_us
    work.run(500, 1, 1, ok=False)
    assert gate.status().latency_usual_us == usual
    limit = gate.limit
    work.run(8_000, 700, 4, ok=False)
    assert gate.limit < limit / 2


def test_an_overload_from_the_beginning_is_not_taken_for_usual() -> None:
    """Each request takes 10 ms of one executor, and there are always more than it can take."""
    gate = gate_of()
    now = free = 0
    queue: list[tuple[int, int]] = []
    for _ in range(60_000):
        now += MS
        while queue and queue[0][0] <= now:
            gate.ended(now, heapq.heappop(queue)[1])
        while not gate.admit(now):
            gate.began(now)
            free = max(free, now) + 10 * MS
            heapq.heappush(queue, (free, now))
    # A minute of overload, and the executor has never been without work.
    assert free >= 60 * S
    assert 4 <= gate.limit <= 30


def test_a_stopped_process_is_one_measurement() -> None:
    gate = gate_of()
    work = Work(gate)
    work.run(2_000, 60, 4)
    limit = gate.limit
    work.now += 5 * S
    work.run(2_000, 60, 4)
    assert gate.limit >= limit * 0.85


def test_it_is_closed_from_the_first_refusal_until_a_while_after_the_last() -> None:
    gate = gate_of(limit_first=4, limit_max=4)
    assert (gate.next_tick(0), gate.tick(0)) == (NEVER, None)
    for _ in range(4):
        gate.began(0)
    assert gate.admit(MS) > 0
    assert gate.next_tick(MS) == MS
    assert gate.tick(MS) == GateChanged(False, "limit", 0.0, 4)
    assert (gate.is_open, gate.status().reason) == (False, "limit")
    for _ in range(4):
        gate.ended(60 * MS, 0)
    gate.began(90 * MS)
    assert gate.admit(90 * MS) == 0
    assert gate.next_tick(90 * MS) == 251 * MS
    assert gate.tick(250 * MS) is None
    assert gate.tick(251 * MS) == GateChanged(True, "limit", gate.status().latency_us, 1)
    # A retry that is refused does not close it.
    for _ in range(2):
        gate.began(300 * MS)
    gate.began(300 * MS)
    assert gate.admit(300 * MS, -1) > 0
    assert gate.tick(300 * MS) is None
    # Canaries are not needed.
    assert not gate.canary_due(300 * MS)
    gate.canary_sent(300 * MS, 1)
    gate.canary_back(301 * MS, 1)
    gate.canary_lost(301 * MS)
    assert gate.status().strategy == "gradient"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "end", "fail", "tick"]),
        st.integers(-1, 1),
        st.integers(0, 200),
    ),
    max_size=300,
)


@given(EVENTS, st.integers(1, 20), st.integers(0, 30), st.integers(0, 30))
def test_it_lets_in_what_the_limit_has_room_for_and_nothing_else(
    events: list[tuple[str, int, int]], least: int, more: int, most: int
) -> None:
    gate = gate_of(
        limit_min=least, limit_first=least + more, limit_max=least + more + most, harmless_ms=0
    )
    now = 0
    in_flight: list[int] = []
    closed_at: int | None = None
    for what, priority, passed in events:
        now += passed * MS
        if what == "ask":
            room = gate.has_room(now, priority)
            wait = gate.admit(now, priority)
            assert room == (wait == 0)
            limit = gate.limit
            if priority == 0:
                assert room == (len(in_flight) < limit)
            elif priority < 0:
                assert not room or len(in_flight) < limit
            else:
                assert room or len(in_flight) >= max(limit * 1.25, limit + 16) - 1
            if room:
                gate.began(now)
                in_flight.append(now)
            else:
                assert 10 <= wait <= 2_000
        elif what == "tick":
            change = gate.tick(now)
            if change is not None and change.is_open:
                assert closed_at is not None and now - closed_at >= 250 * MS
            elif change is not None:
                closed_at = now
        elif in_flight:
            gate.ended(now, in_flight.pop(0), what == "end")
        assert gate.in_flight == len(in_flight)
        assert least <= gate.limit <= least + more + most
