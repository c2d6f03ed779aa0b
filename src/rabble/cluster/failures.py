"""What fails for itself in the threads of the mesh: it is noted, and everything else goes on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from rabble.tracebacks import traceback_text

__all__ = ["Failures", "IN_A_ROW_MAX", "RETRY_S"]

#: How often something that has to be done again and again may fail in a row.
IN_A_ROW_MAX = 20
#: Seconds until what failed is done again.
RETRY_S = 0.05


class Failures:
    """Takes note of what a single command, connection, look-up or timer raised. For any thread.

    Whoever has caught that gives up what it was about, and goes on. What is not about any single
    thing is done again, and is the node's failure if it never passes: see `again`.

    :param owner: the name of the node, for the log.
    :param report: writes to the log, at a bounded rate.
    :param count: called for each.
    """

    def __init__(
        self,
        owner: str,
        report: Callable[[int, Callable[[], str]], None],
        count: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._report = report
        self._count = count
        #: How often each of those that failed last has failed since it passed.
        self._in_a_row: dict[str, int] = {}
        self._failed = False
        #: Something has failed, and may have broken off halfway, since somebody set this to False.
        self.is_unmended = False

    def note(self, what: str, error: BaseException) -> None:
        """Log and count that `what` was given up. Raises nothing.

        :param error: by which it failed.
        """
        self.is_unmended = True
        try:
            self._count()
            self._report(
                logging.ERROR,
                lambda: f"{self._owner}: {what} failed and is given up\n{traceback_text(error)}",
            )
        except BaseException:
            # There is no memory for words, say. What was given up is given up all the same.
            pass

    def again(self, what: str, error: BaseException) -> None:
        """Note a failure of what is to be done again, in `RETRY_S`.

        :raises BaseException: `error`, if it failed `IN_A_ROW_MAX` times and never passed.
        """
        self.note(what, error)
        self._failed = True
        times = self._in_a_row[what] = self._in_a_row.get(what, 0) + 1
        if times >= IN_A_ROW_MAX:
            raise error

    def passed(self, what: str) -> None:
        """It went well."""
        if self._in_a_row:
            self._in_a_row.pop(what, None)

    def attempt(self, what: str, step: Callable[[], object]) -> None:
        """Take a step that is taken again and again; see `again` for what it raises."""
        try:
            step()
        except BaseException as error:
            self.again(what, error)
        else:
            self.passed(what)

    def attempt_at(self, what: str, step: Callable[[float], object], now: float) -> None:
        """The same of a step that is called with the time, in monotonic seconds."""
        self.attempt(what, functools.partial(step, now))

    def rest_s(self) -> float:
        """Seconds to wait before the next look, once after each failure of what is done again."""
        failed, self._failed = self._failed, False
        return RETRY_S if failed else 0.0
