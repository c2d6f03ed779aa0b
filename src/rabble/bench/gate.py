"""What a server behind a gate does when three times as much is asked of it as it can do."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rabble.bench import gate_side
from rabble.bench.alone import alone
from rabble.bench.gate_side import Faced, Overload
from rabble.bench.model import Case, Limit, Sample, Target, percentile

__all__ = ["GOODPUT_MIN", "RECOVERY_S_MAX", "REFUSED_MS_MAX", "Overloads", "gate"]

GOODPUT_MIN = 0.7
REFUSED_MS_MAX = 50.0
RECOVERY_S_MAX = 5.0
#: One of the four: the others take as long again.
QUICK: Mapping[str, Any] = {
    "strategies": ("canary",),
    "halved": (False,),
    "usual_s": 0.3,
    "overload_s": 1.0,
    "settle_s": 0.5,
}


class Overloads:
    """What was seen of servers under one overload.

    One run shows all of it, as of `forming`'s meshes: each case is given what was seen so far, and
    has another run made only when it has had them all.
    """

    def __init__(self, overload: Overload) -> None:
        self.overload = overload
        self._seen: list[Faced] = []
        self._given: collections.Counter[str] = collections.Counter()

    def next(self, whose: str) -> Faced:
        """The next one of that case."""
        n = self._given[whose]
        self._given[whose] += 1
        if n == len(self._seen):
            each = self.overload
            printed = alone(
                gate_side.__name__,
                each.strategy,
                each.halves,
                each.is_busy,
                each.service_us,
                each.usual_s,
                each.overload_s,
                each.settle_s,
                patience_s=gate_side.PATIENCE_S,
            )
            self._seen.append(Faced(**json.loads(printed)))
        return self._seen[n]


def gate(
    strategies: Sequence[str] = ("canary", "gradient"),
    halved: Sequence[bool] = (False, True),
    is_busy: bool = True,
    service_us: float = 1_500.0,
    usual_s: float = 2.0,
    overload_s: float = 10.0,
    settle_s: float = 6.0,
) -> list[Case]:
    """Offered load of three times what the server can do, through `TcpServer`.

    The requests are answered by a process that is busy for each of them. Clients do not wait for
    answers before they ask more, and who is refused comes again when he is told to, for 3 s.

    :param strategies: of the gate.
    :param halved: whether in the middle of the overload each request begins to take twice as long.
    :param is_busy: whether a request is work; else the process sleeps.
    :param service_us: microseconds that each request takes.
    :param usual_s: at half of what it can do, before the overload; `settle_s`: after it.
    """
    return [
        case
        for strategy in strategies
        for halves in halved
        for case in cases_of(
            Overload(strategy, halves, is_busy, service_us, usual_s, overload_s, settle_s)
        )
    ]


def cases_of(overload: Overload) -> list[Case]:
    """What one overload shows. It counts as one, however much is answered in it."""
    overloads = Overloads(overload)
    name = f"gate-{overload.strategy}" + ("-halved" if overload.halves else "")
    seconds = overload.overload_s

    def goodput() -> Sample:
        seen = overloads.next("goodput")
        begin, end = overload.usual_s, overload.ends_s
        details = {
            "p50_ms": seen.latency_s(50, begin, end) * 1e3,
            "p99_ms": seen.latency_s(99, begin, end) * 1e3,
            "answered": float(len(seen.answered)),
            "refused": float(len(seen.refused)),
            "closings": float(sum(not is_open for _, is_open, _ in seen.changes)),
            "clients_late_p99_ms": percentile(seen.late, 99) * 1e3,
            "clients_processor_percent": 100 * seen.clients_s / seconds,
            "clients_waited_percent": 100 * seen.clients_waited_s / seconds,
            "server_waited_percent": 100 * seen.server_waited_s / seconds,
        }
        return Sample(1, seconds, seen.goodput_per_s(overload), details)

    def possible() -> Sample:
        seen = overloads.next("possible")
        return Sample(1, seconds, seen.possible_per_s(overload))

    def refusals() -> Sample:
        seen = overloads.next("refusals")
        took = seen.refusals_s() or [0.0]
        details = {f"p{p:g}_ms": percentile(took, p) * 1e3 for p in (50, 99.9)}
        return Sample(1, seconds, percentile(took, 99) * 1e3, details)

    def recovery() -> Sample:
        seen = overloads.next("recovery")
        return Sample(1, seconds, seen.recovery_s(overload))

    params = {"overload_s": seconds, "service_us": overload.service_us}
    lines = (
        ("", "useful answers/s", goodput, Limit("saturation", possible), Target(GOODPUT_MIN)),
        (
            "-refusals",
            "ms p99",
            refusals,
            Limit("allowance", REFUSED_MS_MAX),
            Target(1.0, "<="),
        ),
        (
            "-recovery",
            "s until all is as usual",
            recovery,
            Limit("allowance", RECOVERY_S_MAX),
            Target(1.0, "<="),
        ),
    )
    return [
        Case(name + suffix, params, unit, run, limit, target, warm_ups=0)
        for suffix, unit, run, limit, target in lines
    ]
