"""Dead letters: envelopes that were not delivered are counted, and told to whom they concern."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rabble import (
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    Envelope,
    NodeId,
    Output,
    Pid,
    Process,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble._core.inbox import Inbox
from rabble.registry import default_registry
from tests.core.processes import OUTSIDE, raising, spawn_recorder
from tests.core.starvation import Starvation
from tests.support import BARE, Does, bare_executor, settle, subscribe_dead_letters


def to_nobody(executor: Executor) -> Envelope:
    return Envelope(Pid("nobody", BARE), 1)


def to_a_full_mailbox(executor: Executor) -> Envelope:
    pid = Pid("box", BARE)
    executor.add_inbox(pid, Inbox(1))
    executor.send(pid, "fills it")
    settle(executor)
    return Envelope(pid, 1)


def to_a_closed_mailbox(executor: Executor) -> Envelope:
    inbox = Inbox(10)
    executor.add_inbox(Pid("box", BARE), inbox)
    inbox.close()
    return Envelope(Pid("box", BARE), 1)


def to_who_crashes(executor: Executor) -> Envelope:
    return Envelope(executor.spawn(raising(ValueError()), "crashes"), 1)


def that_asks_what_nobody_understands(executor: Executor) -> Envelope:
    return Envelope(executor.pid, "a text")


def to_another_node_without_a_mesh(executor: Executor) -> Envelope:
    return Envelope(Pid("far", NodeId("far", "h:9")), 1)


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (to_nobody, DeadLetterReason.NO_PROCESS),
        (to_a_full_mailbox, DeadLetterReason.MAILBOX_FULL),
        (to_a_closed_mailbox, DeadLetterReason.NO_PROCESS),
        (to_who_crashes, DeadLetterReason.PROCESS_CRASHED),
        (that_asks_what_nobody_understands, DeadLetterReason.REFUSED),
        (to_another_node_without_a_mesh, DeadLetterReason.NOT_CONNECTED),
    ],
)
def test_a_subscriber_is_told_of_an_envelope_and_why_it_was_not_delivered(
    executor: Executor, envelope: Callable[[Executor], Envelope], reason: DeadLetterReason
) -> None:
    subscriber, told = spawn_recorder(executor, "subscriber")
    subscribe_dead_letters(executor, subscriber)
    lost = envelope(executor)
    executor.send(lost.to, lost.msg)
    settle(executor)
    assert told == [DeadLetter(lost, reason)]
    assert executor.dead_letters == {reason: 1}


def answers(shape: str) -> Any:
    envelope = Envelope(None, "an answer")
    return {"one": envelope, "list": [envelope], "generator": (e for e in [envelope])}[shape]


@pytest.mark.parametrize("shape", ["one", "list", "generator"])
@pytest.mark.parametrize("how", ["plain", "limited", "strict"])
def test_an_answer_to_nobody_is_a_dead_letter_and_who_gave_it_goes_on(shape: str, how: str) -> None:
    """The answer to a request that had no sender."""
    codec = Codec(default_registry) if how == "strict" else None
    with bare_executor(codec=codec) as executor:
        if how == "limited":
            spawn_recorder(executor, "limited", mailbox_max=1)
        subscriber, told = spawn_recorder(executor, "subscriber")
        subscribe_dead_letters(executor, subscriber)
        pid = executor.spawn(Does(lambda process, msg, sender: answers(shape)), "answers")
        executor.send(pid, "a request")
        settle(executor)
        assert told == [DeadLetter(Envelope(None, "an answer", pid), DeadLetterReason.NO_RECEIVER)]
        assert told[0].envelope.to is None
        assert pid in executor.table and executor.crashes == 0
        assert executor.dead_letters == {DeadLetterReason.NO_RECEIVER: 1}


def test_to_send_to_nobody_is_refused_where_it_is_said(executor: Executor) -> None:
    with pytest.raises(TypeError, match="send: to must be a Pid, not None"):
        executor.send(None, 1)  # type: ignore[arg-type]
    # What a service posts is as what a process returns.
    assert executor.post(Envelope(None, 1, Pid("service", BARE)))
    settle(executor)
    assert executor.dead_letters == {DeadLetterReason.NO_RECEIVER: 1}


def test_what_is_left_at_the_end_is_counted_and_told_to_nobody() -> None:
    def send_on(process: Process, msg: Any, sender: Pid | None) -> Output:
        return Envelope(process.pid, msg)

    with bare_executor() as executor:
        subscriber, told = spawn_recorder(executor, "subscriber")
        subscribe_dead_letters(executor, subscriber)
        settle(executor)
        executor.send(executor.spawn(Does(send_on), "never at rest"), 1)
        executor.step()
        executor.request_stop(0)
        executor.run()
        assert executor.dead_letters == {DeadLetterReason.NODE_SHUTDOWN: 1}
        # What a service gives back from now on is counted at once.
        executor.undeliverable(Envelope(subscriber, "late"), DeadLetterReason.NO_PROCESS)
        assert executor.dead_letters[DeadLetterReason.NO_PROCESS] == 1
        assert told == []


def test_what_closed_mailboxes_held_is_counted_though_the_node_ends_before_its_turn() -> None:
    count = 5_000
    with bare_executor() as executor:
        pid, got = spawn_recorder(executor)
        for number in range(count):
            executor.send(pid, number)
        for number in range(10):
            executor.undeliverable(Envelope(OUTSIDE, number), DeadLetterReason.MAILBOX_FULL)
        executor.request_stop(0)
        executor.run()
        assert executor.dead_letters[DeadLetterReason.MAILBOX_FULL] == 10
        assert len(got) + executor.dead_letters[DeadLetterReason.NODE_SHUTDOWN] == count


def test_a_dead_letter_about_a_dead_letter_is_counted_and_makes_no_further_one(
    executor: Executor,
) -> None:
    subscriber, told = spawn_recorder(executor, "subscriber")
    subscribe_dead_letters(executor, subscriber)
    letter = DeadLetter(Envelope(Pid("nobody", BARE), 1), DeadLetterReason.NO_PROCESS)
    executor.send(Pid("nobody", BARE), letter)
    settle(executor)
    assert told == [] and executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}


def test_a_thread_that_calls_is_told_of_its_request_and_a_process_of_none(
    executor: Executor,
) -> None:
    answers: list[Envelope] = []
    calls = Pid("calls", BARE, "rabble")
    executor.add_callback(calls, answers.append)
    asker, told_asker = spawn_recorder(executor, "asker")
    nobody = Pid("nobody", BARE)
    request = CorrelationId(calls, None, 1)
    for sender, cid in ((calls, request), (calls, None), (asker, CorrelationId(asker, None, 1))):
        executor.send(nobody, "question", sender=sender, correlation_id=cid)
    settle(executor)
    (answer,) = answers
    assert answer.correlation_id == request
    assert answer.msg == DeadLetter(
        Envelope(nobody, "question", calls, request), DeadLetterReason.NO_PROCESS
    )
    assert told_asker == [] and executor.dead_letters == {DeadLetterReason.NO_PROCESS: 3}


def test_what_a_service_did_not_take_is_a_dead_letter_in_its_turn(executor: Executor) -> None:
    subscriber, told = spawn_recorder(executor, "subscriber")
    subscribe_dead_letters(executor, subscriber)
    envelope = Envelope(Pid("service", BARE), 1)
    executor.send(subscriber, "before")
    executor.undeliverable(envelope, DeadLetterReason.MAILBOX_FULL)
    executor.send(subscriber, "after")
    assert executor.dead_letters == {}
    settle(executor)
    assert told == ["before", "after", DeadLetter(envelope, DeadLetterReason.MAILBOX_FULL)]
    assert executor.dead_letters == {DeadLetterReason.MAILBOX_FULL: 1}


def test_who_unsubscribes_is_told_no_more(executor: Executor) -> None:
    subscriber, told = spawn_recorder(executor, "subscriber")
    subscribe_dead_letters(executor, subscriber)
    executor.send(Pid("nobody", BARE), 1)
    settle(executor)
    subscribe_dead_letters(executor, subscriber, False)
    executor.send(Pid("nobody", BARE), 2)
    settle(executor)
    assert [letter.envelope.msg for letter in told] == [1]


def test_a_closed_mailbox_is_nobody(executor: Executor) -> None:
    inbox = Inbox(10)
    pid = Pid("box", BARE)
    executor.add_inbox(pid, inbox)
    inbox.close()
    executor.send(pid, 1)
    settle(executor)
    assert executor.dead_letters == {DeadLetterReason.NO_PROCESS: 1}


def test_no_subscription_is_lost_to_another_that_is_made_at_the_same_time(
    executor: Executor,
) -> None:
    pids = [spawn_recorder(executor, f"subscriber{n}") for n in range(400)]

    def subscribe(part: int) -> None:
        for pid, _ in pids[part::4]:
            subscribe_dead_letters(executor, pid)
            gc.collect(0)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=subscribe, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    executor.send(Pid("nobody", BARE), 1)
    settle(executor)
    assert [len(got) for _, got in pids] == [1] * 400


def test_nobody_can_be_subscribed_who_is_not_there(executor: Executor) -> None:
    subscribe_dead_letters(executor, Pid("late", BARE))
    settle(executor)
    _, told = spawn_recorder(executor, "late")
    executor.send(Pid("nobody", BARE), 1)
    settle(executor)
    assert told == []


def test_without_memory_what_was_not_delivered_is_counted_once_or_the_node_fails(
    starvation: Starvation,
) -> None:
    failed = 0
    for nth in range(30):
        with bare_executor() as executor:
            subscriber, told = spawn_recorder(executor, "subscriber")
            subscribe_dead_letters(executor, subscriber)
            settle(executor)
            letter = Envelope(Pid("box", BARE), 1)
            executor.undeliverable(letter, DeadLetterReason.NO_PROCESS)
            if starvation.ends_a_node(nth, executor.step):
                failed += 1
                continue
            settle(executor)
            assert executor.dead_letters[DeadLetterReason.NO_PROCESS] == 1, nth
            # Or it had no memory itself to take it.
            assert [each.envelope for each in told] == [letter] or subscriber not in executor.table
    assert 0 < failed < 30
