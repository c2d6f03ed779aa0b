"""Queues that fill close a gate, with hysteresis."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rabble.services.gate import (
    NEVER,
    CanaryGate,
    CanaryPolicy,
    GateChanged,
    GradientGate,
    GradientPolicy,
    NoGate,
)
from rabble.services.gate.policies import Policy
from rabble.services.gate.pressure import Pressure

MS = 1_000_000


def test_it_is_high_from_the_high_mark_on_until_all_are_below_the_low_one() -> None:
    pressure = Pressure(Policy())
    highs = []
    for name, fraction in (
        ("a", 0.79), ("a", 0.8), ("b", 0.6), ("a", 0.0), ("b", 0.5), ("b", 0.49), ("b", 0.79),
    ):  # fmt: skip
        pressure.report(0, name, fraction)
        highs.append(pressure.is_high)
    assert highs == [False, True, True, True, True, False, False]


def test_the_highest_is_shown() -> None:
    pressure = Pressure(Policy())
    for name, fraction, shown in (
        ("a", 0.4, ("", 0.0)),
        ("a", 0.6, ("a", 0.6)),
        ("b", 0.9, ("b", 0.9)),
        ("a", 0.7, ("b", 0.9)),
        ("b", 0.65, ("a", 0.7)),
        ("a", 3.0, ("a", 1.0)),
        ("a", 0.0, ("b", 0.65)),
        ("b", 0.1, ("", 0.0)),
    ):
        pressure.report(0, name, fraction)
        assert (pressure.name, pressure.top) == shown


def test_who_does_not_report_again_is_forgotten() -> None:
    pressure = Pressure(Policy())
    pressure.report(0, "a", 0.9)
    pressure.report(5_000 * MS, "b", 0.6)
    assert pressure.next_tick() == 10_000 * MS
    pressure.tick(9_999 * MS)
    assert pressure.name == "a"
    pressure.tick(10_000 * MS)
    assert (pressure.name, pressure.is_high) == ("b", True)
    pressure.tick(15_000 * MS)
    assert (pressure.name, pressure.is_high, pressure.next_tick()) == ("", False, None)


@pytest.mark.parametrize("fraction", [-0.1, float("nan"), float("-inf")])
def test_what_is_no_fraction_is_refused(fraction: float) -> None:
    pressure = Pressure(Policy())
    with pytest.raises(ValueError, match="pressure of out queue: fraction must be 0 to 1, not"):
        pressure.report(0, "out queue", fraction)
    assert not pressure.is_raised


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=60))
def test_it_is_as_all_reports_together_say(reports: list[tuple[str, float]]) -> None:
    pressure, last, is_high = Pressure(Policy()), dict.fromkeys("abc", 0.0), False
    for name, fraction in reports:
        pressure.report(0, name, fraction)
        last[name] = min(fraction, 1.0)
        top = max(last.values())
        is_high = top >= 0.8 or (is_high and top >= 0.5)
        assert pressure.is_high == is_high
        assert pressure.top == (top if top >= 0.5 else 0.0)
        assert pressure.is_full == (is_high and top >= 0.95)


def gates() -> list[Any]:
    uniform = random.Random(0).uniform
    return [CanaryGate(CanaryPolicy(), uniform), GradientGate(GradientPolicy(), uniform)]


@pytest.mark.parametrize("gate", gates(), ids=lambda gate: type(gate).__name__)
def test_a_gate_is_closed_by_it_and_says_why(gate: Any) -> None:
    assert gate.tick(0) is None and gate.next_tick(0) == NEVER
    gate.pressure(0, "peer b", 0.85)
    assert gate.next_tick(0) == 0
    assert gate.tick(0) == GateChanged(False, "pressure of peer b", 0.0, 0)
    assert [gate.admit(0, priority) > 0 for priority in (-1, 0, 1)] == [True, True, False]
    gate.pressure(MS, "peer b", 0.97)
    assert gate.admit(MS, 1) > 0
    status = gate.status()
    assert (status.is_open, status.reason) == (False, "pressure of peer b")
    assert (status.pressure_name, status.pressure, status.closings) == ("peer b", 0.97, 1)
    assert status.refused == {-1: 1, 0: 1, 1: 1}
    gate.pressure(2 * MS, "peer b", 0.6)
    # Between the marks it stays as it is, and retries are refused on the way up, too.
    assert gate.admit(2 * MS, 0) > 0
    gate.pressure(3 * MS, "peer b", 0.1)
    assert gate.tick(3 * MS) == GateChanged(True, "pressure of peer b", 0.0, 0)
    gate.pressure(4 * MS, "peer b", 0.6)
    assert [gate.admit(4 * MS, priority) > 0 for priority in (-1, 0, 1)] == [True, False, False]
    assert gate.tick(4 * MS) is None
    # Forgotten.
    assert gate.next_tick(4 * MS) <= 10_004 * MS
    gate.tick(10_004 * MS)
    assert gate.admit(10_004 * MS, -1) == 0


def test_what_opens_and_closes_between_two_ticks_is_not_told() -> None:
    for gate in gates():
        gate.pressure(0, "a", 1.0)
        gate.pressure(0, "a", 0.0)
        assert gate.tick(0) is None
        assert gate.status().closings == 1


def test_no_gate_shows_pressure_and_lets_in_whatever_comes() -> None:
    gate = NoGate()
    gate.pressure(0, "a", 1.0)
    assert [gate.admit(0, priority) for priority in (-1, 0, 1)] == [0, 0, 0]
    gate.began(0)
    gate.began(0)
    gate.ended(1, 0, False)
    assert gate.refuse(1) == 10
    assert (gate.tick(1), gate.next_tick(1), gate.canary_due(1)) == (None, NEVER, False)
    status = gate.status()
    assert (status.in_flight, status.admitted, status.pressure_name) == (1, 2, "a")
    assert status.refused == {-1: 0, 0: 1, 1: 0}
    assert status.gauges() == {
        "gate.open": 1.0,
        "gate.in_flight": 1.0,
        "gate.ended_per_s": 0.0,
        "gate.latency_us": 0.0,
        "gate.latency_usual_us": 0.0,
        "gate.pressure": 1.0,
        "gate.closed_for_canaries": 0.0,
        "gate.closed_for_limit": 0.0,
        "gate.closed_for_pressure": 0.0,
    }
    assert status.counters("g.")["g.admitted"] == 2
    assert status.counters("g.")["g.refused"] == 1
