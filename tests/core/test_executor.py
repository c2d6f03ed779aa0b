"""The executor: its turns, deliveries and outputs, and how it ends.

What a program does to an executor ends what did it, and nothing else.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from rabble import Envelope, Output, Pid, Process
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.core.processes import Recorder, Refilling, spawn_recorder
from tests.support import BARE, Does, Witness, bare_executor, settle

# Turns.


def test_a_turn_takes_in_what_stood_there_when_it_began() -> None:
    codec = Refilling()
    with bare_executor(codec=codec) as executor:
        codec.executor = executor
        to, got = spawn_recorder(executor)
        executor.send(to, "first")
        executor.step()
        assert got == ["first"] and codec.left == 9_999
        settle(executor)


def test_an_executor_runs_once_and_takes_no_step_within_a_turn(witness: Witness) -> None:
    with bare_executor(witness=witness) as executor:
        errors: list[BaseException] = []

        def react(process: Process, msg: Any, sender: Pid | None) -> Output:
            for again in (executor.step, executor.run):
                try:
                    again()
                except RuntimeError as error:
                    errors.append(error)
            return None

        executor.send(executor.spawn(Does(react), "again"), 1)
        settle(executor)
        assert len(errors) == 2
        executor.request_stop(0)
        executor.run()
        for again in (executor.step, executor.run):
            with pytest.raises(RuntimeError):
                again()


# Delivery.


def test_whatever_stands_in_a_table_is_no_crash(executor: Executor, witness: Witness) -> None:
    to = Pid("odd", BARE)
    executor.table.insert(to, "no inbox")
    executor.send(to, 1)
    settle(executor)
    assert [pid for pid, _ in witness.errors] == [to]


# Outputs.


SIZES = [1, 2, 3, 255, 256, 257, 300, 1_000]


def shaped(shape: str, out: list[Envelope]) -> Any:
    if shape == "generator":
        return (envelope for envelope in out)
    return tuple(out) if shape == "tuple" else out


@pytest.mark.parametrize("how", ["plain", "limited", "strict"])
@pytest.mark.parametrize("shape", ["list", "tuple", "generator"])
@pytest.mark.parametrize("before", [0, 1, 100, 255, 256, 300])
def test_an_output_of_any_size_is_delivered_whole_or_not_at_all(
    how: str, shape: str, before: int
) -> None:
    """Wherever in its ring the run queue stands, and however often it grows meanwhile."""
    codec = Codec(default_registry) if how == "strict" else None
    with bare_executor(codec=codec) as executor:
        to, got = spawn_recorder(executor)
        if how == "limited":
            executor.spawn(Recorder(), "limited", mailbox_max=1)

        def react(process: Process, msg: Any, sender: Pid | None) -> Any:
            count, left, fails = msg
            if left:
                return Envelope(process.pid, [count, left - 1, fails])
            return shaped(shape, [Envelope(to, n) for n in range(count)] + ["junk"] * fails)

        for number, count in enumerate(SIZES):
            executor.spawn(Does(react), f"good{number}")
            executor.spawn(Does(react), f"bad{number}")
            executor.send(Pid(f"bad{number}", BARE), [count, before, 1])
            settle(executor)
            assert got == [] and Pid(f"bad{number}", BARE) not in executor.table
            executor.send(Pid(f"good{number}", BARE), [count, before, 0])
            settle(executor)
            assert got == list(range(count))
            got.clear()


# The end.


@pytest.mark.parametrize("drain_s", [float("inf"), 1e300, -1.0, -float("inf")])
def test_any_time_to_drain_is_a_time(witness: Witness, drain_s: float) -> None:
    with bare_executor(witness=witness) as executor:
        to, got = spawn_recorder(executor)
        for n in range(500):
            executor.send(to, n)
        executor.request_stop(drain_s)
        executor.run()
        assert got == list(range(500)) or drain_s < 0


def test_nan_is_no_time_to_drain(executor: Executor) -> None:
    to, got = spawn_recorder(executor)
    with pytest.raises(ValueError, match="NaN"):
        executor.request_stop(float("nan"))
    executor.send(to, 1)
    settle(executor)
    assert got == [1]


@pytest.mark.parametrize("way", ["table", "discard"])
def test_an_executor_ends_whatever_became_of_its_own_pid(way: str) -> None:
    with bare_executor() as executor:
        if way == "table":
            executor.table.discard(executor.pid)
        else:
            executor.discard(executor.pid, executor.pid, "gone")
            settle(executor)
            assert executor.pid in executor.table


def test_an_executor_is_let_go_of_though_its_witness_keeps_a_process() -> None:
    witness = Witness()
    gone = weakref.ref(witness)
    with bare_executor(witness=witness) as executor:
        vars(witness)["kept"] = Recorder()
        vars(witness)["executor"] = executor
        executor.spawn(vars(witness)["kept"], "kept")
    del executor, witness
    gc.collect()
    assert gone() is None
