"""Last words: `terminate` is called at an orderly end, once, and at no other."""

from __future__ import annotations

from typing import Any

import pytest

from rabble import (
    Ask,
    CorrelationId,
    DeadLetterReason,
    Down,
    DownReason,
    Envelope,
    Monitor,
    Output,
    Pid,
    Process,
    Shutdown,
    StartTimer,
    Stop,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.core.peers import Hub
from tests.core.processes import spawn_recorder
from tests.core.starvation import Starvation
from tests.support import BARE, HandClock, Witness, bare_executor, settle

LAST = Pid("listener", BARE)


class Leaving(Process):
    """Says goodbye to whom it is told, in the shape it is told."""

    def __init__(self, words: Any = "goodbye", shape: type = list) -> None:
        self.words = words
        self.shape = shape
        self.reasons: list[DownReason] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "crash":
            raise ValueError("as told")
        return Envelope(self.executor, Stop(self.pid)) if msg == "stop" else None

    def terminate(self, reason: DownReason) -> Output:
        self.reasons.append(reason)
        if isinstance(self.words, BaseException):
            return self.raising()
        return self.shape([Envelope(LAST, self.words)])

    def raising(self) -> Any:
        yield Envelope(LAST, "not said")
        raise self.words


def monitored(executor: Executor, process: Process, name: str = "leaving") -> tuple[Pid, list[Any]]:
    """It, monitored by the listener, and what that is told."""
    listener, told = spawn_recorder(executor, "listener")
    pid = executor.spawn(process, name)
    executor.send(executor.pid, Monitor(pid), sender=listener)
    settle(executor)
    return pid, told


@pytest.mark.parametrize("shape", [list, tuple, iter, lambda out: out[0]])
@pytest.mark.parametrize("reason", [None, DownReason("shutdown", "enough"), DownReason("crashed")])
def test_its_last_words_come_before_its_down(executor: Executor, shape: Any, reason: Any) -> None:
    pid, told = monitored(executor, process := Leaving(shape=shape))
    executor.send(executor.pid, Stop(pid, reason))
    settle(executor)
    expected = reason or DownReason("stopped")
    assert told == ["goodbye", Down(pid, expected)] and process.reasons == [expected]
    assert executor.crashes == 0 and pid not in executor.table


def test_it_comes_after_all_that_was_sent_before_the_stop_and_once(executor: Executor) -> None:
    pid, told = monitored(executor, process := Leaving())
    for msg in ("x", "stop", "stop", "crash"):
        executor.send(pid, msg)
    settle(executor)
    # It stops itself, but the crash has its turn first.
    assert [type(each) for each in told] == [Down] and told[0].reason.kind == "crashed"
    assert process.reasons == []
    pid = executor.spawn(process := Leaving(), "leaving")
    for _ in range(3):
        executor.send(executor.pid, Stop(pid))
    settle(executor)
    assert len(process.reasons) == 1


def test_after_a_crash_it_is_not_called(executor: Executor) -> None:
    pid, told = monitored(executor, process := Leaving())
    executor.send(pid, "crash")
    settle(executor)
    (down,) = told
    assert down.reason.kind == "crashed" and process.reasons == []


def test_who_never_began_has_no_last_words(executor: Executor) -> None:
    class Never(Leaving):
        def init(self) -> Output:
            raise ValueError("it does not begin")

    pid, told = monitored(executor, process := Never())
    assert process.reasons == [] and executor.crashes == 1

    class Late(Leaving):
        def init(self) -> Output:
            raise AssertionError("it was stopped before")

    # The stop is taken in first.
    executor.send(executor.pid, Stop(Pid("late", BARE)))
    late = Late()
    executor.spawn(late, "late")
    settle(executor)
    assert late.reasons == [] and executor.crashes == 1


@pytest.mark.parametrize("error", [ValueError("as told"), SystemExit(3), RecursionError()])
def test_what_it_raises_is_a_crash_and_nothing_of_it_is_said(
    executor: Executor, witness: Witness, error: BaseException
) -> None:
    pid, told = monitored(executor, process := Leaving(error))
    executor.send(executor.pid, Stop(pid))
    settle(executor)
    (down,) = told
    assert down.pid == pid and down.reason.kind == "crashed"
    assert process.reasons == [DownReason("stopped")] and executor.crashes == 1
    assert [(who, raised) for who, raised in witness.errors] == [(pid, error)]


def test_what_is_no_envelope_is_a_crash_too(executor: Executor, witness: Witness) -> None:
    class Odd(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            return None

        def terminate(self, reason: DownReason) -> Output:
            return [Envelope(LAST, "not said"), "odd"]  # type: ignore[list-item]

    pid, told = monitored(executor, Odd())
    executor.send(executor.pid, Stop(pid))
    settle(executor)
    assert [type(each) for each in told] == [Down] and isinstance(witness.errors[0][1], TypeError)


def test_what_it_asks_for_is_no_successors_and_a_request_goes_out(executor: Executor) -> None:
    listener, told = spawn_recorder(executor, "listener")

    class Asks(Leaving):
        def terminate(self, reason: DownReason) -> Output:
            return [
                Envelope(self.executor, StartTimer("beat", 1, repeat=True)),
                Envelope(self.executor, Ask(LAST, "last question", 1_000)),
                Envelope(self.executor, Stop(self.pid)),
                Envelope(self.executor, Monitor(LAST)),
            ]

    pid = executor.spawn(Asks(), "asks")
    executor.send(executor.pid, Stop(pid))
    settle(executor)
    _, told_next = spawn_recorder(executor, "asks")
    executor.send(executor.pid, Stop(listener))
    settle(executor)
    assert told == ["last question"] and told_next == [] and executor.timers == 0


@pytest.mark.parametrize("strict", [False, True])
def test_in_strict_mode_it_is_looked_at_as_all_that_is_sent(strict: bool) -> None:
    with bare_executor(codec=Codec(default_registry) if strict else None) as executor:
        pid, told = monitored(executor, Leaving(words := [1, (2,)]))
        executor.send(executor.pid, Stop(pid))
        settle(executor)
        assert told[0] == words and (told[0] is words) is not strict
        pid = executor.spawn(Leaving(lambda: 1), "leaving")
        executor.send(executor.pid, Stop(pid))
        settle(executor)
        assert executor.dead_letters == ({DeadLetterReason.UNENCODABLE: 1} if strict else {})


class Wrong:
    """What is no `terminate`."""

    class Async(Leaving):
        async def terminate(self, reason: DownReason) -> Any:  # type: ignore[override]
            return None

    class TooFew(Leaving):
        def terminate(self) -> Output:  # type: ignore[override]
            return None

    class TooMany(Leaving):
        def terminate(self, reason: DownReason, more: int) -> Output:  # type: ignore[override]
            return None


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Wrong.Async, "is async, but the executor waits for nothing"),
        (Wrong.TooFew, "takes too few arguments"),
        (Wrong.TooMany, "takes too many arguments"),
    ],
)
def test_one_that_cannot_be_called_is_not_spawned(
    executor: Executor, cls: type[Process], said: str
) -> None:
    with pytest.raises(TypeError, match=rf"terminate {said}.*terminate\(self, reason\)"):
        executor.spawn(cls(), "wrong")


# With the node.


class Child(Leaving):
    """Reports to the one that was spawned before it."""

    def __init__(self, number: int, said: list[Any]) -> None:
        super().__init__()
        self.number = number
        self.said = said

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.said.append((self.number, msg))
        return None

    def terminate(self, reason: DownReason) -> Output:
        self.said.append((self.number, reason.kind))
        return Envelope(Pid(f"child-{self.number - 1}", BARE), f"from {self.number}")


def test_with_the_node_the_last_one_ends_first_and_its_words_are_delivered() -> None:
    said: list[Any] = []
    with bare_executor() as executor:
        for number in range(4):
            executor.spawn(Child(number, said), f"child-{number}")
        listener, told = spawn_recorder(executor, "listener")
        for pid in (executor.pid, Pid("child-2", BARE)):
            executor.send(executor.pid, Monitor(pid), sender=listener)
        settle(executor)
        executor.request_stop(60)
        executor.run()
        # No `Down` of a process that ends with its node.
        assert [type(each) for each in told] == [Shutdown]
        assert executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}
    expected: list[Any] = [(3, "shutdown")]
    for number in (2, 1, 0):
        expected += [(number, f"from {number + 1}"), (number, "shutdown")]
    assert said == expected


def test_who_keeps_a_node_busy_takes_no_last_words_away() -> None:
    said: list[Any] = []

    class Endless(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            clock.go_on(1)
            return Envelope(self.pid, msg)

    with bare_executor(clock := HandClock()) as executor:
        executor.send(executor.spawn(Endless(), "endless"), 1)
        for number in range(3):
            executor.spawn(Child(number, said), f"child-{number}")
        executor.request_stop(4)
        executor.run()
        # By three quarters of the time; the rest is for what they say.
        assert clock.ns >= 4_000_000_000
    assert [kind for _, kind in said if kind == "shutdown"] == ["shutdown"] * 3


def test_where_there_is_no_time_there_are_no_last_words() -> None:
    said: list[Any] = []
    with bare_executor(clock := HandClock()) as executor:

        class Slow(Child):
            def terminate(self, reason: DownReason) -> Output:
                clock.go_on(3_000)
                return super().terminate(reason)

        for number in range(5):
            executor.spawn(Slow(number, said), f"child-{number}")
        executor.request_stop(5)
        executor.run()
    assert [number for number, what in said if what == "shutdown"] == [4, 3]
    with bare_executor() as executor:
        executor.spawn(Child(0, said), "child-0")
        executor.request_stop(0)
        executor.run()
    assert len([what for _, what in said if what == "shutdown"]) == 2


def test_an_asker_far_away_is_told_that_its_answer_does_not_come(hub: Hub) -> None:
    peer = hub.connect()
    pid = hub.executor.spawn(Leaving(), "leaving")
    calls = Pid("calls", peer.node, "rabble")
    peer.send(pid, "question", calls, CorrelationId(calls, None, 1))
    peer.write("monitor", peer.pid("far"), pid, 1)
    hub.settle()
    hub.executor.request_stop(60)
    hub.executor.run()
    peer.exchange()
    # The end of the node is told by the end of the connection, and not by a DOWN.
    kinds = [event[0] for event in peer.events]
    assert "down" not in kinds and kinds.count("undelivered") <= 1


@pytest.mark.parametrize("lasting", [1, 1_000])
def test_without_memory_there_are_last_words_once_or_a_crash(
    starvation: Starvation, lasting: int
) -> None:
    whole = 0
    for nth in range(200):
        with bare_executor() as executor:
            # (`list(items)` itself loses the items if there is no memory for them.)
            pid, told = monitored(executor, process := Leaving(shape=tuple))
            executor.send(executor.pid, Stop(pid))
            starvation.starve(nth, nth + lasting)
            ended = False
            try:
                settle(executor)
            except MemoryError:
                ended = True
            finally:
                starvation.feed()
            if not ended:
                settle(executor)
                kinds = [each if each == "goodbye" else each.reason.kind for each in told]
                if pid in executor.table:
                    # The request could not be followed: then nothing has happened.
                    assert kinds == [] and process.reasons == []
                    continue
                if LAST not in executor.table:
                    # There was none for the listener.
                    continue
                assert kinds in (["goodbye", "stopped"], ["goodbye", "crashed"], ["crashed"])
                whole += kinds == ["goodbye", "stopped"]
            assert told.count("goodbye") <= 1 and len(process.reasons) <= 1
        if whole > 10:
            return
    assert whole > 10
