"""Producers: who sends much waits where a peer is slow, and nothing of it is lost."""

from __future__ import annotations

from typing import Any

import pytest

from rabble import (
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    Drain,
    Drained,
    Envelope,
    NodeId,
    Output,
    Pid,
    Process,
    Stop,
)
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble._core.messages import Produce
from tests.core.peers import Hub, Peer
from tests.core.processes import spawn_recorder
from tests.core.starvation import Starvation
from tests.support import BARE, Does, Witness, bare_executor, settle

QUEUE_BYTES = 1 << 20
PART = 64 << 10


class Asker:
    """Hands envelopes over as calls do, and is told of each what became of it."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.pid, self.told = spawn_recorder(executor, "asker")
        self.requests: list[Produce] = []

    def produce(self, to: Pid, msg: Any, sender: Pid | None = None) -> Produce:
        request = Produce(Envelope(to, msg, sender))
        self.requests.append(request)
        self.executor.send(
            self.executor.pid,
            request,
            sender=self.pid,
            correlation_id=CorrelationId(self.pid, request=len(self.requests)),
        )
        return request


@pytest.fixture
def asker(hub: Hub) -> Asker:
    return Asker(hub.executor)


def slow_peer(hub: Hub, name: str = "peer", addr: str = "h:2") -> Peer:
    peer = hub.connect(name, addr)
    peer.reads = False
    return peer


def fill(hub: Hub, peer: Peer, asker: Asker) -> int:
    """Hand over until some have to wait; how many were handed over."""
    count = 0
    while len(asker.told) == count:
        asker.produce(peer.pid("there"), [count, bytes(PART)])
        count += 1
        hub.settle()
    return count


def numbers(peer: Peer) -> list[int]:
    return [msg[0] for msg in peer.messages]


def test_where_there_is_room_it_is_sent_at_once(hub: Hub, asker: Asker) -> None:
    peer = hub.connect("peer")
    hub.executor.send(peer.pid("there"), "before", sender=asker.pid)
    asker.produce(peer.pid("there"), "produced", asker.pid)
    hub.executor.send(peer.pid("there"), "after", sender=asker.pid)
    hub.settle()
    assert peer.messages == ["before", "produced", "after"]
    assert {envelope.sender for envelope in peer.envelopes} == {asker.pid}
    assert asker.told == [None]


@pytest.mark.parametrize("size", [100, 3_000, PART, PART + 1, QUEUE_BYTES // 5])
def test_of_many_nothing_is_lost_and_the_queue_stays_within_its_bound(size: int) -> None:
    with Hub(queue_bytes_max=QUEUE_BYTES) as hub:
        peer, asker = slow_peer(hub), Asker(hub.executor)
        count = 4 * QUEUE_BYTES // (size + 100)
        for number in range(count):
            asker.produce(peer.pid("there"), [number, bytes(size)])
        hub.settle()
        assert 0 < len(asker.told) < count
        # Beyond the high mark by one message at most.
        most = peer.connection.status()["queued_bytes"]
        assert QUEUE_BYTES // 2 < most <= QUEUE_BYTES * 3 // 4 + size + 1_000
        while len(asker.told) < count:
            peer.reads = True
            peer.exchange()
            peer.reads = False
            hub.executor.step()
            assert peer.connection.status()["queued_bytes"] <= QUEUE_BYTES
        peer.reads = True
        hub.settle()
        assert numbers(peer) == list(range(count)) and asker.told == count * [None]
        assert not hub.executor.dead_letters


def test_it_goes_on_below_the_low_mark_only(hub: Hub, asker: Asker) -> None:
    peer = slow_peer(hub)
    count = fill(hub, peer, asker)
    told = len(asker.told)
    # The others stand behind the first, though there is room for them.
    asker.produce(peer.pid("there"), [count, b""])
    hub.settle()
    assert len(asker.told) == told
    assert peer.connection.status()["queued_bytes"] >= QUEUE_BYTES // 4
    peer.reads = True
    hub.settle()
    assert numbers(peer) == list(range(count + 1))


def test_a_peer_that_reads_is_not_delayed_by_another_one(hub: Hub, asker: Asker) -> None:
    slow, fast = slow_peer(hub), hub.connect("fast", "h:3")
    fill(hub, slow, asker)
    for _ in range(20):
        asker.produce(fast.pid("there"), bytes(PART))
    hub.settle()
    assert len(fast.messages) == 20


def test_what_was_taken_back_is_not_sent(hub: Hub, asker: Asker) -> None:
    peer = slow_peer(hub)
    count = fill(hub, peer, asker)
    later = [asker.produce(peer.pid("there"), [number, b""]) for number in range(100, 104)]
    hub.settle()
    later[1].tokens.pop()
    asker.requests[count - 1].tokens.pop()
    at_once = asker.produce(peer.pid("there"), [104, b""])
    at_once.tokens.pop()
    peer.reads = True
    hub.settle()
    assert numbers(peer) == [*range(count - 1), 100, 102, 103]
    assert len(asker.told) == count - 1 + 3


def test_the_end_of_the_connection_ends_the_wait(hub: Hub, asker: Asker) -> None:
    peer = slow_peer(hub)
    count = fill(hub, peer, asker)
    withdrawn = asker.produce(peer.pid("there"), [count, b""])
    hub.settle()
    withdrawn.tokens.pop()
    told = len(asker.told)
    peer.socket.close()
    hub.settle()
    assert len(hub.witness.ended) == 1
    (letter,) = asker.told[told:]
    assert type(letter) is DeadLetter and letter.reason is DeadLetterReason.NOT_CONNECTED
    assert letter.envelope.msg[0] == count - 1
    assert hub.executor.dead_letters == {DeadLetterReason.NOT_CONNECTED: 1}
    asker.produce(peer.pid("there"), "later")
    hub.settle()
    assert asker.told[-1].reason is DeadLetterReason.NOT_CONNECTED


def test_nothing_that_waits_reaches_the_next_start_of_the_node(hub: Hub, asker: Asker) -> None:
    peer = slow_peer(hub)
    count = fill(hub, peer, asker)
    again = hub.attach("peer", "h:2", 2)
    # One waits for room; one stands in the run queue, and one in the inbox.
    asker.produce(peer.pid("there"), [count, b""])
    hub.executor.step(0)
    hub.executor.connection_up(again.connection)
    asker.produce(peer.pid("there"), [count + 1, b""])
    hub.settle()
    assert again.messages == []
    reasons = [letter.reason for letter in asker.told if letter is not None]
    assert reasons == 3 * [DeadLetterReason.NOT_CONNECTED]
    asker.produce(peer.pid("there"), "new")
    hub.settle()
    assert again.messages == ["new"]


def test_what_cannot_be_encoded_is_told(hub: Hub, asker: Asker) -> None:
    peer = hub.connect("peer")
    asker.produce(peer.pid("there"), object())
    asker.produce(peer.pid("there"), "next")
    hub.settle()
    letter, nothing = asker.told
    assert letter.reason is DeadLetterReason.UNENCODABLE and "object" in letter.detail
    assert nothing is None and peer.messages == ["next"]
    assert hub.executor.dead_letters == {DeadLetterReason.UNENCODABLE: 1}


@pytest.mark.parametrize("make", [bytes, lambda size: [bytes(size // 2), bytes(size // 2)]])
def test_messages_that_are_longer_than_the_queue_go_one_after_the_other(make: Any) -> None:
    with Hub(queue_bytes_max=64 << 10) as hub:
        peer, asker = slow_peer(hub), Asker(hub.executor)
        size = 1 << 20
        for _ in range(5):
            asker.produce(peer.pid("there"), make(size))
        hub.settle()
        assert peer.connection.status()["queued_bytes"] < size + (64 << 10)
        peer.reads = True
        hub.settle()
        assert [len(msg) for msg in peer.messages] == 5 * [len(make(size))]
        assert asker.told == 5 * [None] and not hub.executor.dead_letters


def test_it_waits_while_what_others_sent_is_refused(hub: Hub, asker: Asker) -> None:
    peer = slow_peer(hub)
    for number in range(3 * QUEUE_BYTES // PART):
        hub.executor.send(peer.pid("there"), [number, bytes(PART)])
    asker.produce(peer.pid("there"), ["produced", b""])
    hub.settle()
    refused = hub.executor.dead_letters[DeadLetterReason.PEER_BUSY]
    assert refused > 0 and asker.told == []
    peer.reads = True
    hub.settle()
    assert numbers(peer)[-1] == "produced" and asker.told == [None]
    assert hub.executor.dead_letters == {DeadLetterReason.PEER_BUSY: refused}


# To this node.


def test_nobody_there_is_told(executor: Executor) -> None:
    asker = Asker(executor)
    asker.produce(Pid("nobody", BARE), 1)
    asker.produce(Pid("nobody", NodeId("elsewhere", "h:9")), 2)
    settle(executor)
    assert [letter.reason for letter in asker.told] == [
        DeadLetterReason.NO_PROCESS,
        DeadLetterReason.NOT_CONNECTED,
    ]
    assert executor.dead_letters == dict.fromkeys(
        (DeadLetterReason.NO_PROCESS, DeadLetterReason.NOT_CONNECTED), 1
    )


def test_a_process_of_this_node_has_it_before_the_producer_goes_on(executor: Executor) -> None:
    asker = Asker(executor)
    pid, got = spawn_recorder(executor)
    asker.produce(pid, "produced")
    while not asker.told:
        assert executor.step(1)
    assert got == ["produced"] and asker.told == [None]


def test_a_mailbox_with_a_limit_loses_nothing(executor: Executor) -> None:
    asker = Asker(executor)
    pid, got = spawn_recorder(executor, mailbox_max=2)
    for number in range(50):
        asker.produce(pid, number)
    settle(executor)
    assert got == list(range(50)) and asker.told == 50 * [None]
    assert not executor.dead_letters


def test_one_that_waits_for_a_mailbox_can_be_taken_back(executor: Executor) -> None:
    asker = Asker(executor)
    pid, got = spawn_recorder(executor, mailbox_max=1)
    executor.send(pid, "first")
    withdrawn = asker.produce(pid, "second")
    withdrawn.tokens.pop()
    settle(executor)
    assert got == ["first"] and asker.told == []


def test_a_full_inbox_is_told(executor: Executor) -> None:
    asker = Asker(executor)
    inbox = Inbox(1)
    pid = Pid("service", BARE)
    executor.add_inbox(pid, inbox)
    asker.produce(pid, 1)
    asker.produce(pid, 2)
    settle(executor)
    assert [envelope.msg for envelope in inbox.take(5)] == [1]
    first, second = asker.told
    assert first is None and second.reason is DeadLetterReason.MAILBOX_FULL


@pytest.mark.parametrize("request_of", ["nobody", "no envelope"])
def test_what_is_no_request_is_refused(
    executor: Executor, witness: Witness, request_of: str
) -> None:
    request = Produce(Envelope(Pid("p", BARE), 1))
    if request_of == "nobody":
        executor.send(executor.pid, request)
    else:
        request.envelope = "none"  # type: ignore[assignment]
        pid, _ = spawn_recorder(executor)
        executor.send(
            executor.pid, request, sender=pid, correlation_id=CorrelationId(pid, request=1)
        )
    settle(executor)
    ((_, error),) = witness.errors
    assert "Produce" in str(error) and executor.dead_letters[DeadLetterReason.REFUSED if
        request_of == "nobody" else DeadLetterReason.PROCESS_CRASHED] == 1  # fmt: skip


# Processes.


class Sends(Process):
    """Sends so many parts, and wants to know when they have gone."""

    def __init__(self, peer: Pid, times: int = 1) -> None:
        self.peer = peer
        self.times = times
        self.told: list[Any] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, Drained):
            self.told.append((msg, correlation_id))
            return None
        drain = Envelope(
            self.executor,
            Drain(self.peer.node),
            correlation_id=CorrelationId(self.pid, request=7),
        )
        return [*(Envelope(self.peer, bytes(PART)) for _ in range(msg)), *(self.times * [drain])]


def test_a_process_is_told_when_most_of_it_has_gone(hub: Hub) -> None:
    peer = slow_peer(hub)
    pid = hub.executor.spawn(process := Sends(peer.pid("there"), times=3), "sends")
    hub.executor.send(pid, 12)
    hub.settle()
    assert process.told == []
    assert QUEUE_BYTES // 4 < peer.connection.status()["queued_bytes"]
    hub.executor.send(pid, 0)
    hub.settle()
    peer.reads = True
    hub.settle()
    # Once, though it asked six times.
    assert process.told == [(Drained(peer.node, True), CorrelationId(pid, request=7))]
    assert len(peer.messages) == 12
    hub.executor.send(pid, 1)
    hub.settle()
    assert len(process.told) == 4


def test_a_process_that_stopped_is_told_nothing(hub: Hub) -> None:
    peer = slow_peer(hub)
    pid = hub.executor.spawn(process := Sends(peer.pid("there")), "sends")
    hub.executor.send(pid, 12)
    hub.settle()
    hub.executor.send(hub.executor.pid, Stop(pid))
    hub.settle()
    successor = hub.executor.spawn(again := Sends(peer.pid("there")), "sends")
    peer.reads = True
    hub.settle()
    assert process.told == again.told == [] and successor == pid


def test_a_process_is_told_that_the_connection_ended(hub: Hub) -> None:
    peer = slow_peer(hub)
    pid = hub.executor.spawn(process := Sends(peer.pid("there")), "sends")
    hub.executor.send(pid, 12)
    hub.settle()
    peer.socket.close()
    hub.settle()
    assert [told for told, _ in process.told] == [Drained(peer.node, False)]
    hub.executor.send(pid, 0)
    hub.settle()
    assert [told for told, _ in process.told] == 2 * [Drained(peer.node, False)]


def test_of_its_own_node_nothing_waits(executor: Executor) -> None:
    process = Sends(Pid("x", BARE))
    executor.send(executor.spawn(process, "sends"), 0)
    settle(executor)
    assert [told for told, _ in process.told] == [Drained(BARE, True)]


def test_a_drain_of_no_node_crashes(executor: Executor, witness: Witness) -> None:
    def react(process: Process, msg: Any, sender: Pid | None) -> Output:
        return Envelope(process.executor, Drain(process.pid))  # type: ignore[arg-type]

    pid = executor.spawn(Does(react), "wrong")
    executor.send(pid, 1)
    settle(executor)
    ((who, error),) = witness.errors
    assert who == pid and "Drain: node must be a NodeId" in str(error)


# The end, and no memory.


def test_the_end_of_the_node_ends_every_wait() -> None:
    with Hub(queue_bytes_max=QUEUE_BYTES) as hub:
        peer, asker = slow_peer(hub), Asker(hub.executor)
        process = Sends(peer.pid("there"))
        count = fill(hub, peer, asker)
        hub.executor.send(hub.executor.spawn(process, "sends"), 0)
        hub.settle()
        hub.executor.request_stop(5)
        hub.executor.run()
        assert [told for told, _ in process.told] == [Drained(peer.node, False)]
        assert asker.told[count - 1].reason is DeadLetterReason.NODE_SHUTDOWN


def test_without_memory_each_is_answered_or_the_node_ends(starvation: Starvation) -> None:
    went_on = 0
    for nth in range(1, 60):
        with Hub(queue_bytes_max=QUEUE_BYTES) as hub:
            peer, asker = slow_peer(hub), Asker(hub.executor)
            count = fill(hub, peer, asker)
            asker.produce(peer.pid("there"), [count, b""])
            hub.executor.step(0)
            if starvation.ends_a_node(nth, hub.executor.step):
                continue
            went_on += 1
            peer.reads = True
            hub.settle()
            sent = numbers(peer)
            assert sent == sorted(set(sent))
            # The asker itself may have had no memory for what it is told.
            told = len(asker.told) + hub.executor.crashes
            assert told >= 1 and len(sent) + sum(hub.executor.dead_letters.values()) >= count
    assert went_on


def test_an_executor_without_a_mesh_has_no_peers() -> None:
    with bare_executor() as executor:
        asker = Asker(executor)
        asker.produce(Pid("p", NodeId("n", "h:3")), 1)
        settle(executor)
        assert asker.told[0].reason is DeadLetterReason.NOT_CONNECTED
