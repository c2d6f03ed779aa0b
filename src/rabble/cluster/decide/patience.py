"""How long to wait for a peer, by a clock that goes slower while this node is late itself."""

from __future__ import annotations

__all__ = ["SLOWER_MAX", "Patience"]

#: How much slower it goes at most: as much as its own lag widens a node's other time-outs.
SLOWER_MAX = 8.0


class Patience:
    """Counts the time of deadlines. For one thread.

    A thread that is not given a processor, or the interpreter, when it has something to do answers
    its peers late, and they have as much less of the time that it allows them. Most likely they are
    starved as well, as nodes of one machine are. So time that the thread has lost does not count:
    it says of nobody else that he is slow.
    """

    def __init__(self) -> None:
        #: Seconds that do not count, since the beginning.
        self.excused_s = 0.0

    def worked(self, elapsed_s: float, processor_s: float) -> None:
        """The thread had something to do for a while.

        :param elapsed_s: seconds of that, of which `processor_s` it was given a processor.
        """
        lost_s = min(elapsed_s - processor_s, elapsed_s * (1 - 1 / SLOWER_MAX))
        if lost_s > 0.0:
            self.excused_s += lost_s

    def at(self, now: float) -> float:
        """What this clock shows at a time, in seconds."""
        return now - self.excused_s

    def when(self, shown: float) -> float:
        """When it shows that, at the earliest."""
        return shown + self.excused_s
