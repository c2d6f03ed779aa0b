"""Interrupts: how the executor's thread is got out of what does not return."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from rabble import Envelope, Pid, Process
from rabble._core.errors import Interrupted
from rabble._core.executor import Executor
from tests.core.processes import spawn_recorder
from tests.support import BARE, PATIENCE_S, Does, Witness, bare_executor, running, settle


class TellingWitness(Witness):
    """Sets `told` when it is told of a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        super().crashed(pid, error)
        self.told.set()


def test_an_executor_that_does_not_run_is_not_interrupted(executor: Executor) -> None:
    to, got = spawn_recorder(executor)
    for _ in range(2):
        executor.interrupt()
    executor.send(to, 1)
    settle(executor)
    assert got == [1]


def test_a_receive_that_does_not_return_is_the_end_of_its_process_and_of_nothing_else() -> None:
    began, delivered = threading.Event(), threading.Event()

    def stuck(process: Process, msg: Any, sender: Pid | None) -> NoReturn:
        began.set()
        while True:
            pass

    with bare_executor(witness=(witness := TellingWitness())) as executor, running(executor):
        pid = executor.spawn(Does(stuck), "stuck")
        after = executor.spawn(Does(lambda *_: delivered.set()), "after")
        executor.send(pid, 1)
        executor.send(after, 1)
        assert began.wait(PATIENCE_S)
        executor.interrupt()
        assert witness.told.wait(PATIENCE_S)
        assert delivered.wait(PATIENCE_S)
        assert [(who, type(error)) for who, error in witness.errors] == [(pid, Interrupted)]
        assert executor.crashes == 1 and pid not in executor.table


def test_an_interrupt_that_a_callback_swallows_is_raised_again(witness: Witness) -> None:
    """And one that comes while no `receive` runs: a callback, a property in strict mode."""
    began = threading.Event()
    caught: list[type[BaseException]] = []
    ended = threading.Event()

    def callback(envelope: Envelope) -> None:
        began.set()
        try:
            while True:
                pass
        except BaseException as error:
            caught.append(type(error))
        while True:
            pass

    with bare_executor(witness=witness) as executor:
        pid = Pid("stuck", BARE)
        executor.add_callback(pid, callback)
        thread = threading.Thread(target=lambda: (executor.run(), ended.set()))
        thread.start()
        executor.send(pid, 1)
        assert began.wait(PATIENCE_S)
        executor.request_stop(0)
        while not ended.wait(0.01):
            executor.interrupt()
        thread.join(PATIENCE_S)
    assert caught == [Interrupted]
