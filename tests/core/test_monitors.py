"""Monitors within a node: who is told of whose end, and how often."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from rabble import Demonitor, Down, DownReason, Monitor, NodeId, Pid, Stop
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.registry import default_registry
from tests.core.test_executor import listen
from tests.support import BARE, TINY, Witness, bare_executor, settle


@pytest.fixture
def executor() -> Iterator[Executor]:
    with bare_executor() as made:
        yield made


def ends(executor: Executor, pid: Pid) -> None:
    executor.send(executor.pid, Stop(pid))
    settle(executor)


@pytest.mark.parametrize("times", [1, 2])
def test_one_end_is_one_down_however_often_it_was_asked_for(executor: Executor, times: int) -> None:
    monitored, _ = listen(executor, "monitored")
    monitoring, downs = listen(executor, "monitoring")
    for _ in range(times):
        executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    ends(executor, monitored)
    assert [(down.pid, down.reason) for down in downs] == [(monitored, DownReason("stopped"))]


def test_who_monitors_no_longer_is_told_nothing(executor: Executor) -> None:
    monitored, _ = listen(executor, "monitored")
    monitoring, downs = listen(executor, "monitoring")
    other, others = listen(executor, "other")
    for pid in (monitoring, other):
        executor.send(executor.pid, Monitor(monitored), sender=pid)
    executor.send(executor.pid, Demonitor(monitored), sender=monitoring)
    executor.send(executor.pid, Demonitor(Pid("nobody", BARE)), sender=monitoring)
    ends(executor, monitored)
    assert downs == [] and len(others) == 1


def test_nobody_is_told_of_the_own_end(executor: Executor) -> None:
    monitored, downs = listen(executor, "monitored")
    executor.send(executor.pid, Monitor(monitored), sender=monitored)
    ends(executor, monitored)
    again, _ = listen(executor, "monitored")
    ends(executor, again)
    assert downs == []


def test_a_monitor_ends_with_either_life(executor: Executor) -> None:
    monitored, _ = listen(executor, "monitored")
    monitoring, _ = listen(executor, "monitoring")
    executor.send(executor.pid, Monitor(monitored), sender=monitoring)
    ends(executor, monitoring)
    successor, downs = listen(executor, "monitoring")
    ends(executor, monitored)
    assert downs == []
    executor.send(executor.pid, Monitor(monitored), sender=successor)
    settle(executor)
    (down,) = downs
    assert type(down) is Down and down.reason == DownReason("no_process")
    next_life, _ = listen(executor, "monitored")
    ends(executor, next_life)
    assert len(downs) == 1


def test_without_a_mesh_who_is_elsewhere_cannot_be_reached(executor: Executor) -> None:
    monitoring, downs = listen(executor, "monitoring")
    executor.send(executor.pid, Monitor(Pid.parse("p::far@h:9")), sender=monitoring)
    settle(executor)
    assert [down.reason.kind for down in downs] == ["disconnected"]


def test_a_down_says_which_life_ended(executor: Executor) -> None:
    monitoring, downs = listen(executor, "monitoring")
    lives = []
    for _ in range(3):
        pid, _ = listen(executor, "mortal")
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


class MeshWitness(Witness):
    """Keeps nothing of connections."""

    def why_ended(self, connection: object) -> str:
        return "lost"

    def disconnected(self, connection: object) -> None:
        pass


def test_without_memory_a_remote_monitor_is_there_or_not_and_no_successor_is_told(
    starvation: tuple[Callable[[int, int], None], Callable[[], None]],
) -> None:
    """Who could not be given its monitor ends; who comes after it under its name asked for none."""
    starve, feed = starvation
    peer = NodeId("peer", "h:2")
    far = Pid("far", peer)
    ended = monitored = 0
    for nth in range(40):
        with contextlib.ExitStack() as stack, bare_executor(witness=MeshWitness()) as executor:
            poller = Poller(
                heartbeat_ms=60_000, frame_bytes_max=1 << 20, queue_bytes_max=1 << 20,
                partial_ms_max=60_000,
            )  # fmt: skip
            executor.join_mesh(poller, 100)
            near, other = socket.socketpair()
            stack.enter_context(other)
            near.setblocking(False)
            here, there = (
                Session(own, to, 1, Pid("executor", own, "rabble"), codec=Codec(default_registry))
                for own, to in ((BARE, peer), (peer, BARE))
            )
            executor.connection_up(poller.attach(near.detach(), here))
            settle(executor)
            monitoring, told = listen(executor, "monitoring")
            executor.send(executor.pid, Monitor(far), sender=monitoring)
            starve(nth, nth + 1)
            try:
                executor.step()
            except MemoryError:
                # That ends a node, and says why.
                continue
            finally:
                feed()
            settle(executor)
            if lives := monitoring in executor.table:
                monitored += 1
            else:
                ended += 1
                monitoring, told = listen(executor, "monitoring")
            there.down(monitoring, far, 1, 7, "ended")
            # Where it was the connection that had no memory, that has ended.
            with contextlib.suppress(BrokenPipeError):
                other.sendall(there.take_data())
            # One look reads all of it; in the tiny build it reads seven bytes.
            for _ in range(200 if TINY else 20):
                executor.step()
            assert len(told) == lives, nth
    assert monitored and ended
