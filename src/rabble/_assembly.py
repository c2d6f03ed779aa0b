"""How the parts of a node are put together: its threads, its executor, its side of the mesh."""

from __future__ import annotations

import functools
import os
import random
import secrets
import socket
import threading
from collections.abc import Callable, Sequence

from rabble import messages
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble._core.poller import Poller
from rabble._core.system_messages import SystemMessages
from rabble._runtime import LocalRuntime
from rabble._shutdown import Teardown
from rabble.cluster.config import Mesh
from rabble.cluster.runtime import NodeRuntime
from rabble.cluster.server import ClusterServer
from rabble.hooks import Hooks
from rabble.process import Process
from rabble.registry import MessageRegistry
from rabble.reports import Reporter
from rabble.steps import take_steps
from rabble.watchdog import Watchdog

__all__ = ["join_mesh", "make_executor", "make_threads"]


def make_threads(
    runtime: LocalRuntime, teardown: Teardown, watch: Callable[[Reporter], None]
) -> None:
    """Make the threads of the executor and of the reporter; they are not started.

    :param watch: called a few times a second in the reporter's thread.
    """
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
        watch=watch,
        failed=functools.partial(runtime.fail, "the reporter"),
        clock=runtime.clock,
    )


def make_executor(
    runtime: LocalRuntime, registry: MessageRegistry, *, strict: bool, spin_us: int, seed: int
) -> None:
    """Make the executor. See `rouse` for the arguments."""
    limits = runtime.limits
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
    runtime.executor = Executor(
        runtime.node_id,
        messages,
        Process,
        Hooks(runtime),
        inbox_max=limits.inbox_envelopes_max,
        spin_us=spin_us if len(os.sched_getaffinity(0)) > 1 else 0,
        codec=codec,
        seed=seed,
    )
    SystemMessages(runtime.executor)
    runtime.executor.add_callback(runtime.calls.pid, runtime.calls.deliver)
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
    key: bytes | None,
    listeners: Sequence[socket.socket],
) -> None:
    """Make the cluster server, which is not started, and let the executor reach other nodes."""
    limits = runtime.limits
    poller = Poller(
        heartbeat_ms=limits.heartbeat_ms,
        frame_bytes_max=limits.frame_bytes_max,
        queue_bytes_max=limits.peer_queue_bytes_max,
        partial_ms_max=limits.frame_partial_ms_max,
    )
    runtime.executor.join_mesh(poller, limits.peer_watches_max)
    runtime.cluster = ClusterServer(
        runtime.node_id,
        mesh,
        key,
        listeners,
        poller,
        NodeRuntime(runtime.executor, runtime.reporter, registry, limits, runtime.fail),
        limits=limits,
        clock=runtime.clock,
        rng=random.Random(secrets.randbits(64)),
        token_bytes=secrets.token_bytes,
    )
