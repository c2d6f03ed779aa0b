"""The rate at which requests end, and when who is refused may come again."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rabble.services.gate.estimates import EndedRate, RetryTimes

MS = 1_000_000


def middle(least: float, most: float) -> float:
    return (least + most) / 2


def test_the_rate_follows_what_ends() -> None:
    rate = EndedRate()
    assert not rate.observe(0, 0)
    for n in range(1, 11):
        assert rate.observe(n * 50 * MS, n * 50)
    assert rate.per_s == rate.peak_per_s == pytest.approx(1_000)
    for n in range(1, 21):
        rate.observe((500 + n * 50) * MS, 500 + n * 20)
    assert rate.per_s == pytest.approx(400, rel=0.01)
    assert 600 < rate.peak_per_s < 1_000


def test_where_few_end_a_measurement_takes_longer() -> None:
    rate = EndedRate()
    rate.observe(0, 0)
    assert not rate.observe(50 * MS, 15)
    assert rate.observe(80 * MS, 16)
    assert rate.per_s == pytest.approx(200)
    assert not rate.observe(1_079 * MS, 17)
    assert rate.observe(1_080 * MS, 17)


def test_a_pause_of_the_process_is_one_measurement_of_many() -> None:
    rate = EndedRate()
    rate.observe(0, 0)
    for n in range(1, 11):
        rate.observe(n * 50 * MS, n * 50)
    rate.observe(10_500 * MS, 550)
    assert rate.per_s > 600


def test_a_rest_is_no_measurement() -> None:
    rate = EndedRate()
    rate.observe(0, 0)
    rate.observe(50 * MS, 50)
    rate.rest()
    assert not rate.observe(9_000 * MS, 60)
    assert rate.observe(9_050 * MS, 110)
    assert rate.per_s == pytest.approx(1_000)


def test_each_who_is_refused_has_a_turn_behind_the_others() -> None:
    times = RetryTimes(1, 2_000, middle)
    assert [times.next_ms(0, 100.0) for _ in range(4)] == [10, 20, 30, 40]
    # Half a second later these turns are over.
    assert times.next_ms(500 * MS, 100.0) == 10
    assert times.next_ms(500 * MS, 100.0, not_before_ms=300.0) == 310


def test_without_a_rate_the_least_is_said_and_with_hardly_any_the_most() -> None:
    assert RetryTimes(10, 2_000, middle).next_ms(0, 0.0) == 10
    # Chance may add a half, which is within the bound, too.
    assert RetryTimes(10, 3_000, middle).next_ms(0, 0.01) == 2_000
    assert RetryTimes(10, 3_000, lambda _, most: most).next_ms(0, 0.01) == 3_000


def test_who_is_refused_in_one_moment_does_not_come_back_in_one() -> None:
    times = RetryTimes(10, 2_000, random.Random(1).uniform)
    for _ in range(5_000):
        times.next_ms(0, 10_000.0)
    waits = sorted(times.next_ms(0, 10_000.0) for _ in range(5_000))
    assert 240 <= waits[0] and waits[-1] <= 1_500
    # In no tenth of the time come more than a quarter of them.
    span = (waits[-1] - waits[0]) / 10
    for n in range(10):
        least = waits[0] + n * span
        assert sum(least <= wait < least + span for wait in waits) < 1_250


@given(
    st.integers(1, 1_000),
    st.integers(0, 100_000),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 10**10), st.floats(0, 1e7), st.floats(0, 1e6)), max_size=50),
)
def test_what_is_said_is_in_its_bounds(
    least: int, more: int, seed: int, refusals: list[tuple[int, float, float]]
) -> None:
    times = RetryTimes(least, least + more, random.Random(seed).uniform)
    now = 0
    for passed, per_s, not_before_ms in refusals:
        now += passed
        wait = times.next_ms(now, per_s, not_before_ms)
        assert type(wait) is int and least <= wait <= least + more
