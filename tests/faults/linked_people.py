"""The people of a fault test that link with each other, on one node and across nodes.

They write what `tests.faults.rules.links` looks at. Each may ask for a link with any other one, and
either of two that are linked may end that. What both know of a link comes about so: behind its
`Link` one sends `Asking`; the answer to that says which life it met, and `Sure` tells this life
that the other one has it. What is sent behind an `Unlink`, to oneself and, as `Untied`, to the
other one, comes when nothing of the link can follow.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import rabble
from rabble import (
    Down,
    DownReason,
    Envelope,
    Exit,
    Link,
    Monitor,
    Output,
    Pid,
    Process,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Unlink,
)
from tests.faults.people import EVERY_MS, Here, Living, People, Planned, Rang, Who

TRAPPER, TIED, WARD = "trapper", ("tied1", "tied2"), "ward"
#: Who may be linked with, on each node; the ward is the trapper's child.
ALL = (TRAPPER, *TIED, WARD)


@rabble.message(name="faults.asking")
class Asking:
    """Asks which life this is, behind the sender's `Link` of that number."""

    token: str
    number: int


@rabble.message(name="faults.sure")
class Sure:
    """The sender had the answer to its `Asking` of that number, from the life `to`."""

    token: str
    number: int
    to: str


@rabble.message(name="faults.untied")
class Untied:
    """Stands behind the sender's `Unlink`."""

    token: str


@dataclasses.dataclass(frozen=True)
class Parted:
    """Stands behind one's own `Unlink`; `token` is the life that it parted from."""

    token: str


@dataclasses.dataclass
class Tie:
    """What one knows of a link that it, or the other one, asked for."""

    number: int
    is_own: bool
    #: The other life, as soon as that is known, and whether both are sure of the link.
    token: str | None = None
    is_sure: bool = False


class Tied(Living):
    """Ends with those that it is linked with, if they end abnormally."""

    every_ms = 2 * EVERY_MS
    TIES_MAX = 2

    def __init__(self, people: People) -> None:
        super().__init__(people, traps=self.traps_exits)
        self.numbers = itertools.count(1)
        self.ties: dict[Pid, Tie] = {}
        #: The lives that links were ended with, until somebody asks for another one.
        self.parted: dict[Pid, str] = {}

    def act(self) -> list[Envelope]:
        lot = self.random.random()
        if lot < 0.02:
            return self.come_to_an_end()
        if lot < 0.025:
            return self.link(Pid("nobody", self.random.choice(self.people.nodes)))
        pid = Pid(self.random.choice(ALL), self.random.choice(self.people.nodes))
        if self.ties and lot < 0.6:
            pid = self.random.choice(sorted(self.ties, key=str))
        if pid == self.pid:
            return []
        tie = self.ties.get(pid)
        if tie is None:
            # Not too often: each one that is linked ends with a whole cluster.
            may_link = len(self.ties) < self.TIES_MAX and self.random.random() < 0.35
            return self.link(pid) if may_link else []
        if self.random.random() < 0.75:
            return [Envelope(pid, Who(0))]
        del self.ties[pid]
        if not tie.is_sure:
            # Nobody may have answered. There may be a link, of which it says nothing.
            return []
        assert tie.token is not None
        self.write("unlink", token=tie.token)
        self.parted[pid] = tie.token
        return [
            self.to_executor(Unlink(pid)),
            Envelope(pid, Untied(self.token)),
            Envelope(self.pid, Parted(tie.token)),
        ]

    def come_to_an_end(self) -> list[Envelope]:
        match self.random.choice(["crash", "stop", "shutdown"]):
            case "crash":
                # Whoever ends with it reads from this which life it was.
                raise Planned(self.token)
            case "stop":
                return [self.to_executor(Stop(self.pid))]
        return [self.to_executor(Stop(self.pid, DownReason("shutdown", self.token)))]

    def link(self, pid: Pid, request: Link | Spawn | None = None) -> list[Envelope]:
        """Ask for a link, and behind that for who it is with."""
        self.write("link", pid=str(pid))
        self.parted.pop(pid, None)
        number = next(self.numbers)
        self.ties[pid] = Tie(number, is_own=True)
        return [
            self.to_executor(request or Link(pid)),
            Envelope(pid, Asking(self.token, number)),
        ]

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Who(number):
                return [rabble.reply(Here(self.token, number), sender, None)]
            case Parted(token):
                self.write("unlinked", token=token)
            case Exit(pid, reason, life):
                self.exit(pid, reason, life)
            case Here() | Asking() | Sure() | Untied():
                assert sender is not None
                self.write("heard", pid=str(sender), token=msg.token, confirms=0)
                return self.hear(sender, msg)
        return []

    def exit(self, pid: Pid, reason: DownReason, life: int) -> None:
        tie = self.ties.pop(pid, None)
        parted = self.parted.pop(pid, None)
        token = tie.token if tie is not None and tie.is_sure else parted
        self.write("exit", pid=str(pid), token=token, kind=reason.kind, life=life)

    def hear(self, pid: Pid, msg: Here | Asking | Sure | Untied) -> list[Envelope]:
        tie = self.ties.get(pid)
        if tie is not None and tie.token not in (None, msg.token):
            # That one ended in order, of which only those that trap exits are told.
            del self.ties[pid]
            tie = None
        match msg:
            case Asking(token, number):
                self.parted.pop(pid, None)
                if tie is None:
                    self.ties[pid] = Tie(number, is_own=False, token=token)
                return [Envelope(pid, Here(self.token, number))]
            case Here(token, number) if tie and tie.is_own and tie.number == number:
                tie.token = token
                self.sure(tie)
                return [Envelope(pid, Sure(self.token, number, token))]
            case Sure(_, number, to) if tie and not tie.is_own and tie.number == number:
                # Whatever ended the link that it tells of would have come before, and ended this.
                if to == self.token:
                    self.sure(tie)
            case Untied(token) if tie:
                del self.ties[pid]
                if tie.is_sure:
                    self.write("unlinked", token=token)
                    self.parted[pid] = token
        return []

    def sure(self, tie: Tie) -> None:
        if not tie.is_sure:
            tie.is_sure = True
            self.write("linked", token=tie.token)

    def terminate(self, reason: DownReason) -> Output:
        if reason.kind != "linked":
            return super().terminate(reason)
        # "tied1::n2@h:1: crashed: Planned: " and the token of that life, or another kind without.
        text, _, why = reason.detail.partition(": ")
        token: str | None = why.rpartition(" ")[2]
        if not why.startswith("crashed"):
            tie = self.ties.get(Pid.parse(text))
            token = tie.token if tie is not None and tie.is_sure else None
        end = {"how": "linked", "of": token, "pid": text, "why": why.partition(":")[0]}
        self.people.log.write("life_end", token=self.token, **end)
        self.people.ended(self.token)
        return None


class Trapper(Tied):
    """Is told of exits instead, and has a child that is linked with it from its first moment on."""

    traps_exits = True

    def begin(self) -> list[Envelope]:
        return self.raise_ward()

    def raise_ward(self) -> list[Envelope]:
        spawn = Spawn(Tied(self.people), WARD, link=True, monitor=True)
        return self.link(Pid(WARD, self.node_id), spawn)

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case SpawnFailed(pid):
                # That of a predecessor which ended in order lives on.
                self.ties.pop(pid, None)
                return [self.to_executor(Monitor(pid))]
            case Down():
                # Its Exit comes before.
                wait_ms = self.random.choice([1, 300])
                return [self.to_executor(StartTimer(WARD, wait_ms, Rang(WARD)))]
            case Rang():
                return self.raise_ward()
        return super().handle(msg, sender, correlation_id)


def linked_people(people: People) -> dict[str, Callable[[], Process]]:
    """Those of a node that are started anew at their end, by name."""
    return {TRAPPER: partial(Trapper, people), **{name: partial(Tied, people) for name in TIED}}


__all__ = ["ALL", "linked_people"]
