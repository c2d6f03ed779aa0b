"""Four programs of Savina: banking, chameneos, concurrent dictionary, and sleeping barber.

S. Imam and V. Sarkar, "Savina - An Actor Benchmark Suite", AGERE 2014; the sizes are theirs. Each
is held against a plain loop that calls the same `receive`s: it takes envelopes out of a deque and
finds who is meant in a dict.
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.messaging import (
    HERE,
    MAIN,
    PATIENCE_S,
    SAVINA_SEED,
    ByHand,
    savina_next,
    seeds,
)
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.messages import Spawn, Stop
from rabble.node import rouse
from rabble.process import Output, Process

__all__ = ["banking", "barber", "chameneos", "concdict"]

#: Makes the processes of a run, by their names, the first one of which is told "start": of their
#: pids and of whom to tell the end.
Cast = Callable[[Callable[[str], Pid], Pid], dict[str, Process]]


def on_a_node(cast: Cast) -> tuple[Any, float, int]:
    """What is told at the end, after how many seconds, and how many processes are left."""
    with rouse() as node, node.mailbox() as main:
        pids = [node.spawn(process, name) for name, process in cast(node.pid, main.pid).items()]
        start = time.perf_counter()
        main.send(pids[0], "start")
        told = main.receive(PATIENCE_S).msg
        seconds = time.perf_counter() - start
        return told, seconds, node.executor_status().processes


def by_hand(cast: Cast) -> tuple[Any, float, int]:
    """The same in a plain loop, in the same order."""

    def pid_of(name: str) -> Pid:
        return Pid(name, HERE)

    receives: dict[Pid, Callable[[Any, Any, Any], Output]] = {}

    def begin(process: Any, name: str) -> None:
        pid = pid_of(name)
        process.attach(ByHand(pid))
        receives[pid] = process.receive

    processes = cast(pid_of, MAIN)
    for name, process in processes.items():
        begin(process, name)
    queue: collections.deque[tuple[Pid, Envelope]] = collections.deque()
    append, popleft = queue.append, queue.popleft
    append((MAIN, Envelope(pid_of(next(iter(processes))), "start")))
    told = None
    start = time.perf_counter()
    while queue:
        sender, envelope = popleft()
        to = envelope.to
        receive = receives.get(to)
        if receive is not None:
            out = receive(envelope.msg, sender, None)
            if out is None:
                continue
            if type(out) is Envelope:
                append((to if out.sender is None else out.sender, out))
            else:
                for each in out:
                    append((to if each.sender is None else each.sender, each))
        elif to is MAIN:
            told = envelope.msg
        elif type(envelope.msg) is Spawn:
            begin(envelope.msg.process, envelope.msg.name)
        else:
            del receives[envelope.msg.pid]
    return told, time.perf_counter() - start, len(receives)


def case_of(
    name: str,
    params: dict[str, Any],
    unit: str,
    cast: Cast,
    check: Callable[[str, Any, int], int],
) -> Case:
    """A case and its limit, which are told the same and judged in the same way.

    :param check: of the name, what was told and how many processes are left: how many it did.
    """

    def run(which: str, play: Callable[[Cast], tuple[Any, float, int]]) -> Sample:
        told, seconds, left = play(cast)
        return Sample(check(which, told, left), seconds)

    limit = Limit("bare", functools.partial(run, f"{name} bare", by_hand))
    return Case(name, params, unit, functools.partial(run, name, on_a_node), limit, Target(1.0))


class Random:
    """Savina's own generator, so that every run draws the same."""

    __slots__ = ("value",)

    def __init__(self, seed: int = SAVINA_SEED) -> None:
        self.value = seed

    def below(self, limit: int) -> int:
        """The next number from 0 to below `limit`."""
        self.value = savina_next(self.value)
        return self.value % limit


# Banking.

BALANCE = 1_000_000


class Account(Process):
    """Credits itself, has the other account debited, and waits for its word: what comes meanwhile
    is put aside, and told to itself again, one after the other."""

    def __init__(self) -> None:
        self.balance = BALANCE
        self.teller: Pid | None = None
        self.aside: collections.deque[tuple[Any, Pid]] = collections.deque()

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if self.teller is not None:
            if msg != "reply":
                self.aside.append((msg, sender))
                return None
            out = [Envelope(self.teller, "reply")]
            self.teller = None
        elif type(msg) is int:
            self.balance += msg
            out = [Envelope(sender, "reply")]
        elif msg == "balance":
            return Envelope(sender, ("balance", self.balance))
        else:
            amount, to = msg
            self.balance -= amount
            self.teller = sender
            return Envelope(to, amount)
        if self.aside:
            again, whose = self.aside.popleft()
            out.append(Envelope(self.pid, again, whose))
        return out


class Teller(Process):
    """Asks for all transactions at once; then, when each was answered, for all balances."""

    def __init__(self, accounts: list[Pid], transactions: int, main: Pid) -> None:
        self.accounts = accounts
        self.transactions = transactions
        self.main = main
        self.done = 0
        self.balances = 0
        self.sum = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "start":
            random = Random()
            return [self.transaction(random) for _ in range(self.transactions)]
        if msg == "reply":
            self.done += 1
            if self.done == self.transactions:
                return [Envelope(account, "balance") for account in self.accounts]
            return None
        self.sum += msg[1]
        self.balances += 1
        if self.balances == len(self.accounts):
            return Envelope(self.main, (self.done, self.sum))
        return None

    def transaction(self, random: Random) -> Envelope:
        """To a later account always, so no two wait for each other."""
        count = len(self.accounts)
        source = random.below(count // 10 * 8)
        to = source + max(1, random.below(count - source))
        return Envelope(self.accounts[source], (random.below(1_000), self.accounts[to]))


def banking(transactions: int = 50_000, accounts: int = 1_000) -> list[Case]:
    """Transactions between accounts, each a request of a teller that is a request of one account to
    another (Savina banking). What is on all accounts in the end is what was at the beginning.

    :param accounts: 10 or more.
    """

    def cast(pid_of: Callable[[str], Pid], main: Pid) -> dict[str, Process]:
        names = [f"account-{n}" for n in range(accounts)]
        teller = Teller([pid_of(name) for name in names], transactions, main)
        return {"teller": teller, **{name: Account() for name in names}}

    def check(name: str, told: Any, left: int) -> int:
        done, balance = told
        expect(f"{name}, the balance", balance, accounts * BALANCE)
        expect(f"{name}, the transactions", done, transactions)
        return transactions

    params = {"transactions": transactions, "accounts": accounts}
    return [case_of("banking", params, "transactions/s", cast, check)]


# Chameneos.

#: What becomes of two colours that meet: of the same the same, of two the third.
COLOURS = 3
FADED = COLOURS


def complement(one: int, other: int) -> int:
    """The colour that both have after they have met."""
    if FADED in (one, other):
        return FADED
    return one if one == other else COLOURS - one - other


class Creature(Process):
    """Goes to the mall again and again, and tells at the end how many it has met."""

    def __init__(self, mall: Pid, colour: int) -> None:
        self.mall = mall
        self.colour = colour
        self.meetings = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "start":
            return Envelope(self.mall, ("meet", self.colour))
        what, colour = msg
        if what == "exit":
            self.colour = FADED
            return Envelope(sender, ("met", self.meetings))
        self.meetings += 1
        if what == "change":
            self.colour = colour
            return Envelope(self.mall, ("meet", colour))
        # Another one, whom the mall has sent.
        self.colour = colour = complement(self.colour, colour)
        return [Envelope(sender, ("change", colour)), Envelope(self.mall, ("meet", colour))]


class Mall(Process):
    """Brings two creatures together, so many times."""

    def __init__(self, creatures: list[Pid], meetings: int, main: Pid) -> None:
        self.creatures = creatures
        self.left = meetings
        self.main = main
        self.waiting: Pid | None = None
        self.faded = 0
        self.met = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "start":
            return [Envelope(creature, "start") for creature in self.creatures]
        what, value = msg
        if what == "met":
            self.met += value
            self.faded += 1
            return Envelope(self.main, self.met) if self.faded == len(self.creatures) else None
        if not self.left:
            return Envelope(sender, ("exit", 0))
        if self.waiting is None:
            self.waiting = sender
            return None
        self.left -= 1
        first, self.waiting = self.waiting, None
        return Envelope(first, msg, sender)


def chameneos(meetings: int = 200_000, creatures: int = 100) -> list[Case]:
    """Creatures that meet in a mall, two at a time, and take on a colour there (Savina chameneos).
    Of each meeting two have to be told of.

    :param creatures: an even number: one that waits when all meetings are over would not be told.
    """

    def cast(pid_of: Callable[[str], Pid], main: Pid) -> dict[str, Process]:
        names = [f"creature-{n}" for n in range(creatures)]
        mall = Mall([pid_of(name) for name in names], meetings, main)
        all_of_them = {name: Creature(pid_of("mall"), n % COLOURS) for n, name in enumerate(names)}
        return {"mall": mall, **all_of_them}

    def check(name: str, told: Any, left: int) -> int:
        expect(f"{name}, those who met", told, 2 * meetings)
        return meetings

    params = {"meetings": meetings, "creatures": creatures}
    return [case_of("chameneos", params, "meetings/s", cast, check)]


# Concurrent dictionary.

WRITE_PERCENT = 10


class Dictionary(Process):
    """A dict that several ask and change."""

    def __init__(self, keys: int) -> None:
        self.values = {key: key for key in range(keys)}

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if type(msg) is int:
            return Envelope(sender, (msg, self.values[msg]))
        key, value = msg
        self.values[key] = value
        return Envelope(sender, msg)


class Worker(Process):
    """Asks the dictionary one thing after the other, and counts what it was told rightly: a key has
    itself, or what every worker writes."""

    def __init__(self, dictionary: Pid, master: Pid, seed: int, requests: int, keys: int) -> None:
        self.dictionary = dictionary
        self.master = master
        self.draws = Random(seed)
        self.left = requests
        self.keys = keys
        self.right = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg != "start":
            key, value = msg
            self.right += value in (key, ~key)
        if not self.left:
            return Envelope(self.master, self.right)
        self.left -= 1
        # Two draws: one has 16 bits, and there are more keys.
        writes = self.draws.below(100) < WRITE_PERCENT
        key = (self.draws.below(1 << 16) << 4 | self.draws.below(16)) % self.keys
        return Envelope(self.dictionary, (key, ~key) if writes else key)


class Master(Process):
    """Adds up what the workers tell."""

    def __init__(self, workers: list[Pid], main: Pid) -> None:
        self.workers = workers
        self.main = main
        self.left = len(workers)
        self.right = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "start":
            return [Envelope(worker, "start") for worker in self.workers]
        self.right += msg
        self.left -= 1
        return None if self.left else Envelope(self.main, self.right)


def concdict(requests: int = 10_000, workers: int = 20, keys: int = 524_287) -> list[Case]:
    """Workers that read from a dictionary, or write one time in ten, each when it was answered
    (Savina concurrent dictionary).

    :param requests: of each worker.
    """

    def cast(pid_of: Callable[[str], Pid], main: Pid) -> dict[str, Process]:
        names = [f"worker-{n}" for n in range(workers)]
        master, dictionary = pid_of("master"), pid_of("dictionary")
        return {
            "master": Master([pid_of(name) for name in names], main),
            "dictionary": Dictionary(keys),
            **{
                name: Worker(dictionary, master, seed, requests, keys)
                for name, seed in zip(names, seeds(workers), strict=True)
            },
        }

    def check(name: str, told: Any, left: int) -> int:
        expect(f"{name}, right answers", told, workers * requests)
        return workers * requests

    params = {"requests": requests, "workers": workers, "keys": keys}
    return [case_of("concdict", params, "requests/s", cast, check)]


# Sleeping barber.


class WaitingRoom(Process):
    """Has so many chairs; wakes the barber, and sends him the next when he is done."""

    def __init__(self, barber: Pid, chairs: int) -> None:
        self.barber = barber
        self.chairs = chairs
        self.customers: collections.deque[Pid] = collections.deque()
        self.is_asleep = True

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "next":
            if self.customers:
                return Envelope(self.barber, self.customers.popleft())
            self.is_asleep = True
            return Envelope(self.barber, "sleep")
        if len(self.customers) == self.chairs:
            return Envelope(msg, "full")
        self.customers.append(msg)
        if self.is_asleep:
            self.is_asleep = False
            return Envelope(self.pid, "next")
        return Envelope(msg, "wait")


class Barber(Process):
    """Cuts the hair of whoever is sent."""

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "sleep":
            return None
        return [Envelope(msg, "begin"), Envelope(msg, "done"), Envelope(sender, "next")]


class Customer(Process):
    """Comes again if the room is full, and ends when it is served."""

    def __init__(self, factory: Pid) -> None:
        self.factory = factory

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "full":
            return Envelope(self.factory, "returned")
        if msg == "done":
            return [Envelope(self.factory, msg), Envelope(self.executor, Stop(self.pid))]
        return None


class Factory(Process):
    """Makes customers, one at a time, and sends those again that came back."""

    def __init__(self, room: Pid, haircuts: int, main: Pid) -> None:
        self.room = room
        self.haircuts = haircuts
        self.main = main
        self.made = 0
        self.returned: collections.deque[Pid] = collections.deque()
        self.served = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Output:
        if msg == "done":
            self.served += 1
            return Envelope(self.main, self.served) if self.served == self.haircuts else None
        if msg == "returned":
            self.returned.append(sender)
            return None
        if self.made < self.haircuts:
            name = f"customer-{self.made}"
            self.made += 1
            return [
                Envelope(self.executor, Spawn(Customer(self.pid), name)),
                Envelope(self.room, Pid(name, self.pid.node)),
                Envelope(self.pid, "more"),
            ]
        if self.served == self.haircuts:
            return None
        more = [Envelope(self.pid, "more")]
        return [Envelope(self.room, self.returned.popleft()), *more] if self.returned else more


def barber(haircuts: int = 5_000, chairs: int = 1_000) -> list[Case]:
    """Customers, each a process that is made and ends, who wait for a barber, and come again when
    all chairs are taken (Savina sleeping barber).

    Savina's barber and factory spend random times in loops. Here one message stands for that: of
    the factory to itself, of the barber to the room.
    """

    def cast(pid_of: Callable[[str], Pid], main: Pid) -> dict[str, Process]:
        return {
            "factory": Factory(pid_of("room"), haircuts, main),
            "room": WaitingRoom(pid_of("barber"), chairs),
            "barber": Barber(),
        }

    def check(name: str, told: Any, left: int) -> int:
        expect(f"{name}, haircuts", told, haircuts)
        expect(f"{name}, who is left", left, 3)
        return haircuts

    params = {"haircuts": haircuts, "chairs": chairs}
    return [case_of("barber", params, "haircuts/s", cast, check)]
