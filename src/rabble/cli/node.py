"""`rabble node`: a node in an operating-system process of its own."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId
from rabble.cli.application import AppError, Application
from rabble.cli.logs import logged
from rabble.cli.node_settings import Settings, add_arguments, settings_of
from rabble.cli.output import OutputError, complain, discard_unwritten, print_line
from rabble.cli.status import FAILED, USAGE_ERROR
from rabble.errors import NodeStopped, ShutdownTimeout
from rabble.messages import NodeDown, NodeStalled, NodeUp, Removed
from rabble.node import Node, rouse
from rabble.services import Service, ServiceHandler

__all__ = ["add_command", "run"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds in which a second signal is the first one once more: `timeout`, and shells in containers,
#: send one to a process and then to its whole group.
SAME_SIGNAL_S = 1.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble node` understands."""
    add_arguments(commands.add_parser("node", help="run a node of a mesh"))


def run(options: argparse.Namespace) -> int:
    """Run a node until it is told to end. To be called in the main thread.

    SIGTERM and SIGINT end it in order: the application's end is called, what waits is delivered,
    peers are told. A second one ends the process at once, with exit status 1.

    :returns: the exit status: 0 after an orderly end, 1 if something failed, 2 if the arguments, or
        a file that they name, cannot be used; what the application's SystemExit says.
    """
    with (
        Signals(getattr(options, "ends_process", False)) as signals,
        contextlib.ExitStack() as stack,
    ):
        try:
            settings = settings_of(options)
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                # Not where standard error is none, or no file.
                faulthandler.enable()
            app = None
            if settings.app is not None:
                with signals.waiting_for(f"importing {settings.app}"):
                    app = Application(settings.app)
            stack.enter_context(logged(settings.log_level))
            node = rouse(settings.node, limits=settings.limits, mesh=settings.mesh)
        except AppError as error:
            return error.show()
        except socket.gaierror as error:
            listening = settings.mesh.bind or NodeId.parse(str(settings.node)).addr
            complain(f"rabble node: cannot listen on {listening}: the host: {error.strerror}")
            return FAILED
        except (ValueError, OSError, RuntimeError) as error:
            # None of the application's has come this way: those are the causes of an AppError.
            complain(f"rabble node: {error}")
            return USAGE_ERROR if isinstance(error, ValueError) else FAILED
        status = live(node, app, settings, signals)
        discard_unwritten()
        return status


def live(node: Node, app: Application | None, settings: Settings, signals: Signals) -> int:
    """The life of a node, from its application's begin to its end. Returns the exit status."""
    status = 0
    try:
        with contextlib.ExitStack() as at_end:
            if app is not None:
                with signals.waiting_for(app.named):
                    at_end.enter_context(app.begin(node))
            if settings.log_level in ("debug", "info"):
                log = node.register_service(NodeLog(), "rabble-node-log")
                node.subscribe_nodes(log.pid)
            for addr in settings.join:
                node.join(addr)
            if settings.seed_file is not None:
                node._runtime.mesh_side().watch_seed_file(settings.seed_file)
            if not signals.count:
                incarnation = node.cluster_status().incarnation
                # Who started it and listens no more does not end it.
                with contextlib.suppress(OutputError):
                    print_line(f"ready {node.node_id} incarnation {incarnation}")
                notify("READY=1")
            signals.wait(node)
            notify("STOPPING=1")
    except AppError as error:
        status = error.show()
    except NodeStopped:
        # The application ended its node at once. What else may have, is said below.
        pass
    except BaseException:
        complain(traceback.format_exc())
        status = FAILED
    try:
        node.shutdown()
    except ShutdownTimeout as error:
        for what in (node.failure, error):
            if what is not None:
                complain(f"rabble node: {what}")
        # Otherwise the interpreter would wait for the thread that does not end.
        os._exit(FAILED)
    if node.failure is not None:
        complain(f"rabble node: {node.failure}")
        return FAILED
    return status


class NodeLog(ServiceHandler):
    """Logs nodes that come and go."""

    def handle_envelope(self, envelope: Envelope, service: Service) -> None:
        match envelope.msg:
            case NodeUp(node, incarnation):
                text = f"up {node} incarnation {incarnation}"
            case NodeDown(node, incarnation, reason):
                text = f"down {node} incarnation {incarnation}: {reason}"
            case NodeStalled(node, stalled):
                text = f"{'stalled' if stalled else 'recovered'} {node}"
            case Removed():
                text = "removed from the cluster"
            case _:
                return
        logging.getLogger("rabble").info("%s", text)


class Signals:
    """Counts the signals that ask for the end. A context manager, for the main thread.

    The first one is waited for; after the second one nothing is.

    :param ends_process: whether nothing but the end of the process follows.
    """

    def __init__(self, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self.count = 0
        self._first_at = 0.0
        self._waiting_for: str | None = None
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Signals:
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # One that came just before its handler is changed would be noticed just after, and reported
        # as ignored. Blocked, it comes to the new handler.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number, handler in self._before.items():
            if (
                self._ends_process
                and self.count
                and handler in (signal.SIG_DFL, signal.default_int_handler)
            ):
                # The one that comes twice may come the second time when all is done, and would
                # take the place of the exit status.
                handler = signal.SIG_IGN
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, node: Node) -> None:
        """Wait for a signal, the end of the node, or a failure, which may keep it from ending."""
        ended: Any = node._runtime.ended
        # `select.select` takes no descriptor beyond 1,023, and an application may hold many.
        ready = select.poll()
        ready.register(self._read_end, select.POLLIN)
        ready.register(ended, select.POLLIN)
        while not self.count and not ended.closed and node.failure is None:
            ready.poll()
            with contextlib.suppress(BlockingIOError):
                os.read(self._read_end, 4096)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """While the application runs in this thread, a signal can but wait until it returns."""
        self._waiting_for = what
        try:
            yield
        finally:
            self._waiting_for = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.count and now - self._first_at < SAME_SIGNAL_S:
            return
        self.count += 1
        if self.count > 1:
            complain("rabble node: told to end a second time: not waiting", within_s=0.0)
            os._exit(FAILED)
        self._first_at = now
        if self._waiting_for is not None:
            complain(
                f"rabble node: told to end, and waiting for {self._waiting_for} to return; a "
                "second signal ends it at once",
                within_s=0.0,
            )


def notify(state: str) -> None:
    """Tell systemd, if it is what started this (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    with contextlib.suppress(OSError):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(path)
            sock.sendall(state.encode())
