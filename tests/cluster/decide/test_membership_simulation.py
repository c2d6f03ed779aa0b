"""A hundred nodes in virtual time: whatever happens to them, those that live agree in the end.

A seed decides all: when nodes start, crash, start again elsewhere, are removed, join each other and
are cut off from each other, how long a state is under way and which are lost. What nodes exchange
are encoded states; each different one is decoded and checked once, and then known by that object.
A node takes in what it got, and tells of what came of it, a little after the first of it came; a
digest it says every 10 s, as the cluster server does.
"""

from __future__ import annotations

import collections
import gc
import heapq
import itertools
import multiprocessing
import operator
import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from rabble import Limits, MessageRegistry, NodeId
from rabble._core.codec import Codec
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.membership_state import News, Rows, State, read_state

NODES = 100
#: The first ones, which are told to every node that starts. They are never removed.
SEEDS = 3
#: Virtual seconds in which things happen, and in which all have to agree thereafter.
TROUBLE_S = 20.0
PEACE_S = 60.0
#: Troubles come in so many moments of so many seconds.
MOMENTS = 3
TOGETHER_S = 0.5
LATENCY_S = (0.001, 0.1)
#: How long a node waits for more changes before it takes them in and tells of them.
GATHER_S = (0.2, 0.8)
DIGEST_EVERY_S = 10.0
#: In so many groups arrive the states that a node sends at once, to save events.
GROUPS = 4
#: Of the states of a group one is lost, so often: 1 in 50 for groups of 25.
LOSS = 0.5

#: What happens under each seed.
EVENTS = ("start", "join", "leave", "crash", "restart", "split", "heal")
LIMITS = Limits()
#: Where a host is that is not up.
DOWN = -1


class Told(State):
    """A state that was told. What it has to say to another one is worked out once for all nodes."""

    __slots__ = ("members", "news", "number")

    def __init__(self, state: State, number: int, members: list[Host]) -> None:
        super().__init__(state.rows, state.codec)
        self.number = number
        self.members = members
        self.news: dict[State, News] = {}

    def news_for(self, known: State) -> News:
        news = self.news.get(known)
        if news is None:
            news = super().news_for(known)
            if isinstance(known, Told):
                self.news[known] = news
        return news


class Host:
    """Where a node runs, again and again."""

    __slots__ = (
        "got",
        "index",
        "is_busy",
        "known",
        "membership",
        "name",
        "node",
        "port",
        "side",
        "spot",
        "state",
    )

    def __init__(self, index: int, nodes: int) -> None:
        self.index = index
        self.name = f"n{index}"
        self.membership: Membership | None = None
        self.side = 0  # of the partition
        self.spot = DOWN  # the same if it is up
        self.port = 1
        self.node = NodeId(self.name, f"{self.name}:{self.port}")
        self.is_busy = False  # will take in and tell
        # What it last told, None before that. Equal states are the same object.
        self.state: Told | None = None
        # The state that each host is known to have.
        self.known: list[Told | None] = [None] * nodes
        # The states that came and were taken in yet.
        self.got: dict[Told, None] = {}

    def move(self) -> None:
        """To another port of the same host."""
        self.port += 1
        self.node = NodeId(self.name, f"{self.name}:{self.port}")


class Simulation:
    def __init__(self, seed: int, nodes: int = NODES) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.numbers = itertools.count()
        self.incarnations = itertools.count(1)
        self.all = [Host(i, nodes) for i in range(nodes)]
        self.hosts = {host.name: host for host in self.all}
        self.seeds, self.others = self.all[:SEEDS], self.all[SEEDS:]
        self.codec = Codec(MessageRegistry(), elements_max=2**31 - 1)
        # Each state that was ever told, by what it is encoded, and the rows of all of them.
        self.told: dict[bytes, Told] = {}
        self.checked = State(Rows(frozenset(), frozenset(), frozenset()), self.codec)
        lowest, highest = 3.0, TROUBLE_S - TOGETHER_S
        self.moments = [self.rng.uniform(lowest, highest) for _ in range(MOMENTS)]
        self.happened: collections.Counter[str] = collections.Counter()
        self.states_sent = self.merges = 0

    # Time.

    def at(self, time: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), what, args))

    def after(self, span: tuple[float, float], what: Callable[..., None], *args: Any) -> None:
        lowest, highest = span
        time = self.now + lowest + (highest - lowest) * self.rng.random()
        heapq.heappush(self.events, (time, next(self.numbers), what, args))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self.events)
            what(*args)
        self.now = until

    # What a server does.

    def work_soon(self, host: Host) -> None:
        if not host.is_busy:
            host.is_busy = True
            self.after(GATHER_S, self.work, host)

    def work(self, host: Host) -> None:
        """Take in what came, and tell all who are not known to know already."""
        host.is_busy = False
        membership = host.membership
        if membership is None:
            return
        removed = False
        # The latest state has most of the others in it.
        for state in sorted(host.got, key=operator.attrgetter("number"), reverse=True):
            changes = membership.merge(state)
            removed = removed or host.node in changes.removed
        self.merges += len(host.got)
        host.got.clear()
        if removed and membership.is_removed:
            self.after((0.5, 3.0), self.find_removed, host, membership)
        state = self.spoken(membership)
        if state is not host.state:
            host.state = state
            known, side = host.known, host.side
            known[host.index] = state
            self.send(
                host,
                [p for p in state.members if p.spot == side and known[p.index] is not state],
            )

    def spoken(self, membership: Membership) -> Told:
        """The one object that stands for what a node says, as peers decode it."""
        known = membership.known()
        if isinstance(known, Told):
            return known
        encoded = membership.encoded()
        state = self.told.get(encoded)
        if state is None:
            read = read_state(self.codec.decode_message(encoded), self.checked, LIMITS)
            state = Told(read, len(self.told), [self.hosts[name] for name in membership.members()])
            self.told[encoded] = state
            rows = (a | b for a, b in zip(self.checked.rows, state.rows, strict=True))
            self.checked = State(Rows(*rows), self.codec)
        assert not membership.merge(state).state_changed
        assert membership.known() is state
        return state

    def tell_digest(self, host: Host, incarnation: int) -> None:
        if host.membership is not None and host.membership.incarnation == incarnation:
            for some in self.groups(self.peers(host)) if host.state is not None else ():
                self.after(LATENCY_S, self.hear_digest, host, incarnation, host.state, some)
            self.at(self.now + DIGEST_EVERY_S, self.tell_digest, host, incarnation)

    def peers(self, host: Host) -> list[Host]:
        side = host.side
        members = host.state.members if host.state is not None else self.seeds
        return [p for p in members if p.spot == side and p is not host]

    def groups(self, peers: list[Host]) -> Iterable[list[Host]]:
        """Who of some peers is told at the same time; a few are not at all."""
        first = self.rng.randrange(GROUPS)
        for i in range(first, first + GROUPS):
            some = peers[i % GROUPS :: GROUPS]
            if some and self.rng.random() < LOSS * len(some) * GROUPS / NODES:
                del some[self.rng.randrange(len(some))]
            if some:
                yield some

    def send(self, host: Host, peers: list[Host]) -> None:
        assert host.membership is not None
        self.states_sent += len(peers)
        for some in self.groups(peers):
            args = (host, host.membership.incarnation, host.state, some)
            self.after(LATENCY_S, self.hear, *args)

    def hear(self, sender: Host, incarnation: int, state: Told, receivers: list[Host]) -> None:
        index, side = sender.index, sender.side
        for host in receivers:
            if host.state is not state and host.spot == side and host.membership is not None:
                host.known[index] = state
                if state not in host.got:
                    # Of one that was removed, too: it may know of a join that undoes this.
                    host.got[state] = None
                    self.work_soon(host)
                    standing = host.membership.standing(sender.name, incarnation)
                    if standing == "removed" and host.state is not None:
                        # So that the sender learns it.
                        self.after(LATENCY_S, self.hear_answers, sender, [host.state])

    def hear_digest(
        self, sender: Host, incarnation: int, state: Told, receivers: list[Host]
    ) -> None:
        """Another digest than the own one is answered with the own state."""
        side = sender.side
        answers = [
            host.state
            for host in receivers
            if host.state is not state and host.spot == side and host.state is not None
        ]
        if answers:
            self.states_sent += len(answers)
            self.after(LATENCY_S, self.hear_answers, sender, answers)

    def hear_answers(self, host: Host, states: list[Told]) -> None:
        if host.membership is not None:
            host.got.update(dict.fromkeys(state for state in states if state is not host.state))
            if host.got:
                self.work_soon(host)

    def find_removed(self, host: Host, membership: Membership) -> None:
        """Half of those that find themselves removed are told to join again, the others end."""
        if host.membership is membership and membership.is_removed:
            if self.rng.random() < 0.5:
                self.happened["rejoin"] += 1
                membership.rejoin(next(self.incarnations))
                self.join_seeds(host)
                self.tell_digest(host, membership.incarnation)
            else:
                self.end(host)

    def join_seeds(self, host: Host, count: int = 2) -> None:
        assert host.membership is not None
        for seed in self.rng.sample(self.seeds, count):
            if seed is not host:
                host.membership.add(seed.node)
        self.work_soon(host)

    def end(self, host: Host) -> None:
        host.membership = host.state = None
        host.spot = DOWN
        host.got.clear()

    # What happens.

    def start(self, host: Host) -> None:
        if host.membership is None:
            incarnation = next(self.incarnations)
            host.membership = Membership(host.node, incarnation, LIMITS)
            host.spot = host.side
            host.known = [None] * len(self.all)
            self.happened["start"] += 1
            self.join_seeds(host, self.rng.randint(1, 2))
            self.after((0.0, DIGEST_EVERY_S), self.tell_digest, host, incarnation)

    def restart(self, host: Host) -> None:
        self.happened["restart"] += host.membership is None
        self.start(host)

    def live(self) -> list[Host]:
        return [host for host in self.all if host.membership is not None]

    def crash(self) -> None:
        host = self.rng.choice(self.live())
        self.end(host)
        self.happened["crash"] += 1
        # Seeds are where they are said to be.
        if host not in self.seeds and self.rng.random() < 0.3:
            host.move()
        self.after((0.5, 5.0), self.restart, host)

    def leave(self) -> None:
        # Not by one that has just started and knows nobody but seeds yet.
        able = [host for host in self.all if host.membership and len(host.membership) > SEEDS]
        if not able:
            return self.after((0.5, 1.0), self.leave)
        by = self.rng.choice(able)
        assert by.membership is not None
        names = by.membership.members().keys() - {seed.name for seed in self.seeds}
        name = self.rng.choice(sorted(names))
        assert by.membership.remove(name)
        self.happened["leave"] += 1
        self.work_soon(by)
        if name == by.name:
            self.after((0.5, 3.0), self.find_removed, by, by.membership)

    def join(self) -> None:
        by, of = self.rng.choice(self.live()), self.rng.choice(self.all)
        if by is of:
            of = self.all[by.index - 1]
        assert by.membership is not None
        by.membership.add(of.node)
        self.happened["join"] += 1
        self.work_soon(by)

    def split(self) -> None:
        sides = self.rng.randint(2, 3)
        self.divide(lambda: self.rng.randrange(sides))
        self.happened["split"] += 1

    def heal(self) -> None:
        self.happened["heal"] += any(host.side for host in self.all)
        self.divide(lambda: 0)

    def divide(self, side: Callable[[], int]) -> None:
        for host in self.all:
            host.side = side()
            host.spot = host.side if host.membership is not None else DOWN

    def some(self, lowest: int, highest: int, what: Callable[..., None]) -> None:
        """Let something happen so many times."""
        for _ in range(self.rng.randint(lowest, highest)):
            self.at(self.a_moment(), what)

    def a_moment(self) -> float:
        """Troubles come together, while nodes do not know of one of them yet."""
        return self.rng.choice(self.moments) + self.rng.uniform(0.0, TOGETHER_S)

    def cause_trouble(self) -> None:
        for host in self.all:
            late = self.rng.random() < 0.1
            self.at(self.a_moment() if late else self.rng.uniform(0.0, 0.2), self.start, host)
        self.some(2, 5, self.leave)
        self.some(2, 3, self.join)
        self.some(2, 5, self.crash)
        self.some(1, 2, self.split)
        self.some(0, 2, self.heal)
        self.run(TROUBLE_S)
        self.heal()

    # What has to come of it.

    def is_agreed(self) -> bool:
        live = self.live()
        if len({host.state for host in live}) > 1:
            return False
        digests = {host.membership.digest() for host in live if host.membership}
        members = live[0].membership.members() if live[0].membership else {}
        return len(digests) == 1 and all(members.get(host.name) == host.node for host in live)

    def agree(self) -> float:
        """Virtual seconds until all live nodes hold the same state, they themselves in it."""
        while not self.is_agreed():
            assert self.now < TROUBLE_S + PEACE_S, "they do not agree"
            self.run(self.now + 1.0)
        return self.now - TROUBLE_S

    def leave_no_cycles(self) -> None:
        """Where no garbage is looked for all of it goes at once, or it adds up to gigabytes."""
        self.events.clear()
        for state in self.told.values():
            state.news.clear()
            state.members.clear()
        for host in self.all:
            host.known.clear()


def simulate(seed: int, nodes: int = NODES) -> Simulation:
    simulation = Simulation(seed, nodes)
    try:
        simulation.cause_trouble()
        simulation.agree()
        assert all(simulation.happened[event] for event in EVENTS), simulation.happened
    except Exception as error:
        raise AssertionError(f"seed {seed}, {nodes} nodes: {error!r}") from error
    return simulation


def test_a_dozen_nodes_agree() -> None:
    for seed in range(60):
        simulate(seed, 12)


def outcome(seed: int) -> str:
    """Runs in a process of its own: nothing but text comes back."""
    try:
        simulation = simulate(seed)
    except AssertionError as error:
        return f"{error}\n"
    simulation.leave_no_cycles()
    return ""


# 63, 67, 62, 59 together, and G11.
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seeds", [100, pytest.param(1_000, marks=pytest.mark.soak)])
def test_a_hundred_nodes_agree_under_every_seed(seeds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, gc.disable) as pool:
        failures = "".join(pool.map(outcome, range(seeds), chunksize=10))
    assert not failures, failures


def test_the_same_seed_is_the_same_run() -> None:
    a, b = simulate(1, 12), simulate(1, 12)
    assert (a.now, a.merges, a.states_sent) == (b.now, b.merges, b.states_sent)
    states = [[h.membership and h.membership.digest() for h in s.all] for s in (a, b)]
    assert states[0] == states[1]
