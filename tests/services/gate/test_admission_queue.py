"""A fair queue in front of a gate."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rabble.services.gate import (
    NEVER,
    AdmissionQueue,
    Admitted,
    CanaryGate,
    CanaryPolicy,
    FairQueue,
    GradientGate,
    GradientPolicy,
    NoGate,
    Refused,
)

MS = 1_000_000


def half(least: float, most: float) -> float:
    return (least + most) / 2


def limited(limit: int) -> GradientGate:
    policy = GradientPolicy(limit_min=limit, limit_first=limit, limit_max=limit)
    return GradientGate(policy, half)


def said(queue: AdmissionQueue, now: int) -> list[str]:
    """What is decided: `+` for who is let in, `-` for who is refused."""
    return [
        f"{'+' if isinstance(each, Admitted) else '-'}{each.connection}{each.request}"
        for each in queue.decide(now)
    ]


def test_who_comes_while_there_is_room_is_let_in() -> None:
    gate = NoGate()
    queue = AdmissionQueue(gate)
    queue.arrive(0, "a", 0)
    queue.arrive(0, "b", 0)
    assert queue.next_tick(0) == 0
    assert said(queue, 0) == ["+a0", "+b0"]
    assert (gate.in_flight, len(queue), queue.next_tick(0)) == (2, 0, NEVER)


def test_room_goes_to_connections_in_turn() -> None:
    gate = limited(2)
    queue = AdmissionQueue(gate)
    for n in range(5):
        queue.arrive(0, "a", n)
    queue.arrive(1, "b", 0)
    queue.arrive(2, "c", 0)
    assert said(queue, 2) == ["+a0", "+a1"]
    order = []
    for n in range(5):
        gate.ended(n + 3, 0)
        order += said(queue, n + 3)
    assert order == ["+a2", "+b0", "+c0", "+a3", "+a4"]


def test_so_many_are_in_flight_at_most_whatever_the_gate_says() -> None:
    gate = NoGate()
    queue = AdmissionQueue(gate, in_flight_max=2)
    for n in range(3):
        queue.arrive(0, "a", n)
    assert said(queue, 0) == ["+a0", "+a1"]
    # Even of those that wait for nobody.
    queue.arrive(0, "b", 0, 1)
    gate.ended(1, 0)
    assert said(queue, 1) == ["+a2"]
    gate.ended(2, 0)
    assert said(queue, 2) == ["+b0"]


def test_who_waits_for_too_long_is_refused() -> None:
    gate = limited(1)
    queue = AdmissionQueue(gate)
    queue.arrive(0, "a", 0)
    queue.arrive(MS, "a", 1)
    queue.arrive(5 * MS, "b", 0)
    assert said(queue, 5 * MS) == ["+a0"]
    assert queue.next_tick(5 * MS) == 21 * MS
    assert said(queue, 20 * MS) == []
    (refused,) = queue.decide(21 * MS)
    assert refused == Refused("a", 1, 10)
    assert queue.next_tick(21 * MS) == 25 * MS
    gate.ended(22 * MS, 0)
    assert said(queue, 22 * MS) == ["+b0"]
    assert queue.next_tick(22 * MS) == NEVER
    assert gate.status().refused == {-1: 0, 0: 1, 1: 0}


def test_priority_one_waits_for_nobody_and_minus_one_does_not_wait() -> None:
    gate = limited(2)
    queue = AdmissionQueue(gate)
    for n in range(4):
        queue.arrive(0, "a", n)
    queue.arrive(0, "b", "check", 1)
    queue.arrive(0, "c", "retry", -1)
    assert said(queue, 0) == ["+a0", "+a1", "+bcheck", "-cretry"]
    assert len(queue) == 2


def test_when_too_many_wait_the_one_with_most_makes_room() -> None:
    gate = limited(1)
    queue = AdmissionQueue(gate, requests_max=4, per_connection_max=3)
    for n in range(5):
        queue.arrive(0, "a", n)
    assert said(queue, 0) == ["+a0", "-a4"]
    queue.arrive(1, "b", 0)
    queue.arrive(1, "c", 0)
    assert said(queue, 1) == ["-a3"]
    gate.ended(2, 0)
    assert said(queue, 2) == ["+a1"]


def test_what_a_connection_leaves_behind_is_not_decided() -> None:
    gate = limited(1)
    queue = AdmissionQueue(gate)
    for n in range(3):
        queue.arrive(0, "a", n)
    queue.arrive(0, "b", 0)
    assert queue.gone("a") == [1, 2]
    assert queue.gone("a") == []
    assert said(queue, 0) == ["+a0"]
    assert queue.next_tick(0) == 20 * MS
    gate.ended(1, 0, False)
    assert said(queue, 1) == ["+b0"]
    assert said(queue, 30 * MS) == []


def test_turns_may_count_bytes() -> None:
    gate = limited(1)
    queue = AdmissionQueue(gate, visit_cost=100)
    queue.arrive(0, "a", 0)
    for n in range(2):
        queue.arrive(0, "long", n, cost=100)
        queue.arrive(0, "short", n, cost=50)
    order = said(queue, 0)
    for n in range(4):
        gate.ended(n, 0)
        order += said(queue, n)
    assert order == ["+a0", "+long0", "+short0", "+short1", "+long1"]
    with pytest.raises(ValueError, match="cost must be 1 to 100"):
        queue.arrive(0, "a", 0, cost=101)


@pytest.mark.parametrize("name", ["in_flight_max", "wait_ms_max", "requests_max"])
def test_bounds_are_ints_from_one_on(name: str) -> None:
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be an int, 1 or more, not 0"):
        AdmissionQueue(NoGate(), **wrong)


@pytest.mark.parametrize("strategy", ["canary", "gradient"])
def test_one_that_pipelines_ten_thousand_does_not_delay_one_that_sends_one(strategy: str) -> None:
    """An executor that takes 1 ms for each, and a greedy client that sends all that it may."""
    uniform = random.Random(1).uniform
    gate = (
        CanaryGate(CanaryPolicy(), uniform)
        if strategy == "canary"
        else GradientGate(GradientPolicy(), uniform)
    )
    queue = AdmissionQueue(gate, in_flight_max=32)
    executor: list[tuple[Any, int]] = []
    waits: list[int] = []
    refused: Counter[str] = Counter()
    again: list[int] = [0] * 10_000
    for now in range(0, 3_000 * MS, MS):
        if executor:
            (name, came), begun = executor.pop(0)
            gate.ended(now, begun)
            if name == "modest":
                waits.append(now - came)
            else:
                heapq.heappush(again, now)
        while again and again[0] <= now:
            heapq.heappop(again)
            queue.arrive(now, "greedy", ("greedy", now))
        if now % (100 * MS) == 0:
            queue.arrive(now, "modest", ("modest", now))
        for each in queue.decide(now):
            if isinstance(each, Admitted):
                executor.append((each.request, now))
            else:
                refused[each.request[0]] += 1
                if each.request[0] == "greedy":
                    heapq.heappush(again, now + each.retry_after_ms * MS)
        if gate.next_tick(now) <= now:
            gate.tick(now)
    assert refused["greedy"] > 1_000
    assert refused["modest"] == 0
    assert len(waits) >= 29
    # Those in flight stand before it, and one more.
    assert max(waits) <= 34 * MS


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "end", "gone", "wait"]),
            st.integers(0, 3),
            st.integers(-1, 1),
        ),
        max_size=150,
    ),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_each_request_is_decided_once(
    events: list[tuple[str, int, int]], limit: int, requests_max: int, per_connection_max: int
) -> None:
    gate = limited(limit)
    queue = AdmissionQueue(
        gate, requests_max=requests_max, per_connection_max=per_connection_max, wait_ms_max=5
    )
    now = number = 0
    open_: dict[int, tuple[int, int]] = {}
    in_flight = 0
    for what, connection, priority in events:
        if what == "come":
            number += 1
            queue.arrive(now, connection, number, priority)
            open_[number] = (connection, now)
        elif what == "end" and in_flight:
            in_flight -= 1
            gate.ended(now, now)
        elif what == "gone":
            for request in queue.gone(connection):
                assert open_.pop(request)[0] == connection
        elif what == "wait":
            now += 2 * MS
        for each in queue.decide(now):
            owner, came = open_.pop(each.request)
            assert owner == each.connection
            assert now - came <= 6 * MS
            in_flight += isinstance(each, Admitted)
        assert len(queue) == len(open_) <= requests_max
        assert gate.in_flight == in_flight <= limit + 16
        due = queue.next_tick(now)
        assert (due == NEVER) == (not open_)
        assert due > now


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["open", "late", "wait"])
@pytest.mark.parametrize(
    "broken", ["take", "_pop_oldest", "_count", "_leave", "put", "take_oldest", "peek"]
)
def test_whatever_fails_within_it_holds_all_that_was_not_decided(
    broken: str, call: str, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, say: each method of the queue within raises once, before or after its work."""

    class Full(NoGate):
        is_full = True

        def has_room(self, now_ns: int, priority: int = 0) -> bool:
            return not self.is_full

    gate = Full()
    queue = AdmissionQueue(gate, requests_max=3)
    for number in range(3):
        queue.wait(0, f"c{number % 2}", number)
    wanted: set[object] = {0, 1, 2}
    newest = object()
    method = getattr(FairQueue, broken)

    def failing(*arguments: object) -> None:
        if is_done:
            method(*arguments)
        raise MemoryError

    gate.is_full = call != "open"
    with monkeypatch.context() as patched:
        patched.setattr(FairQueue, broken, failing)
        try:
            if call == "wait":
                queue.wait(1, "c9", newest)
            else:
                queue.decide(1 if call == "open" else 60_000_000_000)
        except MemoryError:
            pass
        else:
            return
    if call == "wait" and queue.holds(newest):
        wanted.add(newest)
    assert Counter(each.request for each in queue.drop_all()) == Counter(wanted)
    assert len(queue) == 0 and not queue.drop_all()
