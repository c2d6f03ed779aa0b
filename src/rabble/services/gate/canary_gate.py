"""`CanaryGate`: closed while canaries are slow.

A canary is a message through the executor (or through that of another node) and back. Its latency
is the time that a request would wait there, and it is known while no request is let in, too: so it
tells when to open again. The gate closes when the least latency in a sliding window is above a high
threshold, and opens when it has been below a low one for a while.

Between the two a gate that lets in nobody would leave the executor without work: its queue has
drained before the canaries tell, and when it opens all who wait come in at once. So a closed gate
lets requests in at a rate. That is the rate at which requests end, as measured, which is what the
server can do while its queue is not empty; a little more where the canaries are faster than half
the way between the thresholds, and less where they are slower. It is a proportional controller of
the queueing delay; its sensor is CoDel's (see `canaries`). While the queue is as good as empty the
rate grows until nobody is refused any more, and only then the gate opens: else it would do so in
the middle of an overload, again and again.
"""

from __future__ import annotations

from collections.abc import Iterable

from rabble.services.gate.canaries import Canaries
from rabble.services.gate.gate import CLOSED, DEBT_MIN, NEVER, BaseGate, Uniform
from rabble.services.gate.messages import GateChanged, GateStatus
from rabble.services.gate.policies import CanaryPolicy

__all__ = ["CanaryGate"]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
#: By how much the rate differs from that of the requests that end, for each high threshold by
#: which the canaries differ from what is aimed at.
GAIN = 0.25
#: So many requests are to wait at least.
AIM_REQUESTS = 4
#: While all canaries are fast the rate is multiplied by that with each measurement; from and up to
#: so many times the highest rate at which requests ended.
GROWTH = 1.1
GROWS_FROM, GROWS_TO = 0.5, 4.0
#: Seconds of the rate that may come in one moment, and that priority 1 may take in advance; and
#: requests that may at least.
BURST_S = 0.05
BURST_MIN = 2.0
DEBT_S = 0.25
#: Who looks so many intervals too late, and half the high threshold, was held up itself, and all
#: that it measures with it.
PAUSE_INTERVALS = 3


class CanaryGate(BaseGate):
    """Closes when the least canary latency in a window is above a threshold. For one thread.

    See `Gate` for how it is used. A canary is due each `canary_interval_ms` while requests come.

    :param policy: how it decides.
    :param uniform: draws a number between its two arguments, as `random.Random().uniform`.
    :param nodes: the names of other nodes, as `name@host:port`, through which canaries go, too;
        each alone may close the gate.
    """

    __slots__ = (
        "_admitted_before",
        "_aim",
        "_canaries",
        "_canary_at",
        "_due",
        "_interval_ns",
        "_is_slow",
        "_load",
        "_low_since",
        "_open_after_ns",
        "_pause_ns",
        "_pauses",
        "_per_s",
        "_per_s_min",
        "_refilled_ns",
        "_refused_ns",
        "_slow_node",
        "_tokens",
    )

    def __init__(self, policy: CanaryPolicy, uniform: Uniform, nodes: Iterable[str] = ()) -> None:
        super().__init__(policy, uniform)
        self._interval_ns = policy.canary_interval_ms * NS_PER_MS
        self._open_after_ns = policy.open_after_ms * NS_PER_MS
        self._pause_ns = max(policy.high_ms * NS_PER_MS // 2, PAUSE_INTERVALS * self._interval_ns)
        self._per_s_min = float(policy.closed_per_second_min)
        #: Those through this node, whose name is empty here, and through each of the others.
        self._canaries = {
            node: Canaries(
                (policy.remote_high_ms if node else policy.high_ms) * NS_PER_MS,
                (policy.remote_low_ms if node else policy.low_ms) * NS_PER_MS,
                policy.window_ms * NS_PER_MS,
                policy.canaries_min,
                policy.canaries_max,
                policy.canary_lost_ms * NS_PER_MS,
            )
            for node in ("", *nodes)
        }
        #: What is aimed at while it is closed: half the way between the thresholds, as a part of
        #: the high one.
        self._aim = (1 + policy.low_ms / policy.high_ms) / 2
        #: When the next canary is due, through each.
        self._canary_at = dict.fromkeys(self._canaries, 0)
        #: How many had been let in when the last canary was sent, through each.
        self._admitted_before = dict.fromkeys(self._canaries, 0)
        #: Whether the canaries have closed it, and those of which node.
        self._is_slow = False
        self._slow_node = ""
        #: The highest of the least latencies, as a part of its high threshold.
        self._load = 0.0
        #: Since when all are below their low ones.
        self._low_since: int | None = None
        #: When somebody should have looked, at the latest; and how often it was much later.
        self._due = NEVER
        self._pauses = 0
        #: The rate of a closed gate, and what may come in of it now.
        self._per_s = self._per_s_min
        self._tokens = 0.0
        self._refilled_ns = 0
        #: When somebody was refused last because the closed gate's rate was used up.
        self._refused_ns = 0

    @property
    def nodes(self) -> tuple[str, ...]:
        """See `Gate.nodes`."""
        return tuple(node for node in self._canaries if node)

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        """See `Gate.has_room`."""
        if priority >= self._least_priority:
            return True
        if not self._reason or self._pressure.is_high or priority < 0:
            # Open, but for who is refused earlier. Or a queue is full, which drains by itself.
            return priority > 0 and not self._pressure.is_full
        self._refill(now_ns)
        if priority > 0:
            return self._tokens > -max(self._per_s * DEBT_S, DEBT_MIN)
        return self._tokens >= 1.0

    def refuse(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.refuse`."""
        self._count_refused(priority)
        if priority >= 0 and not self.has_room(now_ns, priority):
            self._refused_ns = now_ns
        if not self._is_slow:
            return self._retry_times.next_ms(now_ns, max(self._ended_rate.per_s, self._per_s_min))
        least_ms = self._canaries[self._slow_node].least_ns(now_ns) / NS_PER_MS
        aim_ms = self._canaries[self._slow_node].high_ns * self._aim / NS_PER_MS
        return self._retry_times.next_ms(now_ns, self._per_s, max(least_ms - aim_ms, 0.0))

    def began(self, now_ns: int) -> None:
        """See `Gate.began`."""
        self._in_flight += 1
        self._admitted += 1
        if self._is_slow:
            self._tokens -= 1.0

    def canary_due(self, now_ns: int, node: str = "") -> bool:
        """See `Gate.canary_due`.

        :raises KeyError: if the gate was not told of that node.
        """
        return now_ns >= self._next_canary(node)

    def canary_sent(self, now_ns: int, number: int, node: str = "") -> None:
        """See `Gate.canary_sent`.

        :raises KeyError: if the gate was not told of that node.
        """
        self._canaries[node].sent(now_ns, number, self._pauses)
        self._canary_at[node] = now_ns + self._interval_ns
        self._admitted_before[node] = self._admitted
        self._due = min(self._due, now_ns + self._interval_ns)

    def canary_back(self, now_ns: int, number: int) -> None:
        """See `Gate.canary_back`."""
        self._note_pause(now_ns)
        for canaries in self._canaries.values():
            if canaries.came_back(now_ns, number, self._pauses):
                break

    def canary_lost(self, now_ns: int, node: str = "") -> None:
        """See `Gate.canary_lost`.

        :raises KeyError: if the gate was not told of that node.
        """
        self._canaries[node].give_up()

    def next_tick(self, now_ns: int) -> int:
        """See `Gate.next_tick`."""
        if self._is_untold:
            return now_ns
        due = min(self._due, *map(self._next_canary, self._canaries))
        if (forgotten := self._pressure.next_tick()) is not None:
            due = min(due, forgotten)
        if due != NEVER:
            due = max(due, now_ns)
        return due

    def tick(self, now_ns: int) -> GateChanged | None:
        """See `Gate.tick`."""
        self._note_pause(now_ns)
        self._pressure.tick(now_ns)
        for canaries in self._canaries.values():
            canaries.tick(now_ns, self._pauses)
        self._judge(now_ns)
        if not self._is_busy:
            self._ended_rate.rest()
        else:
            is_measured = self._ended_rate.observe(now_ns, self._ended)
            if self._is_slow:
                self._steer(now_ns, is_measured)
        self._due = now_ns + self._interval_ns if self._is_busy else NEVER
        return self._told(self._latency_us)

    def status(self) -> GateStatus:
        """See `Gate.status`."""
        every = self._canaries.values()
        return GateStatus(
            strategy="canary",
            is_open=not self._reason,
            reason=self._reason,
            in_flight=self._in_flight,
            limit=float("inf"),
            rate_per_s=self._per_s if self._is_slow else float("inf"),
            ended_per_s=self._ended_rate.per_s,
            latency_us=self._latency_us,
            latency_usual_us=self._canaries[self._slow_node].low_ns / 1_000,
            pressure_name=self._pressure.name,
            pressure=self._pressure.top,
            admitted=self._admitted,
            refused=dict(self._refused),
            closings=self._closings,
            canaries_back=sum(each.back for each in every),
            canaries_lost=sum(each.lost for each in every),
            pauses=self._pauses,
        )

    @property
    def _is_busy(self) -> bool:
        """Whether something is going on that time has a part in."""
        return (
            bool(self._reason)
            or self._load > 0.0
            or self._pressure.is_raised
            or any(each.are_out for each in self._canaries.values())
        )

    def _next_canary(self, node: str) -> int:
        """When the next one is due: there are none without requests, unless the gate is closed."""
        is_needed = self._admitted != self._admitted_before[node] or self._is_slow
        if not is_needed or not self._canaries[node].may_send:
            return NEVER
        return self._canary_at[node]

    @property
    def _latency_us(self) -> float:
        return self._load * self._canaries[self._slow_node].high_ns / 1_000

    def _note_pause(self, now_ns: int) -> None:
        """Whoever comes so late was held up, and with it the whole process, or its executor."""
        if now_ns - self._due > self._pause_ns:
            self._pauses += 1
            self._due = now_ns

    def _judge(self, now_ns: int) -> None:
        self._load, is_low = 0.0, True
        for node, canaries in self._canaries.items():
            least_ns = canaries.least_ns(now_ns)
            if least_ns >= canaries.low_ns:
                is_low = False
            if least_ns / canaries.high_ns > self._load:
                self._load = least_ns / canaries.high_ns
                self._slow_node = node
        if not is_low:
            self._low_since = None
        elif self._low_since is None:
            self._low_since = now_ns
        if not self._is_slow:
            slow = next((n for n, each in self._canaries.items() if each.are_slow(now_ns)), None)
            if slow is not None:
                self._is_slow, self._slow_node, self._low_since = True, slow, None
                self._tokens, self._refilled_ns, self._per_s = 0.0, now_ns, 0.0
        elif (
            self._low_since is not None
            and now_ns - max(self._low_since, self._refused_ns) >= self._open_after_ns
        ):
            self._is_slow = False
            for canaries in self._canaries.values():
                canaries.forget_slow()
        self._set_reason(self._reason_now())
        if self._reason:
            self._least_priority = CLOSED
        else:
            self._least_priority = -1 if is_low and not self._pressure.is_raised else 0

    def _steer(self, now_ns: int, is_measured: bool) -> None:
        """The rate of a closed gate.

        :param is_measured: whether the rate at which requests end has just been.
        """
        self._refill(now_ns)
        ended = self._ended_rate
        aim = self._aim
        if ended.peak_per_s:
            # A few requests have to wait, or the executor would often have none.
            aim = max(aim, AIM_REQUESTS * NS_PER_S / ended.peak_per_s / self._canaries[""].high_ns)
        over = self._load - aim
        per_s = ended.per_s / (1.0 + over * GAIN) if over > 0 else ended.per_s * (1.0 - over * GAIN)
        if self._low_since is not None:
            growth = GROWTH if is_measured else 1.0
            grown = min(self._per_s * growth, ended.peak_per_s * GROWS_TO)
            per_s = max(per_s, grown, ended.peak_per_s * GROWS_FROM)
        self._per_s = max(per_s, self._per_s_min)

    def _reason_now(self) -> str:
        if self._is_slow:
            return f"canaries through {self._slow_node}" if self._slow_node else "canaries"
        return f"pressure of {self._pressure.name}" if self._pressure.is_high else ""

    def _refill(self, now_ns: int) -> None:
        """What has come in since at the rate of until now."""
        most = max(self._per_s * BURST_S, BURST_MIN)
        passed_s = (now_ns - self._refilled_ns) / NS_PER_S
        self._tokens = min(self._tokens + passed_s * self._per_s, most)
        self._refilled_ns = now_ns
