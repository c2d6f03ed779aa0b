"""How many nodes are dialled at once, as their answers tell: congestion control, as TCP's.

Where many nodes start on few processors, all their handshakes wait for the same processors. The
more of them are under way, the longer each one takes; beyond its deadline it fails, is begun again,
and the work of the first was for nothing. So a node begins with few dials at once, has one more for
each that is quick, and half as many when one was slow: additive increase, multiplicative decrease,
see D. Chiu and R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance
in computer networks", 1989, and V. Jacobson, "Congestion avoidance and control", 1988.

What is measured is the time from the peer's HELLO to the end of the handshake, one turn each way:
connecting, and looking a host up, take as long as the network likes.
"""

from __future__ import annotations

__all__ = ["BEGIN", "QUICK_S", "SLOW_S", "DialWindow"]

#: Dials at once of which nothing is known yet.
BEGIN = 4
#: Seconds of a turn each way up to which it is quick, and from which on it is slow.
QUICK_S = 0.25
SLOW_S = 1.0
#: The least window; what is less than 1 is a pause between one dial and the next.
LEAST = 1 / 16
#: Seconds that this pause takes at most.
PAUSE_S_MAX = 5.0
#: Seconds without a dial from which on what was seen before says nothing.
FORGOTTEN_S = 10.0


class DialWindow:
    """How many dials there may be. For one thread.

    :param most: of them, ever.

    `now` is monotonic seconds throughout.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin = min(BEGIN, most)
        self._size = float(self._begin)
        #: Since none was slow it doubles with each round of answers.
        self._is_beginning = True
        #: When the next dial may begin, where not even one at a time passes quickly.
        self.pause_ends_at = float("-inf")
        self._dialled_at = float("-inf")
        #: Dials that began before that are slow for the same reason as the one that was seen then.
        self._shrunk_at = float("-inf")

    def dialled(self, now: float) -> None:
        """A dial begins."""
        if now - self._dialled_at > FORGOTTEN_S:
            self._size, self._is_beginning = float(self._begin), True
            self.pause_ends_at = now
        self._dialled_at = now

    def took(self, turn_s: float, begun_at: float, now: float) -> None:
        """A handshake has ended, however, after so many seconds from the peer's HELLO on.

        :param begun_at: when that was dialled.
        """
        if turn_s <= QUICK_S:
            more = 1.0 if self._is_beginning else 1.0 / max(self._size, 1.0)
            self._size = min(self._size + more, float(self._most))
        elif turn_s >= SLOW_S and begun_at >= self._shrunk_at:
            self._size = max(self._size / 2, LEAST)
            self._shrunk_at, self._is_beginning = now, False
        if self._size < 1.0:
            self.pause_ends_at = now + min(turn_s * (1 / self._size - 1), PAUSE_S_MAX)

    def size(self, now: float) -> int:
        """So many may be under way."""
        return int(max(self._size, 1.0)) if now >= self.pause_ends_at else 0
