"""Transports: what is sent in which order, how far ahead of the peer, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import struct
import time

import pytest

from rabble._core.debug import CAPACITIES
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from tests.core.sockets import (
    BYE,
    ENVELOPE,
    FRAGMENT,
    HEARD_HIGH,
    LIMIT,
    MEMBERSHIP,
    PING,
    PONG,
    PROTOCOL,
    SHUTDOWN,
    TIMEOUT,
    WINDOW_UPDATE,
    A,
    B,
    attach,
    descriptor_of,
    frames,
    hear,
    kinds,
    look,
    lost,
    pair,
    ping,
    poller,
    read_all,
    read_more,
    read_until,
    recv_exactly,
    running,
    session,
    tcp_pair,
    until,
    whole_frames,
)
from tests.reference.session import frame
from tests.support import PATIENCE_S, TINY

pytestmark = pytest.mark.usefixtures("nothing_is_left")

#: Of the bulk lane, that is sent ahead of what the peer says it took.
BULK_WINDOW = CAPACITIES["BULK_WINDOW"]


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


def test_a_responder_leaves_the_pings_to_the_initiator() -> None:
    """It answers them, and once it knows the way says PING only where the other one does not."""
    (near, responder), (dialled, initiator) = pair(), pair()
    at = poller(heartbeat_ms=80)
    answering = attach(at, near)
    begun = at.attach(dialled.detach(), session(A, B), initiated=True)
    with responder, initiator, running(at):
        ((kind, _, body),) = frames(recv_exactly(responder, 22))
        assert kind == PING
        responder.sendall(frame(PONG, 0, body[:8] + bytes(8)))
        heard = []
        for number in range(8):
            # As often as this side says it.
            assert kinds(recv_exactly(initiator, 22)) == [PING]
            responder.sendall(ping(number))
            heard += kinds(recv_exactly(responder, 22))
        # All of them, but for what a machine does that stands still for a beat.
        assert heard.count(PONG) > heard.count(PING)
        # Nobody asks any more.
        while kinds(recv_exactly(responder, 22)) != [PING]:
            pass
        assert begun.open and answering.open


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


def test_a_peer_has_the_time_that_it_is_given_to_take_what_was_sent() -> None:
    at = poller(heartbeat_ms=20)
    pairs = [pair(4_096) for _ in range(2)]
    brief, patient = (attach(at, near) for near, _ in pairs)
    with pairs[0][1], pairs[1][1] as far:
        for connection, linger_s in ((brief, 0.01), (patient, PATIENCE_S)):
            for number in range(3_000):
                connection.session.write(Envelope(Pid("p", B), number))
            at.flush_session(connection)
            connection.close(SHUTDOWN, after_all=True, linger_s=linger_s)
        with running(at):
            until(lambda: brief.closed)
        assert not patient.closed
        assert patient.status()["queued_bytes"] > 0
        said = read_all(far, at)
    assert kinds(said)[-1] == BYE
    assert [e.msg for e in session(B, A).decode(said[:-8])] == list(range(3_000))


def test_a_peer_that_takes_what_was_sent_has_longer_but_not_for_ever() -> None:
    at = poller(heartbeat_ms=20)
    pairs = [pair(4_096) for _ in range(3)]
    still, late, slow = (attach(at, near) for near, _ in pairs)
    patience = 1.0
    times = [(0.01, PATIENCE_S), (PATIENCE_S, 0.01), (patience, PATIENCE_S)]
    with pairs[0][1], pairs[1][1], pairs[2][1] as far:
        for connection, (linger_s, within_s) in zip((still, late, slow), times, strict=True):
            for number in range(3_000):
                connection.session.write(Envelope(Pid("p", B), number))
            at.flush_session(connection)
            connection.close(SHUTDOWN, after_all=True, linger_s=linger_s, within_s=within_s)
        with running(at):
            until(lambda: still.closed and late.closed)
            assert still.unsent > 0 and late.unsent > 0
            said = b""
            end = time.monotonic() + 1.5 * patience
            while time.monotonic() < end:
                time.sleep(patience / 20)
                said += far.recv(1_000)
            assert not slow.closed
            said += read_all(far, at)
            until(lambda: slow.closed)
        assert slow.unsent == 0
    assert kinds(said)[-1] == BYE


@pytest.mark.parametrize("seconds", [-1.0, 1e10, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["linger_s", "within_s"])
def test_a_time_to_linger_is_one(seconds: float, name: str) -> None:
    near, far = pair()
    connection = attach(poller(), near)
    with far, pytest.raises(ValueError, match=f"{name} must be 0 to 1e9 seconds"):
        connection.close(SHUTDOWN, **{name: seconds})  # type: ignore[arg-type]


def test_when_the_executor_has_ended_the_poll_thread_sends_at_once_what_peers_take() -> None:
    # Else it would send some kilobytes in each of its ticks, and need longer than there is.
    at = poller(heartbeat_ms=60_000)
    near, far = pair(4_096)
    inbox, other = pair()
    at.watch(inbox.fileno())
    # It stands for the eventfd, which is ready and which nobody reads any more.
    other.send(b"x")
    connection = attach(at, near)
    with far, inbox, other:
        for number in range(20_000):
            connection.session.write(Envelope(Pid("p", B), number))
        at.flush_session(connection)
        connection.close(SHUTDOWN, after_all=True, linger_s=3.0)
        at.executor_ended()
        at.executor_ended()
        with running(at):
            far.settimeout(PATIENCE_S)
            said = b"".join(iter(lambda: far.recv(65_536), b""))
    assert kinds(said)[-1] == BYE


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
        at = poller(heartbeat_ms=50)
        connection = attach(at, near)
        with far:
            if far_away:
                # It answers the first PING after 3 ms.
                with running(at):
                    asked = frames(recv_exactly(far, 22))[0][2]
                time.sleep(0.003)
                far.sendall(frame(PONG, 0, asked))
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
