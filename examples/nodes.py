"""Starts nodes in operating-system processes of their own, for the examples of the mesh."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rabble import NodeId

PATIENCE_S = 60.0


class NodeProcess:
    """A `rabble node` in a process of its own. A context manager, which ends it.

    :param node_id: `name@host:port`; port 0 takes a free one.
    :param app: `module:function`, of a module beside this one.
    """

    def __init__(self, node_id: NodeId | str, app: str) -> None:
        command = [sys.executable, "-m", "rabble.cli", "node", str(node_id), "--app", app]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        #: The last word of what the application said last, before the node was ready: where its
        #: server is, if it has one and says so.
        self.address = ""
        words = self.process.stdout.readline().split()
        while words and words[0] != "ready":
            self.address = words[-1]
            words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{node_id} did not start")
        # "ready NAME@HOST:PORT incarnation N"
        self.node_id = NodeId.parse(words[1])
        self.incarnation = int(words[3])

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """End it in order: it says goodbye to the others."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE_S)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.end()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so; for what nobody tells."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s: {true.__doc__ or true.__name__}")
        time.sleep(0.01)
