"""`Mailbox`: how a plain thread, a script or a test sends and receives."""

from __future__ import annotations

import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble._core.inbox import Inbox
from rabble.errors import CallTimeout, NodeStopped
from rabble.timeouts import checked_timeout

if TYPE_CHECKING:
    from rabble.node import Node

__all__ = ["Held", "Mailbox"]


class Mailbox:
    """A pid with an inbox, for whatever thread holds it. Made by `Node.mailbox`.

    A context manager: leaving it closes the mailbox, and its pid is free again. So it is, a moment
    later, when nobody holds the mailbox any more. Any thread may send; one thread at a time may
    receive.
    """

    _held: Held | None = None

    def __init__(self, node: Node, pid: Pid, inbox: Inbox) -> None:
        self._node = node
        self._inbox = inbox
        self.pid = pid

    def send(self, to: Pid, msg: Any, *, correlation_id: CorrelationId | None = None) -> None:
        """Send with this mailbox's pid as the sender. Raises what `Node.send` raises."""
        self._node.send(to, msg, sender=self.pid, correlation_id=correlation_id)

    def receive(self, timeout: float | None = None) -> Envelope:
        """Wait for the next envelope.

        :param timeout: in seconds; `None`, or infinity, waits until the node stops.
        :raises CallTimeout: if nothing came in time.
        :raises NodeStopped: if the node stopped, or the mailbox was closed, and nothing is left.
        """
        within = None if timeout is None else checked_timeout(timeout)
        # In a forked child nothing would ever come.
        self._node._check_owner()
        end = None if within is None else time.monotonic() + within
        while True:
            taken: list[Envelope] = self._inbox.take(1)
            if taken:
                return taken[0]
            if self._inbox.closed:
                raise NodeStopped(f"{self.pid}: the mailbox is closed, or its node stopped")
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise CallTimeout(f"{self.pid} received nothing in {timeout} s")
            self._inbox.wait(left)

    def close(self) -> None:
        """Give the pid back. Monitors are told `Down`. Idempotent, from any thread."""
        self._node._close_mailbox(self)

    def __len__(self) -> int:
        return len(self._inbox)

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._node._executor.forked:
            self.close()


class Held(weakref.ref[Mailbox]):
    """What a node keeps of a mailbox, which is its user's: what it takes to close a dropped one."""

    __slots__ = ("inbox", "pid")

    pid: Pid
    inbox: Inbox
