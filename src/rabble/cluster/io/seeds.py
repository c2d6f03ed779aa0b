"""The addresses to join: given ones, those of a host name, and those of a file."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence

from rabble.cluster.decide.address import split_address
from rabble.cluster.io.resolver import Address, Resolver

__all__ = ["Seeds"]

ADDRESSES_MAX = 1_024


class Seeds:
    """Keeps the set of seed addresses; belongs to the cluster server's thread.

    A host name stands for all of its addresses, as a headless service of Kubernetes has them. It is
    asked for again and again, and the file read again when it changed: what is new is joined, and
    what has gone is no longer dialled.

    :param seeds: addresses `host:port`, and `seed_file` a file with one a line; see `Mesh`.
    :param resolver: owned from now on.
    :param added: called with an address to dial.
    :param dropped: called with one to dial no longer.
    :param post: has something done in the server's thread.
    :param refresh_s: seconds between two looks at names and file.
    """

    def __init__(
        self,
        seeds: Sequence[str],
        seed_file: str | os.PathLike[str] | None,
        resolver: Resolver,
        *,
        added: Callable[[str], None],
        dropped: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        report: Callable[[int, Callable[[], str]], None],
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = seed_file
        self._file_version: tuple[int, int] | None = None
        self._of_file: set[str] = set()
        self._given = list(seeds)
        self._resolver = resolver
        self._added = added
        self._dropped = dropped
        self._post = post
        self._report = report
        self._refresh_s = refresh_s
        self._clock = clock
        self._next: float | None = None
        #: By what was given, the numeric addresses that it stood for last.
        self._known: dict[str, set[str]] = {}

    def start(self) -> None:
        """Begin to look."""
        for addr in self._given:
            self._watch(addr)
        self._look()

    def add(self, addr: str) -> None:
        """Join whoever answers at this address. Raises `ValueError` if it is none."""
        split_address(addr)
        self._forget(addr)
        self._watch(addr)

    def remove(self, addr: str) -> None:
        """Dial this address no longer, if it was added. Who answered there stays a member."""
        self._forget(addr)

    def watch_file(self, path: str | os.PathLike[str]) -> None:
        """Have another file of seeds from now on."""
        self._file = path
        self._file_version = None
        self._look()

    def tick(self, now: float) -> None:
        """Look again if it is time to."""
        if self._next is not None and now >= self._next:
            self._look()

    def next_tick(self) -> float | None:
        """When `tick` has something to do."""
        return self._next

    def close(self) -> None:
        """Ask nothing more."""
        self._resolver.close()

    def _look(self) -> None:
        self._read_file()
        for addr in list(self._known):
            self._ask(addr)
        self._next = self._clock() + self._refresh_s

    def _watch(self, addr: str) -> None:
        if addr not in self._known:
            if len(self._known) >= ADDRESSES_MAX:
                text = f"the seed {addr} is left out: there are {ADDRESSES_MAX} already, the most"
                self._report(logging.ERROR, lambda: text)
                return
            self._known[addr] = set()
        self._ask(addr)

    def _forget(self, addr: str) -> None:
        for numeric in self._known.pop(addr, set()):
            self._dropped(numeric)

    def _ask(self, addr: str) -> None:
        def answer(found: list[Address] | OSError) -> None:
            self._post(functools.partial(self._answered, addr, found))

        self._resolver.resolve(addr, answer)

    def _answered(self, addr: str, found: list[Address] | OSError) -> None:
        before = self._known.get(addr)
        if before is None:
            return
        if isinstance(found, OSError):
            text = f"the seed {addr} has no address now: {found}"
            self._report(logging.WARNING, lambda: text)
            return
        now = {numeric(where) for _, where in found[:ADDRESSES_MAX]}
        self._known[addr] = now
        for gone in before - now:
            self._dropped(gone)
        for new in sorted(now - before):
            self._added(new)

    def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            status = os.stat(self._file)
            version = (status.st_mtime_ns, status.st_size)
            if version == self._file_version:
                return
            with open(self._file, encoding="utf-8") as lines:
                listed = {line.strip() for line in lines if line.strip() and line[0] != "#"}
            for addr in listed:
                split_address(addr)
        except (OSError, ValueError) as error:
            text = f"the file of seeds {self._file} cannot be used: {error}"
            self._report(logging.WARNING, lambda: text)
            return
        self._file_version = version
        for addr in self._of_file - listed:
            self._forget(addr)
        for addr in sorted(listed - self._of_file):
            self._watch(addr)
        self._of_file = listed


def numeric(where: tuple[object, ...]) -> str:
    """The `host:port` of an address as `socket.connect` takes it."""
    host, port = str(where[0]), where[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
