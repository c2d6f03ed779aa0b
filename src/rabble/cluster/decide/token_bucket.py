"""A bound on how often something happens, which lets a few of them through at once."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """So many tokens, and so many more each second until it is full again.

    :param per_s: tokens that come each second.
    :param most: tokens that are there at first, and at most.
    """

    def __init__(self, per_s: float, most: int) -> None:
        self._per_s = per_s
        self._most = float(most)
        self._tokens = self._most
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._tokens = self._at_time(now)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def put_back(self) -> None:
        """Put back one that was taken."""
        self._tokens = min(self._tokens + 1.0, self._most)

    def next_token(self, now: float) -> float:
        """When there is a token, in monotonic seconds."""
        missing = 1.0 - self._at_time(now)
        # A little later, so that it is there in spite of rounding.
        return now if missing <= 0.0 else now + missing / self._per_s + 1e-6

    def _at_time(self, now: float) -> float:
        return min(self._tokens + max(now - self._at, 0.0) * self._per_s, self._most)
