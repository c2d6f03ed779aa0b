"""What a node has to say to its operator, written to the log by a thread of its own.

The executor never blocks on a log, and a log handler may block: so reports are formatted where
they arise, at a bounded rate, and written here. The same thread watches the executor: a `receive`
that does not return is reported with its stack, once per call.
"""

from __future__ import annotations

import collections
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

from rabble._core.executor import Interrupted
from rabble._core.ids import Pid
from rabble._core.inbox import Inbox

__all__ = ["Reporter", "described"]

PERIOD_S = 0.25


def own_part(error: BaseException) -> TracebackType | None:
    """A traceback without the frames of the executor that it begins with."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.endswith("executor.pyx"):
        trace = trace.tb_next
    return trace


def described(error: BaseException) -> str:
    """An exception's class and text, whatever its `__str__` does."""
    try:
        text = str(error)
    except Interrupted:
        raise
    except BaseException:
        text = "its str fails"
    return f"{type(error).__name__}: {text if len(text) <= 500 else text[:497] + '...'}"


class Reporter:
    """The log of one node, rate-limited, and the thread that writes it and calls the watchdog.

    :param name: of its thread.
    :param per_second: how many reports a second are written.
    :param waiting: how many may wait to be written.
    :param watch: called a few times a second in the reporter's thread.
    :param clock: monotonic seconds.

    The `report` methods may be called from any thread and never block. A report is put into words
    only if it is going to be written.
    """

    def __init__(
        self,
        name: str,
        *,
        per_second: int,
        waiting: int,
        watch: Callable[[Reporter], None],
        clock: Callable[[], float],
    ) -> None:
        self._log = logging.getLogger("rabble")
        self._per_second = per_second
        self._clock = clock
        self._watch = watch
        self._second = 0
        self._admitted = 0
        self._suppressed = 0
        self._waiting: collections.deque[tuple[int, str]] = collections.deque()
        self._waiting_max = waiting
        self._awake = Inbox(1)
        self.suppressed_total = 0
        self.thread = threading.Thread(target=self._run, name=name, daemon=False)

    def report(self, level: int, words: Callable[[], str]) -> None:
        """Write one report, or count it as suppressed; nothing of either if nobody wants it."""
        # Not isEnabledFor, which takes a lock: a signal handler that waits for the node's end may
        # have interrupted its holder.
        if level < self._log.getEffectiveLevel():
            return
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._admitted = 0
        if self._admitted >= self._per_second or len(self._waiting) >= self._waiting_max:
            self._suppressed += 1
            self.suppressed_total += 1
            return
        self._admitted += 1
        text = words()
        if self._suppressed:
            text += f"\n[{self._suppressed} reports before this one were suppressed]"
            self._suppressed = 0
        self._waiting.append((level, text))

    def report_crash(self, pid: Pid | None, error: BaseException) -> None:
        """Report a failed process or service with its traceback."""

        def words() -> str:
            try:
                trace = traceback.format_exception(type(error), error, own_part(error))
            except Interrupted:
                raise
            except BaseException as failure:
                trace = [f"a {described(error)}; formatting it failed: {described(failure)}"]
            return f"{pid} crashed\n{''.join(trace).rstrip()}"

        self.report(logging.ERROR, words)

    def report_stack(self, pid: Pid, thread_id: int, seconds: float) -> None:
        """Report a `receive` that has not returned, with where it stands."""

        def words() -> str:
            frame = sys._current_frames().get(thread_id)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            return f"{pid}: receive has not returned for {seconds:.1f} s\n{stack}".rstrip()

        self.report(logging.WARNING, words)

    def end(self) -> None:
        """Write what waits and end the thread. Never blocks."""
        self._awake.close()

    def _run(self) -> None:
        while not self._awake.closed:
            self._awake.wait(PERIOD_S)
            self._watch(self)
            self._write()
        self._write()
        self._write_suppressed()

    def _write(self) -> None:
        while self._waiting:
            level, text = self._waiting.popleft()
            self._say(level, text)
        if self._suppressed and int(self._clock()) != self._second:
            self._write_suppressed()

    def _write_suppressed(self) -> None:
        count, self._suppressed = self._suppressed, 0
        if count:
            self._say(logging.WARNING, f"{count} reports were suppressed")

    def _say(self, level: int, text: str) -> None:
        try:
            self._log.log(level, "%s", text)
        except BaseException:
            # A filter or handler of somebody else's. The watchdog lives in this thread: go on, and
            # complain where logging itself does.
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()
