"""Pid slots, by the set that is made of them, against Python's `set`."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rabble import Pid
from rabble._core.debug import CAPACITIES
from rabble._core.pid_slots import PidSet
from tests.core.starvation import Starvation
from tests.support import BARE

SLOTS_MIN = CAPACITIES["SLOTS_MIN"]
SLOTS_MAPPED = CAPACITIES["SLOTS_MAPPED"]


def numbered(number: int) -> Pid:
    return Pid(f"p{number}", BARE)


def counts(pids: list[Pid]) -> list[int]:
    """How often each is referred to."""
    return [sys.getrefcount(pids[number]) for number in range(len(pids))]


class SetMachine(RuleBasedStateMachine):
    """Stretches of pids come and go, each an equal one and not the same."""

    def __init__(self) -> None:
        super().__init__()
        self.set = PidSet()
        self.model: set[Pid] = set()

    @rule(first=st.integers(0, 300), count=st.sampled_from([1, 2, 7, 40, 250]))
    def add(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.set.add(numbered(number))
            self.model.add(numbered(number))

    @rule(first=st.integers(0, 300), count=st.sampled_from([1, 2, 7, 40, 250]))
    def discard(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            known = numbered(number) in self.model
            self.model.discard(numbered(number))
            assert self.set.discard(numbered(number)) == known

    @rule(numbers=st.lists(st.integers(0, 550), max_size=30))
    def find(self, numbers: list[int]) -> None:
        for number in numbers:
            assert (numbered(number) in self.set) == (numbered(number) in self.model)

    @invariant()
    def same_pids(self) -> None:
        assert len(self.set) == len(self.model)
        pids = self.set.pids()
        assert len(pids) == len(self.model) and set(pids) == self.model

    @invariant()
    def of_a_fitting_size(self) -> None:
        current, former = self.set.slots_held
        assert 3 * len(self.set) <= 2 * current
        # It is twice or half as large as what it takes the place of.
        assert former in (0, 2 * current, current // 2)


TestSet = SetMachine.TestCase
TestSet.settings = settings(max_examples=60, stateful_step_count=40)


def test_it_grows_without_a_copy_of_all_and_shrinks_again() -> None:
    pids = [numbered(number) for number in range(2 * SLOTS_MAPPED)]
    pid_set = PidSet()
    was_between = 0
    for pid in pids:
        pid_set.add(pid)
        current, former = pid_set.slots_held
        was_between += former != 0
    assert current == 4 * SLOTS_MAPPED
    # Each growth but the first ones takes a stretch of additions.
    assert was_between > SLOTS_MAPPED // CAPACITIES["SLOTS_MOVED"]
    for pid in pids[SLOTS_MIN:]:
        assert pid_set.discard(pid)
    assert pid_set.slots_held[0] <= 32 * SLOTS_MIN
    assert [pid in pid_set for pid in pids] == [n < SLOTS_MIN for n in range(len(pids))]
    for pid in pids[:SLOTS_MIN]:
        assert pid_set.discard(pid)
    assert len(pid_set) == 0 and sum(pid_set.slots_held) <= SLOTS_MIN


def test_an_item_is_found_and_removed_wherever_it_stands_while_items_move() -> None:
    for size in range(1, 400):
        pids = [numbered(number) for number in range(size)]
        pid_set = PidSet()
        for pid in pids:
            pid_set.add(pid)
        if pid_set.slots_held[1] == 0:
            continue
        assert all(pid in pid_set for pid in pids)
        # From the middle, so that some are in either array, and nothing behind them is lost.
        for pid in pids[::3]:
            assert pid_set.discard(pid) and pid not in pid_set
        assert sorted(pid_set.pids()) == sorted(set(pids) - set(pids[::3]))


def test_a_growth_that_finds_no_memory_leaves_it_whole(
    starvation: Starvation,
) -> None:
    starve, feed = starvation
    pids = [numbered(number) for number in range(min(2_000, SLOTS_MAPPED // 4))]
    pid_set = PidSet()
    failures = 0
    for n, pid in enumerate(pids):
        failed = False
        starve(0, 0)
        try:
            pid_set.add(pid)
        except MemoryError:
            failed = True
        finally:
            feed()
        if failed:
            failures += 1
            assert pid not in pid_set and len(pid_set) == n
            assert all(known in pid_set for known in pids[:n])
            pid_set.add(pid)
        assert pid in pid_set
    # At the first one, and at each growth.
    assert failures == (pid_set.slots_held[0] // SLOTS_MIN).bit_length()
    for pid in pids:
        starve(0, 0)
        try:
            was_there = pid_set.discard(pid)
        finally:
            feed()
        assert was_there
    assert len(pid_set) == 0 and pid_set.pids() == []


def test_it_owns_its_pids_and_lets_them_go() -> None:
    pids = [numbered(number) for number in range(100)]
    before = counts(pids)
    pid_set = PidSet()
    for _ in range(2):
        for number in range(100):
            pid_set.add(pids[number])
    assert counts(pids) == [count + 1 for count in before]
    for number in range(50):
        pid_set.discard(pids[number])
    assert counts(pids)[:50] == before[:50]
    del pid_set
    assert counts(pids) == before


def test_what_is_no_pid_is_refused() -> None:
    pid_set = PidSet()
    for wrong in (None, "p1", 1):
        with pytest.raises(TypeError):
            pid_set.add(wrong)  # type: ignore[arg-type]
    assert len(pid_set) == 0
