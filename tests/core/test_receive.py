"""What transports receive: whole frames in their order, bounded; and what is answered at once."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import struct
import time
import tracemalloc

import psutil
import pytest

from rabble._core.debug import CAPACITIES
from tests.core.sockets import (
    BYE,
    CONTROL_MAX,
    ENVELOPE,
    FRAGMENT,
    FRAME_TOO_LARGE,
    HEARD_BULK_HIGH,
    HEARD_HIGH,
    LIMIT,
    LOST,
    MEMBERSHIP,
    PING,
    PONG,
    PROTOCOL,
    SHUTDOWN,
    attach,
    bye,
    frames,
    hear,
    kinds,
    look,
    lost,
    pair,
    ping,
    poller,
    read_all,
    recv_exactly,
    running,
    session,
    tcp_pair,
    until,
    whole_frames,
)
from tests.reference.session import frame
from tests.support import PATIENCE_S, SANITIZED, TINY

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.mark.parametrize("seed", range(8))
def test_frames_are_whole_and_in_order_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    # Of the data lane only: what is of the control lane may be left out of what is heard.
    sizes = [rng.choice([0, 0, 0, 0, 1, 9, 70_000]) for _ in range(300)]
    said = [frame(FRAGMENT, 0, rng.randbytes(n)) if n else lost(n) for n in sizes]
    stream = b"".join(said)
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    heard = b""
    far.setblocking(False)
    with far:
        while stream:
            size = rng.choice([1, 2, 3, 5, 6, 7, 100, 5_000, 60_000])
            with contextlib.suppress(BlockingIOError):
                stream = stream[far.send(stream[:size]) :]
            for _ in range(rng.randrange(3)):
                at.poll()
            if rng.random() < 0.3:
                heard += at.take_frames(connection, rng.choice([1, 50, 65536]))
        while len(heard) < len(b"".join(said)):
            at.poll()
            heard += hear(connection)
    # The data lane overtakes the other one; within a lane there is order.
    for kind in (LOST, FRAGMENT):
        assert [f for f in frames(heard) if f[0] == kind] == [
            f for f in frames(b"".join(said)) if f[0] == kind
        ]
    assert connection.status()["bytes_received"] == len(heard)


def part(n: int) -> bytes:
    """A frame of the bulk lane."""
    return frame(FRAGMENT, 0, bytes([n]) * 3)


def test_what_follows_on_the_bulk_lane_while_some_of_it_waits_is_sorted_as_ever() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        # Each is one read: behind frames of the bulk lane more of it is expected.
        for data in (
            part(1),
            part(2) + ping(7) + part(3) + part(4)[:4],
            part(4)[4:] + lost(1) + part(5)[:7],
            part(5)[7:] + lost(2)[:5],
            lost(2)[5:] + part(6),
        ):
            far.sendall(data)
            look(at)
        far.setblocking(False)
        assert kinds(whole_frames(far.recv(1 << 20))) == [PONG]
        bulk = b"".join(part(n) for n in range(1, 7))
        assert hear(connection) == lost(1) + lost(2) + bulk
        status = connection.status()
        assert status["bytes_received"] == len(bulk + lost(1) + lost(2) + ping(7))
        assert status["frames_received"] == 9


@pytest.mark.skipif(TINY, reason="one turn does not bring all of what was sent")
@pytest.mark.parametrize(("size", "step"), [(500, 1), (2_000, 7), (60_000, 5_000)])
def test_a_frame_of_the_bulk_lane_that_dribbles_in_comes_whole(size: int, step: int) -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    data = frame(FRAGMENT, 0, random.Random(step).randbytes(size))
    with far:
        far.sendall(part(1) + data[: len(data) // 2])
        look(at)
        for start in range(len(data) // 2, len(data), step):
            far.sendall(data[start : start + step])
            look(at)
        far.sendall(part(2) + lost(1))
        look(at)
        assert hear(connection) == lost(1) + part(1) + data + part(2)


def test_a_wrong_frame_behind_some_of_the_bulk_lane_ends_the_connection() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(part(1))
        look(at)
        far.sendall(part(2) + part(3)[:5])
        look(at)
        far.sendall(part(3)[5:] + frame(99, 0, b"x") + part(4))
        look(at)
        assert connection.code == PROTOCOL
        assert hear(connection) == part(1) + part(2) + part(3)


@pytest.mark.skipif(TINY, reason="a window of one frame")
def test_a_lane_that_is_not_taken_is_moved_no_more_than_it_must() -> None:
    """Behind a head that was consumed there is memory, which many reads in small steps use."""
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    said = heard = b""
    with far:
        far.setblocking(False)
        for n in range(400):
            data = frame(FRAGMENT, 0, bytes([n & 255]) * 5_000)
            far.sendall(data)
            said += data
            at.poll()
            if n % 3 == 0:
                heard += at.take_frames(connection, 6_000)
        at.poll()
        heard += hear(connection)
    assert heard == said


def test_what_followed_the_handshake_is_heard_first() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near, leftover=lost(1) + lost(2)[:5])
    with far:
        assert hear(connection) == lost(1)
        far.sendall(lost(2)[5:])
        look(at)
        assert hear(connection) == lost(2)


@pytest.mark.parametrize(("kind", "high"), [(ENVELOPE, HEARD_HIGH), (FRAGMENT, HEARD_BULK_HIGH)])
def test_reading_pauses_while_too_much_waits_and_goes_on_when_it_is_taken(
    kind: int, high: int
) -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    piece = frame(kind, 0, bytes(20 if TINY else 60_000))
    recv = CAPACITIES["RECV_BYTES_MAX"]
    # More than the kernel takes, too.
    stream = piece * (max(2 * high, 1 << 20) // len(piece))
    with far:
        far.setblocking(False)
        sent = 0
        looks = 0
        while looks < 100:
            looks += 1
            with contextlib.suppress(BlockingIOError):
                sent += far.send(stream[sent : sent + 500_000])
                looks = 0
            at.poll()
        # It took one recv more than the mark, and the kernel's buffers are full.
        before = connection.status()["bytes_received"]
        assert high < before < high + 2 * recv
        assert connection.silent_ns == 0
        heard = 0
        while heard < len(stream):
            if sent < len(stream):
                with contextlib.suppress(BlockingIOError):
                    sent += far.send(stream[sent : sent + 500_000])
            at.poll()
            data = at.take_frames(connection)
            assert data == piece * (len(data) // len(piece))
            heard += len(data)
        assert connection.open
        assert connection.status()["frames_received"] == len(stream) // len(piece)


@pytest.mark.skipif(TINY, reason="one recv brings more than may wait")
def test_a_frame_that_was_torn_by_a_pause_has_its_time_anew() -> None:
    near, far = pair()
    at = poller(partial_ms_max=1_500, heartbeat_ms=40)
    connection = attach(at, near)
    piece, big = frame(ENVELOPE, 0, bytes(60_000)), frame(ENVELOPE, 0, bytes(900_000))
    with far, running(at):
        far.sendall(piece * 17)
        until(lambda: connection.status()["frames_received"] == 17)
        far.sendall(piece + big[:100])
        until(lambda: connection.status()["bytes_received"] == 18 * len(piece) + 100)
        # Longer than a frame may take; but it was not the peer who took it.
        time.sleep(1.8)
        heard = hear(connection)
        far.recv(1 << 20)
        far.sendall(big[100:100_000])
        # The poll thread has looked at the clock in between.
        assert kinds(recv_exactly(far, 22)) == [PING]
        assert kinds(recv_exactly(far, 22)) == [PING]
        assert connection.open, connection.code
        far.sendall(big[100_000:])
        until(lambda: connection.status()["frames_received"] == 19)
        assert kinds(heard + hear(connection)) == [ENVELOPE] * 19


def test_pings_are_answered_and_tell_how_the_peer_gets_on() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        assert connection.progress[:2] == (0, False)
        far.sendall(ping(1 << 60, progress=5))
        look(at)
        assert connection.progress[:2] == (5, False)
        assert not connection.is_well(60_000_000_000)
        far.sendall(ping(2, progress=6, idle=True))
        look(at)
        assert connection.progress[:2] == (6, True)
        assert connection.is_well(60_000_000_000)
        until(lambda: not connection.is_well(1_000))
        answers = frames(far.recv(1_000))
        assert [(kind, body[:8]) for kind, _, body in answers] == [
            (PONG, struct.pack(">Q", 1 << 60)),
            (PONG, struct.pack(">Q", 2)),
        ]
        # They are nothing for the executor.
        assert hear(connection) == b""


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])
def test_a_pong_to_a_ping_that_was_never_said_measures_nothing(number: int) -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(frame(PONG, 0, struct.pack(">QQ", number, 3)))
        until(lambda: connection.progress[0] == 3, at)
        assert connection.status()["round_trip_ns"] == 0


def test_a_round_trip_is_that_of_a_ping_which_was_not_answered_before() -> None:
    near, far = pair()
    at = poller(heartbeat_ms=10)
    connection = attach(at, near)
    with far, running(at):
        times = []
        for _ in range(3):
            kind, _, body = frames(recv_exactly(far, 22))[0]
            assert kind == PING
            times += struct.unpack(">Q", body[:8])
        far.sendall(frame(PONG, 0, struct.pack(">QQ", times[2], 1)))
        until(lambda: connection.progress[0] == 1)
        took = connection.status()["round_trip_ns"]
        assert 0 < took < PATIENCE_S * 1e9
        # The same again, those before, one of before there was a connection.
        for progress, claimed in enumerate((times[2], times[0], times[0] - 10**10), 2):
            far.sendall(frame(PONG, 0, struct.pack(">QQ", claimed, progress)))
            until(lambda progress=progress: connection.progress[0] == progress)
            assert connection.status()["round_trip_ns"] == took


def test_answers_to_a_peer_that_only_asks_are_bounded() -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    stream = ping(1) * 20_000
    with far:
        far.setblocking(False)
        at_byte = sent = 0
        while connection.open and sent < 4 * CONTROL_MAX:
            with contextlib.suppress(BlockingIOError):
                n = far.send(stream[at_byte:])
                at_byte, sent = (at_byte + n) % len(stream), sent + n
            at.poll()
        assert connection.code == LIMIT
        assert connection.status()["queued_bytes"] < 1_000


def test_a_bye_ends_it_after_what_came_before_and_nothing_after_it_counts() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1) + bye(SHUTDOWN, b"enough") + lost(2))
        look(at)
        assert (connection.open, connection.closed) == (False, True)
        assert (connection.code, connection.error) == (SHUTDOWN, 0)
        assert hear(connection) == lost(1)
        assert connection.take_control() == [(BYE, bytes([SHUTDOWN, 6]) + b"enough")]
        assert connection.take_control() == []
        assert select.select([at], [], [], 0)[0]
        at.drain()
        assert not select.select([at], [], [], 0)[0]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(bytes(4), PROTOCOL, id="3 length 0"),
        pytest.param(b"\0\0\0\1", PROTOCOL, id="3 length 1"),
        pytest.param(struct.pack(">I", (1 << 20) + 1), FRAME_TOO_LARGE, id="4 length max+1"),
        pytest.param(b"\xff\xff\xff\xff", FRAME_TOO_LARGE, id="4 length 4 GiB"),
        pytest.param(frame(99, 0, b"x"), PROTOCOL, id="10 unknown kind"),
        pytest.param(frame(0, 0, b"x"), PROTOCOL, id="10 kind 0"),
        pytest.param(frame(PING, 2, bytes(16)), PROTOCOL, id="10 reserved flag"),
        pytest.param(frame(LOST, 1, bytes(4)), PROTOCOL, id="10 flag of a kind without"),
        pytest.param(frame(PING, 0, bytes(15)), PROTOCOL, id="a short PING"),
        pytest.param(frame(PONG, 0, bytes(17)), PROTOCOL, id="a long PONG"),
        pytest.param(frame(BYE, 0, b"x"), PROTOCOL, id="a short BYE"),
    ],
)
def test_a_wrong_frame_ends_its_own_connection_only(wrong: bytes, code: int) -> None:
    near, far = pair()
    near_too, far_too = pair()
    at = poller()
    connection, other = attach(at, near), attach(at, near_too)
    with far, far_too:
        # Byte by byte: it is seen at the first byte that shows it, at the latest when it is whole.
        far.sendall(lost(1))
        for n in range(len(wrong)):
            if connection.open:
                far.sendall(wrong[n : n + 1])
                look(at)
        assert not connection.open
        assert connection.code == code
        far.sendall(lost(2))
        assert hear(connection) == lost(1)
        assert frames(read_all(far, at)) == [(BYE, 0, bytes([code, 0]))]
        far_too.sendall(lost(3))
        look(at)
        assert other.open
        assert hear(other) == lost(3)


def test_an_end_in_the_middle_of_a_frame_leaves_what_was_whole() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1) + lost(2)[:7])
        look(at)
    look(at)
    assert (connection.closed, connection.code, connection.error) == (True, 0, 0)
    assert hear(connection) == lost(1)
    assert connection.status()["frames_received"] == 1


def test_a_reset_is_told_by_its_errno() -> None:
    near, far = tcp_pair()
    at = poller()
    connection = attach(at, near)
    far.sendall(lost(1))
    until(lambda: connection.status()["frames_received"] == 1, at)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    until(lambda: connection.closed, at)
    assert (connection.code, connection.error) == (0, errno.ECONNRESET)
    assert hear(connection) == lost(1)


@pytest.mark.skipif(TINY, reason="it is 8 MiB there, too, of 7 bytes each")
def test_too_much_for_the_cluster_server_is_dropped_and_ends_nothing() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    pieces = [frame(MEMBERSHIP, 0, bytes([number]) * ((1 << 20) - 2)) for number in range(20)]
    with far:
        far.setblocking(False)
        for piece in pieces:
            sent = 0
            while sent < len(piece):
                with contextlib.suppress(BlockingIOError):
                    sent += far.send(piece[sent:])
                at.poll()
        look(at)
        assert connection.open
        told = connection.take_control()
        assert told == [(MEMBERSHIP, piece[6:]) for piece in pieces[:7]]
        # What has room is heard again, and so is how the connection ends.
        far.setblocking(True)
        far.sendall(frame(MEMBERSHIP, 0, b"again") + bye(SHUTDOWN))
        look(at)
        assert connection.take_control() == [(MEMBERSHIP, b"again"), (BYE, bytes([SHUTDOWN, 0]))]


def test_memory_grows_with_what_came_and_not_with_what_is_claimed() -> None:
    at = poller()
    links = [session() for _ in range(200)]
    process = psutil.Process()
    peers = []
    before = process.memory_info().rss
    for each in links:
        near, far = pair()
        near.setblocking(False)
        peers.append((at.attach(near.detach(), each), far))
        far.sendall(struct.pack(">IBB", 1 << 20, FRAGMENT, 0) + b"x")
    look(at)
    until(lambda: all(c.status()["bytes_received"] == 7 for c, _ in peers), at)
    if not SANITIZED:
        assert process.memory_info().rss - before < 16 << 20
    for _, far in peers:
        far.close()


def test_what_a_burst_took_is_given_back_when_little_comes() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    far.setblocking(False)
    small = lost(1)
    burst = frame(FRAGMENT, 0, bytes(16_000)) * 400 + frame(ENVELOPE, 0, bytes(4_000)) * 250
    tracemalloc.start()
    try:
        with far:
            before = tracemalloc.get_traced_memory()[0]
            while burst:
                with contextlib.suppress(BlockingIOError):
                    burst = burst[far.send(burst[:200_000]) :]
                at.poll()
                if TINY:
                    hear(connection)
            while hear(connection, 1 << 20):
                at.poll()
            for _ in range(3):
                far.send(small)
                until(lambda: hear(connection), at)
            held = tracemalloc.get_traced_memory()[0] - before
            assert held < 2 * CAPACITIES["BYTE_QUEUE_BYTES_KEPT"] + 500_000
    finally:
        tracemalloc.stop()
