"""A process can be tested by calling its methods, without a node."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

import rabble
from rabble import CorrelationId, Envelope, NodeId, Output, Pid, Process, Request, Stop

NODE = NodeId("n", "h:1")


class Dice(Process):
    def receive(self, msg: object, sender: Pid | None, correlation_id: object) -> Output:
        if self.now > 100.0:
            return Envelope(self.executor, Stop(self.pid))
        return Envelope(Pid("table", self.node_id), self.random.randint(1, 6))


def test_a_test_hands_a_process_its_time_and_its_luck() -> None:
    runtime = SimpleNamespace(
        pid=Pid("dice", NODE), executor=Pid("executor", NODE), now=5.0, random=random.Random(1)
    )
    dice = Dice()
    dice.attach(runtime)
    thrown = random.Random(1).randint(1, 6)
    assert dice.receive("throw", None, None) == Envelope(Pid("table", NODE), thrown)
    runtime.now = 101.0
    assert dice.receive("throw", None, None) == Envelope(runtime.executor, Stop(runtime.pid))


@pytest.mark.parametrize("name", ["pid", "node_id", "executor", "now", "random"])
def test_before_the_spawn_it_says_how_to_get_at_its_runtime(name: str) -> None:
    with pytest.raises(RuntimeError, match="this Dice was not spawned yet.*attach"):
        getattr(Dice(), name)


def test_the_base_class_says_nothing_and_takes_nothing() -> None:
    assert Process().init() is None
    with pytest.raises(TypeError, match="does not define receive"):
        Process().receive("anything", None, None)


@rabble.message(name="tests.unit.test_process.Get")
class Get(Request[int]):
    key: str


class Typed(Process[Get]):
    __slots__ = ("asked",)

    def receive(self, msg: Get, sender: Pid | None, cid: CorrelationId | None) -> Output:
        self.asked = msg.key
        return None if sender is None else Envelope(sender, len(msg.key), correlation_id=cid)


def test_what_type_checkers_are_told_costs_nothing_and_changes_nothing() -> None:
    assert Get.__slots__ == ("key",)
    for instance in (Get("x"), Typed()):
        assert not hasattr(instance, "__dict__")
    assert Get("x") == Get("x")
    with rabble.rouse(strict=True) as node:
        assert node.call(node.spawn(Typed(), "typed"), Get("apple")) == 5
