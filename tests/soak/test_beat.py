"""A timer that repeats, on the machine's own clock."""

from __future__ import annotations

import pytest

from rabble.bench import timing


@pytest.mark.parametrize(
    "beats", [pytest.param(20, id="quick"), pytest.param(1_000, id="long", marks=pytest.mark.soak)]
)
def test_a_beat_does_not_drift(beats: int) -> None:
    """A thousand firings of 10 ms, with a process that takes 3 ms for each, end after 10 s.

    How late a single one is depends on the machine; that they add up does not.
    """
    case = next(case for case in timing.timers(1_000, 1, 1, beats) if case.name == "timers-beat")
    sample = case.run()
    print(f"{sample.rate:.2f} ms late after {sample.messages} firings, {dict(sample.details)}")
    assert sample.messages >= beats
    # Never early: the process notes its start before the executor does.
    assert sample.rate >= 0
    if beats == 1_000:
        assert sample.rate <= timing.BEAT_LATENESS_MS_MAX
