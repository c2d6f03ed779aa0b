"""Why a connection ended, and what becomes of connections that part."""

from __future__ import annotations

import errno
import os
from typing import Any
from unittest.mock import Mock

import pytest

from rabble import Limits, NodeId
from rabble.cluster.connections import Connections, Ending, PeerConnection, ending_of
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
            Ending(None, "TORN", "it closed the connection, in the middle of a frame"),
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
        runtime = Mock(**dict.fromkeys(("notify_nodes", "notify_nodes"), self.told.append))
        self.connections = Connections(A, Mock(), runtime, Limits(), lambda: 0.0, None)

    def add(self, connection_id: int, node: NodeId = B) -> PeerConnection:
        connection = Mock(closed=False, silent_ns=1_500_000_000)
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
