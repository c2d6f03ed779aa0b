"""Everything at once: five nodes under random traffic and a seeded list of faults.

A failure prints the seed and the schedule; with RABBLE_SEED=7 in the environment that of seed 7 is
replayed.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.faults import rules
from tests.faults.history import Event, read_all
from tests.faults.meshes import PORT, RSS_MORE_BYTES, SLACK_S, Members, figures
from tests.faults.planted import plant
from tests.faults.rig.line import CLEAR
from tests.faults.rig.marks import requires_root_network
from tests.faults.rig.netns import Network
from tests.faults.rig.process import OsProcess
from tests.faults.rig.schedule import ALL_KINDS, Hands, Schedule
from tests.faults.rig.switch import Switch
from tests.support import SANITIZED

pytestmark = requires_root_network

SEEDS = [int(os.environ["RABBLE_SEED"])] if "RABBLE_SEED" in os.environ else range(1, 11)
#: After the faults: what was cut is dialled again, and what waited is said.
CONVERGED_S = 5.0 + 2 * SLACK_S
#: Milliseconds, enough for whatever ends an ask to be told before: see `rules.record.SLACK_S`.
LONG_MS = 15_000
#: How many messages are large: together no more than a line that is bad for a while makes up for.
LARGE = 0.003
#: Buffers of connections, and what a Python process does not give back.
RSS_SPREAD_BYTES = RSS_MORE_BYTES + (16 << 20)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(5) as network:
        yield network


@pytest.fixture(scope="module")
def switch(network: Network) -> Iterator[Switch]:
    with Switch(network, seed=1) as switch:
        yield switch


def tally(logs: Mapping[str, Sequence[Event]]) -> dict[str, str]:
    """How often what happened."""
    counts: Counter[str] = Counter()
    for event in itertools.chain.from_iterable(logs.values()):
        counts[event["e"]] += 1
        for field in ("how", "kind"):
            if field in event:
                counts[f"{event['e']}:{event[field]}"] += 1
    return {kind: str(count) for kind, count in sorted(counts.items())}


def perform(
    seed: int,
    lasting_s: float,
    network: Network,
    switch: Switch,
    folder: Path,
    every_s: float,
    whole_s: float,
    ask_ms: float,
) -> None:
    """A schedule of faults, and then `whole_s` in which all goes on without any."""
    schedule = Schedule.drawn(seed, [h.name for h in network.hosts], lasting_s, ALL_KINDS, every_s)
    print(schedule)
    addresses = {host.name: f"{switch.ipv4(host)}:{PORT}" for host in network.hosts}
    with Members(
        folder, 5, network, addresses=addresses, seed=seed, ask_ms=ask_ms, large=LARGE
    ) as mesh:
        mesh.begin()
        usual = mesh.usage()

        def restart(name: str) -> OsProcess:
            mesh[name].restart()
            mesh[name].ask("go")
            return mesh[name].process

        def tell(name: str, words: str) -> None:
            mesh[name].tell(words)

        hands = Hands(network, switch, {m.name: m.process for m in mesh}, restart, tell)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                schedule.perform(hands)
            except BaseException as error:
                failures.append(error)

        # In a thread of its own, so that the time limit of the test can end it.
        performer = threading.Thread(target=run, daemon=True)
        performer.start()
        performer.join()
        network.heal()
        switch.set(CLEAR)
        assert not failures, failures
        for member in mesh:
            assert member.process.alive, f"{member.name} ended: {member.process.stderr()}"
        begin = time.monotonic()
        mesh.whole()
        converged_s = time.monotonic() - begin
        # What is asked and claimed now is the business of a mesh that is whole.
        time.sleep(whole_s)
        mesh.all_ask("pause")
        mesh.all_ask("ended")
        mesh.rest()
        agreed_s = mesh.agree(CONVERGED_S)
        mesh.check()
        assert converged_s <= CONVERGED_S
        for name, now in mesh.usage().items():
            assert now.threads == usual[name].threads, name
            assert now.fds <= usual[name].fds + 2, name
            grown = now.rss_bytes - usual[name].rss_bytes
            assert SANITIZED or grown < RSS_SPREAD_BYTES, name
    logs = read_all(folder.glob("*.jsonl"))
    # That nothing was found says something, since all that is planted there is.
    planted, wanted = plant(logs, random.Random(seed))
    found = rules.check(planted)
    for promise, text in wanted:
        assert any(each.promise == promise and text in each.text for each in found), (promise, text)
    figures(
        f"seed {seed}",
        steps=len(schedule.steps),
        converged_s=converged_s,
        agreed_s=agreed_s,
        **tally(logs),
    )
    shutil.rmtree(folder)


def test_a_short_schedule(network: Network, switch: Switch, tmp_path: Path) -> None:
    """G1 to G6, G8 and G11, under faults that come one upon the other."""
    seed = int(os.environ.get("RABBLE_SEED", 2))
    perform(seed, 6.0, network, switch, tmp_path, every_s=0.5, whole_s=2.0, ask_ms=3_000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_schedule(network: Network, switch: Switch, tmp_path: Path, seed: int) -> None:
    perform(seed, 60.0, network, switch, tmp_path, every_s=0.7, whole_s=10.0, ask_ms=LONG_MS)
