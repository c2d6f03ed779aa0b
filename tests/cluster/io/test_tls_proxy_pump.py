"""The pump of the TLS proxy, turn by turn: what it carries, keeps and closes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.inbox import Inbox
from rabble.cluster.io.tls_proxy_pump import FAREWELL_S, Counts, Pump, Stream, rest_of
from tests.cluster.io import test_tls_proxy as real
from tests.cluster.noted import Noted
from tests.support import PATIENCE_S

BUFFER_BYTES = 4_096


class Tls(socket.socket):
    """A TLS socket as the pump uses it, whose records are what was written."""

    unwrapped = False

    def pending(self) -> int:
        return 0

    def unwrap(self) -> None:
        self.unwrapped = True
        raise ssl.SSLWantReadError

    def recv_into(self, *arguments: Any) -> int:
        try:
            return super().recv_into(*arguments)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None

    def send(self, *arguments: Any) -> int:
        try:
            return super().send(*arguments)
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None


class Carried:
    """One stream of a pump: `plain` is the poll loop's end of it, `peer` the one beyond TLS."""

    def __init__(self) -> None:
        self.now = 0.0
        self.counts = Counts()
        self.wake_up = Inbox(1)
        self.noted = Noted()
        self.pump = Pump(
            self.wake_up, BUFFER_BYTES, lambda: self.now, self.counts, self.noted.failures
        )
        self.plain, near = socket.socketpair()
        self.peer, far = socket.socketpair()
        self.tls = Tls(fileno=far.detach())
        self.stream = Stream(near, self.tls)  # type: ignore[arg-type]
        for sock in (self.plain, near, self.peer, self.tls):
            sock.setblocking(False)
        self.pump.add(self.stream)

    def close(self) -> None:
        self.pump.close()
        self.plain.close()
        self.peer.close()


@pytest.fixture
def carried() -> Iterator[Carried]:
    carried = Carried()
    yield carried
    carried.close()


def test_a_turn_carries_what_both_sides_have(carried: Carried) -> None:
    carried.plain.send(b"to the peer")
    carried.peer.send(b"from the peer")
    carried.pump.turn()
    assert carried.peer.recv(100) == b"to the peer"
    assert carried.plain.recv(100) == b"from the peer"
    assert (carried.counts.bytes_out, carried.counts.bytes_in) == (11, 13)


@pytest.mark.parametrize("reader", ["peer", "plain"])
def test_of_a_side_that_does_not_read_one_buffer_is_kept(carried: Carried, reader: str) -> None:
    writer = carried.plain if reader == "peer" else carried.peer
    sent = 0
    kept = None
    while kept is None:
        sent += writer.send(bytes(BUFFER_BYTES))
        carried.pump.turn()
        kept = carried.stream.up if reader == "peer" else carried.stream.down
    assert len(kept) <= BUFFER_BYTES
    # What it cannot pass on it does not read, until the writer finds its socket full.
    with pytest.raises(BlockingIOError):
        while True:
            sent += writer.send(bytes(BUFFER_BYTES))
            carried.pump.turn(0.0)
    got = 0
    side = carried.peer if reader == "peer" else carried.plain
    while got < sent:
        got += len(side.recv(1 << 20))
        carried.pump.turn(0.0)
    assert got == sent
    assert carried.stream.up is carried.stream.down is None


def test_what_was_written_before_the_plain_end_was_closed_is_sent_and_then_said_goodbye(
    carried: Carried,
) -> None:
    carried.plain.send(b"last words")
    carried.plain.close()
    while not carried.tls.unwrapped:
        carried.pump.turn()
    assert carried.peer.recv(100) == b"last words"
    assert carried.peer.recv(100) == b""


def test_a_peer_that_does_not_answer_the_goodbye_is_left_in_time(carried: Carried) -> None:
    carried.plain.close()
    while not carried.tls.unwrapped:
        carried.pump.turn()
    carried.now = FAREWELL_S
    carried.pump.turn()
    assert carried.counts.streams == 0
    assert carried.tls.fileno() == -1


def test_a_peer_has_as_long_to_answer_the_goodbye_as_the_plain_end_waits(carried: Carried) -> None:
    carried.plain.send(b"last words")
    carried.plain.shutdown(socket.SHUT_WR)
    while not carried.tls.unwrapped:
        carried.pump.turn()
    carried.now = 100 * FAREWELL_S
    carried.pump.turn(0.0)
    # What it says meanwhile is read: else it would be reset, and lose what it has not read yet.
    carried.peer.send(b"a heartbeat")
    carried.pump.turn(0.0)
    assert carried.counts.streams == 1
    assert carried.peer.recv(100) == b"last words"
    carried.plain.close()
    carried.pump.turn(0.0)
    carried.now += FAREWELL_S
    carried.pump.turn(0.0)
    assert carried.counts.streams == 0


def test_the_end_cuts_what_nobody_closed(carried: Carried) -> None:
    carried.pump.finish(until=FAREWELL_S)
    assert carried.counts.streams == 0
    assert carried.plain.recv(100) == carried.peer.recv(100) == b""


def test_to_close_twice_is_to_close(carried: Carried) -> None:
    for _ in range(2):
        carried.pump.close()
    assert carried.tls.fileno() == carried.stream.plain.fileno() == -1


# Over real TLS.


class Secured:
    """Streams of one pump: of each the peer's end, beyond TLS, and the poll loop's, none of which
    waits."""

    def __init__(self) -> None:
        self.tls = real.Tls()
        self.counts = Counts()
        self.wake_up = Inbox(1)
        self.pump = Pump(self.wake_up, BUFFER_BYTES, time.monotonic, self.counts, Noted().failures)
        self.ends: list[tuple[ssl.SSLSocket, socket.socket]] = []

    def add(self) -> tuple[ssl.SSLSocket, socket.socket]:
        client, server = self.tls.pair()
        plain, near = socket.socketpair()
        for sock in (client, server, plain, near):
            sock.setblocking(False)
        self.pump.add(Stream(near, server))
        self.ends.append((client, plain))
        return client, plain

    def rest(self) -> None:
        """Have it do what there is to do, which comes to an end: it does not spin."""
        end = time.monotonic() + PATIENCE_S
        while self.pump._ready or self.pump._epoll.poll(0):
            assert time.monotonic() < end, "it is never done"
            self.pump.turn(0.0)

    def fill(self, stream: socket.socket) -> None:
        """Write until nothing more is taken."""
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while True:
                self.rest()
                stream.send(bytes(65_536))
        self.rest()

    def close(self) -> None:
        self.pump.close()
        for end in self.ends:
            for sock in end:
                sock.close()


@pytest.fixture
def secured() -> Iterator[Secured]:
    secured = Secured()
    yield secured
    secured.close()


def test_memory_is_bounded_with_a_slow_reader(secured: Secured) -> None:
    client, plain = secured.add()
    data = os.urandom(2 << 20)
    sent = got = 0
    buffer = memoryview(bytearray(BUFFER_BYTES))
    (stream,) = secured.pump._streams
    secured.rest()
    tracemalloc.start()
    try:
        base, _ = tracemalloc.get_traced_memory()
        while got < len(data):
            with contextlib.suppress(ssl.SSLWantWriteError):
                while sent < len(data):
                    sent += client.send(memoryview(data)[sent : sent + 16_384])
            secured.rest()
            assert stream.down is None or len(stream.down) <= BUFFER_BYTES
            with contextlib.suppress(BlockingIOError):
                size = plain.recv_into(buffer)
                assert buffer[:size] == memoryview(data)[got : got + size]
                got += size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The kernel keeps far less than that, too, of what is not read.
    assert peak - base < 8 * BUFFER_BYTES


def test_it_does_not_spin(secured: Secured) -> None:
    """Whatever a stream waits for: `rest` comes to an end."""
    idle, down, up, both, parted, parted_unread, closed = (secured.add() for _ in range(7))
    secured.fill(down[0])
    secured.fill(up[1])
    secured.fill(both[0])
    secured.fill(both[1])
    # Half-closed by the peer, with and without something that is not read.
    for (client, _), unread in ((parted, 0), (parted_unread, 300_000)):
        with contextlib.suppress(ssl.SSLWantWriteError):
            client.send(bytes(unread))
        secured.rest()
        with pytest.raises((ssl.SSLWantReadError, ssl.SSLWantWriteError)):
            client.unwrap()
        secured.rest()
    # Closed, but the peer takes nothing.
    secured.fill(closed[1])
    closed[1].close()
    secured.rest()
    assert secured.counts.streams == 7
    before = secured.counts.wakeups
    secured.rest()
    assert secured.counts.wakeups == before
    idle[0].send(b"x")
    secured.pump.turn()
    assert idle[1].recv(10) == b"x"


def test_a_piece_costs_one_turn(secured: Secured) -> None:
    client, plain = secured.add()
    secured.rest()
    before = secured.counts.wakeups
    for _ in range(100):
        client.send(b"to and")
        secured.pump.turn()
        assert plain.recv(100) == b"to and"
        plain.send(b"fro")
        secured.pump.turn()
        select.select([client], [], [], PATIENCE_S)
        assert client.recv(100) == b"fro"
    secured.rest()
    assert secured.counts.wakeups - before <= 202


@given(st.binary(min_size=1, max_size=50), st.data())
def test_what_is_not_taken_at_once_is_kept_whole_and_copied_once(
    data: bytes, draw: st.DataObject
) -> None:
    buffer = memoryview(bytearray(data))
    rest = rest_of(buffer, draw.draw(st.integers(0, len(data) - 1)), None)
    assert rest is not None
    expected = bytes(rest)
    buffer[:] = bytes(len(data))  # as the next stream uses it
    while rest is not None:
        assert rest == expected
        count = draw.draw(st.integers(1, len(rest)))
        kept, rest, expected = rest, rest_of(rest, count, rest), expected[count:]
        assert rest is None or rest.obj is kept.obj
    assert expected == b""
