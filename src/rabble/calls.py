"""Requests of plain threads and of asyncio: each ends exactly once."""

from __future__ import annotations

import threading
import time
from typing import Any, NoReturn, Protocol

from rabble._core.calls import CallTable
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.messages import CallFailed
from rabble.call_failures import call_failure, end_failure, node_failure
from rabble.errors import CallTimeout, NodeStopped, QueueFull, RabbleError
from rabble.messages import Bounced, DeadLetter
from rabble.timeouts import checked_timeout

__all__ = ["Calls", "Ending", "Reply"]


#: Seconds after which a wait looks for signals.
SIGNALS_S = 0.5
#: Senders of envelopes that belong to no request, as far as they are remembered.
STRAYS_MAX = 1_024


class Ending(Protocol):
    """How a request is ended, once, by any thread.

    It takes no lock that the asker may hold: a signal handler may have interrupted the asker, and
    wait for the very node that ends the request. That rules `concurrent.futures` out.

    A table of calls sets `to` and `number`.
    """

    to: Pid
    number: int

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

    to: Pid
    number: int

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


class Calls(CallTable):
    """The calls of one node that wait for their replies, and how each ends that gets none.

    :param pid: to which the replies come.
    :param calls_max: how many may wait.
    """

    def __init__(self, pid: Pid, calls_max: int) -> None:
        self._calls_max = calls_max
        #: Of who sent an envelope that belongs to no request: the number that was next then.
        self._strays: dict[Pid, int] = {}

    def give_up(self, correlation_id: CorrelationId) -> bool:
        """End a request whose asker waits no more. False if it had ended already."""
        assert correlation_id.request is not None
        return self.forget(correlation_id.request)

    def disconnected(self, node: NodeId, why: str) -> None:
        """The connection to a node ended: so do the requests that are there. As `deliver`.

        :param why: it ended, as text.
        """
        for sender in [pid for pid in list(self._strays) if pid.node == node]:
            self._strays.pop(sender, None)
        for reply in self.those_waiting():
            holder = self.requests.holder(reply.number) or reply.to
            if holder.node == node:
                reply.set_exception(node_failure(reply.to, holder, why))
                self.forget(reply.number)

    def close(self, why: str = "the node stopped") -> None:
        """The node ended: so do all requests."""
        self.closed_because = why
        for reply in self.those_waiting():
            reply.set_exception(NodeStopped(f"{why} before the reply came"))
            self.forget(reply.number)

    # What the table asks for.

    def in_executor(self, what: str) -> NoReturn:
        """Say that the executor's own thread cannot wait for the executor."""
        raise RuntimeError(
            f"{what} would wait for the executor in the executor's own thread; a process "
            f"sends the request and takes the reply as a message"
        )

    def seconds_of(self, timeout: float) -> float:
        """A caller's timeout; raises what `checked_timeout` does."""
        return checked_timeout(timeout)

    def full(self, waiting: int) -> NoReturn:
        """Say that no more calls may wait."""
        raise QueueFull(
            f"{waiting} calls wait for their replies already; Limits.calls_max is {self._calls_max}"
        )

    def failure_of(self, to: Pid, msg: DeadLetter | Bounced | CallFailed) -> RabbleError:
        """How a call ends of which the runtime says that no reply comes."""
        if isinstance(msg, CallFailed):
            return end_failure(to, msg)
        return call_failure(to, msg)

    def timeout_of(self, number: int, to: Pid, timeout: float) -> CallTimeout:
        """How a call ends for which no reply came in `timeout` seconds."""
        text = f"{to} did not reply in {timeout} s"
        if self._strays.get(to, -1) > number:
            text += (
                "; an envelope without the correlation id of a call that waits came from it "
                "meanwhile: a reply carries the correlation_id that receive was given"
            )
        error = CallTimeout(text)
        error.pid, error.node = to, to.node
        return error

    def note_stray(self, sender: Pid | None) -> None:
        """An envelope came, while calls waited, that says of none that it is for it."""
        if sender is None:
            return
        self._strays.pop(sender, None)
        if len(self._strays) >= STRAYS_MAX:
            del self._strays[next(iter(self._strays))]
        self._strays[sender] = self.next_number()
