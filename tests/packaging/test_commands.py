"""Every command that a page or a workflow names is one of the Makefile, and none is left unsaid."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
NAMING = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", ".ci/run")),
    *ROOT.glob("docs/**/*.md"),
    *WORKFLOWS,
]


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^\.PHONY:(.*)$", text, flags=re.M)
    return set(names.split())


def named(text: str) -> set[str]:
    """Targets in `make X` between backticks, and on lines that begin with it."""
    return set(
        re.findall(r"(?:`|^ *(?:- run: |timeout \d+ )?)make ([a-z][\w-]*)", text, flags=re.M)
    )


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.name)
def test_what_is_named_exists(page: Path) -> None:
    if not page.exists():
        pytest.skip("not part of an sdist")
    assert named(page.read_text()) <= targets()


def test_the_guide_to_working_on_it_names_all() -> None:
    assert named((ROOT / "CONTRIBUTING.md").read_text()) == targets()


def test_help_names_all() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        # Not the options of a make that runs this.
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = set(re.findall(r"make ([a-z][\w-]*)", done.stdout))
    assert found == targets() - {"help"}


def test_each_linter_runs_before_a_commit() -> None:
    hooks = ROOT / ".pre-commit-config.yaml"
    if not hooks.exists():
        pytest.skip("not part of an sdist")
    lines = (ROOT / "Makefile").read_text().split("\nlint:", 1)[1].split("\n\n", 1)[0]
    linters = set(re.findall(r"ruff check|ruff format|cython-lint|-m mypy|tools/\w+\.py", lines))
    assert len(linters) == len(lines.splitlines()) - 1
    assert all(linter in hooks.read_text() for linter in linters)
