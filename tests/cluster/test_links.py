"""Links between processes of real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rabble import (
    CorrelationId,
    Down,
    DownReason,
    Envelope,
    Exit,
    Link,
    Monitor,
    Node,
    Output,
    Pid,
    Process,
    Stop,
    Unlink,
)
from tests.cluster.mesh import meet, nothing_left, port_of, rouse, until
from tests.support import PATIENCE_S


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


class Mortal(Process):
    """Crashes when it is told to, asks its executor for what it is sent, and answers the rest."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case "crash":
                raise RuntimeError("as told")
            case Link() | Unlink() | Stop():
                return Envelope(self.executor, msg)
            case _:
                if sender is None:
                    return None
                return Envelope(sender, msg, correlation_id=correlation_id)


class Trapping(Mortal):
    """Passes on what it is told of links."""

    traps_exits = True

    def __init__(self, to: Pid) -> None:
        self.to = to

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Exit):
            return Envelope(self.to, msg)
        return super().receive(msg, sender, correlation_id)


def link(node: Node, pid: Pid, other: Pid) -> None:
    """Have a process ask for a link, which is there on both nodes when this returns."""
    node.send(pid, Link(other))
    # Behind the LINK on the connection, and so is what comes of it.
    assert node.call(pid, 1, PATIENCE_S) == node.call(other, 1, PATIENCE_S) == 1


def test_a_crash_ends_processes_over_three_nodes() -> None:
    with rouse("a") as a, rouse("b") as b, rouse("c") as c:
        meet(a, b, c)
        nodes = (a, b, c)
        pids = [node.spawn(Mortal(), "one") for node in nodes]
        link(a, pids[0], pids[1])
        link(b, pids[1], pids[2])
        with c.mailbox() as box:
            trapping = c.spawn(Trapping(box.pid), "trapping")
            link(c, trapping, pids[0])
            box.send(c.pid("executor", "rabble"), Monitor(pids[2]))
            a.send(pids[0], "crash")
            told = [box.receive(PATIENCE_S).msg for _ in range(2)]
            # Along a chain it is the same reason, which says whose end it was.
            crashed = DownReason("crashed", "RuntimeError: as told")
            detail = f"{pids[0]}: crashed: RuntimeError: as told"
            assert Exit(pids[0], crashed) in told
            assert Down(pids[2], DownReason("linked", detail)) in told
            assert c.call(trapping, 1, PATIENCE_S) == 1 and len(box) == 0


def test_an_exit_comes_after_the_last_message() -> None:
    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)

        class Keeping(Trapping):
            def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
                return Envelope(self.to, len(msg) if isinstance(msg, bytes) else msg)

        class Speaking(Mortal):
            def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
                if msg != "die":
                    return super().receive(msg, sender, cid)
                # Large ones among them take another lane.
                sizes = [100_000 if n % 10 == 3 else n for n in range(40)]
                last = Envelope(self.executor, Stop(self.pid))
                return [*(Envelope(keeping, bytes(size)) for size in sizes), last]

        keeping = a.spawn(Keeping(box.pid), "keeping")
        speaking = b.spawn(Speaking(), "speaking")
        b.send(speaking, Link(keeping))
        b.send(speaking, "die")
        got = [box.receive(PATIENCE_S).msg for _ in range(41)]
        assert got[:40] == [100_000 if n % 10 == 3 else n for n in range(40)]
        assert got[40] == Exit(speaking, DownReason("stopped"))


@pytest.mark.parametrize("how", ["shutdown", "leave"])
def test_a_node_that_goes_is_an_exit_at_both_ends(how: str) -> None:
    with rouse("a") as a, rouse("b") as b, a.mailbox() as near, b.mailbox() as far:
        meet(a, b)
        ended, told = a.spawn(Mortal(), "ended"), a.spawn(Trapping(near.pid), "told")
        other = b.spawn(Trapping(far.pid), "other")
        for pid in (ended, told):
            link(a, pid, other)
        near.send(a.pid("executor", "rabble"), Monitor(ended))
        if how == "shutdown":
            b.shutdown()
        else:
            a.leave(b.node_id)
        got = {type(msg): msg for msg in (near.receive(PATIENCE_S).msg for _ in range(2))}
        kind = "shutdown" if how == "shutdown" else "disconnected"
        assert got[Exit].pid == other and got[Exit].reason.kind == kind
        assert got[Down].pid == ended
        assert got[Down].reason.kind == ("shutdown" if how == "shutdown" else "linked")
        if how == "leave":
            exits = [far.receive(PATIENCE_S).msg for _ in range(2)]
            assert {(msg.pid, msg.reason.kind) for msg in exits} == {
                (ended, "disconnected"),
                (told, "disconnected"),
            }


def test_a_link_is_with_one_start_of_a_node() -> None:
    with rouse("a") as a, a.mailbox() as box:
        b = rouse("b")
        told, _ = meet(a, b)
        near = a.spawn(Trapping(box.pid), "near")
        far = b.spawn(Mortal(), "far")
        link(a, near, far)
        b.shutdown()
        assert box.receive(PATIENCE_S).msg.reason.kind == "shutdown"
        with rouse("b", port_of(b)) as b:
            b.join(a.node_id.addr)
            told.up(b)
            assert b.spawn(Mortal(), "far") == far
            # Its successor has no link, and the process that was told may have one again.
            assert a.call(far, 1, PATIENCE_S) == 1
            link(a, near, far)
            b.send(far, "crash")
            assert box.receive(PATIENCE_S).msg.reason.kind == "crashed"
            assert len(box) == 0
        del b, told


@pytest.mark.parametrize("meets", [True, False])
def test_both_may_ask_at_once(meets: bool) -> None:
    """Whatever crosses: who asked is told, once of each life, and once that there is none."""
    with rouse("a") as a, rouse("b") as b, b.mailbox() as box:
        meet(a, b)
        for n in range(20):
            one = a.spawn(Mortal(), f"one {n}")
            other = b.spawn(Trapping(box.pid), f"other {n}")
            a.send(one, Link(other))
            b.send(other, Link(one))
            if meets:
                for node, pid, peer in ((a, one, other), (b, other, one)):
                    assert node.call(pid, 1, PATIENCE_S) == node.call(peer, 1, PATIENCE_S) == 1
            a.send(one, "crash")
            kinds = [box.receive(PATIENCE_S).msg.reason.kind]
            # What was on its way has come when an answer has that was asked for behind it.
            with a.mailbox() as asking:
                asking.send(a.pid("executor", "rabble"), Monitor(one))
                assert asking.receive(PATIENCE_S).msg.pid == one
            probe = a.spawn(Mortal(), f"probe {n}")
            assert b.call(probe, 1, PATIENCE_S) == b.call(other, 1, PATIENCE_S) == 1
            kinds += [box.receive(PATIENCE_S).msg.reason.kind for _ in range(len(box))]
            assert kinds in (
                (["crashed"],)
                if meets
                else (["crashed"], ["no_process"], ["crashed", "no_process"])
            ), kinds


def test_a_mailbox_may_ask_for_links_and_is_told() -> None:
    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)
        far = b.spawn(Mortal(), "far")
        box.send(a.pid("executor", "rabble"), Link(far))
        assert a.call(far, 1, PATIENCE_S) == 1
        b.send(far, "crash")
        assert box.receive(PATIENCE_S).msg == Exit(
            far, DownReason("crashed", "RuntimeError: as told")
        )
        far = b.spawn(Mortal(), "far")
        box.send(a.pid("executor", "rabble"), Link(far))
        assert a.call(far, 1, PATIENCE_S) == 1
        # Its end is a normal one.
        box.close()
        assert b.call(far, 1, PATIENCE_S) == 1


def test_a_link_with_nobody_of_another_node_ends_who_asked() -> None:
    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        with a.mailbox() as box:
            near = a.spawn(Mortal(), "near")
            box.send(a.pid("executor", "rabble"), Monitor(near))
            a.send(near, Link(b.pid("nobody")))
            down = box.receive(PATIENCE_S).msg
            detail = f"{b.pid('nobody')}: no_process"
            assert down == Down(near, DownReason("linked", detail))
        until(lambda: near not in a._runtime.executor.table)
