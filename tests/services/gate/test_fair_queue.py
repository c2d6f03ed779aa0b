"""Whose turn it is: by hand, and next to a slow model."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rabble.services.gate import FairQueue


def emptied(queue: FairQueue[Any]) -> list[tuple[Any, Any]]:
    taken = []
    while (each := queue.take()) is not None:
        taken.append(each)
    return taken


def test_one_that_pipelines_ten_thousand_delays_one_that_sends_one_by_one() -> None:
    queue: FairQueue[int] = FairQueue(20_000, 10_000)
    for n in range(10_000):
        assert queue.put("greedy", n) is None
    assert queue.put("modest", 0) is None
    assert [queue.take() for _ in range(3)] == [("greedy", 0), ("modest", 0), ("greedy", 1)]
    assert len(queue) == 9_998


def test_connections_take_turns_and_each_keeps_its_order() -> None:
    queue: FairQueue[int] = FairQueue(100, 100)
    for connection, count in (("a", 4), ("b", 1), ("c", 3)):
        for n in range(count):
            queue.put(connection, n)
    assert "".join(f"{name}{n}" for name, n in emptied(queue)) == "a0b0c0a1c1a2c2a3"


def test_turns_count_what_requests_cost() -> None:
    queue: FairQueue[int] = FairQueue(100, 100, visit_cost=100)
    for n in range(4):
        queue.put("long", n, 100)
        queue.put("short", n, 50)
    order = "".join(name[0] for name, _ in emptied(queue))
    # Two short ones cost as much as a long one.
    assert order == "lsslssll"


def test_what_is_not_spent_is_kept_while_something_waits_and_not_for_longer() -> None:
    queue: FairQueue[int] = FairQueue(100, 100, visit_cost=10)
    for n in range(3):
        queue.put("a", n, 6)
        queue.put("b", n, 10)
    # 10 - 6 leaves 4; with the next visit that is 14, which is two of 6.
    assert "".join(name for name, _ in emptied(queue)) == "abaabb"
    for n in range(2):
        queue.put("a", n, 6)
    queue.put("b", 0, 10)
    assert "".join(name for name, _ in emptied(queue)) == "aba"


def test_to_peek_is_to_see_what_take_gives_and_changes_nothing() -> None:
    queue: FairQueue[int] = FairQueue(100, 100, visit_cost=10)
    for n in range(3):
        queue.put("a", n, 6)
        queue.put("b", n, 10)
    seen = []
    while (next_up := queue.peek()) is not None:
        assert queue.peek() == next_up
        assert queue.take() == next_up
        seen.append(next_up[0])
    assert "".join(seen) == "abaabb"


def test_one_connection_has_its_bound() -> None:
    queue: FairQueue[int] = FairQueue(10, 2)
    assert [queue.put("a", n) for n in range(3)] == [None, None, ("a", 2)]
    assert queue.put("b", 0) is None
    assert (len(queue), queue.waiting("a"), queue.waiting("c")) == (3, 2, 0)


def test_when_it_is_full_the_newest_of_who_has_most_makes_room() -> None:
    queue: FairQueue[int] = FairQueue(4, 4)
    for n in range(4):
        queue.put("greedy", n)
    assert queue.fraction() == 1.0
    assert queue.put("greedy", 4) == ("greedy", 4)
    assert queue.put("modest", 0) == ("greedy", 3)
    assert queue.put("modest", 1) == ("greedy", 2)
    # Now both have two: whoever comes has no place that is not another's.
    assert queue.put("modest", 2) == ("modest", 2)
    assert queue.put("third", 0) in (("greedy", 1), ("modest", 1))
    assert len(queue) == 4


def test_a_connection_that_goes_takes_its_requests_with_it() -> None:
    queue: FairQueue[int] = FairQueue(100, 100)
    for n in range(3):
        for connection in "abc":
            queue.put(connection, n)
    assert queue.take() == ("a", 0)
    # In the middle of its visit, and of all others.
    assert queue.drop("a") == [1, 2]
    assert queue.drop("a") == queue.drop("nobody") == []
    assert "".join(f"{name}{n}" for name, n in emptied(queue)) == "b0c0b1c1b2c2"
    assert len(queue) == 0 and queue.take() is None and queue.peek() is None


def test_one_may_be_taken_out_of_turn() -> None:
    queue: FairQueue[int] = FairQueue(100, 100)
    for n in range(2):
        queue.put("a", n)
        queue.put("b", n)
    assert queue.take_oldest("b") == 0
    assert queue.take_oldest("nobody") is None
    assert "".join(f"{name}{n}" for name, n in emptied(queue)) == "a0b1a1"


@pytest.mark.parametrize("name", ["requests_max", "per_connection_max", "visit_cost"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8"])
def test_bounds_are_ints_from_one_on(name: str, value: Any) -> None:
    bounds = {"requests_max": 1, "per_connection_max": 1, "visit_cost": 1} | {name: value}
    with pytest.raises(ValueError, match=rf"FairQueue: {name} must be an int, 1 or more, not"):
        FairQueue(**bounds)


@pytest.mark.parametrize("cost", [0, -1, 11])
def test_a_request_costs_no_more_than_a_visit_gives(cost: int) -> None:
    queue: FairQueue[int] = FairQueue(10, 10, visit_cost=10)
    with pytest.raises(ValueError, match=f"cost must be 1 to 10, which is visit_cost, not {cost}"):
        queue.put("a", 0, cost)
    assert len(queue) == 0 and queue.take() is None


class SlowQueue:
    """As the paper has it, by lists and without any cleverness."""

    def __init__(self, requests_max: int, per_connection_max: int, visit_cost: int) -> None:
        self.bounds = (requests_max, per_connection_max, visit_cost)
        #: Connection, deficit, requests; the first one is being visited.
        self.ring: list[list[Any]] = []

    def size(self) -> int:
        return sum(len(requests) for _, _, requests in self.ring)

    def put(self, connection: int, request: int, cost: int) -> str | int:
        requests_max, per_connection_max, visit_cost = self.bounds
        mine = next((each for each in self.ring if each[0] == connection), None)
        count = len(mine[2]) if mine else 0
        if count >= per_connection_max:
            return "refused"
        outcome: str | int = "queued"
        if self.size() >= requests_max:
            longest = max(len(each[2]) for each in self.ring)
            if longest <= count + 1:
                return "refused"
            outcome = longest
        if mine is None:
            mine = [connection, 0 if self.ring else visit_cost, []]
            self.ring.append(mine)
        mine[2].append((request, cost))
        return outcome

    def evict(self, connection: int) -> int:
        mine = next(each for each in self.ring if each[0] == connection)
        return mine[2].pop()[0]

    def take(self) -> tuple[int, int] | None:
        while self.ring:
            mine = self.ring[0]
            if mine[2] and mine[2][0][1] <= mine[1]:
                request, cost = mine[2].pop(0)
                mine[1] -= cost
                if not mine[2]:
                    self.remove(mine[0])
                return mine[0], request
            self.ring.append(self.ring.pop(0))
            self.ring[0][1] += self.bounds[2]
        return None

    def remove(self, connection: int) -> list[int]:
        place = next((n for n, each in enumerate(self.ring) if each[0] == connection), None)
        if place is None:
            return []
        gone = self.ring.pop(place)
        if place == 0 and self.ring:
            self.ring[0][1] += self.bounds[2]
        return [request for request, _ in gone[2]]

    def take_oldest(self, connection: int) -> int | None:
        mine = next((each for each in self.ring if each[0] == connection), None)
        if mine is None:
            return None
        request = mine[2].pop(0)[0]
        if not mine[2]:
            self.remove(connection)
        return request


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(1, 8)),
        st.tuples(st.sampled_from(["take", "take", "peek"]), st.just(0), st.just(0)),
        st.tuples(st.sampled_from(["drop", "take_oldest"]), st.integers(0, 5), st.just(0)),
    ),
    max_size=120,
)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 4), OPERATIONS)
def test_it_does_as_a_slow_model_does(
    requests_max: int,
    per_connection_max: int,
    more_cost: int,
    operations: list[tuple[str, int, int]],
) -> None:
    visit_cost = 8 + more_cost
    queue: FairQueue[int] = FairQueue(requests_max, per_connection_max, visit_cost)
    model = SlowQueue(requests_max, per_connection_max, visit_cost)
    for number, (what, connection, cost) in enumerate(operations):
        if what == "put":
            before = {each: queue.waiting(each) for each in range(6)}
            victim = queue.put(connection, number, cost)
            expected = model.put(connection, number, cost)
            if expected == "refused":
                assert victim == (connection, number)
            elif expected == "queued":
                assert victim is None
            else:
                # Any of those that have most: the model drops the same one.
                assert victim is not None and isinstance(victim[0], int)
                assert before[victim[0]] == expected
                assert victim[1] == model.evict(victim[0])
        elif what == "take":
            assert queue.take() == model.take()
        elif what == "peek":
            peeked = queue.peek()
            assert queue.take() == peeked == model.take()
        elif what == "drop":
            assert queue.drop(connection) == model.remove(connection)
        else:
            assert queue.take_oldest(connection) == model.take_oldest(connection)
        assert len(queue) == model.size() <= requests_max
    assert emptied(queue) == [*iter(model.take, None)]


def steps_of(queue: FairQueue[int], connection: int) -> int:
    """Lines that are run for one request more and one less, and for a connection that goes."""
    lines = 0

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    tracer = sys.gettrace()
    sys.settrace(count)
    try:
        queue.put(connection, 0)
        queue.take()
        queue.take_oldest(connection)
        queue.put(-1, 0)
        queue.drop(-1)
    finally:
        sys.settrace(tracer)
    return lines


def test_each_operation_takes_as_many_steps_however_many_wait() -> None:
    steps = []
    for connections, each in ((4, 3), (400, 30)):
        queue: FairQueue[int] = FairQueue(20_000, 1_000)
        for n in range(each):
            for connection in range(connections):
                queue.put(connection, n)
        steps.append(steps_of(queue, 2))
    assert steps[0] == steps[1]
