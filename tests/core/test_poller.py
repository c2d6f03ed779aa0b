"""The poller over socket pairs: what a connection sends, receives, keeps and gives up."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import itertools
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rabble._core.codec import Codec
from rabble._core.debug import CAPACITIES
from rabble._core.envelope import Envelope
from rabble._core.frame import split_frame
from rabble._core.ids import NodeId, Pid
from rabble._core.poller import Connection, Poller
from rabble._core.session import Session
from rabble.registry import MessageRegistry
from tests.reference.session import frame
from tests.support import PATIENCE_S, SANITIZED, TINY

A, B = NodeId("a", "h:1"), NodeId("b", "h:2")
CACHE_PID, ENVELOPE, FRAGMENT, LOST = 1, 2, 3, 8
PING, PONG, BYE, MEMBERSHIP, WINDOW_UPDATE = 16, 17, 18, 19, 20
FRAME_TOO_LARGE, PROTOCOL, TIMEOUT, LIMIT, SHUTDOWN = 13, 16, 18, 19, 20
LINK_BYTES = 2 << 20
#: Of whole frames that wait, where the reading stops; and of control frames, either way.
HEARD_HIGH, HEARD_BULK_HIGH = CAPACITIES["RECV_HIGH"], CAPACITIES["RECV_BULK_HIGH"]
#: Of the bulk lane, that is sent ahead of what the peer says it took.
BULK_WINDOW = CAPACITIES["BULK_WINDOW"]
CONTROL_MAX = 8 << 20
NUMBERS = range(1 << 30)


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = len(descriptors()), threading.active_count()
    yield
    gc.collect()
    after = len(descriptors()), threading.active_count()
    # Fewer are well: what a failed test held goes with its report.
    assert after[0] <= before[0] and after[1] <= before[1], (before, after)


def poller(**more: int) -> Poller:
    limits = {
        "heartbeat_ms": 60_000,
        "frame_bytes_max": 1 << 20,
        "queue_bytes_max": 8 << 20,
        "partial_ms_max": 60_000,
    }
    return Poller(**{**limits, **more})


def session(own: NodeId = A, peer: NodeId = B, **more: int) -> Session:
    codec = Codec(MessageRegistry(), elements_max=1 << 20)
    return Session(own, peer, 7, Pid("executor", own, "rabble"), codec=codec, **more)


def attach(
    at: Poller, sock: socket.socket, own: NodeId = A, peer: NodeId = B, leftover: bytes = b""
) -> Connection:
    sock.setblocking(False)
    connection = at.attach(sock.fileno(), session(own, peer), leftover)
    sock.detach()
    return connection


def pair(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.settimeout(PATIENCE_S)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return left, right


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname(), PATIENCE_S)
        right, _ = listener.accept()
    right.settimeout(PATIENCE_S)
    return left, right


def until(holds: Callable[[], object], *pollers: Poller) -> None:
    """Look at the sockets until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        for each in pollers:
            each.poll()
        time.sleep(0)


def look(at: Poller) -> None:
    """Look at the sockets, until what came by now, which is not much, is heard."""
    for _ in range(1_000 if TINY else 1):
        at.poll()


def hear(connection: Connection, most: int = 65536) -> bytes:
    """All whole frames that were heard so far."""
    heard = b""
    while data := connection.poller.take_frames(connection, most):
        heard += data
    return heard


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, flags and body of each frame; nothing may be left over."""
    found = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        kind, flags, body, _ = split_frame(data[at:end]) or pytest.fail(
            f"no frame: {data[at:end]!r}"
        )
        found.append((kind, flags, body))
        at = end
    return found


def kinds(data: bytes) -> list[int]:
    return [kind for kind, _, _ in frames(data)]


def whole_frames(data: bytes) -> bytes:
    """Without what has not come to its end yet."""
    at = 0
    while len(data) >= at + 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        at = end
    return data[:at]


def recv_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data)) or pytest.fail(f"it ended after {data!r}")
    return data


def bye(code: int, text: bytes = b"") -> bytes:
    return frame(BYE, 0, bytes([code, len(text)]) + text)


def ping(number: int, progress: int = 0, idle: bool = False) -> bytes:
    return frame(PING, idle, struct.pack(">QQ", number, progress))


def lost(count: int) -> bytes:
    """The simplest frame of the data lane."""
    return frame(LOST, 0, struct.pack(">I", count))


def read_all(sock: socket.socket, at: Poller) -> bytes:
    """What comes until the end, while the other side is looked after."""
    said = b""
    sock.setblocking(False)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        at.poll()
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            return said
        said += data
    pytest.fail("it does not end")


def read_until(
    sock: socket.socket, at: Poller, enough: Callable[[bytes], object], said: bytes = b""
) -> bytes:
    sock.setblocking(False)
    end = time.monotonic() + PATIENCE_S
    while not enough(said):
        assert time.monotonic() < end, f"{len(said)} bytes came"
        at.poll()
        with contextlib.suppress(BlockingIOError):
            said += sock.recv(1 << 20)
    return said


def read_more(sock: socket.socket, at: Poller, said: bytes) -> bytes:
    """Read until something has come."""
    return read_until(sock, at, lambda s: len(s) > len(said), said)


def polled_descriptors(at: Poller) -> set[int]:
    """The descriptors in the poller's epoll set, as the kernel has them."""
    mine = at.fileno()
    found = set()
    known = descriptors()
    for fd, what in known.items():
        # The set is made directly before the two eventfds, of which `fileno` is the second.
        if what == "anon_inode:[eventpoll]" and fd < mine:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            found |= {int(number) for number in re.findall(r"^tfd:\s*(\d+)", text, re.M)}
    # Besides the sockets there is an eventfd of the poller's own.
    return {fd for fd in found if known[fd].startswith("socket:")}


@contextlib.contextmanager
def running(at: Poller) -> Iterator[None]:
    """With the poll thread."""
    thread = threading.Thread(target=at.run)
    thread.start()
    try:
        yield
    finally:
        at.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


# Hearing.


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


def test_what_followed_the_handshake_is_heard_first() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near, leftover=lost(1) + lost(2)[:5])
    with far:
        assert hear(connection) == lost(1)
        far.sendall(lost(2)[5:])
        look(at)
        assert hear(connection) == lost(2)


def test_ten_thousand_tiny_frames_do_not_keep_others_waiting() -> None:
    near, far = pair()
    near_too, far_too = pair()
    at = poller()
    flooded, other = attach(at, near), attach(at, near_too)
    with far, far_too:
        far.setblocking(False)
        stream = b"".join(lost(n) for n in range(10_000))
        sent = far.send(stream)
        far_too.sendall(lost(7))
        look(at)
        assert hear(other) == lost(7)
        heard = b""
        while len(heard) < len(stream):
            if sent < len(stream):
                with contextlib.suppress(BlockingIOError):
                    sent += far.send(stream[sent:])
            at.poll()
            heard += hear(flooded)
        assert heard == stream


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


# Saying.


def test_what_the_kernel_does_not_take_is_kept_and_counted() -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    with far:
        for number in range(2_000):
            connection.session.write(Envelope(Pid("p", B), number, sender=Pid("q", A)))
        at.flush_session(connection)
        first = connection.status()
        assert first["queued_bytes"] > 0
        said = read_until(far, at, lambda _: connection.status()["queued_bytes"] == 0)
        total = first["bytes_sent"] + first["queued_bytes"]
        assert connection.status()["bytes_sent"] == total
        said = read_until(far, at, lambda s: len(s) == total, said)
    told = session(B, A).decode(said)
    assert [e.msg for e in told] == list(range(2_000))


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_keeps_its_order_through_lanes_and_tiny_buffers(seed: int) -> None:
    rng = random.Random(seed)
    near, far = pair(rng.choice([1_024, 4_096, 30_000]))
    left, right = poller(), poller()
    one = left.attach(near.detach(), session(A, B, fragment_bytes=rng.choice([16, 1_000, 60_000])))
    two = attach(right, far, B, A)
    os.set_blocking(descriptor_of(left), False)
    pids = [Pid(f"p{n}", A) for n in range(3)]
    sent: dict[Pid, list[bytes]] = {pid: [] for pid in pids}
    got: dict[Pid, list[bytes]] = {pid: [] for pid in pids}

    def take() -> None:
        right.poll()
        for e in two.session.decode(hear(two, rng.choice([1, 65536]))):
            got[e.sender].append(e.msg)

    for _ in range(400):
        sender = rng.choice(pids)
        msg = rng.randbytes(
            rng.choice([0, 1, 20, 20, 20, 3_000, 120_000 if rng.random() < 0.2 else 5])
        )
        sent[sender].append(msg)
        one.session.write(Envelope(Pid("to", B), msg, sender=sender))
        if rng.random() < 0.5:
            left.flush_session(one)
        for _ in range(rng.randrange(3)):
            left.poll()
        if rng.random() < 0.5:
            take()
    left.flush_session(one)
    end = time.monotonic() + PATIENCE_S
    while any(len(got[pid]) < len(sent[pid]) for pid in pids):
        assert time.monotonic() < end
        left.poll()
        take()
    assert got == sent
    assert one.status()["queued_bytes"] == 0


def descriptor_of(at: Poller) -> int:
    (fd,) = polled_descriptors(at)
    return fd


def test_control_frames_overtake_what_waits_and_tear_nothing() -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    with far:
        for number in range(20_000):
            connection.session.write(Envelope(Pid("p", B), number))
        at.flush_session(connection)
        gone = connection.status()["bytes_sent"]
        assert connection.send_control(MEMBERSHIP, b"first")
        assert connection.send_control(MEMBERSHIP, b"second")
        total = gone + connection.status()["queued_bytes"]
        said = read_until(far, at, lambda s: len(s) == total)
    at_byte, found = 0, {}
    for kind, _, body in frames(said):
        if kind == MEMBERSHIP:
            found[body] = at_byte
        at_byte += 6 + len(body)
    # Behind no more than the rest of a frame that was half sent.
    assert list(found) == [b"first", b"second"]
    assert gone <= found[b"first"] < gone + 60
    assert found[b"second"] == found[b"first"] + 11
    data = b"".join(frame(*each) for each in frames(said) if each[0] != MEMBERSHIP)
    assert [e.msg for e in session(B, A).decode(data)] == list(range(20_000))


@pytest.mark.skipif(TINY, reason="its turns are of seven bytes")
def test_bulk_has_a_turn_among_much_data_and_data_a_turn_among_bulk() -> None:
    near, far = pair(65_536)
    at = poller()
    connection = attach(at, near)
    with far:
        connection.session.write(Envelope(Pid("p", B), bytes(600_000), sender=Pid("big", A)))
        at.flush_session(connection)
        for number in range(60_000):
            connection.session.write(
                Envelope(Pid("p", B), (number, "x" * 20), sender=Pid("small", A))
            )
        at.flush_session(connection)
        total = sum(connection.status()[n] for n in ("bytes_sent", "queued_bytes"))
        said = b""
        while len(said) < total:
            said = read_more(far, at, said)
            far.setblocking(True)
            far.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">Q", 1 << 62)))
    since, data_left = 0, total - 600_000
    runs = []
    for kind, _, body in frames(said):
        if kind == FRAGMENT:
            runs.append((since, data_left))
            since = 0
        else:
            since += 6 + len(body)
            data_left -= 6 + len(body)
    # The first of it went before any data was said.
    runs = list(itertools.dropwhile(lambda run: run[0] < 1_000, runs))
    waiting = [run for run, left in runs if left > 65_536]
    assert len(waiting) >= 3
    # 256 KiB, and what of the send that exceeded it.
    assert all(256 << 10 <= run < 600 << 10 for run in waiting)
    told = session(B, A).decode(said)
    assert [e.msg[0] for e in told if e.sender.name == "small"] == list(range(60_000))
    assert [e.msg for e in told if e.sender.name == "big"] == [bytes(600_000)]


@pytest.mark.parametrize("flushes", [False, True])
def test_bulk_overtakes_nothing_that_was_said_before_it(flushes: bool) -> None:
    near, far = pair(65_536)
    at = poller()
    connection = attach(at, near)
    expected: list[object] = []

    def say(msg: object) -> None:
        connection.session.write(Envelope(Pid("p", B), msg, sender=Pid("s", A)))
        expected.append(msg)
        if flushes:
            at.flush_session(connection)

    with far:
        for n in range(3):
            # Much more than after which the bulk lane has a turn.
            for number in range(50 if TINY else 20_000):
                connection.session.write(
                    Envelope(Pid("p", B), (number, "x" * 20), sender=Pid(f"other {n}", A))
                )
            say(f"small {n}")
            say(bytes([n]) * 70_000)
        at.flush_session(connection)
        total = sum(connection.status()[n] for n in ("bytes_sent", "queued_bytes"))
        said = b""
        while len(said) < total:
            said = read_more(far, at, said)
            far.setblocking(True)
            far.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">Q", 1 << 62)))
    told = session(B, A).decode(said)
    assert [e.msg for e in told if e.sender and e.sender.name == "s"] == expected


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


# Heartbeats.


def test_pings_are_answered_and_tell_how_the_peer_gets_on() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        assert connection.progress[:2] == (0, False)
        far.sendall(ping(1 << 60, progress=5))
        look(at)
        assert connection.progress[:2] == (5, False)
        far.sendall(ping(2, progress=6, idle=True))
        look(at)
        assert connection.progress[:2] == (6, True)
        answers = frames(far.recv(1_000))
        assert [(kind, body[:8]) for kind, _, body in answers] == [
            (PONG, struct.pack(">Q", 1 << 60)),
            (PONG, struct.pack(">Q", 2)),
        ]
        # They are nothing for the executor.
        assert hear(connection) == b""


def test_a_side_that_says_nothing_says_ping_and_measures_the_way() -> None:
    near, far = pair()
    at = poller(heartbeat_ms=40)
    connection = attach(at, near)
    with far, running(at):
        ((kind, flags, body),) = frames(recv_exactly(far, 22))
        assert (kind, flags) == (PING, 0)
        far.sendall(frame(PONG, 1, body[:8] + struct.pack(">Q", 9)))
        until(lambda: connection.status()["round_trip_ns"] > 0, at)
        assert connection.progress[:2] == (9, True)
        # Again and again, whoever sleeps.
        assert kinds(b"".join(recv_exactly(far, 22) for _ in range(3))) == [PING] * 3


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])
def test_a_pong_to_a_ping_that_was_never_said_measures_nothing(number: int) -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(frame(PONG, 0, struct.pack(">QQ", number, 3)))
        until(lambda: connection.progress[0] == 3, at)
        assert connection.status()["round_trip_ns"] == 1


def test_pings_do_not_pile_up_behind_a_peer_that_does_not_read() -> None:
    near, far = pair(4_096)
    at = poller(heartbeat_ms=4)
    connection = attach(at, near)
    connection.session.write(Envelope(Pid("p", B), bytes(60_000)))
    with far, running(at):
        at.flush_session(connection)
        queued = connection.status()["queued_bytes"]
        until(lambda: connection.status()["queued_bytes"] >= queued + 10 * 22)
        assert connection.open


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


def test_the_poll_thread_looks_in_the_place_of_a_stuck_executor() -> None:
    near, far = pair(4_096)
    at = poller(heartbeat_ms=1_000)
    connection = attach(at, near)
    # Of seven bytes each the kernel keeps a few only, and the thread looks twenty times a second.
    size = 1_000 if TINY else 50_000
    connection.session.write(Envelope(Pid("p", B), bytes(size)))
    with far, running(at):
        # Nobody calls `poll` here.
        at.flush_session(connection)
        far.sendall(lost(1) + ping(3) + lost(2))
        said = b""
        while len(said) < size or PONG not in kinds(whole_frames(said)):
            said += far.recv(1 << 20)
        until(lambda: connection.status()["frames_received"] == 3)
        assert hear(connection) == lost(1) + lost(2)
        assert at.running
    assert not at.running


# The ends of a connection.


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


def test_a_close_says_bye_and_waits_for_the_peer_which_is_not_heard_any_more() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1))
        at.poll()
        connection.close(SHUTDOWN, "the end")
        assert (connection.open, connection.closed, connection.code) == (False, False, SHUTDOWN)
        connection.close(LIMIT, "a second one is none")
        assert frames(far.recv(1_000)) == [(BYE, 0, bytes([SHUTDOWN, 7]) + b"the end")]
        assert far.recv(1_000) == b""
        # Whatever it still says is read, so that it is not answered by a reset, and thrown away.
        far.setblocking(False)
        sent = 0
        while sent < 4 << 20:
            with contextlib.suppress(BlockingIOError):
                sent += far.send(bytes(100_000))
            at.poll()
        assert hear(connection) == lost(1)
        far.close()
        until(lambda: connection.closed, at)
    assert (connection.code, connection.error) == (SHUTDOWN, 0)
    assert at.connections == 0


def test_a_close_while_reading_is_paused_still_drains_the_peer() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    piece = frame(ENVELOPE, 0, bytes(30_000))
    with far:
        far.setblocking(False)
        for _ in range(2_000):
            with contextlib.suppress(BlockingIOError):
                # Cut anywhere: it is not heard to the end.
                far.send(piece)
            at.poll()
        assert connection.status()["bytes_received"] > HEARD_HIGH
        connection.close(PROTOCOL)
        sent = 0
        end = time.monotonic() + PATIENCE_S
        while sent < 2 << 20:
            assert time.monotonic() < end
            with contextlib.suppress(BlockingIOError):
                sent += far.send(bytes(100_000))
            at.poll()
        far.close()
        until(lambda: connection.closed, at)


def test_a_peer_that_does_not_close_is_waited_for_a_bounded_time() -> None:
    near, far = pair()
    at = poller(heartbeat_ms=200)
    connection = attach(at, near)
    with far, running(at):
        connection.close(SHUTDOWN)
        assert not connection.closed
        until(lambda: connection.closed)
    assert connection.code == SHUTDOWN


@pytest.mark.parametrize("after_all", [False, True])
def test_a_close_ends_with_the_frame_that_was_begun_or_after_all(after_all: bool) -> None:
    near, far = pair(4_096)
    at = poller()
    connection = attach(at, near)
    with far:
        for number in range(3_000):
            connection.session.write(Envelope(Pid("p", B), number))
        at.flush_session(connection)
        connection.close(SHUTDOWN, after_all=after_all)
        assert connection.status()["queued_bytes"] > 0
        said = read_all(far, at)
    assert kinds(said)[-1] == BYE
    told = [e.msg for e in session(B, A).decode(said[:-8])]
    assert told == list(range(3_000 if after_all else len(told)))
    assert (len(told) == 3_000) == after_all
    assert connection.status()["queued_bytes"] == 0


def test_a_close_after_all_waits_for_no_word_of_the_peer() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    body = bytes(BULK_WINDOW + (64 << 10 if TINY else 8 << 20))
    with far:
        connection.session.write(Envelope(Pid("p", B), body))
        at.flush_session(connection)
        connection.close(SHUTDOWN, after_all=True)
        said = read_all(far, at)
    assert kinds(said)[-1] == BYE
    assert [e.msg for e in session(B, A).decode(said[:-8])] == [body]


@pytest.mark.skipif(TINY, reason="its windows are one frame: see the next but one")
def test_bulk_is_sent_only_so_far_ahead_of_what_the_peer_took() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        for n in range(24):
            connection.session.write(Envelope(Pid("p", B), bytes(1 << 20), sender=Pid(f"s{n}", A)))
        at.flush_session(connection)
        # The names went by the data lane; until that counts as idle again, less of bulk is sent.
        idle = time.monotonic() + 0.006
        until(lambda: time.monotonic() > idle, at)
        far.sendall(frame(WINDOW_UPDATE, 0, bytes(8)))
        said = read_until(far, at, lambda s: len(s) >= BULK_WINDOW)
        connection.session.write(Envelope(Pid("p", B), "small"))
        at.flush_session(connection)
        # Nothing but what is not of that lane comes now, and what was begun.
        said = read_until(far, at, lambda s: b"small" in s, said)
        assert len(said) < BULK_WINDOW + 600_000
        # Who says that it took more than it got gets the next of it and no more.
        while connection.status()["queued_bytes"]:
            before = len(said)
            far.setblocking(True)
            far.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">Q", 1 << 62)))
            said = read_until(far, at, lambda s, before=before: len(s) > before, said)
            assert len(said) <= before + BULK_WINDOW + 600_000


@pytest.mark.skipif(TINY, reason="its windows are one frame: see the next one")
@pytest.mark.parametrize("far_away", [False, True])
def test_bulk_makes_way_while_the_data_lane_is_in_use(far_away: bool) -> None:
    said = b""
    # A pause of this thread, just there, counts as the lane's not being in use any more.
    for _ in range(20):
        near, far = tcp_pair()
        at = poller()
        connection = attach(at, near)
        with far:
            if far_away:
                # It says that it was said 3 ms ago.
                said_ns = time.monotonic_ns() - 3_000_000
                far.sendall(frame(PONG, 0, struct.pack(">QQ", said_ns, 0)))
                until(lambda c=connection: c.status()["round_trip_ns"], at)
            connection.session.write(Envelope(Pid("p", B), bytes(4 << 20), sender=Pid("s", A)))
            connection.session.write(Envelope(Pid("p", B), "small"))
            at.flush_session(connection)
            enough = 900_000 if far_away else 60_000
            said = read_until(far, at, lambda s, enough=enough: b"small" in s and len(s) > enough)
            if len(said) < BULK_WINDOW:
                break
    assert enough < len(said) < BULK_WINDOW
    assert far_away or len(said) < 200_000


@pytest.mark.skipif(not TINY, reason="its windows are of many frames: see those before")
def test_a_window_of_one_frame_is_opened_by_each_word_that_it_was_taken() -> None:
    near, far = pair()
    at = poller()
    connection = at.attach(near.detach(), session(A, B, fragment_bytes=100))
    with far:
        connection.session.write(Envelope(Pid("p", B), bytes(1_000), sender=Pid("s", A)))
        at.flush_session(connection)
        said = b""
        taken = 0
        for _ in range(11):
            look(at)
            far.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                said += far.recv(1 << 20)
            bulk = [f for f in frames(said) if f[0] == FRAGMENT]
            size = sum(6 + len(body) for _, _, body in bulk)
            # One frame came for each word, and nothing of the next.
            assert taken < size <= taken + 120
            taken = size
            far.setblocking(True)
            far.sendall(frame(WINDOW_UPDATE, 0, struct.pack(">Q", taken)))
        assert connection.status()["queued_bytes"] == 0
    assert [e.msg for e in session(B, A).decode(said)] == [bytes(1_000)]


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


def test_saying_to_a_peer_that_has_gone_ends_it() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    far.close()
    connection.session.write(Envelope(Pid("p", B), 1))
    at.flush_session(connection)
    assert (connection.closed, connection.error) == (True, errno.EPIPE)


@pytest.mark.parametrize("begun", [1, 4, 6, 9])
def test_a_frame_that_does_not_end_ends_its_connection(begun: int) -> None:
    near, far = pair()
    near_too, far_too = pair()
    at = poller(partial_ms_max=100, heartbeat_ms=60)
    connection, silent = attach(at, near), attach(at, near_too)
    with far, far_too, running(at):
        # One byte at a time does not help: from the first to the last one is what counts.
        far.sendall(lost(1) + lost(2)[:begun])
        said = b""
        while BYE not in kinds(whole_frames(said)):
            said += far.recv(1_000)
        ((code, size, *_),) = [body for kind, _, body in frames(said) if kind == BYE]
        assert (code, size) == (TIMEOUT, 19)
        assert connection.code == TIMEOUT
        assert hear(connection) == lost(1)
        assert silent.open


@pytest.mark.skipif(TINY, reason="it is 8 MiB there, too, of 7 bytes each")
def test_too_much_for_the_cluster_server_ends_it() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    piece = frame(MEMBERSHIP, 0, bytes((1 << 20) - 2))
    with far:
        far.setblocking(False)
        sent = 0
        while connection.open and sent < 2 * CONTROL_MAX:
            with contextlib.suppress(BlockingIOError):
                sent += far.send(piece[sent % len(piece) :])
            at.poll()
        assert connection.code == LIMIT
        told = connection.take_control()
        assert len(told) == 7
        assert all(each == (MEMBERSHIP, bytes((1 << 20) - 2)) for each in told)


def test_control_frames_reach_the_cluster_server_whatever_the_executor_does() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far:
        far.sendall(lost(1) + frame(MEMBERSHIP, 0, b"one") + lost(2) + frame(MEMBERSHIP, 0, b"two"))
        look(at)
        assert select.select([at], [], [], 0)[0]
        assert connection.take_control() == [(MEMBERSHIP, b"one"), (MEMBERSHIP, b"two")]


# Descriptors and memory.


def end_by_peer(connection: Connection, far: socket.socket) -> None:
    far.close()


def end_by_reset(connection: Connection, far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


def end_by_bye(connection: Connection, far: socket.socket) -> None:
    far.sendall(bye(SHUTDOWN))


def end_by_error(connection: Connection, far: socket.socket) -> None:
    far.sendall(bytes(4))
    far.shutdown(socket.SHUT_WR)


def end_by_abort(connection: Connection, far: socket.socket) -> None:
    connection.abort(TIMEOUT)


def end_by_close(connection: Connection, far: socket.socket) -> None:
    connection.close(SHUTDOWN)
    far.close()


@pytest.mark.parametrize(
    "end", [end_by_peer, end_by_reset, end_by_bye, end_by_error, end_by_abort, end_by_close]
)
def test_a_closed_descriptor_is_not_in_the_set(
    end: Callable[[Connection, socket.socket], None],
) -> None:
    near, far = tcp_pair()
    stays, other = pair()
    at = poller()
    fd = near.fileno()
    connection, present = attach(at, near), attach(at, stays)
    assert fd in polled_descriptors(at)
    assert len(polled_descriptors(at)) == at.connections == 2
    with far, other:
        end(connection, far)
        until(lambda: connection.closed, at)
        # Of another now: it must not be reported for the old one.
        taken, given = pair()
        with taken, given:
            assert fd not in polled_descriptors(at)
            assert len(polled_descriptors(at)) == at.connections == 1
            given.sendall(lost(1))
            look(at)
        assert present.open


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


@pytest.mark.parametrize("order", ["poller", "connection"])
def test_a_poller_stays_as_long_as_a_connection_needs_it(order: str) -> None:
    near, far = pair()
    at: Poller | None = poller()
    assert at is not None
    connection: Connection | None = attach(at, near)
    with far:
        if order == "poller":
            del at
            assert connection is not None
            connection.close(SHUTDOWN)
            assert frames(far.recv(100)) == [(BYE, 0, bytes([SHUTDOWN, 0]))]
            del connection
        else:
            del connection
            del at


def test_a_poller_of_wrong_arguments_closes_nothing() -> None:
    # In a process of its own: were 0 closed here, so would be what the next test opens.
    said = subprocess.run(
        [sys.executable, "-c", WRONG_POLLERS], stdin=subprocess.PIPE, capture_output=True, text=True
    )
    assert (said.stdout, said.stderr) == ("0 is still there\n", "")


WRONG_POLLERS = """
import os
from rabble._core.poller import Poller

limits = {"heartbeat_ms": 200, "frame_bytes_max": 1 << 20, "queue_bytes_max": 1 << 20}
whole = {**limits, "partial_ms_max": 5}
wrong = [{}, limits, {**limits, "partial_ms_max": "5"}]
for name in whole:
    for value in (0, -1, 1 << 62 | 1, 1 << 63, -1 << 63, 10**5000, 1.5, None, float("nan")):
        wrong.append({**whole, name: value})
before = os.listdir("/proc/self/fd")
for each in wrong:
    try:
        Poller(**each)
    except (TypeError, ValueError) as error:
        assert len(str(error)) < 120, error
        os.fstat(0)
    else:
        raise AssertionError(each)
assert os.listdir("/proc/self/fd") == before
print("0 is still there")
"""


def test_what_cannot_be_polled_stays_the_callers() -> None:
    at = poller()
    with tempfile.TemporaryFile() as file:
        with pytest.raises(OSError) as caught:
            at.attach(file.fileno(), session())
        assert caught.value.errno == errno.EPERM
        os.fstat(file.fileno())
    near, far = pair()
    with far:
        connection = attach(at, near)
        fd = descriptor_of(at)
        with pytest.raises(OSError) as caught:
            at.attach(fd, session(), lost(1))
        assert caught.value.errno == errno.EEXIST
        assert connection.open
        assert at.connections == 1
        far.sendall(lost(2))
        look(at)
        assert hear(connection) == lost(2)
    with pytest.raises(OSError) as caught:
        at.attach(-1, session())
    assert caught.value.errno == errno.EBADF
    for make in (Connection, lambda: Connection.__new__(Connection)):
        with pytest.raises(TypeError, match="Poller.attach makes them"):
            make()


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


# Threads.


def stress(seed: int, envelopes: int) -> None:
    """Two nodes, each with an executor's thread and a poll thread, and much to say."""
    rng = random.Random(seed)
    near, far = pair(rng.choice([2_048, 16_384, 200_000]))
    near.setblocking(False)
    far.setblocking(False)
    # By seven bytes heartbeats alone, every 5 ms, would be more than goes through.
    sides = [poller(heartbeat_ms=500 if TINY else 5) for _ in range(2)]
    fragment = rng.choice([200, 5_000, 65_536])
    ends = [
        sides[0].attach(near.detach(), session(A, B, fragment_bytes=fragment)),
        sides[1].attach(far.detach(), session(B, A, fragment_bytes=fragment)),
    ]
    got: list[list[tuple[str, int]]] = [[], []]
    failures: list[BaseException] = []
    done = threading.Barrier(2, timeout=4 * PATIENCE_S)

    def executor(which: int) -> None:
        mine = random.Random(seed * 2 + which)
        at, connection = sides[which], ends[which]
        own, peer = connection.session.own, connection.session.peer
        counts = {f"s{n}": 0 for n in range(3)}
        left = states = envelopes
        end = time.monotonic() + 2 * PATIENCE_S
        try:
            while left or len(got[which]) < envelopes:
                assert time.monotonic() < end, (seed, left, len(got[which]))
                for _ in range(min(left, mine.randrange(40))):
                    name = mine.choice(list(counts))
                    body = bytes(mine.choice([0, 10, 10, 10, 400, 500 if TINY else 30_000]))
                    connection.session.write(
                        Envelope(Pid("to", peer), (counts[name], body), sender=Pid(name, own))
                    )
                    counts[name] += 1
                    left -= 1
                at.flush_session(connection)
                if mine.random() < 0.8:
                    at.poll()
                    for e in connection.session.decode(hear(connection)):
                        got[which].append((e.sender.name, e.msg[0]))
                if mine.random() < 0.02:
                    # Stuck: the poll thread has to go on.
                    time.sleep(0.004)
                if states and mine.random() < 0.1:
                    # Not for ever: it goes first, and this loop may be faster than the line.
                    states -= 1
                    connection.send_control(MEMBERSHIP, b"state")
                    connection.take_control()
            done.wait()
        except BaseException as error:
            failures.append(error)
            done.abort()

    with running(sides[0]), running(sides[1]):
        threads = [threading.Thread(target=executor, args=(which,)) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, (seed, failures)
    for heard in got:
        by_sender: dict[str, list[int]] = {}
        for name, number in heard:
            by_sender.setdefault(name, []).append(number)
        for numbers in by_sender.values():
            assert numbers == list(range(len(numbers))), seed


# By seven bytes at a time, and with a thread switch at every chance, one takes long enough.
@pytest.mark.parametrize("seed", range(3))
def test_two_threads_on_each_side_keep_all_in_order(seed: int) -> None:
    stress(seed, 40 if TINY else 400)


@pytest.mark.soak
def test_two_threads_on_each_side_for_long() -> None:
    for seed in range(100, 140):
        stress(seed, 1_500)


# What is wrong.


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


def test_one_thread_runs_a_poller() -> None:
    at = poller()
    with running(at):
        until(lambda: at.running)
        with pytest.raises(RuntimeError, match="its thread already"):
            at.run()
        assert at.running
    at.run()


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
    registry.register(Meddling, "meddling")
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


def test_nothing_of_a_poller_works_in_a_forked_child() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near)
    with far, running(at):
        uses: list[Callable[[], object]] = [
            *(at.drain, at.nudge, at.run, at.stop, at.poll, connection.take_control),
            *(lambda: at.watch(0), lambda: at.flush_session(connection)),
            *(lambda: at.take_frames(connection), lambda: at.attach(0, session())),
            *(lambda: connection.send_control(MEMBERSHIP, b""), lambda: connection.close(1)),
            lambda: connection.abort(1),
        ]
        with warnings.catch_warnings():
            # Beside threads it warns.
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            refused = 0
            for use in uses:
                try:
                    use()
                except RuntimeError as error:
                    refused += "forked child" in str(error)
            os._exit(refused)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == len(uses)
        assert connection.open and at.running
