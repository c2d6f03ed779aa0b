"""Draws what the simulation shows into the pictures of docs/guides/gate.md, and prints its figures.

python -m tests.services.gate.plots docs/pictures/gate           # simulated
python -m tests.services.gate.plots docs/pictures/gate --real    # a real server: some two minutes
"""

from __future__ import annotations

import importlib
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rabble.bench.gate import Overloads
from rabble.bench.gate_side import OVERLOAD, USUAL, Faced, Overload
from rabble.bench.model import percentile
from rabble.services.gate import (
    CanaryGate,
    CanaryPolicy,
    GateChanged,
    GradientGate,
    GradientPolicy,
    NoGate,
)
from tests.services.gate.simulation import Outcome, Scenario, Simulation

SEED = 1
#: Seconds of one step of the curves of rates and of latency.
STEP_S = 0.25
#: A real run is made again, a few times, in which the server was ready to run and others did for
#: more than such a part of the time.
WAITED_MOST, TRIES_MAX = 0.15, 4
SCENARIOS = {
    "the server does what it does": Scenario(),
    "it does half from 7 s on": Scenario(slower=((7.0, 0.5),)),
}


def gates() -> dict[str, Any]:
    """A fresh gate of each strategy."""
    return {
        "canary": CanaryGate(CanaryPolicy(), random.Random(~SEED).uniform),
        "gradient": GradientGate(GradientPolicy(), random.Random(~SEED).uniform),
        "none": NoGate(),
    }


def rate(times: list[float], until_s: float) -> tuple[list[float], list[float]]:
    """How many there were each second, step by step."""
    counts = Counter(int(at / STEP_S) for at in times)
    steps = range(int(until_s / STEP_S))
    return [(n + 0.5) * STEP_S for n in steps], [counts[n] / STEP_S for n in steps]


def latency_ms(outcome: Outcome, quantile: float, until_s: float) -> list[float]:
    """A quantile of the latency in each step; what is not there is no number."""
    found = []
    for n in range(int(until_s / STEP_S)):
        ms = outcome.latency_s(quantile, n * STEP_S, (n + 1) * STEP_S) * 1e3
        found.append(ms or float("nan"))
    return found


#: What came of each scenario, by its title.
Outcomes = dict[str, tuple[Scenario, Outcome]]


def simulated(strategy: str) -> Outcomes:
    """What the simulation shows."""
    return {
        title: (scenario, Simulation(gates()[strategy], scenario, SEED).run())
        for title, scenario in SCENARIOS.items()
    }


def faced(strategy: str) -> tuple[Outcomes, list[str]]:
    """What a real server shows, in a process of its own, and the lines of the guide's table.

    The process behind it sleeps for each request, so that the gate is seen and not what else the
    machine has to do.
    """
    found, lines = {}, []
    for title, scenario in SCENARIOS.items():
        overload = Overload(strategy, bool(scenario.slower), is_busy=False)
        overloads = Overloads(overload)
        seen = overloads.next("plots")
        for _ in range(TRIES_MAX - 1):
            if seen.server_waited_s < WAITED_MOST * overload.overload_s:
                break
            seen = min(seen, overloads.next("plots"), key=lambda each: each.server_waited_s)
        found[title] = as_outcome(overload, seen)
        took = seen.refusals_s() or [0.0]
        ms = [
            seen.latency_s(percent, overload.usual_s + 2, overload.ends_s) * 1e3
            for percent in (50, 99)
        ]
        goodput = seen.goodput_per_s(overload) / seen.possible_per_s(overload)
        lines.append(
            f"| {strategy}, {title} | {seen.saturation_per_s:.0f}/s | {goodput:.2f} | "
            f"{ms[0]:,.0f} ms, {ms[1]:,.0f} ms | {len(seen.refused):,} | "
            f"{percentile(took, 50) * 1e3:.0f} ms, {percentile(took, 99) * 1e3:.0f} ms | "
            f"{100 * seen.server_waited_s / overload.overload_s:.0f} % | "
            f"{seen.recovery_s(overload):g} s |"
        )
    return found, lines


def as_outcome(overload: Overload, seen: Faced) -> tuple[Scenario, Outcome]:
    """What clients saw, as the simulation has it."""
    scenario = Scenario(
        service_s=1 / seen.saturation_per_s,
        usual=USUAL,
        overload=OVERLOAD,
        begins_s=overload.usual_s,
        ends_s=overload.ends_s,
        until_s=overload.ends_s + overload.settle_s,
        slower=((overload.halves_s, 0.5),) if overload.halves else (),
    )
    changes = [(at, GateChanged(is_open, why, 0.0, 0)) for at, is_open, why in seen.changes]
    return scenario, Outcome(answered=seen.answered, refused=seen.refused, changes=changes)


def draw(path: Path, outcomes: Outcomes) -> None:
    """One picture: rates above, latency below, a column for each scenario.

    :raises ImportError: if matplotlib is not installed.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    # The same file each time, with text that can be searched.
    settings = {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        drawing, axes = pyplot.subplots(
            2, len(outcomes), figsize=(9, 5), sharex=True, sharey="row", layout="constrained"
        )
        for place, (title, (scenario, outcome)) in enumerate(outcomes.items()):
            draw_column(axes[0][place], axes[1][place], scenario, outcome)
            axes[0][place].set_title(title)
        axes[0][0].set_ylabel("requests per second")
        axes[1][0].set_ylabel("latency, ms")
        axes[0][0].legend(loc="upper right", frameon=False)
        axes[1][0].legend(loc="upper right", frameon=False)
        drawing.savefig(path, metadata={"Date": None})
        pyplot.close(drawing)
    lines = (line.rstrip() for line in path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")


def draw_column(rates: Any, latencies: Any, scenario: Scenario, outcome: Outcome) -> None:
    """What came of one scenario."""
    until_s = scenario.until_s
    answered = [at for at, _ in outcome.answered]
    refused = [at for at, _, _ in outcome.refused]
    times, asked = rate(sorted(answered + refused), until_s)
    rates.plot(times, asked, color="tab:gray", linewidth=1, label="asked, tries again included")
    rates.plot(times, rate(answered, until_s)[1], color="tab:green", label="answered")
    can = [scenario.speed(at) / scenario.service_s for at in times]
    rates.plot(times, can, color="black", linestyle=":", linewidth=1, label="what it can do")
    # Room for the legend.
    rates.set_ylim(0, max(asked) * 1.4)
    for quantile, colour in ((0.5, "tab:blue"), (0.99, "tab:orange")):
        curve = latency_ms(outcome, quantile, until_s)
        latencies.plot(times, curve, color=colour, linewidth=1, label=f"{quantile:.0%}")
    latencies.set_yscale("log")
    latencies.set_ylim(1, 20_000)
    latencies.yaxis.set_major_formatter("{x:g}")
    latencies.set_xlabel("seconds; shaded: closed")
    closed_at = None
    for at, change in [*outcome.changes, (until_s, None)]:
        if closed_at is not None and (change is None or change.is_open):
            for each in (rates, latencies):
                each.axvspan(closed_at, at, color="tab:red", alpha=0.08, linewidth=0)
            closed_at = None
        if change is not None and not change.is_open:
            closed_at = at


def figures() -> str:
    """The table of the guide, as Markdown."""
    lines = ["| | goodput | latency 50 %, 99 % | refusals | recovery |", "|---|---|---|---|---|"]
    for title, scenario in SCENARIOS.items():
        for strategy, gate in gates().items():
            outcome = Simulation(gate, scenario, SEED).run()
            begin_s, end_s = scenario.begins_s, scenario.ends_s
            goodput = outcome.goodput(scenario, begin_s, end_s)
            ms = [outcome.latency_s(q, begin_s + 2, end_s) * 1e3 for q in (0.5, 0.99)]
            recovery = outcome.recovery_s(scenario)
            lines.append(
                f"| {strategy}, {title} | {goodput:.2f} | {ms[0]:,.0f} ms, {ms[1]:,.0f} ms | "
                f"{len(outcome.refused):,} | {recovery:g} s |"
            )
    return "\n".join(lines)


def main(folder: Path, is_real: bool) -> None:
    """Draw them all."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_real:
        print("| | it can | goodput | latency | refusals | these took | it waited | recovery |")
    for strategy in ("canary", "gradient"):
        if is_real:
            outcomes, lines = faced(strategy)
            draw(folder / f"{strategy}-real.svg", outcomes)
            print("\n".join(lines), flush=True)
        else:
            draw(folder / f"{strategy}.svg", simulated(strategy))
    if not is_real:
        print(figures())


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--real" in sys.argv[2:])
