"""Membership on the wire: greetings, deltas and digests at their time, and what comes back."""

from __future__ import annotations

import contextlib
import logging
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest.mock import Mock

import pytest

from rabble import Limits, NodeId
from rabble._core.codec import Codec
from rabble._core.errors import DecodeError
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.membership import Changes, Membership, MembershipError
from rabble.cluster.gossip import ELEMENTS_MAX, KIND_MEMBERSHIP, Gossip, code_of
from rabble.registry import MessageRegistry

A, B, C, D, E = (NodeId(name, "h:1") for name in "abcde")
CODEC = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
LIMITS = Limits(digest_ms=1_000_000, gossip_gather_ms=100, digest_settled_ms=1_000)


class Least:
    """Each wait is as short as it may be."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


class Side:
    """A node's membership and gossip, and peers that keep what they are sent."""

    def __init__(self, own: NodeId, limits: Limits = LIMITS) -> None:
        self.reports: list[tuple[int, str]] = []
        runtime = Mock()
        runtime.report = lambda level, words: self.reports.append((level, words()))
        self.membership = Membership(own, 10, limits)
        self.gossip = Gossip(own, self.membership, runtime, limits, 0.0, Least())
        self.gossip.tick(0.0, [])
        self.peers: dict[str, PeerConnection] = {}
        self.now = 0.0

    def connect(self, node: NodeId) -> PeerConnection:
        peer = PeerConnection(len(self.peers) + 1, Mock(), node, 10)
        self.peers[node.name] = peer
        self.gossip.greet(peer, self.now)
        return peer

    def sent(self, name: str) -> list[Any]:
        """What a peer was sent since the last call, decoded."""
        connection: Any = self.peers[name].connection
        frames = [call.args for call in connection.method_calls]
        connection.reset_mock()
        assert all(kind == KIND_MEMBERSHIP for kind, _ in frames)
        return [CODEC.decode_message(body) for _, body in frames]

    def read(self, name: str, message: object) -> Changes | None:
        return self.gossip.read(self.peers[name], CODEC.encode_message(message), self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.gossip.tick(self.now, self.peers.values())


def start_of(node: NodeId, incarnation: int = 10) -> dict[str, Any]:
    return {"s": [[node.name, incarnation, 1, 0, node.addr]], "v": [], "m": []}


def greeting_of(node: NodeId, known: bool) -> dict[str, Any]:
    return {**start_of(node), "k": known}


# Greetings.


def test_a_connection_begins_with_what_the_node_says_of_itself() -> None:
    side = Side(A)
    side.membership.merge(start_of(C))
    side.connect(B)
    side.connect(C)
    assert side.sent("b") == [greeting_of(A, known=False)]
    assert side.sent("c") == [greeting_of(A, known=True)]


def test_its_joins_go_with_it_or_they_would_count_as_dropped() -> None:
    side, other = Side(A), Membership(D, 10)
    side.membership.add(B)
    side.membership.add(C)
    other.merge(side.membership.state())
    side.connect(D)
    [greeting] = side.sent("d")
    assert greeting.pop("k") is False
    assert not other.merge(greeting).state_changed
    assert set(other.members()) == {"a", "b", "c", "d"}


def test_a_later_start_of_a_peer_is_not_known() -> None:
    side = Side(A)
    side.membership.merge(start_of(B, incarnation=9))
    side.connect(B)
    assert side.sent("b") == [greeting_of(A, known=False)]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_who_knew_nothing_of_each_other_exchange_all_they_know(known: bool, knows: bool) -> None:
    side = Side(A)
    side.membership.merge(start_of(C))
    if known:
        side.membership.merge(start_of(B))
    side.connect(B)
    side.sent("b")
    changes = side.read("b", greeting_of(B, knows))
    assert changes is not None and changes.added == (() if known else (B,))
    whole = {**side.membership.state(), "k": True}
    assert side.sent("b") == ([] if known or knows else [whole])


# What changes.


def test_a_change_of_its_own_is_told_at_once_and_the_next_ones_together() -> None:
    side = Side(A)
    side.connect(B)
    side.sent("b")
    for node in (C, D, E):
        side.membership.add(node)
        side.gossip.changed(side.now)
        side.tick(0.01)
    first, *more = side.sent("b")
    assert [row[3] for row in first["m"]] == ["c"] and more == []
    side.tick(0.1)
    [later] = side.sent("b")
    # A replica's joins are always told together.
    assert [row[3] for row in later["m"]] == ["c", "d", "e"]
    assert later["s"] == []


def test_what_peers_told_is_gathered_and_goes_to_all_others() -> None:
    side = Side(A)
    for node in (B, C, D):
        side.connect(node)
        side.read(node.name, greeting_of(node, True))
    side.tick(0.2)
    for node in (B, C, D):
        side.sent(node.name)
    side.read("b", start_of(E))
    assert side.gossip.next_tick == pytest.approx(side.now + 0.05)
    side.tick(0.04)
    assert side.sent("c") == []
    side.tick(0.02)
    assert (side.sent("b"), side.sent("c"), side.sent("d")) == ([], [start_of(E)], [start_of(E)])
    side.tick(0.2)
    assert side.sent("c") == []


def test_nobody_is_told_what_enough_others_told_meanwhile() -> None:
    side = Side(A)
    for node in (B, C, D):
        side.connect(node)
        side.read(node.name, greeting_of(node, True))
    side.tick(0.2)
    side.read("b", start_of(E))
    side.read("c", start_of(E))
    side.sent("d")
    side.tick(0.2)
    assert side.sent("d") == []


def test_what_was_told_to_this_node_alone_is_told_to_the_others() -> None:
    side = Side(A)
    for node in (B, C, D):
        side.connect(node)
        side.read(node.name, greeting_of(node, True))
    side.tick(0.2)
    side.read("b", {**start_of(E), "k": True})
    side.read("c", {**start_of(E), "d": side.membership.digest()})
    for name in "bcd":
        side.sent(name)
    side.tick(0.2)
    assert [side.sent(name) for name in "bcd"] == [[], [], [start_of(E)]]


def test_what_changed_before_a_connection_came_up_is_left_to_the_digest() -> None:
    side = Side(A)
    side.connect(B)
    side.read("b", start_of(E))
    side.connect(C)
    side.sent("c")
    side.tick(0.2)
    assert side.sent("c") == []
    side.tick(2.0)
    assert side.sent("c") == [{"d": side.membership.digest()}]


def test_a_peer_whose_connection_ends_is_told_why_first() -> None:
    side = Side(A)
    for node in (B, C):
        side.connect(node)
        side.read(node.name, greeting_of(node, True))
    side.tick(0.2)
    side.sent("b")
    side.read("c", {"s": [["b", 10, 1, 1, None]], "v": [], "m": []})
    side.gossip.tell_before_parting(side.peers["b"], side.now)
    assert side.sent("b") == [{"s": [["b", 10, 1, 1, None]], "v": [], "m": []}]
    side.gossip.forget(side.peers.pop("b").connection_id)
    side.tick(0.2)


# Digests.


def test_a_digest_comes_when_nothing_has_changed_for_a_while_and_periodically() -> None:
    side = Side(A, Limits(digest_ms=10_000, digest_settled_ms=1_000))
    side.connect(B)
    side.sent("b")
    digests = 0
    for _ in range(8):
        side.tick(0.9)
        side.membership.add(C)
        side.gossip.changed(side.now)
        digests += sum("d" in each for each in side.sent("b"))
    assert digests == 0
    side.tick(1.0)
    assert {"d": side.membership.digest()} in side.sent("b")
    side.tick(9.9)
    assert side.sent("b") == []
    side.tick(0.2)
    assert side.sent("b") == [{"d": side.membership.digest()}]


def test_two_that_differ_agree_whoever_knows_more() -> None:
    one, other = Side(A), Side(B)
    one.connect(B)
    other.connect(A)
    one.membership.add(C)
    other.membership.add(D)
    one.sent("b"), other.sent("a")
    other.read("a", {"d": one.membership.digest()})
    [answer] = other.sent("a")
    assert answer == {**other.membership.state(), "d": other.membership.digest()}
    one.read("b", answer)
    [rest] = one.sent("b")
    assert rest == {**one.membership.state(), "k": True}
    other.read("a", rest)
    assert one.membership.digest() == other.membership.digest()
    assert other.sent("a") == []
    assert other.read("a", {"d": one.membership.digest()}) is None
    assert other.sent("a") == []


def test_of_two_that_agree_one_sends_the_digest() -> None:
    side = Side(A, Limits(digest_ms=10_000, digest_settled_ms=1_000))
    side.connect(B)
    side.connect(C)
    side.tick(2.0)
    assert {"d": side.membership.digest()} in side.sent("b")
    side.sent("c")
    # Another new connection: those that have compared this very state need not do so again.
    side.connect(D)
    side.tick(2.0)
    assert side.sent("b") == side.sent("c") == []
    assert {"d": side.membership.digest()} in side.sent("d")
    side.tick(5.5)
    side.read("b", {"d": side.membership.digest()})
    side.tick(4.6)
    # At its time that one was first, lately; and the other was not.
    assert side.sent("b") == []
    assert side.sent("c") == [{"d": side.membership.digest()}]
    side.tick(10.1)
    assert side.sent("b") == side.sent("c") == [{"d": side.membership.digest()}]


def test_a_digest_that_differs_is_not_compared() -> None:
    side = Side(A, Limits(digest_ms=10_000, digest_settled_ms=1_000))
    side.connect(B)
    side.tick(2.0)
    side.sent("b")
    side.tick(9.0)
    side.read("b", {"d": bytes(32)})
    side.sent("b")
    side.tick(1.1)
    assert side.sent("b") == [{"d": side.membership.digest()}]


def test_who_asks_by_digests_again_and_again_gets_the_whole_state_now_and_then() -> None:
    side = Side(A, Limits(digest_ms=10_000, digest_settled_ms=1_000))
    side.connect(B)
    side.connect(C)
    empty = {"s": [], "v": [], "m": []}
    side.sent("b"), side.sent("c")
    whole = 0
    for number in range(400):
        side.now += 0.01
        side.read("b", ({"d": bytes(32)}, {**empty, "d": bytes(32)})[number % 2])
        whole += len(side.sent("b"))
    assert 3 <= whole <= 8
    # Others are answered as ever, and so is a digest that comes at its time.
    for name in "cb":
        side.now += 0.5
        side.read(name, {"d": bytes(32)})
        assert len(side.sent(name)) == 1
    assert len(side.gossip._whole_sent_at) == 2
    side.gossip.forget(side.peers["b"].connection_id)
    assert len(side.gossip._whole_sent_at) == 1


# What is no membership, and what is too long.

#: Values that travel, and that no cell of a state has.
ODD = [10**5_000, -(10**5_000), 2**64, Decimal("NaN"), Decimal("sNaN"), Decimal(1), 1.5, 2 + 1j]
ODD += [float("nan"), Fraction(1, 3), range(3), [1], {"a": 1}, b"x", True, "x" * 300, None]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
def test_whatever_stands_in_a_row_or_instead_of_one_is_refused_in_a_few_words(odd: Any) -> None:
    side = Side(A)
    side.connect(B)
    side.read("b", greeting_of(B, False))
    side.membership.add(C)
    known = CODEC.decode_message(side.membership.encoded())
    assert known["s"] and known["v"] and known["m"]
    before = side.membership.encoded()
    states: list[Any] = [odd, {**known, "d": odd}, {**known, "k": odd}]
    for key, rows in known.items():
        states += [{**known, key: odd}, {**known, key: [odd]}, {**known, key: [*rows, odd]}]
        for place in range(len(rows[0])):
            broken = list(rows[0])
            broken[place] = odd
            states += [{**known, key: [broken, *rows[1:]]}, {**known, key: [broken, *rows]}]
            states += [{"s": [], "v": [], "m": [], key: [broken]}]
    for state in states:
        try:
            side.read("b", state)
        except MembershipError as error:
            assert len(str(error)) < 400 and str(error).isascii()
    if odd is not None:
        # A start that is no longer in force has no address.
        assert side.membership.encoded() == before


def test_a_state_that_fits_is_sent_whatever_goes_with_it() -> None:
    limits = Limits(frame_bytes_max=4_128, fragment_bytes_max=16)
    side, big = Side(A, limits), 1 << 60
    side.connect(B)
    start = ["a", 10, big, big, A.addr]
    side.membership.merge({"s": [start], "v": [], "m": []})
    for size in (40, *range(40, 0, -1)):
        with contextlib.suppress(MembershipError):
            for number in range(100):
                row = [f"x{size:02}-{number:02}", big, big, big, "h" * size + ":1"]
                side.membership.merge({"s": [row], "v": [], "m": []})
    digest_bytes = 36
    assert 4_128 - 2 - digest_bytes < len(side.membership.encoded()) + digest_bytes <= 4_128 - 2
    side.sent("b")
    side.read("b", {"d": bytes(32)})
    [answer] = side.sent("b")
    assert answer["d"] == side.membership.digest()
    assert side.reports == []
    side.gossip.send_state(side.peers["b"], side.now)
    assert len(side.sent("b")) == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", DecodeError),
        (b"\xc1", DecodeError),
        *(
            (CODEC.encode_message(message), MembershipError)
            for message in (
                {},
                [],
                {"s": 1},
                {"d": 1},
                {"d": b"", "k": 1},
                {"k": True},
                {**start_of(B), "k": 1},
                {**start_of(B), "d": ""},
                {**start_of(B), "x": 1},
                {"s": [["b", 10, 1, 0]], "v": [], "m": []},
                {"s": [[]], "v": [], "m": []},
            )
        ),
    ],
)
def test_what_is_no_membership_raises_and_changes_nothing(
    body: bytes, error: type[Exception]
) -> None:
    side = Side(A)
    side.connect(B)
    before = side.membership.encoded()
    with pytest.raises(error):
        side.gossip.read(side.peers["b"], body, 0.0)
    assert side.membership.encoded() == before


def test_a_state_longer_than_a_frame_is_reported_and_not_sent() -> None:
    """The membership does not let that happen; if it does, it is seen."""
    side = Side(A, Limits(frame_bytes_max=8_192, digest_ms=1_000, fragment_bytes_max=1_024))
    side.membership._bytes_max = 1 << 20
    side.connect(B)
    side.sent("b")
    for number in range(500):
        side.membership.add(NodeId(f"member-{number}", "h:1"))
    side.gossip.send_state(side.peers["b"], 0.0)
    assert side.sent("b") == []
    [(level, text)] = side.reports
    assert level == logging.ERROR
    assert "more than Limits.frame_bytes_max: b@h:1 is not told" in text


def test_what_exceeds_a_bound_here_is_no_defect_of_the_sender() -> None:
    side = Side(A, Limits(membership_members_max=1))
    side.connect(B)
    for body, code in ((Membership(B, 10).encoded(), "LIMIT"), (b"\xc1", "DECODE")):
        with pytest.raises((DecodeError, MembershipError)) as caught:
            side.gossip.read(side.peers["b"], body, 0.0)
        assert code_of(caught.value).name == code


def test_a_node_contradicts_what_is_said_of_it_without_gathering() -> None:
    """Whoever believes it ends the connection."""
    a = Side(A)
    a.connect(B)
    a.connect(C)
    a.tick(10.0)
    for name in "bc":
        a.sent(name)
    removed = {"s": [["a", a.membership.incarnation, 99, 1, None]], "v": [], "m": []}
    a.read("c", removed)
    assert a.gossip.next_tick == a.now
    a.tick(0.0)
    [told] = a.sent("b")
    [[name, _, counter, _, addr]] = told["s"]
    assert (name, counter, addr) == ("a", 100, A.addr)
