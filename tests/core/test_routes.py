"""Routes: which connection leads to another node, and what goes over it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import DeadLetterReason, NodeId, Pid
from rabble._core.debug import CAPACITIES
from tests.core.peers import Hub, Peer
from tests.core.processes import spawn_recorder
from tests.reference.session import MONITOR, PROTOCOL, frame
from tests.support import BARE, TINY

BATCH = CAPACITIES["BATCH_FRAMES_MAX"]

#: Node ids that the tests keep: the routes remember the last one by its object.
NODES = [NodeId(name, addr) for name in ("a", "b", "c") for addr in ("h:2", "h:3")]

nodes = st.sampled_from(NODES)
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), nodes),
        st.tuples(st.just("end"), nodes),
        st.tuples(st.sampled_from(["send", "send to a copy"]), nodes),
    ),
    max_size=25,
)


@given(script=scripts)
@settings(max_examples=60)
def test_an_envelope_goes_to_the_node_that_is_connected_now_or_nowhere(
    script: list[tuple[str, NodeId]],
) -> None:
    """By name and address; never to one that has ended, or to another start of that name."""
    connected: dict[str, Peer] = {}
    expected: dict[Peer, list[int]] = {}
    nowhere = 0
    with Hub() as hub:
        for number, (what, node) in enumerate(script):
            if what == "connect":
                # One of that name that is there makes way.
                peer = hub.connect(node.name, node.addr, incarnation=number)
                connected[node.name] = peer
                expected[peer] = []
            elif what == "end":
                if node.name in connected:
                    connected.pop(node.name).close()
                    hub.settle()
            else:
                to = node if what == "send" else NodeId(node.name, node.addr)
                hub.executor.send(Pid("anybody", to), number)
                hub.settle()
                reached = connected.get(node.name)
                if reached is not None and reached.node == node:
                    expected[reached].append(number)
                else:
                    nowhere += 1
        assert {peer: peer.messages for peer in expected} == expected
        assert hub.executor.dead_letters.get(DeadLetterReason.NOT_CONNECTED, 0) == nowhere


def numbered(number: int) -> bytes:
    """A message of 1,000 bytes."""
    return number.to_bytes(4) + bytes(996)


def test_what_a_full_queue_refuses_is_counted_and_the_peer_is_told_in_its_place() -> None:
    count = 500
    with Hub(queue_bytes_max=4_096) as hub:
        peer = hub.connect()
        peer.reads = False
        for number in range(count):
            hub.executor.send(peer.pid("anybody"), numbered(number))
        hub.settle()
        refused = hub.executor.dead_letters[DeadLetterReason.PEER_BUSY]
        assert 0 < refused < count
        assert hub.executor.dead_letters == {DeadLetterReason.PEER_BUSY: refused}
        peer.reads = True
        hub.settle()
        hub.executor.send(peer.pid("anybody"), numbered(count))
        hub.settle()
        # Each gap in the numbers is filled by what the peer is told between its two ends.
        expected = 0
        for what, content in peer.received:
            if what == "lost":
                expected += content
            else:
                assert int.from_bytes(content.msg[:4]) == expected
                expected += 1
        assert expected == count + 1
        assert sum(content for what, content in peer.events if what == "lost") == refused


@pytest.mark.parametrize("count", [2, 3])
def test_messages_longer_than_the_queue_end_no_connection_whose_peer_reads(count: int) -> None:
    """Whatever the runtime has to answer meanwhile; of lists nobody knows the length before."""
    with Hub(queue_bytes_max=50_000) as hub:
        peer = hub.connect()
        peer.reads = False
        far = peer.pid("far")
        long = ["x" * 1_000] * 120
        for _ in range(count):
            hub.executor.send(far, long)
        hub.settle()
        peer.write("monitor", far, Pid("nobody", BARE), 1)
        hub.settle()
        assert peer.connection.open
        peer.reads = True
        hub.settle()
        busy = hub.executor.dead_letters.get(DeadLetterReason.PEER_BUSY, 0)
        assert peer.messages == [long] * (count - busy) and busy <= count - 2
        assert [what[0] for what in peer.events if what[0] != "lost"] == ["down"]


def test_a_peer_that_reads_no_answers_is_asked_for_nothing_more_until_it_reads() -> None:
    """So it fills no memory; and it gets all of them, as it may only have been busy."""
    count, most = (3_000 if TINY else 60_000), 2_000
    with Hub(queue_bytes_max=most, peer_monitors_max=1) as hub:
        peer = hub.connect()
        peer.reads = False
        nobody = Pid("nobody", BARE)
        for reference in range(count):
            peer.session.monitor(peer.pid("far"), nobody, reference)
        peer.flush()
        hub.settle()
        # What was decoded when it had become too much is answered, 27 bytes each: one batch, and
        # the one before, whose answers stand in the run queue while the next is decoded.
        queued = peer.connection.status()["queued_bytes"]
        assert peer.connection.open and most < queued <= 2 * most + 27 * 2 * (BATCH + 1) + 100
        peer.reads = True
        hub.settle()
        assert [what[3] for what in peer.events] == list(range(count))


def test_of_all_peers_together_one_batch_waits_to_be_delivered(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor)
    peers = [hub.connect(name) for name in ("a", "b")]
    # The first ones say which pids are meant from now on, which takes frames of its own.
    for number in range(3 * BATCH):
        for peer in peers:
            peer.send(to, (peer.node.name, number))
        if number == 0:
            hub.settle()
    hub.settle(0)
    assert hub.executor.queue_depth == BATCH
    hub.settle()
    for peer in peers:
        mine = [number for name, number in got if name == peer.node.name]
        assert mine == list(range(3 * BATCH))


@pytest.mark.skipif(TINY, reason="what has come by a turn is a few bytes, of whom the kernel says")
def test_peers_that_send_at_the_same_time_take_turns(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor)
    peers = [hub.connect(name) for name in ("a", "b", "c")]
    each = 4 * BATCH
    for peer in peers:
        for _ in range(each):
            peer.send(to, peer.node.name)
        peer.exchange()
    while hub.executor.step():
        counts = [got.count(peer.node.name) for peer in peers]
        assert max(counts) - min(counts) <= BATCH
    assert len(got) == each * len(peers)


def test_a_batch_of_which_a_mailbox_takes_little_holds_up_nothing_behind_it(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor, mailbox_max=1)
    peer = hub.connect()
    for number in range(BATCH):
        peer.send(to, number)
    hub.settle()
    refused = hub.executor.dead_letters.get(DeadLetterReason.MAILBOX_FULL, 0)
    assert len(got) + refused == BATCH and (refused or TINY)
    peer.send(to, "after")
    hub.settle()
    assert got[-1] == "after"


def test_what_cannot_be_decoded_ends_its_own_connection_and_no_other(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor)
    bad, good = hub.connect("bad"), hub.connect("good")
    bad.send(to, "before")
    # Its pids are indexes beyond the pid cache: which slots within it are filled, hashes say.
    bad.write_bytes(frame(MONITOR, 0, b"\xff\xff\xff\xff" + bytes(8)))
    bad.send(to, "never read")
    good.send(to, "others")
    hub.settle()
    assert bad.goodbye == PROTOCOL
    assert hub.witness.ended == [bad.connection] and good.connection.open
    assert sorted(got) == ["before", "others"]


def test_the_last_words_of_a_peer_are_delivered_before_its_end_is_noticed(hub: Hub) -> None:
    to, got = spawn_recorder(hub.executor)
    peer = hub.connect()
    ended_at: list[int] = []

    def disconnected(connection: Any) -> None:
        ended_at.append(len(got))

    hub.witness.disconnected = disconnected  # type: ignore[method-assign]
    for number in range(2 * BATCH + 1):
        peer.send(to, number)
    peer.close()
    hub.settle()
    assert got == list(range(2 * BATCH + 1)) and ended_at == [2 * BATCH + 1]
