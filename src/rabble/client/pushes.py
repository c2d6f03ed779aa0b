"""Pushes that wait for whoever takes them: bounded, and what is dropped is told."""

from __future__ import annotations

import collections
import threading
from typing import Any

from rabble.client.errors import ConnectionLost, PushesLost

__all__ = ["PushBuffer", "missed_end"]


def missed_end() -> ConnectionLost:
    """What is raised when a connection has come and gone, and another one is in its place."""
    return ConnectionLost(
        "a connection ended, and was replaced, before its pushes were taken: who subscribed by it "
        "has to do so again"
    )


class PushBuffer:
    """The latest pushes, in order. For any thread.

    :param pushes_max: how many are kept; of more the oldest are dropped.
    """

    def __init__(self, pushes_max: int) -> None:
        #: Each a push, or what to raise in its place.
        self._kept: collections.deque[tuple[Any, Exception | None]] = collections.deque()
        self._lock = threading.Lock()
        self._pushes_max = pushes_max
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, msg: Any, error: Exception | None = None) -> None:
        """Keep a push.

        :param error: it could not be decoded; this is raised where it would have come.
        """
        with self._lock:
            if len(self._kept) == self._pushes_max:
                self._kept.popleft()
                self._dropped += 1
            self._kept.append((msg, error))

    def take(self) -> Any:
        """The oldest push.

        :raises PushesLost: once, if others before it were dropped.
        :raises DecodeError: if it could not be decoded.
        :raises IndexError: if there is none.
        """
        with self._lock:
            count, self._dropped = self._dropped, 0
            msg, error = (None, None) if count else self._kept.popleft()
        if count:
            lost = PushesLost(
                f"{count} pushes were dropped, as more than {self._pushes_max} waited to be taken "
                f"(ClientLimits.pushes_max); the next ones are those that are kept"
            )
            lost.count = count
            raise lost
        if error is not None:
            raise error
        return msg
