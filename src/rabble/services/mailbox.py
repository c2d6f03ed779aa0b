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

    _ref: MailboxRef | None = None

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
        self._runtime.send(to, msg, sender=self.pid, correlation_id=correlation_id)

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
                received = self._runtime.received(taken[0])
                if received is not None:
                    return received
                continue
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


class MailboxRef(weakref.ref[Mailbox]):
    """What a node keeps of a mailbox: what it takes to close one that its user dropped."""

    __slots__ = ("inbox", "pid")

    pid: Pid
    inbox: Inbox


class Mailboxes:
    """The mailboxes of a node. For any thread.

    A mailbox is its user's: the node notices when nobody holds it any more. It does so by
    `deque.append`, and not by Python code, which might be interrupted.

    :param runtime: of the node.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self.runtime = runtime
        #: Those that are open, by the id of what is kept of them.
        self.refs: dict[int, MailboxRef] = {}
        #: Those that nobody holds any more, until somebody looks.
        self.dropped: collections.deque[MailboxRef] = collections.deque()
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
        ref = MailboxRef(mailbox, self.dropped.append)
        ref.pid = pid
        ref.inbox = inbox
        # First, so that it is closed with the others; an ending executor takes no inbox any more.
        self.refs[id(ref)] = ref
        mailbox._ref = ref
        if not runtime.executor.add_inbox(pid, inbox):
            mailbox._ref = None
            self.refs.pop(id(ref), None)
            inbox.close()
            runtime.refuse(pid)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """See `Mailbox.close`."""
        self.runtime.check_owner()
        ref = mailbox._ref
        if ref is not None:
            self._close(ref)
            mailbox._ref = None

    def close_dropped(self) -> None:
        """Close the mailboxes that nobody holds any more."""
        while self.dropped:
            try:
                ref = self.dropped[0]
                self._close(ref)
                # Last, so that one is not lost half-way. By what it is: two threads may be here.
                self.dropped.remove(ref)
            except (IndexError, ValueError):
                # The other thread was faster.
                pass

    def close_all(self) -> None:
        """The executor has ended: nothing comes any more."""
        for ref in self.refs.copy().values():
            ref.inbox.close()
        self.refs.clear()
        self.dropped.clear()

    def _close(self, ref: MailboxRef) -> None:
        """Close a mailbox, if it is one of those there are. To be repeated if anything raises."""
        if id(ref) not in self.refs:
            return
        ref.inbox.close()
        for envelope in ref.inbox.take(len(ref.inbox)):
            self.runtime.undelivered(envelope)
        self.runtime.discard(ref.pid, ref.inbox, DownReason("stopped"))
        self.refs.pop(id(ref), None)
