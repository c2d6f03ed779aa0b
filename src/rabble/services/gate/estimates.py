"""What a gate estimates: how many requests end each second, and when there is room for one more."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["EndedRate", "RetryTimes"]

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
#: A measurement takes at least so long; longer, up to the other, until so many have ended.
INTERVAL_NS_MIN = 50 * NS_PER_MS
INTERVAL_NS_MAX = 1_000 * NS_PER_MS
INTERVAL_ENDED = 16
#: What one measurement weighs in the average.
WEIGHT = 0.4
#: What is left of the peak with each measurement that is less.
PEAK_LEFT = 0.98


class EndedRate:
    """How many requests end each second: an average of which each interval is one part.

    By intervals and not by time, so that a pause of the whole process is one measurement of many.
    """

    __slots__ = ("_begun_ns", "_ended", "peak_per_s", "per_s")

    def __init__(self) -> None:
        #: The average; 0 before the first measurement.
        self.per_s = 0.0
        #: The highest average of late, which is forgotten slowly.
        self.peak_per_s = 0.0
        self._begun_ns: int | None = None
        self._ended = 0

    def observe(self, now_ns: int, ended: int) -> bool:
        """Take note of how many have ended since the start.

        :param now_ns: monotonic nanoseconds.
        :param ended: that many.
        :returns: whether that was a measurement.
        """
        if self._begun_ns is None:
            self._begun_ns, self._ended = now_ns, ended
            return False
        passed_ns, count = now_ns - self._begun_ns, ended - self._ended
        if passed_ns < INTERVAL_NS_MIN or (count < INTERVAL_ENDED and passed_ns < INTERVAL_NS_MAX):
            return False
        measured = count * NS_PER_S / passed_ns
        self.per_s += (measured - self.per_s) * (WEIGHT if self.per_s else 1.0)
        self.peak_per_s = max(self.peak_per_s * PEAK_LEFT, self.per_s)
        self._begun_ns, self._ended = now_ns, ended
        return True

    def rest(self) -> None:
        """What comes now is no measurement: nobody asked for anything meanwhile."""
        self._begun_ns = None


class RetryTimes:
    """When who is refused may come again.

    Each who is refused is given a turn behind those that were refused before: as many turns pass
    each second as there is room for requests. That is the virtual scheduling of the generic cell
    rate algorithm, ITU-T I.371. Then each is moved by chance, so that those who were refused in
    one moment do not come back in one.

    :param least_ms: the least that is ever said.
    :param most_ms: the most.
    :param uniform: draws a number between its two arguments.
    """

    __slots__ = ("_least_ms", "_longest_ns", "_most_ms", "_turn_ns", "_uniform")

    def __init__(
        self, least_ms: int, most_ms: int, uniform: Callable[[float, float], float]
    ) -> None:
        self._least_ms = least_ms
        self._most_ms = most_ms
        #: With what chance adds to it, it is the most that is said.
        self._longest_ns = most_ms * NS_PER_MS / 1.5
        self._uniform = uniform
        #: When the turn comes that was given last.
        self._turn_ns = 0.0

    def next_ms(self, now_ns: int, per_s: float, not_before_ms: float = 0.0) -> int:
        """When the next one may come.

        :param now_ns: monotonic nanoseconds.
        :param per_s: for how many there is room each second; 0 if that is not known.
        :param not_before_ms: milliseconds from now in which there is room for nobody.
        :returns: milliseconds, in the bounds.
        """
        earliest = now_ns + not_before_ms * NS_PER_MS
        turn_ns = max(self._turn_ns, earliest) + (NS_PER_S / per_s if per_s else 0.0)
        self._turn_ns = min(turn_ns, now_ns + self._longest_ns)
        wait_ms = max((self._turn_ns - now_ns) / NS_PER_MS, self._least_ms)
        moved_ms = math.ceil(self._uniform(0.5 * wait_ms, 1.5 * wait_ms))
        return min(max(moved_ms, self._least_ms), self._most_ms)
