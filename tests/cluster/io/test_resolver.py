"""Host names are looked up beside the thread that asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from rabble.cluster.io import resolver as module
from rabble.cluster.io.resolver import THREADS_MAX, Address, Resolver
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
def resolver(failures: list[BaseException]) -> Iterator[Resolver]:
    resolver = Resolver("names", failures.append)
    yield resolver
    resolver.close()


def test_a_number_is_answered_at_once(resolver: Resolver) -> None:
    answers: list[object] = []
    resolver.resolve("127.0.0.1:4000", answers.append)
    assert answers == [[(socket.AF_INET, ("127.0.0.1", 4_000))]]
    assert not threads()


def test_what_is_no_address_is_refused(resolver: Resolver) -> None:
    with pytest.raises(ValueError, match="host:port"):
        resolver.resolve("nowhere", lambda found: None)


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
    resolver = Resolver("names", lambda error: None)
    for number in range(3 * THREADS_MAX):
        resolver.resolve(f"name-{number}:1", answers.append)
    until(lambda: len(names.asked) == THREADS_MAX)
    resolver.close()
    resolver.resolve("late:1", answers.append)
    names.released.set()
    until(lambda: not threads())
    assert len(answers) == THREADS_MAX
