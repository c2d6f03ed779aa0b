"""Runs a script in a Python process of its own, and looks at how that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from types import TracebackType

from tests.support import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent.parent

#: Since Python 3.12 a fork beside threads warns, whatever the child does afterwards.
FORKS = ("-W", "ignore:This process:DeprecationWarning")


class Script:
    """A Python process that runs `body` after what `tests.isolated.inside` defines.

    Its environment is this one's: the variants of the core are found and preloaded by it. It
    tells what has happened by lines on stdout, which are the only events a test waits for. When
    patience ends it is aborted with all its children, and faulthandler says on stderr where each
    of their threads stood.
    """

    def __init__(self, body: str, *options: str, patience_s: float = PATIENCE_S) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-X", "faulthandler", "-W", "error", *options),
                *("-c", "from tests.isolated.inside import *\n" + textwrap.dedent(body)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._impatience = threading.Timer(patience_s, self._signal_all, (signal.SIGABRT,))
        self._impatience.start()

    def expect(self, wanted: str) -> None:
        """Wait for the next line, which must be `wanted`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().rstrip("\n")
        if line != wanted:
            said = line + self._process.communicate()[0]
            raise AssertionError(f"not {wanted!r} but {said!r}\n{self.errors()}")

    def write(self, line: str) -> None:
        """Give it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def _signal_all(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # None is left.
            pass

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def end(self, code: int = 0) -> str:
        """Wait for the end, which must be by `code`; return what was still said on stdout."""
        said: str = self._process.communicate()[0]
        assert self._process.returncode == code, (
            f"ended by {self._process.returncode}, not by {code}\n{said}\n{self.errors()}"
        )
        return said

    def wait(self) -> int:
        """Wait for the end, whatever it is, and return its code."""
        self._process.communicate()
        return self._process.returncode

    def end_well(self) -> str:
        """As `end`, by 0 and with nothing on stderr."""
        said = self.end()
        assert self.errors() == "", self.errors()
        return said

    def __enter__(self) -> Script:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._impatience.cancel()
        self._impatience.join()
        self._signal_all(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()


def run(body: str, *options: str, patience_s: float = PATIENCE_S) -> str:
    """Run a script that must end well; return what it said on stdout."""
    with Script(body, *options, patience_s=patience_s) as script:
        return script.end_well()
