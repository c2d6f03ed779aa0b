"""Links: which lives end together, on one node."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rabble import (
    CorrelationId,
    DeadLetterReason,
    Down,
    DownReason,
    Envelope,
    Exit,
    Link,
    Monitor,
    Output,
    Pid,
    Process,
    Spawn,
    SpawnFailed,
    Stop,
    Unlink,
)
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from tests.core.processes import Recorder, spawn_recorder
from tests.core.starvation import Starvation
from tests.support import BARE, TINY, Does, Witness, bare_executor, settle

CRASHED = DownReason("crashed", "RuntimeError: as told")
STOPPED = DownReason("stopped")


class Mortal(Process):
    """Raises when it is told to crash, asks its executor for what it is sent, keeps the rest."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.ends: list[DownReason] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "crash":
            raise RuntimeError("as told")
        if isinstance(msg, list):
            # No comprehension: without memory for the cell of what is closed over, CPython 3.11
            # leaks the frame.
            return list(map(Envelope, itertools.repeat(self.executor), msg))
        self.got.append(msg)
        return None

    def terminate(self, reason: DownReason) -> Output:
        self.ends.append(reason)
        return None


class Trapping(Mortal):
    traps_exits = True


def spawn(executor: Executor, name: str, cls: type[Mortal] = Mortal) -> tuple[Pid, Mortal]:
    process = cls()
    return executor.spawn(process, name), process


def ask(executor: Executor, pid: Pid, *requests: object) -> None:
    """Have a process ask its executor."""
    executor.send(pid, list(requests))


def linked(
    executor: Executor, first: type[Mortal] = Mortal, second: type[Mortal] = Mortal
) -> tuple[Pid, Mortal, Pid, Mortal]:
    """Two processes, of which the first has asked for a link."""
    one, first_process = spawn(executor, "one", first)
    other, second_process = spawn(executor, "other", second)
    ask(executor, one, Link(other))
    settle(executor)
    return one, first_process, other, second_process


def by_link(pid: Pid, reason: DownReason) -> DownReason:
    detail = f": {reason.detail}" if reason.detail else ""
    return DownReason("linked", f"{pid}: {reason.kind}{detail}")


@pytest.mark.parametrize("asked", [True, False])
def test_a_crash_ends_the_other_one_whoever_asked(executor: Executor, asked: bool) -> None:
    one, first, other, second = linked(executor)
    if asked:
        ends, dies, survivor = other, one, second
    else:
        ends, dies, survivor = one, other, first
    watcher, downs = spawn_recorder(executor, "watcher")
    executor.send(executor.pid, Monitor(ends), sender=watcher)
    executor.send(dies, "crash")
    settle(executor)
    reason = by_link(dies, CRASHED)
    assert downs == [Down(ends, reason)] and survivor.ends == [reason]
    assert one not in executor.table and other not in executor.table
    assert executor.crashes == 1


def test_a_normal_end_is_none_of_the_other_ones(executor: Executor) -> None:
    one, first, other, _ = linked(executor)
    executor.send(executor.pid, Stop(other))
    settle(executor)
    assert one in executor.table and first.got == first.ends == []
    # The link is gone: a successor has nothing to do with it.
    spawn(executor, "other")
    executor.send(other, "crash")
    settle(executor)
    assert one in executor.table


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (DownReason("shutdown", "enough"), DownReason("shutdown", "enough")),
        (
            DownReason("crashed", "said so"),
            by_link(Pid("other", BARE), DownReason("crashed", "said so")),
        ),
    ],
)
def test_a_stop_with_another_reason_ends_the_other_one(
    executor: Executor, given: DownReason, passed: DownReason
) -> None:
    one, first, other, _ = linked(executor)
    executor.send(executor.pid, Stop(other, given))
    settle(executor)
    assert one not in executor.table and first.ends == [passed]


@pytest.mark.parametrize("reason", [STOPPED, DownReason("shutdown", "enough"), CRASHED])
def test_who_traps_exits_is_told(executor: Executor, reason: DownReason) -> None:
    one, first, other, _ = linked(executor, Trapping)
    entry = executor.table.get(other)
    assert entry is not None
    if reason is CRASHED:
        executor.send(other, "crash")
    else:
        executor.send(executor.pid, Stop(other, reason))
    settle(executor)
    (msg,) = first.got
    assert msg == Exit(other, reason) and msg.life == entry.life
    assert one in executor.table and first.ends == []


def test_two_links_are_one(executor: Executor) -> None:
    one, first, other, _ = linked(executor, Trapping)
    ask(executor, one, Link(other), Link(other))
    ask(executor, other, Link(one))
    settle(executor)
    executor.send(other, "crash")
    settle(executor)
    assert first.got == [Exit(other, CRASHED)]
    spawn(executor, "other")
    executor.send(other, "crash")
    settle(executor)
    assert len(first.got) == 1


def test_to_link_with_nobody_is_an_exit(executor: Executor) -> None:
    nobody, far = Pid("nobody", BARE), Pid.parse("p::far@h:9")
    reasons = {
        nobody: DownReason("no_process"),
        far: DownReason("disconnected", f"no connection leads to {far.node}"),
    }
    for pid, reason in reasons.items():
        one, first = spawn(executor, "one", Trapping)
        ask(executor, one, Link(pid))
        settle(executor)
        assert first.got == [Exit(pid, reason)] and first.got[0].life == 0
        executor.send(executor.pid, Stop(one))
        one, first = spawn(executor, "ended")
        ask(executor, one, Link(pid))
        settle(executor)
        assert one not in executor.table and first.ends == [by_link(pid, reason)]


def test_nobody_has_a_link_with_oneself(executor: Executor) -> None:
    one, first = spawn(executor, "one", Trapping)
    ask(executor, one, Link(one))
    settle(executor)
    executor.send(executor.pid, Stop(one))
    settle(executor)
    again, second = spawn(executor, "one", Trapping)
    settle(executor)
    assert again in executor.table and first.got == second.got == []


def test_who_ended_the_link_is_neither_ended_nor_told(executor: Executor) -> None:
    for cls, by_other in itertools.product((Mortal, Trapping), (False, True)):
        one, first, other, _ = linked(executor, cls)
        if by_other:
            ask(executor, other, Unlink(one), Unlink(Pid("nobody", BARE)))
        else:
            ask(executor, one, Unlink(other), Unlink(other))
        settle(executor)
        executor.send(other, "crash")
        settle(executor)
        assert one in executor.table and first.got == first.ends == []
        executor.send(executor.pid, Stop(one))
        settle(executor)


@pytest.mark.parametrize("cls", [Mortal, Trapping])
def test_an_exit_that_waits_already_is_taken_back(executor: Executor, cls: type[Mortal]) -> None:
    one, first, other, _ = linked(executor, cls)
    # What the crash means stands in the queue behind the second one.
    executor.send(other, "crash")
    executor.send(executor.pid, Unlink(other), sender=one)
    settle(executor)
    assert one in executor.table and first.got == first.ends == []
    # So it is where there was nobody to be linked with.
    executor.send(executor.pid, Link(other), sender=one)
    executor.send(executor.pid, Unlink(other), sender=one)
    settle(executor)
    assert one in executor.table and first.got == first.ends == []


@pytest.mark.parametrize("cls", [Mortal, Trapping])
@pytest.mark.parametrize("successor", [False, True])
def test_who_ends_before_its_unlink_is_handled_has_ended_the_link(
    executor: Executor, cls: type[Mortal], successor: bool
) -> None:
    one, _, other, second = linked(executor, Mortal, cls)
    third, third_process = spawn(executor, "third", Trapping)
    ask(executor, one, Link(third))
    settle(executor)
    # It is stopped before what it asks for has its turn.
    ask(executor, one, Unlink(other))
    executor.send(executor.pid, Stop(one, DownReason("shutdown", "enough")))
    if successor:
        executor.send(executor.pid, Spawn(Mortal(), "one"), sender=third)
    settle(executor)
    assert other in executor.table and second.got == second.ends == []
    # Of the link that it kept its end is told.
    assert [type(msg) for msg in third_process.got] == [Exit]
    assert (one in executor.table) is successor
    # Nothing of it is left for those that are linked later.
    ask(executor, other, Link(third))
    settle(executor)
    executor.send(third, "crash")
    settle(executor)
    assert (other in executor.table) is (cls is Trapping)
    assert [type(msg) for msg in second.got] == ([Exit] if cls is Trapping else [])


def test_an_exit_that_waits_and_a_link_with_the_successor_are_two(executor: Executor) -> None:
    one, first, other, _ = linked(executor, Trapping)
    for _ in range(3):
        # All of it is handled before the first exit has its turn.
        executor.send(executor.pid, Stop(other), sender=one)
        executor.send(executor.pid, Spawn(Mortal(), "other"), sender=one)
        executor.send(executor.pid, Link(other), sender=one)
    settle(executor)
    assert first.got == [Exit(other, STOPPED)] * 3 and len({msg.life for msg in first.got}) == 3
    executor.send(other, "crash")
    settle(executor)
    assert first.got[3:] == [Exit(other, CRASHED)]
    # And one taking back is enough for all of them.
    spawn(executor, "other")
    ask(executor, one, Link(other))
    settle(executor)
    for _ in range(3):
        executor.send(executor.pid, Stop(other), sender=one)
        executor.send(executor.pid, Spawn(Mortal(), "other"), sender=one)
        executor.send(executor.pid, Link(other), sender=one)
    executor.send(executor.pid, Unlink(other), sender=one)
    executor.send(other, "crash")
    settle(executor)
    assert len(first.got) == 4


def test_it_comes_between_two_lives(executor: Executor) -> None:
    """Behind the last message of the one, and before the first of the other."""
    one, first, other, _ = linked(executor, Trapping)
    executor.send(executor.pid, Stop(other))
    settle(executor)
    first.got.clear()

    def dying(process: Process, msg: Any, sender: Pid | None) -> Output:
        if msg == "end":
            return [Envelope(one, n) for n in range(2_000)] + [
                Envelope(process.executor, Stop(process.pid)),
                Envelope(process.executor, Spawn(Does(react, born), "other")),
            ]
        return None

    def born(process: Process) -> Output:
        return Envelope(one, "hello")

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        return None

    executor.spawn(Does(dying), "other")
    ask(executor, one, Link(other))
    settle(executor)
    executor.send(other, "end")
    settle(executor)
    assert first.got == [*range(2_000), Exit(other, STOPPED), "hello"]


def test_its_last_words_come_before_its_own_links_are_told(executor: Executor) -> None:
    listener, heard = spawn(executor, "listener", Trapping)

    class Leaving(Mortal):
        def terminate(self, reason: DownReason) -> Output:
            return [Envelope(listener, n) for n in range(300)]

    one, _, other, _ = linked(executor, Leaving)
    ask(executor, listener, Link(one))
    settle(executor)
    executor.send(other, "crash")
    settle(executor)
    assert heard.got == [*range(300), Exit(one, by_link(other, CRASHED))]


def test_who_raises_at_that_end_crashes_and_passes_that_on(executor: Executor) -> None:
    class Raising(Mortal):
        def terminate(self, reason: DownReason) -> Output:
            raise ValueError("last words")

    listener, heard = spawn(executor, "listener", Trapping)
    one, _, other, _ = linked(executor, Raising)
    ask(executor, listener, Link(one))
    settle(executor)
    executor.send(other, "crash")
    settle(executor)
    assert heard.got == [Exit(one, DownReason("crashed", "ValueError: last words"))]
    assert executor.crashes == 2


def test_who_was_not_begun_is_ended_all_the_same(executor: Executor) -> None:
    begun = []
    child = Pid("child", BARE)

    def begin(process: Process) -> Output:
        begun.append(process)
        return None

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        return None

    parent, _ = spawn(executor, "parent")
    ask(executor, parent, Spawn(Does(react, begin), "child", link=True))
    executor.send(parent, "crash")
    settle(executor)
    assert child not in executor.table and len(begun) <= 1 and executor.crashes == 1


def test_the_successor_of_who_was_linked_has_no_link(executor: Executor) -> None:
    one, _, other, _ = linked(executor)
    executor.send(executor.pid, Stop(one))
    settle(executor)
    again, successor = spawn(executor, "one")
    executor.send(other, "crash")
    settle(executor)
    assert again in executor.table and successor.ends == []
    # Nor has one that is there before the exit has its turn.
    executor.send(executor.pid, Stop(again))
    settle(executor)
    one, _, other, _ = linked(executor)
    executor.send(other, "crash")
    executor.send(executor.pid, Stop(one))
    executor.send(executor.pid, Spawn(successor := Mortal(), "one"))
    settle(executor)
    assert one in executor.table and successor.ends == []


def test_a_long_chain_ends_turn_by_turn(executor: Executor) -> None:
    count = 300 if TINY else 100_000
    pids = [executor.spawn(Recorder(), f"p{n}") for n in range(count)]
    for left, right in itertools.pairwise(pids):
        executor.send(executor.pid, Link(right), sender=left)
    watcher, downs = spawn_recorder(executor, "watcher")
    executor.send(executor.pid, Monitor(pids[-1]), sender=watcher)
    settle(executor)
    reason = DownReason("crashed", "the first one")
    executor.send(executor.pid, Stop(pids[0], reason))
    before = executor.processes
    while executor.queue_depth or executor.inbox_depth:
        executor.step(100)
        # However long it is, no turn does more than its share, and the queue stays short.
        assert before - executor.processes <= 100 and executor.queue_depth <= 4
        before = executor.processes
    assert executor.processes == 1
    assert downs == [Down(pids[-1], by_link(pids[0], reason))]


def test_a_cycle_and_a_clique_end_once_each(executor: Executor) -> None:
    count = 12 if TINY else 300
    ended: list[str] = []

    class Member(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            return [Envelope(self.executor, Link(pid)) for pid in msg]

        def terminate(self, reason: DownReason) -> Output:
            ended.append(self.pid.name)
            return None

    pids = [executor.spawn(Member(), f"p{n}") for n in range(count)]
    for pid in pids:
        executor.send(pid, pids)
    settle(executor)
    executor.send(executor.pid, Stop(pids[0], DownReason("shutdown", "all")))
    settle(executor)
    assert executor.processes == 0
    assert sorted(ended) == sorted(pid.name for pid in pids)
    ring = [executor.spawn(Member(), f"p{n}") for n in range(3)]
    for place, pid in enumerate(ring):
        executor.send(pid, [ring[place - 1]])
    executor.send(ring[1], None)
    settle(executor)
    assert executor.processes == 0


def test_who_traps_exits_keeps_a_clique_from_ending(executor: Executor) -> None:
    middle, told = spawn(executor, "middle", Trapping)
    left = [spawn(executor, f"left {n}")[0] for n in range(3)]
    right = [spawn(executor, f"right {n}")[0] for n in range(3)]
    for pid in (*left, *right):
        ask(executor, pid, Link(middle))
    ask(executor, left[0], Link(left[1]))
    settle(executor)
    executor.send(left[0], "crash")
    settle(executor)
    assert [pid in executor.table for pid in (*left, *right)] == [False, False, *[True] * 4]
    assert told.got == [Exit(left[0], CRASHED), Exit(left[1], by_link(left[0], CRASHED))]


def test_a_service_is_told_only_if_it_asked_and_never_ended(executor: Executor) -> None:
    boxes = [Inbox(10), Inbox(10)]
    asked, silent = (Pid(name, BARE) for name in ("asked", "silent"))
    for pid, inbox in zip((asked, silent), boxes, strict=True):
        assert executor.add_inbox(pid, inbox)
    one, first = spawn(executor, "one")
    executor.send(executor.pid, Link(one), sender=asked)
    ask(executor, one, Link(silent))
    settle(executor)
    executor.send(one, "crash")
    settle(executor)
    (envelope,) = boxes[0].take(10)
    assert envelope.msg == Exit(one, CRASHED) and boxes[1].take(10) == []
    assert asked in executor.table and silent in executor.table
    # The end of a service is one like another.
    one, first = spawn(executor, "one")
    ask(executor, one, Link(silent))
    settle(executor)
    executor.discard(silent, boxes[1], CRASHED)
    settle(executor)
    assert first.ends == [by_link(silent, CRASHED)]


def test_the_runtime_links_with_nobody(executor: Executor, witness: Witness) -> None:
    calls = Pid("calls of a test", BARE)
    executor.add_callback(calls, lambda envelope: None)
    for pid in (executor.pid, calls):
        one, _ = spawn(executor, "one")
        ask(executor, one, Link(pid))
        settle(executor)
        assert one not in executor.table and isinstance(witness.errors[-1][1], ValueError)
        one, _ = spawn(executor, "one")
        executor.send(executor.pid, Link(one), sender=pid)
        settle(executor)
        assert one in executor.table and isinstance(witness.errors[-1][1], TypeError)
        executor.send(executor.pid, Stop(one))
        settle(executor)


@pytest.mark.parametrize("make", [Link, Unlink])
def test_what_is_no_pid_ends_who_asked(executor: Executor, witness: Witness, make: Any) -> None:
    one, _ = spawn(executor, "one")
    ask(executor, one, make("other"))
    settle(executor)
    ((pid, error),) = witness.errors
    assert pid == one and isinstance(error, TypeError) and make.__name__ in str(error)
    executor.send(executor.pid, make(one))
    settle(executor)
    assert executor.dead_letters[DeadLetterReason.REFUSED] == 1


@pytest.mark.parametrize("wrong", [None, 1, "yes", property(lambda self: True)])
def test_whether_it_traps_exits_is_a_truth_value(executor: Executor, wrong: Any) -> None:
    class Odd(Mortal):
        traps_exits = wrong

    with pytest.raises(TypeError, match="traps_exits must be True or False"):
        executor.spawn(Odd(), "odd")


# `Spawn` with a link, a monitor, or both.


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("monitor", [False, True])
def test_a_spawn_links_and_monitors(executor: Executor, link: bool, monitor: bool) -> None:
    parent, told = spawn(executor, "parent", Trapping)
    child = Pid("child", BARE)
    ask(executor, parent, Spawn(Mortal(), "child", link=link, monitor=monitor))
    settle(executor)
    executor.send(child, "crash")
    settle(executor)
    expected: list[Any] = [Down(child, CRASHED)] * monitor + [Exit(child, CRASHED)] * link
    assert told.got == expected


def test_a_child_that_never_begins_is_told_of(executor: Executor) -> None:
    """There is no moment at which it runs and is not linked."""

    def begin(process: Process) -> Output:
        raise RuntimeError("as told")

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        return None

    parent, told = spawn(executor, "parent", Trapping)
    ask(executor, parent, Spawn(Does(react, begin), "child", link=True, monitor=True))
    settle(executor)
    child = Pid("child", BARE)
    assert told.got == [Down(child, CRASHED), Exit(child, CRASHED)]


def test_a_spawn_that_fails_links_nobody(executor: Executor) -> None:
    taken, _ = spawn(executor, "taken")
    parent, told = spawn(executor, "parent", Trapping)
    ask(executor, parent, Spawn(Mortal(), "taken", link=True, monitor=True))
    settle(executor)
    executor.send(taken, "crash")
    settle(executor)
    (msg,) = told.got
    assert isinstance(msg, SpawnFailed)


def test_nothing_is_spawned_to_outlive_who_asked(executor: Executor, witness: Witness) -> None:
    parent, _ = spawn(executor, "parent")
    child = Pid("child", BARE)
    executor.send(parent, "crash")
    executor.send(executor.pid, Spawn(Mortal(), "child", link=True), sender=parent)
    settle(executor)
    assert child not in executor.table
    # To be told of its end is another matter.
    executor.send(executor.pid, Spawn(Mortal(), "child", monitor=True), sender=parent)
    settle(executor)
    assert child in executor.table
    executor.send(executor.pid, Spawn(Mortal(), "nobody's", link=True))
    settle(executor)
    assert isinstance(witness.errors[-1][1], ValueError)
    assert Pid("nobody's", BARE) not in executor.table


# What is owned.


@pytest.mark.parametrize("cls", [Mortal, Trapping])
@pytest.mark.parametrize("reason", [STOPPED, CRASHED, DownReason("shutdown", "enough")])
def test_what_is_owned_ends_with_its_owner_however_that_ends(
    executor: Executor, cls: type[Mortal], reason: DownReason
) -> None:
    owner, _ = spawn(executor, "owner")
    child, process = Pid("child", BARE), cls()
    ask(executor, owner, Spawn(process, "child", owned=True))
    settle(executor)
    if reason is CRASHED:
        executor.send(owner, "crash")
    else:
        executor.send(executor.pid, Stop(owner, reason))
    settle(executor)
    assert child not in executor.table
    # In order: its last words are asked for, and it is not told besides.
    assert process.ends == [reason if reason.kind == "shutdown" else by_link(owner, reason)]
    assert process.got == []


def test_its_owner_is_linked_with_it(executor: Executor) -> None:
    owner, told = spawn(executor, "owner", Trapping)
    child = Pid("child", BARE)
    ask(executor, owner, Spawn(Mortal(), "child", owned=True))
    settle(executor)
    executor.send(child, "crash")
    settle(executor)
    assert told.got == [Exit(child, CRASHED)]


def test_what_is_owned_cannot_get_away(executor: Executor, witness: Witness) -> None:
    owner, told = spawn(executor, "owner", Trapping)
    child = Pid("child", BARE)
    ask(executor, owner, Spawn(Trapping(), "child", owned=True))
    settle(executor)
    ask(executor, child, Unlink(owner))
    settle(executor)
    (error,) = [error for _, error in witness.errors]
    assert isinstance(error, ValueError) and "owned by" in str(error)
    assert [type(msg) for msg in told.got] == [Exit] and child not in executor.table


@pytest.mark.parametrize("steps", range(12))
def test_what_is_owned_cannot_get_away_as_its_owner_ends(executor: Executor, steps: int) -> None:
    """Neither by an `Unlink` at whatever moment, nor by a link with the owner's successor."""
    owner, _ = spawn(executor, "owner")
    child = Pid("child", BARE)
    ask(executor, owner, Spawn(Trapping(), "child", owned=True))
    settle(executor)
    executor.send(owner, "crash")
    for _ in range(steps):
        executor.step(1)
    if owner not in executor.table:
        spawn(executor, "owner")
    executor.send(executor.pid, Link(owner), sender=child)
    executor.send(executor.pid, Unlink(owner), sender=child)
    settle(executor)
    assert child not in executor.table


def test_its_owner_may_let_it_go(executor: Executor) -> None:
    owner, _ = spawn(executor, "owner")
    child = Pid("child", BARE)
    ask(executor, owner, Spawn(Mortal(), "child", owned=True), Unlink(child))
    settle(executor)
    executor.send(owner, "crash")
    settle(executor)
    assert child in executor.table and owner not in executor.table


def test_the_last_one_that_was_linked_ends_first(executor: Executor) -> None:
    ended: list[str] = []

    class Noting(Mortal):
        def terminate(self, reason: DownReason) -> Output:
            ended.append(self.pid.name)
            return None

    owner, _ = spawn(executor, "owner")
    ask(executor, owner, *[Spawn(Noting(), name, owned=True) for name in "abc"])
    settle(executor)
    executor.send(owner, "crash")
    settle(executor)
    assert ended == ["c", "b", "a"]


# Without memory.


def each_shortage(starvation: Starvation, executor: Executor, nth: int) -> bool:
    """Whether it ends the node."""
    return starvation.ends_a_node(nth, lambda: settle(executor))


@pytest.mark.parametrize("dies", ["one", "other"])
def test_without_memory_a_link_is_there_at_both_ends_or_at_none(
    starvation: Starvation, dies: str
) -> None:
    made = ended = 0
    for nth in range(60):
        with bare_executor() as executor:
            one, first = spawn(executor, "one")
            other, _ = spawn(executor, "other")
            executor.send(executor.pid, Link(other), sender=one)
            if each_shortage(starvation, executor, nth):
                continue
            settle(executor)
            if one not in executor.table:
                # Who could not be given it has ended; nobody was linked with it.
                ended += 1
                assert other in executor.table and first.ends == [], nth
                continue
            made += 1
            executor.send(Pid(dies, BARE), "crash")
            settle(executor)
            assert executor.processes == 0, nth
    assert made and ended


def test_without_memory_an_end_is_followed_or_it_is_none(starvation: Starvation) -> None:
    followed = 0
    for nth in range(80):
        with bare_executor() as executor:
            one, first, other, _ = linked(executor)
            third, third_process = spawn(executor, "third", Trapping)
            ask(executor, third, Link(other))
            settle(executor)
            executor.send(executor.pid, Stop(other, DownReason("shutdown", "enough")))
            if each_shortage(starvation, executor, nth):
                continue
            settle(executor)
            if other in executor.table:
                assert one in executor.table and third_process.got == [], nth
                continue
            followed += 1
            # In order, or by a crash if there was no memory for that.
            assert one not in executor.table, nth
            if third in executor.table:
                assert [type(msg) for msg in third_process.got] == [Exit], nth
    assert followed


@pytest.mark.parametrize(("make", "owned"), [(Mortal, False), (Trapping, True)])
def test_without_memory_a_child_is_linked_or_not_there(
    starvation: Starvation, make: type[Mortal], owned: bool
) -> None:
    linked_children = 0
    child = Pid("child", BARE)
    for nth in range(100):
        with bare_executor() as executor:
            parent, _ = spawn(executor, "parent", Mortal)
            request = Spawn(make(), "child", link=True, monitor=True, owned=owned)
            executor.send(executor.pid, request, sender=parent)
            if each_shortage(starvation, executor, nth):
                continue
            settle(executor)
            if child in executor.table:
                linked_children += 1
                executor.send(parent, "crash")
                settle(executor)
                assert child not in executor.table, nth
            else:
                assert parent not in executor.table, nth
    assert linked_children
