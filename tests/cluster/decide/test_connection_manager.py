"""Rules of `ConnectionManager`, one by one."""

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
    Held,
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


def test_waits_double_up_to_half_a_minute() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    now, waits = 0.0, []
    for _ in range(80):
        waits.append(fail(of, now))
        now += waits[-1]
    assert waits[:10] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0])
    assert waits[-1] == pytest.approx(30.0)


def test_the_jitter_is_full() -> None:
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
) -> None:
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
        of.add_peer(node, i / 10, explicit=True)
    first, second = of.tick(1.0)
    assert isinstance(first, Dial) and isinstance(second, Dial)
    assert (first.node, second.node) == (nodes[0], nodes[1])
    assert of.tick(1.0) == [] and of.next_tick(1.0) is None
    of.dial_failed(first.connection_id, 1.0)
    assert of.next_tick(1.0) == 0.2
    # The one that failed comes again only after those that have not had their turn.
    assert dial(of, 9.0).node == nodes[2]


def forged(i: int) -> NodeId:
    return NodeId(f"x{i:04}", f"nowhere-{i}:1")


def test_members_that_nobody_ever_reached_are_dialled_at_a_bounded_rate() -> None:
    """Whoever told of them, and however often that changes."""
    of = manager()
    for i in range(1_021):
        of.add_peer(forged(i), 0.0)
    dials: list[tuple[float, str]] = []
    now = 0.0
    while now < 10.0:
        for action in of.tick(now):
            assert isinstance(action, Dial) and action.node is not None
            dials.append((now, action.node.name))
            of.dial_failed(action.connection_id, now)
        due = of.next_tick(now)
        assert due is not None and due > now - 1.0
        # They move and come anew, which makes each of them due at once.
        i = len(dials) % 1_021
        of.add_peer(NodeId(forged(i).name, f"moved-{len(dials)}:1"), now)
        assert of.remove_peer(forged(i - 1).name, now) == []
        of.add_peer(forged(i - 1), now)
        now = max(due, now + 0.001)
    assert 200 < len(dials) <= 2 * (32 + 10 * 10)
    assert sum(at < 1.0 for at, _ in dials) <= 2 * (32 + 10)


def test_an_honest_newcomer_among_a_thousand_that_are_made_up_is_dialled_at_once() -> None:
    of = manager()
    for i in range(1_021):
        of.add_peer(forged(i), 0.0)
    for action in of.tick(0.0):
        assert isinstance(action, Dial)
        of.dial_failed(action.connection_id, 0.0)
    honest = NodeId("honest", "here:1")
    of.add_peer(honest, 1.0)
    nodes = [action.node for action in of.tick(1.0) if isinstance(action, Dial)]
    assert honest in nodes[:2]
    # Who waits has its turn as well.
    assert any(node is not None and node.name < "x0100" for node in nodes)


def test_who_was_reached_before_waits_for_no_one() -> None:
    of = manager(dials_max=4)
    connection_id = connect(of, B)
    of.add_peer(B, 0.0)
    for i in range(50):
        of.add_peer(forged(i), 0.0)
    assert len(of.tick(5.0)) == 2
    of.lost(connection_id, 20.0)
    nodes = [action.node for action in of.tick(20.5) if isinstance(action, Dial)]
    assert B in nodes and len(of.tick(20.5)) == 0
    of.add_peer(C, 20.6, explicit=True)
    assert dial(of, 20.6).node == C


def test_dials_that_reach_somebody_do_not_count() -> None:
    of = manager(dials_max=4, unreached_dials_per_second_max=1)
    for i in range(20):
        of.add_peer(forged(i), 0.0)
    reached = set()
    while len(reached) < 20:
        actions = of.tick(0.0)
        assert actions, reached
        for action in actions:
            assert isinstance(action, Dial) and action.node is not None
            reached.add(action.node.name)
            if len(reached) % 2:
                assert of.authenticating(action.connection_id, action.node, 20, 0.0) is None
                of.established(action.connection_id, action.node, 20, True, 0.0)
            else:
                code = RefusalCode.STATE
                of.dial_failed(action.connection_id, 0.0, code=code, authenticated=True)


def test_a_member_that_moved_is_hearsay_again() -> None:
    of = manager(dials_max=2, unreached_dials_per_second_max=1)
    connection_id = connect(of, B)
    of.add_peer(B, 0.0)
    of.lost(connection_id, 20.0)
    moves = 0
    for i in range(50):
        of.add_peer(NodeId("b", f"moved-{i}:1"), 20.0 + i / 100)
        moves += sum(isinstance(action, Dial) for action in of.tick(20.0 + i / 100))
    assert moves <= 2


def test_there_are_no_more_connections_than_there_may_be_members() -> None:
    of = manager(membership_members_max=2)
    connect(of, B)
    connect(of, C)
    d = NodeId("d", "d:1")
    assert code_of(of.authorize(d, 20, 0.0)) is RefusalCode.LIMIT
    # Those that are there may come anew.
    assert of.authorize(C, 21, 0.0) is None
    # And so may a member, whoever else is there and has not said that he is one.
    of.add_peer(d, 0.0)
    assert of.authorize(d, 20, 0.0) is None
    of.remove_peer("d", 0.0)
    assert code_of(of.authorize(d, 20, 0.0)) is RefusalCode.LIMIT
    of.lost(of.connection_of("b") or 0, 1.0)
    assert of.authorize(d, 20, 1.0) is None


def test_a_peer_is_also_dialled_where_it_was() -> None:
    """Somebody may have told a wrong address, to both sides."""
    of = manager()
    connection_id = connect(of, B)
    of.add_peer(B, 0.0)
    of.lost(connection_id, 20.0)
    of.add_peer(B_MOVED, 20.0)
    addrs, now = [], 20.0
    for _ in range(4):
        now += 60.0
        action = dial(of, now)
        addrs.append(action.addr)
        assert action.node == B_MOVED
        of.dial_failed(action.connection_id, now)
    assert addrs == [B_MOVED.addr, B.addr] * 2
    action = dial(of, now + 60.0)
    assert of.authenticating(action.connection_id, B, 20, now + 60.0) is None
    of.established(action.connection_id, B, 20, True, now + 60.0)
    assert of.connection_of("b") == action.connection_id


def test_leaving_cancels_a_dial() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    (close,) = of.remove_peer("b", 1.0)
    assert isinstance(close, Close) and close.connection_id == connection_id
    assert of.dial_failed(connection_id, 2.0) == [] and of.next_tick(2.0) is None
    assert of.authenticating(connection_id, B, 20, 2.0) == Refusal(
        RefusalCode.DUPLICATE, "this dial was dropped"
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


def test_another_address_that_is_joined_is_dialled_at_once_instead_of_the_old_one() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    old = dial(of).connection_id
    (close,) = of.add_peer(B_MOVED, 1.0, explicit=True)
    assert isinstance(close, Close) and close.connection_id == old
    assert dial(of, 1.0).addr == "elsewhere:1"


def test_another_address_that_others_tell_is_for_the_next_dial_and_hurries_none() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    of.dial_failed(dial(of).connection_id, 0.0)
    under_way = dial(of, 10.0).connection_id
    assert of.add_peer(B_MOVED, 10.0) == []
    assert of.dials() == [under_way]
    of.dial_failed(under_way, 11.0)
    due = of.next_tick(11.0)
    of.add_peer(B, 11.0)
    of.add_peer(B_MOVED, 11.0)
    assert (of.next_tick(11.0), of.statuses(11.0)["b"].attempts) == (due, 2)
    assert due is not None and dial(of, due).addr == "elsewhere:1"


@pytest.mark.parametrize("own", [A, C], ids=["lesser", "greater"])
@pytest.mark.parametrize("answers", [True, False])
def test_an_address_that_changes_to_and_fro_neither_hurries_a_dial_nor_holds_it_back(
    own: NodeId, answers: bool
) -> None:
    def dials(moves: bool) -> list[Dial]:
        of = manager(own, rng=random.Random(1))
        connection_id = connect(of, B)
        of.add_peer(B, 0.0)
        of.lost(connection_id, 100.0)
        found: list[Dial] = []
        now = 100.0
        for number in range(20_000):
            now += 0.001
            if moves:
                of.add_peer((B, B_MOVED)[number % 2], now)
            for action in of.tick(now):
                assert isinstance(action, Dial)
                found.append(action)
                if not answers:
                    of.dial_failed(action.connection_id, now)
        return found

    still, moving = dials(False), dials(True)
    assert len(moving) == len(still) >= 1
    if not answers:
        assert {each.addr for each in moving} == {B.addr, B_MOVED.addr}


def test_a_member_that_was_found_to_be_this_node_is_dialled_at_another_address() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    of.dial_failed(dial(of).connection_id, 0.0, code=RefusalCode.SELF, authenticated=True)
    assert of.next_tick(0.0) is None
    of.add_peer(B_MOVED, 1.0)
    due = of.next_tick(1.0)
    assert due is not None and dial(of, due).addr == "elsewhere:1"


def test_a_dial_that_the_peer_may_have_accepted_is_not_dropped_for_a_new_one() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authenticating(connection_id, B, 20, 0.0) is None
    assert of.add_peer(B, 1.0, explicit=True) == []
    of.dial_failed(connection_id, 1.0)
    assert dial(of, 1.1).join


def test_who_can_be_reached_again_is_a_sign_for_the_others() -> None:
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


def test_this_node_is_not_dialled_again() -> None:
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


def test_a_seed_that_is_this_node_is_forgotten() -> None:
    of = manager()
    of.add_seed("localhost:1", 0.0)
    connection_id = dial(of).connection_id
    # Only the proof shows whether it is.
    assert of.authenticating(connection_id, A, 10, 0.0) is None
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


def test_a_removed_node_stops_dialling_until_it_is_told_to_join() -> None:
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
        (B_MOVED, 21, None),
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


def test_this_node_does_not_talk_to_its_own_name() -> None:
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


def test_a_new_connection_takes_the_place_of_a_silent_one() -> None:
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
    assert code_of(of.authenticating(connection_id, B, 19, 2.0)) is RefusalCode.STALE_INCARNATION
    assert of.statuses(2.0)["b"].state == "waiting"


def test_a_dial_that_began_before_a_later_start_was_heard_of() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authenticating(connection_id, B, 20, 0.0) is None
    later = of.accepting()
    assert of.authorize(B, 21, 0.0) is None
    close, up = of.established(later, B, 21, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == connection_id
    assert up == Up(later, B, 21)
    (close,) = of.established(connection_id, B, 20, True, 0.0)
    assert isinstance(close, Close)


# Simultaneous connects.


def test_the_smaller_name_holds_on_to_its_dial_once_it_is_proving() -> None:
    of = manager(A)
    of.add_peer(B, 0.0)
    connection_id = dial(of).connection_id
    assert of.authorize(B, 20, 0.0) is None  # not yet: that dial may never get anywhere
    assert of.authenticating(connection_id, B, 20, 0.0) is None
    assert code_of(of.authorize(B, 20, 0.0)) is RefusalCode.DUPLICATE
    assert of.authorize(B, 21, 0.0) is None  # another start than the one that answers the dial
    assert of.established(connection_id, B, 20, True, 0.0) == [Up(connection_id, B, 20)]


def test_the_larger_name_gives_up_its_dial() -> None:
    of = manager(B)
    of.add_peer(A, 0.0, explicit=True)
    mine = dial(of).connection_id
    assert of.authenticating(mine, A, 20, 0.0) is None
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
    assert code_of(of.authenticating(mine, B, 20, 0.0)) is RefusalCode.DUPLICATE


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
    refusal = of.authenticating(dial(of).connection_id, C, 20, 0.0)
    assert code_of(refusal) is RefusalCode.NAME_MISMATCH


# Seeds.


def test_a_seed_becomes_a_member_by_its_name() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    assert of.tick(0.0) == [Dial(1, "localhost:1", None, join=True)]
    assert of.authenticating(1, A, 20, 0.0) is None
    assert of.established(1, A, 20, True, 0.0) == [Up(1, A, 20)]
    assert of.seed_statuses(0.0) == {} and of.statuses(0.0)["a"].state == "up"
    of.lost(1, 1.0)
    assert dial(of, 100.0) == Dial(2, "a:1", A, join=True)


def test_the_dials_of_a_seed_have_what_it_stands_for_and_those_of_its_node_do_not() -> None:
    of = manager(B)
    resolved = (2, ("127.0.0.1", 1))
    of.add_seed("127.0.0.1:1", 0.0, resolved)
    first = dial(of)
    assert first.resolved == resolved
    of.dial_failed(first.connection_id, 0.0)
    again = dial(of, 100.0)
    assert again.resolved == resolved
    # The node has an address of its own, which may be a host's name.
    assert of.authenticating(again.connection_id, A, 20, 100.0) is None
    of.established(again.connection_id, A, 20, True, 100.0)
    of.lost(again.connection_id, 200.0)
    assert dial(of, 300.0) == Dial(3, "a:1", A, join=True)


def test_a_seed_is_dialled_until_it_answers_or_is_taken_back() -> None:
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
    assert code_of(of.authenticating(connection_id, B, 20, 1.0)) is RefusalCode.DUPLICATE
    connection_id = dial(of, 20.0).connection_id
    assert of.authenticating(connection_id, B, 20, 20.0) is None
    of.dial_failed(connection_id, 20.0, code=RefusalCode.DUPLICATE, authenticated=True)
    assert of.seed_statuses(20.0) == {} and of.tick(1000.0) == []


def test_a_seed_that_another_connection_overtook_asks_again() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    seed = dial(of).connection_id
    assert of.authenticating(seed, A, 20, 0.0) is None
    connection_id = of.accepting()
    assert of.authorize(A, 20, 0.0) is None
    close, up = of.established(connection_id, A, 20, False, 0.0)
    assert isinstance(close, Close) and close.connection_id == seed
    assert of.seed_statuses(0.0)["localhost:1"].state == "waiting"


def test_a_seed_whose_node_is_dialling_is_its_name() -> None:
    of = manager(B)
    of.add_seed("localhost:1", 0.0)
    seed = dial(of).connection_id
    assert of.authenticating(seed, A, 20, 0.0) is None
    of.dial_failed(seed, 0.0, code=RefusalCode.DUPLICATE, authenticated=True)
    assert of.seed_statuses(0.0) == {}
    # It has not heard of the join, so that stays to be said, if its dial comes to nothing.
    assert dial(of, 10.0) == Dial(2, "a:1", A, join=True)


def test_two_dials_to_one_peer_are_told_apart_when_it_says_its_name() -> None:
    of = manager()
    of.add_peer(B, 0.0)
    of.add_seed("localhost:1", 0.0)
    first, second = (action.connection_id for action in of.tick(0.0) if isinstance(action, Dial))
    assert of.authenticating(first, B, 20, 0.0) is None
    assert code_of(of.authenticating(second, B, 20, 0.0)) is RefusalCode.DUPLICATE


# Bounds and what may be asked.


def test_names_that_nobody_wants_are_forgotten_the_oldest_first() -> None:
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


def test_a_connection_is_lost_once() -> None:
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


def test_dials_that_look_a_host_up_leave_the_places_of_numeric_ones() -> None:
    of = manager(dials_max=2)
    for n in range(5):
        of.add_peer(NodeId(f"name{n}", f"name{n}.example:1"), 0.0, explicit=True)
    named = {action.addr for action in of.tick(0.0) if isinstance(action, Dial)}
    assert len(named) == 2
    assert of.tick(0.0) == []
    # Nobody answers these; the time of others that wait for such a place is not told.
    assert of.next_tick(0.0) is None
    for n in range(5):
        of.add_peer(NodeId(f"number{n}", f"10.0.0.{n}:1"), 0.0, explicit=True)
    assert of.next_tick(0.0) == 0.0
    numeric = {action.addr for action in of.tick(0.0) if isinstance(action, Dial)}
    assert len(numeric) == 2 and all(addr.startswith("10.") for addr in numeric)
    assert of.next_tick(0.0) is None
    # A place that becomes free is for its own kind.
    for connection_id in of.dials()[:1]:
        of.dial_failed(connection_id, 0.0)
    (again,) = of.tick(0.0)
    assert isinstance(again, Dial) and again.addr.startswith("name")


def test_a_seed_whose_address_is_known_is_not_looked_up() -> None:
    of = manager(dials_max=1)
    of.add_peer(NodeId("name", "name.example:1"), 0.0)
    assert len(of.tick(0.0)) == 1
    of.add_seed("seed.example:1", 0.0, (2, ("10.0.0.1", 1)))
    (action,) = of.tick(0.0)
    assert isinstance(action, Dial) and action.addr == "seed.example:1"


def test_who_lost_a_tie_has_not_failed_and_waits_for_the_other_connection() -> None:
    of = manager(B, redial_first_ms=100, dial_hold_back_ms=500)
    of.add_peer(A, 0.0, explicit=True)
    now = 0.0
    for _ in range(5):
        connection_id = dial(of, now).connection_id
        assert of.authenticating(connection_id, A, 20, now) is None
        of.dial_failed(connection_id, now, code=RefusalCode.DUPLICATE, authenticated=True)
        status = of.statuses(now)["a"]
        assert (status.attempts, status.next_dial_s) == (0, 1.0)
        now += 1.0
    # It is here, and nothing is dialled any more.
    connect(of, A, now)
    assert of.next_tick(now) is None


def test_a_duplicate_that_nobody_has_proven_is_a_failure() -> None:
    of = manager(B)
    of.add_peer(A, 0.0, explicit=True)
    of.dial_failed(dial(of).connection_id, 0.0, code=RefusalCode.DUPLICATE)
    assert of.statuses(0.0)["a"].attempts == 1


def test_a_seed_that_is_no_more_is_not_dialled() -> None:
    of = manager()
    of.add_seed("b:1", 0.0)
    of.remove_seed("b:1")
    assert (of.tick(10.0), of.next_tick(10.0)) == ([], None)


def test_the_greater_name_holds_back_as_long_as_connections_come_up() -> None:
    of = manager(C, dial_hold_back_ms=500)
    of.add_peer(A, 0.0)
    connect(of, B, 0.7)
    assert of.next_tick(0.7) == 1.0
    assert of.tick(1.0) == []
    assert of.next_tick(1.0) == pytest.approx(1.7)
    assert of.statuses(1.0)["a"].next_dial_s == pytest.approx(0.7)
    assert dial(of, 1.7).node == A


def test_connections_that_come_up_all_the_time_hold_no_dial_back_for_ever() -> None:
    of = manager(NodeId("z", "z:1"), dial_hold_back_ms=500)
    of.add_peer(A, 0.0)
    now, incarnation, dials = 0.0, 20, []
    while not dials:
        # One member, again and again.
        connect(of, B, now, incarnation)
        now, incarnation = now + 0.1, incarnation + 1
        dials = of.tick(now)
    assert dials[0].node == A and 9.9 < now < 10.2
    # So does one that failed.
    of.dial_failed(dials[0].connection_id, now)
    due = of.next_tick(now)
    assert due is not None and due < now + 2.0


def test_members_that_are_made_up_hold_no_dial_back() -> None:
    of = manager(NodeId("z", "z:1"), dial_hold_back_ms=500)
    for number in range(1_000):
        of.add_peer(NodeId(f"ghost-{number}", "nowhere:1"), 0.0)
    of.add_peer(A, 0.0)
    assert of.statuses(0.0)["a"].next_dial_s == 1.0
    dials: list[Any] = []
    for number in range(1, 12):
        # Some of them move, and all that are dialled fail.
        of.add_peer(NodeId(f"ghost-{number}", "elsewhere:1"), number / 10)
        for action in of.tick(number / 10):
            dials.append(action.node)
            of.dial_failed(action.connection_id, number / 10)
    assert A in dials


def test_connections_that_come_up_hold_back_neither_the_lesser_name_nor_a_join() -> None:
    lesser, greater = manager(A), manager(C)
    lesser.add_peer(B, 0.0)
    connect(lesser, C)
    assert dial(lesser).node == B
    connect(greater, B)
    greater.add_peer(A, 0.0, explicit=True)
    of_join = dial(greater)
    assert of_join.node == A
    greater.dial_failed(of_join.connection_id, 0.0)
    connect(greater, B, 0.2, incarnation=21)
    due = greater.next_tick(0.2)
    assert due is not None
    assert dial(greater, due).node == A


def fall_silent(of: ConnectionManager, now: float, *, after_s: float = 8.0) -> float | None:
    """Up, and silent after a while, with a hole; when it is dialled next."""
    connection_id = connect(of, B, now)
    of.lost(connection_id, now + after_s, RefusalCode.TIMEOUT, holed=True)
    return of.next_tick(now + after_s)


def test_a_peer_of_which_only_small_packets_come_is_held_down_ever_longer() -> None:
    of = manager(redial_first_ms=100, redial_most_ms=30_000)
    of.add_peer(B, 0.0)
    now, waits = 0.0, []
    for _ in range(9):
        due = fall_silent(of, now)
        assert due is not None
        waits.append(due - (now + 8.0))
        # The peer's own dials wait, too.
        is_held = code_of(of.authorize(B, 20, due - 0.001)) is RefusalCode.BUSY
        assert is_held == (len(waits) > 1)
        now = due
    assert waits[0] <= 0.1
    assert waits[1:] == pytest.approx([30, 60, 120, 240, 480, 600, 600, 600])
    connection_id = connect(of, B, now)
    *_, held = of.lost(connection_id, now + 8.0, holed=True)
    assert held == Held(B, 600.0)
    assert "handshakes and heartbeats of b@b:1 pass, and what is larger does not" in held.text


def test_a_process_that_stands_still_now_and_then_is_not_held_down() -> None:
    of = manager(redial_first_ms=100, redial_most_ms=30_000)
    of.add_peer(B, 0.0)
    now = 0.0
    for _ in range(5):
        due = fall_silent(of, now, after_s=60.0)
        assert due is not None and due <= now + 60.101
        now = due


def test_a_hole_is_forgotten_when_a_connection_has_lasted_or_somebody_asks() -> None:
    of = manager(redial_settled_ms=10_000)
    of.add_peer(B, 0.0)
    fall_silent(of, 0.0)
    connection_id = connect(of, B, 10.0)
    of.lost(connection_id, 30.0)
    due = fall_silent(of, 40.0)
    assert due is not None and due < 50.0
    due = fall_silent(of, due)
    assert due is not None and due > 70.0
    of.add_peer(B, 60.0, explicit=True)
    assert of.next_tick(60.0) == 60.0
    assert of.authorize(B, 20, 60.0) is None


def test_another_peer_that_comes_up_does_not_hurry_one_that_is_held_down() -> None:
    of = manager(redial_first_ms=100, redial_most_ms=30_000)
    of.add_peer(B, 0.0)
    fall_silent(of, 0.0)
    held = fall_silent(of, 10.0)
    connect(of, C, 20.0)
    assert held is not None and of.next_tick(20.0) == held


def test_silence_without_a_hole_holds_nobody_down() -> None:
    of = manager(redial_first_ms=100, redial_most_ms=400)
    of.add_peer(B, 0.0)
    now = 0.0
    for _ in range(20):
        connection_id = connect(of, B, now)
        of.lost(connection_id, now + 1.6, RefusalCode.TIMEOUT)
        due = of.next_tick(now + 1.6)
        assert due is not None and due <= now + 2.001
        now = due
