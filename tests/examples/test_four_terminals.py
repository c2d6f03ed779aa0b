"""The four terminals of docs/examples.md, word for word but for the ports, which may be taken."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Program
from tests.support import PATIENCE_S, held_ports

ROOT = Path(__file__).resolve().parent.parent.parent
SECTION = (
    (ROOT / "docs" / "examples.md")
    .read_text()
    .split("\n## Servers in four terminals\n", 1)[1]
    .split("\n## ", 1)[0]
)
PORTS = ("4001", "4002", "4003", "7001", "7002", "7003")


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    with held_ports(len(PORTS)) as held:
        yield dict(zip(PORTS, map(str, held), strict=True))


@pytest.fixture
def terminals() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def shown(pattern: str, ports: dict[str, str]) -> list[str]:
    """The commands of the page that have this, with the ports of this test."""
    commands = [line for line in re.findall(r"^ {4}(.+)$", SECTION, flags=re.M) if pattern in line]
    assert commands
    return [re.sub(r"\b[47]00[123]\b", lambda port: ports[port[0]], line) for line in commands]


def opened(command: str) -> Program:
    """A terminal in which somebody types the command."""
    words = shlex.split(command)
    env = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    program = {"rabble": ["-m", "rabble.cli"], "python": []}[words[0]]
    return Program([sys.executable, *program, *words[1:]], cwd=ROOT / "examples", env=env)


def start(
    app: str, ports: dict[str, str], terminals: contextlib.ExitStack
) -> tuple[list[str], list[Program]]:
    """The nodes of an application. Returns their commands, and them when they are ready."""
    commands = shown(f"--app {app}:start", ports)
    assert len(commands) == 3
    nodes = [terminals.enter_context(opened(command)) for command in commands]
    for number, node in enumerate(nodes, 1):
        node.expect(rf"^clients connect to 127\.0\.0\.1:{ports[f'700{number}']}$")
        node.expect(r"^ready ")
    return commands, nodes


def test_the_counter_goes_on_while_its_nodes_come_and_go(
    ports: dict[str, str], terminals: contextlib.ExitStack
) -> None:
    commands, (a, b, c) = start("counter_api", ports, terminals)
    (command,) = shown("counter_client.py", ports)
    client = terminals.enter_context(opened(command))
    client.expect(r"^the total is 2$")
    a.end(signal.SIGTERM)
    client.expect(r"^the total is 4$")
    again = terminals.enter_context(opened(commands[0]))
    again.expect(r"^ready ")
    b.end(signal.SIGKILL, -signal.SIGKILL)
    client.expect(r"^the total is 6$")
    said = client.end(signal.SIGINT).splitlines()
    totals = [line for line in said if line.startswith("the total is")]
    # Whoever was told to count elsewhere has counted nothing twice, nor left anything out.
    assert totals == [f"the total is {number}" for number in range(1, len(totals) + 1)]
    for node in (again, c):
        node.end(signal.SIGTERM)


def test_the_store_answers_lines_as_the_page_shows(
    ports: dict[str, str], terminals: contextlib.ExitStack
) -> None:
    _, nodes = start("store_api", ports, terminals)
    asked, answers = re.findall(r"^```json\n(.*?)^```$", SECTION, flags=re.M | re.S)
    (address,) = re.findall(r"`nc 127\.0\.0\.1 (\d+)`", SECTION)
    with (
        socket.create_connection(("127.0.0.1", int(ports[address])), PATIENCE_S) as sock,
        sock.makefile("rw") as lines,
    ):

        def say(line: str) -> str:
            print(line, file=lines, flush=True)
            return lines.readline()

        health = asked.splitlines()[-1]
        while json.loads(say(health))["value"] != {"replicas": 3}:
            pass
        assert "".join(map(say, asked.splitlines())) == answers
        refused = json.loads(say('{"id": 5, "msg": {"put": "colour", "value": 7}}'))
        assert refused["error"] == "failed" and refused["text"].startswith('say {"get": KEY}')
    for node in nodes:
        node.end(signal.SIGTERM)
