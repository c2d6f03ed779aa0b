"""Exits across connections: links between processes of two nodes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    CorrelationId,
    DownReason,
    Envelope,
    Exit,
    Link,
    NodeId,
    Output,
    Pid,
    Process,
    Stop,
    Unlink,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.registry import default_registry
from tests.core.peers import NEVER_MS, PID_CACHE_SLOTS, Hub, Peer
from tests.core.starvation import Starvation
from tests.reference.session import DOWN_CODES, PROTOCOL, SPOOF, UNANSWERED_CODES
from tests.support import BARE, TINY, bare_executor

CRASHED = DownReason("crashed", "RuntimeError: as told")


class Mortal(Process):
    """Raises when it is told to crash, sends what it is told to send, keeps the rest."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.ends: list[DownReason] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "crash":
            raise RuntimeError("as told")
        if isinstance(msg, list):
            return msg
        self.got.append(msg)
        return None

    def terminate(self, reason: DownReason) -> Output:
        self.ends.append(reason)
        return None


class Trapping(Mortal):
    traps_exits = True


def ask(executor: Executor, pid: Pid, *requests: object) -> None:
    executor.send(pid, [Envelope(executor.pid, each) for each in requests])


def local(hub: Hub, cls: type[Mortal] = Mortal, name: str = "near") -> tuple[Pid, Mortal]:
    process = cls()
    return hub.executor.spawn(process, name), process


def linked(hub: Hub, cls: type[Mortal] = Mortal, **more: Any) -> tuple[Peer, Pid, Mortal]:
    """A peer, and a process that has asked for a link with its `far`."""
    peer = hub.connect(**more)
    near, process = local(hub, cls)
    ask(hub.executor, near, Link(peer.pid("far")))
    hub.settle()
    peer.received.clear()
    return peer, near, process


def end(peer: Peer, why: str, reference: int, near: Pid, life: int = 7) -> None:
    peer.write("exit", near, peer.pid("far"), reference, DOWN_CODES[why], life, "so it is")


def test_what_is_asked_for_is_said() -> None:
    with Hub() as hub:
        peer = hub.connect()
        far = peer.pid("far")
        near, _ = local(hub)
        ask(hub.executor, near, Link(far), Link(far), Unlink(far), Unlink(far), Link(far))
        hub.settle()
        assert peer.received == [
            ("link", near, far, 1),
            ("link", near, far, 2),
            ("unlink", near, far, 0),
            ("link", near, far, 3),
        ]


@pytest.mark.parametrize(
    "why", ["stopped", "crashed", "shutdown", "linked", "no_process", "refused"]
)
@pytest.mark.parametrize("cls", [Mortal, Trapping])
def test_an_exit_ends_who_is_linked_or_tells_it(why: str, cls: type[Mortal]) -> None:
    with Hub() as hub:
        peer, near, process = linked(hub, cls)
        far = peer.pid("far")
        end(peer, why, 1, near, 0)
        hub.settle()
        reason = DownReason(why, "so it is")
        if cls is Trapping:
            assert process.got == [Exit(far, reason)]
        elif why == "stopped":
            assert near in hub.executor.table and process.ends == []
        else:
            passed = reason
            if why not in ("shutdown", "linked"):
                passed = DownReason("linked", f"{far}: {why}: so it is")
            assert near not in hub.executor.table and process.ends == [passed]
        # That was all, and the peer is told nothing: the link was gone.
        end(peer, "crashed", 1, near)
        hub.settle()
        assert len(process.got) <= 1 and peer.received == []


def test_the_end_of_this_one_is_said_behind_all_that_it_sent() -> None:
    with Hub() as hub:
        peer, near, _ = linked(hub)
        far = peer.pid("far")
        entry = hub.executor.table.get(near)
        assert entry is not None
        words = ["x" * 100_000, "last"]
        hub.executor.send(near, [Envelope(far, each) for each in words])
        hub.executor.send(near, "crash")
        hub.settle()
        assert peer.messages == words
        assert peer.received[2:] == [
            ("exit", far, near, 0, DOWN_CODES["crashed"], entry.life, CRASHED.detail)
        ]


def test_who_ends_before_its_unlink_is_handled_has_ended_the_link() -> None:
    """The peer is told that, and of no exit, behind what was sent before it."""
    with Hub() as hub:
        peer, near, _ = linked(hub)
        far = peer.pid("far")
        del peer.received[:]
        hub.executor.send(
            near,
            [
                Envelope(hub.executor.pid, Unlink(far)),
                Envelope(far, "behind it"),
            ],
        )
        hub.executor.send(hub.executor.pid, Stop(near, DownReason("shutdown", "enough")))
        hub.settle()
        assert near not in hub.executor.table
        assert [what[:3] for what in peer.received if what[0] != "envelope"] == [
            ("unlink", near, far)
        ]
        assert peer.messages == ["behind it"]


def test_a_link_is_said_behind_what_was_sent_before() -> None:
    """So the order of a pair is one order, whichever lane its messages take."""
    with Hub() as hub:
        peer = hub.connect()
        far = peer.pid("far")
        near, _ = local(hub)
        hub.executor.send(
            near,
            [
                Envelope(far, "x" * 100_000),
                Envelope(hub.executor.pid, Link(far)),
                Envelope(hub.executor.pid, Unlink(far)),
            ],
        )
        hub.settle()
        assert [what[0] for what in peer.received] == ["envelope", "link", "unlink"]


def test_a_peer_links_and_takes_that_back() -> None:
    with Hub() as hub:
        peer = hub.connect()
        far = peer.pid("far")
        for unlinks in (False, True):
            near, process = local(hub, Trapping)
            peer.write("link", far, near, 1)
            if unlinks:
                peer.write("unlink", far, near, 0)
            hub.settle()
            hub.executor.send(near, "crash")
            hub.settle()
            assert [what[:4] for what in peer.received] == (
                [] if unlinks else [("exit", far, near, 1)]
            )
            peer.received.clear()
            near, process = local(hub, Trapping)
            peer.write("link", far, near, 2)
            if unlinks:
                peer.write("unlink", far, near, 0)
            end(peer, "crashed", 0, near)
            hub.settle()
            assert len(process.got) == (not unlinks)
            hub.executor.send(hub.executor.pid, Stop(near))
            hub.settle()
            peer.received.clear()


def test_to_link_with_nobody_here_is_answered_in_its_turn() -> None:
    with Hub() as hub:
        peer = hub.connect()
        far, near = peer.pid("far"), Pid("near", BARE)
        peer.write("link", far, near, 5)
        peer.write("link", far, hub.executor.pid, 6)
        hub.settle()
        why = DOWN_CODES["no_process"]
        assert peer.received == [
            ("exit", far, near, 5, why, 0, ""),
            ("exit", far, hub.executor.pid, 6, why, 0, ""),
        ]


def test_both_may_ask_at_once_and_one_end_is_one_exit() -> None:
    with Hub() as hub:
        peer, near, process = linked(hub, Trapping)
        far = peer.pid("far")
        # It has not seen that one, and has its own LINK on its way.
        peer.write("link", far, near, 1)
        hub.settle()
        end(peer, "crashed", 1, near)
        hub.settle()
        assert [type(msg) for msg in process.got] == [Exit]
        hub.executor.send(near, "crash")
        hub.settle()
        assert peer.received == []


def test_an_exit_that_has_not_seen_the_last_link_leaves_that() -> None:
    """The LINK is under way to the next life of that name, or to nobody."""
    with Hub() as hub:
        peer, near, process = linked(hub, Trapping)
        far = peer.pid("far")
        ask(hub.executor, near, Link(far))
        hub.settle()
        end(peer, "crashed", 1, near)
        hub.settle()
        end(peer, "crashed", 1, near)
        hub.settle()
        assert len(process.got) == 1
        end(peer, "no_process", 2, near)
        hub.settle()
        assert [msg.reason.kind for msg in process.got] == ["crashed", "no_process"]


def test_an_unlink_that_has_not_seen_the_last_link_leaves_that() -> None:
    with Hub() as hub:
        peer, near, process = linked(hub, Trapping)
        far = peer.pid("far")
        peer.write("link", far, near, 1)
        # Written before LINK 1 of this node was read.
        peer.write("unlink", far, near, 0)
        hub.settle()
        end(peer, "crashed", 1, near)
        hub.settle()
        assert len(process.got) == 1


def test_a_late_exit_is_not_for_the_successor() -> None:
    with Hub() as hub:
        peer, near, _ = linked(hub)
        far = peer.pid("far")
        hub.executor.send(hub.executor.pid, Stop(near))
        hub.executor.step()
        successor, process = local(hub, Trapping)
        end(peer, "crashed", 1, successor)
        hub.settle()
        assert process.got == []
        ask(hub.executor, successor, Link(far))
        hub.settle()
        end(peer, "crashed", 1, successor)
        hub.settle()
        assert process.got == []
        end(peer, "crashed", 2, successor)
        hub.settle()
        assert len(process.got) == 1


@pytest.mark.parametrize("why", ["lost", "shutdown"])
@pytest.mark.parametrize("by_peer", [False, True])
def test_the_end_of_a_connection_is_an_exit(why: str, by_peer: bool) -> None:
    with Hub() as hub:
        hub.witness.why = why
        peer = hub.connect()
        far = peer.pid("far")
        near, process = local(hub)
        told, trapping = local(hub, Trapping, "told")
        for pid in (near, told):
            if by_peer:
                peer.write("link", far, pid, 1)
            else:
                ask(hub.executor, pid, Link(far))
        hub.settle()
        peer.close()
        hub.settle()
        kind = "shutdown" if why == "shutdown" else "disconnected"
        assert [(msg.pid, msg.reason.kind, msg.life) for msg in trapping.got] == [(far, kind, 0)]
        assert near not in hub.executor.table
        assert [reason.kind for reason in process.ends] == [
            "shutdown" if why == "shutdown" else "linked"
        ]


def test_an_exit_of_a_lost_connection_can_be_taken_back() -> None:
    with Hub() as hub:
        peer, near, process = linked(hub)
        hub.executor.send(near, "hello")
        peer.close()
        # It stands in the queue from when the executor has seen that end.
        while not hub.witness.ended:
            hub.executor.step(0)
        assert near in hub.executor.table
        hub.executor.send(hub.executor.pid, Unlink(peer.pid("far")), sender=near)
        hub.executor.step(0)
        hub.settle()
        assert process.got == ["hello"] and len(process.ends) == 1


def test_a_link_that_meant_the_start_before_is_an_exit() -> None:
    with Hub() as hub:
        peer, near, process = linked(hub, Trapping)
        peer.close()
        hub.settle()
        assert [msg.reason.kind for msg in process.got] == ["disconnected"]
        ask(hub.executor, near, Link(peer.pid("far")))
        hub.settle()
        assert process.got[1] == Exit(
            peer.pid("far"), DownReason("disconnected", f"no connection leads to {peer.node}")
        )
        again = hub.connect(incarnation=2)
        ask(hub.executor, near, Link(again.pid("far")))
        hub.settle()
        assert [what[0] for what in again.received] == ["link"] and len(process.got) == 2


def test_a_peer_of_an_older_version_is_sent_nothing_that_it_does_not_know() -> None:
    with Hub() as hub:
        peer = hub.connect(version=1)
        far = peer.pid("far")
        near, process = local(hub, Trapping)
        ask(hub.executor, near, Link(far))
        hub.settle()
        (msg,) = process.got
        assert msg.pid == far and msg.reason.kind == "refused" and "no links" in msg.reason.detail
        # One that a link has ended has crashed, as far as that peer can be told.
        other, _ = local(hub, Mortal, "other")
        asked = CorrelationId(Pid("calls", peer.node, "rabble"), None, 3)
        peer.write("monitor", far, other, 9)
        peer.send(other, "a request", asked.pid, asked)
        hub.settle()
        ask(hub.executor, other, Link(near))
        hub.settle()
        hub.executor.send(near, "crash")
        hub.settle()
        down, undelivered = peer.received
        assert down[:5] == ("down", far, other, 9, DOWN_CODES["crashed"])
        assert undelivered[3] == UNANSWERED_CODES["crashed"]
        assert peer.goodbye is None


def test_an_older_version_has_no_links() -> None:
    with Hub() as hub:
        peer = hub.connect(version=1)
        peer.write("link", peer.pid("far"), Pid("near", BARE), 1)
        hub.settle()
        assert peer.goodbye == PROTOCOL


def test_a_newer_peer_is_told_of_an_end_by_a_link() -> None:
    with Hub() as hub:
        peer, near, _ = linked(hub)
        far = peer.pid("watcher")
        peer.write("monitor", far, near, 9)
        hub.settle()
        end(peer, "crashed", 1, near)
        hub.settle()
        assert [what[:5] for what in peer.received] == [
            ("down", far, near, 9, DOWN_CODES["linked"])
        ]


def test_links_count_as_monitors_do() -> None:
    with Hub(peer_monitors_max=2) as hub:
        peer = hub.connect()
        near, process = local(hub, Trapping)
        for n in range(2):
            peer.write("link", peer.pid(f"far {n}"), near, 1 + n)
        peer.write("link", peer.pid("far 0"), near, 3)
        hub.settle()
        assert peer.received == []
        peer.write("link", peer.pid("one more"), near, 4)
        peer.write("monitor", peer.pid("one more"), near, 5)
        hub.settle()
        assert {what[0]: what[4] for what in peer.received} == {
            "exit": DOWN_CODES["refused"],
            "down": DOWN_CODES["refused"],
        }
        # Whoever ends makes room; what this node's own processes ask for takes none.
        peer.received.clear()
        peer.write("exit", near, peer.pid("far 0"), 0, DOWN_CODES["stopped"], 7)
        peer.write("unlink", peer.pid("far 1"), near, 0)
        ask(hub.executor, near, *(Link(peer.pid(f"other {n}")) for n in range(5)))
        hub.settle()
        peer.received.clear()
        peer.write("link", peer.pid("one more"), near, 6)
        peer.write("monitor", peer.pid("one more"), near, 7)
        hub.settle()
        assert peer.received == []
        hub.executor.send(near, "crash")
        hub.settle()
        ends = [what[0] for what in peer.received]
        assert sorted(ends) == ["down"] + ["exit"] * 6
        near, _ = local(hub, Trapping)
        for n in range(2):
            peer.write("link", peer.pid(f"far {n}"), near, 8 + n)
        hub.settle()
        assert len(peer.received) == 7


def test_forged_frames_do_nothing_or_end_the_connection() -> None:
    with Hub() as hub:
        peer = hub.connect()
        near, process = local(hub, Trapping)
        for why in DOWN_CODES.values():
            peer.write("exit", near, peer.pid("never linked"), 2**64 - 1, why, 1)
        peer.write("unlink", peer.pid("never linked"), near, 2**64 - 1)
        peer.write("exit", Pid("nobody", BARE), peer.pid("x"), 1, 1, 1)
        hub.settle()
        assert process.got == [] and near in hub.executor.table and peer.goodbye is None
        third = Pid.parse("x::third@h:3")
        # A session writes no such thing.
        other = hub.connect("third", "h:3", 1)
        other.session.link(third, near, 1)
        peer.write_bytes(other.session.take_data())
        hub.settle()
        assert peer.goodbye == SPOOF


def test_a_peer_may_link_with_a_service_of_this_node() -> None:
    with Hub() as hub:
        peer = hub.connect()
        far = peer.pid("far")
        inbox = Inbox(10)
        service = Pid("service", BARE)
        assert hub.executor.add_inbox(service, inbox)
        peer.write("link", far, service, 1)
        hub.settle()
        peer.write("exit", service, far, 0, DOWN_CODES["crashed"], 7)
        hub.settle()
        assert service in hub.executor.table and inbox.take(10) == []
        hub.executor.send(hub.executor.pid, Link(far), sender=service)
        hub.settle()
        peer.write("exit", service, far, 1, DOWN_CODES["crashed"], 7, "oh")
        hub.settle()
        assert [each.msg for each in inbox.take(10)] == [Exit(far, DownReason("crashed", "oh"))]
        hub.executor.send(hub.executor.pid, Link(far), sender=service)
        hub.settle()
        hub.executor.discard(service, inbox, DownReason("stopped"))
        hub.settle()
        assert peer.received[-1][:5] == ("exit", far, service, 0, DOWN_CODES["stopped"])


def test_without_memory_a_remote_link_is_there_or_not(starvation: Starvation) -> None:
    ended = made = 0
    for nth in range(50):
        with Hub() as hub:
            peer = hub.connect()
            far = peer.pid("far")
            near, process = local(hub, Trapping)
            hub.executor.send(hub.executor.pid, Link(far), sender=near)
            if starvation.ends_a_node(nth, hub.executor.step):
                continue
            hub.settle()
            if near in hub.executor.table:
                said = [what for what in peer.received if what[0] == "link"]
                if not hub.witness.ended:
                    assert len(said) == 1, nth
                    made += 1
                    peer.write("exit", near, far, said[0][3], DOWN_CODES["stopped"], 7)
                    hub.settle()
                assert [type(msg) for msg in process.got] == [Exit], nth
            else:
                ended += 1
                near, process = local(hub, Trapping)
                peer.write("exit", near, far, 1, DOWN_CODES["stopped"], 7)
                hub.settle()
                assert process.got == [], nth
    assert ended and made


# Two executors with a connection between them: whatever crosses, both ends agree.

NODES = (BARE, NodeId("other", "h:2"))


class Two:
    """Two executors, without threads, and one connection."""

    def __init__(self, executors: list[Executor]) -> None:
        self.executors = executors
        self.got: dict[Pid, list[Any]] = {}
        ends = socket.socketpair()
        for executor, end in zip(executors, ends, strict=True):
            end.setblocking(False)
            (peer,) = (node for node in NODES if node != executor.node)
            poller = Poller(
                heartbeat_ms=NEVER_MS,
                frame_bytes_max=1 << 20,
                queue_bytes_max=1 << 20,
                partial_ms_max=NEVER_MS,
            )
            executor.join_mesh(poller, 100)
            session = Session(
                executor.node,
                peer,
                1,
                executor.pid,
                codec=Codec(default_registry),
                fragment_bytes=64,
                pid_cache_slots=PID_CACHE_SLOTS,
            )
            executor.connection_up(poller.attach(end.detach(), session))
        self.settle()

    def settle(self) -> None:
        quiet = 0
        # A message in many parts, each of which waits for room, takes rounds without a delivery.
        while quiet < (200 if TINY else 6):
            moved = sum(executor.step() for executor in self.executors)
            waits = any(each.queue_depth or each.inbox_depth for each in self.executors)
            quiet = 0 if moved or waits else quiet + 1

    def spawn(self, pid: Pid) -> None:
        executor = self.executors[NODES.index(pid.node)]
        if pid not in executor.table:
            process = Trapping()
            self.got[pid] = process.got
            executor.spawn(process, pid.name)

    def do(self, what: str, pid: Pid, other: Pid) -> None:
        executor = self.executors[NODES.index(pid.node)]
        if what == "spawn":
            self.spawn(pid)
        elif what == "stop":
            executor.send(executor.pid, Stop(pid))
        elif what == "say":
            # By the bulk lane: frames of the data lane overtake it.
            executor.send(pid, [Envelope(other, "x" * 100)])
        elif what == "step":
            executor.step(1)
        else:
            request = Link(other) if what == "link" else Unlink(other)
            executor.send(executor.pid, request, sender=pid)


@contextlib.contextmanager
def two() -> Iterator[Two]:
    with bare_executor(node=NODES[0]) as one, bare_executor(node=NODES[1]) as other:
        yield Two([one, other])


pairs = st.tuples(st.sampled_from("xy"), st.sampled_from("xy"), st.booleans())
steps = st.tuples(
    st.sampled_from(["link", "link", "unlink", "stop", "spawn", "say", "step", "step", "step"]),
    pairs,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40), st.tuples(st.sampled_from("xy"), st.sampled_from("xy")))
def test_whatever_crosses_both_ends_agree(
    script: list[tuple[str, tuple[str, str, bool]]], pair: tuple[str, str]
) -> None:
    told = []
    for dies in (0, 1):
        with two() as nodes:
            for node in NODES:
                for name in "xy":
                    nodes.spawn(Pid(name, node))
            for what, (name, other, first) in script:
                near, far = NODES if first else NODES[::-1]
                nodes.do(what, Pid(name, near), Pid(other, far))
            nodes.settle()
            for node in NODES:
                for name in "xy":
                    nodes.spawn(Pid(name, node))
            # Of each life at most one exit.
            for got in nodes.got.values():
                lives = [(msg.pid, msg.life) for msg in got if isinstance(msg, Exit) and msg.life]
                assert len(lives) == len(set(lives))
            ends = [Pid(name, node) for name, node in zip(pair, NODES, strict=True)]
            before = len(nodes.got[ends[1 - dies]])
            executor = nodes.executors[dies]
            executor.send(executor.pid, Stop(ends[dies]))
            nodes.settle()
            said = nodes.got[ends[1 - dies]][before:]
            assert all(isinstance(msg, Exit) for msg in said)
            told.append(said)
    assert len(told[0]) == len(told[1]) <= 1, told
