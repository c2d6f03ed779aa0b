"""The bundled benchmarks: what this machine does, each figure next to its limit.

`WORKLOADS` lists them; `rabble bench` runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rabble.bench import codec, creation, mesh, messaging, remote, remote_large, timing
from rabble.bench.model import Case

__all__ = ["WORKLOADS", "Workload"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A name that `rabble bench` knows, and the cases behind it."""

    name: str
    make: Callable[..., list[Case]]
    #: Parameters of `--quick`; without it the defaults of `make` hold.
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
            Workload("skynet", creation.skynet, {"leaves": 100_000}),
            Workload("spawn", creation.spawn, {"processes": 50_000}),
            Workload("timers", timing.timers, {"outstanding": 100_000, "per_chain": 25}),
            Workload("wake", timing.wake, {"messages": 500, "idle_messages": 20, "idle_s": 0.5}),
            Workload("codec", codec.codec, {"envelopes": 20_000}),
            Workload("remote", remote.remote, {"messages": 100_000}),
            Workload("remote-typed", remote.remote_typed, {"messages": 100_000}),
            Workload("remote-large", remote_large.remote_large, {"megabytes": 32}),
            Workload("rtt", remote.rtt, {"rounds": 2_000}),
            Workload("mesh", mesh.mesh, {"messages": 5_000}),
        )
    }
)
