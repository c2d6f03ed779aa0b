"""Overload on a virtual clock: what comes through a gate, what is refused, when all is well again.

Rows 92, 95 and 97 of the catalogue of faults, as far as they are the gate's.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from rabble.bench.gate_side import Faced, Overload
from rabble.services.gate import CanaryGate, CanaryPolicy, GradientGate, GradientPolicy, NoGate
from tests.services.gate import plots
from tests.services.gate.simulation import Outcome, Scenario, Simulation

STRATEGIES = ("canary", "gradient")
HALF = ((7.0, 0.5),)


def gate_of(strategy: str, seed: int) -> Any:
    uniform = random.Random(~seed).uniform
    if strategy == "canary":
        return CanaryGate(CanaryPolicy(), uniform)
    return GradientGate(GradientPolicy(), uniform) if strategy == "gradient" else NoGate()


def run(strategy: str, scenario: Scenario, seed: int) -> Outcome:
    return Simulation(gate_of(strategy, seed), scenario, seed).run()


def check(outcome: Outcome, scenario: Scenario, seed: int, front: str) -> None:
    """What has to be seen of any overload."""
    seen = f"seed {seed}, {scenario}"
    assert outcome.goodput(scenario, scenario.begins_s, scenario.ends_s) >= 0.7, seen
    assert outcome.recovery_s(scenario) <= 5.0, seen
    refused = sorted(took for _, took, _ in outcome.refused)
    if front == "thread":
        assert refused[-1] == 0.0, seen
    else:
        # The executor looks at who came when its turn is over.
        assert refused[int(0.99 * (len(refused) - 1))] <= 0.05, seen
    assert outcome.changes and outcome.changes[-1][1].is_open, seen
    # Nobody waits for long: what was let in at first, before the gate closed, is the worst.
    later = scenario.begins_s + 2.0
    assert outcome.latency_s(0.99, later, scenario.ends_s) <= 0.5, seen


COMBINATIONS = list(
    enumerate(
        itertools.product(
            STRATEGIES,
            ("open", "closed"),
            ("thread", "executor"),
            ((), HALF),
            ("exponential", "fixed", "mixed"),
        )
    )
)


#: Each pair of two of the five is among these.
SOME = [each for each in COMBINATIONS if each[0] % 7 in (0, 3, 5)]


@pytest.mark.parametrize(
    ("seed", "combination"),
    SOME,
    ids=["-".join("half" if part is HALF else str(part or "full") for part in e) for _, e in SOME],
)
def test_three_times_what_it_can_do(seed: int, combination: tuple[Any, ...]) -> None:
    strategy, clients, front, slower, service = combination
    scenario = Scenario(
        service_s=0.003, clients=clients, front=front, slower=slower, service=service
    )
    check(run(strategy, scenario, seed), scenario, seed, front)


@pytest.mark.soak
@pytest.mark.parametrize(("number", "combination"), COMBINATIONS)
def test_three_times_what_it_can_do_by_many_seeds(
    number: int, combination: tuple[Any, ...]
) -> None:
    strategy, clients, front, slower, service = combination
    scenario = Scenario(
        service_s=0.002, clients=clients, front=front, slower=slower, service=service
    )
    for seed in range(1_000 + number, 26_000 + number, 1_000):
        check(run(strategy, scenario, seed), scenario, seed, front)


def test_without_a_gate_nothing_of_it_is_of_use() -> None:
    scenario = Scenario(service_s=0.004)
    outcome = run("none", scenario, 1)
    assert outcome.goodput(scenario, scenario.begins_s, scenario.ends_s) < 0.2
    assert outcome.recovery_s(scenario) > 5.0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("service_s", [0.0002, 0.02])
def test_whatever_time_a_request_takes(strategy: str, service_s: float) -> None:
    scenario, seeds = Scenario(service_s=service_s), range(4)
    if service_s < 0.01:
        # As many requests as with the other one, in less time.
        scenario, seeds = dataclasses.replace(scenario, begins_s=0.5, ends_s=2.5, until_s=2.6), [1]
    for seed in seeds:
        outcome = run(strategy, scenario, seed)
        assert outcome.goodput(scenario, scenario.begins_s, scenario.ends_s) >= 0.7, seed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_minute_of_overload_is_as_its_first_seconds(strategy: str) -> None:
    """Row 95, twice over: the limit does not creep up, and the gate does not open in it."""
    scenario = Scenario(service_s=0.01, ends_s=62.0, until_s=68.0)
    outcome = run(strategy, scenario, 3)
    check(outcome, scenario, 3, "thread")
    assert outcome.latency_s(0.9, 50.0, 62.0) <= outcome.latency_s(0.9, 4.0, 14.0) * 1.5 + 0.02
    assert len([at for at, _ in outcome.changes if 4.0 < at < 62.0]) <= 2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clients", ["open", "closed"])
def test_the_usual_load_is_let_in(strategy: str, clients: str) -> None:
    for seed in range(3):
        scenario = Scenario(service_s=0.002, overload=0.5, usual=0.5, clients=clients, ends_s=6.0,
                            until_s=8.0)  # fmt: skip
        outcome = run(strategy, scenario, seed)
        assert len(outcome.refused) <= 0.01 * len(outcome.answered), seed


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("front", ["thread", "executor"])
def test_a_stopped_process_is_no_overload(strategy: str, front: str) -> None:
    """Row 97. What came meanwhile is there all at once, and is done before the gate would close."""
    scenario = Scenario(
        service_s=0.002, overload=0.2, usual=0.2, front=front, pauses=((3.0, 0.4), (5.0, 0.4)),
        ends_s=7.0, until_s=8.0,
    )  # fmt: skip
    for seed in range(5):
        outcome = run(strategy, scenario, seed)
        closed = [change for _, change in outcome.changes if not change.is_open]
        if strategy == "canary":
            assert closed == [], seed
        assert outcome.recovery_s(dataclasses.replace(scenario, ends_s=5.4)) <= 1.0, seed
        assert len(outcome.answered) > 700


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_executor_that_stands_still_is_noticed_and_that_it_goes_on_too(strategy: str) -> None:
    scenario = Scenario(
        service_s=0.002, overload=0.5, usual=0.5, slower=((3.0, 1e-6), (6.0, 1.0)), ends_s=6.0,
        until_s=12.0,
    )  # fmt: skip
    outcome = run(strategy, scenario, 1)
    closed_at, change = outcome.changes[0]
    assert not change.is_open
    if strategy == "canary":
        assert closed_at <= 3.3
    # Of what came meanwhile hardly anything was let in: it would wait for what nobody wants.
    assert max(in_flight for at, in_flight, _, _ in outcome.samples if at < 6.0) <= 200
    assert outcome.changes[-1][1].is_open
    assert outcome.goodput(scenario, 7.0, 12.0) >= 0.45


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clients", ["open", "closed"])
def test_health_checks_come_through_and_retries_give_way(strategy: str, clients: str) -> None:
    scenario = Scenario(
        service_s=0.004, clients=clients, priorities=(0,) * 8 + (1, -1), patience_s=0.5
    )
    outcome = run(strategy, scenario, 5)

    def refused(priority: int) -> float:
        """Of what was asked with that priority, while the load was too high."""
        no = outcome.refused_priorities.count(priority)
        return no / (no + outcome.answered_priorities.count(priority))

    assert refused(1) < 0.05
    assert refused(1) < refused(0) < refused(-1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_pictures_of_the_guide_can_be_drawn(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    short = Scenario(service_s=0.01, begins_s=0.5, ends_s=2.0, until_s=3.0)
    monkeypatch.setattr(plots, "SCENARIOS", {"one": short, "other": short})
    picture = tmp_path / "picture.svg"
    plots.draw(picture, plots.simulated(strategy))
    text = picture.read_text()
    assert text.startswith("<?xml") and "requests per second" in text
    assert plots.figures().count("\n") == 1 + 2 * 3
    guide = Path(__file__).parents[3] / "docs" / "guides" / "gate.md"
    assert f"(../pictures/gate/{strategy}.svg)" in guide.read_text()
    # What clients of a real server saw is drawn in the same way.
    seen = Faced(100.0, [(0.5, 0.01)], [(1.5, 0.02, 0.1)], [(1.0, False, "limit"), (2.0, True, "")])
    before = picture.read_text()
    overload = Overload(strategy, usual_s=1.0, overload_s=2.0, settle_s=1.0)
    plots.draw(picture, dict.fromkeys(("one", "other"), plots.as_outcome(overload, seen)))
    assert "requests per second" in picture.read_text() != before
    assert f"(../pictures/gate/{strategy}-real.svg)" in guide.read_text()
