"""`Mailbox`: how a plain thread, a script or a test sends and receives."""

from __future__ import annotations

import collections
import itertools
import time
import weakref
from types import TracebackType
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble._core.inbox import Inbox
from rabble._runtime import LocalRuntime
from rabble.errors import CallTimeout, NodeStopped
from rabble.messages import DownReason
from rabble.timeouts import checked_timeout

__all__ = ["Mailbox", "Mailboxes"]


class Mailbox:
    """A pid with an inbox, for whatever thread holds it. Made by `Node.mailbox`.

    A context manager: leaving it closes the mailbox, and its pid is free again. So it is, a moment
    later, when nobody holds the mailbox any more. Any thread may send; one thread at a time may
    receive.

    :ivar pid: of the mailbox.
    """

    _held: Held | None = None

    def __init__(self, mailboxes: Mailboxes, pid: Pid, inbox: Inbox) -> None:
        self._mailboxes = mailboxes
        self._runtime = mailboxes.runtime
        self._inbox = inbox
        self.pid = pid

    def send(self, to: Pid, msg: Any, *, correlation_id: CorrelationId | None = None) -> None:
        """Send with this mailbox's pid as the sender.

        :param to: whom to send it to.
        :param msg: the message, which must not be changed any more.
        :param correlation_id: the request it belongs to.
        :raises QueueFull: as `Node.send` does.
        :raises NodeStopped: if the node was shut down.
        :raises ForkedNode: in a forked child.
        """
        self._runtime.executor.send(to, msg, sender=self.pid, correlation_id=correlation_id)

    def receive(self, timeout: float | None = None) -> Envelope:
        """Wait for the next envelope.

        :param timeout: in seconds; `None`, or infinity, waits until the node stops.
        :returns: the envelope: its message, sender and correlation id.
        :raises CallTimeout: if nothing came in time.
        :raises NodeStopped: if the node stopped, or the mailbox was closed, and nothing is left.
        :raises ForkedNode: in a forked child.
        """
        within = None if timeout is None else checked_timeout(timeout)
        # In a forked child nothing would ever come.
        self._runtime.check_owner()
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
        """Give the pid back. Monitors are told `Down`. Idempotent, from any thread.

        What waits in it becomes `NO_PROCESS` dead letters.

        :raises ForkedNode: in a forked child.
        """
        self._mailboxes.close(self)

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
        if not self._runtime.executor.forked:
            self.close()


class Held(weakref.ref[Mailbox]):
    """What a node keeps of a mailbox: what it takes to close one that its user dropped."""

    __slots__ = ("inbox", "pid")

    pid: Pid
    inbox: Inbox


class Mailboxes:
    """The mailboxes of a node. For any thread.

    A mailbox is its user's: the node notices when nobody holds it any more. What notices it is
    `deque.append`, and no Python code, which might be interrupted.

    :param runtime: of the node.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self.runtime = runtime
        #: Those that are open, by the id of what is kept of them.
        self.held: dict[int, Held] = {}
        #: Those that nobody holds any more, until somebody looks.
        self.dropped: collections.deque[Held] = collections.deque()
        self._numbers = itertools.count()

    def open(self, name: str | None, group: str | None) -> Mailbox:
        """See `Node.mailbox`."""
        runtime = self.runtime
        runtime.check_usable()
        runtime.check_group(group)
        self.close_dropped()
        inbox = Inbox(runtime.limits.service_inbox_envelopes_max)
        pid = Pid(name or f"mailbox-{next(self._numbers)}", runtime.node_id, group)
        mailbox = Mailbox(self, pid, inbox)
        held = Held(mailbox, self.dropped.append)
        held.pid = pid
        held.inbox = inbox
        # First, so that it is closed with the others; an ending executor takes no inbox any more.
        self.held[id(held)] = held
        mailbox._held = held
        if not runtime.executor.add_inbox(pid, inbox):
            mailbox._held = None
            self.held.pop(id(held), None)
            inbox.close()
            runtime.refuse(pid)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """See `Mailbox.close`."""
        self.runtime.check_owner()
        held = mailbox._held
        if held is not None:
            self._close(held)
            mailbox._held = None

    def close_dropped(self) -> None:
        """Close the mailboxes that nobody holds any more."""
        while self.dropped:
            try:
                held = self.dropped[0]
                self._close(held)
                # Last, so that one is not lost half-way. By what it is: two threads may be here.
                self.dropped.remove(held)
            except (IndexError, ValueError):
                # The other thread was faster.
                pass

    def close_all(self) -> None:
        """The executor has ended: nothing comes any more."""
        for held in self.held.copy().values():
            held.inbox.close()
        self.held.clear()
        self.dropped.clear()

    def _close(self, held: Held) -> None:
        """Close a mailbox, if it is one of those there are. To be repeated if anything raises."""
        if id(held) not in self.held:
            return
        held.inbox.close()
        for envelope in held.inbox.take(len(held.inbox)):
            self.runtime.undelivered(envelope)
        self.runtime.discard(held.pid, held.inbox, DownReason("stopped"))
        self.held.pop(id(held), None)
