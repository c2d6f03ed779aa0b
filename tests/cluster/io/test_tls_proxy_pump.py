"""The pump of the TLS proxy, turn by turn: what it carries, keeps and closes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.inbox import Inbox
from rabble.cluster.io.tls_proxy_pump import FAREWELL_S, Counts, Pump, Stream, rest_of
from tests.cluster.noted import Noted

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


def test_the_end_cuts_what_nobody_closed(carried: Carried) -> None:
    carried.pump.finish(until=FAREWELL_S)
    assert carried.counts.streams == 0
    assert carried.plain.recv(100) == carried.peer.recv(100) == b""


def test_to_close_twice_is_to_close(carried: Carried) -> None:
    for _ in range(2):
        carried.pump.close()
    assert carried.tls.fileno() == carried.stream.plain.fileno() == -1


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
