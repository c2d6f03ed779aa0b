"""What a gate is asked and told, and what all gates have in common.

A gate decides and does nothing: no I/O, no clock, no thread, no chance of its own. It is told what
happens, and the time, and says what is to be done. A server holds it and acts.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Protocol

from rabble.services.gate.estimates import EndedRate, RetryTimes
from rabble.services.gate.messages import GateChanged, GateStatus
from rabble.services.gate.policies import Policy
from rabble.services.gate.pressure import Pressure

__all__ = ["NEVER", "BaseGate", "Gate", "NoGate", "Uniform"]

#: What `next_tick` returns when no tick is needed until something else happens: as ns.
NEVER = 2**63 - 1
#: No priority is as high as that: what the closed gate compares with first.
CLOSED = float("inf")
#: Requests of priority 1 that may be let in beyond what there is room for, at least.
DEBT_MIN = 16

#: Draws a number between its two arguments, as `random.uniform`.
Uniform = Callable[[float, float], float]


class Gate(Protocol):
    """What stands in front of the requests of a server. For one thread.

    `now_ns` is monotonic nanoseconds throughout, and never less than before. `priority` is 1 for
    what is let in longer (health checks), -1 for what is refused earlier (retries), else 0.

    With each request: `admit`; if that is 0, `began` at once, and `ended` in the end, however it
    ended. `tick` when `next_tick` says, which has to be asked again after any other call.
    """

    @property
    def in_flight(self) -> int:
        """Requests that were let in and have not ended."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of other nodes through which it wants canaries, too, as `name@host:port`."""

    def admit(self, now_ns: int, priority: int = 0) -> int:
        """Ask for a request.

        :returns: 0 if it is let in; else after how many milliseconds its client may try again.
        """

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        """Whether `admit` would let in a request. Changes nothing: one that waits may wait on."""

    def refuse(self, now_ns: int, priority: int = 0) -> int:
        """A request is refused for whatever reason; as `admit` it returns milliseconds."""

    def began(self, now_ns: int) -> None:
        """A request was let in."""

    def ended(self, now_ns: int, begun_ns: int, ok: bool = True) -> None:
        """One that was let in has ended.

        :param begun_ns: the time given to `began`.
        :param ok: it was answered; if not, it failed, or its client is gone.
        """

    def canary_due(self, now_ns: int, node: str = "") -> bool:
        """Whether a canary is to be sent: through this node's executor, or through another's."""

    def canary_sent(self, now_ns: int, number: int, node: str = "") -> None:
        """It was sent; the number has not been used before."""

    def canary_back(self, now_ns: int, number: int) -> None:
        """It has come back. One that nobody waits for is passed over."""

    def canary_lost(self, now_ns: int, node: str = "") -> None:
        """Those on their way through a node will not come back: it is down. It says nothing of
        overload."""

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        """A queue behind the gate says how full it is; 0 when it is gone.

        :param name: of the queue: of a peer, or of a process.
        :param fraction: 0 to 1, of its bound.
        :raises ValueError: if that is negative or no number.
        """

    def next_tick(self, now_ns: int) -> int:
        """When `tick` is to be called, in the same nanoseconds; `NEVER` if nothing is due."""

    def tick(self, now_ns: int) -> GateChanged | None:
        """Let the time count.

        :returns: what subscribers are to be told; `None` if it is as they know it.
        """

    def status(self) -> GateStatus:
        """A snapshot, as of the last `tick`, for metrics. Any thread of the node may ask."""


class BaseGate(abc.ABC):
    """What gates have in common: they count, they mind pressure, they say when to come again.

    :param policy: how it decides.
    :param uniform: draws a number between its two arguments: chance, handed in.
    """

    __slots__ = (
        "_admitted",
        "_closings",
        "_ended",
        "_ended_rate",
        "_in_flight",
        "_is_told_open",
        "_least_priority",
        "_pressure",
        "_reason",
        "_refused",
        "_retry_times",
        "_told_reason",
    )

    def __init__(self, policy: Policy, uniform: Uniform) -> None:
        #: Who has at least this priority is let in without another look. Not a number of the
        #: contract's while the gate is closed.
        self._least_priority: float = -1
        self._in_flight = 0
        self._admitted = 0
        self._ended = 0
        self._refused = {-1: 0, 0: 0, 1: 0}
        self._closings = 0
        #: Why it is closed; empty while it is open.
        self._reason = ""
        #: What subscribers know.
        self._is_told_open = True
        self._told_reason = ""
        self._pressure = Pressure(policy)
        self._ended_rate = EndedRate()
        self._retry_times = RetryTimes(
            policy.retry_after_ms_min, policy.retry_after_ms_max, uniform
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        """See `Gate.nodes`: none, unless it says otherwise."""
        return ()

    @property
    def is_open(self) -> bool:
        """Whether it lets in whatever comes."""
        return not self._reason

    @property
    def in_flight(self) -> int:
        """Requests that were let in and have not ended."""
        return self._in_flight

    def admit(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.admit`."""
        if priority >= self._least_priority or self.has_room(now_ns, priority):
            return 0
        return self.refuse(now_ns, priority)

    @abc.abstractmethod
    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        """See `Gate.has_room`."""

    @abc.abstractmethod
    def refuse(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.refuse`."""

    def began(self, now_ns: int) -> None:
        """See `Gate.began`."""
        self._in_flight += 1
        self._admitted += 1

    def ended(self, now_ns: int, begun_ns: int, ok: bool = True) -> None:
        """See `Gate.ended`."""
        self._in_flight -= 1
        self._ended += 1

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        """See `Gate.pressure`."""
        self._pressure.report(now_ns, name, fraction)
        self._judge(now_ns)

    @abc.abstractmethod
    def _judge(self, now_ns: int) -> None:
        """Open or close, as what is known now demands."""

    def _set_reason(self, reason: str) -> None:
        """It is closed for this reason; or open, if that is empty."""
        if reason and not self._reason:
            self._closings += 1
        self._reason = reason

    def _count_refused(self, priority: int) -> None:
        self._refused[max(-1, min(priority, 1))] += 1

    @property
    def _is_untold(self) -> bool:
        """Whether subscribers have to be told something."""
        return self._is_told_open == bool(self._reason)

    def _told(self, latency_us: float) -> GateChanged | None:
        """What subscribers are told now."""
        if not self._is_untold:
            return None
        is_open = self._is_told_open = not self._reason
        if not is_open:
            self._told_reason = self._reason
        return GateChanged(is_open, self._told_reason, latency_us, self._in_flight)


class WithoutCanaries:
    """A gate of which nothing depends on canaries: none is ever due."""

    __slots__ = ()

    def canary_due(self, now_ns: int, node: str = "") -> bool:
        """See `Gate.canary_due`."""
        return False

    def canary_sent(self, now_ns: int, number: int, node: str = "") -> None:
        """See `Gate.canary_sent`."""

    def canary_back(self, now_ns: int, number: int) -> None:
        """See `Gate.canary_back`."""

    def canary_lost(self, now_ns: int, node: str = "") -> None:
        """See `Gate.canary_lost`."""


def half_way(least: float, most: float) -> float:
    """What stands for chance where there is none."""
    return (least + most) / 2


class NoGate(WithoutCanaries, BaseGate):
    """Lets in whatever comes, and counts it. For one thread.

    :param uniform: as the other gates'; used by `refuse` alone, which others may call. Without it
        those who are refused in one moment come back in one.
    """

    __slots__ = ()

    def __init__(self, uniform: Uniform = half_way) -> None:
        super().__init__(Policy(), uniform)

    def has_room(self, now_ns: int, priority: int = 0) -> bool:
        """Always."""
        return True

    def refuse(self, now_ns: int, priority: int = 0) -> int:
        """See `Gate.refuse`: by others, for this gate never does."""
        self._count_refused(priority)
        return self._retry_times.next_ms(now_ns, self._ended_rate.per_s)

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        """It closes nothing, but is shown in the status."""
        self._pressure.report(now_ns, name, fraction)

    def next_tick(self, now_ns: int) -> int:
        """See `Gate.next_tick`."""
        return NEVER

    def tick(self, now_ns: int) -> None:
        """See `Gate.tick`: nothing ever changes."""

    def status(self) -> GateStatus:
        """See `Gate.status`."""
        return GateStatus(
            strategy="none",
            is_open=True,
            reason="",
            in_flight=self._in_flight,
            limit=float("inf"),
            rate_per_s=float("inf"),
            ended_per_s=0.0,
            latency_us=0.0,
            latency_usual_us=0.0,
            pressure_name=self._pressure.name,
            pressure=self._pressure.top,
            admitted=self._admitted,
            refused=dict(self._refused),
            closings=0,
            canaries_back=0,
            canaries_lost=0,
            pauses=0,
        )

    def _judge(self, now_ns: int) -> None:
        """It is open."""
