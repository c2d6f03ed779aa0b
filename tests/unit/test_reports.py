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
from rabble.reports import Reporter
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
