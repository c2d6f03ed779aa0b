"""Which events end a join that is waited for: each once, by who is connected or with a reason."""

from __future__ import annotations

import types
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rabble import JoinFailed, NodeId, NodeStopped, Pid
from rabble.cluster.decide.handshake_actions import Failed
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.joins import PASSING, Joining, Joins

OWN = NodeId("own", "10.0.0.9:1")
ADDRS = [f"10.0.0.{n}:1" for n in range(3)]
HOSTS = [*ADDRS, "several:1"]
NODES = [NodeId(name, addr) for name in "ab" for addr in ADDRS[:2]]


class Once:
    """How a join ended; a second end is a mistake."""

    to: Pid
    number: int

    def __init__(self) -> None:
        self.ends: list[Any] = []

    def set_result(self, value: Any) -> bool:
        self.ends.append(value)
        return True

    def set_exception(self, error: Exception) -> bool:
        self.ends.append(error)
        return True


def peer(node: NodeId, incarnation: int) -> Any:
    return types.SimpleNamespace(node=node, incarnation=incarnation)


class Model(RuleBasedStateMachine):
    """Any events in any order: what the real one ends with is what is known to be so."""

    def __init__(self) -> None:
        super().__init__()
        self.joins = Joins(OWN)
        self.all: list[tuple[Joining, Once]] = []
        self.forgotten: set[int] = set()
        #: What was ever true: who was connected, and which dials were refused for good.
        self.connected: set[NodeId] = set()
        self.refused: set[str] = set()
        self.unresolved: set[str] = set()
        self.is_closed = False

    def waiting(self) -> list[tuple[Joining, Once]]:
        return [each for each in self.all if not each[1].ends and id(each[0]) not in self.forgotten]

    @rule(meant=st.sampled_from([*HOSTS, *NODES]))
    def somebody_joins(self, meant: NodeId | str) -> None:
        end = Once()
        joining = Joining(meant, end)
        self.joins.add(joining)
        self.all.append((joining, end))

    @rule(data=st.data())
    def somebody_waits_no_more(self, data: st.DataObject) -> None:
        if waiting := self.waiting():
            joining, _ = data.draw(st.sampled_from(waiting))
            self.joins.forget(joining)
            self.forgotten.add(id(joining))

    @rule(
        host=st.sampled_from(HOSTS), found=st.none() | st.sets(st.sampled_from(ADDRS), min_size=1)
    )
    def a_host_is_looked_up(self, host: str, found: set[str] | None) -> None:
        if found is None:
            self.unresolved.add(host)
        self.joins.looked_up(host, OSError("no such host") if found is None else found)

    @rule(
        addr=st.sampled_from(ADDRS),
        whom=st.none() | st.sampled_from(NODES),
        node=st.sampled_from(NODES),
        incarnation=st.integers(1, 3),
    )
    def somebody_answers(
        self, addr: str, whom: NodeId | None, node: NodeId, incarnation: int
    ) -> None:
        self.joins.answered(addr, whom, node, incarnation)

    @rule(
        addr=st.sampled_from(ADDRS),
        whom=st.none() | st.sampled_from(NODES),
        code=st.sampled_from(RefusalCode),
    )
    def a_dial_fails(self, addr: str, whom: NodeId | None, code: RefusalCode) -> None:
        before = {id(joining) for joining, _ in self.waiting()}
        self.joins.failed(addr, whom, Failed(code, "why", False))
        ended = before - {id(joining) for joining, _ in self.waiting()}
        assert not (ended and code in PASSING)
        if code not in PASSING:
            self.refused.add(code.name)

    @rule(peers=st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 3)), max_size=3))
    def connections_are_shown(self, peers: list[tuple[NodeId, int]]) -> None:
        self.connected |= {node for node, _ in peers}
        self.joins.settle(peer(*each) for each in peers)
        for joining, _ in self.waiting():
            target = joining.target
            assert not any(
                node.name == target.name
                if isinstance(target, NodeId)
                else node.addr in (joining.addrs or ())
                for node, _ in peers
            )

    @rule(name=st.sampled_from([*HOSTS, "a", "b"]))
    def somebody_is_left(self, name: str) -> None:
        self.joins.left(name)

    @rule()
    def the_node_ends(self) -> None:
        self.joins.close()
        self.is_closed = True
        assert self.waiting() == []

    @invariant()
    def each_ends_once_and_for_a_reason(self) -> None:
        assert len(self.joins) == len(self.waiting())
        for joining, end in self.all:
            if id(joining) in self.forgotten:
                assert end.ends == []
                continue
            assert len(end.ends) <= 1
            for how in end.ends:
                if isinstance(how, NodeStopped):
                    assert self.is_closed
                elif isinstance(how, JoinFailed):
                    assert how.code in {*self.refused, "UNRESOLVED", ""}
                    assert how.code != "UNRESOLVED" or joining.target in self.unresolved
                else:
                    assert how in self.connected


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=200, stateful_step_count=30)


def test_an_earlier_start_of_who_answers_is_about_to_be_replaced() -> None:
    joins, end = Joins(OWN), Once()
    joins.add(Joining("h:1", end))
    joins.looked_up("h:1", [ADDRS[0]])
    joins.answered(ADDRS[0], None, NODES[1], 7)
    joins.settle([peer(NODES[1], 6)])
    assert end.ends == []
    joins.settle([peer(NODES[1], 7)])
    assert end.ends == [NODES[1]]


def test_who_answered_at_an_address_is_dialled_by_its_name_later() -> None:
    joins, end = Joins(OWN), Once()
    joins.add(Joining("h:1", end))
    joins.looked_up("h:1", [ADDRS[0]])
    joins.answered(ADDRS[0], None, NODES[1], 7)
    # Of another node the same says nothing.
    joins.failed(NODES[3].addr, NODES[3], Failed(RefusalCode.BANNED, "for a day", True))
    assert end.ends == []
    joins.failed(NODES[1].addr, NODES[1], Failed(RefusalCode.BANNED, "for a day", True))
    (error,) = end.ends
    assert (error.code, error.detail, error.node) == ("BANNED", "for a day", NODES[1])
    assert len(joins) == 0
