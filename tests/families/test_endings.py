"""A supervisor leaves no child behind, whatever ends it and whatever its children are."""

from __future__ import annotations

from typing import Any

import pytest

from rabble import (
    ChildSpec,
    CountChildren,
    DownReason,
    Envelope,
    Exit,
    Link,
    Monitor,
    Output,
    Process,
    Shutdown,
    Stop,
    Supervisor,
    Unlink,
)
from rabble._core.errors import Interrupted
from rabble._core.executor import Executor
from tests.core.starvation import Starvation
from tests.families.trees import Child, Notes, Tree
from tests.support import Does, Witness, bare_executor, settle


@pytest.fixture
def notes() -> Notes:
    return Notes()


class Own(Supervisor):
    """Has methods of its own in front of the supervisor's, which raise what they are sent."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if isinstance(msg, BaseException):
            raise msg
        if isinstance(msg, (Link, Unlink, Monitor)):
            return self.envelope(msg)
        return super().receive(msg, sender, correlation_id)

    def envelope(self, msg: Any) -> Output:
        return Envelope(self.executor, msg)


class Silent(Own):
    """Says nothing at its end."""

    def terminate(self, reason: DownReason) -> Output:
        return None


class Stubborn(Child):
    """Traps exits, and ends for none."""

    traps_exits = True

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if isinstance(msg, (Exit, Shutdown)):
            return None
        return super().receive(msg, sender, correlation_id)


class StubbornSupervisor(Own):
    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if isinstance(msg, (Exit, Shutdown)):
            return None
        return super().receive(msg, sender, correlation_id)


def family(notes: Notes, cls: type[Supervisor] = Own) -> Supervisor:
    def below() -> Supervisor:
        return StubbornSupervisor([ChildSpec(id, Stubborn, (notes,)) for id in "bc"])

    specs = [notes.spec("a"), ChildSpec("below", below), ChildSpec("d", Stubborn, (notes,))]
    return cls(specs)


@pytest.mark.parametrize("cls", [Own, Silent])
@pytest.mark.parametrize(
    "way",
    [
        LookupError("within"),
        SystemExit(3),
        MemoryError(),
        Interrupted(),
        Stop,
        DownReason("shutdown", "enough"),
        DownReason("crashed", "said"),
    ],
    ids=repr,
)
def test_whatever_ends_it_no_child_is_left(
    executor: Executor, notes: Notes, cls: type[Supervisor], way: Any
) -> None:
    tree = Tree(executor, family(notes, cls))
    assert notes.take() == "+a +b +c +d"
    if isinstance(way, BaseException):
        executor.send(tree.pid, way)
        executor.send(tree.pid, CountChildren())
    else:
        executor.send(executor.pid, Stop(tree.pid, None if way is Stop else way))
    settle(executor)
    # Whoever was started last ends first, and a supervisor before its own children.
    assert notes.take().split() == ["-d", "-a", "-c", "-b"]
    assert executor.processes == 1 and executor.timers == 0
    if isinstance(way, LookupError):
        assert tree.end_of_top().detail == "LookupError: within"


@pytest.mark.parametrize("steps", range(60))
@pytest.mark.parametrize("way", [LookupError("within"), Stop, Shutdown("enough")], ids=repr)
def test_whenever_it_ends_no_child_is_left(
    executor: Executor, notes: Notes, steps: int, way: Any
) -> None:
    """While its children start, crash, and are started again."""
    top = executor.spawn(family(notes, Silent), "top")
    executor.send(Tree.at_of(top, "a"), "crash")
    executor.send(Tree.at_of(top, "c"), "crash")
    for _ in range(steps):
        executor.step(1)
    if way is Stop:
        executor.send(executor.pid, Stop(top))
    else:
        executor.send(top, way)
    settle(executor)
    if isinstance(way, Shutdown) and executor.processes:
        # One below does not hear that it is to end, and is given the time it takes.
        executor.send(executor.pid, Stop(Tree.at_of(top, "below")))
        settle(executor)
    assert executor.processes == 0


def test_a_child_cannot_leave_its_supervisor(
    executor: Executor, notes: Notes, witness: Witness
) -> None:
    def react(process: Process, msg: Any, sender: Any) -> Output:
        return Envelope(process.executor, msg)

    specs = [notes.spec("a"), ChildSpec("b", Does, (react,))]
    tree = Tree(executor, Own(specs))
    tree.tell("b", Unlink(tree.pid))
    # That was its end, and it is restarted.
    assert "owned by" in str(witness.errors[0][1]) and tree.runs("b")
    tree.tell("b", Unlink(tree.pid))
    assert not tree.runs("b") and executor.processes == 1


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (DownReason("stopped"), None),
        (DownReason("shutdown", "enough"), "shutdown"),
        (DownReason("crashed", "said"), "crashed"),
    ],
)
def test_the_end_of_another_that_it_is_linked_with_ends_it_in_order(
    executor: Executor, notes: Notes, reason: DownReason, kind: str | None
) -> None:
    tree = Tree(executor, Own(notes.specs("a b")))
    executor.spawn(Child(notes), "other")
    tree.tell("top", Link(tree.at("other")))
    notes.take()
    executor.send(executor.pid, Stop(tree.at("other"), reason))
    settle(executor)
    if kind is None:
        assert notes.take() == "-other" and tree.runs("top", "a", "b")
    else:
        assert notes.take() == "-other -b -a"
        assert tree.end_of_top().kind == kind


def test_what_a_subclass_monitors_is_no_request(executor: Executor, notes: Notes) -> None:
    tree = Tree(executor, Own(notes.specs("a")))
    executor.spawn(Child(notes), "other")
    tree.tell("top", Monitor(tree.at("other")))
    executor.send(executor.pid, Stop(tree.at("other")))
    settle(executor)
    assert tree.runs("top", "a") and executor.crashes == 0


@pytest.mark.parametrize("way", [Stop, Shutdown("enough"), LookupError("within")], ids=repr)
def test_without_memory_no_child_is_left_or_the_node_fails(
    starvation: Starvation, way: Any
) -> None:
    ended = 0
    for nth in range(0, 150, 3):
        with bare_executor() as executor:
            top = executor.spawn(family(Notes(), Silent), "top")
            settle(executor)
            if way is Stop:
                executor.send(executor.pid, Stop(top))
            else:
                executor.send(top, way)
            if starvation.ends_a_node(nth, lambda: settle(executor)):
                continue
            settle(executor)
            if top in executor.table:
                continue
            ended += 1
            assert executor.processes == 0, nth
    assert ended
