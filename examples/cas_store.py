"""A key-value store on three nodes with compare-and-set, which goes on as long as two live.

Reading and writing at a majority, as replicated_store.py does, is not enough for that: two clients
that have read the same would both set (Herlihy 1991, "Wait-free synchronization"). So all replicas
agree on each change: who makes it has a majority promise to take none that began earlier, changes
the latest value that these have, and has a majority accept that (Rystsov 2018, "CASPaxos:
Replicated state machines without logs"). If another change came between it begins again.

What a replica has it has in memory. One that was killed has forgotten what it promised, so it must
not come back into the same store. store_api.py is a server for it, and tries it out.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import rabble
from rabble import (
    Ask,
    CorrelationId,
    Envelope,
    Failed,
    Group,
    JoinGroup,
    Output,
    Pid,
    Process,
    Reply,
    Request,
    StartTimer,
    reply,
)

REPLICAS = 3
MAJORITY = REPLICAS // 2 + 1
ATTEMPTS_MAX = 20
#: Milliseconds before a change begins again, at most: twice as many with each attempt.
AGAIN_MS_FIRST, AGAIN_MS_MAX = 5, 500
ANSWER_MS = 2_000

#: What clients are answered: whether it was `done`, the `value` since, or `why` neither is known.
Outcome = dict[str, Any]
#: A number, and the name of the node that gave it. The greater one is the later one.
Ballot = tuple[int, str]


@rabble.message(name="cas_store.Get")
class Get(Request[Outcome]):
    """Asks for a value; of a key that was never put it is `None`."""

    key: str


@rabble.message(name="cas_store.Put")
class Put(Request[Outcome]):
    """Sets a value, or deletes it with `None`."""

    key: str
    value: str | None


@rabble.message(name="cas_store.CompareAndSet")
class CompareAndSet(Request[Outcome]):
    """Sets a value if it is as expected; else nothing is done."""

    key: str
    old: str | None
    new: str | None


@rabble.message(name="cas_store.CountReplicas")
class CountReplicas(Request[dict[str, int]]):
    """Asks how many replicas this one knows, itself included."""


@rabble.message(name="cas_store.Cell")
class Cell:
    """What a key has: the value, since which ballot, and the latest change of each node in it."""

    ballot: Ballot
    value: str | None
    changes: dict[str, int]


@rabble.message(name="cas_store.Prepare")
class Prepare:
    """Asks a replica to accept nothing earlier; answered with its `Cell`, or `Refused`."""

    key: str
    ballot: Ballot


@rabble.message(name="cas_store.Accept")
class Accept:
    """Gives a replica a `Cell`; answered with it, or `Refused`."""

    key: str
    cell: Cell


@rabble.message(name="cas_store.Refused")
class Refused:
    """The answer of a replica that has promised a later ballot."""

    ballot: Ballot


Wanted = Get | Put | CompareAndSet


@dataclasses.dataclass(eq=False)
class Change:
    """What a client wants, until it is answered."""

    wanted: Wanted
    client: Pid | None
    request: CorrelationId | None
    attempts: int = 0
    #: What came of each attempt that was proposed, by its number: if it was accepted.
    outcomes: dict[int, Outcome] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Round:
    """What all replicas were asked for a change: to promise, or to accept."""

    change: Change
    number: int
    answers: list[Cell] = dataclasses.field(default_factory=list)
    lost: int = 0
    #: What they are to accept.
    is_proposed: bool = False
    outcome: Outcome = dataclasses.field(default_factory=dict)


class Replica(Process):
    """Has a cell of each key, and makes the changes of its clients, of each key one at a time."""

    def __init__(self) -> None:
        self.replicas = Group("replicas")
        self.cells: dict[str, Cell] = collections.defaultdict(lambda: Cell((0, ""), None, {}))
        self.promised: dict[str, Ballot] = collections.defaultdict(lambda: (0, ""))
        self.changes: dict[str, list[Change]] = collections.defaultdict(list)
        self.number = 0

    def init(self) -> Output:
        join = JoinGroup("replicas")
        return [Envelope(self.executor, join), self.replicas.subscribe(self.executor)]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Get(key) | Put(key) | CompareAndSet(key):
                changes = self.changes[key]
                changes.append(Change(msg, sender, correlation_id))
                return self.begin(changes[0]) if len(changes) == 1 else None
            case Prepare(key, ballot):
                return reply(self.promise(key, ballot), sender, correlation_id)
            case Accept(key, cell):
                return reply(self.accept(key, cell), sender, correlation_id)
            case Reply(Round() as asked, Cell() as cell):
                asked.answers.append(cell)
                return self.go_on(asked) if len(asked.answers) == MAJORITY else None
            case Reply(Round() as asked, Refused(ballot)):
                self.number = max(self.number, ballot[0])
                return self.miss(asked)
            case Failed(Round() as asked):
                return self.miss(asked)
            case Change():
                return self.begin(msg)
            case CountReplicas():
                return reply({"replicas": len(self.replicas)}, sender, correlation_id)
            case _:
                self.replicas.takes(msg)
        return None

    # What others ask for their changes.

    def promise(self, key: str, ballot: Ballot) -> Cell | Refused:
        if ballot <= self.promised[key]:
            return Refused(self.promised[key])
        self.promised[key] = ballot
        return self.cells[key]

    def accept(self, key: str, cell: Cell) -> Cell | Refused:
        if cell.ballot < self.promised[key]:
            return Refused(self.promised[key])
        self.promised[key] = cell.ballot
        self.cells[key] = cell
        return cell

    # What this one asks for a change.

    def begin(self, change: Change) -> Output:
        if len(self.replicas) < MAJORITY or change.attempts == ATTEMPTS_MAX:
            why = "it may have been done" if change.outcomes else "nothing was done"
            return self.finish(change, {"why": f"no majority; {why}"})
        change.attempts += 1
        self.number += 1
        prepare = Prepare(change.wanted.key, (self.number, self.node_id.name))
        return self.ask_all(prepare, Round(change, self.number))

    def ask_all(self, msg: Prepare | Accept, asked: Round) -> Output:
        members = self.replicas.members
        asked.lost = REPLICAS - len(members)
        return [Envelope(self.executor, Ask(member, msg, ANSWER_MS, asked)) for member in members]

    def miss(self, asked: Round) -> Output:
        """Begin again, a little later, if no majority can be had any more."""
        asked.lost += 1
        if asked.lost != REPLICAS - MAJORITY + 1:
            return None
        most_ms = min(AGAIN_MS_FIRST * 2**asked.change.attempts, AGAIN_MS_MAX)
        wait = StartTimer(asked.change, self.random.uniform(0, most_ms), asked.change)
        return Envelope(self.executor, wait)

    def go_on(self, asked: Round) -> Output:
        change, name = asked.change, self.node_id.name
        if asked.is_proposed:
            return self.finish(change, asked.outcome)
        latest = max(asked.answers, key=lambda cell: cell.ballot)
        number = latest.changes.get(name, 0)
        if number in change.outcomes:
            # An earlier attempt came through, or others took it up.
            value, changes, outcome = latest.value, latest.changes, change.outcomes[number]
        else:
            value, outcome = changed(change.wanted, latest.value)
            changes = {**latest.changes, name: asked.number}
        change.outcomes[asked.number] = outcome
        cell = Cell((asked.number, name), value, changes)
        proposed = Round(change, asked.number, is_proposed=True, outcome=outcome)
        return self.ask_all(Accept(change.wanted.key, cell), proposed)

    def finish(self, change: Change, outcome: Outcome) -> Output:
        changes = self.changes[change.wanted.key]
        changes.remove(change)
        answer = reply(outcome, change.client, change.request)
        if changes:
            return [answer, Envelope(self.pid, changes[0])]
        del self.changes[change.wanted.key]
        return answer


def changed(wanted: Wanted, value: str | None) -> tuple[str | None, Outcome]:
    """What a client's wish makes of a value, and what it is answered."""
    match wanted:
        case Put(_, new):
            return new, {"done": True, "value": new}
        case CompareAndSet(_, old, new) if old == value:
            return new, {"done": True, "value": new}
        case CompareAndSet():
            return value, {"done": False, "value": value}
        case Get():
            return value, {"done": True, "value": value}
