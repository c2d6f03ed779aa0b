"""Host names are looked up beside the thread that asks."""

from __future__ import annotations

import socket
import threading
import types
from collections.abc import Iterator

import pytest

from rabble.addresses import Address
from rabble.cluster.failures import IN_A_ROW_MAX, RETRY_S
from rabble.cluster.io import resolver as module
from rabble.cluster.io.resolver import THREADS_MAX, Question, Resolver
from tests.cluster.noted import Noted
from tests.support import PATIENCE_S, until

FOUND: list[Address] = [(socket.AF_INET, ("127.0.0.1", 1))]
WAITING_MAX = 8
#: When questions are over, on a clock that stands still until it is moved.
BY = 100.0


class Resolving(Resolver):
    """A resolver and its clock."""

    def __init__(self, failures: list[BaseException], noted: Noted) -> None:
        self.now = 0.0
        super().__init__(
            "names",
            failures.append,
            noted.failures,
            waiting_max=WAITING_MAX,
            clock=lambda: self.now,
        )

    def ask(self, addr: str, answers: list[object], by: float = BY) -> Question:
        return self.resolve(addr, answers.append, by)


class SlowNames:
    """In place of `look_up`: names wait until they are released, numbers do not."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, flags: int = 0) -> list[Address]:
        if flags:
            raise socket.gaierror("no number")
        self.asked.append(host)
        assert self.released.wait(PATIENCE_S)
        if host == "raises":
            raise RuntimeError("a patched resolver")
        return FOUND


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    slow = SlowNames()
    monkeypatch.setattr(module, "look_up", slow)
    yield slow
    slow.released.set()
    until(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "names"]


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def resolver(failures: list[BaseException], noted: Noted) -> Iterator[Resolving]:
    resolver = Resolving(failures, noted)
    yield resolver
    resolver.close()


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 4_000))),
        ("127.1", (socket.AF_INET, ("127.0.0.1", 4_000))),
        ("[::1]", (socket.AF_INET6, ("::1", 4_000, 0, 0))),
    ],
)
def test_a_number_is_answered_at_once(resolver: Resolving, host: str, found: Address) -> None:
    answers: list[object] = []
    resolver.ask(f"{host}:4000", answers)
    assert answers == [[found]]
    assert not threads()


@pytest.mark.parametrize("addr", ["nowhere", "db..internal:1", "h\ud800:1", "x" * 300 + ":1"])
def test_what_is_no_address_is_answered_by_an_error(resolver: Resolving, addr: str) -> None:
    answers: list[object] = []
    resolver.ask(addr, answers)
    assert len(answers) == 1 and isinstance(answers[0], OSError)
    assert "is not usable" in str(answers[0])


@pytest.mark.parametrize("error", [SystemExit, MemoryError, UnicodeError, KeyboardInterrupt])
def test_resolve_raises_nothing_whatever_fails(
    resolver: Resolving, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*arguments: object) -> None:
        raise error("as it was asked to")

    monkeypatch.setattr(module, "split_address", fail)
    answers: list[object] = []
    resolver.ask("name:1", answers)
    assert len(answers) == 1 and isinstance(answers[0], OSError)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_without_a_thread_the_answer_is_an_error_and_the_next_one_has_one(
    resolver: Resolving,
    names: SlowNames,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise error

    answers: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        resolver.ask("name:1", answers)
    assert len(answers) == 1 and error.__name__ in str(answers[0])
    names.released.set()
    resolver.ask("name:1", answers)
    until(lambda: answers[1:] == [FOUND])
    # It was looked up for the second one only.
    assert names.asked == ["name"]


def test_a_name_that_is_asked_for_again_and_again_is_looked_up_once(
    resolver: Resolving, names: SlowNames
) -> None:
    answers: list[object] = []
    for _ in range(WAITING_MAX):
        resolver.ask("name:1", answers)
    assert answers == []
    resolver.ask("name:1", answers)
    assert isinstance(answers[0], OSError) and "8 wait for this name" in str(answers[0])
    names.released.set()
    until(lambda: not threads())
    assert names.asked == ["name"]
    assert answers[1:] == [FOUND] * WAITING_MAX


def hang(resolver: Resolving, names: SlowNames) -> None:
    """Have all of its threads look up what nobody answers for."""
    for number in range(THREADS_MAX):
        resolver.ask(f"hangs-{number}:1", [])
    until(lambda: len(names.asked) == THREADS_MAX)


def test_more_names_than_may_wait_are_answered_by_an_error(
    resolver: Resolving, names: SlowNames
) -> None:
    hang(resolver, names)
    answers: list[object] = []
    questions = [resolver.ask(f"name-{n}:1", answers) for n in range(WAITING_MAX)]
    assert answers == []
    resolver.ask("one-more:1", answers)
    assert isinstance(answers[0], OSError) and "the most" in str(answers[0])
    # For each that is withdrawn there is room again.
    questions[3].withdraw()
    questions[3].withdraw()
    resolver.ask("one-more:1", answers)
    assert len(answers) == 1
    names.released.set()
    until(lambda: answers[1:] == [FOUND] * WAITING_MAX)
    assert "name-3" not in names.asked


def test_what_nobody_waits_for_any_more_is_not_looked_up(
    resolver: Resolving, names: SlowNames
) -> None:
    hang(resolver, names)
    answers: list[object] = []
    late: list[object] = []
    resolver.ask("late:1", late, by=1.0)
    resolver.ask("both:1", late, by=1.0)
    resolver.ask("both:1", answers, by=3.0)
    resolver.ask("withdrawn:1", answers).withdraw()
    resolver.now = 2.0
    names.released.set()
    until(lambda: not threads())
    assert names.asked[THREADS_MAX:] == ["both"]
    assert answers == [FOUND]
    # It can be asked for again.
    resolver.ask("late:1", answers)
    until(lambda: answers == [FOUND, FOUND])


def test_a_question_that_is_withdrawn_while_its_name_is_looked_up_takes_no_other_with_it(
    resolver: Resolving, names: SlowNames
) -> None:
    answers: list[object] = []
    given_up: list[object] = []
    question = resolver.ask("name:1", given_up)
    until(lambda: names.asked)
    question.withdraw()
    # Whoever comes then waits for the same look-up.
    resolver.ask("name:1", answers)
    names.released.set()
    until(lambda: answers == [FOUND])
    question.withdraw()
    assert names.asked == ["name"] and given_up == []


def test_a_look_up_that_raises_is_answered_and_the_name_can_be_asked_for_again(
    resolver: Resolving, names: SlowNames, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no memory for an error either."""
    answers: list[object] = []

    def fail(host: str, port: int) -> list[Address]:
        raise MemoryError

    names.released.set()
    with monkeypatch.context() as patched:
        patched.setattr(module, "looked_up", fail)
        resolver.ask("name:1", answers)
        until(lambda: answers)
        assert isinstance(answers[0], OSError)
        until(lambda: not threads())
    resolver.ask("name:1", answers)
    until(lambda: answers[1:] == [FOUND])
    assert noted.count == 1


def test_what_always_fails_ends_the_thread_and_does_not_spin_until_then(
    resolver: Resolving,
    names: SlowNames,
    failures: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    error = MemoryError()

    def fail(token: object) -> bool:
        raise error

    monkeypatch.setattr(resolver, "_look_one_up", fail)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=slept.append))
    resolver.ask("name:1", [])
    until(lambda: not threads())
    assert slept == [RETRY_S] * (IN_A_ROW_MAX - 1)
    assert set(failures) == {error}


def test_numbers_pass_names_that_hang(resolver: Resolving, names: SlowNames) -> None:
    answers: list[object] = []
    for number in range(3 * THREADS_MAX):
        resolver.ask(f"name-{number}:1", [])
    until(lambda: len(names.asked) == THREADS_MAX)
    names.numbers = True
    resolver.ask("10.0.0.1:1", answers)
    assert answers in ([FOUND], [[(socket.AF_INET, ("10.0.0.1", 1))]])


def test_an_answer_that_raises_is_noted_and_the_thread_goes_on(
    resolver: Resolving, names: SlowNames, failures: list[BaseException], noted: Noted
) -> None:
    def fail(found: object) -> None:
        raise SystemExit("in the answer")

    answers: list[object] = []
    resolver.resolve("one:1", fail, BY)
    resolver.ask("one:1", answers)
    resolver.ask("other:1", answers)
    names.released.set()
    until(lambda: answers == [FOUND, FOUND])
    assert failures == []
    assert noted.count == 1 and "SystemExit: in the answer" in noted.texts[0]


def test_a_name_is_answered_from_another_thread(resolver: Resolving, names: SlowNames) -> None:
    answers: list[tuple[object, int]] = []
    resolver.resolve("name:1", lambda found: answers.append((found, threading.get_ident())), BY)
    assert answers == []
    names.released.set()
    until(lambda: answers)
    assert answers[0][0] == FOUND
    assert answers[0][1] != threading.get_ident()


def test_no_more_threads_than_may_be_and_every_question_is_answered(
    resolver: Resolving, names: SlowNames
) -> None:
    answers: list[object] = []
    for number in range(3 * THREADS_MAX):
        resolver.ask(f"name-{number}:1", answers)
    until(lambda: len(names.asked) == THREADS_MAX)
    assert len(threads()) == THREADS_MAX
    names.released.set()
    until(lambda: len(answers) == 3 * THREADS_MAX)
    until(lambda: not threads())


def test_whatever_a_look_up_raises_is_an_answer(
    resolver: Resolving, names: SlowNames, failures: list[BaseException]
) -> None:
    answers: list[object] = []
    names.released.set()
    resolver.ask("raises:1", answers)
    until(lambda: answers)
    assert isinstance(answers[0], OSError)
    assert "a patched resolver" in str(answers[0])
    assert failures == []


def test_a_closed_resolver_answers_only_what_was_begun(names: SlowNames) -> None:
    answers: list[object] = []
    resolver = Resolving([], Noted())
    for number in range(3 * THREADS_MAX):
        resolver.ask(f"name-{number}:1", answers)
    until(lambda: len(names.asked) == THREADS_MAX)
    resolver.close()
    resolver.ask("late:1", answers)
    names.released.set()
    until(lambda: not threads())
    assert len(answers) == THREADS_MAX
