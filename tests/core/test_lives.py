"""Lives: how a process begins, crashes and is stopped, and what ends with it."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn
from unittest.mock import Mock

import pytest

from rabble import (
    CorrelationId,
    Down,
    DownReason,
    Envelope,
    Monitor,
    NameTaken,
    Output,
    Pid,
    Process,
    Spawn,
    StartTimer,
    Stop,
    SubscribeNodes,
)
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble.calls import Calls, Reply
from tests.core.processes import OUTSIDE, Recorder, raising, returning, spawn_recorder
from tests.core.starvation import Starvation
from tests.support import (
    BARE,
    PATIENCE_S,
    SANITIZED,
    Does,
    Witness,
    bare_executor,
    settle,
    subscribe_dead_letters,
)

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


def test_a_spawned_process_begins_before_what_is_sent_from_then_on(executor: Executor) -> None:
    seen: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        seen.append(msg)
        if msg == "begin":
            child = Does(lambda *args: None, lambda process: seen.append("init"))
            return [
                Envelope(process.executor, Spawn(child, "child")),
                Envelope(process.pid, "asked"),
            ]
        # By now the executor has followed.
        return Envelope(process.pid, "begun") if msg == "asked" else None

    executor.send(executor.spawn(Does(react), "parent"), "begin")
    settle(executor)
    assert seen == ["begin", "asked", "init", "begun"]


def with_receive(receive: Any, **more: Any) -> type[Process]:
    """A class of processes with that `receive`."""
    return type("Made", (Process,), {"receive": receive, **more})


def own_receive(receive: Any) -> Callable[[], Process]:
    """What makes a process whose `receive` is its own, and not its class's."""

    def make() -> Process:
        made = with_receive(lambda *args: None)()
        made.receive = receive  # type: ignore[method-assign]
        return made

    return make


async def waits(*args: Any) -> None:
    pass


async def waits_and_yields(*args: Any) -> Any:
    yield


class Waiting:
    async def __call__(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (with_receive(waits), "Made.receive is async, but the executor waits for nothing: make it"),
        (with_receive(waits_and_yields), "Made.receive is async"),
        (with_receive(staticmethod(waits)), "Made.receive is async"),
        (own_receive(functools.partial(waits, 1)), "Made.receive is async"),
        (own_receive(Waiting()), "Made.receive is async"),
        (
            with_receive(lambda self, msg: None),
            "Made.receive takes too few arguments: write it as "
            "receive(self, msg, sender, correlation_id)",
        ),
        (with_receive(lambda self, a, b, c, d: None), "Made.receive takes too many arguments"),
        (with_receive(lambda self, a, b, c, *, d: None), "Made.receive needs a keyword argument"),
        (with_receive(staticmethod(lambda a, b: None)), "Made.receive takes too few arguments"),
        (own_receive(lambda a, b, c, d: None), "Made.receive takes too many arguments"),
        (with_receive(5), "Made.receive must be a method, receive(self, msg, sender, corre"),
        (type("Made", (Process,), {}), "Made does not define receive(self, msg, sender, corre"),
        (with_receive(print, init=waits), "Made.init is async"),
        (
            with_receive(print, init=lambda self, more: None),
            "Made.init takes too many arguments: write it as init(self)",
        ),
    ],
)
def test_what_could_never_receive_is_not_spawned(
    executor: Executor, make: Callable[[], Process], text: str
) -> None:
    with pytest.raises(TypeError) as caught:
        executor.spawn(make(), "x")
    assert str(caught.value).startswith(text)
    assert executor.processes == 0 and Pid("x", BARE) not in executor.table


@functools.wraps(waits)
def waits_no_more(*args: Any) -> None:
    """What a decorator made of a coroutine function: it may run it by itself."""


@pytest.mark.parametrize(
    "make",
    [
        with_receive(lambda *args: None),
        with_receive(lambda self, *args: None),
        with_receive(lambda self, a, b=1, c=2, d=3, *, e=4: None),
        with_receive(staticmethod(lambda a, b, c: None)),
        with_receive(classmethod(lambda cls, a, b, c: None)),
        with_receive(functools.partialmethod(lambda self, x, a, b, c: None, 1)),
        with_receive(functools.lru_cache(maxsize=0)(lambda self, a, b, c: None)),
        with_receive(waits_no_more),
        with_receive(Mock(return_value=None)),
        with_receive(lambda *args: None, init=lambda self, more=1: None),
        with_receive(lambda *args: None, init=staticmethod(lambda: None)),
        own_receive(Mock(return_value=None)),
        own_receive(functools.partial(lambda x, a, b, c: None, 1)),
        own_receive(functools.partial(lambda a, b, c, x: None, x=1)),
    ],
)
def test_what_can_receive_is_spawned_however_it_was_written(
    executor: Executor, make: Callable[[], Process]
) -> None:
    pid = executor.spawn(make(), "x")
    executor.send(pid, 1)
    settle(executor)
    assert pid in executor.table and executor.crashes == 0


class Replaces(str):
    """The name of an argument that, asked whether it is another, replaces what it is a key of."""

    function: ClassVar[Any]

    def __hash__(self) -> int:
        return hash("needed")

    def __eq__(self, other: object) -> bool:
        self.function.__kwdefaults__ = None
        self.function.__code__ = (lambda: None).__code__
        return False


def test_who_replaces_what_is_looked_at_is_refused_as_it_was(executor: Executor) -> None:
    def receive(self: Any, msg: Any, sender: Any, cid: Any, *, needed: int, more: int = 2) -> None:
        pass

    Replaces.function = receive
    receive.__kwdefaults__ = {Replaces("x"): 1, "more": 2}
    process_class = type("Odd", (Process,), {"receive": receive})
    with pytest.raises(TypeError, match="receive"):
        executor.spawn(process_class(), "odd")


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
    spawn_recorder(executor, "taken")
    with pytest.raises(NameTaken):
        executor.spawn(process := Recorder(), "taken")
    assert not hasattr(process, "_runtime")
    assert executor.processes == 2
    assert Pid("x", BARE) not in executor.table
    spawn_recorder(executor, "x")


def test_a_base_class_without_the_slot_is_refused() -> None:
    for slot in (1 << 100, Mock(), Down.pid):  # type: ignore[attr-defined]
        base = type("Base", (), {"_runtime": slot})
        with (
            pytest.raises(TypeError, match="slot _runtime"),
            bare_executor(process_class=base),
        ):
            pytest.fail("an executor was made")


def test_each_life_draws_other_numbers_and_the_same_ones_in_another_run() -> None:
    def drawn() -> list[float]:
        with bare_executor(witness=Witness()) as executor:
            numbers = []
            for n in range(3):
                process = Recorder()
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


def test_init_runs_once_before_the_first_message_and_may_send(executor: Executor) -> None:
    to, got = spawn_recorder(executor)
    seen: list[Any] = []

    def begin(process: Process) -> Output:
        seen.append("init")
        return Envelope(to, "begun")

    pid = executor.spawn(Does(lambda process, msg, sender: seen.append(msg), begin), "begins")
    for number in range(2):
        executor.send(pid, number)
    settle(executor)
    assert seen == ["init", 0, 1] and got == ["begun"]


def test_a_process_whose_init_raises_gets_no_message(executor: Executor, witness: Witness) -> None:
    seen: list[Any] = []

    def begin(process: Process) -> Output:
        raise ValueError("cannot begin")

    pid = executor.spawn(Does(lambda process, msg, sender: seen.append(msg), begin), "fails")
    monitoring, told = spawn_recorder(executor, "monitoring")
    executor.send(executor.pid, Monitor(pid), sender=monitoring)
    executor.send(pid, 1)
    settle(executor)
    assert seen == [] and pid not in executor.table and executor.crashes == 1
    assert [each for each, _ in witness.errors] == [pid]
    # It had ended when the Monitor had its turn.
    assert [down.reason.kind for down in told] == ["no_process"]


# Crashing.


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
        raising(EvilError()),
        raising(SystemExit(1)),
        returning(EvilMessage()),
        returning([EvilMessage()]),
        failing_control(EvilMessage),
        failing_control(EvilStop),
        failing_control(unfilled_stop),
        failing_control(lambda: stop_for("a text")),
        failing_control(lambda: stop_for(DownReason("no_process"))),
        failing_control(lambda: Spawn(Mock(spec=Process), "mock")),
        failing_control(lambda: StartTimer(None, 1)),  # type: ignore[arg-type]
        failing_control(lambda: Monitor(None)),  # type: ignore[arg-type]
        failing_control(lambda: Stop(Pid("far", type(BARE)("far", "h:2")))),
    ],
)
def test_what_a_users_object_raises_ends_its_process_and_nothing_else(
    executor: Executor, witness: Witness, process: Process
) -> None:
    to, got = spawn_recorder(executor)
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


def test_a_huge_text_of_an_exception_is_cut(executor: Executor) -> None:
    to, got = spawn_recorder(executor)
    victim = executor.spawn(raising(ValueError("x" * 10_000_000)), "victim")
    executor.send(executor.pid, Monitor(victim), sender=to)
    executor.send(victim, 1)
    settle(executor)
    assert len(got[0].reason.detail) < 600


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's own memory is beyond the limit")
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
        except (ProcessCrashed, MemoryError):
            # Who waits in this thread may have no memory either, for as long as that one has it.
            while True:
                try:
                    if keeps not in node.processes():
                        break
                except MemoryError:
                    pass
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


# The end: what the runtime keeps for a process ends with it.


def test_a_subscription_ends_with_its_life(executor: Executor) -> None:
    first, told_first = spawn_recorder(executor, "same")
    subscribe_dead_letters(executor, first)
    executor.send(executor.pid, SubscribeNodes(), sender=first)
    settle(executor)
    assert executor.node_subscribed == (first,)
    executor.send(executor.pid, Stop(first))
    settle(executor)
    again, told_again = spawn_recorder(executor, "same")
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
    watched, _ = spawn_recorder(executor, "watched")
    asker, told = spawn_recorder(executor, "asker")
    executor.send(executor.pid, Monitor(watched), sender=asker)
    subscribe_dead_letters(executor, asker)
    settle(executor)
    executor.send(Pid("nobody", BARE), 1)
    executor.send(executor.pid, Stop(watched))
    executor.send(executor.pid, Stop(asker))
    told_next: list[Any] = []
    successor = Recorder()
    successor.got = told_next
    executor.send(executor.pid, Spawn(successor, "asker"))
    executor.send(asker, "mail for the name")
    settle(executor)
    assert told == [] and told_next == ["mail for the name"]


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


def crash_when_told(process: Process, msg: Any, sender: Pid | None) -> None:
    if msg == "crash":
        raise ValueError


def raises(process: Process) -> NoReturn:
    raise ValueError


def test_a_stop_is_done_or_not_done_where_memory_is_short(
    starvation: Starvation,
) -> None:
    """A Stop for which there is no memory ends its sender, and leaves whom it would have ended."""
    for nth in range(40):
        with bare_executor() as executor:
            watcher, told = spawn_recorder(executor, "watcher")
            watched, _ = spawn_recorder(executor, "watched")
            stopper, _ = spawn_recorder(executor, "stopper")
            executor.send(executor.pid, Monitor(watched), sender=watcher)
            settle(executor)
            executor.send(executor.pid, Stop(watched), sender=stopper)
            if starvation.ends_a_node(nth, executor.step):
                continue
            settle(executor)
            if stopper not in executor.table:
                # It was held to account for it, so what it asked for was not done, not by half.
                assert watched in executor.table and not told
                executor.send(executor.pid, Stop(watched))
                settle(executor)
                assert told


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_without_memory_the_end_of_a_life_ends_its_requests_or_the_node(
    starvation: Starvation, how: str
) -> None:
    failed = ended = 0
    for nth in range(60):
        calls = Calls(Pid("calls", BARE, "rabble"), 10)
        with bare_executor() as executor:
            executor.add_calls(calls.requests, calls.deliver)
            holder = executor.spawn(Does(crash_when_told), "holder")
            reply = Reply()
            cid = calls.begin(reply, holder)
            executor.send(holder, "request", sender=calls.pid, correlation_id=cid)
            settle(executor)
            if how == "stop":
                stopper, _ = spawn_recorder(executor, "stopper")
                executor.send(executor.pid, Stop(holder), sender=stopper)
            else:
                executor.send(holder, "crash")
            if starvation.ends_a_node(nth, functools.partial(settle, executor)):
                failed += 1
                continue
            settle(executor)
            ended += holder not in executor.table
            assert reply.wait(0) == (holder not in executor.table), nth
    assert failed and ended


def test_without_memory_a_process_that_fails_to_start_is_down_or_the_node_fails(
    starvation: Starvation,
) -> None:
    failed = told_of = 0
    for nth in range(60):
        with bare_executor() as executor:
            downs: list[Any] = []

            def watch(
                process: Process, msg: Any, sender: Pid | None, downs: list[Any] = downs
            ) -> Output:
                if msg == "begin":
                    child = Does(crash_when_told, raises)
                    return [
                        Envelope(process.executor, Spawn(child, "child")),
                        Envelope(process.executor, Monitor(Pid("child", BARE))),
                    ]
                downs.append(msg)
                return None

            watcher = executor.spawn(Does(watch), "watcher")
            executor.send(watcher, "begin")
            executor.step(1)
            if starvation.ends_a_node(nth, functools.partial(settle, executor)):
                failed += 1
                continue
            settle(executor)
            if watcher in executor.table:
                told_of += 1
                assert len(downs) == 1, nth
    assert failed and told_of


def test_a_mailbox_is_closed_by_its_stop_and_keeps_what_it_was_given(executor: Executor) -> None:
    inbox = Inbox(10)
    pid = Pid("box", BARE)
    executor.add_inbox(pid, inbox)
    executor.send(pid, "before")
    executor.send(executor.pid, Stop(pid))
    executor.send(pid, "after")
    settle(executor)
    assert inbox.closed and pid not in executor.table
    assert [envelope.msg for envelope in inbox.take(10)] == ["before"]


# The collector.


class Linked(Process):
    """Has something that has it again."""

    def __init__(self) -> None:
        self.link = [self]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "raise":
            raise ValueError(msg)
        return None


@pytest.mark.parametrize("end", ["stop", "crash", "executor"])
def test_a_process_that_runs_is_not_walked_over_and_one_that_ended_is_collected(
    executor: Executor, end: str
) -> None:
    process = Linked()
    gone = weakref.ref(process)
    assert gc.is_tracked(process)
    pid = executor.spawn(process, "linked")
    assert not gc.is_tracked(process)
    del process
    gc.collect()
    assert gone() is not None
    if end == "stop":
        executor.send(executor.pid, Stop(pid))
        settle(executor)
    elif end == "crash":
        executor.send(pid, "raise")
        settle(executor)
    else:
        executor.request_stop(0)
        executor.run()
    gc.collect()
    assert gone() is None


def test_one_that_ran_is_tracked_again_and_may_run_once_more(executor: Executor) -> None:
    process = Linked()
    for _ in range(2):
        pid = executor.spawn(process, "linked")
        assert not gc.is_tracked(process)
        executor.send(executor.pid, Stop(pid))
        settle(executor)
        assert gc.is_tracked(process) and executor.processes == 0


def test_a_spawn_that_is_refused_leaves_the_process_to_the_collector(executor: Executor) -> None:
    spawn_recorder(executor, "taken")
    process = Linked()
    with pytest.raises(NameTaken):
        executor.spawn(process, "taken")
    assert gc.is_tracked(process)


class Revenant(Process):
    """Spawns itself again when the collector finds it."""

    executor_of_tests: Executor
    pids: ClassVar[list[Pid]] = []

    def __init__(self) -> None:
        self.link = [self]

    def __del__(self) -> None:
        self.pids.append(self.executor_of_tests.spawn(self, "revenant"))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.link.append(msg)
        return None


def test_a_process_that_is_spawned_while_it_is_collected_lives(executor: Executor) -> None:
    Revenant.executor_of_tests = executor
    Revenant()
    gc.collect()
    (pid,) = Revenant.pids
    executor.send(pid, "hello")
    settle(executor)
    gc.collect()
    entry = executor.table.get(pid)
    assert entry is not None and entry.target.link == [entry.target, "hello"]
    del Revenant.executor_of_tests, Revenant.pids[:]
    gone = weakref.ref(entry.target)
    executor.send(executor.pid, Stop(pid))
    settle(executor)
    del entry
    gc.collect()
    assert gone() is None
