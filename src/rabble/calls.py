"""Requests of plain threads and of asyncio: each ends exactly once."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
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

    def set_result(self, value: Any) -> None: ...

    def set_exception(self, error: Exception) -> None: ...


class Reply:
    """The end of a request for whose reply a thread waits."""

    def __init__(self) -> None:
        self._ended = threading.Lock()
        self._ended.acquire()
        self._value: Any = None
        self._error: Exception | None = None

    def set_result(self, value: Any) -> None:
        self._value = value
        self._ended.release()

    def set_exception(self, error: Exception) -> None:
        self._error = error
        self._ended.release()

    def wait(self, timeout: float) -> bool:
        """Wait for it for `timeout` seconds; returns whether it came."""
        end = time.monotonic() + timeout
        left = timeout
        # The interpreter does not notice a signal that comes just before the lock's sleep, or to
        # another thread, and its handler may be what the reply, or the end, depends on.
        while not self._ended.acquire(timeout=min(max(left, 0.0), SIGNALS_S)):
            left = end - time.monotonic()
            if left <= 0:
                return False
        self._ended.release()
        return True

    def take(self) -> Any:
        """The reply, once it has come; raises what the request failed with."""
        self._ended.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                # Its traceback holds this frame, which would hold it.
                del self
        return self._value


class AwaitedReply:
    """The end of a request for whose reply an event loop waits. To be made in that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def set_result(self, value: Any) -> None:
        self._call(self.future.set_result, value)

    def set_exception(self, error: Exception) -> None:
        self._call(self.future.set_exception, error)

    def _call(self, end: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._end, end, argument)
        except RuntimeError:
            # The loop is closed: nobody waits.
            pass

    def _end(self, end: Callable[[Any], None], argument: Any) -> None:
        if not self.future.done():
            end(argument)


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
        self._waiting: dict[int, tuple[Ending, Pid]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, reply: Ending, to: Pid) -> CorrelationId:
        """A new request, to be ended by `reply`: the correlation id to send along."""
        if len(self._waiting) >= self._calls_max:
            raise QueueFull(
                f"{len(self._waiting)} calls wait for their replies already; "
                f"Limits.calls_max is {self._calls_max}"
            )
        number = next(self._numbers)
        self._waiting[number] = (reply, to)
        if self._closed:
            # The node ended between the caller's look and here.
            self.close()
        return CorrelationId(self.pid, request=number)

    def give_up(self, correlation_id: CorrelationId) -> bool:
        """End a request whose asker waits no more. False if it had ended already."""
        return self._take(correlation_id) is not None

    def deliver(self, envelope: Envelope) -> None:
        """A reply or a dead letter came. Runs in the executor's thread; never blocks."""
        waiting = self._take(envelope.correlation_id)
        if waiting is None:
            self.late_replies += 1
            return
        reply, to = waiting
        if isinstance(envelope.msg, DeadLetter | Bounced):
            reply.set_exception(failure_of(to, envelope.msg.reason))
        else:
            reply.set_result(envelope.msg)

    def disconnected(self, node: NodeId) -> None:
        """The connection to a node ended: so do the requests to it. As `deliver`."""
        for number, (_, to) in list(self._waiting.items()):
            if to.node == node:
                waiting = self._waiting.pop(number, None)
                if waiting is not None:
                    waiting[0].set_exception(
                        NotConnected(f"the connection to {node} ended before {to} replied")
                    )

    def close(self) -> None:
        """The node ended: so do all requests."""
        self._closed = True
        while self._waiting:
            try:
                _, (reply, _) = self._waiting.popitem()
            except KeyError:
                # Another thread took the last one.
                break
            reply.set_exception(NodeStopped("the node stopped before the reply came"))

    def _take(self, correlation_id: CorrelationId | None) -> tuple[Ending, Pid] | None:
        if correlation_id is None or correlation_id.request is None:
            return None
        return self._waiting.pop(correlation_id.request, None)


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
