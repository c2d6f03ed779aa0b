"""A token bucket: a few at once, and no more than its rate in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rabble.cluster.decide.token_bucket import TokenBucket


def test_it_is_full_at_first_and_fills_up_again() -> None:
    bucket = TokenBucket(2.0, 3)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(5.4)
    assert bucket.take(5.6)
    assert [bucket.take(99.0) for _ in range(4)] == [True, True, True, False]


def test_it_says_when_there_is_a_token() -> None:
    bucket = TokenBucket(2.0, 1)
    assert bucket.next_token(1.0) == 1.0
    assert bucket.take(1.0)
    assert 1.5 <= bucket.next_token(1.0) < 1.6
    assert bucket.take(bucket.next_token(1.0))


def test_what_is_put_back_is_there_and_never_more_than_it_holds() -> None:
    bucket = TokenBucket(1.0, 1)
    assert bucket.take(0.0)
    for _ in range(3):
        bucket.put_back()
    assert bucket.take(0.0) and not bucket.take(0.0)


@given(st.lists(st.floats(0.0, 3.0), max_size=60), st.floats(0.1, 50.0), st.integers(1, 9))
def test_no_more_than_the_rate_and_what_it_holds(
    waits: list[float], per_s: float, most: int
) -> None:
    bucket, now, taken = TokenBucket(per_s, most), 100.0, 0
    for wait in waits:
        now += wait
        taken += bucket.take(now)
        assert taken <= most + (now - 100.0) * per_s + 1e-6
        due = bucket.next_token(now)
        assert due >= now
