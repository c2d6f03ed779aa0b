"""Connections whose stream is authenticated: what is sent as records, and what is taken of them."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from rabble._core.connection import Connection
from rabble._core.debug import CAPACITIES
from rabble._core.envelope import Envelope
from rabble._core.frame import FRAME_KINDS, REFUSAL_CODES
from rabble._core.ids import NodeId, Pid
from rabble._core.poller import Poller
from tests.core.sockets import (
    BYE,
    ENVELOPE,
    FRAGMENT,
    HEARD_HIGH,
    LOST,
    MEMBERSHIP,
    PING,
    PONG,
    PROTOCOL,
    SHUTDOWN,
    TIMEOUT,
    A,
    B,
    bye,
    descriptor_of,
    frames,
    hear,
    kinds,
    look,
    lost,
    pair,
    ping,
    poller,
    running,
    session,
    until,
    whole_frames,
)
from tests.reference.records import BODY_MAX, HEAD, Sealer, Verifier, records_of
from tests.reference.session import frame
from tests.support import PATIENCE_S, SANITIZED, TINY

pytestmark = pytest.mark.usefixtures("nothing_is_left")

INTEGRITY = REFUSAL_CODES["INTEGRITY"]
RECORD_BYTES_BEGIN = CAPACITIES["RECORD_BYTES_BEGIN"]
WINDOW_UPDATE = FRAME_KINDS["WINDOW_UPDATE"]
#: Of the two directions, as the side that the test plays sees them.
OURS, THEIRS = bytes(range(32)), bytes(range(32, 64))


def attach(
    at: Poller,
    sock: socket.socket,
    keys: tuple[bytes, bytes] = (THEIRS, OURS),
    own: NodeId = A,
    peer: NodeId = B,
    leftover: bytes = b"",
    **more: int,
) -> Connection:
    sock.setblocking(False)
    connection = at.attach(sock.fileno(), session(own, peer, **more), leftover, stream_keys=keys)
    sock.detach()
    return connection


class Peer:
    """The other side of an authenticated connection: a socket, and records in slow Python."""

    def __init__(
        self,
        buffer: int | None = None,
        leftover: bytes = b"",
        fragment_bytes: int = 65_536,
        **limits: int,
    ) -> None:
        self.sealer = Sealer(OURS)
        self.verifier = Verifier(THEIRS)
        #: All that came, as it came.
        self.received = b""
        near, self.sock = pair(buffer)
        self.poller = poller(**limits)
        self.connection = attach(
            self.poller, near, leftover=leftover, fragment_bytes=fragment_bytes
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """What a record may have."""
        self.sock.setblocking(True)
        self.sock.sendall(self.sealer.seal(data))
        look(self.poller)

    def send_raw(self, data: bytes) -> None:
        self.sock.setblocking(True)
        self.sock.sendall(data)
        look(self.poller)

    def read(self) -> bytes:
        """What comes now, verified."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            data = self.sock.recv(1 << 20)
            self.received += data
            said = self.verifier.take(data)
            assert not self.verifier.wrong
            return said
        return b""

    def read_until(self, enough: Callable[[bytes], object], said: bytes = b"") -> bytes:
        end = time.monotonic() + PATIENCE_S
        while not enough(said):
            assert time.monotonic() < end, f"{len(said)} bytes came"
            self.poller.poll()
            said += self.read()
        return said

    def read_all(self) -> bytes:
        """What comes until the end."""
        said = b""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.poller.poll()
            self.sock.setblocking(False)
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return said
            if not data:
                return said
            said += self.verifier.take(data)
            assert not self.verifier.wrong
        pytest.fail("it does not end")


# What is sent.


@pytest.mark.parametrize("buffer", [4_096, None])
@pytest.mark.parametrize("seed", range(6))
def test_a_pair_keeps_its_order_through_lanes_records_and_tiny_buffers(
    seed: int, buffer: int | None
) -> None:
    rng = random.Random(seed)
    near, far = pair(buffer)
    left, right = poller(), poller()
    one = attach(left, near, fragment_bytes=rng.choice([16, 1_000, 60_000, 300_000]))
    two = attach(right, far, (OURS, THEIRS), B, A)
    os.set_blocking(descriptor_of(left), False)
    pids = [Pid(f"p{n}", A) for n in range(3)]
    sent: dict[Pid, list[bytes]] = {pid: [] for pid in pids}
    got: dict[Pid, list[bytes]] = {pid: [] for pid in pids}

    def take() -> None:
        right.poll()
        for e in two.session.decode(hear(two, rng.choice([1, 65536]))):
            got[e.sender].append(e.msg)

    # In the tiny build each record has seven bytes.
    for _ in range(60 if TINY else 400):
        sender = rng.choice(pids)
        sizes = [0, 1, 20, 20, 20, 3_000, rng.choice([5, 5, 5, 5, 120_000, 400_000])]
        msg = rng.randbytes(min(rng.choice(sizes), 300 if TINY else 1 << 20))
        sent[sender].append(msg)
        one.session.write(Envelope(Pid("to", B), msg, sender=sender))
        if rng.random() < 0.5:
            left.flush_session(one)
        if rng.random() < 0.1:
            one.send_control(MEMBERSHIP, rng.randbytes(rng.choice([1, 100 if TINY else 30_000])))
        for _ in range(rng.randrange(3)):
            left.poll()
        if rng.random() < 0.5:
            take()
    left.flush_session(one)
    end = time.monotonic() + PATIENCE_S
    while any(len(got[pid]) < len(sent[pid]) for pid in pids):
        assert time.monotonic() < end, (one.code, two.code)
        left.poll()
        take()
    assert got == sent
    until(lambda: one.status()["queued_bytes"] == 0, left, right)
    until(lambda: two.status()["bytes_received"] == one.status()["bytes_sent"], left, right)
    assert one.authenticated and two.authenticated and one.open and two.open


def test_what_is_sent_are_records_that_the_slow_python_takes() -> None:
    count, large = (20, 300) if TINY else (3_000, 200_000)
    with Peer(fragment_bytes=100 if TINY else 65_536) as peer:
        connection = peer.connection
        for n in range(count):
            connection.session.write(Envelope(Pid("p", B), (n, "x" * (n % 70)), Pid("s", A)))
        connection.session.write(Envelope(Pid("p", B), bytes(large), Pid("t", A)))
        peer.poller.flush_session(connection)
        assert connection.send_control(MEMBERSHIP, b"state")

        def is_all(said: bytes) -> bool:
            # What was consumed of bulk is told now and then.
            bulk = [f for f in frames(whole_frames(said)) if f[0] == FRAGMENT]
            size = sum(6 + len(body) for _, _, body in bulk)
            if peer.connection.open and size:
                peer.send(frame(WINDOW_UPDATE, 0, struct.pack(">Q", size)))
            return connection.status()["queued_bytes"] == 0 and size > large

        said = peer.read_until(is_all)
        said = peer.read_until(lambda s: MEMBERSHIP in kinds(whole_frames(s)), said)
        said = peer.read_until(
            lambda _: connection.status()["bytes_sent"] == len(peer.received), said
        )
        assert len(peer.received) == len(said) + HEAD * peer.verifier.count
        assert max(len(each) for each in records_of(peer.received)) <= HEAD + BODY_MAX
        data = b"".join(frame(*each) for each in frames(said) if each[0] != MEMBERSHIP)
        told = session(B, A).decode(data)
        assert [e.msg for e in told if e.sender.name == "s"] == [
            (n, "x" * (n % 70)) for n in range(count)
        ]
        assert [e.msg for e in told if e.sender.name == "t"] == [bytes(large)]


@pytest.mark.skipif(TINY, reason="its records are of seven bytes")
def test_the_records_of_large_messages_are_whole_frames() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near, fragment_bytes=16_384)
    verifier, received, said = Verifier(THEIRS), b"", b""
    with far:
        for n in range(16):
            connection.session.write(Envelope(Pid("p", B), bytes(60_000), Pid(f"s{n}", A)))
        at.flush_session(connection)
        # The names went by the data lane; until that counts as idle again, less of bulk is sent.
        idle = time.monotonic() + 0.006
        until(lambda: time.monotonic() > idle, at)
        far.sendall(Sealer(OURS).seal(frame(WINDOW_UPDATE, 0, bytes(8))))
        far.setblocking(False)
        end = time.monotonic() + PATIENCE_S
        while connection.status()["queued_bytes"] or verifier.waits or len(said) < 960_000:
            assert time.monotonic() < end
            at.poll()
            with contextlib.suppress(BlockingIOError):
                data = far.recv(1 << 20)
                received += data
                said += verifier.take(data)
        sizes = [len(record) - HEAD for record in records_of(received)]
        for record in records_of(received):
            assert whole_frames(record[HEAD:]) == record[HEAD:]
        # Four parts, which are a little more than 64 KiB.
        assert 65_536 < max(sizes) <= BODY_MAX
        assert sum(sizes) / len(sizes) > 16_384


@pytest.mark.skipif(SANITIZED, reason="what is freed stays for a while")
def test_a_large_message_is_not_copied_to_be_sent() -> None:
    near, far = pair()
    at = poller()
    connection = attach(at, near, fragment_bytes=16_384)
    large = bytes([7]) * (1 << 20 if TINY else 48 << 20)
    process = psutil.Process()
    with far:
        before = process.memory_info().rss
        held = sys.getrefcount(large)
        connection.session.write(Envelope(Pid("p", B), large, Pid("s", A)))
        at.flush_session(connection)
        # Of the record that the kernel took in part the rest is copied, and no more.
        assert connection.status()["queued_bytes"] > len(large) // 2
        assert sys.getrefcount(large) == held + 1
        assert process.memory_info().rss - before < 8 << 20


@pytest.mark.skipif(TINY, reason="its buffers are of some bytes")
def test_long_records_change_hands_and_the_bytes_behind_them_wait() -> None:
    """Each is read by itself, with the head of the next: so its buffer can become the lane's."""
    with Peer() as peer:
        parts = [frame(FRAGMENT, 0, bytes([n]) * 16_384) for n in range(12)]
        sealed = [peer.sealer.seal(b"".join(parts[n : n + 4])) for n in (0, 4, 8)]
        wire = b"".join(sealed)
        peer.sock.setblocking(False)
        heard = b""
        ends = [sum(map(len, sealed[:n])) for n in (1, 2, 3)]
        end = time.monotonic() + PATIENCE_S
        while len(heard) < sum(map(len, parts)):
            assert time.monotonic() < end
            with contextlib.suppress(BlockingIOError):
                wire = wire[peer.sock.send(wire) :] if wire else wire
            before = peer.connection.status()["bytes_received"]
            peer.poller.poll()
            received = peer.connection.status()["bytes_received"]
            # The first read knows no length yet.
            if before > HEAD:
                assert received <= min(each for each in ends if each > before) + HEAD
            heard += hear(peer.connection)
        assert heard == b"".join(parts)


def test_frames_longer_than_a_record_are_cut() -> None:
    with Peer() as peer:
        said = frame(MEMBERSHIP, 0, random.Random(1).randbytes(300 if TINY else 300_000))
        assert peer.connection.send_control(MEMBERSHIP, said[6:])
        assert peer.read_until(lambda s: len(s) >= len(said)) == said
        if not TINY:
            fewest, most = -(-len(said) // BODY_MAX), len(said) // RECORD_BYTES_BEGIN + 1
            assert fewest <= peer.verifier.count <= most


def test_a_frame_overtakes_no_record_that_was_sent_in_part() -> None:
    count = 60 if TINY else 6_000
    with Peer(4_096) as peer:
        for n in range(count):
            peer.connection.session.write(Envelope(Pid("p", B), n))
        peer.poller.flush_session(peer.connection)
        assert peer.connection.status()["queued_bytes"] > 0
        assert peer.connection.send_control(MEMBERSHIP, b"first")
        total = peer.read_until(lambda s: kinds(whole_frames(s)).count(ENVELOPE) == count)
        data = b"".join(frame(*each) for each in frames(total) if each[0] != MEMBERSHIP)
        assert [e.msg for e in session(B, A).decode(data)] == list(range(count))
        assert kinds(total).count(MEMBERSHIP) == 1


@pytest.mark.skipif(TINY, reason="its records are of seven bytes")
def test_what_overtakes_waits_behind_a_short_record_where_the_line_is_slow() -> None:
    """Though a flush has more; a line that was fast before has one long record to go."""
    with Peer(4_096) as peer:
        for n in range(6_000):
            peer.connection.session.write(Envelope(Pid("p", B), n))
        peer.poller.flush_session(peer.connection)
        assert peer.connection.status()["queued_bytes"] > 40_000
        assert peer.connection.send_control(MEMBERSHIP, b"soon")
        said = peer.read_until(lambda s: b"soon" in s)
        # What the kernel has taken is before it, too.
        assert said.index(b"soon") < RECORD_BYTES_BEGIN + 4 * 4_096
        peer.read_until(lambda s: kinds(whole_frames(s)).count(ENVELOPE) == 6_000, said)


@pytest.mark.parametrize("after_all", [False, True])
def test_a_close_ends_with_the_record_that_was_begun_or_after_all(after_all: bool) -> None:
    count = 60 if TINY else 8_000
    with Peer(4_096) as peer:
        for number in range(count):
            peer.connection.session.write(Envelope(Pid("p", B), number))
        large = bytes(100 if TINY else 50_000)
        peer.connection.session.write(Envelope(Pid("p", B), large, Pid("s", A)))
        peer.poller.flush_session(peer.connection)
        peer.connection.close(SHUTDOWN, "the end", after_all=after_all)
        said = peer.read_all()
        assert kinds(said)[-1] == BYE
        told = session(B, A).decode(whole_frames(said)[: -len(bye(SHUTDOWN, b"the end"))])
        numbers = [e.msg for e in told if e.sender is None]
        assert numbers == list(range(count if after_all else len(numbers)))
        assert (len(numbers) == count) == after_all
        assert peer.connection.status()["queued_bytes"] == 0


def test_a_peer_that_has_gone_ends_it() -> None:
    with Peer() as peer:
        peer.sock.close()
        peer.connection.session.write(Envelope(Pid("p", B), 1))
        peer.poller.flush_session(peer.connection)
        assert peer.connection.closed and peer.connection.error


# What is received.


@pytest.mark.parametrize("seed", range(8))
def test_frames_come_whole_however_records_and_reads_cut_them(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([0, 0, 0, 0, 1, 9, 700 if TINY else 70_000]) for _ in range(100)]
    said = [frame(FRAGMENT, 0, rng.randbytes(n)) if n else lost(n) for n in sizes]
    stream = b"".join(said)
    with Peer() as peer:
        wire = b""
        at = 0
        while at < len(stream):
            size = rng.choice([1, 2, 5, 6, 7, 100, 5_000, 60_000, BODY_MAX])
            wire += peer.sealer.seal(stream[at : at + size])
            at += size
        expected = len(wire)
        heard = b""
        peer.sock.setblocking(False)
        while wire:
            with contextlib.suppress(BlockingIOError):
                size = rng.choice([1, 3, 19, 20, 21, 700, 60_000, 300_000])
                wire = wire[peer.sock.send(wire[:size]) :]
            for _ in range(rng.randrange(3)):
                peer.poller.poll()
            if rng.random() < 0.3:
                heard += peer.poller.take_frames(peer.connection, rng.choice([1, 50, 65536]))
        while len(heard) < len(stream):
            peer.poller.poll()
            heard += hear(peer.connection)
        for kind in (LOST, FRAGMENT):
            assert [f for f in frames(heard) if f[0] == kind] == [
                f for f in frames(stream) if f[0] == kind
            ]
        assert peer.connection.status()["bytes_received"] == expected
        assert peer.connection.status()["frames_received"] == len(said)


def test_byte_by_byte_nothing_is_heard_before_the_last_byte_of_its_record() -> None:
    with Peer() as peer:
        record = peer.sealer.seal(ping(7) + lost(1) + frame(MEMBERSHIP, 0, b"x"))
        for n in range(len(record)):
            assert peer.connection.status()["frames_received"] == 0
            assert peer.connection.progress[0] == 0
            peer.send_raw(record[n : n + 1])
        assert peer.connection.status()["frames_received"] == 3
        assert hear(peer.connection) == lost(1)
        assert peer.connection.take_control() == [(MEMBERSHIP, b"x")]
        assert kinds(peer.read_until(bool)) == [PONG]


def test_what_followed_the_handshake_is_verified_first() -> None:
    sealer = Sealer(OURS)
    early = sealer.seal(lost(1)) + sealer.seal(lost(2))[:9]
    with Peer(leftover=early) as peer:
        assert hear(peer.connection) == lost(1)
        peer.sealer.seal(lost(1))
        peer.send_raw(peer.sealer.seal(lost(2))[9:])
        assert hear(peer.connection) == lost(2)
        peer.send(lost(3))
        assert hear(peer.connection) == lost(3)


def test_a_wrong_record_behind_the_handshake_ends_it() -> None:
    with Peer(leftover=Sealer(THEIRS).seal(lost(1))) as peer:
        assert peer.connection.code == INTEGRITY
        assert hear(peer.connection) == b""


def test_reading_pauses_while_too_much_waits_and_goes_on_when_it_is_taken() -> None:
    with Peer(4_096 if TINY else None) as peer:
        piece = frame(ENVELOPE, 0, bytes(20 if TINY else 60_000))
        count = 2_000 if TINY else 2 * HEARD_HIGH // len(piece)
        wire = b"".join(peer.sealer.seal(piece) for _ in range(count))
        peer.sock.setblocking(False)
        sent = looks = 0
        while looks < 100:
            looks += 1
            with contextlib.suppress(BlockingIOError):
                sent += peer.sock.send(wire[sent : sent + 500_000])
                looks = 0
            peer.poller.poll()
        recv = CAPACITIES["RECV_BYTES_MAX"]
        before = peer.connection.status()["bytes_received"]
        assert HEARD_HIGH < before < HEARD_HIGH + 2 * recv + (HEARD_HIGH if TINY else 0)
        heard = 0
        while heard < count * len(piece):
            with contextlib.suppress(BlockingIOError):
                sent += peer.sock.send(wire[sent : sent + 500_000])
            peer.poller.poll()
            data = peer.poller.take_frames(peer.connection)
            assert data == piece * (len(data) // len(piece))
            heard += len(data)
        assert peer.connection.open


class Wire:
    """Two good records before what is wrong, and one behind it."""

    def __init__(self, sealer: Sealer) -> None:
        self.before = sealer.seal(lost(1)) + sealer.seal(lost(2) + part(1))
        self.next = sealer.seal(lost(3) + frame(MEMBERSHIP, 0, b"state") + ping(5) + part(2))
        self.after = sealer.seal(lost(4))
        self.mirrored = Sealer(THEIRS).seal(lost(9))
        self.last_of_before = records_of(self.before)[-1]


def part(n: int) -> bytes:
    return frame(FRAGMENT, 0, bytes([n]) * 3)


def flipped(record: bytes, bit: int) -> bytes:
    changed = bytearray(record)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda w: flipped(w.next, 8 * HEAD) + w.after, id="a bit of the body"),
        pytest.param(lambda w: flipped(w.next, -1) + w.after, id="the last bit"),
        pytest.param(lambda w: flipped(w.next, 40) + w.after, id="a bit of the tag"),
        pytest.param(lambda w: flipped(w.next, 26) + w.after, id="a bit of the length"),
        pytest.param(lambda w: w.after, id="one left out"),
        pytest.param(lambda w: w.last_of_before + w.next, id="one repeated"),
        pytest.param(lambda w: w.after + w.next, id="two in another order"),
        pytest.param(lambda w: w.mirrored + w.next, id="what this side said itself"),
        pytest.param(lambda w: frame(MEMBERSHIP, 0, b"state") + w.next, id="a frame put in"),
        pytest.param(lambda w: bytes(4), id="length 0"),
        pytest.param(lambda w: struct.pack(">I", BODY_MAX + 1), id="length max + 1"),
        pytest.param(lambda w: b"\xff" * 4, id="length 4 GiB"),
        pytest.param(lambda w: w.next[:HEAD] + bytes(BODY_MAX), id="another body"),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_is_not_the_next_record_ends_the_connection_and_nothing_of_it_is_heard(
    wrong: Callable[[Wire], bytes], step: int
) -> None:
    with Peer() as peer:
        wire = Wire(peer.sealer)
        data = wrong(wire)[: 20_000 if TINY else None]
        peer.send_raw(wire.before)
        until(lambda: peer.connection.status()["frames_received"] == 3, peer.poller)
        for at in range(0, len(data), step):
            if not peer.connection.open:
                break
            peer.send_raw(data[at : at + step])
        until(lambda: not peer.connection.open, peer.poller)
        assert peer.connection.code == INTEGRITY
        assert hear(peer.connection) == lost(1) + lost(2) + part(1)
        assert peer.connection.take_control() == []
        assert peer.connection.progress[0] == 0
        assert peer.connection.status()["frames_received"] == 3
        # The peer is told, in a record that it can believe.
        ((kind, _, body),) = frames(peer.read_all())
        assert (kind, body[0]) == (BYE, INTEGRITY)


def test_what_a_verified_stream_says_wrong_has_the_code_that_it_has_without_records() -> None:
    with Peer() as peer:
        peer.send(lost(1) + frame(99, 0, b"x") + lost(2))
        assert peer.connection.code == PROTOCOL
        assert hear(peer.connection) == lost(1)
        assert frames(peer.read_all()) == [(BYE, 0, bytes([PROTOCOL, 0]))]


def test_a_bye_ends_it_and_nothing_after_it_counts() -> None:
    with Peer() as peer:
        peer.send_raw(
            peer.sealer.seal(lost(1))
            + peer.sealer.seal(bye(SHUTDOWN, b"enough") + lost(2))
            + peer.sealer.seal(lost(3))
        )
        assert (peer.connection.closed, peer.connection.code) == (True, SHUTDOWN)
        assert hear(peer.connection) == lost(1)
        assert peer.connection.take_control() == [(BYE, bytes([SHUTDOWN, 6]) + b"enough")]
        assert select.select([peer.poller], [], [], 0)[0]


@pytest.mark.parametrize("begun", [1, 4, HEAD, HEAD + 9])
def test_a_record_that_does_not_end_ends_its_connection(begun: int) -> None:
    with Peer(partial_ms_max=100, heartbeat_ms=60) as peer, running(peer.poller):
        peer.sock.sendall(peer.sealer.seal(lost(1)) + peer.sealer.seal(lost(2))[:begun])
        said = b""
        while BYE not in kinds(whole_frames(said)):
            data = peer.sock.recv(1_000)
            said += peer.verifier.take(data)
        ((code, *_),) = [body for kind, _, body in frames(said) if kind == BYE]
        assert code == peer.connection.code == TIMEOUT
        assert hear(peer.connection) == lost(1)


def test_a_stream_that_is_cut_in_a_record_ends_in_the_middle() -> None:
    with Peer() as peer:
        peer.send_raw(peer.sealer.seal(lost(1)) + peer.sealer.seal(lost(2))[:-1])
    look(peer.poller)
    until(lambda: peer.connection.closed, peer.poller)
    assert hear(peer.connection) == lost(1)
    assert peer.connection.ended_mid_frame


def test_heartbeats_are_records_too() -> None:
    with Peer(heartbeat_ms=40) as peer, running(peer.poller):
        said = b""
        while len(kinds(whole_frames(said))) < 3:
            said += peer.verifier.take(peer.sock.recv(1_000))
            assert not peer.verifier.wrong
        assert set(kinds(whole_frames(said))) == {PING}


@pytest.mark.parametrize("keys", [(), (OURS,), (OURS, OURS[:31]), (OURS, "x" * 32)])
def test_keys_of_another_form_are_refused(keys: tuple[bytes, bytes]) -> None:
    near, far = pair()
    with near, far, pytest.raises(ValueError, match="stream_keys"):
        poller().attach(near.fileno(), session(), stream_keys=keys)
