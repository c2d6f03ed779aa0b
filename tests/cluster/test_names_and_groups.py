"""Names and groups over a mesh: nodes in one process of the operating system, real connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    CorrelationId,
    Envelope,
    Group,
    GroupChanged,
    JoinGroup,
    Limits,
    NameHolder,
    NameLost,
    NameTaken,
    Node,
    NodeUp,
    NoProcess,
    Output,
    Pid,
    Process,
    QueueFull,
    Register,
    Registered,
    WhereIs,
)
from rabble.cluster.decide.handshake import Established
from tests.cluster.mesh import Told, meet, nothing_left, rouse
from tests.faults.raw import RawPeer
from tests.support import PATIENCE_S, Echo, until


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def three() -> Iterator[list[Node]]:
    nodes = [rouse(name) for name in ("n1", "n2", "n3")]
    try:
        meet(*nodes)
        yield nodes
    finally:
        for node in nodes:
            node.shutdown()


@pytest.fixture
def alone() -> Iterator[Node]:
    with rabble.rouse() as node:
        yield node


class Asks(Process):
    """Sends its executor what it is sent, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
        if isinstance(msg, tuple) and msg[0] == "ask":
            return [Envelope(self.executor, each) for each in msg[1:]]
        self.told.append(msg)
        return None


def test_a_process_registers_and_others_find_it_on_every_node(three: list[Node]) -> None:
    process = Asks()
    pid = three[0].spawn(process, "p")
    three[0].send(pid, ("ask", Register("leader")))
    until(lambda: process.told == [Registered("leader", pid)])
    until(lambda: all(node.names.whereis("leader") == pid for node in three))
    with pytest.raises(NameTaken, match="'leader' is the name of p::n1@"):
        three[1].names.register("leader", three[1].spawn(Asks(), "q"))


def test_the_news_of_a_name_comes_before_what_its_owner_sends(three: list[Node]) -> None:
    class Owner(Asks):
        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            if isinstance(msg, Registered):
                return [Envelope(to, "I am it") for to in self.listeners]
            return super().receive(msg, sender, cid)

    class Listener(Asks):
        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            if msg == "I am it":
                return Envelope(self.executor, WhereIs("leader"))
            return super().receive(msg, sender, cid)

    listeners = [Listener() for _ in three]
    owner = Owner()
    owner.listeners = [
        node.spawn(each, "listener") for node, each in zip(three, listeners, strict=True)
    ]
    pid = three[0].spawn(owner, "owner")
    three[0].send(pid, ("ask", Register("leader")))
    until(lambda: all(listener.told for listener in listeners))
    assert [listener.told for listener in listeners] == [[NameHolder("leader", pid)]] * 3


def test_a_name_and_a_membership_go_with_the_process_and_with_the_node(three: list[Node]) -> None:
    first, second, _ = three
    p, q = first.spawn(Asks(), "p"), second.spawn(Asks(), "q")
    first.names.register("leader", p)
    first.groups.join("workers", p)
    second.groups.join("workers", q)
    until(lambda: all(set(node.groups.members("workers")) == {p, q} for node in three))
    first.stop(p)
    until(lambda: first.executor_status().processes == 0)
    again = first.spawn(Asks(), "p")
    until(lambda: all(node.groups.members("workers") == (q,) for node in three))
    assert again == p and all(node.names.whereis("leader") is None for node in three)
    second.shutdown()
    until(lambda: first.groups.members("workers") == three[2].groups.members("workers") == ())


def test_nodes_that_meet_choose_one_owner_and_tell_the_other() -> None:
    one, other = rouse("n1"), rouse("n2")
    try:
        early, late = Asks(), Asks()
        one.names.register("leader", one.spawn(early, "early"))
        time_ms = int(time.time() * 1_000)
        until(lambda: int(time.time() * 1_000) > time_ms)
        other.names.register("leader", other.spawn(late, "late"))
        meet(one, other)
        until(lambda: bool(late.told))
        assert late.told == [NameLost("leader", one.pid("early"))]
        until(lambda: other.names.whereis("leader") == one.pid("early"))
        assert early.told == [] and one.names.whereis("leader") == one.pid("early")
    finally:
        one.shutdown()
        other.shutdown()


def test_a_subscriber_sees_members_come_and_go_and_sends_to_them(three: list[Node]) -> None:
    class Boss(Process):
        def __init__(self) -> None:
            self.group = Group("workers")
            self.told: list[Any] = []

        def init(self) -> Output:
            return self.group.subscribe(self.executor)

        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            if self.group.takes(msg):
                return None
            if isinstance(msg, str):
                return self.group.to_all(("work", msg))
            self.told.append(msg)
            return None

    boss = Boss()
    pid = three[0].spawn(boss, "boss")
    workers = [node.spawn(Echo(), f"w{number}") for number in range(2) for node in three]
    for worker in workers:
        node = next(node for node in three if node.node_id == worker.node)
        node.groups.join("workers", worker)
    until(lambda: set(boss.group.members) == set(workers))
    three[0].send(pid, "now")
    until(lambda: len(boss.told) == 6)
    three[1].stop(workers[1])
    three[2].shutdown()
    until(lambda: len(boss.group) == 3)


def test_a_node_by_itself_has_names_and_groups_too(alone: Node) -> None:
    with alone.mailbox("m") as box, alone.mailbox("n") as other:
        alone.names.register("x", box.pid)
        alone.names.register("x", box.pid)
        with pytest.raises(NameTaken, match="'x' is the name of m::local@"):
            alone.names.register("x", other.pid)
        assert alone.names.whereis("x") == box.pid and alone.names.whereis("y") is None
        assert not alone.names.unregister("x", other.pid)
        assert alone.names.unregister("x", box.pid) and alone.names.whereis("x") is None
        assert alone.groups.subscribe("g", other.pid) == ()
        alone.groups.join("g", box.pid)
        assert alone.groups.members("g") == (box.pid,)
        assert other.receive(PATIENCE_S).msg == GroupChanged("g", (box.pid,), ())
        assert alone.groups.leave("g", box.pid) and not alone.groups.leave("g", box.pid)
        assert other.receive(PATIENCE_S).msg == GroupChanged("g", (), (box.pid,))
        assert alone.groups.subscribe("g", other.pid, False) == ()
        alone.groups.join("g", box.pid)
        alone.names.register("x", box.pid)
    until(lambda: alone.names.whereis("x") is None and alone.groups.members("g") == ())
    assert len(other) == 0


def test_asyncio_has_the_same(alone: Node) -> None:
    async def main() -> None:
        with alone.mailbox("m") as box:
            await alone.names.register_async("x", box.pid)
            assert await alone.names.whereis_async("x") == box.pid
            assert await alone.names.unregister_async("x", box.pid)
            assert await alone.groups.subscribe_async("g", box.pid) == ()
            await alone.groups.join_async("g", box.pid)
            assert await alone.groups.members_async("g") == (box.pid,)
            assert await alone.groups.leave_async("g", box.pid)
            with pytest.raises(NoProcess):
                await alone.groups.join_async("g", alone.pid("nobody"))
            with pytest.raises(NoProcess):
                await alone.names.register_async("x", alone.pid("nobody"))

    asyncio.run(main())


@pytest.mark.parametrize("strict", [True, "changes"])
def test_strict_mode_lets_it_pass(strict: Any) -> None:
    with rabble.rouse(strict=strict) as node:

        class Begins(Asks):
            def init(self) -> Output:
                return self.receive(
                    ("ask", Register("x"), JoinGroup("g"), WhereIs("x")), None, None
                )

        process = Begins()
        pid = node.spawn(process, "p")
        until(lambda: len(process.told) == 3)
        assert node.names.whereis("x") == pid and node.groups.members("g") == (pid,)
        assert process.told[2] == NameHolder("x", pid)


def test_what_cannot_be_done_says_why(alone: Node) -> None:
    nobody, elsewhere = alone.pid("nobody"), Pid.parse("p::far@h:1")
    with alone.mailbox("m") as box:
        calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
            (NoProcess, "nobody::local", lambda: alone.names.register("x", nobody)),
            (NoProcess, "nobody::local", lambda: alone.groups.join("g", nobody)),
            (NoProcess, "nobody::local", lambda: alone.groups.subscribe("g", nobody)),
            (ValueError, "let its own node register", lambda: alone.names.register("x", elsewhere)),
            (ValueError, "unregister", lambda: alone.names.unregister("x", elsewhere)),
            (ValueError, "join on its own node", lambda: alone.groups.join("g", elsewhere)),
            (ValueError, "leave on its own node", lambda: alone.groups.leave("g", elsewhere)),
            (ValueError, "subscribe on its own", lambda: alone.groups.subscribe("g", elsewhere)),
            (TypeError, "takes a Pid", lambda: alone.names.register("x", "m")),  # type: ignore[arg-type]
            (ValueError, "empty", lambda: alone.names.register("", box.pid)),
            (ValueError, "::", lambda: alone.groups.join("a::b", box.pid)),
            (ValueError, "empty", lambda: alone.names.whereis("")),
        ]
        for error, text, call in calls:
            with pytest.raises(error, match=text):
                call()
        assert alone.status == "running" and alone.executor_status().crashes == 0


def test_a_bound_that_is_reached_is_named() -> None:
    with rabble.rouse(limits=Limits(names_max=1, groups_max=1)) as node, node.mailbox("m") as box:
        node.names.register("x", box.pid)
        node.groups.join("g", box.pid)
        with pytest.raises(QueueFull, match=r"'y': 2 names are too many: Limits.names_max is 1"):
            node.names.register("y", box.pid)
        with pytest.raises(QueueFull, match=r"'h': 2 groups are too many: Limits.groups_max is 1"):
            node.groups.join("h", box.pid)


def test_a_peer_that_says_nonsense_of_its_names_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with rouse("n1") as node, RawPeer(node, join=True) as peer:
        assert isinstance(peer.ended, Established) and peer.session is not None
        to, sender = (Pid("directory", each, "rabble") for each in (node.node_id, peer.node))
        row = {"f": 0, "t": 1, "n": [[1, "x", "p", None, 5, True]], "g": [], "x": []}
        nonsense = (None, [], {"t": 1}, {"a": 10**30}, {"f": 0, "t": 5, "n": 1, "g": []})
        for message in (*nonsense, row):
            peer.say(peer.session.encode(Envelope(to, message, sender)))
        until(lambda: node.names.whereis("x") == Pid("p", peer.node))
        # In the name of a process it says nothing, and asks for nothing.
        for stranger in (Pid("p", peer.node), Pid("calls", peer.node, "rabble")):
            peer.say(peer.session.encode(Envelope(to, row | {"f": 1, "t": 2}, stranger)))
        until(lambda: node.executor_status().dead_letters.get("refused") == 2)
        until(lambda: "names and groups of rabble::directory::raw@" in caplog.text)
        assert node.status == "running" and node.names.whereis("x") == Pid("p", peer.node)
        peer.close()
        until(lambda: node.names.whereis("x") is None)


def test_a_node_is_told_with_its_labels() -> None:
    one = rouse("n1", mesh={"labels": ["storage", "ssd"]})
    other = rouse("n2")
    try:
        first, second = meet(one, other)
        (up,) = second.of(one.node_id)
        assert isinstance(up, NodeUp) and up.labels == {"storage", "ssd"}
        (up,) = first.of(other.node_id)
        assert isinstance(up, NodeUp) and up.labels == frozenset()
        # Who subscribes later is told the same.
        late = Told(other)
        late.up(one)
        (up,) = late.of(one.node_id)
        assert isinstance(up, NodeUp) and up.labels == {"storage", "ssd"}
    finally:
        one.shutdown()
        other.shutdown()


@pytest.mark.parametrize("strict", [True, "changes"])
def test_in_strict_mode_nodes_tell_each_other_the_same(strict: Any) -> None:
    one, other = rouse("n1", strict=strict), rouse("n2", strict=strict)
    try:
        meet(one, other)
        process = Asks()
        pid = one.spawn(process, "p")
        one.names.register("x", pid)
        one.groups.join("g", pid)
        until(lambda: other.names.whereis("x") == pid and other.groups.members("g") == (pid,))
        assert not one.executor_status().dead_letters and not other.executor_status().dead_letters
    finally:
        one.shutdown()
        other.shutdown()


def test_many_names_and_members_come_whole_and_in_parts() -> None:
    """More than one statement holds, before and after the nodes know each other."""
    one, other = rouse("n1"), rouse("n2")
    try:
        pids = [one.spawn(Echo(), f"p{number}") for number in range(1_200)]
        for pid in pids[:600]:
            one.groups.join("g", pid)
        meet(one, other)
        for pid in pids[600:]:
            one.groups.join("g", pid)
        until(lambda: set(other.groups.members("g")) == set(pids))
        for pid in pids[::2]:
            one.stop(pid)
        until(lambda: set(other.groups.members("g")) == set(pids[1::2]))
        assert not one.executor_status().dead_letters and not other.executor_status().dead_letters
    finally:
        one.shutdown()
        other.shutdown()
