"""Memory that runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Starvation(NamedTuple):
    """Has allocations fail: those from one to another one, counted from now on.

    :param starve: begins that; from the first one, up to but without the second.
    :param feed: ends it.
    """

    starve: Callable[[int, int], None]
    feed: Callable[[], None]

    def ends_a_node(self, nth: int, do: Callable[[], Any]) -> bool:
        """Do something with that one failing: whether a MemoryError comes out of it.

        Out of the executor, that ends a node, and says why.
        """
        self.starve(nth, nth + 1)
        try:
            do()
        except MemoryError as error:
            # It may be the one that CPython keeps for when there is no memory for another.
            error.__traceback__ = None
            return True
        finally:
            self.feed()
        return False
