"""Four of the examples are at most half as long as they are by envelopes alone.

`by_hand` has each of them again, as it has to be written with envelopes, plain timers, monitors and
service threads, and the modules that these need. Both do the same trial, which is not counted, and
neither are imports, blank lines, comments and docstrings.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.examples.test_examples import OUTPUTS

HERE = Path(__file__).resolve().parent
BY_HAND = HERE / "by_hand"
EXAMPLES = HERE.parent.parent / "examples"
TRIAL = "\n# Trying it out.\n"

#: What each needs besides itself.
NEEDS = {
    "chat": {"membership", "pushing"},
    "job_queue": {"asking", "membership", "supervising"},
    "replicated_store": {"asking", "membership"},
    "supervision_tree": {"supervising"},
}

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """How many lines of a program have code, before its trial."""
    source = source.split(TRIAL)[0]
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if is_text_or_import(node):
            assert isinstance(node, ast.stmt)
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def is_text_or_import(node: ast.AST) -> bool:
    """An import, a docstring, or another text that stands for itself."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom)


def length(path: Path) -> int:
    return code_lines(path.read_text())


def imported(path: Path) -> set[str]:
    """The modules of `by_hand` that a program imports."""
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name is not None and (BY_HAND / f"{name}.py").exists()}


def test_only_code_is_counted() -> None:
    source = '''"""A text
of two lines."""
import os
from sys import (
    path,
)

# A comment.
x = """
more"""  # code, on two lines

def f():
    """A text."""
    return (
        1
    )
'''
    assert code_lines(source) == 6
    assert code_lines(source + TRIAL + "more = 1\n") == 6


def test_every_program_by_hand_is_compared() -> None:
    programs = {path.stem for path in BY_HAND.glob("*_by_hand.py")}
    assert programs == {f"{name}_by_hand" for name in NEEDS}
    modules = {path.stem for path in BY_HAND.glob("*.py")} - programs
    assert modules == set().union(*NEEDS.values())


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_is_at_most_half_as_long_as_by_hand(name: str) -> None:
    example, by_hand = EXAMPLES / f"{name}.py", BY_HAND / f"{name}_by_hand.py"
    assert TRIAL in example.read_text() and TRIAL in by_hand.read_text()
    assert imported(by_hand) == NEEDS[name]
    long = length(by_hand) + sum(length(BY_HAND / f"{module}.py") for module in NEEDS[name])
    assert 0 < length(example) <= long / 2, f"{length(example)} of {long}"


def test_the_documentation_shows_the_lengths() -> None:
    rows = {}
    for name, modules in NEEDS.items():
        own = length(BY_HAND / f"{name}_by_hand.py")
        needed = {module: length(BY_HAND / f"{module}.py") for module in sorted(modules)}
        parts = ", ".join(f"{module} {lines}" for module, lines in needed.items())
        whole = own + sum(needed.values())
        rows[name] = (
            f"| `{name}.py` | {length(EXAMPLES / f'{name}.py')} | {whole} | {own} | {parts} |"
        )
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    assert [row for row in rows.values() if row not in page.splitlines()] == []


@pytest.mark.parametrize("name", NEEDS)
def test_a_program_by_hand_says_the_same(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(BY_HAND / f"{name}_by_hand.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{BY_HAND}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert done.stdout == OUTPUTS[name]
    assert done.returncode == 0
