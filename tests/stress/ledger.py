"""The slow model of the stress program: what was said, what came of it, and whether that may be.

Nobody shares a record while a round runs: each teller counts what it says, and each executor, like
each thread that has a mailbox, has a `Record` of its own of what arrived and what became a dead
letter. So the model is exact in spite of all threads: `check` puts the records together when
everything is at rest. What needs no other record is noted as a fault at once.

A pair is a teller (a thread, or one life of a process) and a name. One life of a name gets a
pair's messages in the order in which they were said, and so do the lives of a name one after the
other, since mail goes to the name.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import rabble

__all__ = [
    "Kept",
    "Point",
    "Record",
    "Rules",
    "Said",
    "Teller",
    "Timers",
    "Violation",
    "Watch",
    "body_of",
    "check",
    "same",
]


class Violation(NamedTuple):
    """What was seen that may not be."""

    kind: str
    text: str


@rabble.message(name="stress.Said")
class Said:
    """One message of the ledger."""

    #: A thread, or `name@node/life`.
    teller: str
    #: `name@node`
    to: str
    #: Within that pair, from 0. -1 is output of a call that fails, which nobody may ever get.
    number: int
    #: How often what it brings about may bring about something itself.
    hops: int
    #: What the receiver is to do.
    do: str
    #: Which one output it was part of, if those are counted; else 0.
    batch: int
    #: How the body is made of the number.
    kind: int
    body: Any


@rabble.message(name="stress.Kept")
class Kept:
    """A message whose envelope is kept and sent again and again."""

    key: str


@rabble.message(name="stress.Point")
class Point:
    x: int
    y: Any


class Nasty:
    """Nobody can put it into bytes; neither does trying fail as it should."""

    __slots__ = ("x",)

    def __init__(self, error: type[BaseException]) -> None:
        object.__setattr__(self, "x", error)

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise object.__getattribute__(self, "x")("a field that raises")
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        raise KeyboardInterrupt("a repr that raises")

    __str__ = __repr__


OPAQUE = object()
NASTY = [Nasty(error) for error in (RuntimeError, ValueError, KeyError)]
#: Kinds of bodies from which on they cannot be put into bytes.
TRAVELS = 100
#: Larger than what is sent in one piece to another node.
BIG = 50


def body_of(kind: int, number: int) -> Any:
    """The body of a message: known from its kind and number, so that any receiver can tell."""
    if kind >= TRAVELS:
        return OPAQUE if kind == TRAVELS else NASTY[kind % len(NASTY)]
    if kind >= BIG:
        return bytes([number & 255]) * (17_000 + number % 1_000 * 60)
    match kind % 8:
        case 0:
            return None
        case 1:
            return (number << 40) + number
        case 2:
            return f"text {number} \u00e9\u2603"
        case 3:
            return number.to_bytes(8, "big")
        case 4:
            return {"n": number, "list": [number, [True, None, 1.5 * number]], "": {}}
        case 5:
            return Point(number, Point(-number, [number]))
        case 6:
            return [number] * (number % 50)
    return -1.25 * number


def same(given: Any, wanted: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(given) is not type(wanted):
        return False
    if type(given) is list:
        return len(given) == len(wanted) and all(map(same, given, wanted))
    if type(given) is dict:
        return list(given) == list(wanted) and all(same(given[k], wanted[k]) for k in given)
    if type(given) is Point:
        return same(given.x, wanted.x) and same(given.y, wanted.y)
    return given is wanted or bool(given == wanted)


class Teller:
    """Counts what one thread, or one life of a process, says. Used by one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: dict[str, int] = collections.Counter()
        #: Numbers that were handed over and not taken.
        self.refused: dict[str, set[int]] = collections.defaultdict(set)

    def say(self, to: str, kind: int = 0, hops: int = 0, do: str = "", batch: int = 0) -> Said:
        number = self.told[to]
        self.told[to] = number + 1
        return Said(self.name, to, number, hops, do, batch, kind, body_of(kind, number))

    def say_nothing(self, to: str) -> Said:
        """What a call says that is going to fail."""
        return Said(self.name, to, -1, 0, "", 0, 0, None)

    def refuse(self, said: Said) -> None:
        self.refused[said.to].add(said.number)


class Record:
    """What one executor's thread, or one thread with a mailbox, saw. Used by that one thread."""

    def __init__(self, node: str) -> None:
        self.node = node
        #: By pair: number, life of the receiver (0 is a mailbox), whether it raised at that.
        self.got: dict[tuple[str, str], list[tuple[int, int, bool]]] = collections.defaultdict(list)
        #: By pair: number, reason, kind of the body.
        self.dead: dict[tuple[str, str], list[tuple[int, str, int]]] = collections.defaultdict(list)
        #: By output and life: what a life did not get the next one under its name may.
        self.batches: dict[tuple[int, int], int] = collections.Counter()
        self.batch_limits: dict[int, int] = {}
        self.kept_sent: dict[tuple[str, str], int] = collections.Counter()
        self.kept_got: dict[tuple[str, str], int] = collections.Counter()
        self.letters: dict[str, int] = collections.Counter()
        self.faults: list[Violation] = []
        self.ended = 0

    def fault(self, kind: str, text: str) -> None:
        if len(self.faults) < 100:
            self.faults.append(Violation(kind, text))

    def arrive(self, said: Said, name: str, life: int, sender: Any, fatal: bool = False) -> None:
        """`said` was given to `name`."""
        if said.number < 0:
            self.fault("output of a failing call", f"{brief(said)} reached {name}")
            return
        if said.to != name:
            self.fault("wrong receiver", f"{brief(said)} reached {name}")
        teller, slash, _ = said.teller.partition("/")
        forged = said.batch and sender is not None and sender.group == "rabble"
        if (
            slash
            and not forged
            and (sender is None or f"{sender.name}@{sender.node.name}" != teller)
        ):
            self.fault("wrong sender", f"{brief(said)} came from {sender}")
        if not same(said.body, body_of(said.kind, said.number)):
            self.fault("changed", f"{brief(said)} arrived as {said.body!r:.200}")
        if said.batch:
            self.batches[said.batch, life] += 1
        self.got[said.teller, said.to].append((said.number, life, fatal))
        self.ended += not fatal

    def lose(self, said: Said, reason: str) -> None:
        """`said` became a dead letter."""
        if said.number < 0:
            self.fault("output of a failing call", f"{brief(said)} is a dead letter: {reason}")
            return
        self.dead[said.teller, said.to].append((said.number, reason, said.kind))
        self.ended += 1


def brief(said: Said) -> str:
    return f"{said.teller} -> {said.to} #{said.number} {said.do!r}"


@dataclasses.dataclass
class Rules:
    """What may be in one round."""

    strict: bool = False
    #: Everything has come to its end: what is missing is lost.
    complete: bool = True
    #: `name@node` of who is never stopped and never raises.
    immortal: frozenset[str] = frozenset()
    #: Mailbox limits by `name@node`.
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: Limited ones that never have more than their limit before them.
    credit: frozenset[str] = frozenset()
    #: Whether lives may raise in `init`.
    bad_inits: bool = True
    #: Whether connections between the nodes may end.
    cuts: bool = False


def is_remote(teller: str, to: str) -> bool:
    return teller.partition("/")[0].rpartition("@")[2] != to.rpartition("@")[2]


def check(tellers: Iterable[Teller], records: Iterable[Record], rules: Rules) -> list[Violation]:
    """All that is not as it should be."""
    records = list(records)
    found = [fault for record in records for fault in record.faults]
    told: dict[tuple[str, str], int] = {}
    refused: dict[tuple[str, str], set[int]] = {}
    for teller in tellers:
        for to, count in teller.told.items():
            told[teller.name, to] = count
        for to, numbers in teller.refused.items():
            refused[teller.name, to] = numbers
    got: dict[tuple[str, str], list[tuple[int, int, bool]]] = collections.defaultdict(list)
    dead: dict[tuple[str, str], list[tuple[int, str, int]]] = collections.defaultdict(list)
    for record in records:
        for pair, arrivals in record.got.items():
            got[pair] += arrivals
        for pair, letters in record.dead.items():
            dead[pair] += letters
    for pair in {*got, *dead} - set(told):
        found.append(Violation("never sent", f"{pair}: {got[pair][:3]} {dead[pair][:3]}"))
    for pair, count in told.items():
        found += check_pair(
            pair, count, refused.get(pair, set()), got.get(pair, []), dead.get(pair, []), rules
        )
    batches: dict[tuple[int, int], int] = collections.Counter()
    limits: dict[int, int] = {}
    kept: dict[tuple[str, str], int] = collections.Counter()
    for record in records:
        for life, arrived in record.batches.items():
            batches[life] += arrived
        limits.update(record.batch_limits)
        for key, times in record.kept_sent.items():
            kept[key] += times
        for key, times in record.kept_got.items():
            kept[key] -= times
    for (batch, life), arrived in batches.items():
        if batch not in limits:
            found.append(Violation("never sent", f"output {batch}"))
        elif arrived > limits[batch]:
            found.append(
                Violation(
                    "limit passed",
                    f"life {life} got {arrived} of one output, the limit is {limits[batch]}",
                )
            )
    for key, left in kept.items():
        if left < 0 or (left and rules.complete):
            found.append(Violation("kept", f"{key}: {left} more were sent than arrived"))
    return found


def check_pair(
    pair: tuple[str, str],
    count: int,
    refused: set[int],
    got: list[tuple[int, int, bool]],
    dead: list[tuple[int, str, int]],
    rules: Rules,
) -> Iterable[Violation]:
    teller, to = pair
    lives: dict[int, int] = {}
    fatal = set()
    last = -1
    for number, life, raised in got:
        what = f"{teller} -> {to} #{number}"
        if not 0 <= number < count or number in refused:
            yield Violation("never sent", f"{what} arrived")
        if number in lives:
            yield Violation("twice", f"{what} arrived twice")
        elif number < last:
            yield Violation("order", f"{what} arrived after #{last}")
        lives[number] = life
        last = max(last, number)
        if raised:
            fatal.add(number)
    letters: dict[int, str] = {}
    for number, reason, kind in dead:
        what = f"{teller} -> {to} #{number}"
        if not 0 <= number < count or number in refused:
            yield Violation("never sent", f"{what} is a dead letter: {reason}")
        if number in letters:
            yield Violation("two dead letters", f"{what}: {letters[number]} and {reason}")
        if number in lives and (number not in fatal or reason != "process_crashed"):
            yield Violation("twice", f"{what} arrived and is a dead letter: {reason}")
        letters[number] = reason
        yield from check_reason(pair, what, number in fatal, reason, kind, rules)
    if rules.complete:
        for number in range(count):
            if number in refused:
                continue
            if number not in letters and (number not in lives or number in fatal):
                yield Violation("lost", f"{teller} -> {to} #{number} of {count} has no end")
    # What lies between two that one life got was on its way while that life was there.
    before = 0
    between: list[int] = []
    for number in range(count):
        if number in lives:
            if before == lives[number] and before:
                for one in between:
                    yield Violation(
                        "lost to the living",
                        f"{teller} -> {to} #{one}: {letters[one]}, but life {before} got "
                        "what came before and after it",
                    )
            before = lives[number]
            between = []
        elif letters.get(number) in ("no_process", "process_crashed"):
            between.append(number)


def check_reason(
    pair: tuple[str, str], what: str, fatal: bool, reason: str, kind: int, rules: Rules
) -> Iterable[Violation]:
    teller, to = pair
    if reason == "no_process":
        fits = to not in rules.immortal
    elif reason == "mailbox_full":
        fits = to in rules.limits and to not in rules.credit
        if to.startswith("box"):
            yield Violation("reason of a closed box", f"{what}: {reason}")
            return
    elif reason == "process_crashed":
        fits = fatal or (rules.bad_inits and to not in rules.immortal)
    elif reason == "unencodable":
        fits = kind >= TRAVELS and (rules.strict or is_remote(teller, to))
    elif reason == "peer_busy":
        fits = is_remote(teller, to)
    elif reason == "not_connected":
        fits = is_remote(teller, to) and rules.cuts
    elif reason == "node_shutdown":
        fits = not rules.complete
    else:
        fits = False
    if not fits:
        yield Violation("reason", f"{what}: {reason}")


class Timers:
    """The timers of one life, each known by a number."""

    def __init__(self, record: Record, owner: str) -> None:
        self.record = record
        self.owner = owner
        self.starts: dict[int, list[tuple[int, float]]] = collections.defaultdict(list)
        self.fires: dict[int, list[int]] = collections.defaultdict(list)
        self.cancels: dict[int, str] = {}

    def fault(self, kind: str, number: int, text: str) -> None:
        self.record.fault(
            kind,
            f"timer {number} of {self.owner}: {text}; starts {self.starts[number]}, "
            f"fires {self.fires[number]}, cancel {self.cancels.get(number)}",
        )

    def start(self, number: int, now_ns: int, delay_ms: float) -> None:
        self.starts[number].append((now_ns, delay_ms))

    def cancel(self, number: int, acknowledge: bool) -> None:
        self.cancels[number] = "asked" if acknowledge else "silent"

    def acknowledged(self, number: int, was_active: bool) -> None:
        if self.cancels.get(number) != "asked":
            self.fault("acknowledged twice", number, "an answer to nothing")
        self.cancels[number] = "acknowledged"
        starts, fires = len(self.starts[number]), len(self.fires[number])
        if was_active and fires == starts:
            self.fault("acknowledged wrongly", number, "was active, and had fired")
        if not was_active and not fires:
            self.fault("timer lost", number, "was not active, and has not fired")

    def fire(self, number: int, now_ns: int) -> None:
        fires = self.fires[number]
        starts = self.starts[number]
        if self.cancels.get(number) == "acknowledged":
            self.fault("timer after its cancel", number, f"fired at {now_ns}")
        if len(fires) >= len(starts):
            self.fault("timer twice", number, f"fired at {now_ns}")
        elif now_ns < min(started + int(delay * 1e6) for started, delay in starts[len(fires) :]):
            # The last start's, unless what was started before fired before it was replaced.
            self.fault("timer early", number, f"fired at {now_ns}")
        fires.append(now_ns)

    def end(self) -> None:
        """All is at rest, and its process lives."""
        for number, starts in self.starts.items():
            cancel = self.cancels.get(number)
            if cancel == "asked":
                self.fault("not acknowledged", number, "no answer")
            if cancel is not None:
                continue
            fires = self.fires[number]
            if not fires:
                self.fault("timer lost", number, "did not fire")
                continue
            if len(fires) > len(starts):
                continue  # noted when it fired
            # Each of them its own start's, or all the one start that was not replaced.
            for fired, (started, delay_ms) in zip(fires, starts[-len(fires) :], strict=True):
                if fired < started + int(delay_ms * 1e6):
                    self.fault("timer early", number, f"the one of {fired}")


class Watch:
    """What one watcher sees of one name.

    Each `Monitor` is followed by a mark, which comes back when the executor has handled it: from
    then on the monitor concerns the life there is, or its `Down` is on its way.
    """

    def __init__(self, record: Record, what: str, ordered: bool = True) -> None:
        self.record = record
        self.what = what
        #: Whether what a life said arrives before the marks that were returned after it.
        self.ordered = ordered
        #: idle, asked, sure (the monitor holds), leaving
        self.state = "idle"
        #: Lives before this one have ended, as the last Down said.
        self.floor = 0
        self.down_last = ""
        self.heard_last = 0
        #: The life that was heard while the monitor held.
        self.current = 0

    def fault(self, kind: str, text: str) -> None:
        self.record.fault(kind, f"{self.what}, {self.state}: {text}")

    def ask(self) -> None:
        self.state = "asked"
        self.current = 0

    def sure(self) -> None:
        """The mark behind the `Monitor` came back."""
        if self.state == "asked":
            self.state = "sure"

    def leave(self) -> None:
        """A `Demonitor` is on its way."""
        self.state = "leaving"

    def left(self) -> None:
        """The mark behind the `Demonitor` came back."""
        if self.state == "leaving":
            self.state = "idle"
        self.current = 0

    def heard(self, life: int) -> None:
        if life < self.floor:
            self.fault("life after its Down", f"life {life} spoke after {self.down_last}")
        if self.state == "sure" and self.ordered:
            if self.current and life != self.current:
                self.fault("next life before the Down", f"life {life} after life {self.current}")
            self.current = life
        self.heard_last = max(self.heard_last, life)

    def down(self, kind: str, life: int | None = None) -> None:
        """A `Down` came; `life` is its number among those that were heard, if that is known."""
        if self.state == "idle":
            self.fault("Down twice", f"{kind}, and nothing is monitored")
        if life is not None and self.current and life != self.current:
            self.fault("Down of another life", f"{kind} of {life}, not {self.current}")
        if self.state == "sure" and kind == "no_process" and self.current:
            self.fault("Down reason", f"{kind} of life {self.current}, which was heard")
        self.floor = self.heard_last + 1
        self.down_last = f"{kind} of life {life} after life {self.heard_last} was heard"
        self.current = 0
        self.state = "idle"

    def end(self) -> None:
        """All lives of that name have ended, and all is at rest."""
        if self.state in ("asked", "leaving"):
            self.fault("mark lost", "its mark did not come back")
        elif self.state == "sure":
            self.fault("Down missing", "no Down came")
