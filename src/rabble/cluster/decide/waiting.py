"""The targets that wait for their time to be dialled, and when the first one's has come."""

from __future__ import annotations

from collections.abc import Iterator

from rabble.cluster.decide.backoff import Backoff
from rabble.cluster.decide.peers import DialTarget, Member

__all__ = ["Waiting"]


class Waiting:
    """Keeps them as long as they are due some time. For one thread.

    :param backoff: says when a target is due.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._targets: dict[DialTarget, None] = {}
        #: Those of them that failed before.
        self._failing: dict[DialTarget, None] = {}
        #: When the first one is due, at the earliest; and whether that has to be found anew.
        self._first_due = float("inf")
        self._is_first_gone = False

    def __contains__(self, target: DialTarget) -> bool:
        return target in self._targets

    def __iter__(self) -> Iterator[DialTarget]:
        return iter(self._targets)

    def plan(self, target: DialTarget, now: float, *, hold_back: bool) -> None:
        """Have a target wait, unless it is not to be dialled at all; see `Backoff.plan`."""
        # First: what is due and not among these would never be dialled.
        self._targets[target] = None
        self._backoff.plan(target, now, hold_back=hold_back)
        if target.due is None:
            del self._targets[target]
            return
        if isinstance(target, Member):
            target.due = max(target.due, target.held_until)
        self._first_due = min(self._first_due, target.due)
        if target.attempts:
            self._failing[target] = None

    def drop(self, target: DialTarget) -> None:
        """It is not due any more, or at another time."""
        self._targets.pop(target, None)
        self._failing.pop(target, None)
        if target.due is not None:
            self._is_first_gone |= target.due <= self._first_due
            target.due = None

    def hurry(self, now: float) -> bool:
        """Somebody could be reached: those that failed may be again, too.

        :returns: whether there are any.
        """
        for target in self._failing:
            if isinstance(target, Member) and now < target.held_until:
                continue
            self._backoff.hurry(target, now)
            if target.due is not None:
                self._first_due = min(self._first_due, target.due)
        return bool(self._failing)

    def failing(self) -> list[DialTarget]:
        """Those that failed before."""
        return list(self._failing)

    def due(self, now: float, last_up: float) -> list[DialTarget]:
        """Those whose time has come, and that do not hold back; the longest wait comes first.

        So no target starves where there are more than may be dialled.

        :param last_up: when the last connection came up.
        """
        if now < self._first_due and not self._is_first_gone:
            return []
        due: list[tuple[float, DialTarget]] = []
        for target in self._targets:
            if target.due is None or target.due > now:
                continue
            if self._backoff.holds_back(target, last_up, now):
                self._is_first_gone = True
            else:
                due.append((target.due, target))
        due.sort(key=lambda pair: pair[0])
        return [target for _, target in due]

    def first_due(self) -> float:
        """When the first one is due, at the earliest; infinity if there is none."""
        if self._is_first_gone:
            self._is_first_gone = False
            self._first_due = min(
                (t.due for t in self._targets if t.due is not None), default=float("inf")
            )
        return self._first_due if self._targets else float("inf")

    def look_anew(self) -> None:
        """Something may have been noted by half: find the first one anew."""
        self._is_first_gone = True
