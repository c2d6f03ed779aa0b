"""The stress program, in a process of its own: 20 seconds; ten minutes in `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(20, id="quick", marks=pytest.mark.timeout(600)),
        pytest.param(600, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(1_800)]),
    ],
)
def test_whatever_threads_and_processes_do_all_is_as_it_should_be(seconds: int) -> None:
    """Prints the seed; RABBLE_SEED repeats it. The program has a watchdog of its own."""
    seed = ("--seed", os.environ["RABBLE_SEED"]) if "RABBLE_SEED" in os.environ else ()
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.stress", "--seconds", str(seconds), *seed],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    print(ended.stdout)
    # What nobody can have is a MemoryError, as everywhere; the sanitizer says so besides.
    said = [line for line in ended.stderr.splitlines() if "failed to allocate" not in line]
    assert said == []
    assert ended.returncode == 0, f"ended by {ended.returncode}\n{ended.stdout[-10_000:]}"
