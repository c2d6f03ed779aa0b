"""Distribution: connections that begin and end, and what peers say besides envelopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rabble import (
    CorrelationId,
    DeadLetterReason,
    Demonitor,
    Down,
    DownReason,
    Envelope,
    Exit,
    Link,
    MessageRegistry,
    Monitor,
    NodeDown,
    NodeId,
    NodeUp,
    Pid,
    Process,
    Stop,
    SubscribeNodes,
    message,
)
from rabble._core.debug import CAPACITIES
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble.messages import Bounced, Lost
from tests.core.peers import Hub
from tests.core.processes import Recorder, raising, spawn_recorder
from tests.reference.session import DOWN_CODES, PROTOCOL, UNDELIVERED_CODES
from tests.support import BARE, TINY, Does, subscribe_dead_letters

#: Which life of a peer's process.
LIFE = 7
#: The number of the request that a peer makes.
REQUEST = 5

PEERS_CLASSES = MessageRegistry()


@message(name="distribution.OfThePeer", registry=PEERS_CLASSES)
class OfThePeer:
    """A class that only the peer knows."""


class Trapping(Recorder):
    """Is told of exits."""

    traps_exits = True


def spawn_node_subscriber(executor: Executor) -> tuple[Pid, list[Any]]:
    pid, told = spawn_recorder(executor, "subscriber")
    executor.send(executor.pid, SubscribeNodes(), sender=pid)
    return pid, told


def monitor(hub: Hub, monitored: Pid) -> tuple[Pid, list[Any]]:
    """A process that monitors one of a peer."""
    monitoring, told = spawn_recorder(hub.executor, "monitoring")
    hub.executor.send(hub.executor.pid, Monitor(monitored), sender=monitoring)
    hub.settle()
    return monitoring, told


def stop(hub: Hub, pid: Pid, reason: DownReason | None = None) -> None:
    hub.executor.send(hub.executor.pid, Stop(pid, reason))
    hub.settle()


# Connections.


def test_a_subscriber_is_told_of_a_start_and_an_end_and_of_what_is_between_in_order(
    hub: Hub,
) -> None:
    subscriber, told = spawn_node_subscriber(hub.executor)
    peer = hub.connect(incarnation=3)
    peer.send(subscriber, "between")
    peer.close()
    hub.settle()
    assert told == [NodeUp(peer.node, 3), "between", NodeDown(peer.node, 3, "lost")]


def test_a_later_start_is_up_when_the_one_before_is_down_and_all_that_it_sent_is_delivered(
    hub: Hub,
) -> None:
    """Also what was not even decoded: more than a batch."""
    count = CAPACITIES["BATCH_FRAMES_MAX"] + 10
    subscriber, told = spawn_node_subscriber(hub.executor)
    old = hub.connect(incarnation=1)
    for number in range(count):
        old.send(subscriber, number)
    hub.settle(0)
    hub.witness.why = "replaced"
    new = hub.connect(incarnation=2)
    new.send(subscriber, "of the new one")
    hub.settle()
    assert hub.witness.ended == [old.connection]
    sent = [what for what in told if isinstance(what, int)]
    # In the tiny build a few bytes of it are read, and the rest stands in the kernel.
    assert sent == list(range(len(sent))) and (TINY or len(sent) == count)
    assert told == [
        NodeUp(old.node, 1),
        *sent,
        NodeDown(old.node, 1, "replaced"),
        NodeUp(new.node, 2),
        "of the new one",
    ]


@pytest.mark.parametrize("has_decoded", [False, True])
@pytest.mark.parametrize("has_closed", [False, True])
def test_an_end_that_came_before_a_later_start_is_told_between_two_lives(
    hub: Hub, has_decoded: bool, has_closed: bool
) -> None:
    """A node that stood still takes in at once what a peer sent, its end, and its next start."""
    old, new = hub.connect(incarnation=1), hub.attach(incarnation=2)
    far = old.pid("far")
    monitoring, told = monitor(hub, far)
    trapping = Trapping()
    linked, exits = hub.executor.spawn(trapping, "linked"), trapping.got
    hub.executor.send(hub.executor.pid, Link(far), sender=linked)
    hub.settle()
    for to in (monitoring, linked):
        old.send(to, "of the first life", far)
    old.write("down", monitoring, far, 1, DOWN_CODES["crashed"], LIFE, "why")
    old.write("exit", linked, far, 2, DOWN_CODES["crashed"], LIFE, "why")
    for to in (monitoring, linked):
        old.send(to, "of the next life", far)
    if has_closed:
        old.close()
    else:
        old.exchange()
    if has_decoded:
        hub.executor.step(0)
    hub.executor.connection_up(new.connection)
    new.send(monitoring, "of the next start", far)
    hub.settle()
    assert hub.witness.ended == [old.connection]
    reason = DownReason("crashed", "why")
    lives = ["of the first life", "of the next life"]
    if not TINY:
        # There less than all of it is read before the connection's end.
        assert told == [lives[0], Down(far, reason), lives[1], "of the next start"]
        assert exits == [lives[0], Exit(far, reason), lives[1]]
    for got in (told, exits):
        ends = [place for place, what in enumerate(got) if isinstance(what, Down | Exit)]
        assert len(ends) == 1
        assert lives[1] not in got[: ends[0]] and lives[0] not in got[ends[0] :]


@pytest.mark.parametrize("queued", [0, 1, 5])
def test_of_two_later_starts_that_come_at_once_the_last_one_stays(hub: Hub, queued: int) -> None:
    subscriber, told = spawn_node_subscriber(hub.executor)
    old = hub.connect(incarnation=1)
    for number in range(queued):
        old.send(subscriber, number)
    old.exchange()
    hub.executor.step(0)
    for incarnation in (2, 3):
        hub.executor.connection_up(hub.attach(incarnation=incarnation).connection)
        hub.executor.send(subscriber, "between")
    hub.settle()
    ups = [what.incarnation for what in told if isinstance(what, NodeUp)]
    assert ups == [1, 2, 3] and not isinstance(told[-1], NodeDown)
    assert hub.executor.delivered and len(hub.witness.ended) == 2


@pytest.mark.parametrize("busy", [1, 2, 5])
def test_later_starts_keep_their_order_whatever_is_sent_between_their_turns(
    hub: Hub, busy: int
) -> None:
    subscriber, told = spawn_node_subscriber(hub.executor)
    relays = hub.executor.spawn(
        Does(lambda process, msg, sender: msg and Envelope(process.pid, msg - 1) or None), "relays"
    )
    old = hub.connect(incarnation=1)
    for number in range(3):
        old.send(subscriber, number)
    old.exchange()
    for incarnation in range(2, 6):
        hub.executor.connection_up(hub.attach(incarnation=incarnation).connection)
        for _ in range(busy):
            hub.executor.send(relays, busy)
    hub.settle()
    ups = [what.incarnation for what in told if isinstance(what, NodeUp)]
    assert ups == sorted(ups) and ups[0] == 1 and ups[-1] == 5
    ends = [what for what in told if isinstance(what, NodeUp | NodeDown)]
    assert [type(what) for what in ends] == [NodeUp, NodeDown] * (len(ups) - 1) + [NodeUp]


def test_what_waits_for_a_node_that_ends_is_dropped_and_not_for_its_next_start(hub: Hub) -> None:
    peer = hub.connect(incarnation=1)
    for number in range(10):
        hub.executor.send(peer.pid("anybody"), number)
    peer.close()
    hub.settle(0)
    assert hub.witness.ended == [peer.connection]
    later = hub.connect(incarnation=2)
    hub.executor.send(later.pid("anybody"), "for the later one")
    hub.settle()
    assert hub.executor.dead_letters == {DeadLetterReason.NOT_CONNECTED: 10}
    assert later.messages == ["for the later one"]


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("shutdown", DownReason("shutdown", "peer@h:2 ended")),
        ("lost", DownReason("disconnected", "the connection to peer@h:2 ended: lost")),
        ("timeout", DownReason("disconnected", "the connection to peer@h:2 ended: timeout")),
    ],
)
def test_all_that_was_monitored_behind_a_connection_is_down_with_it(
    hub: Hub, why: str, reason: DownReason
) -> None:
    peer, other = hub.connect(), hub.connect("other")
    far = [peer.pid("one"), peer.pid("two")]
    monitoring, told = spawn_recorder(hub.executor, "monitoring")
    for pid in (*far, other.pid("one")):
        hub.executor.send(hub.executor.pid, Monitor(pid), sender=monitoring)
    hub.settle()
    hub.witness.why = why
    peer.close()
    hub.settle()
    assert told == [Down(pid, reason) for pid in far]
    assert [down.life for down in told] == [0, 0]


def test_what_a_connection_said_means_nothing_once_another_has_taken_its_place(hub: Hub) -> None:
    """Here a MONITOR, which stands in the queue behind the word that the later one is there."""
    monitored, _ = spawn_recorder(hub.executor, "monitored")
    old, new = hub.connect(incarnation=1), hub.attach(incarnation=2)
    old.write("monitor", old.pid("far"), monitored, 1)
    old.exchange()
    hub.executor.connection_up(new.connection)
    hub.settle()
    stop(hub, monitored)
    assert new.received == [] and old.received == []


def test_a_down_for_a_connection_that_another_has_replaced_by_then_goes_nowhere(hub: Hub) -> None:
    """To its node this one is down as a whole; the later start has asked for nothing."""
    monitored, _ = spawn_recorder(hub.executor, "monitored")
    old, new = hub.connect(incarnation=1), hub.attach(incarnation=2)
    old.write("monitor", old.pid("far"), monitored, 1)
    hub.settle()
    # The Down stands in the queue behind the word that the later one is there.
    hub.executor.send(hub.executor.pid, Stop(monitored))
    hub.executor.connection_up(new.connection)
    hub.settle()
    assert new.received == [] and old.received == []


def test_what_was_returned_before_a_later_start_was_told_does_not_go_there(hub: Hub) -> None:
    """A process that stands in the queue before NodeDown and NodeUp knows the start before."""
    executor = hub.executor
    old, new = hub.connect(incarnation=1), hub.attach(incarnation=2)
    far = new.pid("far")
    subscriber, told = spawn_node_subscriber(executor)
    sender = executor.spawn(Does(lambda process, msg, sender: Envelope(far, msg)), "sender")
    hub.settle()
    del told[:]
    # Both are taken in at once: the sender is given its message before anybody is told.
    executor.connection_up(new.connection)
    executor.send(sender, "before")
    hub.settle()
    assert told == [NodeDown(old.node, 1, "lost"), NodeUp(new.node, 2)]
    assert executor.dead_letters == {DeadLetterReason.NOT_CONNECTED: 1}
    executor.send(sender, "after")
    hub.settle()
    assert new.messages == ["after"] and old.messages == []


def test_who_answers_to_a_node_up_reaches_that_start_and_who_returned_before_does_not(
    hub: Hub,
) -> None:
    """What stands in the queue when the processes are told was returned before."""
    executor = hub.executor
    new = hub.attach(incarnation=2)
    far = new.pid("far")
    answers = executor.spawn(
        Does(
            lambda process, msg, sender: Envelope(far, "answer"),
            lambda process: Envelope(process.executor, SubscribeNodes()),
        ),
        "answers",
    )
    relays = executor.spawn(
        Does(
            lambda process, msg, sender: msg and Envelope(process.pid, msg[1:]) or Envelope(far, 0)
        ),
        "relays",
    )
    hub.settle()
    # So many deliveries to itself, of which each comes behind what was queued meanwhile.
    for rounds in range(6):
        executor.send(relays, "x" * rounds)
    executor.connection_up(new.connection)
    executor.send(far, "of a thread, which is not told")
    hub.settle()
    assert answers in executor.table
    lost = executor.dead_letters[DeadLetterReason.NOT_CONNECTED]
    assert 0 < lost < 6
    assert new.messages == ["of a thread, which is not told", "answer"] + [0] * (6 - lost)


def test_what_is_taken_out_of_the_queue_moves_the_mark_of_what_was_returned_before(
    hub: Hub,
) -> None:
    executor = hub.executor
    other, new = hub.connect("other"), hub.attach(incarnation=2)
    far = new.pid("far")
    many = executor.spawn(
        Does(lambda process, msg, sender: [Envelope(other.pid("any"), n) for n in range(20)]),
        "many",
    )
    sender = executor.spawn(Does(lambda process, msg, sender: Envelope(far, msg)), "sender")
    hub.settle()
    executor.connection_up(new.connection)
    executor.send(many, "go")
    while not hub.executor.table.get(many).delivered:  # type: ignore[union-attr]
        executor.step(1)
    # The next one delivered tells, when what the process returned stands in the queue.
    executor.step(1)
    other.close()
    executor.send(sender, "after")
    hub.settle()
    assert executor.dead_letters == {DeadLetterReason.NOT_CONNECTED: 20}
    assert new.messages == ["after"]


def test_a_monitor_that_meant_the_start_before_is_down(hub: Hub) -> None:
    executor = hub.executor
    new = hub.attach(incarnation=2)
    far = new.pid("far")
    told: list[Any] = []

    def react(process: Process, msg: Any, sender: Pid | None) -> Envelope | None:
        if msg == "go":
            return Envelope(process.executor, Monitor(far))
        told.append(msg)
        return None

    watch = executor.spawn(Does(react), "watch")
    executor.connection_up(new.connection)
    executor.send(watch, "go")
    hub.settle()
    assert told == [Down(far, DownReason("disconnected"))] and new.events == []
    executor.send(watch, "go")
    hub.settle()
    assert len(told) == 1 and [what[0] for what in new.events] == ["monitor"]


def test_what_a_replaced_connection_had_received_is_held_to_the_limits_of_mailboxes(
    hub: Hub,
) -> None:
    most, count = 4, 3 * CAPACITIES["BATCH_FRAMES_MAX"] + 100
    to, got = spawn_recorder(hub.executor, "limited", mailbox_max=most)
    old, new = hub.connect(incarnation=1), hub.attach(incarnation=2)
    for number in range(count):
        old.send(to, number)
    hub.settle(0)
    hub.executor.connection_up(new.connection)
    hub.settle()
    assert hub.witness.ended == [old.connection]
    # So many of those decoded before, and of all the others.
    assert len(got) <= 2 * most or TINY
    if not TINY:
        assert hub.executor.dead_letters == {DeadLetterReason.MAILBOX_FULL: count - len(got)}


# Monitors of peers.


@pytest.mark.parametrize("kind", DownReason.STOP_KINDS)
def test_a_peer_that_monitors_is_told_the_reason_and_which_life_it_was(hub: Hub, kind: str) -> None:
    peer = hub.connect()
    monitored, _ = spawn_recorder(hub.executor, "monitored")
    entry = hub.executor.table.get(monitored)
    assert entry is not None
    life = entry.life
    for name in ("far", "further"):
        peer.write("monitor", peer.pid(name), monitored, 3)
    peer.write("demonitor", peer.pid("further"), monitored, 3)
    hub.settle()
    stop(hub, monitored, DownReason(kind, "as it was asked"))
    assert peer.events == [
        ("down", peer.pid("far"), monitored, 3, DOWN_CODES[kind], life, "as it was asked")
    ]


def test_a_peer_is_told_of_a_crash_behind_what_the_process_sent_it(hub: Hub) -> None:
    peer = hub.connect()
    crashing = raising(ValueError("wrong"))
    monitored = hub.executor.spawn(crashing, "monitored")
    entry = hub.executor.table.get(monitored)
    assert entry is not None
    life = entry.life
    peer.write("monitor", peer.pid("far"), monitored, 1)
    hub.settle()
    hub.executor.send(peer.pid("far"), "its last word", sender=monitored)
    peer.send(monitored, "crash")
    hub.settle()
    assert [what[0] for what in peer.received] == ["envelope", "down"]
    code = DOWN_CODES["crashed"]
    assert peer.events == [("down", peer.pid("far"), monitored, 1, code, life, "ValueError: wrong")]


def test_a_peer_that_monitors_nobody_is_told_so(hub: Hub) -> None:
    peer = hub.connect()
    nobody = Pid("nobody", BARE)
    peer.write("monitor", peer.pid("far"), nobody, 1)
    # The executor is no process: it ends with its node, of which NodeDown tells.
    peer.write("monitor", peer.pid("far"), hub.executor.pid, 1)
    hub.settle()
    code = DOWN_CODES["no_process"]
    assert peer.events == [
        ("down", peer.pid("far"), pid, 1, code, 0, "") for pid in (nobody, hub.executor.pid)
    ]


def test_a_peer_that_monitors_more_than_it_may_is_refused_until_it_takes_one_back() -> None:
    with Hub(peer_monitors_max=1) as hub:
        peer = hub.connect()
        first, second = (spawn_recorder(hub.executor, name)[0] for name in ("first", "second"))
        for pid in (first, first, second):
            # The same pair twice is one.
            peer.write("monitor", peer.pid("far"), pid, 8)
        hub.settle()
        ((what, monitoring, monitored, reference, code, life, detail),) = peer.events
        assert (what, monitoring, monitored) == ("down", peer.pid("far"), second)
        assert (reference, code, life) == (8, DOWN_CODES["refused"], 0)
        assert "lets a peer monitor no more than" in detail and detail.endswith(" 1")
        peer.write("demonitor", peer.pid("far"), first, 8)
        peer.write("monitor", peer.pid("far"), second, 9)
        hub.settle()
        assert len(peer.events) == 1
        stop(hub, second)
        assert peer.events[-1][3:5] == (9, DOWN_CODES["stopped"])


# Monitors of this node's processes.


@pytest.mark.parametrize("kind", DOWN_CODES)
def test_a_down_of_a_peer_is_told_once_to_who_monitors_that_process(hub: Hub, kind: str) -> None:
    peer = hub.connect()
    far = peer.pid("far")
    monitoring, told = monitor(hub, far)
    assert peer.events == [("monitor", monitoring, far, 1)]
    bystander, told_bystander = spawn_recorder(hub.executor, "bystander")
    for pid in (monitoring, monitoring, bystander, Pid("nobody", BARE)):
        peer.write("down", pid, far, 1, DOWN_CODES[kind], LIFE, "why")
    hub.settle()
    assert told == [Down(far, DownReason(kind, "why"))] and told[0].life == LIFE
    assert told_bystander == [] and hub.executor.dead_letters == {}


@pytest.mark.parametrize("how", ["Demonitor", "its end"])
def test_a_peer_is_told_that_nobody_monitors_its_process_any_more(hub: Hub, how: str) -> None:
    peer = hub.connect()
    far = peer.pid("far")
    monitoring, told = monitor(hub, far)
    if how == "Demonitor":
        hub.executor.send(hub.executor.pid, Demonitor(far), sender=monitoring)
        hub.settle()
    else:
        stop(hub, monitoring)
        _, told = spawn_recorder(hub.executor, "monitoring")
    # Its DOWN was under way.
    peer.write("down", monitoring, far, 1, DOWN_CODES["stopped"], LIFE)
    hub.settle()
    assert peer.events == [("monitor", monitoring, far, 1), ("demonitor", monitoring, far, 1)]
    assert told == []


def test_a_down_under_way_is_not_that_of_the_monitor_which_was_set_after_it(hub: Hub) -> None:
    """Else the end of the next life, which is monitored by then, would never be told."""
    peer = hub.connect()
    far = peer.pid("far")
    monitoring, told = monitor(hub, far)
    for request in (Demonitor(far), Monitor(far)):
        hub.executor.send(hub.executor.pid, request, sender=monitoring)
    hub.settle()
    assert [what[0] for what in peer.events] == ["monitor", "demonitor", "monitor"]
    first, second = peer.events[0][3], peer.events[2][3]
    assert peer.events[1][3] == first != second
    # The life that was monitored first had ended, and its DOWN was under way.
    peer.write("down", monitoring, far, first, DOWN_CODES["crashed"], LIFE)
    hub.settle()
    assert told == []
    peer.write("down", monitoring, far, second, DOWN_CODES["stopped"], LIFE + 2)
    hub.settle()
    assert told == [Down(far, DownReason("stopped"))] and told[0].life == LIFE + 2


def test_who_monitors_again_without_having_been_told_of_an_end_is_told_of_both(hub: Hub) -> None:
    peer = hub.connect()
    far = peer.pid("far")
    monitoring, told = monitor(hub, far)
    for _ in range(2):
        hub.executor.send(hub.executor.pid, Monitor(far), sender=monitoring)
    hub.settle()
    references = [what[3] for what in peer.events]
    assert references == sorted(set(references)) and len(references) == 3
    # The second one came there while the first life was there, the third one for the next life.
    peer.write("down", monitoring, far, references[1], DOWN_CODES["crashed"], LIFE)
    peer.write("down", monitoring, far, references[0], DOWN_CODES["crashed"], LIFE)
    peer.write("down", monitoring, far, references[2], DOWN_CODES["stopped"], LIFE + 2)
    peer.write("down", monitoring, far, references[2] + 1, DOWN_CODES["stopped"], LIFE + 4)
    hub.settle()
    assert [down.life for down in told] == [LIFE, LIFE + 2]


def test_a_peer_is_told_by_the_reference_of_its_last_monitor_of_that_life(hub: Hub) -> None:
    peer = hub.connect()
    monitored, _ = spawn_recorder(hub.executor, "monitored")
    far = peer.pid("far")
    for reference in (4, 5):
        peer.write("monitor", far, monitored, reference)
    # Of one that is not there any more.
    peer.write("demonitor", far, monitored, 4)
    hub.settle()
    stop(hub, monitored)
    spawn_recorder(hub.executor, "monitored")
    peer.write("monitor", far, monitored, 6)
    hub.settle()
    stop(hub, monitored)
    assert [what[3:5] for what in peer.events] == [
        (5, DOWN_CODES["stopped"]),
        (6, DOWN_CODES["stopped"]),
    ]


# Dead letters of either side.


@pytest.mark.parametrize("reason", UNDELIVERED_CODES)
def test_what_became_a_dead_letter_at_a_peer_is_told_to_subscribers_and_to_the_call(
    hub: Hub, reason: str
) -> None:
    peer = hub.connect()
    subscriber, told = spawn_recorder(hub.executor, "subscriber")
    subscribe_dead_letters(hub.executor, subscriber)
    answers: list[Envelope] = []
    calls = Pid("calls", BARE, "rabble")
    hub.executor.add_callback(calls, answers.append)
    asker, told_asker = spawn_recorder(hub.executor, "asker")
    bounces = []
    for pid in (calls, asker):
        cid = CorrelationId(pid, None, 1)
        peer.write("undelivered", pid, cid, UNDELIVERED_CODES[reason])
        bounces.append(Bounced(peer.node, pid, DeadLetterReason(reason), cid))
    hub.settle()
    assert told == bounces and told_asker == []
    assert [(answer.msg, answer.correlation_id) for answer in answers] == [
        (bounces[0], bounces[0].correlation_id)
    ]
    # It is the peer's, who counts it.
    assert hub.executor.dead_letters == {}


def to_nobody(hub: Hub) -> Pid:
    return Pid("nobody", BARE)


def to_a_full_mailbox(hub: Hub) -> Pid:
    pid = Pid("box", BARE)
    hub.executor.add_inbox(pid, Inbox(1))
    hub.executor.send(pid, "fills it")
    hub.settle()
    return pid


def to_who_crashes(hub: Hub) -> Pid:
    return hub.executor.spawn(raising(ValueError()), "crashes")


def to_the_runtime(hub: Hub) -> Pid:
    return hub.executor.pid


def to_who_passes_it_on(hub: Hub, to: Pid | None, msg: object = "passed on") -> Pid:
    def react(process: Process, _: Any, sender: Pid | None) -> Envelope:
        return Envelope(to, msg, sender, CorrelationId(sender, None, REQUEST))  # type: ignore[arg-type]

    return hub.executor.spawn(Does(react), "passes it on")


def to_where_nobody_is(hub: Hub) -> Pid:
    return to_who_passes_it_on(hub, Pid("far", NodeId("absent", "h:9")))


def to_none(hub: Hub) -> Pid:
    return to_who_passes_it_on(hub, None)


def to_where_it_cannot_go(hub: Hub) -> Pid:
    return to_who_passes_it_on(hub, hub.connect("other").pid("far"), object())


def to_who_is_busy(hub: Hub) -> Pid:
    busy = hub.connect("other")
    busy.reads = False
    while DeadLetterReason.PEER_BUSY not in hub.executor.dead_letters:
        hub.executor.send(busy.pid("far"), bytes(10_000))
        hub.executor.step()
    return to_who_passes_it_on(hub, busy.pid("far"))


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        (to_nobody, "no_process"),
        (to_a_full_mailbox, "mailbox_full"),
        (to_who_crashes, "process_crashed"),
        (to_the_runtime, "refused"),
        (to_where_nobody_is, "not_connected"),
        (to_none, "no_receiver"),
        (to_where_it_cannot_go, "unencodable"),
        (to_who_is_busy, "peer_busy"),
    ],
)
@pytest.mark.parametrize("is_request", [True, False])
def test_a_peer_is_told_what_became_of_its_request_and_only_of_that(
    hub: Hub, receiver: Callable[[Hub], Pid], reason: str, is_request: bool
) -> None:
    peer = hub.connect()
    to = receiver(hub)
    asker = peer.pid("asker")
    cid = CorrelationId(asker, None, REQUEST)
    # What is passed on is one in any case: who passes it on says which.
    told = is_request or "pass" in to.name
    before = hub.executor.dead_letters.get(DeadLetterReason(reason), 0)
    peer.send(to, "a request", asker, cid if is_request else None)
    hub.settle()
    assert hub.executor.dead_letters[DeadLetterReason(reason)] == before + 1
    assert len(peer.events) == told
    if told:
        (event,) = peer.events
        assert event[:4] == ("undelivered", asker, cid, UNDELIVERED_CODES[reason])
        _, _, _, _, crash, about, detail = event
        # Whose doing it was is said of this node's own.
        assert about == (to if to.name not in ("passes it on",) else None)
        if reason == "unencodable":
            assert (crash, "object cannot be in a message" in detail) == (0, True)
        else:
            # Of a crash its number in the log, and what was raised.
            expected = (1, "ValueError: ") if reason == "process_crashed" else (0, "")
            assert (crash, detail) == expected


@pytest.mark.parametrize("is_request", [True, False])
def test_a_peer_is_told_of_a_message_of_which_this_node_knows_no_class(
    hub: Hub, is_request: bool
) -> None:
    """In any case: that is a defect of the sender's node."""
    peer = hub.connect(registry=PEERS_CLASSES)
    to, got = spawn_recorder(hub.executor)
    sender = peer.pid("sender")
    cid = CorrelationId(sender, None, REQUEST) if is_request else None
    peer.send(to, OfThePeer(), sender, cid)
    peer.send(to, "after", sender)
    hub.settle()
    assert got == ["after"] and peer.connection.open
    (event,) = peer.events
    assert event[:6] == ("undelivered", sender, cid, UNDELIVERED_CODES["undecodable"], 0, to)
    assert event[6] == hub.witness.undecodables[0][1]
    assert hub.executor.dead_letters == {DeadLetterReason.UNDECODABLE: 1}
    ((envelope, detail),) = hub.witness.undecodables
    assert (envelope.to, envelope.sender, envelope.msg) == (to, sender, None)
    assert "distribution.OfThePeer" in detail


def test_what_a_peer_lost_is_counted_and_told_between_what_is_around_it(hub: Hub) -> None:
    subscriber, told = spawn_recorder(hub.executor, "subscriber")
    subscribe_dead_letters(hub.executor, subscriber)
    peer = hub.connect()
    peer.send(subscriber, "before")
    peer.write("lost", 3)
    peer.send(subscriber, "after")
    peer.write("lost", 4)
    hub.settle()
    assert told == ["before", Lost(peer.node, 3), "after", Lost(peer.node, 4)]
    assert hub.executor.dead_letters == {DeadLetterReason.LOST: 7}


def test_a_peer_cannot_have_lost_more_than_there_was_time_for(hub: Hub) -> None:
    subscriber, told = spawn_recorder(hub.executor, "subscriber")
    subscribe_dead_letters(hub.executor, subscriber)
    peer = hub.connect()
    peer.write("lost", 3)
    hub.settle()
    peer.write("lost", 2**32 - 1)
    hub.settle()
    assert told == [Lost(peer.node, 3)] and hub.executor.dead_letters == {DeadLetterReason.LOST: 3}
    assert peer.goodbye == PROTOCOL and hub.witness.ended == [peer.connection]
