"""What canaries tell: the least latency in a sliding window, and whether all of late are slow.

The least and not the average: a queue that stands is seen by every canary, while one slow message,
or a burst that drains at once, leaves some canary fast. So it is with CoDel: K. Nichols and
V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012.
"""

from __future__ import annotations

import dataclasses
from collections import deque

__all__ = ["Canaries"]


@dataclasses.dataclass(slots=True, eq=False)
class Canary:
    """One that is under way.

    :param sent_ns: when it was sent.
    :param pauses: how many pauses of the whole process there were before.
    """

    sent_ns: int
    pauses: int
    #: It is known to be slow, though it has not come back.
    is_slow: bool = False


class Canaries:
    """Those through one node. For one thread.

    :param high_ns: nanoseconds from which on a canary is slow.
    :param low_ns: nanoseconds below which the queue that it passed counts as none.
    :param window_ns: nanoseconds of the window.
    :param slow_min: how many have to be slow in a row.
    :param out_max: how many may be under way.
    :param lost_ns: nanoseconds after which one is given up.
    """

    __slots__ = (
        "_lost_ns",
        "_minima",
        "_out",
        "_out_max",
        "_paused_at",
        "_slow",
        "_slow_min",
        "_slow_since",
        "_window_ns",
        "back",
        "high_ns",
        "low_ns",
        "lost",
    )

    def __init__(
        self,
        high_ns: int,
        low_ns: int,
        window_ns: int,
        slow_min: int,
        out_max: int,
        lost_ns: int,
    ) -> None:
        self.high_ns = high_ns
        self.low_ns = low_ns
        self._window_ns = window_ns
        self._slow_min = slow_min
        self._out_max = out_max
        self._lost_ns = lost_ns
        #: Those that are under way, the oldest first.
        self._out: dict[int, Canary] = {}
        #: Of the latencies in the window each that is less than all after it, with its time: the
        #: first one is the least.
        self._minima: deque[tuple[int, int]] = deque()
        #: How many were slow in a row, and since when.
        self._slow = 0
        self._slow_since = 0
        #: The last pause of which a slow canary was counted.
        self._paused_at = 0
        self.back = 0
        self.lost = 0

    @property
    def may_send(self) -> bool:
        """Whether one more may be under way."""
        return len(self._out) < self._out_max

    @property
    def are_out(self) -> bool:
        """Whether some are under way."""
        return bool(self._out)

    def sent(self, now_ns: int, number: int, pauses: int) -> None:
        """One was sent."""
        self._out[number] = Canary(now_ns, pauses)

    def came_back(self, now_ns: int, number: int, pauses: int) -> bool:
        """One has come back, if it is one of these."""
        canary = self._out.pop(number, None)
        if canary is None:
            return False
        self.back += 1
        latency_ns = now_ns - canary.sent_ns
        self._note(now_ns, latency_ns)
        if latency_ns <= self.high_ns:
            self._slow = 0
        elif not canary.is_slow:
            self._count_slow(now_ns, canary, pauses)
        return True

    def tick(self, now_ns: int, pauses: int) -> None:
        """Those that are under way count with their age so far, and those of old are given up."""
        lost = []
        for number, canary in self._out.items():
            age_ns = now_ns - canary.sent_ns
            if age_ns <= self.high_ns:
                break
            if not canary.is_slow:
                canary.is_slow = True
                self._count_slow(now_ns, canary, pauses)
            if age_ns >= self._lost_ns:
                lost.append(number)
        for number in lost:
            del self._out[number]
        self.lost += len(lost)

    def give_up(self) -> None:
        """Nothing is known any more, and those under way do not come back."""
        self.lost += len(self._out)
        self._out.clear()
        self._minima.clear()
        self._slow = 0

    def forget_slow(self) -> None:
        """The gate opens: what is to close it again is still to be seen."""
        self._slow = 0

    def are_slow(self, now_ns: int) -> bool:
        """Whether all in the window are, which is as good as full of them."""
        return self._slow >= self._slow_min and now_ns - self._slow_since >= self._window_ns

    def least_ns(self, now_ns: int) -> int:
        """The least latency in the window; without any, the age of the oldest that is under way.

        That is 0 if there is none, and also if none is so old that its age says anything.
        """
        minima = self._minima
        while minima and now_ns - minima[0][0] > self._window_ns:
            minima.popleft()
        if minima:
            return minima[0][1]
        if not self._out:
            return 0
        age_ns = now_ns - next(iter(self._out.values())).sent_ns
        return age_ns if age_ns >= self.low_ns else 0

    def _note(self, now_ns: int, latency_ns: int) -> None:
        minima = self._minima
        while minima and minima[-1][1] >= latency_ns:
            minima.pop()
        minima.append((now_ns, latency_ns))

    def _count_slow(self, now_ns: int, canary: Canary, pauses: int) -> None:
        """A slow one. All that a pause of the whole process held up are one: it held them all."""
        if canary.pauses != pauses:
            if self._paused_at == pauses:
                return
            self._paused_at = pauses
        if not self._slow:
            self._slow_since = now_ns
        self._slow += 1
