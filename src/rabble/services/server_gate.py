"""The gate of a server: which requests are begun, and what a strategy has to do for that."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Gate"]


class Gate(Protocol):
    """Decides which requests of a server are begun. `rabble.services.gate` has strategies.

    The server calls it in the executor's thread, each method with the time in monotonic
    nanoseconds: it does no I/O, reads no clock and starts no thread. One that raises is reported
    as a crash, and from then on all requests are begun.
    """

    def admit(self, now_ns: int, priority: int, /) -> int:
        """Whether a request is begun: 0, or after how many milliseconds it may be tried again."""

    def began(self, now_ns: int, /) -> object:
        """A request that was admitted is given to its handler."""

    def ended(self, now_ns: int, begun_ns: int, ok: bool, /) -> object:
        """It ended; `ok` is whether by an answer."""

    def canary_due(self, now_ns: int, /) -> bool:
        """Whether a message is to go through the run queue now, to see how long that takes."""

    def canary_sent(self, now_ns: int, number: int, /) -> object:
        """It was put at the queue's end."""

    def canary_back(self, now_ns: int, number: int, /) -> object:
        """It had its turn."""

    def pressure(self, now_ns: int, name: str, fraction: float, /) -> object:
        """How full a queue is, of its bound: `requests` that wait, the `inbox`, `peers`."""

    def next_tick(self, now_ns: int, /) -> int | None:
        """When `tick` and `canary_due` are to be called next; `None` is never by the clock."""

    def tick(self, now_ns: int, /) -> Any:
        """What changed of its state by now, for those that subscribed; `None` if nothing did."""

    def status(self) -> Any:
        """Its state, for metrics."""
