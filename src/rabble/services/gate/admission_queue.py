"""A fair queue in front of a gate: for the few milliseconds until there is room for one more.

A gate alone refuses whoever comes when there is no room, so who asks most often gets most of what
there is. Here requests wait for a moment, and each room goes to the next connection in turn. Who
waits for longer than that moment is refused after all, so a refusal is never far behind.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable
from typing import Any, ClassVar

from rabble.services.gate.fair_queue import FairQueue
from rabble.services.gate.gate import NEVER, Gate
from rabble.texts import argument_text

__all__ = ["AdmissionQueue", "Admitted", "Refused"]

NS_PER_MS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """A request is let in; the gate has been told that it began."""

    #: As of one that is refused, which has a number there.
    retry_after_ms: ClassVar[None] = None

    connection: Hashable
    request: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A request is refused; its client may try again after so many milliseconds."""

    connection: Hashable
    request: Any
    retry_after_ms: int


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """A request that waits."""

    connection: Hashable
    request: Any
    priority: int
    came_ns: int
    is_waiting: bool = True


class AdmissionQueue:
    """Lets requests through a gate, in turns of their connections. For one thread.

    Decisions alone, as the gate's own: no I/O, no clock. Tell it what `arrive`s (or ask whether it
    may `enter`, and have it `wait` if not); then, and whenever a request has ended or `next_tick`
    has come, do what `decide` says.

    :param gate: which may be told of requests by others, too.
    :param in_flight_max: how many may be in flight, whatever the gate says: so many stand before
        whoever comes next.
    :param requests_max: how many may wait, in all.
    :param per_connection_max: how many may wait of one connection.
    :param wait_ms_max: milliseconds that one waits before it is refused.
    :param visit_cost: as `FairQueue`'s.
    :raises ValueError: if one of these is no int from 1 on.
    """

    __slots__ = (
        "_by_age",
        "_decided",
        "_fair",
        "_gate",
        "_in_flight_max",
        "_wait_ns_max",
    )

    def __init__(
        self,
        gate: Gate,
        *,
        in_flight_max: int = 1_024,
        requests_max: int = 1_024,
        per_connection_max: int = 256,
        wait_ms_max: int = 20,
        visit_cost: int = 1,
    ) -> None:
        for name, value in (("in_flight_max", in_flight_max), ("wait_ms_max", wait_ms_max)):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"AdmissionQueue: {name} must be an int, 1 or more, not {argument_text(value)}"
                )
        self._gate = gate
        self._in_flight_max = in_flight_max
        self._wait_ns_max = wait_ms_max * NS_PER_MS
        self._fair: FairQueue[Entry] = FairQueue(requests_max, per_connection_max, visit_cost)
        #: All that wait, the oldest first, and some that do not wait any more.
        self._by_age: deque[Entry] = deque()
        #: What is decided and has not been said.
        self._decided: deque[Admitted | Refused] = deque()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._fair)

    def enter(self, now_ns: int, priority: int = 0) -> bool:
        """Let in a request that has come, if it need not wait. O(1).

        :param now_ns: monotonic nanoseconds, as the gate's.
        :param priority: as the gate's. With 1 it waits for nobody.
        :returns: whether it is let in; then the gate was told that it began. Else it is to `wait`.
        """
        if (priority > 0 or not self._fair) and self._has_room(now_ns, priority):
            self._gate.began(now_ns)
            return True
        return False

    def arrive(
        self, now_ns: int, connection: Hashable, request: Any, priority: int = 0, cost: int = 1
    ) -> None:
        """A request has come. O(1).

        :param now_ns: monotonic nanoseconds, as the gate's.
        :param connection: whose it is.
        :param request: whatever is to be given out again.
        :param priority: as the gate's. With 1 it waits for nobody, with -1 it does not wait.
        :param cost: as `FairQueue.put`'s.
        :raises ValueError: if the cost is out of its bounds.
        """
        if self.enter(now_ns, priority):
            self._decided.append(Admitted(connection, request))
        else:
            self.wait(now_ns, connection, request, priority, cost)

    def wait(
        self, now_ns: int, connection: Hashable, request: Any, priority: int = 0, cost: int = 1
    ) -> None:
        """A request has come that may not `enter`: it waits, or is refused. As `arrive`."""
        entry = Entry(connection, request, priority, now_ns)
        if priority < 0:
            self._refuse(now_ns, entry)
            return
        homeless = self._fair.put(connection, entry, cost)
        if homeless is None or homeless[1] is not entry:
            self._by_age.append(entry)
        if homeless is not None:
            self._refuse(now_ns, homeless[1])

    def gone(self, connection: Hashable) -> list[Any]:
        """A connection is gone; its requests that wait go with it, and nothing is said of them.

        :returns: these. What it has in flight is to end as anything else does.
        """
        dropped = self._fair.drop(connection)
        for entry in dropped:
            entry.is_waiting = False
        return [entry.request for entry in dropped]

    def drop_all(self) -> list[Admitted | Refused]:
        """Forget all that waits, and what was decided and not said; the gate is asked nothing.

        :returns: that, as if it were let in.
        """
        waiting = [
            Admitted(each.connection, each.request) for each in self._by_age if each.is_waiting
        ]
        dropped = [*self._decided, *waiting]
        # From here on nothing fails, nor looks at what may be half done.
        self._fair.clear()
        self._by_age.clear()
        self._decided.clear()
        return dropped

    def holds(self, request: Any) -> bool:
        """Whether `drop_all` would have it: for who has seen `wait` raise. O(n)."""
        return any(each.request is request for each in self._decided) or any(
            each.is_waiting and each.request is request for each in self._by_age
        )

    def decide(self, now_ns: int) -> list[Admitted | Refused]:
        """What is to be done now.

        :param now_ns: monotonic nanoseconds, as the gate's.
        :returns: it, in its order; it is not said again.
        """
        while (next_up := self._fair.peek()) is not None:
            connection, entry = next_up
            if not self._has_room(now_ns, entry.priority):
                break
            # First: whatever raises behind it, it is let in all the same, see `drop_all`.
            self._decided.append(Admitted(connection, entry.request))
            entry.is_waiting = False
            self._fair.take()
            self._gate.began(now_ns)
        by_age = self._by_age
        while by_age:
            oldest = by_age[0]
            if oldest.is_waiting:
                if now_ns - oldest.came_ns < self._wait_ns_max:
                    break
                # The oldest of all is the oldest of its connection.
                self._fair.take_oldest(oldest.connection)
                self._refuse(now_ns, oldest)
            by_age.popleft()
        return self._take_decided()

    def next_tick(self, now_ns: int) -> int:
        """When `decide` is to be asked again though nothing happens; `NEVER` if not at all.

        The gate's own `next_tick` and `tick` are not in this.
        """
        if self._decided:
            return now_ns
        oldest = next((entry for entry in self._by_age if entry.is_waiting), None)
        if oldest is None:
            return NEVER
        return max(now_ns, oldest.came_ns + self._wait_ns_max)

    def _has_room(self, now_ns: int, priority: int) -> bool:
        gate = self._gate
        return gate.in_flight < self._in_flight_max and gate.has_room(now_ns, priority)

    def _take_decided(self) -> list[Admitted | Refused]:
        decided = list(self._decided)
        self._decided.clear()
        return decided

    def _refuse(self, now_ns: int, entry: Entry) -> None:
        said: Admitted | Refused | None = None
        try:
            retry_after_ms = self._gate.refuse(now_ns, entry.priority)
            said = Refused(entry.connection, entry.request, retry_after_ms)
        finally:
            # If that raised it is not lost, but let in with all others, see `drop_all`.
            self._decided.append(said or Admitted(entry.connection, entry.request))
            entry.is_waiting = False
