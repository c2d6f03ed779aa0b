"""The end of a node: its steps, whoever takes them, and what the interpreter's own end leads to."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import rabble
from rabble import Limits, Pid, Process, ServiceHandler, ShutdownTimeout
from rabble._core.inbox import Inbox
from rabble._shutdown import Teardown, end_all
from rabble.reports import Reporter
from tests.support import PATIENCE_S, TRACED, Does


@pytest.mark.skipif(
    TRACED,
    reason="CPython 3.11: while an exception for a blocked thread is pending, "
    "no thread that is traced enters a function",
)
def test_the_end_of_the_interpreter_ends_what_runs_and_names_what_does_not() -> None:
    gate = threading.Event()
    taken = threading.Event()

    def wait(process: Process, msg: Any, sender: Pid | None) -> None:
        taken.set()
        gate.wait(PATIENCE_S)

    well, stuck = rabble.rouse(), rabble.rouse(limits=Limits(shutdown_ms=100))
    stuck.send(stuck.spawn(Does(wait), "waits"), "go")
    assert taken.wait(PATIENCE_S)
    with pytest.raises(ShutdownTimeout, match="receive of waits::local@127.0.0.1:0 does not"):
        end_all([well._teardown, stuck._teardown])
    assert (well.status, stuck.status) == ("stopped", "stopping")
    gate.set()
    stuck.shutdown(PATIENCE_S)
    end_all([well._teardown, stuck._teardown])


def test_an_end_whose_steps_all_raise_is_one() -> None:
    node = rabble.rouse(mesh=rabble.Mesh())

    def fail(*arguments: object) -> None:
        raise LookupError("a defect")

    service = node.register_service(ServiceHandler(), "service")
    for name in ("report", "report_crash", "end"):
        setattr(node._runtime.reporter, name, fail)
    node._runtime.calls.close = fail  # type: ignore[assignment]
    assert node._runtime.cluster is not None
    node._runtime.cluster.drain = fail  # type: ignore[method-assign]
    service._hand_back = fail  # type: ignore[method-assign]
    with contextlib.suppress(LookupError):
        node.request_shutdown()
    while not node._runtime.ended.closed:
        node._runtime.ended.wait(0.1)
    assert node.status == "failed"
    assert node.failure is not None and "LookupError: a defect" in node.failure
    # That of a reporter that was not told to end is all that runs on, and is told of.
    with pytest.raises(ShutdownTimeout, match="these threads run: rabble:local:reports"):
        node._runtime.cluster = None
        node.shutdown(0.2)
    Reporter.end(node._runtime.reporter)
    node.shutdown()


def test_the_executor_runs_once_whoever_comes_to_its_steps() -> None:
    """A thread whose start raised may run all the same, beside the one that gave the node up."""
    runs: list[int] = []
    executor = SimpleNamespace(run=lambda: runs.append(threading.get_ident()), forked=False)
    runtime: Any = SimpleNamespace(executor=executor, ended=Inbox(1))
    run = Teardown(runtime, mailboxes=None).steps()[0]  # type: ignore[arg-type]
    # True: all that follows is another thread's.
    late: list[bool | None] = []
    assert run() is False
    other = threading.Thread(target=lambda: late.append(run()))
    other.start()
    other.join(PATIENCE_S)
    assert (late, runs) == ([True], [threading.get_ident()])
    # A step that raised is taken again, but what it did is not done twice.
    assert run() is False
    assert len(runs) == 1


def test_nothing_is_left_of_a_node_that_has_no_executor_yet() -> None:
    Teardown(SimpleNamespace(), mailboxes=None).abandon()  # type: ignore[arg-type]
