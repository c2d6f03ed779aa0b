"""A supervisor on an executor: who is started and ended, in which order, and what is answered."""

from __future__ import annotations

import math
from typing import Any

import pytest

import rabble
from rabble import (
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    CountChildren,
    DeadLetterReason,
    DeleteChild,
    DownReason,
    Mesh,
    Pid,
    Process,
    Restart,
    RestartChild,
    Shutdown,
    StartChild,
    Stop,
    Supervisor,
    SupervisorFailed,
    TerminateChild,
    WhichChildren,
)
from rabble._core.executor import Executor
from tests.families.trees import Child, Deaf, Notes, Tree, states
from tests.support import KEY, PATIENCE_S, Echo, HandClock, Witness, settle, until_up


@pytest.fixture
def notes() -> Notes:
    return Notes()


# Starting.


def test_children_start_in_order_and_end_in_the_reverse_order(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b c")))
    assert notes.take() == "+a +b +c"
    tree.tell("top", Shutdown("enough"))
    assert notes.take() == "-c -b -a"
    assert tree.end_of_top() == DownReason("shutdown", "enough")
    assert not tree.runs("top") and executor.processes == 1


def test_the_next_child_starts_when_all_below_the_one_before_have(
    executor: Executor, notes: Notes
) -> None:
    def below() -> Supervisor:
        return Supervisor(notes.specs("b c"))

    specs = [notes.spec("a"), ChildSpec("below", below), notes.spec("d")]
    tree = Tree(executor, Supervisor(specs))
    assert notes.take() == "+a +b +c +d"
    tree.tell("top", Shutdown("enough"))
    assert notes.take() == "-d -c -b -a"


@pytest.mark.parametrize("how", ["init", "start", "kind", "name", "used"])
def test_a_child_of_the_beginning_that_does_not_start_is_the_end(
    executor: Executor, notes: Notes, witness: Witness, how: str
) -> None:
    used = Echo()
    executor.spawn(used, "stranger")
    starts: dict[str, Any] = {
        "init": ChildSpec("b", Child, (notes,)),
        "start": ChildSpec("b", lambda: 1 // 0),  # type: ignore[arg-type, return-value]
        "kind": ChildSpec("b", dict),  # type: ignore[arg-type]
        "name": ChildSpec("b", Echo, name="stranger"),
        "used": ChildSpec("b", lambda: used),
    }
    expected = {
        "init": "b is not able to",
        "start": "ZeroDivisionError",
        "kind": "must make a Process",
        "name": "the name is taken",
        "used": "runs already",
    }
    notes.unable = {"b"}
    tree = Tree(executor, Supervisor([notes.spec("a"), starts[how], notes.spec("c")]))
    assert notes.take() == "+a -a"
    reason = tree.end_of_top()
    assert reason.kind == "crashed" and expected[how] in reason.detail
    assert "the child 'b' did not start" in reason.detail
    assert type(witness.errors[-1][1]) is SupervisorFailed
    # Who has the name that was wanted is none of its business.
    assert tree.runs("stranger")


# Restarting.

ENDS = ("crash", "stopped", "shutdown")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("restart", Restart)
def test_whether_a_child_is_restarted(
    executor: Executor, notes: Notes, restart: Restart, how: str
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b c", restart=restart)))
    notes.take()
    tree.tell("b", how)
    is_restarted = restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and how == "crash")
    assert notes.take() == ("!b" if how == "crash" else "-b") + " +b" * is_restarted
    assert tree.runs("b") is is_restarted and tree.runs("a", "c", "top")
    known = states(tree.ask(WhichChildren()))
    assert known.get("b") == (
        "running" if is_restarted else None if restart is Restart.TEMPORARY else "stopped"
    )


@pytest.mark.parametrize(
    ("strategy", "noted"),
    [
        ("one_for_one", "!b +b"),
        ("one_for_all", "!b -d -c -a +a +b +c"),
        ("rest_for_one", "!b -d -c +b +c"),
    ],
)
def test_who_is_restarted_with_a_child(
    executor: Executor, notes: Notes, strategy: str, noted: str
) -> None:
    specs = [*notes.specs("a b c"), notes.spec("d", restart=Restart.TEMPORARY)]
    tree = Tree(executor, Supervisor(specs, strategy=strategy))
    notes.take()
    tree.tell("b", "crash")
    assert notes.take() == noted
    # A temporary one is ended with the others and not started with them.
    assert tree.runs("a", "b", "c")
    assert tree.runs("d") is (strategy == "one_for_one")


def test_two_that_crash_at_once_are_both_restarted(executor: Executor, notes: Notes) -> None:
    for strategy, noted in (
        ("one_for_one", "!a !c +a +c"),
        ("one_for_all", "!a !c -b +a +b +c"),
        ("rest_for_one", "!a !c -b +a +b +c"),
    ):
        tree = Tree(executor, Supervisor(notes.specs("a b c"), strategy=strategy, intensity=2))
        notes.take()
        for name in "ac":
            executor.send(tree.at(name), "crash")
        settle(executor)
        assert notes.take() == noted
        for name in ("top", "asker"):
            executor.send(executor.pid, Stop(tree.at(name)))
        settle(executor)
        notes.take()


def test_more_restarts_than_may_be_within_the_period_are_the_end(
    executor: Executor, notes: Notes, clock: HandClock, witness: Witness
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b c"), intensity=2, period_ms=1_000))
    notes.take()
    for _ in range(6):
        tree.tell("b", "crash")
        # Each is out of the period before two more have come.
        clock.go_on(501)
    assert notes.take() == " ".join(["!b +b"] * 6)
    clock.go_on(10_000)
    for _ in range(2):
        tree.tell("b", "crash")
    # At the very end of the period it counts.
    clock.go_on(1_000)
    tree.tell("b", "crash")
    assert notes.take() == "!b +b !b +b !b -c -a"
    reason = tree.end_of_top()
    assert reason.kind == "crashed"
    assert "more than 2 restarts within 1 s" in reason.detail and "as told" in reason.detail
    assert type(witness.errors[-1][1]) is SupervisorFailed
    assert executor.processes == 1


def test_without_any_restart_the_first_crash_is_the_end(executor: Executor, notes: Notes) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b"), intensity=0))
    tree.tell("a", "crash")
    assert notes.take() == "+a +b !a -b" and tree.end_of_top().kind == "crashed"


def test_a_child_that_cannot_start_again_is_tried_until_it_was_too_often(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b c"), intensity=3, strategy="rest_for_one"))
    notes.take()
    notes.unable = {"b"}
    tree.tell("b", "crash")
    assert notes.take() == "!b -c -a"
    assert "the child 'b': it did not start" in tree.end_of_top().detail


def test_a_supervisor_above_restarts_one_that_gave_up_and_gives_up_itself(
    executor: Executor, notes: Notes
) -> None:
    def below() -> Supervisor:
        return Supervisor(notes.specs("b c"), intensity=0)

    specs = [notes.spec("a"), ChildSpec("below", below, restart=Restart.TRANSIENT)]
    tree = Tree(executor, Supervisor([*specs, notes.spec("d")], intensity=1))
    notes.take()
    tree.tell("b", "crash")
    assert notes.take() == "!b -c +b +c"
    tree.tell("c", "crash")
    assert notes.take() == "!c -b -d -a"
    assert executor.processes == 1


# Waiting before a restart.


def test_a_restart_is_waited_for_at_random_and_longer_each_time(
    executor: Executor, notes: Notes, clock: HandClock
) -> None:
    backoff = Backoff(first_ms=100, most_ms=400)
    supervisor = Supervisor(
        notes.specs("a b"), intensity=100, backoff=backoff, strategy="rest_for_one"
    )
    tree = Tree(executor, supervisor)
    notes.take()
    waits = []
    for restarts in (1, 2, 3, 4, 5, 6):
        tree.tell("a", "crash")
        # The others are ended at once.
        assert notes.take() == "!a -b"
        assert states(tree.ask(WhichChildren())) == {"a": "restarting", "b": "stopped"}
        assert tree.code(DeleteChild("a")) == tree.code(RestartChild("a")) == "restarting"
        waited = 0
        while not notes.noted:
            clock.go_on(1)
            waited += 1
            settle(executor)
        assert notes.take() == "+a +b"
        assert waited <= backoff.ceiling_s(restarts) * 1_000 + 2
        waits.append(waited)
    assert len(set(waits)) > 3
    # Who has run for long begins anew.
    clock.go_on(401)
    tree.tell("a", "crash")
    clock.go_on(102)
    settle(executor)
    assert notes.take() == "!a -b +a +b"


def test_who_is_waited_for_can_be_terminated(
    executor: Executor, notes: Notes, clock: HandClock
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b"), backoff=Backoff(1_000, 1_000)))
    tree.tell("a", "crash")
    assert executor.timers == 1
    assert tree.ask(TerminateChild("a")).state == "stopped"
    assert executor.timers == 0
    clock.go_on(2_000)
    settle(executor)
    assert notes.take() == "+a +b !a"
    assert tree.ask(RestartChild("a")).state == "running"
    assert notes.take() == "+a"


# Requests.


def test_a_child_is_started_terminated_restarted_and_deleted(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a")))
    spec = notes.spec("b")
    assert tree.ask(StartChild(spec)) == ChildInfo("b", tree.at("b"), "running", False)
    assert tree.code(StartChild(spec)) == "running"
    assert tree.code(DeleteChild("b")) == tree.code(RestartChild("b")) == "running"
    assert tree.ask(TerminateChild("b")).state == "stopped"
    assert tree.ask(TerminateChild("b")).state == "stopped"
    assert not tree.runs("b")
    assert tree.code(StartChild(spec)) == "already_present"
    assert tree.ask(CountChildren()) == ChildCounts(2, 1, 0, 2)
    assert tree.ask(RestartChild("b")).state == "running"
    tree.ask(TerminateChild("b"))
    assert tree.ask(DeleteChild("b")).id == "b"
    for request in (TerminateChild("b"), RestartChild("b"), DeleteChild("b")):
        assert tree.code(request) == "not_found"
    assert notes.take() == "+a +b -b +b -b"
    assert [child.id for child in tree.ask(WhichChildren())] == ["a"]


def test_a_temporary_child_is_forgotten_when_it_is_terminated(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor())
    tree.ask(StartChild(notes.spec("a", restart=Restart.TEMPORARY)))
    tree.ask(TerminateChild("a"))
    assert tree.ask(WhichChildren()) == ()


def test_a_child_that_was_asked_for_and_does_not_start_is_forgotten(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a"), intensity=0))
    notes.unable = {"b"}
    answer = tree.ask(StartChild(notes.spec("b")))
    assert isinstance(answer, ChildError) and answer.code == "failed"
    assert "b is not able to" in answer.detail
    assert tree.runs("top", "a") and len(tree.ask(WhichChildren())) == 1
    # One that is known stays so.
    tree.ask(StartChild(notes.spec("c")))
    tree.ask(TerminateChild("c"))
    notes.unable = {"c"}
    assert tree.code(RestartChild("c")) == "failed"
    assert states(tree.ask(WhichChildren())) == {"a": "running", "c": "stopped"}
    # Its pid may be that of another child, and is no reason to give that up.
    assert tree.code(StartChild(notes.spec("d", name="a"))) == "failed"
    assert tree.runs("a")


def test_those_terminated_are_started_with_the_others(executor: Executor, notes: Notes) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a b c"), strategy="one_for_all"))
    tree.ask(TerminateChild("b"))
    notes.take()
    tree.tell("a", "crash")
    assert notes.take() == "!a -c +a +b +c"


def test_a_simple_supervisor_makes_its_children_from_one_spec(
    executor: Executor, notes: Notes
) -> None:
    said: list[Any] = []

    def make(*args: Any) -> Process:
        said.append(args[1:])
        return Child(args[0])

    spec = ChildSpec("worker", make, (notes, 1), restart=Restart.TRANSIENT)
    tree = Tree(executor, Supervisor([spec], strategy="simple_one_for_one", children_max=3))
    assert tree.ask(CountChildren()) == ChildCounts(1, 0, 0, 0)
    for number in (1, 2, 3):
        answer = tree.ask(StartChild(args=(number,)))
        assert answer.pid.name == answer.id == f"worker.{number}"
    assert said == [(1, 1), (1, 2), (1, 3)]
    assert tree.code(StartChild()) == "full"
    assert tree.code(StartChild(notes.spec("a"))) == "not_understood"
    assert tree.ask(CountChildren()) == ChildCounts(1, 3, 0, 3)
    tree.tell("worker.2", "crash")
    # The same child again: with what it was started with.
    assert said[3:] == [(1, 2)] and tree.runs("worker.2")
    tree.tell("worker.1", "stopped")
    assert tree.ask(TerminateChild("worker.2")).id == "worker.2"
    assert states(tree.ask(WhichChildren())) == {"worker.3": "running"}
    assert tree.code(RestartChild("worker.3")) == "not_understood"
    assert tree.code(DeleteChild("worker.3")) == "not_understood"
    assert tree.ask(StartChild()).id == "worker.4"
    notes.take()
    tree.tell("top", Shutdown("enough"))
    assert notes.take() == "-worker.4 -worker.3"


def test_what_it_does_not_understand_is_answered_or_a_dead_letter(
    executor: Executor, notes: Notes
) -> None:
    tree = Tree(executor, Supervisor(notes.specs("a")))
    assert tree.code("something else") == "not_understood"
    assert tree.code(StartChild()) == "not_understood"
    tree.tell("top", "something else")
    # Two that answer each other would do so for ever.
    executor.send(tree.pid, ChildError(None, "not_understood"), sender=tree.pid)
    settle(executor)
    assert executor.dead_letters[DeadLetterReason.NO_RECEIVER] == 2
    assert tree.runs("top", "a")


def test_a_strange_object_is_no_end_of_a_supervisor(executor: Executor, notes: Notes) -> None:
    class Odd:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("asked for its class")

        __hash__ = None  # type: ignore[assignment]

    tree = Tree(executor, Supervisor(notes.specs("a")))
    for request in (
        Odd(),
        TerminateChild(Odd()),  # type: ignore[arg-type]
        StartChild(Odd()),  # type: ignore[arg-type]
        StartChild(notes.spec("b"), Odd()),  # type: ignore[arg-type]
    ):
        assert tree.code(request) == "not_understood"
    assert tree.runs("top", "a") and executor.crashes == 0


@pytest.mark.parametrize("steps", range(30))
def test_who_has_the_name_of_a_child_and_ends_is_not_taken_for_it(
    executor: Executor, notes: Notes, steps: int
) -> None:
    """Whenever it ends: the child is started at the next try, and there is one of it."""
    tree = Tree(executor, Supervisor(notes.specs("a b"), intensity=50))
    executor.send(tree.at("b"), "crash")
    executor.step(1)
    # It is not restarted yet, and the name is free.
    executor.spawn(Echo(), "b")
    for _ in range(steps):
        executor.step(1)
    executor.send(executor.pid, Stop(tree.at("b"), DownReason("shutdown")))
    settle(executor)
    assert states(tree.ask(WhichChildren())) == {"a": "running", "b": "running"}
    assert notes.take() == "+a +b !b +b" and executor.processes == 4
    tree.tell("top", Shutdown("enough"))
    assert executor.processes == 1


@pytest.mark.parametrize("start", [Echo, dict])
@pytest.mark.parametrize("steps", range(12))
def test_who_has_the_name_of_a_child_is_not_ended_for_it(
    executor: Executor, notes: Notes, steps: int, start: Any
) -> None:
    """Whenever the supervisor ends while a child is being started, or cannot be."""
    executor.spawn(Echo(), "b")
    tree = Tree(executor, Supervisor(notes.specs("a")))
    executor.send(tree.asker_pid, (tree.pid, StartChild(ChildSpec("b", start))))
    for _ in range(steps):
        executor.step(1)
    executor.send(tree.pid, Shutdown("enough"))
    settle(executor)
    assert tree.runs("b") and executor.processes == 2
    assert notes.take() == "+a -a"


def test_of_requests_that_wait_there_are_not_more_than_may_be(
    executor: Executor, notes: Notes
) -> None:
    specs = [ChildSpec("deaf", Deaf), notes.spec("a")]
    tree = Tree(executor, Supervisor(specs, requests_max=2))
    requests = [TerminateChild("deaf"), *[CountChildren()] * 3]
    for request in requests:
        executor.send(tree.asker_pid, (tree.pid, request))
    settle(executor)
    (answer,) = tree.asker.answers
    assert answer.code == "full"
    # And those that wait are answered when it ends.
    tree.tell("top", Shutdown("enough"))
    assert [answer.code for answer in tree.asker.answers[1:]] == ["ending"] * 3
    assert notes.take() == "+a -a"
    executor.send(executor.pid, Stop(tree.at("deaf")))
    settle(executor)
    assert tree.end_of_top().kind == "shutdown"


# Ending.


@pytest.mark.parametrize("shutdown_ms", [0, 50, math.inf])
def test_a_supervisor_below_that_does_not_end_in_time_is_stopped(
    executor: Executor, notes: Notes, clock: HandClock, shutdown_ms: float
) -> None:
    def below() -> Supervisor:
        return Deaf(notes.specs("b c"))

    specs = [notes.spec("a"), ChildSpec("below", below, shutdown_ms=shutdown_ms)]
    tree = Tree(executor, Supervisor(specs))
    notes.take()
    tree.tell("top", Shutdown("enough"))
    clock.go_on(49)
    settle(executor)
    assert notes.take() == ("-c -b -a" if shutdown_ms == 0 else "")
    clock.go_on(3)
    settle(executor)
    # Its children end with it all the same.
    assert notes.take() == ("-c -b -a" if shutdown_ms == 50 else "")
    if shutdown_ms == math.inf:
        executor.send(executor.pid, Stop(tree.at("below")))
        settle(executor)
        assert notes.take() == "-c -b -a"
    assert executor.processes == 1
    assert executor.timers == 0


def test_a_supervisor_that_is_stopped_leaves_no_child(executor: Executor, notes: Notes) -> None:
    def below() -> Supervisor:
        return Supervisor(notes.specs("b c"))

    specs = [notes.spec("a"), ChildSpec("below", below), notes.spec("d")]
    tree = Tree(executor, Supervisor(specs))
    notes.take()
    executor.send(executor.pid, Stop(tree.pid))
    settle(executor)
    assert notes.take().split() == ["-d", "-a", "-c", "-b"]
    assert executor.processes == 1


def test_with_the_node_children_end_in_the_reverse_order() -> None:
    notes = Notes()

    def below() -> Supervisor:
        return Supervisor(notes.specs("b c"))

    with rabble.rouse("test@127.0.0.1:0", seed=1) as node:
        specs = [notes.spec("a"), ChildSpec("below", below), notes.spec("d")]
        top = node.spawn(Supervisor(specs), "top")
        assert node.call(top, CountChildren(), timeout=PATIENCE_S) == ChildCounts(3, 3, 1, 2)
        notes.take()
    assert notes.take() == "-d -c -b -a"


def test_what_is_asked_and_answered_travels(notes: Notes) -> None:
    with rabble.rouse("test@127.0.0.1:0", seed=1, strict=True) as node:
        top = node.spawn(Supervisor(notes.specs("a b")), "top")
        tell = node.call
        assert tell(top, StartChild(notes.spec("c")), timeout=PATIENCE_S).state == "running"
        assert tell(top, TerminateChild("c"), timeout=PATIENCE_S).state == "stopped"
        assert [child.id for child in tell(top, WhichChildren(), timeout=PATIENCE_S)] == [*"abc"]


def test_a_supervisor_of_another_node_is_asked_as_one_of_this(notes: Notes) -> None:
    mesh = Mesh(key=KEY)
    with (
        rabble.rouse("asker@127.0.0.1:0", mesh=mesh) as asker,
        rabble.rouse("host@127.0.0.1:0", mesh=mesh) as host,
    ):
        asker.join(host.node_id)
        until_up(asker, host)
        host.export("workers", lambda: Supervisor(notes.specs("a b")))
        top = asker.spawn_on(host.node_id, "workers", "top")
        assert asker.call(top, CountChildren(), PATIENCE_S) == ChildCounts(2, 2, 0, 2)
        assert asker.call(top, TerminateChild("b"), PATIENCE_S).state == "stopped"
        assert states(asker.call(top, WhichChildren(), PATIENCE_S)) == {
            "a": "running",
            "b": "stopped",
        }
        assert asker.call(top, DeleteChild("a"), PATIENCE_S) == ChildError("a", "running")
        # A function does not travel.
        with pytest.raises(rabble.EncodeError, match="StartChild"):
            asker.call(top, StartChild(notes.spec("c")), PATIENCE_S)


# What it is made with.


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"children": ["a"]}, TypeError, "children must be ChildSpecs, not 'a'"),
        ({"strategy": "all"}, ValueError, "all"),
        ({"strategy": "simple_one_for_one"}, ValueError, "the one ChildSpec that all are made"),
        ({"intensity": -1}, ValueError, "intensity must be 0 to 1000000, not -1"),
        ({"intensity": True}, ValueError, "intensity must be"),
        ({"period_ms": 0}, ValueError, "period_ms must be 1 to"),
        ({"period_ms": "1"}, TypeError, "period_ms must be a number of ms, not '1'"),
        ({"backoff": 100}, TypeError, "backoff must be a Backoff or None, not 100"),
        ({"children_max": 0}, ValueError, "children_max must be 1 to"),
        ({"requests_max": 0}, ValueError, "requests_max must be 1 to"),
        (
            {"children": [ChildSpec("a", Echo), ChildSpec("b", Echo, name="a")]},
            ValueError,
            "two children have the id or name of 'b'",
        ),
        (
            {"children": [ChildSpec("a", Echo), ChildSpec("b", Echo)], "children_max": 1},
            ValueError,
            "2 children are more than children_max, 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Supervisor(**options)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"id": ""}, ValueError, "empty"),
        ({"id": 1}, TypeError, "name"),
        ({"name": "a::b"}, ValueError, "::"),
        ({"group": "rabble"}, ValueError, "for the node's own services"),
        ({"start": "Echo"}, TypeError, "start must be a Process class or a function"),
        ({"args": [1]}, TypeError, r"args must be a tuple, not \[1\]"),
        ({"restart": "always"}, ValueError, "always"),
        ({"shutdown_ms": -1}, ValueError, "shutdown_ms must be 0 to"),
        ({"shutdown_ms": 1e12}, ValueError, "shutdown_ms must be 0 to"),
        ({"shutdown_ms": math.nan}, ValueError, "shutdown_ms must be 0 to"),
        ({"mailbox_max": 0}, ValueError, "mailbox_max must be 1 to"),
    ],
)
def test_a_child_that_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ChildSpec(**{"id": "a", "start": Echo, **options})


def test_backoff_is_of_a_range() -> None:
    with pytest.raises(ValueError, match="most_ms must be 100 to"):
        Backoff(100, 50)
    ceilings = [Backoff(100, 500).ceiling_s(n) for n in (1, 2, 3, 4, 10_000)]
    assert ceilings == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_two_children_are_not_one_pid(executor: Executor, witness: Witness) -> None:
    specs = [ChildSpec("a", Echo), ChildSpec("b", Echo, name="a", group="own")]
    executor.spawn(Supervisor(specs), "top", group="own")
    settle(executor)
    assert executor.processes == 0
    assert "two children of" in str(witness.errors[0][1])


def test_where_a_child_runs(executor: Executor, notes: Notes) -> None:
    specs = [notes.spec("a", name="other"), notes.spec("b", group="tenant")]
    executor.spawn(Supervisor(specs), "top", group="own")
    settle(executor)
    node = executor.pid.node
    for pid in (Pid("other", node, "own"), Pid("b", node, "tenant")):
        assert pid in executor.table
