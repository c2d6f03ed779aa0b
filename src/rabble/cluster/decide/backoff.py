"""When to dial again: full jitter under a ceiling that doubles with each failure."""

from __future__ import annotations

from typing import Protocol

from rabble.cluster.decide.peers import DialTarget
from rabble.cluster.decide.refusal import RefusalCode
from rabble.limits import Limits

__all__ = ["Backoff", "Uniform"]

#: Refusals that do not pass by themselves: the other side has to be set up, or told to join.
LASTING = frozenset(
    {RefusalCode.VERSION, RefusalCode.CLUSTER, RefusalCode.AUTH, RefusalCode.NOT_JOINED}
)
#: How a dial fails if the network lets nothing through.
UNREACHED = frozenset({None, RefusalCode.TIMEOUT})
#: Seconds within which who could not be reached is tried again when another peer could be.
HURRY_S = 1.0
#: Connections in turn that only small packets come through, from which on the peer is held down;
#: and the longest time of that, in longest waits for a dial.
HOLES_MIN = 2
HELD_MOST = 20
#: For how many `dial_hold_back_ms` at most a dial is held back while connections come up.
HOLD_BACKS_MAX = 20


class Uniform(Protocol):
    """Where jitter comes from: a `random.Random`, or what a test puts in its place."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number of that range, each as likely."""


class Backoff:
    """Draws the waits. "Full jitter": see M. Brooker, "Exponential Backoff And Jitter", 2015.

    :param rng: where the jitter comes from.
    """

    def __init__(self, rng: Uniform, limits: Limits) -> None:
        self._rng = rng
        self._first_s = limits.redial_first_ms / 1000
        self._most_s = limits.redial_most_ms / 1000
        self._refused_s = limits.redial_refused_ms / 1000
        self._hold_back_s = limits.dial_hold_back_ms / 1000

    def plan(self, target: DialTarget, now: float, *, hold_back: bool) -> None:
        """Set when the target is due, from how often and why it failed.

        :param hold_back: the other side dials too, and shall be first.
        """
        if target.barred or not target.is_desired:
            target.due = None
            return
        wait = 0.0
        if target.refusal in LASTING:
            wait = self._refused_s * self._rng.uniform(1, 1.5)
        elif target.refusal is RefusalCode.DUPLICATE and not target.attempts:
            # The connection that the peer has, or is making, should be here before that. If it is
            # not, the peer only has not noticed yet that it is gone.
            wait = self._hold_back_s * self._rng.uniform(1, 2)
        elif target.attempts:
            doublings = min(target.attempts - 1, 64)
            ceiling = min(self._first_s * 2.0**doublings, self._most_s)
            wait = self._rng.uniform(0, ceiling)
            if target.refusal is RefusalCode.BANNED:
                # It may be lifted before its end, but hardly as soon as a network comes back.
                longest = min(self._refused_s * 2.0**doublings, HELD_MOST * self._most_s)
                wait = max(min(longest, target.ban_s), ceiling) * self._rng.uniform(1, 1.5)
        target.due = now + wait
        target.held_back_until = 0.0
        if hold_back and not target.join:
            target.held_back_until = target.due + HOLD_BACKS_MAX * self._hold_back_s
            target.due += self._hold_back_s * self._rng.uniform(1, 2)

    def holds_back(self, target: DialTarget, last_up: float, now: float) -> bool:
        """Whether the other side of a dial that is due is left more time to dial first.

        As long as connections come up there are many that dial, and their dials take their time.

        :param last_up: when the last connection came up.
        :returns: True if the target is due at a later time now.
        """
        if now >= target.held_back_until:
            return False
        due = last_up + self._hold_back_s * self._rng.uniform(1, 2)
        if due <= now:
            return False
        target.due = min(due, target.held_back_until)
        return True

    def hold(self, holes: int) -> float:
        """For how many seconds to leave a peer alone from which only small packets come.

        :param holes: how many connections in turn have ended by that. The first may be chance.
        """
        if holes < HOLES_MIN:
            return 0.0
        longest = HELD_MOST * self._most_s
        return min(self._most_s * 2.0 ** min(holes - HOLES_MIN, 64), longest)

    def hurry(self, target: DialTarget, now: float) -> None:
        """Another peer could be reached: this one may be again too."""
        if (
            target.due is not None
            and target.due > now + HURRY_S
            and target.attempts
            and target.refusal in UNREACHED
        ):
            target.due = now + self._rng.uniform(0, HURRY_S)
            # From then on the other side is left its time, and not from when it would have been.
            longest = target.due + HOLD_BACKS_MAX * self._hold_back_s
            target.held_back_until = min(target.held_back_until, longest)
