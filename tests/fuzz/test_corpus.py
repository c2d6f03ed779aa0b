"""What the fuzzer begins with, and what it found once: nothing of that is a finding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutators import HEADS
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"

#: Of decoded text; a codec keeps the pids that it saw last.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    files = sorted(CORPUS.joinpath(name).iterdir())
    assert files
    for file in files:
        try:
            TARGETS[name](file.read_bytes())
        except BaseException as error:
            error.args = (*error.args, file.name)
            raise


def test_the_corpus_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS) == set(HEADS)
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert len(files) <= 600
    assert sum(file.stat().st_size for file in files) <= 200 << 10


def test_it_runs_without_atheris(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "frames", "--random", "--runs", "300", "--seed", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frames: 300 inputs" in done.stdout
