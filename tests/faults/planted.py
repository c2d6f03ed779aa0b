"""Violations planted into what real nodes logged: one of each kind, all into one copy.

    logs, wanted = plant(read_all(paths), random.Random(7))
    found = check(logs)
    for promise, text in wanted: ...        # one of them has that promise, and that in its text

`test_rules` has every violation, in stories that are made up for it. This shows that the rules see
through the real thing as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.faults.history import Event

Logs = dict[str, list[Event]]
#: The promise that was broken, and what a violation of it says.
Wanted = tuple[str, str]


def plant(logs: Mapping[str, Sequence[Event]], rng: random.Random) -> tuple[Logs, list[Wanted]]:
    """A copy with the violations, and what is to be found in it."""
    copied = {node: list(events) for node, events in logs.items()}
    return copied, [violate(copied, rng) for violate in VIOLATIONS]


def choose(
    logs: Logs, rng: random.Random, kind: str, fits: Callable[[Event], bool] = lambda event: True
) -> tuple[list[Event], int, Event]:
    """Some event of a kind that fits: the log that it is in, its index, and the event."""
    places = [
        (events, index, event)
        for events in logs.values()
        for index, event in enumerate(events)
        if event["e"] == kind and fits(event)
    ]
    assert places, f"no {kind} in this history that would do"
    return rng.choice(places)


def two_downs(logs: Logs, rng: random.Random) -> Wanted:
    events, index, event = choose(logs, rng, "down")
    events.insert(index + 1, dict(event))
    return "G8", f"Down of {event['pid']} ({event['kind']}), which is not monitored"


def a_word_behind_the_down(logs: Logs, rng: random.Random) -> Wanted:
    heard = {
        (event["by"], event["pid"], event["confirms"]): event["token"]
        for events in logs.values()
        for event in events
        if event["e"] == "heard"
    }
    latest: dict[int, tuple[str, int]] = {}
    for events in logs.values():
        number: dict[tuple[str, str], int] = {}
        for event in events:
            if event["e"] == "monitor":
                number[event["by"], event["pid"]] = event["number"]
            elif event["e"] == "down" and event["kind"] in ("crashed", "stopped"):
                which = number.pop((event["by"], event["pid"]), 0)
                if (event["by"], event["pid"], which) in heard:
                    latest[id(event)] = heard[event["by"], event["pid"], which], which
    events, index, event = choose(logs, rng, "down", lambda each: id(each) in latest)
    token = latest[id(event)][0]
    event = {**event, "e": "heard", "token": token, "confirms": 0}
    events.insert(index + 1, event)
    return "G8", f"{token} said something behind its Down"


def an_exit_twice(logs: Logs, rng: random.Random) -> Wanted:
    events, index, event = choose(logs, rng, "exit", lambda each: each["token"] is not None)
    events.insert(index + 1, dict(event))
    return "G8", f"{event['by']} was told of the exit of {event['token']} twice"


def a_word_behind_the_exit(logs: Logs, rng: random.Random) -> Wanted:
    ends = ("crashed", "linked", "shutdown", "stopped")
    fits = lambda each: each["token"] is not None and each["kind"] in ends  # noqa: E731
    events, index, event = choose(logs, rng, "exit", fits)
    fields = {field: event[field] for field in ("t", "by", "pid", "token")}
    events.insert(index + 1, {"e": "heard", **fields, "confirms": 0})
    return "G8", f"{event['token']} said something behind its Exit"


def plain(logs: Logs) -> dict[tuple[str, str], Event]:
    """The timers that fire once and take a while."""
    return {
        (event["by"], event["key"]): event
        for events in logs.values()
        for event in events
        if event["e"] == "timer" and not event["repeat"] and event["ms"] > 10
    }


def a_timer_twice(logs: Logs, rng: random.Random) -> Wanted:
    timers = plain(logs)
    fits = lambda event: (event["by"], event["key"]) in timers  # noqa: E731
    events, index, event = choose(logs, rng, "fired", fits)
    events.insert(index + 1, dict(event))
    return "G9", f"timer {event['key']} fired twice"


def a_timer_early(logs: Logs, rng: random.Random) -> Wanted:
    timers = plain(logs)
    fits = lambda event: (event["by"], event["key"]) in timers  # noqa: E731
    events, index, event = choose(logs, rng, "fired", fits)
    timer = timers[event["by"], event["key"]]
    events[index] = {**event, "t": timer["t"] + timer["ms"] / 1_000 - 0.001}
    return "G9", f"timer {event['key']} fired for the 1. time, 1.000 ms early"


def two_ends(logs: Logs, rng: random.Random) -> Wanted:
    events, index, event = choose(logs, rng, "ask_end")
    events.insert(index + 1, dict(event))
    return "G10", f"ask {event['id']} ended twice"


def the_answer_of_another(logs: Logs, rng: random.Random) -> Wanted:
    is_reply: Callable[[Event], bool] = lambda event: event["how"] == "reply"  # noqa: E731
    events, index, event = choose(logs, rng, "ask_end", is_reply)
    _, _, other = choose(
        logs, rng, "ask_end", lambda each: is_reply(each) and each["word"] != event["word"]
    )
    events[index] = {**event, "word": other["word"]}
    return "G10", f"ask {event['id']} was answered '{other['word']}', which nobody said"


def an_owner_that_was_not_told(logs: Logs, rng: random.Random) -> Wanted:
    pid = f"somebody::{rng.choice(sorted(logs))}@h:1"
    change_directory(logs, "names", "clerk", pid)
    return "G12", f"clerk is that of {pid}, which was not told so"


def a_member_that_is_none(logs: Logs, rng: random.Random) -> Wanted:
    pid = f"somebody::{rng.choice(sorted(logs))}@h:1"
    change_directory(logs, "groups", "red", [pid])
    return "G11", "of red should be"


def change_directory(logs: Logs, kind: str, key: str, value: Any) -> None:
    """What all nodes say in the end of a name or a group."""
    for events in logs.values():
        index = max(i for i, event in enumerate(events) if event["e"] == "directory")
        events[index] = {**events[index], kind: {**events[index][kind], key: value}}


def a_child_that_goes_on(logs: Logs, rng: random.Random) -> Wanted:
    alive = {e["by"] for events in logs.values() for e in events if e["e"] == "alive"}
    events, index, event = choose(logs, rng, "life_end", lambda each: each["token"] in alive)
    events.insert(index + 1, {"e": "alive", "t": event["t"], "by": event["token"]})
    return "G13", f"{event['token']} does something, and has ended"


VIOLATIONS: list[Callable[[Logs, random.Random], Wanted]] = [
    two_downs,
    a_word_behind_the_down,
    an_exit_twice,
    a_word_behind_the_exit,
    a_timer_twice,
    a_timer_early,
    two_ends,
    the_answer_of_another,
    an_owner_that_was_not_told,
    a_member_that_is_none,
    a_child_that_goes_on,
]
