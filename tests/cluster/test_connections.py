"""Why a connection ended, and what becomes of connections that part."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Any
from unittest.mock import Mock

import pytest

from rabble import Limits, NodeId
from rabble.cluster.connections import Connections, Ending, PeerConnection, ending_of
from rabble.cluster.decide.actions import Up
from rabble.cluster.decide.handshake_actions import Established, Peer
from rabble.cluster.decide.refusal import RefusalCode
from rabble.messages import NodeStalled

A, B = NodeId("a", "h:1"), NodeId("b", "h:1")


def ended(*, code: int = 0, error: int = 0, mid_frame: bool = False) -> Any:
    # By either name of the field, so that this test follows the core's words.
    return Mock(code=code, error=error, torn=mid_frame, ended_mid_frame=mid_frame)


@pytest.mark.parametrize(
    ("connection", "ending"),
    [
        (ended(code=20), Ending(RefusalCode.SHUTDOWN, "SHUTDOWN", "SHUTDOWN")),
        (
            ended(code=18, error=errno.ECONNRESET, mid_frame=True),
            Ending(RefusalCode.TIMEOUT, "TIMEOUT", "TIMEOUT"),
        ),
        (ended(), Ending(None, None, "it closed the connection")),
        (ended(code=99), Ending(None, None, "it closed the connection")),
        (ended(error=errno.ECONNRESET), Ending(None, None, os.strerror(errno.ECONNRESET))),
        (
            ended(mid_frame=True),
            Ending(None, "PARTIAL_FRAME", "it closed the connection, in the middle of a frame"),
        ),
    ],
    ids=["bye", "bye first", "end of file", "unknown code", "reset", "mid frame"],
)
def test_why_a_connection_ended(connection: Any, ending: Ending) -> None:
    assert ending_of(connection) == ending


class Side:
    """Connections of which some are put there, without a poller."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.reports: list[str] = []
        runtime = Mock(**dict.fromkeys(("notify_nodes", "notify_nodes"), self.told.append))
        runtime.report = lambda level, words: self.reports.append(words())
        self.connections = Connections(A, Mock(), runtime, Limits(), lambda: 0.0, None)

    def add(self, connection_id: int, node: NodeId = B) -> PeerConnection:
        connection = Mock(closed=False, silent_ns=1_500_000_000, unsent=0)
        peer = PeerConnection(connection_id, connection, node, 10)
        self.connections._by_id[connection_id] = peer
        return peer


def test_a_closed_connection_is_parting_until_its_descriptor_is_closed() -> None:
    side = Side()
    peer = side.add(1)
    side.connections.close(1, RefusalCode.DUPLICATE, "another one stays")
    peer.connection.close.assert_called_once_with(
        RefusalCode.DUPLICATE, "another one stays", after_all=False
    )
    assert 1 not in side.connections
    side.connections.forget_closed()
    assert side.connections.are_parting
    peer.connection.closed = True
    side.connections.forget_closed()
    assert not side.connections.are_parting


def test_a_removed_peer_gets_the_state_that_says_why_before_its_bye() -> None:
    side = Side()
    peer = side.add(1)
    side.connections.close(1, RefusalCode.REMOVED, "removed")
    peer.connection.close.assert_called_once_with(RefusalCode.REMOVED, "removed", after_all=True)


def test_at_the_end_all_peers_have_the_time_that_there_is() -> None:
    side = Side()
    peers = [side.add(1), side.add(2)]
    side.connections.close_all(RefusalCode.SHUTDOWN, "the node ends", 7.5, 20.0)
    for peer in peers:
        peer.connection.close.assert_called_once_with(
            RefusalCode.SHUTDOWN, "the node ends", after_all=True, linger_s=7.5, within_s=20.0
        )
    assert side.connections.are_parting and side.connections.all() == []


def test_at_the_end_it_is_said_what_a_peer_did_not_take() -> None:
    side = Side()
    peers = [side.add(1), side.add(2), side.add(3)]
    for peer, unsent in zip(peers, [0, 1_234_567, 5], strict=True):
        peer.connection.closed = False
        peer.connection.unsent = unsent
        peer.connection.session.peer = f"peer{unsent}"
    side.connections.close(3, RefusalCode.REMOVED, "removed")
    peers[2].connection.closed = True
    side.connections.forget_closed()
    assert side.reports == []
    side.connections.close_all(RefusalCode.SHUTDOWN, "the node ends", 7.5, 20.0)
    side.connections.forget_closed()
    assert side.reports == []
    peers[0].connection.closed = True
    side.connections.forget_closed()
    side.connections.abort_all()
    (text,) = side.reports
    assert "peer1234567 has not taken the last 1,234,567 bytes" in text


def test_a_connection_that_is_not_there_is_closed_without_a_word() -> None:
    side = Side()
    side.connections.close(1, RefusalCode.DUPLICATE, "")
    assert not side.connections.are_parting
    assert side.connections.get(1) is None
    assert side.connections.silent_s(1) is None


def test_the_silence_of_a_peer_is_in_seconds() -> None:
    side = Side()
    side.add(1)
    assert side.connections.silent_s(1) == 1.5


def test_what_is_left_is_aborted() -> None:
    side = Side()
    parting, left = side.add(1), side.add(2)
    side.connections.remove(parting)
    side.connections.abort_all()
    parting.connection.abort.assert_called_once_with(RefusalCode.SHUTDOWN)
    left.connection.abort.assert_called_once_with(0)
    assert side.connections.all() == []
    assert not side.connections.are_parting


def test_subscribers_are_told_once_that_a_peer_stands_still() -> None:
    side = Side()
    side.add(1)
    side.connections.set_stalled("c", True)
    assert side.told == []
    for stalled in (True, True, False):
        side.connections.set_stalled("b", stalled)
    assert side.told == [NodeStalled(B, True), NodeStalled(B, False)]


@pytest.mark.parametrize("where", ["session", "adopt", "attach", "failure_detector"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("error", [OSError, RuntimeError, MemoryError, SystemExit])
def test_a_connection_that_cannot_be_used_leaves_nothing_open(
    where: str, tls: bool, error: type[BaseException]
) -> None:
    reports: list[str] = []
    poller, proxy = Mock(), Mock()
    runtime = Mock(report=lambda level, words: reports.append(words()))
    connections = Connections(A, poller, runtime, Limits(), lambda: 0.0, proxy)
    near, far = os.pipe()
    sock = Mock(spec=ssl.SSLSocket if tls else socket.socket)
    sock.detach.return_value = far
    proxy.adopt.return_value = far
    {
        "session": runtime.make_session,
        "adopt": proxy.adopt,
        "attach": poller.attach,
        "failure_detector": Mock(),
    }[where].side_effect = error("none left")
    if where == "failure_detector":
        connections._failure_detector.add = Mock(side_effect=error("none left"))  # type: ignore[method-assign]
    opened = connections.open(Up(1, B, 7), sock, Established(Peer(B, 7, False, 1), b""), True)
    if where == "adopt" and not tls:
        assert opened is not None
        os.close(far)
    else:
        assert opened is None
        assert connections.all() == [] and 1 not in connections
        assert connections.next_check(0.0) is None
        (report,) = reports
        assert f"the connection to {B} cannot be used: {error.__name__}: none left" in report
        if where == "attach":
            # The descriptor was this side's; the stream of TLS is the proxy's, and ends with it.
            with pytest.raises(OSError):
                os.fstat(far)
            assert not sock.close.called
        elif where == "failure_detector":
            poller.attach.return_value.abort.assert_called_once_with(RefusalCode.LIMIT)
            assert connections.are_parting and not sock.close.called
            os.close(far)
        else:
            assert sock.close.called
            os.close(far)
    os.close(near)


@pytest.mark.parametrize(
    ("segments", "is_holed"),
    [
        # Nothing came any more.
        ([(7, 0)], False),
        # Its host confirmed what was sent; or something came, but for the next in order.
        ([(7, 0), (9, 0)], True),
        ([(7, 2)], True),
        # The kernel does not tell.
        ([(0, 0)], False),
    ],
)
def test_a_silent_peer_whose_packets_come_is_told_from_one_that_is_gone(
    segments: list[tuple[int, int]], is_holed: bool
) -> None:
    side = Side()
    peer = side.add(1)
    connection: Any = peer.connection
    side.connections._failure_detector.add(1, "b", 0.0)
    now, at, cut = 0.0, iter(segments), []
    connection.progress, connection.open, connection.segments = (0, True, 0), True, next(at)
    connection.session.unfinished_ns = 0
    connection.is_well = lambda within_ns: connection.silent_ns <= within_ns
    while not cut:
        now += 0.5
        connection.silent_ns = int(now * 1e9)
        if now > 4.0:
            connection.segments = next(at, connection.segments)
        cut = side.connections.silent(now)
    ((silent, silence_s),) = cut
    assert silent is peer and silence_s == now > 8.0
    side.connections.cut(peer, silence_s)
    assert peer.is_holed is is_holed
    connection.abort.assert_called_once_with(RefusalCode.TIMEOUT)
    [report] = side.reports
    assert ("though small packets of its host come" in report) is is_holed
