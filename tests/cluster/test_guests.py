"""Guests: a node that talks and watches like any other, and that nobody remembers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    DeadLetter,
    DeadLetterReason,
    Down,
    Envelope,
    JoinFailed,
    Limits,
    Mesh,
    Monitor,
    NameTaken,
    Node,
    NodeDown,
    NodeId,
    NodeUp,
    NotConnected,
    Pid,
    RabbleError,
)
from rabble._core.messages import is_guest
from rabble.cluster.io.keys import new_node_key, write_node_key
from tests.cluster.mesh import SHORT, Told, linked, names, nothing_left, rouse, until
from tests.cluster.remembered import remembered
from tests.faults.raw import CLUSTER, KEY
from tests.support import PATIENCE_S, Does, Echo


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def visit(name: str | NodeId | None = "visitor", **mesh: Any) -> Node:
    """A guest of the mesh of the tests."""
    return rabble.rouse(
        name,
        mesh=Mesh(**{"key": KEY, "cluster": CLUSTER, "guest": True, **mesh}),
        limits=Limits(**SHORT),
    )


def watches(node: Node, whom: Pid, told: Pid, name: str) -> Pid:
    """Have a process there watch another one, and tell when it goes."""
    return node.spawn(
        Does(
            lambda _, msg, sender: Envelope(told, msg) if isinstance(msg, Down) else None,
            lambda process: Envelope(node._runtime.executor.pid, Monitor(whom)),
        ),
        name,
    )


def test_a_guest_takes_part_like_a_member_and_is_forgotten() -> None:
    with rouse("a") as a, rouse("b") as b:
        a.join(b.node_id.addr, wait=PATIENCE_S)
        told = [Told(a), Told(b)]
        a.spawn(Echo(), "echo")
        b.spawn(Echo(), "echo")
        a.names.register("the echo", a.pid("echo"))
        b.groups.join("echoes", b.pid("echo"))
        with a.mailbox("watch") as watch:
            with visit(labels=["batch"]) as guest:
                assert guest.join(a.node_id.addr, wait=PATIENCE_S) == a.node_id
                until(lambda: linked(guest) == ["a", "b"])
                seen = Told(guest)
                seen.up(a, b)
                guest.spawn(Echo(), "echo")
                name = guest.node_id.name
                assert name.startswith("visitor-") and is_guest(guest.node_id)
                # It is told of, as what it is.
                for each in told:
                    each.up(guest)
                    (up,) = each.of(guest.node_id)
                    assert isinstance(up, NodeUp)
                    assert up.guest and up.labels == {"batch"}
                    assert not any(
                        event.guest
                        for event in each.events
                        if isinstance(event, NodeUp) and event.node != guest.node_id
                    )
                # It calls, and is called.
                for member in (a, b):
                    assert guest.call(member.pid("echo"), 1, PATIENCE_S) == 1
                    assert member.call(guest.pid("echo"), 2, PATIENCE_S) == 2
                # It watches, and is watched.
                with guest.mailbox("watch") as from_there:
                    short = a.spawn(Echo(), "short")
                    watches(guest, short, from_there.pid, "watches")
                    until(lambda: a._runtime.executor.processes == 2)
                    guest.call(a.pid("echo"), 1, PATIENCE_S)
                    a.stop(short)
                    assert from_there.receive(PATIENCE_S).msg.pid == short
                watches(a, guest.pid("echo"), watch.pid, "watches")
                # It knows the names and groups of the members.
                until(lambda: guest.names.whereis("the echo") == a.pid("echo"))
                until(lambda: guest.groups.members("echoes") == (b.pid("echo"),))
                # The members are who they were, to all.
                assert names(a) == names(b) == names(guest) == ["a", "b"]
                # A name is registered without asking it, and at once.
                b.names.register("another", b.pid("echo"))
                until(lambda: guest.names.whereis("another") == b.pid("echo"))
            down = watch.receive(PATIENCE_S).msg
            assert (down.pid, down.reason.kind) == (guest.pid("echo"), "shutdown")
            for each in told:
                assert isinstance(each.down(guest.node_id), NodeDown)
                each.alternate()
                each.events.clear()
        a.stop(a.pid("watches"))
        until(lambda: not any("watches" in str(pid) for pid in a.processes()))
        assert names(a) == names(b) == ["a", "b"]
        for member in (a, b):
            until(lambda member=member: len(linked(member)) == 1)
            # A while later the log has been written, and what was under way is over.
            vars(member).pop("_told_in_tests")
            until(lambda member=member: remembered(member, name) == [])


@pytest.mark.parametrize("asks", ["name", "group"])
def test_a_guest_has_no_names_and_is_in_no_groups(asks: str) -> None:
    with rouse("a") as a, visit() as guest:
        guest.join(a.node_id, wait=PATIENCE_S)
        pid = guest.spawn(Echo(), "echo")
        with pytest.raises(RabbleError, match="a guest has no names and is in no groups") as caught:
            if asks == "name":
                guest.names.register("x", pid)
            else:
                guest.groups.join("x", pid)
        assert not isinstance(caught.value, NameTaken)
        # It may be told of groups all the same.
        with guest.mailbox() as box:
            assert guest.groups.subscribe("x", box.pid) == ()
            member = a.spawn(Echo(), "echo")
            a.groups.join("x", member)
            assert box.receive(PATIENCE_S).msg.joined == (member,)


def test_a_guest_has_no_say_in_who_belongs_to_the_mesh() -> None:
    with rouse("a") as a, visit() as guest:
        guest.join(a.node_id.addr, wait=PATIENCE_S)
        until(lambda: names(guest) == ["a"])
        for attempt in (
            lambda: guest.leave(),
            lambda: guest.leave("a"),
            lambda: guest.ban("a", 5),
            lambda: guest.lift_ban("a"),
        ):
            with pytest.raises(RuntimeError, match="is a guest, which has no say"):
                attempt()
        # Of what it joined and nobody answered it may let go.
        guest.join("127.0.0.1:1")
        guest.leave("127.0.0.1:1")
        assert names(a) == ["a"] and not guest.cluster_status().removed


def test_two_guests_do_not_reach_each_other() -> None:
    with rouse("a") as a, visit() as one, visit() as other:
        for guest in (one, other):
            guest.join(a.node_id.addr, wait=PATIENCE_S)
        other.spawn(Echo(), "echo")
        with one.mailbox() as box:
            one.subscribe_dead_letters(box.pid)
            box.send(other.pid("echo"), 1)
            letter = box.receive(PATIENCE_S).msg
            assert isinstance(letter, DeadLetter)
            assert letter.reason is DeadLetterReason.NOT_CONNECTED
        with pytest.raises(NotConnected):
            one.call(other.pid("echo"), 1, PATIENCE_S)


def test_a_banned_guest_is_let_go_and_a_wrong_key_lets_nobody_in() -> None:
    with rouse("a") as a:
        with visit(key=bytes(32)) as stranger:
            with pytest.raises(JoinFailed) as caught:
                stranger.join(a.node_id.addr, wait=PATIENCE_S)
            assert caught.value.code == "AUTH"
        with visit(NodeId("visitor", "any:1")) as guest:
            guest.join(a.node_id.addr, wait=PATIENCE_S)
            told = Told(a)
            told.up(guest)
            a.ban("visitor", 1_000)
            assert told.down(guest.node_id).reason == "banned"
            until(lambda: linked(guest) == [])
            with pytest.raises(JoinFailed) as caught:
                guest.join(a.node_id.addr, wait=PATIENCE_S)
            assert caught.value.code == "BANNED"
        assert names(a) == ["a"]


def test_a_guest_has_the_name_of_its_own_key(tmp_path: Any) -> None:
    path = tmp_path / "visitor.key"
    write_node_key(path, new_node_key(bytes(range(32)), "visitor", os.urandom))
    with visit("visitor", key=path) as guest:
        assert guest.node_id.name == "visitor"


def test_how_a_guest_is_called() -> None:
    with visit(None) as unnamed, visit("x@10.0.0.1:5") as named:
        assert unnamed.node_id.name.startswith("guest-")
        assert named.node_id.name == "x" and is_guest(named.node_id)
        assert named.node_id.addr != unnamed.node_id.addr
    with pytest.raises(ValueError, match="a guest listens nowhere"):
        Mesh(guest=True, bind="127.0.0.1:0")
    with pytest.raises(TypeError, match="guest must be True or False"):
        Mesh(guest=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'::'"):
        visit("a::b")


def test_a_guest_of_asyncio_comes_and_goes_by_its_seeds() -> None:
    with rouse("a") as a:
        a.spawn(Echo(), "echo")

        async def main() -> int:
            async with visit() as guest:
                await guest.join_async(a.node_id.addr, wait=PATIENCE_S)
                answer: int = await guest.call_async(a.pid("echo"), 3, PATIENCE_S)
                return answer

        assert asyncio.run(main()) == 3
        until(lambda: linked(a) == [])
        with visit(seeds=[a.node_id.addr]) as guest:
            until(lambda: linked(a) == [guest.node_id.name])


KILLED = """
import sys, time, rabble
from tests.cluster.test_guests import visit
from tests.support import Echo
guest = visit()
guest.join(sys.argv[1], wait=30)
guest.spawn(Echo(), "echo")
print(guest.node_id, flush=True)
time.sleep(60)
"""


def test_a_guest_that_is_killed_is_down_at_once_and_forgotten() -> None:
    # So long may a member be silent that it cannot be by that.
    with rouse("a", limits={"down_after_ms": 60_000}) as a, a.mailbox("watch") as watch:
        told = Told(a)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, a.node_id.addr], stdout=subprocess.PIPE, text=True
        ) as guest:
            assert guest.stdout is not None
            node_id = NodeId.parse(guest.stdout.readline().strip())
            told.until(lambda events: events)
            assert a.call(Pid("echo", node_id), 1, PATIENCE_S) == 1
            watches(a, Pid("echo", node_id), watch.pid, "watches")
            assert a.call(Pid("echo", node_id), 2, PATIENCE_S) == 2
            guest.send_signal(signal.SIGKILL)
        assert told.down(node_id).reason == "lost"
        assert watch.receive(PATIENCE_S).msg.reason.kind == "disconnected"
        a.stop(a.pid("watches"))
        until(lambda: a._runtime.executor.processes == 0)
        vars(a).pop("_told_in_tests")
        told.events.clear()
        until(lambda: remembered(a, node_id.name) == [])
