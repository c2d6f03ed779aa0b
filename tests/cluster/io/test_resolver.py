"""Host names are looked up beside the thread that asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from rabble.addresses import Address
from rabble.cluster.io import resolver as module
from rabble.cluster.io.resolver import ANSWERS_MAX, NAMES_MAX, THREADS_MAX, Resolver
from tests.cluster.noted import Noted
from tests.support import PATIENCE_S, until

FOUND: list[Address] = [(socket.AF_INET, ("127.0.0.1", 1))]


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
def resolver(failures: list[BaseException], noted: Noted) -> Iterator[Resolver]:
    resolver = Resolver("names", failures.append, noted.failures)
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
def test_a_number_is_answered_at_once(resolver: Resolver, host: str, found: Address) -> None:
    answers: list[object] = []
    resolver.resolve(f"{host}:4000", answers.append)
    assert answers == [[found]]
    assert not threads()


@pytest.mark.parametrize("addr", ["nowhere", "db..internal:1", "h\ud800:1", "x" * 300 + ":1"])
def test_what_is_no_address_is_answered_by_an_error(resolver: Resolver, addr: str) -> None:
    answers: list[object] = []
    resolver.resolve(addr, answers.append)
    assert len(answers) == 1 and isinstance(answers[0], OSError)
    assert "is not usable" in str(answers[0])


@pytest.mark.parametrize("error", [SystemExit, MemoryError, UnicodeError, KeyboardInterrupt])
def test_resolve_raises_nothing_whatever_fails(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*arguments: object) -> None:
        raise error("as it was asked to")

    monkeypatch.setattr(module, "split_address", fail)
    answers: list[object] = []
    resolver.resolve("name:1", answers.append)
    assert len(answers) == 1 and isinstance(answers[0], OSError)


def test_without_a_thread_the_answer_is_an_error_and_the_next_one_has_one(
    resolver: Resolver, names: SlowNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    answers: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        resolver.resolve("name:1", answers.append)
    assert len(answers) == 1 and "can't start new thread" in str(answers[0])
    names.released.set()
    resolver.resolve("name:1", answers.append)
    until(lambda: answers[1:] == [FOUND])


def test_a_name_that_is_asked_for_again_and_again_is_looked_up_once(
    resolver: Resolver, names: SlowNames
) -> None:
    answers: list[object] = []
    for _ in range(100):
        resolver.resolve("name:1", answers.append)
    names.released.set()
    until(lambda: not threads())
    assert names.asked == ["name"]
    assert answers == [FOUND] * ANSWERS_MAX


def test_more_names_than_may_wait_are_answered_by_an_error(
    resolver: Resolver, names: SlowNames
) -> None:
    answers: list[object] = []
    for number in range(NAMES_MAX):
        resolver.resolve(f"name-{number}:1", answers.append)
    assert answers == []
    resolver.resolve("one-more:1", answers.append)
    assert isinstance(answers[0], OSError) and "the most" in str(answers[0])


def test_numbers_pass_names_that_hang(resolver: Resolver, names: SlowNames) -> None:
    answers: list[object] = []
    for number in range(3 * THREADS_MAX):
        resolver.resolve(f"name-{number}:1", lambda found: None)
    until(lambda: len(names.asked) == THREADS_MAX)
    resolver.resolve("10.0.0.1:1", answers.append)
    assert answers == [[(socket.AF_INET, ("10.0.0.1", 1))]]


def test_an_answer_that_raises_is_noted_and_the_thread_goes_on(
    resolver: Resolver, names: SlowNames, failures: list[BaseException], noted: Noted
) -> None:
    def fail(found: object) -> None:
        raise SystemExit("in the answer")

    answers: list[object] = []
    resolver.resolve("one:1", fail)
    resolver.resolve("one:1", answers.append)
    resolver.resolve("other:1", answers.append)
    names.released.set()
    until(lambda: answers == [FOUND, FOUND])
    assert failures == []
    assert noted.count == 1 and "SystemExit: in the answer" in noted.texts[0]


def test_a_name_is_answered_from_another_thread(resolver: Resolver, names: SlowNames) -> None:
    answers: list[tuple[object, int]] = []
    resolver.resolve("name:1", lambda found: answers.append((found, threading.get_ident())))
    assert answers == []
    names.released.set()
    until(lambda: answers)
    assert answers[0][0] == FOUND
    assert answers[0][1] != threading.get_ident()


def test_no_more_threads_than_may_be_and_every_question_is_answered(
    resolver: Resolver, names: SlowNames
) -> None:
    answers: list[object] = []
    for number in range(3 * THREADS_MAX):
        resolver.resolve(f"name-{number}:1", answers.append)
    until(lambda: len(names.asked) == THREADS_MAX)
    assert len(threads()) == THREADS_MAX
    names.released.set()
    until(lambda: len(answers) == 3 * THREADS_MAX)
    until(lambda: not threads())


def test_whatever_a_look_up_raises_is_an_answer(
    resolver: Resolver, names: SlowNames, failures: list[BaseException]
) -> None:
    answers: list[object] = []
    names.released.set()
    resolver.resolve("raises:1", answers.append)
    until(lambda: answers)
    assert isinstance(answers[0], OSError)
    assert "a patched resolver" in str(answers[0])
    assert failures == []


def test_a_closed_resolver_answers_only_what_was_begun(names: SlowNames) -> None:
    answers: list[object] = []
    resolver = Resolver("names", lambda error: None, Noted().failures)
    for number in range(3 * THREADS_MAX):
        resolver.resolve(f"name-{number}:1", answers.append)
    until(lambda: len(names.asked) == THREADS_MAX)
    resolver.close()
    resolver.resolve("late:1", answers.append)
    names.released.set()
    until(lambda: not threads())
    assert len(answers) == THREADS_MAX
