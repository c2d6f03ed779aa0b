"""Which changes of the membership a node tells whom, and when.

A change goes to all peers as a delta, gathered with others for a while, and never to a peer that
told it. What enough peers have told by then is not told at all: they told the others as well. This
is the rule of RFC 6206, "The Trickle Algorithm", 2011, for whoever hears all the others; and in a
full mesh everybody does. Without it each node would pass on to each other one what each starting
node tells by itself, and `n` nodes would form with bytes of the order of `n` cubed. What is
withheld from a peer that does not hear all the others is found by the next digest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, KeysView
from typing import Generic, TypeVar

from rabble.cluster.decide.backoff import Uniform
from rabble.limits import Limits

__all__ = ["Dissemination"]

#: Peers that told a change to all theirs, beyond which it is told no further: the redundancy
#: constant of Trickle.
SPREADERS_ENOUGH = 2

#: What is told: a part of the membership's state, say.
Part = TypeVar("Part", bound=Hashable)


@dataclasses.dataclass(slots=True)
class Untold:
    """A part that changed.

    :param since: how many connections had come up by then; the later ones compare digests.
    :param tellers: the connections whose peers told this very part.
    :param spreaders: those of them that told it to all their peers.
    """

    since: int
    tellers: set[int]
    spreaders: set[int]


class Dissemination(Generic[Part]):
    """Gathers what has changed until it is told. Does no I/O; for one thread.

    :param rng: for the jitter by which some are first, and the others hear them.
    :param limits: its `gossip_gather_ms` is used.

    `now` is monotonic seconds throughout.
    """

    def __init__(self, rng: Uniform, limits: Limits) -> None:
        self._rng = rng
        self._gather_s = limits.gossip_gather_ms / 1000
        self._untold: dict[Part, Untold] = {}
        self._count = 0
        #: The number of each connection, in the order in which they came up.
        self._numbers: dict[int, int] = {}
        self._told_at = float("-inf")
        #: When others were last told at once what this node says of itself.
        self._contradicted_at = float("-inf")
        #: When to call `take`; `None` while nothing is untold.
        self.due: float | None = None

    @property
    def untold(self) -> KeysView[Part]:
        """The parts that changed, and have not been told."""
        return self._untold.keys()

    def connection_up(self, connection_id: int) -> None:
        """From now on a peer is told what changes."""
        self._count += 1
        self._numbers[connection_id] = self._count

    def connection_down(self, connection_id: int) -> None:
        """Tell it nothing more."""
        self._numbers.pop(connection_id, None)

    def changed(self, parts: Iterable[Part], now: float) -> None:
        """This node changed them: they are told at once, unless something was told just now."""
        for part in parts:
            self._untold[part] = Untold(self._count, set(), set())
        self._plan(max(now, self._told_at + self._gather_s))

    def contradicted(self, parts: Iterable[Part], now: float) -> None:
        """This node goes beyond what others say of it: they are told before they act upon that.

        At once only once in the time for which changes are gathered: who lies of it again and again
        would have it tell all the others as often.
        """
        self.changed(parts, now)
        if now >= self._contradicted_at + self._gather_s:
            self._contradicted_at = now
            self._plan(now)

    def learned(self, parts: Iterable[Part], now: float) -> None:
        """They changed by what a peer told."""
        for part in parts:
            self._untold[part] = Untold(self._count, set(), set())
        self._plan(now + self._gather_s * self._rng.uniform(0.5, 1))

    def heard(self, parts: Iterable[Part], teller: int, *, spread: bool) -> None:
        """A peer told parts as they are known here.

        :param spread: it tells that to all its peers, and not to this node alone.
        """
        for part in parts:
            if (untold := self._untold.get(part)) is not None:
                untold.tellers.add(teller)
                if spread:
                    untold.spreaders.add(teller)

    def untold_to(self, connection_id: int) -> frozenset[Part]:
        """What is still to be told to a peer."""
        number = self._numbers.get(connection_id)
        if number is None:
            return frozenset()
        return frozenset(
            part
            for part, untold in self._untold.items()
            if number <= untold.since and connection_id not in untold.tellers
        )

    def take(self, now: float) -> dict[frozenset[Part], list[int]]:
        """What is to be told now, and to which connections; it counts as told."""
        for part, untold in list(self._untold.items()):
            if len(untold.spreaders) >= SPREADERS_ENOUGH:
                del self._untold[part]
        groups: dict[frozenset[Part], list[int]] = {}
        if self._untold:
            for connection_id in self._numbers:
                if parts := self.untold_to(connection_id):
                    groups.setdefault(parts, []).append(connection_id)
        self._untold.clear()
        self._told_at, self.due = now, None
        return groups

    def _plan(self, at: float) -> None:
        if self._untold:
            self.due = at if self.due is None else min(self.due, at)
