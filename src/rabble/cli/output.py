"""What the command prints: for whoever reads it, in what that can show."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from rabble.cli.status import FAILED

__all__ = [
    "OutputError",
    "cannot_write",
    "complain",
    "discard_unwritten",
    "finish_output",
    "print_line",
]

#: Seconds that standard error has to take what a node has to say, in all.
COMPLAINT_S = 1.0


class OutputError(Exception):
    """Standard output does not take what is printed; its cause is why."""


def print_line(line: str) -> None:
    """Print a line at once. Without standard output it is dropped.

    :raises OutputError: if it cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        # Or a locale without the letters of a node's name would refuse the whole line.
        encoding = sys.stdout.encoding or "utf-8"
        shown = line.encode(encoding, "backslashreplace").decode(encoding)
        # In one piece: the application's threads may print, too.
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise OutputError from error


def finish_output() -> int:
    """Write what is left to standard output.

    :returns: 0, or the exit status if it cannot be written, which is said.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        return cannot_write(error)
    return 0


def cannot_write(error: BaseException | None) -> int:
    """Say that standard output takes nothing; returns the exit status."""
    discard_unwritten()
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"rabble: cannot write to standard output: {why}", file=sys.stderr)
    return FAILED


def discard_unwritten() -> None:
    """Drop what standard output does not take, or Python would complain at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            sys.stdout.flush()


def complain(text: str, within_s: float = COMPLAINT_S) -> None:
    """Say on standard error what is wrong, if that takes it: a full pipe ends no node's end.

    :param within_s: seconds after which the rest is dropped. With 0 it never waits, and is for
        signal handlers: it passes by the buffer of standard error, whose lock may be held.
    """
    # Without standard error 2 may be the descriptor of anything.
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            descriptor = sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):
            # It is somebody's own.
            print(text, file=sys.stderr, flush=True)
            return
        unsaid = memoryview(f"{text}\n".encode(errors="backslashreplace"))
        end = time.monotonic() + within_s
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while unsaid and poll.poll(max(end - time.monotonic(), 0.0) * 1000):
            # What a pipe that can be written to takes at once.
            unsaid = unsaid[os.write(descriptor, unsaid[: select.PIPE_BUF]) :]
