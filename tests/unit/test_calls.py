"""Each request ends exactly once, whoever ends it, and whether or not somebody still waits."""

from __future__ import annotations

import threading

import pytest

from rabble import (
    Bounced,
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    DecodeError,
    EncodeError,
    Envelope,
    NodeId,
    NodeStopped,
    NoProcess,
    NotConnected,
    Pid,
    ProcessCrashed,
    QueueFull,
)
from rabble.calls import Calls, Reply
from tests.support import BARE, PATIENCE_S

CALLS = Pid("calls", BARE, "rabble")
ONE = Pid("one", BARE)
EXECUTOR = Pid("executor", BARE, "rabble")


def test_whoever_comes_first_ends_it_and_the_others_find_nothing() -> None:
    calls, reply = Calls(CALLS, 2), Reply()
    correlation_id = calls.begin(reply, ONE)
    calls.deliver(Envelope(CALLS, "reply", ONE, correlation_id))
    assert reply.wait(PATIENCE_S)
    assert reply.take() == "reply"
    assert not calls.give_up(correlation_id)
    calls.deliver(Envelope(CALLS, "again", ONE, correlation_id))
    calls.close()
    assert (calls.late_replies, len(calls)) == (1, 0)


@pytest.mark.parametrize(
    "correlation_id", [None, CorrelationId(CALLS), CorrelationId(CALLS, request=7)]
)
def test_what_belongs_to_no_request_is_counted(correlation_id: CorrelationId | None) -> None:
    calls = Calls(CALLS, 1)
    calls.deliver(Envelope(CALLS, "hello", ONE, correlation_id))
    assert calls.late_replies == 1


@pytest.mark.parametrize(
    ("reason", "error", "said"),
    [
        (
            DeadLetterReason.PROCESS_CRASHED,
            ProcessCrashed,
            "one::bare@h:1 crashed: why .crash 7 in",
        ),
        (DeadLetterReason.NODE_SHUTDOWN, NodeStopped, "before the message was delivered"),
        (DeadLetterReason.MAILBOX_FULL, QueueFull, "the mailbox of one::bare@h:1 is full"),
        (DeadLetterReason.NO_PROCESS, NoProcess, "one::bare@h:1 could not be reached"),
        (DeadLetterReason.REFUSED, NoProcess, "could not be reached: refused"),
        (DeadLetterReason.NOT_CONNECTED, NotConnected, "no connection leads to the node of one::"),
        (DeadLetterReason.PEER_BUSY, QueueFull, "too much waits already for the node of one::"),
        (DeadLetterReason.UNENCODABLE, EncodeError, "one::bare@h:1 cannot be encoded: why"),
        (DeadLetterReason.UNDECODABLE, DecodeError, "one::bare@h:1 cannot be decoded by bare.*why"),
    ],
)
def test_a_dead_letter_says_how_it_ended(
    reason: DeadLetterReason, error: type[Exception], said: str
) -> None:
    calls, reply = Calls(CALLS, 2), Reply()
    correlation_id = calls.begin(reply, ONE)
    lost = Envelope(ONE, "hello", CALLS, correlation_id)
    letter = DeadLetter(lost, reason, "why", 7)
    # Anybody may send one of these, as a reply, say. The runtime's word is another thing.
    other = Reply()
    calls.deliver(Envelope(CALLS, letter, ONE, calls.begin(other, ONE)))
    assert other.take() is letter
    calls.deliver(Envelope(CALLS, letter, EXECUTOR, correlation_id))
    with pytest.raises(error, match=said) as raised:
        reply.take()
    crash = 7 if reason is DeadLetterReason.PROCESS_CRASHED else 0
    assert (raised.value.pid, raised.value.node) == (ONE, BARE)
    assert (raised.value.detail, raised.value.crash) == ("why", crash)
    elsewhere = Reply()
    correlation_id = calls.begin(elsewhere, ONE)
    # Of these that node tells without a pid: it passed the request on, to another node.
    passed_on = {
        DeadLetterReason.PEER_BUSY: "one::bare@h:1 passed on, was dropped: too much waits already",
        DeadLetterReason.NOT_CONNECTED: "where one::bare@h:1 passed the request on",
    }
    about = None if reason in passed_on else ONE
    bounced = Bounced(BARE, CALLS, reason, correlation_id, "why", 7, about)
    calls.deliver(Envelope(CALLS, bounced, EXECUTOR, correlation_id))
    with pytest.raises(error, match=passed_on.get(reason, said)):
        elsewhere.take()


def test_what_was_asked_of_a_node_ends_with_its_connection() -> None:
    calls, there, here = Calls(CALLS, 2), Reply(), Reply()
    far = NodeId("far", "h:2")
    calls.begin(there, Pid("one", far))
    calls.begin(here, ONE)
    calls.disconnected(far, "timeout")
    with pytest.raises(NotConnected, match="far@h:2 ended before one::far@h:2 replied: timeout"):
        there.take()
    assert not here.wait(0)
    calls.close()


def test_the_end_of_the_node_ends_those_that_wait_and_those_that_come_late() -> None:
    calls, early, late = Calls(CALLS, 2), Reply(), Reply()
    calls.begin(early, ONE)
    calls.close()
    calls.begin(late, ONE)
    for reply in (early, late):
        with pytest.raises(NodeStopped, match="before the reply came"):
            reply.take()


def test_several_may_end_them_at_once() -> None:
    for _ in range(50):
        calls = Calls(CALLS, 1_000)
        replies = [Reply() for _ in range(1_000)]
        for reply in replies:
            calls.begin(reply, ONE)
        threads = [threading.Thread(target=calls.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A second end of one would have raised: its lock is released once.
        assert all(reply.wait(0) for reply in replies)
        assert len(calls) == 0
