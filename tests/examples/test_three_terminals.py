"""The README's three terminals, word for word but for the ports, which others may have."""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, held_ports

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = ("4001", "4002", "4003")


class Terminal:
    """A command, and the lines that it prints."""

    def __init__(self, command: str) -> None:
        words = shlex.split(command)
        assert words[0] == "rabble"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rabble.cli", *words[1:]],
            cwd=ROOT / "examples",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for a line that has this, behind those that were waited for before."""
        return self.expect_all(pattern)[0]

    def expect_all(self, *patterns: str) -> list[re.Match[str]]:
        """The same of several lines, in whatever order they come."""
        end = time.monotonic() + PATIENCE_S
        found: dict[str, re.Match[str]] = {}
        while True:
            try:
                line = self._lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                missing = [pattern for pattern in patterns if pattern not in found]
                raise AssertionError(f"no {missing} in {''.join(self._seen)}") from None
            self._seen.append(line)
            for pattern in patterns:
                match = re.search(pattern, line)
                if match is not None:
                    found.setdefault(pattern, match)
            if len(found) == len(patterns):
                return [found[pattern] for pattern in patterns]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def ports() -> Iterator[list[str]]:
    with held_ports(3) as held:
        yield list(map(str, held))


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_three_terminals_of_the_readme(terminals: list[Terminal], ports: list[str]) -> None:
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^ {4}(rabble node .*)$", text, flags=re.M)
    assert len(commands) == 3
    assert [command.count("--join") for command in commands] == [0, 0, 1]
    for old, new in zip(PORTS, ports, strict=True):
        commands = [command.replace(old, new) for command in commands]
    for command in commands:
        terminals.append(Terminal(command))
    a, b, c = terminals
    ready = r"ready c@127\.0\.0\.1:\d+ incarnation (\d+)"
    up = r"up {}@127\.0\.0\.1:\d+ incarnation \d+"
    # Who is ready may know the others already, as what says so are two threads.
    first = c.expect_all(ready, up.format("a"), up.format("b"))[0][1]
    for one, others in ((a, "bc"), (b, "ac")):
        one.expect_all(*(up.format(other) for other in others))
    before = int(c.expect(r"c: the total is (\d+)")[1])

    c.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for one in (a, b):
        one.expect(rf"down c@127\.0\.0\.1:{ports[2]} incarnation {first}")
    assert time.monotonic() - killed < 8

    again = Terminal(commands[2])
    terminals.append(again)
    later = again.expect(r"ready c@127\.0\.0\.1:\d+ incarnation (\d+)")[1]
    assert int(later) > int(first)
    for one in (a, b):
        one.expect(rf"up c@127\.0\.0\.1:{ports[2]} incarnation {later}")
    assert int(again.expect(r"c: the total is (\d+)")[1]) > before

    for one in (a, b, again):
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE_S) == 0
