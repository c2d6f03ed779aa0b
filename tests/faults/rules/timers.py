"""G9: timers are never early, fire once, not when they were taken back, and do not drift.

    life, life_end
    timer           by, key, ms, repeat     `StartTimer` is about to be asked for
    fired           by, key, missed         it came; `missed` as in `Tick`, 0 of one that is plain
    timer_cancelled by, key, was_active     `TimerCancelled` came

A key is used once. The n-th firing, those that were missed counted, is due n periods after the
start; when all has come to rest the last one was not long ago.
"""

from __future__ import annotations

import dataclasses

from tests.faults.history import BrokenLog, Violation
from tests.faults.rules.record import Found, Life, Record

#: How late a timer may be when no fault is there any more.
LATE_S = 2.0


@dataclasses.dataclass
class Timer:
    by: Life
    key: str
    at: int
    start: float
    seconds: float
    repeat: bool
    #: How many firings it had or missed.
    count: int = 0
    cancelled: bool = False
    over: bool = False


def check(record: Record) -> list[Violation]:
    found = Found("G9")
    timers: dict[tuple[str, str], Timer] = {}
    for node, index, event in record.events("timer", "fired", "timer_cancelled"):
        by, key = record.by(event), event["key"]
        timer = timers.get((by.token, key))
        if event["e"] == "timer":
            if timer is not None:
                raise BrokenLog(f"{node}, event {index}: a second timer {key}")
            timers[by.token, key] = Timer(
                by, key, index, event["t"], event["ms"] / 1_000, event["repeat"]
            )
        elif timer is None:
            found.say(node, index, f"timer {key} of {by.token} came, which never started it")
        elif event["e"] == "timer_cancelled":
            fired = timer.count > 0 and not timer.repeat
            if event["was_active"] and fired:
                found.say(node, index, f"timer {key} was taken back, and had fired")
            elif not event["was_active"] and not fired and not timer.cancelled:
                found.say(node, index, f"timer {key} was not there any more, and never fired")
            timer.cancelled = timer.over = True
        else:
            if timer.cancelled:
                found.say(node, index, f"timer {key} fired after it was taken back")
            elif timer.over:
                found.say(node, index, f"timer {key} fired twice")
            timer.count += 1 + event["missed"]
            due = timer.start + timer.seconds * timer.count
            if event["t"] < due:
                early_ms = (due - event["t"]) * 1_000
                text = f"timer {key} fired for the {timer.count}. time, {early_ms:.3f} ms early"
                found.say(node, index, text)
            timer.over = not timer.repeat
    for timer in timers.values():
        _never(record, found, timer)
    return found


def _never(record: Record, found: Found, timer: Timer) -> None:
    """A timer that runs has fired by now for as often as it was due."""
    node = timer.by.node
    if timer.over or node not in record.rest:
        return
    at, now = record.rest[node]
    if not timer.by.boot.begin <= at < timer.by.boot.end or not timer.by.lives_at(at):
        return
    due = timer.start + timer.seconds * (timer.count + 1)
    if record.due(due, node, slack_s=LATE_S) < now:
        text = f"timer {timer.key} did not fire for the {timer.count + 1}. time, at {due:.3f}"
        found.say(node, timer.at, text)


__all__ = ["check"]
