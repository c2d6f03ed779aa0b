"""The processes of the stress program: they do what a message says, and note what they see."""

from __future__ import annotations

import collections
import dataclasses
import gc
import itertools
import random
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import rabble
from rabble import (
    CancelTimer,
    CorrelationId,
    DeadLetter,
    Demonitor,
    Down,
    Envelope,
    Monitor,
    Node,
    NodeDown,
    NodeStalled,
    NodeUp,
    Pid,
    Process,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Timeout,
    TimerCancelled,
)
from tests.stress.ledger import BIG, TRAVELS, Kept, Record, Rules, Said, Teller, Timers, Watch

TIMERS_PER_LIFE = 1_000_000
TIMER_MS_MAX = 40


@rabble.message(name="stress.Answer")
class Answer:
    """The reply to a call; says to which."""

    teller: str
    to: str
    number: int


@rabble.message(name="stress.Mark")
class Mark:
    """Comes back to a watcher when what it asked for has been handled."""

    what: str
    number: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one round is like."""

    strict: bool
    #: Whether there are processes with a mailbox limit.
    limited: bool
    #: `Limits.inbox_envelopes_max`, or 0 for its default.
    inbox_max: int
    spin_us: int
    remote: bool
    #: Thresholds of the garbage collector, or none.
    gc: tuple[int, int, int] | None
    big: bool
    #: Whether processes that live and die, and mailboxes, are told of dead letters.
    subscribers: bool
    #: The nodes end while everybody still acts.
    abrupt: bool
    #: How many envelopes one output has at most.
    outputs: int
    #: Without what is known to break the core of before.
    gentle: bool


class World:
    """One round: its nodes, names, and all that was noted."""

    def __init__(self, settings: Settings, seed: str, threads: int) -> None:
        self.settings = settings
        self.seed = seed
        self.threads = threads
        self.nodes: dict[str, Node] = {}
        self.records: dict[str, Record] = {}
        self.more_records: list[Record] = []
        self.tellers: list[Teller] = []
        self.pids: dict[str, Pid] = {}
        self.lives = itertools.count(1)
        self.batches = itertools.count(1)
        self.workers: weakref.WeakSet[Worker] = weakref.WeakSet()
        self.immortal_timers: list[Timers] = []
        self.watchers: list[Watcher] = []
        #: Lists of envelopes that everybody returns, by node.
        self.kept: dict[str, list[Envelope]] = {}
        self.drawn: set[int] = set()
        #: The core's number of a life: ours.
        self.core_lives: dict[tuple[str, int], int] = {}
        self.never_born: set[int] = set()
        self.serials = itertools.count(1)
        self.over = False
        nodes = ("a", "b") if settings.remote else ("a",)
        at = lambda names: [f"{name}@{node}" for node in nodes for name in names]  # noqa: E731
        self.immortals = at(["i0", "i1"])
        self.mortals = at([f"m{n}" for n in range(6)])
        self.limited = at(["l0", "l1", "l2"]) if settings.limited else []
        self.credits = at(["c0"]) if settings.limited and not settings.inbox_max else []
        self.watching = at(["w0", "w1"])
        self.endable = self.mortals + self.limited
        self.names = self.immortals + self.mortals + self.limited
        limits = (1, 5, 40)
        self.limits = {name: limits[int(name[1])] for name in self.limited}
        self.limits.update(dict.fromkeys(self.credits, threads))
        self.rules = Rules(
            strict=settings.strict,
            complete=not settings.abrupt,
            immortal=frozenset(self.immortals + self.watching + self.credits),
            limits=self.limits,
            credit=frozenset(self.credits),
            cuts=settings.abrupt,
        )

    def teller(self, name: str) -> Teller:
        teller = Teller(name)
        self.tellers.append(teller)
        return teller

    def kind(self, dice: random.Random) -> int:
        """Of a body."""
        roll = dice.random()
        if roll < 0.004 and not self.settings.gentle:
            return TRAVELS + dice.randrange(4)
        if roll < 0.008:
            return TRAVELS
        if roll < 0.02 and self.settings.big:
            return BIG
        return dice.randrange(8)

    def size(self, dice: random.Random) -> int:
        """Of an output: small ones as often as large ones."""
        return int(self.settings.outputs ** dice.random())


# Outputs of every shape.


class Shape:
    """An iterable of one's own, which may fail at any place."""

    def __init__(self, items: list[Any], fails: str = "", error: Any = None) -> None:
        self.items = items
        self.fails = fails
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        if self.fails == "iter":
            raise self.error
        return Walk(self) if self.fails != "no iterator" else 5  # type: ignore[return-value]


class Walk:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.at = 0

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Any:
        items = self.shape.items
        if self.at == len(items):
            if self.shape.fails == "next":
                raise self.shape.error
            raise StopIteration
        self.at += 1
        return items[self.at - 1]


class OwnList(list):  # type: ignore[type-arg]
    """No plain list."""


def late(items: list[Any], error: Any) -> Iterator[Any]:
    yield from items
    raise error


def growing(items: list[Any]) -> Iterator[Any]:
    """A generator that also takes the list apart while it is walked over."""
    while items:
        yield items.pop(0)
    gc.collect(0)


def shaped(items: list[Any], dice: random.Random) -> Any:
    """All of them, in one of the shapes that an output may have."""
    if not items and dice.random() < 0.7:
        return None
    if len(items) == 1 and dice.random() < 0.7:
        return items[0]
    match dice.randrange(10):
        case 0:
            return tuple(items)
        case 1:
            return (item for item in items)
        case 2:
            return Shape(items)
        case 3:
            return collections.deque(items)
        case 4:
            return OwnList(items)
        case 5:
            return map(same, items)
        case 6:
            return dict(enumerate(items)).values()
        case 7:
            return growing(items)
        case 8:
            return itertools.chain(items[:1], items[1:])
    return items


# What is raised.


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit("while it is put into words")

    __repr__ = __str__


class Mumbling(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Long(Exception):
    def __str__(self) -> str:
        return "long " * 100_000


class Collecting(Exception):
    def __str__(self) -> str:
        gc.collect()
        return "collected"


class Unnamed(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=Unnamed):
    pass


class Sealed(BaseException):
    """Lets nobody touch it."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def __getattribute__(self, name: str) -> Any:
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 7


class Cyclic(Exception):
    """Holds itself."""

    def __init__(self) -> None:
        super().__init__("a cycle")
        self.me = self
        self.__cause__ = self


def deep(n: int = 0) -> int:
    return deep(n + 1) + 1


def too_deep() -> BaseException:
    try:
        deep()
    except RecursionError as error:
        return error
    raise AssertionError


def no_memory() -> BaseException:
    try:
        bytearray(1 << 62)
    except MemoryError as error:
        return error
    raise AssertionError


ERRORS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("as told"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    lambda: GeneratorExit("told"),
    MemoryError,
    lambda: StopIteration(5),
    lambda: StopAsyncIteration(5),
    too_deep,
    no_memory,
    Unspeakable,
    Leaving,
    Mumbling,
    Long,
    Collecting,
    Frozen,
    Cyclic,
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: ExceptionGroup("several", [ValueError(1), ExceptionGroup("in", [KeyError(2)])]),
    lambda: BaseExceptionGroup("several", [SystemExit(1), KeyboardInterrupt()]),
    lambda: SyntaxError("told", ("f", 1, 2, "text")),
    lambda: OSError(2, "no such"),
    lambda: ImportError("told", name="x"),
]
HARD_ERRORS: list[Callable[[], BaseException]] = [*ERRORS, Nameless, Sealed]

JUNK: list[Callable[[], Any]] = [
    lambda: 5,
    lambda: "text",
    lambda: b"bytes",
    object,
    lambda: Envelope,
    lambda: True,
    lambda: 1.5,
    lambda: {"k": 1},
    lambda: Unspeakable(),
    lambda: random.Random,
    lambda: [[None]],
]


def same(item: Any) -> Any:
    return item


def broken(item: Envelope) -> Envelope:
    return Envelope(item.to, 1 // 0)


def failing(items: list[Any], dice: random.Random, gentle: bool) -> Any:
    """Returns what is no output, at its end or before, or raises."""
    error = dice.choice(ERRORS if gentle else HARD_ERRORS)()
    junk = dice.choice(JUNK)()
    match dice.randrange(12):
        case 0:
            return late(items, error)
        case 1:
            return Shape(items, "next", error) if type(error) is not StopIteration else 5
        case 2:
            return Shape(items, "iter", error)
        case 3:
            return Shape(items, "no iterator")
        case 4:
            return [*items, junk]
        case 5:
            return (*items[: len(items) // 2], junk, *items[len(items) // 2 :])
        case 6:
            return junk if type(junk) not in (str, bytes, dict) else [junk]
        case 7:
            return late([*items, junk], error)
        case 8:
            return OwnList([*items, None])
        case 9:
            return map(broken, [*items, Envelope(Pid_any, 0)])
    raise error


#: Stands where any pid would do.
Pid_any = Pid("any", rabble.NodeId("any", "h:1"))


class Evil:
    """Whatever is asked of it, it raises what nobody expects."""

    def refuse(self, *_: object) -> Any:
        raise SystemExit("a field of a control message")

    __bool__ = __eq__ = __hash__ = __index__ = __float__ = __int__ = refuse  # type: ignore[assignment]
    __lt__ = __le__ = __gt__ = __ge__ = __repr__ = __str__ = __len__ = refuse  # type: ignore[assignment]


def bad_control(pid: Pid, dice: random.Random, gentle: bool) -> Any:
    """What no executor can follow: it ends who sends it."""
    choices: list[Callable[[], Any]] = [
        lambda: "text",
        lambda: StartTimer(CorrelationId(pid), -1),
        lambda: StartTimer(CorrelationId(pid), float("nan")),
        lambda: StartTimer("no id", 1),  # type: ignore[arg-type]
        lambda: Monitor("nobody"),  # type: ignore[arg-type]
        lambda: Stop(None),  # type: ignore[arg-type]
        lambda: Spawn(None, "x"),  # type: ignore[arg-type]
        lambda: Spawn(Mute(), ""),
        lambda: Spawn(Mute(), "x", mailbox_max=0),
        lambda: Spawn(Mute(), "x", group="rabble"),
        lambda: Timeout(CorrelationId(pid)),
        lambda: None,
    ]
    if not gentle:
        choices += [
            lambda: Stop(pid, Evil()),  # type: ignore[arg-type]
            lambda: Stop(Evil()),  # type: ignore[arg-type]
            lambda: StartTimer(CorrelationId(pid), Evil()),  # type: ignore[arg-type]
            lambda: CancelTimer(Evil(), True),  # type: ignore[arg-type]
            lambda: CancelTimer(CorrelationId(pid), Evil()),  # type: ignore[arg-type]
            lambda: Spawn(Mute(), Evil()),  # type: ignore[arg-type]
            lambda: Spawn(Mute(), "x", mailbox_max=Evil()),  # type: ignore[arg-type]
            lambda: object.__new__(StartTimer),
            lambda: object.__new__(Spawn),
            lambda: Stop(pid, "a text"),  # type: ignore[arg-type]
            lambda: Spawn(Impostor(), "x"),
            lambda: Unhashable(),
        ]
    try:
        return dice.choice(choices)()
    except BaseException:
        # Refused where it was to be made, which is well too.
        return "text"


class Mute(Process):
    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        return None


class Impostor:
    """Says that it is a process, and is laid out otherwise."""

    __slots__ = ()

    __class__ = Process  # type: ignore[assignment]


class NoHash(type):
    __hash__ = None  # type: ignore[assignment]


class Unhashable(metaclass=NoHash):
    pass


class Actor(Process):
    """What the processes of a round have in common."""

    def __init__(self, world: World, node: str, name: str) -> None:
        self.world = world
        self.node_name = node
        self.key = f"{name}@{node}"
        self.record = world.records[node]
        self.life = 0


class Worker(Actor):
    """Does what it is told; one instance is one life."""

    def __init__(self, world: World, key: str, bad_init: bool = False) -> None:
        name, _, node = key.partition("@")
        super().__init__(world, node, name)
        self.serial = next(world.serials)
        self.bad_init = bad_init
        self.subscribed = False
        self.dice = random.Random(0)
        world.workers.add(self)

    def init(self) -> Any:
        world = self.world
        if self.serial in world.never_born:
            self.record.fault("never spawned", f"{self.key} was refused and began")
        self.life = next(world.lives)
        self.teller = world.teller(f"{self.key}/{self.life}")
        self.timers = Timers(self.record, self.teller.name)
        self.timer_numbers = itertools.count(self.life * TIMERS_PER_LIFE)
        self.news: dict[Any, str] = {}
        if self.key in world.rules.immortal:
            world.immortal_timers.append(self.timers)
        core_life = getattr(getattr(self, "_runtime", None), "life", None)
        if core_life is not None:
            world.core_lives[self.node_name, core_life] = self.life
        drawn = self.random.getrandbits(64)
        if drawn in world.drawn and not world.settings.gentle:
            self.record.fault("same random", f"{self.key} draws what another life drew")
        world.drawn.add(drawn)
        self.dice = random.Random(f"{world.seed}:{drawn}:{self.life}")
        if self.bad_init:
            return failing(self.nothing(world.size(self.dice)), self.dice, world.settings.gentle)
        out = [self.say(name) for name in world.watching]
        if self.dice.random() < 0.3:
            out += self.timer()
        if self.dice.random() < 0.2:
            self.subscribed = True
            out.append(Envelope(self.executor, rabble.SubscribeNodes()))
        return shaped(out, self.dice)

    # What it says.

    def say(self, to: str, **more: Any) -> Envelope:
        return Envelope(
            self.world.pids[to], self.teller.say(to, self.world.kind(self.dice), **more)
        )

    def nothing(self, count: int) -> list[Envelope]:
        """Envelopes that nobody may get."""
        choice, names = self.dice.choice, self.world.names
        out = []
        for _ in range(count):
            to = choice(names)
            out.append(Envelope(self.world.pids[to], self.teller.say_nothing(to)))
        return out

    def timer(self) -> list[Envelope]:
        """Some timers, some of them replaced or cancelled."""
        out = []
        for _ in range(self.dice.randrange(1, 5)):
            number = next(self.timer_numbers)
            cid = CorrelationId(self.pid, request=number)
            roll = self.dice.random()
            for _ in range(2 if roll < 0.2 else 1):
                delay = self.dice.choice((0, 0, 1, 1.5, self.dice.uniform(0, TIMER_MS_MAX)))
                self.timers.start(number, time.monotonic_ns(), delay)
                out.append(Envelope(self.executor, StartTimer(cid, delay)))
            if roll > 0.6:
                out += self.cancel(number)
            elif roll > 0.4:
                self.later = number
        return out

    def cancel(self, number: int) -> list[Envelope]:
        acknowledge = self.dice.random() < 0.8
        self.timers.cancel(number, acknowledge)
        cid = CorrelationId(self.pid, request=number)
        return [Envelope(self.executor, CancelTimer(cid, acknowledge))]

    # What it gets.

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if type(msg) is Said:
            fatal = msg.do == "die"
            self.record.arrive(msg, self.key, self.life, sender, fatal)
            if not self.life:
                self.record.fault("message before init", msg.to)
            if msg.do:
                return getattr(self, "do_" + msg.do)(msg, sender, correlation_id)
            return None
        return getattr(self, "on_" + type(msg).__name__, self.on_else)(msg, sender)

    def on_else(self, msg: Any, sender: Any) -> None:
        self.record.fault("never sent", f"{self.key} got a {type(msg).__name__} of {sender}")

    def on_Timeout(self, msg: Timeout, sender: Any) -> Any:
        number = msg.correlation_id.request
        assert number is not None
        if number // TIMERS_PER_LIFE != self.life:
            self.record.fault("timer of another life", f"{number} reached life {self.life}")
            return None
        self.timers.fire(number, time.monotonic_ns())
        later = self.__dict__.pop("later", None)
        if later is not None:
            return self.cancel(later)
        if self.key not in self.world.rules.immortal and self.dice.random() < 0.02:
            return failing(self.nothing(3), self.dice, self.world.settings.gentle)
        return None

    def on_TimerCancelled(self, msg: TimerCancelled, sender: Any) -> None:
        number = msg.correlation_id.request
        assert number is not None
        if number // TIMERS_PER_LIFE != self.life:
            self.record.fault("answer to another life", f"{number} answered to life {self.life}")
            return
        self.timers.acknowledged(number, msg.was_active)

    def on_SpawnFailed(self, msg: SpawnFailed, sender: Any) -> None:
        self.record.letters["spawn failed"] += 1

    def on_DeadLetter(self, msg: DeadLetter, sender: Any) -> None:
        self.record.letters["told"] += 1

    on_Bounced = on_Lost = on_DeadLetter

    def on_NodeUp(self, msg: NodeUp | NodeDown, sender: Any) -> None:
        news = type(msg).__name__
        if not self.subscribed and not self.world.settings.gentle:
            self.record.fault("subscription of another life", f"{self.key} was told {news}")
        if self.news.get(msg.node, "NodeDown") == news:
            self.record.fault("news out of turn", f"{self.key} was told {news} of {msg.node}")
        self.news[msg.node] = news

    on_NodeDown = on_NodeUp

    def on_NodeStalled(self, msg: NodeStalled, sender: Any) -> None:
        self.record.letters["stalled"] += 1

    # What it does.

    def do_reply(self, said: Said, sender: Any, cid: Any) -> Any:
        out = [Envelope(sender, Answer(said.teller, said.to, said.number), correlation_id=cid)]
        if self.dice.random() < 0.2:
            out = [self.say(self.dice.choice(self.world.names)), *out]
        return shaped(out, self.dice)

    def do_silent(self, said: Said, sender: Any, cid: Any) -> None:
        return None

    def do_relay(self, said: Said, sender: Any, cid: Any) -> Any:
        world, dice = self.world, self.dice
        count = world.size(dice)
        hops = said.hops - 1 if said.hops > 0 and count <= 3 else 0
        names = world.names + world.watching
        out = []
        for _ in range(count):
            to = dice.choice(names)
            do = dice.choice(("relay", "timer", "kept", "")) if hops else ""
            out.append(self.say(to, hops=hops, do="" if to in world.watching else do))
        return shaped(out, dice)

    def do_burst(self, said: Said, sender: Any, cid: Any) -> Any:
        """To one receiver with a limit, of this node."""
        own = [name for name in self.world.limited if name.endswith("@" + self.node_name)]
        if not own:
            return self.do_relay(said, sender, cid)
        to = self.dice.choice(own)
        batch = next(self.world.batches)
        self.record.batch_limits[batch] = self.world.limits[to]
        out: list[Envelope] = []
        if self.dice.random() < 0.3 and not self.world.settings.gentle:
            out = self.spawn(to, 0)
        for _ in range(self.world.size(self.dice)):
            out.append(self.say(to, batch=batch))
        return shaped(out, self.dice)

    def do_forge(self, said: Said, sender: Any, cid: Any) -> Any:
        """As do_burst, in the executor's name."""
        out = self.do_burst(said, sender, cid)
        if out is None or self.world.settings.gentle:
            return out
        return [
            Envelope(envelope.to, envelope.msg, self.executor)
            if type(envelope.msg) is Said and envelope.msg.batch
            else envelope
            for envelope in ([out] if type(out) is Envelope else out)
        ]

    def do_die(self, said: Said, sender: Any, cid: Any) -> Any:
        count = self.world.size(self.dice)
        return failing(self.nothing(count), self.dice, self.world.settings.gentle)

    def do_control(self, said: Said, sender: Any, cid: Any) -> Any:
        """Ends by what it asks for; all else of this output is sent."""
        bad = Envelope(self.executor, bad_control(self.pid, self.dice, self.world.settings.gentle))
        out = [self.say(self.dice.choice(self.world.names)) for _ in range(3)]
        out.insert(self.dice.randrange(4), bad)
        return shaped(out, self.dice)

    def do_stop(self, said: Said, sender: Any, cid: Any) -> Any:
        stop = Envelope(self.executor, Stop(self.pid))
        out = [self.say(self.dice.choice(self.world.watching)), stop, self.say(self.key)]
        return shaped(out, self.dice)

    def spawn(self, to: str, hellos: int) -> list[Envelope]:
        name = to.partition("@")[0]
        child = Worker(self.world, to, self.dice.random() < 0.1)
        request = Spawn(child, name, mailbox_max=self.world.limits.get(to))
        out = [Envelope(self.executor, request)]
        return out + [self.say(to) for _ in range(hellos)]

    def do_spawn(self, said: Said, sender: Any, cid: Any) -> Any:
        own = [name for name in self.world.endable if name.endswith("@" + self.node_name)]
        return shaped(self.spawn(self.dice.choice(own), self.dice.randrange(5)), self.dice)

    def do_timer(self, said: Said, sender: Any, cid: Any) -> Any:
        return shaped(self.timer(), self.dice)

    def do_kept(self, said: Said, sender: Any, cid: Any) -> Any:
        """A list that everybody returns: nobody may leave his name in it."""
        kept = self.world.kept[self.node_name]
        times = 1
        out: Any = kept
        match self.dice.randrange(4):
            case 0:
                out, times = [*kept, *kept], 2
            case 1:
                out = iter(kept)
            case 2:
                out = tuple(kept)
        for envelope in kept:
            self.record.kept_sent[envelope.msg.key, self.key] += times
        return out

    def do_send(self, said: Said, sender: Any, cid: Any) -> Any:
        """Uses the node from within a generator, as any thread may: what it sends so goes another
        way than what it returns, so that is told by another teller."""
        node = self.world.nodes[self.node_name]
        aside = self.world.teller(f"s{next(self.world.batches)}@{self.node_name}")
        for _ in range(self.dice.randrange(10)):
            to = self.dice.choice(self.world.names)
            words = aside.say(to, self.world.kind(self.dice))
            try:
                node.send(self.world.pids[to], words)
            except (rabble.QueueFull, rabble.NodeStopped):
                aside.refuse(words)
            node.executor_status()
            yield self.say(self.dice.choice(self.world.watching))

    def do_collect(self, said: Said, sender: Any, cid: Any) -> None:
        gc.collect()


class Watcher(Actor):
    """Monitors names when it is told to, and lives as long as the round."""

    def __init__(self, world: World, key: str) -> None:
        name, _, node = key.partition("@")
        super().__init__(world, node, name)
        self.watches = {
            name: Watch(
                self.record,
                f"{key} of {name}",
                ordered=name.endswith("@" + node) or not world.settings.big,
            )
            for name in world.endable
        }
        self.marks: dict[str, int] = {}
        self.numbers = itertools.count()
        world.watchers.append(self)

    def ask(self, name: str, request: Any) -> list[Envelope]:
        number = self.marks[name] = next(self.numbers)
        echo = self.world.pids["echo@" + name.partition("@")[2]]
        return [Envelope(self.executor, request), Envelope(echo, Mark(name, number))]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if type(msg) is Said:
            self.record.arrive(msg, self.key, 1, sender)
            teller, _, life = msg.teller.partition("/")
            if life and teller in self.watches and sender is not None:
                self.watches[teller].heard(int(life))
            what, _, name = msg.do.partition(":")
            if what == "watch" and self.watches[name].state == "idle":
                self.watches[name].ask()
                return self.ask(name, Monitor(self.world.pids[name]))
            if what == "unwatch" and self.watches[name].state == "sure":
                self.watches[name].leave()
                return self.ask(name, Demonitor(self.world.pids[name]))
            return None
        if type(msg) is Down:
            key = f"{msg.pid.name}@{msg.pid.node.name}"
            life = getattr(msg, "life", None)
            if life is not None:
                life = self.world.core_lives.get((msg.pid.node.name, life))
            self.watches[key].down(msg.reason.kind, life)
            return None
        if type(msg) is Mark:
            if msg.number == self.marks[msg.what]:
                self.watches[msg.what].sure()
                self.watches[msg.what].left()
            return None
        self.record.fault("never sent", f"{self.key} got a {type(msg).__name__} of {sender}")
        return None


class Sink(Actor):
    """Takes what is kept and sent again."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> None:
        if type(msg) is not Kept or sender is None:
            self.record.fault("never sent", f"{self.key} got {type(msg).__name__} of {sender}")
            return
        self.record.kept_got[msg.key, f"{sender.name}@{sender.node.name}"] += 1


class Undertaker(Actor):
    """Notes every dead letter of its node."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> None:
        record = self.record
        if type(msg) is not DeadLetter:
            record.letters[type(msg).__name__] += 1
            return
        envelope, reason = msg.envelope, msg.reason.value
        record.letters[reason] += 1
        said = envelope.msg
        if type(said) is Said:
            if said.number >= 0 and envelope.to != self.world.pids[said.to]:
                record.fault("wrong receiver", f"a dead letter of {said.to} is to {envelope.to}")
            record.lose(said, reason)
        elif type(said) is Kept:
            record.fault("lost to the living", f"{said}: {reason}")
        elif type(said) is Down:
            if not self.world.settings.abrupt and envelope.to.name.startswith("w"):
                record.fault("lost to the living", f"{said} to {envelope.to}: {reason}")
