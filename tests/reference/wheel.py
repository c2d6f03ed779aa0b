"""The timing wheel as one would write it without a wheel: a list, and a look at all of it."""

from __future__ import annotations

import dataclasses
from typing import Any

DELAY_TICKS_MAX = 366 * 24 * 60 * 60 * 1000


@dataclasses.dataclass(eq=False)
class ReferenceTimer:
    owner: Any
    correlation_id: Any
    deadline: int
    active: bool = True


class ReferenceWheel:
    """What `TimerWheel` promises; `next_deadline` is exact here, a lower bound there."""

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self.running: list[ReferenceTimer] = []  # in the order in which they were started

    def __len__(self) -> int:
        return len(self.running)

    def start(self, owner: Any, correlation_id: Any, delay: int) -> ReferenceTimer:
        if not 0 <= delay <= DELAY_TICKS_MAX:
            raise ValueError(delay)
        timer = ReferenceTimer(owner, correlation_id, self.now + max(delay, 1))
        self.running.append(timer)
        return timer

    def cancel(self, timer: ReferenceTimer) -> bool:
        was_active = timer.active
        if was_active:
            self.running.remove(timer)
            timer.active = False
        return was_active

    def advance(self, now: int) -> list[ReferenceTimer]:
        if now < self.now:
            raise ValueError(now)
        self.now = now
        # Python's sort keeps the order of equals.
        due = sorted((t for t in self.running if t.deadline <= now), key=lambda t: t.deadline)
        for timer in due:
            self.cancel(timer)
        return due

    def next_deadline(self) -> int | None:
        return min((timer.deadline for timer in self.running), default=None)

    def clear(self) -> int:
        count = len(self.running)
        for timer in list(self.running):
            self.cancel(timer)
        return count
