"""Dispatch: an executor without a thread is driven by `step`, next to calls of `receive` by hand.

So there is no hand-over, no wake-up and no spinning in these figures; `rabble bench` has those.
"""

from __future__ import annotations

import pytest

from rabble import Envelope, Process, StartTimer, Stop
from rabble._core.dispatch import DispatchTable
from rabble._core.ids import CorrelationId, Pid
from tests.support import BARE, bare_executor, settle

HOPS = 10_000


class Sink(Process):
    def receive(self, msg, sender, correlation_id):
        return None


class Link(Process):
    """Passes a number on, one less each time."""

    def __init__(self, following=None):
        self.following = following

    def receive(self, msg, sender, correlation_id):
        return Envelope(self.following, msg - 1) if msg else None


class ListLink(Link):
    def receive(self, msg, sender, correlation_id):
        return [Envelope(self.following, msg - 1)] if msg else None


class GeneratorLink(Link):
    def receive(self, msg, sender, correlation_id):
        if msg:
            yield Envelope(self.following, msg - 1)


@pytest.mark.parametrize("link", [Link, ListLink, GeneratorLink])
def test_two_processes(benchmark, link):
    """Returning an envelope, a list of one, or a generator of one."""
    benchmark.group = f"{HOPS:,} hops between two processes"
    with bare_executor() as executor:
        one, other = link(), link()
        one.following, other.following = executor.spawn(other, "b"), executor.spawn(one, "a")

        def play():
            executor.send(other.following, HOPS)
            assert settle(executor) == HOPS + 1

        benchmark(play)


def test_two_processes_by_hand(benchmark):
    benchmark.group = f"{HOPS:,} hops between two processes"
    pid = Pid("nobody", BARE)
    one, other = Link(pid), Link(pid)

    def play():
        envelope = Envelope(pid, HOPS)
        here, there = one, other
        while envelope is not None:
            envelope = here.receive(envelope.msg, envelope.sender, envelope.correlation_id)
            here, there = there, here

    benchmark(play)


@pytest.mark.parametrize("limited", [False, True], ids=["no limits", "one mailbox limit"])
def test_deliver_what_threads_sent(benchmark, limited):
    benchmark.group = f"{HOPS:,} envelopes to one process"
    with bare_executor() as executor:
        sink = executor.spawn(Sink(), "sink", mailbox_max=HOPS if limited else None)

        def setup():
            for n in range(HOPS):
                executor.send(sink, n)

        benchmark.pedantic(settle, (executor,), setup=setup, rounds=20)


def test_nobody_there(benchmark):
    benchmark.group = f"{HOPS:,} dead letters"
    with bare_executor() as executor:
        nobody = Pid("nobody", BARE)

        def setup():
            for n in range(HOPS):
                executor.send(nobody, n)

        benchmark.pedantic(settle, (executor,), setup=setup, rounds=20)


def test_spawn_and_stop(benchmark):
    benchmark.group = "1,000 processes"
    with bare_executor() as executor:

        def live():
            for n in range(1_000):
                executor.send(executor.pid, Stop(executor.spawn(Sink(), f"p-{n}")))
            settle(executor)
            assert executor.processes == 0

        benchmark(live)


def test_start_a_timer_by_message(benchmark):
    """`bench/test_timers.py` has the wheel alone."""
    benchmark.group = "1,000 timers"
    with bare_executor() as executor:
        sink = executor.spawn(Sink(), "sink")
        wishes = [StartTimer(CorrelationId(sink, request=n), 60_000) for n in range(1_000)]

        def start():
            for wish in wishes:
                executor.send(executor.pid, wish, sender=sink)
            settle(executor)
            assert executor.timers == 1_000

        benchmark(start)


@pytest.mark.parametrize("kind", ["table", "dict"])
def test_table(benchmark, kind):
    """By way of Python; the executor's own look-ups never leave C."""
    benchmark.group = "insert, find and discard 1,000"
    with bare_executor() as executor:
        pids = [executor.spawn(Sink(), f"p-{n}") for n in range(1_000)]

    def in_table():
        table = DispatchTable()
        for pid in pids:
            table.insert(pid, None)
        for pid in pids:
            table.get(pid)
        for pid in pids:
            table.discard(pid)

    def in_dict():
        table = {}
        for pid in pids:
            table[pid] = None
        for pid in pids:
            table.get(pid)
        for pid in pids:
            table.pop(pid)

    benchmark(in_table if kind == "table" else in_dict)
