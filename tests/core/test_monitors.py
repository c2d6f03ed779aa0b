"""Monitors: which process is told of whose end, on one node and of another one's."""

from __future__ import annotations

import pytest

from rabble import Demonitor, Down, DownReason, Monitor, Pid, Stop
from rabble._core.executor import Executor
from tests.core.peers import Hub
from tests.core.processes import spawn_recorder
from tests.core.starvation import Starvation
from tests.reference.session import DOWN_CODES
from tests.support import BARE, settle


def stop(executor: Executor, pid: Pid) -> None:
    executor.send(executor.pid, Stop(pid))
    settle(executor)


@pytest.mark.parametrize("times", [1, 2])
def test_one_end_is_one_down_however_often_it_was_asked_for(executor: Executor, times: int) -> None:
    monitored, _ = spawn_recorder(executor, "monitored")
    monitoring, downs = spawn_recorder(executor, "monitoring")
    for _ in range(times):
        executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    stop(executor, monitored)
    assert [(down.pid, down.reason) for down in downs] == [(monitored, DownReason("stopped"))]


def test_who_monitors_no_longer_is_told_nothing(executor: Executor) -> None:
    monitored, _ = spawn_recorder(executor, "monitored")
    monitoring, downs = spawn_recorder(executor, "monitoring")
    other, others = spawn_recorder(executor, "other")
    for pid in (monitoring, other):
        executor.send(executor.pid, Monitor(monitored), sender=pid)
    executor.send(executor.pid, Demonitor(monitored), sender=monitoring)
    executor.send(executor.pid, Demonitor(Pid("nobody", BARE)), sender=monitoring)
    stop(executor, monitored)
    assert downs == [] and len(others) == 1


def test_nobody_is_told_of_the_own_end(executor: Executor) -> None:
    monitored, downs = spawn_recorder(executor, "monitored")
    executor.send(executor.pid, Monitor(monitored), sender=monitored)
    stop(executor, monitored)
    again, _ = spawn_recorder(executor, "monitored")
    stop(executor, again)
    assert downs == []


def test_a_monitor_ends_with_either_life(executor: Executor) -> None:
    monitored, _ = spawn_recorder(executor, "monitored")
    monitoring, _ = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    stop(executor, monitoring)
    successor, downs = spawn_recorder(executor, "monitoring")
    stop(executor, monitored)
    assert downs == []
    executor.send(executor.pid, Monitor(monitored), sender=successor)
    settle(executor)
    (down,) = downs
    assert type(down) is Down and down.reason == DownReason("no_process")
    next_life, _ = spawn_recorder(executor, "monitored")
    stop(executor, next_life)
    assert len(downs) == 1


def test_without_a_mesh_who_is_elsewhere_cannot_be_reached(executor: Executor) -> None:
    monitoring, downs = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(Pid.parse("p::far@h:9")), sender=monitoring)
    settle(executor)
    assert [down.reason.kind for down in downs] == ["disconnected"]


def test_a_down_says_which_life_ended(executor: Executor) -> None:
    monitoring, downs = spawn_recorder(executor, "monitoring")
    lives = []
    for _ in range(3):
        pid, _ = spawn_recorder(executor, "mortal")
        entry = executor.table.get(pid)
        assert entry is not None
        lives.append(entry.life)
        executor.send(executor.pid, Monitor(pid), sender=monitoring)
        executor.send(executor.pid, Stop(pid))
        settle(executor)
    assert [down.life for down in downs] == lives
    assert len(set(lives)) == 3 and 0 not in lives
    executor.send(executor.pid, Monitor(pid), sender=monitoring)
    settle(executor)
    assert downs[-1].reason.kind == "no_process" and downs[-1].life == 0


def test_without_memory_a_remote_monitor_is_there_or_not_and_no_successor_is_told(
    starvation: Starvation,
) -> None:
    """Who could not be given its monitor ends; who comes after it under its name asked for none."""
    ended = monitored = 0
    for nth in range(40):
        with Hub() as hub:
            executor, peer = hub.executor, hub.connect()
            far = peer.pid("far")
            monitoring, told = spawn_recorder(executor, "monitoring")
            executor.send(executor.pid, Monitor(far), sender=monitoring)
            if starvation.ends_a_node(nth, executor.step):
                continue
            hub.settle()
            if lives := monitoring in executor.table:
                monitored += 1
            else:
                ended += 1
                monitoring, told = spawn_recorder(executor, "monitoring")
            # Where it was the connection that had no memory, that has ended, and is Down itself.
            peer.write("down", monitoring, far, 1, DOWN_CODES["stopped"], 7)
            hub.settle()
            assert len(told) == lives, nth
    assert monitored and ended
