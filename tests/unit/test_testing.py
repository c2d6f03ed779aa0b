"""`rabble.testing`: a world without threads, and fixtures that see what crashes."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import pytest

import rabble
from rabble import (
    Ask,
    CallTimeout,
    CorrelationId,
    DeadLetterReason,
    Down,
    DownReason,
    Envelope,
    Exit,
    Failed,
    Link,
    Monitor,
    NameTaken,
    NoProcess,
    Output,
    Pid,
    Process,
    Reply,
    Spawn,
    StartTimer,
    Stop,
    Tick,
)
from rabble.testing import Probe, World
from tests.support import Does, Echo

pytest_plugins = ["pytester"]


class Counter(Process[Any]):
    def __init__(self) -> None:
        self.total = 0

    def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
        if msg == "total":
            return rabble.reply(self.total, sender, cid)
        self.total += msg
        return None


class Beats(Process[Any]):
    """Has a message sent to itself, and tells somebody the time at which it came."""

    def __init__(self, to: Probe, *starts: StartTimer) -> None:
        self.to = to.pid
        self.starts = starts

    def init(self) -> Output:
        return [Envelope(self.executor, start) for start in self.starts]

    def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
        return Envelope(self.to, (round(self.now * 1_000), msg))


def test_what_is_sent_has_happened_when_the_call_returns() -> None:
    with World() as world:
        threads = threading.active_count()
        counter, me = world.spawn(Counter(), "counter"), world.probe("me")
        for number in (1, 2, 3):
            world.send(counter, number)
        me.send(counter, "total")
        assert me.messages() == [6]
        assert me.messages() == []
        assert world.call(counter, "total") == 6
        assert threading.active_count() == threads
        assert world.processes() == [counter]
        assert world.is_running(counter) and not world.is_running(world.pid("nobody"))


def test_time_goes_on_when_it_is_told_to_and_timers_fire_when_they_are_due() -> None:
    with World() as world:
        me = world.probe()
        world.spawn(
            Beats(
                me,
                StartTimer("once", 3_600_000, "an hour"),
                StartTimer("often", 250, "beat", repeat=True),
            ),
            "beats",
        )
        assert (world.now, world.timers, me.messages()) == (0.0, 2, [])
        world.advance(0.2499)
        assert me.messages() == []
        world.advance(0.0001)
        assert me.messages() == [(250, Tick("often", "beat"))]
        world.advance(0.75)
        assert [at for at, _ in me.messages()] == [500, 750, 1_000]
        world.advance(3_599)
        told = me.messages()
        assert told[-2:] == [(3_600_000, Tick("often", "beat")), (3_600_000, "an hour")] or (
            told[-2:] == [(3_600_000, "an hour"), (3_600_000, Tick("often", "beat"))]
        )
        assert len(told) == 4 * 3_599 + 1
        assert world.now == 3_600.0


@pytest.mark.parametrize("wrong", [float("nan"), "1", None])
def test_a_time_is_a_number(wrong: Any) -> None:
    with World() as world, pytest.raises((TypeError, ValueError)):
        world.advance(wrong)


def test_a_call_takes_time_of_the_world_and_none_of_the_tests() -> None:
    class Slow(Process[Any]):
        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            match msg:
                case ("later", to, request):
                    return Envelope(to, self.now, correlation_id=request)
                case "never":
                    return None
            key = (sender, cid)
            return Envelope(self.executor, StartTimer(key, 100_000, ("later", sender, cid)))

    with World() as world:
        slow = world.spawn(Slow(), "slow")
        assert world.call(slow, "ask", 3_600) == 100.0
        with pytest.raises(CallTimeout, match="did not reply in 5.0 s"):
            world.call(slow, "never")
        assert world.now == 105.0
        with pytest.raises(NoProcess):
            world.call(world.pid("nobody"), 1)


def test_requests_of_processes_end_as_in_a_node() -> None:
    class Asks(Process[Any]):
        def __init__(self, to: Probe) -> None:
            self.to = to.pid

        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            match msg:
                case Reply() | Failed():
                    return Envelope(self.to, msg)
            pid, tag = msg
            return Envelope(self.executor, Ask(pid, "total", 2_000, tag))

    with World() as world:
        me = world.probe("me")
        silent = world.probe("silent")
        asks = world.spawn(Asks(me), "asks")
        world.send(asks, (world.spawn(Counter(), "counter"), "a"))
        assert me.messages() == [Reply("a", 0)]
        world.send(asks, (world.pid("nobody"), "b"))
        (failed,) = me.messages()
        assert failed.tag == "b" and isinstance(failed.reason, NoProcess)
        world.send(asks, (silent.pid, "c"))
        assert silent.messages() == ["total"] and me.messages() == []
        world.advance(2)
        (failed,) = me.messages()
        assert failed.tag == "c" and isinstance(failed.reason, CallTimeout)


def test_spawns_stops_and_monitors_work_as_in_a_node() -> None:
    class Parent(Process[Any]):
        def __init__(self, to: Probe) -> None:
            self.to = to.pid

        def init(self) -> Output:
            child = Pid("child", self.node_id)
            return [
                Envelope(self.executor, Spawn(Echo(), "child")),
                Envelope(self.executor, Monitor(child)),
            ]

        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            if isinstance(msg, Down):
                return Envelope(self.to, msg)
            return Envelope(self.executor, Stop(Pid("child", self.node_id)))

    with World() as world:
        me = world.probe()
        parent = world.spawn(Parent(me), "parent")
        assert world.processes() == [world.pid("child"), parent]
        world.send(parent, "stop it")
        assert me.messages() == [Down(world.pid("child"), DownReason("stopped"))]
        with pytest.raises(NameTaken):
            world.spawn(Echo(), "parent")
        with pytest.raises(NameTaken):
            world.probe("parent")


def fails(process: Process[Any], msg: Any, sender: Pid | None) -> Output:
    raise LookupError(msg)


def test_what_a_process_raises_fails_the_test() -> None:
    with World() as world:
        pid = world.spawn(Does(fails), "fails")
        with pytest.raises(LookupError, match="it is told") as raised:
            world.send(pid, "it is told")
        assert raised.value.__notes__ == [f"by {pid}"]
        assert any(entry.name == "fails" for entry in raised.traceback)
        assert not world.is_running(pid)
        # It is told once.
        world.advance(1)
        with pytest.raises(TypeError, match="does not define receive"):
            world.spawn(Process(), "none")


def test_processes_may_be_allowed_to_crash() -> None:
    with World(on_crash="keep") as world:
        pid = world.spawn(Does(fails), "fails")
        world.send(pid, 1)
        ((who, error),) = [(crash.pid, crash.error) for crash in world.crashes]
        assert who == pid and isinstance(error, LookupError)
        world.send(pid, 2)
        assert [letter.reason for letter in world.dead_letters] == [
            DeadLetterReason.PROCESS_CRASHED,
            DeadLetterReason.NO_PROCESS,
        ]
    with pytest.raises(
        ValueError, match="on_crash must be 'raise' or 'keep', not the str 'ignore'"
    ):
        World(on_crash="ignore")  # type: ignore[arg-type]


def test_a_crash_at_the_end_is_told_and_hides_no_other_failure() -> None:
    def says(process: Process[Any], msg: Any, sender: Pid | None) -> Output:
        raise LookupError("at the end")

    def begin(process: Process[Any]) -> Output:
        return Envelope(process.executor, Monitor(process.executor))

    with pytest.raises(LookupError, match="at the end"):
        with World() as world:
            world.spawn(Does(says, begin), "says")
    with pytest.raises(AssertionError, match="what the test found"):
        with World() as world:
            world.spawn(Does(says, begin), "says")
            raise AssertionError("what the test found")


def test_a_world_that_comes_to_no_rest_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabble.testing.world.DELIVERIES_MAX", 1_000)

    def again(process: Process[Any], msg: Any, sender: Pid | None) -> Output:
        return Envelope(process.pid, msg)

    with World() as world:
        pid = world.spawn(Does(again), "again")
        with pytest.raises(AssertionError, match="comes to no rest"):
            world.send(pid, 1)


def test_chance_is_that_of_the_seed() -> None:
    def draws(process: Process[Any], msg: Any, sender: Pid | None) -> Output:
        return None if sender is None else Envelope(sender, process.random.random())

    def drawn(seed: int) -> Any:
        with World(seed=seed) as world:
            me = world.probe()
            me.send(world.spawn(Does(draws), "draws"), 1)
            return me.messages()

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_strict_world_sends_what_could_cross_a_wire_alone() -> None:
    with World(strict=True) as world:
        echo, me = world.spawn(Echo(), "echo"), world.probe()
        me.send(echo, (1, {2}))
        assert me.messages() == [(1, {2})]
        with pytest.raises(rabble.EncodeError):
            me.send(echo, object())


def test_nothing_is_left_of_a_world() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    with World() as world:
        world.spawn(Counter(), "counter")
    del world
    before = opened()
    for _ in range(20):
        with World() as world:
            world.spawn(Counter(), "counter")
        del world
    gc.collect()
    assert opened() <= before + 1


def test_the_fixtures_come_with_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import rabble, pytest

        class Fails(rabble.Process):
            def receive(self, msg, sender, cid):
                raise LookupError("a bug")

        class Echo(rabble.Process):
            def receive(self, msg, sender, cid):
                return rabble.reply(msg, sender, cid)

        def test_world(rabble_world):
            assert rabble_world.call(rabble_world.spawn(Echo(), "echo"), 1) == 1

        def test_world_crash(rabble_world):
            rabble_world.send(rabble_world.spawn(Fails(), "fails"), 1)

        def test_node(rabble_rouse):
            node = rabble_rouse("a@127.0.0.1:0", seed=3)
            assert node.call(node.spawn(Echo(), "echo"), 1) == 1

        @pytest.mark.parametrize("may_crash", [False, True])
        def test_node_crash(rabble_rouse, may_crash):
            node = rabble_rouse(may_crash=may_crash)
            node.send(node.spawn(Fails(), "fails"), 1)
            node.call(node.spawn(Echo(), "echo"), 1)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*1 crashed, see the log; if they are to, *may_crash=True*", "*LookupError: a bug*"]
    )


def test_a_world_has_links() -> None:
    with World() as world:
        probe = world.probe()
        executor = world.pid("executor", "rabble")
        child = world.pid("child")
        probe.send(executor, Spawn(Counter(), "child", link=True, monitor=True))
        other = world.spawn(Counter(), "other")
        world.send(executor, Link(other), sender=child)
        probe.send(executor, Stop(other, DownReason("shutdown", "enough")))
        reason = DownReason("shutdown", "enough")
        assert probe.messages() == [Down(child, reason), Exit(child, reason)]
        assert world.processes() == []
