"""The executor, slow and obviously right: two deques, a dict, and a list of timers.

It knows processes, `init`, Spawn, Stop, monitors, links, timers, mailbox limits, the strict mode
and dead letters, and takes a script instead of a process: what `receive` returns is handed in.
Its time is in nanoseconds since it began, and handed in too.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

Letter = tuple[str, Any, str | None]  # to, message, sender
Script = Callable[[Any, str | None], list[Letter]]
TICK_NS = 1_000_000

#: The messages that a script is given instead of its `init` and its `terminate` being called.
INIT = "init"
TERMINATE = "terminate"


@dataclasses.dataclass(eq=False)
class End:
    """One end of a link. It stays while an exit waits that it is still to be told of."""

    active: bool = False
    exits: int = 0
    cut: bool = False


@dataclasses.dataclass(eq=False)
class Life:
    """One process from its spawn to its end; a later one of its name is another."""

    name: str
    script: Script
    limit: int | None
    started: bool
    #: The number of the first letter that was queued after its spawn.
    since: int
    #: Letters that were queued before it and were given to it.
    early: int = 0
    ended: bool = False
    #: Whether it has last words, and has not said them.
    terminates: bool = False
    #: Whether it is told of the end of whom it is linked with.
    traps: bool = False
    #: Whom it is linked with, or still to be told of.
    ends: dict[str, End] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Exit:
    """What the end of a life means to one that it was linked with, in its turn."""

    life: Life
    end: End
    name: str
    reason: str
    #: Who ended asked before that for the end of the link, and that has been handled.
    taken_back: bool = False

    def settle(self) -> None:
        self.end.exits -= 1
        if not self.end.active and not self.end.exits:
            del self.life.ends[self.name]

    def take_back(self) -> None:
        if not self.end.cut:
            self.settle()
        self.taken_back = True


@dataclasses.dataclass(eq=False)
class ReferenceTimer:
    owner: Life
    number: int
    due_ns: int
    has_fired: bool = False
    #: What it brings instead of a timeout.
    brings: Any = None
    #: Between two firings; 0: it fires once.
    period_ns: int = 0


class ReferenceExecutor:
    """Runs scripts `(message, sender) -> list of letters`, or raises, under names.

    :param make: the script and the mailbox limit of the next process of a name, and whether it has
        an `init` and a `terminate`, and traps exits; for `spawn` messages.
    :param strict: messages that `encodable` refuses do not travel.
    :param turn_max: how many are delivered between two looks at the inbox and the timers.
    :param due_max: how many timers that fired stand in the queue at a time.
    """

    def __init__(
        self,
        make: Callable[[str], tuple[Script, int | None, bool, bool, bool]],
        strict: bool = False,
        encodable: Callable[[Any], bool] = lambda message: True,
        turn_max: int = 1_024,
        due_max: int = 1_024,
    ) -> None:
        self.make = make
        self.strict = strict
        self.encodable = encodable
        self.now_ns = 0
        self.inbox: deque[Letter] = deque()
        self.queue: deque[tuple[int, tuple[str, Any, Any]]] = deque()
        self.queued = 0  # letters ever put into it, which numbers them
        self.lives: dict[str, Life] = {}
        self.watchers: dict[str, list[str]] = {}
        #: (who ended, whom it was linked with) -> the newest exit of it that waits.
        self.leaving: dict[tuple[str, str], Exit] = {}
        self.turn_max = turn_max
        self.due_max = due_max
        self.due: deque[ReferenceTimer] = deque()  # that fired and are not queued yet
        self.due_queued = 0
        self.timers: list[ReferenceTimer] = []  # that run, in the order of their starts
        self.trace: list[tuple[str, Any, str | None]] = []
        self.dead: list[tuple[str, Any, str]] = []

    def spawn(self, name: str, *, by_process: bool = False) -> bool:
        if name in self.lives:
            return False
        script, limit, has_init, terminates, traps = self.make(name)
        life = Life(
            name, script, limit, not has_init, self.queued, terminates=terminates, traps=traps
        )
        self.lives[name] = life
        if has_init and by_process:
            self.put("executor", ("start", life), None)
        elif has_init:
            # It waits for the next look at what other threads sent.
            self.inbox.append(("executor", ("start", life), None))
        return True

    def step(self) -> None:
        """One turn: take in what waits, fire what is due, deliver some."""
        while self.inbox:
            self.send(*self.inbox.popleft())
        # By the tick it is due in; Python's sort keeps the order of equals.
        now = self.now_ns // TICK_NS
        if not self.due:
            for timer in sorted(self.timers, key=lambda t: -(-t.due_ns // TICK_NS)):
                if -(-timer.due_ns // TICK_NS) <= now and not timer.has_fired:
                    timer.has_fired = True
                    self.due.append(timer)
        while self.due and self.due_queued < self.due_max:
            self.due_queued += 1
            self.put("executor", ("fire", self.due.popleft()), None)
        for _ in range(self.turn_max):
            if not self.queue:
                break
            number, (to, message, sender) = self.queue.popleft()
            life = self.lives.get(to)
            if to == "executor":
                self.control(message, sender)
            elif life is None:
                self.dead.append((to, message, "NO_PROCESS"))
            elif life.limit is not None and number < life.since and life.early == life.limit:
                # More waited for the name when it was spawned than may wait for it.
                self.dead.append((to, message, "MAILBOX_FULL"))
            else:
                life.early += number < life.since
                self.give(life, message, sender)

    @property
    def is_at_rest(self) -> bool:
        return not (self.inbox or self.queue or self.due)

    def put(self, to: str, message: Any, sender: str | None) -> None:
        # What is asked of the executor is asked by the life that has the name now.
        asker = self.lives.get(sender or "") if to == "executor" else None
        self.queue.append((self.queued, (to, message, asker or sender)))
        self.queued += 1

    def send(self, to: str, message: Any, sender: str | None) -> None:
        if self.strict and to != "executor" and not self.encodable(message):
            self.dead.append((to, message, "UNENCODABLE"))
            return
        life = self.lives.get(to)
        if life and life.limit is not None:
            waiting = sum(n >= life.since and letter[0] == to for n, letter in self.queue)
            if waiting >= life.limit:
                self.dead.append((to, message, "MAILBOX_FULL"))
                return
        self.put(to, message, sender)

    def tell(self, to: str, message: Any) -> None:
        """Say something to who has that name now; it takes no place in a mailbox."""
        if to in self.lives:
            self.put("executor", ("notice", self.lives[to], message), None)
        else:
            self.put(to, message, "executor")

    def give(self, life: Life, message: Any, sender: str | None) -> None:
        if not self.start(life):
            self.dead.append((life.name, message, "PROCESS_CRASHED"))
            return
        self.trace.append((life.name, message, sender))
        if not self.run(life, message, sender):
            self.dead.append((life.name, message, "PROCESS_CRASHED"))

    def start(self, life: Life) -> bool:
        if life.started:
            return True
        life.started = True
        self.trace.append((life.name, INIT, None))
        return self.run(life, INIT, None)

    def last_words(self, life: Life) -> bool:
        if not life.terminates or not life.started:
            return True
        life.terminates = False
        self.trace.append((life.name, TERMINATE, None))
        return self.run(life, TERMINATE, None)

    def run(self, life: Life, message: Any, sender: str | None) -> bool:
        try:
            letters = life.script(message, sender)
        except RuntimeError:
            self.remove(life, "crashed")
            return False
        for letter in letters:
            self.send(letter[0], letter[1], life.name)
        return True

    def control(self, message: Any, sender: Life | str | None) -> None:
        what, about = message[:2]
        if what == "notice":
            if about.ended:
                self.dead.append((about.name, message[2], "NO_PROCESS"))
            else:
                self.give(about, message[2], "executor")
            return
        asker = sender if isinstance(sender, Life) else self.lives.get(sender or "")
        leaver = sender.name if isinstance(sender, Life) else sender
        if asker is not None and asker.ended:
            asker = sender = None
        if what == "start":
            if self.lives.get(about.name) is about:
                self.start(about)
        elif what == "fire":
            self.due_queued -= 1
            if about in self.timers:
                self.timers.remove(about)
                message = about.brings or ("timeout", about.number)
                if about.period_ns:
                    # How many more than this one are due, by the times since the start.
                    missed = (self.now_ns - about.due_ns) // about.period_ns
                    about.due_ns += (missed + 1) * about.period_ns
                    about.has_fired = False
                    self.timers.append(about)
                    message = ("tick", about.number, about.brings, missed)
                self.give(about.owner, message, "executor")
        elif what == "stop":
            life = self.lives.get(about)
            if life is not None and self.last_words(life):
                self.remove(life, "stopped")
        elif what == "spawn":
            if not self.spawn(about, by_process=True) and sender is not None:
                name = sender if isinstance(sender, str) else sender.name
                self.tell(name, ("spawn failed", about))
        elif what == "exit":
            self.exit(about)
        elif what == "unlink" and leaver is not None and (leaver, about) in self.leaving:
            # Who asked has ended since.
            self.leaving.pop((leaver, about)).take_back()
        elif asker is None:
            pass
        elif what == "spawn linked":
            if self.spawn(about, by_process=True):
                self.link(asker, about)
                self.watchers.setdefault(about, []).append(asker.name)
            else:
                self.tell(asker.name, ("spawn failed", about))
        elif what == "link":
            self.link(asker, about)
        elif what == "unlink":
            self.unlink(asker, about)
        elif what == "monitor":
            if about not in self.lives:
                self.tell(asker.name, ("down", about, "no_process"))
            elif asker.name not in self.watchers.setdefault(about, []):
                self.watchers[about].append(asker.name)
        elif what == "demonitor":
            if asker.name in self.watchers.get(about, []):
                self.watchers[about].remove(asker.name)
        elif what in ("timer", "alarm", "every"):
            self.cancel(asker, about)
            delay_ns = round(message[2] * TICK_NS)
            timer = ReferenceTimer(asker, about, self.now_ns + delay_ns)
            if what != "timer":
                timer.brings = "ring"
            if what == "every":
                timer.period_ns = delay_ns
            self.timers.append(timer)
        elif what == "cancel":
            was_active = self.cancel(asker, about)
            if message[2]:
                self.tell(asker.name, ("cancelled", about, was_active))

    def link(self, asker: Life, name: str) -> None:
        if name == asker.name:
            return
        mine = asker.ends.setdefault(name, End())
        other = self.lives.get(name)
        if other is None:
            mine.exits += 1
            self.put("executor", ("exit", Exit(asker, mine, name, "no_process")), None)
        elif not mine.active:
            mine.active = other.ends.setdefault(asker.name, End()).active = True

    def unlink(self, asker: Life, name: str) -> None:
        mine = asker.ends.pop(name, None)
        if mine is None:
            return
        mine.cut = True
        if mine.active:
            other = self.lives[name]
            theirs = other.ends[asker.name]
            theirs.active = False
            if not theirs.exits:
                del other.ends[asker.name]

    def exit(self, it: Exit) -> None:
        """One that was linked with a life that has ended learns of it."""
        if self.leaving.get((it.name, it.life.name)) is it:
            del self.leaving[it.name, it.life.name]
        if it.taken_back or it.end.cut:
            return
        it.settle()
        if it.life.ended:
            pass
        elif it.life.traps:
            self.give(it.life, ("exit", it.name, it.reason), "executor")
        elif it.reason != "stopped" and self.last_words(it.life):
            self.remove(it.life, "linked")

    def cancel(self, owner: Life, number: int) -> bool:
        found = [t for t in self.timers if t.owner is owner and t.number == number]
        self.timers = [t for t in self.timers if t not in found]
        return bool(found)

    def remove(self, life: Life, reason: str) -> None:
        del self.lives[life.name]
        life.ended = True
        self.timers = [t for t in self.timers if t.owner is not life]
        for others in self.watchers.values():
            if life.name in others:
                others.remove(life.name)
        for watcher in self.watchers.pop(life.name, []):
            self.tell(watcher, ("down", life.name, reason))
        # The latest first.
        for name, end in reversed(life.ends.items()):
            if end.active:
                other = self.lives[name]
                theirs = other.ends[life.name]
                theirs.active = False
                theirs.exits += 1
                it = Exit(other, theirs, life.name, reason)
                self.leaving[life.name, name] = it
                self.put("executor", ("exit", it), None)
