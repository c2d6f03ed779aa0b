"""The ring against `collections.deque`, and its references against the interpreter's count."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rabble import Envelope, Pid
from rabble._core.queue import EnvelopeQueue
from tests.support import BARE

TO = Pid("to", BARE)


def holding(thing: Any) -> Envelope:
    return Envelope(TO, thing)


class QueueMachine(RuleBasedStateMachine):
    """Two rings and two deques do the same things."""

    def __init__(self) -> None:
        super().__init__()
        self.rings = [EnvelopeQueue(), EnvelopeQueue()]
        self.deques: list[deque[Any]] = [deque(), deque()]
        self.number = 0

    @rule(which=st.integers(0, 1), count=st.sampled_from([1, 2, 100, 255, 256, 257, 70_000]))
    def put(self, which: int, count: int) -> None:
        for _ in range(count):
            self.number += 1
            self.rings[which].put(holding(self.number))
            self.deques[which].append(self.number)

    @rule(which=st.integers(0, 1), count=st.sampled_from([1, 3, 200, 300]))
    def take(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.deques[which]))):
            assert self.rings[which].take().msg == self.deques[which].popleft()

    @rule(which=st.integers(0, 1))
    def take_everything(self, which: int) -> None:
        taken = [self.rings[which].take().msg for _ in range(len(self.rings[which]))]
        assert taken == list(self.deques[which])
        self.deques[which].clear()
        with pytest.raises(IndexError):
            self.rings[which].take()

    @rule(which=st.integers(0, 1))
    def move(self, which: int) -> None:
        moved = self.rings[which].move_all_from(self.rings[1 - which])
        assert moved == len(self.deques[1 - which])
        self.deques[which].extend(self.deques[1 - which])
        self.deques[1 - which].clear()

    @rule(which=st.integers(0, 1), share=st.floats(0, 1))
    def drop_last(self, which: int, share: float) -> None:
        count = int(share * len(self.deques[which]))
        self.rings[which].drop_last(count)
        for _ in range(count):
            self.deques[which].pop()

    @invariant()
    def same_length(self) -> None:
        assert [len(r) for r in self.rings] == [len(d) for d in self.deques]

    def teardown(self) -> None:
        for which in (0, 1):
            self.take_everything(which)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30)


def test_what_a_ring_holds_is_released_with_it() -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    before = sys.getrefcount(thing)
    ring = EnvelopeQueue()
    other = EnvelopeQueue()
    for _ in range(1_000):
        ring.put(holding(thing))
    other.put(holding(thing))
    other.move_all_from(ring)
    assert sys.getrefcount(thing) == before + 1_001
    other.drop_last(1)
    assert sys.getrefcount(thing) == before + 1_000
    del thing
    gc.collect()
    assert gone() is not None
    del other
    assert gone() is None


def test_a_destructor_may_use_the_ring_that_drops_it() -> None:
    ring = EnvelopeQueue()

    class Reentrant:
        def __del__(self) -> None:
            ring.put(holding("from the destructor"))

    ring.put(holding("kept"))
    ring.put(holding(Reentrant()))
    ring.drop_last(1)
    assert ring.take().msg == "kept"


def test_wrong_use_is_refused() -> None:
    ring = EnvelopeQueue()
    ring.put(holding(1))
    with pytest.raises(TypeError, match="Envelope"):
        ring.put(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot drop 2 of 1"):
        ring.drop_last(2)
    with pytest.raises(ValueError, match="into itself"):
        ring.move_all_from(ring)
