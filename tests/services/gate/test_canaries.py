"""What canaries tell of the queue, of a stalled executor, and of a stopped process."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from rabble.services.gate.canaries import Canaries

MS = 1_000_000


def canaries(out_max: int = 32) -> Canaries:
    """High at 50 ms, low at 10 ms, a window of 100 ms, four in a row."""
    return Canaries(50 * MS, 10 * MS, 100 * MS, 4, out_max, 1_000 * MS)


def test_the_least_latency_in_the_window() -> None:
    each = canaries()
    for number, (sent, back) in enumerate([(0, 30), (10, 25), (20, 60), (70, 90)]):
        each.sent(sent * MS, number, 0)
        assert each.came_back(back * MS, number, 0)
    assert each.least_ns(90 * MS) == 15 * MS
    assert each.least_ns(125 * MS) == 15 * MS
    assert each.least_ns(126 * MS) == 20 * MS
    assert each.least_ns(191 * MS) == 0
    assert each.back == 4


def test_one_fast_canary_says_that_no_queue_stands() -> None:
    each = canaries()
    for n in range(40):
        each.sent(n * 10 * MS, n, 0)
    for n in range(40):
        # All but one in ten are slow.
        latency = 5 if n % 10 == 0 else 80
        each.came_back((n * 10 + latency) * MS, n, 0)
        assert not each.are_slow((n * 10 + latency) * MS)


def test_all_slow_for_a_window_are_a_queue_that_stands() -> None:
    each = canaries()
    verdicts = []
    for n in range(20):
        each.sent(n * 10 * MS, n, 0)
    for n in range(20):
        now = (n * 10 + 60) * MS
        each.came_back(now, n, 0)
        verdicts.append(each.are_slow(now))
    # The window is full of slow ones 100 ms after the first one.
    assert verdicts == [False] * 10 + [True] * 10


def test_few_slow_ones_are_none_however_long_they_take() -> None:
    each = canaries()
    for n in range(3):
        each.sent(n * 500 * MS, n, 0)
        each.came_back((n * 500 + 400) * MS, n, 0)
        assert not each.are_slow((n * 500 + 400) * MS)
    each.sent(1_500 * MS, 3, 0)
    each.came_back(1_900 * MS, 3, 0)
    assert each.are_slow(1_900 * MS)


def test_what_has_not_come_back_counts_with_its_age() -> None:
    each = canaries()
    verdicts = []
    for n in range(18):
        now = n * 10 * MS
        each.sent(now, n, 0)
        each.tick(now, 0)
        verdicts.append(each.are_slow(now))
    # The first one is slow after 50 ms, and for 100 ms no other one was fast.
    assert verdicts == [False] * 16 + [True] * 2
    assert each.least_ns(170 * MS) == 170 * MS
    # It counts once, however often somebody looks, and not again when it is back.
    each = canaries()
    each.sent(0, 0, 0)
    for now in range(60, 300, 10):
        each.tick(now * MS, 0)
    each.came_back(300 * MS, 0, 0)
    assert not each.are_slow(300 * MS)
    assert each.least_ns(300 * MS) == 300 * MS


def test_an_age_below_the_low_threshold_says_nothing() -> None:
    each = canaries()
    each.sent(0, 0, 0)
    assert each.least_ns(9 * MS) == 0
    assert each.least_ns(10 * MS) == 10 * MS


def test_a_pause_of_the_whole_process_is_one_slow_canary() -> None:
    each = canaries()
    for n in range(10):
        each.sent(n * 10 * MS, n, 0)
    # Stopped for five seconds, and then each comes back.
    now = 5_000 * MS
    each.tick(now, 1)
    for n in range(10):
        each.came_back(now + n * MS, n, 1)
    now += 200 * MS
    assert not each.are_slow(now)
    # Three more, each held up by a pause of its own: an executor that takes a second for each
    # message looks the same, and is too slow.
    for n in range(10, 13):
        each.sent(now, n, n - 9)
        now += 1_000 * MS
        each.came_back(now, n, n - 8)
        assert each.are_slow(now) == (n == 12)


def test_one_is_given_up_after_a_while_and_all_when_their_node_is_gone() -> None:
    each = canaries(out_max=2)
    each.sent(0, 0, 0)
    each.sent(10 * MS, 1, 0)
    assert not each.may_send
    each.tick(1_000 * MS, 0)
    assert (each.lost, each.may_send) == (1, True)
    # It comes after all, and is nobody's any more.
    assert not each.came_back(1_001 * MS, 0, 0)
    each.give_up()
    assert (each.lost, each.are_out, each.least_ns(1_002 * MS)) == (2, False, 0)
    assert not each.are_slow(1_002 * MS)


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "back", "tick"]), st.integers(0, 40), st.integers(0, 9)),
        max_size=150,
    )
)
def test_the_least_is_that_of_a_list_of_all(operations: list[tuple[str, int, int]]) -> None:
    each = canaries(out_max=1_000)
    out: dict[int, int] = {}
    seen: list[tuple[int, int]] = []
    now = number = 0
    for what, passed, which in operations:
        now += passed * MS
        if what == "send":
            number += 1
            each.sent(now, number, 0)
            out[number] = now
        elif what == "back" and out:
            chosen = list(out)[which % len(out)]
            seen.append((now, now - out.pop(chosen)))
            each.came_back(now, chosen, 0)
        else:
            each.tick(now, 0)
            out = {n: at for n, at in out.items() if now - at < 1_000 * MS}
        window = [latency for at, latency in seen if now - at <= 100 * MS]
        oldest = now - min(out.values()) if out else 0
        expected = min(window) if window else oldest if oldest >= 10 * MS else 0
        assert each.least_ns(now) == expected
