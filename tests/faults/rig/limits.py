"""Limits for processes under test: rlimits, and control groups where there is one to be had.

A group is made only below the root of a hierarchy (as a container sees it) or below the folder
that RABBLE_CGROUP names: another group belongs to whoever put this process there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path

from tests.faults.rig.netns import own_name, owner_is_gone

CONTROLLERS = ("memory", "cpu", "pids")
PERIOD_US = 100_000
END_TIMEOUT_MS = 30_000
_serial = itertools.count(1)

#: Enters the groups whose files come first, as many as the first argument says.
ENTER = (
    'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1" || exit 125; shift; n=$((n-1)); done; '
    'exec "$@"'
)


@dataclasses.dataclass(frozen=True)
class Rlimits:
    """What one process may have; None leaves it as it is."""

    open_files: int | None = None
    address_space_bytes: int | None = None
    stack_bytes: int | None = None
    file_bytes: int | None = None
    core_bytes: int | None = None
    #: Of all processes of the user; root is not bound by it.
    processes: int | None = None

    def argv(self, argv: Iterable[str]) -> list[str]:
        """The command line that runs `argv` under these limits."""
        asked = {
            "nofile": self.open_files,
            "as": self.address_space_bytes,
            "stack": self.stack_bytes,
            "fsize": self.file_bytes,
            "core": self.core_bytes,
            "nproc": self.processes,
        }
        return ["prlimit", *(f"--{k}={v}" for k, v in asked.items() if v is not None), *argv]


@functools.cache
def parent(controller: str) -> tuple[Path | None, str]:
    """The group below which tests may make theirs, or None and why there is none."""
    v1 = v2 = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mounted = left.split()[3:5]
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup" and controller in options.split(","):
            v1 = Path(mounted), root
        elif kind == "cgroup2":
            v2 = Path(mounted), root
    found = v1 or v2
    if found is None:
        return None, f"no control group for {controller} is mounted"
    mounted_at, root = found
    own = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") if v1 else names == "":
            own = path
    group = mounted_at
    if (handed := os.environ.get("RABBLE_CGROUP")) is not None:
        group /= handed.lstrip("/")
    elif own != root:
        return None, f"the {controller} group {own} is not ours; RABBLE_CGROUP may name one"
    trial = group / own_name("trial")
    try:
        if not v1 and controller not in (group / "cgroup.subtree_control").read_text().split():
            return None, f"{group} does not pass {controller} on"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        return None, f"{group}: {error.strerror}"
    return group, ""


def lacking(*controllers: str) -> str | None:
    """Why a group with these controllers cannot be made here; None if it can."""
    return next((why for group, why in map(parent, controllers) if group is None), None)


class Cgroup:
    """A control group for processes under test, removed when this is left.

    `cpu` is in processors: 0.05 is 5 % of one.
    """

    def __init__(
        self,
        *,
        memory_bytes: int | None = None,
        cpu: float | None = None,
        pids: int | None = None,
    ) -> None:
        asked = {"memory": memory_bytes, "cpu": cpu, "pids": pids}
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._name = own_name(f"{next(_serial)}")
        self.folders: dict[str, Path] = {}

    def __enter__(self) -> Cgroup:
        if (why := lacking(*self._asked)) is not None:
            raise RuntimeError(why)
        try:
            for controller, value in self._asked.items():
                group, _ = parent(controller)
                assert group is not None
                for stale in group.glob("rabble-*-*"):
                    if owner_is_gone(stale.name):
                        end(stale)
                folder = self.folders[controller] = group / self._name
                folder.mkdir(exist_ok=True)
                self._set(folder, controller, value)
        except BaseException:
            self.close()
            raise
        return self

    def change(self, controller: str, value: float) -> None:
        """Set another bound for what runs."""
        self._set(self.folders[controller], controller, value)

    def _set(self, folder: Path, controller: str, value: float) -> None:
        if controller == "pids":
            (folder / "pids.max").write_text(f"{int(value)}")
        elif controller == "memory":
            old = folder / "memory.limit_in_bytes"
            (old if old.exists() else folder / "memory.max").write_text(f"{int(value)}")
        elif (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{int(value * PERIOD_US)} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(f"{PERIOD_US}")
            (folder / "cpu.cfs_quota_us").write_text(f"{int(value * PERIOD_US)}")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is in it, and remove it; may be called twice."""
        for folder in set(self.folders.values()):
            end(folder)
        self.folders.clear()

    def argv(self, argv: Iterable[str]) -> list[str]:
        """The command line that runs `argv` in this group, from its first instruction on."""
        files = [str(folder / "cgroup.procs") for folder in set(self.folders.values())]
        return ["sh", "-c", ENTER, "sh", str(len(files)), *files, *argv]

    def read(self, controller: str, name: str) -> str:
        """One of the group's files, as `read("cpu", "cpu.stat")`."""
        return (self.folders[controller] / name).read_text()


def end(folder: Path) -> None:
    """Kill what runs in a group that we made, wait until it is gone, and remove the group."""
    while folder.exists():
        for pid in map(int, (folder / "cgroup.procs").read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    poll = select.poll()
                    poll.register(pidfd, select.POLLIN)
                    if not poll.poll(END_TIMEOUT_MS):
                        raise TimeoutError(f"{pid} in {folder} does not end")
                finally:
                    os.close(pidfd)
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
