"""Which peers are down and which stand still, as seen by a node that may be slow itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from rabble.limits import Limits

__all__ = ["Action", "Down", "FailureDetector", "Recovered", "Stalled"]

#: The most that the own lag widens the timeouts.
WIDENING_MAX = 8.0
#: For how many heartbeats a peer may be silent that is well.
WELL_HEARTBEATS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Down:
    """This connection has been silent for too long: close it. Given once."""

    connection_id: int
    silence_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Stalled:
    """The peer lives, but its executor has made no progress for that many seconds."""

    name: str
    for_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """A peer that was stalled goes on. Not given for a connection that is removed meanwhile."""

    name: str


Action = Down | Stalled | Recovered


@dataclasses.dataclass(slots=True)
class ObservedConnection:
    """What is known of one connection. All times are monotonic seconds.

    :param observed_at: when it was observed last.
    :param received_at: when a byte of the peer came last, as of then.
    :param excused_s: seconds since `received_at` in which this node did not run itself.
    :param progress: of the peer's executor; `None` until the peer reports it.
    :param stuck_since: when the peer first reported this progress without being idle, or later by
        what this node did not run itself; `None` while it idles.
    :param progress_at: when the peer reported its progress last.
    :param has_progressed: the executor has gone on, or was idle, since the last tick.
    """

    name: str
    observed_at: float
    received_at: float
    excused_s: float = 0.0
    progress: int | None = None
    stuck_since: float | None = None
    progress_at: float = 0.0
    has_progressed: bool = False
    down: bool = False
    stalled: bool = False


class FailureDetector:
    """Turns what is observed of connections into verdicts about peers. For one thread.

    :param limits: its `heartbeat_ms`, `down_after_ms` and `stalled_after_ms` are used.

    Call `tick` when `next_tick` says, each time after an `observe` of every connection. One whose
    peer is well, see `well_s`, may be left out unless it is in `to_observe`.

    A node that comes late to that was held up itself, by a stop signal, a hog of the GIL or a small
    share of the processor, and what it did not read meanwhile is nobody else's fault. So the time
    by which it was late is taken off what it holds against others, whose words may still lie in the
    kernel. And its timeouts widen with its lateness, up to 8 times, and narrow again by once their
    length with every heartbeat in which it was in time. The latter is the local health multiplier
    of Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
    Detection", 2018.
    """

    def __init__(self, limits: Limits) -> None:
        self._heartbeat_s = limits.heartbeat_ms / 1000
        self._down_after_s = limits.down_after_ms / 1000
        self._stalled_after_s = limits.stalled_after_ms / 1000
        self._period_s = self._heartbeat_s / 2
        #: A peer that was heard of within so many seconds, and was idle, is well.
        self.well_s = min(WELL_HEARTBEATS * self._heartbeat_s, self._down_after_s)
        self._connections: dict[int, ObservedConnection] = {}
        #: Those that were observed since the last `tick`; and of those before it the ones whose
        #: peer was not idle.
        self._observed: dict[int, ObservedConnection] = {}
        self._suspects: dict[int, ObservedConnection] = {}
        self._due: float | None = None
        self._ticked_at = 0.0
        self._lateness = 0.0

    @property
    def widening(self) -> float:
        """By what the timeouts are multiplied at present: 1 to 8."""
        return 1.0 + self._lateness

    def add(self, connection_id: int, name: str, now: float) -> None:
        """Observe this connection, whose peer is alive at this moment."""
        self._connections[connection_id] = ObservedConnection(name, now, now)
        if self._due is None:
            self._ticked_at = now
            self._due = now + self._period_s

    def remove(self, connection_id: int) -> None:
        """Watch it no longer. Nothing happens if it is not watched."""
        for each in (self._connections, self._observed, self._suspects):
            each.pop(connection_id, None)
        if not self._connections:
            self._due = None

    def to_observe(self, now: float) -> Container[int]:
        """The connections to be observed before a `tick` at `now`, even if their peers are well.

        These are the ones of which something may follow from that. What is held against others is
        of all, when this node is late.
        """
        return self._connections if self._is_late(now) else self._suspects

    def observe(
        self,
        connection_id: int,
        now: float,
        received_ago_s: float,
        progress: int | None,
        idle: bool,
        *,
        progress_ago_s: float | None = None,
    ) -> None:
        """Take note of how a connection stands. Nothing happens if it is not watched.

        :param received_ago_s: seconds since the last byte came.
        :param progress: of the peer's executor, as it reported last; `None` if it has not yet.
        :param idle: whether that has nothing to do, as it reported last.
        :param progress_ago_s: seconds since that report; without it, since the last byte. It
            matters where both sides send so much that neither sends PING.
        """
        observed = self._connections.get(connection_id)
        if observed is None:
            return
        self._observed[connection_id] = observed
        received_at = now - received_ago_s if received_ago_s > 0.0 else now
        # Two clocks may be read in the one and the other order: only a later word is a new one.
        if received_at > observed.received_at:
            observed.received_at = received_at
            observed.excused_s = 0.0
        if now > observed.observed_at:
            observed.observed_at = now
        progress_at = observed.received_at
        if progress_ago_s is not None:
            progress_at = now - progress_ago_s if progress_ago_s > 0.0 else now
        if idle or progress is None:
            observed.stuck_since, observed.has_progressed = None, True
        elif progress != observed.progress or observed.stuck_since is None:
            observed.stuck_since, observed.has_progressed = progress_at, True
        observed.progress = progress
        observed.progress_at = progress_at

    def tick(self, now: float) -> list[Action]:
        """What follows from what was observed."""
        self._measure_own_lateness(now)
        down_after_s = self._down_after_s * self.widening
        stalled_after_s = self._stalled_after_s * self.widening
        actions: list[Action] = []
        for connection_id, observed in self._observed.items():
            # As of when it was looked at, not of now: nobody is accused unseen.
            silence = observed.observed_at - observed.received_at - observed.excused_s
            if not observed.down and silence > down_after_s:
                observed.down = True
                actions.append(Down(connection_id, silence))
            if observed.stalled and observed.has_progressed:
                observed.stalled = False
                actions.append(Recovered(observed.name))
            observed.has_progressed = False
            # As of its last word: a silent peer is not known to stand still.
            if observed.stuck_since is None or observed.stalled:
                continue
            stood = observed.progress_at - observed.stuck_since
            if stood > stalled_after_s:
                observed.stalled = True
                actions.append(Stalled(observed.name, stood))
        self._suspects = {
            connection_id: observed
            for connection_id, observed in self._observed.items()
            if observed.stuck_since is not None
        }
        self._observed.clear()
        return actions

    def next_tick(self, now: float) -> float | None:
        """When to observe and call `tick`, in monotonic seconds; `None` with nobody to watch."""
        return self._due

    def _is_late(self, now: float) -> bool:
        return self._due is not None and now - self._due > self._period_s / 2

    def _measure_own_lateness(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        late = now - self._due
        if self._is_late(now):
            self._lateness = min(self._lateness + late / self._heartbeat_s, WIDENING_MAX - 1)
            for observed in self._connections.values():
                observed.excused_s += min(late, max(now - observed.received_at, 0.0))
                if observed.stuck_since is not None:
                    observed.stuck_since += late
        else:
            passed = now - self._ticked_at
            self._lateness = max(self._lateness - passed / self._heartbeat_s, 0.0)
        self._ticked_at = now
        self._due = now + self._period_s
