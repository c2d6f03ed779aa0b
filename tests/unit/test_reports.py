"""What the log is told of crashes and of a `receive` that does not return."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import Any

import pytest

from rabble import Pid
from rabble._core.texts import Interrupted
from rabble.reports import Reporter, described
from rabble.watchdog import Watchdog
from tests.support import BARE, PATIENCE_S, HandClock

ONE = Pid("one", BARE)


def reporter(clock: HandClock) -> Reporter:
    return Reporter(
        "reports",
        per_second=10,
        waiting=256,
        watch=lambda reporter: None,
        failed=traceback.print_exception,
        clock=lambda: clock.ns * 1e-9,
    )


def write(of: Reporter) -> None:
    of.thread.start()
    of.end()
    of.thread.join(PATIENCE_S)


class Executor:
    """What the watchdog asks of one."""

    delivered = 0
    current_pid: Pid | None = None


def test_one_delivery_that_goes_on_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, executor = HandClock(), Executor()
    log = reporter(clock)
    watchdog = Watchdog(
        executor,  # type: ignore[arg-type]
        threading.current_thread(),
        report_after_s=0.45,
        stalled_after_s=5.0,
        clock=lambda: clock.ns * 1e-9,
    )

    def look(after_ms: int) -> bool:
        clock.go_on(after_ms)
        watchdog.look(log)
        return watchdog.stalled

    assert not look(10_000)  # it sleeps
    executor.current_pid, executor.delivered = ONE, 1
    assert not look(250)  # seen for the first time
    assert not look(250)
    assert not look(250)  # reported
    assert look(5_000)
    executor.delivered = 2
    assert not look(250)
    executor.current_pid = None
    assert not look(10_000)
    write(log)
    (text,) = (record.getMessage() for record in caplog.records)
    assert text.startswith("one::bare@h:1: receive has not returned for 0.5 s\n")
    assert "in look" in text


def test_a_thread_that_is_gone_has_no_stack(caplog: pytest.LogCaptureFixture) -> None:
    log = reporter(HandClock())
    log.report_stack(ONE, -1, 1.0)
    write(log)
    assert caplog.records[0].getMessage() == "one::bare@h:1: receive has not returned for 1.0 s"


class Unprintable(Exception):
    def __init__(self, failure: type[BaseException]) -> None:
        self.failure = failure

    def __str__(self) -> str:
        raise self.failure("in __str__")

    @property
    def __notes__(self) -> Any:
        raise self.failure("in __notes__")


def test_an_error_that_cannot_be_put_into_words_is_named(caplog: pytest.LogCaptureFixture) -> None:
    log = reporter(HandClock())
    log.report_crash(ONE, Unprintable(SystemExit))
    write(log)
    text = caplog.records[0].getMessage()
    assert text.startswith("one::bare@h:1 crashed\n")
    assert "Unprintable" in text


def test_the_end_of_a_receive_is_not_taken_for_such_an_error() -> None:
    log = reporter(HandClock())
    with pytest.raises(Interrupted):
        log.report_crash(ONE, Unprintable(Interrupted))
    write(log)


@pytest.mark.parametrize("stderr", [True, False], ids=["stderr", "no stderr"])
def test_a_failing_handler_is_complained_of_and_does_not_end_the_reports(
    stderr: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = reporter(HandClock())
    tried = []

    def fail(*record: Any) -> None:
        tried.append(record)
        raise SystemExit("the handler's own")

    monkeypatch.setattr(logging.getLogger("rabble"), "log", fail)
    if not stderr:
        monkeypatch.setattr(sys, "stderr", None)
    for _ in range(2):
        log.report(logging.ERROR, lambda: "hello")
    write(log)
    assert len(tried) == 2
    assert capsys.readouterr().err.count("SystemExit: the handler's own") == 2 * stderr


def test_what_the_log_does_not_want_takes_nobodys_place(caplog: pytest.LogCaptureFixture) -> None:
    """And is not counted as suppressed: nobody misses it."""
    log = reporter(HandClock())

    def unwanted() -> str:
        raise AssertionError("put into words, and nobody wants it")

    with caplog.at_level(logging.WARNING, "rabble"):
        for _ in range(100):
            log.report(logging.INFO, unwanted)
        log.report(logging.WARNING, lambda: "wanted")
        write(log)
    assert [record.getMessage() for record in caplog.records] == ["wanted"]
    assert log.suppressed_total == 0


class Cursed(type):
    """Classes that do not say what they are."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__", "__str__", "__mro__"):
            raise SystemExit(name)
        return super().__getattribute__(name)


class Bad(Exception, metaclass=Cursed):
    def __str__(self) -> str:
        raise SystemExit("in __str__")

    def __repr__(self) -> str:
        raise SystemExit("in __repr__")

    @property
    def __cause__(self) -> Any:
        raise SystemExit("in __cause__")

    @property
    def __dict__(self) -> Any:
        raise SystemExit("in __dict__")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def a_chain(length: int) -> BaseException:
    error: BaseException = ValueError("the last")
    for number in range(length):
        follows = ValueError(f"number {number}")
        follows.__cause__ = error
        error = follows
    return error


def in_itself() -> BaseException:
    error, other = ValueError("one"), ValueError("other")
    error.__context__, other.__context__ = other, error
    return error


def with_notes(count: int, note: object) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = [note] * count
    return error


def a_group(width: int, depth: int) -> BaseException:
    if depth == 0:
        return ValueError("x" * 1_000)
    return ExceptionGroup("group", [a_group(width, depth - 1) for _ in range(width)])  # type: ignore[misc, list-item]


def a_deep_one(depth: int) -> BaseException:
    def call(left: int) -> None:
        if left == 0:
            raise ValueError("deep")
        call(left - 1)

    try:
        call(depth)
    except ValueError as error:
        return error
    raise AssertionError


LONG = "x" * 10_000_000


@pytest.mark.parametrize(
    "error",
    [
        raised(Bad("x")),
        raised(ValueError(LONG)),
        raised(ValueError(LONG, LONG)),
        raised(KeyError(LONG)),
        raised(ValueError(b"x" * 10_000_000)),
        raised(ValueError(1 << 10_000_000)),
        raised(ValueError([[LONG] * 1_000])),
        a_chain(100_000),
        in_itself(),
        with_notes(100_000, LONG),
        with_notes(1, Bad()),
        a_group(6, 6),
        a_deep_one(500),
        raised(SyntaxError(LONG, (LONG, 1, 1, LONG))),
    ],
    ids=lambda error: type.__getattribute__(type(error), "__name__"),
)
def test_whatever_an_exception_is_its_report_is_bounded(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    log = reporter(HandClock())
    log.report_crash(ONE, error)
    assert len(described(error)) <= 800
    write(log)
    (text,) = (record.getMessage() for record in caplog.records)
    assert text.startswith("one::bare@h:1 crashed\n")
    assert 50 < len(text) <= 66_000
    assert log.suppressed_total == 0


def test_a_usual_one_is_told_as_the_interpreter_does(caplog: pytest.LogCaptureFixture) -> None:
    try:
        try:
            raise LookupError("first")
        except LookupError as cause:
            raise ValueError("then") from cause
    except ValueError as caught:
        error = caught
        expected = traceback.format_exception(error)
    error.add_note("noted") if hasattr(error, "add_note") else None
    log = reporter(HandClock())
    log.report_crash(ONE, error)
    write(log)
    text = caplog.records[0].getMessage()
    assert text == "one::bare@h:1 crashed\n" + "".join(expected) + "noted"


@pytest.mark.parametrize("failure", [SystemExit, MemoryError, LookupError])
def test_a_report_without_words_ends_nobody(
    failure: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def no_words() -> str:
        raise failure("no words")

    log = reporter(HandClock())
    log.report(logging.ERROR, no_words)
    log.report(logging.ERROR, lambda: "x" * 1_000_000)
    log._clock = no_words  # type: ignore[assignment]
    log.report(logging.ERROR, lambda: "never")
    log._clock = lambda: 0.0
    write(log)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == f"a report for which there were no words: {failure.__name__}: no words"
    assert len(second) == 65_536
    assert third == "1 reports were suppressed"


def test_a_thread_that_fails_is_told_of_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[BaseException] = []

    def watch(reporter: Reporter) -> None:
        reporter.report(logging.ERROR, lambda: "still written")
        if not failed:
            raise LookupError("a defect")

    log = Reporter(
        "reports", per_second=10, waiting=256, watch=watch, failed=failed.append, clock=lambda: 0.0
    )
    log._awake.signal()
    log.thread.start()
    while len(caplog.records) < 2:
        log._awake.signal()
    log.end()
    log.thread.join(PATIENCE_S)
    assert [type(error) for error in failed] == [LookupError]
    assert {record.getMessage() for record in caplog.records} == {"still written"}


def test_a_failure_is_told_whatever_else_is_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    log = reporter(HandClock())
    for _ in range(1_000):
        log.report(logging.ERROR, lambda: "usual")
    log.report(logging.CRITICAL, lambda: "the node failed")
    write(log)
    assert caplog.records[-1].getMessage() == (
        "the node failed\n[990 reports before this one were suppressed]"
    )
