"""Operating-system processes under test: started, awaited, signalled, measured, and always ended.

    with OsProcess([sys.executable, "-m", "app"], host=net["n1"], ready="ready") as app:
        app.pause()
        app.resume()
        app.signal(signal.SIGTERM)
        assert app.wait() == 0, app.stderr()

Nothing here polls or sleeps: output is awaited by a thread that reads it, the end by a pidfd.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import queue
import re
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.faults.rig.limits import Cgroup, Rlimits
from tests.faults.rig.netns import Host

#: Long, because the machine may stall.
PATIENCE_S = 30.0
LINES_KEPT_MAX = 100_000
STDERR_SHOWN_BYTES = 64 * 1024
PAGE_BYTES = resource.getpagesize()
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Ended(Exception):
    """A process ended while something else was awaited of it."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process holds."""

    fds: int
    threads: int
    rss_bytes: int
    cpu_s: float


def usage(pid: int) -> Usage:
    """What a process holds now, from /proc."""
    proc = Path(f"/proc/{pid}")
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    return Usage(
        fds=len(os.listdir(proc / "fd")),
        threads=len(os.listdir(proc / "task")),
        rss_bytes=int((proc / "statm").read_text().split()[1]) * PAGE_BYTES,
        cpu_s=(int(stat[11]) + int(stat[12])) / TICKS_PER_S,
    )


class OsProcess:
    """A process with its own session, killed with all that it started when this is left.

    It dies with the test run too, even if that is killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        host: Host | None = None,
        ready: str | None = None,
        rlimits: Rlimits | None = None,
        cgroup: Cgroup | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        talk: bool = False,
    ) -> None:
        """`ready`: a regular expression; waits for a line of standard output that has it.

        `talk`: it has a standard input, for `say`; without, that is at its end.
        """
        # Each of these replaces itself by the next, so the process id stays.
        command = list(argv)
        if rlimits is not None:
            command = rlimits.argv(command)
        if host is not None:
            command = host.argv(command)
        if cgroup is not None:
            command = cgroup.argv(command)
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self.argv = list(argv)
        self._changed = threading.Condition()
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES_KEPT_MAX)
        self._count = 0
        self._eof = False
        self._status: int | None = None
        self._closed = False
        self._stderr = tempfile.TemporaryFile()
        start = functools.partial(
            subprocess.Popen[bytes],
            command,
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
        )
        started: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()
        # The signal of a parent's death comes when the thread ends that started the process: so
        # that has to be one which lives as long.
        self._reader = threading.Thread(
            target=self._run, args=(start, started), name=f"reads from {argv[0]}"
        )
        self._reader.start()
        outcome = started.get()
        if isinstance(outcome, BaseException):
            self._reader.join()
            self._stderr.close()
            raise outcome
        self._popen = outcome
        self.pid = outcome.pid
        # Not reaped before `close`, so the process id remains ours.
        self._pidfd = os.pidfd_open(self.pid)
        if ready is not None:
            try:
                self.wait_line(ready)
            except BaseException:
                self.close()
                raise

    def _run(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        started: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException],
    ) -> None:
        try:
            process = start()
        except BaseException as error:
            started.put(error)
            return
        started.put(process)
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._count += 1
                self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def __repr__(self) -> str:
        return f"<process {self.pid}: {' '.join(self.argv)}>"

    def __enter__(self) -> OsProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the session, reap the process, and let go of everything; may be called twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._await_end(None)
        self.wait()  # kept for whoever asks later
        os.close(self._pidfd)
        # A grandchild in a session of its own may hold the pipe: it must not hold the test.
        self._reader.join(PATIENCE_S)
        self._popen.wait()
        if not self._reader.is_alive():
            assert self._popen.stdout is not None
            self._popen.stdout.close()
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - STDERR_SHOWN_BYTES))
        self._last_words = self._stderr.read().decode(errors="replace")
        self._stderr.close()

    def _await_end(self, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def say(self, line: str) -> None:
        """Write a line to its standard input; nothing happens if it has ended."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()

    @property
    def alive(self) -> bool:
        return not self._closed and not self._await_end(0)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end: the exit status, or minus the signal that ended it."""
        if self._status is None:
            if not self._await_end(timeout_s):
                raise TimeoutError(f"{self} runs after {timeout_s} s\n{self.stderr()}")
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            assert info is not None
            self._status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        return self._status

    def lines(self) -> list[str]:
        """What it has printed so far, the last LINES_KEPT_MAX lines."""
        with self._changed:
            return list(self._lines)

    def wait_line(self, pattern: str, timeout_s: float = PATIENCE_S, skip: int = 0) -> str:
        """Wait for a line of standard output that has a pattern; that line.

        The first `skip` ones of those that fit are passed over. `Ended` if it closes its output
        without one, with what it said on standard error.
        """
        deadline = time.monotonic() + timeout_s
        expression = re.compile(pattern)
        looked_at = 0
        fitting = 0
        while True:
            with self._changed:
                while looked_at == self._count and not self._eof:
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        raise TimeoutError(f"{self}: no {pattern!r} in {timeout_s} s")
                fresh = self._count - looked_at
                if not fresh:
                    break
                new = list(self._lines)[-fresh:]
                looked_at = self._count
            for line in new:
                if expression.search(line):
                    fitting += 1
                    if fitting > skip:
                        return line
        self._await_end(PATIENCE_S)
        raise Ended(f"{self} ended without {pattern!r}\n{self.stderr()}")

    def stderr(self) -> str:
        """What it said on standard error, at most the last 64 KiB."""
        if self._closed:
            return self._last_words
        size = os.fstat(self._stderr.fileno()).st_size
        start = max(0, size - STDERR_SHOWN_BYTES)
        return os.pread(self._stderr.fileno(), size - start, start).decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def pause(self) -> None:
        """SIGSTOP; returns when no thread of it runs any more."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it has ended, and its sockets are closed."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)

    def usage(self) -> Usage:
        """Descriptors, threads, memory and processor time that it has now."""
        return usage(self.pid)

    def set_rlimit(self, kind: int, value: int) -> None:
        """Change a limit while it runs, e.g. `resource.RLIMIT_NOFILE`."""
        resource.prlimit(self.pid, kind, (value, value))
