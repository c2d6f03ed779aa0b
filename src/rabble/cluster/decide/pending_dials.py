"""The dials that are on their way, and how many more there may be."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import NamedTuple

from rabble._core.ids import NodeId
from rabble.cluster.decide.dial_window import DialWindow
from rabble.cluster.decide.peers import Member, PendingDial

__all__ = ["PendingDials", "Places"]


class Places(NamedTuple):
    """How many dials of a kind may be begun; less than 0 is none.

    :param all: together.
    :param others: of those that are no hearsay.
    :param hearsay: of those of which only others tell.
    """

    all: int
    others: int
    hearsay: int

    def __bool__(self) -> bool:
        return self.has(True) or self.has(False)

    def has(self, is_hearsay: bool) -> bool:
        """Whether there is one."""
        return self.all > 0 and (self.hearsay if is_hearsay else self.others) > 0


class PendingDials:
    """Keeps them by their numbers. For one thread.

    :param most: at once, of those that look a host up, and of the others.

    `now` is monotonic seconds throughout.

    A dial that looks a host up has a place of its own, as that may take any time: one that hangs
    there holds up no other. Of either kind there may be as many as `DialWindow` says of nodes that
    somebody asked for or has reached, and half as many beside them of those of which only others
    tell: names that were made up hold up nobody.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._window = DialWindow(most)
        self._by_id: dict[int, PendingDial] = {}
        #: Those whose peer may have this node's PROOF.
        self._authenticating: dict[int, PendingDial] = {}
        #: How many are looked up or not, and of hearsay or not.
        self._counts: collections.Counter[tuple[bool, bool]] = collections.Counter()

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
        self._window.dialled(pending_dial.begun_at)
        self._by_id[pending_dial.connection_id] = pending_dial
        self._counts[pending_dial.kind] += 1

    def authenticate(
        self, pending_dial: PendingDial, peer: NodeId, incarnation: int, now: float
    ) -> None:
        """From now on that peer may take it for a connection."""
        pending_dial.authenticating = (peer, incarnation)
        pending_dial.answered_at = now
        self._authenticating[pending_dial.connection_id] = pending_dial

    def ended(self, pending_dial: PendingDial, now: float) -> None:
        """The handshake has come to its end, whatever that is: it tells how busy the peers are."""
        if (answered_at := pending_dial.answered_at) is not None:
            self._window.took(now - answered_at, pending_dial.begun_at, now)

    def remove(self, pending_dial: PendingDial) -> None:
        """It has ended, or was dropped. Nothing happens if it is not there."""
        if self._by_id.pop(pending_dial.connection_id, None) is not None:
            self._counts[pending_dial.kind] -= 1
        self._authenticating.pop(pending_dial.connection_id, None)

    def recount(self) -> None:
        """Something may have been noted by half: have what is noted twice agree."""
        self._counts = collections.Counter(each.kind for each in self._by_id.values())
        self._authenticating = {
            number: each for number, each in self._by_id.items() if each.authenticating is not None
        }

    def places(self, now: float) -> dict[bool, Places]:
        """How many more there may be: of those that are looked up, and of the others."""
        size, counts = self._window.size(now), self._counts
        found = {}
        for is_looked_up in (True, False):
            others, hearsay = counts[is_looked_up, False], counts[is_looked_up, True]
            left = self._most - others - hearsay
            found[is_looked_up] = Places(left, size - others, (size + 1) // 2 - hearsay)
        return found

    def next_place(self, now: float) -> float | None:
        """When there may be a place without that a dial ends; `None` if not before one has."""
        pause_ends_at = self._window.pause_ends_at
        return pause_ends_at if now < pause_ends_at else None

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
