"""`Node` and `rouse`: where everything is put together."""

from __future__ import annotations

import asyncio
import atexit
import collections
import functools
import itertools
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

from rabble import messages
from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.executor import Executor
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.poller import Poller
from rabble._core.system_messages import SystemMessages
from rabble._core.texts import bounded_repr
from rabble.calls import AwaitedReply, Calls, Ending, Reply
from rabble.cluster.bridge import Bridge
from rabble.cluster.config import Mesh, listen, split_address
from rabble.cluster.server import ClusterServer
from rabble.cluster.spawner import Exports, pid_of_answer, spawn_request
from rabble.errors import (
    CallTimeout,
    ForkedNode,
    NodeStopped,
    NoProcess,
    ShutdownTimeout,
)
from rabble.limits import Limits
from rabble.messages import (
    ClusterStatus,
    DeadLetterReason,
    DownReason,
    ExecutorStatus,
    Metrics,
)
from rabble.observer import Observer
from rabble.process import Process
from rabble.registry import MessageRegistry, default_registry
from rabble.reports import Reporter, described, worded
from rabble.services.mailbox import Held, Mailbox
from rabble.services.service import OnCrash, Service, ServiceHandler
from rabble.steps import take_steps
from rabble.timeouts import checked_timeout
from rabble.watchdog import Watchdog

__all__ = ["Node", "rouse"]

RESERVED_GROUP = "rabble"


def rouse(
    node_id: NodeId | str = "local@127.0.0.1:0",
    *,
    limits: Limits | None = None,
    registry: MessageRegistry | None = None,
    strict: bool = False,
    spin_us: int = 50,
    seed: int | None = None,
    mesh: Mesh | None = None,
) -> Node:
    """Start a node.

    :param node_id: a `NodeId`, or its text `name@host:port`.
    :param limits: its bounds; the defaults of `Limits` if left out.
    :param registry: the message classes it knows; by default all that `@message` declared.
    :param strict: for tests: encode and decode every local message, to prove that it could have
        crossed a wire and that nobody shares it.
    :param spin_us: microseconds for which an executor without work looks for some before it
        sleeps. 0 is off, and so it is where there is one processor.
    :param seed: of the processes' random sources; drawn if left out.
    :param mesh: how it takes part in a mesh of nodes; `None` is a node by itself.
    :returns: a running node, which is a context manager and must be shut down. With a mesh it
        listens; port 0 in `node_id` is replaced by the port it got.
    :raises ValueError: if `node_id` or `spin_us` is not usable, or if listening where the mesh says
        would be open to everybody.
    :raises KeyFileError: if the mesh's key or certificates cannot be used.
    :raises OSError: if it cannot listen there.
    """
    own = NodeId.parse(node_id) if isinstance(node_id, str) else node_id
    key: bytes | None = None
    listeners: list[socket.socket] = []
    try:
        if mesh is not None and isinstance(own, NodeId):
            key = mesh.read_key()
            listen(mesh, mesh.bind or own.addr, listeners)
            host, _, port = own.addr.rpartition(":")
            if port == "0":
                own = NodeId(own.name, f"{host}:{listeners[0].getsockname()[1]}")
        return Node(
            own,
            limits=limits or Limits(),
            registry=registry or default_registry,
            strict=strict,
            spin_us=spin_us,
            seed=secrets.randbits(64) if seed is None else seed,
            mesh=mesh,
            key=key,
            listeners=listeners,
        )
    except BaseException:
        for listener in listeners:
            listener.close()
        raise


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
        """Send a message. It must not be changed any more.

        :raises QueueFull: if `Limits.inbox_envelopes_max` envelopes wait already.
        :raises NodeStopped: if the node was shut down.
        """


class Node:
    """A running node. Made by `rouse`.

    All methods are for any thread. Several nodes may live in one operating-system process. In a
    forked child every method raises `ForkedNode`: the threads stayed in the parent. There, leaving
    its `with` block does nothing.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        limits: Limits,
        registry: MessageRegistry,
        strict: bool,
        spin_us: int,
        seed: int,
        mesh: Mesh | None = None,
        key: bytes | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        if not isinstance(node_id, NodeId):
            raise TypeError(
                f"node_id must be a NodeId or its text, not {bounded_repr(node_id, 100)}"
            )
        if type(spin_us) is not int or not 0 <= spin_us <= 1_000_000:
            raise ValueError(
                f"spin_us must be 0 to 1,000,000 microseconds, not {bounded_repr(spin_us, 100)}"
            )
        self.node_id = node_id
        self.limits = limits
        self.monotonic: Callable[[], float] = time.monotonic
        self._owner = os.getpid()
        self._started_s = self.monotonic()
        self._shutdown_s = checked_timeout(limits.shutdown_ms / 1000)
        self._failure: str | None = None
        self._ending = False
        # Changed by any thread, without a lock: a signal handler that waits for the end of the
        # node may have interrupted the holder, for which the end would have to wait.
        self._services: set[Service] = set()
        # A mailbox is its user's: the node notices when it is dropped. What notices it is
        # `deque.append`, and no Python code, which might be interrupted.
        self._mailboxes: dict[int, Held] = {}
        self._dropped: collections.deque[Held] = collections.deque()
        # Threads that are inside of threading's start or join, which hold locks of that kind.
        self._in_threading: set[int] = set()
        self._to_join: set[threading.Thread] = set()
        self._mailbox_names = itertools.count()
        self._cluster: ClusterServer | None = None
        self._calls = Calls(Pid("calls", node_id, RESERVED_GROUP), limits.calls_max)
        # Readable once the node has failed or ended: a wait on it can be nested in a signal
        # handler, which one on a lock cannot.
        self._ended = Inbox(1)
        # Which thread runs the executor: its own, or the one that could not start it.
        self._runner: dict[None, int] = {}
        self._ran = False
        codec = (
            Codec(
                registry,
                message_bytes_max=limits.message_bytes_max,
                depth_max=limits.message_depth_max,
                elements_max=limits.message_elements_max,
            )
            if strict
            else None
        )
        self._observer = Observer(self)
        self._thread = threading.Thread(
            target=take_steps,
            args=(functools.partial(self._fail, "the executor"), *self._steps()),
            name=f"rabble:{node_id.name}:executor",
            daemon=False,
        )
        self._reporter = Reporter(
            f"rabble:{node_id.name}:reports",
            per_second=limits.log_reports_per_second_max,
            waiting=limits.log_reports_waiting_max,
            watch=self._look,
            failed=functools.partial(self._fail, "the reporter"),
            clock=self.monotonic,
        )
        try:
            self._executor = Executor(
                node_id,
                messages,
                Process,
                self._observer,
                inbox_max=limits.inbox_envelopes_max,
                spin_us=spin_us if len(os.sched_getaffinity(0)) > 1 else 0,
                codec=codec,
                seed=seed,
            )
            self._assemble(registry, mesh, key, listeners)
            self._start()
        except BaseException:
            if hasattr(self, "_executor"):
                self._abandon()
            raise

    def _assemble(
        self,
        registry: MessageRegistry,
        mesh: Mesh | None,
        key: bytes | None,
        listeners: Sequence[socket.socket],
    ) -> None:
        """Put together what hangs on the executor."""
        limits = self.limits
        SystemMessages(self._executor)
        self.spawn = self._executor.spawn
        self.send = self._executor.send
        self._executor.add_callback(self._calls.pid, self._calls.deliver)
        self._exports = Exports(self._executor, self._reporter, limits.exports_max)
        self._executor.add_callback(self._exports.pid, self._exports.deliver)
        self._watchdog = Watchdog(
            self._executor,
            self._thread,
            report_after_s=limits.receive_report_after_ms / 1000,
            stalled_after_s=limits.stalled_after_ms / 1000,
            clock=self.monotonic,
        )
        if mesh is not None:
            poller = Poller(
                heartbeat_ms=limits.heartbeat_ms,
                frame_bytes_max=limits.frame_bytes_max,
                queue_bytes_max=limits.peer_queue_bytes_max,
                partial_ms_max=limits.frame_partial_ms_max,
            )
            self._executor.join_mesh(poller, limits.peer_watches_max)
            self._cluster = ClusterServer(
                self.node_id,
                mesh,
                key,
                listeners,
                poller,
                Bridge(self._executor, self._reporter, registry, limits, self._fail),
                limits=limits,
                clock=self.monotonic,
                rng=random.Random(secrets.randbits(64)),
                token_bytes=secrets.token_bytes,
            )

    def _start(self) -> None:
        _at_exit(self)
        if getattr(threading, "_SHUTTING_DOWN", False):
            raise NodeStopped("the interpreter ends, and would wait for a new node for ever")
        self._reporter.thread.start()
        self._thread.start()
        if self._cluster is not None:
            self._cluster.start()

    def _abandon(self) -> None:
        """Let go of all, since the node could not be made. Waits for the threads that did start.

        The executor has to run for that. A thread that was started, in spite of what was raised,
        is either there first, or finds it done.
        """
        self._executor.request_stop(0.0)
        take_steps(functools.partial(self._fail, "the start"), *self._steps())
        end = self.monotonic() + self._shutdown_s
        while not self._ended.closed and self.monotonic() < end:
            self._ended.wait(0.1)
        self._join_threads(end)

    # Names.

    def pid(self, name: str, group: str | None = None) -> Pid:
        """The pid that `name` has, or would have, on this node."""
        return Pid(name, self.node_id, group)

    # Processes. The two that services call most are the executor's own methods, put here by
    # __init__: a Python frame in between would cost as much as all that they do.

    spawn: Spawner
    send: Sender

    def stop(self, pid: Pid) -> None:
        """Stop a process or service of this node, after what was sent to it before.

        Does nothing if there is none. Its monitors are told `Down`.

        :raises ValueError: if it is of another node, which alone may stop it.
        """
        self._check_here(pid, "stop", "send it a message, on which it stops itself")
        self.send(self._executor.pid, messages.Stop(pid))

    def call(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any:
        """Send a request and wait for its reply. Blocks: not for processes or asyncio.

        The process replies with `Envelope(sender, reply, correlation_id=correlation_id)`.

        :param timeout: in seconds; infinity waits for as long as the node runs.
        :returns: the reply.
        :raises CallTimeout: if none came in time. One that comes later is dropped and counted.
        :raises NoProcess: if there is no such process.
        :raises ProcessCrashed: if it crashed while it handled this very message.
        :raises QueueFull: if its mailbox, or the node's inbox, is full.
        :raises NodeStopped: if the node was shut down.
        """
        left = checked_timeout(timeout)
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "call() would wait for the executor in the executor's own thread; a process "
                "sends the request and takes the reply as a message"
            )
        reply = Reply()
        correlation_id = self._begin_call(pid, msg, reply)
        try:
            if not reply.wait(left):
                # Unless it ends in the last moment: whoever comes first says how.
                reply.set_exception(CallTimeout(f"{pid} did not reply in {timeout} s"))
            return reply.take()
        finally:
            self._calls.give_up(correlation_id)

    async def call_async(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any:
        """As `call`, for asyncio: never blocks the loop. Cancelling it gives the request up."""
        left = checked_timeout(timeout)
        reply = AwaitedReply()
        try:
            correlation_id = self._begin_call(pid, msg, reply)
            try:
                return await asyncio.wait_for(reply.future, left)
            except TimeoutError:
                raise CallTimeout(f"{pid} did not reply in {timeout} s") from None
            finally:
                self._calls.give_up(correlation_id)
        finally:
            # If the node's end is about to end it, nobody would look at how.
            reply.future.cancel()

    def _begin_call(self, pid: Pid, msg: Any, reply: Ending) -> CorrelationId:
        self._check_usable()
        correlation_id = self._calls.begin(reply, pid)
        try:
            self.send(pid, msg, sender=self._calls.pid, correlation_id=correlation_id)
        except BaseException:
            self._calls.give_up(correlation_id)
            raise
        return correlation_id

    # Threads under a pid.

    def mailbox(self, name: str | None = None, group: str | None = None) -> Mailbox:
        """A pid with an inbox, for a script, a test or a thread of your own.

        It is closed when nobody holds it any more.

        :param name: `None` takes the next free `mailbox-N`.
        :raises NameTaken: if that name is in use.
        """
        self._check_usable()
        self._check_group(group)
        self._give_back_dropped()
        inbox = Inbox(self.limits.service_inbox_envelopes_max)
        pid = Pid(name or f"mailbox-{next(self._mailbox_names)}", self.node_id, group)
        mailbox = Mailbox(self, pid, inbox)
        held = Held(mailbox, self._dropped.append)
        held.pid = pid
        held.inbox = inbox
        # First, so that it is closed with the others; an ending executor takes no inbox any more.
        self._mailboxes[id(held)] = held
        mailbox._held = held
        if not self._executor.add_inbox(pid, inbox):
            mailbox._held = None
            self._mailboxes.pop(id(held), None)
            inbox.close()
            self._observer.refuse(pid)
        return mailbox

    def register_service(
        self,
        handler: ServiceHandler | Callable[[], ServiceHandler],
        name: str,
        *,
        group: str | None = None,
        on_crash: OnCrash = "stop",
    ) -> Service:
        """Run a handler in a thread of its own, under a pid.

        :param handler: a `ServiceHandler`, or what makes one: needed for `restart`.
        :param on_crash: what follows when a method of the handler raises, besides the report:
            `stop` ends the service, `restart` makes a new handler, up to 5 times in 10 s and then
            shuts the node down, `shutdown` shuts the node down at once.
        :raises NameTaken: if that name is in use.
        """
        self._check_usable()
        self._check_group(group)
        if on_crash not in ("stop", "restart", "shutdown"):
            raise ValueError(
                f"on_crash must be stop, restart or shutdown, not {bounded_repr(on_crash, 100)}"
            )
        if isinstance(handler, ServiceHandler):
            if on_crash == "restart":
                raise ValueError(
                    "on_crash='restart' needs a function that makes a handler: the one that "
                    "crashed is not used again"
                )
            instance = handler

            def make_handler() -> ServiceHandler:
                return instance

        elif callable(handler):
            make_handler = handler
        else:
            raise TypeError(
                f"register_service takes a ServiceHandler, not {bounded_repr(handler, 100)}"
            )
        inbox = Inbox(self.limits.service_inbox_envelopes_max)
        pid = Pid(name, self.node_id, group)
        service = Service(self, pid, inbox, make_handler, on_crash)
        current = threading.get_ident()
        try:
            self._services.add(service)
            if not self._executor.add_inbox(pid, inbox):
                self._observer.refuse(pid)
            self._in_threading.add(current)
            service.thread.start()
            self._in_threading.discard(current)
            if self._ending:
                # It began too late to be joined with the others, and ends at once.
                service.thread.join()
            return service
        except BaseException:
            self._in_threading.discard(current)
            # If its thread began all the same, that ends at once.
            service.stop()
            inbox.close()
            self._service_ended(service, DownReason("crashed", "its thread did not start"))
            for envelope in inbox.take(len(inbox)):
                self._undelivered(envelope)
            raise

    def subscribe_dead_letters(self, pid: Pid, wanted: bool = True) -> None:
        """Have every dead letter of this node sent to `pid` as a `DeadLetter`, or no longer.

        A subscription ends with the process, service or mailbox that has the pid now.

        :raises NoProcess: if there is none on this node.
        :raises ValueError: if `pid` is of another node.
        """
        self._check_usable()
        self._check_subscriber(pid, wanted)
        if not self._executor.subscribe_dead_letters(pid, wanted):
            # It has ended since.
            self._check_subscriber(pid, wanted)

    # Other nodes.

    def join(self, target: NodeId | str) -> None:
        """Make a node a member of the mesh, and with it all that are members there.

        Returns at once; `subscribe_nodes` tells when it is reached. Until then, and whenever the
        connection is lost, it is dialled again and again, up to 30 s apart.

        :param target: a `NodeId`, which is a member from now on; or an address `host:port`, where
            a node is asked for its name first.
        :raises ValueError: if it is no address.
        :raises RuntimeError: if the node was roused without a mesh.
        """
        self._check_usable()
        if isinstance(target, str):
            if "@" in target:
                target = NodeId.parse(target)
            else:
                split_address(target)
        elif not isinstance(target, NodeId):
            raise TypeError(
                f"join takes a NodeId or an address 'host:port', not {bounded_repr(target, 100)}"
            )
        self._mesh_side().join(target)

    def leave(self, node: NodeId | str | None = None) -> None:
        """Make a node no member of the mesh any more. Returns at once.

        :param node: a `NodeId` or a node's name; `None` is this one. The address of a `join` that
            nobody answered yet is dialled no longer.
        :raises RuntimeError: if the node was roused without a mesh.
        """
        self._check_usable()
        if isinstance(node, str) and "@" in node:
            node = NodeId.parse(node)
        name = self.node_id.name if node is None else getattr(node, "name", node)
        if not isinstance(name, str):
            raise TypeError(
                f"leave takes a NodeId, a node's name or an address, not {bounded_repr(node, 100)}"
            )
        self._mesh_side().leave(name)

    def cluster_status(self) -> ClusterStatus:
        """The mesh as this node sees it. A frozen snapshot.

        :raises RuntimeError: if the node was roused without a mesh.
        """
        self._check_owner()
        return self._mesh_side().status()

    def subscribe_nodes(self, pid: Pid, wanted: bool = True) -> None:
        """Have `NodeUp`, `NodeDown`, `NodeStalled` and `Removed` sent to `pid`, or no longer.

        Of each node that is connected already a `NodeUp` comes at once. A subscription ends with
        the process, service or mailbox that has the pid now.

        :raises NoProcess: if there is none on this node.
        :raises ValueError: if `pid` is of another node.
        """
        self._check_usable()
        self._check_subscriber(pid, wanted)
        self.send(self._executor.pid, messages.SubscribeNodes(wanted), sender=pid)

    def export(self, name: str, factory: Callable[..., Process]) -> None:
        """Let other nodes spawn a process here, by this name. There is no other way for them.

        :param name: what they ask for. Exporting the same twice does nothing.
        :param factory: a `Process` class, or a function that makes a process. It is called in the
            executor's thread with the arguments that were sent, which are anybody's who is a member
            of the mesh; what it raises refuses the spawn.
        :raises ValueError: if the name cannot be one or is exported as something else, or if
            `Limits.exports_max` names are exported already.
        """
        self._check_usable()
        self._exports.export(name, factory)

    def spawn_on(
        self,
        node_id: NodeId,
        exported: str,
        name: str,
        *args: Any,
        group: str | None = None,
        timeout: float = 5.0,
    ) -> Pid:
        """Spawn a process on another node. Blocks: a process sends a `spawn_request` instead.

        :param node_id: which node, as `NodeUp` or `cluster_status` has it.
        :param exported: the name under which it exports what makes the process.
        :param name: of the process, unique within its group on that node.
        :param args: for what makes it; whatever may be sent.
        :param group: the tenant it belongs to.
        :param timeout: in seconds.
        :returns: its pid.
        :raises SpawnRefused: if it was not spawned; says why.
        :raises NotConnected: if no connection leads there, or it ended before the answer came.
        :raises CallTimeout: if no answer came in time: it may have been spawned.
        """
        request = spawn_request(node_id, exported, name, *args, group=group)
        return pid_of_answer(self.call(request.to, request.msg, timeout))

    async def spawn_on_async(
        self,
        node_id: NodeId,
        exported: str,
        name: str,
        *args: Any,
        group: str | None = None,
        timeout: float = 5.0,
    ) -> Pid:
        """As `spawn_on`, for asyncio: never blocks the loop. Cancelled, it may still be spawned."""
        request = spawn_request(node_id, exported, name, *args, group=group)
        return pid_of_answer(await self.call_async(request.to, request.msg, timeout))

    def _mesh_side(self) -> ClusterServer:
        if self._cluster is None:
            raise RuntimeError(
                f"{self.node_id} is a node by itself; rouse it with mesh=rabble.Mesh(...)"
            )
        return self._cluster

    # What it is doing.

    @property
    def status(self) -> str:
        """`running`, `stalled`, `stopping`, `stopped`, or `failed`; `forked` in a forked child."""
        if self._executor.forked:
            return "forked"
        if self._failure is not None or self._executor.failed:
            return "failed"
        if self._ended.closed:
            return "stopped"
        if self._executor.stopping:
            return "stopping"
        return "stalled" if self._watchdog.stalled else "running"

    @property
    def failure(self) -> str | None:
        """Why the status is `failed`: what failed, and the exception; `None` if it is not.

        A node that a defect, or the end of memory, has deprived of one of its threads ends itself.
        """
        if self._failure is None and self._executor.failed:
            # There was not even memory to say so.
            return "the executor"
        return self._failure

    def executor_status(self) -> ExecutorStatus:
        """What the executor did so far and has before it. A frozen snapshot."""
        self._check_owner()
        executor = self._executor
        return ExecutorStatus(
            node=self.node_id,
            status=self.status,
            processes=executor.processes,
            services=len(self._services),
            queue_depth=executor.queue_depth,
            inbox_depth=executor.inbox_depth,
            timers=executor.timers,
            delivered=executor.delivered,
            dead_letters=MappingProxyType(
                {reason.value: count for reason, count in executor.dead_letters.copy().items()}
            ),
            crashes=executor.crashes,
            uptime_s=self.monotonic() - self._started_s,
            sleeps=executor.sleeps,
            wakeups=executor.wakeups,
            spins=executor.spins,
        )

    def metrics(self) -> Metrics:
        """Gauges and counters, by name. A frozen snapshot."""
        status = self.executor_status()
        gauges: dict[str, float] = {
            "processes": status.processes,
            "services": status.services,
            "queue_depth": status.queue_depth,
            "inbox_depth": status.inbox_depth,
            "timers": status.timers,
            "calls_waiting": len(self._calls),
            "uptime_s": status.uptime_s,
        }
        counters = {
            "delivered": status.delivered,
            "crashes": status.crashes,
            "sleeps": status.sleeps,
            "wakeups": status.wakeups,
            "spins": status.spins,
            "late_replies": self._calls.late_replies,
            "reports_suppressed": self._reporter.suppressed_total,
        }
        for reason, count in status.dead_letters.items():
            counters[f"dead_letters_{reason}"] = count
        return Metrics(gauges=MappingProxyType(gauges), counters=MappingProxyType(counters))

    def processes(self) -> dict[Pid, int]:
        """How many envelopes each process, service and mailbox was given so far."""
        self._check_owner()
        return self._executor.delivered_by_pid()

    # The end.

    def request_shutdown(self, timeout: float | None = None) -> None:
        """Ask the node to end. Never blocks; from any thread, process or signal handler.

        :param timeout: as that of `shutdown`.
        """
        self._check_owner()
        drain_s = self._shutdown_s if timeout is None else checked_timeout(timeout)
        self._executor.request_stop(drain_s / 2)
        if self._cluster is not None:
            self._cluster.drain()

    def shutdown(self, timeout: float | None = None) -> None:
        """End the node: deliver what waits, stop the services, join all threads.

        Idempotent. From a process or a service of this node it only asks for the end and returns
        at once, since it cannot wait for itself. From a signal handler it waits as from anywhere
        else; if the handler interrupted `shutdown` or `register_service`, those join the threads.

        :param timeout: in seconds, by default `Limits.shutdown_ms`. Half of it is for delivering
            what waits; a `receive` that does not return then is interrupted by an exception.
            Infinity waits for as long as there is something to deliver.
        :raises ShutdownTimeout: if something could not be ended in time; says what.
        """
        within = self._shutdown_s if timeout is None else checked_timeout(timeout)
        self.request_shutdown(within)
        end = self.monotonic() + within
        current = threading.current_thread()
        own = {self._thread, self._reporter.thread}
        if current in own or any(s.thread is current for s in list(self._services)):
            return
        half = self.monotonic() + (end - self.monotonic()) * 0.6
        while not self._ended.closed:
            now = self.monotonic()
            if now >= end:
                raise ShutdownTimeout(f"{self.node_id} did not end: {self._what_keeps_it()}")
            if now >= half:
                # Again and again: what it raises may have been caught.
                self._executor.interrupt()
                half = now + 0.1
            self._ended.wait(max(min(half, end) - now, 0.001))
        running = self._join_threads(end)
        if running:
            raise ShutdownTimeout(
                f"{self.node_id} did not end: these threads run: {', '.join(running)}"
            )

    def _join_threads(self, end: float) -> list[str]:
        """Join all threads of a node that has ended, and return the names of those that run on."""
        current = threading.get_ident()
        if current in self._in_threading:
            # A signal handler's: what it interrupted joins them.
            return []
        self._in_threading.add(current)
        try:
            threads = [
                thread
                for thread in (*self._to_join, self._thread, self._reporter.thread)
                # One that was never started.
                if thread.ident is not None
            ]
            for thread in threads:
                thread.join(max(end - self.monotonic(), 0.1))
            return [thread.name for thread in threads if thread.is_alive()]
        finally:
            self._in_threading.discard(current)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In a forked child the block is left only because the process ends: that is not hindered.
        if not self._executor.forked:
            self.shutdown()

    def __repr__(self) -> str:
        return f"<Node {self.node_id} {self.status}>"

    # Inside.

    def _steps(self) -> tuple[Callable[[], bool | None], ...]:
        """What the executor's thread does: run it, and let go of all that hangs on it."""
        return (
            self._run,
            self._end_mailboxes,
            self._end_services,
            self._end_cluster,
            lambda: self._end_calls(),
            functools.partial(_forget, self),
            lambda: self._reporter.end(),
            self._ended.close,
        )

    def _run(self) -> bool:
        """Run the executor. True if all that follows is somebody else's."""
        current = threading.get_ident()
        if self._runner.setdefault(None, current) != current:
            return True
        if not self._ran:
            self._ran = True
            self._executor.run()
        # A `receive` may have forked, and returned in the child: the node is the parent's.
        return self._executor.forked

    def _end_mailboxes(self) -> None:
        self._ending = True
        for held in self._mailboxes.copy().values():
            held.inbox.close()
        self._mailboxes.clear()
        self._dropped.clear()

    def _end_services(self) -> None:
        services = list(self._services)
        for service in services:
            service.stop()
        for service in services:
            # One that has not begun sees that it was stopped.
            if service._wait_for_end():
                self._to_join.add(service.thread)

    def _end_cluster(self) -> None:
        if self._cluster is not None:
            self._cluster.request_stop(self._shutdown_s / 4)
            self._to_join.update(self._cluster.wait_for_end())

    def _end_calls(self) -> None:
        self._calls.close(self._why_stopped())

    def _fail(self, what: str, error: BaseException) -> None:
        """A thread of the runtime cannot go on: neither can the node. For any thread."""
        # Memory may be exhausted: so first what takes none, which making a closure does.
        first = self._failure is None
        if first:
            self._failure = what
        self._spread_failure(what, error, first)

    def _spread_failure(self, what: str, error: BaseException, first: bool) -> None:
        how = "failed" if first else "failed, too"
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._executor.request_stop(0.0),
            lambda: self._say_failure(f"{what}: {described(error)}") if first else None,
            # Who waits for the end, as `rabble node` does, looks whether it failed.
            lambda: None if self._ended.closed else self._ended.signal(),
            lambda: None if self._cluster is None else self._cluster.drain(),
            lambda: self._reporter.report(
                logging.CRITICAL, lambda: f"{self.node_id}: {what} {how}\n{worded(error)}"
            ),
        )
        for step in steps:
            try:
                step()
            except BaseException:
                # It is the failure that is told of, and not what comes of it.
                pass

    def _say_failure(self, text: str) -> None:
        self._failure = text

    def _look(self, reporter: Reporter) -> None:
        """A few times a second, in the reporter's thread."""
        self._watchdog.look(reporter)
        self._give_back_dropped()
        if self._failure is not None:
            self._executor.interrupt()

    def _why_stopped(self) -> str:
        if self._failure is not None:
            return f"{self.node_id} failed ({self._failure})"
        return f"{self.node_id} was shut down"

    def _check_owner(self) -> None:
        if self._executor.forked:
            raise ForkedNode(
                f"{self.node_id} runs in process {self._owner}, and this is its forked child "
                f"{os.getpid()}: rouse a node of its own here"
            )

    def _check_usable(self) -> None:
        self._check_owner()
        if self._executor.stopping:
            raise NodeStopped(self._why_stopped())

    def _check_group(self, group: str | None) -> None:
        if group == RESERVED_GROUP:
            raise ValueError(f"the group {RESERVED_GROUP!r} is for the node's own services")

    def _check_here(self, pid: Pid, what: str, instead: str) -> None:
        if not isinstance(pid, Pid):
            raise TypeError(f"{what} takes a Pid, not {bounded_repr(pid, 100)}")
        if pid.node != self.node_id:
            raise ValueError(
                f"{what} is for what runs on {self.node_id}, and {pid} does not: {instead}"
            )

    def _check_subscriber(self, pid: Pid, wanted: bool) -> None:
        self._check_here(pid, "a subscription", "let it subscribe on its own node")
        if wanted and pid not in self._executor.table:
            raise NoProcess(f"{pid} cannot subscribe: no process, service or mailbox has that pid")

    def _close_mailbox(self, mailbox: Mailbox) -> None:
        self._check_owner()
        held = mailbox._held
        if held is not None:
            self._give_back(held)
            mailbox._held = None

    def _give_back_dropped(self) -> None:
        """Close the mailboxes that nobody holds any more."""
        while self._dropped:
            try:
                held = self._dropped[0]
                self._give_back(held)
                # Last, so that one is not lost half-way. By what it is: two threads may be here.
                self._dropped.remove(held)
            except (IndexError, ValueError):
                # The other thread was faster.
                pass

    def _give_back(self, held: Held) -> None:
        """Close a mailbox, if it is one of those there are. To be repeated if anything raises."""
        if id(held) not in self._mailboxes:
            return
        held.inbox.close()
        for envelope in held.inbox.take(len(held.inbox)):
            self._undelivered(envelope)
        if not self._executor.stopping:
            self._executor.discard(held.pid, held.inbox, DownReason("stopped"))
        self._mailboxes.pop(id(held), None)

    def _service_ended(self, service: Service, reason: DownReason) -> None:
        self._services.discard(service)
        if not self._executor.stopping:
            self._executor.discard(service.pid, service._inbox, reason)

    def _undelivered(
        self, envelope: Envelope, reason: DeadLetterReason = DeadLetterReason.NO_PROCESS
    ) -> None:
        # A forked child shares the eventfds: what it wrote into one would keep the parent awake.
        if not self._executor.forked:
            self._executor.undeliverable(envelope, reason)

    def _send_from_service(self, envelope: Envelope) -> None:
        """Send for a service, which is still heard while the node drains."""
        self._check_owner()
        if not self._executor.post(envelope):
            if self._ending:
                self._undelivered(envelope, DeadLetterReason.NODE_SHUTDOWN)
            else:
                self._observer.refuse()

    def _what_keeps_it(self) -> str:
        busy = self._executor.current_pid
        if busy is not None:
            return f"receive of {busy} does not return"
        alive = [s.thread.name for s in list(self._services) if s.thread.is_alive()]
        return f"these threads run: {', '.join(alive) or self._thread.name}"


# The one piece of state that is the interpreter's and not a node's: which nodes are to be ended
# before it waits for their threads.
_running: set[Node] = set()


def _at_exit(node: Node) -> None:
    _running.add(node)


def _forget(node: Node) -> None:
    _running.discard(node)


def _end_all(nodes: Iterable[Node] = _running) -> None:
    own = [node for node in list(nodes) if not node._executor.forked]
    kept = []
    # Whatever is raised by the end of one, the others are ended, too.
    for end in (Node.request_shutdown, Node.shutdown):
        for node in own:
            try:
                end(node)
            except ShutdownTimeout as error:
                kept.append(str(error))
            except BaseException as error:
                node._fail("the end at exit", error)
                kept.append(f"{node.node_id}: {described(error)}")
    if kept:
        # Raised, it has the interpreter say so and end; otherwise that would wait for the threads.
        raise ShutdownTimeout("; ".join(kept))


# The interpreter joins non-daemon threads before it runs atexit's functions, so a node that was
# left running must be ended before that. threading has a hook there, which concurrent.futures
# uses; it is not documented, hence the fallback, which serves embedders that call exit themselves.
getattr(threading, "_register_atexit", atexit.register)(_end_all)
