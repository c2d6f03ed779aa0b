"""A service that reads files, and a process that has files read by it.

Processes do no I/O. A service is a thread under a pid: it is sent requests like any process, may
block, and answers with envelopes. This one stays within the directory that it was given.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import rabble
from rabble import CorrelationId, Envelope, Output, Pid, Process, Service, ServiceHandler

FILE_BYTES_MAX = 1 << 20


@rabble.message(name="file_service.ReadFile")
class ReadFile:
    """Asks for a file, by its path below the service's directory."""

    path: str


@rabble.message(name="file_service.FileRead")
class FileRead:
    """The bytes of a file."""

    path: str
    data: bytes


@rabble.message(name="file_service.FileRefused")
class FileRefused:
    """Why a file was not read."""

    path: str
    reason: str


class FileReader(ServiceHandler):
    """Answers `ReadFile`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def init(self, service: Service) -> None:
        self.root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def close(self, service: Service) -> None:
        os.close(self.root_fd)

    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        match envelope:
            case Envelope(_, ReadFile(path), Pid() as sender, correlation_id):
                answer: FileRead | FileRefused
                try:
                    answer = FileRead(path, read_below(self.root_fd, path))
                except (OSError, ValueError) as error:
                    reason = error.strerror if isinstance(error, OSError) else None
                    answer = FileRefused(path, reason or str(error))
                return Envelope(sender, answer, correlation_id=correlation_id)
            case _:
                pass
        return None


def read_below(root_fd: int, path: str) -> bytes:
    """The bytes of a regular file below a directory.

    The path is opened part by part, and none of them may be a symbolic link: so nothing leads out
    of the directory, not even what changes while it is being opened.
    """
    parts = path.split("/")
    if not all(parts) or ".." in parts or "." in parts:
        raise ValueError("the path must be relative, without empty parts, '.' or '..'")
    opened = os.dup(root_fd)
    try:
        for number, part in enumerate(parts, start=1):
            # O_NONBLOCK: opening a named pipe would otherwise wait for its other end.
            kind = os.O_NONBLOCK if number == len(parts) else os.O_DIRECTORY
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=opened)
            os.close(opened)
            opened = below
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        with os.fdopen(os.dup(opened), "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    finally:
        os.close(opened)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"longer than {FILE_BYTES_MAX} bytes")
    return data


class LineCounter(Process):
    """Is sent a path and answers with what it knows of that file. Does no I/O itself."""

    def __init__(self, files: Pid) -> None:
        self.files = files
        self.callers: dict[CorrelationId, tuple[Pid, CorrelationId | None]] = {}

    def init(self) -> None:
        self.request = CorrelationId(self.pid)

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case str(path) if sender is not None:
                self.request = self.request.next_request()
                self.callers[self.request] = (sender, correlation_id)
                return Envelope(self.files, ReadFile(path), correlation_id=self.request)
            case FileRead(path, data):
                lines = data.count(b"\n")
                return self.answer(correlation_id, f"{path} has {lines} lines")
            case FileRefused(path, reason):
                return self.answer(correlation_id, f"{path} was refused: {reason}")
            case _:
                pass
        return None

    def answer(self, request: CorrelationId | None, text: str) -> Output:
        if request is None or request not in self.callers:
            return None
        caller, correlation_id = self.callers.pop(request)
        return Envelope(caller, text, correlation_id=correlation_id)


def main() -> None:
    with tempfile.TemporaryDirectory() as outside, rabble.rouse() as node:
        root = Path(outside, "root")
        (root / "poems").mkdir(parents=True)
        (root / "poems" / "haiku.txt").write_text("an old silent pond\na frog jumps\nsplash\n")
        Path(outside, "secret.txt").write_text("not for you\n")
        (root / "link.txt").symlink_to("../secret.txt")

        files = node.register_service(FileReader(root), "files")
        counter = node.spawn(LineCounter(files.pid), "line-counter")
        for path in (
            "poems/haiku.txt",
            "poems/ode.txt",
            "poems",
            "../secret.txt",
            "/etc/hosts",
            "link.txt",
        ):
            print(node.call(counter, path))


if __name__ == "__main__":
    main()
