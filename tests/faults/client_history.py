"""Checks what clients, a server and the processes behind it noted: each request ends exactly once.

The promise is G10 of docs/guarantees.md, as a client sees it: an answer, a failure with its reason,
a Nack, or the end of the connection; the value is the one that belongs to the request; nothing is
begun twice, and nothing that is said not to have been begun has been.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.clients_app import REQUEST_MS, digest

Event = dict[str, Any]
#: How a request ends at its client.
ENDS = frozenset(
    {"answer", "timeout", "no_process", "crashed", "disconnected", "too_many", "nack", "lost"}
    | {"not sent"}
)
#: Of these nothing was begun.
UNBEGUN = frozenset({"nack", "not sent"})


class Violation(NamedTuple):
    """What was wrong with which request; `rule` is a word."""

    rule: str
    token: str
    text: str = ""


@dataclasses.dataclass
class Life:
    """One start of a client: its log, whether it was killed, and of how many threads it was."""

    events: Sequence[Event]
    killed: bool
    threads: int


def read(path: Path) -> list[Event]:
    """A log. Of one whose writer was killed the last line is whole, too."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def check(lives: Iterable[Life], front: Sequence[Event], back: Sequence[Event]) -> list[Violation]:
    """All that is wrong.

    :param front: the log of the node with the server: `begun`, and what its processes `handled`.
    :param back: what those of the node behind it handled, in all its lives.
    """
    found: list[Violation] = []
    asked: dict[str, Event] = {}
    ended: dict[str, Event] = {}
    for life in lives:
        found += check_life(life, asked, ended)
    begun = collections.Counter(event["token"] for event in front if event["e"] == "begun")
    begun_at = {event["token"]: event["at"] for event in front if event["e"] == "begun"}
    handled: dict[str, list[Event]] = collections.defaultdict(list)
    for event in [*front, *back]:
        if event["e"] == "handled" and event["token"] != "told":
            handled[event["token"]].append(event)
    for token, count in begun.items():
        if token not in asked:
            found.append(Violation("made up", token))
        elif count > 1:
            found.append(Violation("begun again", token))
    for token, events in handled.items():
        if not begun[token]:
            found.append(Violation("made up", token))
        elif len(events) > 1:
            found.append(Violation("handled again", token))
        elif asked.get(token) is not None and events[0]["by"] != whom(asked[token]):
            found.append(Violation("handled by another", token))
    for token, end in ended.items():
        # What had its turn when its time was almost over may have ended by that.
        in_time = [
            event
            for event in handled.get(token, ())
            if token in begun_at and event["at"] - begun_at[token] < REQUEST_MS / 2_000
        ]
        found += check_end(asked[token], end, begun[token], handled.get(token, []), in_time)
    return found


def check_life(life: Life, asked: dict[str, Event], ended: dict[str, Event]) -> Iterable[Violation]:
    own: dict[str, Event] = {}
    for event in life.events:
        token = event.get("token", "")
        if event["e"] == "asked":
            if token in asked:
                yield Violation("asked again", token)
            own[token] = asked[token] = event
        elif event["e"] == "ended":
            if token not in asked:
                yield Violation("ended without having begun", token)
            elif token in ended:
                yield Violation("ended twice", token)
            else:
                ended[token] = event
    open_ones = [token for token in own if token not in ended]
    if life.events and life.events[-1]["e"] == "stop":
        for token in open_ones:
            yield Violation("never ended", token)
    elif not life.killed:
        yield Violation("ended without a word", "", str(life.events[-1:]))
    elif len(open_ones) > life.threads:
        yield Violation("never ended", open_ones[0], f"{len(open_ones)} at once")


def check_end(
    asked: Event, end: Event, begun: int, handled: Sequence[Event], in_time: Sequence[Event]
) -> Iterable[Violation]:
    token, how = asked["token"], end["how"]
    if how not in ENDS:
        yield Violation("no such end", token, how)
    if how in UNBEGUN and begun:
        yield Violation("begun all the same", token, how)
    if how not in UNBEGUN | {"lost"} and not begun:
        yield Violation("never begun", token, how)
    if how == "answer":
        if end["value"] != [token, digest(token), whom(asked)]:
            yield Violation("another's answer", token, str(end["value"]))
        if asked["where"] != "self" and not handled:
            yield Violation("answered by nobody", token)
    if asked["where"] == "self" and how not in UNBEGUN | {"answer", "lost"}:
        yield Violation("no such end", token, how)
    if in_time and asked["action"] == "crash" and how not in ("crashed", "disconnected", "lost"):
        # Its own node knew at once.
        yield Violation("not told of the crash", token, how)


def whom(asked: Event) -> str:
    if asked["where"] == "self":
        return "self"
    return f"{asked['where']}/{asked['name']}"


def tally(lives: Iterable[Life]) -> Mapping[str, int]:
    """How often what ended how."""
    return collections.Counter(
        event["how"] for life in lives for event in life.events if event["e"] == "ended"
    )
