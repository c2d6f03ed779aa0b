"""A hundred nodes with names and groups in virtual time: those that live agree in the end.

A seed decides all: when nodes start, crash and are cut off from each other, which processes
register, join, leave and end, how long a message is under way and which are lost.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.cluster.decide.directory_network import Host, Network

NODES = 100
NAMES = [f"name-{number}" for number in range(12)]
GROUPS = [f"group-{number}" for number in range(5)]
PROCESSES = [f"p{number}" for number in range(4)]
TROUBLE_S = 20.0
PEACE_S = 60.0


def a_process_does_something(network: Network, host: Host) -> None:
    if host.directory is None:
        return
    rng = network.rng
    life = network.spawn(host, rng.choice(PROCESSES))
    what = rng.randrange(11)
    if what < 4:
        network.register(host, life, rng.choice(NAMES))
    elif what < 5:
        believed = sorted(host.believed.get(life, ()))
        network.unregister(host, life, rng.choice(believed or NAMES))
    elif what < 8:
        network.join(host, life, rng.choice(GROUPS))
    elif what < 9:
        network.leave(host, life, rng.choice(GROUPS))
    else:
        network.end(host, life)


def simulate(seed: int, nodes: int, *, loss: float = 0.01, shuffled: bool = False) -> Network:
    try:
        network = Network(seed, nodes, loss=loss, shuffled=shuffled)
        trouble(network, nodes)
        end = network.now + PEACE_S
        while not (network.is_agreed() and not network.open_requests):
            assert network.now < end, "they do not agree"
            network.run(1.0)
        # Nobody changes his mind.
        network.run(12.0)
        network.check()
        return network
    except Exception as error:
        raise AssertionError(f"seed {seed}, {nodes} nodes: {error!r}") from error


def trouble(network: Network, nodes: int) -> None:
    rng = network.rng
    for host in network.hosts:
        network.at(rng.uniform(0, 3 if rng.random() < 0.9 else TROUBLE_S), network.start, host)
    network.run(1.0)
    for _ in range(nodes * 8):
        host = rng.choice(network.hosts)
        at = rng.uniform(1.0, TROUBLE_S)
        network.at(at, a_process_does_something, network, host)
    for _ in range(rng.randint(2, 5)):
        host, at = rng.choice(network.hosts), rng.uniform(3.0, TROUBLE_S)
        network.at(at, network.crash, host)
        network.at(at + rng.uniform(0.01, 5.0), network.start, host)
    for group in GROUPS:
        for host in rng.sample(network.hosts, min(len(network.hosts), 3)):
            at = rng.uniform(3.0, TROUBLE_S)
            network.at(at, lambda host=host, group=group: (
                network.subscribe(host, group) if host.directory is not None else None
            ))  # fmt: skip
    for _ in range(rng.randint(1, 2)):
        at = rng.uniform(3.0, TROUBLE_S - 4)
        network.at(at, network.divide, rng.randint(2, 3))
        if rng.random() < 0.5:
            network.at(at + rng.uniform(0.1, 4.0), network.divide, 1)
    network.run(TROUBLE_S)
    network.loss = 0.0
    network.divide(1)
    for host in network.hosts:
        network.start(host)
    # What was asked before that goes on.
    network.run(0.0)
    for number in [
        number for number, what in network.open_requests.items() if stale(network, what)
    ]:
        del network.open_requests[number]


def stale(network: Network, what: str) -> bool:
    """Whether a request was made by a life that ended with its node."""
    return not any(
        what.startswith(f"{life}:") for host in network.live for life in host.lives.values()
    )


def test_a_dozen_nodes_agree() -> None:
    happened = sum(
        (simulate(seed, 12).happened for seed in range(60)), start=simulate(60, 12).happened
    )
    for what in (
        "start", "crash", "split", "heal", "registered", "lost", "unregistered", "refused: taken",
        "refused: no_process", "ended",
    ):  # fmt: skip
        assert happened[what], (what, happened)


def test_in_any_order_and_twice_they_agree_too() -> None:
    for seed in range(30):
        simulate(seed, 8, loss=0.05, shuffled=True)


def outcome(seed: int) -> str:
    """Runs in a process of its own: nothing but text comes back."""
    try:
        simulate(seed, NODES)
    except AssertionError as error:
        return f"{error}\n"
    return ""


# G11 and G12.
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seeds", [2, pytest.param(1_000, marks=pytest.mark.soak)])
def test_a_hundred_nodes_agree_under_every_seed(seeds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        failures = "".join(pool.map(outcome, range(seeds)))
    assert not failures, failures


def test_a_name_never_has_two_owners_while_the_mesh_is_whole() -> None:
    """Whoever is told `Registered` is the only one that was, at any time: G12."""
    registered = 0
    for seed in range(150):
        network = Network(seed, 6)
        rng = network.rng
        for host in network.hosts:
            network.start(host)
        network.run(1.0)
        names = NAMES[:2]
        for _ in range(60):
            host = rng.choice(network.hosts)
            network.at(network.now + rng.uniform(0, 3), race, network, host, rng.choice(names))
        for _ in range(3_000):
            if not network.events:
                break
            network.run(max(network.events[0][0] - network.now, 0.0))
            for name, pids in network.believers().items():
                assert len(pids) <= 1, (seed, name, pids)
            if network.now > 10:
                break
        assert not network.open_requests, (seed, network.open_requests)
        assert not network.happened["lost"], seed
        registered += network.happened["registered"]
        network.check()
    assert registered > 300


def race(network: Network, host: Host, name: str) -> None:
    rng = network.rng
    life = network.spawn(host, rng.choice(PROCESSES[:2]))
    what = rng.randrange(8)
    if what < 5:
        network.register(host, life, name)
    elif what < 7:
        network.unregister(host, life, name)
    else:
        network.end(host, life)


def test_the_same_seed_is_the_same_run() -> None:
    a, b = simulate(1, 12), simulate(1, 12)
    assert (a.now, a.sent, a.happened) == (b.now, b.sent, b.happened)
