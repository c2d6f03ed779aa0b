"""Clients that mean ill, or are just broken: what they cost, and that others are served."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node
from rabble._core.debug import CAPACITIES
from rabble.services.codecs import JsonLines, PlainLines
from rabble.services.server_handler import Answer, ConnectionHandler, RequestId, ServerOutput
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Client, Ended, adding, connect
from tests.support import PATIENCE_S, SANITIZED, TINY, Does, until

#: Of each kind: enough to be many, for a machine of two processors.
MANY = 8 if TINY else 60


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Echoing(ConnectionHandler):
    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return None if request is None else Answer(request, msg)


def served(client: Client, times: int = 20) -> None:
    """A client that means well gets its answers."""
    for number in range(times):
        assert client.ask(number, number) == [0, number, number]


@contextlib.contextmanager
def crowd(address: str, count: int = MANY) -> Iterator[list[socket.socket]]:
    """So many connections, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]


def test_those_that_say_a_byte_now_and_then(node: Node) -> None:
    limits = ServerLimits(partial_frame_ms_max=200)
    with TcpServer(node, Echoing, limits=limits) as server, Client(server.address) as well:
        with crowd(server.address) as slow:
            frame = well.frame([0, 1, "x" * 100])
            for byte in frame[:8]:
                for sock in slow:
                    with contextlib.suppress(OSError):
                        sock.sendall(bytes([byte]))
                served(well, 5)
            # However many bytes follow each other, a frame has its time from its first one.
            for sock in slow:
                sock.settimeout(PATIENCE_S)
                assert b"timeout" in sock.recv(1_000)
        until(lambda: server.status().connections == 1)
        served(well)


def test_those_that_never_read(node: Node) -> None:
    limits = ServerLimits(
        write_buffer_bytes_max=64_000, write_stalled_ms_max=300, linger_ms_max=100
    )
    with TcpServer(node, Echoing, limits=limits) as server, Client(server.address) as well:
        frame = well.frame([0, 1, "x" * 60_000])
        with crowd(server.address, 8) as mute:
            for sock in mute:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                sock.setblocking(False)
            for _ in range(200):
                for sock in mute:
                    with contextlib.suppress(OSError):
                        sock.send(frame)
                served(well, 1)
            until(lambda: server.status().connections == 1)
        served(well)


def test_those_that_say_nothing_at_all(node: Node) -> None:
    limits = ServerLimits(idle_ms_max=300)
    with TcpServer(node, Echoing, limits=limits) as server:
        with crowd(server.address) as silent, Client(server.address) as well:
            served(well)
            for sock in silent:
                sock.settimeout(PATIENCE_S)
                assert b"idle" in sock.recv(1_000)
            until(lambda: server.status().connections <= 1)


def test_those_that_close_half_way(node: Node) -> None:
    with TcpServer(node, Echoing) as server, Client(server.address) as well:
        frame = well.frame([0, 1, "x" * 200])
        for size in range(0, len(frame), 3):
            with connect(server.address) as sock:
                sock.sendall(frame[:size])
            with Client(sock=connect(server.address)) as client:
                client.sock.sendall(frame[:size])
                client.reset()
        served(well)
        until(lambda: server.status().connections == 1)


@pytest.mark.parametrize("codec", [None, JsonLines, PlainLines])
def test_garbage(node: Node, codec: Any) -> None:
    draw = random.Random(20261130)
    limits = ServerLimits(frame_bytes_max=2_000, partial_frame_ms_max=200)
    with TcpServer(node, Echoing, codec=codec, limits=limits) as server:
        for _ in range(MANY):
            with connect(server.address) as sock:
                sock.settimeout(PATIENCE_S)
                junk = draw.randbytes(draw.randrange(1, 3_000))
                with contextlib.suppress(OSError):
                    sock.sendall(junk)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65_536):
                        pass
        until(lambda: server.status().connections == 0)
        assert server.status().in_flight == 0 and node.status == "running"
        with Client(server.address) as well:
            if codec is None:
                served(well)
            else:
                line = b'{"id":1,"msg":"x"}' if codec is JsonLines else b"x"
                well.sock.sendall(line + b"\n")
                assert "x" in well.line()


def test_frames_that_are_cut_anywhere_are_put_together(node: Node) -> None:
    draw = random.Random(7)
    with TcpServer(node, Echoing) as server, Client(server.address) as client:
        stream = b"".join(
            client.frame([0, number, "x" * draw.randrange(300)]) for number in range(100)
        )
        at = 0
        while at < len(stream):
            size = draw.randrange(1, 80)
            client.sock.sendall(stream[at : at + size])
            at += size
        for number in range(100):
            assert client.receive()[:2] == [0, number]


def test_one_that_pipelines_a_great_many_does_not_delay_one_that_asks_once(node: Node) -> None:
    order: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    class Noting(Echoing):
        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            order.append(msg)
            return super().handle_message(msg, request)

    def hold(process: Any, msg: Any, sender: Any) -> None:
        entered.set()
        go_on.wait(PATIENCE_S)

    with TcpServer(node, Noting) as server:
        with Client(server.address) as greedy, Client(server.address) as modest:
            assert greedy.ask(0, "first") == [0, 0, "first"]
            assert modest.ask(0, "second") == [0, 0, "second"]
            # While the executor does something else both have sent what they want.
            node.send(node.spawn(Does(hold), "holder"), None)
            assert entered.wait(PATIENCE_S)
            count = 1_000
            greedy.send(*([0, number, "many"] for number in range(count)))
            modest.send([0, 1, "once"])
            go_on.set()
            assert modest.receive() == [0, 1, "once"]
            assert [greedy.receive()[1] for _ in range(count)] == list(range(count))
    # Whoever had his turn first.
    assert order.index("once") - 2 <= 2 * CAPACITIES["CLIENT_TURN_FRAMES"]


def test_each_request_ends_once_while_clients_are_cut(node: Node) -> None:
    draw = random.Random(11)
    with adding(node, limits=ServerLimits(request_ms_max=100)) as server:
        for _ in range(MANY // 3):
            client = Client(server.address)
            client.send(*([0, n, draw.choice([1, "hold"])] for n in range(20)))
            if draw.random() < 0.5:
                ends = [client.receive()[:2] for _ in range(20)]
                assert sorted(number for _, number in ends) == list(range(20))
                client.sock.close()
            else:
                client.reset()
        until(lambda: server.status().connections == 0)
        status = server.status()
        assert status.in_flight == 0
        assert status.answered + status.failed + status.refused == status.messages


def test_a_forked_child_keeps_no_connection_open(node: Node) -> None:
    with TcpServer(node, Echoing) as server, Client(server.address) as client:
        served(client)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            # Here the server is not; it lives on, and the connection is not held by it.
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        try:
            os.close(read)
            served(client)
            server.close()
            assert [frame[:2] for frame in client.rest()] == [[4, "drain"]]
            with pytest.raises(OSError):
                connect(server.address)
        finally:
            os.close(write)
            os.waitpid(child, 0)


@pytest.mark.skipif(SANITIZED or TINY, reason="the memory is another's")
def test_an_idle_connection_takes_little_memory(node: Node) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    class Plain(Echoing):
        __slots__ = ()

    with TcpServer(node, Plain) as server, Client(server.address) as well:
        with crowd(server.address, 50):
            until(lambda: server.status().connections == 51)
            served(well)
            before = resident()
            with crowd(server.address, 300):
                until(lambda: server.status().connections == 351)
                served(well)
                # The client's own objects, a socket's each, are among it.
                assert (resident() - before) / 300 < 4_096


def test_the_end_of_a_client_amid_its_answers(node: Node) -> None:
    with TcpServer(node, Echoing) as server, Client(server.address) as well:
        for _ in range(20):
            client = Client(server.address)
            client.send(*([0, number, "x" * 30_000] for number in range(50)))
            with contextlib.suppress(Ended):
                client.take(10)
            client.reset()
        served(well)
        until(lambda: server.status().connections == 1)
