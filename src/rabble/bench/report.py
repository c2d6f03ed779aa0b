"""What the results look like: the table, the JSON file, the plot, and the line of progress."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rabble.bench.model import Instructions, Result

__all__ = ["Progress", "as_json", "has_rich", "plot", "print_table", "show_machine", "write_json"]

PLOT_SUFFIXES = (".svg", ".png")
HEADINGS = (
    "workload",
    "rate",
    "min – max",
    "unit",
    "limit",
    "its rate",
    "ratio",
    "target",
    "reached",
)
#: More columns, where instructions were counted.
INSTRUCTIONS = ("instructions", "of the limit", "their ratio")
#: Columns whose cells are figures.
FIGURES = {"rate", "min – max", "its rate", "ratio", "target"}


#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY_S = 5.0


class Progress:
    """Says what is being done. A context manager.

    On a terminal that is one line, which changes. Elsewhere, in a file or a CI job's log, it is a
    line every few seconds, of a thread, so that a run that takes a minute is no silence.

    :param stream: where to say it; by default standard error.
    :param every_s: seconds between two lines where there is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, every_s: float = LINE_EVERY_S) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every_s = every_s
        self._text = ""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="rabble:bench:progress")

    def __enter__(self) -> Progress:
        if not self._terminal:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self("")
        else:
            self._ends.set()
            self._thread.join()

    def __call__(self, text: str) -> None:
        self._text = text
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text[:78]}")
            self._stream.flush()

    def _repeat(self) -> None:
        start = time.monotonic()
        while not self._ends.wait(self._every_s):
            if text := self._text:
                try:
                    self._stream.write(f"{time.monotonic() - start:6.0f} s  {text}\n")
                    self._stream.flush()
                except OSError:
                    # Nobody reads it any more, and what is measured goes on.
                    return


def figure(value: float) -> str:
    """A figure with three digits that count."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}" if abs(value) < 999.5 * size else f"{value:.3g}"
    return f"{value:.3g}"


def rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The table's headings and its cells; one column for each peer that took part."""
    peers = list(dict.fromkeys(peer for result in results for peer in result.peers))
    counted = INSTRUCTIONS if any(result.instructions for result in results) else ()
    cells = [
        [
            result.name,
            figure(result.rate),
            f"{figure(result.rate_min)} – {figure(result.rate_max)}",
            result.unit,
            result.limit_name,
            figure(result.limit_rate),
            f"{result.ratio:.2f}",
            result.target or "",
            "" if result.reached is None else "yes" if result.reached else "NO",
            *(instruction_cells(result.instructions) if counted else ()),
            *(figure(result.peers[peer]) if peer in result.peers else "" for peer in peers),
        ]
        for result in results
    ]
    return [*HEADINGS, *counted, *peers], cells


def instruction_cells(counted: Instructions | None) -> tuple[str, str, str]:
    """Of a result; whole figures, as their differences are what is looked for."""
    if counted is None:
        return "", "", ""
    return f"{counted.rabble:,.0f}", f"{counted.limit:,.0f}", f"{counted.ratio:.3f}"


def has_rich() -> bool:
    """Whether rich is installed."""
    return importlib.util.find_spec("rich") is not None


def print_table(results: Sequence[Result], stream: TextIO | None = None) -> None:
    """Print the results: on a terminal with rich where it is installed, else in plain text."""
    stream = sys.stdout if stream is None else stream
    headings, cells = rows(results)
    if stream.isatty() and has_rich():
        print_rich(headings, cells, stream)
    else:
        print_plain(headings, cells, stream)
    for result in results:
        texts = [
            whose + ", ".join(f"{name} {figure(value)}" for name, value in details.items())
            for whose, details in (
                ("", result.details),
                (f"{result.limit_name}: ", result.limit_details),
            )
            if details
        ]
        if texts:
            print(f"{result.name}: {'; '.join(texts)}", file=stream)


def is_figure(heading: str) -> bool:
    """Whether a column is set to the right; those of peers are."""
    return heading in FIGURES or heading not in HEADINGS


def print_plain(headings: list[str], cells: list[list[str]], stream: TextIO) -> None:
    """The table in columns of spaces."""
    columns = list(zip(headings, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for line in (headings, ["-" * width for width in widths], *cells):
        texts = [
            cell.rjust(width) if is_figure(heading) else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        print("  ".join(texts).rstrip(), file=stream)


def print_rich(headings: list[str], cells: list[list[str]], stream: TextIO) -> None:
    """The table as rich draws it."""
    table = importlib.import_module("rich.table").Table()
    for heading in headings:
        table.add_column(
            heading, justify="right" if is_figure(heading) else "left", overflow="fold"
        )
    reached = headings.index("reached")
    for row in cells:
        colour = {"yes": "green", "NO": "red"}.get(row[reached])
        shown = list(row)
        if colour is not None:
            shown[reached] = f"[{colour}]{row[reached]}[/{colour}]"
        table.add_row(*shown)
    importlib.import_module("rich.console").Console(file=stream).print(table)


def show_machine(machine: dict[str, Any], stream: TextIO | None = None) -> None:
    """Say in two lines what the figures are measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = machine["memory_bytes"] / 2**30
    print(
        f"{machine['processor']}, {machine['processors']} processors, {memory:.1f} GiB, "
        f"{machine['system']}, load {machine['load_1min']:.2f}\n{versions}",
        file=sys.stdout if stream is None else stream,
        flush=True,
    )


def as_json(machine: dict[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """What the JSON file holds."""
    return {"machine": machine, "results": [result.as_json() for result in results]}


def write_json(path: Path, machine: dict[str, Any], results: Iterable[Result]) -> None:
    """Write machine and results to a file."""
    text = json.dumps(as_json(machine, results), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw each ratio with its spread over the runs, and its target, into an SVG or PNG file.

    :raises ImportError: if matplotlib is not installed.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    drawing, axes = pyplot.subplots(figsize=(9, 1.2 + 0.4 * len(results)), layout="constrained")
    for place, result in enumerate(results):
        ratios = [run.ratio for run in result.runs]
        colour = {True: "tab:green", False: "tab:red", None: "tab:gray"}[result.reached]
        axes.barh(place, result.ratio, color=colour, height=0.6)
        axes.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1)
        if result.target is not None:
            axes.plot(float(result.target.split()[1]), place, "k|", markersize=16)
    axes.set_yticks(
        range(len(results)),
        [f"{result.name}\n{figure(result.rate)} {result.unit}" for result in results],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("ratio to the limit; bar: median, line: lowest to highest run, mark: target")
    drawing.savefig(path)
    pyplot.close(drawing)
