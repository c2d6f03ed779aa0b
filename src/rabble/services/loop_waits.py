"""Tasks of an event loop that wait for an inbox, and what such a loop must not be blocked by."""

from __future__ import annotations

import asyncio
import threading

from rabble._core.inbox import Inbox

__all__ = ["LoopWaits", "check_no_loop"]


class LoopWaits:
    """The tasks that wait until an inbox has something to take, or is closed.

    Several tasks of one loop may wait at a time: all are woken, and who comes first takes it. None
    takes anything while it waits, so a task that is cancelled loses nothing.

    :param inbox: which they wait for.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        #: The loop of those that wait now.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}
        #: ... and its thread.
        self._thread = 0

    def check_thread(self) -> None:
        """Raise `RuntimeError` while tasks wait in another thread: to take would disturb them."""
        if self._waiters and self._thread != threading.get_ident():
            loop = self._loop
            if loop is not None and not loop.is_closed():
                raise RuntimeError(
                    "tasks of an event loop in another thread wait for this mailbox, and one "
                    "thread at a time may: give each thread a mailbox of its own"
                )

    def taken(self) -> None:
        """Somebody has looked into the inbox: have those that wait woken by what comes next."""
        self._forget_closed()
        if self._waiters and not self._inbox.arm():
            self._wake()

    async def wait(self, left: float | None) -> None:
        """Return when there may be something to take, the inbox is closed, or the time is over.

        :param left: the time, in seconds; `None` is without end.
        :raises RuntimeError: if tasks of another loop wait, which has not been closed.
        """
        loop = asyncio.get_running_loop()
        self._forget_closed()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(
                "tasks of another event loop wait for this mailbox, and one loop at a time may: "
                "give each loop a mailbox of its own"
            )
        if not self._inbox.arm():
            return
        waiter = loop.create_future()
        if self._loop is None:
            loop.add_reader(self._inbox.fileno(), self._wake)
            self._loop, self._thread = loop, threading.get_ident()
        self._waiters[waiter] = None
        timer = None if left is None else loop.call_later(left, wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(loop, waiter)

    def _forget_closed(self) -> None:
        """A loop that was closed with tasks in it wakes none of them any more, and cannot."""
        if self._loop is not None and self._loop.is_closed():
            self._waiters.clear()
            self._loop = None

    def _wake(self) -> None:
        for waiter in self._waiters:
            wake(waiter)

    def _forget(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
        # A task of a loop that was closed may come here when others wait already.
        if self._waiters.pop(waiter, waiter) is None and not self._waiters:
            self._loop = None
            if not loop.is_closed():
                loop.remove_reader(self._inbox.fileno())


def wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def check_no_loop(what: str, instead: str) -> None:
    """Raise `RuntimeError` in the thread of an event loop that runs, which would be blocked.

    :param what: what was called, for the error.
    :param instead: what to write in its place, for the error.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{what} would block the event loop that runs in this thread: write {instead}"
    )
