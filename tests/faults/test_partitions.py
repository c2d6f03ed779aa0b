"""Networks that fall apart, spoil packets, or fall silent."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.faults.meshes import (
    HEARTBEAT_S,
    PORT,
    RSS_MORE_BYTES,
    SLACK_S,
    T_DOWN_S,
    Members,
    figures,
    over,
)
from tests.faults.rig.line import CLEAR, Weather
from tests.faults.rig.marks import requires_root_network
from tests.faults.rig.netns import Network
from tests.faults.rig.switch import Switch
from tests.support import PATIENCE_S, TINY

pytestmark = requires_root_network

#: After that time at most a peer that is cut off is down ...
DOWN_S = 1.25 * T_DOWN_S + SLACK_S
#: ... and after that one it is up again, once the cut is over.
HEAL_S = 3.0 + SLACK_S
#: Who is heard right before the cut is not down any sooner.
NOT_BEFORE_S = T_DOWN_S - 3 * HEARTBEAT_S
#: A lossy line takes less than is said: queues fill up. To each of two peers a lane keeps two
#: buffers that took turns, of as much as may wait.
RSS_LOSSY_BYTES = RSS_MORE_BYTES + 2 * 2 * (8 << 20)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(5) as network:
        yield network


@pytest.fixture(scope="module")
def shared_mesh(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with Members(tmp_path_factory.mktemp("mesh"), 5, network) as mesh:
        mesh.warm_up()
        yield mesh


@pytest.fixture
def mesh(shared_mesh: Members, network: Network) -> Iterator[Members]:
    """Five nodes under traffic; afterwards the history is checked, and what they hold."""
    shared_mesh.all_ask("go")
    yield shared_mesh
    network.heal()
    shared_mesh.settle()


def cut(network: Network, pairs: Iterable[tuple[str, str]]) -> None:
    for one, other in pairs:
        network.cut(network[one], network[other])


def all_pairs(names: Iterable[str]) -> set[tuple[str, str]]:
    names = sorted(names)
    return {(one, other) for one in names for other in names if one < other}


def see_down(mesh: Members, pairs: Iterable[tuple[str, str]], since: float) -> tuple[float, float]:
    """Both ends of these links, and of no others, say that the other is down: first and last."""
    pairs = set(pairs)
    times = []
    for one, other in pairs:
        for node, peer in (one, other), (other, one):
            times.append(mesh[node].awaits(f"down {peer} ", since)[0] - since)
    for one, other in all_pairs(mesh.names) - pairs:
        for node, peer in (one, other), (other, one):
            assert not mesh[node].events(f"down {peer} ", since)
    return min(times), max(times)


def split_and_heal(
    name: str, mesh: Members, network: Network, pairs: set[tuple[str, str]], begin: float
) -> None:
    """After the links of these pairs were cut at `begin`, at the earliest."""
    first, last = see_down(mesh, pairs, begin)
    assert NOT_BEFORE_S <= first and last <= DOWN_S
    everybody = ",".join(mesh.names)
    for member in mesh:
        assert member.ask("members") == everybody
        across = {p for pair in pairs if member.name in pair for p in pair} - {member.name}
        shown = mesh.links(member.name)
        assert shown.keys() == set(mesh.names) - across - {member.name}
    network.heal()
    healed_s = mesh.whole()
    assert healed_s <= HEAL_S
    figures(name, first_down_s=first, last_down_s=last, healed_s=healed_s)


def test_two_against_three(mesh: Members, network: Network) -> None:
    """Each cut connection is down in time; when the cut is healed all are up again."""
    begin = time.monotonic()
    network.partition(network.hosts[:2], network.hosts[2:])
    across = {(one, other) for one in mesh.names[:2] for other in mesh.names[2:]}
    split_and_heal("split", mesh, network, across, begin)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_one_is_isolated_again_and_again(mesh: Members, network: Network, times: int) -> None:
    """The isolated node and the others lose each other, and meet again, each time."""
    for turn in range(times):
        name = mesh.names[turn % 5]
        begin = time.monotonic()
        network.isolate(network[name])
        pairs = {pair for pair in all_pairs(mesh.names) if name in pair}
        split_and_heal("isolated", mesh, network, pairs, begin)


def test_one_link_of_a_triangle(mesh: Members, network: Network) -> None:
    """The cut is reported, and no other connection is harmed."""
    begin = time.monotonic()
    cut(network, [("n1", "n2")])
    split_and_heal("one link", mesh, network, {("n1", "n2")}, begin)


def test_majorities_that_differ(mesh: Members, network: Network) -> None:
    """A ring: each node reaches two others, and no two nodes reach the same."""
    apart = {("n1", "n3"), ("n2", "n4"), ("n3", "n5"), ("n1", "n4"), ("n2", "n5")}
    begin = time.monotonic()
    cut(network, apart)
    split_and_heal("ring", mesh, network, apart, begin)


def test_a_bridge(mesh: Members, network: Network) -> None:
    """Only n3 reaches both sides."""
    begin = time.monotonic()
    network.partition(network.hosts[:2], network.hosts[3:])
    across = {(one, other) for one in mesh.names[:2] for other in mesh.names[3:]}
    split_and_heal("bridge", mesh, network, across, begin)


def test_a_host_that_vanishes_while_all_is_idle(mesh: Members, network: Network) -> None:
    """A silent peer is down after `down_after_ms`, without any traffic to it."""
    mesh.rest()
    begin = time.monotonic()
    network.isolate(network["n5"])
    pairs = {pair for pair in all_pairs(mesh.names) if "n5" in pair}
    split_and_heal("idle", mesh, network, pairs, begin)


def test_established_connections_go_dead_and_new_ones_pass(mesh: Members, network: Network) -> None:
    """As with a firewall that forgot its state."""
    begin = time.monotonic()
    network.drop_established(network["n1"])
    for name in mesh.names[1:]:
        mesh["n1"].awaits(f"down {name} ", begin)
    mesh.whole()
    took_s = time.monotonic() - begin
    assert T_DOWN_S / 2 <= took_s <= DOWN_S + HEAL_S
    figures("established flows dropped", whole_again_s=took_s)


@pytest.mark.parametrize("lasting_s", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_connections_are_killed_at_random(
    mesh: Members, network: Network, lasting_s: float
) -> None:
    """Order is kept, and each loss has a witness, whichever connections die."""
    rng = random.Random(80)
    end = time.monotonic() + lasting_s
    killed = 0
    while time.monotonic() < end:
        one, other = rng.sample(network.hosts, 2)
        killed += one.kill_sockets(other, *rng.choice([(), ("dport", "=", f":{PORT}")]))
        time.sleep(rng.uniform(0, 0.3))
    whole_s = mesh.whole()
    assert whole_s <= HEAL_S and killed
    figures("ss -K", killed=killed, whole_again_s=whole_s)


def test_a_host_that_was_rebooted(mesh: Members, network: Network) -> None:
    """No BYE arrives, and the host's kernel knows nothing of the connection any more."""
    n5, others = network["n5"], network.hosts[:4]
    for other in others:
        network.cut_one_way(n5, other)
    before = {host.name: len(mesh[host.name].process.stderr()) for host in others}
    killed = time.monotonic()
    mesh["n5"].process.kill()
    for other in others:
        network.heal(n5, other)
        network.reject(other, n5)
    begin = time.monotonic()
    times = [mesh[host.name].awaits("down n5 ", killed)[0] - begin for host in others]
    # At once, had the machine nothing else to do: that it was no silence is told by the words.
    assert max(times) < T_DOWN_S + SLACK_S
    for host in others:
        said = mesh[host.name].process.stderr()[before[host.name] :]
        assert "nothing was heard of n5" not in said
    figures("rebooted", down_after_s=max(times))
    network.heal()
    mesh["n5"].restart()


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 11))]
)
def test_all_links_are_clogged_and_let_go_in_another_order(
    mesh: Members, network: Network, seed: int
) -> None:
    """The swizzle-clog of FoundationDB's simulation."""
    rng = random.Random(seed)
    links = sorted(all_pairs(mesh.names))
    begin = time.monotonic()
    for change in network.cut, network.heal:
        rng.shuffle(links)
        for one, other in links:
            change(network[one], network[other])
            time.sleep(rng.uniform(0, T_DOWN_S / 4))
    whole_s = mesh.whole()
    assert whole_s <= HEAL_S
    downs = sum(len(member.events("down ", begin)) for member in mesh)
    assert downs
    for member in mesh:
        assert member.ask("members") == ",".join(mesh.names)
    figures("swizzle-clog", downs=downs, whole_again_s=whole_s)


def heard(mesh: Members, names: list[str]) -> int:
    """How many messages these have had of each other so far."""
    counts = {name: json.loads(said) for name, said in mesh.all_ask("heard").items()}
    return sum(counts[one].get(other, 0) for one in names for other in names if one != other)


@pytest.mark.parametrize("lasting_s", [6, pytest.param(60, marks=pytest.mark.soak)])
def test_a_minority_is_cut_off_for_good(mesh: Members, network: Network, lasting_s: float) -> None:
    """Nodes that reach each other go on, on either side, with no less than before.

    Looked at up to three times: the machine has other work, too, and that comes and goes.
    """

    def rates() -> list[float]:
        """Messages a second within each side."""
        begin, before = time.monotonic(), [heard(mesh, side) for side in sides]
        time.sleep(lasting_s)
        after, end = [heard(mesh, side) for side in sides], time.monotonic()
        return [(b - a) / (end - begin) for a, b in zip(before, after, strict=True)]

    sides = mesh.names[:3], mesh.names[3:]
    usual = rates()
    begin = time.monotonic()
    network.partition(network.hosts[:3], network.hosts[3:])
    across = {(one, other) for one in sides[0] for other in sides[1]}
    see_down(mesh, across, begin)
    for _ in range(3):
        cut_off = rates()
        # Traffic is paced, by chance: each count strays by a hundredth or two, and more if it is of
        # fewer messages.
        if cut_off[0] >= 0.9 * usual[0] and cut_off[1] >= 0.75 * usual[1]:
            break
    else:
        pytest.fail(f"messages a second on either side: usually {usual}, cut off {cut_off}")
    for member in mesh:
        assert member.ask("members") == ",".join(mesh.names)
    network.heal()
    assert mesh.whole() <= HEAL_S
    figures("minority", usual_per_s=usual[0], cut_off_per_s=cut_off[0], minority_per_s=cut_off[1])


@pytest.mark.skipif(TINY, reason="all its packets are small")
@pytest.mark.timeout(180)
def test_a_way_on_which_large_packets_are_lost(tmp_path: Path) -> None:
    """Handshakes and heartbeats pass: the peer is held down, and the log says why."""
    lasting_s = 10.0
    with Network(2) as network, Members(tmp_path, 2, network) as mesh:
        mesh.all_ask("go")
        for one, other in itertools.permutations(network.hosts):
            network.cut_one_way(one, other, "meta length > 600 drop")
        began = time.monotonic()
        while not any("look at the MTU" in member.process.stderr() for member in mesh):
            assert time.monotonic() < began + PATIENCE_S, mesh["n1"].process.stderr()
            time.sleep(0.05)
        time.sleep(lasting_s)
        ups = len(mesh["n1"].events("up n2 ", began))
        lasted_s = time.monotonic() - began
        figures("large packets", lasted_s=lasted_s, ups=ups)
        # Each is silent for T_down; and between the latest ones it was held down for longer.
        assert ups <= lasted_s / (T_DOWN_S + 1.0) + 1
        network.heal()
        # It may just have come up for a moment, and stays.
        mesh.whole()


# Bad weather.


@pytest.fixture(scope="module")
def switch(network: Network) -> Iterator[Switch]:
    with Switch(network, seed=1) as switch:
        yield switch


def test_the_line_goes_dead_while_data_is_under_way(
    network: Network, switch: Switch, tmp_path: Path
) -> None:
    """No acknowledgement comes any more, nor anything else."""
    with over(switch, network, tmp_path, 2) as mesh:
        mesh.warm_up()
        mesh.all_ask("go")
        begin = time.monotonic()
        switch.set(Weather(cut=True))
        try:
            first, last = see_down(mesh, {("n1", "n2")}, begin)
        finally:
            switch.set(CLEAR)
        healed_s = mesh.whole()
        mesh.settle()
    assert NOT_BEFORE_S <= first and last <= DOWN_S and healed_s <= HEAL_S
    figures("unacknowledged", first_down_s=first, last_down_s=last, healed_s=healed_s)


@pytest.mark.parametrize("lasting_s", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_a_long_and_lossy_line(
    network: Network, switch: Switch, tmp_path: Path, lasting_s: float
) -> None:
    """With the times that a node has by default: a lost segment costs a second there."""
    usual = {"heartbeat_ms": 1_000, "down_after_ms": 8_000, "handshake_ms": 5_000}
    with over(switch, network, tmp_path, 3, **usual) as mesh:
        mesh.warm_up()
        mesh.all_ask("go")
        switch.set(Weather(delay_s=0.3, jitter_s=0.1, loss=0.02))
        begin = time.monotonic()
        time.sleep(lasting_s)
        downs = [line for member in mesh for line in member.events("down", begin)]
        lost = switch.counters().lost
        switch.set(CLEAR)
        mesh.settle(RSS_LOSSY_BYTES)
    assert not downs
    figures("delay and loss", packets_lost=lost)


@pytest.mark.parametrize("lasting_s", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_doubled_reordered_and_corrupted_packets(
    network: Network, switch: Switch, tmp_path: Path, lasting_s: float
) -> None:
    """The kernel puts right what it can see."""
    with over(switch, network, tmp_path, 3) as mesh:
        mesh.warm_up()
        mesh.all_ask("go")
        switch.set(Weather(duplicate=0.2, reorder=0.2, corrupt=0.02, delay_s=0.005))
        time.sleep(lasting_s)
        counters = switch.counters()
        switch.set(CLEAR)
        assert mesh.whole() <= HEAL_S
        mesh.settle()
    assert counters.duplicated and counters.reordered and counters.corrupted
    figures("spoilt packets", duplicated=counters.duplicated, corrupted=counters.corrupted)
