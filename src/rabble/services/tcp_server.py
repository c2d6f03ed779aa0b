"""`TcpServer`: what real clients connect to."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from rabble._core.client_desk import ClientDesk
from rabble._core.client_receiver import ClientReceiver
from rabble._core.client_server import ClientServer
from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import given
from rabble._runtime import LocalRuntime, Measured
from rabble.errors import RabbleError
from rabble.messages import DownReason, GetMetrics
from rabble.services.canary import canary_pid
from rabble.services.codecs import MsgpackCodec, ServerCodec
from rabble.services.gate.admission_queue import AdmissionQueue
from rabble.services.gate.gate import Gate
from rabble.services.gate.messages import GateStatus
from rabble.services.server_acceptor import Acceptor
from rabble.services.server_handler import ConnectionHandler
from rabble.services.server_limits import ServerLimits
from rabble.services.server_sockets import ListeningSockets
from rabble.services.server_tls import ServerTls
from rabble.services.service import Service, fullness
from rabble.steps import take_steps
from rabble.timeouts import checked_timeout

__all__ = ["ServerStatus", "TcpServer"]

#: Of the memory that a message of a client may take, for each byte of a frame: by estimate.
DECODED_BYTES_PER_BYTE = 16
DECODED_BYTES_MIN = 1 << 20
# Framings of clients have the same names as codecs, and come from another module.
A_CODEC = "ServerCodec of rabble.services.server, such as MsgpackCodec() or JsonLines"
A_GATE = "Gate, such as CanaryGate(CanaryPolicy(), random.Random().uniform)"
#: How full the inbox of a service is before a gate is told.
TOLD_FROM = 0.25
#: Seconds that `close` waits at most for the name of the server to be free again.
NAME_FREE_S = 1.0


class ServingNode(Protocol):
    """A `Node`: it stands above the services, which know it by this alone."""

    _runtime: LocalRuntime


@dataclasses.dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a server did so far and has before it."""

    #: Where clients connect.
    address: str
    #: Connections that are not closed.
    connections: int
    #: Requests that wait for their ends.
    in_flight: int
    #: Requests that wait for the gate, and are not begun.
    waiting: int
    #: Messages that came, requests included.
    messages: int
    #: Requests that ended with an answer.
    answered: int
    #: Requests that failed, or ended with their connection.
    failed: int
    #: Requests that were not begun: Nacks.
    refused: int
    #: Answers to requests that had ended.
    late: int
    #: Connections that were accepted.
    accepted: int
    #: Connections that found no room.
    turned_away: int
    #: Whether it ends.
    draining: bool

    def gauges(self, prefix: str) -> dict[str, float]:
        """What goes up and down, by name, as in `Metrics.gauges`.

        :param prefix: what each name begins with.
        """
        names = ("connections", "in_flight", "waiting", "draining")
        return {prefix + name: float(getattr(self, name)) for name in names}

    def counters(self, prefix: str) -> dict[str, int]:
        """What only grows, by name, as in `Metrics.counters`.

        :param prefix: what each name begins with.
        """
        names = ("messages", "answered", "failed", "refused", "late", "accepted", "turned_away")
        return {prefix + name: getattr(self, name) for name in names}


class TcpServer:
    """A server of a node: it listens when it is made. A context manager, which closes it.

    Each connection has a handler, whose methods run in the executor's thread as those of processes
    do. For any thread but those of handlers and processes, in which `close` only asks for the end.
    It ends with its node.

    :param node: at which it serves.
    :param handler: a `ConnectionHandler` class, or a function that makes the handler of a
        connection. It is called in the executor's thread.
    :param bind: `host:port`; port 0 takes a free one. Or `unix:PATH`.
    :param name: of the server's pid, unique on its node.
    :param group: of that pid.
    :param codec: of the frames; `MsgpackCodec()` unless it is given.
    :param limits: its bounds; the defaults of `ServerLimits` if left out.
    :param tls: certificates; `None` speaks without TLS.
    :param gate: which requests are begun; all, unless one is given. Its methods are called in the
        executor's thread. One that raises is reported as a crash, and from then on all requests
        are begun.
    :param mode: of a Unix socket: who may connect.
    :param reuse_port: let other processes listen there too.
    :raises NameTaken: if the name is in use.
    :raises NodeStopped: if the node was shut down.
    :raises KeyFileError: if a file of `tls` cannot be used.
    :raises OSError: if it cannot listen there.
    :raises TypeError: if an argument is of another type.
    :raises ValueError: if `bind` is no address, or one of `gate.nodes` is no node.

    :ivar pid: of the server.
    :ivar address: where clients connect, with the port that it got.
    """

    def __init__(
        self,
        node: ServingNode,
        handler: Callable[[], ConnectionHandler],
        bind: str = "127.0.0.1:0",
        *,
        name: str = "tcp",
        group: str | None = None,
        codec: ServerCodec | None = None,
        limits: ServerLimits | None = None,
        tls: ServerTls | None = None,
        gate: Gate | None = None,
        mode: int = 0o600,
        reuse_port: bool = False,
    ) -> None:
        check_arguments(
            (hasattr(node, "_runtime"), "node", "Node", node),
            (isinstance(bind, str), "bind", "str, 'host:port' or 'unix:PATH'", bind),
            (codec is None or has_methods(codec, "compiled"), "codec", A_CODEC, codec),
            (limits is None or isinstance(limits, ServerLimits), "limits", "ServerLimits", limits),
            (tls is None or isinstance(tls, ServerTls), "tls", "ServerTls", tls),
            (gate is None or has_methods(gate, "admit", "tick"), "gate", A_GATE, gate),
            (type(mode) is int and 0 <= mode <= 0o7777, "mode", "int, 0 to 0o7777", mode),
            (isinstance(reuse_port, bool), "reuse_port", "bool", reuse_port),
        )
        check_handler(handler)
        limits = limits or ServerLimits()
        runtime = node._runtime
        runtime.check_usable()
        runtime.check_group(group)
        self._runtime = runtime
        self._limits = limits
        self._gate = gate
        front, nodes = None, tuple[tuple[str, Pid], ...]()
        if gate is not None:
            front = AdmissionQueue(
                gate,
                in_flight_max=limits.requests_max,
                requests_max=limits.gate_requests_max,
                per_connection_max=limits.gate_requests_per_connection_max,
                wait_ms_max=limits.gate_wait_ms_max,
            )
            nodes = tuple((each, canary_pid(NodeId.parse(each))) for each in gate.nodes)
        self.pid = Pid(name, runtime.node_id, group)
        #: What is said if its thread fails: made now, as there may be no memory then.
        self._failing = f"the thread of {self.pid}"
        self._wake_up = Inbox(1)
        self._closed: collections.deque[str] = collections.deque()
        #: Who is told of changes of the gate's state.
        self._subscribers: dict[Pid, None] = {}
        self._stopping = False
        self._ends_at: float | None = None
        self._begun = False
        # Held until the thread has nothing more to do: what a node's end waits for must not be a
        # lock of threading's, see `Service`.
        self._serving = threading.Lock()
        self._serving.acquire()
        compiled = (codec or MsgpackCodec()).compiled(
            runtime.registry,
            message_bytes_max=limits.frame_bytes_max,
            decoded_bytes_max=max(
                limits.frame_bytes_max * DECODED_BYTES_PER_BYTE, DECODED_BYTES_MIN
            ),
        )
        full = compiled.write_frame(
            "goodbye", code="full", text="there is no room for another connection"
        )
        listening = ListeningSockets(bind, mode=mode, reuse_port=reuse_port)
        try:
            self.address = listening.address
            desk = runtime.open_desk()
            self._core = ClientServer(
                runtime.executor,
                desk.poller,
                self.pid,
                make_handler=handler,
                codec=compiled,
                gate=gate,
                front=front,
                nodes=nodes,
                pressures=self._pressures,
                changed=self._gate_changed,
                closed=self._closed.append,
                notify=self._wake_up.signal,
                frame_bytes_max=limits.frame_bytes_max,
                unsent_bytes_max=limits.write_buffer_bytes_max,
                idle_ns_max=limits.idle_ms_max * 1_000_000,
                partial_ns_max=limits.partial_frame_ms_max * 1_000_000,
                stuck_ns_max=limits.write_stalled_ms_max * 1_000_000,
                linger_ns_max=limits.linger_ms_max * 1_000_000,
                requests_per_connection_max=limits.requests_per_connection_max,
                requests_max=limits.requests_max,
                request_ns_max=limits.request_ms_max * 1_000_000,
                retry_ms=limits.retry_after_ms,
            )
            self._acceptor = Acceptor(
                f"rabble:{runtime.node_id.name}:{name}",
                self._core,
                listening,
                limits,
                tls=tls,
                full=full,
                wake_up=self._wake_up,
                closed=self._closed,
                reporter=runtime.reporter,
                failed=functools.partial(runtime.fail, f"the TLS proxy of {self.pid}"),
                clock=runtime.clock,
            )
            self._start(desk)
        except BaseException:
            listening.close()
            raise

    @property
    def thread(self) -> threading.Thread:
        """In which connections are accepted."""
        return self._thread

    @property
    def idle(self) -> bool:
        """Whether no connection is left: then a node that ends need not wait for it."""
        return self._core.open == 0

    def status(self) -> ServerStatus:
        """What it did so far. For any thread.

        :returns: a frozen snapshot.
        """
        core = self._core
        return ServerStatus(
            address=self.address,
            connections=core.open,
            in_flight=core.in_flight,
            waiting=core.waiting_for_gate,
            messages=core.messages,
            answered=core.answered,
            failed=core.failed,
            refused=core.refused,
            late=core.late,
            accepted=self._acceptor.accepted,
            turned_away=self._acceptor.refused,
            draining=core.draining,
        )

    def gate_status(self) -> GateStatus | None:
        """How its gate stands, `None` if it has none, or one that has failed. For any thread.

        :returns: a frozen snapshot.
        """
        return None if self._gate is None or not self._core.has_gate else self._gate.status()

    def subscribe_gate(self, pid: Pid, wanted: bool = True) -> None:
        """Have the gate's changes of state sent to a process of this node, or no longer.

        :param pid: the subscriber. What it is sent is what the gate's `tick` returned.
        :param wanted: False ends the subscription.
        """
        self._runtime.check_here(pid, "a subscription", "let it subscribe on its own node")
        if wanted:
            self._subscribers[pid] = None
        else:
            self._subscribers.pop(pid, None)

    def close(self, timeout: float | None = None) -> None:
        """End it: accept nobody, finish what was begun, and close each connection with a goodbye.

        Idempotent. In the executor's thread it only asks for that.

        :param timeout: in seconds, by default `ServerLimits.drain_ms`; what is left then is cut.
        :raises ForkedNode: in a forked child.
        """
        runtime = self._runtime
        runtime.check_owner()
        within = self._limits.drain_ms / 1000 if timeout is None else checked_timeout(timeout)
        self._ends_at = runtime.clock() + within
        self._core.request_drain()
        # If nobody serves clients any more it sees that by itself.
        self._wake_up.signal()
        if threading.get_ident() not in (runtime.thread.ident, self._thread.ident):
            self._thread.join()
            if not runtime.executor.stopping:
                # Whose turn comes behind that of the pid that was given back: the name is free.
                with contextlib.suppress(RabbleError):
                    runtime.call(runtime.executor.pid, GetMetrics(), NAME_FREE_S)

    def stop(self) -> None:
        """The executor has ended: what is left has the time to take its goodbye. Never blocks."""
        runtime = self._runtime
        within = min(self._limits.linger_ms_max / 1000, runtime.time_left_s() / 2)
        self._ends_at = runtime.clock() + within
        self._stopping = True
        self._wake_up.signal()

    def __enter__(self) -> TcpServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._runtime.executor.forked:
            self.close()

    def __repr__(self) -> str:
        return f"<TcpServer {self.pid} at {self.address}>"

    def _start(self, desk: ClientDesk) -> None:
        runtime = self._runtime
        deliver: Callable[[Envelope], None] = ClientReceiver(desk, self._core).deliver
        if runtime.changes is not None:
            deliver = runtime.changes.callback(deliver, answers=False)
        self._desk, self._deliver = desk, deliver
        self._thread = threading.Thread(
            target=take_steps,
            args=(self._failed, self._run, self._let_go, self._end_serving),
            name=f"rabble:{runtime.node_id.name}:{self.pid.name}",
            daemon=False,
        )
        current = threading.get_ident()
        is_added = False
        try:
            runtime.services[self] = self._wait_for_end
            runtime.inherited[self] = self._acceptor.close_inherited
            runtime.measured[self] = self._measured
            is_added = runtime.executor.add_callback(self.pid, deliver)
            if not is_added:
                runtime.refuse(self.pid)
            # Behind that: from now on a gate's canaries are sent to the pid.
            desk.open(self._core)
            runtime.in_threading.add(current)
            self._thread.start()
            runtime.in_threading.discard(current)
            if runtime.ending:
                # It began too late to be joined with the others, and ends at once.
                self.stop()
                self._thread.join()
        except BaseException:
            runtime.in_threading.discard(current)
            # If its thread began all the same, that ends at once.
            self.stop()
            if is_added:
                self._discard()
            runtime.measured.pop(self, None)
            runtime.inherited.pop(self, None)
            runtime.services.pop(self, None)
            desk.forget(self._core)
            raise

    def _run(self) -> None:
        self._begun = True
        self._acceptor.run(lambda: self._stopping, lambda: self._ends_at)

    def _let_go(self) -> None:
        self._acceptor.close()
        if not self._core.open:
            # Else the executor does, when it has cut what is left.
            self._desk.forget(self._core)
        self._discard()
        self._runtime.measured.pop(self, None)
        self._runtime.inherited.pop(self, None)
        self._runtime.services.pop(self, None)

    def _discard(self) -> None:
        if not self._runtime.ending:
            self._runtime.executor.discard(self.pid, self._deliver, DownReason("stopped"))

    def _failed(self, error: BaseException) -> None:
        self._stopping = True
        self._runtime.fail(self._failing, error)

    def _end_serving(self) -> None:
        if self._serving.locked():
            self._serving.release()

    def _wait_for_end(self) -> bool:
        if self._begun:
            self._serving.acquire()
            self._serving.release()
        return self._begun

    def _gate_changed(self, changed: Any) -> list[Pid]:
        return list(self._subscribers)

    def _pressures(self) -> dict[str, float]:
        """How full the inboxes of services are that are a quarter full. In the executor."""
        return {
            f"inbox of {each.pid}": fullness(each)
            for each in list(self._runtime.services)
            if isinstance(each, Service) and fullness(each) >= TOLD_FROM
        }

    def _measured(self) -> Measured:
        """What `Node.metrics` shows of it."""
        pid = self.pid
        prefix = f"server.{pid.name}." if pid.group is None else f"server.{pid.group}.{pid.name}."
        status = self.status()
        gauges, counters = status.gauges(prefix), status.counters(prefix)
        try:
            gate = self.gate_status()
            if gate is not None:
                gauges.update(gate.gauges(f"{prefix}gate."))
                counters.update(gate.counters(f"{prefix}gate."))
        except Exception as error:
            # A gate of the user's: it says nothing of itself then.
            self._runtime.reporter.report_crash(pid, error, 0)
        return gauges, counters


def has_methods(value: Any, *names: str) -> bool:
    """Whether it is an object, and no class, that has these."""
    found = (getattr(value, name, None) for name in names)
    return not isinstance(value, type) and all(map(callable, found))


def check_handler(handler: Any) -> None:
    """Raise the `TypeError` of a `TcpServer` whose handler is none."""
    if not callable(handler):
        advice = ""
        if isinstance(handler, ConnectionHandler):
            advice = ": each connection has one of its own, so give the class"
        raise TypeError(
            f"TcpServer: handler must be a ConnectionHandler class, or a function that makes one, "
            f"not {given(handler)}{advice}"
        )


def check_arguments(*checks: tuple[bool, str, str, Any]) -> None:
    """Raise the `TypeError` of the first that is of another type.

    :param checks: of each whether it is as it should be, its name, what it should be, and it.
    """
    for is_right, name, wanted, value in checks:
        if not is_right:
            advice = ": an object of that class, not the class" if isinstance(value, type) else ""
            raise TypeError(f"TcpServer: {name} must be a {wanted}, not {given(value)}{advice}")
