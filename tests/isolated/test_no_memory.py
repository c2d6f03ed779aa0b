"""Memory runs out within the core: what it keeps stays consistent, and nothing crashes."""

from __future__ import annotations

import pytest

from tests.isolated.nomemory import available
from tests.isolated.script import FORKS, run
from tests.support import SANITIZED

pytestmark = [
    pytest.mark.skipif(not available(), reason="this Python has no _testcapi"),
    pytest.mark.skipif(SANITIZED, reason="its allocator says it aborts where none is left"),
]

BEGIN = """
from rabble import NodeId, Pid
from tests.isolated.nomemory import without_memory

"""


def test_a_helper_that_injects_nothing_would_find_nothing() -> None:
    said = run(
        BEGIN
        + """
def attempt(state):
    state.append([bytes(1000) for _ in range(30)])

def check(state):
    assert len(state) <= 1

def dies(state):
    try:
        bytes(1000)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)

assert without_memory(list, attempt, check) >= 30
try:
    without_memory(list, dies)
except AssertionError as error:
    print(error)
""",
        *FORKS,
    )
    assert "0+1: SIGKILL" in said


def test_timers_are_started_cancelled_and_fired_whole_or_not_at_all() -> None:
    run(
        BEGIN
        + """
from rabble._core.timers import TimerWheel

def begin():
    wheel = TimerWheel()
    timers = [wheel.start("owner", n, delay) for n, delay in enumerate((1, 1, 5, 300, 70_000))]
    return wheel, timers, []

def attempt(state):
    wheel, timers, fired = state
    timers.append(wheel.start(object(), 5, 1000))
    wheel.cancel(timers[2])
    while tick := wheel.next_deadline():
        fired.extend(wheel.advance(tick))

def check(state):
    wheel, timers, fired = state
    running = sum(timer.active for timer in timers)
    assert len(wheel) == running, (len(wheel), running)
    wheel.advance(2**40)
    assert not any(timer.active for timer in timers) and len(wheel) == 0

without_memory(begin, attempt, check)
"""
    )


def test_an_inbox_keeps_what_could_not_be_put_or_taken() -> None:
    run(
        BEGIN
        + """
from rabble._core.inbox import Inbox

PID = Pid("p", NodeId("n", "h:1"))
EACH = [Envelope(PID, n) for n in range(1000)]

def begin():
    inbox = Inbox(2000)
    for envelope in EACH[:700]:
        inbox.try_put(envelope)
    return inbox, [], []

def attempt(state):
    inbox, put, taken = state
    for envelope in EACH[700:]:
        inbox.try_put(envelope)
        put.append(envelope)
    assert inbox.wait(0.5)
    some = inbox.take(400)
    # This list has to grow, too: what it cannot have goes back to nobody.
    taken.append(some)
    taken.append(inbox.take(10))
    Inbox(5)

def check(state):
    inbox, put, taken = state
    some = [envelope for each in taken for envelope in each]
    left = inbox.take(2000)
    assert [e.msg for e in some] == list(range(len(some)))
    # None is lost between, but the list that `taken` had no room for.
    first = left[0].msg if left else 0
    assert first in (len(some), len(some) + 400, len(some) + 10), (first, len(some))
    assert [e.msg for e in left] == list(range(first, first + len(left)))
    assert first + len(left) >= 700 + len(put)
    assert inbox.try_put(EACH[0]) and len(inbox) == 1
    before = os.listdir("/proc/self/fd")
    inbox.close()
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1

without_memory(begin, attempt, check)
"""
    )


@pytest.mark.parametrize("keys", [None, (bytes(32), bytes(range(32)))], ids=["plain", "records"])
def test_a_poller_and_its_connections_end_or_go_on_but_lose_nothing_between(
    keys: tuple[bytes, bytes] | None,
) -> None:
    run(
        BEGIN
        + f"KEYS = {keys}"
        + """
import socket, struct
from rabble import MessageRegistry
from rabble._core.codec import Codec
from rabble._core.frame import FRAME_KINDS
from rabble._core.session import Session
from rabble._core.poller import Poller
from tests.reference.records import seal
from tests.reference.session import frame

A, B = NodeId("a", "h:1"), NodeId("b", "h:2")
MEMBERSHIP, LOST = FRAME_KINDS["MEMBERSHIP"], FRAME_KINDS["LOST"]
MEMBERSHIPS = b"".join(frame(MEMBERSHIP, 0, b"%d" % n) for n in range(5))
LOSTS = b"".join(frame(LOST, 0, struct.pack(">I", n)) for n in range(500))
if KEYS:
    MEMBERSHIPS, LOSTS = seal(KEYS[1], 0, MEMBERSHIPS), seal(KEYS[1], 1, LOSTS)

def poller():
    return Poller(heartbeat_ms=1000, frame_bytes_max=1 << 20, queue_bytes_max=1 << 20,
                  partial_ms_max=60_000)

def session(own, peer):
    return Session(own, peer, 7, Pid("executor", own, "rabble"), codec=Codec(MessageRegistry()))

def attach(at, sock, own, peer):
    sock.setblocking(False)
    connection = at.attach(sock.fileno(), session(own, peer), stream_keys=KEYS)
    sock.detach()
    return connection

def begin():
    near, far = socket.socketpair()
    at = poller()
    return at, attach(at, near, A, B), far, [], []

def attempt(state):
    at, connection, far, told, heard = state
    far.send(MEMBERSHIPS)
    far.send(LOSTS)
    at.poll()
    told += connection.take_control()
    connection.send_control(MEMBERSHIP, bytes(3000))
    connection.session.write(Envelope(Pid("p", B), bytes(100_000), sender=Pid("q", A)))
    connection.session.write(Envelope(Pid("p", B), "small", sender=Pid("q", A)))
    at.flush_session(connection)
    at.poll()
    heard.append(at.take_frames(connection))
    connection.status(), connection.progress, repr(connection)
    connection.close(19, "bye", after_all=True)

def check(state):
    at, connection, far, told, heard = state
    for _ in range(5):
        at.poll()
    told += connection.take_control()
    if connection.error != 12:     # ENOMEM ends it
        # What `attempt` had taken when it failed is its own loss, and what comes after `close`
        # is not read any more (in the tiny build that is not yet all of them).
        first = int(told[0][1]) if told else 0
        assert told == [(MEMBERSHIP, b"%d" % n) for n in range(first, first + len(told))], told
    connection.close(19)
    far.close()
    for _ in range(2_000):         # at once, but for the tiny build, which takes little at a time
        at.poll()
    assert at.connections == 0

without_memory(begin, attempt, check)
"""
    )


def test_the_end_of_a_poller_needs_no_memory() -> None:
    run(
        BEGIN
        + """
from rabble._core.poller import Poller

def begin():
    # The interpreter keeps tuples that were freed: these take all of them.
    return [Poller(heartbeat_ms=1, frame_bytes_max=99, queue_bytes_max=9, partial_ms_max=6),
            [tuple([n] * 4) for n in range(5_000)]]

def attempt(state):
    state[0] = None

def check(state):
    assert len(os.listdir("/proc/self/fd")) == before, os.listdir("/proc/self/fd")

before = len(os.listdir("/proc/self/fd"))
without_memory(begin, attempt, check)
"""
    )


def test_what_cannot_be_attached_for_want_of_memory_stays_the_callers() -> None:
    run(
        BEGIN
        + """
import socket
from rabble import MessageRegistry
from rabble._core.codec import Codec
from rabble._core.session import Session
from rabble._core.poller import Poller

A, B = NodeId("a", "h:1"), NodeId("b", "h:2")
codec = Codec(MessageRegistry())
BEGUN = bytes(3)

def begin():
    at = Poller(heartbeat_ms=1000, frame_bytes_max=1 << 20, queue_bytes_max=1 << 20,
                partial_ms_max=60_000)
    near, far = socket.socketpair()
    near.setblocking(False)
    link = Session(A, B, 7, Pid("executor", A, "rabble"), codec=codec)
    return at, near, far, link, [None, near.fileno(), super(socket.socket, near).detach]

def attempt(state):
    at, near, far, link, attached = state
    attached[0] = at.attach(attached[1], link, BEGUN, initiated=True)
    # Needs no memory itself.
    attached[2]()
    Poller(heartbeat_ms=1, frame_bytes_max=99, queue_bytes_max=9, partial_ms_max=6)

def check(state):
    at, near, far, link, attached = state
    assert len(os.listdir("/proc/self/fd")) == before, os.listdir("/proc/self/fd")
    assert at.connections == (attached[0] is not None)
    attached.clear()
    near.close()
    assert far.recv(1) == b"" and at.connections == 0
    far.close()

state = begin()
before = len(os.listdir("/proc/self/fd"))
check(state)
del state
without_memory(begin, attempt, check)
"""
    )


def test_a_thread_that_fails_without_memory_fails_its_node_and_that_is_known() -> None:
    """Else it would be gone, and its clients wait for nobody."""
    run("""
        from _testcapi import remove_mem_hooks, set_nomemory
        from rabble.services.server import ConnectionHandler, TcpServer

        logging.getLogger("rabble").addHandler(logging.NullHandler())
        for number, make in enumerate((
            lambda node: TcpServer(node, ConnectionHandler),
            lambda node: node.register_service(Upper(), "upper"),
        )):
            node = rabble.rouse(f"n{number}@127.0.0.1:0")
            made = make(node)
            error = MemoryError()
            set_nomemory(0, 0)
            try:
                made._failed(error)
            except MemoryError:
                pass
            finally:
                remove_mem_hooks()
            assert node.status == "failed" and str(made.pid) in node.failure, node.failure
            node.shutdown()
    """)
