"""Processes of recipes and examples, driven by hand through what a run meets once in a while."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import (
    Ask,
    CallTimeout,
    CorrelationId,
    Envelope,
    Failed,
    GroupMembers,
    Monitor,
    NameHolder,
    NoProcess,
    Pid,
    ProcessCrashed,
    Reply,
    StartTimer,
    WhereIs,
)

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
EXECUTOR = Pid.parse("rabble::executor::test@127.0.0.1:1")


class Surroundings:
    """What a process sees of its node."""

    executor = EXECUTOR
    now = 0.0
    random = random.Random(1)

    def __init__(self, name: str, node: str = "test") -> None:
        self.pid = Pid.parse(f"{name}::{node}@127.0.0.1:1")
        self.node_id = self.pid.node


def envelopes(output: Any) -> list[Envelope]:
    if output is None:
        return []
    return [output] if isinstance(output, Envelope) else list(output)


@pytest.fixture(scope="module", autouse=True)
def _examples_can_be_imported() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


WORKERS = tuple(Pid.parse(f"worker {number}::w@127.0.0.1:2") for number in range(3))
CUSTOMER = Pid.parse("customer::c@127.0.0.1:3")

#: How an attempt ends.
ENDS = {
    "reply": lambda tag: Reply(tag, "done"),
    "crash": lambda tag: Failed(tag, ProcessCrashed("it raised")),
    "timeout": lambda tag: Failed(tag, CallTimeout("it took too long")),
    "no process": lambda tag: Failed(tag, NoProcess("it is not back yet")),
}


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(sorted(ENDS)), st.integers(0, 100)), max_size=60),
)
def test_each_job_ends_once_and_no_worker_has_two(
    count: int, ends: Iterable[tuple[str, int]]
) -> None:
    import jobs

    queue = jobs.Queue()
    queue.attach(Surroundings("queue"))
    asked: dict[Pid, Ask] = {}
    timers: list[Any] = []
    answers: list[tuple[int | None, Any]] = []

    def deliver(msg: Any, sender: Pid | None = EXECUTOR, number: int | None = None) -> None:
        correlation_id = None if number is None else CorrelationId(CUSTOMER, None, number)
        for sent in envelopes(queue.receive(msg, sender, correlation_id)):
            match sent.msg:
                case Ask(to):
                    # One job at a time.
                    assert to not in asked
                    asked[to] = sent.msg
                case StartTimer():
                    timers.append(sent.msg.msg)
                case answer:
                    assert sent.to == CUSTOMER and sent.correlation_id is not None
                    answers.append((sent.correlation_id.request, answer))

    envelopes(queue.init())
    for number in range(count):
        deliver(jobs.Job(f"job {number}"), CUSTOMER, number)
    assert not asked
    deliver(GroupMembers("workers", WORKERS))
    for how, which in ends:
        if asked:
            ask = asked.pop(sorted(asked)[which % len(asked)])
            deliver(ENDS[how](ask.tag))
        elif timers:
            deliver(timers.pop(which % len(timers)))
    while asked or timers:
        if timers:
            deliver(timers.pop())
        else:
            deliver(Reply(asked.popitem()[1].tag, "done"))
    assert sorted(number for number, _ in answers) == list(range(count))
    for _, answer in answers:
        assert 1 <= answer.attempts <= jobs.ATTEMPTS_MAX
        if isinstance(answer, jobs.GivenUp):
            assert answer.attempts == jobs.ATTEMPTS_MAX


LEADER = Pid.parse("leader::l@127.0.0.1:4")
FOLLOWER = Pid.parse("follower::f@127.0.0.1:5")


@given(st.lists(st.sampled_from(["put", "deliver", "lose", "answer"]), max_size=80))
def test_a_follower_that_lost_changes_has_all_again_with_the_next_one(steps: list[str]) -> None:
    import new_replica

    leader, follower = new_replica.Leader(), new_replica.Follower()
    leader.attach(Surroundings("leader"))
    follower.attach(Surroundings("follower"))
    to_follower: list[Any] = []
    to_leader: list[Any] = []
    written = 0

    def lead(msg: Any, sender: Pid | None) -> None:
        for sent in envelopes(leader.receive(msg, sender, None)):
            if sent.to == FOLLOWER:
                to_follower.append(sent.msg)

    def follow(output: Any) -> None:
        for sent in envelopes(output):
            match sent.msg:
                case WhereIs(name):
                    follow(follower.receive(NameHolder(name, LEADER), EXECUTOR, None))
                case Monitor():
                    pass
                case msg:
                    assert sent.to == LEADER
                    to_leader.append(msg)

    def step(name: str) -> None:
        nonlocal written
        match name:
            case "put":
                written += 1
                lead(new_replica.Put(f"key {written % 3}", written), None)
            case "deliver" if to_follower:
                before = follower.number
                follow(follower.receive(to_follower.pop(0), LEADER, None))
                # What it has is what there was after some change.
                if follower.number is not None:
                    assert before is None or follower.number >= before
                    values = {f"key {n % 3}": n for n in range(1, follower.number + 1)}
                    assert follower.values == values
            case "lose" if to_follower and isinstance(to_follower[0], new_replica.Change):
                to_follower.pop(0)
            case "answer" if to_leader:
                lead(to_leader.pop(0), FOLLOWER)

    follow(follower.init())
    for name in steps:
        step(name)
    step("put")
    while to_follower or to_leader:
        step("deliver")
        step("answer")
    assert follower.number == leader.number == written
    assert follower.values == leader.values


class Store:
    """Three replicas, what is under way between them, and what their clients were answered."""

    def __init__(self, chance: random.Random) -> None:
        import cas_store

        self.chance = chance
        self.pids = [Pid.parse(f"replica::{name}@127.0.0.1:1") for name in "abc"]
        self.replicas = [cas_store.Replica() for _ in self.pids]
        #: Who asked, whom and what; with the answer, when there is one.
        self.letters: list[tuple[int, int, Ask, Any]] = []
        self.timers: list[tuple[int, Any]] = []
        self.wanted: dict[int, cas_store.CompareAndSet] = {}
        self.clients = 0
        self.done: list[cas_store.CompareAndSet] = []
        self.refused: set[str | None] = set()
        #: What clients were told that there is, the latest last.
        self.seen: list[str | None] = [None]
        for at, replica in enumerate(self.replicas):
            replica.attach(Surroundings("replica", "abc"[at]))
            replica.init()
            replica.receive(GroupMembers("replicas", tuple(self.pids)), EXECUTOR, None)

    def ask(self) -> None:
        import cas_store

        self.clients += 1
        old = self.chance.choice(self.seen[-2:])
        msg = self.wanted[self.clients] = cas_store.CompareAndSet("x", old, str(self.clients))
        self.give(self.chance.randrange(3), msg, CUSTOMER, self.clients)

    def give(self, at: int, msg: Any, sender: Pid = EXECUTOR, client: int | None = None) -> None:
        import cas_store

        correlation_id = None if client is None else CorrelationId(CUSTOMER, None, client)
        for sent in envelopes(self.replicas[at].receive(msg, sender, correlation_id)):
            match sent.msg:
                case Ask(to):
                    self.letters.append((at, self.pids.index(to), sent.msg, None))
                case StartTimer():
                    self.timers.append((at, sent.msg.msg))
                case cas_store.Change():
                    self.give(at, sent.msg)
                case outcome:
                    assert sent.correlation_id is not None and sent.correlation_id.request
                    self.answered(self.wanted.pop(sent.correlation_id.request), outcome)

    def answered(self, asked: Any, outcome: dict[str, Any]) -> None:
        if "value" in outcome:
            self.seen.append(outcome["value"])
        if outcome.get("done"):
            self.done.append(asked)
        elif not outcome.get("why", "").endswith("it may have been done"):
            self.refused.add(asked.new)

    def deliver(self) -> None:
        at, to, ask, answer = self.letters.pop(self.chance.randrange(len(self.letters)))
        if answer is None:
            (sent,) = envelopes(self.replicas[to].receive(ask.msg, self.pids[at], None))
            self.letters.append((at, to, ask, sent.msg))
        else:
            self.give(at, Reply(ask.tag, answer))

    def lose(self) -> None:
        """A question or an answer: who asked cannot tell which."""
        at, _, ask, _ = self.letters.pop(self.chance.randrange(len(self.letters)))
        self.give(at, Failed(ask.tag, CallTimeout("it took too long")))

    def begin_again(self) -> None:
        self.give(*self.timers.pop(self.chance.randrange(len(self.timers))))


@pytest.mark.parametrize("seed", range(8))
def test_of_those_who_compare_with_the_same_one_sets(seed: int) -> None:
    chance = random.Random(seed)
    answered = 0
    for _ in range(50):
        store = Store(chance)
        losses = chance.choice([0, 1, 2, 4])
        for _ in range(400):
            steps = [store.ask] if len(store.wanted) < 4 else []
            steps += [store.deliver] * 6 + [store.lose] * losses if store.letters else []
            steps += [store.begin_again] * 3 if store.timers else []
            chance.choice(steps)()
        while store.letters or store.timers:
            store.deliver() if store.letters else store.begin_again()
        assert not store.wanted
        # There is one history: no two have set in the place of the same value, ...
        olds = [asked.old for asked in store.done]
        assert len(set(olds)) == len(olds)
        # ... and nobody has seen a value whose client was told that it is not set.
        assert not store.refused & {*store.seen, *olds}
        answered += len(store.done)
    assert answered > 100


def test_who_has_no_name_is_asked_again_and_not_let_in() -> None:
    import line_chat

    from rabble.services.server import Answer

    visitor = line_chat.Visitor(Pid.parse("room::test@127.0.0.1:1"))
    request = CorrelationId(EXECUTOR, 1, 1)
    assert visitor.handle_message(" ", request) == Answer(request, "who are you?")
    assert visitor.closed("closed") is None
    said = visitor.handle_message("ann", request)
    assert [type(each) for each in said] == [Envelope, Answer]
    assert visitor.closed("closed") is not None
