"""`Mailbox`: how a plain thread, a script or a test sends and receives."""

from __future__ import annotations

import collections
import itertools
import math
import time
import weakref
from types import TracebackType
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import given
from rabble._runtime import LocalRuntime
from rabble.errors import CallTimeout, NodeStopped
from rabble.messages import DownReason
from rabble.services.loop_waits import LoopWaits, check_no_loop
from rabble.timeouts import checked_timeout

__all__ = ["Mailbox", "Mailboxes"]


class Mailbox:
    """A pid with an inbox, for whatever thread holds it. Made by `Node.mailbox`.

    A context manager: leaving it closes the mailbox, and its pid is free again. So it is, a moment
    later, when nobody holds the mailbox any more. Any thread may send; one thread at a time may
    receive, or any number of tasks of one event loop.

    :ivar pid: of the mailbox.
    """

    _ref: MailboxRef | None = None

    def __init__(self, mailboxes: Mailboxes, pid: Pid, inbox: Inbox) -> None:
        self._mailboxes = mailboxes
        self._runtime = mailboxes.runtime
        self._inbox = inbox
        self._loop_waits = LoopWaits(inbox)
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
        """Wait for the next envelope. Blocks: a task of an event loop awaits `receive_async`.

        :param timeout: in seconds; `None`, or infinity, waits until the node stops.
        :returns: the envelope: its message, sender and correlation id.
        :raises CallTimeout: if nothing came in time.
        :raises NodeStopped: if the node stopped, or the mailbox was closed, and nothing is left.
        :raises ForkedNode: in a forked child.
        :raises RuntimeError: if it had to wait in the thread of a running event loop, or in the
            executor's.
        """
        end = self._end_of(timeout)
        while (received := self._take()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise CallTimeout(f"{self.pid} received nothing in {timeout} s")
            self._runtime.check_other_thread("Mailbox.receive()")
            check_no_loop("Mailbox.receive()", "`await mailbox.receive_async()`")
            self._inbox.wait(left)
        return received

    async def receive_async(self, timeout: float | None = None) -> Envelope:
        """As `receive`, for asyncio: never blocks the loop. Cancelling it loses no envelope.

        `async for envelope in mailbox` does so again and again, until the mailbox is closed or its
        node has stopped. Several tasks of one loop may wait: each envelope goes to one of them.

        The argument, the result and the errors are those of `receive`.

        :raises RuntimeError: in the executor's thread, or if tasks of another loop wait.
        """
        end = self._end_of(timeout)
        self._runtime.check_other_thread("Mailbox.receive_async()")
        while (received := self._take()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise CallTimeout(f"{self.pid} received nothing in {timeout} s")
            await self._loop_waits.wait(left)
        return received

    def __aiter__(self) -> Mailbox:
        return self

    async def __anext__(self) -> Envelope:
        try:
            return await self.receive_async()
        except NodeStopped:
            raise StopAsyncIteration from None

    def _end_of(self, timeout: float | None) -> float | None:
        """Until when to wait, in monotonic seconds; `None` is without end."""
        within = math.inf if timeout is None else checked_timeout(timeout)
        # In a forked child nothing would ever come.
        self._runtime.check_owner()
        self._loop_waits.check_thread()
        return None if within == math.inf else time.monotonic() + within

    def _take(self) -> Envelope | None:
        """The next envelope, if there is one."""
        while taken := self._inbox.take(1):
            self._loop_waits.taken()
            received = self._runtime.received(taken[0])
            if received is not None:
                return received
        self._loop_waits.taken()
        if self._inbox.closed:
            raise NodeStopped(f"{self.pid}: the mailbox is closed, or its node stopped")
        return None

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

    def open(
        self, name: str | None, group: str | None, envelopes_max: int | None = None
    ) -> Mailbox:
        """See `Node.mailbox`."""
        runtime = self.runtime
        most = runtime.limits.service_inbox_envelopes_max
        if envelopes_max is not None:
            most = checked_bound(envelopes_max, most)
        runtime.check_usable()
        runtime.check_group(group)
        self.close_dropped()
        inbox = Inbox(most)
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


def checked_bound(value: Any, most: int) -> int:
    """How many envelopes may wait in a mailbox; the error says what else was given."""
    if type(value) is not int:
        raise TypeError(f"mailbox: envelopes_max must be an int, not {given(value)}")
    if not 1 <= value <= most:
        raise ValueError(
            f"mailbox: envelopes_max must be 1 to {most:,}, which is "
            f"Limits.service_inbox_envelopes_max, not {given(value)}"
        )
    return value
