"""How full the queues behind a gate are: one that fills closes it, before anything is dropped."""

from __future__ import annotations

import math

from rabble.services.gate.policies import Policy
from rabble.texts import argument_text

__all__ = ["Pressure"]

NS_PER_MS = 1_000_000


class Pressure:
    """The queues that report how full they are, and whether they close the gate. For one thread.

    Only those that are above the low mark are kept, so there is nothing to give back when a queue
    is gone; and who reports no more is forgotten after a while.

    :param policy: its `pressure_*` are used.
    """

    __slots__ = ("_forgotten_ns", "_full", "_high", "_low", "_reports", "is_high", "name", "top")

    def __init__(self, policy: Policy) -> None:
        self._high = policy.pressure_high_percent / 100
        self._low = policy.pressure_low_percent / 100
        self._full = policy.pressure_full_percent / 100
        self._forgotten_ns = policy.pressure_forgotten_ms * NS_PER_MS
        self._reports: dict[str, tuple[float, int]] = {}
        #: Whether the gate is closed by it.
        self.is_high = False
        #: The highest that is known, and whose it is; 0 and nobody's if all are below the low mark.
        self.top = 0.0
        self.name = ""

    @property
    def is_full(self) -> bool:
        """Whether nobody is let in at all."""
        return self.is_high and self.top >= self._full

    @property
    def is_raised(self) -> bool:
        """Whether some queue is above the low mark."""
        return bool(self._reports)

    def report(self, now_ns: int, name: str, fraction: float) -> None:
        """A queue says how full it is.

        :param now_ns: monotonic nanoseconds.
        :param name: of the queue.
        :param fraction: 0 to 1, of its bound; what is more counts as 1.
        :raises ValueError: if that is negative or no number.
        """
        if math.isnan(fraction) or fraction < 0:
            raise ValueError(
                f"pressure of {name}: fraction must be 0 to 1, not {argument_text(fraction)}"
            )
        fraction = min(fraction, 1.0)
        if fraction >= self._low and fraction > 0:
            self._reports[name] = (fraction, now_ns)
            if fraction >= self.top:
                self.top, self.name = fraction, name
                self._judge()
                return
        elif self._reports.pop(name, None) is None:
            return
        if name == self.name:
            self._look()

    def tick(self, now_ns: int) -> None:
        """Forget who has not reported for long."""
        old = [n for n, (_, at) in self._reports.items() if now_ns - at >= self._forgotten_ns]
        for name in old:
            del self._reports[name]
        if old:
            self._look()

    def next_tick(self) -> int | None:
        """When somebody is forgotten, if nothing comes before; `None` if there is nobody."""
        if not self._reports:
            return None
        return min(at for _, at in self._reports.values()) + self._forgotten_ns

    def _look(self) -> None:
        self.top, self.name = 0.0, ""
        for name, (fraction, _) in self._reports.items():
            if fraction > self.top:
                self.top, self.name = fraction, name
        self._judge()

    def _judge(self) -> None:
        if self.top >= self._high:
            self.is_high = True
        elif not self._reports:
            self.is_high = False
