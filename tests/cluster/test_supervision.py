"""Children of a supervisor that run on other nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rabble import (
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    CountChildren,
    Envelope,
    Exit,
    Monitor,
    Node,
    NodeId,
    Output,
    Pid,
    Process,
    Restart,
    RestartChild,
    Shutdown,
    StartChild,
    Supervisor,
    TerminateChild,
    WhichChildren,
)
from tests.cluster.mesh import meet, nothing_left, port_of, rouse, until
from tests.families.trees import Notes, states
from tests.support import PATIENCE_S, Does


@pytest.fixture(autouse=True)
def _nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, logger="rabble")
    with nothing_left():
        yield


class Worker(Process):
    """Answers with what it was made of, crashes when it is told to, and ends for no exit."""

    traps_exits = True

    def __init__(self, notes: Notes, *made_of: Any) -> None:
        self.notes = notes
        self.made_of = list(made_of)

    def init(self) -> Output:
        if self.pid.name in self.notes.unable:
            raise RuntimeError(f"{self.pid.name} is not able to")
        self.notes.noted.append(f"+{self.pid.name}")
        return None

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if isinstance(msg, Exit | Shutdown):
            return None
        if msg == "crash":
            raise RuntimeError("as told")
        return None if sender is None else Envelope(sender, self.made_of, None, correlation_id)

    def terminate(self, reason: Any) -> Output:
        self.notes.noted.append(f"-{self.pid.name}")
        return None


class Fragile(Supervisor):
    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if msg == "crash":
            raise RuntimeError("as told")
        return super().receive(msg, sender, correlation_id)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def host(notes: Notes, name: str = "host", port: int = 0) -> Node:
    node = rouse(name, port)
    node.export("worker", lambda *made_of: Worker(notes, *made_of))
    node.export("workers", lambda: Supervisor(notes.specs("x y")))
    return node


def far(node: Node | NodeId, id: str, *args: Any, **options: Any) -> ChildSpec:
    node_id = node.node_id if isinstance(node, Node) else node
    return ChildSpec(id, "worker", args, node=node_id, **options)


def ask(node: Node, pid: Pid, msg: Any) -> Any:
    return node.call(pid, msg, PATIENCE_S)


def which(node: Node, top: Pid) -> dict[str, str]:
    return states(ask(node, top, WhichChildren()))


def until_states(node: Node, top: Pid, **wanted: str) -> None:
    until(lambda: which(node, top) == wanted)


@pytest.mark.parametrize("strict", [False, True, "changes"])
def test_children_of_two_nodes_start_and_end_in_order(notes: Notes, strict: Any) -> None:
    with rouse("boss", strict=strict) as boss, host(notes) as there:
        meet(boss, there)
        specs = [notes.spec("a"), far(there, "b", 1, "two", group="own"), notes.spec("c")]
        specs.append(ChildSpec("d", "workers", node=str(there.node_id)))
        top = boss.spawn(Supervisor(specs), "top")
        assert set(which(boss, top).values()) == {"running"}
        pid = there.pid("b", "own")
        assert ask(boss, top, WhichChildren())[1] == ChildInfo("b", pid, "running", False)
        assert ask(boss, pid, "what") == [1, "two"]
        with boss.mailbox() as me:
            boss.send(boss._runtime.executor.pid, Monitor(top), sender=me.pid)
            boss.send(top, Shutdown("enough"))
            assert me.receive(PATIENCE_S).msg.reason.kind == "shutdown"
        ends = [each for each in notes.noted if each[0] == "-"]
        assert ends == ["-y", "-x", "-c", "-b", "-a"]
        assert not there.executor_status().processes and not boss.executor_status().processes


def test_one_that_is_there_when_its_supervisor_begins_is_waited_for(notes: Notes) -> None:
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        top = boss.spawn(Supervisor([far(there, "a"), notes.spec("b")]), "top")
        assert ask(boss, top, CountChildren()) == ChildCounts(2, 2, 0, 2)
        assert notes.take() == "+a +b"


@pytest.mark.parametrize("restart", Restart)
def test_one_that_crashes_is_restarted_there(notes: Notes, restart: Restart) -> None:
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        top = boss.spawn(Supervisor([notes.spec("z")]), "top")
        ask(boss, top, StartChild(far(there, "a", restart=restart)))
        until(lambda: "+a" in notes.noted)
        boss.send(there.pid("a"), "crash")
        if restart is Restart.TEMPORARY:
            until_states(boss, top, z="running")
        else:
            until(lambda: notes.noted.count("+a") == 2)
            until_states(boss, top, z="running", a="running")
        # One that is stopped has ended normally.
        if restart is not Restart.TEMPORARY:
            there.stop(there.pid("a"))
            wanted = "running" if restart is Restart.PERMANENT else "stopped"
            until(lambda: "-a" in notes.noted)
            if restart is Restart.PERMANENT:
                # That was once more than may be.
                until(lambda: not boss.executor_status().processes)
            else:
                until_states(boss, top, z="running", a=wanted)


def test_what_cannot_be_spawned_there_has_not_started(notes: Notes) -> None:
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        there.spawn(Worker(notes), "taken")
        top = boss.spawn(Supervisor(), "top")
        # Known to be there when the first one is.
        ask(boss, top, StartChild(far(there, "first")))
        until_states(boss, top, first="running")
        nothing = ChildSpec("b", "nothing", node=there.node_id)
        notes.unable = {"unable"}
        for spec, text in (
            (far(there, "taken"), "name is taken"),
            (nothing, "exports no"),
            (far(there, "unable"), "has ended already"),
        ):
            answer = ask(boss, top, StartChild(spec))
            assert isinstance(answer, ChildError) and answer.code == "failed"
            assert text in answer.detail
        # So with one of the beginning.
        with boss.mailbox() as me:
            second = boss.spawn(Supervisor([far(there, "unable")], intensity=9), "second")
            boss.send(boss._runtime.executor.pid, Monitor(second), sender=me.pid)
            assert "did not start" in me.receive(PATIENCE_S).msg.reason.detail
        # Nobody ends who has that name.
        assert there.pid("taken") in there.processes()
        assert which(boss, top) == {"first": "running"}


def test_a_node_that_is_not_there_is_waited_for_and_counts_once(notes: Notes) -> None:
    with rouse("boss") as boss:
        there = host(notes)
        there_id, port = there.node_id, port_of(there)
        there.shutdown()
        top = boss.spawn(Supervisor([far(there_id, "a"), notes.spec("b")], intensity=1), "top")
        # Nobody waits with it.
        until_states(boss, top, a="restarting", b="running")
        assert ask(boss, top, RestartChild("a")).code == "restarting"
        assert ask(boss, top, CountChildren()) == ChildCounts(2, 1, 0, 2)
        with host(notes, port=port) as again:
            boss.join(again.node_id)
            until_states(boss, top, a="running", b="running")
            assert again.pid("a") in again.processes()
        # It went in order, and comes once more.
        until_states(boss, top, a="restarting", b="running")
        with host(notes, port=port) as again:
            boss.join(again.node_id)
            until_states(boss, top, a="running", b="running")
            assert ask(boss, top, TerminateChild("a")).state == "stopped"
            assert again.pid("a") not in again.processes()
        assert which(boss, top) == {"a": "stopped", "b": "running"}


def test_one_that_waits_for_its_node_can_be_terminated(notes: Notes) -> None:
    with rouse("boss") as boss:
        nobody = NodeId.parse("nobody@127.0.0.1:1")
        top = boss.spawn(Supervisor([far(nobody, "a")]), "top")
        until_states(boss, top, a="restarting")
        assert ask(boss, top, TerminateChild("a")).state == "stopped"
        assert boss.executor_status().processes == 1


@pytest.mark.parametrize("way", ["crash", "stop", "node"])
def test_whatever_ends_the_supervisor_no_child_is_left_there(notes: Notes, way: str) -> None:
    with host(notes) as there, rouse("boss") as boss:
        meet(boss, there)
        specs = [far(there, "a"), ChildSpec("d", "workers", node=there.node_id)]
        top = boss.spawn(Fragile(specs), "top")
        until(lambda: there.executor_status().processes == 4)
        if way == "crash":
            boss.send(top, "crash")
        elif way == "stop":
            boss.stop(top)
        else:
            boss.shutdown()
        until(lambda: not there.executor_status().processes)


@pytest.mark.parametrize("restart", Restart)
def test_one_that_is_cut_off_ends_and_is_restarted_when_its_node_is_back(
    notes: Notes, restart: Restart
) -> None:
    """Both nodes live on, so each has to find out."""
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        specs = [notes.spec("z"), far(there, "a", restart=restart)]
        top = boss.spawn(Supervisor(specs), "top")
        until_states(boss, top, z="running", a="running")
        notes.take()
        there.ban(boss.node_id, 1)
        until(lambda: notes.noted[:1] == ["-a"])
        if restart is Restart.TEMPORARY:
            until_states(boss, top, z="running")
            return
        until(lambda: notes.noted == ["-a", "+a"])
        until_states(boss, top, z="running", a="running")


def test_a_transient_one_is_restarted_though_its_node_ended_in_order(notes: Notes) -> None:
    with rouse("boss") as boss:
        there = host(notes)
        port = port_of(there)
        meet(boss, there)
        top = boss.spawn(Supervisor([far(there, "a", restart=Restart.TRANSIENT)]), "top")
        until_states(boss, top, a="running")
        there.shutdown()
        until_states(boss, top, a="restarting")
        with host(notes, port=port) as again:
            boss.join(again.node_id)
            until_states(boss, top, a="running")


def test_others_that_are_restarted_with_one_that_is_away_do_not_wait(notes: Notes) -> None:
    with rouse("boss") as boss:
        nobody = NodeId.parse("nobody@127.0.0.1:1")
        specs = [far(nobody, "a"), notes.spec("b"), notes.spec("c")]
        top = boss.spawn(Supervisor(specs, strategy="one_for_all"), "top")
        until_states(boss, top, a="restarting", b="running", c="running")
        notes.take()
        boss.send(boss.pid("c"), "crash")
        until(lambda: len(notes.noted) == 4)
        assert notes.take() == "!c -b +b +c"
        until_states(boss, top, a="restarting", b="running", c="running")


def test_a_node_that_comes_and_goes_too_often_is_the_end(notes: Notes) -> None:
    with rouse("boss") as boss:
        there = host(notes)
        port = port_of(there)
        meet(boss, there)
        specs = [notes.spec("z"), far(there, "a")]
        boss.spawn(Supervisor(specs, intensity=1, period_ms=300_000), "top")
        for _ in range(2):
            until(lambda: notes.noted.count("+a") > 0)
            notes.take()
            there.shutdown()
            there = host(notes, port=port)
            boss.join(there.node_id)
        until(lambda: not boss.executor_status().processes)
        there.shutdown()


def test_a_restart_there_waits_as_one_here_does(notes: Notes) -> None:
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        backoff = Backoff(3_600_000, 3_600_000)
        top = boss.spawn(Supervisor([far(there, "a")], backoff=backoff), "top")
        until_states(boss, top, a="running")
        boss.send(there.pid("a"), "crash")
        until_states(boss, top, a="restarting")
        assert not there.executor_status().processes


def test_a_stranger_ends_and_owns_nothing_there(notes: Notes) -> None:
    """A peer may end what its own processes own, and nothing else."""
    with rouse("boss") as boss, rouse("other") as other, host(notes) as there:
        meet(boss, other, there)
        top = boss.spawn(Supervisor([far(there, "a")]), "top")
        until_states(boss, top, a="running")
        owner = boss.pid("a of top")
        spawner = Pid("spawner", there.node_id, "rabble")
        other.send(spawner, ["end", "a", None, owner, "as I say"])
        other.send(spawner, ["end", "a", None, other.pid("a of top"), "as I say"])
        other.send(spawner, ["end", "", None, other.pid("a of top"), "as I say"])
        answer = ask(other, spawner, ["spawn", "worker", [], "b", None, owner])
        assert answer[0] == "refused" and "is no process of other@" in answer[1]
        assert there.executor_status().processes == 1
        # Who has ended owns nothing.
        answer = ask(other, spawner, ["spawn", "worker", [], "b", None, other.pid("nobody")])
        assert answer == ["spawned", there.pid("b")]
        until(lambda: there.executor_status().processes == 1)
        assert ask(other, there.pid("a"), "what") == []


def test_what_an_earlier_life_of_the_owner_left_gives_way(notes: Notes) -> None:
    with rouse("boss") as boss, host(notes) as there:
        meet(boss, there)
        spawner = Pid("spawner", there.node_id, "rabble")

        def react(process: Process, msg: Any, sender: Pid | None) -> Output:
            return None

        owner = boss.spawn(Does(react), "owner")
        for number in (1, 2):
            request = ["spawn", "worker", [number], "a", None, owner]
            assert ask(boss, spawner, request) == ["spawned", there.pid("a")]
        assert ask(boss, there.pid("a"), "what") == [2]
        assert notes.take() == "+a -a +a"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"start": Worker}, TypeError, "the name under which n@h:1 exports it"),
        ({"node": "nowhere"}, ValueError, "nowhere"),
        ({"node": 1}, TypeError, "node must be a NodeId or its text"),
        ({"mailbox_max": 1}, ValueError, "mailbox_max is for processes"),
        ({"start": "a::b"}, ValueError, "::"),
        ({"node": None}, TypeError, "start must be a Process class"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ChildSpec(**{"id": "a", "start": "worker", "node": "n@h:1", **options})
