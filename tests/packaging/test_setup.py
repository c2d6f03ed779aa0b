"""What setup.py does on a small tree of its own: every kind of build, and what is compiled again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

MODULE = """
from .sizes cimport SIZE

size = SIZE

def asserts():
    assert SIZE < 0
"""
SIZES = '''
cdef extern from *:
    """
    #ifdef RABBLE_TINY
    #define SMALLEST 1
    #else
    #define SMALLEST 0
    #endif
    """
    enum: TINY "SMALLEST"

cdef enum:
    SIZE = %d
'''
PROJECT = """
[project]
name = "rabble"
version = "0"
[tool.setuptools]
package-dir = { "" = "src" }
packages = ["rabble", "rabble._core"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of two modules, laid out as the real one, and its setup.py."""
    pytest.importorskip("Cython", reason="the extra `build` is not installed")
    core = tmp_path / "tree" / "src" / "rabble" / "_core"
    core.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py", "__init__.pxd"):
        (core / name).touch()
    (core / "one.pyx").write_text(MODULE)
    (core / "two.pyx").write_text("from .sizes cimport TINY\n" + MODULE + "tiny = TINY\n")
    (core / "sizes.pxd").write_text(SIZES % 1)
    (tmp_path / "tree" / "pyproject.toml").write_text(PROJECT)
    shutil.copy(ROOT / "setup.py", tmp_path / "tree")
    return tmp_path / "tree"


def python(tree: Path, *arguments: str, **environment: str) -> str:
    base = {key: value for key, value in os.environ.items() if not key.startswith("RABBLE_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**base, "PYTHONPATH": str(tree / "src"), "CFLAGS": "-O0", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(tree: Path, **environment: str) -> None:
    python(tree, "setup.py", "--quiet", "build_ext", "--inplace", **environment)


def ask(tree: Path, expression: str) -> str:
    return python(tree, "-c", f"from rabble._core import one, two; print({expression})")


def test_it_builds_where_processes_are_not_forked(tree: Path, tmp_path: Path) -> None:
    """As from Python 3.14 on: a process that translates imports the setup.py it was started by."""
    start = tmp_path / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(
        "import multiprocessing\nmultiprocessing.set_start_method('forkserver')\n"
    )
    build(tree, PYTHONPATH=str(start))
    assert ask(tree, "one.size, two.size") == "1 1"


def test_a_changed_declaration_is_compiled_again(tree: Path) -> None:
    build(tree)
    assert ask(tree, "one.size, two.size") == "1 1"
    (tree / "src" / "rabble" / "_core" / "sizes.pxd").write_text(SIZES % 2)
    build(tree)
    assert ask(tree, "one.size, two.size") == "2 2"


def test_another_kind_of_build_takes_the_place_of_the_last_one(tree: Path) -> None:
    asserts = "[type(one).__name__ for _ in [0] if one.asserts() is None]"
    build(tree)
    assert ask(tree, "two.tiny") == "0"
    assert ask(tree, asserts) == "['module']", "the release build has no asserts"
    build(tree, RABBLE_TINY="1")
    assert ask(tree, "two.tiny") == "1"
    with pytest.raises(AssertionError, match="one.pyx"):
        ask(tree, asserts)
    build(tree)
    assert ask(tree, "two.tiny") == "0"


def test_the_tiny_build_can_be_sanitized(tree: Path) -> None:
    code = "import sys; sys.argv[0] = 'setup.py'; import setup; print(setup.VARIANT, setup.macros())"
    printed = python(tree, "-c", code, RABBLE_TINY="1", RABBLE_SANITIZE="undefined,address")
    variant, macros = printed.split(" ", 1)
    assert variant == "tiny-address-undefined"
    assert "('RABBLE_TINY', '1')" in macros
    assert "CYTHON_WITHOUT_ASSERTIONS" not in macros
