"""What the log is told of crashes and of a `receive` that does not return."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from rabble import Pid, reports
from rabble._core.errors import Interrupted
from rabble.reports import WATCHES_FAILED_MAX, Reporter, described
from tests.support import BARE, PATIENCE_S, HandClock

ONE = Pid("one", BARE)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a formatter makes of the records."""
    return [logging.Formatter().format(record) for record in caplog.records]


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


def test_a_receive_that_does_not_return_is_reported_with_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = reporter(HandClock())
    log.report_stack(ONE, threading.get_ident(), 0.5)
    write(log)
    (text,) = told(caplog)
    assert text.startswith("one::bare@h:1: receive has not returned for 0.5 s\n")
    assert "in test_a_receive_that_does_not_return_is_reported_with_its_stack" in text


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
    text = told(caplog)[0]
    assert text.startswith("one::bare@h:1 crashed\n")
    assert "Unprintable" in text


def test_the_end_of_a_receive_is_not_taken_for_such_an_error() -> None:
    log = reporter(HandClock())
    with pytest.raises(Interrupted):
        log.report_crash(ONE, Unprintable(Interrupted))
    write(log)


def test_an_interruption_of_the_main_thread_is_none_of_a_reports_words() -> None:
    log = reporter(HandClock())
    with pytest.raises(KeyboardInterrupt):
        log.report(logging.ERROR, interrupt)
    write(log)


def interrupt() -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stderr", [True, False], ids=["stderr", "no stderr"])
def test_a_failing_handler_is_complained_of_and_does_not_end_the_reports(
    stderr: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = reporter(HandClock())
    tried = []

    def fail(*record: Any) -> None:
        tried.append(record)
        raise SystemExit("the handler's own")

    monkeypatch.setattr(logging.getLogger("rabble"), "callHandlers", fail)
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
    (text,) = told(caplog)
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
    text = told(caplog)[0]
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks once in a millisecond, and not four times in a second."""
    monkeypatch.setattr(reports, "PERIOD_S", 0.001)


@pytest.mark.usefixtures("quick")
def test_a_watch_that_fails_is_reported_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[BaseException] = []
    watched: list[int] = []

    def watch(reporter: Reporter) -> None:
        watched.append(1)
        # Never so often in a row that it is the end.
        if len(watched) % WATCHES_FAILED_MAX:
            raise SystemExit("in the watch")

    log = Reporter(
        "reports",
        per_second=1_000,
        waiting=256,
        watch=watch,
        failed=failed.append,
        clock=lambda: 0.0,
    )
    log.thread.start()
    while len(watched) < 3 * WATCHES_FAILED_MAX:
        log._awake.signal()
        time.sleep(0)
    log.end()
    log.thread.join(PATIENCE_S)
    assert failed == []
    assert {record.getMessage() for record in caplog.records} == {"the look at the executor failed"}
    assert all("SystemExit: in the watch" in text for text in told(caplog))


@pytest.mark.usefixtures("quick")
def test_a_thread_that_fails_is_told_of_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[BaseException] = []

    def watch(reporter: Reporter) -> None:
        reporter.report(logging.ERROR, lambda: "still written")
        if not failed:
            raise LookupError("a defect")

    log = Reporter(
        "reports", per_second=999, waiting=256, watch=watch, failed=failed.append, clock=lambda: 0.0
    )
    log.thread.start()
    while not failed:
        log._awake.signal()
        time.sleep(0)
    before = len(caplog.records)
    while len(caplog.records) == before:
        log._awake.signal()
        time.sleep(0)
    log.end()
    log.thread.join(PATIENCE_S)
    assert [type(error) for error in failed] == [LookupError]
    assert "still written" in {record.getMessage() for record in caplog.records[before:]}


def test_a_failure_is_told_whatever_else_is_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    log = reporter(HandClock())
    for _ in range(1_000):
        log.report(logging.ERROR, lambda: "usual")
    log.report(logging.CRITICAL, lambda: "the node failed")
    write(log)
    assert caplog.records[-1].getMessage() == (
        "the node failed\n[990 reports before this one were suppressed]"
    )


def test_a_record_of_a_crash_has_the_exception(caplog: pytest.LogCaptureFixture) -> None:
    log = reporter(HandClock())
    log.report_crash(ONE, raised(LookupError("nothing there")))
    log.report(logging.ERROR, lambda: "of nothing that was raised")
    write(log)
    crash, other = caplog.records
    assert crash.getMessage() == "one::bare@h:1 crashed"
    assert crash.exc_info is not None
    kind, error, trace = crash.exc_info
    assert kind is type(error) and kind is not None
    assert (kind.__name__, str(error)) == ("LookupError", "nothing there")
    assert trace is not None and trace.tb_frame.f_code.co_name == "raised"
    assert str(crash.exc_text).endswith("LookupError: nothing there")
    assert (other.exc_info, other.exc_text) == (None, None)


def test_a_record_that_is_kept_keeps_no_objects(caplog: pytest.LogCaptureFixture) -> None:
    class Thing:
        pass

    def fail(thing: Thing) -> None:
        raise ValueError(thing)

    thing = Thing()
    alive = weakref.ref(thing)
    log = reporter(HandClock())
    try:
        fail(thing)
    except ValueError as error:
        log.report_crash(ONE, error)
    del thing
    write(log)
    gc.collect()
    assert len(caplog.records) == 1
    assert alive() is None


@pytest.fixture
def rabble_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("rabble")
    before = logger.disabled, logger.level, logger.filters[:]
    yield logger
    logger.disabled, logger.level, logger.filters[:] = before
    logging.disable(logging.NOTSET)


def test_a_logger_that_was_disabled_with_all_others_still_reports(
    caplog: pytest.LogCaptureFixture, rabble_logger: logging.Logger
) -> None:
    rabble_logger.disabled = True
    log = reporter(HandClock())
    log.report(logging.ERROR, lambda: "heard")
    write(log)
    assert told(caplog) == ["heard"]


@pytest.mark.parametrize("how", ["level", "filter", "disable", "while it waits"])
def test_whoever_wants_no_reports_says_so(
    how: str, caplog: pytest.LogCaptureFixture, rabble_logger: logging.Logger
) -> None:
    log = reporter(HandClock())
    if how == "while it waits":
        log.report(logging.ERROR, lambda: "unheard")
    if how == "filter":
        rabble_logger.addFilter(lambda record: False)
    elif how == "level":
        rabble_logger.setLevel(logging.CRITICAL)
    else:
        logging.disable(logging.ERROR)
    log.report(logging.ERROR, lambda: "unheard")
    write(log)
    assert told(caplog) == []
