"""Contexts: what one delivery does to decimal's, or to any ContextVar, no other one sees."""

from __future__ import annotations

import contextvars
import dataclasses
import decimal
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rabble import (
    CorrelationId,
    DownReason,
    Envelope,
    Output,
    Pid,
    Process,
    StartTimer,
    Stop,
    message,
)
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.core.peers import Hub
from tests.core.processes import OUTSIDE, spawn_recorder
from tests.support import BARE, Does, Witness, bare_executor, running, settle, until

#: What a program keeps in a context: a user, a request, a trace.
VAR: contextvars.ContextVar[Any] = contextvars.ContextVar("VAR", default="default")

THIRD = "0." + 28 * "3"


def third() -> str:
    """What the precision of decimal's context makes of it."""
    return f"{decimal.Decimal(1) / decimal.Decimal(3)}"


def seen() -> tuple[Any, str]:
    return VAR.get(), third()


CLEAN = ("default", THIRD)


def change() -> None:
    VAR.set("changed")
    decimal.getcontext().prec = 3


def change_by_setcontext() -> None:
    decimal.setcontext(decimal.Context(prec=3))


def change_and_raise() -> None:
    change()
    raise ValueError("as told")


def change_within_a_context_of_its_own() -> None:
    change()
    contextvars.copy_context().run(change)


#: Kept, as CPython 3.11 crashes if the collector ends one of them while another one begins.
SUSPENDED: list[Iterator[None]] = []


def leave_a_local_context_open() -> None:
    SUSPENDED.append(suspended_in_a_local_context())
    next(SUSPENDED[-1])


def suspended_in_a_local_context() -> Iterator[None]:
    with decimal.localcontext() as context:
        context.prec = 3
        yield


CHANGES = (
    change,
    change_by_setcontext,
    change_and_raise,
    change_within_a_context_of_its_own,
    leave_a_local_context_open,
)


class Observer(Process):
    """Notes the context that it is called in, each time that it is called."""

    def __init__(self, observed: list[Any]) -> None:
        self.observed = observed

    def init(self) -> Output:
        self.observed.append(seen())
        return None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.observed.append(seen())
        return self.answer()

    def answer(self) -> Iterator[Envelope]:
        self.observed.append(seen())
        yield from ()

    def terminate(self, reason: DownReason) -> Output:
        self.observed.append(seen())
        return None


@pytest.mark.parametrize("do", CHANGES)
def test_the_next_delivery_is_clean(executor: Executor, do: Callable[[], None]) -> None:
    observed: list[Any] = []
    observer = executor.spawn(Observer(observed), "observer")
    changing = executor.spawn(Does(lambda process, msg, sender: do()), "changing")  # type: ignore[func-returns-value]
    settle(executor)
    for pid in (observer, changing, observer, changing, observer):
        executor.send(pid, "now")
    settle(executor)
    # Once in its init, and twice in each of three deliveries.
    assert observed == 7 * [CLEAN]


def test_every_way_to_change_it_changes_it() -> None:
    for do in CHANGES:
        context = contextvars.Context()

        def changed(do: Callable[[], None] = do) -> bool:
            try:
                do()
            except ValueError:
                pass
            return seen() != CLEAN

        assert context.run(changed), do


class Changing(Process):
    """Changes its context in all its methods, having noted it first."""

    def __init__(self, observed: list[Any]) -> None:
        self.observed = observed

    def do(self) -> None:
        self.observed.append(seen())
        change()

    def init(self) -> Output:
        self.do()
        return None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.do()
        return self.answer()

    def answer(self) -> Iterator[Envelope]:
        # Of the same delivery, so it is as `receive` left it.
        assert seen() == ("changed", "0.333")
        yield Envelope(OUTSIDE, "it was")

    def terminate(self, reason: DownReason) -> Output:
        self.do()
        return None


def test_each_method_begins_clean(executor: Executor) -> None:
    observed: list[Any] = []
    outside, told = spawn_recorder(executor, "outside")
    assert outside == OUTSIDE
    # By the message it comes before the request to call its `init`: all of it in one delivery.
    first = executor.spawn(Changing(observed), "first")
    executor.send(first, "now")
    second = executor.spawn(Changing(observed), "second")
    executor.send(first, "again")
    executor.send(executor.pid, Stop(first))
    executor.send(executor.pid, Stop(second))
    settle(executor)
    assert told == 2 * ["it was"]
    assert observed == 6 * [CLEAN]


def test_a_message_that_comes_before_its_init_finds_it_clean(executor: Executor) -> None:
    observed: list[Any] = []

    def start(process: Process, msg: Any, sender: Pid | None) -> Output:
        executor.spawn(Changing(observed), "late")
        return Envelope(Pid("late", BARE), "now")

    starter = executor.spawn(Does(start), "starter")
    executor.send(starter, "go")
    settle(executor)
    assert observed == 2 * [CLEAN]


def test_a_token_of_another_delivery_is_refused_in_the_one_that_uses_it(
    executor: Executor, witness: Witness
) -> None:
    tokens: list[contextvars.Token[Any]] = []

    def keep(process: Process, msg: Any, sender: Pid | None) -> Output:
        tokens.append(VAR.set("kept"))
        return None

    def use(process: Process, msg: Any, sender: Pid | None) -> Output:
        VAR.reset(tokens.pop())
        return None

    observed: list[Any] = []
    keeper = executor.spawn(Does(keep), "keeper")
    user = executor.spawn(Does(use), "user")
    observer = executor.spawn(Observer(observed), "observer")
    for pid in (keeper, user, observer, keeper):
        executor.send(pid, "now")
    settle(executor)
    assert [pid for pid, _ in witness.errors] == [user]
    assert isinstance(witness.errors[0][1], ValueError)
    assert "different Context" in str(witness.errors[0][1])
    assert observed == 3 * [CLEAN] and keeper in executor.table


def test_a_token_of_the_same_delivery_works(executor: Executor, witness: Witness) -> None:
    def reset(process: Process, msg: Any, sender: Pid | None) -> Output:
        token = VAR.set("for a while")
        assert VAR.get() == "for a while"
        VAR.reset(token)
        assert VAR.get() == "default"
        return None

    pid = executor.spawn(Does(reset), "resetting")
    executor.send(pid, "now")
    executor.send(pid, "again")
    settle(executor)
    assert witness.errors == []


def test_a_generator_that_a_process_keeps_ends_its_local_context_later(
    executor: Executor, witness: Witness
) -> None:
    observed: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        if msg == "begin":
            process.kept = suspended_in_a_local_context()  # type: ignore[attr-defined]
            next(process.kept)  # type: ignore[attr-defined]
        elif msg == "end":
            process.kept.close()  # type: ignore[attr-defined]
        observed.append(third())
        return None

    pid = executor.spawn(Does(react), "keeping")
    other = executor.spawn(Does(lambda process, msg, sender: observed.append(third())), "other")  # type: ignore[func-returns-value]
    for to, msg in ((pid, "begin"), (other, ""), (pid, ""), (other, ""), (pid, "end"), (other, "")):
        executor.send(to, msg)
    settle(executor)
    assert witness.errors == []
    assert observed == ["0.333", *(5 * [THIRD])]


def test_many_processes_interleaved() -> None:
    chooser = random.Random(20)
    with bare_executor() as executor:
        found: list[Any] = []

        def react(process: Process, msg: Any, sender: Pid | None) -> Output:
            found.append(seen())
            if msg:
                CHANGES[msg % len(CHANGES)]()
            return None

        pids = [executor.spawn(Does(react), f"p{i}") for i in range(20)]
        for _ in range(2_000):
            pid = chooser.choice(pids)
            if pid not in executor.table:
                executor.spawn(Does(react), pid.name)
            executor.send(pid, chooser.choice([0, 0, chooser.randrange(5)]))
            if chooser.random() < 0.05:
                settle(executor)
        settle(executor)
        assert len(found) > 1_000 and set(found) == {CLEAN}


def test_what_was_set_is_let_go_of_before_the_executor_sleeps(executor: Executor) -> None:
    class Large:
        pass

    kept: list[weakref.ref[Large]] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        VAR.set(large := Large())
        kept.append(weakref.ref(large))
        return None

    executor.send(executor.spawn(Does(react), "setting"), "now")
    settle(executor)
    gc.collect()
    assert kept[0]() is None


def test_a_value_that_sets_another_one_as_it_goes(executor: Executor) -> None:
    class Last:
        def __init__(self, generations: int) -> None:
            self.generations = generations

        def __del__(self) -> None:
            if self.generations:
                VAR.set(Last(self.generations - 1))

    observed: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        observed.append(VAR.get())
        VAR.set(Last(5))
        return None

    pid = executor.spawn(Does(react), "setting")
    executor.send(pid, "now")
    executor.send(pid, "again")
    settle(executor)
    assert observed == 2 * ["default"]


def test_the_caller_of_step_keeps_its_context(executor: Executor) -> None:
    observed: list[Any] = []
    observer = executor.spawn(Observer(observed), "observer")
    changing = executor.spawn(Does(lambda process, msg, sender: change()), "changing")  # type: ignore[func-returns-value]
    executor.send(observer, "now")
    executor.send(changing, "now")

    def steps() -> None:
        token = VAR.set("the caller's")
        decimal.getcontext().prec = 7
        settle(executor)
        assert seen() == ("the caller's", "0.3333333")
        VAR.reset(token)
        assert VAR.get() == "default"

    contextvars.Context().run(steps)
    assert observed == 3 * [CLEAN]


def test_a_thread_that_runs_it_within_a_context_keeps_that() -> None:
    observed: list[Any] = []
    kept: list[Any] = []
    with bare_executor() as executor:

        def run() -> None:
            VAR.set("the thread's")
            executor.run()
            kept.append(VAR.get())

        thread = threading.Thread(target=contextvars.Context().run, args=(run,))
        thread.start()
        observer = executor.spawn(Observer(observed), "observer")
        executor.send(observer, "now")
        until(lambda: len(observed) == 3)
        executor.request_stop(1)
        thread.join()
    # Its last words, too.
    assert observed == 4 * [CLEAN] and kept == ["the thread's"]


def test_in_a_thread(executor: Executor) -> None:
    observed: list[Any] = []
    observer = executor.spawn(Observer(observed), "observer")
    changing = executor.spawn(Does(lambda process, msg, sender: change()), "changing")  # type: ignore[func-returns-value]
    with running(executor):
        for _ in range(100):
            executor.send(changing, "now")
            executor.send(observer, "now")
        until(lambda: len(observed) == 201)
    # The end is one more.
    assert set(observed) == {CLEAN}


BUILT: list[Any] = []


@message(post_init=True)
@dataclasses.dataclass(frozen=True)
class Built:
    """Notes the context that it is built in, and changes it."""

    number: int

    def __post_init__(self) -> None:
        BUILT.append(seen())
        change()


def test_each_message_that_arrives_is_built_in_a_clean_one(hub: Hub) -> None:
    messages = [Built(n) for n in range(5)]
    peer = hub.connect("peer")
    changing = hub.executor.spawn(
        Does(lambda process, msg, sender: change()),  # type: ignore[func-returns-value]
        "changing",
    )
    BUILT.clear()
    for built in messages:
        peer.send(changing, built)
    context = contextvars.copy_context()
    context.run(hub.settle)
    assert BUILT == 5 * [CLEAN]


class Encoded:
    """Its functions note the context that they are called in, and change it."""


ENCODED: list[Any] = []


def encode(value: Encoded) -> None:
    ENCODED.append(seen())
    change()


def decode(fields: None) -> Encoded:
    encode(Encoded())
    return Encoded()


default_registry.register_type(Encoded, "test_contexts.Encoded", encode, decode)


def test_what_a_process_sends_to_another_node_is_encoded_in_a_clean_one(hub: Hub) -> None:
    peer = hub.connect("peer")
    peer.reads = False

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        change()
        return [Envelope(peer.pid("there"), Encoded()) for _ in range(3)]

    sending = hub.executor.spawn(Does(react), "sending")
    ENCODED.clear()
    hub.executor.send(sending, "now")
    settle(hub.executor)
    assert ENCODED == 3 * [CLEAN]


class Key:
    """The key of a timer, which is hashed where the executor keeps it."""

    def __init__(self, observed: list[Any]) -> None:
        self.observed = observed

    def __hash__(self) -> int:
        self.observed.append(seen())
        return 1


def test_what_a_process_asks_of_the_executor_is_done_in_a_clean_one(executor: Executor) -> None:
    observed: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        change()
        return Envelope(process.executor, StartTimer(Key(observed), 1_000, "due"))

    executor.send(executor.spawn(Does(react), "starting"), "now")
    settle(executor)
    assert observed and set(observed) == {CLEAN}
