"""What the benchmark `gate` makes of what its clients saw."""

from __future__ import annotations

import pytest

from rabble.bench.gate_side import CALM_STEPS, STEP_S, Faced, Overload

OVERLOAD = Overload(usual_s=1.0, overload_s=10.0, settle_s=6.0)


def faced(**more: object) -> Faced:
    return Faced(100.0, **more)  # type: ignore[arg-type]


def test_goodput_is_what_was_answered_in_time_during_the_overload() -> None:
    answered = [(0.5, 0.1), (1.0, 0.1), (5.0, 1.0), (6.0, 1.1), (10.9, 0.5), (11.0, 0.1)]
    assert faced(answered=answered).goodput_per_s(OVERLOAD) == pytest.approx(3 / 10)


def test_what_could_be_done_is_less_where_the_server_does_half_from_the_middle_on() -> None:
    assert faced().possible_per_s(OVERLOAD) == 100
    assert faced().possible_per_s(Overload(halves=True)) == 75


@pytest.mark.parametrize(
    ("troubled", "recovery_s"),
    [
        ([], 0.0),
        ([0, 1], 1.0),
        ([0, 1, 3], 2.0),
        # When it has been over for long enough it is over.
        ([0, 1, 2 + CALM_STEPS], 1.0),
        ([3], 2.0),
        ([CALM_STEPS], 0.0),
        (range(12), 6.0),
        ([11], 0.0),
        # Never calm for long enough.
        ([2, 5, 8, 11], 6.0),
    ],
)
def test_it_is_over_when_all_is_as_usual_for_some_steps(
    troubled: list[int], recovery_s: float
) -> None:
    answered, refused = [], []
    for step in range(12):
        at = OVERLOAD.ends_s + (step + 0.5) * STEP_S
        answered += [(at, 0.01)] * 8
        if step in troubled:
            refused.append((at, 0.01, 0.1))
    assert faced(answered=answered, refused=refused).recovery_s(OVERLOAD) == recovery_s
    slow = [(at, 10.0) for at, _, _ in refused]
    assert faced(answered=answered + slow).recovery_s(OVERLOAD) == recovery_s
