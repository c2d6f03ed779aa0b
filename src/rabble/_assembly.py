"""How the parts of a node are made and started: threads, executor, its side of the mesh."""

from __future__ import annotations

import functools
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rabble import messages
from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.executor import Executor
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble._core.poller import Poller
from rabble._core.system_messages import SystemMessages
from rabble._core.texts import given
from rabble._runtime import LocalRuntime
from rabble._shutdown import Teardown, end_at_exit, interpreter_ends
from rabble.cluster.config import Mesh, guest_id
from rabble.cluster.directory_service import DirectoryService
from rabble.cluster.remote_spawn import Exports
from rabble.cluster.runtime import NodeRuntime
from rabble.cluster.server import ClusterServer
from rabble.errors import NodeStopped
from rabble.hooks import Hooks
from rabble.limits import Limits
from rabble.process import Process
from rabble.registry import MessageRegistry
from rabble.reports import Reporter
from rabble.services.canary import CanaryPerch
from rabble.services.mailbox import Mailboxes
from rabble.services.owned import OwnedServices
from rabble.services.service import ServiceNode
from rabble.steps import take_steps
from rabble.strict import Changes, Strict
from rabble.texts import argument_text
from rabble.watchdog import Watchdog

__all__ = [
    "check_options",
    "checked_node_id",
    "join_mesh",
    "make_directory",
    "make_executor",
    "make_exports",
    "make_threads",
    "start_threads",
]

SPIN_US_MAX = 1_000_000


def check_options(limits: Any, registry: Any, mesh: Any) -> None:
    """Raise the `TypeError` of `rouse`, where one of these is of another type; each may be None."""
    for name, value, cls in (
        ("limits", limits, Limits),
        ("registry", registry, MessageRegistry),
        ("mesh", mesh, Mesh),
    ):
        if value is not None and not isinstance(value, cls):
            raise TypeError(
                f"rouse: {name} must be a {cls.__name__} or None, not {given(value)}; "
                f"write {name}=rabble.{cls.__name__}(...)"
            )


def checked_node_id(node_id: NodeId | str | None, mesh: Mesh | None = None) -> NodeId:
    """The id of a node to be roused. Raises what `rouse` does."""
    is_guest = mesh is not None and mesh.guest
    if node_id is None:
        node_id = "guest" if is_guest else "local@127.0.0.1:0"
    if is_guest and mesh is not None and isinstance(node_id, NodeId | str):
        return guest_id(node_id, mesh)
    if isinstance(node_id, str):
        return NodeId.parse(node_id)
    if not isinstance(node_id, NodeId):
        raise TypeError(f"node_id must be a NodeId or its text, not {argument_text(node_id)}")
    return node_id


def make_threads(runtime: LocalRuntime, teardown: Teardown, mailboxes: Mailboxes) -> None:
    """Make the threads of the executor and of the reporter; they are not started."""
    name = runtime.node_id.name
    runtime.thread = threading.Thread(
        target=take_steps,
        args=(functools.partial(runtime.fail, "the executor"), *teardown.steps()),
        name=f"rabble:{name}:executor",
        daemon=False,
    )
    runtime.reporter = Reporter(
        f"rabble:{name}:reports",
        per_second=runtime.limits.log_reports_per_second_max,
        waiting=runtime.limits.log_reports_waiting_max,
        watch=functools.partial(watch, runtime, mailboxes),
        failed=functools.partial(runtime.fail, "the reporter"),
        clock=runtime.clock,
    )


def watch(runtime: LocalRuntime, mailboxes: Mailboxes, reporter: Reporter) -> None:
    """What the reporter's thread looks after a few times a second."""
    runtime.watchdog.look(reporter)
    mailboxes.close_dropped()
    if runtime.failure is not None:
        runtime.executor.interrupt()


def make_executor(
    runtime: LocalRuntime,
    registry: MessageRegistry,
    *,
    strict: bool | Literal["changes"],
    spin_us: int,
    seed: int,
    hooks: Hooks | None = None,
    clock_ns: Callable[[], int] | None = None,
) -> None:
    """Make the executor. See `rouse` for the arguments, and for what is raised.

    :param hooks: what it tells and asks of; `None` is a node's.
    :param clock_ns: monotonic nanoseconds; `None` is the kernel's.
    """
    if type(strict) is not bool and not (type(strict) is str and strict == "changes"):
        raise ValueError(f"strict must be False, True or 'changes', not {given(strict)}")
    if type(spin_us) is not int or not 0 <= spin_us <= SPIN_US_MAX:
        raise ValueError(
            f"spin_us must be 0 to {SPIN_US_MAX:,} microseconds, not {argument_text(spin_us)}"
        )
    limits = runtime.limits
    runtime.registry = registry
    codec = (
        Codec(
            registry,
            message_bytes_max=limits.message_bytes_max,
            depth_max=limits.message_depth_max,
            elements_max=limits.message_elements_max,
            decoded_bytes_max=limits.message_decoded_bytes_max,
        )
        if strict is not False
        else None
    )
    mode = None if codec is None else Strict(codec)
    if codec is not None and strict == "changes":
        report = runtime.reporter.report
        mode = runtime.changes = Changes(codec, lambda words: report(logging.ERROR, words))
    runtime.executor = Executor(
        runtime.node_id,
        Process,
        hooks or Hooks(runtime),
        inbox_max=limits.inbox_envelopes_max,
        spin_us=spin_us if len(os.sched_getaffinity(0)) > 1 else 0,
        strict=mode,
        local_classes=messages.LOCAL_CLASSES,
        seed=seed,
        clock=clock_ns,
        asks_max=limits.asks_max,
    )
    SystemMessages(runtime.executor)
    runtime.send = runtime.executor.send
    deliver: Callable[[Envelope], None] = runtime.calls.deliver
    if runtime.changes is not None:
        runtime.changes.executor = runtime.executor
        runtime.send = runtime.changes.send
        deliver = runtime.changes.callback(deliver, answers=True)
    runtime.executor.add_calls(runtime.calls.requests, deliver)
    runtime.calls.undeliverable = runtime.executor.undeliverable
    runtime.calls.idle = runtime.executor.idle
    sends = runtime.executor if runtime.changes is None else runtime.changes
    runtime.call_async = functools.partial(runtime.calls.call_async, sends)
    runtime.watchdog = Watchdog(
        runtime.executor,
        runtime.thread,
        report_after_s=limits.receive_report_after_ms / 1000,
        stalled_after_s=limits.stalled_after_ms / 1000,
        clock=runtime.clock,
    )


def join_mesh(
    runtime: LocalRuntime,
    registry: MessageRegistry,
    mesh: Mesh,
    listeners: Sequence[socket.socket],
) -> None:
    """Make the cluster server, which is not started, and let the executor reach other nodes.

    :raises KeyFileError: if the mesh's key or certificates cannot be used.
    """
    limits = runtime.limits
    poller = Poller(
        heartbeat_ms=limits.heartbeat_ms,
        frame_bytes_max=limits.frame_bytes_max,
        queue_bytes_max=limits.peer_queue_bytes_max,
        partial_ms_max=limits.frame_partial_ms_max,
    )
    runtime.executor.join_mesh(poller, limits.peer_monitors_max)
    runtime.poller = poller
    runtime.cluster = ClusterServer(
        runtime.node_id,
        mesh,
        listeners,
        poller,
        NodeRuntime(runtime.executor, runtime.reporter, registry, limits, runtime.fail),
        limits=limits,
        clock=runtime.clock,
        rng=random.Random(secrets.randbits(64)),
        token_bytes=secrets.token_bytes,
    )


def make_exports(runtime: LocalRuntime, node: ServiceNode) -> Exports:
    """Make the pids that other nodes ask for a process, supervisors for a service, and gates.

    :param node: the `Node`, for the use of what handles these.
    """
    exports = Exports(runtime.executor, runtime.reporter, runtime.limits.exports_max)
    deliver: Callable[[Envelope], None] = exports.deliver
    if runtime.changes is not None:
        deliver = runtime.changes.callback(deliver, answers=False)
    runtime.executor.add_callback(exports.pid, deliver)
    services = OwnedServices(runtime, node)
    deliver = services.deliver
    if runtime.changes is not None:
        deliver = runtime.changes.callback(deliver, answers=False)
    runtime.executor.add_callback(services.pid, deliver)
    perch = CanaryPerch(runtime)
    deliver = perch.deliver
    if runtime.changes is not None:
        deliver = runtime.changes.callback(deliver, answers=False)
    runtime.executor.add_callback(perch.pid, deliver)
    return exports


def make_directory(runtime: LocalRuntime) -> None:
    """Make the pid that knows the names and groups. Behind `join_mesh`."""
    service = DirectoryService(
        runtime.executor,
        runtime.reporter,
        runtime.limits,
        runtime.clock,
        time.time,
        guest=runtime.cluster is not None and is_guest(runtime.node_id),
    )
    deliver: Callable[[Envelope], None] = service.deliver
    if runtime.changes is not None:
        deliver = runtime.changes.callback(deliver, answers=False)
    runtime.executor.add_callback(service.pid, deliver)
    if runtime.cluster is not None:
        service.follow_nodes()


def start_threads(runtime: LocalRuntime, teardown: Teardown) -> None:
    """Start all threads that a node begins with, and have it ended with the interpreter.

    :raises NodeStopped: if the interpreter ends already.
    """
    end_at_exit(teardown)
    if interpreter_ends():
        raise NodeStopped("the interpreter ends, and would wait for a new node for ever")
    runtime.reporter.thread.start()
    runtime.thread.start()
    if runtime.cluster is not None:
        runtime.cluster.start()
