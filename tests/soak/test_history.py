"""Threads that send to, spawn on and stop processes of one node, and the history of it checked.

G1: what a pair says arrives in the order in which it was said. G2: at most once. G5: what did not
arrive is a dead letter, once. G7: a living process within its mailbox limit gets everything.
"""

from __future__ import annotations

import collections
import os
import random
import secrets
import threading
import time
from typing import Any, NamedTuple

import pytest

import rabble
from rabble import DeadLetter, DeadLetterReason, Envelope, NameTaken, Node, Pid, Process, Stop
from tests.support import PATIENCE_S, Echo

THREADS = 4
MORTALS = 20
IMMORTALS = 5
HOPS_MAX = 3
MAILBOX_MAX = 30


class Said(NamedTuple):
    """One message of the history."""

    teller: str  # a thread, or one life of a process
    listener: str  # a name
    number: int  # within that pair
    hops: int
    fatal: bool = False


class History:
    """Every message is noted when it is said, and again when something became of it.

    What happens to it, happens in the executor's thread; each teller notes only its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.said: dict[tuple[str, str], int] = collections.Counter()
        #: For each pair, how often each number came to an end: by delivery or as a dead letter.
        self.ends: dict[tuple[str, str], bytearray] = collections.defaultdict(bytearray)
        self.last: dict[tuple[str, str], int] = collections.defaultdict(lambda: -1)
        self.reasons: dict[DeadLetterReason, int] = collections.Counter()
        self.faults: list[str] = []
        self.lives = 0

    def say(self, teller: str, listener: str, hops: int, fatal: bool = False) -> Said:
        number = self.said[teller, listener]
        self.said[teller, listener] += 1
        return Said(teller, listener, number, hops, fatal)

    def arrive(self, said: Said, name: str) -> None:
        pair = said.teller, said.listener
        if name != said.listener:
            self.faults.append(f"{said} arrived at {name}")
        if said.number <= self.last[pair]:
            self.faults.append(f"{said} arrived after number {self.last[pair]}")
        self.last[pair] = said.number
        if not said.fatal:  # else its dead letter follows
            self.end(said)

    def lose(self, said: Said, reason: DeadLetterReason) -> None:
        self.reasons[reason] += 1
        if said.listener.startswith("immortal"):
            self.faults.append(f"{said} did not reach a living process: {reason}")
        if reason is DeadLetterReason.PROCESS_CRASHED and not said.fatal:
            self.faults.append(f"{said} was lost: {reason}")
        self.end(said)

    def end(self, said: Said) -> None:
        ends = self.ends[said.teller, said.listener]
        if len(ends) <= said.number:
            ends.extend(bytes(said.number + 1 - len(ends)))
        ends[said.number] = min(ends[said.number] + 1, 255)

    def check(self) -> int:
        """How many messages there were, if each one came to exactly one end."""
        for pair, count in self.said.items():
            ends = self.ends[pair]
            ends.extend(bytes(max(count - len(ends), 0)))
            if len(ends) > count:
                self.faults.append(f"{pair}: something arrived that was never said")
            odd = [(n, times) for n, times in enumerate(ends) if times != 1]
            if odd:
                self.faults.append(f"{pair}: (number, ends) {odd[:5]}, {len(odd)} in all")
        assert self.faults[:10] == [], f"seed {self.seed}"
        return sum(self.said.values())


class Member(Process):
    """Notes what it is told, and says more to others."""

    def __init__(self, history: History) -> None:
        self.history = history

    def init(self) -> None:
        self.history.lives += 1
        self.teller = f"{self.pid.name}/{self.history.lives}"

    def receive(self, msg: Said, sender: Pid | None, correlation_id: Any) -> Any:
        self.history.arrive(msg, self.pid.name)
        if msg.fatal:
            raise RuntimeError("as told")
        if msg.hops == 0:
            return None
        listeners = self.random.choices(NAMES, k=self.random.choice((0, 1, 1, 2)))
        return [
            Envelope(Pid(name, self.node_id), self.history.say(self.teller, name, msg.hops - 1))
            for name in listeners
        ]


class Undertaker(Process):
    def __init__(self, history: History) -> None:
        self.history = history

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> None:
        assert isinstance(msg, DeadLetter)
        if isinstance(msg.envelope.msg, Said):
            self.history.lose(msg.envelope.msg, msg.reason)


MORTAL_NAMES = [f"mortal-{n}" for n in range(MORTALS)]
NAMES = MORTAL_NAMES + [f"immortal-{n}" for n in range(IMMORTALS)]


def act(node: Node, history: History, teller: str, seconds: float) -> None:
    """Random actions until the time is over; waits for the executor now and then."""
    dice = random.Random(f"{history.seed}:{teller}")
    executor, echo = node.pid("executor", "rabble"), node.pid("echo")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(500):
            name = dice.choice(NAMES)
            roll = dice.random()
            if roll < 0.9:
                fatal = roll < 0.01 and name in MORTAL_NAMES
                said = history.say(teller, name, dice.randrange(HOPS_MAX + 1), fatal)
                node.send(node.pid(name), said)
            elif roll < 0.96:
                mailbox_max = dice.choice((None, MAILBOX_MAX))
                try:
                    node.spawn(Member(history), dice.choice(MORTAL_NAMES), mailbox_max=mailbox_max)
                except NameTaken:
                    pass
            else:
                node.send(executor, Stop(node.pid(dice.choice(MORTAL_NAMES))))
        assert node.call(echo, "here?", PATIENCE_S) == "here?"


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(1.0, id="quick"), pytest.param(60.0, id="long", marks=pytest.mark.soak)],
)
def test_every_message_comes_to_one_end_and_in_order(seconds: float) -> None:
    history = History(int(os.environ.get("RABBLE_SEED") or secrets.randbits(32)))
    print(f"seed {history.seed} (RABBLE_SEED repeats the actions, not how threads take turns)")
    failures: list[BaseException] = []

    def run(teller: str) -> None:
        try:
            act(node, history, teller, seconds)
        except BaseException as error:
            failures.append(error)

    with rabble.rouse(seed=history.seed) as node:
        node.spawn(Echo(), "echo")
        node.subscribe_dead_letters(node.spawn(Undertaker(history), "undertaker"))
        # Only a round trip proves that it holds: what a full mailbox refuses does not queue up.
        node.call(node.pid("echo"), "subscribed?", PATIENCE_S)
        for name in NAMES:
            node.spawn(Member(history), name)
        threads = [threading.Thread(target=run, args=(f"thread-{n}",)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [], f"seed {history.seed}"
        # What is on its way comes to its end within some more hops.
        for _ in range(2 * HOPS_MAX):
            node.call(node.pid("echo"), "still here?", PATIENCE_S)
        assert node.executor_status().queue_depth == 0
    count = history.check()
    print(f"{count} messages, {history.lives} lives, dead letters: {dict(history.reasons)}")
    assert count > 1_000
    # All of it happened.
    assert set(history.reasons) == {
        DeadLetterReason.NO_PROCESS,
        DeadLetterReason.MAILBOX_FULL,
        DeadLetterReason.PROCESS_CRASHED,
    }
    assert "node_shutdown" not in node.executor_status().dead_letters


@pytest.mark.parametrize(
    "planted", ["lost", "twice", "reordered", "wrong receiver", "never said", "lost to the living"]
)
def test_the_history_finds_what_was_planted(planted: str) -> None:
    history = History(0)
    said = [history.say("thread", "immortal-0", 0) for _ in range(10)]
    other = history.say("thread", "mortal-0", 0)
    history.lose(other, DeadLetterReason.NO_PROCESS)
    for message in said[:-2] if planted == "lost" else said:
        if planted == "reordered" and message.number == 5:
            history.arrive(said[6], "immortal-0")
            history.arrive(said[5], "immortal-0")
        elif planted == "lost to the living" and message.number == 5:
            history.lose(message, DeadLetterReason.NO_PROCESS)
        elif planted != "reordered" or message.number != 6:
            history.arrive(message, "mortal-0" if planted == "wrong receiver" else "immortal-0")
    if planted == "twice":
        history.lose(other, DeadLetterReason.NO_PROCESS)
    if planted == "never said":
        history.arrive(Said("thread", "immortal-0", 10, 0), "immortal-0")
    with pytest.raises(AssertionError, match="seed 0"):
        history.check()
