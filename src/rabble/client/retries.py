"""When a request is asked again: never so often that the retries are what the server drowns in.

The budget is a bucket of tokens: each request puts a part of one in, each retry takes a whole one
out. See `RetryBudget` in Finagle's user guide ("Clients: retries"), and gRPC's proposal A6, "gRPC
Retry Design", 2017, which calls it throttling. If all is well a lost request is retried at once;
if a server refuses everything, it gets a tenth more requests of its clients, and not three times as
many.
"""

from __future__ import annotations

import dataclasses
import threading

from rabble.client.dialling import Uniform
from rabble.client.errors import ConnectionLost, Nack

__all__ = ["RetryBudget", "RetryPolicy"]


class RetryBudget:
    """The tokens of one client, or of several that share it. For any thread.

    :param ratio: what each request puts in, 0 to 1: so many retries there are for each request, in
        the long run.
    :param tokens_max: tokens that it holds, and begins with; 1 at least.
    :raises ValueError: if one is out of its range.
    """

    def __init__(self, ratio: float = 0.1, tokens_max: float = 10.0) -> None:
        if not 0 <= ratio <= 1 or not 1 <= tokens_max < float("inf"):
            raise ValueError(
                f"RetryBudget: ratio must be 0 to 1 and tokens_max 1 at least, not {ratio!r} and "
                f"{tokens_max!r}"
            )
        self._lock = threading.Lock()
        self._ratio = ratio
        self._most = tokens_max
        self._tokens = tokens_max

    @property
    def tokens(self) -> float:
        """How many are left."""
        return self._tokens

    def deposit(self) -> None:
        """A request is made for the first time."""
        with self._lock:
            self._tokens = min(self._tokens + self._ratio, self._most)

    def withdraw(self) -> bool:
        """Take a token for a retry.

        :returns: False if there is none, and the request is not to be retried.
        """
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """What a client asks again by itself, within the timeout of the call.

    A `Nack`, and what was never sent: neither has happened. A retry goes with priority -1, if the
    call's is 0, so that the server may refuse it before it refuses what is new.

    :param attempts_max: how often a request is sent at most, the first time included; 1 at least.
    :param first_ms: milliseconds of the first wait at most; it doubles with each attempt, with full
        jitter. A `Nack` says itself how long to wait at the least.
    :param most_ms: milliseconds that this wait grows to.
    :param lost: whether that is asked again, too, which had been sent when the connection was lost.
        It may have happened then: for requests that may happen twice.
    :param budget: the tokens that retries take.
    :raises ValueError: if a number is out of its range.
    """

    attempts_max: int = 3
    first_ms: int = 50
    most_ms: int = 2_000
    lost: bool = False
    budget: RetryBudget = dataclasses.field(default_factory=RetryBudget)

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or not 0 < self.first_ms <= self.most_ms:
            raise ValueError(
                f"RetryPolicy: attempts_max must be 1 at least, and first_ms above 0 and at most "
                f"most_ms, not {self.attempts_max!r}, {self.first_ms!r} and {self.most_ms!r}"
            )

    def wait_s(self, error: Exception, attempt: int, rng: Uniform) -> float | None:
        """How long to wait before a request is asked again; takes a token for it.

        :param error: how the last attempt ended.
        :param attempt: the number of that, from 1.
        :param rng: where the jitter comes from.
        :returns: seconds; `None`: it is not asked again.
        """
        if isinstance(error, ConnectionLost):
            retried = self.lost or not error.sent
        else:
            retried = isinstance(error, Nack)
        if not retried or attempt >= self.attempts_max or not self.budget.withdraw():
            return None
        ceiling_s = min(self.first_ms * 2.0 ** min(attempt - 1, 64), self.most_ms) / 1000
        wait = rng.uniform(0, ceiling_s)
        # What the server said is jittered already; more than one client was told so.
        return error.retry_after + wait if isinstance(error, Nack) else wait
