"""Whether an executor makes progress: a `receive` that does not return holds up everybody."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rabble._core.executor import Executor
from rabble.reports import Reporter

__all__ = ["Watchdog"]


class Watchdog:
    """Looks at an executor a few times a second, when the reporter's thread calls `look`.

    :param thread: the executor's.
    :param report_after_s: seconds after which a `receive` is reported, once, with its stack.
    :param stalled_after_s: seconds after which the executor counts as stalled.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        executor: Executor,
        thread: threading.Thread,
        *,
        report_after_s: float,
        stalled_after_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._thread = thread
        self._report_after_s = report_after_s
        self._stalled_after_s = stalled_after_s
        self._clock = clock
        #: The number of the delivery that was seen last, and when it was first seen.
        self._last_delivery = (-1, clock())
        self._reported = -1

    @property
    def stalled(self) -> bool:
        """Whether one delivery has gone on for too long."""
        return self._seconds() >= self._stalled_after_s

    def look(self, reporter: Reporter) -> None:
        """Take note of where the executor is; report it if it has been there for too long."""
        delivered = self._executor.delivered
        pid = self._executor.current_pid
        if pid is None or delivered != self._last_delivery[0]:
            self._last_delivery = (delivered, self._clock())
        elif self._seconds() >= self._report_after_s and delivered != self._reported:
            self._reported = delivered
            if self._thread.ident is not None:
                reporter.report_stack(pid, self._thread.ident, self._seconds())

    def _seconds(self) -> float:
        """For how long the executor has been in the delivery that was seen last."""
        number, since = self._last_delivery
        if self._executor.current_pid is None or self._executor.delivered != number:
            return 0.0
        return self._clock() - since
