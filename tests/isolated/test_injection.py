"""Each thread of a node raises once at each of its places; the node ends, and says the truth.

`tests.isolated.inject` does it, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.isolated.script import ROOT

ROLES = ("executor", "reports", "service", "cluster", "seeds", "names", "tls")


def inject(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.isolated.inject", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_some_places_of_each_thread_raise(role: str) -> None:
    """Others at each run: what fails is named, and `make soak` tries all."""
    inject(role, "10")


@pytest.mark.soak
@pytest.mark.parametrize("role", ROLES)
def test_every_place_of_each_thread_raises(role: str) -> None:
    inject(role)
