"""Which numbers of others are believed: incarnations, counters, and logical times of removals.

Of all of these the greater one wins, so whoever names the greatest that there is would have the
last word for ever: no later start could come after that one. No rule that looks at two numbers only
has a way out. A clock has: what is more than a hundred years ahead of it is not believed, neither
by who is told nor, through him, by anybody else. Incarnations are drawn from clocks, and there are
2^20 of them in each millisecond. So there always is one above the highest that was believed, a
millisecond later at most. Logical times and counters are small in a mesh in which nobody lies; they
have the same bound, for the same reason.

Clocks may differ by as much as they like up to a hundred years, and a clock that is not set at all
counts as `CLOCK_MIN`. Two nodes disagree on a number between their two bounds, which only malice
makes, for as long as their clocks differ.
"""

from __future__ import annotations

__all__ = [
    "AHEAD_MAX",
    "BELIEVED_WITHOUT_CLOCK",
    "CLOCK_MIN",
    "INCARNATION_MAX",
    "highest_believed",
]

INCARNATION_MAX = 2**64 - 1
#: Incarnations of one millisecond.
MILLISECOND = 1 << 20
#: A hundred years, in incarnations.
AHEAD_MAX = 100 * 31_556_952_000 * MILLISECOND
#: The incarnation of the beginning of 2026. A clock that is behind that is not set.
CLOCK_MIN = 1_767_225_600_000 * MILLISECOND
#: For those who have no clock.
BELIEVED_WITHOUT_CLOCK = CLOCK_MIN + AHEAD_MAX


def highest_believed(now: int) -> int:
    """The highest number that is believed of others.

    :param now: an incarnation that is drawn now.
    """
    return min(max(now, CLOCK_MIN) + AHEAD_MAX, INCARNATION_MAX - 1)
