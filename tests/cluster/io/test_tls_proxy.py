"""The TLS proxy, over real TLS connections on loopback."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import gc
import os
import random
import select
import socket
import ssl
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
import trustme

from rabble.cluster.failures import IN_A_ROW_MAX
from rabble.cluster.io import tls_proxy_pump
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.io.tls_proxy_pump import Pump
from tests.cluster.noted import Noted
from tests.support import PATIENCE_S, descriptors, until

NAME = "rabble:test:tls"
BUFFER_BYTES = 65_536


class Tls:
    """Makes TLS connections."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.num_tickets = 0
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client.check_hostname = False
        for context in (self.server, self.client):
            authority.issue_cert("node.example").configure_cert(context)
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            context.minimum_version = ssl.TLSVersion.TLSv1_3

    def pair(self) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dialled = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        for side in (dialled, accepted):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.settimeout(PATIENCE_S)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            server = pool.submit(
                self.server.wrap_socket, accepted, server_side=True, suppress_ragged_eofs=False
            )
            client = self.client.wrap_socket(dialled, suppress_ragged_eofs=False)
            return client, server.result()


@pytest.fixture(scope="module")
def tls() -> Tls:
    return Tls()


@pytest.fixture(autouse=True)
def _nothing_is_left(tls: Tls) -> Iterator[None]:
    gc.collect()
    fds, threads = descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert descriptors() == fds


def not_expected(error: BaseException) -> None:
    traceback.print_exception(error)


def make_proxy(
    buffer_bytes: int = BUFFER_BYTES,
    failed: Callable[[BaseException], None] = not_expected,
    noted: Noted | None = None,
) -> TlsProxy:
    return TlsProxy(
        NAME,
        buffer_bytes_max=buffer_bytes,
        clock=time.monotonic,
        failed=failed,
        failures=(noted or Noted()).failures,
    )


@contextlib.contextmanager
def proxying(
    buffer_bytes: int = BUFFER_BYTES,
    failed: Callable[[BaseException], None] = not_expected,
    noted: Noted | None = None,
) -> Iterator[TlsProxy]:
    tls_proxy = make_proxy(buffer_bytes, failed, noted)
    try:
        yield tls_proxy
    finally:
        tls_proxy.stop()


def adopted(tls_proxy: TlsProxy, stream: ssl.SSLSocket) -> socket.socket:
    fd = tls_proxy.adopt(stream)
    assert not os.get_blocking(fd) and not os.get_inheritable(fd)
    plain = socket.socket(fileno=fd)
    plain.settimeout(PATIENCE_S)
    return plain


def read(stream: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count and (more := stream.recv(min(count - len(got), 1 << 18))):
        got += more
    return bytes(got)


def read_to_end(stream: socket.socket) -> bytes:
    """All up to the end, which is a proper one on the TLS side."""
    got = bytearray()
    # Which it raises instead of returning nothing if close_notify was said on both sides.
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while more := stream.recv(1 << 18):
            got += more
    return bytes(got)


def read_to_reset(stream: socket.socket) -> bytes:
    """All up to the end, of whichever kind."""
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while more := stream.recv(1 << 18):
            got += more
    return bytes(got)


def settled(tls_proxy: TlsProxy) -> int:
    """Wait until the proxy moves nothing any more; how much it moved."""
    before = -1
    while before != (now := sum_of(tls_proxy)):
        before = now
        time.sleep(0.1)
    return now


def sum_of(tls_proxy: TlsProxy) -> int:
    status = tls_proxy.status()
    return status.bytes_in + status.bytes_out


def fill(stream: socket.socket, chunk: bytes = bytes(65_536)) -> int:
    """Write until nothing is taken for a while; how many bytes were."""
    total = 0
    stream.settimeout(0.3)
    with contextlib.suppress(TimeoutError, ssl.SSLWantWriteError):
        while True:
            total += stream.send(chunk)
    stream.settimeout(PATIENCE_S)
    return total


def reset(stream: ssl.SSLSocket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


@pytest.mark.parametrize(
    ("buffer_bytes", "total"),
    [(1, 5_000), (1_000, 300_000), (16_384, 3_000_000), (262_144, 10_000_000)],
)
def test_both_ways_at_once(tls: Tls, buffer_bytes: int, total: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def say(stream: socket.socket, data: bytes, rng: random.Random) -> None:
        at = 0
        while at < len(data):
            size = rng.choice((1, 10, 1_000, 16_384, 16_385, 70_000, 500_000))
            stream.sendall(data[at : at + size])
            at += size
            if rng.random() < 0.1:
                time.sleep(rng.random() * 0.01)

    def hear(stream: socket.socket, count: int, rng: random.Random) -> bytes:
        got = bytearray()
        while len(got) < count:
            got += stream.recv(rng.choice((1, 100, 5_000, 100_000)))
            if rng.random() < 0.02:
                time.sleep(rng.random() * 0.01)
        return bytes(got)

    rng = random.Random(seed)
    there, back = rng.randbytes(total), rng.randbytes(total)
    client, server = tls.pair()
    with proxying(buffer_bytes) as tls_proxy, adopted(tls_proxy, client) as near:
        with adopted(tls_proxy, server) as far, concurrent.futures.ThreadPoolExecutor(4) as pool:
            rngs = [random.Random(seed + i) for i in range(4)]
            pool.submit(say, near, there, rngs[0])
            pool.submit(say, far, back, rngs[1])
            heard = pool.submit(hear, far, total, rngs[2])
            assert pool.submit(hear, near, total, rngs[3]).result() == back
            assert heard.result() == there
        status = tls_proxy.status()
        assert (status.bytes_in, status.bytes_out) == (2 * total, 2 * total)
        assert status.adopted == 2


def test_a_plain_end_that_stops_writing_is_flushed_and_said_goodbye_for(tls: Tls) -> None:
    data = os.urandom(3_000_000)
    client, server = tls.pair()
    with proxying() as tls_proxy, client, adopted(tls_proxy, server) as plain:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            heard = pool.submit(read_to_end, client)
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            assert heard.result() == data
        client.unwrap().close()
        until(lambda: tls_proxy.status().streams == 0)
        assert read_to_end(plain) == b""


@pytest.mark.parametrize("unread", [0, 10, 2_000_000])
def test_what_was_written_before_the_plain_end_was_closed_arrives(tls: Tls, unread: int) -> None:
    data = os.urandom(400_000)
    client, server = tls.pair()
    with proxying() as tls_proxy, client, adopted(tls_proxy, server) as plain:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            said = pool.submit(client.sendall, bytes(unread))
            settled(tls_proxy)
            sent = pool.submit(plain.sendall, data) if said.done() else None
            if sent is None:
                plain.sendall(data[:100_000])
            else:
                heard = read(client, 100_000)
                sent.result()
            plain.close()
            if sent is None:
                # The sender is blocked; what it says from now on is read and dropped.
                said.result()
                assert read_to_end(client) == data[:100_000]
            else:
                assert heard + read_to_end(client) == data
        client.close()
        until(lambda: tls_proxy.status().streams == 0)


def test_a_peer_that_stops_writing_can_still_be_written_to(tls: Tls) -> None:
    data = os.urandom(100_000)
    client, server = tls.pair()
    with proxying() as tls_proxy, client, adopted(tls_proxy, server) as plain:
        client.sendall(data)
        client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        client.settimeout(PATIENCE_S)
        assert read_to_end(plain) == data
        plain.sendall(data)
        assert read(client, len(data)) == data
        plain.close()
        assert read_to_end(client) == b""
        client.close()
        until(lambda: tls_proxy.status().streams == 0)


def test_what_a_slow_reader_has_not_read_survives_the_peer(tls: Tls) -> None:
    data = os.urandom(350_000)
    client, server = tls.pair()
    with proxying() as tls_proxy, adopted(tls_proxy, server) as plain:
        client.sendall(data)
        until(lambda: tls_proxy.status().bytes_in > 200_000)
        settled(tls_proxy)
        client.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            client.unwrap()
        client.close()
        assert read_to_end(plain) == data
        plain.close()
        until(lambda: tls_proxy.status().streams == 0)


def test_a_peer_that_vanishes_without_close_notify(tls: Tls) -> None:
    client, server = tls.pair()
    with proxying() as tls_proxy, adopted(tls_proxy, server) as plain:
        client.sendall(b"last words")
        client.close()
        assert read_to_reset(plain) == b"last words"
        plain.close()
        until(lambda: tls_proxy.status().streams == 0)


@pytest.mark.parametrize("blocked", ["neither", "up", "down"])
def test_a_reset_closes_both_sides(tls: Tls, blocked: str) -> None:
    client, server = tls.pair()
    with proxying() as tls_proxy, adopted(tls_proxy, server) as plain:
        if blocked == "up":
            fill(plain)
        elif blocked == "down":
            fill(client)
        reset(client)
        until(lambda: tls_proxy.status().streams == 0)
        read_to_reset(plain)
        with pytest.raises(OSError):
            plain.send(b"more")


def test_a_corrupted_record_closes_both_sides(tls: Tls) -> None:
    client, server = tls.pair()
    with proxying() as tls_proxy, client, adopted(tls_proxy, server) as plain:
        client.sendall(b"true")
        header = struct.pack(">BHH", 23, 0x0303, 64)
        socket.socket.sendall(client, header + os.urandom(64))
        client.sendall(b"after it")
        assert read_to_reset(plain) == b"true"
        until(lambda: tls_proxy.status().streams == 0)
        with pytest.raises(OSError):
            client.recv(1)


def test_one_stream_that_is_not_read_does_not_stop_the_others(tls: Tls) -> None:
    size = 1_000_000
    with proxying() as tls_proxy, contextlib.ExitStack() as stack:
        ends = []
        for _ in range(20):
            client, server = tls.pair()
            ends.append(
                (stack.enter_context(client), stack.enter_context(adopted(tls_proxy, server)))
            )
        (stuck_client, stuck_plain), *others = ends
        fill(stuck_client)
        fill(stuck_plain)

        def echo(client: ssl.SSLSocket, plain: socket.socket) -> bool:
            data = os.urandom(size)
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                pool.submit(client.sendall, data)
                there = pool.submit(read, plain, size).result()
                pool.submit(plain.sendall, there)
                return read(client, size) == data

        with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
            assert all(pool.map(lambda pair: echo(*pair), others))
        assert tls_proxy.status().streams == 20


def test_bytes_inside_the_ssl_object_are_not_forgotten(tls: Tls) -> None:
    client, server = tls.pair()
    client.sendall(b"x" * 100)
    assert server.recv(1) == b"x"
    with proxying() as tls_proxy, client, adopted(tls_proxy, server) as plain:
        assert read(plain, 99) == b"x" * 99


def test_a_peer_that_takes_nothing_is_given_up_after_the_plain_end_was_closed(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy_pump, "FLUSH_S", 0.3)
    client, server = tls.pair()
    with proxying() as tls_proxy, client:
        with adopted(tls_proxy, server) as plain:
            fill(plain)
            assert tls_proxy.status().streams == 1
        until(lambda: tls_proxy.status().streams == 0)


def test_a_peer_that_does_not_answer_close_notify_is_left(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy_pump, "FAREWELL_S", 0.3)
    client, server = tls.pair()
    with proxying() as tls_proxy, client:
        adopted(tls_proxy, server).close()
        assert read_to_end(client) == b""
        until(lambda: tls_proxy.status().streams == 0)


def test_stop(tls: Tls) -> None:
    tls_proxy = make_proxy()
    assert tls_proxy.thread is None
    with contextlib.ExitStack() as stack:
        clients, plains = [], []
        for _ in range(3):
            client, server = tls.pair()
            clients.append(stack.enter_context(client))
            plains.append(stack.enter_context(adopted(tls_proxy, server)))
        thread = tls_proxy.thread
        assert thread is not None and thread.name == NAME and not thread.daemon
        fill(plains[1])
        plains[0].sendall(b"farewell")
        plains[0].close()
        tls_proxy.stop()
        tls_proxy.stop()
        assert not thread.is_alive()
        assert tls_proxy.status().streams == 0
        # Closed before the stop: sent, with close_notify. The others are cut.
        assert read_to_end(clients[0]) == b"farewell"
        with pytest.raises(OSError):
            read_to_end(clients[2])
        assert read_to_reset(plains[2]) == b""
        client, server = tls.pair()
        with client, server:
            with pytest.raises(RuntimeError, match="stopped"):
                tls_proxy.adopt(server)
            server.settimeout(PATIENCE_S)
            client.sendall(b"still the caller's")
            assert server.recv(100) == b"still the caller's"


def test_stop_without_a_stream() -> None:
    tls_proxy = make_proxy()
    tls_proxy.stop()
    assert tls_proxy.thread is None


def test_a_connection_whose_bytes_cannot_be_carried_ends_alone(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted()
    first, second = tls.pair(), tls.pair()
    with (
        proxying(noted=noted) as tls_proxy,
        first[0],
        second[0],
        adopted(tls_proxy, first[1]) as plain,
        adopted(tls_proxy, second[1]) as other,
    ):
        other.sendall(b"before")
        assert read(second[0], 6) == b"before"
        settled(tls_proxy)
        with monkeypatch.context() as broken:
            broken.setattr(tls_proxy_pump, "rest_of", None)
            plain.sendall(b"x")
            assert read_to_reset(plain) == b""
        other.sendall(b"behind")
        assert read(second[0], 6) == b"behind"
        assert tls_proxy.status().streams == 1
    assert noted.count == 1
    assert "a TLS connection failed and is given up\n" in noted.texts[0]


def test_a_thread_that_can_do_nothing_any_more_closes_everything(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[BaseException] = []
    noted = Noted()
    client, server = tls.pair()
    with proxying(failed=said.append, noted=noted) as tls_proxy, client:
        with adopted(tls_proxy, server) as plain:
            settled(tls_proxy)
            monkeypatch.setattr(Pump, "turn", None)
            plain.sendall(b"x")
            assert tls_proxy.thread is not None
            tls_proxy.thread.join(PATIENCE_S)
            assert read_to_reset(plain) == b""
        assert [type(error) for error in said] == [TypeError]
        assert noted.count == IN_A_ROW_MAX
        other, another = tls.pair()
        with other, another, pytest.raises(RuntimeError):
            tls_proxy.adopt(another)


@pytest.mark.parametrize("what", ["descriptor", "thread", "memory"])
def test_without_a_descriptor_or_a_thread_the_first_connection_fails_and_the_next_does_not(
    tls: Tls, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def no_thread(thread: threading.Thread) -> None:
        raise MemoryError if what == "memory" else RuntimeError("can't start new thread")

    client, server = tls.pair()
    with proxying() as tls_proxy, client, contextlib.ExitStack() as stack:
        with monkeypatch.context() as patched:
            if what == "descriptor":
                patched.setattr(select, "epoll", no_descriptor)
            else:
                patched.setattr(threading.Thread, "start", no_thread)
            with pytest.raises((OSError, RuntimeError, MemoryError)):
                tls_proxy.adopt(server)
        plain = stack.enter_context(adopted(tls_proxy, server))
        plain.sendall(b"once more")
        assert read(client, 9) == b"once more"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_proxy_that_never_had_a_thread_lets_go_of_all(
    tls: Tls, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise error

    client, server = tls.pair()
    with proxying() as tls_proxy, client, server, monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(error):
            tls_proxy.adopt(server)
        tls_proxy.stop()
    assert tls_proxy.thread is None


def test_a_thread_that_began_though_its_start_raised_is_the_one_that_is_ended(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def start_and_raise(thread: threading.Thread) -> None:
        start(thread)
        raise MemoryError

    client, server = tls.pair()
    with proxying() as tls_proxy, client, contextlib.ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start_and_raise)
            with pytest.raises(MemoryError):
                tls_proxy.adopt(server)
        assert tls_proxy.thread is not None
        plain = stack.enter_context(adopted(tls_proxy, server))
        plain.sendall(b"once more")
        assert read(client, 9) == b"once more"
        assert [each.name for each in threading.enumerate()].count(NAME) == 1


def test_a_buffer_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_bytes_max"):
        make_proxy(0)
