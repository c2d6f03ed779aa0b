"""Requests that wait for their turn, in turns of their connections.

Deficit round robin: M. Shreedhar and G. Varghese, "Efficient Fair Queueing using Deficit Round
Robin", SIGCOMM 1995. Each connection that has requests waiting is visited in turn, and may spend
what it is given with each visit; what it does not spend is kept for the next one, but only as long
as it has something waiting. A request costs no more than one visit gives, so a visit always serves
one, which is what makes a `take` O(1).

When the queue is full, who comes does not lose by that: the newest request of the connection that
has most waiting makes room, as A. Demers, S. Keshav and S. Shenker do, "Analysis and Simulation of
a Fair Queueing Algorithm", SIGCOMM 1989, and P. McKenney, "Stochastic Fairness Queueing", 1990,
whose lists by length make that O(1), too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from rabble.texts import argument_text

__all__ = ["FairQueue"]

Request = TypeVar("Request")


class Waiting(Generic[Request]):
    """What waits of one connection, and its place in the ring of those that have their turns."""

    __slots__ = ("connection", "deficit", "following", "previous", "requests")

    previous: Waiting[Request]
    following: Waiting[Request]

    def __init__(self, connection: Hashable) -> None:
        self.connection = connection
        #: Each with its cost, the oldest first.
        self.requests: deque[tuple[Request, int]] = deque()
        #: What it may spend before its next visit.
        self.deficit = 0


class FairQueue(Generic[Request]):
    """Requests of connections, given out in turns. For one thread.

    One connection that has 10,000 requests waiting delays one that has a single one by one request.
    The requests of one connection stay in their order.

    :param requests_max: how many may wait in all.
    :param per_connection_max: how many may wait of one connection.
    :param visit_cost: what a connection may spend with each visit, and the most that one request
        may cost. With 1 the turns count requests; with the greatest size of a frame they count
        bytes.
    :raises ValueError: if one of these is no int from 1 on.
    """

    __slots__ = (
        "_by_count",
        "_connections",
        "_current",
        "_most",
        "_per_connection_max",
        "_requests_max",
        "_size",
        "_visit_cost",
    )

    def __init__(self, requests_max: int, per_connection_max: int, visit_cost: int = 1) -> None:
        given = {
            "requests_max": requests_max,
            "per_connection_max": per_connection_max,
            "visit_cost": visit_cost,
        }
        for name, value in given.items():
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"FairQueue: {name} must be an int, 1 or more, not {argument_text(value)}"
                )
        self._requests_max = requests_max
        self._per_connection_max = per_connection_max
        self._visit_cost = visit_cost
        self._size = 0
        self._connections: dict[Hashable, Waiting[Request]] = {}
        #: Whose turn it is; the ring goes on from there.
        self._current: Waiting[Request] | None = None
        #: The connections by how many requests they have waiting, and the most that one has.
        self._by_count: dict[int, dict[Waiting[Request], None]] = {}
        self._most = 0

    def __len__(self) -> int:
        """How many requests wait in all."""
        return self._size

    def fraction(self) -> float:
        """How full it is, 0 to 1: what `Gate.pressure` takes."""
        return self._size / self._requests_max

    def waiting(self, connection: Hashable) -> int:
        """How many requests of a connection wait."""
        waiting = self._connections.get(connection)
        return 0 if waiting is None else len(waiting.requests)

    def put(
        self, connection: Hashable, request: Request, cost: int = 1
    ) -> tuple[Hashable, Request] | None:
        """Put a request at the end of those of its connection. O(1).

        :param connection: whose it is.
        :param request: whatever is to be given out again.
        :param cost: of the request, 1 to `visit_cost`.
        :returns: `None`; or, with its connection, the request that has no place: this one, or one
            that made room for it. It has to be refused.
        :raises ValueError: if the cost is another.
        """
        if not 1 <= cost <= self._visit_cost:
            raise ValueError(
                f"FairQueue: cost must be 1 to {self._visit_cost}, which is visit_cost, "
                f"not {argument_text(cost)}"
            )
        waiting = self._connections.get(connection)
        count = 0 if waiting is None else len(waiting.requests)
        if count >= self._per_connection_max:
            return connection, request
        victim: tuple[Hashable, Request] | None = None
        if self._size >= self._requests_max:
            # One that has as many waiting as this would have: to change places helps nobody.
            if self._most <= count + 1:
                return connection, request
            longest = next(iter(self._by_count[self._most]))
            victim = longest.connection, longest.requests.pop()[0]
            self._count(longest, self._most)
        if waiting is None:
            waiting = self._connections[connection] = Waiting(connection)
            self._enter(waiting)
        waiting.requests.append((request, cost))
        self._count(waiting, count)
        return victim

    def peek(self) -> tuple[Hashable, Request] | None:
        """What `take` would give, which stays. O(1)."""
        waiting = self._visited()
        return None if waiting is None else (waiting.connection, waiting.requests[0][0])

    def take(self) -> tuple[Hashable, Request] | None:
        """Take the request whose turn it is. O(1).

        :returns: its connection and itself; `None` if nothing waits.
        """
        waiting = self._visited()
        if waiting is None:
            return None
        waiting.deficit -= waiting.requests[0][1]
        return waiting.connection, self._pop_oldest(waiting)

    def take_oldest(self, connection: Hashable) -> Request | None:
        """Take the oldest request of a connection, out of turn: it is not to wait any more. O(1).

        :returns: that; `None` if none waits.
        """
        waiting = self._connections.get(connection)
        return None if waiting is None else self._pop_oldest(waiting)

    def drop(self, connection: Hashable) -> list[Request]:
        """A connection is gone, and takes its requests with it. O(1) besides these.

        :returns: its requests, in their order; none if it had none.
        """
        waiting = self._connections.pop(connection, None)
        if waiting is None:
            return []
        self._leave(waiting)
        count = len(waiting.requests)
        self._forget(waiting, count)
        self._size -= count
        return [request for request, _ in waiting.requests]

    def clear(self) -> None:
        """Forget all that waits. It never fails, also if another call was broken off amid it."""
        self._connections.clear()
        self._by_count.clear()
        self._current = None
        self._size = self._most = 0

    def _visited(self) -> Waiting[Request] | None:
        """Whose turn it is, with enough to spend for its oldest request."""
        waiting = self._current
        if waiting is not None and waiting.deficit < waiting.requests[0][1]:
            # Its visit ends; the next one is given at least what any request costs.
            waiting = self._current = waiting.following
            waiting.deficit += self._visit_cost
        return waiting

    def _pop_oldest(self, waiting: Waiting[Request]) -> Request:
        request, _ = waiting.requests.popleft()
        self._count(waiting, len(waiting.requests) + 1)
        if not waiting.requests:
            self._leave(waiting)
            del self._connections[waiting.connection]
        return request

    def _enter(self, waiting: Waiting[Request]) -> None:
        """Into the ring, where all others come before it; its first visit is still to come."""
        current = self._current
        if current is None:
            waiting.previous = waiting.following = waiting
            waiting.deficit = self._visit_cost
            self._current = waiting
            return
        last = current.previous
        waiting.previous, waiting.following = last, current
        last.following = current.previous = waiting

    def _leave(self, waiting: Waiting[Request]) -> None:
        """Out of the ring; what it has not spent is forgotten."""
        following = waiting.following
        if following is waiting:
            self._current = None
            return
        waiting.previous.following = following
        following.previous = waiting.previous
        if self._current is waiting:
            following.deficit += self._visit_cost
            self._current = following

    def _count(self, waiting: Waiting[Request], before: int) -> None:
        """One has one request more or less waiting than before."""
        count = len(waiting.requests)
        self._size += count - before
        if count:
            same = self._by_count.get(count)
            if same is None:
                same = self._by_count[count] = {}
            same[waiting] = None
            if count > self._most:
                self._most = count
        if before:
            self._forget(waiting, before)

    def _forget(self, waiting: Waiting[Request], count: int) -> None:
        """One has no longer so many waiting.

        Each step down of `_most` was one step up before, so a `put` pays for it.
        """
        same = self._by_count[count]
        del same[waiting]
        if not same:
            del self._by_count[count]
            if count == self._most:
                while count and count not in self._by_count:
                    count -= 1
                self._most = count
