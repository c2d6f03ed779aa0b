"""A program in a process of its own, and the lines that it prints."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import PATIENCE_S


class Program:
    """A command that runs, and all that it says. A context manager.

    :param command: the words.
    :param cwd: where it runs.
    :param env: what it has in its environment besides that of the tests.
    :param pass_fds: descriptors that it inherits.
    :param patience_s: for how long what is expected is waited for, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._patience_s = patience_s
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
            # With what it starts itself: so all of that ends with it.
            process_group=0,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for a line that has this, behind those that were waited for before."""
        return self.expect_all(pattern)[0]

    def expect_all(self, *patterns: str) -> list[re.Match[str]]:
        """The same of several lines, in whatever order they come."""
        end = time.monotonic() + self._patience_s
        found: dict[str, re.Match[str]] = {}
        while True:
            try:
                line = self._lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                missing = [pattern for pattern in patterns if pattern not in found]
                raise AssertionError(f"no {missing} in {''.join(self._seen)}") from None
            self._seen.append(line)
            for pattern in patterns:
                match = re.search(pattern, line)
                if match is not None:
                    found.setdefault(pattern, match)
            if len(found) == len(patterns):
                return [found[pattern] for pattern in patterns]

    def end(self, number: int, status: int = 0) -> str:
        """Send a signal, and wait for the end with this status.

        :returns: all that it said.
        """
        self.process.send_signal(number)
        return self.ended(status)

    def ended(self, status: int = 0) -> str:
        """Wait for the end, which comes by itself, with this status.

        :returns: all that it said.
        """
        try:
            got = self.process.wait(self._patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.said()}") from None
        self._reader.join(self._patience_s)
        assert got == status, f"{got}: {self.said()}"
        return self.said()

    def said(self) -> str:
        """All that it said so far."""
        while True:
            try:
                self._seen.append(self._lines.get_nowait())
            except queue.Empty:
                return "".join(self._seen)

    def close(self) -> None:
        """End it, and what it has started, however that stands."""
        if self._reader.is_alive():
            # Somebody has its output open, so somebody is there.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
