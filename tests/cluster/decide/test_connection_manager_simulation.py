"""Several `ConnectionManager`s in a simulated network: any order of events, whatever breaks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble.cluster.decide.actions import Up
from tests.cluster.decide.simulated_network import Node, World

#: Seconds after the last fault within which every pair is connected: a peer that is gone is
#: noticed (8 s), a wait that grew meanwhile ends (31 s), a dial that is lost too comes to its end
#: (5 s), and so does the next wait, as the peer may have had the connection that is gone for a
#: live one.
HEALED_S = 90.0

DELAYS = ((0.001,), (0.001, 0.1, 0.5), (0.001, 0.05, 1.0, 2.0))


def up_once(world: World) -> None:
    """Every pair is up by one connection; there never was another."""
    assert world.full()
    for node in world.nodes.values():
        events = node.ups_and_downs()
        assert len(events) == len(world.nodes) - 1
        assert all(isinstance(event, Up) for event in events)


def every_order(make: Callable[[], World], check: Callable[[World], None]) -> int:
    """Run all orders in which the events can happen, each from the start; how many there are."""
    is_desired: list[int] = []
    runs = 0
    while True:
        made: list[tuple[int, int]] = []

        def choose(
            count: int, made: list[tuple[int, int]] = made, is_desired: list[int] = is_desired
        ) -> int:
            choice = is_desired[len(made)] if len(made) < len(is_desired) else 0
            made.append((choice, count))
            return choice

        world = make()
        world.run_chosen(choose)
        check(world)
        runs += 1
        while made and made[-1][0] == made[-1][1] - 1:
            made.pop()
        if not made:
            return runs
        is_desired = [choice for choice, _ in made[:-1]] + [made[-1][0] + 1]


def two(explicit: bool = True) -> World:
    world = World(random.Random(1))
    world.start("a")
    world.start("b")
    world.meet(explicit)
    return world


def test_every_order_of_a_simultaneous_connect() -> None:
    assert every_order(two, up_once) > 1_000


def test_every_order_in_which_a_seed_meets_a_dial() -> None:
    def make() -> World:
        world = World(random.Random(1))
        first, second = world.start("a"), world.start("b")
        first.carry_out(first.manager.add_peer(second.id, 0.0))
        second.manager.add_seed("a:1", 0.0)
        return world

    assert every_order(make, up_once) > 1_000


def test_every_order_in_which_two_seeds_meet() -> None:
    def make() -> World:
        world = World(random.Random(1))
        first, second = world.start("a"), world.start("b")
        first.manager.add_seed("b:1", 0.0)
        second.manager.add_seed("a:1", 0.0)
        return world

    assert every_order(make, up_once) > 1_000


@pytest.mark.parametrize("explicit", [False, True])
def test_a_thousand_simultaneous_connects(explicit: bool) -> None:
    for seed in range(1_000):
        world = World(random.Random(seed), (0.001, 0.002, 0.02, 0.1, 0.3))
        world.start("a")
        world.start("b")
        world.meet(explicit)
        world.run(3.0)
        up_once(world)


def test_five_nodes_meet_in_three_seconds() -> None:
    for seed in range(50):
        world = World(random.Random(seed), (0.001, 0.05, 0.1))
        for name in "abcde":
            world.start(name)
        for node in world.nodes.values():
            world.run(world.now + world.rng.uniform(0, 0.2))
            for other in world.nodes.values():
                node.carry_out(node.manager.add_peer(other.id, world.now))
        world.run(world.now + 3.0)
        up_once(world)


def between(world: World, first: str, second: str) -> None:
    """Cut what is between two nodes, as a firewall does: without a word."""
    world.blocked.add(frozenset({first, second}))
    for end in list(world.nodes[first].ends.values()):
        if end.other is not None and end.other.node is world.nodes[second]:
            world.cut(end)


def five(seed: int) -> World:
    world = World(random.Random(seed), (0.001, 0.002))
    for name in "abcde":
        world.start(name)
    world.meet()
    world.run(5.0)
    assert world.full()
    return world


@pytest.mark.parametrize("cut_s", [10.0, 60.0, 3600.0])
def test_a_split_heals(cut_s: float) -> None:
    for seed in range(5):
        world = five(seed)
        for first in "ab":
            for second in "cde":
                between(world, first, second)
        world.run(world.now + cut_s)
        assert world.nodes["a"].peers.keys() == {"b"}
        assert world.nodes["c"].peers.keys() == {"d", "e"}
        healed = world.now
        world.blocked.clear()
        while not world.full():
            world.run(world.now + 0.25)
        # A short cut leaves short waits; after a long one the first pair that finds each other
        # calls the others.
        assert world.now - healed <= (5.0 if cut_s == 10.0 else 15.0)


def test_a_cut_between_two_is_theirs_alone() -> None:
    world = five(1)
    before = {name: node.ups_and_downs() for name, node in world.nodes.items()}
    between(world, "a", "b")
    world.run(world.now + 20.0)
    for name in "cde":
        assert world.nodes[name].ups_and_downs() == before[name]
    assert world.nodes["a"].peers.keys() == {"c", "d", "e"}
    assert world.nodes["a"].manager.statuses(world.now)["b"].state in ("waiting", "dialling")


def test_a_peer_that_starts_again_is_up_again_at_once() -> None:
    for seed in range(20):
        world = two()
        world.rng.seed(seed)
        world.run(1.0)
        world.restart("b", silently=False)
        world.meet()
        world.run(world.now + 2.0)
        first = world.nodes["a"].ups_and_downs()
        assert world.full() and [type(event).__name__ for event in first] == ["Up", "Down", "Up"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_later_start_does_not_wait_for_the_old_one_to_be_missed(name: str) -> None:
    for seed in range(20):
        world = two()
        world.rng.seed(seed)
        world.run(1.0)
        world.restart(name, silently=True)
        world.meet()
        world.run(world.now + 2.0)
        assert world.full()


def test_a_lost_accept_is_made_up_for() -> None:
    """The responder is up, the initiator never hears of it."""
    world = two(explicit=False)
    first, second = world.nodes["a"], world.nodes["b"]
    while not second.peers:
        world.run(world.now + 0.0005)
    assert not first.peers
    for end in list(first.ends.values()):
        world.cut(end)
    world.run(20.0)
    assert world.full()


def test_a_stale_incarnation_is_raised() -> None:
    world = two()
    world.run(1.0)
    back = world.restart("b", silently=False)
    back.manager.incarnation = 0
    world.meet()
    world.run(10.0)
    assert world.full()
    assert world.nodes["a"].peers["b"].incarnation == back.manager.incarnation == 3


steps = st.lists(
    st.tuples(
        st.sampled_from(["cut", "end", "die", "vanish", "block", "unblock", "join", "leave"]),
        st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 40.0]),
    ),
    max_size=30,
)


def disturb(world: World, what: str) -> None:
    rng, nodes = world.rng, list(world.nodes.values())
    ends = [end for node in nodes for end in node.ends.values()]
    first, second = rng.sample(nodes, 2)
    if what in ("cut", "end") and ends:
        (world.cut if what == "cut" else world.give_up)(rng.choice(ends))
    elif what in ("die", "vanish"):
        world.restart(first.id.name, silently=what == "vanish")
        world.meet()
    elif what == "block":
        between(world, first.id.name, second.id.name)
    elif what == "unblock":
        world.blocked.clear()
    elif what == "join":
        first.carry_out(first.manager.add_peer(second.id, world.now, explicit=True))
    elif what == "leave":
        first.carry_out(first.manager.remove_peer(second.id.name, world.now))


@pytest.mark.parametrize("names", ["ab", "abcde"])
@given(st.integers(0, 2**32), st.sampled_from(DELAYS), steps)
@settings(max_examples=100)
def test_whatever_breaks_it_heals(
    names: str, seed: int, delays: tuple[float, ...], script: list[tuple[str, float]]
) -> None:
    """G3 and G8 at every step (`Node.carry_out` asserts them); G11 once faults stop."""
    world = World(random.Random(seed), delays)
    for name in names:
        world.start(name)
    world.meet()
    for what, pause in script:
        world.run(world.now + pause)
        disturb(world, what)
    # With seconds from side to side no handshake could be sure to end in time.
    world.blocked.clear()
    world.delays = (0.001, 0.1, 0.5)
    world.meet()
    quiet = world.now
    while not world.full():
        assert world.now - quiet < HEALED_S
        world.run(world.now + 1.0)
    # And there it stays: no connection is replaced without need.
    told = {name: node.ups_and_downs() for name, node in world.nodes.items()}
    world.run(world.now + 60.0)
    assert world.full()
    assert told == {name: node.ups_and_downs() for name, node in world.nodes.items()}


def test_the_simulation_would_notice() -> None:
    """Without the question before PROOF both sides give up what the other one accepted."""

    def careless(node: Node) -> None:
        authenticating = node.manager.authenticating

        def forgetful(connection_id: int, *about: object) -> object:
            refusal = authenticating(connection_id, *about)  # type: ignore[arg-type]
            pending_dial = node.manager._dials.get(connection_id)
            if pending_dial is not None and pending_dial.authenticating is not None:
                node.manager._dials.is_authenticating = lambda *_: False  # type: ignore[method-assign]
            return refusal

        node.manager.authenticating = forgetful  # type: ignore[method-assign,assignment]

    def make() -> World:
        world = two()
        for node in world.nodes.values():
            careless(node)
        return world

    with pytest.raises(AssertionError):
        every_order(make, up_once)
