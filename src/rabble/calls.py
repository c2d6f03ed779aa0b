"""Requests of plain threads and of asyncio: each ends exactly once."""

from __future__ import annotations

import asyncio
import collections
import itertools
import threading
import time
import weakref
from typing import Any, Protocol

from rabble._core.codec import EncodeError
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.errors import NodeStopped, NoProcess, NotConnected, ProcessCrashed, QueueFull
from rabble.messages import Bounced, DeadLetter, DeadLetterReason

__all__ = ["AwaitedReply", "Calls", "Ending", "Reply"]


#: Seconds after which a wait looks for signals.
SIGNALS_S = 0.5


class Ending(Protocol):
    """How a request is ended, once, by any thread.

    It takes no lock that the asker may hold: a signal handler may have interrupted the asker, and
    wait for the very node that ends the request. That rules `concurrent.futures` out.
    """

    def set_result(self, value: Any) -> bool:
        """End it with a reply. False if it had ended already."""

    def set_exception(self, error: Exception) -> bool:
        """End it with a failure. False if it had ended already."""


class Outcome:
    """How a request ended: whoever sets it first does, and nobody else.

    `dict.setdefault` is atomic, and is all of it: whatever is raised in the thread that ends a
    request, a moment before or after, its asker never waits for somebody who has gone.
    """

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set: dict[None, tuple[Any, Exception | None]] = {}

    def set(self, value: Any, error: Exception | None) -> bool:
        """Set it, if nobody has. Returns whether it was set by this."""
        mine = (value, error)
        return self._set.setdefault(None, mine) is mine

    def get(self) -> tuple[Any, Exception | None] | None:
        """The reply, and the failure if there is one; `None` if it has not ended."""
        return self._set.get(None)


class Reply:
    """The end of a request for whose reply a thread waits."""

    def __init__(self) -> None:
        self._ended = threading.Lock()
        self._ended.acquire()
        self._outcome = Outcome()

    def set_result(self, value: Any) -> bool:
        return self._end(value, None)

    def set_exception(self, error: Exception) -> bool:
        return self._end(None, error)

    def _end(self, value: Any, error: Exception | None) -> bool:
        if not self._outcome.set(value, error):
            return False
        self._ended.release()
        return True

    def wait(self, timeout: float) -> bool:
        """Wait for it for `timeout` seconds; returns whether it came."""
        end = time.monotonic() + timeout
        left = timeout
        # The interpreter does not notice a signal that comes just before the lock's sleep, or to
        # another thread, and its handler may be what the reply, or the end, depends on.
        while not self._ended.acquire(timeout=min(max(left, 0.0), SIGNALS_S)):
            left = end - time.monotonic()
            if left <= 0 or self._outcome.get() is not None:
                return self._outcome.get() is not None
        self._ended.release()
        return True

    def take(self) -> Any:
        """The reply, once it has come; raises what the request failed with."""
        outcome = self._outcome.get()
        assert outcome is not None, "nothing has come yet"
        value, error = outcome
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback holds this frame, which would hold it.
                del self, outcome, error
        return value


class AwaitedReply:
    """The end of a request for whose reply an event loop waits. To be made in that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outcome = Outcome()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def set_result(self, value: Any) -> bool:
        return self._end(value, None)

    def set_exception(self, error: Exception) -> bool:
        return self._end(None, error)

    def _end(self, value: Any, error: Exception | None) -> bool:
        if not self._outcome.set(value, error):
            return False
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:
            # The loop is closed: nobody waits.
            pass
        return True

    def _tell(self) -> None:
        outcome = self._outcome.get()
        if outcome is None or self.future.done():
            return
        value, error = outcome
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class PendingCall(weakref.ref[Ending]):
    """A request in the table, which does not keep it: it goes with whoever waits for its reply."""

    __slots__ = ("number", "to")

    number: int
    to: Pid


class Calls:
    """The requests that wait for their replies, by number.

    A request is its asker's: it ends at the latest when nobody holds its `Ending` any more. So none
    is left behind by an asker that an exception takes away, in whatever place: a KeyboardInterrupt
    comes between any two bytecodes, those of a `finally` or of a `__del__` too. What notices it
    here is therefore no Python code, but `deque.append`, which the weak reference calls.
    """

    def __init__(self, pid: Pid, calls_max: int) -> None:
        self.pid = pid
        self.late_replies = 0
        self._calls_max = calls_max
        self._numbers = itertools.count()
        self._by_number: dict[int, PendingCall] = {}
        #: Those whose askers have gone, until somebody looks.
        self._gone: collections.deque[PendingCall] = collections.deque()
        self._closed_because: str | None = None

    def __len__(self) -> int:
        self._forget_gone()
        return len(self._by_number)

    def begin(self, reply: Ending, to: Pid) -> CorrelationId:
        """A new request, to be ended by `reply`: the correlation id to send along."""
        waiting = len(self)
        if waiting >= self._calls_max:
            raise QueueFull(
                f"{waiting} calls wait for their replies already; "
                f"Limits.calls_max is {self._calls_max}"
            )
        pending = PendingCall(reply, self._gone.append)
        pending.number = number = next(self._numbers)
        pending.to = to
        self._by_number[number] = pending
        if self._closed_because is not None:
            # The node ended between the caller's look and here.
            self.close(self._closed_because)
        return CorrelationId(self.pid, request=number)

    def give_up(self, correlation_id: CorrelationId) -> bool:
        """End a request whose asker waits no more. False if it had ended already."""
        assert correlation_id.request is not None
        return self._by_number.pop(correlation_id.request, None) is not None

    def deliver(self, envelope: Envelope) -> None:
        """A reply or a dead letter came. Runs in the executor's thread; never blocks."""
        number = None if envelope.correlation_id is None else envelope.correlation_id.request
        pending = None if number is None else self._by_number.get(number)
        if number is None or pending is None:
            self.late_replies += 1
            return
        reply = pending()
        # First of all, so that nothing can come between this and what its asker waits for.
        if reply is None:
            ended = False
        elif isinstance(envelope.msg, DeadLetter | Bounced):
            ended = reply.set_exception(failure_of(pending.to, envelope.msg.reason))
        else:
            ended = reply.set_result(envelope.msg)
        self._by_number.pop(number, None)
        if not ended:
            self.late_replies += 1

    def disconnected(self, node: NodeId) -> None:
        """The connection to a node ended: so do the requests to it. As `deliver`."""
        for pending in self._by_number.copy().values():
            if pending.to.node == node:
                self._end(
                    pending,
                    NotConnected(f"the connection to {node} ended before {pending.to} replied"),
                )

    def close(self, why: str = "the node stopped") -> None:
        """The node ended: so do all requests."""
        self._closed_because = why
        for pending in self._by_number.copy().values():
            self._end(pending, NodeStopped(f"{why} before the reply came"))

    def _end(self, pending: PendingCall, error: Exception) -> None:
        reply = pending()
        if reply is not None:
            reply.set_exception(error)
        self._by_number.pop(pending.number, None)

    def _forget_gone(self) -> None:
        while self._gone:
            try:
                pending = self._gone[0]
                self._by_number.pop(getattr(pending, "number", -1), None)
                # Last, so that one is not lost half-way. By what it is: two threads may be here.
                self._gone.remove(pending)
            except (IndexError, ValueError):
                # The other thread was faster.
                pass


def failure_of(to: Pid, reason: DeadLetterReason) -> Exception:
    """What a call raises whose message became a dead letter, here or at the other node."""
    match reason:
        case DeadLetterReason.PROCESS_CRASHED:
            return ProcessCrashed(f"{to} crashed while it handled the call; the log says why")
        case DeadLetterReason.NODE_SHUTDOWN:
            return NodeStopped(f"the node of {to} stopped before the message was delivered")
        case DeadLetterReason.MAILBOX_FULL:
            return QueueFull(f"the mailbox of {to} is full")
        case DeadLetterReason.PEER_BUSY:
            return QueueFull(f"too much waits already for the node of {to}")
        case DeadLetterReason.NOT_CONNECTED:
            return NotConnected(f"no connection leads to the node of {to}")
        case DeadLetterReason.UNENCODABLE | DeadLetterReason.UNDECODABLE:
            return EncodeError(f"the message for {to} cannot go over the wire; the log says why")
    return NoProcess(f"{to} could not be reached: {reason.value}")
