"""Messages to another node: what cannot travel, what is changed later, and whose turn it is."""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest

import rabble
from rabble import DeadLetter, DeadLetterReason, Envelope, MessageRegistry, NodeUp, Pid, Process
from tests.cluster.mesh import SLACK_S, meet, nothing_left, rouse
from tests.support import PATIENCE_S, Does, Echo, until


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@rabble.message(name="remote_messages.Pair")
class Pair:
    left: int
    right: int


@rabble.message(name="remote_messages.Elsewhere", registry=MessageRegistry())
class Elsewhere:
    x: int


class Number(int):
    pass


class Zone(datetime.tzinfo):
    pass


def bad_values() -> list[Any]:
    """One of each kind that the codec refuses."""
    cycle: list[Any] = []
    cycle.append(cycle)
    round_trip: dict[str, Any] = {}
    round_trip["k"] = [round_trip]
    deep: list[Any] = []
    for _ in range(2_000):
        deep = [deep]
    return [
        {2**9_000},
        range(2**9_000),
        Fraction(1, 2**9_000),
        {1, Number(2)},
        object(),
        print,
        memoryview(b"x"),
        Number(5),
        (Number(5),),
        datetime.time(tzinfo=Zone()),
        {print: "a key that is no message"},
        "\ud800",
        {"\udfff": 1},
        cycle,
        round_trip,
        deep,
        [[]] * 300_000,
        bytes(2_000_000),
        Elsewhere(1),
        Pair.__new__(Pair),
        # Found out after much of it was written.
        [bytes(100_000), "x" * 100_000, {"k": [1, 2, object()]}],
    ]


@pytest.mark.parametrize("good_bytes", [1, 200_000])
def test_what_cannot_be_encoded_is_a_dead_letter_and_the_rest_arrives(good_bytes: int) -> None:
    bad = bad_values()
    limits = {"message_bytes_max": 1_000_000, "message_decoded_bytes_max": 20_000_000}
    with rouse("a", limits=limits) as a, rouse("b") as b:
        told = meet(a, b)
        # In one batch: a good one before and after each bad one.
        with b.mailbox() as box, a.mailbox() as letters:
            a.subscribe_dead_letters(letters.pid)

            def batch(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
                for number, value in enumerate(bad):
                    yield Envelope(box.pid, [number, bytes(good_bytes)])
                    yield Envelope(box.pid, value)
                yield Envelope(box.pid, [len(bad), bytes(good_bytes)])

            sender = a.spawn(Does(batch), "sends")
            a.send(sender, "go")
            for number in range(len(bad) + 1):
                assert box.receive(PATIENCE_S).msg == [number, bytes(good_bytes)]
            for value in bad:
                letter = letters.receive(PATIENCE_S).msg
                assert isinstance(letter, DeadLetter)
                assert letter.reason is DeadLetterReason.UNENCODABLE
                assert letter.envelope.msg is value
                assert (letter.envelope.to, letter.envelope.sender) == (box.pid, sender)
            # Neither the process nor the connection is another one.
            assert a.call(b.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
            assert a.call(a.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
            assert sender in a.processes()
            assert len(box) == len(letters) == 0
        for node in (a, b):
            assert node.executor_status().crashes == 0
        assert a.executor_status().dead_letters == {"unencodable": len(bad)}
        assert b.executor_status().dead_letters == {}
        for each in told:
            assert len(each.box) == 0
            assert [type(e) for e in each.events] == [NodeUp]


class Changes(Process):
    """Sends a list to several, and changes it by the next message, which it sends itself."""

    def __init__(self, to: list[Pid], change_first: bool) -> None:
        self.to = to
        self.change_first = change_first
        self.sent: list[Any] = [1, "two", {"k": [3]}, "x" * 50_000]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> list[Envelope]:
        if msg == "change":
            self.sent[0] = "changed"
            self.sent[2]["k"].clear()
            self.sent.append("more")
            return [Envelope(pid, "changed") for pid in self.to]
        change = [Envelope(self.pid, "change")]
        says = [Envelope(pid, self.sent) for pid in self.to]
        return change + says if self.change_first else says + change


@pytest.mark.parametrize("when", ["before its turn", "after its turn"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_message_that_is_changed_after_it_was_returned(strict: bool, when: str) -> None:
    """docs/concepts.md: it must not be; within a node it is the object itself, or in the strict
    mode a copy.
    """
    with rouse("a", strict=strict) as a, rouse("b") as b:
        meet(a, b)
        with a.mailbox() as local, b.mailbox() as remote:
            process = Changes([local.pid, remote.pid], when == "before its turn")
            original = copy.deepcopy(process.sent)
            a.send(a.spawn(process, "changes"), "go")
            heard: dict[str, Any] = {}
            for name, box in (("local", local), ("remote", remote)):
                two = [box.receive(PATIENCE_S).msg for _ in range(2)]
                two.remove("changed")
                (heard[name],) = two
        if strict:
            assert heard == {"local": original, "remote": original}
            assert heard["local"] is not process.sent
        else:
            assert heard["local"] is process.sent
            # What it is when its turn comes is what both are handed.
            late = when == "after its turn"
            assert heard["remote"] == (original if late else process.sent)


def test_a_call_from_another_node_is_answered_whatever_processes_send_themselves() -> None:
    with rouse("a") as a, rouse("b") as b:
        told = meet(a, b)
        goes_on = True

        def endless(process: Process, msg: Any, sender: Pid | None) -> Envelope | None:
            return Envelope(process.pid, msg) if goes_on else None

        busy = [b.spawn(Does(endless), f"busy-{n}") for n in range(200)]
        echo = b.spawn(Echo(), "echo")
        try:
            for pid in busy:
                b.send(pid, "go")
            # Behind all of these.
            assert b.call(echo, "begun", PATIENCE_S) == "begun"
            before = b.processes()
            waits = []
            for n in range(50):
                began = time.monotonic()
                assert a.call(echo, [n, bytes(n * 1_000)], PATIENCE_S) == [n, bytes(n * 1_000)]
                waits.append(time.monotonic() - began)
            print(f"answered within {max(waits):.3f} s")
            after = b.processes()
            # They were at it all the time, and each of them had its turn.
            assert all(after[pid] > before[pid] for pid in busy)
        finally:
            goes_on = False
        assert max(waits) < SLACK_S
        for each in told:
            assert len(each.box) == 0
            assert [type(e) for e in each.events] == [NodeUp]


class Batch(Process):
    """Sends many envelopes at once, to two processes in turn."""

    def __init__(self, *to: Pid) -> None:
        self.to = to

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> rabble.Output:
        return [Envelope(to, n) for n in range(msg) for to in self.to]


class Slow(Process):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        self.got.append(msg)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("count", [1, 150, 300, 1_000])
def test_a_batch_from_another_node_meets_a_mailbox_limit(count: int, strict: bool) -> None:
    """The run queue grows while it is put there, and what has no room is taken out of it again."""
    with rouse("a", strict=strict) as a, rouse("b") as b:
        meet(a, b)
        limited, free = Slow(), Slow()
        to = [a.spawn(limited, "limited", mailbox_max=1), a.spawn(free, "free")]
        batch = b.spawn(Batch(*to), "batch")
        b.send(batch, count)
        until(lambda: len(free.got) == count)
        assert free.got == list(range(count))
        lost = a.executor_status().dead_letters.get("mailbox_full", 0)
        assert len(limited.got) + lost == count and limited.got == sorted(limited.got)
        assert a.status == b.status == "running"


@rabble.message(name="remote_messages.Spawns", post_init=True)
class Spawns:
    """Spawns a process where it is built: in the middle of a batch."""

    name: str

    def __post_init__(self) -> None:
        for node, process in SPAWNED:
            node.spawn(process, self.name, mailbox_max=5)
        SPAWNED.clear()


SPAWNED: list[tuple[rabble.Node, Process]] = []


def test_a_limit_of_who_is_spawned_within_a_batch_counts_what_is_counted_out() -> None:
    """Other threads may spawn while a batch is decoded, as a message's own code may."""
    with rouse("a") as a, rouse("b") as b:
        meet(a, b)
        limited, free = Slow(), Slow()
        late, to = Pid("late", a.node_id), a.spawn(free, "free")
        spawns = Spawns("late")
        out = [*(Envelope(late, n) for n in range(8)), Envelope(to, spawns), Envelope(to, "end")]
        SPAWNED.append((a, limited))
        batch = b.spawn(Does(lambda process, msg, sender: out), "batch")
        b.send(batch, 1)
        until(lambda: free.got and free.got[-1] == "end")
        assert limited.got in ([0, 1, 2, 3, 4], [])
        limited.got.clear()
        for n in range(20):
            b.send(late, n)
            until(lambda n=n: limited.got[-1:] == [n])
