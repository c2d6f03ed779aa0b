"""Names with one owner, groups with members: what processes are told, and what peers are."""

from __future__ import annotations

from typing import Any

import pytest

from rabble import CorrelationId, Limits, NodeId, Pid
from rabble._core.directory_messages import (
    GroupChanged,
    GroupJoined,
    GroupLeft,
    GroupMembers,
    GroupRefused,
    NameHolder,
    NameLost,
    NameRefused,
    Registered,
    Unregistered,
)
from rabble.cluster.decide.directory import Action, Answer, Asker, Directory, Life, Tell
from rabble.cluster.decide.directory_state import DirectoryError, DirectoryLimit

A, B, C = (NodeId(name, f"h:{port}") for port, name in enumerate("abc", 1))
LIMITS = Limits()


def life(name: str, node: NodeId = A, number: int = 1) -> Life:
    return Life(Pid(name, node), number)


def asker(of: Life, request: int = 0) -> Asker:
    return Asker(of, CorrelationId(of.pid, request=request))


def answers(actions: list[Action]) -> list[tuple[str, object]]:
    """Who is told what."""
    return [
        (action.to.life.pid.name, action.msg) for action in actions if isinstance(action, Answer)
    ]


def told(actions: list[Action]) -> list[tuple[NodeId, dict[str, Any]]]:
    return [(action.node, action.message) for action in actions if isinstance(action, Tell)]


class Mesh:
    """Directories whose messages wait until they are delivered."""

    def __init__(self, *nodes: NodeId, limits: Limits = LIMITS, connected: bool = True) -> None:
        self.wall_ms = dict.fromkeys(nodes, 1_000)
        self.now = 0.0
        self.all = {
            node: Directory(node, limits, lambda node=node: self.wall_ms[node]) for node in nodes
        }
        self.waiting: list[tuple[NodeId, NodeId, dict[str, Any]]] = []
        self.told: list[tuple[str, object]] = []
        for one in nodes if connected else ():
            for other in nodes:
                if one != other:
                    self.do(one, self.all[one].peer_up(other, self.now))
        self.deliver()

    def do(self, node: NodeId, actions: list[Action]) -> None:
        directory = self.all[node]
        while True:
            self.told += answers(actions)
            self.waiting += [(node, peer, message) for peer, message in told(actions)]
            if directory.due is None or directory.due > self.now:
                return
            actions = directory.tick(self.now)

    def deliver(self, to: NodeId | None = None) -> None:
        """Everything that waits, for one node or for all, and what comes of it."""
        while True:
            found = next((each for each in self.waiting if to in (None, each[1])), None)
            if found is None:
                return
            self.waiting.remove(found)
            sender, receiver, message = found
            self.do(receiver, self.all[receiver].read(sender, message, self.now))

    def later(self, seconds: float) -> None:
        self.now += seconds
        for node, directory in self.all.items():
            self.do(node, directory.tick(self.now))

    def connect(self, one: NodeId, other: NodeId) -> None:
        self.do(one, self.all[one].peer_up(other, self.now))
        self.do(other, self.all[other].peer_up(one, self.now))

    def disconnect(self, one: NodeId, other: NodeId) -> None:
        self.waiting = [each for each in self.waiting if {each[0], each[1]} != {one, other}]
        self.do(one, self.all[one].peer_down(other, self.now))
        self.do(other, self.all[other].peer_down(one, self.now))

    def register(self, name: str, of: Life) -> None:
        node = of.pid.node
        self.do(node, self.all[node].register(name, of, asker(of), self.now))

    def take(self) -> list[tuple[str, object]]:
        taken, self.told = self.told, []
        return taken


# A node by itself.


def test_alone_a_name_is_held_at_once_and_nothing_is_left_to_be_told() -> None:
    alone = Directory(A, LIMITS, lambda: 7)
    p, q = life("p"), life("q")
    assert answers(alone.register("x", p, asker(p), 0.0)) == [("p", Registered("x", p.pid))]
    assert answers(alone.register("x", p, asker(p), 0.0)) == [("p", Registered("x", p.pid))]
    assert answers(alone.register("x", q, asker(q), 0.0)) == [
        ("q", NameRefused("x", "taken", p.pid))
    ]
    assert answers(alone.where_is("x", asker(q))) == [("q", NameHolder("x", p.pid))]
    assert answers(alone.unregister("x", q, asker(q), 0.0)) == [("q", Unregistered("x", False))]
    assert answers(alone.unregister("x", p, asker(p), 0.0)) == [("p", Unregistered("x", True))]
    assert answers(alone.where_is("x", asker(q))) == [("q", NameHolder("x", None))]
    for _ in range(1_000):
        alone.join("g", p, asker(p), 0.0)
        alone.leave("g", p, asker(p), 0.0)
    assert alone.due is None and not alone._entries._untold


def test_an_answer_repeats_the_correlation_id() -> None:
    alone = Directory(A, LIMITS, lambda: 7)
    p = life("p")
    (answer,) = alone.where_is("x", asker(p, 5))
    assert isinstance(answer, Answer) and answer.to == asker(p, 5)


def test_what_a_life_had_goes_with_it_and_its_successor_inherits_nothing() -> None:
    alone = Directory(A, LIMITS, lambda: 7)
    p, q = life("p"), life("q")
    alone.register("x", p, asker(p), 0.0)
    alone.join("g", p, asker(p), 0.0)
    alone.subscribe("g", p, True, asker(p))
    alone.subscribe("g", q, True, asker(q))
    assert answers(alone.ended(life("p", number=2), 0.0)) == []
    assert answers(alone.ended(p, 0.0)) == [("q", GroupChanged("g", (), (p.pid,)))]
    assert alone.names == {} and alone.groups == {}
    alone.ended(q, 0.0)
    assert not alone._owners and not alone._subscribers
    # The end of a life that was not told of is noticed when the next one asks.
    alone.register("x", p, asker(p), 0.0)
    alone.join("g", p, asker(p), 0.0)
    second = life("p", number=2)
    alone.join("h", second, asker(second), 0.0)
    assert alone.names == {} and alone.groups == {"h": (p.pid,)}
    alone.register("x", second, asker(second), 0.0)
    third = life("p", number=3)
    assert answers(alone.register("x", third, asker(third), 0.0)) == [("p", Registered("x", p.pid))]
    alone.ended(second, 0.0)
    assert alone.names == {"x": p.pid} and alone.groups == {}
    alone.ended(third, 0.0)
    assert alone.names == {}


def test_members_of_this_node_come_first_and_the_others_in_order() -> None:
    mesh = Mesh(A, B)
    for of in (life("z", B), life("y"), life("x", B), life("a")):
        node = of.pid.node
        mesh.do(node, mesh.all[node].join("g", of, asker(of), mesh.now))
        mesh.later(1.0)
        mesh.deliver()
    assert [pid.name for pid in mesh.all[A].members("g")] == ["a", "y", "x", "z"]
    assert [pid.name for pid in mesh.all[B].members("g")] == ["x", "z", "a", "y"]


def test_a_subscriber_is_told_who_is_there_and_then_every_change() -> None:
    mesh = Mesh(A, B)
    s, p, q = life("s"), life("p"), life("q", B)
    mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    mesh.do(A, mesh.all[A].subscribe("g", s, True, asker(s)))
    mesh.do(B, mesh.all[B].join("g", q, asker(q), mesh.now))
    mesh.deliver()
    mesh.do(A, mesh.all[A].leave("g", p, asker(p), mesh.now))
    mesh.do(A, mesh.all[A].leave("g", p, asker(p), mesh.now))
    mesh.disconnect(A, B)
    mesh.do(A, mesh.all[A].subscribe("g", s, False, asker(s)))
    mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    assert mesh.take() == [
        ("p", GroupJoined("g", p.pid)),
        ("s", GroupMembers("g", (p.pid,))),
        ("q", GroupJoined("g", q.pid)),
        ("s", GroupChanged("g", (q.pid,), ())),
        ("p", GroupLeft("g", True)),
        ("s", GroupChanged("g", (), (p.pid,))),
        ("p", GroupLeft("g", False)),
        ("s", GroupChanged("g", (), (q.pid,))),
        ("s", GroupMembers("g", ())),
        ("p", GroupJoined("g", p.pid)),
    ]


def test_a_bound_refuses_with_its_name() -> None:
    limits = Limits(names_max=1, groups_max=1)
    alone = Directory(A, limits, lambda: 7)
    p = life("p")
    alone.register("x", p, asker(p), 0.0)
    alone.join("g", p, asker(p), 0.0)
    (_, refused), *_ = answers(alone.register("y", p, asker(p), 0.0))
    assert isinstance(refused, NameRefused)
    assert (refused.reason, refused.detail) == (
        "limit",
        "2 names are too many: Limits.names_max is 1",
    )
    assert answers(alone.join("h", p, asker(p), 0.0)) == [
        ("p", GroupRefused("h", "limit", "2 groups are too many: Limits.groups_max is 1"))
    ]


# One owner.


def test_a_name_is_held_when_all_peers_know_of_it() -> None:
    mesh = Mesh(A, B, C)
    p = life("p")
    mesh.register("x", p)
    mesh.deliver(B)
    mesh.deliver(A)
    assert mesh.take() == [] and mesh.all[A].holder("x") is None
    mesh.deliver(C)
    assert mesh.take() == []
    mesh.deliver(A)
    assert mesh.take() == [("p", Registered("x", p.pid))]
    # What the process sends next comes behind the news: they are on the way already.
    assert {peer for _, peer, message in mesh.waiting if message["n"][0][-1]} == {B, C}
    mesh.deliver()
    assert mesh.all[B].holder("x") == mesh.all[C].holder("x") == p.pid


def test_of_two_that_claim_at_once_one_is_refused() -> None:
    mesh = Mesh(A, B)
    p, q = life("p"), life("q", B)
    mesh.wall_ms[A] += 1
    mesh.register("x", p)
    mesh.register("x", q)
    mesh.deliver()
    assert sorted(mesh.take()) == [
        ("p", NameRefused("x", "taken", q.pid)),
        ("q", Registered("x", q.pid)),
    ]
    mesh.register("x", p)
    assert mesh.take() == [("p", NameRefused("x", "taken", q.pid))]


def test_a_claim_that_waits_to_be_told_is_told_before_another_is_acknowledged() -> None:
    mesh = Mesh(A, B)
    p, q = life("p"), life("q", B)
    mesh.register("first", p)
    # This one waits, as the first one is not acknowledged yet.
    mesh.register("x", p)
    assert [message["t"] for _, peer, message in mesh.waiting if peer == B] == [1]
    mesh.register("x", q)
    mesh.waiting = [each for each in mesh.waiting if each[1] == A]
    mesh.deliver(A)
    said = [message for _, peer, message in mesh.waiting if peer == B]
    assert [("n" in message, "a" in message) for message in said] == [(True, False), (False, True)]
    assert said[0]["n"][0][1] == "x"


def test_whoever_comes_while_a_name_is_claimed_is_waited_for_too() -> None:
    mesh = Mesh(A, B)
    mesh.all[C] = Directory(C, LIMITS, lambda: 1)
    p, r = life("p"), life("r", C)
    mesh.register("x", r)
    mesh.take()
    mesh.register("x", p)
    mesh.connect(A, C)
    mesh.deliver(B)
    mesh.waiting.sort(key=lambda each: each[0] != B)
    sender, receiver, message = mesh.waiting.pop(0)
    mesh.do(receiver, mesh.all[receiver].read(sender, message, mesh.now))
    assert (sender, message) == (B, {"a": 1}) and mesh.take() == []
    mesh.deliver()
    assert mesh.take() == [("p", NameRefused("x", "taken", r.pid))]


def test_a_peer_that_does_not_answer_is_waited_for_for_a_while_or_until_it_is_down() -> None:
    for down in (False, True):
        mesh = Mesh(A, B)
        p = life("p")
        mesh.register("x", p)
        mesh.waiting.clear()
        mesh.later(LIMITS.name_claim_ms / 1_000 - 0.01)
        assert mesh.take() == []
        if down:
            mesh.disconnect(A, B)
        else:
            mesh.later(0.01)
        assert mesh.take() == [("p", Registered("x", p.pid))]


@pytest.mark.parametrize("how", ["ended", "given back"])
def test_a_claim_that_is_taken_back_is_answered(how: str) -> None:
    mesh = Mesh(A, B)
    p = life("p")
    mesh.register("x", p)
    mesh.register("x", p)
    if how == "ended":
        mesh.do(A, mesh.all[A].ended(p, mesh.now))
        expected = [("p", NameRefused("x", "no_process"))] * 2
    else:
        mesh.do(A, mesh.all[A].unregister("x", p, asker(p), mesh.now))
        expected = [("p", NameRefused("x", "given_back"))] * 2 + [("p", Unregistered("x", True))]
    assert mesh.take() == expected
    mesh.deliver()
    mesh.later(10.0)
    mesh.deliver()
    assert mesh.take() == [] and mesh.all[B].names == {}


@pytest.mark.parametrize("earlier", [A, B])
def test_after_a_partition_the_earlier_one_keeps_the_name_and_the_other_is_told(
    earlier: NodeId,
) -> None:
    mesh = Mesh(A, B, C, connected=False)
    mesh.connect(B, C)
    mesh.wall_ms[earlier] -= 1
    p, q = life("p"), life("q", B)
    mesh.register("x", p)
    mesh.register("x", q)
    mesh.deliver()
    assert sorted(mesh.take()) == [("p", Registered("x", p.pid)), ("q", Registered("x", q.pid))]
    mesh.connect(A, B)
    mesh.connect(A, C)
    mesh.deliver()
    winner, loser = (p, q) if earlier == A else (q, p)
    assert mesh.take() == [(loser.pid.name, NameLost("x", winner.pid))]
    mesh.later(1.0)
    mesh.deliver()
    assert [each.names for each in mesh.all.values()] == [{"x": winner.pid}] * 3
    assert mesh.take() == []


def test_names_and_groups_of_a_node_that_is_down_go_with_it() -> None:
    mesh = Mesh(A, B)
    q = life("q", B)
    mesh.register("x", q)
    mesh.do(B, mesh.all[B].join("g", q, asker(q), mesh.now))
    mesh.deliver()
    mesh.later(1.0)
    mesh.deliver()
    assert mesh.all[A].names == {"x": q.pid} and mesh.all[A].groups == {"g": (q.pid,)}
    mesh.disconnect(A, B)
    assert mesh.all[A].names == {} and mesh.all[A].groups == {}
    assert mesh.all[B].names == {"x": q.pid}
    mesh.connect(A, B)
    mesh.deliver()
    assert mesh.all[A].names == {"x": q.pid} and mesh.all[A].groups == {"g": (q.pid,)}


# What is told.


def test_a_node_without_names_says_nothing() -> None:
    mesh = Mesh(A, B, C)
    mesh.later(100.0)
    assert mesh.waiting == []


def test_changes_are_gathered_but_the_first_is_told_at_once() -> None:
    mesh = Mesh(A, B)
    for number in range(5):
        p = life(f"p{number}")
        mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    assert [len(message["g"]) for _, _, message in mesh.waiting] == [1]
    mesh.later(LIMITS.gossip_gather_ms / 1_000)
    assert [len(message["g"]) for _, _, message in mesh.waiting] == [1, 4]


def test_whoever_comes_is_told_all_there_is_and_no_part_of_it_again() -> None:
    mesh = Mesh(A, B)
    for number in range(2):
        p = life(f"p{number}")
        mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    mesh.waiting.clear()
    mesh.all[C] = Directory(C, LIMITS, lambda: 1)
    mesh.connect(A, C)
    assert [message.get("w") for _, peer, message in mesh.waiting if peer == C] == [2]
    assert [message["f"] for _, peer, message in mesh.waiting if peer == B] == [1]
    mesh.later(1.0)
    assert len(mesh.waiting) == 2


def test_a_digest_finds_what_was_lost() -> None:
    mesh = Mesh(A, B)
    p = life("p")
    mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    mesh.waiting.clear()
    mesh.later(LIMITS.digest_ms / 1_000)
    assert [(sender, message) for sender, _, message in mesh.waiting] == [(A, {"d": 1})]
    mesh.deliver()
    assert mesh.all[B].groups == {"g": (p.pid,)}
    mesh.later(LIMITS.digest_ms / 1_000)
    assert len(mesh.waiting) == 1


def test_whoever_asks_for_all_again_and_again_is_answered_once_in_a_while() -> None:
    mesh = Mesh(A, B)
    p = life("p")
    mesh.do(A, mesh.all[A].join("g", p, asker(p), mesh.now))
    mesh.later(100.0)
    mesh.waiting.clear()
    for _ in range(10):
        mesh.do(A, mesh.all[A].read(B, {"q": True}, mesh.now))
    assert len(mesh.waiting) == 1
    mesh.later(LIMITS.digest_ms / 2_000)
    mesh.waiting.clear()
    mesh.do(A, mesh.all[A].read(B, {"q": True}, mesh.now))
    assert len(mesh.waiting) == 1


def test_whoever_is_not_up_is_not_heard() -> None:
    mesh = Mesh(A)
    row = {"f": 0, "t": 1, "n": [[1, "x", "q", None, 5, True]], "g": [], "x": []}
    assert mesh.all[A].read(B, row, 0.0) == []
    mesh.do(A, mesh.all[A].peer_up(B, 0.0))
    mesh.do(A, mesh.all[A].read(B, row, 0.0))
    assert mesh.all[A].names == {"x": Pid("q", B)}
    mesh.do(A, mesh.all[A].peer_up(B, 0.0))
    assert mesh.all[A].names == {}


@pytest.mark.parametrize(
    "message",
    [None, [], "x", {"a": -1}, {"a": 1}, {"a": True}, {"d": -1}, {"d": 2**63}, {"d": b""},
     {"t": 1}, {"t": 1, "f": 0}, {"t": 1, "f": 0, "n": [1], "g": []}],
    ids=repr,
)  # fmt: skip
def test_what_is_not_well_formed_changes_nothing(message: object) -> None:
    mesh = Mesh(A, B)
    with pytest.raises(DirectoryError):
        mesh.all[A].read(B, message, 0.0)
    assert mesh.all[A].names == {} and mesh.all[A].tick(0.0) == []


def test_whoever_has_no_room_acknowledges_all_the_same() -> None:
    mesh = Mesh(A, B, limits=Limits(names_max=1))
    row = [[number, f"x{number}", "q", None, 5, False] for number in (1, 2)]
    with pytest.raises(DirectoryLimit):
        mesh.all[A].read(B, {"f": 0, "t": 2, "n": row, "g": [], "x": []}, 0.0)
    assert told(mesh.all[A].tick(0.0)) == [(B, {"a": 2})]


# Guests.

GUEST = NodeId("g", "guest-1:0")


def test_a_guest_has_no_names_and_is_in_no_groups() -> None:
    directory = Directory(GUEST, LIMITS, lambda: 1_000, guest=True)
    owner = life("p", GUEST)
    (refused,) = directory.register("n", owner, asker(owner), 0.0)
    assert isinstance(refused, Answer) and isinstance(refused.msg, NameRefused)
    assert refused.msg.reason == "guest"
    (refused,) = directory.join("g", owner, asker(owner), 0.0)
    assert isinstance(refused, Answer) and isinstance(refused.msg, GroupRefused)
    assert refused.msg.reason == "guest"
    assert directory.names == {} and directory.groups == {}


def test_nobody_who_registers_waits_for_a_guest() -> None:
    directory = Directory(A, LIMITS, lambda: 1_000)
    # It is told all there is, like anybody.
    directory.register("before", life("p"), asker(life("p")), 0.0)
    assert [node for node, _ in told(directory.peer_up(GUEST, 1.0))] == [GUEST]
    actions = directory.register("n", life("p"), asker(life("p")), 2.0)
    assert answers(actions) == [("p", Registered("n", life("p").pid))]
    directory.peer_down(GUEST, 3.0)
    assert directory._peers == {}


def test_what_a_guest_says_of_names_and_groups_is_not_taken_in() -> None:
    other = Directory(GUEST, LIMITS, lambda: 1_000)
    other.peer_up(A, 0.0)
    other.register("n", life("p", GUEST), asker(life("p", GUEST)), 0.0)
    statements = [message for _, message in told(other.tick(1.0))]
    directory = Directory(A, LIMITS, lambda: 1_000)
    directory.peer_up(GUEST, 0.0)
    assert any("t" in message for message in statements)
    for message in statements:
        with pytest.raises(DirectoryError, match="it is a guest"):
            directory.read(GUEST, message, 1.0)
    assert directory.names == {}
