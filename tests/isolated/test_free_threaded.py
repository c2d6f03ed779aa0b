"""What an import says on a free-threaded Python: a faked one, since none was at hand."""

from __future__ import annotations

import subprocess
import sys

# As CPython does: the lock is off until a module comes that does not declare itself ready. That
# one is warned of, and with PYTHON_GIL=0 the lock stays off.
FAKE = """
import importlib.abc, sys, warnings

class Interpreter(importlib.abc.MetaPathFinder):
    lock = False

    def find_spec(self, name, path, target=None):
        if name.startswith("rabble._core.") and not self.lock and not {forced_off}:
            warnings.warn(
                "The global interpreter lock (GIL) has been enabled to load module "
                f"{{name!r}}, which has not declared that it can run safely without the GIL.",
                RuntimeWarning,
            )
            self.lock = True

interpreter = Interpreter()
sys.meta_path.insert(0, interpreter)
sys._is_gil_enabled = lambda: interpreter.lock
"""
USE = """
import rabble, rabble._core.executor
with rabble.rouse() as node:
    pass
print("worked")
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-W", "default", "-c", body]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100)


def test_the_lock_is_switched_on_and_that_is_said_once() -> None:
    done = run(FAKE.format(forced_off=False) + USE)
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(warned) == 1, done.stderr
    assert "RuntimeWarning: rabble has switched the interpreter lock on" in warned[0]


def test_where_the_lock_is_forbidden_the_import_says_what_to_do() -> None:
    done = run(FAKE.format(forced_off=True) + USE)
    assert done.returncode == 1
    assert "ImportError: rabble needs the interpreter lock" in done.stderr.splitlines()[-1]


def test_another_python_says_nothing() -> None:
    done = run("import sys; sys._is_gil_enabled = lambda: True" + USE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "worked\n", "")
