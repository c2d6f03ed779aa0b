"""Each rule finds nothing in a story in which its promise is kept, and each violation of it.

A story is the logs of a few nodes, written down event by event. A violation changes them in one
way, and breaks the promise that it names, and no other.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.history import BrokenLog, Event
from tests.faults.rules import check
from tests.faults.rules.record import PAUSE_MAX_S, SLACK_S, Record

Logs = dict[str, list[Event]]


class Story:
    """Logs of nodes that are up; time goes on by a millisecond for each event."""

    def __init__(self, *nodes: str) -> None:
        self.logs: Logs = {node: [] for node in nodes}
        self.t = 100.0
        self.numbers = itertools.count(1)
        for number, node in enumerate(nodes, 1):
            self.write(node, "start", node=node, incarnation=number, boot=True)
        for one in nodes:
            for other in nodes:
                if other != one:
                    self.turn(one, other, up=True)

    def write(self, node: str, kind: str, /, **fields: Any) -> None:
        self.t = round(self.t + 0.001, 6)
        self.logs[node].append({"e": kind, "t": self.t, **fields})

    def turn(self, node: str, peer: str, up: bool) -> None:
        kind = "node_up" if up else "node_down"
        self.write(node, kind, node=peer, incarnation=list(self.logs).index(peer) + 1)

    def part(self, one: str, other: str) -> None:
        self.turn(one, other, up=False)
        self.turn(other, one, up=False)

    def meet(self, one: str, other: str) -> None:
        self.turn(one, other, up=True)
        self.turn(other, one, up=True)

    def wait(self, seconds: float) -> None:
        """Nothing happens but some traffic: no node stands still, and no line is slow."""
        end = self.t + seconds
        while self.t < end:
            self.t += 0.1
            for node in self.logs:
                self.write(node, "members", names=[], final=False)
            for one, other in itertools.permutations(self.logs, 2):
                self.parcel(one, other)

    def parcel(self, one: str, other: str, seconds: float = 0.0) -> None:
        """A message that takes so long."""
        message = [f"s::{one}@h:1", 1, f"r::{other}@h:1", next(self.numbers), "x"]
        self.write(one, "sent", m=message, known=1)
        self.t += seconds
        self.write(other, "received", m=message, by=message[2], digest="x")

    def begin(self, token: str, **about: Any) -> str:
        """A life, whose token says node, process and number; its pid."""
        node, name, _ = token.split("/")
        pid = f"{name}::{node}@h:1"
        self.write(node, "life", token=token, pid=pid, **about)
        return pid

    def end(self, token: str, how: str = "stopped", **more: Any) -> None:
        self.write(token.split("/")[0], "life_end", token=token, how=how, **more)

    def by(self, token: str, kind: str, /, **fields: Any) -> None:
        self.write(token.split("/")[0], kind, by=token, **fields)

    def rest(self) -> Logs:
        self.wait(10)
        for node in self.logs:
            self.write(node, "members", names=sorted(self.logs), final=True)
        return self.logs


# How a story is changed.


def find(logs: Logs, node: str, kind: str, place: int = 0, /, **fields: Any) -> int:
    """Index of an event of a node: of those of that kind with such fields the one at a place."""
    return [
        index
        for index, event in enumerate(logs[node])
        if event["e"] == kind and fields.items() <= event.items()
    ][place]


Change = Callable[[Logs], None]


def without(node: str, kind: str, place: int = 0, /, **fields: Any) -> Change:
    def change(logs: Logs) -> None:
        del logs[node][find(logs, node, kind, place, **fields)]

    return change


def twice(node: str, kind: str, place: int = 0, /, **fields: Any) -> Change:
    def change(logs: Logs) -> None:
        index = find(logs, node, kind, place, **fields)
        logs[node].insert(index + 1, dict(logs[node][index]))

    return change


def saying(
    changed: dict[str, Any], node: str, kind: str, place: int = 0, /, **fields: Any
) -> Change:
    def change(logs: Logs) -> None:
        logs[node][find(logs, node, kind, place, **fields)].update(changed)

    return change


def behind(seconds: float, node: str, kind: str, place: int = 0, /, **fields: Any) -> Change:
    """Have an event come later by that."""

    def change(logs: Logs) -> None:
        index = find(logs, node, kind, place, **fields)
        event = logs[node].pop(index)
        event = {**event, "t": round(event["t"] + seconds, 6)}
        at = next(
            (i for i, each in enumerate(logs[node]) if each["t"] > event["t"]), len(logs[node])
        )
        logs[node].insert(at, event)

    return change


def before(seconds: float, node: str, kind: str, place: int = 0, /, **fields: Any) -> Change:
    return behind(-seconds, node, kind, place, **fields)


def both(*changes: Change) -> Change:
    def change(logs: Logs) -> None:
        for each in changes:
            each(logs)

    return change


def adding(node: str, at: tuple[str, int], kind: str, /, **fields: Any) -> Change:
    """Put an event right behind another one, of that kind and place."""

    def change(logs: Logs) -> None:
        index = find(logs, node, at[0], at[1])
        t = logs[node][index]["t"] + 0.0001
        logs[node].insert(index + 1, {"e": kind, "t": t, **fields})

    return change


# G8: lives that are monitored.


def monitored() -> Logs:
    story = Story("n1", "n2")
    watcher = "n1/watcher/1"
    story.begin(watcher)
    pid = story.begin("n2/p/1")
    story.by(watcher, "monitor", pid=pid, number=1)
    story.by(watcher, "heard", pid=pid, token="n2/p/1", confirms=1)
    story.wait(1)
    story.by(watcher, "heard", pid=pid, token="n2/p/1", confirms=0)
    story.end("n2/p/1", "crashed")
    story.by(watcher, "down", pid=pid, kind="crashed", life=11)
    story.by(watcher, "monitor", pid=pid, number=2)
    story.by(watcher, "down", pid=pid, kind="no_process", life=0)
    story.begin("n2/p/2")
    story.by(watcher, "monitor", pid=pid, number=3)
    story.by(watcher, "heard", pid=pid, token="n2/p/2", confirms=3)
    story.end("n2/p/2")
    story.by(watcher, "down", pid=pid, kind="stopped", life=12)
    story.begin("n2/p/3")
    story.by(watcher, "heard", pid=pid, token="n2/p/3", confirms=0)
    story.by(watcher, "monitor", pid=pid, number=4)
    story.by(watcher, "heard", pid=pid, token="n2/p/3", confirms=4)
    story.wait(10)
    story.part("n1", "n2")
    story.by(watcher, "down", pid=pid, kind="disconnected", life=0)
    story.wait(10)
    story.meet("n1", "n2")
    # It has lived all the time.
    story.by(watcher, "monitor", pid=pid, number=5)
    story.by(watcher, "heard", pid=pid, token="n2/p/3", confirms=5)
    return story.rest()


MONITORED = {
    "no Down when the node went": (
        both(without("n1", "down", kind="disconnected"), without("n1", "monitor", number=5)),
        "no Down of p::n2@h:1, whose node went down",
    ),
    "a Down twice": (twice("n1", "down", kind="crashed"), "which is not monitored"),
    "a Down that nobody asked for": (
        without("n1", "monitor", number=2),
        "which is not monitored",
    ),
    "a Down behind the next life": (
        behind(0.0025, "n1", "down", kind="stopped"),
        "before the Down of n2/p/2",
    ),
    "a message behind the Down": (
        behind(0.0025, "n1", "heard", token="n2/p/1", confirms=0),
        "n2/p/1 said something behind its Down",
    ),
    "another reason": (
        saying({"kind": "stopped"}, "n1", "down", kind="crashed"),
        "says stopped: no life of it ended so",
    ),
    "no process, though it ran": (
        saying({"kind": "no_process"}, "n1", "down", kind="crashed"),
        "and n2/p/1 ran",
    ),
    "disconnected, though it was not": (
        saying({"kind": "disconnected", "life": 0}, "n1", "down", kind="stopped"),
        "and its node was up",
    ),
    "the number of another life": (
        saying({"life": 11}, "n1", "down", kind="stopped"),
        "is the number of another",
    ),
}


def monitored_to_the_end() -> Logs:
    """A life that ends, and of which the watcher is told when nothing else happens any more."""
    story = Story("n1", "n2")
    story.begin("n1/watcher/1")
    pid = story.begin("n2/p/1")
    story.by("n1/watcher/1", "monitor", pid=pid, number=1)
    story.by("n1/watcher/1", "heard", pid=pid, token="n2/p/1", confirms=1)
    story.wait(1)
    story.end("n2/p/1", "crashed")
    story.by("n1/watcher/1", "down", pid=pid, kind="crashed", life=11)
    return story.rest()


MONITORED_TO_THE_END = {
    "no Down": (without("n1", "down"), r"no Down of n2/p/1, which ended \(crashed\)"),
}


# G9: timers.


def timed() -> Logs:
    story = Story("n1")
    clock = "n1/clock/1"
    story.begin(clock)
    story.by(clock, "timer", key="plain", ms=1_000, repeat=False)
    story.by(clock, "timer", key="back", ms=5_000, repeat=False)
    story.by(clock, "timer", key="late", ms=100, repeat=False)
    story.by(clock, "timer", key="beat", ms=500, repeat=True)
    start = story.t
    story.wait(0.3)
    story.by(clock, "fired", key="late", missed=0)
    story.by(clock, "timer_cancelled", key="late", was_active=False)
    story.wait(start + 0.51 - story.t)
    story.by(clock, "fired", key="beat", missed=0)
    story.wait(start + 1.01 - story.t)
    story.by(clock, "fired", key="plain", missed=0)
    story.by(clock, "timer_cancelled", key="back", was_active=True)
    story.wait(start + 2.01 - story.t)
    # The 4th one, as it did not have its turn when the others were due.
    story.by(clock, "fired", key="beat", missed=2)
    story.wait(start + 2.51 - story.t)
    story.by(clock, "fired", key="beat", missed=0)
    story.by(clock, "timer_cancelled", key="beat", was_active=True)
    story.by(clock, "timer", key="last", ms=400, repeat=True)
    start = story.t
    while story.t < start + 20:
        story.wait(0.3)
        count = int((story.t - start) / 0.4)
        before = sum(
            1 + event["missed"]
            for event in story.logs["n1"]
            if event["e"] == "fired" and event["key"] == "last"
        )
        if count > before:
            story.by(clock, "fired", key="last", missed=count - before - 1)
    story.write("n1", "members", names=["n1"], final=True)
    return story.logs


TIMED = {
    "early": (before(0.5, "n1", "fired", key="plain"), "timer plain fired for the 1. time, "),
    "twice": (twice("n1", "fired", key="plain"), "timer plain fired twice"),
    "after it was taken back": (
        adding("n1", ("timer_cancelled", 1), "fired", by="n1/clock/1", key="back", missed=0),
        "timer back fired after it was taken back",
    ),
    "never": (without("n1", "fired", key="plain"), "timer plain did not fire for the 1. time"),
    "not there, and never fired": (
        without("n1", "fired", key="late"),
        "timer late was not there any more, and never fired",
    ),
    "taken back, though it had fired": (
        saying({"was_active": True}, "n1", "timer_cancelled", key="late"),
        "timer late was taken back, and had fired",
    ),
    "in a burst": (
        both(
            saying({"missed": 0}, "n1", "fired", 1, key="beat"),
            *[twice("n1", "fired", 1, key="beat")] * 3,
        ),
        "timer beat fired for the 5. time",
    ),
    "too many missed": (
        saying({"missed": 3}, "n1", "fired", 1, key="beat"),
        "timer beat fired for the 5. time",
    ),
    "it drifts": (
        both(*[without("n1", "fired", 5, key="last")] * 12),
        "timer last did not fire for the",
    ),
    "to a later life": (
        both(
            adding("n1", ("life", 0), "life", token="n1/clock/2", pid="clock::n1@h:1"),
            saying({"by": "n1/clock/2"}, "n1", "fired", key="plain"),
        ),
        "timer plain of n1/clock/2 came, which never started it",
    ),
}


# G10: requests.


def asked() -> Logs:
    story = Story("n1", "n2", "n3")
    asker, one, other = "n1/asker/1", "n2/p/1", "n3/q/1"
    story.begin(asker)
    p, q = story.begin(one), story.begin(other)

    def ask(id: str, to: str, timeout_ms: float = 12_000) -> None:
        story.by(asker, "ask", id=id, to=to, timeout_ms=timeout_ms)

    def end(id: str, how: str, word: str = "") -> None:
        story.by(asker, "ask_end", id=id, how=how, word=word)

    ask("answered", p)
    story.by(one, "question", id="answered")
    story.by(one, "answer", id="answered", word="yes")
    end("answered", "reply", "yes")
    ask("forgotten", p, 1_000)
    story.by(one, "question", id="forgotten")
    story.wait(1)
    end("forgotten", "CallTimeout")
    ask("passed", p)
    story.by(one, "question", id="passed")
    story.by(one, "passed", id="passed", to=q)
    story.by(other, "question", id="passed")
    story.by(other, "answer", id="passed", word="no")
    end("passed", "reply", "no")
    ask("stopped", q)
    story.by(other, "question", id="stopped")
    story.end(other)
    end("stopped", "NoProcess")
    ask("crashed", p)
    story.by(one, "question", id="crashed")
    story.wait(0.5)
    story.end(one, "crashed")
    end("crashed", "ProcessCrashed")
    story.wait(20)
    ask("gone", p)
    story.part("n1", "n2")
    end("gone", "NotConnected")
    story.wait(20)
    story.meet("n1", "n2")
    # Who asks ends before it is told: nobody is.
    ask("nobody's", q)
    story.end(asker)
    return story.rest()


ASKED = {
    "an end twice": (twice("n1", "ask_end", id="answered"), "ended twice"),
    "no end": (
        without("n1", "ask_end", id="forgotten"),
        r"ask forgotten has not ended .* after its timeout",
    ),
    "no end, though it was answered": (
        without("n1", "ask_end", id="passed"),
        r"ask passed has not ended .* after n3/q/1 answered",
    ),
    "an end by timeout, though it crashed": (
        both(
            saying({"how": "CallTimeout"}, "n1", "ask_end", id="crashed"),
            behind(11.6, "n1", "ask_end", id="crashed"),
        ),
        r"ask crashed ended \(CallTimeout\) .* after n2/p/1 ended \(crashed\)",
    ),
    "an end by timeout, though its node went": (
        both(
            saying({"how": "CallTimeout"}, "n1", "ask_end", id="gone"),
            behind(12.1, "n1", "ask_end", id="gone"),
        ),
        r"ask gone ended \(CallTimeout\) .* the node of p::n2@h:1 went down",
    ),
    "an end by timeout, early": (
        before(0.5, "n1", "ask_end", id="forgotten"),
        "ask forgotten timed out .* ms early",
    ),
    "the reply to another": (
        saying({"word": "yes"}, "n1", "ask_end", id="passed"),
        "ask passed was answered 'yes', which nobody said",
    ),
    "a reply that nobody said": (
        without("n2", "answer"),
        "ask answered was answered 'yes', which nobody said",
    ),
    "to a later life": (
        both(
            adding("n1", ("life", 0), "life", token="n1/asker/2", pid="asker::n1@h:1"),
            saying({"by": "n1/asker/2"}, "n1", "ask_end", id="answered"),
        ),
        "answered, which n1/asker/2 never asked",
    ),
    "a question that nobody asked": (
        adding("n2", ("question", 0), "question", by="n2/p/1", id="made up"),
        "made up was never asked",
    ),
    "a crash of nobody": (
        saying({"how": "stopped"}, "n2", "life_end"),
        "somebody crashed, and nobody did",
    ),
    "a node that did not go": (
        saying({"how": "NotConnected"}, "n1", "ask_end", id="stopped"),
        "a node went, and none did",
    ),
}


# G11 and G12: names and groups.


def named() -> Logs:
    story = Story("n1", "n2")
    one, other = "n1/a/1", "n2/b/1"
    a, b = story.begin(one), story.begin(other)
    story.wait(1)
    story.by(one, "register", name="leader")
    story.by(one, "registered", name="leader")
    story.by(other, "register", name="leader")
    story.wait(1)
    story.by(one, "unregister", name="leader")
    story.by(one, "unregistered", name="leader")
    story.by(other, "register", name="leader")
    story.by(other, "registered", name="leader")
    story.wait(1)
    # Each side has its owner.
    story.part("n1", "n2")
    story.by(one, "register", name="leader")
    story.by(one, "registered", name="leader")
    story.wait(1)
    story.meet("n1", "n2")
    story.wait(0.3)
    story.by(one, "name_lost", name="leader")
    story.by(one, "join", group="red")
    story.by(one, "joined", group="red")
    story.by(other, "join", group="red")
    story.by(other, "joined", group="red")
    story.by(other, "leave", group="red")
    # A part of what one life has, another one of the same name has not.
    story.begin("n2/c/1")
    story.by("n2/c/1", "join", group="red")
    story.by("n2/c/1", "joined", group="red")
    story.end("n2/c/1")
    story.begin("n2/c/2")
    story.rest()
    for node in story.logs:
        story.write(node, "directory", names={"leader": b, "clerk": None}, groups={"red": [a]})
    return story.logs


DIRECTORY = {"names": {"leader": "b::n2@h:1", "clerk": None}, "groups": {"red": ["a::n1@h:1"]}}


def directory(**changed: Any) -> dict[str, Any]:
    return {kind: {**DIRECTORY[kind], **changed.get(kind, {})} for kind in DIRECTORY}


def everywhere(**changed: Any) -> Change:
    said = directory(**changed)
    return both(saying(said, "n1", "directory"), saying(said, "n2", "directory"))


NAMED = {
    "two owners": (
        adding("n2", ("register", 0), "registered", by="n2/b/1", name="leader"),
        "G12",
        "leader is that of n2/b/1, and from .* of n1/a/1",
    ),
    "two owners long after the parts have met": (
        behind(8, "n1", "name_lost"),
        "G12",
        "leader is that of",
    ),
    "the loser is not told": (without("n1", "name_lost"), "G12", "leader is that of|was told that"),
    "an owner that was not told": (
        everywhere(names={"clerk": "a::n1@h:1"}),
        "G12",
        "clerk is that of a::n1@h:1, which was not told so",
    ),
    "an owner that is none": (
        everywhere(names={"leader": None}),
        "G12",
        "was told that it has leader, which is None's",
    ),
    "a name that nobody asked for": (
        adding("n1", ("life", 0), "registered", by="n1/a/1", name="clerk"),
        "G12",
        "has clerk, for which it did not ask",
    ),
    "a loss of what it has not": (
        adding("n1", ("life", 0), "name_lost", by="n1/a/1", name="clerk"),
        "G12",
        "lost clerk, which it did not have",
    ),
    "nodes that know another owner": (
        saying(directory(names={"leader": None}), "n1", "directory"),
        "G11",
        "name leader is b::n2@h:1, at n1 None",
    ),
    "nodes that know other members": (
        saying(directory(groups={"red": ["a::n1@h:1", "x::n3@h:1"]}), "n1", "directory"),
        "G11",
        "group red is",
    ),
    "a member that left": (
        everywhere(groups={"red": ["a::n1@h:1", "b::n2@h:1"]}),
        "G11",
        r"of red should be \[\], and are \['b::n2@h:1'\]",
    ),
    "a member that ended": (
        everywhere(groups={"red": ["a::n1@h:1", "c::n2@h:1"]}),
        "G11",
        r"of red should be \[\], and are \['c::n2@h:1'\]",
    ),
    "a member that is missing": (
        everywhere(groups={"red": []}),
        "G11",
        r"of red should be \['a::n1@h:1'\], and are \[\]",
    ),
}


# G13: families.


def family() -> Logs:
    """One family that ends in order, and one that falls."""
    story = Story("n1")

    def begin(number: int) -> None:
        story.begin(f"n1/top/{number}")
        for place, name in enumerate(("c1", "c2", "c3")):
            story.begin(f"n1/{name}/{number}", parent=f"n1/top/{number}", place=place)
        for place, name in enumerate(("d1", "d2")):
            story.begin(f"n1/{name}/{number}", parent=f"n1/c2/{number}", place=place)
        story.by(f"n1/c3/{number}", "alive")

    begin(1)
    # A child is started anew: it keeps its place.
    story.end("n1/c1/1", "crashed")
    story.begin("n1/c1/3", parent="n1/top/1", place=0)
    for token in ("c3/1", "d2/1", "d1/1", "c2/1", "c1/3", "top/1"):
        story.end(f"n1/{token}", "shutdown")
    story.write("n1", "family_gone", token="n1/top/1")
    begin(2)
    # Those of a supervisor below end behind it.
    for token in ("top/2", "c3/2", "c2/2", "c1/2", "d2/2", "d1/2"):
        story.end(f"n1/{token}", "fell" if token == "c1/2" else "stopped")
    story.write("n1", "family_gone", token="n1/top/2")
    return story.rest()


FAMILY = {
    "a child that is left": (
        without("n1", "life_end", token="n1/c1/2"),
        "n1/c1/2 lives, and the family of n1/top/2 has ended",
    ),
    "a grandchild that is left": (
        without("n1", "life_end", token="n1/d1/2"),
        "n1/d1/2 lives, and the family of n1/top/2 has ended",
    ),
    "a child that ends behind an orderly end": (
        behind(0.0025, "n1", "life_end", token="n1/c1/3"),
        "n1/c1/3 lives, and its supervisor n1/top/1 has ended in order",
    ),
    "the first one first": (
        behind(0.0035, "n1", "life_end", token="n1/c3/1"),
        "n1/c2/1 was ended before n1/c3/1",
    ),
    "the first one first, below": (
        behind(0.0015, "n1", "life_end", token="n1/d2/1"),
        "n1/d1/1 was ended before n1/d2/1",
    ),
    "a child that is born too late": (
        adding("n1", ("family_gone", 1), "life", token="n1/c1/4", pid="c", parent="n1/top/2"),
        "n1/c1/4 began, and its supervisor n1/top/2 had ended",
    ),
    "a child that falls before its supervisor": (
        behind(0.0035, "n1", "life_end", token="n1/top/2"),
        "n1/c1/2 fell with n1/top/2, which lives",
    ),
    "one that has ended and goes on": (
        adding("n1", ("family_gone", 1), "alive", by="n1/c2/2"),
        "n1/c2/2 does something, and has ended",
    ),
}


# Links.


def linked() -> Logs:
    story = Story("n1", "n2")
    trapper, plain, other = "n1/trapper/1", "n1/plain/1", "n2/p/1"
    story.begin(trapper, traps=True)
    story.begin(plain, traps=False)
    pid = story.begin(other)
    for one in (trapper, plain):
        story.by(one, "linked", token=other)
    story.by(trapper, "heard", pid=pid, token=other, confirms=0)
    story.end(other, "crashed")
    story.by(trapper, "exit", pid=pid, token=other, kind="crashed")
    story.end(plain, "linked", of=other)
    # One that ends in order is told of to who traps, and ends nobody.
    story.begin("n1/plain/2", traps=False)
    story.begin("n2/p/2")
    for one in (trapper, "n1/plain/2"):
        story.by(one, "linked", token="n2/p/2")
    story.end("n2/p/2")
    story.by(trapper, "exit", pid=pid, token="n2/p/2", kind="stopped")
    # One that is no more linked.
    story.begin("n2/p/3")
    for one in (trapper, "n1/plain/2"):
        story.by(one, "linked", token="n2/p/3")
        story.by(one, "unlink", token="n2/p/3")
        story.by(one, "unlinked", token="n2/p/3")
    story.end("n2/p/3", "crashed")
    # The loss of a node is an abnormal end.
    story.begin("n2/p/4")
    for one in (trapper, "n1/plain/2"):
        story.by(one, "linked", token="n2/p/4")
    story.wait(10)
    story.part("n1", "n2")
    story.by(trapper, "exit", pid=pid, token="n2/p/4", kind="disconnected")
    story.end("n1/plain/2", "linked", of="n2/p/4")
    return story.rest()


def exits(token: str) -> dict[str, Any]:
    return {"by": "n1/trapper/1", "pid": "p::n2@h:1", "token": token, "kind": "crashed"}


LINKED = {
    "nobody is told": (
        without("n1", "exit", kind="crashed"),
        "n1/trapper/1 was not told of the exit of n2/p/1",
    ),
    "nobody is told of an orderly end": (
        without("n1", "exit", kind="stopped"),
        "n1/trapper/1 was not told of the exit of n2/p/2",
    ),
    "nobody is told that the node went": (
        without("n1", "exit", kind="disconnected"),
        "n1/trapper/1 was not told of the exit of n2/p/4",
    ),
    "who traps no exit lives on": (
        without("n1", "life_end", token="n1/plain/1"),
        "n1/plain/1 outlives n2/p/1, linked to it",
    ),
    "who traps no exit outlives a node": (
        without("n1", "life_end", token="n1/plain/2"),
        "n1/plain/2 outlives n2/p/4, linked to it",
    ),
    "who traps exits ends": (
        adding("n1", ("exit", 2), "life_end", token="n1/trapper/1", how="linked", of="n2/p/4"),
        "n1/trapper/1 ended with n2/p/4, and traps exits",
    ),
    "told twice": (twice("n1", "exit", kind="crashed"), "told of the exit of n2/p/1 twice"),
    "told behind its Unlink": (
        adding("n1", ("unlinked", 1), "exit", **exits("n2/p/3")),
        "was told of n2/p/3, no more linked",
    ),
    "told, and never linked": (
        without("n1", "linked", by="n1/trapper/1", token="n2/p/2"),
        "was told of the exit of n2/p/2, not linked",
    ),
    "ended behind its Unlink": (
        both(
            without("n1", "life_end", token="n1/plain/2"),
            adding(
                "n1", ("unlinked", 1), "life_end", token="n1/plain/2", how="linked", of="n2/p/3"
            ),
        ),
        "n1/plain/2 ended with n2/p/3, not linked to it",
    ),
    "ended with one that ended in order": (
        both(
            saying({"how": "stopped"}, "n2", "life_end"),
            saying({"kind": "stopped"}, "n1", "exit"),
        ),
        "n1/plain/1 ended with n2/p/1, which is stopped",
    ),
    "told, and traps none": (
        adding("n1", ("exit", 0), "exit", **{**exits("n2/p/1"), "by": "n1/plain/1"}),
        "n1/plain/1 was told of an exit, and traps none",
    ),
    "another reason": (
        saying({"kind": "stopped"}, "n1", "exit", kind="crashed"),
        "the exit of n2/p/1 says stopped, and it was crashed",
    ),
    "disconnected, though it was not": (
        saying({"kind": "disconnected"}, "n1", "exit", kind="crashed"),
        "the exit of n2/p/1 says disconnected: its node was up",
    ),
    "a message behind the Exit": (
        behind(0.0025, "n1", "heard"),
        "n2/p/1 said something behind its Exit",
    ),
}


def linked_anew() -> Logs:
    """What is told before anybody is sure of a link, links anew, and a chain of them."""
    story = Story("n1", "n2")
    trapper, plain, pid = "n1/trapper/1", "n1/plain/1", "p::n2@h:1"
    story.begin(trapper, traps=True)
    story.begin(plain, traps=False)
    story.wait(10)
    story.by(trapper, "link", pid=pid)
    story.by(trapper, "exit", pid=pid, token=None, kind="no_process", life=0)
    # They part, and the other one asks for a link again.
    story.begin("n2/p/1")
    story.by(trapper, "link", pid=pid)
    story.by(trapper, "linked", token="n2/p/1")
    story.by("n2/p/1", "unlink", token=trapper)
    story.by(trapper, "unlinked", token="n2/p/1")
    story.by("n2/p/1", "link", pid="trapper::n1@h:1")
    story.by(trapper, "linked", token="n2/p/1")
    story.by(trapper, "heard", pid=pid, token="n2/p/1", confirms=0)
    story.end("n2/p/1", "crashed")
    story.by(trapper, "exit", pid=pid, token="n2/p/1", kind="crashed", life=7)
    # This one ends before it answers.
    story.begin("n2/p/2")
    story.by(trapper, "heard", pid=pid, token="n2/p/2", confirms=0)
    story.by(trapper, "link", pid=pid)
    story.end("n2/p/2", "shutdown")
    story.by(trapper, "exit", pid=pid, token=None, kind="shutdown", life=8)
    # A chain.
    story.begin("n1/q/1", traps=False)
    story.begin("n2/p/3")
    story.by("n1/q/1", "link", pid=pid)
    story.by("n1/q/1", "linked", token="n2/p/3")
    story.by(plain, "link", pid="q::n1@h:1")
    story.by(plain, "linked", token="n1/q/1")
    story.end("n2/p/3", "crashed")
    story.end("n1/q/1", "linked", of="n2/p/3", pid=pid)
    story.end(plain, "linked", of="n2/p/3", pid=pid)
    # With nobody.
    story.begin("n1/plain/2", traps=False)
    story.by("n1/plain/2", "link", pid="nobody::n2@h:1")
    story.end("n1/plain/2", "linked", of=None, pid="nobody::n2@h:1")
    return story.rest()


def unsure(pid: str = "p::n2@h:1") -> dict[str, Any]:
    return {"by": "n1/trapper/1", "pid": pid, "token": None, "kind": "no_process", "life": 0}


LINKED_ANEW = {
    "told, and nobody asked for a link": (
        adding("n1", ("link", 0), "exit", **unsure("x::n2@h:1")),
        "n1/trapper/1 was told of an exit of x::n2@h:1, never linked with it",
    ),
    "told that there is none": (
        adding("n1", ("link", 2), "exit", **unsure()),
        "the exit of p::n2@h:1 says no_process, and n2/p/2 ran",
    ),
    "told of an end that was not": (
        saying({"kind": "stopped"}, "n1", "exit", kind="shutdown"),
        "the exit of p::n2@h:1 says stopped: no life of it ended so",
    ),
    "told that its node went": (
        saying({"kind": "disconnected"}, "n1", "exit", kind="shutdown"),
        "the exit of p::n2@h:1 says disconnected: its node was up",
    ),
    "told of one life twice": (
        saying({"life": 7}, "n1", "exit", kind="shutdown"),
        "n1/trapper/1 was told of the end of life 7 of p::n2@h:1 twice",
    ),
    "told behind the Unlink of the other one": (
        adding("n1", ("unlinked", 0), "exit", **exits("n2/p/1")),
        "n1/trapper/1 was told of n2/p/1, no more linked",
    ),
    "not told of the second link": (
        without("n1", "exit", kind="crashed"),
        "n1/trapper/1 was not told of the exit of n2/p/1",
    ),
    "the next life says something first": (
        adding(
            "n1",
            ("heard", 0),
            "heard",
            by="n1/trapper/1",
            pid="p::n2@h:1",
            token="n2/p/2",
            confirms=0,
        ),
        "n2/p/2 said something before the Exit of n2/p/1",
    ),
    "one of a chain that did not pass it on": (
        saying({"how": "stopped"}, "n1", "life_end", token="n1/q/1"),
        "n1/plain/1 ended with n2/p/3, not linked to it",
    ),
    "ended, and never asked for a link": (
        without("n1", "link", by="n1/plain/2"),
        "n1/plain/2 ended with nobody::n2@h:1, never linked with it",
    ),
}


# All of them.

Violations = dict[str, tuple[Change, str]]
STORIES: list[tuple[Callable[[], Logs], str, Violations]] = [
    (monitored, "G8", MONITORED),
    (monitored_to_the_end, "G8", MONITORED_TO_THE_END),
    (timed, "G9", TIMED),
    (asked, "G10", ASKED),
    (named, "G12", {k: (change, text) for k, (change, g, text) in NAMED.items() if g == "G12"}),
    (named, "G11", {k: (change, text) for k, (change, g, text) in NAMED.items() if g == "G11"}),
    (family, "G13", FAMILY),
    (linked, "G8", LINKED),
    (linked_anew, "G8", LINKED_ANEW),
]


@pytest.mark.parametrize("story", [story for story, _, _ in STORIES], ids=lambda s: s.__name__)
def test_nothing_is_found_where_the_promises_are_kept(story: Callable[[], Logs]) -> None:
    assert check(story()) == []


@pytest.mark.parametrize(
    ("story", "promise", "change", "text"),
    [
        pytest.param(story, promise, change, text, id=f"{story.__name__}: {what}")
        for story, promise, violations in STORIES
        for what, (change, text) in violations.items()
    ],
)
def test_each_violation_is_found(
    story: Callable[[], Logs], promise: str, change: Change, text: str
) -> None:
    logs = copy.deepcopy(story())
    change(logs)
    before = copy.deepcopy(logs)
    found = check(logs)
    assert {violation.promise for violation in found} == {promise}, found
    assert any(re.search(text, violation.text) for violation in found), found
    assert logs == before


# What the rules stand on.


def test_a_node_that_stood_still_has_more_time() -> None:
    story = Story("n1", "n2")
    begin = story.t
    story.wait(1)
    # It stands still, from 1 s to 4 s.
    story.t += 3
    story.write("n1", "members", names=[], final=False)
    for _ in range(40):
        story.t += 0.2
        story.write("n2", "members", names=[], final=False)
    record = Record(story.logs)
    assert record.due(begin, "n1") == pytest.approx(begin + SLACK_S + 3, abs=0.25)
    assert record.due(begin, "n2") == pytest.approx(begin + SLACK_S + 3, abs=0.25)
    assert record.due(begin + 5, "n2") == begin + 5 + SLACK_S
    # One that began in it counts for the rest of it.
    assert record.due(begin + 3, "n1") == pytest.approx(begin + 3 + SLACK_S + 1.1, abs=0.25)
    assert PAUSE_MAX_S > 60


def test_what_comes_over_a_slow_line_may_be_late() -> None:
    story = Story("n1", "n2")
    begin = story.t
    story.parcel("n2", "n1", 5.0)
    came = story.t
    story.parcel("n2", "n1", 7.0)
    story.logs["n1"].insert(1, {"e": "members", "t": came - 2.4, "names": [], "final": False})
    record = Record(story.logs)
    still = [end - start for start, end in record.still["n1"]]
    assert came + SLACK_S <= record.told(begin, "n2", "n1") <= came + SLACK_S + sum(still)
    assert record.told(begin, "n1", "n2") == float("inf")
    assert record.told(begin, "n1", "n1") == record.due(begin, "n1")


def test_a_mesh_is_whole_while_all_run_and_see_each_other() -> None:
    story = Story("n1", "n2", "n3")
    begin = story.t
    story.wait(1)
    story.part("n1", "n3")
    parted = story.logs["n1"][-1]["t"]
    story.wait(1)
    story.meet("n1", "n3")
    met = story.t
    story.wait(1)
    # Killed: what it logged last is all that there is.
    killed = story.logs["n2"][-1]["t"]
    for node in ("n1", "n3"):
        story.wait(0)
        story.turn(node, "n2", up=False)
    story.write("n2", "start", node="n2", incarnation=9, boot=True)
    again = story.t
    for one, other in (("n2", "n1"), ("n2", "n3"), ("n1", "n2"), ("n3", "n2")):
        story.turn(one, other, up=True)
    whole = story.t
    # A start that is no boot goes on with what there is.
    story.write("n2", "start", node="n2", incarnation=10, boot=False)
    story.wait(1)
    record = Record(story.logs)
    spans = record.whole()
    assert [round(t, 3) for t in spans[0]] == [round(begin, 3), round(parted, 3)]
    assert [round(t, 3) for t in spans[1]] == [round(met, 3), round(killed, 3)]
    assert round(spans[2][0], 3) == round(whole, 3) and len(spans) == 3
    assert record.connected("n1", "n2", begin, parted)
    assert not record.connected("n1", "n3", begin, met + 0.1)
    assert not record.connected("n1", "n2", killed, again)
    assert record.connected("n1", "n2", whole, whole + 0.5)
    assert not record.connected("n1", "n2", whole, whole + 60)


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("life", {"token": "n1/a/1", "pid": "a::n1@h:1"}),
        ("life_end", {"token": "n1/b/1", "how": "stopped"}),
        ("ask", {"by": "n1/b/1", "id": "x", "to": "a::n1@h:1", "timeout_ms": 1}),
        ("ask", {"by": "n1/a/1", "id": "1", "to": "a::n1@h:1", "timeout_ms": 1}),
        ("timer", {"by": "n1/a/1", "key": "t", "ms": 1, "repeat": False}),
        ("monitor", {"by": "n1/a/1", "pid": "a::n1@h:1", "number": 2}),
        ("linked", {"by": "n1/a/1", "token": "n1/c/1"}),
    ],
)
def test_what_no_application_can_have_seen_is_its_fault(kind: str, fields: dict[str, Any]) -> None:
    story = Story("n1")
    story.begin("n1/a/1")
    story.begin("n1/c/1")
    story.by("n1/a/1", "ask", id="1", to="a::n1@h:1", timeout_ms=1)
    story.by("n1/a/1", "timer", key="t", ms=1, repeat=False)
    story.by("n1/a/1", "monitor", pid="a::n1@h:1", number=1)
    story.by("n1/a/1", "linked", token="n1/c/1")
    check(story.logs)
    story.write("n1", kind, **fields)
    with pytest.raises(BrokenLog):
        check(story.logs)
