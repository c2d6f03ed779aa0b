"""The names and groups of one node's processes: its own set of entries, and a peer's copy of it.

Each node owns the entries of its own processes and nobody else says anything of them. So the state
of an owner is one line of *versions*, each a set of entries: it grows by one with every entry that
is added or dropped, and merging two states is to take that of the higher version. An entry has the
number of the version it came with, its *dot*, and never changes. (It is the delta state of Almeida,
Shoker and Baquero, "Delta state replicated data types", 2018, for a single writer.)

A *statement* tells of versions. A *delta* says what came and went between two of them, and says
nothing to who does not have the first one. What is long is told in several, of which all but the
last lead to a version on the way. A *whole* begins from nothing, in as many parts as its size
takes, which count when all of them are there. Whatever is lost, doubled, late or out of order, a
copy is what its owner had at some version, and never goes back to an earlier one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from rabble._core.directory_messages import checked_name
from rabble._core.ids import NodeId, Pid
from rabble.cluster.decide.membership_state import shown
from rabble.limits import Limits

__all__ = [
    "VERSION_MAX",
    "Changes",
    "DirectoryError",
    "DirectoryLimit",
    "Entry",
    "GroupEntry",
    "NameEntry",
    "OwnEntries",
    "PeerEntries",
    "Statement",
    "row_bytes",
]

#: Of versions, dots and times: they fit into 63 bits.
VERSION_MAX = 2**63 - 1
#: Bytes of a row besides its texts, at most.
ROW_HEAD_BYTES = 32
#: Bytes of the rows of one statement: more of them are told in several. As it is shorter than a
#: fragment, by default, no small message that is sent later overtakes it.
STATEMENT_BYTES_MAX = 12 * 1024
#: Bytes that a dropped dot takes of it.
DOT_BYTES = 9
#: Of all of these in one statement. What those bytes hold is less.
CHANGES_MAX = 4_096
MEMBERS = "members of one group"


class DirectoryError(ValueError):
    """What a peer says of its names and groups is not well-formed."""


class DirectoryLimit(DirectoryError):
    """There is no room for so many names, groups or members."""


class NameEntry(NamedTuple):
    """A process has a name, or is about to have it."""

    dot: int
    name: str
    pid: Pid
    #: When it asked for it: milliseconds since 1970 by its node's clock.
    since: int
    #: Whether it has the name; if not, its node waits for the others to know that it wants it.
    is_held: bool


class GroupEntry(NamedTuple):
    """A process is a member of a group."""

    dot: int
    group: str
    pid: Pid


Entry = NameEntry | GroupEntry
#: What came, or the dot of what went.
Change = Entry | int
AnyChange = TypeVar("AnyChange", NameEntry | GroupEntry, NameEntry | GroupEntry | int)


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What a statement did to a copy: what went is no part of what came."""

    gone: tuple[Entry, ...] = ()
    come: tuple[Entry, ...] = ()


NOTHING_NEW = Changes()


@dataclasses.dataclass(slots=True)
class Book:
    """Entries by what they are of, and what they take."""

    names: dict[str, NameEntry] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[Pid, GroupEntry]] = dataclasses.field(default_factory=dict)
    by_dot: dict[int, Entry] = dataclasses.field(default_factory=dict)
    bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.by_dot[entry.dot] = entry
        self.bytes += row_bytes(entry)
        if isinstance(entry, NameEntry):
            self.names[entry.name] = entry
        else:
            self.groups.setdefault(entry.group, {})[entry.pid] = entry

    def drop(self, entry: Entry) -> None:
        del self.by_dot[entry.dot]
        self.bytes -= row_bytes(entry)
        if isinstance(entry, NameEntry):
            del self.names[entry.name]
            return
        members = self.groups[entry.group]
        del members[entry.pid]
        if not members:
            del self.groups[entry.group]

    def check(self, limits: Limits, groups: Iterable[str]) -> None:
        """Raise `DirectoryLimit` if it is more than one node may have.

        :param groups: those that have grown.
        """
        check_most(len(self.names), limits.names_max, "names", "names_max")
        check_most(len(self.groups), limits.groups_max, "groups", "groups_max")
        check_most(self.bytes, limits.directory_bytes_max, "bytes", "directory_bytes_max")
        for group in groups:
            most = limits.group_members_max
            check_most(len(self.groups[group]), most, MEMBERS, "group_members_max")


class OwnEntries:
    """What a node says of its own processes. For one thread.

    :param limits: the bounds of names, groups and bytes.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._book = Book()
        self.version = 0
        self._told = 0
        #: Changes since `_told`, by the version that each one made.
        self._untold: dict[int, Change] = {}

    @property
    def names(self) -> dict[str, NameEntry]:
        """By name. Not to be changed."""
        return self._book.names

    @property
    def groups(self) -> dict[str, dict[Pid, GroupEntry]]:
        """By group and pid. Not to be changed."""
        return self._book.groups

    @property
    def entries(self) -> frozenset[Entry]:
        """All of them."""
        return frozenset(self._book.by_dot.values())

    @property
    def is_untold(self) -> bool:
        """Whether something has changed since the last `deltas`."""
        return self.version > self._told

    def add_name(self, name: str, pid: Pid, since: int, *, is_held: bool) -> NameEntry:
        """Note that a process has a name, or is about to; in place of what it had of it so far.

        :raises DirectoryLimit: if there is no room.
        """
        entry = NameEntry(self.version + 1, name, pid, since, is_held)
        known = self.names.get(name)
        if known is None:
            check_most(len(self.names) + 1, self._limits.names_max, "names", "names_max")
            self._check_bytes(entry)
        else:
            self.drop(known)
            entry = entry._replace(dot=self.version + 1)
        self._add(entry)
        return entry

    def add_member(self, group: str, pid: Pid) -> GroupEntry:
        """Note that a process, which is no member of a group, is one.

        :raises DirectoryLimit: if there is no room.
        """
        entry = GroupEntry(self.version + 1, group, pid)
        members = self.groups.get(group)
        limits = self._limits
        if members is None:
            check_most(len(self.groups) + 1, limits.groups_max, "groups", "groups_max")
        else:
            most = limits.group_members_max
            check_most(len(members) + 1, most, MEMBERS, "group_members_max")
        self._check_bytes(entry)
        self._add(entry)
        return entry

    def drop(self, entry: Entry) -> None:
        """Note that an entry is none any more."""
        self._book.drop(entry)
        self.version += 1
        # One that was not told is not told of.
        if self._untold.pop(entry.dot, None) is None:
            self._untold[self.version] = entry.dot

    def deltas(self) -> list[dict[str, Any]]:
        """Statements of what has changed since the last call; it counts as told."""
        if not self.is_untold:
            return []
        statements = []
        first = self._told
        for untold in parts(sorted(self._untold.items())):
            last = untold[-1][0]
            entries = [change for _, change in untold if not isinstance(change, int)]
            gone = [change for _, change in untold if isinstance(change, int)]
            statements.append(statement(first, last, entries) | {"x": gone})
            first = last
        if not statements:
            statements.append(statement(first, first, []) | {"x": []})
        statements[-1]["t"] = self._told = self.version
        self._untold.clear()
        return statements

    def whole(self) -> list[dict[str, Any]]:
        """Statements of all there is, for who knows nothing of it: `deltas` goes before."""
        if not self.version:
            return []
        statements: list[dict[str, Any]] = []
        first = 0
        for part in parts(sorted(self._book.by_dot.items())):
            last = part[-1][0]
            statements.append(statement(first, last, [entry for _, entry in part]))
            first = last
        if not statements:
            statements.append(statement(0, 0, []))
        statements[-1]["t"] = self.version
        return [each | {"w": self.version} for each in statements]

    def _add(self, entry: Entry) -> None:
        self.version = entry.dot
        self._book.add(entry)
        self._untold[entry.dot] = entry

    def _check_bytes(self, entry: Entry) -> None:
        most = self._limits.directory_bytes_max
        check_most(self._book.bytes + row_bytes(entry), most, "bytes", "directory_bytes_max")


@dataclasses.dataclass(slots=True)
class Staged:
    """Parts of a whole that have come."""

    #: The version that the last one is of, and up to which they are there.
    version: int
    at: int = 0
    book: Book = dataclasses.field(default_factory=Book)


class PeerEntries:
    """A copy of what a peer says of its own processes. For one thread.

    :param node: of which peer.
    :param limits: the bounds of what is taken in.
    """

    def __init__(self, node: NodeId, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._book = Book()
        self._staged: Staged | None = None
        #: The version that this is a copy of.
        self.version = 0
        #: Whether a later one is known of, by a statement that could not be used.
        self.is_behind = False

    @property
    def names(self) -> dict[str, NameEntry]:
        """By name. Not to be changed."""
        return self._book.names

    @property
    def entries(self) -> frozenset[Entry]:
        """All of them."""
        return frozenset(self._book.by_dot.values())

    def read(self, said: Statement) -> Changes:
        """Take a statement in.

        :raises DirectoryError: if it says what cannot be; `DirectoryLimit` if there is no room.
            Nothing of it was taken in then.
        """
        if (said.last if said.whole is None else said.whole) <= self.version:
            return NOTHING_NEW
        if said.whole is not None:
            return self._read_part(said, said.whole)
        if said.first != self.version:
            self.is_behind = True
            return NOTHING_NEW
        gone = [self._book.by_dot[dot] for dot in said.gone if dot in self._book.by_dot]
        for entry in gone:
            self._book.drop(entry)
        try:
            self._add_all(self._book, said)
        except DirectoryError:
            for entry in gone:
                self._book.add(entry)
            raise
        self.version = said.last
        self._catch_up()
        return Changes(tuple(gone), said.entries)

    def _read_part(self, said: Statement, version: int) -> Changes:
        if said.first == 0:
            self._staged = Staged(version)
        staged = self._staged
        if staged is None or (staged.version, staged.at) != (version, said.first):
            self.is_behind = True
            return NOTHING_NEW
        try:
            self._add_all(staged.book, said)
        except DirectoryError:
            self._staged = None
            raise
        staged.at = said.last
        if staged.at < version:
            return NOTHING_NEW
        before, self._book, self._staged = self._book, staged.book, None
        self.version = version
        self._catch_up()
        after = self._book.by_dot
        return Changes(
            tuple(entry for dot, entry in before.by_dot.items() if after.get(dot) != entry),
            tuple(entry for dot, entry in after.items() if before.by_dot.get(dot) != entry),
        )

    def _catch_up(self) -> None:
        self.is_behind = False
        if self._staged is not None and self._staged.version <= self.version:
            self._staged = None

    def _add_all(self, book: Book, said: Statement) -> None:
        """Add the entries of a statement to a book, or none of them."""
        added: list[Entry] = []
        try:
            for entry in said.entries:
                if isinstance(entry, NameEntry):
                    known: object = book.names.get(entry.name)
                else:
                    known = book.groups.get(entry.group, {}).get(entry.pid)
                if known is not None:
                    raise DirectoryError(f"{shown(entry[1])} is there twice")
                book.add(entry)
                added.append(entry)
            book.check(self._limits, {each.group for each in added if isinstance(each, GroupEntry)})
        except DirectoryError:
            for entry in added:
                book.drop(entry)
            raise


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """What an owner says, as it was checked.

    :param first: the version that the receiver has to have; 0 begins a whole.
    :param last: that it has then.
    :param entries: that came.
    :param gone: the dots of those that went.
    :param whole: of which version this is a part of all there is; `None`: it is a delta.
    """

    first: int
    last: int
    entries: tuple[Entry, ...]
    gone: tuple[int, ...]
    whole: int | None

    @classmethod
    def of(cls, node: NodeId, message: dict[str, Any]) -> Statement:
        """Check a statement of a peer, which is trusted in nothing.

        :param node: of which peer.
        :raises DirectoryError: says what is wrong with it.
        """
        last = checked_int(message.get("t"), 0, "'t'")
        first = checked_int(message.get("f"), 0, "'f'", last)
        whole = message.get("w")
        if whole is not None:
            whole = checked_int(whole, last, "'w'")
        names, members = (checked_array(message.get(key), key) for key in ("n", "g"))
        gone = checked_array(message.get("x", []), "x")
        # Before any of them is looked at: that takes some time for each.
        if len(names) + len(members) + len(gone) > CHANGES_MAX:
            raise DirectoryError(
                f"{len(names)} names, {len(members)} members and {len(gone)} dots are more than "
                f"{CHANGES_MAX} in one statement"
            )
        if whole is not None and gone:
            raise DirectoryError("a part of a whole says what went")
        if first == last:
            raise DirectoryError("a statement goes from a version to a later one")
        found: list[Entry] = [checked_name_row(node, row) for row in names]
        found += [checked_member_row(node, row) for row in members]
        dots = [entry.dot for entry in found]
        if any(not first < dot <= last for dot in dots) or len(set(dots)) < len(dots):
            raise DirectoryError("a dot is not of the versions that are told, or is there twice")
        for dot in gone:
            checked_int(dot, 1, "a dot that went", first)
        if len(set(gone)) < len(gone):
            raise DirectoryError("'x' has a dot twice")
        return cls(first, last, tuple(found), tuple(gone), whole)


# Rows.


def statement(first: int, last: int, entries: list[Entry]) -> dict[str, Any]:
    names = [
        [entry.dot, entry.name, entry.pid.name, entry.pid.group, entry.since, entry.is_held]
        for entry in entries
        if isinstance(entry, NameEntry)
    ]
    members = [
        [entry.dot, entry.group, entry.pid.name, entry.pid.group]
        for entry in entries
        if isinstance(entry, GroupEntry)
    ]
    return {"f": first, "t": last, "n": names, "g": members}


def checked_name_row(node: NodeId, row: object) -> NameEntry:
    if type(row) is not list or len(row) != 6:
        raise DirectoryError(f"a name is an array of 6 elements, not {shown(row)}")
    dot, name, process, tenant, since, is_held = row
    if type(is_held) is not bool:
        raise DirectoryError(f"whether a name is held is a boolean, not {shown(is_held)}")
    return NameEntry(
        checked_int(dot, 1, "a dot"),
        checked_from_wire(name),
        checked_pid(node, process, tenant),
        checked_int(since, 0, "the time of a name"),
        is_held,
    )


def checked_member_row(node: NodeId, row: object) -> GroupEntry:
    if type(row) is not list or len(row) != 4:
        raise DirectoryError(f"a member is an array of 4 elements, not {shown(row)}")
    dot, group, process, tenant = row
    return GroupEntry(
        checked_int(dot, 1, "a dot"),
        checked_from_wire(group),
        checked_pid(node, process, tenant),
    )


def checked_pid(node: NodeId, process: object, tenant: object) -> Pid:
    try:
        return Pid(process, node, tenant)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DirectoryError(str(error)) from None


def checked_from_wire(text: object) -> str:
    try:
        return checked_name(text)
    except (TypeError, ValueError) as error:
        raise DirectoryError(str(error)) from None


def checked_int(value: object, least: int, what: str, most: int = VERSION_MAX) -> int:
    if type(value) is not int or not least <= value <= most:
        raise DirectoryError(f"{what} must be {least} to {most}, not {shown(value)}")
    return value


def checked_array(value: object, key: str) -> list[Any]:
    if type(value) is not list:
        raise DirectoryError(f"{key!r} must be an array, not {shown(value)}")
    return value


def check_most(count: int, most: int, what: str, limit: str) -> None:
    if count > most:
        raise DirectoryLimit(f"{count} {what} are too many: Limits.{limit} is {most}")


def row_bytes(entry: Entry) -> int:
    """What an entry counts of a node's bytes."""
    pid = entry.pid
    texts = (entry[1], pid.name, pid.group or "")
    return ROW_HEAD_BYTES + sum(len(text.encode()) for text in texts)


def cost_of_change(change: Change) -> int:
    return DOT_BYTES if isinstance(change, int) else row_bytes(change)


def parts(changes: Iterable[tuple[int, AnyChange]]) -> Iterator[list[tuple[int, AnyChange]]]:
    """Changes in as many lists as their size takes, each with one at least."""
    part: list[tuple[int, AnyChange]] = []
    size = 0
    for version, change in changes:
        size += cost_of_change(change)
        if part and size > STATEMENT_BYTES_MAX:
            yield part
            part, size = [], cost_of_change(change)
        part.append((version, change))
    if part:
        yield part
