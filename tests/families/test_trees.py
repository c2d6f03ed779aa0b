"""Random trees of supervisors on an executor, of which children crash at random.

The slow model knows no messages: it is told who crashed, and says by recursion who is started and
ended, in which order, and who runs then. Restarts take no time there, so each crash is made when
the tree has come to rest.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    ChildSpec,
    DownReason,
    Output,
    Restart,
    Shutdown,
    Stop,
    Strategy,
    Supervisor,
)
from rabble._core.errors import Interrupted
from rabble._core.executor import Executor
from tests.families.trees import Notes, Tree
from tests.support import HandClock, Witness, bare_executor, settle

PERIOD_MS = 1_000
STARTS = itertools.count()


class Fragile(Supervisor):
    """Raises what it is sent."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if isinstance(msg, BaseException):
            raise msg
        return super().receive(msg, sender, correlation_id)


@dataclasses.dataclass
class Node:
    """A child, with those below it if it is a supervisor: how it is to be, and how it stands."""

    name: str
    restart: Restart = Restart.PERMANENT
    strategy: Strategy | None = None
    intensity: int = 0
    below: list[Node] = dataclasses.field(default_factory=list)
    runs: bool = False
    #: Grows with each start in the tree.
    began: int = 0
    times: list[int] = dataclasses.field(default_factory=list)
    #: Those that are children now: a temporary one that has ended is none.
    known: list[Node] = dataclasses.field(default_factory=list)

    def leaves(self) -> Iterator[Node]:
        if self.strategy is None:
            yield self
        for child in self.below:
            yield from child.leaves()

    def all_running(self) -> Iterator[str]:
        if self.runs:
            yield self.name
        for child in self.below:
            yield from child.all_running()

    def start(self, noted: list[str]) -> None:
        self.began = next(STARTS)
        self.runs, self.times, self.known = True, [], list(self.below)
        if self.strategy is None:
            noted.append(f"+{self.name}")
        for child in self.below:
            child.start(noted)

    def end(self, noted: list[str]) -> None:
        for child in reversed(self.known):
            if child.runs:
                child.end(noted)
        if self.strategy is None and self.runs:
            noted.append(f"-{self.name}")
        self.runs = False

    def fall(self, noted: list[str], by_start: bool) -> None:
        """It ends before its children, those below a supervisor among them behind all its own."""
        row = [child for child in reversed(self.known) if child.runs]
        if by_start:
            row.sort(key=lambda child: -child.began)
        self.runs = False
        for child in row:
            child.runs = False
            if child.strategy is None:
                noted.append(f"-{child.name}")
            # From the second row on they are told by a supervisor that is stopped.
            row += [each for each in reversed(child.known) if each.runs]

    def spec(self, notes: Notes) -> ChildSpec:
        if self.strategy is None:
            return notes.spec(self.name, restart=self.restart)
        return ChildSpec(self.name, self.supervisor, (notes,), restart=self.restart)

    def supervisor(self, notes: Notes) -> Supervisor:
        assert self.strategy is not None
        return Fragile(
            [child.spec(notes) for child in self.below],
            strategy=self.strategy,
            intensity=self.intensity,
            period_ms=PERIOD_MS,
        )


def ended_below(top: Node, child: Node, is_normal: bool, now: int, noted: list[str]) -> bool:
    """A child of `top`, or below one, has ended by itself. False if `top` gives up for that."""
    if child not in top.below:
        for middle in top.known:
            if child in middle.leaves() and middle.runs:
                if ended_below(middle, child, is_normal, now, noted):
                    return True
                return ended_below(top, middle, False, now, noted)
        return True
    child.runs = False
    if child.restart is not Restart.PERMANENT and (is_normal or child.restart is Restart.TEMPORARY):
        if child.restart is Restart.TEMPORARY:
            top.known.remove(child)
        return True
    top.times = [time for time in top.times if now - time <= PERIOD_MS] + [now]
    if len(top.times) > top.intensity:
        top.end(noted)
        return False
    place = top.known.index(child)
    group = {
        Strategy.ONE_FOR_ONE: [child],
        Strategy.REST_FOR_ONE: top.known[place:],
        Strategy.ONE_FOR_ALL: list(top.known),
    }[top.strategy or Strategy.ONE_FOR_ONE]
    for each in reversed(group):
        if each.runs:
            each.end(noted)
    for each in group:
        if each.restart is Restart.TEMPORARY:
            top.known.remove(each)
        else:
            each.start(noted)
    return True


@st.composite
def trees(draw: st.DrawFn, depth: int = 3, name: str = "t") -> Node:
    below = []
    for number in range(draw(st.integers(0 if depth < 3 else 1, 4))):
        restart = draw(st.sampled_from(Restart))
        if depth > 1 and draw(st.booleans()):
            child = draw(trees(depth - 1, f"{name}{number}"))
            child.restart = restart
        else:
            child = Node(f"{name}{number}", restart)
        below.append(child)
    return Node(
        name,
        strategy=draw(
            st.sampled_from([Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
        ),
        intensity=draw(st.sampled_from([0, 1, 3])),
        below=below,
    )


@settings(max_examples=200, deadline=None)
@given(tree=trees(), data=st.data())
@pytest.mark.parametrize("end", ["shutdown", "stop", "raise", "interrupt", "crashes"])
def test_whoever_crashes_the_tree_is_as_the_slow_model_says_and_ends_whole(
    end: str, tree: Node, data: st.DataObject
) -> None:
    clock, notes, noted = HandClock(), Notes(), list[str]()
    with bare_executor(clock=clock, witness=Witness()) as executor:
        made = Tree(executor, tree.supervisor(notes), tree.name)
        tree.start(noted)
        assert notes.noted == noted
        now = 0
        for _ in range(data.draw(st.integers(0, 12))) if end != "crashes" else iter(int, 1):
            running = [leaf.name for leaf in tree.leaves() if leaf.runs]
            if not running or not tree.runs:
                break
            name = data.draw(st.sampled_from(running)) if end != "crashes" else running[-1]
            how = data.draw(st.sampled_from(["crash", "stopped"])) if end != "crashes" else "crash"
            passed = data.draw(st.sampled_from([1, 600, 1_001])) if end != "crashes" else 1
            clock.go_on(passed)
            now += passed
            leaf = next(leaf for leaf in tree.leaves() if leaf.name == name)
            noted = [("!" if how == "crash" else "-") + name]
            notes.noted = []
            ended_below(tree, leaf, how != "crash", now, noted)
            made.tell(name, how)
            assert notes.noted == noted
            assert everybody(executor) == sorted(tree.all_running())
        notes.noted, noted = [], []
        if tree.runs and end == "shutdown":
            tree.end(noted)
            made.tell(tree.name, Shutdown("enough"))
            assert notes.noted == noted
        elif tree.runs:
            tree.fall(noted, by_start=end != "stop")
            if end == "stop":
                executor.send(executor.pid, Stop(made.pid, DownReason("shutdown")))
            else:
                executor.send(made.pid, Interrupted() if end == "interrupt" else LookupError())
            settle(executor)
            assert notes.noted == noted
        # Nothing is left behind, whatever ended it.
        assert everybody(executor) == []
        assert executor.timers == 0


def everybody(executor: Executor) -> list[str]:
    """The names of all processes but the one that asks."""
    names = [entry.pid.name for entry in executor.table.snapshot() if entry.pid != executor.pid]
    return sorted(name for name in names if name not in ("asker", "calls"))
