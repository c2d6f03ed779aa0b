"""Names and groups of processes on hosts that are killed, paused, and cut off from each other."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.meshes import LIMITS, PORT, ROOT
from tests.faults.rig.marks import requires_root_network
from tests.faults.rig.netns import Network
from tests.faults.rig.process import PATIENCE_S, OsProcess

pytestmark = requires_root_network

NAMES = ["n1", "n2", "n3", "n4", "n5"]
ALL = ",".join(NAMES)


class Claimers:
    """Five nodes, and what each has said so far."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self.network = network
        self._stack = stack
        self._read = dict.fromkeys(NAMES, 0)
        self.nodes = {name: self.start(name) for name in NAMES}

    def start(self, name: str) -> OsProcess:
        seeds = [f"{self.network[each].ipv4}:{PORT}" for each in NAMES[:2] if each != name]
        spec = {
            "name": name,
            "addr": f"{self.network[name].ipv4}:{PORT}",
            "seeds": seeds,
            "limits": {**LIMITS, "name_claim_ms": 600_000},
        }
        process = OsProcess(
            [sys.executable, "-m", "tests.faults.names_app", json.dumps(spec)],
            host=self.network[name],
            ready="^ready",
            cwd=ROOT,
            talk=True,
        )
        self._stack.callback(process.close)
        self._read[name] = 0
        return process

    def awaits(self, name: str, pattern: str) -> str:
        """The next line of such a kind, behind the one that was awaited last."""
        line = self.nodes[name].wait_line(pattern, PATIENCE_S, self._skip(name, pattern))
        lines = self.nodes[name].lines()
        self._read[name] = lines.index(line, self._read[name]) + 1
        return line

    def _skip(self, name: str, pattern: str) -> int:
        read = self.nodes[name].lines()[: self._read[name]]
        return sum(bool(re.search(pattern, each)) for each in read)

    def claim(self, name: str, what: str = "leader") -> None:
        self.nodes[name].say(f"claim {what}")

    def holder(self, name: str, what: str = "leader") -> str:
        self.nodes[name].say(f"whereis {what}")
        return self.awaits(name, "^= ").removeprefix("= ")

    def agree(self, holder: str, *names: str) -> None:
        """Wait until these nodes say that this one has the name."""
        end = time.monotonic() + PATIENCE_S
        for name in names or NAMES:
            while self.holder(name) != holder:
                assert time.monotonic() < end, f"{name} does not see {holder}"
                time.sleep(0.02)

    def grouped(self, members: str, *names: str) -> None:
        for name in names:
            self.awaits(name, f"^group {members}$")


@pytest.fixture
def nodes() -> Iterator[Claimers]:
    with Network(5) as network, ExitStack() as stack:
        claimers = Claimers(network, stack)
        claimers.grouped(ALL, *NAMES)
        yield claimers


def test_each_side_of_a_split_has_its_owner_and_one_is_left_when_they_meet(nodes: Claimers) -> None:
    nodes.claim("n1")
    nodes.awaits("n1", "^has leader")
    nodes.agree("n1")
    nodes.claim("n4")
    nodes.awaits("n4", "^refused leader taken n1")
    hosts = nodes.network.hosts
    nodes.network.partition(hosts[:2], hosts[2:])
    nodes.grouped("n1,n2", "n1", "n2")
    nodes.grouped("n3,n4,n5", "n3", "n4", "n5")
    nodes.agree("nobody", "n3", "n4", "n5")
    nodes.agree("n1", "n1", "n2")
    nodes.claim("n4")
    nodes.awaits("n4", "^has leader")
    nodes.agree("n4", "n3", "n5")
    nodes.network.heal()
    nodes.awaits("n4", "^lost leader to n1")
    nodes.grouped(ALL, *NAMES)
    nodes.agree("n1")
    assert not [line for line in nodes.nodes["n1"].lines() if line.startswith("lost")]


def test_what_a_killed_node_had_is_free_and_its_next_start_does_not_have_it(
    nodes: Claimers,
) -> None:
    nodes.claim("n3")
    nodes.awaits("n3", "^has leader")
    nodes.agree("n3")
    nodes.nodes["n3"].kill()
    nodes.grouped("n1,n2,n4,n5", "n1", "n2", "n4", "n5")
    nodes.agree("nobody", "n1", "n2", "n4", "n5")
    nodes.claim("n5")
    nodes.awaits("n5", "^has leader")
    nodes.nodes["n3"] = nodes.start("n3")
    nodes.grouped(ALL, *NAMES)
    nodes.agree("n5")


def test_a_node_that_is_paused_keeps_nobody_from_a_name_once_it_is_down(nodes: Claimers) -> None:
    nodes.nodes["n2"].pause()
    nodes.claim("n1")
    # It is waited for as long as it may be there.
    nodes.awaits("n1", "^has leader")
    nodes.grouped("n1,n3,n4,n5", "n1", "n3", "n4", "n5")
    nodes.nodes["n2"].resume()
    nodes.grouped(ALL, *NAMES)
    nodes.agree("n1")
