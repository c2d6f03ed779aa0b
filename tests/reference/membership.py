"""The members of a mesh, slow and obviously right: every event ever, and who knew of it when.

Nothing is ever forgotten or dropped. A replica knows a set of events; each event knows those that
happened before it, that is, those its maker knew. Who is a member is read off from that.
"""

from __future__ import annotations

import dataclasses

from rabble import NodeId


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Event:
    """Something that a replica did: it added or removed a member."""

    maker: tuple[str, int]  # name, incarnation
    number: int  # the maker's how manyth join, or how manyth word about itself
    name: str  # of the member
    node: NodeId | None  # None: removed
    before: frozenset[Event]  # what its maker knew

    @property
    def is_start(self) -> bool:
        return self.node is not None and self.name == self.maker[0]


class ReferenceMembership:
    def __init__(self, own: NodeId, incarnation: int) -> None:
        self.own = own
        self.incarnation = incarnation
        self.known: frozenset[Event] = frozenset()
        self.happen(own.name, own)

    def happen(self, name: str, node: NodeId | None) -> None:
        maker = (self.own.name, self.incarnation)
        number = 1 + sum(
            event.maker == maker
            and event.node is not None
            and event.is_start == (name == self.own.name)
            for event in self.known
        )
        self.known |= {Event(maker, number, name, node, self.known)}

    def in_force(self, name: str) -> list[Event]:
        """The additions of a name that nothing known has undone."""
        return [
            event
            for event in self.known
            if event.name == name and event.node is not None and not self.is_undone(event)
        ]

    def is_undone(self, event: Event) -> bool:
        for other in self.known:
            # A later addition takes the place of those that its maker knew, as a removal does.
            if other.name == event.name and event in other.before:
                return True
            # A start ends all earlier starts of its name, known or not.
            if event.is_start and other.is_start and other.maker[0] == event.maker[0]:
                if other.maker[1] > event.maker[1]:
                    return True
        return False

    def members(self) -> dict[str, NodeId]:
        result = {}
        for name in {event.name for event in self.known}:
            events = self.in_force(name)
            if events:
                # Its own word first; else the highest dot.
                best = max(events, key=lambda e: (e.is_start, *e.maker, e.number))
                assert best.node is not None
                result[name] = best.node
        return result

    def incarnation_of(self, name: str) -> int:
        starts = [e.maker[1] for e in self.known if e.is_start and e.name == name]
        return max(starts, default=0)

    def standing(self, name: str, incarnation: int) -> str:
        if name in self.members():
            return "member"
        return "removed" if incarnation <= self.incarnation_of(name) else "unknown"

    @property
    def is_removed(self) -> bool:
        return self.own.name not in self.members()

    def add(self, node: NodeId) -> None:
        if node != self.own:
            self.happen(node.name, node)

    def remove(self, name: str) -> None:
        if name in self.members():
            self.happen(name, None)

    def rejoin(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.happen(self.own.name, self.own)

    def merge(self, known: frozenset[Event]) -> None:
        self.known |= known
        node = self.members().get(self.own.name)
        if node not in (None, self.own) and self.incarnation_of(self.own.name) <= self.incarnation:
            self.happen(self.own.name, self.own)
