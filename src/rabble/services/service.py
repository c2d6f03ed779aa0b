"""`Service`: a thread under a pid, with its own inbox and poller."""

from __future__ import annotations

import collections
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, overload

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.inbox import Inbox
from rabble._core.texts import bounded_repr
from rabble._runtime import LocalRuntime, Sender, Spawner
from rabble.families.groups import Groups
from rabble.families.names import Names
from rabble.limits import Limits
from rabble.messages import ClusterStatus, DeadLetterReason, DownReason, ExecutorStatus, Metrics
from rabble.process import Output, Process
from rabble.producing import envelope_of, send_wait
from rabble.request import Replied, Request
from rabble.services.mailbox import Mailbox
from rabble.steps import take_steps
from rabble.texts import argument_text, described

__all__ = ["OnCrash", "Service", "ServiceHandler", "ServiceNode", "fullness", "start_service"]

OnCrash = Literal["stop", "restart", "shutdown"]

ENVELOPES_PER_TURN = 256
RESTARTS_MAX = 5
RESTARTS_WITHIN_S = 10.0


class ServiceHandler:
    """What a service does. Its methods run in the service's own thread and may block.

    `init` and both `handle` methods return `None`, one `Envelope`, or an iterable of them; the
    service is filled in as their sender. While a method runs the service takes nothing else. An
    exception of a method is reported, and `on_crash` of `Node.register_service` says what follows.
    """

    def init(self, service: Service) -> Output:
        """Called once, first of all: the place to open files and register them to be polled.

        :param service: which this handler is of.
        :returns: the envelopes to send.
        """
        return None

    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        """Handle one envelope that was sent to the service's pid.

        :param envelope: its message may be shared with others and must not be changed.
        :param service: which this handler is of.
        :returns: the envelopes to send.
        """
        raise TypeError(f"{type(self).__name__} does not define handle_envelope(envelope, service)")

    def handle_notification(
        self, key: selectors.SelectorKey, events: int, service: Service
    ) -> Output:
        """Handle a file object that is ready: one that was given to `service.register`.

        :param key: as `service.register` returned it, with the file object and its data.
        :param events: for which of the events it is ready (`selectors`).
        :param service: which this handler is of.
        :returns: the envelopes to send.
        """
        raise TypeError(
            f"{type(self).__name__} does not define handle_notification(key, events, service)"
        )

    def close(self, service: Service) -> None:
        """Called once, last of all, whatever ended the service: the place to close files.

        :param service: which this handler is of.
        """


class ServiceNode(Protocol):
    """The node of a service, for its handler's use: all that `Node` is, which has the docstrings.

    `Node` stands above the services, so they know it by this alone.
    """

    node_id: NodeId
    limits: Limits
    spawn: Spawner
    send: Sender
    monotonic: Callable[[], float]
    names: Names
    groups: Groups

    def pid(self, name: str, group: str | None = None) -> Pid:
        """See `Node.pid`."""

    def stop(self, pid: Pid) -> None:
        """See `Node.stop`."""

    def send_wait(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
        timeout: float | None = None,
    ) -> None:
        """See `Node.send_wait`."""

    def send_wait_async(
        self,
        to: Pid,
        msg: Any,
        *,
        sender: Pid | None = None,
        correlation_id: CorrelationId | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def call(self, pid: Pid, msg: Request[Replied], timeout: float = 5.0) -> Replied: ...
    @overload
    def call(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Any: ...

    @overload
    def call_async(
        self, pid: Pid, msg: Request[Replied], timeout: float = 5.0
    ) -> Coroutine[Any, Any, Replied]: ...
    @overload
    def call_async(self, pid: Pid, msg: Any, timeout: float = 5.0) -> Coroutine[Any, Any, Any]: ...

    def mailbox(
        self,
        name: str | None = None,
        group: str | None = None,
        *,
        envelopes_max: int | None = None,
    ) -> Mailbox:
        """See `Node.mailbox`."""

    def register_service(
        self,
        handler: ServiceHandler | Callable[[], ServiceHandler],
        name: str,
        *,
        group: str | None = None,
        on_crash: OnCrash = "stop",
    ) -> Service:
        """See `Node.register_service`."""

    def subscribe_dead_letters(self, pid: Pid, wanted: bool = True) -> None:
        """See `Node.subscribe_dead_letters`."""

    @overload
    def join(self, target: NodeId | str, *, wait: None = None) -> None: ...
    @overload
    def join(self, target: NodeId | str, *, wait: float) -> NodeId: ...
    def join(self, target: NodeId | str, *, wait: float | None = None) -> NodeId | None:
        """See `Node.join`."""

    async def join_async(self, target: NodeId | str, *, wait: float = 5.0) -> NodeId:
        """See `Node.join_async`."""
        ...

    def leave(self, node: NodeId | str | None = None) -> None:
        """See `Node.leave`."""

    def ban(self, node: NodeId | str | None, seconds: float, *, key: str | None = None) -> None:
        """See `Node.ban`."""

    def lift_ban(self, node: NodeId | str | None = None, *, key: str | None = None) -> None:
        """See `Node.lift_ban`."""

    def cluster_status(self) -> ClusterStatus:
        """See `Node.cluster_status`."""

    def subscribe_nodes(self, pid: Pid, wanted: bool = True) -> None:
        """See `Node.subscribe_nodes`."""

    def export(self, name: str, factory: Callable[..., Process]) -> None:
        """See `Node.export`."""

    def spawn_on(
        self,
        node_id: NodeId,
        exported: str,
        name: str,
        *args: Any,
        group: str | None = None,
        timeout: float = 5.0,
    ) -> Pid:
        """See `Node.spawn_on`."""

    async def spawn_on_async(
        self,
        node_id: NodeId,
        exported: str,
        name: str,
        *args: Any,
        group: str | None = None,
        timeout: float = 5.0,
    ) -> Pid:
        """See `Node.spawn_on_async`."""

    @property
    def status(self) -> str:
        """See `Node.status`."""

    @property
    def failure(self) -> str | None:
        """See `Node.failure`."""

    def executor_status(self) -> ExecutorStatus:
        """See `Node.executor_status`."""

    def metrics(self) -> Metrics:
        """See `Node.metrics`."""

    def processes(self) -> dict[Pid, int]:
        """See `Node.processes`."""

    def request_shutdown(self, timeout: float | None = None) -> None:
        """See `Node.request_shutdown`."""

    def shutdown(self, timeout: float | None = None) -> None:
        """See `Node.shutdown`."""

    async def shutdown_async(self, timeout: float | None = None) -> None:
        """See `Node.shutdown_async`."""


class Service:
    """A thread under a pid. Made by `Node.register_service`.

    `send`, `stop` and the attributes are for any thread; `register`, `modify` and `unregister`
    for the handler's methods.

    :ivar node: the `Node` that the service is registered at.
    :ivar pid: of the service.
    :ivar thread: in which the handler's methods run.
    """

    def __init__(
        self,
        runtime: LocalRuntime,
        node: ServiceNode,
        pid: Pid,
        inbox: Inbox,
        make_handler: Callable[[], ServiceHandler],
        on_crash: OnCrash,
        begun: Envelope | None = None,
    ) -> None:
        self._runtime = runtime
        self.node = node
        self.pid = pid
        #: What is said if its thread fails: made now, as there may be no memory then.
        self._failing = f"the thread of {pid}"
        self._inbox = inbox
        self._make_handler = make_handler
        self._on_crash = on_crash
        #: Sent when the handler's `init` has returned.
        self._announcement = begun
        self._restarts: list[float] = []
        self._selector: selectors.BaseSelector | None = None
        self._taken: collections.deque[Envelope] = collections.deque()
        self._stopping = False
        self._begun = False
        self._sleeps = False
        self._reason = DownReason("stopped", "")
        #: The number of the crash that ended the latest life, or is about to; 0: none did.
        self._crash = 0
        # Held until the thread has nothing more to do. The executor waits for this and not in
        # thread.join(), for threading's locks may be held by whoever a signal handler interrupted.
        self._serving = threading.Lock()
        self._serving.acquire()
        self.thread = threading.Thread(
            target=take_steps,
            args=(self._failed, self._run, self._let_go, self._hand_back, self._end_serving),
            name=f"rabble:{pid.node.name}:{pid.name}",
            daemon=False,
        )

    def send(self, to: Pid, msg: Any, *, correlation_id: CorrelationId | None = None) -> None:
        """Send with this service's pid as the sender.

        While the node drains its services are still heard; what comes later is a dead letter.

        :param to: whom to send it to.
        :param msg: the message, which must not be changed any more.
        :param correlation_id: the request it belongs to.
        :raises QueueFull: as `Node.send` does.
        :raises ForkedNode: in a forked child.
        """
        if to is None:
            raise TypeError("send: to must be a Pid, not None, which is nobody")
        self._runtime.post_from_service(Envelope(to, msg, self.pid, correlation_id))

    def send_wait(
        self,
        to: Pid,
        msg: Any,
        *,
        correlation_id: CorrelationId | None = None,
        timeout: float | None = None,
    ) -> None:
        """As `Node.send_wait`, with this service's pid as the sender. For the handler's methods.

        What waits when the node begins to end raises `NodeStopped`, and so does all that follows.
        """
        send_wait(self._runtime, envelope_of(to, msg, self.pid, correlation_id), timeout)

    @property
    def idle(self) -> bool:
        """Whether it sleeps, or has not begun, nothing waits for it, and it is not about to end."""
        return (self._sleeps or not self._begun) and not self._stopping and not len(self._inbox)

    def stop(self) -> None:
        """End the service after what it is doing now. Never blocks; idempotent."""
        self._runtime.check_owner()
        self._stopping = True
        self._inbox.signal()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Have `handle_notification` called when a file object is ready.

        :param fileobj: a file object with a `fileno`, or a descriptor; not registered yet.
        :param events: `selectors.EVENT_READ`, `selectors.EVENT_WRITE`, or both.
        :param data: comes back in the key.
        :returns: the key that `handle_notification` is given.
        :raises RuntimeError: outside of the handler's methods.
        :raises KeyError: if it is registered already.
        :raises ValueError: if `fileobj` or `events` cannot be used.
        """
        return self._poller().register(fileobj, events, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what a registered file object is polled for.

        The arguments, the result and the errors are those of `register`, but that `KeyError` says
        that it is not registered.
        """
        return self._poller().modify(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Stop polling a file object. To be called before it is closed.

        :param fileobj: as `register` was given it.
        :returns: its key.
        :raises RuntimeError: outside of the handler's methods.
        :raises KeyError: if it is not registered.
        """
        return self._poller().unregister(fileobj)

    def _poller(self) -> selectors.BaseSelector:
        if self._selector is None:
            raise RuntimeError(f"{self.pid}: only the handler's own methods may poll files")
        return self._selector

    def _run(self) -> bool:
        """All lives of the handler. True if a handler forked, and returned in the child."""
        self._begun = True
        while not self._stopping:
            failure = self._serve()
            if failure is None or self._runtime.executor.forked:
                break
            self._reason = DownReason("crashed", described(failure))
            del failure  # What it was raised from holds the handler's frames.
            if self._stopping or not self._may_restart():
                break
        # Then all that follows is the parent's.
        return self._runtime.executor.forked

    def _failed(self, error: BaseException) -> None:
        """Code of the runtime raised here: that is no crash of the handler."""
        self._stopping = True
        self._runtime.fail(self._failing, error)

    def _let_go(self) -> None:
        self._inbox.close()
        self._give_pid_back(self._reason)

    def _give_pid_back(self, reason: DownReason) -> None:
        # In this order: as long as it is there the node that ends is not quiet.
        self._runtime.discard(self.pid, self._inbox, reason, self._crash)
        self._runtime.services.pop(self, None)

    def _hand_back(self) -> None:
        self._taken.extend(self._inbox.take(len(self._inbox)))
        while self._taken:
            self._undelivered(self._taken.popleft())

    def _undelivered(self, envelope: Envelope) -> None:
        """What the service had in hand, or before it, when it ended."""
        if self._crash:
            reason, detail = DeadLetterReason.PROCESS_CRASHED, self._reason.detail
            self._runtime.undelivered(envelope, reason, detail, self._crash)
        else:
            self._runtime.undelivered(envelope)

    def _end_serving(self) -> None:
        if self._serving.locked():
            self._serving.release()

    def _wait_for_end(self) -> bool:
        """Wait, after `stop`, until the service has ended. For the end of the node.

        :returns: False if it had not begun and will not.
        """
        if self._begun:
            self._serving.acquire()
            self._serving.release()
        return self._begun

    def _may_restart(self) -> bool:
        if self._on_crash == "restart":
            now = self._runtime.clock()
            self._restarts = [t for t in self._restarts if now - t < RESTARTS_WITHIN_S]
            if len(self._restarts) < RESTARTS_MAX:
                self._restarts.append(now)
                return True
        if self._on_crash != "stop":
            self._runtime.request_shutdown()
        return False

    def _serve(self) -> BaseException | None:
        """One life of the handler. Returns what ended it, `None` if it was asked to stop."""
        handler = None
        self._crash = 0
        try:
            with selectors.DefaultSelector() as self._selector:
                self._selector.register(self._inbox, selectors.EVENT_READ)
                handler = self._make_handler()
                try:
                    self._emit(handler.init(self))
                    self._emit(self._announcement)
                    while not self._ends():
                        self._turn(handler, self._selector)
                finally:
                    if not self._runtime.executor.forked:
                        handler.close(self)
        except BaseException as error:
            self._crash = self._crash or self._runtime.executor.number_crash()
            self._runtime.reporter.report_crash(self.pid, error, self._crash)
            return BaseException.with_traceback(error, None)
        finally:
            self._selector = None
        return None

    def _ends(self) -> bool:
        """Asked to stop, or nothing is left in an inbox that nothing reaches any more.

        Or a handler forked, and returned in the child.
        """
        return (
            self._stopping
            or self._runtime.executor.forked
            or (self._inbox.closed and not self._taken and not len(self._inbox))
        )

    def _turn(self, handler: ServiceHandler, selector: selectors.BaseSelector) -> None:
        # Arming fails when there is something to take already: then only look, do not sleep.
        self._sleeps = not self._taken and self._inbox.arm() and not self._stopping
        ready = selector.select(None if self._sleeps else 0)
        self._sleeps = False
        for key, events in ready:
            if key.fileobj is not self._inbox:
                self._emit(handler.handle_notification(key, events, self))
        # What a crash leaves untaken is the next life's.
        self._taken.extend(self._inbox.take(ENVELOPES_PER_TURN - len(self._taken)))
        executor = self._runtime.executor
        while self._taken and not self._stopping and not executor.forked:
            taken = self._taken.popleft()
            envelope = self._runtime.received(taken)
            if envelope is None:
                continue
            try:
                output = handler.handle_envelope(envelope, self)
                if self._runtime.changes is not None:
                    output = gathered(output)
                    self._runtime.changes.check_unchanged_by(self.pid, taken)
                self._emit(output)
            except BaseException as error:
                # Before the handler is closed, which may take a while.
                self._crash = executor.number_crash()
                reason, detail = DeadLetterReason.PROCESS_CRASHED, described(error)
                self._runtime.undelivered(envelope, reason, detail, self._crash)
                raise

    def _emit(self, output: Output) -> None:
        if output is None:
            return
        for envelope in (output,) if isinstance(output, Envelope) else output:
            if not isinstance(envelope, Envelope):
                raise TypeError(
                    f"{self.pid}: a handler may return None, one Envelope or an iterable of "
                    f"Envelopes, not {bounded_repr(envelope, 200)}"
                )
            if envelope.sender is None:
                envelope = Envelope(envelope.to, envelope.msg, self.pid, envelope.correlation_id)
            self._runtime.post_from_service(envelope)


def is_owned(service: Service, pid: Pid, owner: Pid) -> bool:
    """Whether it is the service of that pid which was started for `owner`."""
    begun = service._announcement
    return service.pid == pid and begun is not None and begun.to == owner


def gathered(output: Output) -> Output:
    """All that a handler returns, of which none is sent yet: a generator runs to its end."""
    return output if output is None or isinstance(output, Envelope) else list(output)


def fullness(service: Service) -> float:
    """How much waits for a service, of what may: 0 to 1. For any thread."""
    inbox = service._inbox
    return min(len(inbox) / inbox.limit, 1.0)


def start_service(
    runtime: LocalRuntime,
    node: ServiceNode,
    handler: ServiceHandler | Callable[[], ServiceHandler],
    name: str,
    group: str | None,
    on_crash: OnCrash,
    begun: Envelope | None = None,
) -> Service:
    """See `Node.register_service`.

    :param node: the `Node`, for the handler's use.
    :param begun: what the service sends when its handler's `init` has returned.
    """
    runtime.check_usable()
    runtime.check_group(group)
    make_handler = checked_maker(handler, on_crash)
    inbox = Inbox(runtime.limits.service_inbox_envelopes_max)
    pid = Pid(name, runtime.node_id, group)
    service = Service(runtime, node, pid, inbox, make_handler, on_crash, begun)
    current = threading.get_ident()
    try:
        runtime.services[service] = service._wait_for_end
        if not runtime.executor.add_inbox(pid, inbox):
            runtime.refuse(pid)
        runtime.in_threading.add(current)
        service.thread.start()
        runtime.in_threading.discard(current)
        if runtime.ending:
            # It began too late to be joined with the others, and ends at once.
            service.thread.join()
        return service
    except BaseException:
        runtime.in_threading.discard(current)
        # If its thread began all the same, that ends at once.
        service.stop()
        inbox.close()
        service._give_pid_back(DownReason("crashed", "its thread did not start"))
        for envelope in inbox.take(len(inbox)):
            runtime.undelivered(envelope)
        raise


def checked_maker(
    handler: ServiceHandler | Callable[[], ServiceHandler], on_crash: OnCrash
) -> Callable[[], ServiceHandler]:
    """What makes the handler of each life; raises what `Node.register_service` does."""
    if on_crash not in ("stop", "restart", "shutdown"):
        raise ValueError(
            f"on_crash must be stop, restart or shutdown, not {argument_text(on_crash)}"
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
        raise TypeError(f"register_service takes a ServiceHandler, not {argument_text(handler)}")
    return make_handler
