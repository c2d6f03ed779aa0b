"""Which peers are down and which stand still, judged by a node that may be slow itself."""

from __future__ import annotations

import dataclasses

from rabble.limits import Limits

__all__ = ["Action", "Down", "Liveness", "Recovered", "Stalled"]

#: The most that the own lag widens the timeouts.
WIDENING_MAX = 8.0


@dataclasses.dataclass(frozen=True, slots=True)
class Down:
    """This connection has been silent for too long: close it. Said once."""

    link_id: int
    silence_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Stalled:
    """The peer lives, but its executor has made no progress for that many seconds."""

    name: str
    for_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """A peer that was stalled goes on. Not said of a connection that is removed meanwhile."""

    name: str


Action = Down | Stalled | Recovered


@dataclasses.dataclass(slots=True)
class Watched:
    """What is known of one connection. All times are monotonic seconds.

    :param looked_at: when it was observed last.
    :param heard_at: when the peer was heard last, as of then.
    :param excused_s: seconds since `heard_at` in which this node did not run itself.
    :param progress: of the peer's executor; `None` until it has told.
    :param since: when it first told that it stands there and is not idle, or later by what this
        node did not run itself; `None` while it idles.
    :param told_at: when it last told so.
    :param moved: it has gone on, or was idle, since the last tick.
    """

    name: str
    looked_at: float
    heard_at: float
    excused_s: float = 0.0
    progress: int | None = None
    since: float | None = None
    told_at: float = 0.0
    moved: bool = False
    down: bool = False
    stalled: bool = False


class Liveness:
    """Turns what is observed of connections into verdicts about peers. For one thread.

    :param limits: its `heartbeat_ms`, `down_after_ms` and `stalled_after_ms` are used.

    Call `tick` when `next_tick` says, each time after an `observe` of every connection. A node
    that comes late to that was held up itself, by a stop signal, a hog of the GIL or a small share
    of the processor, and what it did not hear meanwhile is nobody else's fault. So the time by
    which it was late is taken off what it holds against others, whose words may still lie in the
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
        self._watched: dict[int, Watched] = {}
        self._due: float | None = None
        self._ticked_at = 0.0
        self._lateness = 0.0

    @property
    def widening(self) -> float:
        """By what the timeouts are multiplied at present: 1 to 8."""
        return 1.0 + self._lateness

    def add(self, link_id: int, name: str, now: float) -> None:
        """Watch this connection, whose peer is heard at this moment."""
        self._watched[link_id] = Watched(name, now, now)
        if self._due is None:
            self._ticked_at = now
            self._due = now + self._period_s

    def remove(self, link_id: int) -> None:
        """Watch it no longer. Nothing happens if it is not watched."""
        self._watched.pop(link_id, None)
        if not self._watched:
            self._due = None

    def observe(
        self,
        link_id: int,
        now: float,
        received_ago_s: float,
        progress: int | None,
        idle: bool,
        *,
        told_ago_s: float | None = None,
    ) -> None:
        """Take note of how a connection stands. Nothing happens if it is not watched.

        :param received_ago_s: seconds since the last byte came.
        :param progress: what the peer said of its executor last; `None` if nothing yet.
        :param idle: what it said last of whether that has nothing to do.
        :param told_ago_s: seconds since it said so; without it, since the last byte. It matters
            where both sides talk so much that neither says PING.
        """
        watched = self._watched.get(link_id)
        if watched is None:
            return
        heard_at = now - max(received_ago_s, 0.0)
        # Two clocks may be read in the one and the other order: only a later word is a new one.
        if heard_at > watched.heard_at:
            watched.heard_at = heard_at
            watched.excused_s = 0.0
        watched.looked_at = max(now, watched.looked_at)
        told_at = watched.heard_at if told_ago_s is None else now - max(told_ago_s, 0.0)
        if idle or progress is None:
            watched.since, watched.moved = None, True
        elif progress != watched.progress or watched.since is None:
            watched.since, watched.moved = told_at, True
        watched.progress = progress
        watched.told_at = told_at

    def tick(self, now: float) -> list[Action]:
        """What follows from what was observed."""
        self._take_own_pulse(now)
        actions: list[Action] = []
        for link_id, watched in self._watched.items():
            # As of when it was looked at, not of now: nobody is accused unseen.
            silence = watched.looked_at - watched.heard_at - watched.excused_s
            if not watched.down and silence > self._down_after_s * self.widening:
                watched.down = True
                actions.append(Down(link_id, silence))
            if watched.stalled and watched.moved:
                watched.stalled = False
                actions.append(Recovered(watched.name))
            watched.moved = False
            # As of its last word: who is silent is not known to stand still.
            stood = 0.0 if watched.since is None else watched.told_at - watched.since
            if not watched.stalled and stood > self._stalled_after_s * self.widening:
                watched.stalled = True
                actions.append(Stalled(watched.name, stood))
        return actions

    def next_tick(self, now: float) -> float | None:
        """When to observe and call `tick`, in monotonic seconds; `None` with nobody to watch."""
        return self._due

    def _take_own_pulse(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        late = now - self._due
        if late > self._period_s / 2:
            self._lateness = min(self._lateness + late / self._heartbeat_s, WIDENING_MAX - 1)
            for watched in self._watched.values():
                watched.excused_s += min(late, max(now - watched.heard_at, 0.0))
                if watched.since is not None:
                    watched.since += late
        else:
            passed = now - self._ticked_at
            self._lateness = max(self._lateness - passed / self._heartbeat_s, 0.0)
        self._ticked_at = now
        self._due = now + self._period_s
