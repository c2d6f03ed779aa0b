"""Rules of `ConnectionManager`, one by one. The numbers are rows of the fault list."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rabble._core.ids import NodeId
from rabble.cluster.decide.actions import (
    Close,
    ConnectionStatus,
    Dial,
    Down,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.limits import Limits

A, B, C = NodeId("a", "a:1"), NodeId("b", "b:1"), NodeId("c", "c:1")
B_MOVED = NodeId("b", "elsewhere:1")


class Latest(random.Random):
    """Every draw is the latest that may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


def manager(
    own: NodeId = A, *, rng: random.Random | None = None, **limits: int
) -> ConnectionManager:
    return ConnectionManager(own, 10, rng or Latest(), Limits(**limits))


def dial(of: ConnectionManager, now: float = 0.0) -> Dial:
    (action,) = of.tick(now)
    assert isinstance(action, Dial)
    return action


def connect(of: ConnectionManager, node: NodeId, now: float = 0.0, incarnation: int = 20) -> int:
    """Up by a connection that the other node began."""
    connection_id = of.accepting()
    assert of.authorize(node, incarnation, now) is None
    actions = of.established(connection_id, node, incarnation, False, now)
    assert actions[-1] == Up(connection_id, node, incarnation)
    return connection_id


def code_of(refusal: Refusal | None) -> RefusalCode | None:
    return None if refusal is None else refusal.code


# Whom to dial, and when.


def test_the_smaller_name_dials_at_once_and_the_other_waits() -> None:
    smaller, larger = manager(A), manager(B)
    smaller.add_peer(B, 0.0)
    larger.add_peer(A, 0.0)
    assert smaller.next_tick(0.0) == 0.0
    assert smaller.tick(0.0) == [Dial(1, "b:1", B, join=False)]
    assert larger.tick(0.0) == []
    assert larger.next_tick(0.0) == 1.0
    assert larger.tick(1.0) == [Dial(1, "a:1", A, join=False)]


def test_the_hold_back_has_jitter() -> None:
    due = set()
    for seed in range(50):
        larger = manager(B, rng=random.Random(seed))
        larger.add_peer(A, 0.0)
        due.add(larger.next_tick(0.0))
    assert 0.5 <= min(due) < 0.6 and 0.9 < max(due) <= 1.0


def test_who_is_told_to_join_dials_at_once() -> None:
    larger = manager(B)
    larger.add_peer(A, 0.0, explicit=True)
    assert dial(larger) == Dial(1, "a:1", A, join=True)


def test_nothing_to_dial_is_no_reason_to_wake_up() -> None:
    of = manager()
    assert of.next_tick(0.0) is None and of.tick(0.0) == []
    assert of.add_peer(A, 0.0, explicit=True) == []  # the own name
    of.add_peer(B, 0.0)
    connect(of, B)
    assert of.next_tick(0.0) is None and of.tick(1000.0) == []


def test_one_dial_of_a_peer_at_a_time() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    dial(of)
    of.add_peer(B, 0.0)
    of.add_peer(B, 0.0)
    assert of.tick(1000.0) == []


def fail(of: ConnectionManager, now: float, **why: Any) -> float:
    """Dial, fail at once; how long it is to the next dial."""
    of.dial_failed(dial(of, now).connection_id, now, **why)
    due = of.next_tick(now)
    assert due is not None
    return due - now


def test_waits_double_up_to_half_a_minute() -> None:  # 68
    of = manager()
    of.add_peer(B, 0.0)
    now, waits = 0.0, []
    for _ in range(80):
        waits.append(fail(of, now))
        now += waits[-1]
    assert waits[:10] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0])
    assert waits[-1] == pytest.approx(30.0)


def test_the_jitter_is_full() -> None:  # 68
    waits = []
    for seed in range(200):
        of = manager(rng=random.Random(seed))
        of.add_peer(B, 0.0)
        now = 0.0
        for _ in range(5):
            now += fail(of, now)
        due = of.next_tick(now)
        assert due is not None
        waits.append(fail(of, due))
    assert min(waits) < 0.3 and 2.9 < max(waits) <= 3.2


def test_a_connection_that_lasted_makes_the_wait_start_anew() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    for _ in range(8):
        fail(of, of.next_tick(0.0) or 0.0)
    connection_id = connect(of, B, 100.0)
    assert of.lost(connection_id, 105.0) == [Down(connection_id, B, 20)]
    assert of.next_tick(105.0) == pytest.approx(105.0 + 25.6)
    connection_id = connect(of, B, 110.0)
    of.lost(connection_id, 120.0)
    assert of.next_tick(120.0) == 120.0


@pytest.mark.parametrize("code", [RefusalCode.VERSION, RefusalCode.CLUSTER, RefusalCode.AUTH])
@pytest.mark.parametrize("authenticated", [False, True])
def test_who_speaks_otherwise_is_left_alone_for_half_a_minute(
    code: RefusalCode, authenticated: bool
) -> None:  # 41
    for seed in range(20):
        of = manager(rng=random.Random(seed))
        of.add_peer(B, 0.0)
        assert 30.0 <= fail(of, 0.0, code=code, authenticated=authenticated) <= 45.0
        # Who is told to join does not wait for that.
        of.add_peer(B, 1.0, explicit=True)
        assert of.next_tick(1.0) == 1.0


def test_dials_are_bounded_and_who_waits_longest_comes_first() -> None:
    of = manager(dials_max=2)
    nodes = [NodeId(f"n{i}", f"n{i}:1") for i in range(5)]
    for i, node in enumerate(nodes):
        of.add_peer(node, i / 10)
    first, second = of.tick(1.0)
    assert isinstance(first, Dial) and isinstance(second, Dial)
    assert (first.node, second.node) == (nodes[0], nodes[1])
    assert of.tick(1.0) == [] and of.next_tick(1.0) is None
    of.dial_failed(first.connection_id, 1.0)
    assert of.next_tick(1.0) == 0.2
    # The one that failed comes again only after those that have not had their turn.
    assert dial(of, 9.0).node == nodes[2]


def test_leaving_cancels_a_dial() -> None:  # 68
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    (close,) = of.remove_peer("b", 1.0)
    assert isinstance(close, Close) and close.connection_id == connection_id
    assert of.dial_failed(connection_id, 2.0) == [] and of.next_tick(2.0) is None
    assert of.authenticating(connection_id, B, 20, 2.0)[0] == Close(
        connection_id, RefusalCode.DUPLICATE, "this dial was dropped"
    )
    assert of.remove_peer("nobody", 2.0) == []


def test_who_is_no_member_any_more_is_closed() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = connect(of, B)
    close, down = of.remove_peer("b", 1.0)
    assert isinstance(close, Close) and close.code is RefusalCode.REMOVED
    assert down == Down(connection_id, B, 20)
    assert of.lost(connection_id, 1.0) == [] and of.next_tick(1.0) is None


def test_another_address_is_dialled_at_once_instead_of_the_old_one() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    old = dial(of).connection_id
    (close,) = of.add_peer(B_MOVED, 1.0)
    assert isinstance(close, Close) and close.connection_id == old
    assert dial(of, 1.0).addr == "elsewhere:1"


def test_a_dial_that_the_peer_may_have_accepted_is_not_dropped_for_a_new_one() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authenticating(connection_id, B, 20, 0.0) == []
    assert of.add_peer(B, 1.0, explicit=True) == []
    of.dial_failed(connection_id, 1.0)
    assert dial(of, 1.1).join


def test_who_can_be_reached_again_is_a_sign_for_the_others() -> None:  # 71
    of = manager()
    of.add_peer(B, 0.0)
    of.add_peer(C, 0.0)
    now = 0.0
    for _ in range(12):
        now = of.next_tick(now) or now
        for action in of.tick(now):
            assert isinstance(action, Dial)
            of.dial_failed(action.connection_id, now)
    due = of.next_tick(now)
    assert due is not None and due > now + 20
    connect(of, B, now)
    assert of.next_tick(now) == now + 1.0


# What a refusal means.


def test_this_node_is_not_dialled_again() -> None:  # 44, 69
    of = manager(B)
    of.add_peer(A, 0.0, explicit=True)
    connection_id = dial(of).connection_id
    failed = of.dial_failed(connection_id, 0.0, code=RefusalCode.SELF, authenticated=True)
    assert failed == [SelfAddress("a:1", A)]
    of.add_peer(A, 1.0)
    assert of.tick(10_000.0) == []
    assert of.statuses(1.0)["a"] == ConnectionStatus("unwanted", 1, None, RefusalCode.SELF)
    of.add_peer(NodeId("a", "elsewhere:1"), 1.0)
    assert of.next_tick(1.0) is not None


def test_a_seed_that_is_this_node_is_forgotten() -> None:  # 44, 69
    of = manager()
    of.add_seed("localhost:1", 0.0)
    connection_id = dial(of).connection_id
    assert of.authenticating(connection_id, A, 10, 0.0) == []  # only the proof shows whether it is
    failed = of.dial_failed(connection_id, 0.0, code=RefusalCode.SELF, authenticated=True)
    assert failed == [SelfAddress("localhost:1", None)]
    assert of.seed_statuses(0.0) == {} and of.tick(10_000.0) == []
    of.add_seed("localhost:1", 1.0)
    assert dial(of, 1.0).join


@pytest.mark.parametrize(
    "code", [RefusalCode.SELF, RefusalCode.REMOVED, RefusalCode.STALE_INCARNATION]
)
def test_who_has_not_proven_itself_only_makes_the_dialler_wait(code: RefusalCode) -> None:
    of = manager()
    of.add_peer(B, 0.0)
    assert of.dial_failed(dial(of).connection_id, 0.0, code=code, incarnation=99) == []
    assert of.next_tick(0.0) == pytest.approx(0.1)


def test_a_removed_node_stops_dialling_until_it_is_told_to_join() -> None:  # 62
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    failed = of.dial_failed(connection_id, 0.0, code=RefusalCode.REMOVED, authenticated=True)
    assert failed == [Removed("b:1", B)]
    of.add_peer(B, 1.0)
    of.add_peer(B_MOVED, 1.0)
    assert of.tick(10_000.0) == []
    assert of.statuses(1.0)["b"].refusal is RefusalCode.REMOVED
    of.add_peer(B, 2.0, explicit=True)
    assert dial(of, 2.0) == Dial(2, "b:1", B, join=True)


def test_who_was_told_to_join_one_says_so_to_all() -> None:
    """They may know of its removal, and not yet of the join that came after it."""
    of = manager(A)
    of.add_peer(B, 0.0, explicit=True)
    assert dial(of) == Dial(1, "b:1", B, join=True)
    of.add_peer(NodeId("c", "c:1"), 0.0)
    assert dial(of) == Dial(2, "c:1", NodeId("c", "c:1"), join=True)
    of.joins = False  # as it is after a removal
    of.dial_failed(2, 0.0)
    assert dial(of, 1_000.0) == Dial(3, "c:1", NodeId("c", "c:1"), join=False)


def test_a_removal_does_not_undo_a_later_join() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    of.authenticating(connection_id, B, 20, 0.0)
    of.add_peer(B, 0.5, explicit=True)
    assert of.dial_failed(connection_id, 1.0, code=RefusalCode.REMOVED, authenticated=True) == []
    assert dial(of, 2.0).join


def test_a_bye_with_removed_may_be_about_who_says_it() -> None:
    """A removed node closes its connections: nobody who hears of that is removed by it."""
    removed, of = manager(B), manager(A)
    removed.add_peer(A, 0.0)
    connect(removed, A)
    close, _ = removed.remove_peer("a", 1.0)
    assert isinstance(close, Close) and close.code is RefusalCode.REMOVED
    of.add_peer(B, 0.0)
    connection_id = connect(of, B)
    assert of.lost(connection_id, 20.0, close.code) == [Down(connection_id, B, 20)]
    assert dial(of, 20.0).node == B


def test_a_stale_incarnation_is_raised_and_the_dial_repeated() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    code = RefusalCode.STALE_INCARNATION
    connection_id = dial(of).connection_id
    failed = of.dial_failed(connection_id, 0.0, code=code, authenticated=True, incarnation=15)
    assert failed == [RaiseIncarnation(16)]
    of.incarnation = 17
    # What is known by now is no reason; nor is what cannot be exceeded.
    for known in (16, 2**64 - 1):
        connection_id = dial(of, of.next_tick(0.0) or 0.0).connection_id
        failed = of.dial_failed(
            connection_id, 0.0, code=code, authenticated=True, incarnation=known
        )
        assert failed == []


# Who is accepted: the table of the design, section 5.


def test_nobody_is_known_at_first() -> None:
    assert manager().authorize(B, 0, 0.0) is None


@pytest.mark.parametrize(
    ("newcomer", "incarnation", "silent_s", "code"),
    [
        (B, 21, 0.0, None),
        (B, 20, 0.0, RefusalCode.DUPLICATE),
        (B, 20, None, RefusalCode.DUPLICATE),
        (B, 20, 1.0, RefusalCode.DUPLICATE),
        (B, 20, 1.1, None),
        (B, 19, 100.0, RefusalCode.STALE_INCARNATION),
        # 60: the bearer of a name keeps it as long as it lives.
        (B_MOVED, 21, 100.0, RefusalCode.NAME_CONFLICT),
        (B_MOVED, 20, 100.0, RefusalCode.NAME_CONFLICT),
        (B_MOVED, 19, 100.0, RefusalCode.NAME_CONFLICT),
    ],
)
def test_a_newcomer_while_the_known_one_is_up(
    newcomer: NodeId, incarnation: int, silent_s: float | None, code: RefusalCode | None
) -> None:
    of = manager()
    connect(of, B)
    assert code_of(of.authorize(newcomer, incarnation, 1.0, silent_s)) is code


@pytest.mark.parametrize(
    ("newcomer", "incarnation", "code"),
    [
        (B, 21, None),
        (B, 20, None),
        (B, 19, RefusalCode.STALE_INCARNATION),
        (B_MOVED, 21, None),  # 61
        (B_MOVED, 20, RefusalCode.NAME_CONFLICT),
        (B_MOVED, 19, RefusalCode.STALE_INCARNATION),
    ],
)
def test_a_newcomer_after_the_known_one_is_down(
    newcomer: NodeId, incarnation: int, code: RefusalCode | None
) -> None:
    of = manager()
    of.lost(connect(of, B), 1.0)
    refusal = of.authorize(newcomer, incarnation, 2.0)
    assert code_of(refusal) is code
    if refusal is not None and code is RefusalCode.STALE_INCARNATION:
        assert refusal.incarnation == 20


def test_this_node_does_not_talk_to_its_own_name() -> None:  # 44, 60
    of = manager()
    assert code_of(of.authorize(A, 10, 0.0)) is RefusalCode.SELF
    assert code_of(of.authorize(NodeId("a", "elsewhere:1"), 10, 0.0)) is RefusalCode.SELF
    assert code_of(of.authorize(A, 11, 0.0)) is RefusalCode.NAME_CONFLICT


def test_a_later_start_takes_the_place_of_the_old_one() -> None:
    of = manager()
    old = connect(of, B)
    new = of.accepting()
    assert of.authorize(B, 21, 1.0, 0.0) is None
    close, down, up = of.established(new, B, 21, False, 1.0)
    assert isinstance(close, Close) and close.connection_id == old
    assert close.code is RefusalCode.STALE_INCARNATION
    assert (down, up) == (Down(old, B, 20), Up(new, B, 21))
    assert of.connection_of("b") == new
    assert of.lost(old, 2.0) == []


def test_a_new_connection_takes_the_place_of_a_silent_one() -> None:  # 81
    of = manager()
    old = connect(of, B)
    new = of.accepting()
    assert of.authorize(B, 20, 5.0, 5.0) is None
    close, down, up = of.established(new, B, 20, False, 5.0)
    assert isinstance(close, Close) and close.code is RefusalCode.DUPLICATE
    assert (down, up) == (Down(old, B, 20), Up(new, B, 20))


def test_an_earlier_start_never_comes_up_behind_a_later_one() -> None:
    of = manager()
    of.lost(connect(of, B), 1.0)
    connection_id = of.accepting()
    (close,) = of.established(connection_id, B, 19, False, 2.0)
    assert isinstance(close, Close) and close.code is RefusalCode.STALE_INCARNATION
    # Nor as the responder of a dial.
    of.add_peer(B, 2.0)
    connection_id = dial(of, 2.0).connection_id
    (close,) = of.authenticating(connection_id, B, 19, 2.0)
    assert isinstance(close, Close) and close.code is RefusalCode.STALE_INCARNATION
    assert of.statuses(2.0)["b"].state == "waiting"


def test_a_dial_that_began_before_a_later_start_was_heard_of() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authenticating(connection_id, B, 20, 0.0) == []
    later = of.accepting()
    assert of.authorize(B, 21, 0.0) is None
    close, up = of.established(later, B, 21, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == connection_id
    assert up == Up(later, B, 21)
    (close,) = of.established(connection_id, B, 20, True, 0.0)
    assert isinstance(close, Close)


# Simultaneous connects (56).


def test_the_smaller_name_holds_on_to_its_dial_once_it_is_proving() -> None:
    of = manager(A)
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authorize(B, 20, 0.0) is None  # not yet: that dial may never get anywhere
    assert of.authenticating(connection_id, B, 20, 0.0) == []
    assert code_of(of.authorize(B, 20, 0.0)) is RefusalCode.DUPLICATE
    assert of.authorize(B, 21, 0.0) is None  # another start than the one that answers the dial
    assert of.established(connection_id, B, 20, True, 0.0) == [Up(connection_id, B, 20)]


def test_the_larger_name_gives_up_its_dial() -> None:
    of = manager(B)
    of.add_peer(A, 0.0, explicit=True)
    mine = dial(of).connection_id
    assert of.authenticating(mine, A, 20, 0.0) == []
    theirs = of.accepting()
    assert of.authorize(A, 20, 0.0) is None
    close, up = of.established(theirs, A, 20, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == mine
    assert up == Up(theirs, A, 20)
    (close,) = of.established(mine, A, 20, True, 0.0)
    assert isinstance(close, Close) and of.connection_of("a") == theirs


def test_a_dial_that_is_not_proving_gives_way() -> None:
    of = manager(A)
    of.add_peer(B, 0.0)
    mine = dial(of).connection_id
    theirs = of.accepting()
    close, up = of.established(theirs, B, 20, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == mine
    assert up == Up(theirs, B, 20)
    assert isinstance(of.authenticating(mine, B, 20, 0.0)[0], Close)


def test_a_dial_is_asked_about_before_it_is_established() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    with pytest.raises(ValueError, match="authenticating was not called"):
        of.established(connection_id, B, 20, True, 0.0)
    of.authenticating(connection_id, B, 20, 0.0)
    with pytest.raises(ValueError, match="authenticating was not called"):
        of.established(connection_id, B, 21, True, 0.0)


def test_who_answers_must_be_who_was_dialled() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    (close,) = of.authenticating(dial(of).connection_id, C, 20, 0.0)
    assert isinstance(close, Close) and close.code is RefusalCode.NAME_MISMATCH


# Seeds.


def test_a_seed_becomes_a_member_by_its_name() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    assert of.tick(0.0) == [Dial(1, "localhost:1", None, join=True)]
    assert of.authenticating(1, A, 20, 0.0) == []
    assert of.established(1, A, 20, True, 0.0) == [Up(1, A, 20)]
    assert of.seed_statuses(0.0) == {} and of.statuses(0.0)["a"].state == "up"
    of.lost(1, 1.0)
    assert dial(of, 100.0) == Dial(2, "a:1", A, join=True)


def test_a_seed_is_dialled_until_it_answers_or_is_taken_back() -> None:  # 68
    of = manager()
    of.add_seed("b:1", 0.0)
    assert fail(of, 0.0) == pytest.approx(0.1)
    assert of.seed_statuses(0.0) == {
        "b:1": ConnectionStatus("waiting", 1, pytest.approx(0.1), None)
    }
    of.add_seed("b:1", 0.05)
    connection_id = dial(of, 0.05).connection_id
    assert of.seed_statuses(0.0)["b:1"].state == "dialling"
    (close,) = of.remove_seed("b:1")
    assert isinstance(close, Close) and close.connection_id == connection_id
    assert of.dial_failed(connection_id, 1.0) == [] and of.tick(1000.0) == []
    assert of.remove_seed("b:1") == []
    of.add_seed("b:1", 1.0)
    assert of.remove_seed("b:1") == [] and of.tick(1000.0) == []


def test_a_seed_is_found_when_its_node_calls() -> None:
    of = manager()
    of.add_seed("b:1", 0.0)
    seed = dial(of).connection_id
    connection_id = of.accepting()
    close, up = of.established(connection_id, B, 20, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == seed
    assert up == Up(connection_id, B, 20) and of.seed_statuses(0.0) == {}
    of.lost(connection_id, 1.0)
    assert dial(of, 100.0).node == B
    # And one of who is connected already asks for nothing.
    connection_id = connect(of, B, 200.0)
    of.add_seed("b:1", 200.0)
    assert of.seed_statuses(200.0) == {}


def test_a_seed_under_another_address_of_a_peer_is_settled_by_its_proof() -> None:
    of = manager()
    of.add_seed("localhost:1", 0.0)
    connection_id = dial(of).connection_id
    connect(of, B, 0.0)
    # So soon after it came up it may be the other side of the same attempt.
    close, *_ = of.authenticating(connection_id, B, 20, 1.0)
    assert isinstance(close, Close) and close.code is RefusalCode.DUPLICATE
    connection_id = dial(of, 20.0).connection_id
    assert of.authenticating(connection_id, B, 20, 20.0) == []
    of.dial_failed(connection_id, 20.0, code=RefusalCode.DUPLICATE, authenticated=True)
    assert of.seed_statuses(20.0) == {} and of.tick(1000.0) == []


def test_a_seed_that_another_connection_overtook_asks_again() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    seed = dial(of).connection_id
    assert of.authenticating(seed, A, 20, 0.0) == []
    connection_id = of.accepting()
    assert of.authorize(A, 20, 0.0) is None
    close, up = of.established(connection_id, A, 20, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == seed
    assert of.seed_statuses(0.0)["localhost:1"].state == "waiting"


def test_a_seed_whose_node_is_dialling_is_its_name() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    seed = dial(of).connection_id
    assert of.authenticating(seed, A, 20, 0.0) == []
    of.dial_failed(seed, 0.0, code=RefusalCode.DUPLICATE, authenticated=True)
    assert of.seed_statuses(0.0) == {}
    # It has not heard of the join, so that stays to be said, if its dial comes to nothing.
    assert dial(of, 10.0) == Dial(2, "a:1", A, join=True)


def test_two_dials_to_one_peer_are_told_apart_when_it_says_its_name() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    of.add_seed("localhost:1", 0.0)
    first, second = (action.connection_id for action in of.tick(0.0) if isinstance(action, Dial))
    assert of.authenticating(first, B, 20, 0.0) == []
    (close,) = of.authenticating(second, B, 20, 0.0)
    assert isinstance(close, Close) and close.code is RefusalCode.DUPLICATE


# Bounds and what may be asked.


def test_names_that_nobody_wants_are_forgotten_the_oldest_first() -> None:  # 130
    of = manager(peers_remembered_max=2)
    nodes = [NodeId(f"n{i}", f"n{i}:1") for i in range(5)]
    of.add_peer(nodes[0], 0.0)
    for node in nodes[:4]:
        of.lost(connect(of, node), 0.0)
    assert set(of.statuses(0.0)) == {"n0", "n1", "n2", "n3"}
    of.lost(connect(of, nodes[1]), 0.0)
    of.add_peer(nodes[4], 0.0)
    assert set(of.statuses(0.0)) == {"n0", "n1", "n3", "n4"}


def test_the_status_of_a_peer() -> None:
    of = manager()
    assert of.statuses(0.0) == {} and of.connection_of("b") is None
    of.add_peer(B, 0.0)
    assert of.statuses(0.0) == {"b": ConnectionStatus("waiting", 0, 0.0, None)}
    connection_id = dial(of).connection_id
    assert of.statuses(0.0) == {"b": ConnectionStatus("dialling", 0, None, None)}
    of.dial_failed(connection_id, 0.0, code=RefusalCode.BUSY)
    of_b = of.statuses(0.05)["b"]
    assert of_b == ConnectionStatus("waiting", 1, pytest.approx(0.05), RefusalCode.BUSY)
    connect(of, B)
    assert of.statuses(0.0) == {"b": ConnectionStatus("up", 1, None, None)}
    of.remove_peer("b", 0.0)
    assert of.statuses(0.0)["b"].state == "unwanted"


def test_a_connection_is_lost_once() -> None:  # 79
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = connect(of, B)
    assert of.lost(connection_id, 20.0) == [Down(connection_id, B, 20)]
    assert of.lost(connection_id, 20.0) == []
    assert dial(of, 20.0).node == B


def test_who_is_connected_is_not_dialled_when_its_address_changes() -> None:
    of = manager()
    connection_id = connect(of, B)
    assert of.add_peer(B_MOVED, 1.0, explicit=True) == [] and of.tick(1.0) == []
    of.lost(connection_id, 20.0)
    assert dial(of, 20.0) == Dial(2, "elsewhere:1", B_MOVED, join=False)
