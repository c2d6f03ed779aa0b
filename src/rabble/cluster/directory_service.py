"""The names and groups of a node, under a pid of its own: a callback of the executor.

What a node tells another one of its processes is a message from this pid to that of the other one,
a map; see *Names and groups* in docs/internals/wire-protocol.md. It takes the way of all messages,
so it comes behind `NodeUp`, before `NodeDown`, and before what a process sends later.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable

from rabble._core.directory_messages import (
    DIRECTORY_NAME,
    GetGroupMembers,
    GroupRefused,
    JoinGroup,
    LeaveGroup,
    NameRefused,
    Register,
    SubscribeGroup,
    Unregister,
    WhereIs,
)
from rabble._core.directory_requests import Asked, DirectoryPort
from rabble._core.envelope import Envelope
from rabble._core.executor import Executor
from rabble._core.ids import CorrelationId, Pid
from rabble._core.messages import DeadLetterReason, Down, NodeDown, NodeUp, Timeout
from rabble.addresses import RESERVED_GROUP
from rabble.cluster.decide.directory import Action, Answer, Asker, Directory, Life
from rabble.cluster.decide.directory_state import DirectoryError
from rabble.limits import Limits
from rabble.reports import Reporter

__all__ = ["DirectoryService"]


class DirectoryService:
    """Takes requests and what peers say. `deliver` is the executor's callback for `pid`.

    :param clock: monotonic seconds.
    :param wall_clock: seconds since 1970.
    :param guest: the node is a guest of its mesh.
    """

    def __init__(
        self,
        executor: Executor,
        reporter: Reporter,
        limits: Limits,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        guest: bool = False,
    ) -> None:
        self.pid = Pid(DIRECTORY_NAME, executor.node, RESERVED_GROUP)
        self._executor = executor
        self._reporter = reporter
        self._clock = clock
        self._directory = Directory(
            executor.node, limits, lambda: int(wall_clock() * 1_000), guest=guest
        )
        self._port = DirectoryPort(executor, self.pid)
        self._tick_id = CorrelationId(self.pid)
        #: For when a `Timeout` was asked for.
        self._tick_at: float | None = None

    def follow_nodes(self) -> None:
        """Be told of nodes that come and go. Before the executor runs."""
        self._port.subscribe_nodes()

    def deliver(self, envelope: Envelope) -> None:
        """Something came. Runs in the executor's thread."""
        now = self._clock()
        try:
            self._carry_out(self._handle(envelope, now))
        except DirectoryError as error:
            text = f"{self.pid.node.name}: names and groups of {envelope.sender}: {error}"
            self._reporter.report(logging.ERROR, functools.partial(str, text))
        while (due := self._directory.due) is not None and due <= now:
            self._carry_out(self._directory.tick(now))
        self._plan(due, now)

    def _handle(self, envelope: Envelope, now: float) -> list[Action]:
        sender, msg = envelope.sender, envelope.msg
        if sender == self._executor.pid:
            return self._told(msg, envelope.correlation_id, now)
        if sender is None or sender.name != self.pid.name or sender.group != self.pid.group:
            # Requests go to the executor, which knows who it is that asks.
            self._executor.undeliverable(envelope, DeadLetterReason.REFUSED)
            return []
        return self._directory.read(sender.node, msg, now)

    def _told(self, msg: object, correlation_id: CorrelationId | None, now: float) -> list[Action]:
        """What the executor says."""
        match msg:
            case Asked():
                return self._asked(msg, correlation_id, now)
            case Down(pid=pid, life=life):
                return self._directory.ended(Life(pid, life), now)
            case NodeUp(node=node):
                return self._directory.peer_up(node, now)
            case NodeDown(node=node):
                return self._directory.peer_down(node, now)
            case Timeout():
                self._tick_at = None
        return []

    def _asked(
        self, asked: Asked, correlation_id: CorrelationId | None, now: float
    ) -> list[Action]:
        directory, request = self._directory, asked.request
        asker = Asker(Life(asked.asker, asked.asker_life), correlation_id)
        owner = Life(asked.pid, asked.life)
        match request:
            case WhereIs(name):
                return directory.where_is(name, asker)
            case GetGroupMembers(group):
                return directory.ask_members(group, asker)
            case Unregister(name):
                return directory.unregister(name, owner, asker, now)
            case LeaveGroup(group):
                return directory.leave(group, owner, asker, now)
            case SubscribeGroup(group, wanted=False):
                return directory.subscribe(group, owner, False, asker)
            case Register(name) if not owner.number:
                return [Answer(asker, NameRefused(name, "no_process"))]
            case JoinGroup(group) | SubscribeGroup(group) if not owner.number:
                return [Answer(asker, GroupRefused(group, "no_process"))]
            case Register(name):
                return directory.register(name, owner, asker, now)
            case JoinGroup(group):
                return directory.join(group, owner, asker, now)
            case SubscribeGroup(group):
                return directory.subscribe(group, owner, True, asker)
        return []

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer):
                (pid, number), correlation_id = action.to
                self._port.notify(pid, number, action.msg, correlation_id)
            else:
                pid = Pid(self.pid.name, action.node, self.pid.group)
                self._port.tell(pid, action.message)

    def _plan(self, due: float | None, now: float) -> None:
        """Have a `Timeout` come when there is something to do. One that comes too early is none."""
        if due is None or (self._tick_at is not None and self._tick_at <= due):
            return
        self._tick_at = due
        self._port.wake_after(math.ceil(max(due - now, 0.0) * 1_000), self._tick_id)
