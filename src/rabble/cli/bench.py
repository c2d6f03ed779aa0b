"""`rabble bench`: measure this machine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rabble.cli.status import FAILED, USAGE_ERROR

if TYPE_CHECKING:
    from rabble.bench import Workload
    from rabble.bench.model import Result
    from rabble.bench.peers import Peers

__all__ = ["WORKLOAD_NAMES", "add_command", "run"]

#: What `rabble bench --help` names; a test holds it together with what there is.
WORKLOAD_NAMES = (
    "pingpong, ring, count, inject, big, banking, chameneos, concdict, barber, skynet, spawn, "
    "life, supervision, timers, wake, codec, values, calls, remote, remote-typed, remote-large, "
    "rtt, mesh, groups, api, forming, gate"
)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble bench` understands."""
    measure = commands.add_parser(
        "bench",
        help="measure this machine: each figure next to its limit",
        description="Measure what rabble does on this machine, each figure next to its limit, "
        "which is taken in turn with it.",
    )
    measure.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {WORKLOAD_NAMES}; all if left out"
    )
    measure.add_argument("--quick", action="store_true", help="smaller workloads, under 30 s")
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    measure.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them here: .svg or .png (needs matplotlib)"
    )
    measure.add_argument(
        "--peers",
        action="store_true",
        help="run the same workloads on what is installed of other systems, and on Erlang",
    )
    measure.add_argument(
        "--instructions",
        action="store_true",
        help="count the instructions of each message, too (needs valgrind; some minutes more)",
    )


def refusal(options: argparse.Namespace, known: Sequence[str]) -> str | None:
    """Why the arguments of `bench` cannot be used, or `None`."""
    from rabble.bench import instructions
    from rabble.bench.report import PLOT_SUFFIXES

    for name in options.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return f"there is no workload {name!r}.{hint} There are: {', '.join(known)}."
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            return f"{option} {path}: there is no folder for that file, or it is a folder itself."
    if options.plot is not None:
        if options.plot.suffix not in PLOT_SUFFIXES:
            return f"--plot {options.plot}: the name must end in {' or '.join(PLOT_SUFFIXES)}."
        if importlib.util.find_spec("matplotlib") is None:
            return "--plot needs matplotlib; install rabble with its extra: rabble[plot]."
    if options.instructions and not instructions.found():
        return "--instructions needs valgrind; install it (Debian, Ubuntu: apt install valgrind)."
    return None


def run(options: argparse.Namespace) -> int:
    """Run the workloads that were asked for.

    :returns: the exit status: 0 if all ran, 1 if one failed, 2 if the arguments cannot be used. A
        ratio that misses its target is no failure.
    """
    # Imported here, so that `rabble version` needs none of it.
    from rabble.bench import WORKLOADS, peers, report
    from rabble.bench.model import machine

    wrong = refusal(options, list(WORKLOADS))
    if wrong is not None:
        print(f"rabble bench: {wrong}", file=sys.stderr)
        return USAGE_ERROR
    results: list[Result] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(peers.Peers()) if options.peers else None
        about = machine(peers.DISTRIBUTIONS if others is not None else ())
        if others is not None:
            about["versions"].update(others.versions())
        report.show_machine(about)
        progress = stack.enter_context(report.Progress())
        names = list(dict.fromkeys(options.names or WORKLOADS))
        for number, name in enumerate(names, 1):
            measured, failed = measure_workload(
                WORKLOADS[name],
                options,
                others,
                functools.partial(say, progress, f"workload {number} of {len(names)}"),
            )
            results += measured
            failures += failed
    print()
    report.print_table(results)
    if options.json is not None:
        report.write_json(options.json, about, results)
    if options.plot is not None:
        report.plot(options.plot, results)
    for failure in failures:
        print(failure, file=sys.stderr)
    return FAILED if failures else 0


def say(progress: Callable[[str], None], where: str, text: str) -> None:
    """Tell what is done, and which part of all that is."""
    progress(f"{where}, {text}")


def measure_workload(
    workload: Workload,
    options: argparse.Namespace,
    others: Peers | None,
    progress: Callable[[str], None],
) -> tuple[list[Result], list[str]]:
    """The results of its cases, and what failed."""
    from rabble.bench import instructions
    from rabble.bench.model import SPREAD_S, measure

    results: list[Result] = []
    failures: list[str] = []
    for case in workload.cases(options.quick):
        try:
            results.append(
                measure(
                    case,
                    spread_s=0.0 if options.quick else SPREAD_S,
                    peers=others.runs(case) if others is not None else {},
                    progress=progress,
                )
            )
        except Exception as error:
            failures.append(f"{case.name} failed: {type(error).__name__}: {error}")
    if options.instructions and workload.name in instructions.WORKLOADS:
        try:
            counted = instructions.count(workload.name, progress)
        except Exception as error:
            failures.append(
                f"counting the instructions of {workload.name} failed: "
                f"{type(error).__name__}: {error}"
            )
        else:
            results = [
                dataclasses.replace(result, instructions=counted.get(result.name))
                for result in results
            ]
    return results, failures
