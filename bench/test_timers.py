"""The timing wheel against a heap, a million timers outstanding.

The heap is what one would take otherwise: `heapq` with entries of (deadline, number, item), where
a cancelled item is marked and its entry thrown away when it reaches the top. That it is thrown away
is part of what cancelling costs, so the heap's `cancel` includes popping what was cancelled. In
favour of the heap: where only starting is measured its items exist already, and no correlation id
is kept.
"""

from __future__ import annotations

import heapq
import random

import pytest

from rabble._core.timers import TimerWheel

COUNT = 1_000_000
HALF_SECOND, MINUTE, DAY, YEAR = 500, 60_000, 86_400_000, 31_622_400_000
ROUNDS = 3


@pytest.fixture(scope="module")
def delays():
    chosen = random.Random(1)
    return [chosen.randrange(chosen.choice((HALF_SECOND, MINUTE, DAY, YEAR))) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def order():
    """Cancelled in an order that has nothing to do with that of starting."""
    shuffled = list(range(COUNT))
    random.Random(2).shuffle(shuffled)
    return shuffled


class Item:
    __slots__ = ("live",)

    def __init__(self):
        self.live = True


class Heap:
    def __init__(self):
        self.entries = []
        self.number = 0

    def start(self, item, delay):
        self.number += 1
        heapq.heappush(self.entries, (delay, self.number, item))
        return item

    def cancel(self, item):
        item.live = False

    def advance(self, now):
        entries, out = self.entries, []
        while entries and entries[0][0] <= now:
            item = heapq.heappop(entries)[2]
            if item.live:
                out.append(item)
        return out


def filled(kind, delays):
    if kind == "wheel":
        wheel = TimerWheel()
        return wheel, [wheel.start("item", None, delay) for delay in delays]
    heap = Heap()
    return heap, [heap.start(Item(), delay) for delay in delays]


def run(benchmark, group, function, setup):
    """Time is that of a million; the extra information says it for one."""
    benchmark.group = f"{group}, of {COUNT:,} timers"
    benchmark.pedantic(function, setup=setup, rounds=ROUNDS)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_each"] = round(benchmark.stats.stats.median / COUNT * 1e9)


@pytest.mark.parametrize("kind", ["wheel", "heapq"])
def test_start(benchmark, kind, delays):
    items = [Item() for _ in delays]

    kept = []  # until the next round, so that freeing them is no part of starting them

    def setup():
        kept.clear()

    def start_heap():
        entries, push = [], heapq.heappush
        kept.append(entries)
        for number, delay in enumerate(delays):
            push(entries, (delay, number, items[number]))

    def start_wheel():
        wheel = TimerWheel()
        kept.append(wheel)
        start = wheel.start
        for number, delay in enumerate(delays):
            start(items[number], None, delay)

    run(benchmark, "start", start_wheel if kind == "wheel" else start_heap, setup)


@pytest.mark.parametrize("kind", ["wheel", "heapq"])
def test_cancel(benchmark, kind, delays, order):
    def setup():
        wheel, timers = filled(kind, delays)
        return (wheel, [timers[n] for n in order]), {}

    def cancel_wheel(wheel, timers):
        cancel = wheel.cancel
        for timer in timers:
            cancel(timer)

    def cancel_heap(heap, items):
        for item in items:
            item.live = False
        assert heap.advance(YEAR) == []

    run(benchmark, "cancel", cancel_wheel if kind == "wheel" else cancel_heap, setup)


@pytest.mark.parametrize("kind", ["wheel", "heapq"])
def test_start_and_cancel_half_and_let_half_fire(benchmark, kind, delays, order):
    def all_of_it():
        timers, entries = filled(kind, delays)
        cancel = timers.cancel
        for n in order[: COUNT // 2]:
            cancel(entries[n])
        assert len(timers.advance(YEAR)) == COUNT // 2

    run(benchmark, "start, cancel half, fire half", all_of_it, None)


@pytest.mark.parametrize("kind", ["wheel", "heapq"])
def test_advance(benchmark, kind, delays):
    def setup():
        return (filled(kind, delays)[0],), {}

    def advance(timers):
        assert len(timers.advance(YEAR)) == COUNT

    run(benchmark, "advance", advance, setup)
