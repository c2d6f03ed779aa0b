"""A server and its clients, over real sockets: requests, pushes, failures and the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
import rabble.client
from rabble import Envelope, Mesh, NameTaken, Node, NodeStopped, Pid, Process
from rabble.services.codecs import JsonLines, MsgpackCodec, PlainLines
from rabble.services.gate import NoGate
from rabble.services.server_handler import (
    Answer,
    CloseConnection,
    ConnectionHandler,
    Fail,
    Push,
    RequestId,
    ServerOutput,
    ask,
)
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Adder, Asking, Client, Ended, adding
from tests.support import KEY, PATIENCE_S, Does, until, until_up

#: Of servers whose tests leave requests unanswered.
SHORT = ServerLimits(drain_ms=20)


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Scripted(ConnectionHandler):
    """Does what it is told by functions of the test."""

    def __init__(self, message: Any = None, envelope: Any = None, closed: Any = None) -> None:
        self.message = message
        self.envelope = envelope
        self.on_closed = closed

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        result: ServerOutput = self.message(self, msg, request)
        return result

    def handle_envelope(self, msg: Any, sender: Any, correlation_id: Any) -> ServerOutput:
        result: ServerOutput = self.envelope(self, msg, sender, correlation_id)
        return result

    def closed(self, reason: str) -> ServerOutput:
        if self.on_closed is not None:
            self.on_closed(reason)
        return None


def test_a_request_goes_to_a_process_and_its_reply_to_the_client(node: Node) -> None:
    with adding(node) as server, Client(server.address) as client:
        assert client.ask(7, 5) == [0, 7, 5]
        assert client.ask(8, 2) == [0, 8, 7]
        client.send([1, ("a", 1)])
        assert client.receive() == [3, ("a", 1)]
        until(lambda: server.status().in_flight == 0)
        status = server.status()
        assert (status.connections, status.messages, status.answered) == (1, 3, 2)
        assert status.address == server.address and status.accepted == 1


def test_many_requests_in_one_piece_are_each_answered(node: Node) -> None:
    with adding(node) as server, Client(server.address) as client:
        client.send(*([0, number, 1] for number in range(1_000)))
        got = [client.receive() for _ in range(1_000)]
        assert [frame[:2] for frame in got] == [[0, number] for number in range(1_000)]
        assert [frame[2] for frame in got] == list(range(1, 1_001))


def test_what_init_returns_comes_first_and_the_handler_knows_its_connection(node: Node) -> None:
    class Greeting(Scripted):
        def init(self) -> ServerOutput:
            return [Push(self.peer), Push(self.server), Push(self.now > 0)]

    with TcpServer(node, Greeting, name="greeter") as server, Client(server.address) as client:
        host, port = client.sock.getsockname()
        assert client.receive() == [3, f"{host}:{port}"]
        assert client.receive() == [3, node.pid("greeter")]
        assert client.receive() == [3, True]


def test_a_handler_answers_later_by_the_request_as_correlation_id(node: Node) -> None:
    pid = node.spawn(Adder(), "adder")

    def make() -> Scripted:
        return Scripted(
            lambda handler, msg, request: Envelope(pid, msg, correlation_id=request),
            lambda handler, msg, sender, cid: [Push(sender), Answer(cid, ["sum", msg])],
        )

    with TcpServer(node, make) as server, Client(server.address) as client:
        client.send([0, 1, 20], [0, 2, 22])
        assert [client.receive() for _ in range(4)] == [
            [3, pid],
            [0, 1, ["sum", 20]],
            [3, pid],
            [0, 2, ["sum", 42]],
        ]


def test_a_process_pushes_by_the_id_of_the_connection(node: Node) -> None:
    with node.mailbox() as box:

        def make() -> Scripted:
            return Scripted(
                lambda handler, msg, request: Envelope(box.pid, msg),
                lambda handler, msg, sender, cid: Push(msg),
            )

        with TcpServer(node, make) as server, Client(server.address) as client:
            client.send([1, "hello"])
            envelope = box.receive(PATIENCE_S)
            assert (envelope.msg, envelope.sender) == ("hello", server.pid)
            box.send(server.pid, "one", correlation_id=envelope.correlation_id)
            box.send(server.pid, "two", correlation_id=envelope.correlation_id)
            assert client.receive() == [3, "one"]
            assert client.receive() == [3, "two"]
            client.sock.close()
            until(lambda: server.status().connections == 0)
            late = server.status().late
            box.send(server.pid, "three", correlation_id=envelope.correlation_id)
            until(lambda: server.status().late == late + 1)


def test_an_envelope_for_no_connection_is_a_dead_letter(node: Node) -> None:
    with adding(node) as server, node.mailbox() as box:
        node.subscribe_dead_letters(box.pid)
        node.send(server.pid, "whom for?")
        assert box.receive(PATIENCE_S).msg.reason is rabble.DeadLetterReason.NO_PROCESS


@pytest.mark.parametrize(
    ("msg", "code"), [("boom", "crashed"), ("none", "no_process"), ("hold", "timeout")]
)
def test_a_request_that_gets_no_answer_fails_with_its_reason(
    node: Node, msg: str, code: str
) -> None:
    adder = node.spawn(Adder(), "adder")

    def passed_on(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        to = node.pid("nobody") if msg == "none" else adder
        return ask(to, msg, request, 50 if msg == "hold" else None)

    with (
        TcpServer(node, lambda: Scripted(passed_on)) as server,
        Client(server.address) as client,
    ):
        kind, number, given, text = client.ask(3, msg)
        assert (kind, number, given) == (1, 3, code) and text
        assert server.status().failed == 1
        # The connection goes on.
        assert client.ask(4, "none")[:3] == [1, 4, "no_process"]


def test_a_request_that_its_handler_forgets_ends_by_the_clock(node: Node) -> None:
    limits = ServerLimits(request_ms_max=60)
    kept: list[RequestId] = []

    def forget(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        # The one before is answered too late.
        late = [Answer(each, "late") for each in kept]
        kept.append(request)
        return late

    with (
        TcpServer(node, lambda: Scripted(forget), limits=limits) as server,
        Client(server.address) as client,
    ):
        assert client.ask(1, "x")[:3] == [1, 1, "timeout"]
        assert client.ask(1, "y")[:3] == [1, 1, "timeout"]
        assert server.status().late == 1


def test_an_answer_for_another_connection_s_request_reaches_nobody(node: Node) -> None:
    kept: list[RequestId] = []

    def cross(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        kept.append(request)
        if msg == "keep":
            return None
        return [*([Answer(kept[0], "stolen")] if msg == "steal" else []), Answer(request, "mine")]

    with (
        TcpServer(node, lambda: Scripted(cross), limits=SHORT) as server,
        Client(server.address) as one,
        Client(server.address) as two,
    ):
        one.send([0, 1, "keep"])
        until(lambda: kept)
        assert two.ask(1, "steal") == [0, 1, "mine"]
        assert one.ask(2, "next") == [0, 2, "mine"]
        assert server.status().late == 1


def test_a_request_is_answered_once(node: Node) -> None:
    def twice(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        return [Answer(request, 1), Answer(request, 2), Fail(request, "failed"), Push("end")]

    with (
        TcpServer(node, lambda: Scripted(twice)) as server,
        Client(server.address) as client,
    ):
        client.send([0, 5, None])
        assert [client.receive(), client.receive()] == [[0, 5, 1], [3, "end"]]
        assert server.status().late == 2


def test_an_id_that_waits_already_is_refused(node: Node) -> None:
    with adding(node, limits=SHORT) as server, Client(server.address) as client:
        client.send([0, 1, "hold"], [0, 1, 5])
        assert client.receive()[:3] == [1, 1, "duplicate"]
        assert client.ask(2, 5) == [0, 2, 5]


def test_a_handler_that_raises_ends_its_connection_only(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    def react(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        if msg == "boom":
            raise RuntimeError("as asked")
        if msg == "junk":
            return ["junk"]  # type: ignore[list-item]
        return Answer(request, msg)

    with (
        TcpServer(node, lambda: Scripted(react, closed=ended.append)) as server,
        Client(server.address) as well,
    ):
        for bad in "boom", "junk":
            with Client(server.address) as client:
                client.send([0, 1, bad], [0, 2, "x"])
                assert [frame[:2] for frame in client.rest()] == [[4, "crashed"]]
        assert well.ask(1, "x") == [0, 1, "x"]
        until(lambda: "RuntimeError: as asked" in caplog.text)
        until(lambda: "returned 'junk'" in caplog.text)
        # One that raised is not told: it may be in any state.
        assert ended == []


def test_a_generator_sends_all_or_nothing(node: Node) -> None:
    def half(handler: Any, msg: Any, request: RequestId) -> Any:
        yield Push("never seen")
        if msg == "boom":
            raise RuntimeError("half-way")
        yield Answer(request, msg)

    with TcpServer(node, lambda: Scripted(half)) as server:
        with Client(server.address) as client:
            client.send([0, 1, "x"])
            assert [client.receive(), client.receive()] == [[3, "never seen"], [0, 1, "x"]]
            client.send([0, 2, "boom"])
            assert [frame[:2] for frame in client.rest()] == [[4, "crashed"]]


def test_an_answer_that_cannot_be_written_fails_its_request(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def react(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        return [Push(object()), Answer(request, object() if msg else "well")]

    with (
        TcpServer(node, lambda: Scripted(react)) as server,
        Client(server.address) as client,
    ):
        assert client.ask(1, True)[:3] == [1, 1, "failed"]
        assert client.ask(2, False) == [0, 2, "well"]
        until(lambda: "cannot be" in caplog.text)


def test_a_handler_closes_its_connection(node: Node) -> None:
    ended: list[str] = []

    def react(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        return [Answer(request, "bye"), CloseConnection("enough"), Push("never seen")]

    with (
        TcpServer(node, lambda: Scripted(react, closed=ended.append)) as server,
        Client(server.address) as client,
    ):
        client.send([0, 1, None], [0, 2, None])
        assert [frame[:3] for frame in client.rest()] == [[0, 1, "bye"], [4, "enough", ""]]
        until(lambda: ended == ["enough"])


def test_a_client_that_goes_takes_its_requests_along(node: Node) -> None:
    ended: list[str] = []
    told: list[Any] = []
    begun = threading.Event()
    watcher = node.spawn(Does(lambda process, msg, sender: told.append(msg)), "watcher")

    class Watched(Scripted):
        def closed(self, reason: str) -> ServerOutput:
            ended.append(reason)
            return Envelope(watcher, reason)

    def hold(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        begun.set()
        return None

    with TcpServer(node, lambda: Watched(hold)) as server:
        client = Client(server.address)
        client.send([0, 1, "x"])
        assert begun.wait(PATIENCE_S)
        client.reset()
        until(lambda: told)
        assert ended == told and ended[0] in ("closed", "error")
        until(lambda: server.status().connections == 0)
        assert server.status().in_flight == 0 and server.status().failed == 1


def test_a_client_that_sends_no_more_is_still_answered(node: Node) -> None:
    with adding(node) as server, Client(server.address) as client:
        client.send(*([0, number, 1] for number in range(300)))
        client.sock.shutdown(1)
        assert [frame[1] for frame in client.rest()] == list(range(300))
        until(lambda: server.status().connections == 0)


#: More than is written at once.
MANY = [Push(bytes(1_000)) for _ in range(200)]


def test_what_takes_more_than_one_write_comes_whole_to_who_sends_no_more(node: Node) -> None:
    """Amid it no request waits that the connection is kept for: it is kept until all is handled."""

    def react(handler: Any, msg: Any, request: RequestId | None) -> ServerOutput:
        return MANY if request is None else [Answer(request, msg), *MANY]

    with (
        TcpServer(node, lambda: Scripted(react)) as server,
        Client(server.address) as client,
    ):
        client.send([0, 1, "x"], [1, "y"], [0, 2, "z"])
        client.sock.shutdown(1)
        assert [frame[0] for frame in client.rest()] == [0, *[3] * 400, 0, *[3] * 200]
        until(lambda: server.status().connections == 0)


def test_what_takes_more_than_one_write_comes_whole_though_the_server_ends(node: Node) -> None:
    waiting: list[RequestId] = []

    def react(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        waiting.append(request)
        return None

    def late(handler: Any, msg: Any, sender: Any, correlation_id: Any) -> ServerOutput:
        return [Answer(correlation_id, msg), *MANY]

    with (
        TcpServer(node, lambda: Scripted(react, late)) as server,
        Client(server.address) as client,
    ):
        client.send([0, 1, "x"])
        until(lambda: len(waiting) == 1)
        closing = threading.Thread(target=server.close)
        closing.start()
        until(lambda: server.status().draining)
        node.send(server.pid, "y", correlation_id=waiting[0])
        frames = client.rest()
        closing.join()
        assert [frame[0] for frame in frames] == [0, *[3] * 200, 4]


@pytest.mark.parametrize("codec", [None, JsonLines, PlainLines], ids=["msgpack", "json", "plain"])
def test_a_failure_whose_text_utf_8_does_not_carry_is_told_all_the_same(
    node: Node, codec: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As that of an error about a file whose name is no UTF-8."""
    # What is logged is part of a test's report, which is sent as UTF-8 by the runner.
    caplog.set_level(logging.CRITICAL, "rabble")

    def opens(process: Any, msg: Any, sender: Any) -> Any:
        raise FileNotFoundError("no file caf\udce9")

    def react(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
        if msg == "leave":
            return CloseConnection("so \udce9")
        return ask(node.spawn(Does(opens), "opens"), msg, request)

    with (
        TcpServer(node, lambda: Scripted(react), codec=codec) as server,
        Client(server.address) as client,
    ):
        said = []
        for line in ("open", "leave"):
            if codec is None:
                said.append(repr(client.ask(1, line)))
            else:
                asked = f'{{"id":1,"msg":"{line}"}}' if codec is JsonLines else line
                client.sock.sendall(f"{asked}\n".encode())
                said.append(client.line())
        failed, goodbye = (text.replace("\\\\", "\\") for text in said)
        assert "crashed" in failed and r"no file caf\udce9" in failed
        assert r"so \udce9" in goodbye


def test_the_end_of_a_node_answers_what_was_begun_and_says_goodbye() -> None:
    with rabble.rouse("served@127.0.0.1:0") as node:
        with node.mailbox() as box:

            class Slow(Process):
                def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
                    return Envelope(box.pid, (sender, correlation_id))

            slow = node.spawn(Slow(), "slow")
            server = TcpServer(node, lambda: Asking(slow))
            with Client(server.address) as client, Client(server.address) as idle:
                client.send([0, 1, "x"])
                sender, cid = box.receive(PATIENCE_S).msg
                until(lambda: server.status().connections == 2)
                node.send(sender, "in time", correlation_id=cid)
                node.request_shutdown()
                assert [frame[:2] for frame in client.rest()] == [[0, 1], [4, "drain"]]
                assert [frame[:2] for frame in idle.rest()] == [[4, "drain"]]
    assert not server.thread.is_alive()
    with pytest.raises(OSError):
        Client(server.address)


def test_what_cannot_be_answered_any_more_fails_when_the_node_ends() -> None:
    with rabble.rouse("served@127.0.0.1:0") as node:
        with adding(node) as server, Client(server.address) as client:
            client.send([0, 1, "hold"])
            until(lambda: server.status().in_flight == 1)
            node.shutdown(1.0)
            assert [frame[:3] for frame in client.rest()] == [
                [1, 1, "disconnected"],
                [4, "drain", "the server ends"],
            ]


def test_close_refuses_what_was_not_begun_and_finishes_the_rest(node: Node) -> None:
    with node.mailbox() as box:
        limits = ServerLimits(requests_per_connection_max=1)

        def make() -> Scripted:
            return Scripted(
                lambda handler, msg, request: Envelope(box.pid, msg, correlation_id=request),
                lambda handler, msg, sender, cid: Answer(cid, msg),
            )

        server = TcpServer(node, make, limits=limits)
        with Client(server.address) as client:
            client.send([0, 1, "x"], [0, 2, "y"], [1, "z"])
            envelope = box.receive(PATIENCE_S)
            closing = threading.Thread(target=server.close)
            closing.start()
            until(lambda: server.status().draining)
            box.send(server.pid, "done", correlation_id=envelope.correlation_id)
            assert [frame[:3] for frame in client.rest()] == [
                [0, 1, "done"],
                [2, 2, limits.retry_after_ms],
                [4, "drain", "the server ends"],
            ]
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
    # Its name is free again.
    with TcpServer(node, make) as again:
        assert again.pid == server.pid


def test_close_cuts_what_does_not_end(node: Node) -> None:
    with adding(node) as server, Client(server.address) as client:
        client.send([0, 1, "hold"])
        until(lambda: server.status().in_flight == 1)
        server.close(0.01)
        assert not server.thread.is_alive()
        with pytest.raises(Ended):
            client.take(1)


@pytest.mark.parametrize("strict", [True, "changes"])
def test_in_strict_mode_what_handlers_send_is_looked_at(strict: Any) -> None:
    with rabble.rouse(strict=strict) as node, adding(node) as server:
        with Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            assert client.ask(2, 5) == [0, 2, 10]

        def unsendable(handler: Any, msg: Any, request: RequestId) -> ServerOutput:
            return ask(node.pid("adder"), object(), request)

        with TcpServer(node, lambda: Scripted(unsendable), name="two") as two:
            with Client(two.address) as client:
                assert client.ask(1, 5)[:3] == [1, 1, "failed"]


def test_servers_of_one_node_and_names(node: Node) -> None:
    with adding(node) as one, adding(node, name="two", adder="other") as two:
        with Client(one.address) as client, Client(two.address) as other:
            assert client.ask(1, 3) == [0, 1, 3]
            assert other.ask(1, 4) == [0, 1, 4]
        with pytest.raises(NameTaken):
            TcpServer(node, lambda: Asking(one.pid))
    assert "two" in repr(two)


def test_a_node_that_ended_serves_nobody() -> None:
    with rabble.rouse("served@127.0.0.1:0") as node:
        pass
    with pytest.raises(NodeStopped):
        TcpServer(node, Scripted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"handler": Scripted()}, "so give the class"),
        ({"handler": None}, "must be a ConnectionHandler class"),
        ({"node": 5}, "node must be a Node, not the int 5"),
        ({"bind": ("127.0.0.1", 0)}, "bind must be a str"),
        ({"codec": 5}, "codec must be a ServerCodec of .* not the int 5"),
        ({"codec": rabble.client.JsonLines}, "codec must be a ServerCodec of rabble.services"),
        ({"codec": MsgpackCodec}, "not the class"),
        ({"limits": 5}, "limits must be a ServerLimits"),
        ({"tls": "x"}, "tls must be a ServerTls"),
        ({"gate": 5}, "gate must be a Gate, such as .* not the int 5"),
        ({"gate": NoGate}, "not the class"),
        ({"mode": -1}, "mode must be a int, 0 to 0o7777"),
        ({"mode": "rw"}, "mode must be a int, 0 to 0o7777"),
        ({"reuse_port": 1}, "reuse_port must be a bool"),
    ],
)
def test_wrong_arguments(node: Node, change: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        TcpServer(**{"node": node, "handler": Scripted, **change})


def test_a_server_in_a_mesh_and_a_process_of_another_node() -> None:
    with (
        rabble.rouse("one@127.0.0.1:0", mesh=Mesh(key=KEY)) as one,
        rabble.rouse("two@127.0.0.1:0", mesh=Mesh(key=KEY)) as two,
    ):
        one.join(two.node_id)
        until_up(one, two)
        pid: Pid = two.spawn(Adder(), "adder")
        with TcpServer(one, lambda: Asking(pid)) as server, Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
            client.send([0, 2, "hold"])
            until(lambda: server.status().in_flight == 1)
            two.shutdown()
            assert client.receive()[:3] == [1, 2, "disconnected"]
