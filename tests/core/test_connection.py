"""Connections: what is taken, sent and kept by one, and what becomes of it when it ends."""

from __future__ import annotations

import dataclasses
import select
import struct
import sys
from typing import Any

import psutil
import pytest

from rabble._core.codec import Codec
from rabble._core.connection import Connection
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.registry import MessageRegistry
from tests.core.sockets import (
    CONTROL_MAX,
    ENVELOPE,
    FRAGMENT,
    MEMBERSHIP,
    PING,
    SHUTDOWN,
    TIMEOUT,
    WINDOW_UPDATE,
    A,
    B,
    attach,
    bye,
    hear,
    look,
    lost,
    pair,
    ping,
    polled_descriptors,
    poller,
    read_more,
    recv_exactly,
    session,
    tcp_pair,
    until,
)
from tests.reference.session import frame
from tests.support import SANITIZED, TINY

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_a_batch_has_one_frame_at_least_and_no_more_bytes_than_asked_for() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1) * 3 + frame(FRAGMENT, 0, bytes(500)) + lost(2))
        look(at)
        sizes = [len(at.take_frames(connection, most)) for most in (1, 25, 25, 25, 25)]
        sizes += [len(at.take_frames(connection, 25))]
    # Of the data lane first, and no more than a batch may have.
    assert sizes == ([10, 10, 10, 10, 506, 0] if TINY else [10, 20, 10, 506, 0, 0])


def test_control_frames_are_refused_once_too_many_wait() -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    with far:
        with pytest.raises(ValueError, match="is longer than the 1048576 allowed"):
            connection.send_control(MEMBERSHIP, bytes(1 << 20))
        body = bytes((1 << 20) - 2)
        said = [connection.send_control(MEMBERSHIP, body) for _ in range(12)]
        assert said == [True] * 8 + [False] * 4
        assert connection.status()["queued_bytes"] < CONTROL_MAX + (1 << 20)
        assert connection.open
        connection.abort(TIMEOUT)
        assert not connection.send_control(MEMBERSHIP, b"x")
        assert connection.status()["queued_bytes"] == 0


def test_what_is_said_on_a_connection_that_ended_goes_nowhere() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        connection.abort(TIMEOUT)
        connection.session.write(Envelope(Pid("p", B), 1))
        at.flush_session(connection)
        assert connection.session.take_data() == b""
        assert far.recv(10) == b""
    assert (connection.code, connection.error, connection.closed) == (TIMEOUT, 0, True)


@pytest.mark.parametrize("end", ["sent", "aborted", "closed", "closed before", "forgotten"])
def test_large_bytes_are_let_go_of_when_they_have_gone(end: str) -> None:
    payload = bytes(bytearray(150_000 if TINY else 3 << 20))
    owners = sys.getrefcount(payload)
    near, far = pair()
    at = poller()
    connection: Connection | None = attach(at, near)
    assert connection is not None
    with far:
        if end == "closed before":
            connection.abort(SHUTDOWN)
        for n in range(2):
            connection.session.write(Envelope(Pid("p", B), payload, sender=Pid(f"s{n}", A)))
        at.flush_session(connection)
        if end == "sent":
            said = b""
            while connection.status()["queued_bytes"]:
                said = read_more(far, at, said)
                far.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">Q", len(said))))
            at.flush_session(connection)
        elif end == "aborted":
            connection.abort(SHUTDOWN)
            at.flush_session(connection)
        elif end == "closed":
            connection.close(SHUTDOWN)
            at.flush_session(connection)
        elif end == "forgotten":
            connection = None
        assert sys.getrefcount(payload) == owners


def test_control_frames_reach_the_cluster_server_whatever_the_executor_does() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1) + frame(MEMBERSHIP, 0, b"one") + lost(2) + frame(MEMBERSHIP, 0, b"two"))
        look(at)
        assert select.select([at], [], [], 0)[0]
        assert connection.take_control() == [(MEMBERSHIP, b"one"), (MEMBERSHIP, b"two")]


def test_a_connection_that_is_forgotten_is_closed_with_all_that_it_held() -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    with far:
        connection.session.write(Envelope(Pid("p", B), bytes(60_000)))
        at.flush_session(connection)
        far.sendall(lost(1) + frame(MEMBERSHIP, 0, b"x") + lost(2)[:5])
        look(at)
        assert connection.status()["queued_bytes"] > 0
        del connection
        assert (at.connections, polled_descriptors(at)) == (0, set())
        look(at)
        while far.recv(1 << 20):
            pass


@pytest.mark.skipif(SANITIZED, reason="what is freed stays resident")
def test_memory_is_where_it_was_after_many_connections() -> None:
    at = poller()
    codec_session = session()

    def once() -> None:
        near, far = pair(4_096)
        near.setblocking(False)
        connection = at.attach(near.detach(), codec_session)
        with far:
            connection.session.write(Envelope(Pid("p", B), bytes(50_000)))
            at.flush_session(connection)
            far.sendall(lost(1) * 100 + frame(MEMBERSHIP, 0, bytes(5_000)) + b"\0")
            look(at)
            connection.close(SHUTDOWN, "the end")

    for _ in range(300):
        once()
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3_000):
        once()
    assert process.memory_info().rss - before < 4 << 20


def test_a_kind_or_code_that_is_none_is_refused() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        for kind in (-1, 0, ENVELOPE, 15, 21, 255, 256 + PING, 2**31 - 1):
            with pytest.raises(ValueError, match="a kind from 16 to 20"):
                connection.send_control(kind, b"x")
        for code in (-1, 256, 2**31 - 1):
            with pytest.raises(ValueError, match="a code from 0 to 255"):
                connection.close(code)
            with pytest.raises(ValueError, match="a code from 0 to 255"):
                connection.abort(code)
        wrong: Any = connection
        for call in (
            lambda: wrong.send_control(MEMBERSHIP, None),
            lambda: wrong.close(1, None),
            lambda: at.attach(0, None),  # type: ignore[arg-type]
            lambda: at.attach(0, connection.session, None),  # type: ignore[arg-type]
            lambda: at.flush_session(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError):
                call()
        with pytest.raises(ValueError, match="another Poller's"):
            poller().take_frames(connection)
        assert connection.open
        far.sendall(lost(1))
        look(at)
        assert hear(connection) == lost(1)


class Meddler:
    """What a message class may do while a message of it is encoded or decoded: anything."""

    poller: Poller
    connection: Connection
    said: list[str]

    @classmethod
    def meddle(cls) -> None:
        for call in (
            lambda: cls.poller.flush_session(cls.connection),
            lambda: cls.poller.take_frames(cls.connection),
            lambda: cls.connection.session.take_data(),
        ):
            try:
                call()
            except RuntimeError as error:
                cls.said.append(str(error))


@dataclasses.dataclass(frozen=True)
class Meddling:
    size: int

    def __post_init__(self) -> None:
        if self.size:
            Meddler.meddle()


def test_a_message_that_meddles_with_its_own_connection_moves_no_bytes() -> None:
    registry = MessageRegistry()
    registry.register(Meddling, "meddling", post_init=True)
    left, right = poller(), poller()
    near, far = pair()
    near.setblocking(False)
    far.setblocking(False)
    links = [
        Session(own, peer, 7, Pid("executor", own, "rabble"), codec=Codec(registry))
        for own, peer in ((A, B), (B, A))
    ]
    one = left.attach(near.detach(), links[0])
    two = right.attach(far.detach(), links[1])
    Meddler.poller, Meddler.connection, Meddler.said = right, two, []
    quiet, loud = Meddling(0), Meddling(0)
    object.__setattr__(loud, "size", 1)
    for n in range(200):
        one.session.write(Envelope(Pid("p", B), [quiet, n], sender=Pid("q", A)))
    one.session.write(Envelope(Pid("p", B), loud, sender=Pid("q", A)))
    left.flush_session(one)
    heard: list[Envelope] = []

    def arrived() -> bool:
        left.poll()
        heard.extend(two.session.decode(right.take_frames(two, 100)))
        return len(heard) == 201

    until(arrived, right)
    assert [e.msg[1] for e in heard[:-1]] == list(range(200))
    assert heard[-1].msg == loud
    del Meddler.poller, Meddler.connection
    refused = "a message that is encoded or decoded made its own session go on"
    assert Meddler.said[:2] == [refused] * 2


def test_what_a_bye_says_is_cut_between_characters() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        connection.close(SHUTDOWN, "e\u0301" + "\u00e4" * 200)
        look(at)
        # The first one in normal form C.
        said = ("\u00e9" + "\u00e4" * 126).encode()
        assert recv_exactly(far, len(bye(0)) + 254) == bye(SHUTDOWN, said)


def test_the_kernel_tells_how_many_segments_came() -> None:
    near, far = tcp_pair()
    at = poller()
    connection = attach(at, near)
    with far:
        before, out_of_order = connection.segments
        assert before > 0 and out_of_order == 0
        far.sendall(ping(1))
        until(lambda: connection.segments[0] > before)
        connection.abort(TIMEOUT)
        assert connection.segments == (0, 0)
    local, other = pair()
    unix = attach(at, local)
    with other:
        assert unix.segments == (0, 0)
