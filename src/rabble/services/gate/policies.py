"""How a gate decides: every number of it, with its unit in its name. The defaults need no tuning.

docs/guides/gate.md says what each of them changes, and how that can be seen.
"""

from __future__ import annotations

import dataclasses

from rabble.limits import COUNT_MAX, MS_MAX, bounded
from rabble.texts import argument_text

__all__ = ["CanaryPolicy", "GradientPolicy", "Policy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What all gates have in common.

    :raises ValueError: if a number is no int of its range, or does not agree with another one. It
        says which, what was given and what is allowed.
    """

    #: Milliseconds of the shortest and of the longest `retry_after_ms`.
    retry_after_ms_min: int = bounded(10, 1, MS_MAX)
    retry_after_ms_max: int = bounded(2_000, 1, MS_MAX)
    #: Percent of its bound from which on the pressure of a queue closes the gate.
    pressure_high_percent: int = bounded(80, 1, 100)
    #: Percent below which all pressures have to be for it to open again.
    pressure_low_percent: int = bounded(50, 0, 99)
    #: Percent from which on not even requests of priority 1 are let in.
    pressure_full_percent: int = bounded(95, 1, 100)
    #: Milliseconds after which a pressure that nobody reports again is forgotten.
    pressure_forgotten_ms: int = bounded(10_000, 1, MS_MAX)
    #: Milliseconds without trouble after which a closed gate is open again.
    open_after_ms: int = bounded(250, 1, MS_MAX)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = field.metadata["range"]
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{type(self).__name__}: {field.name} must be an int, {least} to {most}, "
                    f"not {argument_text(value)}"
                )
        self.check_order("retry_after_ms_min", "retry_after_ms_max")
        self.check_order("pressure_low_percent", "pressure_high_percent", strict=True)
        self.check_order("pressure_high_percent", "pressure_full_percent")

    def check_order(self, less: str, more: str, *, strict: bool = False) -> None:
        """`ValueError` unless one number is at most the other one, or less than that."""
        least, most = getattr(self, less), getattr(self, more)
        if least > most or (strict and least == most):
            than = "less than" if strict else "at most"
            raise ValueError(
                f"{type(self).__name__}: {less} must be {than} {more}, {most}, not {least}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanaryPolicy(Policy):
    """How a `CanaryGate` decides.

    :raises ValueError: as `Policy`.
    """

    #: Milliseconds: if no canary in the window was faster the gate closes.
    high_ms: int = bounded(50, 2, MS_MAX)
    #: Milliseconds: if some canary in each window was faster, for `open_after_ms`, it opens.
    low_ms: int = bounded(10, 1, MS_MAX)
    #: The same of canaries through other nodes, with the round trip of the network in it.
    remote_high_ms: int = bounded(500, 2, MS_MAX)
    remote_low_ms: int = bounded(250, 1, MS_MAX)
    #: Milliseconds of the sliding window of canary latencies.
    window_ms: int = bounded(100, 1, MS_MAX)
    #: Canaries in a row that have to be slow for the gate to close.
    canaries_min: int = bounded(4, 2, 1_024)
    #: Milliseconds between two canaries, while there are requests.
    canary_interval_ms: int = bounded(10, 1, MS_MAX)
    #: Canaries that may be under way at once, to each node. Beyond it none is sent.
    canaries_max: int = bounded(32, 2, 1_024)
    #: Milliseconds after which a canary is given up that has not come back.
    canary_lost_ms: int = bounded(30_000, 1, MS_MAX)
    #: Requests per second that a closed gate lets in, whatever the canaries say.
    closed_per_second_min: int = bounded(1, 1, COUNT_MAX)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("low_ms", "high_ms", strict=True)
        self.check_order("remote_low_ms", "remote_high_ms", strict=True)
        self.check_order("canaries_min", "canaries_max")
        self.check_order("high_ms", "canary_lost_ms", strict=True)
        self.check_order("remote_high_ms", "canary_lost_ms", strict=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientPolicy(Policy):
    """How a `GradientGate` decides.

    :raises ValueError: as `Policy`.
    """

    #: Requests in flight that are let in at first, at least and at most.
    limit_first: int = bounded(8, 1, COUNT_MAX)
    limit_min: int = bounded(4, 1, COUNT_MAX)
    limit_max: int = bounded(8_192, 1, COUNT_MAX)
    #: Percent of the long-term latency up to which the latency of now is none of overload.
    tolerance_percent: int = bounded(150, 100, 10_000)
    #: Milliseconds of latency up to which that is none of overload, whatever it was before.
    harmless_ms: int = bounded(50, 0, MS_MAX)
    #: Percent of the way to a new limit that is gone with each window.
    smoothing_percent: int = bounded(20, 1, 100)
    #: Milliseconds of a window, whose average is one measurement; longer if few requests end.
    window_ms: int = bounded(100, 1, MS_MAX)
    #: Requests that have to end in a window.
    window_requests_min: int = bounded(10, 1, COUNT_MAX)
    #: Windows over which the long-term latency is averaged.
    long_windows: int = bounded(600, 2, COUNT_MAX)
    #: Percent of the limit up to which requests of priority -1, and of 1, are let in.
    low_priority_percent: int = bounded(80, 1, 100)
    high_priority_percent: int = bounded(125, 100, 1_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("limit_min", "limit_first")
        self.check_order("limit_first", "limit_max")
