"""What is said while benchmarks run, and what their results look like."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import threading

import pytest

from rabble.bench.model import Case, Instructions, Limit, Result, Sample, Target, measure
from rabble.bench.report import Progress, figure, print_plain, print_table, rows


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def a_result() -> Result:
    """A result to be shown."""
    case = Case("shown", {}, "x/s", lambda: Sample(3, 1.0), Limit("fixed", 2.0), Target(1.0))
    return measure(case)


class Lines(io.StringIO):
    """A stream that is no terminal, and says when so many lines were written."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.expected = expected
        self.written = threading.Event()

    def write(self, text: str) -> int:
        size = super().write(text)
        if self.getvalue().count("\n") >= self.expected:
            self.written.set()
        return size


def test_progress_on_a_terminal_is_one_line_that_is_left_empty() -> None:
    terminal = Terminal()
    with Progress(terminal, every_s=0.001) as progress:
        progress("ring: run 1 of 5")
        progress("ring: run 2 of 5")
    assert terminal.getvalue() == "".join(
        f"\r\x1b[K{text}" for text in ("ring: run 1 of 5", "ring: run 2 of 5", "")
    )


def test_progress_elsewhere_is_a_line_every_few_seconds() -> None:
    lines = Lines(3)
    with Progress(lines, every_s=0.001) as progress:
        progress("ring: run 1 of 5")
        # It is the same run all the time, and is told again.
        assert lines.written.wait(30)
    told = lines.getvalue().splitlines()
    assert len(told) >= 3
    assert all(line.endswith(" s  ring: run 1 of 5") for line in told)


def test_progress_that_has_nothing_to_say_says_nothing() -> None:
    silent = io.StringIO()
    with Progress(silent, every_s=3_600.0) as progress:
        progress("ring: run 1 of 5")
    assert silent.getvalue() == ""


def test_progress_that_nobody_reads_stops_nothing() -> None:
    tried = threading.Event()

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            tried.set()
            raise BrokenPipeError

    with Progress(Broken(), every_s=0.001) as progress:
        progress("ring: run 1 of 5")
        assert tried.wait(30)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.058, "0.058"), (12.34, "12.3"), (1234.0, "1.23 k"), (9.87e6, "9.87 M"), (2e9, "2 G")],
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_a_missed_target_is_marked_and_is_no_failure() -> None:
    case = Case("slow", {}, "x/s", lambda: Sample(1, 1.0), Limit("fixed", 2.0), Target(1.0))
    stream = io.StringIO()
    print_table([measure(case)], stream)
    line = next(line for line in stream.getvalue().splitlines() if line.startswith("slow"))
    assert line.split()[-1] == "NO"


def test_instructions_stand_beside_the_rates() -> None:
    counted = dataclasses.replace(a_result(), instructions=Instructions(1_250.4, 1_500.48))
    headings, cells = rows([a_result(), counted])
    assert headings[-3:] == ["instructions", "of the limit", "their ratio"]
    assert [line[-3:] for line in cells] == [["", "", ""], ["1,250", "1,500", "1.200"]]
    assert counted.as_json()["instructions"]["ratio"] == pytest.approx(1.2)
    assert a_result().as_json()["instructions"] is None
    assert rows([a_result()])[0][-1] == "reached"


def test_a_terminal_without_rich_gets_the_plain_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    terminal, plain = Terminal(), io.StringIO()
    print_table([a_result()], terminal)
    print_plain(*rows([a_result()]), plain)
    assert terminal.getvalue() == plain.getvalue()


def test_a_terminal_with_rich_gets_a_drawn_table() -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    print_table([a_result()], terminal)
    assert "shown" in terminal.getvalue()
    assert "yes" in terminal.getvalue()
