"""The inbox: a bound, and one wake-up until it was drained."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from rabble import Envelope, NodeId, Pid
from rabble._core.inbox import Inbox
from tests.support import PATIENCE_S, TRACED

PID = Pid("p", NodeId("n", "h:1"))


def readable(inbox: Inbox) -> bool:
    return bool(select.select([inbox], [], [], 0)[0])


def test_it_keeps_order_and_its_bound() -> None:
    inbox = Inbox(3)
    assert [inbox.try_put(Envelope(PID, n)) for n in range(5)] == [True] * 3 + [False] * 2
    assert (len(inbox), inbox.limit) == (3, 3)
    assert [e.msg for e in inbox.take(2)] == [0, 1]
    assert inbox.try_put(Envelope(PID, 5))
    assert [e.msg for e in inbox.take(100)] == [2, 5]
    assert inbox.take(1) == []
    with pytest.raises(ValueError, match="at least 1"):
        Inbox(0)


def test_only_the_first_put_after_arming_wakes() -> None:
    inbox = Inbox(10)
    inbox.try_put(Envelope(PID, 0))
    assert not readable(inbox)
    assert not inbox.arm()
    inbox.take(1)
    assert inbox.arm()
    assert not readable(inbox)
    inbox.try_put(Envelope(PID, 1))
    assert readable(inbox)
    inbox.try_put(Envelope(PID, 2))
    # The eventfd counts writes: it was written once.
    assert os.eventfd_read(inbox.fileno()) == 1
    assert [e.msg for e in inbox.take(10)] == [1, 2]
    assert not readable(inbox)


def test_a_wait_ends_with_a_put_a_signal_or_its_time() -> None:
    inbox = Inbox(10)
    assert inbox.wait(0) is False
    assert inbox.wait(0.001) is False
    thread = threading.Thread(target=lambda: inbox.try_put(Envelope(PID, 1)))
    thread.start()
    assert inbox.wait(PATIENCE_S) is True
    thread.join()
    assert inbox.wait() is True
    inbox.take(1)
    inbox.close()
    assert inbox.wait(PATIENCE_S) is False
    assert inbox.closed
    assert not inbox.try_put(Envelope(PID, 1))
    assert not inbox.arm()


def test_closing_wakes_who_waits() -> None:
    inbox = Inbox(10)
    waiting = threading.Event()
    results: list[bool] = []

    def wait() -> None:
        waiting.set()
        results.append(inbox.wait(PATIENCE_S))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(PATIENCE_S)
    inbox.close()
    thread.join()
    assert results == [False]


#: The number of the system call, by machine, as /proc tells it.
PPOLL = {"x86_64": "271", "aarch64": "73"}


@contextlib.contextmanager
def signal_when_waiting(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send the main thread one signal as soon as it waits in an inbox."""
    main = threading.main_thread()
    assert main.ident is not None
    ident = main.ident

    def waits() -> bool:
        # Of all that the main thread does here only the wait is a ppoll; starting this thread and
        # taking the GIL are waits too, on futexes.
        with open(f"/proc/self/task/{main.native_id}/syscall") as file:
            return file.read().split()[0] == PPOLL[os.uname().machine]

    def signal_soon() -> None:
        while not waits():
            os.sched_yield()
        signal.pthread_kill(ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=signal_soon)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_runs_during_a_wait_and_may_put() -> None:
    inbox = Inbox(10)
    with signal_when_waiting(lambda number, frame: inbox.try_put(Envelope(PID, number)) and None):
        assert inbox.wait(PATIENCE_S)
    assert [e.msg for e in inbox.take(5)] == [signal.SIGUSR1]


@pytest.mark.skipif(TRACED, reason="a tracer's own code would meet the exception first")
def test_a_signal_handler_may_end_a_wait() -> None:
    inbox = Inbox(10)

    def fail(number: int, frame: FrameType | None) -> None:
        raise InterruptedError("the handler says so")

    with signal_when_waiting(fail), pytest.raises(InterruptedError, match="says so"):
        inbox.wait(PATIENCE_S)
    assert inbox.try_put(Envelope(PID, "still usable"))
    assert inbox.wait(PATIENCE_S)


def test_its_descriptor_goes_with_it_and_is_not_inherited() -> None:
    inbox = Inbox(1)
    fd = inbox.fileno()
    assert not os.get_inheritable(fd)
    inbox.close()
    assert os.fstat(fd)
    del inbox
    with pytest.raises(OSError):
        os.fstat(fd)
