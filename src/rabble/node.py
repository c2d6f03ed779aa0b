"""`Node` and `rouse`: what a user calls."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, overload

from rabble._assembly import (
    check_options,
    checked_node_id,
    join_mesh,
    make_directory,
    make_executor,
    make_exports,
    make_threads,
    start_threads,
)
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._runtime import LocalRuntime, Sender, Spawner
from rabble._shutdown import Teardown
from rabble.addresses import banned_subjects, member_name, parse_target
from rabble.cluster.config import Mesh, listen_as
from rabble.cluster.remote_spawn import pid_of_answer, spawn_request
from rabble.families.groups import Groups
from rabble.families.names import Names
from rabble.joining import join_and_wait, join_and_wait_async
from rabble.limits import Limits
from rabble.messages import (
    ClusterStatus,
    ExecutorStatus,
    Metrics,
    Stop,
    SubscribeDeadLetters,
    SubscribeNodes,
)
from rabble.process import Process
from rabble.producing import envelope_of, send_wait, send_wait_async
from rabble.registry import MessageRegistry, default_registry
from rabble.request import Replied, Request
from rabble.services.loop_waits import check_no_loop
from rabble.services.mailbox import Mailbox, Mailboxes
from rabble.services.service import OnCrash, Service, ServiceHandler, start_service

__all__ = ["Node", "rouse"]


def rouse(
    node_id: NodeId | str | None = None,
    *,
    limits: Limits | None = None,
    registry: MessageRegistry | None = None,
    strict: bool | Literal["changes"] = False,
    spin_us: int = 50,
    seed: int | None = None,
    mesh: Mesh | None = None,
) -> Node:
    """Start a node.

    :param node_id: a `NodeId`, or its text `name@host:port`; by default `local@127.0.0.1:0`. A
        guest's is a name: it gets an address of its own, and a name of its own if that is plain.
    :param limits: its bounds; the defaults of `Limits` if left out.
    :param registry: the message classes it knows; by default all that `@message` declared.
    :param strict: for tests. True encodes and decodes every local message and compares what arrives
        with what was sent: so it could have crossed a wire, and nobody shares it. `"changes"`
        compares too, hands over the object itself, and says who changed one after it was sent.
    :param spin_us: microseconds for which an executor without work looks for some before it
        sleeps. 0 is off, and so it is where there is one processor.
    :param seed: of the processes' random sources; drawn if left out.
    :param mesh: how it takes part in a mesh of nodes; `None` is a node by itself.
    :returns: a running node, which is a context manager, also of `async with`, and must be shut
        down. With a mesh it listens; port 0 in `node_id` is replaced by the port it got.
    :raises TypeError: if an argument is of another type.
    :raises ValueError: if `node_id`, `strict` or `spin_us` is not usable, or if listening where the
        mesh says would be open to everybody.
    :raises KeyFileError: if the mesh's key or certificates cannot be used.
    :raises OSError: if it cannot listen there.
    """
    check_options(limits, registry, mesh)
    own = checked_node_id(node_id, mesh)
    listeners: list[socket.socket] = []
    try:
        if mesh is not None and not mesh.guest:
            own = listen_as(own, mesh, listeners)
        return Node(
            own,
            limits=limits or Limits(),
            registry=registry or default_registry,
            strict=strict,
            spin_us=spin_us,
            seed=secrets.randbits(64) if seed is None else seed,
            mesh=mesh,
            listeners=listeners,
        )
    except BaseException:
        for listener in listeners:
            listener.close()
        raise


class Node:
    """A running node. Made by `rouse`.

    All methods are for any thread. Several nodes may live in one operating-system process. In a
    forked child every method raises `ForkedNode`: the threads stayed in the parent. There, leaving
    its `with` block does nothing.

    :ivar node_id: its `NodeId`, with the port it listens on.
    :ivar limits: its bounds.
    :ivar names: the names of the mesh, each with one owner; see `Names`.
    :ivar groups: the groups of the mesh; see `Groups`.
    """

    def __new__(cls, *args: Any, **parts: Any) -> Node:
        if "limits" not in parts:
            raise TypeError(
                "a Node is made by rabble.rouse, which starts it: write "
                "rabble.rouse('name@127.0.0.1:0'), or rabble.rouse() for any name"
            )
        return super().__new__(cls)

    def __init__(
        self,
        node_id: NodeId,
        *,
        limits: Limits,
        registry: MessageRegistry,
        strict: bool | Literal["changes"],
        spin_us: int,
        seed: int,
        mesh: Mesh | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.node_id = node_id
        self.limits = limits
        self._runtime = runtime = LocalRuntime(node_id, limits)
        self.monotonic = runtime.clock
        self._mailboxes = Mailboxes(runtime)
        self.names = Names(runtime)
        self.groups = Groups(runtime)
        self._teardown = Teardown(runtime, self._mailboxes)
        make_threads(runtime, self._teardown, self._mailboxes)
        try:
            make_executor(runtime, registry, strict=strict, spin_us=spin_us, seed=seed)
            self.spawn = runtime.executor.spawn
            self.send = runtime.send
            self._exports = make_exports(runtime, self)
            if mesh is not None:
                join_mesh(runtime, registry, mesh, listeners)
            make_directory(runtime)
            start_threads(runtime, self._teardown)
        except BaseException:
            self._teardown.abandon()
            raise

    # Names.

    def pid(self, name: str, group: str | None = None) -> Pid:
        """The pid that a name has, or would have, on this node. From any thread.

        :param name: of a process, service or mailbox.
        :param group: the tenant it belongs to.
        :returns: its pid, whether anybody has it or not.
        :raises ValueError: if the name or the group cannot be one.
        """
        return Pid(name, self.node_id, group)

    # Processes. The two that services call most are the executor's own methods, put here by
    # __init__: a Python frame in between would cost as much as all that they do.

    spawn: Spawner
    send: Sender

    def stop(self, pid: Pid) -> None:
        """Stop a process or service of this node, after what was sent to it before.

        Never blocks. Does nothing if nobody has the pid now: whoever is spawned under it later is
        not meant. Its monitors are told `Down`.

        :param pid: whom to stop.
        :raises ValueError: if it is of another node, which alone may stop it.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.check_here(pid, "stop", "send it a message, on which it stops itself")
        if pid in self._runtime.executor.table:
            self.send(self._runtime.executor.pid, Stop(pid))
        else:
            self._runtime.check_usable()

    def send_wait(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send, and wait until there is room: for who makes more messages than it is asked for.

        Where much waits for another node it returns once that has gone down and the message is in
        the queue; so however many threads and coroutines send in this way, none of it is dropped as
        `PEER_BUSY`. On this node it returns once the message has had its turn, and its receiver's
        `mailbox_max` had room. Blocks: a process sends a `Drain` instead.

        :param timeout: in seconds; `None` waits for as long as the node runs.
        :raises CallTimeout: if there was no room in time. Then it is not sent.
        :raises NotConnected: if no connection leads there, or it ended while this waited.
        :raises NoProcess: if nobody has that pid on this node.
        :raises QueueFull: if the inbox of the mailbox or service that it is for, or the node's own,
            is full, or `Limits.calls_max` calls wait already.
        :raises EncodeError: if the message cannot go to another node.
        :raises NodeStopped: if the node was shut down.
        :raises RuntimeError: in the executor's thread, or in that of an event loop that runs.
        """
        send_wait(self._runtime, envelope_of(to, msg, sender, correlation_id), timeout)

    def send_wait_async(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, None]:
        """As `send_wait`, for asyncio. Cancelling it takes the message back, if it still waits."""
        envelope = envelope_of(to, msg, sender, correlation_id)
        return send_wait_async(self._runtime, envelope, timeout)

    @overload
    def call(self, pid: Pid, msg: Request[Replied], timeout: float = 5.0) -> Replied: ...
    @overload
    def call(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any: ...
    def call(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any:
        """Send a request and wait for its reply. Blocks: not for processes or asyncio.

        The process replies with `Envelope(sender, reply, correlation_id=correlation_id)`.

        :param pid: whom to ask, on this node or another.
        :param msg: the request, which must not be changed any more.
        :param timeout: in seconds; infinity waits for as long as the node runs.
        :returns: the reply. Of a `Request[Value]` type checkers take it for a `Value`.
        :raises CallTimeout: if none came in time. One that comes later is dropped and counted.
        :raises NoProcess: if there is no such process.
        :raises ProcessCrashed: if it crashed while it handled this very message.
        :raises NotConnected: if no connection leads to its node, or it ended before the reply.
        :raises QueueFull: if its mailbox, or the node's inbox, is full, or if `Limits.calls_max`
            calls wait already.
        :raises EncodeError: if the request cannot go to another node.
        :raises NodeStopped: if the node was shut down.
        :raises RuntimeError: in the executor's thread, which would wait for itself, and in that of
            an event loop that runs: there await `call_async`.
        """
        check_no_loop("call()", "`await node.call_async(...)`, or call() in another thread")
        return self._runtime.call(pid, msg, timeout)

    @overload
    def call_async(
        self, pid: Pid, msg: Request[Replied], timeout: float = 5.0
    ) -> Coroutine[Any, Any, Replied]: ...
    @overload
    def call_async(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Coroutine[Any, Any, Any]: ...
    def call_async(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Coroutine[Any, Any, Any]:
        """As `call`, for asyncio: never blocks the loop. Cancelling it gives the request up.

        For any running loop, in any thread but the executor's. The arguments, the result and the
        errors are those of `call`.
        """
        return self._runtime.call_async(pid, msg, timeout)

    # Threads under a pid.

    def mailbox(
        self,
        name: str | None = None,
        group: str | None = None,
        *,
        envelopes_max: int | None = None,
    ) -> Mailbox:
        """A pid with an inbox, for a script, a test, a thread of your own or tasks of asyncio.

        It is closed when nobody holds it any more.

        :param name: `None` takes the next free `mailbox-N`.
        :param group: the tenant it belongs to.
        :param envelopes_max: how many envelopes may wait in it: what exceeds that becomes a
            `MAILBOX_FULL` dead letter. `None` is `Limits.service_inbox_envelopes_max`, the most.
        :returns: the mailbox, which is a context manager.
        :raises NameTaken: if that name is in use.
        :raises TypeError: if `envelopes_max` is no int.
        :raises ValueError: if the name, the group or `envelopes_max` cannot be one, or the group is
            the node's own.
        :raises NodeStopped: if the node was shut down.
        """
        return self._mailboxes.open(name, group, envelopes_max)

    def register_service(
        self,
        handler: ServiceHandler | Callable[[], ServiceHandler],
        name: str,
        *,
        group: str | None = None,
        on_crash: OnCrash = "stop",
    ) -> Service:
        """Run a handler in a thread of its own, under a pid. From any thread.

        :param handler: a `ServiceHandler`, or what makes one: needed for `restart`.
        :param name: unique within its group.
        :param group: the tenant it belongs to.
        :param on_crash: what follows when a method of the handler raises, besides the report:
            `stop` ends the service, `restart` makes a new handler, up to 5 times in 10 s and then
            shuts the node down, `shutdown` shuts the node down at once.
        :returns: the service, whose thread runs.
        :raises NameTaken: if that name is in use.
        :raises TypeError: if `handler` is neither.
        :raises ValueError: if `on_crash`, the name or the group cannot be used.
        :raises NodeStopped: if the node was shut down.
        """
        return start_service(self._runtime, self, handler, name, group, on_crash)

    def subscribe_dead_letters(self, pid: Pid, wanted: bool = True) -> None:
        """Have every dead letter of this node sent to `pid` as a `DeadLetter`, or no longer.

        A subscription ends with the process, service or mailbox that has the pid now. From any
        thread; never blocks. It holds once the executor has come to it: a process sends
        `SubscribeDeadLetters` for the same. A round trip, by `call` say, proves that it has.

        :param pid: the subscriber.
        :param wanted: False ends the subscription.
        :raises NoProcess: if nobody has that pid on this node.
        :raises ValueError: if `pid` is of another node.
        :raises QueueFull: if the node's inbox is full.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.subscribe(pid, SubscribeDeadLetters(bool(wanted)))

    # Other nodes.

    @overload
    def join(self, target: NodeId | str, *, wait: None = None) -> None: ...
    @overload
    def join(self, target: NodeId | str, *, wait: float) -> NodeId: ...
    def join(self, target: NodeId | str, *, wait: float | None = None) -> NodeId | None:
        """Make a node a member of the mesh, and with it all that are members there.

        Without `wait` it returns at once; `subscribe_nodes` tells when it is reached. Until then,
        and whenever the connection is lost, it is dialled again and again, up to 30 s apart: also
        if a wait has ended, however it did.

        :param target: a `NodeId`, which is a member from now on; or an address `host:port`, where
            a node is asked for its name first.
        :param wait: for how many seconds to wait until it is up, at most. Infinity may be. Blocks
            then: not for processes or asyncio.
        :returns: with `wait` the node that is up: `cluster_status` shows it, and what is sent to
            it, also by processes of this node, finds a connection. Else `None`.
        :raises JoinTimeout: if it is not up in time; says how the last dial failed.
        :raises JoinFailed: if whoever is there refuses, or the host has no address.
        :raises ValueError: if it is no address, or `wait` no number of seconds.
        :raises RuntimeError: if the node was roused without a mesh; with `wait` also where `call`
            raises it.
        :raises QueueFull: if `Limits.mesh_commands_max` such calls wait already.
        :raises NodeStopped: if the node was shut down, or ends meanwhile.
        """
        if wait is not None:
            return join_and_wait(self._runtime, target, wait)
        self._runtime.check_usable()
        target = parse_target(target)
        self._runtime.mesh_side().join(target)
        return None

    async def join_async(self, target: NodeId | str, *, wait: float = 5.0) -> NodeId:
        """As `join` with `wait`, for asyncio: never blocks the loop. Cancelled, it goes on.

        The arguments, the result and the errors are those of `join`.
        """
        return await join_and_wait_async(self._runtime, target, wait)

    def leave(self, node: NodeId | str | None = None) -> None:
        """Make a node no member of the mesh any more. Returns at once.

        :param node: a `NodeId` or a node's name; `None` is this one. The address of a `join` that
            nobody answered yet is dialled no longer.
        :raises RuntimeError: if the node was roused without a mesh.
        :raises QueueFull: if `Limits.mesh_commands_max` such calls wait already.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.check_usable()
        name = member_name(self.node_id if node is None else node)
        self._runtime.mesh_side().leave(name)

    def ban(self, node: NodeId | str | None, seconds: float, *, key: str | None = None) -> None:
        """Shut a node out of the mesh for a time. Returns at once.

        Its connections end everywhere, and until the time is over, or `lift_ban`, no node of the
        mesh takes one of it. What is banned is a name, whoever has it, or a key, by whatever name,
        or both. All nodes learn of it, and those that join later; it is forgotten when all that
        know of it have ended. When it is over the node, if it runs, is connected again by itself:
        it was a member all the time. One that is not to come back has to `leave` as well.

        :param node: a `NodeId` or a node's name; `None` if only the key is banned.
        :param seconds: for how long, above 0, at most `Limits.ban_seconds_max`. A new ban takes the
            place of an earlier one, be it longer or shorter.
        :param key: the fingerprint of the key of its certificate, or of its own key, as
            `PeerStatus.keys` and `rabble fingerprint FILE` show it.
        :raises TypeError: if an argument is of another type.
        :raises ValueError: if `seconds` is out of range, the name or key is none that can be (as an
            address is), or is this node's own, or the nodes of this mesh have no keys of their own;
            or if there is neither.
        :raises RuntimeError: if the node was roused without a mesh.
        :raises QueueFull: if `Limits.mesh_commands_max` such calls wait already.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.check_usable()
        self._runtime.mesh_side().ban(banned_subjects("ban", node, key), seconds)

    def lift_ban(self, node: NodeId | str | None = None, *, key: str | None = None) -> None:
        """Let a node in again before its ban is over. Returns at once.

        Everywhere, as soon as the others are told; they dial it. What is not banned, as far as this
        node knows, stays as it is.

        :param node: a `NodeId` or a node's name, if that was banned.
        :param key: the fingerprint of the key, if that was.
        :raises TypeError: if an argument is of another type.
        :raises ValueError: if the name or key is none that can be, or there is neither.
        :raises RuntimeError: if the node was roused without a mesh.
        :raises QueueFull: if `Limits.mesh_commands_max` such calls wait already.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.check_usable()
        self._runtime.mesh_side().lift_ban(banned_subjects("lift_ban", node, key))

    def cluster_status(self) -> ClusterStatus:
        """The mesh as this node sees it. From any thread.

        :returns: a frozen snapshot.
        :raises RuntimeError: if the node was roused without a mesh.
        :raises ForkedNode: in a forked child.
        """
        self._runtime.check_owner()
        return self._runtime.mesh_side().status()

    def subscribe_nodes(self, pid: Pid, wanted: bool = True) -> None:
        """Have `NodeUp`, `NodeDown`, `NodeStalled` and `Removed` sent to `pid`, or no longer.

        Of each node that is connected already a `NodeUp` comes at once. A subscription ends with
        the process, service or mailbox that has the pid now. From any thread; never blocks. It
        holds once the executor has come to it: a process sends `SubscribeNodes` for the same.

        :param pid: the subscriber.
        :param wanted: False ends the subscription.
        :raises NoProcess: if nobody has that pid on this node.
        :raises ValueError: if `pid` is of another node.
        :raises QueueFull: if the node's inbox is full.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.subscribe(pid, SubscribeNodes(bool(wanted)))

    def export(self, name: str, factory: Callable[..., Process]) -> None:
        """Let other nodes spawn a process here, by this name. There is no other way for them.

        :param name: what they ask for. Exporting the same twice does nothing.
        :param factory: a `Process` class, or a function that makes a process. It is called in the
            executor's thread with the arguments that were sent, which are anybody's who is a member
            of the mesh; what it raises refuses the spawn.
        :raises TypeError: if `factory` cannot be called.
        :raises ValueError: if the name cannot be one or is exported as something else, or if
            `Limits.exports_max` names are exported already.
        :raises NodeStopped: if the node was shut down.
        """
        self._runtime.check_usable()
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
        :raises ValueError: if a name cannot be one.
        :raises NodeStopped: if this node was shut down.
        """
        check_no_loop("spawn_on()", "`await node.spawn_on_async(...)`")
        request = spawn_request(node_id, exported, name, *args, group=group)
        return pid_of_answer(self._runtime.call(request.to, request.msg, timeout), node_id)

    async def spawn_on_async(
        self,
        node_id: NodeId,
        exported: str,
        name: str,
        *args: Any,
        group: str | None = None,
        timeout: float = 5.0,
    ) -> Pid:
        """As `spawn_on`, for asyncio: never blocks the loop. Cancelled, it may still be spawned.

        The arguments, the result and the errors are those of `spawn_on`.
        """
        request = spawn_request(node_id, exported, name, *args, group=group)
        answer = await self.call_async(request.to, request.msg, timeout)
        return pid_of_answer(answer, node_id)

    # What it is doing.

    @property
    def status(self) -> str:
        """`running`, `stalled`, `stopping`, `stopped`, or `failed`; `forked` in a forked child."""
        return self._runtime.status

    @property
    def failure(self) -> str | None:
        """Why the status is `failed`: what failed, and the exception; `None` if it is not.

        A node that a defect, or the end of memory, has deprived of one of its threads ends itself.
        """
        return self._runtime.why_failed()

    def executor_status(self) -> ExecutorStatus:
        """What the executor did so far and has before it. From any thread.

        :returns: a frozen snapshot.
        :raises ForkedNode: in a forked child.
        """
        return self._runtime.executor_status()

    def metrics(self) -> Metrics:
        """Gauges and counters, by name. From any thread.

        :returns: a frozen snapshot.
        :raises ForkedNode: in a forked child.
        """
        return self._runtime.metrics()

    def processes(self) -> dict[Pid, int]:
        """How many envelopes each process, service and mailbox was given so far. From any thread.

        :returns: the counts by pid; a dict of the caller's own.
        :raises ForkedNode: in a forked child.
        """
        self._runtime.check_owner()
        return self._runtime.executor.delivered_by_pid()

    # The end.

    def request_shutdown(self, timeout: float | None = None) -> None:
        """Ask the node to end. Never blocks; from any thread, process or signal handler.

        :param timeout: in seconds, as that of `shutdown`.
        :raises ForkedNode: in a forked child.
        """
        self._runtime.request_shutdown(timeout)

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
        self._teardown.shutdown(timeout)

    async def shutdown_async(self, timeout: float | None = None) -> None:
        """As `shutdown`, for asyncio: never blocks the loop.

        Who is cancelled meanwhile waits for the end all the same, and is cancelled then: no node is
        left half-way. The argument and the errors are those of `shutdown`.
        """
        await self._teardown.shutdown_async(timeout)

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._runtime.executor.forked:
            await self.shutdown_async()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        # In a forked child the block is left only because the process ends: that is not hindered.
        if not self._runtime.executor.forked:
            self.shutdown()

    def __repr__(self) -> str:
        return f"<Node {self.node_id} {self.status}>"
