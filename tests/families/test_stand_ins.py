"""What stands in for a child of another node, when answers and nodes come in any order."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rabble import (
    Ask,
    ChildSpec,
    DownReason,
    Envelope,
    Exit,
    Failed,
    Link,
    NodeId,
    NodeUp,
    NotConnected,
    Pid,
    QueueFull,
    Reply,
    Shutdown,
    Stop,
    SubscribeNodes,
)
from rabble.families.stand_ins import Note, StandIn, stand_in_of

HERE, THERE = NodeId.parse("here@h:1"), NodeId.parse("there@h:2")
CHILD = Pid("a", THERE)
UP = NodeUp(THERE, 1)
SPAWNED = Reply(None, ["spawned", CHILD])
LOST = Failed(None, NotConnected("no connection leads there"))


class Hands:
    """A runtime by hand."""

    pid = Pid("a of top", HERE)
    executor = Pid("executor", HERE, "rabble")
    now = 0.0
    random = random.Random(1)


class Story:
    """A stand-in, and in words what it does."""

    def __init__(self, node: NodeId = THERE) -> None:
        self.stand_in = stand_in_of(ChildSpec("a", "worker", node=node), (1,), Pid("a", node))
        self.stand_in.attach(Hands())
        self.stand_in._above = (Pid("top", HERE), "a", 1)
        self.begun = self.words(self.stand_in.init())

    def tell(self, msg: Any) -> list[str]:
        sender = Hands.pid if isinstance(msg, Note) else Hands.executor
        return self.words(self.stand_in.receive(msg, sender, None))

    def words(self, output: Any) -> list[str]:
        listed = [output] if isinstance(output, Envelope) else list(output or ())
        return [self.word(envelope) for envelope in listed]

    def word(self, envelope: Envelope) -> str:
        match envelope.msg:
            case Ask(msg=msg):
                assert msg == ["spawn", "worker", [1], "a", None, Hands.pid]
                return "ask"
            case Link(pid):
                assert pid == CHILD
                return "link"
            case Note(what):
                return what
            case Stop(_, DownReason(kind, detail)):
                return f"stop {kind} {detail}".strip()
            case SubscribeNodes():
                return "subscribe"
            case ["end", "a", None, owner, reason]:
                assert owner == Hands.pid and envelope.to.node == THERE
                return f"end {reason}"
        raise AssertionError(envelope)


def running() -> Story:
    story = Story()
    assert story.begun == ["subscribe", "look"]
    assert story.tell(UP) == ["ask"]
    assert story.tell(SPAWNED) == ["link", "up"]
    return story


def test_it_asks_when_its_node_is_there() -> None:
    story = Story()
    assert story.tell(Note("look", number=1)) == ["look"]
    assert story.tell(Note("look", number=0)) == ["away"]
    assert story.tell(NodeUp(NodeId.parse("other@h:3"), 1)) == []
    assert story.tell(UP) == ["ask"]
    assert story.tell(SPAWNED) == ["link", "up"]
    assert story.tell(UP) == []


def test_one_of_its_own_node_is_asked_for_at_once() -> None:
    assert Story(HERE).begun == ["ask"]


def test_a_node_that_goes_while_it_is_asked_is_waited_for() -> None:
    story = Story()
    story.tell(UP)
    assert story.tell(LOST) == ["away"]
    assert story.tell(UP) == ["ask"]
    # Here it is back before it is known that the first request is lost.
    assert story.tell(UP) == []
    assert story.tell(LOST) == ["ask"]
    assert story.tell(LOST) == ["away"]


@pytest.mark.parametrize(
    ("reason", "life", "says"),
    [
        (DownReason("stopped"), 7, "stop stopped"),
        (DownReason("shutdown", "enough"), 7, "stop shutdown enough"),
        (DownReason("crashed", "it raised"), 7, "stop crashed it raised"),
        (DownReason("linked", "other"), 7, "stop crashed linked: other"),
        (DownReason("disconnected"), 0, "stop crashed disconnected"),
        (DownReason("shutdown", "in order"), 0, "stop crashed disconnected: in order"),
        (DownReason("no_process"), 0, "stop crashed no_process"),
        (DownReason("refused", "too many"), 0, "stop crashed refused: too many"),
    ],
)
def test_it_ends_as_the_child_does(reason: DownReason, life: int, says: str) -> None:
    assert running().tell(Exit(CHILD, reason, life)) == [says]
    # When it is to end, in that way.
    story = running()
    assert story.tell(Shutdown("late")) == ["end late"]
    assert story.tell(Exit(CHILD, reason, life)) == ["stop shutdown late"]


def test_an_end_before_the_answer_is_that_of_an_earlier_one() -> None:
    story = Story()
    story.tell(UP)
    assert story.tell(Exit(CHILD, DownReason("shutdown"), 3)) == []
    assert story.tell(SPAWNED) == ["link", "up"]


def test_whenever_it_is_to_end_it_does() -> None:
    story = Story()
    assert story.tell(Shutdown("late")) == ["stop shutdown late"]
    for answer, says in (
        (SPAWNED, ["link", "up", "end late"]),
        (LOST, ["stop shutdown late"]),
        (Reply(None, ["refused", "no"]), ["stop crashed no"]),
    ):
        story = Story()
        story.tell(UP)
        assert story.tell(Shutdown("late")) == []
        assert story.tell(UP) == []
        assert story.tell(answer) == says


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Reply(None, ["refused", "taken"]), "stop crashed taken"),
        (Reply(None, ["spawned", Pid("b", THERE)]), "stop crashed what was asked for it answers"),
        (Reply(None, None), "stop crashed what was asked for it answers nothing"),
        (Failed(None, QueueFull("too much waits")), "stop crashed too much waits"),
    ],
)
def test_what_is_no_child_is_a_start_that_failed(answer: Any, says: str) -> None:
    story = Story()
    story.tell(UP)
    (said,) = story.tell(answer)
    assert said.startswith(says)


def test_it_is_none_of_its_own() -> None:
    """Whoever writes another one has these to write."""
    bare = StandIn(ChildSpec("a", "worker", node=THERE), (), CHILD)
    for do in (bare._request, bare._started, lambda: bare._end(CHILD, "")):
        with pytest.raises(NotImplementedError):
            do()
