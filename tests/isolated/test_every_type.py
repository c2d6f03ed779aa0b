"""Every extension type of the core, used in every wrong way: an exception or a value, no crash.

The types are found by themselves, so a new one is used, too: `tests.isolated.everything` says how.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.isolated.everything import PATIENCE_S, core_types
from tests.isolated.script import ROOT


def test_there_are_types_of_each_part() -> None:
    found = core_types()
    assert len(found) > 20
    assert {"ids.Pid", "inbox.Inbox", "connection.Connection", "session.Session"} <= set(found)
    assert {"executor.Executor", "monitors.Monitors"} <= set(found)


@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("name", sorted(core_types()))
def test_whatever_is_done_to_it_is_an_exception_or_a_value(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "tests.isolated.everything", name, str(report)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = report.read_text(errors="replace").splitlines()
    ended = f"{name} ended by {done.returncode} at {lines[-3:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0 and lines[-1].startswith("done "), ended
    # It was used, and not refused as a whole.
    assert int(lines[-1].split()[1]) > 100, lines[-1]
