"""Joins that wait, for threads and for asyncio: each ends exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from rabble._core.ids import NodeId, Pid
from rabble._runtime import LocalRuntime
from rabble.addresses import parse_target
from rabble.calls import Outcome, Reply
from rabble.cluster.joins import Joining
from rabble.cluster.server import ClusterServer
from rabble.errors import CallTimeout, JoinTimeout, NodeStopped
from rabble.messages import GetMetrics
from rabble.services.loop_waits import check_no_loop
from rabble.timeouts import checked_timeout

__all__ = ["join_and_wait", "join_and_wait_async"]


class AwaitedJoin:
    """The end of a join for which a task of an event loop waits."""

    to: Pid
    number: int

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcome = Outcome()
        self.future: asyncio.Future[None] = loop.create_future()

    def set_result(self, value: Any) -> bool:
        return self._end(value, None)

    def set_exception(self, error: Exception) -> bool:
        return self._end(None, error)

    def _end(self, value: Any, error: Exception | None) -> bool:
        if not self._outcome.set(value, error):
            return False
        # A loop that was closed has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)
        return True

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def take(self) -> Any:
        """What it ended with; raises that if it is an exception."""
        outcome = self._outcome.get()
        assert outcome is not None, "it has not ended"
        value, error = outcome
        if error is not None:
            raise error
        return value


def join_and_wait(runtime: LocalRuntime, target: NodeId | str, wait: float) -> NodeId:
    """See `Node.join`."""
    within = checked_timeout(wait, "wait")
    check_no_loop("join(wait=...)", "`await node.join_async(...)`")
    runtime.check_other_thread("join(wait=...)")
    end = time.monotonic() + within
    reply = Reply()
    cluster, joining = begin(runtime, target, reply)
    try:
        if not reply.wait(within):
            # Unless it ends in the last moment: the first to end it says how.
            reply.set_exception(too_late(joining, wait))
        node = taken(runtime, joining, reply)
    finally:
        cluster.forget_join(joining)
    # Its answer comes behind what the processes of this node are told of the new one.
    try:
        runtime.call(runtime.executor.pid, GetMetrics(), end - time.monotonic())
    except CallTimeout:
        raise too_late(joining, wait, node) from None
    return node


async def join_and_wait_async(runtime: LocalRuntime, target: NodeId | str, wait: float) -> NodeId:
    """See `Node.join_async`."""
    within = checked_timeout(wait, "wait")
    runtime.check_other_thread("join_async()")
    end = time.monotonic() + within
    reply = AwaitedJoin(asyncio.get_running_loop())
    cluster, joining = begin(runtime, target, reply)
    try:
        await asyncio.wait([reply.future], timeout=within)
        reply.set_exception(too_late(joining, wait))
        node = taken(runtime, joining, reply)
    finally:
        cluster.forget_join(joining)
    try:
        await runtime.call_async(runtime.executor.pid, GetMetrics(), end - time.monotonic())
    except CallTimeout:
        raise too_late(joining, wait, node) from None
    return node


def begin(
    runtime: LocalRuntime, target: NodeId | str, reply: Reply | AwaitedJoin
) -> tuple[ClusterServer, Joining]:
    """Have the mesh join, and end `reply` when it is known what comes of it."""
    runtime.check_usable()
    joining = Joining(parse_target(target), reply)
    cluster = runtime.mesh_side()
    cluster.join(joining.target, joining)
    return cluster, joining


def taken(runtime: LocalRuntime, joining: Joining, reply: Reply | AwaitedJoin) -> NodeId:
    """Who is up; raises why nobody is."""
    try:
        node: NodeId = reply.take()
    except NodeStopped:
        text = f"{runtime.why_stopped()} before {joining.target} was up"
        raise NodeStopped(text) from None
    return node


def too_late(joining: Joining, wait: float, node: NodeId | None = None) -> JoinTimeout:
    """The error of a join that takes longer than somebody waits.

    :param node: who is up, and the executor has not got to it yet.
    """
    target, last = joining.target, joining.last
    name = target.name if isinstance(target, NodeId) else target
    if node is not None:
        how = "it is connected, and the executor has not got to it"
    elif last is None:
        how = "no dial has come to an end"
    else:
        how = f"the last dial ended with {last}"
    error = JoinTimeout(
        f"{target} was not up in {wait} s: {how}. It is still being joined; leave({name!r}) ends "
        f"that"
    )
    if last is not None:
        error.code, error.detail, error.node = last.code, last.detail, last.node
    return error
