"""How many dials there may be at once, as the time that handshakes take tells."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from rabble.cluster.decide.dial_window import BEGIN, PAUSE_S_MAX, QUICK_S, SLOW_S, DialWindow


def test_each_quick_handshake_makes_room_for_one_more_up_to_the_limit() -> None:
    window = DialWindow(20)
    window.dialled(0.0)
    assert window.size(0.0) == BEGIN
    for n in range(30):
        window.took(QUICK_S, 0.0, 0.1)
        assert window.size(0.1) == min(BEGIN + n + 1, 20)


def test_a_slow_one_halves_it_and_the_others_of_that_time_do_not() -> None:
    window = DialWindow(64)
    for _ in range(12):
        window.took(0.0, 0.0, 0.0)
    assert window.size(1.0) == 16
    for _ in range(10):
        window.took(SLOW_S, 1.0, 3.0)
    assert window.size(3.0) == 8
    window.took(SLOW_S, 3.5, 5.0)
    assert window.size(5.0) == 4


def test_from_the_first_slow_one_on_it_grows_by_one_for_as_many_as_there_may_be() -> None:
    window = DialWindow(64)
    for _ in range(4):
        window.took(0.0, 0.0, 0.0)
    window.took(SLOW_S, 0.0, 2.0)
    assert window.size(2.0) == 4
    for _ in range(5):
        window.took(QUICK_S, 2.0, 3.0)
    assert window.size(3.0) == 5


def test_what_is_neither_quick_nor_slow_changes_nothing() -> None:
    window = DialWindow(64)
    window.took((QUICK_S + SLOW_S) / 2, 0.0, 2.0)
    assert window.size(2.0) == BEGIN


def test_where_one_at_a_time_is_slow_there_are_pauses() -> None:
    window = DialWindow(1)
    window.took(2 * SLOW_S, 0.0, 2.0)
    # As long as the handshake took: half a dial at a time.
    assert window.size(2.0) == window.size(3.9) == 0
    assert window.size(4.0) == 1
    window.took(QUICK_S, 4.0, 4.2)
    assert window.size(4.2 + PAUSE_S_MAX) == 1


def test_after_a_while_without_dials_it_begins_anew() -> None:
    window = DialWindow(64)
    window.dialled(0.0)
    for _ in range(40):
        window.took(0.0, 0.0, 0.0)
    window.dialled(5.0)
    assert window.size(5.0) > BEGIN
    window.dialled(100.0)
    assert window.size(100.0) == BEGIN


@hypothesis.given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 60.0), st.booleans()), max_size=60),
)
def test_there_is_a_place_within_a_bounded_time_and_never_more_than_may_be(
    most: int, events: list[tuple[float, float, bool]]
) -> None:
    window, now = DialWindow(most), 0.0
    for wait_s, turn_s, is_dial in events:
        now += wait_s
        if is_dial:
            window.dialled(now)
        else:
            window.took(turn_s, now - turn_s, now)
        assert 0 <= window.size(now) <= most
        assert window.pause_ends_at <= now + PAUSE_S_MAX
        assert 1 <= window.size(max(now, window.pause_ends_at)) <= most
