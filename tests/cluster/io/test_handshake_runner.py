"""The steps of a handshake: what each returns, and what becomes of the socket."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
from collections.abc import Iterator

import pytest

from rabble import NodeId
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import (
    Authenticate,
    Authorize,
    Established,
    Failed,
    HandshakeConfig,
    Role,
)
from rabble.cluster.decide.handshake_wire import MAGIC
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.io.handshake_runner import HandshakeRunner, Outcome, Unreached, code_of
from rabble.cluster.io.handshake_socket import HandshakeSocket
from tests.support import PATIENCE_S

DEADLINE_S = 5.0
CONNECT_BY_S = 1.0
#: Another address of the host that was dialled.
OTHER = (socket.AF_INET, ("127.0.0.1", 1))


class Side:
    """The runner of one node; nothing is done but what the test asks for."""

    def __init__(self, name: str) -> None:
        self.own = NodeId(name, "h:1")
        self.now = 0.0
        self.selector = selectors.DefaultSelector()
        self.runner = HandshakeRunner(
            self.selector,
            ready=lambda sock, events: None,
            config=lambda: HandshakeConfig(self.own, 7, key=bytes(32), deadline_s=DEADLINE_S),
            clock=lambda: self.now,
            token_bytes=os.urandom,
        )

    def dial(self, sock: socket.socket, connection_id: int = 1, others: int = 0) -> HandshakeSocket:
        """A dial that is connecting by this socket."""
        sock.setblocking(False)
        dialled = HandshakeSocket(
            sock,
            connection_id,
            context=None,
            make_handshake=lambda names: self.runner.make_handshake(Role.INITIATOR, names),
            remote="h:1",
            deadline=DEADLINE_S,
            connect_by=CONNECT_BY_S,
            dial=Dial(connection_id, "h:1", None, join=False),
            other_addresses=[OTHER] * others,
        )
        self.runner.add_dialled(dialled)
        return dialled

    def accept(
        self, sock: socket.socket, connection_id: int = 1, remote: str = "h:2"
    ) -> HandshakeSocket:
        sock.setblocking(False)
        accepted = HandshakeSocket(
            sock,
            connection_id,
            context=None,
            make_handshake=lambda names: self.runner.make_handshake(Role.RESPONDER, names),
            remote=remote,
            deadline=DEADLINE_S,
        )
        assert self.runner.add_accepted(accepted) is None
        return accepted

    def close(self) -> None:
        self.runner.close()
        assert len(self.runner) == len(self.selector.get_map()) == 0
        self.selector.close()


@pytest.fixture
def a() -> Iterator[Side]:
    side = Side("a")
    yield side
    side.close()


@pytest.fixture
def b() -> Iterator[Side]:
    side = Side("b")
    yield side
    side.close()


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, of which each side closes its own."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


Wire = tuple[socket.socket, socket.socket]


def to_the_question(a: Side, b: Side, wire: Wire) -> tuple[HandshakeSocket, HandshakeSocket]:
    """Up to where the responder asks whether to accept."""
    dialled, accepted = a.dial(wire[0]), b.accept(wire[1])
    assert a.runner.proceed(dialled) is None
    assert b.runner.proceed(accepted) is None
    question = a.runner.proceed(dialled)
    assert isinstance(question, Authenticate)
    assert question.peer.node == b.own
    assert a.runner.authenticate(dialled, question) is None
    asked = b.runner.proceed(accepted)
    assert isinstance(asked, Authorize)
    assert asked.peer.node == a.own
    return dialled, accepted


def test_each_side_asks_once_and_is_established(a: Side, b: Side, wire: Wire) -> None:
    dialled, accepted = to_the_question(a, b, wire)
    of_b = b.runner.decide(accepted, None)
    of_a = a.runner.proceed(dialled)
    assert isinstance(of_a, Established) and isinstance(of_b, Established)
    assert (of_a.peer.node, of_b.peer.node) == (b.own, a.own)
    # The sockets are the caller's, open and watched no longer.
    assert len(a.runner) == len(b.runner) == 0
    dialled.sock.send(b"frame")
    assert accepted.sock.recv(10) == b"frame"


def test_a_refusal_ends_both_sides_with_its_code(a: Side, b: Side, wire: Wire) -> None:
    dialled, accepted = to_the_question(a, b, wire)
    of_b = b.runner.decide(accepted, Refusal(RefusalCode.SHUTDOWN))
    of_a = a.runner.proceed(dialled)
    assert isinstance(of_a, Failed) and isinstance(of_b, Failed)
    assert of_a.code is of_b.code is RefusalCode.SHUTDOWN
    assert of_a.authenticated and of_a.by_peer and not of_b.by_peer
    assert dialled.sock.fileno() == accepted.sock.fileno() == -1


def test_a_dial_that_is_dropped_before_its_proof_is_silence_to_the_peer(
    a: Side, b: Side, wire: Wire
) -> None:
    dialled, accepted = a.dial(wire[0]), b.accept(wire[1])
    a.runner.proceed(dialled)
    b.runner.proceed(accepted)
    assert isinstance(a.runner.proceed(dialled), Authenticate)
    assert a.runner.drop(dialled.connection_id)
    failed = b.runner.proceed(accepted)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.silent) == (RefusalCode.TIMEOUT, True)


def test_a_socket_that_was_dropped_while_it_was_ready_is_left_alone(a: Side, wire: Wire) -> None:
    dialled = a.dial(wire[0])
    assert a.runner.drop(1)
    assert a.runner.proceed(dialled) is None
    assert not a.runner.drop(1)


def test_a_peer_that_does_not_read_is_no_peer(a: Side, b: Side, wire: Wire) -> None:
    _, accepted = to_the_question(a, b, wire)
    with pytest.raises(BlockingIOError):
        while True:
            wire[1].send(bytes(65_536))
    failed = b.runner.decide(accepted, None)
    assert isinstance(failed, Failed)
    assert failed.text == "the peer does not read"
    assert accepted.sock.fileno() == -1


def test_who_has_given_up_meanwhile_is_not_accepted(a: Side, b: Side, wire: Wire) -> None:
    dialled, accepted = to_the_question(a, b, wire)
    a.runner.drop(dialled.connection_id)
    failed = b.runner.decide(accepted, None)
    assert isinstance(failed, Failed)
    assert failed.hung_up and failed.silent
    assert accepted.sock.fileno() == -1


def late(side: Side, now: float) -> list[tuple[HandshakeSocket, Outcome | None]]:
    """Those whose time is over, and how each ends."""
    return [(each, side.runner.tick(each, now)) for each in side.runner.due(now)]


def test_who_was_in_time_is_not_late_because_this_thread_is(a: Side, b: Side, wire: Wire) -> None:
    dialled, accepted = a.dial(wire[0]), b.accept(wire[1])
    a.runner.proceed(dialled)
    b.runner.looked_at, b.now = DEADLINE_S - 0.1, DEADLINE_S + 3.0
    assert b.runner.proceed(accepted) is None
    assert late(b, b.runner.looked_at) == []
    assert isinstance(a.runner.proceed(dialled), Authenticate)
    b.runner.looked_at = b.now
    [(ended, failed)] = late(b, b.runner.looked_at)
    assert ended is accepted and isinstance(failed, Failed) and not failed.hung_up


def test_time_that_this_thread_was_not_given_is_no_time_of_its_peers(
    a: Side, b: Side, wire: Wire
) -> None:
    a.dial(wire[0])
    accepted = b.accept(wire[1])
    b.runner.patience.worked(4.0, 1.0)
    assert b.runner.next_tick() == DEADLINE_S + 3.0
    b.now = DEADLINE_S + 2.9
    assert late(b, b.runner.patient_now()) == []
    b.now = DEADLINE_S + 3.0
    [(ended, failed)] = late(b, b.runner.patient_now())
    assert ended is accepted and isinstance(failed, Failed) and failed.silent


def test_an_initiator_waits_longer_than_its_responder_may_take(
    a: Side, b: Side, wire: Wire
) -> None:
    a.now = b.now = a.runner.looked_at = b.runner.looked_at = 2.0
    dialled, _ = to_the_question(a, b, wire)
    assert late(a, 2.0 + DEADLINE_S - 0.1) == []
    [(ended, failed)] = late(a, 2.0 + DEADLINE_S)
    assert ended is dialled and isinstance(failed, Failed) and failed.authenticated is False


# Addresses that do not answer.


def refused() -> socket.socket:
    """A socket that has been connecting to a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = unused.getsockname()
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(where)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        assert selector.select(PATIENCE_S)
    return sock


def test_an_address_that_refuses_gives_way_to_the_next(a: Side) -> None:
    dialled = a.dial(refused(), others=1)
    outcome = a.runner.proceed(dialled)
    assert outcome == Unreached(f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}")
    assert dialled.sock.fileno() == -1
    assert len(a.runner) == 0


def test_the_last_address_that_refuses_ends_the_dial(a: Side) -> None:
    failed = a.runner.proceed(a.dial(refused()))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.silent) == (RefusalCode.TIMEOUT, True)
    assert os.strerror(errno.ECONNREFUSED) in failed.text


def test_a_connect_that_takes_long_gives_way_before_the_dial_is_over(a: Side, wire: Wire) -> None:
    dialled = a.dial(wire[0], others=1)
    assert a.runner.next_tick() == CONNECT_BY_S
    assert a.runner.due(CONNECT_BY_S - 0.1) == []
    assert a.runner.due(CONNECT_BY_S) == [dialled]
    assert isinstance(a.runner.tick(dialled, CONNECT_BY_S), Unreached)


def test_once_the_peer_has_spoken_no_other_address_is_tried(a: Side, wire: Wire) -> None:
    dialled = a.dial(wire[0], others=1)
    assert a.runner.proceed(dialled) is None
    wire[1].close()
    assert isinstance(a.runner.proceed(dialled), Failed)


# Time, and the end.


def test_what_is_dropped_for_the_first_that_is_late_is_not_late_itself(a: Side) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    for connection_id, (near, _) in enumerate(pairs):
        a.dial(near, connection_id)
    first, second = a.runner.due(DEADLINE_S)
    assert isinstance(a.runner.tick(first, DEADLINE_S), Failed)
    a.runner.drop(second.connection_id)
    assert a.runner.tick(second, DEADLINE_S) is None
    for _, far in pairs:
        far.close()


def test_the_oldest_accepted_handshake_gives_way_and_no_dial(a: Side) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    a.dial(pairs[0][0], 1)
    for connection_id in (2, 3):
        a.accept(pairs[connection_id - 1][0], connection_id)
    assert a.runner.drop_oldest(3) is None
    oldest = a.runner.drop_oldest(2)
    assert oldest is not None and oldest.connection_id == 2
    assert len(a.runner) == 2
    for _, far in pairs:
        far.close()


def test_a_crowd_from_one_address_gives_way_and_first_those_that_say_nothing(a: Side) -> None:
    hosts = ["x:1", "crowd:1", "crowd:2", "crowd:3", "y:1"]
    pairs = [socket.socketpair() for _ in hosts]
    for connection_id, (host, (near, far)) in enumerate(zip(hosts, pairs, strict=True)):
        if host == "crowd:1":
            # What comes with the connection is read at once.
            far.send(MAGIC)
        a.accept(near, connection_id, host)
    dropped = []
    while (one := a.runner.drop_oldest(1)) is not None:
        dropped.append(hosts[one.connection_id])
    assert dropped[:2] == ["crowd:2", "crowd:3"]
    assert sorted(dropped[2:]) == ["crowd:1", "x:1", "y:1"]
    assert len(a.runner) == 0
    for _, far in pairs:
        far.close()


def test_a_dial_whose_proof_was_sent_may_be_a_connection_for_its_peer(
    a: Side, b: Side, wire: Wire
) -> None:
    dialled, _ = to_the_question(a, b, wire)
    near, far = socket.socketpair()
    a.dial(near, 2)
    a.runner.drop_unauthenticated_dials()
    assert len(a.runner) == 1
    assert dialled.sock.fileno() != -1
    far.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ssl.SSLError(1, "certificate verify failed"), RefusalCode.AUTH),
        (ssl.SSLEOFError(8, "EOF"), RefusalCode.TIMEOUT),
        (ssl.SSLZeroReturnError(6, "closed"), RefusalCode.TIMEOUT),
        (ConnectionResetError(), RefusalCode.TIMEOUT),
        (EOFError(), RefusalCode.TIMEOUT),
    ],
)
def test_only_what_tls_itself_refuses_counts_as_a_failed_proof(
    error: OSError | EOFError, code: RefusalCode
) -> None:
    assert code_of(error) is code
