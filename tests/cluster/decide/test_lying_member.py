"""A member that lies, whatever it says: honest nodes agree and hold each other when it is gone."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble.cluster.decide.belief import BELIEVED_WITHOUT_CLOCK as FAR
from rabble.cluster.decide.membership import Membership, MembershipError
from rabble.cluster.decide.membership_state import read_state
from rabble.cluster.decide.standing import OwnStanding
from tests.cluster.decide.test_membership_simulation import LIMITS, NODES, Host, Simulation, Told
from tests.fuzz.lies import Drawn, Truth, lie, many_gone, move, play


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_honest_nodes_agree_whatever_a_member_said(data: bytes) -> None:
    play(data)


@pytest.mark.parametrize("seeds", [300, pytest.param(100_000, marks=pytest.mark.soak)])
def test_honest_nodes_agree_after_a_long_time_of_lies(seeds: int) -> None:
    for seed in range(seeds):
        data = random.Random(seed).randbytes(400)
        try:
            play(data)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


# A hundred nodes in virtual time, joined by one that lies.

#: How often it says something to some of the others while there is trouble.
LIES = 24


class Hosts(dict[str, Host]):
    """Of whoever was made up it is known that he is nowhere."""

    def __missing__(self, name: str) -> Host:
        return Host(-1, 0)


class LyingSimulation(Simulation):
    """What a membership says is believed by all, and no one of them can tell who made it up."""

    def __init__(self, seed: int, nodes: int = NODES) -> None:
        super().__init__(seed, nodes)
        self.hosts = Hosts(self.hosts)
        self.standing: dict[Membership, OwnStanding] = {}
        self.moves = itertools.count(100)

    def cause_trouble(self) -> None:
        for _ in range(LIES):
            self.at(self.a_moment(), self.lie)
        super().cause_trouble()

    def lie(self) -> None:
        try:
            state = read_state(self.codec.decode_message(self.a_lie()), self.checked, LIMITS)
        except MembershipError:
            # Whoever is told it refuses it.
            self.happened["refused"] += 1
            return
        told = Told(state, len(self.told), [])
        self.happened["lie"] += 1
        for host in self.rng.sample(self.all, self.rng.randint(1, max(len(self.all) // 4, 1))):
            if host.membership is not None:
                host.got[told] = None
                self.work_soon(host)

    def a_lie(self) -> bytes:
        """A state of its own making; encoded, so that it is read as one from the wire is."""
        live = {each.name: each.membership for each in self.all if each.membership is not None}
        truth = Truth(
            [*(each.name for each in self.all), *(f"ghost-{number}" for number in range(3))],
            {name: membership.incarnation for name, membership in live.items()},
            ["elsewhere:1", *(each.node.addr for each in self.rng.sample(self.all, 3)), None],
            moves=self.moves,
        )
        choices, chance = Drawn(self.rng), self.rng.random()
        if chance < 0.04:
            state = many_gone(choices)
        elif chance < 0.2 and live:
            state = move(truth, choices)
        else:
            state = lie(truth, choices)
        return self.codec.encode_message(state)

    # What the control plane does about it.

    def work(self, host: Host) -> None:
        super().work(host)
        membership = host.membership
        if membership is not None:
            standing = self.standing.setdefault(membership, OwnStanding(membership, 10.0))
            self.look_at_standing(host, membership, standing)
            if membership.is_removed:
                # It may have been told another address before.
                self.after((0.5, 3.0), self.find_removed, host, membership)

    def look_at_standing(self, host: Host, membership: Membership, standing: OwnStanding) -> None:
        if host.membership is not membership:
            return
        before = standing.next_tick
        if standing.is_outbid(self.now):
            self.happened["outbid"] += 1
            self.become_later(host, membership)
        elif standing.next_tick is not None and before is None:
            self.at(standing.next_tick, self.look_at_standing, host, membership, standing)

    def become_later(self, host: Host, membership: Membership) -> None:
        known = membership.incarnation_of(host.name)
        membership.rejoin(max(next(self.incarnations), known + 1, membership.incarnation + 1))
        self.work_soon(host)
        self.tell_digest(host, membership.incarnation)

    def find_removed(self, host: Host, membership: Membership) -> None:
        """Who was removed, by whomever, is told to join again."""
        if host.membership is membership and membership.is_removed:
            self.happened["rejoin"] += 1
            self.become_later(host, membership)
            self.join_seeds(host)


def simulate_lies(seed: int, nodes: int) -> LyingSimulation:
    simulation = LyingSimulation(seed, nodes)
    try:
        simulation.cause_trouble()
        simulation.agree()
        for host in simulation.live():
            assert host.membership is not None
            state = host.membership.state()
            assert len(host.membership) <= nodes + 3
            assert len(state["s"]) <= len(host.membership) + LIMITS.membership_retired_max
            assert host.membership._time <= FAR + 10**6
    except Exception as error:
        raise AssertionError(f"seed {seed}, {nodes} nodes: {error!r}") from error
    return simulation


def test_a_dozen_nodes_agree_though_one_lied() -> None:
    happened: Counter[str] = Counter()
    for seed in range(60):
        happened += simulate_lies(seed, 12).happened
    assert happened["outbid"] > 60 < happened["rejoin"], happened


def outcome(seed: int) -> str:
    """Runs in a process of its own: nothing but text comes back."""
    try:
        simulate_lies(seed, NODES).leave_no_cycles()
    except AssertionError as error:
        return f"{error}\n"
    return ""


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seeds", [10, pytest.param(1_000, marks=pytest.mark.soak)])
def test_a_hundred_nodes_agree_though_one_lied(seeds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, gc.disable) as pool:
        failures = "".join(pool.map(outcome, range(seeds), chunksize=2))
    assert not failures, failures
