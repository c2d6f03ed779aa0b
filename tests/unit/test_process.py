"""A process can be tested by calling its methods, without a node."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from rabble import Envelope, NodeId, Output, Pid, Process, Stop

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
