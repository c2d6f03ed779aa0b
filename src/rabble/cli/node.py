"""`rabble node`: a node in an operating-system process of its own."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from rabble._core.envelope import Envelope
from rabble.cli.node_settings import Settings, SettingsError, add_arguments, settings_of
from rabble.cli.status import FAILED, USAGE_ERROR
from rabble.errors import RabbleError, ShutdownTimeout
from rabble.messages import NodeDown, NodeStalled, NodeUp, Removed
from rabble.node import Node, rouse
from rabble.services import Service, ServiceHandler

__all__ = ["add_command", "run"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble node` understands."""
    add_arguments(commands.add_parser("node", help="run a node of a mesh"))


def run(options: argparse.Namespace) -> int:
    """Run a node until it is told to end. To be called in the main thread.

    SIGTERM and SIGINT end it in order: the application's end is called, what waits is delivered,
    peers are told. A second one ends the process at once, with exit status 1.

    :returns: the exit status: 0 after an orderly end, 1 if something failed, 2 if the arguments, or
        a file that they name, cannot be used.
    """
    with Signals() as signals:
        try:
            settings = settings_of(options)
            logging.basicConfig(
                level=settings.log_level.upper(),
                format="%(asctime)s %(levelname)s %(message)s",
                stream=sys.stderr,
            )
            if sys.stderr is not None:
                faulthandler.enable()
            app = None if settings.app is None else find_app(settings.app)
            node = rouse(settings.node, limits=settings.limits, mesh=settings.mesh)
        except (ValueError, OSError) as error:
            # A ValueError of the application's module has not come this way: see `find_app`.
            print(f"rabble node: {error}", file=sys.stderr)
            return USAGE_ERROR if isinstance(error, ValueError) else FAILED
        except AppError:
            traceback.print_exc()
            return FAILED
        return live(node, app, settings, signals)


def live(
    node: Node, app: Callable[[Node], Any] | None, settings: Settings, signals: Signals
) -> int:
    """The life of a node, from its application's begin to its end. Returns the exit status."""
    status = 0
    try:
        with contextlib.ExitStack() as at_end:
            if app is not None:
                enter(at_end, app(node))
            if settings.log_level in ("debug", "info"):
                log = node.register_service(NodeLog(), "rabble-node-log")
                node.subscribe_nodes(log.pid)
            for addr in settings.join:
                node.join(addr)
            if settings.seed_file is not None:
                node._mesh_side().watch_seed_file(settings.seed_file)
            if not signals.count:
                incarnation = node.cluster_status().incarnation
                print_line(f"ready {node.node_id} incarnation {incarnation}")
                notify("READY=1")
            signals.wait(node)
            notify("STOPPING=1")
    except BaseException:
        traceback.print_exc()
        status = FAILED
    try:
        node.shutdown()
    except ShutdownTimeout as error:
        complain(node.failure)
        complain(str(error))
        # Otherwise the interpreter would wait for the thread that does not end.
        os._exit(FAILED)
    complain(node.failure)
    return FAILED if node.failure is not None else status


def complain(what: str | None) -> None:
    """Say what is wrong, if anything is and somebody still listens."""
    if what is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(f"rabble node: {what}", file=sys.stderr, flush=True)


class AppError(RabbleError):
    """The application's module raised; its cause is what."""


def find_app(named: str) -> Callable[[Node], Any]:
    """The function that `module:function` names.

    :raises SettingsError: if there is none.
    :raises AppError: if importing the module raised.
    """
    module_name, colon, path = named.partition(":")
    if not colon or not module_name or not path:
        raise SettingsError(f"--app {named}: write it as MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise SettingsError(f"--app {named}: there is no module {error.name}") from None
        raise AppError(f"--app {named}: importing {module_name} raised") from error
    except Exception as error:
        raise AppError(f"--app {named}: importing {module_name} raised") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise SettingsError(f"--app {named}: {module_name} has no function {path}")
    function: Callable[[Node], Any] = found
    return function


def enter(at_end: contextlib.ExitStack, returned: Any) -> None:
    """Take what the application returned, which knows what is to be done at the end."""
    if returned is None:
        return
    if hasattr(returned, "__enter__") and hasattr(returned, "__exit__"):
        at_end.enter_context(returned)
    elif callable(returned):
        at_end.callback(returned)
    else:
        raise TypeError(
            f"--app may return None, a function to call at the end, or a context manager, "
            f"not {returned!r}"
        )


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
    """

    def __init__(self) -> None:
        self.count = 0
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
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, node: Node) -> None:
        """Wait for a signal, the end of the node, or a failure, which may keep it from ending."""
        ended: Any = node._runtime.ended
        while not self.count and not ended.closed and node.failure is None:
            select.select([self._read_end, ended], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(self._read_end, 4096)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            with contextlib.suppress(OSError):
                os.write(2, b"rabble node: told to end a second time: not waiting\n")
            os._exit(FAILED)


def print_line(line: str) -> None:
    """Print a line for whoever started the node, if that still listens."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # In one piece: the application's threads may print, too.
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


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
