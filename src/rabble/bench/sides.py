"""The operating-system processes that the remote benchmarks are about: this one, and others.

A case keeps its nodes for all of its runs, as a service keeps them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rabble._core.ids import NodeId, Pid
from rabble.bench.alone import COMMAND
from rabble.bench.messaging import PATIENCE_S
from rabble.bench.model import expect
from rabble.bench.remote_side import KEYED
from rabble.bench.typed import REGISTRY
from rabble.cluster.config import Mesh
from rabble.messages import NodeUp
from rabble.node import rouse
from rabble.process import Process

__all__ = ["RAW_SIDE", "MeshOfSides", "Pair", "Side"]

REMOTE_SIDE = "rabble.bench.remote_side"
RAW_SIDE = str(Path(__file__).with_name("raw_side.py"))


class Side:
    """Another operating-system process."""

    def __init__(
        self,
        *arguments: object,
        module: str = REMOTE_SIDE,
        file: str = "",
        command: Sequence[str] = (),
        program: Sequence[str] = (),
    ) -> None:
        """`module`: whose `main` is given the arguments, the role first. `file`: a program in its
        place, without rabble, whose import takes longer than such a run. `command`: what runs the
        interpreter, a tool with its options. `program`: what is run in place of all that."""
        python = [*command, sys.executable, *([file] if file else ["-c", COMMAND, module])]
        self._process = subprocess.Popen(
            [*(program or python), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def read(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the other process ended with status {self._process.wait()}")
        return line.strip()

    def expect(self, word: str) -> None:
        """Read a line that has to say this."""
        heard = self.read()
        if heard != word:
            raise RuntimeError(f"the other process said {heard!r} and not {word!r}")

    def write(self, line: str) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Pair(contextlib.AbstractContextManager["Pair"]):
    """This process's node, a mailbox on it, and another process's node, connected."""

    def __init__(
        self, spin_us: int = 50, command: Sequence[str] = (), authenticated: bool = False
    ) -> None:
        """`command`: what runs the interpreter of the other one, a tool with its options.
        `authenticated`: with a key, and a stream that is verified as between two machines."""
        self._spin_us = spin_us
        self._command = command
        self._mesh = KEYED if authenticated else Mesh()
        self._spawned = 0
        self._stack = contextlib.ExitStack()
        #: How many messages the other side's counter was sent so far.
        self.counted = 0

    def __enter__(self) -> Pair:
        with contextlib.ExitStack() as stack:
            self._side = side = stack.enter_context(
                Side(
                    "node",
                    self._spin_us,
                    *(["authenticated"] if self._mesh is KEYED else []),
                    command=self._command,
                )
            )
            self._node = stack.enter_context(
                rouse("main@127.0.0.1:0", mesh=self._mesh, spin_us=self._spin_us, registry=REGISTRY)
            )
            self.main = stack.enter_context(self._node.mailbox())
            self.other = NodeId.parse(side.read())
            self._node.subscribe_nodes(self.main.pid)
            self._node.join(self.other)
            while not isinstance(self.receive(), NodeUp):
                pass
            self._node.subscribe_nodes(self.main.pid, False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, process: Process, message: Any = "go") -> None:
        """Spawn a process here and send it its first message."""
        self._spawned += 1
        self._node.send(self._node.spawn(process, f"run-{self._spawned}"), message)

    def there(self, name: str) -> Pid:
        """The pid of the other side's process of that name."""
        return Pid(name, self.other)

    def mark(self) -> None:
        """Have the other side mark where it is, for a tool that counts."""
        self._side.write("mark")
        self._side.read()

    def receive(self) -> Any:
        """The next message to the mailbox."""
        return self.main.receive(PATIENCE_S).msg


class MeshOfSides(contextlib.AbstractContextManager["MeshOfSides"]):
    """So many nodes, each in a process of its own, all of them connected."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> MeshOfSides:
        with contextlib.ExitStack() as stack:
            self._sides = [
                stack.enter_context(Side("mesh", f"n{number}")) for number in range(self._nodes)
            ]
            ids = [side.read() for side in self._sides]
            for own, side in zip(ids, self._sides, strict=True):
                side.write(json.dumps([other for other in ids if other != own]))
            self._expect("up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def exchange(self, messages: int) -> tuple[int, float]:
        """Each pair sends so many each way: how many were counted; seconds of the slowest node."""
        for side in self._sides:
            side.write(str(messages))
        self._expect("set")
        for side in self._sides:
            side.write("go")
        done = [json.loads(side.read()) for side in self._sides]
        counted = sum(count for count, _ in done)
        expect("mesh", counted, self._nodes * (self._nodes - 1) * messages)
        return counted, max(seconds for _, seconds in done)

    def _expect(self, word: str) -> None:
        for side in self._sides:
            side.expect(word)
