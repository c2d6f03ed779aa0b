"""Who may be connected, by what is known of its membership; when a node becomes a later start."""

from __future__ import annotations

import pytest

from rabble import NodeId
from rabble.cluster.decide.handshake import Peer
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.decide.standing import OwnStanding, refusal_by_standing

A, B = NodeId("a", "h:1"), NodeId("b", "h:2")


def known(addr: str | None) -> Membership:
    """What `a` knows of a start 7 of `b`."""
    membership = Membership(A, 1)
    ended = 1 if addr is None else 0
    membership.merge({"s": [["b", 7, 1, ended, addr]], "v": [], "m": []})
    return membership


@pytest.mark.parametrize(
    ("incarnation", "join", "code", "told"),
    [
        (6, False, RefusalCode.REMOVED, 0),
        (6, True, RefusalCode.STALE_INCARNATION, 7),
        (7, False, RefusalCode.REMOVED, 0),
        (7, True, RefusalCode.REMOVED, 0),
        (8, False, RefusalCode.REMOVED, 0),
        (8, True, None, 0),
    ],
)
def test_one_that_was_removed_comes_back_as_a_later_start_that_was_told_to_join(
    incarnation: int, join: bool, code: RefusalCode | None, told: int
) -> None:
    refusal = refusal_by_standing(known(None), Peer(B, incarnation, join, 1))
    assert (refusal and (refusal.code, refusal.incarnation)) == (code and (code, told))


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("incarnation", [6, 7, 8])
def test_a_member_or_a_stranger_is_not_refused(incarnation: int, join: bool) -> None:
    peer = Peer(B, incarnation, join, 1)
    assert refusal_by_standing(known("h:2"), peer) is None
    assert refusal_by_standing(Membership(A, 1), peer) is None


def test_a_later_start_is_gone_beyond_after_a_while_and_once() -> None:
    membership = Membership(A, 1)
    standing = OwnStanding(membership, 10.0)
    assert not standing.is_outbid(0.0) and standing.next_tick is None
    membership.merge({"s": [["a", 5, 1, 0, "h:9"]], "v": [], "m": []})
    assert not standing.is_outbid(1.0) and standing.next_tick == 11.0
    assert not standing.is_outbid(10.9)
    assert standing.is_outbid(11.0)
    membership.rejoin(6)
    assert not standing.is_outbid(11.0) and standing.next_tick is None


def test_a_node_that_finds_itself_removed_waits_until_it_is_told_to_join() -> None:
    membership = Membership(A, 1)
    standing = OwnStanding(membership, 10.0)
    membership.merge({"s": [["a", 5, 1, 0, "h:9"]], "v": [], "m": []})
    assert not standing.is_outbid(0.0)
    membership.merge({"s": [["a", 5, 1, 1, None]], "v": [], "m": []})
    assert not standing.is_outbid(99.0) and standing.next_tick is None
