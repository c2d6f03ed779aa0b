"""What a node has to say to its operator, written to the log by a thread of its own.

The executor never blocks on a log, and a log handler may block: so reports are formatted where
they arise, at a bounded rate and of a bounded length, and written here. The same thread watches the
executor: a `receive` that does not return is reported with its stack, once per call.
"""

from __future__ import annotations

import collections
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rabble._core.ids import Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import Interrupted, bounded_str
from rabble.steps import take_steps
from rabble.texts import TEXT_CHARS_MAX, cut, described

__all__ = ["Reporter", "described", "traceback_text"]

PERIOD_S = 0.25
LINE_CHARS_MAX = 1_000
REPORT_CHARS_MAX = 65_536
FRAMES_MAX = 50
#: Of the exceptions that led to one, and of those in a group, each with all that hangs on it.
CHAIN_MAX = 8
GROUP_MAX = 8
GROUP_DEPTH_MAX = 3
NOTES_MAX = 8

CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
UNPRINTABLE = "a report for which there were no words"


def attribute(error: BaseException, name: str, base: type = BaseException) -> Any:
    """What the interpreter keeps for each exception, whatever its class has under that name."""
    return base.__dict__[name].__get__(error)


def own_part(error: BaseException) -> TracebackType | None:
    """A traceback without the frames of the executor that it begins with."""
    trace: TracebackType | None = attribute(error, "__traceback__")
    while trace is not None and trace.tb_frame.f_code.co_filename.endswith("executor.pyx"):
        trace = trace.tb_next
    return trace


def traceback_text(error: BaseException) -> str:
    """An exception with its traceback, much as the interpreter prints it; bounded.

    `traceback` would ask the exception for its text without a bound, walk along all that led to it,
    and look through the attributes of the user's objects for one of a similar name.
    """
    try:
        text = "".join(chain_lines(error, set(), 0))
    except Interrupted:
        raise
    except BaseException as failure:
        text = f"a {described(error)}; formatting it failed: {described(failure)}"
    return cut(text.rstrip(), REPORT_CHARS_MAX)


def chain_lines(error: BaseException, seen: set[int], depth: int) -> list[str]:
    """An exception after those that led to it."""
    chain: list[list[str]] = []
    current: BaseException | None = error
    link = ""
    while current is not None and id(current) not in seen:
        if len(chain) == CHAIN_MAX:
            chain.append([f"... and what led to that\n{link}"])
            break
        seen.add(id(current))
        chain.append([*error_lines(current, seen, depth), link])
        cause: BaseException | None = attribute(current, "__cause__")
        if cause is not None:
            current, link = cause, CAUSE
        elif attribute(current, "__suppress_context__"):
            current = None
        else:
            current, link = attribute(current, "__context__"), CONTEXT
    return [line for part in reversed(chain) for line in part]


def error_lines(error: BaseException, seen: set[int], depth: int) -> list[str]:
    """One exception: its traceback, its text, its notes, and what is in it if it is a group."""
    lines = []
    trace = own_part(error)
    if trace is not None:
        lines.append("Traceback (most recent call last):\n")
        # The latest calls: an endless recursion has a thousand.
        stack = traceback.extract_tb(trace, limit=-FRAMES_MAX)
        if len(stack) == FRAMES_MAX:
            lines.append(f"  ... of which these are the last {FRAMES_MAX}\n")
        lines += [cut(line, LINE_CHARS_MAX) for line in stack.format()]
    lines.append(f"{described(error)}\n")
    notes = getattr(vars(error), "get", lambda name: None)("__notes__")
    if type(notes) is list:
        lines += [f"{bounded_str(note, TEXT_CHARS_MAX)}\n" for note in notes[:NOTES_MAX]]
    if isinstance(error, BaseExceptionGroup) and depth < GROUP_DEPTH_MAX:
        parts = attribute(error, "exceptions", BaseExceptionGroup)
        for part in parts[:GROUP_MAX]:
            text = "".join(chain_lines(part, seen, depth + 1)) or "(as above)"
            lines += [f"  | {line}\n" for line in text.rstrip().splitlines()]
            lines.append("  +--\n")
        if len(parts) > GROUP_MAX:
            lines.append(f"  and {len(parts) - GROUP_MAX} more\n")
    return lines


class Reporter:
    """The log of one node, rate-limited, and the thread that writes it and calls the watchdog.

    :param name: of its thread.
    :param per_second: how many reports a second are written.
    :param waiting: how many may wait to be written.
    :param watch: called a few times a second in the reporter's thread.
    :param failed: called with what ended that thread's work. What is reported is still written.
    :param clock: monotonic seconds.

    The `report` methods may be called from any thread, never block, and raise nothing but
    `Interrupted`. A report is put into words only if it is going to be written.
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
        self._waiting: collections.deque[tuple[int, str]] = collections.deque()
        self._waiting_max = waiting
        self._awake = Inbox(1)
        self.suppressed_total = 0
        self.thread = threading.Thread(
            target=take_steps, args=(failed, self._work), name=name, daemon=False
        )

    def report(self, level: int, words: Callable[[], str]) -> None:
        """Write one report, or count it as suppressed; nothing of either if nobody wants it."""
        try:
            self._report(level, words)
        except Interrupted:
            raise
        except BaseException:
            # There is no memory, say. That is no failure of what is reported, nor of who reports.
            self._suppressed += 1
            self.suppressed_total += 1

    def _report(self, level: int, words: Callable[[], str]) -> None:
        # Not isEnabledFor, which takes a lock: a signal handler that waits for the node's end may
        # have interrupted its holder.
        if level < self._log.getEffectiveLevel():
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
        except Interrupted:
            raise
        except BaseException as failure:
            text = f"{UNPRINTABLE}: {described(failure)}"
        if self._suppressed:
            text += f"\n[{self._suppressed} reports before this one were suppressed]"
            self._suppressed = 0
        self._waiting.append((level, text))

    def report_crash(self, pid: Pid | None, error: BaseException) -> None:
        """Report a failed process or service with its traceback."""
        self.report(logging.ERROR, lambda: f"{pid} crashed\n{traceback_text(error)}")

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
            self._watch(self)
            self._write()
        self._write()
        self._write_suppressed()

    def _write(self) -> None:
        while self._waiting:
            level, text = self._waiting.popleft()
            self._log_text(level, text)
        if self._suppressed and int(self._clock()) != self._second:
            self._write_suppressed()

    def _write_suppressed(self) -> None:
        count, self._suppressed = self._suppressed, 0
        if count:
            self._log_text(logging.WARNING, f"{count} reports were suppressed")

    def _log_text(self, level: int, text: str) -> None:
        try:
            self._log.log(level, "%s", text)
        except BaseException as error:
            # A filter or handler of somebody else's. The watchdog lives in this thread: go on, and
            # complain where logging itself does, if that can be done.
            if logging.raiseExceptions and sys.stderr is not None:
                try:
                    sys.stderr.write(f"{traceback_text(error)}\n")
                except BaseException:
                    pass
