"""How fast nodes become a full mesh, and what that mesh costs when nothing happens."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Sequence

from rabble.bench import handshakes
from rabble.bench.alone import alone
from rabble.bench.forming_side import PATIENCE_S, Formed
from rabble.bench.model import Case, Limit, Sample, Target, expect

__all__ = ["forming"]

IDLE_PERCENT_MAX = 0.3
#: Handshakes whose cost is measured.
HANDSHAKES = 500


class Meshes:
    """What was seen of meshes of one size.

    One mesh shows all of it, so each case is given what was seen of all meshes so far, and has
    another one formed only when it has had them all.
    """

    def __init__(self, nodes: int, settle_s: float, idle_s: float) -> None:
        self._nodes = nodes
        self._times_s = (settle_s, idle_s)
        self._seen: list[Formed] = []
        self._given: collections.Counter[str] = collections.Counter()

    def next(self, whose: str) -> Formed:
        """The next one of that case."""
        n = self._given[whose]
        self._given[whose] += 1
        if n == len(self._seen):
            module = Formed.__module__
            printed = alone(module, self._nodes, *self._times_s, patience_s=2 * PATIENCE_S)
            self._seen.append(Formed(**json.loads(printed)))
            expect("forming, the nodes", self._seen[-1].nodes, self._nodes)
        return self._seen[n]


def forming(
    sizes: Sequence[int] = (10, 50, 100), settle_s: float = 4.0, idle_s: float = 5.0
) -> list[Case]:
    """Nodes that join one seed: the time to the full mesh, what failed, and the cost of idling."""
    return [case for nodes in sizes for case in forming_of(nodes, settle_s, idle_s)]


def forming_of(nodes: int, settle_s: float, idle_s: float) -> list[Case]:
    """Of one size."""
    meshes = Meshes(nodes, settle_s, idle_s)
    connections = nodes * (nodes - 1) // 2
    cores = min(len(os.sched_getaffinity(0)), nodes)

    def time_to_full() -> Sample:
        seen = meshes.next("time")
        details = {
            "processor_ms_per_handshake": 1000 * seen.processor_s / connections,
            "bytes_per_connection": seen.sent_bytes / connections,
            "dials_that_gave_way": float(seen.gave_way),
        }
        return Sample(connections, seen.formed_s, seen.formed_s, details)

    def alone_s() -> Sample:
        each_s = float(alone(handshakes.__name__, HANDSHAKES, patience_s=PATIENCE_S))
        seconds = connections * each_s / cores
        return Sample(connections, seconds, seconds, {"processor_ms_per_handshake": 1000 * each_s})

    def failures() -> Sample:
        seen = meshes.next("failures")
        details = {"handshakes": float(seen.failed), "NodeDown": float(seen.downs)}
        return Sample(connections, seen.formed_s, float(seen.failed + seen.downs), details)

    def idle() -> Sample:
        seen = meshes.next("idle")
        return Sample(0, idle_s, seen.idle_percent, {"busiest": seen.idle_percent_max})

    def line(name: str, unit: str, run: Callable[[], Sample], limit: Limit, target: Target) -> Case:
        params = {"nodes": nodes}
        return Case(f"{name}-{nodes}", params, unit, run, limit, target, warm_ups=0)

    return [
        line(
            "forming",
            "s to the full mesh",
            time_to_full,
            Limit("handshakes alone", alone_s),
            Target(3.0, "<="),
        ),
        line(
            "forming-failures",
            "handshakes and NodeDown",
            failures,
            Limit("one of them", 1.0),
            Target(0.0, "<="),
        ),
        line(
            "forming-idle",
            "% of a core each",
            idle,
            Limit("allowance", IDLE_PERCENT_MAX),
            Target(1.0, "<="),
        ),
    ]
