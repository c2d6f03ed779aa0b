"""The poller: each connection gets its turn, whoever looks, and nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable

import pytest

from rabble._core.connection import Connection
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble._core.poller import Poller
from tests.core.sockets import (
    BYE,
    MEMBERSHIP,
    PONG,
    SHUTDOWN,
    TIMEOUT,
    A,
    B,
    attach,
    bye,
    descriptor_of,
    frames,
    hear,
    kinds,
    look,
    lost,
    pair,
    ping,
    polled_descriptors,
    poller,
    running,
    session,
    tcp_pair,
    until,
    whole_frames,
)
from tests.support import PATIENCE_S, TINY

pytestmark = pytest.mark.usefixtures("nothing_is_left")


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


def test_one_thread_runs_a_poller() -> None:
    at = poller()
    with running(at):
        until(lambda: at.running)
        with pytest.raises(RuntimeError, match="its thread already"):
            at.run()
        assert at.running
    at.run()


def test_who_gives_way_lets_other_threads_run_python_and_goes_on() -> None:
    at = poller()
    ran = threading.Event()
    thread = threading.Thread(target=ran.set)
    thread.start()
    while not ran.is_set():
        at.give_way()
    thread.join(PATIENCE_S)
    at.stop()


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
