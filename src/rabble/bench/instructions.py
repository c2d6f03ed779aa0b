"""How many instructions a message takes, in rabble and in its limit: valgrind's callgrind counts.

Rates stray on a machine that others use, and so do their ratios; instructions hardly do. A sample
is counted at two sizes, and what the larger one takes more is divided by the messages that it has
more: what starting and stopping takes is in both.

callgrind writes down what it counted whenever libc's `getppid` is entered. So one interpreter
serves for all samples of a workload, and marks their ends by that call, which nothing else here
makes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rabble.bench import calls, codec, messaging, remote, savina, values
from rabble.bench.alone import COMMAND
from rabble.bench.model import Case, Instructions, Sample
from rabble.bench.sides import Pair

__all__ = ["WORKLOADS", "count", "found", "main", "mark"]

RABBLE = "rabble"
LIMIT = "limit"

#: How long a workload may take under valgrind, which is fifty times as long as without.
PATIENCE_S = 900.0

#: What makes a workload, the parameter that says how large a workload is, and its two sizes.
Counted = tuple[Callable[..., list[Case]], str, tuple[int, int]]

WORKLOADS: Mapping[str, Counted] = MappingProxyType(
    {
        "pingpong": (messaging.pingpong, "turns", (1_000, 5_000)),
        "ring": (messaging.ring, "hops", (2_000, 10_000)),
        "count": (messaging.count, "increments", (2_000, 10_000)),
        "big": (messaging.big, "pings", (10, 50)),
        "banking": (savina.banking, "transactions", (1_000, 5_000)),
        "chameneos": (savina.chameneos, "meetings", (1_000, 5_000)),
        "concdict": (savina.concdict, "requests", (50, 250)),
        "barber": (savina.barber, "haircuts", (1_000, 3_000)),
        # Of these what is of processes alone: a hand-over between threads is none of instructions.
        "calls": (calls.ask, "round_trips", (1_000, 5_000)),
        "codec": (codec.codec, "envelopes", (640, 3_200)),
        "values": (values.values, "envelopes", (640, 3_200)),
        "remote": (remote.remote, "messages", (8_192, 32_768)),
        "remote-typed": (remote.remote_typed, "messages", (8_192, 32_768)),
    }
)


def found() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def mark() -> None:
    """Have callgrind write down what it counted since the last mark, and begin again."""
    os.getppid()


def count(workload: str, progress: Callable[[str], None]) -> dict[str, Instructions]:
    """By the case's name, the instructions of each message in rabble and in its limit.

    Of a case that has nodes in other operating-system processes those of the receiving one are
    counted, all that it does.

    :param workload: one of `WORKLOADS`.
    :param progress: told what is being done.
    :raises RuntimeError: if it fails under valgrind, with what that had to say.
    """
    progress(f"{workload}: counting instructions")
    counted: dict[str, dict[str, float]] = {}
    with Callgrind() as callgrind:
        printed = callgrind.run(workload)
        parts = callgrind.parts()
        for name, who, messages in json.loads(printed):
            counted.setdefault(name, {})[who] = per_message(parts, messages)
    for name in counted:
        if RABBLE not in counted[name]:
            progress(f"{workload}: counting instructions of {name}'s receiving node")
            counted[name][RABBLE] = of_receiver(name, WORKLOADS[workload][2])
    return {name: Instructions(of[RABBLE], of[LIMIT]) for name, of in counted.items()}


def of_receiver(name: str, sizes: tuple[int, int]) -> float:
    """Of a node in an operating-system process under valgrind that is sent messages by one that is
    not."""
    messages = remote.MESSAGES[name]
    with Callgrind() as callgrind:
        authenticated = name == remote.AUTHENTICATED
        with Pair(command=callgrind.command, authenticated=authenticated) as pair:
            counts = []
            for size in (sizes[0], *sizes):
                counts.append(remote.one_way(pair, messages, size).messages)
                pair.mark()
        return per_message(callgrind.parts(), counts[1:])


def per_message(parts: Iterator[int], messages: Sequence[int]) -> float:
    """Of the next sample: a warm-up, a small run, and a large one."""
    next(parts)
    small, large = next(parts), next(parts)
    return (large - small) / (messages[1] - messages[0])


class Callgrind:
    """A folder for what callgrind writes down, and how it is told to. A context manager."""

    def __enter__(self) -> Callgrind:
        self._folder = tempfile.TemporaryDirectory(prefix="rabble-callgrind-")
        self._out = Path(self._folder.name, "out")
        #: To be followed by an interpreter and its arguments.
        self.command = [
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--dump-before=getppid",
            f"--callgrind-out-file={self._out}",
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, workload: str) -> str:
        """What `main` prints under valgrind."""
        done = subprocess.run(
            [*self.command, sys.executable, "-c", COMMAND, __name__, workload],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            # The order in sets, and so what a look-up takes, is the same each time.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        if done.returncode:
            raise RuntimeError(f"{workload} failed under valgrind:\n{done.stderr}")
        return done.stdout

    def parts(self) -> Iterator[int]:
        """The instructions before each mark, since the one before it."""
        for number in itertools.count(1):
            text = self._out.with_suffix(f".{number}").read_text(encoding="utf-8")
            found = re.search(r"^summary: (\d+)$", text, re.MULTILINE)
            if found is None:
                raise RuntimeError(f"callgrind wrote no summary: {text[:200]!r}")
            yield int(found[1])


def main(workload: str) -> None:
    """Run a workload's samples, each of them three times, with a mark after each; and print their
    names and their two sizes. Runs under valgrind."""
    make, parameter, sizes = WORKLOADS[workload]
    printed: list[tuple[str, str, list[int]]] = []
    for cases in zip(*(make(**{parameter: size}) for size in sizes), strict=True):
        if not counts(cases[0]):
            continue
        runs: dict[str, list[Any]] = {LIMIT: [case.limit.sample for case in cases]}
        if cases[0].session is None:
            runs[RABBLE] = [case.run for case in cases]
        for who, (small, large) in runs.items():
            messages: list[int] = []
            for run in (small, small, large):
                sample: Sample = run()
                mark()
                messages.append(sample.messages)
            printed.append((cases[0].name, who, messages[1:]))
    print(json.dumps(printed))


def counts(case: Case) -> bool:
    """Whether a case is counted: with nodes elsewhere only what is held against one core."""
    return case.session is None or case.name in remote.MESSAGES
