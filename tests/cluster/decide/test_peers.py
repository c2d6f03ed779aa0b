"""Members and seeds: how they stand, and which newcomer may take a member's name."""

from __future__ import annotations

import pytest

from rabble import NodeId
from rabble.cluster.decide.actions import ConnectionStatus
from rabble.cluster.decide.peers import DialTarget, Member, PendingDial
from rabble.cluster.decide.refusal import RefusalCode

B = NodeId("b", "h:1")


def member(*, up: bool, incarnation: int = 10) -> Member:
    return Member(B.addr, node=B, peer=B, incarnation=incarnation, connection_id=7 if up else None)


def test_a_seed_has_no_name_and_no_connection() -> None:
    seed = DialTarget("h:1", is_desired=True)
    assert seed.whom is None
    assert not seed.up


@pytest.mark.parametrize("up", [True, False])
def test_a_member_has_a_name_and_is_up_with_its_connection(up: bool) -> None:
    assert member(up=up).whom == B
    assert member(up=up).up is up


def test_the_status_is_up_then_dialling_then_waiting() -> None:
    target = member(up=True)
    target.due, target.attempts, target.refusal = 3.0, 2, RefusalCode.BUSY
    target.pending_dial = PendingDial(8, target, B.addr, join=False, begun_at=0.0)
    assert target.status(1.0) == ConnectionStatus("up", 2, 2.0, RefusalCode.BUSY)
    target.connection_id = None
    assert target.status(1.0).state == "dialling"
    target.pending_dial = None
    assert target.status(4.0) == ConnectionStatus("waiting", 2, 0.0, RefusalCode.BUSY)
    target.due = None
    assert target.status(4.0) == ConnectionStatus("unwanted", 2, None, RefusalCode.BUSY)


@pytest.mark.parametrize(
    ("up", "addr", "incarnation", "silent", "code"),
    [
        (True, "h:1", 10, False, RefusalCode.DUPLICATE),
        (True, "h:1", 10, True, None),
        (True, "h:1", 11, False, None),
        (True, "h:1", 9, False, RefusalCode.STALE_INCARNATION),
        (True, "h:2", 11, False, RefusalCode.NAME_CONFLICT),
        (False, "h:1", 10, False, None),
        (False, "h:1", 9, False, RefusalCode.STALE_INCARNATION),
        (False, "h:2", 10, False, RefusalCode.NAME_CONFLICT),
        (False, "h:2", 11, False, None),
    ],
)
def test_a_newcomer_of_a_known_name(
    up: bool, addr: str, incarnation: int, silent: bool, code: RefusalCode | None
) -> None:
    refusal = member(up=up).verdict(NodeId("b", addr), incarnation, silent)
    assert (None if refusal is None else refusal.code) is code


def test_the_peer_learns_which_later_start_of_it_is_known() -> None:
    refusal = member(up=False).verdict(B, 9, False)
    assert refusal is not None
    assert refusal.incarnation == 10


def test_a_name_that_was_never_connected_is_free() -> None:
    assert Member(B.addr, node=B).verdict(NodeId("b", "h:2"), 0, False) is None
