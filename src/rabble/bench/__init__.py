"""The bundled benchmarks: what this machine does, each figure next to its limit.

`WORKLOADS` lists them; `rabble bench` runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rabble.bench import (
    api,
    calls,
    codec,
    creation,
    forming,
    gate,
    groups,
    life,
    mesh,
    messaging,
    remote,
    remote_large,
    savina,
    supervision,
    timing,
    values,
)
from rabble.bench.model import Case

__all__ = ["WORKLOADS", "Workload"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A name that `rabble bench` knows, and the cases behind it."""

    name: str
    make: Callable[..., list[Case]]
    #: Parameters of `--quick`; without it the defaults of `make` hold. They are no smaller than a
    #: ratio needs to mean the same: a dict of 50,000 idle processes fits a cache, one of 150,000
    #: does not.
    quick: Mapping[str, Any]

    def cases(self, quick: bool = False) -> list[Case]:
        """The cases, ready to be measured."""
        return self.make(**self.quick) if quick else self.make()


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload("pingpong", messaging.pingpong, {"turns": 100_000}),
            Workload("ring", messaging.ring, {"hops": 200_000}),
            Workload("count", messaging.count, {"increments": 200_000}),
            Workload("inject", messaging.inject, {"messages": 100_000}),
            Workload("big", messaging.big, {"pings": 1_000}),
            Workload("banking", savina.banking, {"transactions": 5_000}),
            Workload("chameneos", savina.chameneos, {"meetings": 20_000}),
            Workload("concdict", savina.concdict, {"requests": 1_000}),
            Workload("barber", savina.barber, {"haircuts": 1_000, "chairs": 200}),
            Workload("skynet", creation.skynet, {"leaves": 10_000}),
            Workload("spawn", creation.spawn, {"processes": 150_000, "weighed": 50_000}),
            Workload("life", life.life, {"lives": 5_000, "processes": 60_000}),
            Workload("supervision", supervision.supervision, {"children": 1_000}),
            Workload(
                "timers", timing.timers, {"outstanding": 50_000, "per_chain": 25, "beats": 20}
            ),
            Workload("wake", timing.wake, {"messages": 500, "idle_messages": 20, "idle_s": 0.5}),
            Workload("codec", codec.codec, {"envelopes": 5_000}),
            Workload("values", values.values, {"envelopes": 5_000}),
            Workload("calls", calls.calls, {"round_trips": 800, "awaited": 5_000}),
            Workload("remote", remote.remote, {"messages": 80_000}),
            Workload("remote-typed", remote.remote_typed, {"messages": 40_000}),
            Workload("remote-large", remote_large.remote_large, {"megabytes": 16}),
            Workload("rtt", remote.rtt, {"rounds": 1_000}),
            Workload("mesh", mesh.mesh, {"messages": 2_000}),
            Workload("groups", groups.groups, {"rounds": 40, "changes": 500}),
            Workload("api", api.api, {"requests": 60_000, "http_requests": 2_000}),
            Workload("forming", forming.forming, {"sizes": (10,), "settle_s": 2.0, "idle_s": 1.0}),
            Workload("gate", gate.gate, gate.QUICK),
        )
    }
)
