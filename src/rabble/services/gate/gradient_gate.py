"""`GradientGate`: so many requests in flight, as their latency tells.

The algorithm is that of `Gradient2Limit` in Netflix' concurrency-limits
(https://github.com/Netflix/concurrency-limits; its idea is TCP Vegas', L. Brakmo and L. Peterson,
1995). With each window

    gradient = long latency * tolerance / short latency, between 0.5 and 1
    limit    = (1 - smoothing) * limit + smoothing * (limit * gradient + queue)

where the short latency is the average of the window, and the long one an exponential average of
these. As there, the limit stays as it is while less than half of it is used, and the long latency
falls by 5 % a window while it is more than twice the short one.

What is different here:

- The queue that is allowed is the square root of the limit, as in the older `GradientLimit`, and
  not 4: a limit of a thousand would take minutes to grow by 4 * 0.2 each window, and one below 8
  could not be held.
- A window is 100 ms and not 1 s, and as long as it takes for 10 requests to end.
- While the limit binds, the latency has our own queue in it. There the long average learns four
  times slower upwards: else it follows the queue that it is to notice, and the limit creeps to its
  maximum in a few minutes of overload.
- It begins with a small limit, which is doubled with each window as long as the gradient is 1, as
  TCP's slow start; such a window is over when as many requests as the limit have ended. In the
  first ten windows the long latency learns nothing upwards while the limit binds.
- Latency below 50 ms is none of overload, however much more it is than before. Where requests take
  microseconds, a limit that keeps them so would refuse each burst.
- Requests that fail faster than usual measure nothing; those that fail late do.
"""

from __future__ import annotations

import math

from rabble.services.gate.gate import CLOSED, DEBT_MIN, NEVER, BaseGate, Uniform, WithoutCanaries
from rabble.services.gate.messages import GateChanged, GateStatus
from rabble.services.gate.policies import GradientPolicy

__all__ = ["GradientGate"]

NS_PER_MS = 1_000_000
#: The least that a limit may be multiplied by.
GRADIENT_MIN = 0.5
#: The long latency falls to so much with each window, while it is more than twice the short one.
DRIFT = 0.95
DRIFT_FROM = 2.0
#: Requests of a window at the beginning, at most.
ROUND_MAX = 1_000
#: Measurements whose plain average the long latency is at first.
WARM_UP = 10
#: How many times slower it learns while the limit binds.
BOUND_SLOWNESS = 4.0
#: The part of the limit that has to be in use for it to change.
USED = 0.5


class GradientGate(WithoutCanaries, BaseGate):
    """Limits the requests in flight by the gradient of their latency. For one thread.

    See `Gate` for how it is used. It needs no canaries.

    :param policy: how it decides.
    :param uniform: draws a number between its two arguments, as `random.Random().uniform`.
    """

    __slots__ = (
        "_harmless_ns",
        "_high_percent",
        "_is_beginning",
        "_is_full",
        "_limit",
        "_limit_max",
        "_limit_min",
        "_long_ns",
        "_low_percent",
        "_measured",
        "_open_after_ns",
        "_refused_ns",
        "_short_ns",
        "_smoothing",
        "_tolerance",
        "_weight",
        "_window_count",
        "_window_count_min",
        "_window_end_ns",
        "_window_least",
        "_window_most",
        "_window_ns",
        "_window_sum_ns",
        "limit",
    )

    def __init__(self, policy: GradientPolicy, uniform: Uniform) -> None:
        super().__init__(policy, uniform)
        self._limit = float(policy.limit_first)
        #: How many may be in flight.
        self.limit = policy.limit_first
        self._limit_min = float(policy.limit_min)
        self._limit_max = float(policy.limit_max)
        self._tolerance = policy.tolerance_percent / 100
        self._smoothing = policy.smoothing_percent / 100
        self._harmless_ns = policy.harmless_ms * NS_PER_MS
        self._weight = 2.0 / (policy.long_windows + 1)
        self._low_percent = policy.low_priority_percent
        self._high_percent = policy.high_priority_percent
        self._open_after_ns = policy.open_after_ms * NS_PER_MS
        self._window_ns = policy.window_ms * NS_PER_MS
        self._window_count_min = policy.window_requests_min
        self._window_least = min(policy.limit_first, ROUND_MAX)
        #: The window of now: when it ends, at least; how many have ended, and their latencies in
        #: all; the most that were in flight.
        self._window_end_ns = 0
        self._window_count = 0
        self._window_sum_ns = 0
        self._window_most = 0
        #: The averages.
        self._short_ns = 0.0
        self._long_ns = 0.0
        self._measured = 0
        #: Whether somebody was refused for the limit of late, and when the last one was.
        self._is_full = False
        self._refused_ns = 0
        #: The limit doubles, until latency rises for the first time.
        self._is_beginning = True
        self._least_priority = CLOSED

    def admit(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.admit`."""
        if priority == 0 and self._in_flight < self.limit and not self._pressure.is_high:
            return 0
        return 0 if self.has_room(now_ns, priority) else self.refuse(now_ns, priority)

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        """See `Gate.has_room`."""
        in_flight, limit = self._in_flight, self.limit
        if priority < 0:
            least = in_flight * 100 < limit * self._low_percent
            return least and not self._pressure.is_raised
        if priority == 0:
            return in_flight < limit and not self._pressure.is_high
        most = max(limit * self._high_percent // 100, limit + DEBT_MIN)
        return in_flight < most and not self._pressure.is_full

    def refuse(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.refuse`."""
        self._count_refused(priority)
        if priority >= 0 and self._in_flight >= self.limit:
            self._refused_ns = now_ns
            if not self._is_full:
                self._is_full = True
                self._set_reason(self._reason_now())
        return self._retry_times.next_ms(now_ns, self._ended_rate.per_s)

    def began(self, now_ns: int) -> None:
        """See `Gate.began`."""
        self._admitted += 1
        in_flight = self._in_flight = self._in_flight + 1
        if in_flight > self._window_most:
            self._window_most = in_flight

    def ended(self, now_ns: int, begun_ns: int, ok: bool = True) -> None:
        """See `Gate.ended`."""
        self._in_flight -= 1
        self._ended += 1
        latency_ns = now_ns - begun_ns
        if ok or latency_ns > self._long_ns:
            self._window_count += 1
            self._window_sum_ns += latency_ns
        if self._window_count >= self._window_least and now_ns >= self._window_end_ns:
            self._end_window(now_ns)

    def next_tick(self, now_ns: int) -> int:
        """See `Gate.next_tick`."""
        if self._is_untold:
            return now_ns
        due = self._refused_ns + self._open_after_ns if self._is_full else NEVER
        if (forgotten := self._pressure.next_tick()) is not None:
            due = min(due, forgotten)
        return max(due, now_ns)

    def tick(self, now_ns: int) -> GateChanged | None:
        """See `Gate.tick`."""
        self._pressure.tick(now_ns)
        self._judge(now_ns)
        return self._told(self._short_ns / 1_000)

    def status(self) -> GateStatus:
        """See `Gate.status`."""
        return GateStatus(
            strategy="gradient",
            is_open=not self._reason,
            reason=self._reason,
            in_flight=self._in_flight,
            limit=float(self.limit),
            rate_per_s=float("inf"),
            ended_per_s=self._ended_rate.per_s,
            latency_us=self._short_ns / 1_000,
            latency_usual_us=self._long_ns / 1_000,
            pressure_name=self._pressure.name,
            pressure=self._pressure.top,
            admitted=self._admitted,
            refused=dict(self._refused),
            closings=self._closings,
            canaries_back=0,
            canaries_lost=0,
            pauses=0,
        )

    def _judge(self, now_ns: int) -> None:
        if self._is_full and now_ns - self._refused_ns >= self._open_after_ns:
            self._is_full = False
        self._set_reason(self._reason_now())

    def _reason_now(self) -> str:
        if self._is_full:
            return "limit"
        return f"pressure of {self._pressure.name}" if self._pressure.is_high else ""

    def _end_window(self, now_ns: int) -> None:
        """One measurement, and the next window begins."""
        self._ended_rate.observe(now_ns, self._ended)
        self._measure(self._window_sum_ns / self._window_count, self._window_most)
        self._window_count = self._window_sum_ns = 0
        self._window_most = self._in_flight
        if self._is_beginning:
            self._window_least, self._window_end_ns = min(self.limit, ROUND_MAX), now_ns
        else:
            self._window_least = self._window_count_min
            self._window_end_ns = now_ns + self._window_ns

    def _measure(self, short_ns: float, in_flight: int) -> None:
        """The next limit.

        :param short_ns: the average latency in the window, in nanoseconds.
        :param in_flight: the most that were in flight.
        """
        self._short_ns = short_ns = max(short_ns, 1.0)
        if self._measured < WARM_UP:
            # The queue of an overload at the start is no usual latency.
            self._measured += 1
            if in_flight < self.limit or short_ns < self._long_ns or self._measured == 1:
                self._long_ns += (short_ns - self._long_ns) / self._measured
        else:
            weight = self._weight
            if in_flight >= self.limit and short_ns > self._long_ns:
                weight /= BOUND_SLOWNESS
            self._long_ns += (short_ns - self._long_ns) * weight
            if self._long_ns > DRIFT_FROM * short_ns:
                self._long_ns *= DRIFT
        if in_flight < self._limit * (1.0 if self._is_beginning else USED):
            return
        gradient = 1.0
        if short_ns > self._harmless_ns:
            gradient = min(max(self._tolerance * self._long_ns / short_ns, GRADIENT_MIN), 1.0)
        self._is_beginning = self._is_beginning and gradient == 1.0
        if self._is_beginning:
            limit = self._limit * 2.0
        else:
            limit = self._limit * gradient + math.sqrt(self._limit)
            limit = self._limit + (limit - self._limit) * self._smoothing
        self._limit = min(max(limit, self._limit_min), self._limit_max)
        self.limit = int(self._limit)
