"""The history checker finds every planted violation, and nothing in what a correct mesh logs.

The mesh is simulated: links with messages on their way, of which each side learns of its end at
another time; an executor's queue in each node, so what a process knows lags behind; full queues;
processes that do not exist; nodes that are killed and started again.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import history
from tests.faults.history import BrokenLog, Event, Log, check, check_files, digest, node_of, read
from tests.faults.rig.process import OsProcess

Logs = dict[str, list[Event]]


class Half:
    """One side of a connection: what it says is on its way until the other side takes it."""

    def __init__(self, peer: SimNode) -> None:
        self.peer = peer
        self.peer_incarnation = peer.incarnation
        self.other: Half
        self.under_way: collections.deque[tuple[Any, ...]] = collections.deque()
        self.dropped = 0
        self.open = True

    def say(self, what: tuple[Any, ...]) -> None:
        if self.dropped:
            self.under_way.append(("lost", self.dropped))
            self.dropped = 0
        self.under_way.append(what)


class SimNode:
    """A node whose executor's queue holds what its processes have yet to be told."""

    def __init__(self, name: str, processes: int) -> None:
        self.name = name
        self.pids = [f"p{i}::{name}@h:1" for i in range(processes)]
        self.log: list[Event] = []
        self.incarnation = 0
        self.alive = False
        self.halves: dict[str, Half] = {}
        self.queue: collections.deque[tuple[Any, ...]] = collections.deque()
        self.known: dict[str, int] = {}
        #: Of each node that is up as far as the processes were told: which connection that is.
        self.told: dict[str, Half] = {}
        self.numbers: collections.Counter[tuple[str, str]] = collections.Counter()

    def write(self, kind: str, **fields: Any) -> None:
        self.log.append({"e": kind, **fields})

    def start(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.alive = True
        self.halves, self.known, self.told = {}, {}, {}
        self.queue.clear()
        self.numbers.clear()
        self.write("start", node=self.name, incarnation=incarnation)

    def lose(self, name: str) -> None:
        """The node, not yet its processes, learns that a connection has ended."""
        half = self.halves.pop(name)
        half.open = False
        self.queue.append(("down", name))

    def step(self) -> None:
        """The executor delivers what is first in its queue."""
        what = self.queue.popleft()
        if what[0] == "up":
            half = what[1]
            self.known[half.peer.name] = half.peer_incarnation
            self.told[half.peer.name] = half
            self.write("node_up", node=half.peer.name, incarnation=half.peer_incarnation)
        elif what[0] == "down":
            del self.known[what[1]], self.told[what[1]]
            self.write("node_down", node=what[1])
        elif what[0] == "lost":
            self.write("lost", count=what[1], node=what[2])
        elif what[0] == "dead":
            self.write("dead_letter", m=what[1], reason=what[2])
        elif what[1][2] in self.pids:
            self.write("received", m=what[1], by=what[1][2], digest=what[1][4])
        else:
            self.write("dead_letter", m=what[1], reason="no_process")


class Mesh:
    """A correct mesh, of which each move is one thing that happens."""

    def __init__(self, rng: random.Random, nodes: int, processes: int) -> None:
        self.rng = rng
        self.nodes = [SimNode(f"n{i}", processes) for i in range(1, nodes + 1)]
        self.clock = itertools.count(1)
        for node in self.nodes:
            node.start(next(self.clock))

    @property
    def logs(self) -> Logs:
        return {node.name: node.log for node in self.nodes}

    def send(self, node: SimNode) -> None:
        other = self.rng.choice(self.nodes)
        sender = self.rng.choice(node.pids)
        nobody = f"nobody::{other.name}@h:1"
        to = nobody if self.rng.random() < 0.05 else self.rng.choice(other.pids)
        node.numbers[sender, to] += 1
        number = node.numbers[sender, to]
        stamp = (sender, node.incarnation, to, number, digest(f"{sender}{to}{number}".encode()))
        node.write("sent", m=stamp, known=node.known.get(other.name))
        half = node.halves.get(other.name)
        if half is not node.told.get(other.name):
            # Its processes do not know of that one yet.
            half = None
        if self.rng.random() < 0.02:
            node.write("dead_letter", m=stamp, reason="unencodable")
        elif other is node:
            node.queue.append(("message", stamp))
        elif half is None:
            node.queue.append(("dead", stamp, "no_link"))
        elif self.rng.random() < 0.1:
            half.dropped += 1
            node.queue.append(("dead", stamp, "peer_busy"))
        else:
            half.say(("message", stamp))

    def take(self, node: SimNode) -> None:
        """A node takes something from one of its connections."""
        ready = [half for half in node.halves.values() if half.other.under_way]
        if ready:
            half = self.rng.choice(ready)
            what = half.other.under_way.popleft()
            node.queue.append((*what, half.peer.name) if what[0] == "lost" else what)

    def lose(self, node: SimNode) -> None:
        if node.halves:
            node.lose(self.rng.choice(sorted(node.halves)))

    def connect(self, node: SimNode, other: SimNode | None = None) -> None:
        other = other or self.rng.choice(self.nodes)
        if other is node or not other.alive:
            return
        mine, theirs = Half(other), Half(node)
        mine.other, theirs.other = theirs, mine
        for one, half in (node, mine), (other, theirs):
            if half.peer.name in one.halves:
                one.lose(half.peer.name)
            one.halves[half.peer.name] = half
            one.queue.append(("up", half))

    def kill(self, node: SimNode) -> None:
        node.alive = False
        for half in node.halves.values():
            half.open = False

    def run(self, moves: int, calm: bool) -> None:
        names = ["send", "take", "step", "connect", "lose", "kill"]
        often = [30, 30, 50, 0.2, 0.1, 0.1] if calm else [30, 30, 40, 6, 3, 1]
        if calm:
            for one, other in itertools.combinations(self.nodes, 2):
                self.connect(one, other)
        for _ in range(moves):
            (move,) = self.rng.choices(names, often)
            node = self.rng.choice(self.nodes)
            if not node.alive:
                if self.rng.random() < 0.3:
                    node.start(next(self.clock))
            elif move == "step":
                if node.queue:
                    node.step()
            else:
                getattr(self, move)(node)

    def come_to_rest(self) -> None:
        for node in self.nodes:
            if not node.alive:
                node.start(next(self.clock))
        for one, other in itertools.combinations(self.nodes, 2):
            half = one.halves.get(other.name)
            if half is None or not half.other.open:
                self.connect(one, other)
        for node in self.nodes:
            for half in node.halves.values():
                if half.dropped:
                    half.under_way.append(("lost", half.dropped))
                    half.dropped = 0
        for node in self.nodes:
            while any(half.other.under_way for half in node.halves.values()):
                self.take(node)
            while node.queue:
                node.step()
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            node.write("members", names=names, final=True)
        for node in self.nodes:
            node.write("stop")


def simulated(seed: int, nodes: int = 3, processes: int = 2, moves: int = 300) -> Logs:
    """Odd seeds make calm histories, in which links last."""
    mesh = Mesh(random.Random(seed), nodes, processes)
    mesh.run(moves, calm=seed % 2 == 1)
    mesh.come_to_rest()
    return mesh.logs


@given(
    st.integers(0, 2**32),
    st.integers(2, 5),
    st.integers(1, 3),
    st.integers(0, 800),
)
def test_nothing_is_found_in_a_clean_history(
    seed: int, nodes: int, processes: int, moves: int
) -> None:
    logs = simulated(seed, nodes, processes, moves)
    assert check(logs, alive=logs) == []


def test_the_simulated_mesh_has_all_that_matters() -> None:
    """Else finding nothing in its histories would say little."""
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(40):
        for name, events in simulated(seed).items():
            seen["restarts"] += sum(e["e"] == "start" for e in events) - 1
            for event in events:
                seen[event["e"]] += 1
                if event["e"] == "dead_letter":
                    seen[event["reason"]] += 1
                if event["e"] == "received" and node_of(event["m"][0]) != name:
                    seen["from others"] += 1
    assert min(seen[what] for what in ("restarts", "lost", "node_down", "peer_busy")) > 40
    assert min(seen[what] for what in ("no_process", "no_link", "unencodable")) > 40
    assert seen["from others"] > 500


# What is planted: each changes clean logs in one way, and names the promises that it breaks, any of
# which must be found. None where the logs have no place for it.

Place = tuple[str, int]


@dataclasses.dataclass
class Plot:
    logs: Logs
    rng: random.Random

    def events(self, kind: str) -> list[Place]:
        return [
            (name, index)
            for name, events in self.logs.items()
            for index, event in enumerate(events)
            if event["e"] == kind
        ]

    def pick(self, places: list[Any]) -> Any:
        return self.rng.choice(places) if places else None

    def life(self, name: str, index: int) -> tuple[int, int]:
        """First and last but one index of the life that an event is in."""
        starts = [i for i, e in enumerate(self.logs[name]) if e["e"] == "start"]
        begin = max(i for i in starts if i <= index)
        return begin, min([i for i in starts if i > index], default=len(self.logs[name]))

    def arrivals(self, foreign: bool = False) -> list[Place]:
        return [
            (name, i)
            for name, i in self.events("received")
            if not foreign or node_of(self.logs[name][i]["m"][0]) != name
        ]

    def neighbours(self, name: str, index: int) -> tuple[int | None, int | None]:
        """The messages of the same pair that arrived before and after one, in the same life."""
        events = self.logs[name]
        begin, end = self.life(name, index)
        same = [
            i
            for i in range(begin, end)
            if events[i]["e"] == "received" and events[i]["m"][:3] == events[index]["m"][:3]
        ]
        place = same.index(index)
        return (
            same[place - 1] if place else None,
            same[place + 1] if place + 1 < len(same) else None,
        )

    def witnessed(self, name: str, since: int, until: int, peer: str) -> bool:
        return any(
            event["e"] in ("node_up", "node_down", "lost") and event["node"] == peer
            for event in self.logs[name][since:until]
        )


def duplicate(plot: Plot) -> str | None:
    if (at := plot.pick(plot.arrivals())) is None:
        return None
    name, index = at
    _, end = plot.life(name, index)
    later = plot.rng.randint(index + 1, end)
    plot.logs[name].insert(later, plot.logs[name][index])
    return "G2"


def changed_body(plot: Plot) -> str | None:
    if (at := plot.pick(plot.arrivals())) is None:
        return None
    plot.logs[at[0]][at[1]]["digest"] = digest(b"another")
    return "G4"


def forged(plot: Plot) -> str | None:
    if (at := plot.pick(plot.arrivals())) is None:
        return None
    name, index = at
    event = copy.deepcopy(plot.logs[name][index])
    sender, incarnation, to, number, said = event["m"]
    choice = plot.rng.randrange(3)
    if choice == 0:
        event["m"] = (sender, incarnation, to, number + 10_000, said)
    elif choice == 1:
        event["m"] = (f"forger::{sender.partition('::')[2]}", incarnation, to, 1, said)
    else:
        event["m"] = (sender, incarnation, to.replace("::", "x::"), number, said)
        event["by"] = event["m"][2]
    plot.logs[name].insert(index + 1, event)
    return "G6"


def reordered(plot: Plot) -> str | None:
    pairs = [
        (name, i, after)
        for name, i in plot.arrivals()
        if (after := plot.neighbours(name, i)[1]) is not None
    ]
    if (at := plot.pick(pairs)) is None:
        return None
    name, one, other = at
    events = plot.logs[name]
    events[one], events[other] = events[other], events[one]
    return "G1"


def silent_gap(plot: Plot) -> str | None:
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        before, after = plot.neighbours(name, index)
        peer = node_of(plot.logs[name][index]["m"][0])
        if before is not None and after is not None:
            if not plot.witnessed(name, before, after, peer):
                fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def silent_gap_at_the_sender(plot: Plot) -> str | None:
    """A dead letter is missing; nothing else says why the message did not arrive."""
    fitting = []
    for name, index in plot.events("dead_letter"):
        event = plot.logs[name][index]
        peer = node_of(event["m"][2])
        sent = [
            i
            for i, e in enumerate(plot.logs[name])
            if e["e"] == "sent" and list(e["m"]) == list(event["m"])
        ]
        up = sent and plot.logs[name][sent[0]]["known"] is not None
        if event["reason"] == "peer_busy" and up:
            end = plot.life(name, index)[1]
            last = end == len(plot.logs[name])
            if last and not plot.witnessed(name, sent[0], end, peer):
                fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def too_few_said_to_be_lost(plot: Plot) -> str | None:
    """A peer's word about what it dropped is missing, between two of a pair around the hole."""
    fitting = []
    for name, index in plot.events("lost"):
        peer = plot.logs[name][index]["node"]
        begin, end = plot.life(name, index)
        events = plot.logs[name]
        got = collections.defaultdict(list)
        for i in range(begin, end):
            if events[i]["e"] == "received" and node_of(events[i]["m"][0]) == peer:
                got[events[i]["m"][:3]].append(i)
        dead = {
            e["m"][:4]
            for e in plot.logs[peer]
            if e["e"] == "dead_letter" and e["reason"] == "peer_busy"
        }
        for pair, places in got.items():
            for one, other in itertools.pairwise(places):
                first, last = events[one]["m"][3], events[other]["m"][3]
                gone = any((*pair, n) in dead for n in range(first + 1, last))
                others = [
                    e
                    for e in events[one:other]
                    if e["e"] in ("node_up", "node_down", "lost") and e["node"] == peer
                ]
                if gone and others == [events[index]] and one < index < other:
                    fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def lost_tail(plot: Plot) -> str | None:
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        before, after = plot.neighbours(name, index)
        begin, end = plot.life(name, index)
        peer = node_of(plot.logs[name][index]["m"][0])
        if before is not None and after is None and end == len(plot.logs[name]):
            if not plot.witnessed(name, before, end, peer):
                fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def lost_first(plot: Plot) -> str | None:
    """All of a pair is lost silently: only the sender can tell that there was something."""
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        event = plot.logs[name][index]
        peer = node_of(event["m"][0])
        log = plot.logs[peer]
        sent = next(i for i, e in enumerate(log) if e["e"] == "sent" and e["m"] == event["m"])
        end = plot.life(peer, sent)[1]
        if end == len(log) and plot.neighbours(name, index) == (None, None):
            if log[sent]["known"] is not None and not plot.witnessed(peer, sent, end, name):
                fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def lost_after_a_restart(plot: Plot) -> str | None:
    """A later life misses the first message that was sent to it."""
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        message = plot.logs[name][index]["m"]
        begin, end = plot.life(name, index)
        of_pair = [
            i
            for i in range(begin, end)
            if plot.logs[name][i]["e"] == "received" and plot.logs[name][i]["m"][:3] == message[:3]
        ]
        peer = node_of(message[0])
        sent = [
            next(
                i
                for i, event in enumerate(plot.logs[peer])
                if event["e"] == "sent" and event["m"] == plot.logs[name][at]["m"]
            )
            for at in of_pair[:2]
        ]
        if len(sent) == 2 and of_pair[0] == index:
            here, there = plot.logs[name][begin : of_pair[1]], plot.logs[peer][sent[0] : sent[1]]
            witnesses = [(here, peer), (there, name)]
            if not any(
                event["e"] in ("node_down", "lost") and event["node"] == other
                for log, other in witnesses
                for event in log
            ):
                fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G5"


def older_incarnation(plot: Plot) -> str | None:
    """A message of a life that has ended arrives after a later one is up."""
    fitting = []
    for name, index in plot.events("node_up"):
        up = plot.logs[name][index]
        for i, event in enumerate(plot.logs[up["node"]]):
            if event["e"] == "sent" and node_of(event["m"][2]) == name:
                if event["m"][1] < up["incarnation"]:
                    fitting.append((name, index + 1, plot.logs[up["node"]][i]["m"]))
    if (at := plot.pick(fitting)) is None:
        return None
    name, index, stamp = at
    event = {"e": "received", "m": stamp, "by": stamp[2], "digest": stamp[4]}
    plot.logs[name].insert(index, event)
    return "G3"


def later_incarnation(plot: Plot) -> str | None:
    """What was sent to a life of a node is held back, and sent to a later one of it."""
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        events = plot.logs[name]
        stamp = events[index]["m"]
        before, after = plot.neighbours(name, index)
        _, end = plot.life(name, index)
        for i in range(end, len(events)):
            e = events[i]
            peer_up = e["e"] == "node_up" and e["node"] == node_of(stamp[0])
            if peer_up and e["incarnation"] == stamp[1] and after is not None:
                fitting.append((name, index, i))
    if (at := plot.pick(fitting)) is None:
        return None
    name, index, later = at
    plot.logs[name].insert(later + 1, plot.logs[name][index])
    del plot.logs[name][index]
    return "G3"


def not_yet_told(plot: Plot) -> str | None:
    """What was sent to an earlier life, or to none, goes to one of which word is in the queue."""
    arrived = {plot.logs[name][index]["m"] for name, index in plot.arrivals(foreign=True)}
    fitting = []
    for name, index in plot.events("node_up"):
        events = plot.logs[name]
        begin, end = plot.life(name, index)
        peer, incarnation = events[index]["node"], events[index]["incarnation"]
        before = [
            i
            for i in range(begin, index)
            if events[i]["e"] in ("node_up", "node_down") and events[i]["node"] == peer
        ]
        # Before it was told of the end, where it had been told of an earlier life.
        at = before[-1] if before else index
        known = events[before[-2]]["incarnation"] if before else None
        pairs = set()
        for i in range(at, end):
            m = events[i]["m"] if events[i]["e"] == "sent" else None
            if m is None or node_of(m[2]) != peer:
                continue
            first = (m[0], m[2]) not in pairs
            pairs.add((m[0], m[2]))
            if i > index and first and m in arrived and events[i]["known"] == incarnation != known:
                fitting.append((name, i, at, known))
    if (place := plot.pick(fitting)) is None:
        return None
    name, index, at, known = place
    event = plot.logs[name].pop(index)
    plot.logs[name].insert(at, {**event, "known": known})
    return "G3"


def going_back(plot: Plot) -> str | None:
    """Word comes that an older life of a node is up."""
    fitting = [
        (name, index, life["incarnation"])
        for name, index in plot.events("node_up")
        for life in plot.logs[plot.logs[name][index]["node"]]
        if life["e"] == "start"
        if any(
            e["e"] == "node_up"
            and e["node"] == plot.logs[name][index]["node"]
            and e["incarnation"] > life["incarnation"]
            for e in plot.logs[name][plot.life(name, index)[0] : index]
        )
    ]
    if (at := plot.pick(fitting)) is None:
        return None
    name, index, incarnation = at
    plot.logs[name][index]["incarnation"] = incarnation
    return "G3"


def not_up(plot: Plot) -> str | None:
    fitting = []
    for name, index in plot.arrivals(foreign=True):
        peer = node_of(plot.logs[name][index]["m"][0])
        _, end = plot.life(name, index)
        for i in range(index, end):
            if plot.logs[name][i]["e"] == "node_down" and plot.logs[name][i]["node"] == peer:
                fitting.append((name, index, i))
                break
    if (at := plot.pick(fitting)) is None:
        return None
    name, index, down = at
    plot.logs[name].insert(down + 1, plot.logs[name][index])
    del plot.logs[name][index]
    return "G8"


def double_down(plot: Plot) -> str | None:
    if (at := plot.pick(plot.events("node_down"))) is None:
        return None
    plot.logs[at[0]].insert(at[1] + 1, plot.logs[at[0]][at[1]])
    return "G8"


def double_up(plot: Plot) -> str | None:
    if (at := plot.pick(plot.events("node_up"))) is None:
        return None
    plot.logs[at[0]].insert(at[1] + 1, plot.logs[at[0]][at[1]])
    return "G8"


def missing_down(plot: Plot) -> str | None:
    fitting = []
    for name, index in plot.events("node_down"):
        _, end = plot.life(name, index)
        if any(
            e["e"] == "node_up" and e["node"] == plot.logs[name][index]["node"]
            for e in plot.logs[name][index:end]
        ):
            fitting.append((name, index))
    if (at := plot.pick(fitting)) is None:
        return None
    del plot.logs[at[0]][at[1]]
    return "G8"


def disagreeing_members(plot: Plot) -> str | None:
    name, index = plot.pick(plot.events("members"))
    names = plot.logs[name][index]["names"]
    if plot.rng.random() < 0.5:
        plot.logs[name][index]["names"] = [*names, "n9"]
    else:
        gone = plot.rng.choice(names)
        plot.logs[name][index]["names"] = [n for n in names if n != gone]
    return "G11"


def link_missing_at_the_end(plot: Plot) -> str | None:
    name, index = plot.pick(plot.events("members"))
    others = [n for n in plot.logs if n != name]
    plot.logs[name].insert(index, {"e": "node_down", "node": plot.rng.choice(others)})
    return "G11"


def no_rest(plot: Plot) -> str | None:
    name, index = plot.pick(plot.events("members"))
    del plot.logs[name][index:]
    return "G11"


PLANTED: list[Callable[[Plot], str | None]] = [
    duplicate,
    changed_body,
    forged,
    reordered,
    silent_gap,
    silent_gap_at_the_sender,
    too_few_said_to_be_lost,
    lost_tail,
    lost_first,
    lost_after_a_restart,
    older_incarnation,
    later_incarnation,
    not_yet_told,
    going_back,
    not_up,
    double_down,
    double_up,
    missing_down,
    disagreeing_members,
    link_missing_at_the_end,
    no_rest,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_each_planted_violation_is_found(plant: Callable[[Plot], str | None], seed: int) -> None:
    # The first history that has a place for it.
    for each in range(seed, seed + 100):
        logs = simulated(each)
        if (promise := plant(Plot(logs, random.Random(each)))) is not None:
            assert promise in {violation.promise for violation in check(logs, alive=logs)}
            return
    pytest.fail("no place to plant it in 100 histories")


def test_a_word_about_three_lost_does_not_excuse_four() -> None:
    a, b, c = "a::n1@h:1", "b::n2@h:1", "c::n2@h:1"

    def sent(to: str, number: int) -> Event:
        return {"e": "sent", "m": (a, 1, to, number, "x"), "known": 2}

    def got(to: str, number: int) -> Event:
        return {"e": "received", "m": (a, 1, to, number, "x"), "by": to, "digest": "x"}

    def busy(to: str, number: int) -> Event:
        return {"e": "dead_letter", "m": (a, 1, to, number, "x"), "reason": "peer_busy"}

    rest: Event = {"e": "members", "names": ["n1", "n2"], "final": True}
    one: list[Event] = [
        {"e": "start", "node": "n1", "incarnation": 1},
        {"e": "node_up", "node": "n2", "incarnation": 2},
        *(sent(to, number) for number in (1, 2, 3, 4) for to in (b, c)),
        *(busy(to, number) for number in (2, 3) for to in (b, c)),
        rest,
    ]

    def other(count: int) -> list[Event]:
        return [
            {"e": "start", "node": "n2", "incarnation": 2},
            {"e": "node_up", "node": "n1", "incarnation": 1},
            *(got(b, 1), got(c, 1)),
            {"e": "lost", "count": count, "node": "n1"},
            *(got(b, 4), got(c, 4)),
            rest,
        ]

    assert check({"n1": one, "n2": other(4)}) == []
    (violation,) = check({"n1": one, "n2": other(3)})
    assert violation.promise == "G5" and "4 messages" in violation.text


# The log itself.


def test_what_is_logged_is_read_again_and_checked(tmp_path: Path) -> None:
    a, b = "a::n1@h:1", "b::n2@h:1"
    with Log(tmp_path / "n1.jsonl", "n1") as one, Log(tmp_path / "n2.jsonl", "n2") as other:
        one.start(5)
        other.start(7)
        one.node_up("n2", 7)
        other.node_up("n1", 5)
        stamps = [one.sent(a, b, body, known=7) for body in (b"x", b"y", b"z")]
        assert [stamp[3] for stamp in stamps] == [1, 2, 3]
        other.received(stamps[0], b, b"x")
        one.dead_letter(stamps[1], "peer_busy")
        other.lost(1, "n1")
        other.received(list(stamps[2]), b, b"?")
        for log in (one, other):
            log.members({"n2", "n1"}, final=True)
            log.stop()
    (violation,) = check_files(tmp_path.glob("*.jsonl"), alive=["n1", "n2"])
    assert (violation.promise, violation.node, violation.at) == ("G4", "n2", 4)
    assert "message 3 from a::n1@h:1" in str(violation)


def test_a_line_may_be_torn_only_where_a_life_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Log(path, "n1") as log:
        log.start(1)
    with open(path, "ab") as file:
        file.write(b'{"e":"sen')
    assert [event["e"] for event in read(path)] == ["start"]
    with Log(path, "n1") as log:
        log.start(2)
    assert [event["e"] for event in read(path)] == ["start", "start"]
    with open(path, "ab") as file:
        file.write(b'{"e":"sen\n{"e":"stop"}\n')
    with pytest.raises(BrokenLog, match="no JSON"):
        read(path)


def test_a_log_that_cannot_be_is_the_applications_fault(tmp_path: Path) -> None:
    start: Event = {"e": "start", "node": "n1", "incarnation": 1}
    message = ("a::n1@h:1", 1, "b::n2@h:1", 1, "x")
    sent: Event = {"e": "sent", "m": message, "known": None}
    wrong: list[list[Event]] = [[sent], [start, sent, sent], [{**start, "node": "n2"}]]
    for events in wrong:
        with pytest.raises(BrokenLog):
            check({"n1": events})
    for name in ("one", "other"):
        with Log(tmp_path / name, "n1") as log:
            log.start(1)
    with pytest.raises(BrokenLog, match="second log"):
        check_files(tmp_path.iterdir())


WRITES_UNTIL_KILLED = """
import sys
from tests.faults.history import Log
log = Log(sys.argv[1], "n1")
log.start(1)
for number in range(1, 10**9):
    log.sent("a::n1@h:1", "b::n1@h:1", b"body", None)
    if number == 1000:
        print("ready", flush=True)
"""


def test_what_was_logged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "log"
    argv = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(path)]
    root = Path(history.__file__).parents[2]
    with OsProcess(argv, ready="ready", env={"PYTHONPATH": os.fspath(root)}) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    events = read(path)
    assert [event["m"][3] for event in events[1:]] == list(range(1, len(events)))
    assert len(events) > 1000
