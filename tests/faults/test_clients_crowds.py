"""What crowds that mean harm cost: memory of the server, and latency of those that mean well.

The 64 that mean well are measured without and with each crowd, in turns; the figures are printed
(pytest -s or -rP). What is held is loose, as the machine has others to serve.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import Client
from tests.faults.meshes import ROOT, figures
from tests.faults.rig.process import OsProcess
from tests.services.test_server_tls import Authority
from tests.support import PATIENCE_S

ROUNDS = 3
MEASURE_S = 3.0
#: Of each crowd: how many they are, and bytes of the server's memory that each may take. Of those
#: that read nothing, or drip, one in two is owed more than what a write buffer holds. Of the burst
#: the time is measured in which the server finds that out.
CROWDS = {
    "idle": (10_000, 8 << 10),
    "mute": (500, 4 << 20),
    "burst": (500, 4 << 20),
    "flood": (1, 64 << 20),
    "tls": (255, 1 << 20),
}


@contextlib.contextmanager
def process(role: str, **spec: Any) -> Iterator[OsProcess]:
    argv = [sys.executable, "-m", "tests.faults.clients_crowds", role, json.dumps(spec)]
    with OsProcess(argv, ready="^ready", cwd=ROOT, talk=True) as started:
        yield started


def answer(of: OsProcess, command: str) -> list[float]:
    skip = sum(line.startswith("= ") for line in of.lines())
    of.say(command)
    return [float(word) for word in of.wait_line("^= ", 2 * PATIENCE_S, skip)[2:].split()]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", CROWDS)
def test_a_crowd(tmp_path: Path, kind: str) -> None:
    count, bytes_each_max = CROWDS[kind]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < count + 1_000:
        pytest.skip(f"this machine allows {hard} descriptors")
    authority = Authority(tmp_path)
    with process("serve", cert=str(authority.cert), key=str(authority.key)) as server:
        plain, secured = server.wait_line("^ready").split()[1:]
        crowded = secured if kind == "tls" else plain

        def new_client_s() -> float:
            """Until a new one has its first answer."""
            begin = time.monotonic()
            with authority.connect(secured) if kind == "tls" else Client(plain) as client:
                assert client.ask(1, "x") == [0, 1, "x"]
            return time.monotonic() - begin

        with process("well", address=plain) as well:
            answer(well, "measure 1")
            measured: dict[str, list[list[float]]] = {"without": [], "with": []}
            grown: list[float] = []
            new: dict[str, list[float]] = {"without": [], "with": []}
            cpu: dict[str, list[float]] = {"without": [], "with": []}

            def measure(case: str) -> None:
                before = server.usage().cpu_s
                measured[case].append(answer(well, f"measure {MEASURE_S}"))
                cpu[case].append((server.usage().cpu_s - before) / MEASURE_S)
                new[case].append(new_client_s())

            for _ in range(ROUNDS):
                measure("without")
                before = server.usage().rss_bytes
                with process("crowd", kind=kind, count=count, address=crowded) as crowd:
                    measure("with")
                    grown.append((server.usage().rss_bytes - before) / count)
                    there = answer(server, "count")[kind == "tls"]
                    assert crowd.alive
                deadline = time.monotonic() + PATIENCE_S
                while answer(server, "count") != [64, 0]:
                    assert time.monotonic() < deadline, "they have not gone"
                    time.sleep(0.05)
        at_rest = server.usage()
    for case, rounds in measured.items():
        asked, p50_us, p99_us = (statistics.median(each) for each in zip(*rounds, strict=True))
        figures(
            f"{kind} {case}",
            requests_s=asked / MEASURE_S,
            p50_us=p50_us,
            p99_us=p99_us,
            new_client_ms=statistics.median(new[case]) * 1e3,
            cpu=statistics.median(cpu[case]),
        )
    figures(kind, there=there, kib_each=max(grown) / 1024, fds_left=float(at_rest.fds))
    assert grown[0] < bytes_each_max
    assert max(new["with"]) < 5.0
    # Each asks when it has thought, and not before: so they have what they had.
    assert kind == "burst" or measured["with"][0][0] > 0.5 * measured["without"][0][0]
