"""Files that may change while a node runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from rabble.errors import KeyFileError

__all__ = ["WatchedFiles"]

Content = TypeVar("Content")


class WatchedFiles(Generic[Content]):
    """What was read of some files, and what takes its place when they change. For one thread.

    :param paths: of the files, if need be from where the program is now; a link is followed.
    :param read: reads them, given their paths; raises `KeyFileError` if they cannot be used.
    :raises KeyFileError: that of `read`.

    A file that is written in place is half written for a while, and of two that belong together one
    comes first. So files that have changed are read once two looks in a row find them the same.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], read: Callable[..., Content]
    ) -> None:
        self._paths = tuple(map(os.path.abspath, paths))
        self._read = read
        self._latest = self._look()
        #: In which state of the files the content was read.
        self._seen = self._latest
        self._told: tuple[object, str] | None = None
        #: Whether the last look found a change, so that the next `renew` may come soon.
        self.is_settling = False
        self.content = read(*self._paths)

    def renew(self) -> bool:
        """Look at the files, and read them again if they have changed.

        :returns: whether there is another content.
        :raises KeyFileError: if they cannot be used; the content stays as it is. They are tried
            again each time, as it need not be the files that are at fault; but that they fail for
            the same reason in the same state is raised once.
        """
        latest = self._look()
        self.is_settling, self._latest = latest != self._latest, latest
        if self.is_settling or latest == self._seen:
            return False
        try:
            content = self._read(*self._paths)
        except KeyFileError as error:
            told, self._told = self._told, (latest, str(error))
            if told == self._told:
                return False
            raise
        self._seen, self._told = latest, None
        changed: bool = content != self.content
        self.content = content
        return changed

    def _look(self) -> tuple[tuple[int, ...], ...]:
        return tuple(map(version_of, self._paths))


def version_of(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """What tells a file from the one that was there before; empty if there is none.

    The time of its status tells of a change of its mode or owner, too, which may be what it takes
    to use it.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
