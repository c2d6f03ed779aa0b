"""Services: threads under a pid, what ends them, and what follows."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Callable
from typing import Any

import pytest

import rabble
from rabble import (
    DeadLetterReason,
    Down,
    Envelope,
    Limits,
    Monitor,
    NameTaken,
    Node,
    Pid,
    ProcessCrashed,
    Service,
    ServiceHandler,
    ShutdownTimeout,
)
from rabble.services.service import ServiceNode
from tests.support import PATIENCE_S, Does, Echo, until


class Upper(ServiceHandler):
    """Answers in capitals; raises on `boom`."""

    def __init__(self, lives: list[str] | None = None) -> None:
        self.lives = [] if lives is None else lives

    def init(self, service: Service) -> None:
        self.lives.append("init")

    def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
        if envelope.msg == "boom":
            raise RuntimeError("as asked")
        if envelope.msg == "junk":
            return ["junk"]
        assert envelope.sender is not None
        reply = Envelope(
            envelope.sender, envelope.msg.upper(), correlation_id=envelope.correlation_id
        )
        return reply if envelope.msg == "one" else [reply]

    def close(self, service: Service) -> None:
        self.lives.append("close")


def watch(node: Node, pid: Pid) -> rabble.Mailbox:
    box = node.mailbox()
    box.send(node.pid("executor", "rabble"), Monitor(pid))
    assert node.call(node.spawn(Echo(), f"echo of {box.pid.name}"), 1) == 1
    return box


def test_a_service_answers_calls_in_a_thread_of_its_own() -> None:
    lives: list[str] = []
    with rabble.rouse() as node:
        service = node.register_service(Upper(lives), "upper")
        assert service.thread.name == "rabble:local:upper"
        assert not service.thread.daemon
        assert node.call(service.pid, "hello", PATIENCE_S) == "HELLO"
        assert node.call(service.pid, "one", PATIENCE_S) == "ONE"
        assert node.executor_status().services == 1
        with pytest.raises(NameTaken):
            node.register_service(Upper(), "upper")
    assert lives == ["init", "close"]
    assert not service.thread.is_alive()


def test_a_handler_polls_files_and_sends_what_it_reads() -> None:
    class Reader(ServiceHandler):
        def __init__(self, to: Pid, fd: int) -> None:
            self.to = to
            self.fd = fd

        def init(self, service: Service) -> None:
            key = service.register(self.fd, selectors.EVENT_READ, "the pipe")
            service.modify(self.fd, selectors.EVENT_READ, key.data)

        def handle_notification(
            self, key: selectors.SelectorKey, events: int, service: Service
        ) -> Envelope:
            assert key.data == "the pipe"
            assert events == selectors.EVENT_READ
            data = os.read(self.fd, 100)
            if not data:
                service.unregister(self.fd)
            return Envelope(self.to, data)

    read_end, write_end = os.pipe()
    with rabble.rouse() as node, node.mailbox() as box:
        service = node.register_service(Reader(box.pid, read_end), "reader")
        for text in (b"first", b"second"):
            os.write(write_end, text)
            assert box.receive(PATIENCE_S).msg == text
        os.close(write_end)
        assert box.receive(PATIENCE_S) == Envelope(box.pid, b"", service.pid)
        with pytest.raises(RuntimeError, match="only the handler's own methods"):
            Service.register(
                Service(node._runtime, node, box.pid, box._inbox, Upper, "stop"),
                read_end,
                selectors.EVENT_READ,
            )
    os.close(read_end)


# What a crash leads to, by policy.


@pytest.mark.parametrize("msg", ["boom", "junk"])
def test_a_crash_ends_the_service_and_is_told(msg: str) -> None:
    lives: list[str] = []
    with rabble.rouse() as node:
        service = node.register_service(Upper(lives), "upper")
        with watch(node, service.pid) as box:
            node.send(service.pid, msg)
            down = box.receive(PATIENCE_S).msg
        assert isinstance(down, Down)
        assert down.reason.kind == "crashed"
        service.thread.join(PATIENCE_S)
        assert node.executor_status().services == 0
        assert node.status == "running"
    assert lives == ["init", "close"]


def test_a_crashed_service_is_made_anew_if_so_wished() -> None:
    lives: list[str] = []
    with rabble.rouse() as node:
        service = node.register_service(lambda: Upper(lives), "upper", on_crash="restart")
        for _ in range(3):
            node.send(service.pid, "boom")
        assert node.call(service.pid, "hello", PATIENCE_S) == "HELLO"
        assert node.status == "running"
    assert lives == ["init", "close"] * 4


def test_a_service_that_keeps_crashing_ends_its_node() -> None:
    with rabble.rouse() as node:
        service = node.register_service(Upper, "upper", on_crash="restart")
        for _ in range(6):
            node.send(service.pid, "boom")
        assert node._runtime.ended.wait(PATIENCE_S) or node._runtime.ended.closed
        assert node.status == "stopped"


def test_a_crash_ends_the_node_at_once_if_so_wished() -> None:
    with rabble.rouse() as node:
        service = node.register_service(Upper(), "upper", on_crash="shutdown")
        node.send(service.pid, "boom")
        assert node._runtime.ended.wait(PATIENCE_S) or node._runtime.ended.closed
        assert node.status == "stopped"


@pytest.mark.parametrize("how", ["service", "node"])
def test_a_service_ends_when_it_is_asked_to(how: str) -> None:
    with rabble.rouse() as node:
        service = node.register_service(Upper(), "upper")
        with watch(node, service.pid) as box:
            if how == "service":
                service.stop()
            else:
                node.stop(service.pid)
            down = box.receive(PATIENCE_S).msg
        assert down.reason.kind == "stopped"
        service.thread.join(PATIENCE_S)
        assert not service.thread.is_alive()
        assert node.register_service(Upper(), "upper").pid == service.pid


def test_what_a_service_did_not_take_becomes_dead_letters() -> None:
    taken = threading.Event()
    go_on = threading.Event()

    class Slow(ServiceHandler):
        def handle_envelope(self, envelope: Envelope, service: Service) -> None:
            taken.set()
            assert go_on.wait(PATIENCE_S)
            service.stop()

    with rabble.rouse(limits=Limits(service_inbox_envelopes_max=3)) as node, node.mailbox() as box:
        node.subscribe_dead_letters(box.pid)
        service = node.register_service(Slow(), "slow")
        node.send(service.pid, 0)
        assert taken.wait(PATIENCE_S)
        for number in range(1, 6):
            node.send(service.pid, number)
        letters = [box.receive(PATIENCE_S).msg for _ in range(2)]
        go_on.set()
        letters += [box.receive(PATIENCE_S).msg for _ in range(3)]
    assert [(x.envelope.msg, x.reason) for x in letters] == [
        (4, DeadLetterReason.MAILBOX_FULL),
        (5, DeadLetterReason.MAILBOX_FULL),
        (1, DeadLetterReason.NO_PROCESS),
        (2, DeadLetterReason.NO_PROCESS),
        (3, DeadLetterReason.NO_PROCESS),
    ]


def test_a_service_may_end_its_node_and_is_heard_until_it_drained() -> None:
    got: list[Any] = []

    class Ender(ServiceHandler):
        def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
            service.node.shutdown()
            service.send(service.node.pid("sink"), "one")
            return Envelope(service.node.pid("sink"), "two")

    with rabble.rouse() as node:
        node.spawn(Does(lambda process, msg, sender: got.append(msg)), "sink")  # type: ignore[func-returns-value, return-value]
        service = node.register_service(Ender(), "ender")
        node.send(service.pid, "end")
        assert node._runtime.ended.wait(PATIENCE_S) or node._runtime.ended.closed
    assert got == ["one", "two"]
    assert node.executor_status().dead_letters == {}
    service.send(service.pid, "too late")
    assert node.executor_status().dead_letters == {"node_shutdown": 1}


def test_the_end_waits_for_answers_of_services_but_not_for_ever() -> None:
    class Upper2(Upper):
        def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
            if envelope.msg == "stuck":
                stuck.set()
                assert go_on.wait(PATIENCE_S)
                return Envelope(service.node.pid("sink"), "never heard")
            return Envelope(service.node.pid("sink"), envelope.msg.upper())

    got: list[Any] = []
    stuck = threading.Event()
    go_on = threading.Event()
    node = rabble.rouse()
    node.spawn(Does(lambda process, msg, sender: got.append(msg)), "sink")  # type: ignore[func-returns-value, return-value]
    service = node.register_service(Upper2(), "upper")
    for _ in range(100):
        node.send(service.pid, "hello")
    node.send(service.pid, "stuck")
    node.send(service.pid, "behind it")
    assert stuck.wait(PATIENCE_S)
    with pytest.raises(ShutdownTimeout, match="these threads run: rabble:local:upper"):
        node.shutdown(0.2)
    go_on.set()
    node.shutdown()
    assert got == ["HELLO"] * 100
    dead = node.executor_status().dead_letters
    assert dead["node_shutdown"] + dead["no_process"] == 2


@pytest.mark.parametrize("on_crash", ["stop", "restart"])
def test_a_call_to_a_crashing_service_ends_at_once_and_says_why(
    on_crash: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with rabble.rouse("node@127.0.0.1:0") as node:
        service = node.register_service(Upper, "upper", on_crash=on_crash)
        for number in range(1, 2 if on_crash == "stop" else 4):
            with pytest.raises(ProcessCrashed) as caught:
                node.call(service.pid, "boom", PATIENCE_S)
            assert caught.value.detail == "RuntimeError: as asked"
            assert (caught.value.crash, caught.value.pid) == (number, service.pid)
            assert str(caught.value) == (
                f"{service.pid} crashed: RuntimeError: as asked "
                f"(crash {number} in the log of {node.node_id})"
            )
        until(lambda: f"{service.pid} crashed (crash {number})" in caplog.text)
        assert node.executor_status().crashes == number


def test_a_call_that_a_service_holds_when_it_crashes_says_why() -> None:
    class Holds(Upper):
        def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
            return None if envelope.msg == "hold" else super().handle_envelope(envelope, service)

    with rabble.rouse() as node, node.mailbox() as box:
        service = node.register_service(Holds(), "holds")

        def crash() -> None:
            box.send(service.pid, "boom")

        timer = threading.Timer(0.05, crash)
        timer.start()
        with pytest.raises(ProcessCrashed, match="RuntimeError: as asked") as caught:
            node.call(service.pid, "hold", PATIENCE_S)
        assert caught.value.crash == 1
        timer.join()


def test_a_call_to_a_service_that_does_not_begin_says_why() -> None:
    class Fails(ServiceHandler):
        def init(self, service: Service) -> None:
            may_fail.wait(PATIENCE_S)
            raise RuntimeError("as asked")

    may_fail = threading.Event()
    with rabble.rouse() as node:
        service = node.register_service(Fails(), "fails")
        timer = threading.Timer(0.05, may_fail.set)
        timer.start()
        with pytest.raises(ProcessCrashed, match="RuntimeError: as asked"):
            node.call(service.pid, "hello", PATIENCE_S)
        timer.join()


def test_a_service_that_gets_no_thread_leaves_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with rabble.rouse() as node, node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), Monitor(node.pid("service")))
        assert box.receive(PATIENCE_S).msg.reason.kind == "no_process"
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                node.register_service(ServiceHandler(), "service")
        # The name is given back in the turn of this thread's envelopes.
        box.send(node.spawn(Echo(), "echo"), "wait")
        box.receive(PATIENCE_S)
        node.register_service(ServiceHandler(), "service")


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda node: node.register_service(5, "x"), TypeError, "takes a ServiceHandler"),
        (
            lambda node: node.register_service(Upper(), "x", on_crash="restart"),
            ValueError,
            "a function that makes",
        ),
        (
            lambda node: node.register_service(Upper(), "x", on_crash="ignore"),
            ValueError,
            "stop, restart or shutdown",
        ),
    ],
)
def test_a_wrong_registration_says_what_is_wrong(
    make: Callable[[Any], Any], error: type[Exception], said: str
) -> None:
    with rabble.rouse() as node:
        with pytest.raises(error, match=said):
            make(node)
        assert node.executor_status().services == 0


def test_the_base_handler_says_what_is_missing() -> None:
    with rabble.rouse() as node:
        service = node.register_service(ServiceHandler(), "empty")
        with watch(node, service.pid) as box:
            node.send(service.pid, "hello")
            assert "does not define handle_envelope" in box.receive(PATIENCE_S).msg.reason.detail
        with pytest.raises(TypeError, match="does not define handle_notification"):
            ServiceHandler().handle_notification(None, 0, service)  # type: ignore[arg-type]


def test_the_node_of_a_service_is_all_that_a_node_is() -> None:
    of_node = {name for name in vars(Node) if not name.startswith("_")}
    of_service = {name for name in vars(ServiceNode) if not name.startswith("_")}
    attributes = set(ServiceNode.__annotations__)
    assert of_node <= of_service | attributes
    # These are set by `Node`'s constructor.
    assert attributes == {
        "node_id", "limits", "spawn", "send", "monotonic", "names", "groups",
    }  # fmt: skip
