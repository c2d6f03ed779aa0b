"""Notices: what the runtime asks of an executor is meant for one life, and takes its turn."""

from __future__ import annotations

import pytest

from rabble import DeadLetterReason, Down, DownReason, Monitor, Pid, Stop
from rabble._core import notices
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from tests.core.processes import spawn_recorder
from tests.support import BARE, Witness, settle

STOPPED = DownReason("stopped")


@pytest.mark.parametrize("name", ["Connected", "Discard", "Notice", "Undelivered"])
def test_a_blank_notice_that_somebody_makes_and_sends_asks_for_nothing(
    executor: Executor, witness: Witness, name: str
) -> None:
    cls = vars(notices)[name]
    to, got = spawn_recorder(executor)
    executor.send(executor.pid, cls.__new__(cls), sender=to)
    executor.send(to, "after")
    settle(executor)
    assert got == ["after"] and witness.errors == []
    assert executor.crashes == 0 and executor.dead_letters == {}


def test_a_down_comes_behind_what_was_sent_before_and_before_what_was_sent_after(
    executor: Executor,
) -> None:
    monitored, _ = spawn_recorder(executor, "monitored")
    monitoring, told = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    executor.send(monitoring, "before")
    executor.send(executor.pid, Stop(monitored))
    settle(executor)
    executor.send(monitoring, "after")
    settle(executor)
    assert told == ["before", Down(monitored, STOPPED), "after"]


def test_a_down_for_a_life_that_has_ended_is_a_dead_letter(executor: Executor) -> None:
    monitored, _ = spawn_recorder(executor, "monitored")
    monitoring, told = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    settle(executor)
    # When the Down has its turn, whom it is for has gone.
    executor.send(executor.pid, Stop(monitored))
    executor.send(executor.pid, Stop(monitoring))
    settle(executor)
    assert told == [] and executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}


def test_a_discard_removes_a_service_in_its_turn_and_tells_its_monitors(
    executor: Executor,
) -> None:
    inbox = Inbox(10)
    service = Pid("service", BARE)
    executor.add_inbox(service, inbox)
    monitoring, told = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(service), sender=monitoring)
    executor.send(service, "before")
    executor.discard(service, inbox, STOPPED)
    executor.send(service, "after")
    settle(executor)
    assert service not in executor.table and told == [Down(service, STOPPED)]
    assert executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}


@pytest.mark.parametrize("pid", [Pid("service", BARE), Pid("nobody", BARE)])
def test_a_discard_of_what_belongs_to_another_by_then_does_nothing(
    executor: Executor, pid: Pid
) -> None:
    service = Pid("service", BARE)
    executor.add_inbox(service, Inbox(10))
    executor.discard(pid, Inbox(10), STOPPED)
    settle(executor)
    assert service in executor.table and executor.dead_letters == {}
