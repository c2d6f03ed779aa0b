"""What a node has to say to its operator, written to the log by a thread of its own.

The executor never blocks on a log, and a log handler may block: so reports are formatted where
they arise, at a bounded rate and of a bounded length, and written here. A record of a crash has a
copy of the exception (`exc_info`), and the text of its traceback (`exc_text`), which a `Formatter`
takes as it is. The same thread watches the
executor: a `receive` that does not return is reported with its stack, once per call.
"""

from __future__ import annotations

import collections
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple

from rabble._core.ids import Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import must_pass
from rabble.steps import take_steps
from rabble.texts import cut, described
from rabble.tracebacks import FRAMES_MAX, LINE_CHARS_MAX, REPORT_CHARS_MAX, detached, traceback_text

__all__ = ["Reporter", "described"]

PERIOD_S = 0.25
#: How often the watch may fail in a row: then a stuck executor would not be noticed any more.
WATCHES_FAILED_MAX = 20
UNPRINTABLE = "a report for which there were no words"


class Report(NamedTuple):
    """What waits to be written.

    :param error: a copy of the exception that it tells of, see `detached`.
    :param traceback: of that exception.
    """

    level: int
    text: str
    error: BaseException | None = None
    traceback: str | None = None


class Reporter:
    """The log of one node, rate-limited, and the thread that writes it and calls the watchdog.

    :param name: of its thread.
    :param per_second: how many reports a second are written.
    :param waiting: how many may wait to be written.
    :param watch: called a few times a second in the reporter's thread. What it raises is reported;
        if it does nothing else that is a failure of the thread.
    :param failed: called with what ended that thread's work. What is reported is still written.
    :param clock: monotonic seconds.

    The `report` methods may be called from any thread, never block, and raise nothing but what
    interrupts the thread: `Interrupted`, and in the main thread KeyboardInterrupt. A report is put
    into words only if it is going to be written.
    """

    def __init__(
        self,
        name: str,
        *,
        per_second: int,
        waiting: int,
        watch: Callable[[Reporter], None],
        failed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self._log = logging.getLogger("rabble")
        self._per_second = per_second
        self._clock = clock
        self._watch = watch
        self._second = 0
        self._admitted = 0
        self._suppressed = 0
        self._waiting: collections.deque[Report] = collections.deque()
        self._waiting_max = waiting
        self._awake = Inbox(1)
        self._watches_failed = 0
        self.suppressed_total = 0
        self.thread = threading.Thread(
            target=take_steps, args=(failed, self._work), name=name, daemon=False
        )

    def report(
        self, level: int, words: Callable[[], str], error: BaseException | None = None
    ) -> None:
        """Write one report, or count it as suppressed; nothing of either if nobody wants it.

        :param words: gives its text.
        :param error: what it tells of; the report has its traceback and a copy of it.
        """
        try:
            self._report(level, words, error)
        except BaseException as failure:
            if must_pass(failure):
                raise
            # There is no memory, say. That is no failure of what is reported, nor of who reports.
            self._suppressed += 1
            self.suppressed_total += 1

    def _report(self, level: int, words: Callable[[], str], error: BaseException | None) -> None:
        if not self._wanted(level):
            return
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._admitted = 0
        full = self._admitted >= self._per_second or len(self._waiting) >= self._waiting_max
        # The failure of a node is said once or twice, and never left out.
        if full and level < logging.CRITICAL:
            self._suppressed += 1
            self.suppressed_total += 1
            return
        self._admitted += 1
        try:
            text = cut(words(), REPORT_CHARS_MAX)
        except BaseException as failure:
            if must_pass(failure):
                raise
            text = f"{UNPRINTABLE}: {described(failure)}"
        if self._suppressed:
            text += f"\n[{self._suppressed} reports before this one were suppressed]"
            self._suppressed = 0
        if error is None:
            self._waiting.append(Report(level, text))
        else:
            self._waiting.append(Report(level, text, detached(error), traceback_text(error)))

    def _wanted(self, level: int) -> bool:
        # Not isEnabledFor, which takes a lock: a signal handler that waits for the node's end may
        # have interrupted its holder. It says no, too, if the logger was disabled, see `_log_one`.
        return level >= self._log.getEffectiveLevel() and level > self._log.manager.disable

    def report_crash(self, pid: Pid | None, error: BaseException, number: int = 0) -> None:
        """Report a failed process or service with its traceback.

        :param number: of the crash, which the exceptions of those that waited for it repeat.
        """
        which = f" (crash {number})" if number else ""
        self.report(logging.ERROR, lambda: f"{pid} crashed{which}", error)

    def report_stack(self, pid: Pid, thread_id: int, seconds: float) -> None:
        """Report a `receive` that has not returned, with where it stands."""

        def words() -> str:
            frame = sys._current_frames().get(thread_id)
            try:
                stack = traceback.format_stack(frame, FRAMES_MAX) if frame is not None else []
            except BaseException as failure:
                # What a module's own loader says of its source may be anything.
                stack = [f"where cannot be said: {described(failure)}"]
            text = "".join(cut(line, LINE_CHARS_MAX) for line in stack)
            return f"{pid}: receive has not returned for {seconds:.1f} s\n{text}".rstrip()

        self.report(logging.WARNING, words)

    def end(self) -> None:
        """Write what waits and end the thread. Never blocks."""
        self._awake.close()

    def _work(self) -> None:
        while not self._awake.closed:
            self._awake.wait(PERIOD_S)
            self._look()
            self._write()
        self._write()
        self._write_suppressed()

    def _look(self) -> None:
        """Call the watchdog. That it fails is reported, and is the end only if it always does."""
        try:
            self._watch(self)
        except BaseException as error:
            self._watches_failed += 1
            if self._watches_failed >= WATCHES_FAILED_MAX:
                raise
            self.report(logging.ERROR, lambda: "the look at the executor failed", error)
        else:
            self._watches_failed = 0

    def _write(self) -> None:
        while self._waiting:
            self._log_one(self._waiting.popleft())
        if self._suppressed and int(self._clock()) != self._second:
            self._write_suppressed()

    def _write_suppressed(self) -> None:
        count, self._suppressed = self._suppressed, 0
        if count:
            self._log_one(Report(logging.WARNING, f"{count} reports were suppressed"))

    def _log_one(self, report: Report) -> None:
        try:
            self._log_record(report)
        except BaseException as error:
            # A filter or handler of somebody else's. The watchdog lives in this thread: go on, and
            # complain where logging itself does, if that can be done.
            if logging.raiseExceptions and sys.stderr is not None:
                try:
                    sys.stderr.write(f"{traceback_text(error)}\n")
                except BaseException:
                    pass

    def _log_record(self, report: Report) -> None:
        if not self._wanted(report.level):
            return
        error = report.error
        record = self._log.makeRecord(
            self._log.name,
            report.level,
            __file__,
            0,
            "%s",
            (report.text,),
            None if error is None else (type(error), error, error.__traceback__),
        )
        record.exc_text = report.traceback
        # As `Logger.handle`, which does nothing if the logger was disabled: `dictConfig` and
        # `fileConfig` disable all loggers that exist and that they do not name, and nobody who
        # sets up the log of a program means its crashes by that.
        passed = self._log.filter(record)
        if passed:
            self._log.callHandlers(passed if isinstance(passed, logging.LogRecord) else record)
