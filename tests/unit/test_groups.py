"""`Group`: whom its envelopes go to."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import (
    CorrelationId,
    Envelope,
    Group,
    GroupChanged,
    GroupMembers,
    NodeId,
    Pid,
    SubscribeGroup,
)

HERE, THERE = NodeId("here", "h:1"), NodeId("there", "h:2")
NEAR = [Pid(f"p{number}", HERE) for number in range(2)]
FAR = [Pid(f"p{number}", THERE) for number in range(3)]


def receivers(envelopes: list[Envelope]) -> list[Pid]:
    return [envelope.to for envelope in envelopes]


def test_it_is_told_by_messages_and_takes_those_of_its_own_group() -> None:
    group = Group("g", HERE)
    executor = Pid("executor", HERE, "rabble")
    asked = group.subscribe(executor)
    assert (asked.to, asked.msg) == (executor, SubscribeGroup("g"))
    assert group.takes(GroupMembers("g", (FAR[0],))) and group.members == (FAR[0],)
    assert group.takes(GroupChanged("g", (NEAR[0], FAR[1]), (FAR[0],)))
    assert group.members == (NEAR[0], FAR[1]) and len(group) == 2
    for other in (GroupMembers("h", ()), GroupChanged("h", (), (NEAR[0],)), "g", None):
        assert not group.takes(other)
    assert group.members == (NEAR[0], FAR[1])


def test_to_all_to_one_and_to_the_nearest() -> None:
    group = Group("g", HERE, [*FAR, *NEAR])
    assert receivers(group.to_all("m")) == [*NEAR, *FAR]
    assert [each.to for _ in range(6) for each in group.to_one("m")] == [*NEAR, *FAR, NEAR[0]]
    nearest = collections.Counter(each.to for _ in range(6) for each in group.to_nearest("m"))
    assert nearest == {NEAR[0]: 3, NEAR[1]: 3}
    far = Group("g", HERE, FAR)
    assert {each.to for _ in range(3) for each in far.to_nearest("m")} == set(FAR)


def test_a_message_and_its_correlation_id_are_in_each_envelope() -> None:
    group = Group("g", None, FAR)
    cid = CorrelationId(NEAR[0], request=1)
    for envelopes in (
        group.to_all("m", correlation_id=cid),
        group.to_one("m", correlation_id=cid),
        group.to_nearest("m", correlation_id=cid),
        group.to_key("k", "m", correlation_id=cid),
    ):
        assert {(each.msg, each.sender, each.correlation_id) for each in envelopes} == {
            ("m", None, cid)
        }


def test_without_members_there_is_nothing_to_send() -> None:
    group = Group("g")
    assert not group.to_all("m") + group.to_one("m") + group.to_nearest("m") + group.to_key(1, "m")
    assert group.member_of("k") is None


keys = st.one_of(st.text(max_size=20), st.binary(max_size=20), st.integers())
members = st.sets(st.sampled_from([*NEAR, *FAR]), min_size=1)


@given(keys, members, st.sampled_from([HERE, THERE, None]))
def test_every_node_sends_a_key_to_the_same_member(
    key: Any, among: set[Pid], node: NodeId | None
) -> None:
    assert Group("g", node, among).member_of(key) == Group("g", None, among).member_of(key)


@given(keys, members, st.sampled_from(FAR))
def test_when_a_member_goes_only_its_own_keys_move(key: Any, among: set[Pid], gone: Pid) -> None:
    before = Group("g", None, among | {gone}).member_of(key)
    after = Group("g", None, among - {gone}).member_of(key)
    assert before == gone or before == after


def test_keys_are_spread_and_of_their_type() -> None:
    group = Group("g", None, [*NEAR, *FAR])
    counts = collections.Counter(group.member_of(number) for number in range(1_000))
    assert len(counts) == 5 and min(counts.values()) > 140
    # Of each type for itself; and on every node and version alike.
    assert [group.members.index(group.member_of(key)) for key in (1, "1", b"1")] == VECTOR
    with pytest.raises(TypeError, match="must be a str, bytes or int, not of type float"):
        group.member_of(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        group.member_of(True)


VECTOR = [0, 3, 1]


def test_a_name_that_can_be_none_is_refused() -> None:
    with pytest.raises(ValueError):
        Group("")


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))),
    st.sets(st.integers(0, 40)),
    st.sampled_from([HERE, None]),
)
def test_however_few_change_the_order_is_the_same(
    changes: list[tuple[set[int], set[int]]], first: set[int], node: NodeId | None
) -> None:
    pids = [Pid(f"p{number}", HERE if number % 3 else THERE) for number in range(41)]
    group = Group("g", node, [pids[number] for number in first])
    known = set(first)
    for joined, left in changes:
        left -= joined
        known = known - left | joined
        told = (tuple(pids[number] for number in sorted(some)) for some in (joined, left))
        assert group.takes(GroupChanged("g", *told))
        fresh = Group("g", node, [pids[number] for number in known])
        assert group.members == fresh.members and len(group) == len(known)
        assert group._near == fresh._near
