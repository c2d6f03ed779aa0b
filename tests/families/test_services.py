"""Services as children of a supervisor."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import rabble
from rabble import (
    ChildCounts,
    ChildError,
    ChildSpec,
    CountChildren,
    DeleteChild,
    DownReason,
    Envelope,
    Limits,
    Node,
    Output,
    Pid,
    Service,
    ServiceHandler,
    Shutdown,
    StartChild,
    Stop,
    Supervisor,
    TerminateChild,
    WhichChildren,
)
from rabble.testing import World
from tests.families.trees import Child, Notes, states
from tests.support import PATIENCE_S, until


class Noted(ServiceHandler):
    """Notes its beginning and its end, answers, and raises when it is told to."""

    def __init__(self, notes: Notes, name: str) -> None:
        self.notes = notes
        self.name = name

    def init(self, service: Service) -> Output:
        if self.name in self.notes.unable:
            raise RuntimeError(f"{self.name} is not able to")
        self.notes.noted.append(f"+{self.name}")
        return None

    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        if isinstance(envelope.msg, tuple):
            is_there, goes_on = envelope.msg
            is_there.set()
            goes_on.wait(PATIENCE_S)
            return None
        if envelope.msg == "crash":
            raise RuntimeError("as told")
        return rabble.reply(self.name, envelope.sender, envelope.correlation_id)

    def close(self, service: Service) -> None:
        self.notes.noted.append(f"-{self.name}")


@pytest.fixture
def notes() -> Notes:
    return Notes()


def spec(notes: Notes, id: str, **options: Any) -> ChildSpec:
    return ChildSpec(id, Noted, (notes, id), service=True, **options)


def ask(node: Node, pid: Pid, msg: Any) -> Any:
    return node.call(pid, msg, PATIENCE_S)


@pytest.mark.parametrize("strict", [False, True, "changes"])
def test_services_start_and_end_in_order_among_processes(notes: Notes, strict: Any) -> None:
    specs = [notes.spec("a"), spec(notes, "b"), notes.spec("c"), spec(notes, "d")]
    with rabble.rouse("test@127.0.0.1:0", strict=strict) as node, node.mailbox() as me:
        top = node.spawn(Supervisor(specs), "top")
        assert ask(node, top, CountChildren()) == ChildCounts(4, 4, 0, 4)
        assert notes.take() == "+a +b +c +d"
        b, d = (child.pid for child in ask(node, top, WhichChildren()) if child.id in "bd")
        assert b == node.pid("b") and ask(node, b, "who") == "b"
        node.send(node._runtime.executor.pid, rabble.Monitor(top), sender=me.pid)
        node.send(top, Shutdown("enough"))
        assert me.receive(PATIENCE_S).msg.reason == DownReason("shutdown", "enough")
        assert notes.take() == "-d -c -b -a"
        assert not node.executor_status().processes
        until(lambda: not node._runtime.services)


def test_one_that_crashes_is_restarted_when_it_has_ended(notes: Notes) -> None:
    specs = [spec(notes, "a"), spec(notes, "b")]
    with rabble.rouse("test@127.0.0.1:0") as node:
        top = node.spawn(Supervisor(specs, strategy="rest_for_one"), "top")
        ask(node, top, CountChildren())
        notes.take()
        with pytest.raises(rabble.ProcessCrashed, match="as told"):
            ask(node, node.pid("a"), "crash")
        until(lambda: len(notes.noted) == 4)
        assert notes.take() == "-a -b +a +b"
        until(lambda: states(ask(node, top, WhichChildren())) == dict.fromkeys("ab", "running"))
        assert ask(node, node.pid("b"), "who") == "b"


@pytest.mark.parametrize("how", ["init", "make", "name", "kind"])
def test_one_that_does_not_start_is_none(notes: Notes, how: str) -> None:
    notes.unable = {"b"}
    wrong = {
        "init": spec(notes, "b"),
        "make": ChildSpec("b", lambda: 1 // 0, service=True),  # type: ignore[arg-type, return-value]
        "name": spec(notes, "b", name="top"),
        "kind": ChildSpec("b", dict, service=True),  # type: ignore[arg-type]
    }[how]
    with rabble.rouse("test@127.0.0.1:0") as node:
        top = node.spawn(Supervisor(notes.specs("a")), "top")
        answer = ask(node, top, StartChild(wrong))
        assert isinstance(answer, ChildError) and answer.code == "failed"
        expected = {"init": "not able", "make": "ZeroDivision", "name": "runs already", "kind": ""}
        assert expected[how] in answer.detail
        assert ask(node, top, CountChildren()).active == 1
        until(lambda: not node._runtime.services)
        assert set(node.processes()) == {top, node.pid("a")}


def test_it_comes_and_goes_as_a_process_does(notes: Notes) -> None:
    with rabble.rouse("test@127.0.0.1:0") as node:
        top = node.spawn(Supervisor(), "top")
        info = ask(node, top, StartChild(spec(notes, "a", name="other", group="tenant")))
        assert (info.pid, info.state) == (node.pid("other", "tenant"), "running")
        assert ask(node, info.pid, "who") == "a"
        # By its own end, too; and by anybody's `Stop`.
        assert ask(node, top, TerminateChild("a")).state == "stopped"
        assert notes.take() == "+a -a"
        assert ask(node, top, rabble.RestartChild("a")).state == "running"
        node.stop(info.pid)
        until(lambda: len(notes.noted) == 3)
        until(lambda: states(ask(node, top, WhichChildren())) == {"a": "running"})
        ask(node, top, TerminateChild("a"))
        assert ask(node, top, DeleteChild("a")).id == "a"


@pytest.mark.parametrize("way", ["stop", "crash", "stand-in"])
def test_whatever_ends_its_supervisor_it_is_not_left(notes: Notes, way: str) -> None:
    class Fragile(Supervisor):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            if msg == "crash":
                raise RuntimeError("as told")
            return super().receive(msg, sender, correlation_id)

    with rabble.rouse("test@127.0.0.1:0") as node:
        top = node.spawn(Fragile([spec(notes, "a"), notes.spec("b")], intensity=0), "top")
        ask(node, top, CountChildren())
        if way == "stand-in":
            node.stop(node.pid("a of top"))
        elif way == "stop":
            node.stop(top)
        else:
            node.send(top, "crash")
        until(lambda: not node._runtime.services)
        until(lambda: not node.executor_status().processes)
        assert sorted(notes.take().split()) == ["+a", "+b", "-a", "-b"]


def test_one_that_does_not_end_in_time_is_not_waited_for(notes: Notes) -> None:
    is_there, goes_on = threading.Event(), threading.Event()
    with rabble.rouse("test@127.0.0.1:0") as node:
        top = node.spawn(Supervisor([spec(notes, "a", shutdown_ms=1)]), "top")
        ask(node, top, CountChildren())
        node.send(node.pid("a"), (is_there, goes_on))
        assert is_there.wait(PATIENCE_S)
        assert ask(node, top, TerminateChild("a")).state == "stopped"
        assert notes.take() == "+a"
        goes_on.set()
        until(lambda: not node._runtime.services)
        assert notes.take() == "-a"


def test_with_the_node_services_end_in_their_turn(notes: Notes) -> None:
    with rabble.rouse("test@127.0.0.1:0") as node:
        specs = [notes.spec("a"), spec(notes, "b"), notes.spec("c")]
        ask(node, node.spawn(Supervisor(specs), "top"), CountChildren())
    assert notes.take() == "+a +b +c -c -b -a"


def test_a_world_has_none(notes: Notes) -> None:
    with World(on_crash="keep") as world:
        world.spawn(Supervisor([spec(notes, "a")]), "top")
        assert "could not be reached" in str(world.crashes[0].error)


def test_no_peer_and_no_stranger_ends_it(notes: Notes) -> None:
    from rabble._core.messages import EndService

    with rabble.rouse("test@127.0.0.1:0", limits=Limits()) as node:
        top = node.spawn(Supervisor([spec(notes, "a")]), "top")
        ask(node, top, CountChildren())
        services = Pid("services", node.node_id, "rabble")
        node.send(services, EndService(node.pid("a"), top))
        node.send(services, "something else")
        assert ask(node, node.pid("a"), "who") == "a"
        assert ask(node, top, CountChildren()).active == 1


def test_what_is_no_service_is_refused(notes: Notes) -> None:
    with pytest.raises(ValueError, match="mailbox_max is for processes"):
        spec(notes, "a", mailbox_max=1)
    with pytest.raises(TypeError, match="service must be a bool"):
        ChildSpec("a", Child, service=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="so node is None"):
        spec(notes, "a", node="n@h:1")


def test_it_is_not_stopped_by_a_stranger_of_its_name(notes: Notes) -> None:
    """The name is another one's: it stays, whatever becomes of the child."""
    with rabble.rouse("test@127.0.0.1:0") as node:
        other = node.register_service(Noted(notes, "other"), "a")
        top = node.spawn(Supervisor(), "top")
        assert ask(node, top, StartChild(spec(notes, "a"))).code == "failed"
        node.send(node._runtime.executor.pid, Stop(top))
        assert ask(node, other.pid, "who") == "other"
