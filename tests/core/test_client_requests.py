"""The table of requests: slots with generations, and the wheel of their ends; against a dict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.client_requests import ClientRequests

MS = 1_000_000
#: How late a request may end, by its bucket.
LATE_NS = 1 << 26


def test_a_number_finds_its_request_and_no_later_one_of_the_slot() -> None:
    table = ClientRequests(4, 0)
    first = table.try_begin(7, 0, 1_000 * MS)
    assert table.try_end(first) == 7
    second = table.try_begin(7, 0, 1_000 * MS)
    assert first is not None and second is not None and first != second
    # The same slot, which a generation tells apart.
    assert first & 0xFFFFFF == second & 0xFFFFFF
    assert table.try_end(first) is None
    assert table.count == 1 and table.try_end(second) == 7


@pytest.mark.parametrize("number", [-1, 1 << 63, 1 << 80, 5, "1", None, 1.0, True])
def test_what_is_no_number_of_a_request_finds_none(number: object) -> None:
    table = ClientRequests(4, 0)
    begun = table.try_begin(1, 0, MS)
    assert begun == 0
    assert table.try_end(number) is None
    assert table.count == 1


def test_there_are_no_more_than_allowed() -> None:
    table = ClientRequests(3, 0)
    numbers = [table.try_begin(key, 0, MS) for key in range(3)]
    assert table.try_begin(3, 0, MS) is None
    assert table.try_end(numbers[1]) == 1
    assert table.try_begin(3, 0, MS) is not None


@pytest.mark.parametrize("most", [0, -1, (1 << 24) + 1])
def test_a_bound_that_cannot_be(most: int) -> None:
    with pytest.raises(ValueError, match="most must be 1 to"):
        ClientRequests(most, 0)


def test_one_ends_by_the_clock_never_early_and_hardly_late() -> None:
    table = ClientRequests(4, 5_000 * MS)
    number = table.try_begin(1, 5_000 * MS, 6_000 * MS)
    assert table.next_expired(6_000 * MS - 1) is None
    left = table.next_due_ns(6_000 * MS - 1)
    assert 0 <= left <= LATE_NS + 1
    assert table.next_expired(6_000 * MS + LATE_NS) == number
    # It is named until it is ended.
    assert table.next_expired(6_000 * MS + LATE_NS) == number
    assert table.next_due_ns(6_000 * MS + LATE_NS) == 0
    table.try_end(number)
    assert table.next_expired(6_000 * MS + LATE_NS) is None
    assert table.next_due_ns(7_000 * MS) == -1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 60_000)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("go on"), st.integers(0, 40_000)),
    ),
    max_size=60,
)


@given(STEPS)
def test_as_a_dict_of_numbers_would(steps: list[tuple[str, int]]) -> None:
    now = 123_456_789
    table = ClientRequests(8, now)
    waiting: dict[int, tuple[int, int]] = {}
    ended: list[int] = []
    for key, (step, value) in enumerate(steps):
        if step == "begin":
            number = table.try_begin(key, now, now + value * MS)
            if len(waiting) == 8:
                assert number is None
            else:
                assert number is not None and number not in waiting and number not in ended
                waiting[number] = (key, now + value * MS)
        elif step == "end":
            known = sorted(waiting) + ended
            if known:
                number = known[value % len(known)]
                expected = waiting.pop(number, (None, 0))[0]
                assert table.try_end(number) == expected
                ended.append(number)
        else:
            now += value * MS
            while (number := table.next_expired(now)) is not None:
                key, due = waiting.pop(number)
                assert due <= now
                assert table.try_end(number) == key
                ended.append(number)
            assert all(due + LATE_NS > now for _, due in waiting.values())
        assert table.count == len(waiting)
        left = table.next_due_ns(now)
        if waiting:
            first = min(due for _, due in waiting.values())
            assert 0 <= left <= max(first - now, 0) + LATE_NS
        else:
            assert left == -1
