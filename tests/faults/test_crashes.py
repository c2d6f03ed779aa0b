"""What a crash takes with it: one process or service, and nothing of it stays.

tests/unit/test_node.py has what follows when `receive` raises; here is what is around
it: `init`, timeouts, services, hostile exceptions, restarts, and what a hundred thousand cost.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import logging
import random
import re
import sys
import threading
import traceback
import weakref
from typing import Any

import psutil
import pytest

import rabble
from rabble import (
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    Down,
    Envelope,
    Limits,
    Monitor,
    Output,
    Pid,
    Process,
    Service,
    ServiceHandler,
    Spawn,
    StartTimer,
    Timeout,
)
from rabble._core.errors import Interrupted
from rabble.reports import Reporter
from tests.support import (
    BARE,
    PATIENCE_S,
    SANITIZED,
    Does,
    Echo,
    HandClock,
    Relay,
    Witness,
    bare_executor,
    settle,
    subscribe_dead_letters,
)

MIB = 1024 * 1024


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit("while it is put into words")

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Its traceback cannot be set by assignment, as its fields cannot."""

    code: int = 7


class Sealed(BaseException):
    def __setattr__(self, name: str, value: Any) -> None:
        raise SystemExit("nothing can be set")


class Strange(Exception):
    @property
    def __traceback__(self) -> Any:
        raise RuntimeError("no traceback either")

    @__traceback__.setter
    def __traceback__(self, value: Any) -> None:
        raise RuntimeError("nor a way to set it")


def chained() -> BaseException:
    """Its cause's cause is itself."""
    error, cause = RuntimeError("outer"), RuntimeError("inner")
    error.__cause__, cause.__cause__ = cause, error
    return error


HOSTILE = {
    "unspeakable": Unspeakable,
    "leaving": Leaving,
    "frozen": Frozen,
    "sealed": Sealed,
    "strange": Strange,
    "chained": chained,
    "stop": StopIteration,
    "interrupt": KeyboardInterrupt,
    "exit": SystemExit,
    "generator": GeneratorExit,
    "memory": MemoryError,
    "recursion": RecursionError,
}
hostile = pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)


def no_output(process: Process, msg: Any, sender: Pid | None) -> None:
    return None


# Whatever is raised, wherever.


@hostile
@pytest.mark.parametrize("where", ["receive", "init", "timeout", "iteration"])
def test_whatever_is_raised_ends_one_process(make: Any, where: str) -> None:
    def boom(process: Process, msg: Any = None, sender: Any = None) -> Any:
        if where == "timeout" and not isinstance(msg, Timeout):
            return Envelope(process.executor, StartTimer(CorrelationId(process.pid), 1))
        if where == "iteration":
            return Hostile()
        raise make()

    class Hostile:
        def __iter__(self) -> Any:
            raise make()

    with rabble.rouse() as node, node.mailbox() as box:
        executor = node.pid("executor", "rabble")
        other = node.spawn(Relay(box.pid), "other")
        pid = node.spawn(
            Does(boom, boom if where == "init" else lambda process: None),  # type: ignore[arg-type]
            "victim",
        )
        box.send(executor, Monitor(pid))
        box.send(pid, "go")
        box.send(other, "alive")
        got = [box.receive(PATIENCE_S).msg for _ in range(2)]
        (down,) = (msg for msg in got if isinstance(msg, Down))
        assert (box.pid, "alive") in got
        assert down.pid == pid
        # By then it may have ended already.
        assert down.reason.kind == "crashed" or where == "init"
        assert node.call(node.spawn(Echo(), "echo"), "still there", PATIENCE_S) == "still there"
        assert node.status == "running"
    assert node.status == "stopped"
    assert node.executor_status().crashes == 1


class Fickle(Process):
    """Its `init` cannot even be looked up."""

    @property
    def init(self) -> Any:  # type: ignore[override]
        raise RuntimeError("there is none")

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> None:
        raise AssertionError("it never ran")


@dataclasses.dataclass(frozen=True)
class FrozenProcess(Process):
    """Lets nobody set an attribute, its node neither."""

    to: Pid

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Envelope:
        return Envelope(self.to, self.pid)


def test_a_process_of_an_odd_class_ends_or_runs_as_any_other() -> None:
    with rabble.rouse() as node, node.mailbox() as box:
        pid = node.spawn(Fickle(), "fickle")
        box.send(pid, "hello")
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        assert box.receive(PATIENCE_S).msg.reason.kind == "no_process"
        frozen = node.spawn(FrozenProcess(box.pid), "frozen")
        node.send(frozen, "who are you?")
        assert box.receive(PATIENCE_S).msg == frozen
        assert node.executor_status().crashes == 1


# Poison messages and restart loops: a process that monitors another spawns it again.


def test_a_poison_message_does_not_reach_the_next_process_of_its_name() -> None:
    handled: list[tuple[int, Any]] = []

    class Worker(Process):
        def __init__(self, life: int) -> None:
            self.life = life

        def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
            handled.append((self.life, msg))
            if msg == "poison":
                raise RuntimeError("bad message")
            return None

    class Restarter(Process):
        def __init__(self) -> None:
            self.life = 0

        def start(self) -> list[Envelope]:
            self.life += 1
            return [
                Envelope(self.executor, Spawn(Worker(self.life), "worker")),
                Envelope(self.executor, Monitor(Pid("worker", self.node_id))),
            ]

        def init(self) -> list[Envelope]:
            return self.start()

        def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
            assert isinstance(msg, Down)
            return self.start()

    letters: list[DeadLetter] = []
    with bare_executor() as executor:
        worker = Pid("worker", BARE)
        undertaker = Does(lambda p, msg, sender: letters.append(msg))  # type: ignore[func-returns-value, return-value]
        subscribe_dead_letters(executor, executor.spawn(undertaker, "undertaker"))
        executor.spawn(Restarter(), "restarter")
        settle(executor)
        for msg in ("a", "poison", "lost"):
            executor.send(worker, msg)
        settle(executor)
        executor.send(worker, "b")
        settle(executor)
    assert handled == [(1, "a"), (1, "poison"), (2, "b")]
    assert [(x.envelope.msg, x.reason) for x in letters] == [
        ("poison", DeadLetterReason.PROCESS_CRASHED),
        ("lost", DeadLetterReason.NO_PROCESS),
    ]


@pytest.mark.parametrize("where", ["make", "init", "handle"])
def test_a_restart_loop_stops_at_its_intensity_and_escalates_once(where: str) -> None:
    lives = handled = escalated = 0

    class Doomed(ServiceHandler):
        def init(self, service: Service) -> None:
            if where == "init":
                raise RuntimeError("cannot begin")

        def handle_envelope(self, envelope: Envelope, service: Service) -> None:
            nonlocal handled
            handled += 1
            raise RuntimeError("cannot go on")

    def make() -> Doomed:
        nonlocal lives
        lives += 1
        if where == "make":
            raise RuntimeError("cannot be made")
        return Doomed()

    with rabble.rouse() as node:
        ask = node._runtime.request_shutdown

        def request_shutdown(timeout: float | None = None) -> None:
            nonlocal escalated
            escalated += 1
            ask(timeout)

        node._runtime.request_shutdown = request_shutdown  # type: ignore[method-assign]
        service = node.register_service(make, "doomed", on_crash="restart")
        if where == "handle":
            for _ in range(20):
                node.send(service.pid, "poison")
        service.thread.join(PATIENCE_S)
        assert escalated == 1
        assert node._runtime.ended.wait(PATIENCE_S) or node._runtime.ended.closed
    assert lives == 6  # the first one and five more
    if where == "handle":
        assert handled == 6  # each message once
        dead = node.executor_status().dead_letters
        # What waited in the inbox at the last crash says so, too.
        assert dead["process_crashed"] >= 6
        assert sum(dead.values()) == 20


def test_crashes_far_apart_never_escalate() -> None:
    with rabble.rouse() as node:
        clock = HandClock()
        node._runtime.clock = lambda: clock.ns * 1e-9

        class Clumsy(ServiceHandler):
            def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
                if envelope.msg == "boom":
                    clock.go_on(2_501)  # the fifth before this one is more than 10 s ago
                    raise RuntimeError
                return Envelope(envelope.sender, "alive", correlation_id=envelope.correlation_id)  # type: ignore[arg-type]

        service = node.register_service(Clumsy, "clumsy", on_crash="restart")
        for _ in range(30):
            node.send(service.pid, "boom")
        assert node.call(service.pid, "hello", PATIENCE_S) == "alive"
        assert node.status == "running"
        node._runtime.clock = node._runtime.reporter._clock


# The thread of a service dies.


@hostile
@pytest.mark.parametrize("where", ["make", "init", "handle", "iteration", "close"])
def test_whatever_a_service_raises_is_reported_and_ends_it(
    make: Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    class Raises(ServiceHandler):
        def init(self, service: Service) -> Any:
            assert go_on.wait(PATIENCE_S)
            if where == "init":
                raise make()

        def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
            if where == "iteration":
                return self.output()
            if where != "close":
                raise make()
            service.stop()
            return None

        def output(self) -> Any:
            yield Envelope(box.pid, "before")
            raise make()

        def close(self, service: Service) -> None:
            if where == "close":
                raise make()

    def handler() -> Raises:
        if where == "make":
            assert go_on.wait(PATIENCE_S)
            raise make()
        return Raises()

    with rabble.rouse() as node, node.mailbox() as box:
        service = node.register_service(handler, "raises")
        box.send(node.pid("executor", "rabble"), Monitor(service.pid))
        assert node.call(node.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
        go_on.set()
        node.send(service.pid, "go")
        down = box.receive(PATIENCE_S).msg
        if where == "iteration":
            # A generator makes a RuntimeError of what must not leave one.
            assert down == "before"
            down = box.receive(PATIENCE_S).msg
        assert down.pid == service.pid
        assert down.reason.kind == "crashed"
        service.thread.join(PATIENCE_S)
        assert not service.thread.is_alive()
        assert node.executor_status().services == 0
        assert node.status == "running"
    assert len([r for r in caplog.records if "raises::local" in r.getMessage()]) == 1


@hostile
def test_a_service_starts_anew_after_whatever_it_raised(make: Any) -> None:
    class Once(ServiceHandler):
        def handle_envelope(self, envelope: Envelope, service: Service) -> Any:
            if envelope.msg == "boom":
                raise make()
            return Envelope(envelope.sender, "alive", correlation_id=envelope.correlation_id)  # type: ignore[arg-type]

    with rabble.rouse() as node:
        service = node.register_service(Once, "once", on_crash="restart")
        node.send(service.pid, "boom")
        assert node.call(service.pid, "hello", PATIENCE_S) == "alive"


def test_a_log_that_raises_ends_neither_the_reports_nor_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    second = threading.Event()

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(record.getMessage())
            if len(seen) == 1:
                raise OSError("the log's disk is full")
            second.set()
            return False

    monkeypatch.setattr(sys, "stderr", None)  # where the complaint would go
    broken = Broken()
    logger = logging.getLogger("rabble")
    logger.addFilter(broken)
    try:
        with rabble.rouse() as node:
            for name in ("one", "two"):
                node.send(node.spawn(Does(lambda *_: 1 // 0), name), "boom")
            assert second.wait(PATIENCE_S)
            assert node._runtime.reporter.thread.is_alive()
    finally:
        logger.removeFilter(broken)
    assert len(seen) == 2


# A monitor is sent exactly one `Down`, after the last message.


@pytest.mark.parametrize("seed", range(5))
def test_every_monitor_hears_once_and_last_however_a_process_ends(seed: int) -> None:
    dice = random.Random(seed)
    heard: dict[Pid, list[tuple[Pid | None, Any]]] = collections.defaultdict(list)

    def note(process: Process, msg: Any, sender: Pid | None) -> Any:
        heard[process.pid].append((msg.pid if isinstance(msg, Down) else sender, msg))
        return None

    def last_words(process: Process, msg: Any, sender: Pid | None) -> Any:
        count, how = msg
        words = [Envelope(to, n) for n in range(count) for to in watchers]
        if how == "stop":
            return [*words, Envelope(process.executor, rabble.Stop(process.pid))]
        return [*words, Envelope(process.pid, (0, how))] if count else crash()

    def crash() -> Any:
        raise RuntimeError

    with bare_executor() as executor:
        watchers = [executor.spawn(Does(note), f"watcher-{n}") for n in range(4)]
        mortals = [executor.spawn(Does(last_words), f"mortal-{n}") for n in range(50)]
        wanted = {}
        for watcher in watchers:
            wanted[watcher] = [pid for pid in mortals if dice.random() < 0.7]
            for pid in wanted[watcher]:
                for _ in range(dice.randint(1, 3)):  # once is as good as often
                    executor.send(executor.pid, Monitor(pid), sender=watcher)
        counts = {pid: dice.randrange(20) for pid in mortals}
        for pid in dice.sample(mortals, len(mortals)):
            executor.send(pid, (counts[pid], dice.choice(["stop", "crash"])))
        settle(executor)
        for watcher in watchers:
            for pid in mortals:
                got = [msg for about, msg in heard[watcher] if about == pid]
                downs = [msg for msg in got if isinstance(msg, Down)]
                assert got[: counts[pid]] == list(range(counts[pid])), seed
                assert got[counts[pid] :] == downs, seed
                assert len(downs) == (pid in wanted[watcher]), seed


# A hundred thousand failing messages.


class Thing:
    """A message that can be referred to weakly."""


class Fatal(Exception):
    pass


def fail(process: Process, msg: Any, sender: Pid | None) -> Any:
    local = [process, msg]  # the frame, and so the traceback, holds all of it
    try:
        raise KeyError("first")
    except KeyError as error:
        failure = Fatal("then")
        witnessed.append(weakref.ref(failure))
        assert local
        raise failure from error


witnessed: list[weakref.ref[Any]] = []


@pytest.mark.parametrize("with_log", [False, True])
def test_a_crash_lets_go_of_process_message_and_exception(with_log: bool) -> None:
    """By their reference counts alone: no garbage collection is needed."""
    witnessed.clear()
    letters = 0

    def count(process: Process, msg: Any, sender: Pid | None) -> None:
        nonlocal letters
        letters += 1

    gc.collect()
    gc.disable()
    try:
        limits = Limits(log_reports_per_second_max=1_000_000 if with_log else 1)
        with rabble.rouse(limits=limits) as node:
            node.subscribe_dead_letters(node.spawn(Does(count), "undertaker"))
            for n in range(100):
                process, thing = Does(fail), Thing()
                witnessed.extend(weakref.ref(o) for o in (process, thing))
                node.send(node.spawn(process, f"victim-{n}"), thing)
                del process, thing
            node.call(node.spawn(Echo(), "echo"), 1, PATIENCE_S)
            assert node.executor_status().crashes == letters == 100
            assert len(witnessed) == 300
            assert [ref() for ref in witnessed if ref() is not None] == []
    finally:
        gc.enable()
        witnessed.clear()


def test_a_hundred_thousand_crashes_leave_nothing_and_say_little(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither memory, though each message is 1 KiB, nor objects, nor more than the log may take."""
    everything = 100_000
    me = psutil.Process()
    witnessed.clear()

    def crash(process: Process, msg: Any, sender: Pid | None) -> Any:
        raise Fatal("this one too")

    with rabble.rouse() as node:
        echo = node.spawn(Echo(), "echo")

        def fail_often(count: int) -> None:
            for n in range(count):
                node.send(node.spawn(Does(crash), f"victim-{n}"), bytes(1024))
                if n % 1000 == 0:
                    node.call(echo, n, PATIENCE_S)
            node.call(echo, "done", PATIENCE_S)

        fail_often(everything // 10)
        gc.collect()
        blocks, memory = sys.getallocatedblocks(), me.memory_info().rss
        logged = len(caplog.records)
        fail_often(everything)
        gc.collect()
        # What is written, ten a second, caplog keeps.
        logged = len(caplog.records) - logged
        assert sys.getallocatedblocks() - blocks < 1_000 + 75 * logged
        assert SANITIZED or me.memory_info().rss - memory < 5 * MIB
        crashes = node.executor_status().crashes
        assert crashes == everything + everything // 10
    written = [r.getMessage() for r in caplog.records if " crashed" in r.getMessage()]
    numbers = r"\[(\d+) reports before|^(\d+) reports were suppressed"
    told = sum(int(a or b) for r in caplog.records for a, b in re.findall(numbers, r.getMessage()))
    # Each one was written, or is in the number of a line that tells of those that were not.
    assert len(written) + told == crashes
    assert told == node.metrics().counters["reports_suppressed"]
    assert len(written) <= 10 * (node.executor_status().uptime_s + 2)


def test_the_log_has_a_rate_and_tells_what_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    reporter = Reporter(
        "reports",
        per_second=10,
        waiting=256,
        watch=lambda reporter: None,
        failed=traceback.print_exception,
        clock=lambda: clock.ns * 1e-9,
    )
    pid = Pid("victim", BARE)
    put_into_words = 0

    class Wordy(Exception):
        def __str__(self) -> str:
            nonlocal put_into_words
            put_into_words += 1
            return "words"

    for second in range(3):
        for _ in range(1_000):
            reporter.report_crash(pid, Wordy())
        # What will not be written costs no formatting.
        assert put_into_words <= (second + 1) * 20
        clock.go_on(1_000)
    reporter.thread.start()
    reporter.end()
    reporter.thread.join(PATIENCE_S)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 31
    assert sum("victim::bare@h:1 crashed" in text for text in texts) == 30
    assert [text.rpartition("\n")[2] for text in texts if "suppressed" in text] == [
        "[990 reports before this one were suppressed]",
        "[990 reports before this one were suppressed]",
        "990 reports were suppressed",
    ]
    assert reporter.suppressed_total == 2970


def test_a_witness_keeps_no_frame_of_a_crash() -> None:
    """What the layer above is handed may be kept: its traceback is gone afterwards."""
    with bare_executor(witness=(witness := Witness())) as executor:
        process = Does(fail)
        gone = weakref.ref(process)
        executor.send(executor.spawn(process, "victim"), "go")
        del process
        settle(executor)
        ((pid, error),) = witness.errors
        assert pid == Pid("victim", BARE)
        assert error.__traceback__ is None
        assert gone() is None
    witnessed.clear()


class FailsAtOnce(Process):
    def init(self) -> Output:
        raise ArithmeticError("at once")

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        raise AssertionError("it never started")


@pytest.mark.parametrize("process", [Does(fail), FailsAtOnce()], ids=["receive", "init"])
def test_who_crashed_is_nobody_when_the_end_comes_meanwhile(process: Process) -> None:
    """A node that must end interrupts whatever runs, a crash's report, too."""

    class Ends(Witness):
        def crashed(self, pid: Pid | None, error: BaseException) -> None:
            raise Interrupted

    with bare_executor(witness=Ends()) as executor:
        executor.send(executor.spawn(process, "victim"), "go")
        with pytest.raises(Interrupted):
            settle(executor)
        gc.collect()
        assert executor.current_pid is None
