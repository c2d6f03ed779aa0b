"""The dials that are on their way, and how many more there may be."""

from __future__ import annotations

from collections.abc import Iterator

from rabble._core.ids import NodeId
from rabble.cluster.decide.peers import Member, PendingDial

__all__ = ["PendingDials"]


class PendingDials:
    """Keeps them by their numbers. For one thread.

    :param most: at once, of those that look a host up, and of the others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_id: dict[int, PendingDial] = {}
        #: Those whose peer may have this node's PROOF; and how many of all are looked up.
        self._authenticating: dict[int, PendingDial] = {}
        self._looked_up = 0

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self._by_id

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._by_id))

    def get(self, connection_id: int) -> PendingDial | None:
        """The one of that number."""
        return self._by_id.get(connection_id)

    def all(self) -> list[PendingDial]:
        """All of them, in their order."""
        return list(self._by_id.values())

    def add(self, pending_dial: PendingDial) -> None:
        """It has begun."""
        self._by_id[pending_dial.connection_id] = pending_dial
        self._looked_up += pending_dial.is_looked_up

    def authenticate(self, pending_dial: PendingDial, peer: NodeId, incarnation: int) -> None:
        """From now on that peer may take it for a connection."""
        pending_dial.authenticating = (peer, incarnation)
        self._authenticating[pending_dial.connection_id] = pending_dial

    def remove(self, pending_dial: PendingDial) -> None:
        """It has ended. Nothing happens if it is not there."""
        if self._by_id.pop(pending_dial.connection_id, None) is not None:
            self._looked_up -= pending_dial.is_looked_up
        self._authenticating.pop(pending_dial.connection_id, None)

    def recount(self) -> None:
        """Something may have been noted by half: have what is noted twice agree."""
        self._looked_up = sum(each.is_looked_up for each in self._by_id.values())
        self._authenticating = {
            number: each for number, each in self._by_id.items() if each.authenticating is not None
        }

    def free_places(self) -> dict[bool, int]:
        """How many more there may be: of those that are looked up, and of the others."""
        return {
            True: self._most - self._looked_up,
            False: self._most - len(self._by_id) + self._looked_up,
        }

    def of(self, name: str, member: Member | None) -> list[PendingDial]:
        """Those of a node, in their order. A seed may be it, or who has been forgotten."""
        dials = {
            connection_id: pending_dial
            for connection_id, pending_dial in self._authenticating.items()
            if pending_dial.authenticating and pending_dial.authenticating[0].name == name
        }
        if member is not None and (pending_dial := member.pending_dial) is not None:
            dials[pending_dial.connection_id] = pending_dial
        return [dials[connection_id] for connection_id in sorted(dials)]

    def is_authenticating(self, peer: NodeId, incarnation: int) -> bool:
        """Whether one of them may already be a connection for that peer."""
        return any(
            pending_dial.authenticating == (peer, incarnation)
            for pending_dial in self._authenticating.values()
        )
