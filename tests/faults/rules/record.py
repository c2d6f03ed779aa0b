"""The logs of all nodes, read once: which lives there were, and which nodes were connected when."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.faults.history import BrokenLog, Event, Violation, node_of

#: What may lie between an end that is known somewhere and whoever is to be told of it: the silence
#: after which a cut connection is down, and a line that loses packets, behind large messages. To
#: this comes the time for which a node concerned stood still.
SLACK_S = 8.0
#: When nothing is in the log of a node for so long it stood still, or had nothing to do.
STILL_S = 0.3
#: No node stands still for longer.
PAUSE_MAX_S = 120.0


@dataclasses.dataclass
class Boot:
    """One operating-system process of a node."""

    node: str
    #: Indexes of its first event and behind its last one, and when these were.
    begin: int
    end: int
    start: float
    last: float


@dataclasses.dataclass
class Life:
    """A process from its `init` to its end."""

    token: str
    node: str
    pid: str
    boot: Boot
    #: What else its first event says of it.
    about: Mapping[str, Any]
    begin: int
    start: float
    #: Index of its end in the node's log; None: it lived as long as its node.
    end: int | None = None
    #: When it ended, or its node did.
    until: float = math.inf
    #: `crashed`, `stopped` and so on; None: nobody wrote it down.
    how: str | None = None

    def lives_at(self, index: int) -> bool:
        """Whether it has begun and not ended at an event of its node's log."""
        end = self.boot.end if self.end is None else self.end
        return self.begin < index < end


class Record:
    """What all rules look at."""

    def __init__(self, logs: Mapping[str, Sequence[Event]]) -> None:
        self.logs = logs
        self.boots: dict[str, list[Boot]] = {}
        self.lives: dict[str, Life] = {}
        #: (node, peer) -> times at which the peer went up or down, in order, and which.
        self.turns: dict[tuple[str, str], list[tuple[float, bool]]] = collections.defaultdict(list)
        #: Node -> from when to when it stood still, in order.
        self.still: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
        #: Node -> index of the event and its time at which all had come to rest, in its last boot.
        self.rest: dict[str, tuple[int, float]] = {}
        for node, events in logs.items():
            self._read(node, events)
        self.by_pid: dict[str, list[Life]] = collections.defaultdict(list)
        for life in self.lives.values():
            self.by_pid[life.pid].append(life)

    def _read(self, node: str, events: Sequence[Event]) -> None:
        boots = self.boots[node] = []
        up: set[str] = set()
        for index, event in enumerate(events):
            kind, t = event["e"], event["t"]
            if kind == "start" and (event.get("boot") or not boots):
                self._all_down(node, up, boots[-1].last if boots else t)
                boots.append(Boot(node, index, index + 1, t, t))
                self.rest.pop(node, None)
            elif not boots:
                raise BrokenLog(f"{node}, event {index}: {kind} before any start")
            if t - boots[-1].last > STILL_S:
                self.still[node].append((boots[-1].last, t))
            boots[-1].end, boots[-1].last = index + 1, t
            if kind == "node_up":
                up.add(event["node"])
                self.turns[node, event["node"]].append((t, True))
            elif kind == "node_down":
                up.discard(event["node"])
                self.turns[node, event["node"]].append((t, False))
            elif kind == "life":
                about = {k: v for k, v in event.items() if k not in ("e", "t", "token", "pid")}
                if event["token"] in self.lives:
                    raise BrokenLog(f"{node}, event {index}: {event['token']} has begun already")
                self.lives[event["token"]] = Life(
                    event["token"], node, event["pid"], boots[-1], about, index, t
                )
            elif kind == "life_end":
                life = self.lives.get(event["token"])
                if life is None or life.boot is not boots[-1] or life.end is not None:
                    raise BrokenLog(f"{node}, event {index}: {event} of no life that runs")
                life.end, life.until, life.how = index, t, event["how"]
            elif kind == "members" and event["final"]:
                self.rest[node] = (index, t)
        for life in self.lives.values():
            if life.node == node and life.end is None:
                life.until = life.boot.last

    def _all_down(self, node: str, up: set[str], t: float) -> None:
        """A boot ended in the middle, and nobody could write that its peers are not up any more."""
        for peer in up:
            self.turns[node, peer].append((t, False))
        up.clear()

    def events(self, *kinds: str) -> Iterator[tuple[str, int, Event]]:
        """Node, index and event, of some kinds, log by log."""
        for node, events in self.logs.items():
            for index, event in enumerate(events):
                if event["e"] in kinds:
                    yield node, index, event

    def by(self, event: Event) -> Life:
        """Whose event it is."""
        try:
            return self.lives[event["by"]]
        except KeyError:
            raise BrokenLog(f"{event} of a life that never began") from None

    def due(self, t: float, *nodes: str, slack_s: float = SLACK_S) -> float:
        """By when what is known at a time must be told, or done, on all of some nodes.

        `slack_s` later, and as much more as they stood still meanwhile.
        """
        due = t + slack_s
        spans = sorted(span for node in {*nodes} for span in self.still[node])
        for begin, end in spans[bisect.bisect_left(spans, (t - PAUSE_MAX_S, 0.0)) :]:
            if begin >= due:
                break
            due += max(end - max(begin, t), 0.0)
        return due

    def told(self, t: float, source: str, home: str) -> float:
        """By when what a node knows at a time must be told at another one, if they are connected.

        A line may be slow, and much may wait for it: what was sent later by this way, and has come,
        says how slow. Without any nobody knows, and there is no such time.
        """
        if source == home:
            return self.due(t, home)
        sent = self._sent[source, home]
        begin = bisect.bisect_left(sent, (t, 0.0))
        end = bisect.bisect_right(sent, (t + SLACK_S, 0.0))
        came = min((arrival for _, arrival in sent[begin:end]), default=math.inf)
        return came if came == math.inf else self.due(max(came, t), source, home)

    @functools.cached_property
    def _sent(self) -> Mapping[tuple[str, str], list[tuple[float, float]]]:
        """(node, peer) -> when each message was sent that came, and when it came."""
        arrivals = {tuple(event["m"][:4]): event["t"] for _, _, event in self.events("received")}
        sent = collections.defaultdict(list)
        for node, _, event in self.events("sent"):
            if (arrival := arrivals.get(tuple(event["m"][:4]))) is not None:
                sent[node, node_of(event["m"][2])].append((event["t"], arrival))
        return sent

    def boot_at(self, node: str, t: float) -> Boot | None:
        """The boot of a node that runs at a time, as far as its log tells."""
        return next((b for b in self.boots.get(node, ()) if b.start <= t <= b.last), None)

    def is_up(self, node: str, peer: str, t: float) -> bool:
        turns = self.turns[node, peer]
        place = bisect.bisect_right(turns, (t, True))
        return place > 0 and turns[place - 1][1]

    def downs(self, node: str, peer: str, since: float, until: float) -> list[float]:
        """When a peer went down, as a node saw it, between two times."""
        return [t for t, up in self.turns[node, peer] if not up and since <= t <= until]

    def connected(self, one: str, other: str, since: float, until: float) -> bool:
        """Whether two nodes ran, and held each other up, for all of that time."""
        boot, there = self.boot_at(one, since), self.boot_at(other, since)
        if boot is None or there is None or boot.last < until or there.last < until:
            return False
        return one == other or all(
            self.is_up(a, b, since) and not any(since <= t <= until for t, _ in self.turns[a, b])
            for a, b in ((one, other), (other, one))
        )

    def whole(self) -> list[tuple[float, float]]:
        """The times at which every node runs and has every other one up, from when to when."""
        marks: list[tuple[float, int]] = []
        for boots in self.boots.values():
            for boot in boots:
                marks += [(boot.start, 1), (boot.last, -1)]
        for (node, peer), turns in self.turns.items():
            marks += [(t, 1 if up else -1) for t, up in turns]
            boots = self.boots[node]
            if turns and turns[-1][1] and peer in self.logs:
                # Up to the end.
                marks.append((boots[-1].last, -1))
        count = len(self.logs)
        wanted, have, since = count + count * (count - 1), 0, 0.0
        found = []
        for t, more in sorted(marks, key=lambda mark: (mark[0], mark[1])):
            if have == wanted and more < 0:
                found.append((since, t))
            have += more
            if have == wanted and more > 0:
                since = t
        return found


class Found(list[Violation]):
    """What a rule finds that breaks one promise."""

    def __init__(self, promise: str) -> None:
        super().__init__()
        self.promise = promise

    def say(self, node: str, at: int, text: str) -> None:
        self.append(Violation(self.promise, node, at, text))


__all__ = ["SLACK_S", "Boot", "Found", "Life", "Record", "node_of"]
