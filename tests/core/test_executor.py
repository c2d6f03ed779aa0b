"""What programs can do to an executor: it ends what did it, and nothing else.

Each of these once ended the interpreter or the node, or broke a promise.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest

import rabble.messages
from rabble import (
    CancelTimer,
    CorrelationId,
    DeadLetterReason,
    Down,
    DownReason,
    Envelope,
    GetMetrics,
    Monitor,
    NameTaken,
    Output,
    Pid,
    Process,
    QueueFull,
    Spawn,
    StartTimer,
    Stop,
    SubscribeNodes,
    Timeout,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor, Interrupted
from rabble._core.inbox import Inbox
from rabble.registry import default_registry
from tests.support import BARE, PATIENCE_S, Does, HandClock, Witness, bare_executor, settle

OUTSIDE = Pid("outside", BARE)


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def executor(witness: Witness) -> Iterator[Executor]:
    with bare_executor(witness=witness) as made:
        yield made


class Writes(Process):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.successor: Process | None = None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.got.append(msg)
        return None


def listen(executor: Executor, name: str = "writes", **options: Any) -> tuple[Pid, list[Any]]:
    process = Writes()
    return executor.spawn(process, name, **options), process.got


# Outputs of any size.

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
        to, got = listen(executor)
        if how == "limited":
            executor.spawn(Writes(), "limited", mailbox_max=1)

        def react(process: Process, msg: Any, sender: Pid | None) -> Any:
            count, left, fails = msg
            if left:
                return Envelope(process.pid, (count, left - 1, fails))
            return shaped(shape, [Envelope(to, n) for n in range(count)] + ["junk"] * fails)

        for number, count in enumerate(SIZES):
            executor.spawn(Does(react), f"good{number}")
            executor.spawn(Does(react), f"bad{number}")
            executor.send(Pid(f"bad{number}", BARE), (count, before, 1))
            settle(executor)
            assert got == [] and Pid(f"bad{number}", BARE) not in executor.table
            executor.send(Pid(f"good{number}", BARE), (count, before, 0))
            settle(executor)
            assert got == list(range(count))
            got.clear()


# The collector.


class Big:
    """Something that a weak reference finds."""


def test_the_collector_is_told_of_an_envelope_whose_message_it_knows() -> None:
    for msg in (None, 1, "text", b"bytes", 2.0, OUTSIDE):
        assert not gc.is_tracked(Envelope(OUTSIDE, msg))
    for tracked in ([], {}, (1,), Big(), Exception()):
        assert gc.is_tracked(Envelope(OUTSIDE, tracked))


def test_an_idle_process_costs_the_collector_no_entry(executor: Executor) -> None:
    pid, _ = listen(executor)
    entry = executor.table.get(pid)
    assert entry is not None and not gc.is_tracked(entry)


# Depth.


def chain(length: int) -> Envelope:
    envelope = Envelope(OUTSIDE, None)
    for _ in range(length):
        envelope = Envelope(OUTSIDE, envelope)
    return envelope


def test_a_chain_of_a_million_envelopes_is_let_go_of() -> None:
    deep: Any = chain(1_000_000)
    del deep
    mixed: Any = None
    for _ in range(200_000):
        mixed = Envelope(OUTSIDE, [Envelope(OUTSIDE, (mixed,))])
    del mixed


@pytest.mark.parametrize("look", [hash, repr, lambda deep: deep == chain(100_000)])
def test_what_looks_into_a_chain_of_envelopes_ends(look: Callable[[Envelope], object]) -> None:
    with pytest.raises(RecursionError):
        look(chain(100_000))


# What a user's object raises.


class EvilName(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit(3)

    def __eq__(cls, other: object) -> bool:
        raise SystemExit(4)

    def __hash__(cls) -> int:
        raise SystemExit(5)


class EvilError(Exception, metaclass=EvilName):
    def __str__(self) -> NoReturn:
        raise SystemExit(6)

    __repr__ = __str__


class EvilMessage(metaclass=EvilName):
    pass


class EvilStop:
    """Has the fields of a message, and what they are raises."""

    @property
    def pid(self) -> NoReturn:
        raise SystemExit(7)


def does(output: object) -> Does:
    return Does(lambda process, msg, sender: output)  # type: ignore[arg-type, return-value]


def raises(error: BaseException) -> Does:
    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        raise error

    return Does(react)


def failing_control(make: Callable[[], object]) -> Does:
    return Does(lambda process, msg, sender: Envelope(process.executor, make()))


class RaisingReceive(Process):
    @property
    def receive(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit(8)


def unfilled_stop() -> Stop:
    return object.__new__(Stop)


def stop_for(reason: object) -> Stop:
    stop = Stop(OUTSIDE)
    object.__setattr__(stop, "reason", reason)
    return stop


@pytest.mark.parametrize(
    "process",
    [
        raises(EvilError()),
        raises(SystemExit(1)),
        does(EvilMessage()),
        does([EvilMessage()]),
        failing_control(EvilMessage),
        failing_control(EvilStop),
        failing_control(unfilled_stop),
        failing_control(lambda: stop_for("a text")),
        failing_control(lambda: stop_for(DownReason("no_process"))),
        failing_control(lambda: Spawn(RaisingReceive(), "raises")),
        failing_control(lambda: Spawn(Mock(spec=Process), "mock")),
        failing_control(lambda: StartTimer(None, 1)),  # type: ignore[arg-type]
        failing_control(lambda: Monitor(None)),  # type: ignore[arg-type]
        failing_control(lambda: Stop(Pid("far", type(BARE)("far", "h:2")))),
    ],
)
def test_what_a_users_object_raises_ends_its_process_and_nothing_else(
    executor: Executor, witness: Witness, process: Process
) -> None:
    to, got = listen(executor)
    victim = executor.spawn(process, "victim")
    executor.send(executor.pid, Monitor(victim), sender=to)
    executor.send(victim, 1)
    executor.send(to, "after")
    settle(executor)
    assert victim not in executor.table and executor.crashes == 1
    assert [down.reason.kind for down in got if isinstance(down, Down)] == ["crashed"]
    assert "after" in got and len(witness.errors) == 1
    # It stays, as a parameter of this test does; what it was given goes.
    del process._runtime


def test_a_stop_takes_no_reason_that_is_none() -> None:
    with pytest.raises(TypeError, match="reason must be a DownReason or None, not 'a text'"):
        Stop(OUTSIDE, "a text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of stopped, crashed, shutdown"):
        Stop(OUTSIDE, DownReason("disconnected"))
    with pytest.raises(TypeError, match="detail must be a str"):
        DownReason("stopped", b"x")  # type: ignore[arg-type]


def test_the_runtimes_own_pids_are_not_stopped(executor: Executor, witness: Witness) -> None:
    calls = Pid("calls", BARE, "rabble")
    executor.add_callback(calls, lambda envelope: None)
    for pid in (calls, executor.pid):
        executor.send(executor.pid, Stop(pid))
    settle(executor)
    assert calls in executor.table and executor.pid in executor.table
    assert [type(error) for _, error in witness.errors] == [ValueError, ValueError]


def test_a_huge_text_of_an_exception_is_cut(executor: Executor) -> None:
    to, got = listen(executor)
    victim = executor.spawn(raises(ValueError("x" * 10_000_000)), "victim")
    executor.send(executor.pid, Monitor(victim), sender=to)
    executor.send(victim, 1)
    settle(executor)
    assert len(got[0].reason.detail) < 600


class OddCodec:
    """A strict mode in which a message's own code raises."""

    def encode_message(self, msg: Any) -> Any:
        if isinstance(msg, BaseException):
            raise msg
        return msg

    def decode_message(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize("error", [RuntimeError("odd"), SystemExit(1), MemoryError()])
@pytest.mark.parametrize("count", [1, 300])
def test_in_strict_mode_an_error_of_the_messages_own_ends_who_sent_it(
    error: BaseException, count: int
) -> None:
    with bare_executor(witness=Witness(), codec=OddCodec()) as executor:
        to, got = listen(executor)
        output = [Envelope(to, "discarded")] * count + [Envelope(to, error)]
        victim = executor.spawn(does(output), "victim")
        executor.send(victim, 1)
        # From another thread there is nobody to end: that envelope does.
        executor.send(to, error)
        executor.send(to, "after")
        settle(executor)
        assert got == ["after"]
        assert victim not in executor.table
        assert executor.dead_letters == {
            DeadLetterReason.PROCESS_CRASHED: 1,
            DeadLetterReason.UNENCODABLE: 1,
        }


def test_a_hook_that_raises_holds_up_nobody(executor: Executor, witness: Witness) -> None:
    def crashed(pid: Pid | None, error: BaseException) -> NoReturn:
        raise SystemExit(9)

    witness.crashed = crashed  # type: ignore[method-assign]
    to, got = listen(executor)
    victim = executor.spawn(raises(ValueError()), "victim")
    executor.send(executor.pid, Monitor(victim), sender=to)
    executor.send(victim, 1)
    settle(executor)
    assert len(got) == 1 and executor.failed_reports == 1


# Spawning.


class Liar(int):
    """Says that it is a process."""

    __class__ = Process  # type: ignore[assignment]
    __slots__ = ()


@pytest.mark.parametrize("what", [Mock(spec=Process), Liar(), Process, None, 5])
def test_what_only_says_that_it_is_a_process_is_none(executor: Executor, what: Any) -> None:
    with pytest.raises(TypeError, match="only a Process can be spawned"):
        executor.spawn(what, "x")
    assert executor.processes == 0 and Pid("x", BARE) not in executor.table


class Reenters(Process):
    """Is spawned by its own attribute, while it is being spawned."""

    executor_to_use: Executor

    @property
    def receive(self) -> Any:  # type: ignore[override]
        if not hasattr(self, "_runtime"):
            type(self).receive = lambda *args: None  # type: ignore[assignment, method-assign]
            self.executor_to_use.spawn(self, "inner")
        return lambda *args: None


def test_a_spawn_that_fails_leaves_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        executor.spawn(RaisingReceive(), "x")
    monkeypatch.setattr(Reenters, "executor_to_use", executor, raising=False)
    with pytest.raises(ValueError, match="runs already, as inner::"):
        executor.spawn(Reenters(), "x")
    listen(executor, "taken")
    with pytest.raises(NameTaken):
        executor.spawn(process := Writes(), "taken")
    assert not hasattr(process, "_runtime")
    assert executor.processes == 2
    assert Pid("x", BARE) not in executor.table
    listen(executor, "x")


# Fairness and bounds.


class Refilling(OddCodec):
    """Each message that is taken in has another thread send two more."""

    executor: Executor
    left = 10_000

    def encode_message(self, msg: Any) -> Any:
        if self.left:
            self.left -= 1
            self.executor.send(OUTSIDE, msg)
        return msg


def test_a_turn_takes_in_what_stood_there_when_it_began() -> None:
    codec = Refilling()
    with bare_executor(codec=codec) as executor:
        codec.executor = executor
        to, got = listen(executor)
        executor.send(to, "first")
        executor.step()
        assert got == ["first"] and codec.left == 9_999
        settle(executor)


def test_a_timer_waits_for_no_flood_from_outside(witness: Witness) -> None:
    clock = HandClock()
    codec = Refilling()
    with bare_executor(clock, witness, codec) as executor:
        codec.executor = executor
        to, got = listen(executor)
        executor.send(executor.pid, StartTimer(CorrelationId(to, None, 1), 1), sender=to)
        executor.step()
        clock.go_on(2)
        executor.send(to, "flood")
        for _ in range(3):
            executor.step()
        assert any(isinstance(msg, Timeout) for msg in got)
        settle(executor)


@pytest.mark.parametrize("limited", [False, True])
def test_what_other_threads_sent_is_bounded_wherever_it_waits(limited: bool) -> None:
    with bare_executor(inbox_max=10) as executor:
        to, got = listen(executor)
        if limited:
            listen(executor, "limited", mailbox_max=1)
        for n in range(10):
            executor.send(to, n)
        for taken_in in range(4):
            with pytest.raises(QueueFull):
                executor.send(to, "too much")
            assert executor.outside_depth == 10
            # A turn takes all of it in, and delivers one.
            assert executor.step(1) == 1
            assert executor.outside_depth == 9
            executor.send(to, 10 + taken_in)
        settle(executor)
        assert got == list(range(14))
        assert executor.outside_depth == 0


def test_a_spawn_with_an_init_takes_a_place_in_the_inbox() -> None:
    with bare_executor(inbox_max=2) as executor:
        for n in range(2):
            executor.spawn(Does(lambda *args: None), f"p{n}")
        with pytest.raises(QueueFull):
            executor.spawn(Does(lambda *args: None), "p2")
        assert executor.processes == 2
        # One without has nothing to wait for.
        listen(executor)
        settle(executor)
        executor.spawn(Does(lambda *args: None), "p2")


def test_what_is_sent_in_the_output_that_spawns_a_process_is_in_its_limit(
    executor: Executor,
) -> None:
    child = Writes()
    pid = Pid("child", BARE)
    parent = executor.spawn(
        Does(
            lambda process, msg, sender: [
                Envelope(process.executor, Spawn(child, "child", mailbox_max=3)),
                *(Envelope(pid, n) for n in range(100)),
            ]
        ),
        "parent",
    )
    executor.send(parent, 1)
    settle(executor)
    assert child.got == [0, 1, 2]
    assert executor.dead_letters == {DeadLetterReason.MAILBOX_FULL: 97}
    for n in range(3):
        executor.send(pid, n)
    settle(executor)
    assert len(child.got) == 6


def test_who_gives_the_executors_pid_as_the_sender_is_in_the_limit(executor: Executor) -> None:
    to, got = listen(executor, mailbox_max=2)
    liar = executor.spawn(does([Envelope(to, n, executor.pid) for n in range(10)]), "liar")
    for _ in range(3):
        executor.send(liar, 1)
        settle(executor)
    assert got == [0, 1] * 3
    executor.send(to, "still room")
    settle(executor)
    assert got[-1] == "still room"


# Misuse.


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


@pytest.mark.parametrize("drain_s", [float("inf"), 1e300, -1.0, -float("inf")])
def test_any_time_to_drain_is_a_time(witness: Witness, drain_s: float) -> None:
    with bare_executor(witness=witness) as executor:
        to, got = listen(executor)
        for n in range(500):
            executor.send(to, n)
        executor.request_stop(drain_s)
        executor.run()
        assert got == list(range(500)) or drain_s < 0


def test_nan_is_no_time_to_drain(executor: Executor) -> None:
    to, got = listen(executor)
    with pytest.raises(ValueError, match="NaN"):
        executor.request_stop(float("nan"))
    executor.send(to, 1)
    settle(executor)
    assert got == [1]


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


# Memory.


@pytest.mark.parametrize("keeps", ["tuples", "bytes"])
def test_memory_exhausted_in_a_receive_is_the_end_of_its_process(keeps: str) -> None:
    """In a process of its own, whose address space is bounded."""
    script = f"""
import logging, resource, sys
import rabble
from rabble import Envelope, Monitor, Process, ProcessCrashed
logging.disable(logging.CRITICAL)
class Keeps(Process):
    def __init__(self): self.kept = None
    def receive(self, msg, sender, cid):
        if msg == "ping":
            return Envelope(sender, "pong", correlation_id=cid)
        while True:
            if {keeps == "tuples"}:
                self.kept = (self.kept, msg)
            else:
                self.kept = (self.kept, b"x" * 4096)
with rabble.rouse() as node:
    bystander = node.spawn(Keeps(), "bystander")
    node.call(bystander, "ping")
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), size + (64 << 20)))
    for n in range(3):
        keeps = node.spawn(Keeps(), f"keeps{{n}}")
        try:
            node.call(keeps, 1, timeout=60)
        except ProcessCrashed:
            print("crashed")
    print(node.call(bystander, "ping"), node.status)
"""
    done = run_python(script)
    assert done.stdout.split() == ["crashed"] * 3 + ["pong", "running"], done
    assert done.returncode == 0


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )


# Subscriptions.


def test_no_subscription_is_lost_to_another_that_is_made_at_the_same_time(
    executor: Executor,
) -> None:
    pids = [listen(executor, f"subscriber{n}") for n in range(400)]

    def subscribe(part: int) -> None:
        for pid, _ in pids[part::4]:
            assert executor.subscribe_dead_letters(pid)
            gc.collect(0)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=subscribe, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    executor.send(Pid("nobody", BARE), 1)
    settle(executor)
    assert [len(got) for _, got in pids] == [1] * 400


def test_nobody_can_be_subscribed_who_is_not_there(executor: Executor) -> None:
    assert not executor.subscribe_dead_letters(Pid("nobody", BARE))


# Lives: what the runtime keeps for a process ends with it.


def test_a_subscription_ends_with_its_life(executor: Executor) -> None:
    first, told_first = listen(executor, "same")
    executor.subscribe_dead_letters(first)
    executor.send(executor.pid, SubscribeNodes(), sender=first)
    settle(executor)
    assert executor.node_subscribed == (first,)
    executor.send(executor.pid, Stop(first))
    settle(executor)
    again, told_again = listen(executor, "same")
    executor.notify_nodes("a node")
    executor.send(Pid("nobody", BARE), 1)
    settle(executor)
    assert told_first == told_again == [] and executor.node_subscribed == ()
    # And who subscribes anew is told.
    executor.send(executor.pid, SubscribeNodes(), sender=again)
    settle(executor)
    executor.notify_nodes("a node")
    settle(executor)
    assert told_again == ["a node"]


def test_what_was_for_one_life_does_not_reach_the_next(executor: Executor) -> None:
    """A Down and a dead letter stand in the queue while who asked for them ends."""
    watched, _ = listen(executor, "watched")
    asker, told = listen(executor, "asker")
    executor.send(executor.pid, Monitor(watched), sender=asker)
    executor.subscribe_dead_letters(asker)
    settle(executor)
    executor.send(Pid("nobody", BARE), 1)
    executor.send(executor.pid, Stop(watched))
    executor.send(executor.pid, Stop(asker))
    told_next: list[Any] = []
    successor = Writes()
    successor.got = told_next
    executor.send(executor.pid, Spawn(successor, "asker"))
    executor.send(asker, "mail for the name")
    settle(executor)
    assert told == [] and told_next == ["mail for the name"]


def test_each_life_draws_other_numbers_and_the_same_ones_in_another_run() -> None:
    def drawn() -> list[float]:
        with bare_executor(witness=Witness()) as executor:
            numbers = []
            for n in range(3):
                process = Writes()
                pid = executor.spawn(process, "draws")
                # What else is there makes no difference.
                executor.add_inbox(Pid(f"box{n}-{len(runs)}", BARE), Inbox(1))
                numbers.append(process.random.random())
                executor.send(executor.pid, Stop(pid))
                settle(executor)
            return numbers

    runs: list[list[float]] = []
    runs.append(drawn())
    runs.append(drawn())
    assert runs[0] == runs[1] and len(set(runs[0])) == 3


class Asks(Writes):
    """Asks its runtime for everything that a life may ask, on its first message."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        super().receive(msg, sender, correlation_id)
        if msg != "ask":
            return None
        timer = CorrelationId(self.pid, None, 1)
        asked = [
            Stop(self.pid),
            Spawn(self.successor, self.pid.name),
            Spawn(Writes(), "taken"),
            StartTimer(timer, 0),
            CancelTimer(timer, acknowledge=True),
            Monitor(Pid("nobody", BARE)),
            SubscribeNodes(),
            GetMetrics(),
            StartTimer(timer, -1),
        ]
        return [Envelope(self.executor, each) for each in asked]


def test_what_one_life_asked_for_is_not_done_for_the_next(
    executor: Executor, witness: Witness
) -> None:
    """Not even ended by it: the last of what is asked is wrong."""
    listen(executor, "taken")
    process = Asks()
    process.successor = Writes()
    executor.send(executor.spawn(process, "same"), "ask")
    settle(executor)
    assert executor.table.get(Pid("same", BARE)).target is process.successor  # type: ignore[union-attr]
    assert process.successor.got == [] and executor.node_subscribed == ()
    assert executor.timers == 0 and executor.crashes == 0
    # What it asks itself is done.
    executor.send(executor.pid, Monitor(Pid("nobody", BARE)), sender=Pid("same", BARE))
    settle(executor)
    assert [down.reason.kind for down in process.successor.got] == ["no_process"]


def test_a_failing_output_lets_nobody_past_a_limit(executor: Executor) -> None:
    """What waited for a name before its process was spawned stays early mail."""

    def fails_late(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
        yield Envelope(process.pid, "never")
        raise RuntimeError

    child = Writes()
    pid = Pid("child", BARE)
    failing = executor.spawn(Does(fails_late), "failing")
    parent = does(
        [
            Envelope(executor.pid, Spawn(child, "child", mailbox_max=5)),
            Envelope(failing, 0),
            *(Envelope(pid, n) for n in range(100)),
        ]
    )
    executor.send(executor.spawn(parent, "parent"), 1)
    settle(executor)
    assert child.got == [0, 1, 2, 3, 4]


def test_a_closed_mailbox_is_nobody(executor: Executor) -> None:
    inbox = Inbox(10)
    pid = Pid("box", BARE)
    executor.add_inbox(pid, inbox)
    inbox.close()
    executor.send(pid, 1)
    settle(executor)
    assert executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}


# What is kept of who has ended.


def test_what_ended_lives_on_by_nothing_that_a_user_keeps_at_it(executor: Executor) -> None:
    """Entries are not the collector's: a cycle through one has to be cut when it ends."""

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        process.random.owner = process  # type: ignore[attr-defined]
        return None

    held = Does(react)
    gone = weakref.ref(held)
    pid = executor.spawn(held, "held")
    executor.send(pid, 1)
    executor.send(executor.pid, Stop(pid))
    settle(executor)
    del held
    gc.collect()
    assert gone() is None


def test_an_executor_is_let_go_of_though_its_witness_keeps_a_process() -> None:
    witness = Witness()
    gone = weakref.ref(witness)
    with bare_executor(witness=witness) as executor:
        vars(witness)["kept"] = Writes()
        vars(witness)["executor"] = executor
        executor.spawn(vars(witness)["kept"], "kept")
    del executor, witness
    gc.collect()
    assert gone() is None


# What may be done with a table, and to the executor's own pid.


def test_whatever_stands_in_a_table_is_no_crash(executor: Executor, witness: Witness) -> None:
    to = Pid("odd", BARE)
    executor.table.insert(to, "no inbox")
    executor.send(to, 1)
    settle(executor)
    assert [pid for pid, _ in witness.errors] == [to]


@pytest.mark.parametrize("way", ["table", "discard"])
def test_an_executor_ends_whatever_became_of_its_own_pid(way: str) -> None:
    with bare_executor() as executor:
        if way == "table":
            executor.table.discard(executor.pid)
        else:
            executor.discard(executor.pid, executor.pid, "gone")
            settle(executor)
            assert executor.pid in executor.table


def test_a_base_class_without_the_slot_is_refused(witness: Witness) -> None:
    for slot in (1 << 100, Mock(), Down.pid):  # type: ignore[attr-defined]
        base = type("Base", (), {"_runtime": slot})
        with pytest.raises(TypeError, match="slot _runtime"):
            Executor(BARE, rabble.messages, base, witness, inbox_max=1, spin_us=0)


def test_a_process_of_another_executor_is_not_started_here(executor: Executor) -> None:
    began: list[Process] = []
    process = Does(lambda *_: None, lambda process: began.append(process))
    with bare_executor() as other:
        other.spawn(process, "process", mailbox_max=1)
        executor.send(executor.pid, process._runtime)
        settle(executor)
        assert not began and executor.processes == 0
        settle(other)
        assert began == [process]


# Limits, when the queue was changed behind them.


def test_early_mail_meets_the_limit_though_an_output_failed_meanwhile(executor: Executor) -> None:
    to = Pid("late", BARE)
    executor.send(executor.spawn(does("junk"), "fails"), 1)
    for n in range(100):
        executor.send(to, n)
    executor.step(0)
    _, got = listen(executor, "late", mailbox_max=3)
    settle(executor)
    assert got == [0, 1, 2]
    for n in range(2):
        executor.send(to, n)
    settle(executor)
    assert got == [0, 1, 2, 0, 1]


def test_a_generator_that_spawns_meets_the_limit_of_what_it_spawned(executor: Executor) -> None:
    child = Writes()

    def out() -> Iterator[Envelope]:
        yield Envelope(Pid("child", BARE), "early")
        pid = executor.spawn(child, "child", mailbox_max=3)
        for n in range(100):
            yield Envelope(pid, n)

    executor.send(executor.spawn(Does(lambda *_: out()), "parent"), 1)
    for _ in range(2):
        settle(executor)
        assert child.got == ["early", 0, 1]
    for n in range(3):
        executor.send(Pid("child", BARE), n)
    settle(executor)
    assert child.got[3:] == [0, 1, 2]


def test_the_bound_holds_while_what_was_sent_is_looked_at() -> None:
    """In strict mode that may be somebody's code, while others send on."""

    class Sends(OddCodec):
        def encode_message(self, msg: Any) -> Any:
            with contextlib.suppress(QueueFull):
                executor.send(to, -1)
            return super().encode_message(msg)

    with bare_executor(codec=Sends(), inbox_max=100) as executor:
        to, _ = listen(executor)
        for n in range(100):
            executor.send(to, n)
        executor.step(0)
        # One more for the one that was on its way.
        assert executor.outside_depth <= 101


# Memory that is exhausted for a moment.


def test_a_stop_is_done_or_not_done_where_memory_is_short(
    starvation: tuple[Callable[[int, int], None], Callable[[], None]],
) -> None:
    """A Stop for which there is no memory ends its sender, and leaves whom it would have ended."""
    starve, feed = starvation
    for nth in range(40):
        with bare_executor() as executor:
            watcher, told = listen(executor, "watcher")
            watched, _ = listen(executor, "watched")
            stopper, _ = listen(executor, "stopper")
            executor.send(executor.pid, Monitor(watched), sender=watcher)
            settle(executor)
            executor.send(executor.pid, Stop(watched), sender=stopper)
            starve(nth, nth + 1)
            try:
                executor.step()
            except MemoryError:
                # That ends a node, and says why.
                continue
            finally:
                feed()
            settle(executor)
            if stopper not in executor.table:
                # It was held to account for it, so what it asked for was not done, not by half.
                assert watched in executor.table and not told
                executor.send(executor.pid, Stop(watched))
                settle(executor)
                assert told


def test_of_lives_that_ended_no_more_is_kept_than_the_queue_has(executor: Executor) -> None:
    """However many end, and though the queue is never empty."""
    names = itertools.count()

    def again(process: Process, msg: Any, sender: Pid | None) -> Output:
        return Envelope(process.pid, msg)

    executor.send(executor.spawn(Does(again), "never at rest"), 1)

    def end_some() -> None:
        for n in range(1_000):
            pid = executor.spawn(Writes(), f"p{n}-{next(names)}")
            executor.send(executor.pid, Stop(pid))
        while executor.processes > 1:
            executor.step()

    end_some()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        end_some()
    gc.collect()
    assert sys.getallocatedblocks() - before < 20_000
    executor.send(executor.pid, Stop(Pid("never at rest", BARE)))
    settle(executor)
