"""Bans on the wire: what is told, to whom and when, and how nodes find that they know others."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from rabble import Limits, NodeId
from rabble._core.codec import Codec
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.bans import BanChanges, Bans
from rabble.cluster.decide.membership import Membership, MembershipError
from rabble.cluster.gossip import ELEMENTS_MAX, KIND_MEMBERSHIP, Gossip
from rabble.registry import MessageRegistry

A, B, C = (NodeId(name, "h:1") for name in "abc")
KEY = bytes(range(32))
CODEC = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
LIMITS = Limits(digest_ms=1_000_000, gossip_gather_ms=100, digest_settled_ms=1_000)


class Least:
    """Each wait is as short as it may be."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


class Side:
    """A node's gossip, and peers that keep what they are sent."""

    def __init__(self, own: NodeId, limits: Limits = LIMITS) -> None:
        self.reports: list[str] = []
        runtime = Mock()
        runtime.report = lambda level, words: self.reports.append(words())
        self.membership = Membership(own, 10, limits)
        self.bans = Bans(own, limits)
        self.now = 0.0
        self.own_keys: tuple[bytes, ...] = (KEY,)
        subjects = lambda: (own.name, *self.own_keys)  # noqa: E731
        self.gossip = Gossip(
            own, self.membership, runtime, limits, 0.0, Least(), self.bans, subjects
        )
        self.gossip.tick(0.0, [])
        self.peers: dict[str, PeerConnection] = {}

    def connect(self, node: NodeId, *keys: bytes) -> None:
        peer = PeerConnection(len(self.peers) + 1, Mock(), node, 10, keys=keys)
        self.peers[node.name] = peer
        self.gossip.greet(peer, self.now)
        self.sent(node.name)

    def sent(self, name: str) -> list[Any]:
        """What a peer was sent since the last call, decoded."""
        connection: Any = self.peers[name].connection
        frames = [call.args for call in connection.method_calls]
        connection.reset_mock()
        assert all(kind == KIND_MEMBERSHIP for kind, _ in frames)
        return [CODEC.decode_message(body) for _, body in frames]

    def read(self, name: str, message: object) -> Any:
        return self.gossip.read(self.peers[name], CODEC.encode_message(message), self.now)

    def ban(self, *subjects: str | bytes) -> None:
        for subject in subjects:
            self.bans.ban(subject, 100, self.now)
        self.gossip.bans_changed(subjects, self.now)

    def digest(self, name: str) -> bytes:
        return self.gossip._digest(self.peers[name], self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.gossip.tick(self.now, self.peers.values())


def row(subject: str | bytes, by: str, time: int = 1, own: bool = False) -> list[Any]:
    return [subject, time, 100_000, by, 100_000, own]


def test_a_ban_is_told_to_all_at_once_and_what_was_told_to_nobody_again() -> None:
    side = Side(A)
    side.connect(B)
    side.connect(C)
    side.ban("x", KEY)
    side.tick(0.0)
    told = [{"b": [row("x", "a", 1, True), row(KEY, "a", 2, True)]}]
    assert side.sent("b") == side.sent("c") == told
    side.tick(0.5)
    assert side.sent("b") == side.sent("c") == []


def test_what_many_are_told_is_encoded_once() -> None:
    side = Side(A)
    peers = [NodeId(f"peer-{number}", "h:1") for number in range(40)]
    for node in peers:
        side.connect(node)
    side.ban(*(f"x{number}" for number in range(100)))
    codec = side.gossip.bans._codec = Mock(wraps=CODEC)
    side.tick(0.0)
    assert codec.encode_message.call_count == 1
    for node in peers:
        [message] = side.sent(node.name)
        assert len(message["b"]) == 100


def test_what_a_peer_told_is_told_to_the_others_a_little_later() -> None:
    side = Side(A)
    side.connect(B)
    side.connect(C)
    assert side.read("b", {"b": [row("x", "b", 1, True)]}) == BanChanges(("x",))
    side.tick(0.04)
    assert side.sent("c") == []
    side.tick(0.01)
    # What is left has gone down; and this node has not said it itself.
    assert side.sent("c") == [{"b": [["x", 1, 100_000, "b", 99_950, False]]}]
    assert side.sent("b") == []


def test_what_two_have_told_to_all_is_told_to_nobody() -> None:
    for more, spread in (({}, True), ({"k": True}, False)):
        side = Side(A)
        for node in (B, C, NodeId("d", "h:1")):
            side.connect(node)
        side.read("b", {"b": [row("x", "b")], **more})
        side.read("c", {"b": [row("x", "b")], **more})
        side.tick(0.1)
        assert bool(side.sent("d")) is not spread


def test_a_removal_that_goes_with_a_ban_is_told_behind_it() -> None:
    side = Side(A)
    side.membership.add(C)
    side.gossip.changed(0.0)
    side.connect(B)
    side.tick(0.05)
    side.sent("b")
    side.ban("c")
    side.membership.remove("c")
    side.gossip.changed(side.now)
    side.tick(0.2)
    ban, removal = side.sent("b")
    assert ban.keys() == {"b"} and removal.keys() == {"s", "v", "m"}


def test_without_bans_the_digest_is_that_of_the_membership() -> None:
    side = Side(A)
    side.connect(B)
    assert side.digest("b") == side.membership.digest()
    side.ban("x")
    assert side.digest("b") != side.membership.digest()


def test_who_knows_other_bans_is_sent_all_of_them_in_front_of_the_state() -> None:
    side, other = Side(A), Side(B)
    side.connect(B)
    other.connect(A)
    side.ban("x")
    side.read("b", {"d": other.digest("a")})
    bans, state = side.sent("b")
    assert bans == {"b": [row("x", "a", 1, True)], "k": True}
    assert state.keys() == {"s", "v", "m", "d"}
    other.read("a", bans)
    other.read("a", state)
    assert other.bans.summary(0.0) == side.bans.summary(0.0)
    # It knows of a start that the other one has not heard of.
    [back] = [message for message in other.sent("a") if "s" in message]
    side.read("b", back)
    assert other.digest("a") == side.digest("b")
    side.read("b", {"d": other.digest("a")})
    assert side.sent("b") == []


def test_what_is_said_of_the_two_themselves_makes_no_difference_to_them() -> None:
    side = Side(A)
    side.connect(B, bytes(32))
    side.connect(C)
    digest = side.digest("b")
    side.read(
        "c", {"b": [row("a", "c"), row(KEY, "c", 2), row("b", "c", 3), row(bytes(32), "c", 4)]}
    )
    assert len(side.bans) == 4
    assert side.digest("b") == digest != side.digest("c")
    side.read("b", {"d": digest})
    assert side.sent("b") == []
    # What was said of itself it forgets when somebody lets it in.
    side.connect(NodeId("d", "h:1"))
    assert [each[0] for each in side.bans.rows(0.0)] == ["b", bytes(32)]


def test_nodes_agree_though_one_has_come_to_a_key_that_is_banned() -> None:
    """Of a connection those keys count that were shown when it came up, to both of its sides."""
    old, new = KEY, bytes(32)
    side, other = Side(A), Side(B)
    side.connect(B, bytes([1]) * 32)
    other.own_keys = (bytes([1]) * 32,)
    other.connect(A, old)
    other.ban(new)
    [row] = other.bans.rows(0.0)
    side.read("b", {"b": [row]})
    side.own_keys = (new,)
    for each in (side, other):
        each.membership.merge(Side(A).membership.known())
        each.membership.merge(Side(B).membership.known())
    assert side.digest("b") == other.digest("a")
    # Where it has been shown it is left out.
    side.connect(NodeId("d", "h:1"))
    assert new not in side.bans


def test_nobody_is_believed_about_its_name_or_its_keys() -> None:
    side = Side(A)
    side.connect(B, bytes(32))
    side.ban("b", bytes(32))
    side.read("b", {"b": [["b", 99, 0, "a", 0, False], [bytes(32), 99, 0, "a", 0, False]]})
    assert len(side.bans.in_force(0.0)) == 2


def test_who_is_let_in_as_its_ban_is_cut_here_is_not_told_that_it_is_banned() -> None:
    """It would believe it; and nobody here keeps it out."""
    side = Side(A, Limits(ban_seconds_max=60, gossip_gather_ms=100))
    side.connect(B)
    side.read("b", {"b": [row("c", "b", 1), row(bytes(32), "b", 2), row("y", "b", 3)]})
    side.tick(60.0)
    side.connect(C, bytes(32))
    side.connect(NodeId("d", "h:1"))
    for name, told in (("c", ["y"]), ("d", ["c", "y", bytes(32)])):
        side.gossip.send_state(side.peers[name], side.now)
        assert [each[0] for each in side.sent(name)[0]["b"]] == told
    side.read("b", {"b": [row("z", "b", 4), ["c", 5, 10**6, "b", 10**6 - 70_000, False]]})
    side.tick(1.0)
    assert [each[0] for each in side.sent("c")[0]["b"]] == ["z"]
    assert [each[0] for each in side.sent("d")[0]["b"]] == ["c", "z"]


def test_more_bans_than_fit_into_a_frame_go_by_several() -> None:
    limits = Limits(frame_bytes_max=8_192, fragment_bytes_max=1_024, bans_max=1_024)
    side, other = Side(A, limits), Side(B, limits)
    side.connect(B)
    other.connect(A)
    side.ban(*(f"{number:03}{'x' * 252}" for number in range(300)))
    side.tick(0.0)
    messages = side.sent("b")
    assert len(messages) > 10
    for message in messages:
        assert len(CODEC.encode_message(message)) + 2 <= limits.frame_bytes_max
        other.read("a", message)
    assert len(other.bans) == 300


def test_what_is_not_believed_or_forgotten_is_reported() -> None:
    side = Side(A, Limits(bans_max=1))
    side.connect(B)
    side.read("b", {"b": [row("x", "b", 2**63 - 1)]})
    assert side.reports == [
        "a: 1 bans that b@h:1 tells of are not believed: they are a hundred years ahead of the "
        "clock"
    ]
    side.read("b", {"b": [row("x", "b", 1)]})
    side.read("b", {"b": [row("y", "b", 2)]})
    assert side.reports[1:] == ["a: the ban of the name x is forgotten: Limits.bans_max is reached"]
    assert side.read("b", {"b": [row("x", "b", 1)]}) == BanChanges()


@pytest.mark.parametrize("more", [{"d": bytes(32)}, {"s": [], "v": [], "m": []}, {"x": 1}])
def test_bans_come_alone(more: dict[str, Any]) -> None:
    side = Side(A)
    side.connect(B)
    with pytest.raises(MembershipError):
        side.read("b", {"b": [row("x", "b")], **more})
    assert len(side.bans) == 0
