"""The processes of a fault test that ask, watch, claim names, set timers and have families.

They write what `tests.faults.rules` looks at. Each has a token that no other life has; what it is
about to do is written before it is done, and what it is told as soon as it comes. `Keeper` starts
those anew that end, which they do all the time.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import rabble
from rabble import (
    Ask,
    CancelTimer,
    ChildSpec,
    CorrelationId,
    Down,
    DownReason,
    Envelope,
    Failed,
    Group,
    GroupJoined,
    GroupRefused,
    JoinGroup,
    LeaveGroup,
    Monitor,
    NameHolder,
    NameLost,
    NameRefused,
    NodeId,
    Output,
    Pid,
    Process,
    Register,
    Registered,
    Reply,
    Restart,
    Shutdown,
    Spawn,
    StartTimer,
    Stop,
    Strategy,
    Supervisor,
    SupervisorFailed,
    Tick,
    Timeout,
    TimerCancelled,
    Unregister,
    Unregistered,
    WhereIs,
)
from tests.faults.history import Log

PEOPLE = ("p1", "p2")
ASKERS = ("asker1", "asker2")
WATCHER, CLOCK, KEEPER, WARDEN, TOP = "watcher", "clock", "keeper", "warden", "top"
NAMES = ("leader", "writer", "clerk")
GROUPS = ("red", "blue")
#: Milliseconds between what one of them does and the next.
EVERY_MS = 80.0
#: What an envelope to oneself stands behind when it has come as often: more than a tree is deep.
HOPS = 6


class Planned(Exception):
    """A crash that is part of the test."""


def is_planned(record: logging.LogRecord) -> bool:
    """Whether the log tells of a crash that is part of the test."""
    kind = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
    # What is logged is a copy, of a class of its own.
    return kind is not None and kind.__name__ in (Planned.__name__, SupervisorFailed.__name__)


@rabble.message(name="faults.question")
class Question:
    """A request: what is to be done with it, by this one and, when it was passed on, the next."""

    id: str
    does: list[str]
    ms: float


@rabble.message(name="faults.answer")
class Answer:
    word: str


@rabble.message(name="faults.who")
class Who:
    """Asks which life this is; stands behind the monitor of that number, if it is not 0."""

    number: int


@rabble.message(name="faults.here")
class Here:
    token: str
    number: int


@dataclasses.dataclass(frozen=True)
class Act:
    """It is time to do something; told by a timer."""


@dataclasses.dataclass(frozen=True)
class Later:
    """A request that was put off is to be answered."""

    id: str


@dataclasses.dataclass(frozen=True)
class Rang:
    key: str


@dataclasses.dataclass(frozen=True)
class Hop:
    """Comes round until what stood in the queue with it has been handled."""

    token: str
    left: int


@dataclasses.dataclass(frozen=True)
class Die:
    pass


class People:
    """What they share; all run in one thread."""

    def __init__(
        self,
        log: Log,
        own: NodeId,
        nodes: list[NodeId],
        ask_ms: float,
        more: Callable[[People], dict[str, Callable[[], Process]]] = lambda people: {},
    ) -> None:
        """`ask_ms`: how long most questions may take, of which most are answered at once.

        `more`: makes others that are started anew at the end, and monitored, by name.
        """
        self.log = log
        self._more = more(self)
        self.ask_ms = ask_ms
        self.nodes = nodes
        #: Whether they do anything by themselves.
        self.on = False
        self._tokens = itertools.count(1)
        self._prefix = f"{own.name}/{log.incarnation}"
        #: What was asked for and has not ended, each with the token of who asked.
        self.open: dict[str, str] = {}
        #: The highest supervisor.
        self.top: Top | None = None

    def token(self, name: str) -> str:
        return f"{self._prefix}/{name}/{next(self._tokens)}"

    def opened(self, what: str, token: str) -> None:
        self.open[what] = token

    def closed(self, what: str) -> None:
        self.open.pop(what, None)

    def ended(self, token: str) -> None:
        self.open = {what: by for what, by in self.open.items() if by != token}

    def everybody(self) -> list[Pid]:
        return [Pid(name, node) for node in self.nodes for name in PEOPLE]

    def monitored(self) -> list[Pid]:
        return [Pid(name, node) for node in self.nodes for name in (*PEOPLE, *self._more)]

    def mortals(self) -> dict[str, Callable[[], Process]]:
        """Who is started anew at the end."""
        return {
            **{name: partial(Person, self) for name in PEOPLE},
            **{name: partial(Asker, self) for name in ASKERS},
            CLOCK: partial(Clock, self),
            **self._more,
        }

    def crew(self) -> dict[str, Process]:
        """Those that a node starts, by name; the keeper starts the others."""
        return {KEEPER: Keeper(self), WARDEN: Warden(self), WATCHER: Watcher(self)}


class Living(Process):
    """Writes its beginning and its end, and acts every now and then."""

    every_ms = EVERY_MS
    #: How probable it is, each time it acts, that it ends.
    mortality = 0.0

    def __init__(self, people: People, **about: Any) -> None:
        self.people = people
        self.about = about
        self.token = ""

    def init(self) -> Output:
        self.token = self.people.token(self.pid.name)
        self.people.log.write("life", token=self.token, pid=str(self.pid), **self.about)
        return [*self.begin(), self.act_later()]

    def begin(self) -> list[Envelope]:
        return []

    def act(self) -> list[Envelope]:
        return []

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        return []

    def write(self, kind: str, /, **fields: Any) -> None:
        self.people.log.write(kind, by=self.token, **fields)

    def act_later(self) -> Envelope:
        wait_ms = self.random.uniform(0.5, 1.5) * self.every_ms
        return Envelope(self.executor, StartTimer("act", wait_ms, Act()))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        try:
            if not isinstance(msg, Act):
                return self.handle(msg, sender, correlation_id)
            if not self.people.on:
                return self.act_later()
            if self.random.random() < self.mortality:
                if self.random.random() < 0.5:
                    raise Planned("its time has come")
                return self.to_executor(Stop(self.pid))
            return [*self.act(), self.act_later()]
        except BaseException:
            self.end("crashed")
            raise

    def to_executor(self, msg: Any) -> Envelope:
        return Envelope(self.executor, msg)

    def terminate(self, reason: DownReason) -> Output:
        self.end(reason.kind)
        return None

    def end(self, how: str) -> None:
        self.people.log.write("life_end", token=self.token, how=how)
        self.people.ended(self.token)


class Person(Living):
    """Answers questions in all the ways there are, claims names, and joins groups."""

    every_ms = 4 * EVERY_MS
    mortality = 0.03

    def __init__(self, people: People) -> None:
        super().__init__(people)
        self.held: dict[str, tuple[Pid | None, Any]] = {}
        self.words = itertools.count(1)
        self.has: set[str] = set()
        self.waits: set[str] = set()
        self.inside: set[str] = set()

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Who(number):
                return [rabble.reply(Here(self.token, number), sender, None)]
            case Question():
                self.write("question", id=msg.id)
                return self.question(msg, sender, correlation_id)
            case Later(id):
                return self.answer(id, *self.held.pop(id))
            case Registered(name):
                self.write("registered", name=name)
                self.has.add(name)
                self.settled(name)
            case NameRefused(name):
                self.settled(name)
            case NameLost(name):
                self.write("name_lost", name=name)
                self.has.discard(name)
            case Unregistered(name):
                self.write("unregistered", name=name)
                self.settled(name)
            case GroupJoined(group):
                self.write("joined", group=group)
                self.people.closed(f"{self.token} {group}")
            case GroupRefused(group):
                self.people.closed(f"{self.token} {group}")
        return []

    def question(self, msg: Question, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg.does:
            case ["late", *_]:
                self.held[msg.id] = (sender, correlation_id)
                return [self.to_executor(StartTimer(("late", msg.id), msg.ms, Later(msg.id)))]
            case ["never", *_]:
                return []
            case ["crash", *_]:
                raise Planned("as it was asked")
            case ["stop", *_]:
                return [self.to_executor(Stop(self.pid))]
            case ["pass", *rest]:
                to = self.random.choice(self.people.everybody())
                self.write("passed", id=msg.id, to=str(to))
                # Its asker stays the same.
                return [Envelope(to, Question(msg.id, rest, msg.ms), sender, correlation_id)]
        return self.answer(msg.id, sender, correlation_id)

    def answer(self, id: str, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        word = f"{self.token}:{next(self.words)}"
        self.write("answer", id=id, word=word)
        return [rabble.reply(Answer(word), sender, correlation_id)]

    def settled(self, name: str) -> None:
        self.waits.discard(name)
        self.people.closed(f"{self.token} {name}")

    def act(self) -> list[Envelope]:
        out = []
        name = self.random.choice(NAMES)
        if name not in self.waits and self.random.random() < 0.4:
            self.waits.add(name)
            self.people.opened(f"{self.token} {name}", self.token)
            request: Any = Unregister(name) if name in self.has else Register(name)
            self.write("unregister" if name in self.has else "register", name=name)
            self.has.discard(name)
            out.append(self.to_executor(request))
        group = self.random.choice(GROUPS)
        if self.random.random() < 0.3:
            if group in self.inside:
                self.write("leave", group=group)
                out.append(self.to_executor(LeaveGroup(group)))
                self.inside.discard(group)
            else:
                self.write("join", group=group)
                self.people.opened(f"{self.token} {group}", self.token)
                out.append(self.to_executor(JoinGroup(group)))
                self.inside.add(group)
        return out


class Asker(Living):
    """Asks people by their pids, by names, and as members of groups."""

    mortality = 0.003

    def __init__(self, people: People) -> None:
        super().__init__(people)
        self.numbers = itertools.count(1)
        self.groups = {name: Group(name) for name in GROUPS}

    def begin(self) -> list[Envelope]:
        return [group.subscribe(self.executor) for group in self.groups.values()]

    def act(self) -> list[Envelope]:
        how = self.random.random()
        if how < 0.15:
            return [self.to_executor(WhereIs(self.random.choice(NAMES)))]
        to: Pid | None = self.random.choice(self.people.everybody())
        if how < 0.3:
            group = self.groups[self.random.choice(GROUPS)]
            to = group.member_of(self.random.randrange(1_000))
        elif how < 0.32:
            to = Pid("nobody", self.random.choice(self.people.nodes))
        return [] if to is None else [self.ask(to)]

    def ask(self, to: Pid) -> Envelope:
        first = ["pass"] if self.random.random() < 0.2 else []
        last = self.random.choices(
            ["answer", "late", "never", "crash", "stop"], [10, 4, 2, 0.4, 0.4], k=1
        )
        does = [*first, *last]
        timeout_ms = (
            self.random.uniform(0, 500) if self.random.random() < 0.2 else self.people.ask_ms
        )
        if last == ["never"]:
            timeout_ms = self.random.uniform(0, 1_000)
        id = f"{self.token}?{next(self.numbers)}"
        question = Question(id, does, self.random.uniform(0, 600))
        self.write("ask", id=id, to=str(to), timeout_ms=timeout_ms, does=does)
        self.people.opened(id, self.token)
        return self.to_executor(Ask(to, question, timeout_ms, id))

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        for group in self.groups.values():
            if group.takes(msg):
                return []
        match msg:
            case NameHolder(_, Pid() as to):
                return [self.ask(to)]
            case Reply(id, Answer(word)):
                self.write("ask_end", id=id, how="reply", word=word)
                self.people.closed(id)
            case Failed(id, reason):
                self.write("ask_end", id=id, how=type(reason).__name__, word=str(reason))
                self.people.closed(id)
        return []


class Watcher(Living):
    """Monitors people of all nodes, and asks them who they are."""

    every_ms = EVERY_MS / 2

    def __init__(self, people: People) -> None:
        super().__init__(people)
        self.numbers = itertools.count(1)
        #: The monitors that have not told of anything yet, by pid.
        self.monitors: dict[Pid, int] = {}

    def act(self) -> list[Envelope]:
        pid = self.random.choice(self.people.monitored())
        if pid in self.monitors:
            return [Envelope(pid, Who(0))]
        number = self.monitors[pid] = next(self.numbers)
        self.write("monitor", pid=str(pid), number=number)
        return [self.to_executor(Monitor(pid)), Envelope(pid, Who(number))]

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Here(token, number):
                self.write("heard", pid=str(sender), token=token, confirms=number)
            case Down(pid, reason, life):
                self.write("down", pid=str(pid), kind=reason.kind, life=life)
                self.monitors.pop(pid, None)
        return []


class Clock(Living):
    """Starts timers of all kinds, and takes some of them back."""

    mortality = 0.005
    REPEATED_MAX = 4

    def __init__(self, people: People) -> None:
        super().__init__(people)
        self.numbers = itertools.count(1)
        self.running: dict[str, Any] = {}
        self.repeated: list[str] = []

    def act(self) -> list[Envelope]:
        lot = self.random.random()
        if lot < 0.15 and self.running:
            # Whatever it has come to meanwhile.
            key = self.random.choice(sorted(self.running))
            return [self.to_executor(CancelTimer(self.running.pop(key), True))]
        number = next(self.numbers)
        repeat = lot < 0.3 and len(self.repeated) < self.REPEATED_MAX
        key: Any = f"t{number}"
        ms = self.random.choice([0.0, 1.0, self.random.uniform(0, 2_000)])
        if repeat:
            ms = self.random.uniform(20, 400)
            self.repeated.append(key)
            timer = StartTimer(key, ms, repeat=True)
        elif self.random.random() < 0.5:
            key = f"c{number}"
            timer = StartTimer(CorrelationId(self.pid, None, number), ms)
        else:
            timer = StartTimer(key, ms, Rang(key))
        self.running[key] = timer.correlation_id
        self.write("timer", key=key, ms=ms, repeat=repeat)
        return [self.to_executor(timer)]

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Tick(key, _, missed):
                self.write("fired", key=key, missed=missed)
            case Rang(key):
                self.write("fired", key=key, missed=0)
            case Timeout(CorrelationId(request=number)):
                self.write("fired", key=f"c{number}", missed=0)
            case TimerCancelled(key, was_active):
                if isinstance(key, CorrelationId):
                    key = f"c{key.request}"
                if key in self.repeated:
                    self.repeated.remove(key)
                self.write("timer_cancelled", key=key, was_active=was_active)
        return []


class Keeper(Living):
    """Starts mortals anew when they have ended."""

    def begin(self) -> list[Envelope]:
        # None of them is there yet, of which it is told as of an end.
        return [self.to_executor(Monitor(Pid(n, self.node_id))) for n in self.people.mortals()]

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Down(pid):
                wait_ms = self.random.choice([0, 300])
                return [self.to_executor(StartTimer(pid, wait_ms, Rang(pid.name)))]
            case Rang(name):
                process = self.people.mortals()[name]()
                return [
                    self.to_executor(Spawn(process, name)),
                    self.to_executor(Monitor(Pid(name, self.node_id))),
                ]
        return []


class Child(Living):
    """Lives until it is told to die."""

    every_ms = 3 * EVERY_MS

    def act(self) -> list[Envelope]:
        self.write("alive")
        return []

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        if isinstance(msg, Die):
            raise Planned("as its family fell")
        return []

    def terminate(self, reason: DownReason) -> Output:
        self.end("fell" if reason.kind == "linked" else reason.kind)
        return None


class Top(Supervisor):
    """A supervisor that writes its beginning and its end, and can be made to crash."""

    __slots__ = ("_about", "_told", "people", "token")

    def __init__(self, people: People, names: dict[str, int], **about: Any) -> None:
        """`names`: of its children, and how many supervisors are below each."""
        self.people = people
        self.token = people.token("supervisor")
        self._about = about
        self._told: str | None = None
        dice = [Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE]
        strategy = dice[zlib.crc32(self.token.encode()) % len(dice)]
        specs = []
        for place, (name, below) in enumerate(names.items()):
            start: Callable[[], Process] = partial(Child, people, parent=self.token, place=place)
            if below:
                more = {f"{name}1": 0, f"{name}2": below - 1, f"{name}3": 0}
                start = partial(Top, people, more, parent=self.token, place=place)
            specs.append(ChildSpec(name, start, restart=Restart.PERMANENT))
        super().__init__(specs, strategy=strategy, intensity=2, period_ms=1_000)

    def init(self) -> Output:
        self.people.log.write("life", token=self.token, pid=str(self.pid), **self._about)
        return super().init()

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        if isinstance(msg, Shutdown) and self._told is None:
            self._told = msg.reason
        try:
            if isinstance(msg, Die):
                raise Planned("as its family fell")
            return super().receive(msg, sender, correlation_id)
        except SupervisorFailed:
            self.people.log.write("life_end", token=self.token, how="gave_up")
            raise
        except BaseException:
            self.people.log.write("life_end", token=self.token, how="crashed")
            raise

    def terminate(self, reason: DownReason) -> Output:
        # It ends itself with the reason that it was told; anybody else's stop has another one.
        in_order = reason.kind == "shutdown" and reason.detail == self._told
        how = "shutdown" if in_order else "stopped"
        self.people.log.write("life_end", token=self.token, how=how)
        return super().terminate(reason)


class Warden(Living):
    """Has a family, ends it in one of all ways, and starts another one."""

    every_ms = 8 * EVERY_MS
    FAMILY = {"c1": 0, "c2": 2, "c3": 0}

    def begin(self) -> list[Envelope]:
        return self.found()

    def found(self) -> list[Envelope]:
        """Start a family."""
        top = self.people.top = Top(self.people, self.FAMILY)
        pid = Pid(TOP, self.node_id)
        return [self.to_executor(Spawn(top, TOP)), self.to_executor(Monitor(pid))]

    def act(self) -> list[Envelope]:
        top = Pid(TOP, self.node_id)
        match self.random.choice(["child", "below", "stop", "crash", "shutdown", "give up", ""]):
            case "child":
                name = self.random.choice(["c1", "c3", "c21", "c221", "c223"])
                return [Envelope(Pid(name, self.node_id), Die())]
            case "below":
                return [Envelope(Pid(self.random.choice(["c2", "c22"]), self.node_id), Die())]
            case "stop":
                return [self.to_executor(Stop(top, DownReason("stopped", f"{self.now}")))]
            case "crash":
                return [Envelope(top, Die())]
            case "shutdown":
                return [Envelope(top, Shutdown(f"told at {self.now}"))]
            case "give up":
                return [Envelope(Pid("c1", self.node_id), Die()), *self.kill_again(3)]
        return []

    def kill_again(self, times: int) -> list[Envelope]:
        return [
            self.to_executor(StartTimer(("kill", number), 30.0 * number, Rang("c1")))
            for number in range(1, times + 1)
        ]

    def handle(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        match msg:
            case Rang(name):
                return [Envelope(Pid(name, self.node_id), Die())]
            case Down():
                assert self.people.top is not None
                return [Envelope(self.pid, Hop(self.people.top.token, HOPS))]
            case Hop(token, 0):
                self.people.log.write("family_gone", token=token)
                return self.found()
            case Hop(token, left):
                return [Envelope(self.pid, Hop(token, left - 1))]
        return []
