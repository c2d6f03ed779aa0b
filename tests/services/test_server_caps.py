"""The bounds of a server, each reached from outside, and what is answered then."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import Envelope, Node
from rabble.services.server_handler import Answer, ConnectionHandler, Push, RequestId, ServerOutput
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Client, adding, connect
from tests.support import PATIENCE_S, Echo, until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Flooding(ConnectionHandler):
    """Pushes so much as it is asked for, in frames of 64 KiB."""

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        if request is None:
            return [Push("x" * 65_536) for _ in range(msg)]
        return Answer(request, "y" * msg)


def small_buffers(client: Client) -> Client:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    return client


def test_more_connections_than_allowed_are_told_so(node: Node) -> None:
    with adding(node, limits=ServerLimits(connections_max=2)) as server:
        with Client(server.address) as one, Client(server.address) as two:
            assert one.ask(1, 1) == [0, 1, 1] and two.ask(1, 1) == [0, 1, 2]
            with Client(server.address) as three:
                assert [frame[:2] for frame in three.rest()] == [[4, "full"]]
            assert server.status().turned_away == 1
        until(lambda: server.status().connections == 0)
        with Client(server.address) as four:
            assert four.ask(1, 1) == [0, 1, 3]


def test_more_connections_from_one_address_than_allowed(node: Node) -> None:
    limits = ServerLimits(connections_per_address_max=1)
    with adding(node, limits=limits, bind="127.0.0.1:0") as server:
        host, _, port = server.address.rpartition(":")
        with Client(server.address) as one:
            assert one.ask(1, 1) == [0, 1, 1]
            with Client(server.address) as two:
                assert [frame[:2] for frame in two.rest()] == [[4, "full"]]
            other = socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0))
            with Client(sock=other) as three:
                assert three.ask(1, 1) == [0, 1, 2]


def test_of_one_connection_no_more_is_begun_than_allowed(node: Node) -> None:
    begun: list[Any] = []
    with node.mailbox() as box:

        class Holding(ConnectionHandler):
            def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
                begun.append(msg)
                return Envelope(box.pid, msg, correlation_id=request)

            def handle_envelope(self, msg: Any, sender: Any, request: Any) -> ServerOutput:
                return Answer(request, msg)

        limits = ServerLimits(requests_per_connection_max=3)
        with TcpServer(node, Holding, limits=limits) as server, Client(server.address) as client:
            client.send(*([0, number, number] for number in range(50)))
            for number in range(50):
                envelope = box.receive(PATIENCE_S)
                assert len(begun) <= number + 3 and server.status().in_flight <= 3
                assert envelope.msg == number
                box.send(server.pid, "done", correlation_id=envelope.correlation_id)
                assert client.receive() == [0, number, "done"]


def test_of_all_connections_what_is_too_much_is_refused(node: Node) -> None:
    limits = ServerLimits(requests_max=2, retry_after_ms=77, drain_ms=20)
    with adding(node, limits=limits) as server:
        with Client(server.address) as one, Client(server.address) as two:
            one.send([0, 1, "hold"], [0, 2, "hold"])
            until(lambda: server.status().in_flight == 2)
            assert two.ask(9, 5)[:3] == [2, 9, 77]
            assert server.status().refused == 1
            one.reset()
            until(lambda: server.status().in_flight == 0)
            assert two.ask(9, 5) == [0, 9, 5]


@pytest.mark.parametrize("size", [1_001, 1 << 20, (1 << 32) - 1])
def test_a_frame_that_is_too_large_closes_its_connection(node: Node, size: int) -> None:
    with adding(node, limits=ServerLimits(frame_bytes_max=1_000)) as server:
        with Client(server.address) as client:
            client.send([0, 1, 5])
            assert client.receive() == [0, 1, 5]
            client.sock.sendall(size.to_bytes(4, "big"))
            assert [frame[:2] for frame in client.rest()] == [[4, "too_large"]]


def test_the_largest_frame_that_is_taken(node: Node) -> None:
    limits = ServerLimits(frame_bytes_max=100_000)
    with TcpServer(node, Flooding, limits=limits) as server, Client(server.address) as client:
        frame = client.frame([1, 0, "x" * 99_000])
        frame += b"\x00" * (100_004 - len(frame))
        client.sock.sendall((100_000).to_bytes(4, "big") + frame[4:])
        assert [frame[:2] for frame in client.rest()] == [[4, "malformed"]]


def test_a_frame_that_is_not_finished_in_time(node: Node) -> None:
    with adding(node, limits=ServerLimits(partial_frame_ms_max=50)) as server:
        with Client(server.address) as client:
            frame = client.frame([0, 1, 5])
            client.sock.sendall(frame + frame[:6])
            assert [frame[:2] for frame in client.rest()] == [[0, 1], [4, "timeout"]]


def test_a_connection_without_requests_is_idle_and_one_with_some_is_not(node: Node) -> None:
    limits = ServerLimits(idle_ms_max=150, drain_ms=20)
    with adding(node, limits=limits) as server:
        with Client(server.address) as busy, Client(server.address) as idle:
            busy.send([0, 1, "hold"])
            assert [frame[:2] for frame in idle.rest()] == [[4, "idle"]]
            assert busy.ask(2, 1) == [0, 2, 1]
            busy.reset()
        until(lambda: server.status().connections == 0)


def test_who_reads_nothing_is_closed_when_its_buffer_is_full(node: Node) -> None:
    ended: list[str] = []

    class Watched(Flooding):
        def closed(self, reason: str) -> ServerOutput:
            ended.append(reason)
            return None

    limits = ServerLimits(write_buffer_bytes_max=100_000, linger_ms_max=50)
    with TcpServer(node, Watched, limits=limits) as server:
        with Client(server.address) as client, Client(server.address) as well:
            small_buffers(client).send([1, 400])
            until(lambda: ended == ["slow"])
            until(lambda: server.status().connections == 1)
            assert well.ask(1, 3) == [0, 1, "yyy"]


def test_who_asks_and_reads_no_answers_is_not_asked_further_and_then_closed(node: Node) -> None:
    ended: list[str] = []

    class Watched(Flooding):
        def closed(self, reason: str) -> ServerOutput:
            ended.append(reason)
            return None

    limits = ServerLimits(
        write_buffer_bytes_max=1 << 20, write_stalled_ms_max=300, linger_ms_max=50
    )
    with TcpServer(node, Watched, limits=limits) as server:
        with Client(server.address) as client:
            small_buffers(client).send(*([0, number, 60_000] for number in range(1_000)))
            until(lambda: ended == ["slow"])
            # Of what it asked only so much was begun as has room, in the kernel or here.
            assert server.status().messages < 900
            until(lambda: server.status().connections == 0)


def test_who_reads_late_is_given_all(node: Node) -> None:
    limits = ServerLimits(write_buffer_bytes_max=1 << 20)
    with TcpServer(node, Flooding, limits=limits) as server, Client(server.address) as client:
        client.send(*([0, number, 60_000] for number in range(300)))
        until(lambda: server.status().messages > 20)
        for number in range(300):
            assert client.receive() == [0, number, "y" * 60_000]


def test_limits_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="requests_max must be an int, 1 to 16777216, not 0"):
        ServerLimits(requests_max=0)
    with pytest.raises(ValueError, match="idle_ms_max"):
        ServerLimits(idle_ms_max=1.5)  # type: ignore[arg-type]


# Where it listens.


def test_a_unix_socket_has_its_mode_and_goes_with_the_server(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with adding(node, bind=f"unix:{path}", mode=0o660) as server:
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
        # Somebody listens there.
        with pytest.raises(OSError, match="another server does"):
            TcpServer(node, Flooding, f"unix:{path}", name="second")
    assert not path.exists()


def test_a_unix_socket_that_a_killed_server_left_is_replaced(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    with adding(node, bind=f"unix:{path}") as server, Client(server.address) as client:
        assert client.ask(1, 5) == [0, 1, 5]
        # What has taken its place by then is not removed.
        os.unlink(path)
        path.write_text("mine")
    assert path.read_text() == "mine"
    with pytest.raises(OSError, match="cannot listen on"):
        TcpServer(node, Flooding, f"unix:{path}", name="second")
    assert path.read_text() == "mine"


def test_what_a_client_of_a_unix_socket_sent_before_it_closed_is_handled(
    node: Node, tmp_path: Path
) -> None:
    with node.mailbox() as box:

        class Passing(ConnectionHandler):
            def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
                return Envelope(box.pid, msg)

        with TcpServer(node, Passing, f"unix:{tmp_path / 'socket'}") as server:
            with Client(server.address) as client:
                client.send(*([1, "x" * 1_000] for _ in range(100)), [1, "last"])
            for _ in range(100):
                assert box.receive(PATIENCE_S).msg == "x" * 1_000
            assert box.receive(PATIENCE_S).msg == "last"
            until(lambda: server.status().connections == 0)


def test_two_servers_share_a_port_if_both_say_so(node: Node) -> None:
    with adding(node, reuse_port=True) as one:
        with adding(node, bind=one.address, reuse_port=True, name="two", adder="other") as two:
            assert two.address == one.address
            with Client(one.address) as client:
                assert client.ask(1, 5) == [0, 1, 5]
        with pytest.raises(OSError, match="cannot listen on"):
            TcpServer(node, Flooding, one.address, name="three")


@pytest.mark.parametrize("bind", ["", "127.0.0.1", "unix:", ":x"])
def test_what_is_no_address(node: Node, bind: str) -> None:
    with pytest.raises(ValueError):
        TcpServer(node, Flooding, bind)


def test_ipv6(node: Node) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with adding(node, bind="[::1]:0") as server:
        port = int(server.address.rpartition(":")[2])
        assert server.address == f"[::1]:{port}"
        with Client(sock=socket.create_connection(("::1", port))) as client:
            assert client.ask(1, 5) == [0, 1, 5]


def test_without_descriptors_it_rests_and_goes_on(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    with adding(node) as server:
        with Client(server.address) as before:
            assert before.ask(1, 1) == [0, 1, 1]
            host, _, port = server.address.rpartition(":")
            with socket.socket() as waiting:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                held = [os.dup(0) for _ in range(8)]
                for fd in held:
                    os.close(fd)
                # Every number up to the highest one is taken.
                least = max(int(name) for name in os.listdir("/proc/self/fd"))
                taken = [os.dup(0) for _ in range(least)]
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
                try:
                    waiting.connect((host, int(port)))
                    until(lambda: "cannot accept" in caplog.text)
                    # Those that are there are served all the same.
                    assert before.ask(2, 1) == [0, 2, 2]
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for fd in taken:
                        os.close(fd)
                with Client(sock=waiting) as client:
                    assert client.ask(1, 1) == [0, 1, 3]


def test_a_connection_that_is_gone_before_it_is_accepted(node: Node) -> None:
    with adding(node) as server:
        for _ in range(20):
            connect(server.address).close()
        with Client(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
        until(lambda: server.status().connections == 0)


def test_an_executor_with_nothing_to_do_sleeps_whatever_clients_wait_for(node: Node) -> None:
    """Of requests whose answers have no room by any guess no more are begun, nor looked for."""

    class Mute(ConnectionHandler):
        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            return None

    limits = ServerLimits(write_buffer_bytes_max=64, request_ms_max=3_600_000)
    executor = node._runtime.executor
    with TcpServer(node, Mute, limits=limits) as server, Client(server.address) as client:
        client.send(*([0, number, "x"] for number in range(100)))
        until(lambda: server.status().in_flight >= 60)
        slept = executor.sleeps
        node.send(node.spawn(Echo(), "echo"), "x")
        until(lambda: executor.sleeps > slept)
        client.reset()
