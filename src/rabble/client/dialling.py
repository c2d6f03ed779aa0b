"""Which address is dialled next, and when: no I/O, its clock and its random source handed in.

The addresses are tried in turn. When all have failed there is a wait, with full jitter under a
ceiling that doubles with each round: see M. Brooker, "Exponential Backoff And Jitter", 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rabble.client.addresses import ServerAddress
from rabble.client.errors import ConnectionLost
from rabble.client.limits import ClientLimits

__all__ = ["Dialling", "Uniform"]

#: Goodbyes of a server that is not the one to come back to next.
ELSEWHERE = frozenset({"drain", "full"})


class Uniform(Protocol):
    """Where jitter comes from: a `random.Random`, or what a test puts in its place."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number of that range, each as likely."""


class Dialling:
    """The state of a client's dials. Not for several threads at a time.

    :param addresses: one at least.
    :param limits: those of redialling are meant.
    :param clock: seconds, of a clock that never goes back.
    :param rng: where the jitter comes from.
    """

    def __init__(
        self,
        addresses: tuple[ServerAddress, ...],
        limits: ClientLimits,
        clock: Callable[[], float],
        rng: Uniform,
    ) -> None:
        self._addresses = addresses
        self._first_s = limits.redial_first_ms / 1000
        self._most_s = limits.redial_most_ms / 1000
        self._settled_s = limits.redial_settled_ms / 1000
        self._clock = clock
        self._rng = rng
        self._place = 0
        #: Failures in turn; each round of them makes the next wait longer.
        self._failures = 0
        self._due = 0.0
        self._connected_at: float | None = None
        #: How the last dial failed, or the last connection ended.
        self.reason = ""

    @property
    def address(self) -> ServerAddress:
        """What is dialled next."""
        return self._addresses[self._place]

    def wait_s(self) -> float:
        """Seconds until the next dial is due; 0: it is due now."""
        return max(0.0, self._due - self._clock()) if self._failures else 0.0

    def not_connected(self) -> ConnectionLost:
        """What is raised when nothing was reached, or it is not time yet to dial again."""
        lost = ConnectionLost(
            f"not connected to {', '.join(map(str, self._addresses))}: {self.reason}; the next "
            f"dial is due in {self.wait_s():.2f} s; the request was not sent"
        )
        lost.detail = self.reason
        return lost

    def failed(self, reason: str) -> None:
        """The address could not be reached."""
        self.reason = reason
        self._connected_at = None
        self._place = (self._place + 1) % len(self._addresses)
        self._failures += 1
        if self._failures % len(self._addresses) == 0:
            doublings = min(self._failures // len(self._addresses) - 1, 64)
            ceiling = min(self._first_s * 2.0**doublings, self._most_s)
            self._due = self._clock() + self._rng.uniform(0, ceiling)

    def connected(self) -> None:
        """The address took the connection."""
        self._connected_at = self._clock()

    def lost(self, reason: str, code: str = "", at: float | None = None) -> None:
        """The connection ended: one that had lasted is dialled again at once.

        :param code: the server's goodbye, if it said one.
        :param at: when, by the clock; `None`: now.
        """
        since = self._connected_at
        at = self._clock() if at is None else at
        if since is None or at - since < self._settled_s:
            self.failed(reason)
            return
        self.reason = reason
        self._connected_at = None
        self._failures = 0
        if code in ELSEWHERE:
            self._place = (self._place + 1) % len(self._addresses)
