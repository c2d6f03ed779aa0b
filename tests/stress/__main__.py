"""Rounds of stress, until the time is over; each on nodes of its own.

    python -m tests.stress [--seconds 20] [--seed N] [--round K] [--threads 6] [--remote] [--gentle]

Says its seed at the beginning; `--seed` repeats what is done, as far as threads allow, and
`--round` one round of it. Ends with 0 if all that was seen may be, else with 1 and what may not.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import itertools
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import rabble
from rabble import (
    CallTimeout,
    Envelope,
    Limits,
    Mesh,
    NameTaken,
    Node,
    NodeStopped,
    NoProcess,
    Pid,
    ProcessCrashed,
    QueueFull,
)
from rabble.errors import EncodeError
from tests.stress.actors import (
    Answer,
    Evil,
    Impostor,
    Mute,
    Settings,
    Sink,
    Undertaker,
    Watcher,
    Worker,
    World,
)
from tests.stress.ledger import TRAVELS, Kept, Record, Said, Teller, Violation, check, is_remote
from tests.support import Echo, until

#: Seconds after which something is taken to hang: under the sanitizers all is slow.
PATIENCE_S = 90.0
ROUND_S = 1.5
#: What the core of before is known to do wrong, and `--gentle` does not look at.
KNOWN = {
    "Down reason",
    "answer to another life",
    "life after its Down",
    "news out of turn",
    "next life before the Down",
    "reason of a closed box",
    "timer of another life",
}
MORTAL_DOES = ("die", "control", "stop")
ANY_DOES = (
    "relay",
    "relay",
    "burst",
    "forge",
    "spawn",
    "timer",
    "timer",
    "kept",
    "send",
    "collect",
)


class Actor:
    """One of the threads that act from outside."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.dice = random.Random(f"{world.seed}:thread {number}")
        self.tellers = {name: world.teller(f"t{number}@{name}") for name in world.nodes}
        # A call is said by the pid of calls: to another node that is another pair than a plain
        # `send` of the same thread, whose large messages it passes.
        self.callers = {name: world.teller(f"c{number}@{name}") for name in world.nodes}
        self.boxes = itertools.count()
        self.errors: list[str] = []
        self.faults: list[Violation] = []
        self.thread = threading.Thread(target=self.run, name=f"stress:{number}")
        self.acts: list[Callable[[str, Node, Teller], None]] = [
            *(self.send,) * 8,
            *(self.spawn,) * 10,
            *(self.stop,) * 3,
            *(self.watch,) * 3,
            *(self.call,) * 4,
            self.call_async,
            self.box,
            self.misuse,
            self.look,
            self.subscribe,
        ]

    def run(self) -> None:
        world = self.world
        try:
            while not world.over:
                name = self.dice.choice(list(world.nodes))
                node, teller = world.nodes[name], self.tellers[name]
                for _ in range(5):
                    self.dice.choice(self.acts)(name, node, teller)
                # As much as was asked for is done before more is asked for.
                self.echo(node)
        except NodeStopped:
            if not world.settings.abrupt:
                self.errors.append(traceback.format_exc())
        except BaseException:
            self.errors.append(traceback.format_exc())

    def fault(self, kind: str, text: str) -> None:
        self.faults.append(Violation(kind, f"thread {self.number}: {text}"))

    def echo(self, node: Node) -> None:
        while True:
            word = (self.number, self.dice.random())
            try:
                answer = node.call(node.pid("echo"), list(word), PATIENCE_S)
            except QueueFull:
                continue
            if answer != list(word):
                self.fault("reply of another call", f"{word} was answered with {answer!r:.100}")
            return

    def words(self, teller: Teller, do: str | None = None) -> Said:
        """Something to say to anybody."""
        world, dice = self.world, self.dice
        to = dice.choice(world.names)
        if do is None:
            roll = dice.random()
            do = ""
            if roll < 0.25:
                do = dice.choice(ANY_DOES)
            elif roll < 0.3 and to not in world.rules.immortal:
                do = dice.choice(MORTAL_DOES)
        return teller.say(to, world.kind(dice), hops=dice.randrange(3), do=do)

    # What it does.

    def send(self, name: str, node: Node, teller: Teller) -> None:
        for _ in range(self.dice.choice((1, 3, 30))):
            said = self.words(teller)
            try:
                node.send(self.world.pids[said.to], said)
            except QueueFull:
                teller.refuse(said)
            except BaseException:
                teller.refuse(said)
                raise

    def spawn(self, name: str, node: Node, teller: Teller) -> None:
        world = self.world
        to = self.dice.choice([n for n in world.endable if n.endswith("@" + name)])
        worker = Worker(world, to, self.dice.random() < 0.15)
        try:
            node.spawn(worker, to.partition("@")[0], mailbox_max=world.limits.get(to))
        except (NameTaken, QueueFull):
            world.never_born.add(worker.serial)
            if worker.life:
                self.fault("never spawned", f"{to} was refused and began")

    def stop(self, name: str, node: Node, teller: Teller) -> None:
        own = [n for n in self.world.endable if n.endswith("@" + name)]
        try:
            node.stop(self.world.pids[self.dice.choice(own)])
        except QueueFull:
            pass

    def watch(self, name: str, node: Node, teller: Teller) -> None:
        world, dice = self.world, self.dice
        do = f"{dice.choice(('watch', 'watch', 'watch', 'unwatch'))}:{dice.choice(world.endable)}"
        said = teller.say(dice.choice(world.watching), 0, do=do)
        try:
            node.send(world.pids[said.to], said)
        except QueueFull:
            teller.refuse(said)
        except BaseException:
            teller.refuse(said)
            raise

    def call(self, name: str, node: Node, _: Teller) -> None:
        world, dice, teller = self.world, self.dice, self.callers[name]
        if world.credits and dice.random() < 0.3:
            said = teller.say(dice.choice(world.credits), dice.randrange(8), do="reply")
        else:
            said = self.request(teller)
        patience = PATIENCE_S if said.do != "silent" else dice.choice((0, 0.001, 0.01))
        outcome: Any
        try:
            outcome = node.call(world.pids[said.to], said, patience)
        except BaseException as error:
            outcome = error
        self.judge(said, outcome, teller)

    def request(self, teller: Teller) -> Said:
        world, dice = self.world, self.dice
        # Where the inbox may be full as well a mailbox that is cannot be told from it.
        names = world.immortals + world.mortals
        if not world.settings.inbox_max:
            names = names + world.limited
        to = dice.choice(names)
        do = dice.choice(("reply",) * 6 + ("silent", "silent", "die"))
        if do == "die" and to in world.rules.immortal:
            do = "reply"
        return teller.say(to, world.kind(dice), do=do)

    def judge(self, said: Said, outcome: Any, teller: Teller) -> None:
        """Whether a call may end so."""
        world = self.world
        ends = to_end = said.to not in world.rules.immortal
        what = f"{said.teller} -> {said.to} #{said.number} {said.do!r}: {outcome!r:.200}"
        copied = world.settings.strict or is_remote(said.teller, said.to)
        if type(outcome) is Answer:
            fits = said.do == "reply" and outcome == Answer(said.teller, said.to, said.number)
        elif isinstance(outcome, NodeStopped):
            if not world.settings.abrupt:
                self.fault("call", what)
            # Whether it was sent is not known; nothing has to be accounted for any more.
            raise outcome
        elif isinstance(outcome, QueueFull):
            if said.to in world.limits:
                fits = said.to not in world.credits
            else:
                teller.refuse(said)
                fits = bool(world.settings.inbox_max)
        elif isinstance(outcome, CallTimeout):
            fits = said.do == "silent"
        elif isinstance(outcome, NoProcess):
            fits = ends or (world.settings.abrupt and is_remote(said.teller, said.to))
        elif isinstance(outcome, ProcessCrashed):
            fits = to_end
        elif isinstance(outcome, EncodeError):
            fits = copied and said.kind >= TRAVELS
        elif isinstance(outcome, asyncio.CancelledError):
            fits = True
        else:
            raise outcome if isinstance(outcome, BaseException) else TypeError(what)
        if not fits:
            self.fault("call", what)

    def call_async(self, name: str, node: Node, _: Teller) -> None:
        world, dice, teller = self.world, self.dice, self.callers[name]

        async def one() -> None:
            said = self.request(teller)
            patience = PATIENCE_S if said.do != "silent" else dice.choice((0.001, 0.01))
            outcome: Any
            try:
                outcome = await node.call_async(world.pids[said.to], said, patience)
            except BaseException as error:
                outcome = error
            self.judge(said, outcome, teller)

        async def all_of_them() -> None:
            tasks = [asyncio.ensure_future(one()) for _ in range(dice.randrange(1, 8))]
            if dice.random() < 0.3:
                await asyncio.sleep(0)
                tasks[0].cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(
                    outcome, asyncio.CancelledError
                ):
                    raise outcome

        asyncio.run(all_of_them())

    def box(self, name: str, node: Node, teller: Teller) -> None:
        """A mailbox that is sent to, read in part, and closed."""
        world, dice = self.world, self.dice
        label = f"box{self.number}-{next(self.boxes)}"
        key = f"{label}@{name}"
        record = Record(name)
        world.more_records.append(record)
        with node.mailbox(label) as box:
            world.pids[key] = box.pid
            try:
                if dice.random() < 0.3 and world.settings.subscribers:
                    node.subscribe_dead_letters(box.pid)
                if dice.random() < 0.3:
                    node.subscribe_nodes(box.pid)
            except QueueFull:
                pass
            sent = 0
            for _ in range(dice.randrange(20)):
                said = teller.say(key, world.kind(dice))
                try:
                    node.send(box.pid, said)
                    sent += 1
                except QueueFull:
                    teller.refuse(said)
                except BaseException:
                    teller.refuse(said)
                    raise
            for _ in range(dice.randrange(sent + 1)):
                try:
                    envelope = box.receive(dice.choice((0, 0.001, 0.01)))
                except CallTimeout:
                    break
                if type(envelope.msg) is Said:
                    record.arrive(envelope.msg, key, 0, envelope.sender)

    def misuse(self, name: str, node: Node, teller: Teller) -> None:
        """What no program should do: an exception, and nothing happens."""
        gentle = self.world.settings.gentle
        here = node.pid("nobody")
        abuses: list[Callable[[], object]] = [
            lambda: node.send(None, 1),  # type: ignore[arg-type]
            lambda: node.send("text", 1),  # type: ignore[arg-type]
            lambda: node.send(here, 1, sender=5),  # type: ignore[arg-type]
            lambda: node.spawn(5, "x"),  # type: ignore[arg-type]
            lambda: node.spawn(Mute, "x"),  # type: ignore[arg-type]
            lambda: node.spawn(Mute(), "a::b"),
            lambda: node.spawn(Mute(), "x", group="rabble"),
            lambda: node.spawn(Mute(), "x", mailbox_max=-1),
            lambda: node.spawn(Mute(), 5),  # type: ignore[arg-type]
            lambda: node.stop(5),  # type: ignore[arg-type]
            lambda: node.mailbox("echo"),
            lambda: node.call(5, 1),  # type: ignore[arg-type]
            lambda: Envelope(5, 1),  # type: ignore[arg-type]
            lambda: Pid("", node.node_id),
        ]
        if not gentle:
            abuses += [
                lambda: node.spawn(Impostor(), "x"),  # type: ignore[arg-type]
                lambda: node.spawn(Mute(), "x", mailbox_max=Evil()),  # type: ignore[arg-type]
                lambda: node.call(here, 1, float("nan")),
                lambda: node.shutdown(float("nan")),
            ]
        number = self.dice.randrange(len(abuses))
        try:
            abuses[number]()
        except (TypeError, ValueError, NameTaken, QueueFull, AttributeError):
            return
        except SystemExit:
            # An `Evil` was looked at, in the thread of who gave it.
            return
        self.fault("misuse", f"number {number} raised nothing")

    def look(self, name: str, node: Node, teller: Teller) -> None:
        status = node.executor_status()
        if status.status not in ("running", "stalled") and not self.world.settings.abrupt:
            self.fault("status", f"{name} is {status.status}: {node._runtime.failure!r}")
        node.metrics()
        node.processes()
        if self.world.settings.remote:
            node.cluster_status()
        if self.dice.random() < 0.3:
            gc.collect()

    def subscribe(self, name: str, node: Node, teller: Teller) -> None:
        """Processes that live and die are told of dead letters."""
        pid = self.world.pids[self.dice.choice(self.world.endable)]
        if pid.node == node.node_id and self.world.settings.subscribers:
            try:
                node.subscribe_dead_letters(pid, self.dice.random() < 0.3)
            except (NoProcess, QueueFull):
                # Its life is over, or the executor is behind.
                pass


def settings_of(dice: random.Random, number: int, options: argparse.Namespace) -> Settings:
    collect = ((700, 10, 10), None, (20, 5, 50), (1, 50, 1000), None)
    gentle = options.gentle
    return Settings(
        strict=not gentle and dice.random() < 0.4,
        limited=not gentle and dice.random() < 0.5,
        inbox_max=dice.choice((0, 0, 20, 200)) if not gentle else 0,
        spin_us=dice.choice((0, 50)),
        remote=options.remote or number % 3 == 2,
        gc=dice.choice(collect),
        big=dice.random() < 0.5,
        subscribers=dice.random() < 0.5,
        abrupt=number % 5 == 4,
        outputs=50 if gentle else dice.choice((50, 1_000, 1_000)),
        gentle=gentle,
    )


def rouse(world: World, name: str) -> Node:
    settings = world.settings
    limits = {"inbox_envelopes_max": settings.inbox_max} if settings.inbox_max else {}
    return rabble.rouse(
        f"{name}@127.0.0.1:0",
        limits=Limits(**limits, shutdown_ms=int(PATIENCE_S * 1000)),
        strict=settings.strict,
        spin_us=settings.spin_us,
        seed=random.Random(f"{world.seed}:{name}").getrandbits(60),
        mesh=Mesh(cluster="stress") if settings.remote else None,
    )


def everybody(world: World) -> list[str]:
    return [*world.names, *world.credits, *world.watching]


def begin(world: World) -> None:
    names = ("a", "b") if world.settings.remote else ("a",)
    for name in names:
        world.nodes[name] = rouse(world, name)
        world.records[name] = Record(name)
    if world.settings.remote:
        world.nodes["b"].join(world.nodes["a"].node_id)
        until(lambda: all(len(n.cluster_status().connections) == 1 for n in world.nodes.values()))
    for key in [*everybody(world), *(f"{n}@{m}" for m in names for n in ("echo", "sink"))]:
        label, _, name = key.partition("@")
        world.pids[key] = world.nodes[name].pid(label)
    for name, node in world.nodes.items():
        node.spawn(Echo(), "echo")
        node.spawn(Sink(world, name, "sink"), "sink")
        node.subscribe_dead_letters(node.spawn(Undertaker(world, name, "u"), "u"))
        # Only a round trip proves that it holds: what a full mailbox refuses does not queue up.
        node.call(node.pid("echo"), None, PATIENCE_S)
        sink = world.pids["sink@" + name]
        world.kept[name] = [Envelope(sink, Kept(f"{name}{n}")) for n in range(5)]
    for key in world.watching:
        label, _, name = key.partition("@")
        world.nodes[name].spawn(Watcher(world, key), label)
    for key in [*world.names, *world.credits]:
        label, _, name = key.partition("@")
        patient(
            lambda name=name, key=key, label=label: world.nodes[name].spawn(
                Worker(world, key), label, mailbox_max=world.limits.get(key)
            )
        )


def patient(ask: Callable[[], object]) -> None:
    """Ask until there is room for it."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            ask()
            return
        except QueueFull:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)


def at_rest(world: World) -> bool:
    """Everything that was said has come to its end, and nothing runs any more."""
    for node in world.nodes.values():
        patient(lambda node=node: node.call(node.pid("echo"), None, PATIENCE_S))
    for node in world.nodes.values():
        status = node.executor_status()
        if status.queue_depth or status.inbox_depth or status.timers:
            return False
    told = sum(sum(t.told.values()) for t in list(world.tellers))
    told -= sum(len(n) for t in list(world.tellers) for n in t.refused.values())
    records = [*world.records.values(), *world.more_records]
    return told <= sum(record.ended for record in records)


def wait_for_rest(world: World) -> None:
    end = time.monotonic() + PATIENCE_S / 2
    while not at_rest(world):
        if time.monotonic() > end or any(n.status == "failed" for n in world.nodes.values()):
            return
        time.sleep(0.002)


def play(world: World, threads: int, seconds: float) -> list[str]:
    """One round; all that may not be."""
    settings = world.settings
    wrong: list[str] = []
    begin(world)
    actors = [Actor(world, n) for n in range(threads)]
    sys.setswitchinterval(1e-6)
    if settings.gc is not None:
        gc.set_threshold(*settings.gc)
    try:
        for actor in actors:
            actor.thread.start()
        if settings.remote and not settings.abrupt:
            pass_by(world, seconds)
        else:
            time.sleep(seconds)
        if settings.abrupt:
            for node in world.nodes.values():
                node.request_shutdown(world.seed.__hash__() % 3 * 0.2)
        world.over = True
        for actor in actors:
            actor.thread.join()
    finally:
        world.over = True
        sys.setswitchinterval(0.005)
        gc.set_threshold(700, 10, 10)
    if not settings.abrupt:
        try:
            come_to_rest(world, wrong)
        except NodeStopped as error:
            # Which one failed is said below.
            wrong.append(str(error))
    for name, node in world.nodes.items():
        node.shutdown(PATIENCE_S)
        if node.status != "stopped":
            wrong.append(f"node {name} is {node.status}: {node.failure or 'no reason'}")
    found: list[Violation] = []
    for actor in actors:
        wrong += actor.errors
        found += actor.faults
    records = [*world.records.values(), *world.more_records]
    found += check(world.tellers, records, world.rules)
    if settings.gentle:
        found = [violation for violation in found if violation.kind not in KNOWN]
    return [*wrong, *in_kinds(found)]


def in_kinds(found: list[Violation]) -> list[str]:
    """Three of each kind, and how many there are."""
    kinds: dict[str, list[str]] = {}
    for violation in found:
        kinds.setdefault(violation.kind, []).append(violation.text)
    return [f"{kind} ({len(texts)}): " + "\n     ".join(texts[:3]) for kind, texts in kinds.items()]


def come_to_rest(world: World, wrong: list[str]) -> None:
    """Wait until nothing is left to do; stop all that can be stopped; look at what is left."""
    wait_for_rest(world)
    for timer in list(world.immortal_timers):
        timer.end()
    for key in world.endable:
        node = world.nodes[key.partition("@")[2]]
        patient(lambda node=node, key=key: node.stop(world.pids[key]))
    wait_for_rest(world)
    for node in world.nodes.values():
        waiting = node.metrics().gauges["calls_waiting"]
        if waiting:
            wrong.append(f"{waiting} calls still wait")
    end = time.monotonic() + 5
    watches = [watch for watcher in world.watchers for watch in watcher.watches.values()]
    while time.monotonic() < end and any(watch.state != "idle" for watch in watches):
        time.sleep(0.01)
    for watch in watches:
        watch.end()
    letters_add_up(world, wrong)


def pass_by(world: World, seconds: float) -> None:
    """A third node comes and goes, of which those who subscribed are told."""
    time.sleep(seconds / 3)
    with rouse(world, "c") as node:
        node.join(world.nodes["a"].node_id)
        time.sleep(seconds / 3)
        world.nodes["a"].leave("c")
        time.sleep(seconds / 3)


def letters_add_up(world: World, wrong: list[str]) -> None:
    """What a node counts is what its undertaker was told."""
    for name, node in world.nodes.items():
        counted = node.executor_status().dead_letters
        told = world.records[name].letters
        for reason, count in counted.items():
            # Of a letter that nobody could be given there is no second one.
            if told[reason] > count or (told[reason] < count and not world.settings.subscribers):
                wrong.append(f"letters: {name} counts {count} {reason}, {told[reason]} were told")


class Quiet(logging.Handler):
    """Puts everything into words and writes it nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def left_behind(before: tuple[int, int]) -> str:
    """Descriptors and threads that a round has left."""
    end = time.monotonic() + 10
    while True:
        gc.collect()
        now = len(os.listdir("/proc/self/fd")), threading.active_count()
        if now <= before or (now[0] <= before[0] and now[1] <= before[1]):
            return ""
        if time.monotonic() > end:
            return f"left behind: {before} descriptors and threads have become {now}"
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--round", type=int, help="only this one, again and again")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--remote", action="store_true", help="two nodes in every round")
    parser.add_argument("--gentle", action="store_true", help="without what broke the first core")
    options = parser.parse_args()
    log = logging.getLogger("rabble")
    log.addHandler(Quiet())
    log.propagate = False
    print(f"seed {options.seed}", flush=True)
    faulthandler.enable()
    gc.collect()
    gc.freeze()
    end = time.monotonic() + options.seconds
    before: tuple[int, int] | None = None
    messages = 0
    for number in itertools.count(0):
        if options.round is not None:
            number = options.round
        left = end - time.monotonic()
        if left <= 0 and messages:
            break
        seed = f"{options.seed}:{number}"
        settings = settings_of(random.Random(seed), number, options)
        print(f"round {number}: {settings}", flush=True)
        faulthandler.dump_traceback_later(3 * PATIENCE_S, exit=True)
        world = World(settings, seed, options.threads)
        wrong = play(world, options.threads, max(min(ROUND_S, left), 0.2))
        told = sum(sum(t.told.values()) for t in world.tellers)
        reasons: dict[str, int] = {}
        for record in world.records.values():
            for reason, count in record.letters.items():
                reasons[reason] = reasons.get(reason, 0) + count
        lives = next(world.lives) - 1
        print(f"  {told} messages, {lives} lives, letters {reasons}", flush=True)
        messages += told
        workers = world.workers
        del world
        if before is not None and (text := left_behind(before)):
            wrong.append(text)
        gc.collect()
        if len(workers):
            wrong.append(f"left behind: {len(workers)} processes of a round that is over")
        before = before or (len(os.listdir("/proc/self/fd")), threading.active_count())
        if wrong:
            print(f"{len(wrong)} kinds of what may not be; seed {options.seed}, round {number}:")
            for text in wrong[:30]:
                print(" -", text)
            sys.stdout.flush()
            # Threads of a node that failed may hang.
            os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    print(f"{messages} messages: all as it should be", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
