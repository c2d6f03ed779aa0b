"""The inbox: a bound, and one wake-up until it was drained."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from rabble import Envelope, NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.queue import EnvelopeQueue
from tests.support import PATIENCE_S, TRACED, eventfds

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
def signal_when_waiting(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
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
    with signal_when_waiting(lambda number, frame: inbox.try_put(Envelope(PID, number))):
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


# Descriptors.


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_closed_inbox_that_nobody_polls_has_no_descriptor_whoever_keeps_it() -> None:
    before = len(eventfds())
    kept = [Inbox(2) for _ in range(50)]
    assert len(eventfds()) == before + 50
    for inbox in kept:
        inbox.try_put(Envelope(PID, inbox))
        inbox.close()
    assert len(eventfds()) == before
    # It is usable as any closed one.
    inbox = kept[0]
    inbox.signal()
    inbox.close()
    assert inbox.wait(PATIENCE_S) is True and inbox.wait() is True
    assert [e.msg for e in inbox.take(5)] == [inbox]
    assert inbox.wait(PATIENCE_S) is False and not inbox.arm()
    # Who begins to poll a closed one finds it readable, now and for ever.
    assert readable(inbox) and inbox.take(1) == [] and readable(inbox)
    assert len(eventfds()) == before + 1
    for inbox in kept:
        inbox.take(1)
    del inbox
    kept.clear()
    assert len(eventfds()) == before


def test_a_descriptor_that_somebody_asked_for_stays_until_the_inbox_goes() -> None:
    inbox = Inbox(1)
    with select.epoll() as epoll:
        epoll.register(inbox.fileno(), select.EPOLLIN)
        inbox.close()
        assert epoll.poll(0) == [(inbox.fileno(), select.EPOLLIN)]
        assert is_open(inbox.fileno())


def test_the_descriptor_stays_for_all_threads_that_wait_for_it() -> None:
    before = len(eventfds())
    inbox = Inbox(1)
    ready = threading.Barrier(5)
    results: list[bool] = []

    def wait() -> None:
        ready.wait(PATIENCE_S)
        results.append(inbox.wait(PATIENCE_S))

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE_S)
    inbox.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == [False] * 4
    assert len(eventfds()) == before


@pytest.mark.skipif(TRACED, reason="a tracer's own code would meet the exception first")
def test_a_handler_may_close_the_inbox_that_its_thread_waits_for() -> None:
    before = len(eventfds())
    inbox = Inbox(10)
    with signal_when_waiting(lambda number, frame: inbox.close()):
        assert inbox.wait(PATIENCE_S) is False
    assert len(eventfds()) == before


def test_wrong_arguments_open_and_close_nothing() -> None:
    # In a process of its own: were 0 closed here, so would be what the next test opens.
    script = """
import os
from rabble._core.inbox import Inbox
from rabble._core.queue import EnvelopeQueue

before = os.listdir("/proc/self/fd")
for wrong in ((), (0,), (-1,), (1 << 64,), ("5",), (None,), (1, 2)):
    try:
        Inbox(*wrong)
    except (TypeError, ValueError, OverflowError):
        os.fstat(0)
    else:
        raise AssertionError(wrong)
assert os.listdir("/proc/self/fd") == before
print("0 is still there")
"""
    said = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, capture_output=True, text=True
    )
    assert (said.stdout, said.stderr) == ("0 is still there\n", "")


# Timeouts.


@pytest.mark.parametrize("never", [None, math.inf, 1e300, 1e10, 10**400, 2**63, 2**62])
def test_a_timeout_without_bound_waits_until_there_is_something(never: Any) -> None:
    inbox = Inbox(10)
    with signal_when_waiting(lambda number, frame: inbox.try_put(Envelope(PID, 1))):
        assert inbox.wait(never) is True


@pytest.mark.parametrize("over", [0, -0.0, -1, -1e300, -math.inf, -(10**400), False])
def test_a_timeout_that_is_over_waits_for_nothing(over: Any) -> None:
    assert Inbox(1).wait(over) is False


@pytest.mark.parametrize("wrong", [math.nan, -math.nan, "1", b"1", 1j, [], object()])
def test_what_is_no_timeout_is_refused_whether_or_not_there_is_something(wrong: Any) -> None:
    inbox = Inbox(1)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match="number"):
            inbox.wait(wrong)
        inbox.try_put(Envelope(PID, 1))
    inbox.close()
    with pytest.raises((ValueError, TypeError), match="number"):
        inbox.wait(wrong)


@pytest.mark.parametrize("most", [0, -1, -sys.maxsize, sys.maxsize])
def test_taking_is_bounded_by_what_is_there(most: int) -> None:
    inbox = Inbox(1000)
    for n in range(700):
        inbox.try_put(Envelope(PID, n))
    taken = inbox.take(most)
    assert [e.msg for e in taken] == list(range(700 if most > 0 else 0))
    # It is a list like any other.
    taken.extend(taken)
    taken.append(Envelope(PID, 0))
    assert len(taken) == (1401 if most > 0 else 1)


def sees_cycles(*classes: type) -> bool:
    return all(cls.__flags__ & 1 << 14 for cls in classes)


@pytest.mark.skipif(
    not sees_cycles(Envelope, EnvelopeQueue), reason="the collector sees none of these yet"
)
def test_an_inbox_that_only_its_own_messages_name_is_collected() -> None:
    gc.collect()
    before = len(eventfds())
    for _ in range(20):
        inbox = Inbox(10)
        inbox.fileno()
        inbox.try_put(Envelope(PID, {"answer to": inbox}))
    del inbox
    gc.collect()
    assert len(eventfds()) == before


def test_the_collector_sees_an_inbox() -> None:
    assert sees_cycles(Inbox)
    assert [type(each) for each in gc.get_referents(Inbox(1))] == [EnvelopeQueue]
