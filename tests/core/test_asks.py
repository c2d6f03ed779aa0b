from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    Ask,
    CallTimeout,
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    EncodeError,
    Envelope,
    Failed,
    GetMetrics,
    Metrics,
    NoProcess,
    NotConnected,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    QueueFull,
    RabbleError,
    Reply,
    Stop,
    reply,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble.calls import Calls
from rabble.registry import default_registry
from tests.core.peers import Hub
from tests.core.processes import Recorder, spawn_recorder
from tests.core.starvation import Starvation
from tests.support import (
    BARE,
    TINY,
    Does,
    Echo,
    HandClock,
    Witness,
    bare_executor,
    settle,
    subscribe_dead_letters,
)

CALLS = Pid("calls", BARE, "rabble")
NAMES = ["a", "b", "c"]
ASKS_MAX = 5
LONG_MS = 1_000_000


def ask(
    executor: Executor, sender: Pid, to: Pid, msg: Any, ms: float = LONG_MS, tag: Any = 1
) -> None:
    """Ask on behalf of a process."""
    executor.send(executor.pid, Ask(to, msg, ms, tag), sender=sender)


def reason(told: list[Any]) -> RabbleError:
    """Of the one failure that was told."""
    (failed,) = told
    assert isinstance(failed, Failed) and isinstance(failed.reason, RabbleError)
    return failed.reason


# Against a slow model, on random scripts.


@dataclasses.dataclass
class Answer:
    call: int


@dataclasses.dataclass
class PassOn:
    call: int
    to: Pid


class Crash:
    pass


class Obeys(Process):
    """Does what it is told; a request it keeps to itself, and what it is told it writes down."""

    def __init__(self, life: int, model: Model) -> None:
        self.life = life
        self.model = model

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        requests = self.model.requests
        match msg:
            case ("request", call):
                assert sender is not None and correlation_id is not None
                requests[call] = (sender, correlation_id)
            case Answer(call) if call in requests:
                return reply("answer", *said_anew(call, requests[call]))
            case PassOn(call, to) if call in requests:
                return Envelope(to, ("request", call), *said_anew(call // 2, requests[call]))
            case Crash():
                raise ValueError("as told")
            case Reply(call, value):
                assert value == "answer"
                self.model.end(call, self.life, value)
            case Failed(call, error):
                self.model.end(call, self.life, how_of(error))
        return None


def said_anew(call: int, known_by: tuple[Pid, CorrelationId]) -> tuple[Pid, CorrelationId]:
    """The same for every other call: what is equal to a correlation id is as good as that."""
    sender, cid = known_by
    return (sender, CorrelationId(cid.pid, cid.connection, cid.request)) if call % 2 else known_by


def how_of(error: RabbleError) -> str:
    match error:
        case CallTimeout():
            return "timeout"
        case ProcessCrashed():
            assert error.crash and error.detail == "ValueError: as told"
            return "crashed"
        case QueueFull():
            return "full"
        case NoProcess():
            return "stopped" if "stopped before it replied" in str(error) else "nobody"
    raise AssertionError(error)


class Model:
    """The same, short and slow: one queue, who lives under a name, and who has which request."""

    def __init__(self) -> None:
        #: How the compiled one has ended each, and whom it told.
        self.ended: dict[int, tuple[int, str]] = {}
        self.requests: dict[int, tuple[Pid, CorrelationId]] = {}
        self.queue: deque[tuple[Any, ...]] = deque()
        self.lives: dict[str, int] = {}
        self.born = 0
        self.known: set[int] = set()
        self.waiting: dict[int, int] = {}
        self.due: dict[int, int] = {}
        self.holders: dict[int, int] = {}
        self.expected: dict[int, tuple[int, str]] = {}

    def end(self, call: int, life: int, how: str) -> None:
        assert call not in self.ended, "an ask ends once"
        self.ended[call] = life, how

    def spawn(self, name: str) -> int:
        self.born += 1
        self.lives[name] = self.born
        return self.born

    def settle(self) -> None:
        while self.queue:
            what, *fields = self.queue.popleft()
            getattr(self, what)(*fields)

    def ask(self, name: str, call: int, to: str, due: int) -> None:
        if name in self.lives:
            if len(self.waiting) >= ASKS_MAX:
                self.queue.append(("tell", call, self.lives[name], "full"))
                return
            self.waiting[call] = self.lives[name]
            self.due[call] = due
        self.request(to, call)

    def request(self, name: str, call: int) -> None:
        if name in self.lives:
            self.known.add(call)
            self.holders[call] = self.lives[name]
        else:
            self.holders.pop(call, None)
            self.queue.append(("reply", call, "nobody"))

    def reply(self, call: int, how: str) -> None:
        if call in self.waiting:
            self.tell(call, self.waiting.pop(call), how)

    def tell(self, call: int, life: int, how: str) -> None:
        if life in self.lives.values():
            self.expected[call] = life, how

    def answer(self, name: str, call: int) -> None:
        if name in self.lives and call in self.known:
            self.queue.append(("reply", call, "answer"))

    def pass_on(self, name: str, call: int, to: str) -> None:
        if name in self.lives and call in self.known:
            self.queue.append(("request", to, call))

    def crash(self, name: str, how: str = "crashed") -> None:
        if name in self.lives:
            life = self.lives.pop(name)
            self.waiting = {c: asker for c, asker in self.waiting.items() if asker != life}
            self.queue.append(("unanswered", life, how))

    def stop(self, name: str) -> None:
        self.crash(name, "stopped")

    def unanswered(self, life: int, how: str) -> None:
        for call in self.waiting:
            if self.holders.get(call) == life:
                self.queue.append(("reply", call, how))
                del self.holders[call]

    def time_passes(self, now: int) -> None:
        for call in [call for call in self.waiting if self.due[call] <= now]:
            self.reply(call, "timeout")


some_name = st.sampled_from(NAMES)
some_call = st.integers(0, 9)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), some_name, some_name, st.sampled_from([1, 5, 50, 1_000])),
        st.tuples(st.just("answer"), some_name, some_call),
        st.tuples(st.just("pass_on"), some_name, some_call, some_name),
        st.tuples(st.just("crash"), some_name),
        st.tuples(st.just("stop"), some_name),
        st.tuples(st.just("spawn"), some_name),
        st.tuples(st.just("wait"), st.sampled_from([1, 4, 5, 100])),
        st.tuples(st.just("settle")),
    ),
    max_size=50,
)


@settings(max_examples=400)
@given(steps)
def test_each_ask_ends_once_and_as_the_slow_model_says(script: list[tuple[Any, ...]]) -> None:
    model = Model()
    asked = now = 0
    with bare_executor(clock := HandClock(), asks_max=ASKS_MAX) as executor:

        def spawn(name: str) -> None:
            executor.spawn(Obeys(model.spawn(name), model), name)

        def settle_both() -> None:
            settle(executor)
            model.settle()
            assert model.ended == model.expected
            assert executor.timers == len(model.waiting)

        for name in NAMES:
            spawn(name)
        for what, *fields in script:
            if what in ("settle", "wait", "spawn"):
                settle_both()
                if what == "wait":
                    clock.go_on(fields[0])
                    now += fields[0]
                    model.time_passes(now)
                    settle_both()
                elif what == "spawn" and fields[0] not in model.lives:
                    spawn(fields[0])
                continue
            pid = Pid(fields[0], BARE)
            if what == "ask":
                _, to, ms = fields
                ask(executor, pid, Pid(to, BARE), ("request", asked), ms, asked)
                model.queue.append(("ask", fields[0], asked, to, now + ms))
                asked += 1
                continue
            if what == "answer":
                executor.send(pid, Answer(fields[1]))
            elif what == "pass_on":
                executor.send(pid, PassOn(fields[1], Pid(fields[2], BARE)))
            elif what == "crash":
                executor.send(pid, Crash())
            else:
                executor.send(executor.pid, Stop(pid))
            model.queue.append((what, *fields))
        settle_both()
        # Whatever still waits ends by its time, and then nothing is kept.
        clock.go_on(2_000)
        model.time_passes(now + 2_000)
        settle_both()
        assert not model.waiting and executor.timers == 0


# What an ask is.


def test_who_is_asked_answers_it_as_a_call() -> None:
    seen: list[Any] = []

    class Answers(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            seen.append((msg, sender, correlation_id.pid))
            return reply(msg + 1, sender, correlation_id)

    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        ask(executor, asker, executor.spawn(Answers(), "answers"), 41, tag=(tag := [{}]))
        settle(executor)
        assert told == [Reply(tag, 42)] and told[0].tag is tag
        assert seen == [(41, CALLS, CALLS)]
        assert executor.timers == 0


def test_its_end_has_the_correlation_id_of_the_ask() -> None:
    seen: list[Any] = []

    class Asker(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            if isinstance(msg, Pid):
                return Envelope(self.executor, Ask(msg, 1, 10), None, correlation_id)
            seen.append((msg, sender, correlation_id))
            return None

    with bare_executor() as executor:
        pid = executor.spawn(Asker(), "asker")
        cid = CorrelationId(pid, 3, 4)
        for to in (executor.spawn(Echo(), "echo"), Pid("nobody", BARE)):
            executor.send(pid, to, correlation_id=cid)
        settle(executor)
        assert [type(msg) for msg, _, _ in seen] == [Reply, Failed]
        assert {(sender, which) for _, sender, which in seen} == {(executor.pid, cid)}


def test_a_request_keeps_its_place_among_what_its_asker_sends() -> None:
    with bare_executor() as executor:
        to, got = spawn_recorder(executor, "to")

        def react(process: Process, msg: Any, sender: Any) -> Output:
            out = []
            for n in range(0, 20, 2):
                out.append(Envelope(to, n))
                out.append(Envelope(process.executor, Ask(to, n + 1, LONG_MS)))
            return out

        executor.send(executor.spawn(Does(react), "asker"), "go")
        settle(executor)
        assert got == list(range(20))


def test_what_a_life_asked_is_sent_though_it_is_over_and_nobody_is_told() -> None:
    with bare_executor() as executor:
        echo, got = executor.spawn(Echo(), "echo"), spawn_recorder(executor, "to")[1]

        def react(process: Process, msg: Any, sender: Any) -> Output:
            if msg != "go":
                return None
            return [
                Envelope(process.pid, "crash"),
                Envelope(process.executor, Ask(Pid("to", BARE), 1, LONG_MS)),
                Envelope(process.executor, Ask(echo, 2, LONG_MS)),
            ]

        def crashing(process: Process, msg: Any, sender: Any) -> Output:
            return [][0] if msg == "crash" else react(process, msg, sender)

        executor.send(executor.spawn(Does(crashing), "asker"), "go")
        settle(executor)
        _, told = spawn_recorder(executor, "asker")
        settle(executor)
        assert got == [1] and told == [] and executor.timers == 0


def test_a_successor_is_told_nothing_and_what_comes_late_is_dropped() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        requests: list[Any] = []

        class Keeps(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                if msg == "answer":
                    return [reply("late", *each) for each in requests]
                requests.append((sender, correlation_id))
                return None

        keeps = executor.spawn(Keeps(), "keeps")
        ask(executor, asker, keeps, 1)
        settle(executor)
        executor.send(executor.pid, Stop(asker))
        settle(executor)
        assert executor.timers == 0
        _, told_next = spawn_recorder(executor, "asker")
        executor.send(keeps, "answer")
        settle(executor)
        assert told == told_next == [] and executor.dead_letters == {}


def test_the_request_is_delivered_in_the_turn_of_the_ask() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        to, got = spawn_recorder(executor, "to")
        ask(executor, asker, to, 1)
        ask(executor, asker, to, 2)
        assert (executor.step(1), got) == (1, [1])
        assert (executor.step(1), got) == (1, [1, 2])


def test_what_is_answered_within_its_turn_has_no_timer_and_what_waits_has_one() -> None:
    timers: list[int] = []
    with bare_executor() as executor:

        class Answers(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                timers.append(executor.timers)
                return reply(msg, sender, correlation_id)

        asker, told = spawn_recorder(executor, "asker")
        silent, _ = spawn_recorder(executor, "silent")
        ask(executor, asker, silent, 1)
        ask(executor, asker, executor.spawn(Answers(), "answers"), 2)
        ask(executor, asker, silent, 3)
        settle(executor)
        # A turn of the tiny build is one delivery.
        assert timers == [1 if TINY else 0] and told == [Reply(1, 2)]
        assert executor.timers == 2


def test_a_life_that_ends_in_the_turn_in_which_it_asked_leaves_no_timer() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        other, _ = spawn_recorder(executor, "other")
        silent, _ = spawn_recorder(executor, "silent")
        for who, msg in ((other, 1), (asker, 2), (other, 3), (asker, 4)):
            ask(executor, who, silent, msg)
        executor.send(executor.pid, Stop(asker))
        settle(executor)
        assert told == []
        assert executor.timers == 2
        executor.send(executor.pid, Stop(other))
        settle(executor)
        assert executor.timers == 0


def test_a_second_answer_is_dropped() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")

        class Twice(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                return [reply(n, sender, correlation_id) for n in range(2)]

        ask(executor, asker, executor.spawn(Twice(), "twice"), 1)
        settle(executor)
        assert told == [Reply(1, 0)]


# How one fails.


def test_its_time_is_over_at_its_time() -> None:
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        silent, _ = spawn_recorder(executor, "silent")
        ask(executor, asker, silent, 1, 10)
        settle(executor)
        clock.go_on(9)
        settle(executor)
        assert told == []
        clock.go_on(2)
        settle(executor)
        error = reason(told)
        assert isinstance(error, CallTimeout) and error.pid == silent
        assert str(error) == "silent::bare@h:1 did not reply in 0.01 s"


def test_an_answer_that_stands_before_the_timeout_wins() -> None:
    with bare_executor(clock := HandClock()) as executor:
        asker, told = spawn_recorder(executor, "asker")
        ask(executor, asker, executor.spawn(Echo(), "echo"), "answer", 10)
        # The request is answered; the answer stands in the queue.
        executor.step(1)
        clock.go_on(20)
        settle(executor)
        assert told == [Reply(1, "answer")] and executor.timers == 0


def test_an_answer_by_an_equal_correlation_id_is_one_also_within_the_turn() -> None:
    told: list[Any] = []
    kept: list[Envelope] = []

    class Keeps(Process):
        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            if msg == "go":
                return kept[::-1]
            assert cid is not None
            kept.append(reply(msg, sender, CorrelationId(cid.pid, None, cid.request)))
            return None

    def asks(process: Process, msg: Any, sender: Pid | None) -> list[Envelope] | None:
        if msg != "go":
            told.append(msg)
            return None
        asked = [Envelope(process.executor, Ask(to, n, LONG_MS, n)) for n in range(5)]
        return [*asked, Envelope(to, "go")]

    with bare_executor() as executor:
        to = executor.spawn(Keeps(), "keeps")
        executor.send(executor.spawn(Does(asks), "asks"), "go")
        executor.step()
        settle(executor)
        assert told == [Reply(n, n) for n in reversed(range(5))]
        assert executor.timers == 0


def test_the_correlation_id_of_another_node_with_the_same_id_ends_nothing() -> None:
    """Two that have no mesh are called alike; one that both are in the same place of the row."""
    with bare_executor() as one, bare_executor() as other:
        cids: list[CorrelationId] = []

        class Keeps(Process):
            def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
                assert cid is not None
                cids.append(cid)
                return None

        told = []
        for executor in (one, other):
            asks, got = spawn_recorder(executor, "asks")
            told.append(got)
            ask(executor, asks, executor.spawn(Keeps(), "keeps"), "request")
            settle(executor)
        ask(other, Pid("asks", BARE), Pid("keeps", BARE), "another request")
        settle(other)
        assert cids[0] == cids[1] != cids[2]
        one.post(Envelope(CALLS, "answer", None, cids[2]))
        other.post(Envelope(CALLS, "answer", None, cids[0]))
        settle(one)
        settle(other)
        # What is equal counts, on either; a third one was never asked here.
        assert told == [[], [Reply(1, "answer")]]


def test_nobody_a_crash_and_an_end_say_so() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        listener, letters = spawn_recorder(executor, "listener")
        subscribe_dead_letters(executor, listener)
        ask(executor, asker, Pid("nobody", BARE), 1)
        settle(executor)
        assert isinstance(reason(told), NoProcess)
        (letter,) = letters
        assert isinstance(letter, DeadLetter) and letter.reason is DeadLetterReason.NO_PROCESS

        def react(process: Process, msg: Any, sender: Any) -> Output:
            if msg == "crash":
                raise ValueError("as told")
            return Envelope(process.executor, Stop(process.pid)) if msg == "stop" else None

        told.clear()
        for _ in range(3):
            ask(executor, asker, executor.spawn(Does(react), "mortal"), "wait")
            executor.send(Pid("mortal", BARE), "crash")
            settle(executor)
        assert [type(each.reason) for each in told] == [ProcessCrashed] * 3
        assert [each.reason.crash for each in told] == [1, 2, 3]
        told.clear()
        ask(executor, asker, executor.spawn(Does(react), "mortal"), "stop")
        settle(executor)
        assert str(reason(told)) == "mortal::bare@h:1 stopped before it replied"


def test_a_full_mailbox_takes_no_request() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        recorder = Recorder()
        to = executor.spawn(recorder, "to", mailbox_max=2)

        def react(process: Process, msg: Any, sender: Any) -> Output:
            ask = Envelope(process.executor, Ask(to, "asked", LONG_MS))
            return [ask, Envelope(to, "x"), Envelope(to, "y")] if msg == "go" else told.append(msg)

        executor.send(executor.spawn(Does(react), "asks"), "go")
        settle(executor)
        # Whatever stands behind it in the queue waits already, and that is as much as may.
        assert isinstance(reason(told), QueueFull) and "mailbox of to" in str(told[0].reason)
        assert recorder.got == ["x", "y"]
        # And that it counts nothing, and is counted out nowhere, shows in that it has room again.
        told.clear()
        ask(executor, asker, to, "asked")
        settle(executor)
        assert recorder.got[2:] == ["asked"]


def test_of_too_many_the_next_one_fails_and_is_not_sent() -> None:
    with bare_executor(asks_max=3) as executor:
        asker, told = spawn_recorder(executor, "asker")
        silent, got = spawn_recorder(executor, "silent")
        for n in range(5):
            ask(executor, asker, silent, n, tag=n)
        settle(executor)
        assert got == [0, 1, 2] and [each.tag for each in told] == [3, 4]
        assert "3 requests of processes wait already, which is Limits.asks_max" in str(
            told[0].reason
        )
        assert isinstance(told[0].reason, QueueFull)
        executor.send(executor.pid, Stop(silent))
        settle(executor)
        ask(executor, asker, executor.spawn(Echo(), "echo"), "room")
        settle(executor)
        assert told[-1] == Reply(1, "room") and len(told) == 6


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda: Ask(None, 1, 1), "TypeError: Ask: to must be a Pid, not None"),  # type: ignore[arg-type]
        (lambda: Ask("x", 1, 1), "TypeError: Ask: to must be a Pid, not the str 'x'"),  # type: ignore[arg-type]
        (lambda: Ask(CALLS, 1, "1"), "TypeError: a delay must be milliseconds"),  # type: ignore[arg-type]
        (lambda: Ask(CALLS, 1, -1), "ValueError: a delay must be from 0 to"),
        (lambda: Ask(CALLS, 1, None), "TypeError: a delay must be milliseconds"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_asked_ends_who_asks(
    executor: Executor, witness: Witness, request_of: Any, said: str
) -> None:
    asker, told = spawn_recorder(executor, "asker")
    executor.send(executor.pid, request_of(), sender=asker)
    settle(executor)
    ((pid, error),) = witness.errors
    assert pid == asker and f"{type(error).__name__}: {error}".startswith(said)
    assert told == [] and executor.timers == 0


# Whom one may ask, and who asks.


def test_the_executor_is_asked_as_anybody_and_an_ask_in_an_ask_is_nobodys(hub: Hub) -> None:
    executor = hub.executor
    asker, told = spawn_recorder(executor, "asker")
    ask(executor, asker, executor.pid, GetMetrics())
    hub.settle()
    assert told == [Reply(1, Metrics({}, {}))]
    told.clear()
    nested = Ask(asker, "in the depth", LONG_MS)
    for _ in range(500):
        nested = Ask(executor.pid, nested, LONG_MS)
    executor.send(executor.pid, nested, sender=asker)
    hub.settle()
    assert isinstance(reason(told), NoProcess) and executor.timers == 0


def test_who_calls_is_not_to_be_asked() -> None:
    calls = Calls(CALLS, 1)
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        calls.undeliverable = executor.undeliverable
        executor.add_calls(calls.requests, calls.deliver)
        ask(executor, asker, CALLS, 1)
        settle(executor)
        assert "refused" in str(reason(told))


def test_a_service_asks_and_is_asked() -> None:
    with bare_executor() as executor:
        inbox, box = Inbox(10), Pid("box", BARE)
        executor.add_inbox(box, inbox)
        ask(executor, box, executor.spawn(Echo(), "echo"), "hello")
        settle(executor)
        ((answer),) = inbox.take(1)
        assert answer.msg == Reply(1, "hello") and answer.sender == executor.pid
        asker, told = spawn_recorder(executor, "asker")
        ask(executor, asker, box, "and you?")
        settle(executor)
        (request,) = inbox.take(1)
        executor.post(reply("well", request.sender, request.correlation_id))
        settle(executor)
        assert told == [Reply(1, "well")]


def test_who_has_it_now_is_who_matters_and_the_asker_is_kept() -> None:
    with bare_executor() as executor:
        asker, told = spawn_recorder(executor, "asker")
        last = executor.spawn(Echo(), "last")

        class Passes(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                to = last if msg == "answer" else Pid("nobody", BARE)
                on = Envelope(to, msg, sender, correlation_id)
                return [on, Envelope(self.executor, Stop(self.pid))]

        for msg in ("answer", "nobody"):
            ask(executor, asker, executor.spawn(Passes(), "passes"), msg)
            settle(executor)
        assert told[0] == Reply(1, "answer")
        assert str(told[1].reason) == "nobody::bare@h:1 could not be reached: no_process"


# Strict mode.


def test_in_strict_mode_what_cannot_travel_says_why_there_and_back() -> None:
    with bare_executor(codec=Codec(default_registry)) as executor:
        asker, told = spawn_recorder(executor, "asker")

        class Answers(Process):
            def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
                got.append(msg)
                return reply(object() if msg == "badly" else msg, sender, correlation_id)

        got: list[Any] = []
        answers = executor.spawn(Answers(), "answers")
        ask(executor, asker, answers, lambda: 1, tag=object)
        settle(executor)
        error = reason(told)
        assert isinstance(error, EncodeError) and told[0].tag is object
        assert str(error).startswith("the message for answers::bare@h:1 cannot be encoded: ")
        told.clear()
        ask(executor, asker, answers, "badly")
        settle(executor)
        assert str(reason(told)).startswith("the reply of answers::bare@h:1 cannot be encoded: ")
        told.clear()
        ask(executor, asker, answers, sent := [1, (2, 3)])
        settle(executor)
        assert told == [Reply(1, sent)]
        assert got[-1] == sent and got[-1] is not sent and told[0].value is not got[-1]


# Other nodes.


def request_at(peer: Any) -> Envelope:
    """The one that has come to a peer."""
    (envelope,) = peer.envelopes
    assert envelope.sender == envelope.correlation_id.pid == CALLS
    return envelope


def test_a_far_process_is_asked_by_the_frames_of_a_call(hub: Hub) -> None:
    peer = hub.connect()
    asker, told = spawn_recorder(hub.executor, "asker")
    ask(hub.executor, asker, peer.pid("far"), "question")
    hub.settle()
    request = request_at(peer)
    assert request.msg == "question" and peer.events == []
    peer.send(CALLS, "answer", peer.pid("far"), request.correlation_id)
    hub.settle()
    # A second one is late.
    peer.send(CALLS, "again", peer.pid("far"), request.correlation_id)
    hub.settle()
    assert told == [Reply(1, "answer")] and hub.executor.timers == 0


def test_what_becomes_of_it_there_is_told() -> None:
    with Hub() as hub:
        peer = hub.connect()
        asker, told = spawn_recorder(hub.executor, "asker")
        far = peer.pid("far")
        for why, crash, detail in [(1, 0, ""), (2, 0, ""), (18, 7, "KeyError: 1"), (6, 0, "no X")]:
            ask(hub.executor, asker, far, "question", tag=why)
            hub.settle()
            cid = peer.envelopes[-1].correlation_id
            peer.write("undelivered", CALLS, cid, why, crash, far, detail)
            hub.settle()
        assert [(each.tag, type(each.reason).__name__) for each in told] == [
            (1, "NoProcess"),
            (2, "QueueFull"),
            (18, "ProcessCrashed"),
            (6, "DecodeError"),
        ]
        assert told[2].reason.crash == 7 and told[2].reason.node == peer.node


def test_a_node_that_goes_ends_what_is_there_but_not_what_was_answered(hub: Hub) -> None:
    peer, other = hub.connect("peer"), hub.connect("other", "h:3")
    asker, told = spawn_recorder(hub.executor, "asker")
    for tag, where in ((1, peer), (2, other), (3, peer)):
        ask(hub.executor, asker, where.pid("far"), "question", tag=tag)
    hub.settle()
    # The answer to the third is the last that comes over the connection.
    peer.send(CALLS, "answer", peer.pid("far"), peer.envelopes[-1].correlation_id)
    peer.close()
    hub.settle()
    assert told[0] == Reply(3, "answer")
    assert told[1].tag == 1 and isinstance(told[1].reason, NotConnected)
    assert len(told) == 2 and hub.executor.timers == 1
    # The next start of that node is another one: nothing of it is an answer any more.
    ask(hub.executor, asker, peer.pid("far"), "question", tag=4)
    hub.settle()
    assert told[2].tag == 4 and isinstance(told[2].reason, NotConnected)


def test_one_that_was_passed_on_to_another_node_ends_with_that(hub: Hub) -> None:
    peer, other = hub.connect("peer"), hub.connect("other", "h:3")
    asker, told = spawn_recorder(hub.executor, "asker")
    far = other.pid("far")

    class Passes(Process):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
            return Envelope(far, msg, sender, correlation_id)

    ask(hub.executor, asker, hub.executor.spawn(Passes(), "passes"), "question", tag="near")
    ask(hub.executor, asker, peer.pid("passes"), "question", tag="far")
    hub.settle()
    cid = request_at(peer).correlation_id
    peer.write("undelivered", CALLS, cid, 15, 0, far, "")
    peer.close()
    hub.settle()
    assert told == []
    other.close()
    hub.settle()
    assert {each.tag for each in told} == {"near", "far"}
    assert all(isinstance(each.reason, NotConnected) for each in told)
    assert all(str(far) in str(each.reason) for each in told)


def test_an_ask_that_meant_the_start_before_reaches_no_later_one(hub: Hub) -> None:
    """As with an envelope: what stands in the queue when a later start of the node comes."""
    first = hub.connect("peer", incarnation=1)
    asker, told = spawn_recorder(hub.executor, "asker")
    second = hub.attach("peer", incarnation=2)
    hub.executor.connection_up(second.connection)
    ask(hub.executor, asker, first.pid("far"), "question")
    hub.settle()
    assert isinstance(reason(told), NotConnected)
    assert second.envelopes == []
    told.clear()
    ask(hub.executor, asker, first.pid("far"), "question")
    hub.settle()
    assert request_at(second).msg == "question" and told == []


# What is kept.


class Wordless(Witness):
    """Has no memory for the words of a timeout."""

    def ask_timeout(self, to: Pid, number: int, timeout_ms: float) -> RabbleError:
        raise MemoryError


def test_nothing_is_kept_of_what_has_ended() -> None:
    class Tag:
        """Somebody's object."""

    tags: list[weakref.ref[Tag]] = []

    def new() -> Tag:
        tags.append(weakref.ref(tag := Tag()))
        return tag

    with bare_executor(clock := HandClock()) as executor:
        told: list[Any] = []
        asker = executor.spawn(Does(lambda process, msg, sender: told.append(type(msg))), "asker")
        mortal, _ = spawn_recorder(executor, "mortal")
        silent, _ = spawn_recorder(executor, "silent")
        for to in (executor.spawn(Echo(), "echo"), Pid("nobody", BARE), silent, mortal):
            ask(executor, asker, to, 1, 10 if to is silent else LONG_MS, new())
        settle(executor)
        executor.send(executor.pid, Stop(mortal))
        clock.go_on(20)
        settle(executor)
        assert told == [Reply, Failed, Failed, Failed]
        assert [tag() for tag in tags] == [None] * 4
        # What it still waits for goes with it, and with the executor.
        for _ in range(3):
            ask(executor, asker, silent, 1, LONG_MS, new())
        other, _ = spawn_recorder(executor, "other")
        ask(executor, other, silent, 1, LONG_MS, new())
        settle(executor)
        executor.send(executor.pid, Stop(asker))
        settle(executor)
        assert [tag() for tag in tags[4:7]] == [None] * 3
        assert tags[7]() is not None and executor.timers == 1
    assert tags[7]() is None
    # So does one whose timer has fired, and could not be told, in an executor that ends.
    with bare_executor(clock := HandClock(), Wordless()) as executor:
        asker, _ = spawn_recorder(executor, "asker")
        silent, _ = spawn_recorder(executor, "silent")
        ask(executor, asker, silent, 1, 10, new())
        settle(executor)
        clock.go_on(20)
        with pytest.raises(MemoryError):
            executor.step()
    gc.collect()
    assert tags[8]() is None


def test_what_a_tag_does_at_its_end_finds_its_process_gone() -> None:
    class Tag:
        def __del__(self) -> None:
            seen.append((asker in executor.table, executor.timers))

    seen: list[Any] = []
    with bare_executor() as executor:
        asker, _ = spawn_recorder(executor, "asker")
        silent, _ = spawn_recorder(executor, "silent")
        for _ in range(3):
            ask(executor, asker, silent, 1, LONG_MS, Tag())
        settle(executor)
        executor.send(executor.pid, Stop(asker))
        settle(executor)
        assert seen == [(False, 0)] * 3


@pytest.mark.parametrize("how", ["answer", "crash", "stop", "nobody", "timeout"])
def test_without_memory_an_ask_ends_once_or_its_asker_or_the_node_does(
    starvation: Starvation, how: str
) -> None:
    def react(process: Process, msg: Any, sender: Any) -> Output:
        if msg == "crash":
            raise ValueError("as told")
        if msg == "stop":
            return Envelope(process.executor, Stop(process.pid))
        return None

    whole = 0
    for nth in range(400):
        with bare_executor(clock := HandClock()) as executor:
            asker, told = spawn_recorder(executor, "asker")
            to = executor.spawn(Echo() if how == "answer" else Does(react), "to")
            settle(executor)
            to = Pid("nobody", BARE) if how == "nobody" else to
            ask(executor, asker, to, how, 10)

            def run() -> None:
                for _ in range(3):
                    executor.step()
                if how == "timeout":
                    clock.ns += 20_000_000
                for _ in range(3):
                    executor.step()

            ended = starvation.ends_a_node(nth, run)
            if not ended:
                clock.go_on(1_000)
                settle(executor)
                # It ended once, if there is somebody to be told.
                assert len(told) == (asker in executor.table)
                assert executor.timers == 0
                whole += len(told)
            assert len(told) <= 1
        if whole > 20:
            return
    assert whole > 20
