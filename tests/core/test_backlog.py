"""The backlog: bounds of what waits, whoever sent it, and what of it nobody asks for any more."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    CancelTimer,
    CorrelationId,
    DeadLetterReason,
    Envelope,
    GetMetrics,
    Monitor,
    NodeUp,
    Output,
    Pid,
    Process,
    QueueFull,
    Spawn,
    StartTimer,
    Stop,
    SubscribeNodes,
)
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from tests.core.peers import Hub, Peer
from tests.core.processes import OddCodec, Recorder, returning, spawn_recorder
from tests.support import BARE, Does, HandClock, Witness, bare_executor, settle

# What other threads sent.

scripts = st.lists(
    st.one_of(
        st.tuples(st.just("another thread sends"), st.integers(1, 20)),
        st.tuples(st.just("a process is to send"), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(0, 40)),
    ),
    max_size=30,
)


@given(script=scripts)
@settings(max_examples=200)
def test_what_others_sent_and_nobody_was_given_yet_is_known_exactly(
    script: list[tuple[str, int]],
) -> None:
    """Against a list that says of each envelope that waits who sent it."""
    # Of each that waits: whether another thread sent it, and how many it makes when delivered.
    inbox: list[tuple[bool, int]] = []
    queue: list[tuple[bool, int]] = []
    with bare_executor(HandClock()) as executor:
        to, got = spawn_recorder(executor)

        def react(process: Process, count: Any, sender: Pid | None) -> Output:
            return [Envelope(to, None) for _ in range(count)]

        source = executor.spawn(Does(react), "source")
        settle(executor)
        for what, count in script:
            if what == "another thread sends":
                for _ in range(count):
                    executor.send(to, None)
                    inbox.append((True, 0))
            elif what == "a process is to send":
                executor.send(source, count)
                inbox.append((True, count))
            else:
                executor.step(count)
                queue += inbox
                inbox.clear()
                for _ in range(min(count, CAPACITIES["TURN_DELIVERIES_MAX"])):
                    if queue:
                        _, makes = queue.pop(0)
                        queue += [(False, 0)] * makes
            assert executor.inbox_depth == len(inbox) and executor.queue_depth == len(queue)
            from_outside = [None for is_outside, _ in [*inbox, *queue] if is_outside]
            assert executor.outside_depth == len(from_outside)
        settle(executor)
        assert executor.outside_depth == 0


@pytest.mark.parametrize("limited", [False, True])
def test_what_other_threads_sent_is_bounded_wherever_it_waits(limited: bool) -> None:
    with bare_executor(inbox_max=10) as executor:
        to, got = spawn_recorder(executor)
        if limited:
            spawn_recorder(executor, "limited", mailbox_max=1)
        for n in range(10):
            executor.send(to, n)
        for taken_in in range(4):
            with pytest.raises(QueueFull):
                executor.send(to, "too much")
            assert executor.outside_depth == 10
            # A turn takes all of it in, and delivers one.
            assert executor.step(1) == 1
            assert executor.outside_depth == 9
            executor.send(to, 10 + taken_in)
        settle(executor)
        assert got == list(range(14))
        assert executor.outside_depth == 0


def test_a_spawn_with_an_init_takes_a_place_in_the_inbox() -> None:
    with bare_executor(inbox_max=2) as executor:
        for n in range(2):
            executor.spawn(Does(lambda *args: None), f"p{n}")
        with pytest.raises(QueueFull):
            executor.spawn(Does(lambda *args: None), "p2")
        assert executor.processes == 2
        # One without has nothing to wait for.
        spawn_recorder(executor)
        settle(executor)
        executor.spawn(Does(lambda *args: None), "p2")


def test_the_bound_holds_while_what_was_sent_is_looked_at() -> None:
    """In strict mode that may be somebody's code, while others send on."""

    class Sends(OddCodec):
        def encode_message(self, msg: Any) -> Any:
            with contextlib.suppress(QueueFull):
                executor.send(to, -1)
            return super().encode_message(msg)

    with bare_executor(codec=Sends(), inbox_max=100) as executor:
        to, _ = spawn_recorder(executor)
        for n in range(100):
            executor.send(to, n)
        executor.step(0)
        # One more for the one that was on its way.
        assert executor.outside_depth <= 101


# Mailbox limits.


def end_before_delivery(hub: Hub, peer: Peer | None = None) -> None:
    """Have a peer end, which the executor notices before it delivers what it has taken in."""
    peer = peer or hub.peers[0]
    hub.executor.step(0)
    peer.close()
    hub.settle(0)
    assert hub.witness.ended == [peer.connection]


def test_what_is_sent_in_the_output_that_spawns_a_process_is_in_its_limit(
    executor: Executor,
) -> None:
    child = Recorder()
    pid = Pid("child", BARE)
    parent = executor.spawn(
        Does(
            lambda process, msg, sender: [
                Envelope(process.executor, Spawn(child, "child", mailbox_max=3)),
                *(Envelope(pid, n) for n in range(100)),
            ]
        ),
        "parent",
    )
    executor.send(parent, 1)
    settle(executor)
    assert child.got == [0, 1, 2]
    assert executor.dead_letters == {DeadLetterReason.MAILBOX_FULL: 97}
    for n in range(3):
        executor.send(pid, n)
    settle(executor)
    assert len(child.got) == 6


def test_who_gives_the_executors_pid_as_the_sender_is_in_the_limit(executor: Executor) -> None:
    to, got = spawn_recorder(executor, mailbox_max=2)
    liar = executor.spawn(returning([Envelope(to, n, executor.pid) for n in range(10)]), "liar")
    for _ in range(3):
        executor.send(liar, 1)
        settle(executor)
    assert got == [0, 1] * 3
    executor.send(to, "still room")
    settle(executor)
    assert got[-1] == "still room"


def test_a_failing_output_lets_nobody_past_a_limit(executor: Executor) -> None:
    """What waited for a name before its process was spawned stays early mail."""

    def fails_late(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
        yield Envelope(process.pid, "never")
        raise RuntimeError

    child = Recorder()
    pid = Pid("child", BARE)
    failing = executor.spawn(Does(fails_late), "failing")
    parent = returning(
        [
            Envelope(executor.pid, Spawn(child, "child", mailbox_max=5)),
            Envelope(failing, 0),
            *(Envelope(pid, n) for n in range(100)),
        ]
    )
    executor.send(executor.spawn(parent, "parent"), 1)
    settle(executor)
    assert child.got == [0, 1, 2, 3, 4]


def test_early_mail_meets_the_limit_though_an_output_failed_meanwhile(executor: Executor) -> None:
    to = Pid("late", BARE)
    executor.send(executor.spawn(returning("junk"), "fails"), 1)
    for n in range(100):
        executor.send(to, n)
    executor.step(0)
    _, got = spawn_recorder(executor, "late", mailbox_max=3)
    settle(executor)
    assert got == [0, 1, 2]
    for n in range(2):
        executor.send(to, n)
    settle(executor)
    assert got == [0, 1, 2, 0, 1]


def test_a_generator_that_spawns_meets_the_limit_of_what_it_spawned(executor: Executor) -> None:
    child = Recorder()

    def out() -> Iterator[Envelope]:
        yield Envelope(Pid("child", BARE), "early")
        pid = executor.spawn(child, "child", mailbox_max=3)
        for n in range(100):
            yield Envelope(pid, n)

    executor.send(executor.spawn(Does(lambda *_: out()), "parent"), 1)
    for _ in range(2):
        settle(executor)
        assert child.got == ["early", 0, 1]
    for n in range(3):
        executor.send(Pid("child", BARE), n)
    settle(executor)
    assert child.got[3:] == [0, 1, 2]


def test_a_mailbox_limit_counts_on_when_what_waits_for_another_node_goes(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor, mailbox_max=3)
    peer = hub.connect()
    for number in range(4):
        hub.executor.send(peer.pid("anybody"), number)
        hub.executor.send(to, number)
    end_before_delivery(hub)
    assert hub.executor.dead_letters == {
        DeadLetterReason.MAILBOX_FULL: 1,
        DeadLetterReason.NOT_CONNECTED: 4,
    }
    hub.executor.send(to, "still full")
    hub.settle()
    assert got == [0, 1, 2]
    for number in range(4):
        hub.executor.send(to, number)
    hub.settle()
    assert got[3:] == [0, 1, 2]
    assert hub.executor.dead_letters[DeadLetterReason.MAILBOX_FULL] == 3


def test_early_mail_meets_its_limit_when_what_waits_for_another_node_goes(hub: Hub) -> None:
    peer = hub.connect()
    to = Pid("late", BARE)
    for number in range(5):
        hub.executor.send(peer.pid("anybody"), number)
        hub.executor.send(to, number)
    hub.executor.step(0)
    _, got = spawn_recorder(hub.executor, "late", mailbox_max=2)
    for number in (5, 6, 7):
        hub.executor.send(to, number)
    end_before_delivery(hub)
    hub.settle()
    # Two that came before anybody knew of the limit, and two behind them.
    assert got == [0, 1, 5, 6]
    assert hub.executor.dead_letters == {
        DeadLetterReason.MAILBOX_FULL: 4,
        DeadLetterReason.NOT_CONNECTED: 5,
    }


# Lives that have ended.


class Asks(Recorder):
    """Asks its runtime for everything that a life may ask, on its first message."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        super().receive(msg, sender, correlation_id)
        if msg != "ask":
            return None
        timer = CorrelationId(self.pid, None, 1)
        asked = [
            Stop(self.pid),
            Spawn(self.successor, self.pid.name),
            Spawn(Recorder(), "taken"),
            StartTimer(timer, 0),
            CancelTimer(timer, acknowledge=True),
            Monitor(Pid("nobody", BARE)),
            SubscribeNodes(),
            GetMetrics(),
            StartTimer(timer, -1),
        ]
        return [Envelope(self.executor, each) for each in asked]


def test_what_one_life_asked_for_is_not_done_for_the_next(
    executor: Executor, witness: Witness
) -> None:
    """Not even ended by it: the last of what is asked is wrong."""
    spawn_recorder(executor, "taken")
    process = Asks()
    process.successor = Recorder()
    executor.send(executor.spawn(process, "same"), "ask")
    settle(executor)
    assert executor.table.get(Pid("same", BARE)).target is process.successor  # type: ignore[union-attr]
    assert process.successor.got == [] and executor.node_subscribed == ()
    assert executor.timers == 0 and executor.crashes == 0
    # What it asks itself is done.
    executor.send(executor.pid, Monitor(Pid("nobody", BARE)), sender=Pid("same", BARE))
    settle(executor)
    assert [down.reason.kind for down in process.successor.got] == ["no_process"]


def test_a_place_in_the_queue_moves_up_when_what_waits_for_another_node_goes(hub: Hub) -> None:
    """Else what a successor asks for counts as asked by the life before it."""
    executor = hub.executor
    leaving, staying = hub.connect("leaving"), hub.connect("staying")
    output = [Envelope(leaving.pid("anybody"), number) for number in range(5)]
    asker = executor.spawn(returning([*output, Envelope(executor.pid, GetMetrics())]), "asker")
    settle(executor)
    executor.send(asker, "ask")
    executor.send(executor.pid, Stop(asker))
    for _ in range(2):
        executor.step(1)
    assert asker not in executor.table and executor.queue_depth == 6
    successor, told = spawn_recorder(executor, "asker")
    executor.send(executor.pid, SubscribeNodes(), sender=successor)
    end_before_delivery(hub, leaving)
    assert executor.dead_letters == {DeadLetterReason.NOT_CONNECTED: 5}
    hub.settle()
    # What it asked for itself, and not the Metrics of the one before.
    assert told == [NodeUp(staying.node, 1)]


def test_of_lives_that_ended_no_more_is_kept_than_the_queue_has(executor: Executor) -> None:
    """However many end, and though the queue is never empty."""
    names = itertools.count()

    def again(process: Process, msg: Any, sender: Pid | None) -> Output:
        return Envelope(process.pid, msg)

    executor.send(executor.spawn(Does(again), "never at rest"), 1)

    def end_some() -> None:
        for n in range(1_000):
            pid = executor.spawn(Recorder(), f"p{n}-{next(names)}")
            executor.send(executor.pid, Stop(pid))
        while executor.processes > 1:
            executor.step()

    end_some()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        end_some()
    gc.collect()
    assert sys.getallocatedblocks() - before < 20_000
    executor.send(executor.pid, Stop(Pid("never at rest", BARE)))
    settle(executor)
