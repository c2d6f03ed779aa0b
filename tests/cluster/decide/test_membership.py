"""The set of members: its laws, what goes wrong, hostile states, and against a slow one."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rabble import Limits, MessageRegistry, NodeId
from rabble._core.codec import Codec
from rabble.cluster.decide.belief import BELIEVED_WITHOUT_CLOCK as FAR
from rabble.cluster.decide.membership import (
    Changes,
    Membership,
    MembershipError,
    MembershipLimit,
)
from rabble.cluster.decide.membership_state import bytes_of
from tests.reference.membership import Event, ReferenceMembership

CODEC = Codec(MessageRegistry())
NAMES = ["n0", "n1", "n2", "n3"]
#: So many concurrent joins as a test likes.
WIDE = Limits(membership_dots_per_member_max=100)


def node(name: str, port: int = 1) -> NodeId:
    return NodeId(name, f"h:{port}")


def sent(membership: Membership) -> Any:
    """A state as it comes out of a peer's decoder; and it is what is there, not what once was."""
    rows = (membership._starts, membership._versions, membership._joins)
    assert membership.known().rows == tuple(frozenset(part.values()) for part in rows)
    return CODEC.decode_message(membership.encoded())


def settle(*nodes: Membership) -> None:
    """Let all tell all until nobody learns anything."""
    for _ in range(20):
        pairs = itertools.permutations(nodes, 2)
        news = [b.merge(sent(a)).state_changed for a, b in pairs]
        if not any(news):
            return
    raise AssertionError("they do not come to an end")


def mesh(count: int, limits: Limits | None = None) -> list[Membership]:
    """Nodes n0, n1, ... that know each other."""
    nodes = [Membership(node(f"n{i}"), 1, limits) for i in range(count)]
    settle(*nodes)
    return nodes


def names(membership: Membership) -> list[str]:
    return list(membership.members())


# What it is for.


def test_a_node_is_a_member_of_its_own_mesh() -> None:
    n0 = Membership(node("n0"), 5)
    assert n0.members() == {"n0": node("n0")}
    assert not n0.is_removed
    assert not n0.is_superseded
    assert n0.standing("n0", 5) == "member"
    assert n0.standing("n1", 5) == "unknown"
    assert n0.incarnation_of("n0") == 5


def test_joins_are_transitive() -> None:
    n0, n1, n2 = (Membership(node(f"n{i}"), i + 7) for i in range(3))
    assert n0.add(node("n1"))
    assert n0.incarnation_of("n1") == 0
    assert n2.merge(sent(n1)) == Changes((node("n1"),), (), True)
    assert n2.merge(sent(n0)) == Changes((node("n0"),), (), True)
    settle(n0, n1, n2)
    assert names(n0) == names(n1) == names(n2) == NAMES[:3]
    assert n0.digest() == n1.digest() == n2.digest()
    assert [n1.incarnation_of(name) for name in n1.members()] == [7, 8, 9]


def test_any_node_may_remove_any() -> None:
    n0, n1, n2 = mesh(3)
    assert n0.remove("n2")
    assert not n0.remove("n2")
    assert n1.merge(sent(n0)) == Changes((), (node("n2"),), True)
    assert n1.merge(sent(n0)) == Changes((), (), False)
    assert n2.merge(sent(n1)) == Changes((), (node("n2"),), True)
    assert n2.is_removed
    assert n1.standing("n2", 1) == "removed"
    assert n1.standing("n2", 2) == "unknown"
    assert "n2" not in n1 and len(n1) == 2


def test_a_node_may_leave_by_its_own_word() -> None:
    n0, n1 = mesh(2)
    assert n0.remove("n0")
    assert n0.is_removed
    n1.merge(sent(n0))
    assert names(n1) == ["n1"]


def test_a_join_of_a_member_changes_nothing_but_wins_against_a_removal() -> None:
    n0, n1, n2 = mesh(3)
    assert not n1.add(node("n2"))
    n0.remove("n2")
    settle(n0, n1, n2)
    assert names(n0) == NAMES[:3]
    assert not n2.is_removed


def test_a_removal_that_knows_of_the_join_wins() -> None:
    n0, n1, n2 = mesh(3)
    n1.add(node("n2"))
    n0.merge(sent(n1))
    n0.remove("n2")
    settle(n0, n1, n2)
    assert names(n1) == NAMES[:2]


def test_a_start_ends_the_earlier_ones_and_has_the_last_word_on_the_address() -> None:
    n0, n1 = mesh(2)
    again = Membership(node("n1", 9), 2)
    assert n0.merge(sent(again)) == Changes((node("n1", 9),), (node("n1"),), True)
    # The earlier start is not known to have ended where it comes from.
    assert n0.merge(sent(n1)) == Changes((), (), False)
    n1.merge(sent(n0))
    assert n1.is_superseded and not n1.is_removed
    settle(n0, n1, again)
    assert n1.members()["n1"] == node("n1", 9)
    n1.rejoin(3)
    settle(n0, n1, again)
    assert again.is_superseded and not n1.is_superseded
    assert n0.members()["n1"] == node("n1")


def test_a_node_contradicts_a_wrong_address_of_it() -> None:
    n0, n1, n2 = mesh(3)
    assert n0.add(node("n1", 5))
    assert n2.merge(sent(n0)) == Changes((node("n1", 5),), (node("n1"),), True)
    assert n1.merge(sent(n0)) == Changes((), (), True)
    settle(n0, n1, n2)
    assert n0.members()["n1"] == n2.members()["n1"] == node("n1")
    assert n0.state()["m"] == []
    # A join that came with the wrong address is no removal that failed: this one works.
    n2.remove("n1")
    settle(n0, n1, n2)
    assert n1.is_removed and names(n0) == ["n0", "n2"]


def test_of_two_joins_all_choose_the_same_address() -> None:
    n0, n1 = mesh(2)
    n0.add(node("n9", 5))
    n1.add(node("n9", 4))
    settle(n0, n1)
    assert n0.members()["n9"] == n1.members()["n9"] == node("n9", 4)


def test_a_restart_undoes_no_join() -> None:
    n0, n1, n2 = mesh(3)
    n0.add(node("n2"))  # the only dot of n2 now
    n0.add(node("n9"))
    n1.merge(sent(n0))
    n0 = Membership(node("n0"), 2)
    settle(n0, n1)
    assert names(n0) == ["n0", "n1", "n2", "n9"]
    n1.remove("n9")
    settle(n0, n1, n2)
    assert names(n2) == NAMES[:3]


def test_only_a_higher_incarnation_rejoins() -> None:
    n0, n1 = mesh(2)
    n0.remove("n1")
    n1.merge(sent(n0))
    with pytest.raises(MembershipError, match="has to rejoin"):
        n1.add(node("n1"))
    for wrong in (1, 0, 2**64):
        with pytest.raises(MembershipError, match="must be 2 to 18446744073709551615"):
            n1.rejoin(wrong)
    assert n1.is_removed
    n1.add(node("n9"))
    n1.rejoin(2)
    assert not n1.is_removed
    # A replica of its own, that counts from 1.
    n1.add(node("n8"))
    assert n1.state()["s"][1] == ["n1", 2, 1, 1, "h:1"]
    assert n1.state()["v"] == [["n1", 1, 1, 0], ["n1", 2, 1, 0]]
    n0.merge(sent(n1))
    assert n0.standing("n1", 2) == "member"


def test_the_own_name_belongs_to_this_node() -> None:
    n0 = Membership(node("n0"), 1)
    before = n0.digest()
    assert not n0.add(node("n0"))
    with pytest.raises(MembershipError, match="has the name of this node"):
        n0.add(node("n0", 2))
    assert n0.digest() == before


@pytest.mark.parametrize("incarnation", [0, -1, 2**64, 1.0, True, None])
def test_an_incarnation_is_a_positive_u64(incarnation: Any) -> None:
    with pytest.raises(MembershipError, match="an incarnation must be 1 to"):
        Membership(node("n0"), incarnation)


# Restarts, partitions, and removals that cross joins.


def test_leave_restart_join_makes_a_member_again_everywhere() -> None:
    n0, n1, n2 = mesh(3)
    n0.remove("n2")
    settle(n0, n1, n2)
    again = Membership(node("n2"), 2)
    again.add(node("n1"))
    settle(n0, n1, again)
    assert names(n0) == names(n1) == names(again) == NAMES[:3]
    # What is left of the first start changes nothing.
    for membership in (n0, n1, again):
        assert not membership.merge(sent(n2)).added
    assert names(n0) == NAMES[:3]


def test_removed_behind_a_partition_and_back_not_knowing() -> None:
    n0, n1, n2, n3 = mesh(4)
    n0.remove("n3")
    settle(n0, n1, n2)
    assert {m.standing("n3", 1) for m in (n0, n1, n2)} == {"removed"}
    before = n0.digest()
    assert not n0.merge(sent(n3)).state_changed
    assert n0.digest() == before
    assert not n3.is_removed
    n3.merge(sent(n0))
    assert n3.is_removed
    settle(n0, n1, n2, n3)
    assert n3.is_removed  # it never makes itself a member again
    assert names(n1) == NAMES[:3]
    n3.rejoin(2)
    n3.add(node("n0"))
    settle(n0, n1, n2, n3)
    assert all(names(m) == NAMES for m in (n0, n1, n2, n3))
    assert n1.standing("n3", 2) == "member"


def test_removal_of_a_node_whose_side_of_the_partition_did_not_hear_of_it() -> None:
    # 62, of two nodes
    n0, n1, n2, n3 = mesh(4)
    n0.remove("n3")
    n2.merge(sent(n3))
    settle(n0, n1)
    settle(n2, n3)
    settle(n0, n1, n2, n3)
    assert n3.is_removed and names(n2) == NAMES[:3]


def test_removal_concurrent_with_a_join() -> None:
    # 63, every order of delivery of both
    for order in itertools.permutations(range(4)):
        nodes = mesh(4)
        n1, n2 = nodes[1], nodes[2]
        n1.remove("n3")
        n2.add(node("n3"))
        states = [sent(n1), sent(n2)]
        for i in order:
            nodes[i].merge(states[0])
            nodes[i].merge(states[1])
            states.reverse()
        assert len({m.digest() for m in nodes}) == 1
        assert names(n1) == NAMES
        assert not nodes[3].is_removed


def test_ten_thousand_leaves_and_joins_of_one_name() -> None:
    n0, n1 = mesh(2)
    sizes = []
    for i in range(10_000):
        n0.remove("n1")
        n1 = Membership(node("n1"), 2 + i)
        n1.add(node("n0"))
        n0.merge(n1.state())
        n0.add(node("n0")) if i % 2 else n0.add(node("n1"))
        sizes.append(len(n0.encoded()))
        assert n0.standing("n1", 2 + i) == "member"
    # Two starts, and of n1's earlier ones the joins of n0.
    assert len(n0.state()["s"]) == 2
    assert len(n0.state()["v"]) <= 256 + 4
    assert max(sizes[5_000:]) - min(sizes[4_000:5_000]) < 2_000


def test_ten_thousand_leaves_and_joins_of_ever_new_names() -> None:
    n0, n1 = mesh(2)
    for i in range(10_000):
        guest = Membership(node(f"guest-{i}"), 1_000 + i)
        guest.add(node("n0"))
        n0.merge(guest.state())
        if i % 2:
            n0.add(guest.own)
        n0.remove(guest.own.name)
        assert n0.standing(guest.own.name, guest.incarnation) == "removed"
    assert names(n0) == ["n0", "n1"]
    assert len(n0.state()["s"]) == 256 + 2
    assert len(n0.state()["v"]) <= 256 + 4
    assert len(n0.state()["m"]) <= 4
    settle(n0, n1)
    assert n0.digest() == n1.digest()


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_states_lost_doubled_and_reordered(rng: random.Random) -> None:
    nodes = mesh(5)
    pool: list[Any] = []
    for _ in range(60):
        a = rng.choice(nodes)
        act = rng.random()
        if act < 0.2:
            a.add(node(f"n{rng.randrange(7)}")) if not a.is_removed else a.rejoin(a.incarnation + 1)
        elif act < 0.3:
            a.remove(f"n{rng.randrange(7)}")
        elif act < 0.6:
            pool.append(sent(a))
        elif pool:
            a.merge(rng.choice(pool))
    # The periodic digests: who has another answers with its state.
    for _ in range(6):
        for a, b in rng.sample(list(itertools.permutations(nodes, 2)), 20):
            if a.digest() != b.digest():
                a.merge(sent(b))
    assert len({m.digest() for m in nodes}) == 1


# 70: the laws. An onlooker takes in states that others made, so it never says anything itself.

moves = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "tell", "tell", "restart", "move"]),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    max_size=40,
)


def states_of(script: list[tuple[str, int, int]], limits: Limits) -> list[Any]:
    """The states that some nodes were ever in."""
    nodes = [Membership(node(f"n{i}"), 1, limits) for i in range(4)]
    states = [sent(m) for m in nodes]
    for what, i, j in script:
        a = nodes[i]
        if what == "add" and i != j:
            a.add(node(f"n{j}"))
        elif what == "remove":
            a.remove(f"n{j}")
        elif what == "tell":
            nodes[j % 4].merge(sent(a))
            a = nodes[j % 4]
        elif what == "restart":
            a = nodes[i] = Membership(a.own, a.incarnation + 1, limits)
        elif what == "move":
            a = nodes[i] = Membership(node(a.own.name, j + 1), a.incarnation + 1, limits)
        states.append(sent(a))
    return states


def joined(limits: Limits, *states: Any) -> Membership:
    onlooker = Membership(node("onlooker"), 1, limits)
    for state in states:
        onlooker.merge(state)
    return onlooker


@settings(max_examples=150)
@given(moves, st.data())
def test_merging_is_commutative_associative_and_idempotent(
    script: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    states = states_of(script, WIDE)
    picks = st.sampled_from(states)
    a, b, c = data.draw(picks), data.draw(picks), data.draw(picks)
    assert joined(WIDE, a, b).encoded() == joined(WIDE, b, a).encoded()
    left = joined(WIDE, sent(joined(WIDE, a, b)), c)
    right = joined(WIDE, a, sent(joined(WIDE, b, c)))
    assert left.encoded() == right.encoded()
    twice = joined(WIDE, a, b)
    assert not twice.merge(a).state_changed
    assert not twice.merge(b).state_changed
    assert not twice.merge(sent(twice)).state_changed


@settings(max_examples=100)
@given(moves, st.randoms(use_true_random=False))
def test_any_order_of_any_number_of_states_gives_the_same(
    script: list[tuple[str, int, int]], rng: random.Random
) -> None:
    states = states_of(script, WIDE)
    shuffled = states + rng.choices(states, k=5)
    rng.shuffle(shuffled)
    assert joined(WIDE, *states).encoded() == joined(WIDE, *shuffled).encoded()


@settings(max_examples=150)
@given(moves, st.data())
def test_the_laws_hold_while_entries_are_forgotten_and_all_have_seen_the_same_removals(
    script: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    """With forgetting: states that differ in names that were long gone join all the same.

    The leavers below the bound are forgotten; the nodes that stay are none of them.
    """
    limits = dataclasses.replace(WIDE, membership_retired_max=4)
    leaver = Membership(node("leaver"), 1, WIDE)
    for i in range(data.draw(st.integers(0, 9))):
        leaver.add(node(f"gone-{i}"))
        leaver.merge(sent(Membership(node(f"gone-{i}"), 1)))
        leaver.remove(f"gone-{i}")
    leaver.remove("leaver")
    gone = leaver.state()
    picks = st.sampled_from(states_of(moves_without_removals(script), WIDE))
    a, b, c = (data.draw(picks) for _ in range(3))
    part = {**gone, "s": gone["s"][: data.draw(st.integers(0, 9))]}
    left = joined(limits, sent(joined(limits, a, gone)), sent(joined(limits, b, part)), c)
    right = joined(limits, part, c, sent(joined(limits, b, a, gone)))
    assert left.encoded() == right.encoded()


def moves_without_removals(script: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [move for move in script if move[0] in ("tell", "restart", "move")]


# What is forgotten, and what follows.


def churn(membership: Membership, count: int, first: int = 0) -> None:
    """So many other nodes come and go."""
    for i in range(first, first + count):
        name = f"passing-{membership.own.name}-{i}"
        membership.merge(sent(Membership(node(name), 10**9 + i)))
        membership.remove(name)


def test_who_misses_more_departures_than_are_remembered_brings_a_name_back() -> None:
    """The documented limit of what is remembered: this is all that goes wrong beyond it."""
    limits = Limits(membership_retired_max=8)
    for missed, back in ((7, False), (8, True)):
        n0, n1, n2 = mesh(3, limits)
        n0.remove("n2")
        churn(n0, missed)
        assert n0.standing("n2", 1) == ("unknown" if back else "removed")
        # n1 and n2 heard of nothing.
        settle(n0, n1, n2)
        assert n2.is_removed is not back
        assert names(n0) == names(n1) == names(n2) == NAMES[: 2 + back]
        assert n0.digest() == n1.digest() == n2.digest()


def test_who_misses_more_dropped_joins_than_are_remembered_brings_one_back() -> None:
    limits = Limits(membership_retired_max=4)
    for missed, back in ((3, False), (4, True)):
        n0, n1, n2 = mesh(3, limits)
        n2.add(node("n9"))
        n0.merge(sent(n2))
        stale = sent(n2)
        n0.remove("n9")
        n0.remove("n2")
        for i in range(missed):
            guest = Membership(node("guest"), 1 + i)
            guest.add(node("n8"))
            n0.merge(sent(guest))
            n0.remove("n8")
        n0.merge(stale)
        assert ("n9" in n0) is back
        assert "n2" not in n0


def test_a_node_that_is_old_is_not_forgotten_sooner() -> None:
    """What counts is when a name left, not when it started: n2 is older than all that left."""
    limits = Limits(membership_retired_max=8)
    n0, n1, n2 = mesh(3, limits)
    churn(n0, 100)
    n0.remove("n2")
    settle(n0, n1, n2)
    assert n2.is_removed and names(n1) == NAMES[:2]


def test_restarts_are_no_departures() -> None:
    n0, n1, n2 = mesh(3, Limits(membership_retired_max=4))
    n0.remove("n2")
    for i in range(100):
        n0.merge(sent(Membership(node("n1"), 2 + i)))
    assert n0.standing("n2", 1) == "removed"
    settle(n0, n2)
    assert n2.is_removed


def test_what_left_first_is_forgotten_first_whatever_its_name() -> None:
    n0 = Membership(node("n0"), 1, Limits(membership_retired_max=2))
    for i, name in enumerate(["z", "a", "m"]):
        n0.merge(sent(Membership(node(name), 5 - i)))
        n0.remove(name)
    assert [n0.standing(name, 1) for name in "zam"] == ["unknown", "removed", "removed"]


def test_a_removal_where_few_leave_is_not_lost_on_one_where_many_do() -> None:
    """The minority's logical time lags behind: its removal is news, though it seems to be old."""
    n0, n1, n2, n3 = mesh(4, Limits(membership_retired_max=8))
    n0.remove("n3")
    churn(n1, 100)
    settle(n1, n2)
    # n2 hears of it from n1 only.
    assert n1.merge(sent(n0)).removed == (node("n3"),)
    assert n2.merge(sent(n1)).removed == (node("n3"),)
    settle(n0, n1, n2, n3)
    assert n3.is_removed and names(n0) == NAMES[:3]


def test_a_dropped_join_where_few_are_is_not_lost_on_one_where_many_are() -> None:
    n0, n1, n2 = mesh(3, Limits(membership_retired_max=4))
    guest = Membership(node("guest"), 1)
    guest.add(node("n9"))
    for m in (n0, n1, n2):
        m.merge(sent(guest))
    n0.remove("n9")
    for i in range(50):
        passing = Membership(node("passing"), 1 + i)
        passing.add(node("n8"))
        n1.merge(sent(passing))
        n1.remove("n8")
    settle(n1, n2)
    assert "n9" in n1
    assert n1.merge(sent(n0)).removed == (node("n9"),)
    assert n2.merge(sent(n1)).removed == (node("n9"),)


def test_what_is_forgotten_at_once_is_no_change() -> None:
    n0 = Membership(node("n0"), 1, Limits(membership_retired_max=4))
    churn(n0, 2)
    old = sent(n0)
    churn(n0, 10, 2)
    before = n0.encoded()
    assert n0.merge(old) == Changes((), (), False)
    assert n0.encoded() == before


@settings(max_examples=50)
@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(1, 3))
def test_all_agree_however_little_is_remembered(
    rng: random.Random, retired: int, dots: int
) -> None:
    limits = Limits(membership_retired_max=retired, membership_dots_per_member_max=dots)
    nodes = mesh(5, limits)
    for step in range(80):
        a = rng.choice(nodes)
        act = rng.random()
        if act < 0.35 and not a.is_removed:
            name = f"n{rng.randrange(9)}"
            if name != a.own.name:
                a.add(node(name))
        elif act < 0.55:
            a.remove(f"n{rng.randrange(9)}")
        elif act < 0.65:
            nodes[nodes.index(a)] = Membership(a.own, 10 + step, limits)
        elif a.is_removed and act < 0.75:
            a.rejoin(1_000 + step)
        else:
            a.merge(sent(rng.choice(nodes)))
    for _ in range(30):
        for a, b in rng.sample(list(itertools.permutations(nodes, 2)), 20):
            a.merge(sent(b))
        if len({m.digest() for m in nodes}) == 1:
            break
    assert len({m.digest() for m in nodes}) == 1
    settle(*nodes)
    for m in nodes:
        assert len(m.state()["s"]) <= len(m) + retired


def test_what_a_peer_of_wider_bounds_tells_is_not_kept_as_it_comes() -> None:
    for narrow in (Limits(membership_retired_max=1), Limits(membership_dots_per_member_max=1)):
        n0, n9 = Membership(node("n0"), 1), Membership(node("n9"), 1, narrow)
        n0.merge(sent(n9))
        for name in ("n1", "n2"):
            other = Membership(node(name), 1)
            other.add(node("n8"))
            n0.merge(sent(other))
            if narrow.membership_retired_max == 1:
                n0.remove(name)
        state = sent(n0)
        assert n9.merge(state).state_changed
        assert sent(n9) != state


def test_a_thousand_nodes_join_the_same_one() -> None:
    seed = Membership(node("seed"), 1)
    joiners = [Membership(node(f"j{i:04}"), 1) for i in range(1_000)]
    for joiner in joiners:
        joiner.add(node("seed", 2))
        seed.merge(sent(joiner))
    assert len(seed) == 1_001
    assert len(seed.state()["m"]) <= 4
    assert len(seed.state()["v"]) <= 256 + 4
    for joiner in joiners[::100]:
        assert joiner.merge(sent(seed)).added
    settle(seed, *joiners[::100])
    assert {m.digest() for m in joiners[::100]} == {seed.digest()}
    assert seed.members()["seed"] == node("seed")
    CODEC.decode_message(seed.encoded())


def test_a_removal_wins_against_concurrent_joins_beyond_those_that_are_kept() -> None:
    """The documented limit of concurrent joins."""
    nodes = mesh(4, Limits(membership_dots_per_member_max=2))
    for m in nodes[:3]:
        m.add(node("n9"))
    n0, n1, n2, n3 = nodes
    n3.merge(sent(n1))
    n3.merge(sent(n2))
    n3.remove("n9")  # has not seen the join of n0
    n2.merge(sent(n1))
    n2.merge(sent(n0))  # which is dropped here as one too many
    settle(*nodes)
    assert all("n9" not in m for m in nodes)


def test_no_more_members_than_there_may_be() -> None:
    limits = Limits(membership_members_max=3)
    n0, n1, n2 = mesh(3, limits)
    n9 = Membership(node("n9"), 1, limits)
    before = n0.digest()
    with pytest.raises(MembershipError, match="membership_members_max is 3"):
        n0.add(node("n9"))
    with pytest.raises(MembershipError, match="there would be 4 members"):
        n0.merge(sent(n9))
    assert n0.digest() == before and names(n0) == NAMES[:3]
    n0.add(node("n1", 5))  # one of them
    n0.remove("n1")
    assert n0.merge(sent(n9)).added == (node("n9"),)
    n1.merge(sent(n2))
    n0.remove("n0")
    n0.add(node("n8"))
    with pytest.raises(MembershipError, match="there are 3 members already"):
        n0.rejoin(2)
    assert n0.incarnation == 1


def test_states_that_fit_and_do_not_fit_together_are_not_merged() -> None:
    """They could never be sent again: three nodes would have other members for good."""
    limits = Limits(frame_bytes_max=20_000, fragment_bytes_max=1_024)
    sides = [Membership(node(f"n{i}"), 1, limits) for i in range(3)]
    for side in sides[:2]:
        with pytest.raises(MembershipLimit, match="frame_bytes_max is 20000") as caught:
            for i in range(1_000):
                side.add(node(f"{side.own.name}-{i:03}-{'x' * 150}"))
        assert len(str(caught.value)) < 400
        # The bound counts each number as the longest that it may become.
        assert 17_000 < len(side.encoded()) + 2 <= 20_000
    n0, n1, n2 = sides
    for mine, theirs in ((n0, n1), (n1, n0)):
        before = mine.encoded(), mine.members(), mine._time, mine._joins_announced
        with pytest.raises(MembershipLimit, match="after the merge the state of"):
            mine.merge(sent(theirs))
        assert (mine.encoded(), mine.members(), mine._time, mine._joins_announced) == before
    n2.merge(sent(n0))
    settle(n0, n2)
    assert len(n0) == len(n2) > 40
    # Others may leave, however full it is, and then there is room.
    for name in names(n0)[2:40]:
        n0.remove(name)
    n0.merge(sent(Membership(node("n9"), 1)))
    settle(n0, n2)
    assert "n9" in n2 and n0.encoded() == n2.encoded()


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.booleans())
def test_whatever_is_merged_can_be_sent_or_is_not_taken_in(rng: random.Random, short: bool) -> None:
    limits = Limits(
        frame_bytes_max=5_200 if short else 6_000,
        fragment_bytes_max=1_024,
        membership_members_max=1_024 if short else 20,
        membership_retired_max=8,
    )
    nodes = [Membership(node(f"n{i}"), 1, limits) for i in range(3)]
    for step in range(150):
        a, b = rng.sample(nodes, 2)
        name = f"m{rng.randrange(30)}" + "x" * rng.choice([1, 30, 200])
        before = copy.deepcopy((a.state(), a.members()))
        try:
            if rng.random() < 0.6:
                a.add(node(name))
            elif rng.random() < 0.3:
                a.remove(rng.choice(names(a)))
                before = copy.deepcopy((a.state(), a.members()))
                if a.is_removed:
                    a.rejoin(step + 2)
            else:
                a.merge(sent(b))
        except MembershipLimit:
            assert (a.state(), a.members()) == before
        assert len(a.encoded()) + 2 <= limits.frame_bytes_max
        assert len(a) <= limits.membership_members_max
        assert len(a.encoded()) <= bytes_of(*a.known().rows)


def test_a_state_takes_the_bounds_of_a_decoder() -> None:
    """The worst state that the default limits allow can be decoded by a peer."""
    limits = Limits()
    retired = limits.membership_retired_max
    joins = limits.membership_members_max * limits.membership_dots_per_member_max
    starts = limits.membership_members_max + retired
    elements = 6 + starts * 6 + (joins + retired) * 5 + joins * 6
    assert elements <= limits.message_elements_max
    # The frame of 1 MiB holds it if names and addresses take 32 bytes.
    numbers = 9 + 9 + 9 + 1
    size = starts * (70 + numbers) + (joins + retired) * (35 + numbers) + joins * (105 + numbers)
    assert size <= 1 << 20


# The bytes.


def test_the_state_is_what_the_protocol_says() -> None:
    n0 = Membership(node("b"), 2**64 - 1)
    n0.add(node("a"))
    n0.add(node("c", 22))
    n0.remove("a")
    assert n0.state() == {
        "s": [["b", 2**64 - 1, 1, 0, "h:1"]],
        "v": [["b", 2**64 - 1, 2, 1]],
        "m": [["b", 2**64 - 1, 2, "c", "h:22"]],
    }
    big = "cf ff ff ff ff ff ff ff ff"
    by_hand = bytes.fromhex(
        f"83 a1 73 91 95 a1 62 {big} 01 00 a3 68 3a 31"
        f"   a1 76 91 94 a1 62 {big} 02 01"
        f"   a1 6d 91 95 a1 62 {big} 02 a1 63 a4 68 3a 32 32"
    )
    assert n0.encoded() == by_hand
    assert n0.digest() == hashlib.sha256(by_hand).digest()
    assert n0.state() is n0.state()


def test_equal_knowledge_is_equal_bytes() -> None:
    nodes = mesh(4)
    for m in nodes:
        m.add(node("z"))
    settle(*nodes)
    assert len({m.encoded() for m in nodes}) == 1


# States that are none.

GOOD = {
    "s": [["a", 5, 2, 0, "h:1"], ["b", 7, 1, 3, None], ["n0", 4, 9, 0, "h:1"]],
    "v": [["a", 4, 3, 0], ["a", 5, 1, 0], ["c", 9, 3, 3]],
    "m": [["a", 4, 3, "x", "h:1"], ["a", 5, 1, "x", "h:1"], ["c", 9, 1, "b", "h:1"]],
}


def changed(key: str, row: int, column: int, value: Any) -> Any:
    state = copy.deepcopy(GOOD)
    state[key][row][column] = value
    return state


def without(key: str, row: int) -> Any:
    state = copy.deepcopy(GOOD)
    del state[key][row]
    return state


def reordered(key: str) -> Any:
    return {**GOOD, key: GOOD[key][::-1]}


BAD = [
    None,
    [],
    {},
    {"d": b"x" * 32},
    {**GOOD, "d": b""},
    {"s": [], "v": []},
    *({**GOOD, key: value} for key in "svm" for value in (None, {}, "", 1, [None], [[]], [[1]])),
    *(reordered(key) for key in "svm"),
    *({**GOOD, key: GOOD[key] + GOOD[key][-1:]} for key in "svm"),
    *({**GOOD, key: [[*row, 0] for row in GOOD[key]]} for key in "svm"),
    *({**GOOD, key: [row[:-1] for row in GOOD[key]]} for key in "svm"),
    *({**GOOD, key: [tuple(row) for row in GOOD[key]]} for key in "svm"),
    *(
        changed(key, 1, 0, name)
        for key in "svm"
        for name in (None, 1, b"b", "", "b::c", "b\n", "b@c", "x" * 256, "b\ud800", "e\u0301")
    ),
    *(
        changed(key, 1, 0, name)
        for key in "svm"
        for name in ("b ", " b", "b\u200b", "\u202eb", "b\u00a0c", "b\u0430", "\ufb01")
    ),
    *(changed(key, 1, 1, v) for key in "svm" for v in (0, -1, 2**64, 7.0, "7", None, True)),
    *(changed(key, 1, 2, v) for key in "svm" for v in (0, -1, 2**63, 1.0, "1", None, True, [])),
    *(changed(key, 1, 3, v) for key in "sv" for v in (-1, 2**63, 1.0, "1", None, False, [])),
    *(changed("s", 1, 4, v) for v in ("", "h", "h:", "h:65536", "h :1", 1, b"h:1", [], False)),
    *(changed("m", 1, 4, v) for v in ("", "h", "h:", "h:65536", "h :1", 1, b"h:1", [], None)),
    *(changed("m", 1, 3, v) for v in ("", "b::c", None, 1, [], "a")),
    *(without("v", row) for row in range(3)),
    changed("m", 2, 2, 4),
]


@pytest.mark.parametrize("state", BAD, ids=lambda state: ascii(state)[:60])
def test_what_is_no_state_changes_nothing(state: Any) -> None:
    for membership in (Membership(node("n0"), 3), Membership(node("n0"), 3)):
        membership.add(node("n1"))
        before = copy.deepcopy(membership.state()), membership.members()
        with pytest.raises(MembershipError) as caught:
            membership.merge(state)
        assert len(str(caught.value)) < 400 and str(caught.value).isascii()
        assert (membership.state(), membership.members()) == before


def test_the_good_one_is_a_state() -> None:
    n0 = Membership(node("n0"), 3)
    changes = n0.merge(GOOD)
    assert changes.added == (node("a"), node("b"), node("x"))
    assert n0.is_superseded
    assert n0.state() == GOOD


def test_none_is_no_state_even_before_anybody_asked_for_the_own_one() -> None:
    with pytest.raises(MembershipError):
        Membership(node("n0"), 1).merge(None)


def test_states_of_more_entries_than_there_can_be_are_refused() -> None:
    limits = Limits(
        membership_members_max=2, membership_retired_max=2, membership_dots_per_member_max=1
    )
    n0 = Membership(node("n0"), 1, limits)
    start = [[f"a{i}", 1, 1, 0, None] for i in range(6)]
    seen = [[f"a{i}", 1, 1, 0] for i in range(6)]
    joins = [[f"a{i}", 1, 1, "x", "h:1"] for i in range(3)]
    for state in (
        {"s": start, "v": [], "m": []},
        {"s": [], "v": seen, "m": []},
        {"s": [], "v": seen[:3], "m": joins},
    ):
        with pytest.raises(MembershipError, match="entries; at most"):
            n0.merge(state)
    three = [[f"a{i}", 1, 1, 0, "h:1"] for i in range(3)]
    with pytest.raises(MembershipError, match="the state has 3 members"):
        n0.merge({"s": three, "v": [], "m": []})
    assert names(n0) == ["n0"]


def test_two_addresses_of_one_dot_are_decided_alike() -> None:
    """No correct node makes such; even so all have to agree."""
    one = {"s": [["a", 1, 1, 0, "h:1"]], "v": [["b", 1, 1, 0]], "m": [["b", 1, 1, "x", "h:1"]]}
    two = {"s": [["a", 1, 1, 0, "h:2"]], "v": [["b", 1, 1, 0]], "m": [["b", 1, 1, "y", "h:1"]]}
    first, second = joined(WIDE, one, two), joined(WIDE, two, one)
    assert first.encoded() == second.encoded()
    assert names(first) == ["a", "onlooker", "y"]


def test_an_address_of_this_node_that_it_never_said_is_contradicted() -> None:
    n0 = Membership(node("n0"), 1)
    n0.merge({"s": [["n0", 1, 1, 0, "h:9"]], "v": [], "m": []})
    assert n0.members() == {"n0": node("n0")}
    assert n0.state()["s"] == [["n0", 1, 2, 0, "h:1"]]


# What a member claims of others' lives.


def start(name: str, *numbers: int, addr: str | None = "h:1") -> dict[str, Any]:
    return {"s": [[name, *numbers, addr]], "v": [], "m": []}


#: Whoever is told these believes none of it.
BEYOND = [
    start("n1", 2**64 - 1, 1, 0),
    start("n1", 2**64 - 1, 1, 1, addr=None),
    start("n1", FAR + 1, 1, 0),
    start("n1", 1, FAR + 1, 0),
    start("n1", 1, 1, 2**63 - 1, addr=None),
    start("n0", 1, 2**63 - 1, 0),
    start("n0", 2**64 - 1, 1, 1, addr=None),
    {"s": [], "v": [["x", 2**64 - 1, 1, 0]], "m": [["x", 2**64 - 1, 1, "y", "h:1"]]},
    {"s": [], "v": [["x", 1, 2**63 - 1, 0]], "m": [["x", 1, 3, "y", "h:1"]]},
    {"s": [], "v": [["n0", 1, 2**63 - 1, 0]], "m": []},
    {"s": [], "v": [["x", 1, 1, 2**63 - 1]], "m": []},
]


@pytest.mark.parametrize("claim", BEYOND, ids=lambda claim: ascii(claim)[:60])
def test_what_is_beyond_belief_is_left_out_and_passed_on_to_nobody(claim: Any) -> None:
    n0, n1 = mesh(2)
    honest = Membership(node("n2"), 3)
    rows = [sorted(claim[key] + honest.state()[key]) for key in "svm"]
    before = n0.encoded()
    beyond = len(claim["s"]) + len(claim["v"]) + len(claim["m"])
    assert n0.merge(claim) == Changes((), (), False, beyond)
    assert n0.encoded() == before
    # What else comes with it is taken in.
    changes = n0.merge(dict(zip("svm", rows, strict=True)))
    assert changes == Changes((node("n2"),), (), True, beyond)
    settle(n0, n1, honest)
    assert n0.encoded() == n1.encoded()
    assert names(n1) == NAMES[:3]
    assert all(number <= FAR for key in "svm" for row in n0.state()[key] for number in row[1:3])


def test_the_bound_of_belief_goes_with_the_clock() -> None:
    clock = [FAR + 7]
    n0 = Membership(node("n0"), 1, None, lambda: clock[0])
    assert n0.merge(start("n1", FAR + 8, 1, 0)).disbelieved == 1
    clock[0] += 1
    assert n0.merge(start("n1", FAR + 8, 1, 0)).added == (node("n1"),)


def test_whoever_is_outbid_goes_beyond() -> None:
    """Whatever is believed, there is an incarnation above it a moment later."""
    clock = [FAR]
    n0, n1 = (Membership(node(f"n{i}"), 1, None, lambda: clock[0]) for i in range(2))
    settle(n0, n1)
    for _ in range(5):
        claim = start("n1", clock[0], 1, 1, addr=None)
        for m in (n0, n1):
            assert m.merge(claim).state_changed
        assert n1.is_removed and "n1" not in n0
        clock[0] += 1 << 20
        n1.rejoin(n1.incarnation_of("n1") + 1)
        settle(n0, n1)
        assert names(n0) == names(n1) == NAMES[:2]
        assert not n1.is_superseded and n0.incarnation_of("n1") == n1.incarnation


@pytest.mark.parametrize("addr", ["h:1", "h:9", None], ids=["alive", "elsewhere", "removed"])
def test_a_start_that_a_node_did_not_make_it_goes_beyond(addr: str | None) -> None:
    n0, n1, n2 = mesh(3)
    claim = start("n1", 1, 99, 0 if addr else 1, addr=addr)
    n0.merge(claim)
    n2.merge(claim)
    assert n1.merge(sent(n0)).state_changed
    assert n1.state()["s"][1] == ["n1", 1, 100, 0 if addr else 1, "h:1"]
    settle(n0, n1, n2)
    assert n0.encoded() == n1.encoded() == n2.encoded()
    assert names(n0) == NAMES[:3] and n0.members()["n1"] == node("n1")
    # Its removal, of what it has said, counts as ever.
    n2.remove("n1")
    settle(n0, n1, n2)
    assert n1.is_removed and names(n0) == ["n0", "n2"]


@pytest.mark.parametrize(
    "claim",
    [
        start("n1", 2, 99, 1),
        {"s": [], "v": [["x", 1, 1, 0]], "m": [["x", 1, 1, "n1", "h:1"]]},
    ],
    ids=["start", "join"],
)
def test_a_node_that_others_make_a_member_of_nothing_it_knows_says_its_start(claim: Any) -> None:
    """Its removal is forgotten, for others that were made up; and an earlier start is told of."""
    limits = Limits(membership_retired_max=3)
    n0, n1 = (Membership(node(f"n{i}"), 10, limits) for i in range(2))
    settle(n0, n1)
    n0.remove("n1")
    settle(n0, n1)
    gone = sorted(f"gone-{number}" for number in range(9))
    n0.merge({"s": [[name, 1, 1, 99, None] for name in gone], "v": [], "m": []})
    settle(n0, n1)
    assert n1.is_removed and n0.incarnation_of("n1") == n1.incarnation_of("n1") == 0
    n0.merge(claim)
    settle(n0, n1)
    assert names(n0) == names(n1) == NAMES[:2]
    assert n0.incarnation_of("n1") == n1.incarnation == 10
    # No dot is made twice: it said its first one when it began.
    assert [row[:3] for row in n0.state()["s"] if row[0] == "n1"] == [["n1", 10, 2]]


def test_a_join_that_a_node_did_not_make_it_goes_beyond() -> None:
    n0, n1 = mesh(2)
    claim = {"s": [], "v": [["n1", 1, 99, 0]], "m": [["n1", 1, 7, "x", "h:1"]]}
    n0.merge(claim)
    n1.merge(sent(n0))
    n1.add(node("n9"))
    assert n1.state()["v"] == [["n1", 1, 100, 0]]
    settle(n0, n1)
    assert names(n0) == ["n0", "n1", "n9", "x"]
    n0.remove("x")
    settle(n0, n1)
    assert names(n1) == ["n0", "n1", "n9"]


def test_forged_removals_do_not_make_honest_ones_forgotten() -> None:
    """However late they claim to be: those that follow are later."""
    clock = [FAR]
    nodes = [Membership(node(f"n{i}"), 1, None, lambda: clock[0]) for i in range(4)]
    settle(*nodes)
    n0, n1, _, n3 = nodes
    for ended in (2**63 - 1, FAR, FAR - 1, 2**62, 5):
        n0.merge(
            {
                "s": [[f"gone-{ended}-{i:03}", 1, 1, ended, None] for i in range(256)],
                "v": [[f"gone-{ended}-{i:03}", 1, 1, ended] for i in range(256)],
                "m": [],
            }
        )
    clock[0] += 1 << 20
    n0.add(node("n9"))
    settle(n0, n1)
    n0.remove("n3")
    n0.remove("n9")
    assert n0.standing("n3", 1) == "removed"
    settle(*nodes)
    assert n3.is_removed and names(n1) == NAMES[:3]


def test_a_rejoin_makes_no_dot_of_an_earlier_claim() -> None:
    n0, n1 = mesh(2)
    n0.merge({"s": [], "v": [["n1", 7, 5, 0]], "m": [["n1", 7, 5, "x", "h:1"]]})
    n0.remove("n1")
    n1.merge(sent(n0))
    n1.rejoin(7)
    n1.add(node("n9"))
    assert ["n1", 7, 6, 0] in n1.state()["v"]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**64)
    | st.floats()
    | st.sampled_from(["a", "b", "n0", "h:1", ""])
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from("svmd"), inner),
    max_leaves=30,
)


@settings(max_examples=200)
@given(st.data())
def test_whatever_comes_is_taken_whole_or_not_at_all(data: st.DataObject) -> None:
    n0 = Membership(node("n0"), 3)
    n0.merge(GOOD)
    state: Any = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from("svm"))
        rows = state[key]
        i = data.draw(st.integers(0, 2))
        if data.draw(st.booleans()) and i < len(rows) and rows[i]:
            rows[i] = list(rows[i])
            rows[i][data.draw(st.integers(0, len(rows[i]) - 1))] = data.draw(junk)
        else:
            rows[i : i + data.draw(st.integers(0, 1))] = data.draw(st.lists(junk, max_size=1))
        if not all(isinstance(row, list) for row in rows):
            break
    before = n0.encoded(), n0.members()
    try:
        n0.merge(state)
    except MembershipError:
        assert (n0.encoded(), n0.members()) == before
    else:
        # What was taken in is a state that others take.
        assert joined(Limits(), sent(n0)).members().keys() == n0.members().keys() | {"onlooker"}


# Against the slow one.


class AgainstTheSlowOne(RuleBasedStateMachine):
    """Nodes add, remove, restart and tell each other, in any order; states are lost and doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Membership] = []
        self.slow: list[ReferenceMembership] = []
        self.under_way: list[tuple[Any, frozenset[Event]]] = []
        self.incarnations: dict[str, set[int]] = {name: set() for name in NAMES}

    @initialize(know=st.booleans())
    def begin(self, know: bool) -> None:
        for name in NAMES:
            self.nodes.append(Membership(node(name), 100, WIDE))
            self.slow.append(ReferenceMembership(node(name), 100))
            self.incarnations[name].add(100)
        if know:
            for a, b in itertools.permutations(range(4), 2):
                self.tell(a, b)

    @rule(i=st.integers(0, 3), j=st.integers(0, 5), port=st.sampled_from([1, 1, 1, 2]))
    def add(self, i: int, j: int, port: int) -> None:
        if i == j:
            return
        self.nodes[i].add(node(f"n{j}", port))
        self.slow[i].add(node(f"n{j}", port))

    @rule(i=st.integers(0, 3), j=st.integers(0, 5))
    def remove(self, i: int, j: int) -> None:
        assert self.nodes[i].remove(f"n{j}") == (f"n{j}" in self.slow[i].members())
        self.slow[i].remove(f"n{j}")

    @rule(i=st.integers(0, 3), j=st.integers(0, 3))
    def tell(self, i: int, j: int) -> None:
        self.deliver_to(j, sent(self.nodes[i]), self.slow[i].known)

    @rule(i=st.integers(0, 3))
    def say(self, i: int) -> None:
        self.under_way.append((sent(self.nodes[i]), self.slow[i].known))

    @precondition(lambda self: self.under_way)
    @rule(j=st.integers(0, 3), data=st.data())
    def hear(self, j: int, data: st.DataObject) -> None:
        # It may be told again later, or to others, or never.
        self.deliver_to(j, *data.draw(st.sampled_from(self.under_way)))

    def deliver_to(self, j: int, state: Any, known: frozenset[Event]) -> None:
        before = self.slow[j].members()
        changes = self.nodes[j].merge(state)
        self.slow[j].merge(known)
        after = self.slow[j].members()
        assert set(changes.added) == set(after.values()) - set(before.values())
        assert set(changes.removed) == set(before.values()) - set(after.values())

    @rule(i=st.integers(0, 3), port=st.sampled_from([1, 1, 2]), back=st.booleans())
    def restart(self, i: int, port: int, back: bool) -> None:
        """After a crash, or after having left; perhaps with a clock that went back."""
        used = self.incarnations[NAMES[i]]
        incarnation = min(used) - 1 if back and min(used) > 95 else max(used) + 1
        used.add(incarnation)
        self.nodes[i] = Membership(node(NAMES[i], port), incarnation, WIDE)
        self.slow[i] = ReferenceMembership(node(NAMES[i], port), incarnation)

    @rule(i=st.integers(0, 3))
    def rejoin(self, i: int) -> None:
        if self.nodes[i].is_removed or self.nodes[i].is_superseded:
            used = self.incarnations[NAMES[i]]
            used.add(max(used) + 1)
            self.nodes[i].rejoin(max(used))
            self.slow[i].rejoin(max(used))

    @invariant()
    def the_same(self) -> None:
        for fast, slow in zip(self.nodes, self.slow, strict=True):
            assert fast.members() == slow.members()
            assert fast.is_removed == slow.is_removed
            for name in [*NAMES, "n5"]:
                assert fast.incarnation_of(name) == slow.incarnation_of(name)
                for incarnation in (99, 100, 101):
                    assert fast.standing(name, incarnation) == slow.standing(name, incarnation)

    def teardown(self) -> None:
        if not self.nodes:
            return
        for _ in range(8):
            for a, b in itertools.permutations(range(4), 2):
                if self.nodes[a].digest() != self.nodes[b].digest():
                    self.tell(a, b)
        self.the_same()
        assert len({m.digest() for m in self.nodes}) == 1


AgainstTheSlowOne.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestAgainstTheSlowOne = AgainstTheSlowOne.TestCase
