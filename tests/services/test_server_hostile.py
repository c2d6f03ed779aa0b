"""Clients that mean ill, or are just broken: what they cost, and that others are served."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import CorrelationId, Node, Process, reply
from rabble._core.debug import CAPACITIES
from rabble.services.codecs import JsonLines, PlainLines
from rabble.services.server_handler import Answer, ConnectionHandler, RequestId, ServerOutput
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Asking, Client, Ended, adding, connect
from tests.services.test_server_tls import Authority
from tests.support import PATIENCE_S, SANITIZED, TINY, Does, descriptors, until

#: Of each kind: enough to be many, for a machine of two processors.
MANY = 8 if TINY else 60


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Echoing(ConnectionHandler):
    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return None if request is None else Answer(request, msg)


class Wordy(Echoing):
    """Answers much to little."""

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        return super().handle_message("x" * 60_000 if msg == "much" else msg, request)


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
    with TcpServer(node, Wordy, limits=limits) as server, Client(server.address) as well:
        frame = well.frame([0, 1, "much"])
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


# What is no request, and what nobody may answer.


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /api HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x10\x00\x01",
    ],
)
def test_who_speaks_something_else_is_refused_by_the_first_byte_that_is_none(
    node: Node, first: bytes
) -> None:
    """Not when four of a length have come, nor by the time that a frame has."""
    with adding(node) as server, Client(server.address) as well:
        served_before = well.ask(1, 1)
        # Of a length that is one byte too many it is the last.
        enough = 1 if first[0] else 4
        with Client(server.address) as stranger:
            stranger.sock.sendall(first[: enough - 1])
            stranger.sock.sendall(first[enough - 1 : enough])
            assert [frame[:2] for frame in stranger.rest()] == [[4, "too_large"]]
        with Client(server.address) as stranger:
            stranger.sock.sendall(first)
            assert [frame[:2] for frame in stranger.rest()] == [[4, "too_large"]]
        assert well.ask(2, 1) == [0, 2, served_before[2] + 1]
        assert server.status().messages == 2


def test_an_http_request_does_nothing_at_a_server_of_json(node: Node) -> None:
    """A page in a browser can send one anywhere, with lines in its body: none of them is begun."""
    with adding(node, codec=JsonLines) as server, Client(server.address) as browser:
        browser.sock.sendall(
            b'POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 18\r\n\r\n{"id":1,"msg":40}\n'
        )
        assert browser.json()["goodbye"] == "malformed"
        with pytest.raises(Ended):
            browser.take(1)
        assert server.status().messages == 0


def test_a_malformed_request_ends_its_own_connection_and_no_other(node: Node) -> None:
    """What was asked before it is begun, of what comes behind it nothing is."""
    with node.mailbox() as box:

        class Passing(ConnectionHandler):
            def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
                return rabble.Envelope(box.pid, msg, correlation_id=request)

            def handle_envelope(self, msg: Any, sender: Any, request: Any) -> ServerOutput:
                return Answer(request, msg)

        with TcpServer(node, Passing) as server:
            with Client(server.address) as well, Client(server.address) as ill:
                well.send([0, 1, "waits"])
                waits = box.receive(PATIENCE_S)
                ill.send([0, 1, "before"], [0, "one", "x"], [0, 2, "behind"])
                before = box.receive(PATIENCE_S)
                assert before.msg == "before"
                assert [frame[:2] for frame in ill.rest()] == [[4, "malformed"]]
                late = server.status().late
                box.send(server.pid, 1, correlation_id=before.correlation_id)
                box.send(server.pid, 2, correlation_id=waits.correlation_id)
                assert well.receive() == [0, 1, 2]
                status = server.status()
                assert (status.messages, status.late) == (2, late + 1)


def test_replies_to_what_nobody_asked_are_dropped_and_counted(node: Node) -> None:
    """Of a connection that never was, of a request that never was, and of none at all."""
    with adding(node) as server, Client(server.address) as client, node.mailbox() as box:
        assert client.ask(1, 5) == [0, 1, 5]
        made_up = [
            CorrelationId(server.pid, 999, 1),
            CorrelationId(server.pid, 999),
            CorrelationId(server.pid, 0, 12345),
            # The slot is that of the request before, and the generation is not.
            CorrelationId(server.pid, 0, 0),
        ]
        for number, cid in enumerate(made_up, 1):
            box.send(server.pid, "made up", correlation_id=cid)
            until(lambda number=number: server.status().late == number)
        node.subscribe_dead_letters(box.pid)
        for cid in (None, CorrelationId(server.pid), CorrelationId(node.pid("other"), 0, 0)):
            box.send(server.pid, "made up", correlation_id=cid)
            assert box.receive(PATIENCE_S).msg.reason is rabble.DeadLetterReason.NO_PROCESS
        assert client.ask(1, 5) == [0, 1, 10]
        assert server.status().late == len(made_up)


def test_a_late_reply_is_never_given_to_a_later_request_of_the_same_id(node: Node) -> None:
    with node.mailbox() as box:

        class Passing(ConnectionHandler):
            def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
                return rabble.Envelope(box.pid, msg, correlation_id=request)

            def handle_envelope(self, msg: Any, sender: Any, request: Any) -> ServerOutput:
                return Answer(request, msg)

        with TcpServer(node, Passing, limits=ServerLimits(request_ms_max=150)) as server:
            with Client(server.address) as client:
                for number in range(3):
                    assert client.ask(7, "slow")[:3] == [1, 7, "timeout"]
                    late = box.receive(PATIENCE_S).correlation_id
                    client.send([0, 7, "quick"])
                    quick = box.receive(PATIENCE_S).correlation_id
                    box.send(server.pid, "for the first", correlation_id=late)
                    box.send(server.pid, "for the second", correlation_id=quick)
                    # On a machine that stands still its time, too, may be over.
                    assert client.receive()[:3] in ([0, 7, "for the second"], [1, 7, "timeout"])
                    until(lambda least=number + 1: server.status().late >= least)


def test_of_ten_thousand_pipelined_requests_each_ends_once(node: Node) -> None:
    """No more are in flight than allowed; what is too much for all is refused and not begun."""
    count = 200 if TINY else 10_000
    most: list[int] = [0]

    class Counting(Process):
        def __init__(self) -> None:
            self.handled = 0

        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
            self.handled += 1
            most[0] = max(most[0], server.status().in_flight)
            return reply(msg, sender, correlation_id)

    counting = Counting()
    pid = node.spawn(counting, "counting")
    limits = ServerLimits(requests_per_connection_max=200, requests_max=100)
    with TcpServer(node, lambda: Asking(pid), limits=limits) as server:
        with Client(server.address) as client:
            sender = threading.Thread(
                target=client.send, args=[[0, number, number] for number in range(count)]
            )
            sender.start()
            ends: collections.Counter[int] = collections.Counter()
            nacks = 0
            for _ in range(count):
                kind, number, value, *_ = client.receive()
                ends[number] += 1
                assert (kind, value) == (0, number) or (kind == 2 and value > 0)
                nacks += kind == 2
            sender.join()
            assert set(ends.values()) == {1} and len(ends) == count
            assert client.ask(count, "once more") == [0, count, "once more"]
        status = server.status()
        assert 0 < most[0] <= 100
        assert (status.answered, status.refused) == (count - nacks + 1, nacks)
        assert counting.handled == status.answered


def test_who_asked_a_process_that_dies_is_told_once(node: Node) -> None:
    """Of several clients, with several requests each; its successor answers none of them."""

    class Collecting(Process):
        def __init__(self) -> None:
            self.count = 0

        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
            self.count += 1
            if self.count == 30:
                raise ValueError("as planned")
            return reply(msg, sender, correlation_id) if msg == "early" else None

    pid = node.spawn(Collecting(), "collecting")
    with TcpServer(node, lambda: Asking(pid)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(3)]
        for client in clients:
            assert client.ask(0, "early") == [0, 0, "early"]
            client.send(*([0, number, "kept"] for number in range(1, 10)))
        for client in clients:
            ends = sorted(client.receive() for _ in range(9))
            assert [frame[:3] for frame in ends] == [[1, n, "crashed"] for n in range(1, 10)]
            assert client.ask(10, "nobody")[:3] == [1, 10, "no_process"]
        node.spawn(Collecting(), "collecting")
        for client in clients:
            assert client.ask(1, "early") == [0, 1, "early"]
        status = server.status()
        assert (status.in_flight, status.late, status.failed) == (0, 0, 3 * 10)


# Crowds.


def test_five_hundred_that_drip_keep_nobody_out(node: Node) -> None:
    """A new client is served while they are all there; and then each has had its time."""
    count = MANY if TINY or SANITIZED else 500
    limits = ServerLimits(partial_frame_ms_max=2_000, linger_ms_max=200)
    with TcpServer(node, Echoing, limits=limits) as server:
        with Client(sock=connect(server.address)) as any_one:
            frame = any_one.frame([0, 1, "x" * 1_000])
        until(lambda: server.status().connections == 0)
        with crowd(server.address, count) as slow:
            until(lambda: server.status().connections == count)
            at = 0
            while at < 3 or server.status().connections > 0:
                for sock in slow:
                    with contextlib.suppress(OSError):
                        sock.sendall(frame[at : at + 1])
                at += 1
                if at <= 3:
                    with Client(server.address) as new:
                        served(new, 3)
                        if at == 1:
                            # None of them had to go for that.
                            assert server.status().connections == count + 1
                assert at < len(frame), "each byte gave them more time"
                threading.Event().wait(0.02)
        assert server.status().messages == 9


def test_a_flood_of_connections_leaves_nothing_behind(node: Node) -> None:
    count = 50 if TINY or SANITIZED else 1_000
    limits = ServerLimits(connections_max=64)
    with TcpServer(node, Echoing, limits=limits) as server, Client(server.address) as well:
        served(well, 3)
        before = len(os.listdir("/proc/self/fd"))

        def flood(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(count):
                client = Client(server.address)
                with contextlib.suppress(OSError):
                    if draw.random() < 0.5:
                        client.sock.sendall(draw.randbytes(draw.randrange(20)))
                (client.reset if draw.random() < 0.5 else client.sock.close)()

        threads = [threading.Thread(target=flood, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            served(well, 1)
        for thread in threads:
            thread.join()
        # Those that have gone before they were accepted, too.
        until(lambda: server.status().accepted == 1 + 3 * count)
        until(lambda: server.status().connections == 1)
        assert server.status().in_flight == 0
        # Fewer if an earlier test's have gone meanwhile.
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        served(well)


def test_half_open_connections_end_though_the_client_never_closes(node: Node) -> None:
    """As those of a machine that is gone: nothing comes of it, not even the end."""
    limits = ServerLimits(
        idle_ms_max=400, linger_ms_max=100, write_stalled_ms_max=400, write_buffer_bytes_max=1 << 20
    )
    with TcpServer(node, Echoing, limits=limits) as server:
        with crowd(server.address, MANY) as silent, Client(server.address) as well:
            # Some wait for nothing, some for the rest of what they never read.
            frame = well.frame([0, 1, "x" * 60_000])
            for sock in silent[::4]:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(20):
                        sock.send(frame)
            while server.status().connections > 1:
                served(well, 1)
            assert all(sock.fileno() >= 0 for sock in silent)
            served(well)


def test_tls_handshakes_that_stop_at_any_place_keep_nobody_out(node: Node, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    limits = ServerLimits(handshake_ms_max=1_500, handshakes_max=MANY)
    with adding(node, tls=authority.tls(), limits=limits) as server:
        with crowd(server.address, MANY // 2) as stuck:
            for number, sock in enumerate(stuck):
                sock.settimeout(PATIENCE_S)
                hello = client_hello(authority)
                # Nothing; a part of a record; a whole one, whose answer is never followed.
                sock.sendall(hello[: (0, 1, 5, len(hello) // 2, len(hello))[number % 5]])
            with authority.connect(server.address) as client:
                assert client.ask(1, 5) == [0, 1, 5]
                for sock in stuck:
                    with contextlib.suppress(ConnectionResetError):
                        while sock.recv(65_536):
                            pass
                assert client.ask(2, 5) == [0, 2, 10]
        until(lambda: server.status().connections == 0)
        assert server.status().in_flight == 0


def test_those_that_never_read_over_tls(node: Node, tmp_path: Path) -> None:
    """What the TLS side keeps for them is bounded, too, and ends with them."""
    authority = Authority(tmp_path)
    limits = ServerLimits(
        write_buffer_bytes_max=256_000, write_stalled_ms_max=300, linger_ms_max=100
    )
    before = sockets()
    with TcpServer(node, Wordy, tls=authority.tls(), limits=limits) as server:
        with authority.connect(server.address) as well, contextlib.ExitStack() as stack:
            mute = [stack.enter_context(authority.connect(server.address)) for _ in range(3)]
            for client in mute:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                # More than the kernel keeps for anybody.
                client.send(*([0, number, "much"] for number in range(300)))
                served(well, 1)
            until(lambda: server.status().connections == 1)
            served(well)
            assert server.status().in_flight == 0
            # Though none of them closes its side: the server's, and those between it and TLS.
            listening, of_one = 1, 3
            until(lambda: sockets() == before + listening + of_one + 1 + len(mute))
            served(well)
    until(lambda: sockets() == before)


def sockets() -> int:
    """How many this process has open."""
    return sum(link.startswith("socket:") for link in descriptors().values())


def client_hello(authority: Authority) -> bytes:
    """The first flight of a client of TLS."""
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
