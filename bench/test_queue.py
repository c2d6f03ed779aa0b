"""The ring of the run queue and the inbox, against what Python has for the same: a deque, a queue.

Each is called from Python here; the executor's own calls of the ring never leave C.
"""

from __future__ import annotations

import collections
import queue

import pytest

from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.queue import EnvelopeQueue

ENVELOPE = Envelope(Pid("counter", NodeId("local", "127.0.0.1:4000")), 1)
BURST = 1_000


def ring():
    made = EnvelopeQueue()
    return made.put, made.take


def deque():
    made = collections.deque()
    return made.append, made.popleft


@pytest.mark.parametrize("make", [ring, deque])
def test_put_and_take(benchmark, make):
    put, take = make()
    benchmark.group = f"put and take {BURST:,} one by one"

    def burst():
        for _ in range(BURST):
            put(ENVELOPE)
        for _ in range(BURST):
            take()

    benchmark(burst)


def test_a_burst_changes_rings(benchmark):
    """What the executor does once per turn: the run queue is empty, and the rings are swapped."""
    benchmark.group = "move 100,000 at once"
    run_queue, source = EnvelopeQueue(), EnvelopeQueue()

    def setup():
        run_queue.drop_last(len(run_queue))
        for _ in range(100_000):
            source.put(ENVELOPE)

    assert benchmark.pedantic(run_queue.move_all_from, (source,), setup=setup, rounds=20) == 100_000


def inbox():
    made = Inbox(1 << 20)
    return made.try_put, lambda: made.take(BURST)


def simple_queue():
    made = queue.SimpleQueue()
    return made.put, lambda: [made.get_nowait() for _ in range(BURST)]


@pytest.mark.parametrize("make", [inbox, simple_queue])
def test_fill_and_empty(benchmark, make):
    put, take = make()
    benchmark.group = f"hand {BURST:,} over to a thread that is awake"

    def burst():
        for _ in range(BURST):
            put(ENVELOPE)
        assert len(take()) == BURST

    benchmark(burst)


def test_wake_and_drain(benchmark):
    """The eventfd is written and read once: what a put to a sleeper costs beyond its waking."""
    box = Inbox(10)
    benchmark.group = "arm, put, take"

    def once():
        assert box.arm()
        box.try_put(ENVELOPE)
        box.take(1)

    benchmark(once)
