"""The addresses to join: given ones, those of a host name, and those of a file."""

from __future__ import annotations

import codecs
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence

from rabble.addresses import Address, address_text, split_address
from rabble.cluster.io.resolver import Resolver

__all__ = ["Seeds"]

ADDRESSES_MAX = 1_024
#: Of a file of seeds: as many of the longest addresses, and as much again for what is said of them.
FILE_BYTES_MAX = 2 * 256 * ADDRESSES_MAX
#: Bad lines of one reading that are told of by themselves.
BAD_LINES_TOLD_MAX = 3


class Seeds:
    """Keeps the set of seed addresses; belongs to the cluster server's thread.

    A host name stands for all of its addresses, as a headless service of Kubernetes has them. It is
    asked for again and again, and the file read again when it changed: new addresses are
    joined, and those that have gone are no longer dialled.

    :param seeds: addresses `host:port`, and `seed_file` a file with one a line; see `Mesh`.
    :param resolver: owned from now on.
    :param added: called with an address to dial: its text, by which it is known, and itself.
    :param dropped: called with the text of one to dial no longer.
    :param post: has something done in the server's thread.
    :param refresh_s: seconds between two looks at names and file.
    """

    def __init__(
        self,
        seeds: Sequence[str],
        seed_file: str | os.PathLike[str] | None,
        resolver: Resolver,
        *,
        added: Callable[[str, Address], None],
        dropped: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        report: Callable[[int, Callable[[], str]], None],
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Texts of its own: what a user's class of texts or paths does is done in a user's thread.
        self._file = None if seed_file is None else os.fspath(seed_file)
        self._file_version: tuple[int, int] | None = None
        self._of_file: set[str] = set()
        self._given = [str.__str__(addr) for addr in seeds]
        self._resolver = resolver
        self._added = added
        self._dropped = dropped
        self._post = post
        self._report = report
        self._refresh_s = refresh_s
        self._clock = clock
        self._next: float | None = None
        #: By what was given, the texts of the addresses that it stood for last.
        self._known: dict[str, set[str]] = {}
        #: Those of it that are being looked up.
        self._asked: set[str] = set()

    def start(self) -> None:
        """Begin to look."""
        for addr in self._given:
            self._keep(addr)
        self._look()

    def add(self, addr: str) -> None:
        """Join whoever answers at `host:port`; `Node.join` has checked that it is of that form."""
        self._forget(addr)
        if self._keep(addr):
            self._ask(addr)

    def remove(self, addr: str) -> None:
        """Dial this address no longer, if it was added. The node that answered there stays one."""
        self._forget(addr)

    def watch_file(self, path: str | os.PathLike[str]) -> None:
        """Have another file of seeds from now on."""
        self._file = os.fspath(path)
        self._file_version = None
        self._look()

    def tick(self, now: float) -> None:
        """Look again if it is time to."""
        if self._next is None or now < self._next:
            return
        for addr in sorted(self._asked):
            text = f"the seed {addr} has no address yet: the name server does not answer"
            self._report(logging.WARNING, functools.partial(str, text))
        self._look()

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        return self._next

    def close(self) -> None:
        """Ask nothing more."""
        self._resolver.close()

    def _look(self) -> None:
        self._next = self._clock() + self._refresh_s
        self._read_file()
        for addr in list(self._known):
            self._ask(addr)

    def _keep(self, addr: str) -> bool:
        """Have it among the seeds. False if there are too many, which is reported."""
        if addr not in self._known and len(self._known) >= ADDRESSES_MAX:
            text = f"the seed {addr} is left out: there are {ADDRESSES_MAX} already, the most"
            self._report(logging.ERROR, lambda: text)
            return False
        self._known.setdefault(addr, set())
        return True

    def _forget(self, addr: str) -> None:
        self._asked.discard(addr)
        for text in self._known.pop(addr, set()):
            self._dropped(text)

    def _ask(self, addr: str) -> None:
        self._asked.add(addr)

        def answer(found: list[Address] | OSError) -> None:
            self._post(functools.partial(self._answered, addr, found))

        self._resolver.resolve(addr, answer)

    def _answered(self, addr: str, found: list[Address] | OSError) -> None:
        before = self._known.get(addr)
        self._asked.discard(addr)
        if before is None:
            return
        if isinstance(found, OSError):
            text = f"the seed {addr} has no address now: {found}"
            self._report(logging.WARNING, lambda: text)
            return
        now = {address_text(address): address for address in found[:ADDRESSES_MAX]}
        self._known[addr] = set(now)
        for gone in before - now.keys():
            self._dropped(gone)
        for new in sorted(now.keys() - before):
            self._added(new, now[new])

    def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            found = read_seed_file(self._file, self._file_version)
        except (OSError, ValueError) as error:
            text = f"the file of seeds {self._file} cannot be used: {error}"
            self._report(logging.WARNING, lambda: text)
            return
        if found is None:
            return
        self._file_version, listed, problems = found
        for problem in told(problems):
            text = f"the file of seeds {self._file}, {problem}"
            self._report(logging.WARNING, functools.partial(str, text))
        if not problems:
            # One that is listed no more may be what a bad line was meant to be.
            for addr in self._of_file - listed:
                self._forget(addr)
            self._of_file &= listed
        for addr in sorted(listed - self._of_file):
            self._keep(addr)
        self._of_file |= listed


def read_seed_file(
    path: str, known: tuple[int, int] | None
) -> tuple[tuple[int, int], set[str], list[str]] | None:
    """The addresses in a file with one a line. A line that begins with `#` is none.

    :param known: the version of the file that was read last.
    :returns: its version, the addresses, and what is wrong with each line that is none; `None` if
        this version is known.
    :raises OSError: if it cannot be read.
    :raises ValueError: if it is no regular file, too long, or no path.
    """
    # Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file, which can be read again and again")
        version = (status.st_mtime_ns, status.st_size)
        if version == known:
            return None
        data = b""
        while len(data) <= FILE_BYTES_MAX and (more := os.read(file, FILE_BYTES_MAX)):
            data += more
    finally:
        os.close(file)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX:,} bytes")
    addresses, problems = set(), []
    # As Python opens texts: an editor may have put a mark in front.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        try:
            addr = line.decode().strip()
            if addr and not addr.startswith("#"):
                split_address(addr)
                addresses.add(addr)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    return version, addresses, problems


def told(problems: list[str]) -> list[str]:
    """Those that are told by themselves, and how many others there are."""
    left = len(problems) - BAD_LINES_TOLD_MAX
    return problems[:BAD_LINES_TOLD_MAX] + ([f"and {left} lines more"] if left > 0 else [])
