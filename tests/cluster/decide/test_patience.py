"""A clock that goes slower while its thread is not given what it needs."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from rabble.cluster.decide.patience import SLOWER_MAX, Patience


def test_time_that_a_thread_has_lost_does_not_count() -> None:
    patience = Patience()
    assert patience.at(7.0) == 7.0
    patience.worked(3.0, 1.0)
    assert patience.at(10.0) == 8.0
    assert patience.when(8.0) == 10.0


def test_it_never_stands_still() -> None:
    patience = Patience()
    patience.worked(8.0, 0.0)
    assert patience.at(8.0) == 8.0 / SLOWER_MAX


def test_clocks_that_disagree_make_it_go_no_faster() -> None:
    patience = Patience()
    patience.worked(1.0, 1.001)
    assert patience.at(1.0) == 1.0


@hypothesis.given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)), max_size=50))
def test_it_goes_on_at_a_bounded_pace(rounds: list[tuple[float, float]]) -> None:
    patience, now = Patience(), 0.0
    for elapsed_s, processor_s in rounds:
        before = patience.at(now)
        now += elapsed_s
        patience.worked(elapsed_s, processor_s)
        passed = patience.at(now) - before
        assert elapsed_s / SLOWER_MAX - 1e-6 <= passed <= elapsed_s + 1e-6
