"""Two versions of one application, in one mesh while it is upgraded node by node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("first", ["v1", "v2"])
def test_two_versions_talk_in_both_directions(first: str) -> None:
    second = "v2" if first == "v1" else "v1"
    with start(f"tests.cluster.app_{first}") as one:
        at, addr = line_of(one).split()
        assert at == "at"
        with start(f"tests.cluster.app_{second}", addr) as other:
            assert line_of(other).startswith("at ")
            answers = {first: line_of(one), second: line_of(other)}
            ends = {first: one.communicate(), second: other.communicate()}
    # What each was answered is what the other one's desk was given.
    assert answers == {
        "v1": "Order(id=1, item='apple', price=0.5, clerk=None)",
        "v2": "Order(id=2, item='pear')",
    }
    assert {name: out.strip() for name, (out, _) in ends.items()} == {
        "v1": "dropped 2",
        "v2": "dropped 0",
    }
    assert [error for _, error in ends.values()] == ["", ""]
