"""The README's three terminals, word for word but for the ports, which others may have."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Program
from tests.support import PATIENCE_S, held_ports

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = ("4001", "4002", "4003")


@pytest.fixture
def ports() -> Iterator[list[str]]:
    with held_ports(3) as held:
        yield list(map(str, held))


def opened(command: str) -> Program:
    """A terminal in which somebody types the command."""
    words = shlex.split(command)
    assert words[0] == "rabble"
    return Program([sys.executable, "-m", "rabble.cli", *words[1:]], cwd=ROOT / "examples")


@pytest.fixture
def terminals() -> Iterator[list[Program]]:
    those: list[Program] = []
    yield those
    for terminal in those:
        terminal.close()


def test_three_terminals_of_the_readme(terminals: list[Program], ports: list[str]) -> None:
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^ {4}(rabble node .*)$", text, flags=re.M)
    assert len(commands) == 3
    assert [command.count("--join") for command in commands] == [0, 0, 1]
    for old, new in zip(PORTS, ports, strict=True):
        commands = [command.replace(old, new) for command in commands]
    for command in commands:
        terminals.append(opened(command))
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

    again = opened(commands[2])
    terminals.append(again)
    later = again.expect(r"ready c@127\.0\.0\.1:\d+ incarnation (\d+)")[1]
    assert int(later) > int(first)
    for one in (a, b):
        one.expect(rf"up c@127\.0\.0\.1:{ports[2]} incarnation {later}")
    assert int(again.expect(r"c: the total is (\d+)")[1]) > before

    for one in (a, b, again):
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE_S) == 0
