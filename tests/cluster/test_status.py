"""The status of the cluster, as any thread sees it."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from rabble import NodeId
from rabble.cluster.connections import PeerConnection
from rabble.cluster.status import StatusBoard

A, B = NodeId("a", "h:1"), NodeId("b", "h:1")


def connection(*, is_open: bool) -> PeerConnection:
    mock = Mock(open=is_open)
    mock.status.return_value = {
        name: number
        for number, name in enumerate(
            (
                *("bytes_received", "bytes_received", "bytes_sent", "bytes_sent"),
                *("queued_bytes", "round_trip_ns"),
            )
        )
    }
    return PeerConnection(1, mock, B, 20, stalled=True)


def test_at_first_a_node_knows_itself() -> None:
    status = StatusBoard(A).status(10, False)
    assert (status.node, status.incarnation, status.members) == (A, 10, (A,))
    assert not status.removed
    assert status.refusals == {}


def test_a_connection_is_shown_while_it_is_open() -> None:
    board = StatusBoard(A)
    board.publish([A, B], [connection(is_open=False), connection(is_open=True)])
    status = board.status(10, True)
    assert status.members == (A, B)
    assert status.removed
    text = repr(status)
    assert text.count("incarnation=20") == 1
    assert "stalled=True" in text


def test_refusals_are_counted_by_their_reason_and_the_status_is_a_copy() -> None:
    board = StatusBoard(A)
    for reason in ("AUTH", "PARTIAL_FRAME", "AUTH"):
        board.count_refusal(reason)
    status = board.status(10, False)
    board.count_refusal("AUTH")
    assert status.refusals == {"AUTH": 2, "PARTIAL_FRAME": 1}


def test_what_could_not_be_published_is_published_at_the_next_call() -> None:
    board, up = StatusBoard(A), Mock()
    board.came_up(up)
    told: list[object] = []
    members = Mock(side_effect=[MemoryError, [A, B]])
    with pytest.raises(MemoryError):
        board.publish_changes(members, list, list, told.append)
    assert told == []
    board.publish_changes(members, list, list, told.append)
    assert board.status(10, False).members == (A, B)
    assert told == [up]
    board.publish_changes(Mock(side_effect=AssertionError), list, list, told.append)
