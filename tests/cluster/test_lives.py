"""A pid is a name, a life is who bears it: what holds of lives between nodes, and on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Down, DownReason, Envelope, Monitor, Pid, Process, Spawn, Stop
from tests.cluster.mesh import meet, nothing_left, rouse
from tests.support import PATIENCE_S, Does

RESTARTS = 100


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


class Ready(Process):
    """Says so at its start, and crashes on its first message."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def init(self) -> rabble.Output:
        return Envelope(self.to, "ready")

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        raise RuntimeError("as it was told")


class Keeper(Process):
    """Spawns a `Ready` again when the one before has ended, `RESTARTS` of them."""

    def __init__(self, to: Pid) -> None:
        self.to = to
        self.spawned = 0

    def init(self) -> rabble.Output:
        if self.spawned == RESTARTS:
            return None
        self.spawned += 1
        return [
            Envelope(self.executor, Spawn(Ready(self.to), "kept")),
            Envelope(self.executor, Monitor(Pid("kept", self.node_id))),
        ]

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        return self.init()


class Watch(Process):
    """Monitors who is ready, has it crash, and passes on what it is told."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        told = Envelope(self.to, msg)
        if msg != "ready":
            return told
        return [told, Envelope(self.executor, Monitor(sender)), Envelope(sender, "crash")]


@pytest.mark.parametrize("far", [False, True])
def test_a_down_comes_before_the_next_life_says_anything(far: bool) -> None:
    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)
        watch = a.spawn(Watch(box.pid), "watch")
        (b if far else a).spawn(Keeper(watch), "keeper")
        told = [box.receive(PATIENCE_S).msg for _ in range(2 * RESTARTS)]
        assert told[::2] == ["ready"] * RESTARTS
        assert all(isinstance(down, Down) for down in told[1::2])
        lives = [down.life for down in told[1::2]]
        assert lives == sorted(set(lives)) and lives[0] > 0


@pytest.mark.parametrize("far", [False, True])
def test_a_monitor_is_told_the_reason_of_a_stop(far: bool) -> None:
    reason = DownReason("shutdown", "its work is done")
    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)
        of = b if far else a
        stops = of.spawn(Does(lambda p, m, s: Envelope(p.executor, Stop(p.pid, reason))), "stops")

        def watch(process: Process, msg: Any, sender: Pid | None) -> rabble.Output:
            if isinstance(msg, Pid):
                return [Envelope(process.executor, Monitor(msg)), Envelope(msg, "go")]
            return Envelope(box.pid, msg)

        a.send(a.spawn(Does(watch), "watch"), stops)
        assert box.receive(PATIENCE_S).msg == Down(stops, reason)


def test_who_stops_a_process_of_another_node_is_told_that_it_cannot() -> None:
    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)
        far = b.spawn(Does(lambda process, msg, sender: Envelope(sender, msg)), "far")
        near = a.spawn(Does(lambda p, m, s: Envelope(p.executor, Stop(far))), "near")
        box.send(a.pid("executor", "rabble"), Monitor(near))
        a.send(near, "go")
        down = box.receive(PATIENCE_S).msg
        assert down.pid == near and "a node stops its own processes only" in down.reason.detail
        with pytest.raises(ValueError, match="far"):
            a.stop(far)
        box.send(far, "lives")
        assert box.receive(PATIENCE_S).msg == "lives"


def test_no_process_is_said_behind_what_the_life_sent() -> None:
    """A monitor that comes just after the end of a process that has just sent much."""
    count = 500

    def talks(process: Process, msg: Any, sender: Pid | None) -> rabble.Output:
        return [
            Envelope(process.executor, Stop(process.pid)),
            *(Envelope(sender, n) for n in range(count)),
        ]

    with rouse("a") as a, rouse("b") as b, a.mailbox() as box:
        meet(a, b)

        def watches(process: Process, msg: Any, sender: Pid | None) -> rabble.Output:
            if isinstance(msg, Pid):
                return [Envelope(msg, "talk"), Envelope(process.executor, Monitor(msg))]
            return Envelope(box.pid, msg)

        for number in range(10):
            far = b.spawn(Does(talks), f"talks{number}")
            a.send(a.spawn(Does(watches), f"watches{number}"), far)
            told = [box.receive(PATIENCE_S).msg for _ in range(count + 1)]
            assert told[:-1] == list(range(count)) and isinstance(told[-1], Down)


def test_what_a_thread_sends_and_calls_keeps_its_order() -> None:
    """Though what is long goes another way than what is short."""
    seen: list[type] = []

    class Sees(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
            seen.append(type(msg))
            return None if sender is None else Envelope(sender, 1, correlation_id=correlation_id)

    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        far = b.spawn(Sees(), "sees")
        for _ in range(20):
            a.send(far, bytes(200_000))
            assert a.call(far, "now", PATIENCE_S) == 1
        assert seen == [bytes, str] * 20
