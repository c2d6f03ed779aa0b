"""What a benchmark is: a case, the figure it is held against, and how the two are taken in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import operator
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = [
    "Case",
    "Instructions",
    "Limit",
    "Miscount",
    "Result",
    "Run",
    "Sample",
    "Target",
    "machine",
    "measure",
]

RUNS_MIN = 5
#: A shared machine halves its speed for seconds at a time: the median of so many pairs, spread over
#: that long, moves less than that of five quick ones.
RUNS_MAX = 25
SPREAD_S = 6.0


class Miscount(Exception):
    """A run delivered another number of messages than it should have: its time says nothing."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one run showed."""

    #: How many messages were delivered, processes made, timers handled, ...
    messages: int
    #: From the first send to the receipt of the last message.
    seconds: float
    #: What is reported, if it is not `messages / seconds`: a latency, a size.
    value: float | None = None
    #: Figures that go with it, as percentiles.
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def rate(self) -> float:
        """What is reported."""
        return self.messages / self.seconds if self.value is None else self.value


@dataclasses.dataclass(frozen=True)
class Target:
    """What the ratio to the limit must reach: at least, or with `<=` at most."""

    ratio: float
    comparison: str = ">="

    def reached(self, ratio: float) -> bool:
        """Whether it is."""
        compare = operator.ge if self.comparison == ">=" else operator.le
        return bool(compare(ratio, self.ratio))

    def __str__(self) -> str:
        return f"{self.comparison} {self.ratio:g}"


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a case is held against."""

    name: str
    #: Measured in turn with the case; or a fixed figure, where no measurement is the limit.
    sample: Callable[[], Sample] | float


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    params: Mapping[str, Any]
    unit: str
    run: Callable[[], Sample]
    limit: Limit
    target: Target | None = None
    #: Runs that are not kept; more than 0 is of no use where each run is an interpreter of its own.
    warm_ups: int = 1
    #: What the runs need, other processes say; entered before the first and left after the last.
    session: contextlib.AbstractContextManager[Any] | None = None
    #: Other systems that always take part, by name, as the peers of `--peers` do where asked.
    beside: Mapping[str, Callable[[], Sample]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A case's run and the run of its limit beside it."""

    seconds: float
    rate: float
    limit_seconds: float | None
    limit_rate: float
    ratio: float
    #: By the peer's name, what it reached in the same turn.
    peers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Instructions:
    """How many each message takes."""

    rabble: float
    limit: float

    @property
    def ratio(self) -> float:
        """Of the limit's to rabble's: as a ratio of rates, the higher the better."""
        return self.limit / self.rabble

    def as_json(self) -> dict[str, float]:
        """As JSON has it."""
        return {"rabble": self.rabble, "limit": self.limit, "ratio": self.ratio}


@dataclasses.dataclass(frozen=True)
class Result:
    """A case after all of its runs. `seconds` and the rates are medians over the runs, and
    `ratio` is the median of the ratios of the pairs."""

    name: str
    params: Mapping[str, Any]
    messages: int
    seconds: float
    rate: float
    rate_min: float
    rate_max: float
    unit: str
    limit_name: str
    limit_rate: float
    limit_rate_min: float
    limit_rate_max: float
    ratio: float
    target: str | None
    reached: bool | None
    details: Mapping[str, float]
    limit_details: Mapping[str, float]
    peers: Mapping[str, float]
    runs: tuple[Run, ...]
    #: Where they were counted.
    instructions: Instructions | None = None

    def as_json(self) -> dict[str, Any]:
        """The result as JSON has it."""
        counted = None if self.instructions is None else self.instructions.as_json()
        return {**dataclasses.asdict(self), "instructions": counted}


def measure(
    case: Case,
    *,
    runs: int = RUNS_MIN,
    spread_s: float = 0.0,
    peers: Mapping[str, Callable[[], Sample]] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Take a case and its limit in turn, pair by pair, so that noise meets both.

    Which of the two goes first changes from pair to pair. The garbage collector is left as Python
    ships it.

    :param runs: how many pairs are kept at least.
    :param spread_s: seconds for which more of them are taken, up to `RUNS_MAX` in all.
    :param peers: other systems' runs of the same workload, taken in the same turn.
    :param progress: told what is being done.
    :param clock: seconds, by which the pairs are spread.
    :raises Miscount: if a run did not deliver what it should have.
    """
    samples: list[Sample] = []
    limits: list[Sample] = []
    kept: list[Run] = []
    others = {**case.beside, **(peers or {})}
    most = f"{runs} to {RUNS_MAX}" if spread_s and runs < RUNS_MAX else f"{runs}"
    with case.session or contextlib.nullcontext():
        for turn in range(-case.warm_ups, max(runs, RUNS_MAX)):
            if turn == 0:
                enough_at = clock() + spread_s
            if turn >= runs and clock() >= enough_at:
                break
            which = "warm-up" if turn < 0 else f"run {turn + 1} of {most}"
            progress(f"{case.name}: {which}")
            if turn % 2:
                limit = take_limit(case.limit)
                sample = case.run()
            else:
                sample = case.run()
                limit = take_limit(case.limit)
            beside = {}
            for peer, run in others.items():
                progress(f"{case.name}: {which}, {peer}")
                beside[peer] = run().rate
            if turn < 0:
                continue
            samples.append(sample)
            limits.append(limit)
            kept.append(
                Run(
                    seconds=sample.seconds,
                    rate=sample.rate,
                    limit_seconds=limit.seconds or None,
                    limit_rate=limit.rate,
                    ratio=sample.rate / limit.rate,
                    peers=beside,
                )
            )
    ratio = statistics.median(run.ratio for run in kept)
    rates = [run.rate for run in kept]
    limit_rates = [run.limit_rate for run in kept]
    return Result(
        name=case.name,
        params=dict(case.params),
        messages=samples[-1].messages,
        seconds=statistics.median(run.seconds for run in kept),
        rate=statistics.median(rates),
        rate_min=min(rates),
        rate_max=max(rates),
        unit=case.unit,
        limit_name=case.limit.name,
        limit_rate=statistics.median(limit_rates),
        limit_rate_min=min(limit_rates),
        limit_rate_max=max(limit_rates),
        ratio=ratio,
        target=None if case.target is None else str(case.target),
        reached=None if case.target is None else case.target.reached(ratio),
        details=medians([sample.details for sample in samples]),
        limit_details=medians([limit.details for limit in limits]),
        peers=medians([run.peers for run in kept]),
        runs=tuple(kept),
    )


def take_limit(limit: Limit) -> Sample:
    """One sample of the limit, measured or fixed."""
    if callable(limit.sample):
        return limit.sample()
    return Sample(messages=0, seconds=0.0, value=limit.sample)


def medians(figures: list[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure that every run has."""
    names = [name for name in figures[0] if all(name in each for each in figures)]
    return {name: statistics.median(each[name] for each in figures) for name in names}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def expect(what: str, delivered: int, expected: int) -> None:
    """Refuse a run whose count is wrong."""
    if delivered != expected:
        raise Miscount(f"{what}: {delivered:,} were delivered and not {expected:,}")


def machine(versions_of: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the figures were measured on.

    :param versions_of: distributions whose versions are named if they are installed.
    """
    versions = {"python": platform.python_version(), "libc": " ".join(platform.libc_ver())}
    for name in ("rabble", "msgpack", "msgspec", "pyzmq", "uvloop", *versions_of):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "implementation": platform.python_implementation(),
        "compiler": platform.python_compiler(),
        "load_1min": os.getloadavg()[0],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
