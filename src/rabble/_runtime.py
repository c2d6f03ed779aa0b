"""What a node stands on: its executor, reporter and calls, and whether it may be used.

Services, mailboxes, the executor's hooks, the end of the node and the facade `Node` all stand on
one `LocalRuntime`. This module knows none of them.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

from rabble._core.envelope import Envelope
from rabble._core.executor import Executor
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.poller import Poller
from rabble.addresses import CALLS_NAME, RESERVED_GROUP
from rabble.calls import Calls, Ending, Reply
from rabble.cluster.server import ClusterServer
from rabble.errors import (
    ForkedNode,
    NameTaken,
    NodeStopped,
    NoProcess,
    QueueFull,
)
from rabble.limits import Limits
from rabble.messages import (
    DeadLetterReason,
    DownReason,
    ExecutorStatus,
    Metrics,
    SubscribeDeadLetters,
    SubscribeNodes,
)
from rabble.process import Process
from rabble.registry import MessageRegistry
from rabble.reports import Reporter
from rabble.steps import take_steps
from rabble.strict import Changes
from rabble.texts import argument_text, described
from rabble.timeouts import checked_timeout
from rabble.watchdog import Watchdog

if TYPE_CHECKING:
    from rabble._core.client_desk import ClientDesk

__all__ = ["LocalRuntime", "Measured", "Sender", "ServiceThread", "Spawner"]


class Spawner(Protocol):
    """What `Node.spawn` is."""

    def __call__(
        self,
        process: Process,
        name: str,
        *,
        group: str | None = None,
        mailbox_max: int | None = None,
    ) -> Pid:
        """Run a process under a name.

        :param process: a fresh instance; from now on it belongs to the node.
        :param name: unique within its group.
        :param group: the tenant it belongs to.
        :param mailbox_max: how many envelopes may wait for it; what exceeds it becomes a
            `MAILBOX_FULL` dead letter. `None` is without limit.
        :returns: its pid. Its `init` runs in the executor, before its first message.
        :raises NameTaken: if that name is in use.
        :raises NodeStopped: if the node was shut down.
        """


class Sender(Protocol):
    """What `Node.send` is."""

    def __call__(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
    ) -> None:
        """Send a message. Never blocks. From any thread, but not for processes, which return it.

        :param to: whom to send it to, on this node or another.
        :param msg: the message; for another node one that can be encoded. It must not be changed
            any more.
        :param sender: who is to get the answers.
        :param correlation_id: the request it belongs to.
        :raises QueueFull: if `Limits.inbox_envelopes_max` envelopes wait already.
        :raises NodeStopped: if the node was shut down.
        """


class ServiceThread(Protocol):
    """A service, as the runtime and the end of the node see it."""

    @property
    def thread(self) -> threading.Thread:
        """Its thread."""

    @property
    def idle(self) -> bool:
        """Whether it sleeps, or has not begun, and nothing waits for it."""

    def stop(self) -> None:
        """End it after what it is doing now. Never blocks; idempotent."""


#: Gauges and counters, by name, as in `Metrics`.
Measured: TypeAlias = tuple[Mapping[str, float], Mapping[str, int]]


class LocalRuntime:
    """The parts of one node, what is known of their state, and the checks before each use.

    All methods are for any thread, unless they say otherwise.

    :param node_id: whose runtime it is.
    :param limits: the bounds of the node.

    `executor`, `thread`, `reporter`, `watchdog` and `registry` are filled in by whoever assembles
    the node, since the executor's hooks and the steps of its thread stand on this object.
    """

    #: Delivers what is sent to the processes of the node.
    executor: Executor
    #: What `Node.call_async` is, with the timeout.
    call_async: Callable[[Pid, Any, float], Coroutine[Any, Any, Any]]
    #: What `Node.send` is: the executor's own method, or that of `changes`.
    send: Sender
    #: Finds out who changes messages that were sent; `None` if nobody asked.
    changes: Changes | None = None
    #: The thread that runs the executor, and after it the steps of the end.
    thread: threading.Thread
    #: Writes the log of the node in a thread of its own.
    reporter: Reporter
    #: Notices a `receive` that does not return.
    watchdog: Watchdog
    #: The classes that may arrive.
    registry: MessageRegistry

    def __init__(self, node_id: NodeId, limits: Limits) -> None:
        self.node_id = node_id
        self.limits = limits
        #: Monotonic seconds.
        self.clock: Callable[[], float] = time.monotonic
        #: The operating-system process in which the node works; not in a fork of it.
        self.owner = os.getpid()
        self.started_s = self.clock()
        #: Seconds that the end of the node has, if it is not told otherwise.
        self.shutdown_s = checked_timeout(limits.shutdown_ms / 1000)
        #: When the end that was asked for is to be over.
        self._ends_by = math.inf
        #: What failed, and the exception as text.
        self.failure: str | None = None
        #: Whether the executor has ended: what is sent from now on is a dead letter.
        self.ending = False
        # What follows is changed by any thread, without a lock: a signal handler that waits for the
        # end of the node may have interrupted the holder, for which the end would have to wait.
        #: The services that run, each with what waits, after its `stop`, until it has ended; that
        #: returns False if the service had not begun and will not.
        self.services: dict[ServiceThread, Callable[[], bool]] = {}
        #: Of those that have figures of their own: what is to be added to gauges and counters.
        self.measured: dict[ServiceThread, Callable[[], Measured]] = {}
        #: Of those that have sockets: what closes the copies of them that a forked child has.
        self.inherited: dict[ServiceThread, Callable[[], None]] = {}
        #: Threads that are inside of threading's start or join, which hold locks of that kind.
        self.in_threading: set[int] = set()
        #: Threads of services and of the cluster server that have ended and are to be joined.
        self.to_join: set[threading.Thread] = set()
        #: The mesh's side of the node; `None` for a node by itself.
        self.cluster: ClusterServer | None = None
        #: The sockets that the executor looks at; `None` without a mesh and a server.
        self.poller: Poller | None = None
        #: The thread that looks in its place, if the mesh has none.
        self.poll_thread: threading.Thread | None = None
        #: Held by that.
        self._polling = threading.Lock()
        self._desk: ClientDesk | None = None
        # Nothing of the node's end takes it.
        self._desk_lock = threading.Lock()
        self.calls = Calls(Pid(CALLS_NAME, node_id, RESERVED_GROUP), limits.calls_max)
        # Readable once the node has failed or ended: a wait on it can be nested in a signal
        # handler, which one on a lock cannot.
        self.ended = Inbox(1)

    # Whether the node may be used.

    def check_owner(self) -> None:
        """Raise `ForkedNode` in a forked child, where no thread of the node runs."""
        if self.executor.forked:
            raise ForkedNode(
                f"{self.node_id} runs in process {self.owner}, and this is its forked child "
                f"{os.getpid()}: rouse a node of its own here, behind the fork (with gunicorn: in "
                f"post_fork)"
            )

    def check_usable(self) -> None:
        """As `check_owner`; raise `NodeStopped` if the node ends or has ended."""
        self.check_owner()
        if self.executor.stopping:
            raise NodeStopped(self.why_stopped())

    def check_group(self, group: str | None) -> None:
        """Raise `ValueError` for the group of the node's own services."""
        if group == RESERVED_GROUP:
            raise ValueError(f"the group {RESERVED_GROUP!r} is for the node's own services")

    def check_here(self, pid: Pid, what: str, instead: str) -> None:
        """Raise `TypeError` or `ValueError` unless `pid` is one of this node.

        :param what: what was asked for, for the error.
        :param instead: what to do for a pid of another node, for the error.
        """
        if not isinstance(pid, Pid):
            advice = f"; write node.pid({argument_text(pid)})" if isinstance(pid, str) else ""
            raise TypeError(f"{what} takes a Pid, not {argument_text(pid)}{advice}")
        if pid.node != self.node_id:
            raise ValueError(
                f"{what} is for what runs on {self.node_id}, and {pid} does not: {instead}"
            )

    def mesh_side(self) -> ClusterServer:
        """The mesh's side of the node.

        :raises RuntimeError: if the node was roused without a mesh.
        """
        if self.cluster is None:
            raise RuntimeError(
                f"{self.node_id} is a node by itself; rouse it with mesh=rabble.Mesh(...)"
            )
        return self.cluster

    def check_subscriber(self, pid: Pid, wanted: bool) -> None:
        """As `check_here`; raise `NoProcess` if nobody has the pid.

        :param wanted: False is the end of a subscription, for which nobody needs to be there.
        """
        self.check_here(pid, "a subscription", "let it subscribe on its own node")
        if wanted and pid not in self.executor.table:
            raise NoProcess(f"{pid} cannot subscribe: no process, service or mailbox has that pid")

    def refuse(self, pid: Pid | None = None) -> NoReturn:
        """Raise why an envelope, or what was to run as `pid`, was not accepted."""
        self.check_usable()
        if pid is not None:
            raise NameTaken(f"{pid} runs already; stop it first, or take another name")
        raise QueueFull(
            f"{self.executor.inbox_depth} envelopes wait for {self.node_id} already; "
            f"Limits.inbox_envelopes_max is {self.limits.inbox_envelopes_max}"
        )

    # Requests of threads and of asyncio, and subscriptions.

    def call(self, pid: Pid, msg: Any, timeout: float) -> Any:
        """See `Node.call`."""
        left = checked_timeout(timeout)
        self.check_other_thread("call()")
        reply = Reply()
        correlation_id = self._begin_call(pid, msg, reply)
        try:
            if not reply.wait(left):
                # Unless it ends in the last moment: the first to end it says how.
                reply.set_exception(self.calls.timeout_of(reply.number, pid, timeout))
            return reply.take()
        finally:
            self.calls.give_up(correlation_id)

    def check_other_thread(self, what: str) -> None:
        """Raise `RuntimeError` in the executor's thread, which would wait for itself."""
        if threading.get_ident() == self.thread.ident:
            self.calls.in_executor(what)

    def _begin_call(self, pid: Pid, msg: Any, reply: Ending) -> CorrelationId:
        self.check_usable()
        correlation_id = self.calls.begin(reply, pid)
        try:
            self.send(pid, msg, sender=self.calls.pid, correlation_id=correlation_id)
        except BaseException:
            self.calls.give_up(correlation_id)
            raise
        return correlation_id

    def subscribe(self, pid: Pid, request: SubscribeNodes | SubscribeDeadLetters) -> None:
        """Have the executor handle a subscription, or its end, as if `pid` had sent it.

        See `Node.subscribe_nodes` and `Node.subscribe_dead_letters`.
        """
        self.check_usable()
        self.check_subscriber(pid, request.wanted)
        self.executor.send(self.executor.pid, request, sender=pid)

    # Envelopes and pids of services and mailboxes.

    def post_from_service(self, envelope: Envelope) -> None:
        """Send for a service, which is still heard while the node drains.

        :raises QueueFull: if `Limits.inbox_envelopes_max` envelopes wait already.
        """
        self.check_owner()
        post = self.executor.post if self.changes is None else self.changes.post
        if not post(envelope):
            if self.ending:
                self.undelivered(envelope, DeadLetterReason.NODE_SHUTDOWN)
            else:
                self.refuse()

    def received(self, envelope: Envelope) -> Envelope | None:
        """What was taken out of an inbox, for its receiver; `None` if it was changed on its way."""
        return envelope if self.changes is None else self.changes.received(envelope)

    def undelivered(
        self,
        envelope: Envelope,
        reason: DeadLetterReason = DeadLetterReason.NO_PROCESS,
        detail: str = "",
        crash: int = 0,
    ) -> None:
        """Make a dead letter of an envelope."""
        # A forked child shares the eventfds: what it wrote into one would keep the parent awake.
        if not self.executor.forked:
            self.executor.undeliverable(envelope, reason, detail, crash)

    def discard(self, pid: Pid, inbox: Inbox, reason: DownReason, crash: int = 0) -> None:
        """Give back the pid of a service or mailbox. An executor that has ended has none."""
        if not self.ending:
            self.executor.discard(pid, inbox, reason, crash)

    # Servers.

    def open_desk(self) -> ClientDesk:
        """Where the executor serves clients. Made with the first server, as are the sockets.

        :raises OSError: if the system has no descriptor left.
        """
        # What a node without a server does without is not even loaded.
        from rabble._core.client_desk import ClientDesk

        with self._desk_lock:
            if self.poller is None:
                poller = Poller(
                    heartbeat_ms=self.limits.heartbeat_ms,
                    frame_bytes_max=self.limits.frame_bytes_max,
                    queue_bytes_max=self.limits.peer_queue_bytes_max,
                    partial_ms_max=self.limits.frame_partial_ms_max,
                )
                self.executor.open_sockets(poller)
                self.poller = poller
            if self.cluster is None and self.poll_thread is None:
                self._start_polling(self.poller)
            if self._desk is None:
                self._desk = ClientDesk(self.executor)
            return self._desk

    def _start_polling(self, poller: Poller) -> None:
        thread = threading.Thread(
            target=take_steps,
            args=(
                functools.partial(self.fail, "the poll loop"),
                functools.partial(self._poll, poller),
            ),
            name=f"rabble:{self.node_id.name}:poll",
            daemon=False,
        )
        current = threading.get_ident()
        self.in_threading.add(current)
        try:
            thread.start()
        finally:
            self.in_threading.discard(current)
        self.poll_thread = thread

    def _poll(self, poller: Poller) -> None:
        if not self._polling.acquire(blocking=False):
            # Whoever started that one was interrupted, and another one has been started.
            return
        # Noted here, too: a signal's handler may raise in whoever waits for the thread to begin,
        # and one that nobody knows of nobody would end.
        self.poll_thread = threading.current_thread()
        if self.ending:
            # It began too late to be ended with the others.
            poller.stop()
        poller.run()

    # The end, and failures.

    def request_shutdown(self, timeout: float | None = None) -> None:
        """See `Node.request_shutdown`. Never blocks; from any thread or signal handler."""
        self.check_owner()
        drain_s = self.shutdown_s if timeout is None else checked_timeout(timeout)
        self._ends_by = min(self._ends_by, self.clock() + drain_s)
        self.executor.request_stop(drain_s / 2)
        if self.cluster is not None:
            self.cluster.drain()

    def time_left_s(self) -> float:
        """For how many seconds the end that was asked for may go on; 0 if it was not asked for."""
        return 0.0 if self._ends_by == math.inf else max(self._ends_by - self.clock(), 0.0)

    def why_stopped(self) -> str:
        """The sentence of a `NodeStopped`."""
        if self.failure is not None:
            return f"{self.node_id} failed ({self.failure})"
        return f"{self.node_id} was shut down"

    def fail(self, what: str, error: BaseException) -> None:
        """A thread of the runtime cannot go on: neither can the node. For any thread.

        :param what: failed, such as `the executor`.
        :param error: by which.
        """
        # Memory may be exhausted: so first what takes none, which making a closure does.
        first = self.failure is None
        if first:
            self.failure = what
        self._spread_failure(what, error, first)

    def _spread_failure(self, what: str, error: BaseException, first: bool) -> None:
        how = "failed" if first else "failed, too"
        steps: tuple[Callable[[], object], ...] = (
            # Before anybody who waits is told: they are told why.
            lambda: self._set_failure(f"{what}: {described(error)}") if first else None,
            lambda: self.executor.request_stop(0.0),
            # `rabble node` waits for the end, and then looks whether the node failed.
            lambda: None if self.ended.closed else self.ended.signal(),
            lambda: None if self.cluster is None else self.cluster.drain(),
            lambda: self.reporter.report(
                logging.CRITICAL, lambda: f"{self.node_id}: {what} {how}", error
            ),
        )
        for step in steps:
            try:
                step()
            except BaseException:
                # It is the failure that is told of, and not what comes of it.
                pass

    def _set_failure(self, text: str) -> None:
        self.failure = text

    def why_failed(self) -> str | None:
        """See `Node.failure`."""
        if self.failure is None and self.executor.failed:
            # There was not even memory to say so.
            return "the executor"
        return self.failure

    # What the node is doing.

    @property
    def status(self) -> str:
        """See `Node.status`."""
        if self.executor.forked:
            return "forked"
        if self.failure is not None or self.executor.failed:
            return "failed"
        if self.ended.closed:
            return "stopped"
        if self.executor.stopping:
            return "stopping"
        return "stalled" if self.watchdog.stalled else "running"

    def executor_status(self) -> ExecutorStatus:
        """See `Node.executor_status`."""
        self.check_owner()
        executor = self.executor
        return ExecutorStatus(
            node=self.node_id,
            status=self.status,
            processes=executor.processes,
            services=len(self.services),
            queue_depth=executor.queue_depth,
            inbox_depth=executor.inbox_depth,
            timers=executor.timers,
            delivered=executor.delivered,
            dead_letters=MappingProxyType(
                {reason.value: count for reason, count in executor.dead_letters.copy().items()}
            ),
            crashes=executor.crashes,
            uptime_s=self.clock() - self.started_s,
            sleeps=executor.sleeps,
            wakeups=executor.wakeups,
            spins=executor.spins,
        )

    def metrics(self) -> Metrics:
        """See `Node.metrics`."""
        status = self.executor_status()
        gauges: dict[str, float] = {
            "processes": status.processes,
            "services": status.services,
            "queue_depth": status.queue_depth,
            "inbox_depth": status.inbox_depth,
            "timers": status.timers,
            "calls_waiting": len(self.calls),
            "asks_waiting": self.calls.requests.asks_waiting,
            "uptime_s": status.uptime_s,
            **({} if self.cluster is None else self.cluster.gauges()),
        }
        counters = {
            "delivered": status.delivered,
            "crashes": status.crashes,
            "sleeps": status.sleeps,
            "wakeups": status.wakeups,
            "spins": status.spins,
            "late_replies": self.calls.late_replies,
            "fields_dropped": self.registry.fields_dropped,
            "reports_suppressed": self.reporter.suppressed_total,
        }
        for reason, count in status.dead_letters.items():
            counters[f"dead_letters_{reason}"] = count
        for measure in list(self.measured.values()):
            more = measure()
            gauges.update(more[0])
            counters.update(more[1])
        return Metrics(gauges=MappingProxyType(gauges), counters=MappingProxyType(counters))
