"""Instructions are counted by what callgrind writes down at each mark."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rabble.bench import WORKLOADS, instructions, messaging

needs_valgrind = pytest.mark.skipif(not instructions.found(), reason="valgrind is not on the PATH")

#: Under valgrind, without the imports that take it half a minute.
MARKS = "import os; [(sum(range(n)), os.getppid()) for n in (10, 10, 20_000, 40_000)]"


@needs_valgrind
def test_what_is_between_two_marks_is_counted() -> None:
    with instructions.Callgrind() as callgrind:
        command = [*callgrind.command, sys.executable, "-I", "-S", "-c", MARKS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        parts = callgrind.parts()
        next(parts)
        none, some, twice = next(parts), next(parts), next(parts)
    assert 0 < none < some
    assert 20_000 < twice - some
    assert twice - some == pytest.approx(some - none, rel=0.1)


@pytest.mark.soak
@needs_valgrind
@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("pingpong", (messaging.pingpong, "turns", (100, 300))),
        ("remote", instructions.WORKLOADS["remote"]),
    ],
)
def test_instructions_are_counted(
    name: str, workload: instructions.Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instructions, "WORKLOADS", {name: workload})
    told: list[str] = []
    counted = instructions.count(name, told.append)
    assert told[0] == f"{name}: counting instructions"
    assert counted.keys() == {name}
    assert 100 < counted[name].rabble < 100_000
    assert 100 < counted[name].limit < 100_000


@needs_valgrind
def test_what_fails_under_valgrind_is_told() -> None:
    with instructions.Callgrind() as callgrind:
        callgrind.command = ["sh", "-c", "echo no such luck >&2; exit 3"]
        with pytest.raises(RuntimeError, match="pingpong failed under valgrind:\nno such luck"):
            callgrind.run("pingpong")


def test_the_samples_of_a_workload_are_marked_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[None] = []
    monkeypatch.setattr(instructions, "mark", lambda: marks.append(None))
    workload = (messaging.pingpong, "turns", (10, 30))
    monkeypatch.setattr(instructions, "WORKLOADS", {"pingpong": workload})
    instructions.main("pingpong")
    printed = capsys.readouterr().out
    assert printed == '[["pingpong", "limit", [20, 60]], ["pingpong", "rabble", [20, 60]]]\n'
    assert len(marks) == 6


def test_instructions_of_a_message_are_what_the_larger_run_has_more() -> None:
    assert instructions.per_message(iter([7_777, 1_500, 3_500]), [10, 30]) == 100.0


def test_what_is_counted_are_workloads() -> None:
    assert set(instructions.WORKLOADS) <= set(WORKLOADS)
    for name, (make, _, _) in instructions.WORKLOADS.items():
        whole = WORKLOADS[name]
        if whole.make is not make:
            # Of `calls` those alone that need no other thread.
            names = {case.name for case in whole.cases(quick=True)}
            assert {case.name for case in make()} < names
