"""The names of `rabble`, which are imported when they are first asked for."""

from __future__ import annotations

import ast
import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import rabble


def run(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", body], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def imported_for_type_checkers() -> dict[str, str]:
    """Each name that type checkers see imported, and from where."""
    assert rabble.__file__ is not None
    tree = ast.parse(Path(rabble.__file__).read_text())
    return {
        alias.name: statement.module or ""
        for branch in tree.body
        if isinstance(branch, ast.If)
        for statement in branch.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_the_three_lists_of_names_are_one() -> None:
    assert imported_for_type_checkers() == rabble._home_of
    assert rabble.__all__ == sorted(rabble.__all__)
    assert set(rabble.__all__) == set(rabble._home_of)


def test_every_name_is_there_and_found_at_once_from_then_on() -> None:
    for name in rabble.__all__:
        assert vars(rabble)[name] is getattr(rabble, name) if name in vars(rabble) else True
        found = getattr(rabble, name)
        assert vars(rabble)[name] is found


def test_what_is_not_there_is_said_as_python_says_it() -> None:
    for name in ("Rocess", "_nothing", "__nothing__"):
        assert not hasattr(rabble, name)
        with pytest.raises(AttributeError, match=f"module 'rabble' has no attribute '{name}'"):
            getattr(rabble, name)
    with pytest.raises(ImportError, match="cannot import name 'Rocess' from 'rabble'"):
        from rabble import Rocess  # type: ignore[attr-defined]  # noqa: F401


def test_dir_has_them_before_they_are_imported() -> None:
    body = "import rabble; print(set(rabble.__all__) <= set(dir(rabble)), 'Node' in vars(rabble))"
    assert run(body) == "True False\n"


def test_a_star_brings_all_of_them() -> None:
    body = "from rabble import *; import rabble; print(all(n in globals() for n in rabble.__all__))"
    assert run(body) == "True\n"


def test_modules_of_the_package_are_found_by_attribute() -> None:
    body = "import rabble; print(rabble.errors.RabbleError is rabble.RabbleError, rabble.client)"
    assert run(body).startswith("True <module 'rabble.client'")


def test_what_a_module_of_the_package_lacks_is_not_taken_for_the_core() -> None:
    body = (
        "import sys; sys.modules['rabble.limits'] = None; import rabble\n"
        "try: rabble.Limits\n"
        "except ImportError as error: print(error)"
    )
    assert "rabble.limits" in run(body)


def test_they_are_pickled_by_their_modules() -> None:
    pid = rabble.Pid("a", rabble.NodeId("n", "h:1"))
    assert pickle.loads(pickle.dumps(pid)) == pid
    assert copy.deepcopy(rabble.Drain) is rabble.Drain
    body = (
        f"import pickle; print(pickle.loads({pickle.dumps((rabble.Node, pid))!r})[1] == "
        f"__import__('rabble').Pid.parse({str(pid)!r}))"
    )
    assert run(body) == "True\n"


def test_the_client_brings_nothing_of_the_mesh() -> None:
    body = """
import sys, rabble.client
mesh = ("rabble.node", "rabble.cluster", "rabble._core.executor", "rabble.services")
print([name for name in sys.modules if name.startswith(mesh)])
"""
    assert run(body) == "[]\n"
