"""The addresses to join: given ones, those of a host name, and those of a file."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import enum
import functools
import logging
import math
import os
import stat
from collections.abc import Callable, Collection, Sequence

from rabble.addresses import Address, address_text, is_numeric, split_address
from rabble.cluster.io.resolver import Question, Resolver

__all__ = ["ADDRESSES_MAX", "Seeds"]

ADDRESSES_MAX = 1_024
#: Of a file of seeds: as many of the longest addresses, and as much again for what is said of them.
FILE_BYTES_MAX = 2 * 256 * ADDRESSES_MAX
#: Bad lines of one reading that are told of by themselves.
BAD_LINES_TOLD_MAX = 3


class Origin(enum.Enum):
    """Where a seed is from."""

    GIVEN = "given"
    FILE = "file"
    JOIN = "join"


@dataclasses.dataclass(slots=True)
class Seed:
    """An address that was given.

    :param origins: all the places that it is from; it is a seed as long as there is one.
    :param stands_for: the addresses that it stood for last, by their texts.
    :param is_asked: it is being looked up.
    :param joins_anew: what it stands for is to be dialled at once, known or not.
    :param question: the last one to the resolver.
    """

    origins: set[Origin]
    stands_for: dict[str, Address] = dataclasses.field(default_factory=dict)
    is_asked: bool = False
    joins_anew: bool = False
    question: Question | None = None


class Seeds:
    """Keeps the set of seed addresses; belongs to the cluster server's thread.

    A host name stands for all of its addresses, as a headless service of Kubernetes has them. It is
    asked for again and again, and the file read again when it changed: new addresses are
    joined, and those that have gone are no longer dialled. An address that several seeds stand for
    is dialled until none of them does.

    :param seeds: addresses `host:port`, and `seed_file` a file with one a line; see `Mesh`.
    :param resolver: owned from now on.
    :param looked_up: called with a seed that was given, and the texts of all that it stands for, or
        why that is not known.
    :param added: called with an address to dial: its text, by which it is known, and itself.
    :param dropped: called with the text of one to dial no longer.
    :param dialled: the texts of those where nobody has answered yet, given monotonic seconds.
    :param post: has something done in the server's thread.
    :param refresh_s: seconds between two looks at names and file.
    """

    def __init__(
        self,
        seeds: Sequence[str],
        seed_file: str | os.PathLike[str] | None,
        resolver: Resolver,
        *,
        looked_up: Callable[[str, Collection[str] | OSError], None],
        added: Callable[[str, Address], None],
        dropped: Callable[[str], None],
        dialled: Callable[[float], Collection[str]],
        post: Callable[[Callable[[], None]], None],
        report: Callable[[int, Callable[[], str]], None],
        refresh_s: float,
        clock: Callable[[], float],
    ) -> None:
        # Texts of its own: what a user's class of texts or paths does is done in a user's thread.
        self._file = None if seed_file is None else os.fspath(seed_file)
        self._file_version: tuple[int, int] | None = None
        self._given = [str.__str__(addr) for addr in seeds]
        self._resolver = resolver
        self._looked_up = looked_up
        self._added = added
        self._dropped = dropped
        self._dialled = dialled
        self._post = post
        self._report = report
        self._refresh_s = refresh_s
        self._clock = clock
        self._next: float | None = None
        self._is_paused = False
        #: By what was given.
        self._seeds: dict[str, Seed] = {}
        #: Those that the file has listed since it was read first.
        self._of_file: set[str] = set()
        #: How many seeds stand for each address, by its text.
        self._owners: collections.Counter[str] = collections.Counter()

    def start(self) -> None:
        """Begin to look."""
        for addr in self._given:
            self._keep(addr, Origin.GIVEN)
        self._look()

    def add(self, addr: str) -> bool:
        """Join whoever answers at `host:port`; `Node.join` has checked that it is of that form.

        The address is forgotten once a node that answered there is a member; a host name is only
        if there is no room for others, as it may come to stand for more.

        :returns: False if there are too many, which is reported.
        """
        if not self._keep(addr, Origin.JOIN):
            return False
        self._seeds[addr].joins_anew = True
        self._ask(addr)
        return True

    def remove(self, addr: str) -> None:
        """Dial this address no longer, if it was added. The node that answered there stays one."""
        for origin in Origin:
            self._forget(addr, origin)

    def pause(self) -> None:
        """None is dialled: that nobody waits for an answer there does not mean that it came."""
        self._is_paused = True

    def resume(self) -> None:
        """Have all addresses added once more: what became of them before is undone."""
        self._is_paused = False
        for seed in self._seeds.values():
            for text, address in seed.stands_for.items():
                self._added(text, address)

    def watch_file(self, path: str | os.PathLike[str]) -> None:
        """Have another file of seeds from now on."""
        self._file = os.fspath(path)
        self._file_version = None
        self._look()

    def tick(self, now: float) -> None:
        """Look again if it is time to."""
        if self._next is None or now < self._next:
            return
        for addr in sorted(addr for addr, seed in self._seeds.items() if seed.is_asked):
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
        self._forget_answered(names=False)
        self._read_file()
        for addr in list(self._seeds):
            self._ask(addr)

    def _keep(self, addr: str, origin: Origin) -> bool:
        """Have it among the seeds. False if there are too many, which is reported."""
        if addr not in self._seeds:
            if len(self._seeds) >= ADDRESSES_MAX:
                self._forget_answered(names=True)
            if len(self._seeds) >= ADDRESSES_MAX:
                text = (
                    f"the seed {addr} is left out, as there are {ADDRESSES_MAX:,}, the most; leave "
                    f"addresses that were joined and where nobody answers, or join nodes by their "
                    f"ids, name@host:port"
                )
                self._report(logging.WARNING, lambda: text)
                return False
            self._seeds[addr] = Seed(set())
        self._seeds[addr].origins.add(origin)
        return True

    def _forget(self, addr: str, origin: Origin) -> None:
        """It is no longer from there; and no seed if it is from nowhere else."""
        seed = self._seeds.get(addr)
        if seed is None:
            return
        seed.origins.discard(origin)
        if seed.origins:
            return
        del self._seeds[addr]
        if seed.question is not None:
            seed.question.withdraw()
        self._stand_for(seed, {})

    def _forget_answered(self, *, names: bool) -> None:
        """Forget what was joined, and nothing else, and has come to a member.

        :param names: host names, too, and not only addresses.
        """
        if self._is_paused:
            return
        dialled = self._dialled(self._clock())
        for addr, seed in list(self._seeds.items()):
            if (
                seed.origins == {Origin.JOIN}
                and seed.stands_for
                and not seed.is_asked
                and (names or is_numeric(addr))
                and not any(text in dialled for text in seed.stands_for)
            ):
                self._forget(addr, Origin.JOIN)

    def _ask(self, addr: str) -> None:
        seed = self._seeds[addr]
        if seed.is_asked:
            return
        seed.is_asked = True

        def answer(found: list[Address] | OSError) -> None:
            try:
                self._post(functools.partial(self._answered, addr, seed, found))
            except BaseException:
                # Memory is exhausted, say. The next look asks again.
                seed.is_asked = False
                raise

        # Until it is no seed any more: put in again it would be behind all others.
        seed.question = self._resolver.resolve(addr, answer, math.inf)

    def _answered(self, addr: str, seed: Seed, found: list[Address] | OSError) -> None:
        seed.is_asked = False
        if self._seeds.get(addr) is not seed:
            return
        if isinstance(found, OSError):
            text = f"the seed {addr} has no address now: {found}"
            self._report(logging.WARNING, lambda: text)
            self._looked_up(addr, found)
            return
        stands_for = {address_text(address): address for address in found[:ADDRESSES_MAX]}
        self._looked_up(addr, stands_for.keys())
        self._stand_for(seed, stands_for)

    def _stand_for(self, seed: Seed, now: dict[str, Address]) -> None:
        """A seed stands for these addresses from now on, and for no others."""
        before, seed.stands_for = seed.stands_for, now
        joins_anew, seed.joins_anew = seed.joins_anew, False
        self._owners.update(now.keys() - before.keys())
        for gone in before.keys() - now.keys():
            self._owners[gone] -= 1
            if not self._owners[gone]:
                del self._owners[gone]
                self._dropped(gone)
        for text in sorted(now):
            if joins_anew or (text not in before and self._owners[text] == 1):
                self._added(text, now[text])

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
                self._forget(addr, Origin.FILE)
            self._of_file &= listed
        for addr in sorted(listed - self._of_file):
            if self._keep(addr, Origin.FILE):
                self._of_file.add(addr)


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
