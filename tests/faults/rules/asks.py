"""G10: each `Ask` ends exactly once, by what became of it, and as soon as that is known.

    life, life_end
    ask       by, id, to, timeout_ms   `Ask` is about to be sent; no other has that id
    question  by, id                   the request came, and is that of this life from now on
    answer    by, id, word             its answer is about to be sent; no other has that word
    passed    by, id, to               it is about to be passed on
    ask_end   by, id, how, word        `Reply` came (how: `reply`), or `Failed` with that error

A life that is about to end without an answer writes `life_end`; that is when the end of its
requests is known. So it is when `NodeDown` of the node that has it comes, if it was not passed on:
with that it may be known or not. In what must be told the connection of the two nodes counts, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from tests.faults.history import BrokenLog, Event, Violation
from tests.faults.rules.record import SLACK_S, Found, Life, Record, node_of


@dataclasses.dataclass
class Request:
    by: Life
    at: int
    t: float
    to: str
    timeout_s: float
    #: Who had it, in the order of the times.
    holders: list[tuple[float, Life]] = dataclasses.field(default_factory=list)
    #: The pids that it was passed on to.
    passed: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    #: What was answered, where and when.
    answers: dict[str, tuple[float, Life]] = dataclasses.field(default_factory=dict)
    #: How it ended, and when.
    end: Event | None = None


def check(record: Record) -> list[Violation]:
    found = Found("G10")
    requests: dict[str, Request] = {}
    for node, index, event in record.events("ask"):
        if event["id"] in requests:
            raise BrokenLog(f"{node}, event {index}: a second ask {event['id']}")
        by = record.by(event)
        requests[event["id"]] = Request(
            by, index, event["t"], event["to"], event["timeout_ms"] / 1_000
        )
    for node, index, event in record.events("question", "answer", "passed"):
        request = requests.get(event["id"])
        by = record.by(event)
        if request is None:
            found.say(node, index, f"request {event['id']} was never asked")
        elif event["e"] == "question":
            request.holders.append((event["t"], by))
        elif event["e"] == "passed":
            request.passed.append((event["t"], event["to"]))
        else:
            request.answers[event["word"]] = (event["t"], by)
    for node, index, event in record.events("ask_end"):
        by = record.by(event)
        request = requests.get(event["id"])
        if request is None or request.by is not by:
            found.say(node, index, f"an end of {event['id']}, which {by.token} never asked")
        elif request.end is not None:
            text = f"ask {event['id']} ended twice: {request.end['how']}, {event['how']}"
            found.say(node, index, text)
        else:
            request.end = event
            _end(record, found, request, node, index)
    for id, request in requests.items():
        request.holders.sort(key=lambda held: held[0])
        _ended_in_time(record, found, id, request)
    return found


def _end(record: Record, found: Found, request: Request, node: str, index: int) -> None:
    """Whether it may have ended so."""
    event = request.end
    assert event is not None
    id, how, t = event["id"], event["how"], event["t"]
    if how == "reply":
        answered = request.answers.get(event["word"])
        if answered is None:
            found.say(node, index, f"ask {id} was answered {event['word']!r}, which nobody said")
        return
    if how == "CallTimeout":
        if t < request.t + request.timeout_s:
            early_ms = (request.t + request.timeout_s - t) * 1_000
            found.say(node, index, f"ask {id} timed out {early_ms:.3f} ms early")
        return
    pids = [request.to, *(pid for _, pid in request.passed)]
    if how == "ProcessCrashed":
        lives = [life for _, life in request.holders]
        lives += [life for pid in pids for life in record.by_pid[pid]]
        if not any(life.how == "crashed" and life.start <= t for life in lives):
            found.say(node, index, f"ask {id} says that somebody crashed, and nobody did")
    elif how == "NotConnected":
        nodes = {node_of(pid) for pid in pids}
        ways = {(request.by.node, other) for other in nodes} | {
            (one, other) for one in nodes for other in nodes
        }
        begin, due = request.t - SLACK_S, record.due(t, *nodes, request.by.node)
        if not any(
            one != other
            and (record.downs(one, other, begin, due) or not record.is_up(one, other, request.t))
            for one, other in ways
        ):
            found.say(node, index, f"ask {id} says that a node went, and none did")


def _ended_in_time(record: Record, found: Found, id: str, request: Request) -> None:
    by = request.by
    ended = math.inf if request.end is None else request.end["t"]
    over = request.t + request.timeout_s
    known, due, why = _known(record, request)
    for last, limit, text in sorted(
        [(record.due(over, by.node), over, "its timeout"), (due, known, why)]
    ):
        # Who asked, and its node, must have been there to be told.
        if ended > last and by.until > last:
            how = "has not ended" if request.end is None else f"ended ({request.end['how']})"
            late_s = min(ended, by.until) - limit
            text = f"ask {id} {how} {late_s:.1f} s after {text}"
            found.say(by.node, request.at, text)
            return


def _known(record: Record, request: Request) -> tuple[float, float, str]:
    """When its end was known to where it can be told from, by when it must be told, and why."""
    home = request.by.node
    first = node_of(request.to)
    best = (math.inf, math.inf, "")
    if not request.passed and first != home and record.is_up(home, first, request.t):
        if downs := record.downs(home, first, request.t, math.inf):
            why = f"the node of {request.to} went down"
            best = (downs[0], record.due(downs[0], home), why)
    if len(request.holders) <= len(request.passed):
        return best  # it is on its way
    holder = request.holders[-1][1]
    said = [t for t, life in request.answers.values() if life is holder]
    if said:
        known, why = said[0], f"{holder.token} answered"
    elif holder.end is not None:
        known, why = holder.until, f"{holder.token} ended ({holder.how})"
    else:
        return best
    route = {home, *(life.node for _, life in request.holders)}
    due = record.told(known, holder.node, home)
    for one, other in itertools.combinations(sorted(route), 2):
        if not record.connected(one, other, request.t, due):
            return best
    return min(best, (known, due, why))


__all__ = ["check"]
