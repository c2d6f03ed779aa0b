"""What the gate tells: a message for its subscribers, and a snapshot for metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["GateChanged", "GateStatus"]


@dataclasses.dataclass(frozen=True, slots=True)
class GateChanged:
    """A gate has closed, or it is open again. It never leaves its node."""

    #: Whether it lets in whatever comes.
    is_open: bool
    #: Why it is closed, or was until now: `canaries`, `canaries through NODE`, `pressure of NAME`,
    #: `limit`.
    reason: str
    #: Microseconds of latency that it goes by: the least of the canaries in the window, or the
    #: average of the requests.
    latency_us: float
    #: Requests in flight at that moment.
    in_flight: int


@dataclasses.dataclass(frozen=True, slots=True)
class GateStatus:
    """A snapshot of a gate; nobody changes it any more."""

    #: `canary`, `gradient` or `none`.
    strategy: str
    #: Whether it lets in whatever comes.
    is_open: bool
    #: Why it is closed; empty while it is open.
    reason: str
    #: Requests that were let in and have not ended.
    in_flight: int
    #: How many may be in flight; infinite where that is not what the gate goes by.
    limit: float
    #: Requests let in each second while it is closed; infinite where there is no such rate.
    rate_per_s: float
    #: Requests that end each second, as measured lately.
    ended_per_s: float
    #: Microseconds of latency that it goes by, as in `GateChanged`.
    latency_us: float
    #: Microseconds of latency that count as none of overload: the low threshold, or the long-term
    #: average.
    latency_usual_us: float
    #: The name that reports the highest pressure; empty if nobody does.
    pressure_name: str
    #: That pressure, as a fraction of its bound.
    pressure: float
    #: Requests let in since the start.
    admitted: int
    #: Requests refused since the start, by their priority: -1, 0 and 1.
    refused: Mapping[int, int]
    #: How often it has closed.
    closings: int
    #: Canaries that came back, and those that were given up.
    canaries_back: int
    canaries_lost: int
    #: How often the gate was called so late that something must have held up the whole process.
    pauses: int

    def gauges(self, prefix: str = "gate.") -> dict[str, float]:
        """What goes up and down, by name, as in `Metrics.gauges`; what is infinite is left out.

        :param prefix: what each name begins with.
        """
        values = {
            "open": float(self.is_open),
            "in_flight": float(self.in_flight),
            "limit": self.limit,
            "rate_per_s": self.rate_per_s,
            "ended_per_s": self.ended_per_s,
            "latency_us": self.latency_us,
            "latency_usual_us": self.latency_usual_us,
            "pressure": self.pressure,
        }
        for kind in ("canaries", "limit", "pressure"):
            values[f"closed_for_{kind}"] = float(self.reason.partition(" ")[0] == kind)
        return {prefix + name: value for name, value in values.items() if value != float("inf")}

    def counters(self, prefix: str = "gate.") -> dict[str, int]:
        """What only grows, by name, as in `Metrics.counters`.

        :param prefix: what each name begins with.
        """
        refused = {-1: "refused_low", 0: "refused", 1: "refused_high"}
        counts = {name: self.refused.get(priority, 0) for priority, name in refused.items()}
        counts |= {
            "admitted": self.admitted,
            "closings": self.closings,
            "canaries_back": self.canaries_back,
            "canaries_lost": self.canaries_lost,
            "pauses": self.pauses,
        }
        return {prefix + name: count for name, count in counts.items()}
