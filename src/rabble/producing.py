"""Sending for those that produce: threads and coroutines wait until there is room for a message."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble._core.messages import Produce
from rabble._runtime import LocalRuntime
from rabble.calls import Reply
from rabble.errors import CallTimeout
from rabble.services.loop_waits import check_no_loop
from rabble.texts import argument_text
from rabble.timeouts import checked_timeout

__all__ = ["envelope_of", "send_wait", "send_wait_async"]


def send_wait(runtime: LocalRuntime, envelope: Envelope, timeout: float | None) -> None:
    """See `Node.send_wait`."""
    left = math.inf if timeout is None else checked_timeout(timeout)
    runtime.check_other_thread("send_wait()")
    check_no_loop("send_wait()", "`await node.send_wait_async(...)`")
    runtime.check_usable()
    produce = Produce(envelope)
    executor, reply = runtime.executor, Reply()
    correlation_id = runtime.calls.begin(reply, executor.pid)
    try:
        executor.send(
            executor.pid, produce, sender=runtime.calls.pid, correlation_id=correlation_id
        )
        if not reply.wait(left):
            if withdraw(produce):
                raise timed_out(envelope.to, timeout)
            # It is being sent just now.
            reply.wait(math.inf)
        reply.take()
    finally:
        withdraw(produce)
        runtime.calls.give_up(correlation_id)


async def send_wait_async(runtime: LocalRuntime, envelope: Envelope, timeout: float | None) -> None:
    """See `Node.send_wait_async`."""
    within = math.inf if timeout is None else checked_timeout(timeout)
    runtime.check_other_thread("send_wait_async()")
    runtime.check_usable()
    produce = Produce(envelope)
    executor = runtime.executor
    # Whether it is in time is decided by who takes the token, so the call itself has no end.
    call = asyncio.ensure_future(runtime.calls.call(executor, executor.pid, produce, math.inf))
    try:
        done, _ = await asyncio.wait([call], timeout=within)
        if not done and withdraw(produce):
            raise timed_out(envelope.to, timeout)
        # If it is being sent just now, what comes of it is known soon.
        await call
    finally:
        withdraw(produce)
        call.cancel()


def withdraw(produce: Produce) -> bool:
    """Take it back. False if it is the executor's by now, or was taken back before."""
    try:
        produce.tokens.pop()
    except IndexError:
        return False
    return True


def timed_out(to: Pid, timeout: float | None) -> CallTimeout:
    """The error of a message that was not sent, as there was no room for it in time."""
    error = CallTimeout(f"there was no room for a message to {to} within {timeout} s")
    error.pid, error.node = to, to.node
    return error


def envelope_of(
    to: Pid, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
) -> Envelope:
    """What is to be sent; `TypeError` if an argument is of another type."""
    if type(to) is not Pid:
        advice = "what node.spawn and node.pid return is one"
        raise TypeError(f"send_wait: to must be a Pid, not {argument_text(to)}; {advice}")
    return Envelope(to, msg, sender, correlation_id)
