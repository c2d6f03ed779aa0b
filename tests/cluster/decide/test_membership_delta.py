"""Deltas of the membership: merged in any order, doubled and lost, nodes agree in the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import Limits, NodeId
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.membership_delta import Part, changed_parts, rows_by_part
from rabble.cluster.decide.membership_state import State

NODES = [NodeId(name, "h:1") for name in "abcdef"]
LIMITS = Limits()


def act(rng: random.Random, node: Membership) -> None:
    """Something that this node does to its membership."""
    other = rng.choice(NODES)
    if node.is_removed:
        node.rejoin(node.incarnation_of(node.own.name) + 1)
    elif other == node.own or rng.random() < 0.5:
        node.remove(other.name)
    else:
        node.add(other)


def history(rng: random.Random, steps: int) -> list[Membership]:
    """Nodes that did things, and heard whole states of some of the others."""
    nodes = [Membership(node, 10, LIMITS) for node in NODES]
    for _ in range(steps):
        node = rng.choice(nodes)
        if rng.random() < 0.5:
            act(rng, node)
        else:
            node.merge(rng.choice(nodes).known())
    return nodes


def parts_of(state: State) -> list[Part]:
    every = {*(start.name for start in state.rows.starts)}
    every |= {version[:2] for version in state.rows.versions}
    assert not list(rows_by_part(state.plain(), among=()))
    return sorted((part for part, _ in rows_by_part(state.plain(), among=every)), key=repr)


def copy_of(node: Membership) -> Membership:
    """One that knows the same; of another name, so that it makes nothing of what it is told."""
    copy = Membership(NodeId("observer", "h:9"), 10, LIMITS)
    copy.merge(node.known())
    return copy


histories = st.tuples(st.integers(0, 2**32), st.integers(0, 40))


@given(histories)
def test_all_parts_one_by_one_in_any_order_and_doubled_are_the_whole(
    about: tuple[int, int],
) -> None:
    seed, steps = about
    rng = random.Random(seed)
    one, other, *_ = history(rng, steps)
    whole = copy_of(one)
    whole.merge(other.known())
    deltas = [other.delta([part]) for part in parts_of(other.known())]
    for _ in range(2):
        receiver = copy_of(one)
        told = [*deltas, *rng.choices(deltas, k=3)]
        rng.shuffle(told)
        for delta in told:
            receiver.merge(delta.plain())
        assert receiver.encoded() == whole.encoded()


@given(histories, st.data())
def test_deltas_of_several_nodes_commute_with_each_other_and_with_states(
    about: tuple[int, int], data: st.DataObject
) -> None:
    seed, steps = about
    nodes = history(random.Random(seed), steps)
    told: list[State] = []
    for node in nodes[1:]:
        parts = parts_of(node.known())
        told.append(node.delta(data.draw(st.lists(st.sampled_from(parts), unique=True))))
    told.append(nodes[-1].known())
    outcomes = set()
    for _ in range(3):
        receiver = copy_of(nodes[0])
        for delta in data.draw(st.permutations(told)):
            receiver.merge(delta.plain())
            receiver.merge(delta.plain())
        outcomes.add(receiver.encoded())
    assert len(outcomes) == 1


@given(histories, st.integers(0, 10))
def test_who_knew_the_state_before_needs_the_delta_only(about: tuple[int, int], steps: int) -> None:
    seed, before = about
    rng = random.Random(seed)
    nodes = history(rng, before)
    receiver = copy_of(nodes[0])
    knew = nodes[0].known()
    for _ in range(steps):
        if rng.random() < 0.5:
            act(rng, nodes[0])
        else:
            nodes[0].merge(rng.choice(nodes).known())
    receiver.merge(nodes[0].delta(changed_parts(knew, nodes[0].known())).plain())
    whole = copy_of(nodes[0])
    whole.merge(knew)
    assert receiver.encoded() == whole.encoded()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_lost_nodes_agree_once_they_exchange_states(seed: int) -> None:
    """Deltas alone, each told to some, late, twice or never; then one round of whole states."""
    rng = random.Random(seed)
    nodes = [Membership(node, 10, LIMITS) for node in NODES]
    under_way: list[tuple[Membership, State]] = []
    for _ in range(200):
        node = rng.choice(nodes)
        before = node.known()
        act(rng, node)
        delta = node.delta(changed_parts(before, node.known()))
        under_way += [(other, delta) for other in nodes for _ in range(rng.randrange(3))]
        rng.shuffle(under_way)
        for receiver, delta in under_way[:5]:
            receiver.merge(delta.plain())
        del under_way[:8]
    for _ in range(2):
        for node in nodes:
            for other in nodes:
                node.merge(other.state())
    assert len({node.digest() for node in nodes}) == 1


def test_what_is_not_known_is_no_part_of_a_delta() -> None:
    node = Membership(NODES[0], 10, LIMITS)
    assert node.delta(["z", ("a", 10), ("z", 1)]).plain() == {"s": [], "v": [], "m": []}
    assert changed_parts(node.known(), node.known()) == set()
