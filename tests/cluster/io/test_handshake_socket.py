"""One socket on its way to a connection: what it waits for, until when, and how it fails."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Iterator

import pytest

from rabble import NodeId
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import Failed, Handshake, HandshakeConfig, Role, Send
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_socket import HandshakeSocket

DEADLINE_S = 5.0
CONNECT_BY_S = 1.0
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def make_handshake(role: Role) -> Handshake:
    config = HandshakeConfig(NodeId("a", "h:1"), 7, key=bytes(32), deadline_s=DEADLINE_S)
    return Handshake(role, config, os.urandom(32), 0.0)


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


Wire = tuple[socket.socket, socket.socket]


def dialled(sock: socket.socket) -> HandshakeSocket:
    return HandshakeSocket(
        sock,
        1,
        context=None,
        make_handshake=lambda names: make_handshake(Role.INITIATOR),
        remote="h:2",
        deadline=DEADLINE_S,
        connect_by=CONNECT_BY_S,
        dial=Dial(1, "h:2", None, join=False),
    )


def accepted(sock: socket.socket) -> HandshakeSocket:
    return HandshakeSocket(
        sock,
        1,
        context=None,
        make_handshake=lambda names: make_handshake(Role.RESPONDER),
        remote="h:2",
        deadline=DEADLINE_S,
    )


def test_a_dial_waits_to_be_connected_and_then_to_read(wire: Wire) -> None:
    dial = dialled(wire[0])
    assert (dial.initiated, dial.interest, dial.next_tick) == (True, WRITE, CONNECT_BY_S)
    [hello] = dial.ready(0.0)
    assert isinstance(hello, Send)
    # From now on it has the time of the whole handshake.
    assert (dial.interest, dial.next_tick) == (READ, DEADLINE_S)


def test_an_accepted_one_waits_to_read(wire: Wire) -> None:
    peer = accepted(wire[0])
    assert peer.begin() == []
    assert (peer.initiated, peer.interest, peer.next_tick) == (False, READ, DEADLINE_S)


def test_what_the_socket_does_not_take_is_sent_later_and_in_order(wire: Wire) -> None:
    near, far = wire
    peer = accepted(near)
    peer.begin()
    sent = bytes(range(256)) * 4_096
    peer.write(sent[:-1])
    peer.write(sent[-1:])
    assert not peer.flushed
    assert peer.interest == READ | WRITE
    got = bytearray()
    while len(got) < len(sent):
        got += far.recv(65_536)
        peer.ready(0.0)
    assert peer.flushed
    assert peer.interest == READ
    assert got == sent


def test_the_end_of_the_stream_is_an_error(wire: Wire) -> None:
    peer = accepted(wire[0])
    peer.begin()
    wire[1].close()
    with pytest.raises(EOFError, match="the peer closed the connection"):
        peer.ready(0.0)


def test_a_connect_that_fails_at_once_raises() -> None:
    with contextlib.closing(socket.socket()) as sock:
        sock.setblocking(False)
        with pytest.raises(OSError):
            # A broadcast address, which TCP connects to never.
            dialled(sock).connect(("255.255.255.255", 1))


def test_a_connect_that_takes_too_long_raises(wire: Wire) -> None:
    dial = dialled(wire[0])
    assert dial.tick(CONNECT_BY_S - 0.1) == []
    with pytest.raises(TimeoutError):
        dial.tick(CONNECT_BY_S)


def test_a_handshake_that_takes_too_long_fails_by_its_own_word(wire: Wire) -> None:
    peer = accepted(wire[0])
    peer.begin()
    assert peer.tick(DEADLINE_S - 0.1) == []
    [failed] = peer.tick(DEADLINE_S)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.text) == (RefusalCode.TIMEOUT, "no the peer's HELLO within 5 s")


def test_before_there_is_a_handshake_the_time_is_kept_all_the_same(wire: Wire) -> None:
    # As while TLS goes on.
    peer = accepted(wire[0])
    [failed] = peer.tick(DEADLINE_S)
    assert isinstance(failed, Failed)
    assert (failed.text, failed.silent) == ("no connection in time", True)
