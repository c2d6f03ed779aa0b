"""Names with one owner and groups with many members, as one node of a mesh knows them.

Each node tells each other one of its own processes (see `directory_state`), over their connection,
and what a node was told goes with that connection. So nobody speaks for another node, nothing of a
node that is down or removed is left, and two that are connected and have told each other all agree.

**One owner.** Who registers a name makes a *claim*, which all peers are told and acknowledge, and
answers with what they claim themselves, as each tells what it has to tell before it acknowledges.
When all have, the node knows of every claim that began before its own was known everywhere, and
holds the name if there is no better one. Of two nodes that claim at once each knows of the other's
claim by then, so one of them holds the name; and nobody claims a name of which it knows a claim. A
peer that does not answer within `name_claim_ms` is not waited for.

**Guests** are told all, and have none of their own: one guest would not hear of another's.

**After a partition** a name may be held twice. Of two claims that are held the *better* one is that
with the earlier time, and of equal ones that of the lesser node. All nodes see both, and choose
alike; the node of the other process gives it up and tells that process. Times are those of the
nodes' clocks: a clock that is wrong changes who keeps a name, not that one does. A member may say
what it likes of the time: members trust each other that far, as they do with removals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rabble._core.directory_messages import (
    GroupChanged,
    GroupJoined,
    GroupLeft,
    GroupMembers,
    GroupRefused,
    NameHolder,
    NameLost,
    NameRefused,
    Registered,
    Unregistered,
)
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.messages import is_guest
from rabble.cluster.decide.directory_state import (
    VERSION_MAX,
    Changes,
    DirectoryError,
    DirectoryLimit,
    Entry,
    NameEntry,
    OwnEntries,
    PeerEntries,
    Statement,
    checked_int,
)
from rabble.cluster.decide.membership_state import shown
from rabble.limits import Limits

__all__ = ["Action", "Answer", "Asker", "Directory", "Life", "Tell"]


#: Why a guest has no names.
NO_GUEST = "a guest has no names and is in no groups, since other guests would not hear of it"


class Life(NamedTuple):
    """A process or service of this node, from a start of it to its end."""

    pid: Pid
    #: The number of that start.
    number: int


class Asker(NamedTuple):
    """Who is answered, and by which correlation id it knows what."""

    life: Life
    correlation_id: CorrelationId | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Send a message to a life of this node, if it still is one."""

    to: Asker
    msg: object


@dataclasses.dataclass(frozen=True, slots=True)
class Tell:
    """Send a peer a message: what its `Directory.read` is for."""

    node: NodeId
    message: dict[str, Any]


Action = Answer | Tell


@dataclasses.dataclass(slots=True)
class Owner:
    """What is kept for one life."""

    number: int
    names: set[str] = dataclasses.field(default_factory=set)
    groups: set[str] = dataclasses.field(default_factory=set)
    subscriptions: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(slots=True)
class Claim:
    """A name that is not held yet.

    :param awaiting: the peers that have not acknowledged it.
    :param deadline: until when they are waited for.
    """

    entry: NameEntry
    askers: list[Asker]
    awaiting: set[NodeId]
    deadline: float


@dataclasses.dataclass(slots=True)
class Peer:
    """A node that is connected.

    :param whole_at: when it was last told all there is.
    """

    entries: PeerEntries
    whole_at: float


class Directory:
    """The names and groups of the mesh, for one thread. Does no I/O.

    :param own: this node.
    :param limits: the bounds, and the times of gathering, digests and claims.
    :param wall_ms: milliseconds since 1970.
    :param guest: this node is a guest of the mesh. That cannot be seen of its address, which has
        the port 0 where there is no mesh, too.

    `now` is monotonic seconds throughout. What changes anything returns what is to be done.
    """

    def __init__(
        self, own: NodeId, limits: Limits, wall_ms: Callable[[], int], *, guest: bool = False
    ) -> None:
        self._own = own
        self._is_guest = guest
        self._limits = limits
        self._wall_ms = wall_ms
        self._gather_s = limits.gossip_gather_ms / 1000
        self._digest_s = limits.digest_ms / 1000
        self._claim_s = limits.name_claim_ms / 1000
        self._entries = OwnEntries(limits)
        self._peers: dict[NodeId, Peer] = {}
        #: What peers say of each name.
        self._names_of_peers: dict[str, dict[NodeId, NameEntry]] = {}
        self._members: dict[str, set[Pid]] = {}
        #: The same in order, of those that somebody asked for since they changed.
        self._sorted: dict[str, tuple[Pid, ...]] = {}
        self._owners: dict[Pid, Owner] = {}
        self._claims: dict[str, Claim] = {}
        self._subscribers: dict[str, dict[Pid, Life]] = {}
        #: Who came to groups and left them, for the subscribers.
        self._joined: dict[str, set[Pid]] = {}
        self._left: dict[str, set[Pid]] = {}
        self._actions: list[Action] = []
        self._told_at = float("-inf")
        self._tell_at: float | None = None
        self._digest_at: float | None = None

    # What it knows.

    def holder(self, name: str) -> Pid | None:
        """Who has a name."""
        held = [entry for entry in self._known_of(name) if entry.is_held]
        return min(held, key=rank).pid if held else None

    def members(self, group: str) -> tuple[Pid, ...]:
        """Who is in a group: those of this node first, and of either the lesser pids."""
        found = self._sorted.get(group)
        if found is None:
            found = tuple(
                sorted(
                    self._members.get(group, ()),
                    key=lambda pid: (pid.node != self._own, pid),
                )
            )
            if found:
                self._sorted[group] = found
        return found

    @property
    def names(self) -> dict[str, Pid]:
        """All names that are held."""
        names = {*self._entries.names, *self._names_of_peers}
        holders = ((name, self.holder(name)) for name in sorted(names))
        return {name: pid for name, pid in holders if pid is not None}

    @property
    def groups(self) -> dict[str, tuple[Pid, ...]]:
        """All groups that have members."""
        return {group: self.members(group) for group in sorted(self._members)}

    @property
    def due(self) -> float | None:
        """When to call `tick`; `None`: nothing will have to be done."""
        # Who has never said anything has no digest to say.
        digest_at = self._digest_at if self._entries.version else None
        times = [time for time in (self._tell_at, digest_at) if time is not None]
        times += [claim.deadline for claim in self._claims.values()]
        return min(times, default=None)

    # What processes of this node ask.

    def register(self, name: str, owner: Life, asker: Asker, now: float) -> list[Action]:
        """A process is to have a name."""
        if self._is_guest:
            self._answer(asker, NameRefused(name, "guest", detail=NO_GUEST))
            return self._done()
        names = self._owner(owner).names
        entry = self._entries.names.get(name)
        if entry is None:
            entry = min(self._known_of(name), key=order, default=None)
        elif entry.pid == owner.pid:
            # It has it, or asked before.
            if entry.is_held:
                self._answer(asker, Registered(name, owner.pid))
            else:
                self._claims[name].askers.append(asker)
            return self._done()
        if entry is not None:
            self._answer(asker, NameRefused(name, "taken", entry.pid))
            return self._done()
        try:
            since = max(self._wall_ms(), 0)
            entry = self._entries.add_name(name, owner.pid, since, is_held=False)
        except DirectoryLimit as error:
            self._answer(asker, NameRefused(name, "limit", detail=str(error)))
            return self._done()
        names.add(name)
        deadline = now + self._claim_s
        awaiting = {node for node in self._peers if not is_guest(node)}
        self._claims[name] = Claim(entry, [asker], awaiting, deadline)
        self._settle(name, now)
        # Others that come before the answers to the first one are gathered: see RFC 896.
        self._changed(now, at_once=len(self._claims) == 1)
        return self._done()

    def unregister(self, name: str, owner: Life, asker: Asker, now: float) -> list[Action]:
        """A process gives a name back."""
        entry = self._entries.names.get(name)
        had_it = entry is not None and entry.pid == owner.pid
        if had_it:
            self._give_up(name, "given_back")
            self._changed(now)
        self._answer(asker, Unregistered(name, had_it))
        return self._done()

    def where_is(self, name: str, asker: Asker) -> list[Action]:
        """Somebody asks who has a name."""
        self._answer(asker, NameHolder(name, self.holder(name)))
        return self._done()

    def join(self, group: str, owner: Life, asker: Asker, now: float) -> list[Action]:
        """A process is to be a member of a group."""
        if self._is_guest:
            self._answer(asker, GroupRefused(group, "guest", NO_GUEST))
            return self._done()
        groups = self._owner(owner).groups
        if owner.pid not in self._entries.groups.get(group, ()):
            try:
                entry = self._entries.add_member(group, owner.pid)
            except DirectoryLimit as error:
                self._answer(asker, GroupRefused(group, "limit", str(error)))
                return self._done()
            groups.add(group)
            self._came((entry,))
            self._changed(now)
        self._answer(asker, GroupJoined(group, owner.pid))
        return self._done()

    def leave(self, group: str, owner: Life, asker: Asker, now: float) -> list[Action]:
        """A process is no member of a group any more."""
        was_member = owner.pid in self._entries.groups.get(group, ())
        if was_member:
            self._leave(group, owner.pid)
            self._changed(now)
        self._answer(asker, GroupLeft(group, was_member))
        return self._done()

    def ask_members(self, group: str, asker: Asker) -> list[Action]:
        """Somebody asks who is in a group."""
        self._answer(asker, GroupMembers(group, self.members(group)))
        return self._done()

    def subscribe(self, group: str, owner: Life, wanted: bool, asker: Asker) -> list[Action]:
        """A process is to be told of a group, or no longer."""
        if wanted:
            self._owner(owner).subscriptions.add(group)
            self._subscribers.setdefault(group, {})[owner.pid] = owner
        elif owner.pid in self._owners:
            self._owners[owner.pid].subscriptions.discard(group)
            self._unsubscribe(group, owner.pid)
        return self.ask_members(group, asker)

    def ended(self, life: Life, now: float) -> list[Action]:
        """A life is over: what it had goes with it."""
        owner = self._owners.get(life.pid)
        if owner is not None and owner.number == life.number:
            self._end(life.pid, owner)
            self._changed(now)
        return self._done()

    # Peers.

    def peer_up(self, node: NodeId, now: float) -> list[Action]:
        """A node is connected: it is told all there is, and no name is held without it."""
        if node in self._peers:
            self._forget(node, now)
        self._flush(now)
        self._peers[node] = Peer(PeerEntries(node, self._limits), now)
        for claim in () if is_guest(node) else self._claims.values():
            claim.awaiting.add(node)
        self._tell(node, self._entries.whole())
        if self._digest_at is None:
            self._digest_at = now + self._digest_s
        return self._done()

    def peer_down(self, node: NodeId, now: float) -> list[Action]:
        """A node is connected no longer: its entries go."""
        if node in self._peers:
            self._forget(node, now)
        return self._done()

    def read(self, node: NodeId, message: object, now: float) -> list[Action]:
        """Take in what a peer says.

        :param message: as it was decoded; trusted in nothing.
        :raises DirectoryError: if it is not well-formed; `DirectoryLimit` if there is no room.
            Nothing of it was taken in then.
        """
        peer = self._peers.get(node)
        if peer is None:
            return []
        if type(message) is not dict:
            raise DirectoryError(f"a message is a map, not {shown(message)}")
        acknowledged = message.get("a")
        if acknowledged is not None:
            checked_int(acknowledged, 0, "'a'", self._entries.version)
        digest = message.get("d")
        if digest is not None:
            checked_int(digest, 0, "'d'", VERSION_MAX)
        if "t" in message and is_guest(node):
            raise DirectoryError("it is a guest, which has no names and groups")
        if "t" in message:
            self._read_statement(peer, node, Statement.of(node, message), now)
        if acknowledged is not None:
            self._acknowledged(node, acknowledged, now)
        if peer.entries.is_behind or (digest is not None and digest > peer.entries.version):
            # Asked again at the next digest, if it is lost.
            peer.entries.is_behind = False
            self._actions.append(Tell(node, {"q": True}))
        if message.get("q") is True and now - peer.whole_at >= self._digest_s / 2:
            peer.whole_at = now
            self._flush(now)
            self._tell(node, self._entries.whole())
        return self._done()

    # Time.

    def tick(self, now: float) -> list[Action]:
        """Do what the time has come for."""
        for name, claim in list(self._claims.items()):
            if now >= claim.deadline:
                claim.awaiting.clear()
                self._settle(name, now)
        self._changed(now)
        if self._tell_at is not None and now >= self._tell_at:
            self._flush(now)
        if self._digest_at is not None and now >= self._digest_at:
            self._flush(now)
            self._digest_at = now + self._digest_s if self._peers else None
            if self._entries.version:
                for node in self._peers:
                    self._actions.append(Tell(node, {"d": self._entries.version}))
        return self._done()

    # The rest is internal: names.

    def _known_of(self, name: str) -> Iterable[NameEntry]:
        own = self._entries.names.get(name)
        of_peers = self._names_of_peers.get(name, {}).values()
        return (*of_peers, own) if own is not None else of_peers

    def _settle(self, name: str, now: float) -> None:
        """Hold a name, or let go of it, once all know that this node claims it."""
        claim = self._claims[name]
        if claim.awaiting:
            return
        best = min(self._known_of(name), key=order)
        pid = claim.entry.pid
        if best.pid != pid:
            self._give_up(name, "taken", best.pid)
            return
        del self._claims[name]
        self._entries.add_name(name, pid, claim.entry.since, is_held=True)
        # Whatever the process sends from now on comes to a node behind the news that it holds it.
        self._changed(now, at_once=True)
        for asker in claim.askers:
            self._answer(asker, Registered(name, pid))

    def _resolve(self, name: str) -> None:
        """Give up a name that is held twice, if the other claim is the better one."""
        own = self._entries.names.get(name)
        if own is None or not own.is_held:
            return
        best = min((entry for entry in self._known_of(name) if entry.is_held), key=rank)
        if best is not own:
            number = self._owners[own.pid].number
            self._give_up(name, "taken", best.pid)
            self._answer(Asker(Life(own.pid, number)), NameLost(name, best.pid))

    def _give_up(self, name: str, reason: str, holder: Pid | None = None) -> None:
        entry = self._entries.names[name]
        self._entries.drop(entry)
        self._owners[entry.pid].names.discard(name)
        claim = self._claims.pop(name, None)
        for asker in () if claim is None else claim.askers:
            self._answer(asker, NameRefused(name, reason, holder))

    def _acknowledged(self, node: NodeId, version: int, now: float) -> None:
        for name, claim in list(self._claims.items()):
            if claim.entry.dot <= version and node in claim.awaiting:
                claim.awaiting.discard(node)
                self._settle(name, now)
        self._changed(now)

    # Groups.

    def _leave(self, group: str, pid: Pid) -> None:
        entry = self._entries.groups[group][pid]
        self._entries.drop(entry)
        self._owners[pid].groups.discard(group)
        self._went((entry,))

    def _unsubscribe(self, group: str, pid: Pid) -> None:
        subscribers = self._subscribers.get(group, {})
        subscribers.pop(pid, None)
        if not subscribers:
            self._subscribers.pop(group, None)

    def _came(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, NameEntry):
                self._names_of_peers.setdefault(entry.name, {})[entry.pid.node] = entry
                continue
            group, pid = entry.group, entry.pid
            self._members.setdefault(group, set()).add(pid)
            self._sorted.pop(group, None)
            if group in self._subscribers:
                note(pid, self._joined.setdefault(group, set()), self._left.get(group, set()))

    def _went(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, NameEntry):
                of_peers = self._names_of_peers[entry.name]
                del of_peers[entry.pid.node]
                if not of_peers:
                    del self._names_of_peers[entry.name]
                continue
            group, pid = entry.group, entry.pid
            members = self._members[group]
            members.discard(pid)
            if not members:
                del self._members[group]
            self._sorted.pop(group, None)
            if group in self._subscribers:
                note(pid, self._left.setdefault(group, set()), self._joined.get(group, set()))

    # Lives.

    def _owner(self, life: Life) -> Owner:
        owner = self._owners.get(life.pid)
        if owner is not None and owner.number != life.number:
            # A successor inherits nothing.
            self._end(life.pid, owner)
            owner = None
        if owner is None:
            owner = self._owners[life.pid] = Owner(life.number)
        return owner

    def _end(self, pid: Pid, owner: Owner) -> None:
        for name in sorted(owner.names):
            self._give_up(name, "no_process")
        for group in sorted(owner.groups):
            self._leave(group, pid)
        for group in owner.subscriptions:
            self._unsubscribe(group, pid)
        del self._owners[pid]

    # Peers.

    def _read_statement(self, peer: Peer, node: NodeId, said: Statement, now: float) -> None:
        try:
            changes = peer.entries.read(said)
        except DirectoryLimit:
            if any(isinstance(entry, NameEntry) for entry in said.entries):
                # Who claims a name waits for no more than that this node has looked at it.
                self._acknowledge(node, said.last, now)
            raise
        self._follow(changes, now)
        come = (entry for entry in changes.come if isinstance(entry, NameEntry))
        if any(not entry.is_held for entry in come):
            self._acknowledge(node, peer.entries.version, now)

    def _acknowledge(self, node: NodeId, version: int, now: float) -> None:
        # What this node claims goes first: it may be the same name.
        self._flush(now)
        self._actions.append(Tell(node, {"a": version}))

    def _follow(self, changes: Changes, now: float) -> None:
        self._went(changes.gone)
        self._came(changes.come)
        for name in {entry.name for entry in changes.come if isinstance(entry, NameEntry)}:
            self._resolve(name)
        self._changed(now)

    def _forget(self, node: NodeId, now: float) -> None:
        peer = self._peers.pop(node)
        self._went(peer.entries.entries)
        for name, claim in list(self._claims.items()):
            claim.awaiting.discard(node)
            self._settle(name, now)
        self._changed(now)

    # What is told.

    def _changed(self, now: float, *, at_once: bool = False) -> None:
        """Plan to tell what has changed: in a moment, if something was told just now."""
        if not self._entries.is_untold:
            return
        if not self._peers:
            self._entries.deltas()
            return
        at = now if at_once else max(now, self._told_at + self._gather_s)
        self._tell_at = at if self._tell_at is None else min(self._tell_at, at)

    def _flush(self, now: float) -> None:
        statements = self._entries.deltas()
        for node in self._peers if statements else ():
            self._tell(node, statements)
        if statements:
            self._told_at = now
        self._tell_at = None

    def _tell(self, node: NodeId, statements: Iterable[dict[str, Any]]) -> None:
        self._actions.extend(Tell(node, each) for each in statements)

    def _answer(self, asker: Asker, msg: object) -> None:
        self._actions.append(Answer(asker, msg))

    def _done(self) -> list[Action]:
        for group in sorted({*self._joined, *self._left}):
            joined = tuple(sorted(self._joined.pop(group, ())))
            left = tuple(sorted(self._left.pop(group, ())))
            if joined or left:
                for life in self._subscribers.get(group, {}).values():
                    self._answer(Asker(life), GroupChanged(group, joined, left))
        actions, self._actions = self._actions, []
        return actions


def rank(entry: NameEntry) -> tuple[Any, ...]:
    """Of two claims of a name that are held, or of two that are not, the lesser one is better."""
    return entry.since, entry.pid.node


def order(entry: NameEntry) -> tuple[Any, ...]:
    """One that is held goes before all that are not."""
    return not entry.is_held, entry.since, entry.pid.node


def note(pid: Pid, into: set[Pid], out_of: set[Pid]) -> None:
    """A change to be told of undoes the opposite one."""
    if pid in out_of:
        out_of.discard(pid)
    else:
        into.add(pid)
