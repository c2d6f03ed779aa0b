"""How often members may be dialled that nobody here has ever reached.

Any member can say of a thousand nodes that they are members, at whatever addresses. So dials of
those that only others tell of are bounded in all, by token buckets: one for first tries and one for
those that failed. A token comes back at once if somebody was there.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping

from rabble.cluster.decide.peers import DialTarget
from rabble.cluster.decide.pending_dials import Places
from rabble.cluster.decide.token_bucket import TokenBucket

__all__ = ["DialRates"]


class DialRates:
    """Which of the targets that are due may be dialled.

    :param per_s: dials of members that were never reached, each second; first tries and others.
    :param most: such dials at once.
    """

    def __init__(self, per_s: float, most: int) -> None:
        self._most = most
        self._under_way = 0
        self._first = TokenBucket(per_s, most)
        self._again = TokenBucket(per_s, most)
        self._latest_next = True

    def of(self, target: DialTarget) -> TokenBucket | None:
        """What bounds the dials of a target; `None` if nothing does."""
        if not target.is_hearsay:
            return None
        return self._again if target.attempts else self._first

    def due(self, target: DialTarget, now: float) -> float | None:
        """When a target may be dialled, in monotonic seconds; `None` if not before one has ended
        that is under way.
        """
        bucket = self.of(target)
        if bucket is None or target.due is None:
            return target.due
        return max(target.due, bucket.next_token(now)) if self._under_way < self._most else None

    def first_due(
        self, waiting: Iterable[DialTarget], now: float, places: Mapping[bool, Places]
    ) -> float:
        """When the first of these may be dialled for which there is a place; infinity if none may.

        :param places: of those that are looked up, and of the others.
        """
        due = (
            self.due(target, now)
            for target in waiting
            if places[target.is_looked_up].has(target.is_hearsay)
        )
        return min((each for each in due if each is not None), default=float("inf"))

    def ended(self, bucket: TokenBucket | None, *, reached: bool) -> None:
        """A dial has ended.

        :param bucket: of which it had a token.
        :param reached: somebody was there, so it does not count.
        """
        if bucket is not None:
            self._under_way -= 1
            if reached:
                bucket.put_back()

    def recount(self, under_way: Iterable[TokenBucket | None]) -> None:
        """Of all dials that are under way the buckets; what was counted by half is forgotten."""
        self._under_way = sum(bucket is not None for bucket in under_way)

    def in_turn(
        self, due: Iterable[DialTarget], now: float, places: Places
    ) -> Iterator[tuple[DialTarget, TokenBucket | None]]:
        """Those that may be dialled, each with the bucket of which it has a token.

        :param due: those that are due, the one that is due for the longest first.
        :param places: how many may be dialled at all.

        Of those that were never tried the latest one and the first one take turns, so that a flood
        of names that were made up keeps out neither who comes later nor who came before.
        """
        due, (left, others, hearsay) = list(due), places
        # Looked for from both ends: there may be many, and few of them have a place.
        untried = collections.deque(due)
        for target in due:
            if left <= 0:
                return
            bucket = self.of(target)
            if bucket is None and others > 0:
                others, left = others - 1, left - 1
                yield target, None
            elif (
                bucket is not None
                and hearsay > 0
                and self._under_way < self._most
                and bucket.take(now)
            ):
                hearsay, left = hearsay - 1, left - 1
                self._under_way += 1
                if bucket is self._first:
                    take = untried.pop if self._latest_next else untried.popleft
                    while self.of(target := take()) is not self._first:
                        pass
                    self._latest_next = not self._latest_next
                yield target, bucket
