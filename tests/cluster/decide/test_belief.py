"""Which numbers of others are believed."""

from __future__ import annotations

import pytest

from rabble.cluster.decide.belief import (
    AHEAD_MAX,
    BELIEVED_WITHOUT_CLOCK,
    CLOCK_MIN,
    INCARNATION_MAX,
    highest_believed,
)
from rabble.cluster.server import new_incarnation

NOW_S = 1_796_000_000.0
YEAR_S = 366 * 86_400.0


def test_a_clock_that_is_a_year_or_fifty_ahead_is_believed() -> None:
    now = new_incarnation(lambda: NOW_S)
    for years in (1, 50, 99):
        ahead = new_incarnation(lambda years=years: NOW_S + years * YEAR_S)
        assert ahead <= highest_believed(now)
    assert new_incarnation(lambda: NOW_S + 101 * YEAR_S) > highest_believed(now)


def test_above_the_highest_that_was_believed_there_are_some_a_millisecond_later() -> None:
    claimed = highest_believed(new_incarnation(lambda: NOW_S))
    later = highest_believed(new_incarnation(lambda: NOW_S + 0.002))
    assert later > claimed + 1_000_000


@pytest.mark.parametrize("now", [0, 1, CLOCK_MIN])
def test_a_clock_that_is_not_set_counts_as_the_year_in_which_this_was_written(now: int) -> None:
    assert highest_believed(now) == BELIEVED_WITHOUT_CLOCK
    assert highest_believed(now) > new_incarnation(lambda: NOW_S) + AHEAD_MAX // 2


def test_the_greatest_there_is_is_never_believed() -> None:
    assert highest_believed(INCARNATION_MAX) < INCARNATION_MAX
