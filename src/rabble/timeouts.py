"""Timeouts: what may be one, said in one place."""

from __future__ import annotations

import math
import numbers
from typing import Any

from rabble.texts import argument_text

__all__ = ["TIMEOUT_S_MAX", "checked_timeout"]

#: What stands for "without end". In nanoseconds it fits into the kernel's types, and into this
#: one's sums with any clock, with much room.
TIMEOUT_S_MAX = 366 * 86_400.0


def checked_timeout(value: Any, what: str = "timeout") -> float:
    """A timeout in seconds, of 0 to `TIMEOUT_S_MAX`. To be asked before anything is done.

    Less than 0 is 0: the time is over. What is longer than a year, infinity too, is a year.

    :param value: what a user gave as one; infinity may be.
    :param what: the name of the parameter.
    :returns: it in seconds.
    :raises TypeError: if it is no number.
    :raises ValueError: if it is NaN.
    """
    if type(value) is float and 0.0 <= value <= TIMEOUT_S_MAX:
        # Mostly. It is asked for with each message that a mailbox waits for.
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{what} must be a number of seconds, such as 2.5, not {argument_text(value)}"
        )
    try:
        seconds = float(value)
    except OverflowError:
        # An int longer than any float.
        above: Any = value
        seconds = math.inf if above > 0 else 0.0
    if math.isnan(seconds):
        raise ValueError(f"{what} must be a number of seconds, such as 2.5, and NaN is none")
    return min(max(seconds, 0.0), TIMEOUT_S_MAX)
