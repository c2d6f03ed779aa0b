"""The client's side of a connection without I/O: bytes in, events out; which request is whose.

Not for several threads at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from rabble.client.errors import ProtocolError
from rabble.client.events import Event, Goodbye, Push
from rabble.client.framing import ID_MAX, Framing
from rabble.errors import QueueFull

__all__ = ["PRIORITIES", "ClientProtocol"]

#: -1: may be refused earlier, as a retry; 0: usual; 1: let through longer, as a health check.
PRIORITIES = (-1, 0, 1)

Waiter = TypeVar("Waiter")


class ClientProtocol(Generic[Waiter]):
    """The requests in flight on one connection, and what comes back.

    Each ends exactly once: by the event that it is given back with, or by `end`.

    :param framing: what the connection's bytes mean.
    :param in_flight_max: requests in flight.
    """

    def __init__(self, framing: Framing, in_flight_max: int) -> None:
        self._framing = framing
        self._in_flight_max = in_flight_max
        #: Who made each request; `None`: nobody waits any more, but its id is not free yet.
        self._in_flight: dict[int, Waiter | None] = {}
        self._next_id = 0
        self._abandoned = 0
        self._problem: str | None = None
        self._is_over = False
        #: Whether anything came, and whether any of it said something.
        self._has_bytes = self._has_events = False
        #: Answers that came when nobody waited for them any more.
        self.late = 0

    @property
    def in_flight(self) -> int:
        """Requests that the server has not answered, those included that nobody waits for."""
        return len(self._in_flight)

    @property
    def is_stuck(self) -> bool:
        """Whether there is no room for a request, and nobody waits for any of those in flight."""
        return self._abandoned == len(self._in_flight) >= self._in_flight_max

    def doubt(self, is_over: bool) -> str:
        """What an error adds as long as the server has said nothing: it may have another codec.

        :param is_over: the connection has ended; then it is no wonder that nothing came.
        :returns: empty if something came that this framing reads.
        """
        if self._has_events or (is_over and not self._has_bytes):
            return ""
        came = "what came is no frame" if self._has_bytes else "nothing has come"
        return f"; {came} (is the server's codec that of {type(self._framing).__name__}?)"

    def request(self, waiter: Waiter, msg: Any, priority: int = 0) -> tuple[int, bytes]:
        """Begin a request.

        :param waiter: what it is given back with.
        :param msg: what is asked.
        :param priority: one of `PRIORITIES`.
        :returns: its id, and the bytes to be sent, in the order of these calls.
        :raises QueueFull: if too many are in flight.
        :raises EncodeError: if the message cannot be sent.
        :raises ValueError: if there is no such priority.
        """
        if type(priority) is not int or priority not in PRIORITIES:
            raise ValueError(f"priority must be -1, 0 or 1, not {priority!r:.100}")
        if len(self._in_flight) >= self._in_flight_max:
            raise QueueFull(
                f"{self._in_flight_max} requests are in flight (ClientLimits.in_flight_max)"
            )
        request_id = self._next_id
        while request_id in self._in_flight:
            request_id = (request_id + 1) & ID_MAX
        data = self._framing.request(request_id, msg, priority)
        self._in_flight[request_id] = waiter
        self._next_id = (request_id + 1) & ID_MAX
        return request_id, data

    def message(self, msg: Any) -> bytes:
        """The bytes of a message that has no answer.

        :raises EncodeError: if it cannot be sent.
        """
        return self._framing.message(msg)

    def abandon(self, request_id: int, waiter: Waiter) -> None:
        """Wait no longer for a request: its answer will go to nobody, and its id stays taken.

        Without effect if it has ended: its id may be another one's then.
        """
        if self._in_flight.get(request_id) is waiter:
            self._in_flight[request_id] = None
            self._abandoned += 1

    def feed(self, data: bytes) -> None:
        """Take bytes that came. What they say `events` has."""
        if self._problem is None and not self._is_over:
            self._has_bytes = True
            self._framing.feed(data)

    def events(self) -> Iterator[tuple[Waiter | None, Event]]:
        """What came since, each with whoever made the request; `None` of pushes and the goodbye.

        Behind a `Goodbye` nothing comes. What answers nobody is left out.

        :raises ProtocolError: behind the last event that is good; from then on each time.
        """
        while not self._is_over:
            if self._problem is not None:
                raise ProtocolError(self._problem)
            try:
                event = self._framing.next_event()
                if event is None:
                    return
                self._has_events = True
                waiter = self._waiter_of(event)
            except ProtocolError as error:
                self._problem = str(error)
                raise
            if isinstance(event, Goodbye):
                self._is_over = True
            if waiter is not None or isinstance(event, Push | Goodbye) or event.id is None:
                yield waiter, event

    def _waiter_of(self, event: Event) -> Waiter | None:
        if isinstance(event, Push | Goodbye) or event.id is None:
            return None
        if event.id not in self._in_flight:
            raise ProtocolError(f"an answer came to request {event.id}, which is not in flight")
        waiter = self._in_flight.pop(event.id)
        if waiter is None:
            self._abandoned -= 1
            self.late += 1
        return waiter

    def end(self) -> list[Waiter]:
        """The connection is over.

        :returns: whoever still waits.
        """
        waiters = [waiter for waiter in self._in_flight.values() if waiter is not None]
        self._in_flight.clear()
        self._abandoned = 0
        self._is_over = True
        return waiters
