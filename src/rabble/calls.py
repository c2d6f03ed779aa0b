"""Requests of plain threads and of asyncio: each ends exactly once."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.errors import NodeStopped, NoProcess, ProcessCrashed, QueueFull
from rabble.messages import DeadLetter, DeadLetterReason

__all__ = ["Calls"]


class Calls:
    """The requests that wait for their replies, by number.

    A request's number is taken out of the table by whoever ends it: its reply, the dead letter
    that its message became, its timeout or the node's end. `dict.pop` is atomic, so only one of
    them gets it, and a late reply finds nothing.
    """

    def __init__(self, pid: Pid, calls_max: int) -> None:
        self.pid = pid
        self.late_replies = 0
        self._calls_max = calls_max
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self) -> tuple[CorrelationId, Future[Any]]:
        """A new request: the correlation id to send along, and the future of its reply."""
        if len(self._waiting) >= self._calls_max:
            raise QueueFull(
                f"{len(self._waiting)} calls wait for their replies already; "
                f"Limits.calls_max is {self._calls_max}"
            )
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._waiting[number] = future
        if self._closed:
            # The node ended between the caller's look and here.
            self.close()
        return CorrelationId(self.pid, request=number), future

    def give_up(self, correlation_id: CorrelationId) -> bool:
        """End a request whose asker waits no more. False if it had ended already."""
        return self._take(correlation_id) is not None

    def deliver(self, envelope: Envelope) -> None:
        """A reply or a dead letter came. Runs in the executor's thread; never blocks."""
        future = self._take(envelope.correlation_id)
        if future is None or not future.set_running_or_notify_cancel():
            self.late_replies += 1
        elif isinstance(envelope.msg, DeadLetter):
            future.set_exception(failure_of(envelope.msg))
        else:
            future.set_result(envelope.msg)

    def close(self) -> None:
        """The node ended: so do all requests."""
        self._closed = True
        while self._waiting:
            try:
                _, future = self._waiting.popitem()
            except KeyError:
                # Another thread took the last one.
                break
            if future.set_running_or_notify_cancel():
                future.set_exception(NodeStopped("the node stopped before the reply came"))

    def _take(self, correlation_id: CorrelationId | None) -> Future[Any] | None:
        if correlation_id is None or correlation_id.request is None:
            return None
        return self._waiting.pop(correlation_id.request, None)


def failure_of(letter: DeadLetter) -> Exception:
    """What a call raises whose message became this dead letter."""
    to = letter.envelope.to
    if letter.reason is DeadLetterReason.PROCESS_CRASHED:
        return ProcessCrashed(f"{to} crashed while it handled the call; the log says why")
    if letter.reason is DeadLetterReason.NODE_SHUTDOWN:
        return NodeStopped("the node stopped before the message was delivered")
    if letter.reason is DeadLetterReason.MAILBOX_FULL:
        return QueueFull(f"the mailbox of {to} is full")
    return NoProcess(f"{to} could not be reached: {letter.reason.value}")
