"""Membership on the wire: digests at their time, states to who needs them, and what comes back."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import Mock

import pytest

from rabble import Limits, NodeId
from rabble._core.codec import Codec, DecodeError
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.membership import Membership, MembershipError
from rabble.cluster.gossip import ELEMENTS_MAX, KIND_MEMBERSHIP, Gossip
from rabble.registry import MessageRegistry

A, B, C = (NodeId(name, "h:1") for name in "abc")
CODEC = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
LIMITS = Limits(digest_ms=1_000)


class Side:
    """A node's membership and gossip, and a peer that keeps what it is sent."""

    def __init__(self, own: NodeId, limits: Limits = LIMITS) -> None:
        self.reports: list[tuple[int, str]] = []
        runtime = Mock()
        runtime.report = lambda level, words: self.reports.append((level, words()))
        self.membership = Membership(own, 10, limits)
        self.gossip = Gossip(own, self.membership, runtime, limits, 0.0)
        self.connection = Mock()
        self.peer = PeerConnection(1, self.connection, B, 10)

    def sent(self) -> list[bytes]:
        """The bodies of the membership frames since the last call."""
        frames = [call.args for call in self.connection.method_calls]
        self.connection.reset_mock()
        assert all(kind == KIND_MEMBERSHIP for kind, _ in frames)
        return [body for _, body in frames]


def digest_of(membership: Membership) -> Any:
    return CODEC.encode_message({"d": membership.digest()})


def test_a_digest_is_sent_to_each_peer_when_it_is_time_to() -> None:
    side = Side(A)
    side.gossip.tick(0.0, [side.peer, side.peer])
    assert side.sent() == [digest_of(side.membership)] * 2
    assert side.gossip.next_tick == 1.0
    side.gossip.tick(0.9, [side.peer])
    assert side.sent() == []
    side.gossip.tick(1.5, [side.peer])
    assert len(side.sent()) == 1
    assert side.gossip.next_tick == 2.5


def test_another_digest_is_answered_with_the_state_and_the_own_one_is_not() -> None:
    side = Side(A)
    assert side.gossip.read(side.peer, digest_of(side.membership)) is None
    assert side.sent() == []
    assert side.gossip.read(side.peer, digest_of(Membership(B, 10))) is None
    assert side.sent() == [side.membership.encoded()]


def test_a_state_is_merged_once() -> None:
    side, other = Side(A), Membership(B, 10)
    other.add(C)
    changes = side.gossip.read(side.peer, other.encoded())
    assert changes is not None
    assert changes.state_changed
    assert set(side.membership.members()) == {"a", "b", "c"}
    assert side.gossip.read(side.peer, side.membership.encoded()) is None
    assert side.sent() == []


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"", DecodeError), (b"\xc1", DecodeError), (CODEC.encode_message({"s": 1}), MembershipError)],
    ids=["empty", "no msgpack", "no state"],
)
def test_what_is_no_membership_raises_and_changes_nothing(
    body: bytes, error: type[Exception]
) -> None:
    side = Side(A)
    before = side.membership.encoded()
    with pytest.raises(error):
        side.gossip.read(side.peer, body)
    assert side.membership.encoded() == before


def test_a_state_longer_than_a_frame_is_reported_and_not_sent() -> None:
    side = Side(A, Limits(frame_bytes_max=8_192, digest_ms=1_000, fragment_bytes_max=1_024))
    for number in range(500):
        side.membership.add(NodeId(f"member-{number}", "h:1"))
    side.gossip.send_state(side.peer)
    assert side.sent() == []
    [(level, text)] = side.reports
    assert level == logging.ERROR
    assert "more than Limits.frame_bytes_max: b@h:1 is not told" in text
