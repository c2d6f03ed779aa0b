"""G8: `Down` of a monitored life comes once, behind its last message, before the next life's first.

    life        token, pid                  a process has begun
    life_end    token, how                  it stops, or is about to raise
    monitor     by, pid, number             `Monitor` is about to be asked for
    heard       by, pid, token, confirms    something came from that life of that pid; `confirms`:
                                            it answers a question that was sent behind the monitor
                                            of that number
    down        by, pid, kind, life         `Down` came

Nobody can know which life a `Monitor` meets. But that is decided when an answer comes to what was
sent behind it: then it is this life's, as if it had been an earlier one's its `Down` would have
come before.
"""

from __future__ import annotations

import dataclasses

from tests.faults.history import BrokenLog, Event, Violation
from tests.faults.rules.record import SLACK_S, Found, Life, Record, node_of

#: How a life ends of which its own node tells.
TOLD = ("crashed", "stopped", "shutdown", "linked")


@dataclasses.dataclass
class Watched:
    """What one life knows of one pid."""

    by: Life
    pid: str
    #: The number of the monitor that is set, its index and time.
    number: int | None = None
    at: int = -1
    t: float = 0.0
    #: The life that it is set on, once that is known, and since when.
    token: str | None = None
    since: float = 0.0
    #: The one that something came from last, and those that have ended as far as was told.
    latest: str | None = None
    gone: set[str] = dataclasses.field(default_factory=set)


def check(record: Record) -> list[Violation]:
    found = Found("G8")
    watched: dict[tuple[str, str], Watched] = {}
    #: (node, start of its boot, number of a life) -> token, and the other way round.
    numbers: dict[tuple[str, float, int], str] = {}
    of_token: dict[str, int] = {}
    for node, index, event in record.events("monitor", "heard", "down"):
        by = record.by(event)
        each = watched.setdefault((by.token, event["pid"]), Watched(by, event["pid"]))
        if event["e"] == "monitor":
            if each.number is not None:
                raise BrokenLog(f"{node}, event {index}: {event} before the Down of the last one")
            each.number, each.at, each.t = event["number"], index, event["t"]
            each.token = None
        elif event["e"] == "heard":
            _heard(found, each, node, index, event)
        else:
            token = each.token
            _down(record, found, each, node, index, event)
            if (life := event["life"]) and token is not None:
                there = record.lives[token]
                key = (there.node, there.boot.start, life)
                if numbers.setdefault(key, token) != token or of_token.setdefault(token, life) != (
                    life
                ):
                    found.say(node, index, f"life {life} of {each.pid} is the number of another")
    for each in watched.values():
        if each.number is not None:
            _missing(record, found, each)
    return found


def _heard(found: Found, each: Watched, node: str, index: int, event: Event) -> None:
    token = event["token"]
    if token in each.gone:
        found.say(node, index, f"{token} said something behind its Down")
    if each.number is not None and each.token not in (None, token):
        found.say(node, index, f"{token} said something before the Down of {each.token}")
    each.latest = token
    if each.number is not None and event["confirms"] == each.number and each.token is None:
        each.token, each.since = token, event["t"]


def _down(record: Record, found: Found, each: Watched, node: str, index: int, event: Event) -> None:
    kind = event["kind"]
    if each.number is None:
        found.say(node, index, f"Down of {each.pid} ({kind}), which is not monitored")
        return
    peer, by = node_of(each.pid), each.by
    if kind in TOLD:
        those = record.by_pid[each.pid] if each.token is None else [record.lives[each.token]]
        if not any(life.how == kind and life.start <= event["t"] for life in those):
            found.say(node, index, f"Down of {each.pid} says {kind}: no life of it ended so")
    elif kind == "no_process" and each.token is not None:
        found.say(node, index, f"Down of {each.pid} says {kind}, and {each.token} ran")
    elif kind == "disconnected":
        # The other side of it is told of at the same time: in whichever order.
        due = record.due(event["t"], node)
        near = record.downs(node, peer, each.t - SLACK_S, due)
        if not near and record.is_up(node, peer, each.t) and by.until > due:
            found.say(node, index, f"Down of {each.pid} says {kind}, and its node was up")
    if kind in TOLD:
        each.gone.update(token for token in (each.latest, each.token) if token is not None)
    each.number = each.token = None


def _missing(record: Record, found: Found, each: Watched) -> None:
    """A monitor is set and has not told of anything: something may have ended all the same."""
    by = each.by
    peer = node_of(each.pid)
    downs = record.downs(by.node, peer, each.t, by.until)
    if downs and record.is_up(by.node, peer, each.t) and record.due(downs[0], by.node) < by.until:
        text = f"no Down of {each.pid}, whose node went down at {downs[0]:.3f}"
        found.say(by.node, each.at, text)
        return
    if each.token is None or (life := record.lives[each.token]).end is None:
        return
    due = record.told(life.until, life.node, by.node)
    if due < by.until and record.connected(by.node, life.node, each.since, due):
        text = f"no Down of {each.token}, which ended ({life.how}) at {life.until:.3f}"
        found.say(by.node, each.at, text)


__all__ = ["check"]
