"""Strict mode: what arrives is what was sent, and who changed it on its way is found."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rabble
from rabble import (
    Ask,
    CorrelationId,
    DeadLetterReason,
    EncodeError,
    Envelope,
    Failed,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Reply,
    Service,
    ServiceHandler,
    reply,
)
from rabble._core.codec import Codec
from rabble.registry import MessageRegistry
from rabble.strict import Strict
from tests.support import BARE, PATIENCE_S, Does, Echo, until

CLASSES = MessageRegistry()


@rabble.message(name="Price", registry=CLASSES)
class Price:
    amount: Any
    currency: str = "EUR"


@rabble.message(name="Odd", registry=CLASSES)
class Odd:
    """Says of itself whatever an object may say."""

    value: Any

    def __eq__(self, other: object) -> NoReturn:
        raise SystemExit("asked whether it is equal")

    __hash__ = object.__hash__


class Halves:
    """A codec by which something becomes of a message what would on a way that loses something."""

    registry = CLASSES

    def __init__(self, arrives: Callable[[Any], Any]) -> None:
        self.arrives = arrives

    def encode_message(self, msg: Any) -> Any:
        return msg

    def decode_message(self, data: Any) -> Any:
        return self.arrives(data)


STRICT = Strict(Codec(CLASSES))
TO = Pid("to", BARE)

# Compared.

NOON = datetime.datetime(2026, 10, 25, 2, 30)


@pytest.mark.parametrize(
    ("sent", "found", "path"),
    [
        (1, True, "msg"),
        (1, 1.0, "msg"),
        (0.0, -0.0, "msg"),
        ((1, 2), [1, 2], "msg"),
        ([1, 2], [1], "msg"),
        ([1, [2, "x"]], [1, [2, "y"]], "msg[1][1]"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "msg['a']['b']"),
        ({"a": 1}, {"b": 1}, "msg.key('a')"),
        ({1: "x"}, {True: "x"}, "msg.key(1)"),
        ({1, 2}, {1, 3}, "msg{2}"),
        ({1, 2}, {True, 2}, "msg{1}"),
        ({(1, 2)}, {(1, 3)}, "msg{(1, 2)}"),
        (frozenset({1}), {1}, "msg"),
        ([1, Price(2)], [1, Price(2.0)], "msg[1].amount"),
        (Price([Odd(1)]), Price([Odd(2)]), "msg.amount[0].value"),
        (NOON, NOON.replace(fold=1), "msg"),
        (NOON, NOON.replace(tzinfo=datetime.UTC), "msg"),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00"), "msg"),
        (b"x", bytearray(b"x"), "msg"),
        (DeadLetterReason.LOST, DeadLetterReason.CHANGED, "msg"),
        (DeadLetterReason.LOST, "lost", "msg"),
        (object(), object(), "msg"),
    ],
)
def test_a_difference_is_found_and_where_it_lies(sent: Any, found: Any, path: str) -> None:
    for a, b in ((sent, found), (found, sent)):
        different = STRICT.difference(a, b)
        assert different is not None
    different = STRICT.difference(sent, found)
    assert different is not None and different.path == path


def test_what_is_the_same_is_never_asked_whether_it_is() -> None:
    nan = math.nan
    same: list[Callable[[], Any]] = [
        lambda: [nan, float("nan"), {"x": float("-nan")}],
        lambda: {float("nan"), (1, float("nan")), frozenset({float("nan")})},
        lambda: {frozenset({1, 2}), frozenset({2, 3}), "x"},
        lambda: Odd([Odd(1), Price((1, 2))]),
        lambda: {Price(1), Price(2)},
        lambda: {1: "x", (2, 3): NOON, None: bytearray(b"z")},
    ]
    for make in same:
        assert STRICT.difference(make(), make()) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(JSON, JSON)
def test_two_values_are_equal_if_their_texts_are(a: Any, b: Any) -> None:
    """`repr` of these has their types at every depth; dicts have an order here and on their way."""
    assert (STRICT.difference(a, b) is None) == (repr(a) == repr(b))
    assert STRICT.difference(a, a) is None


def test_values_of_any_depth_are_compared() -> None:
    def nested() -> Any:
        value: Any = 1
        for _ in range(100_000):
            value = [value]
        return value

    assert STRICT.difference(nested(), nested()) is None
    # And one that has no end ends with the other.
    endless: list[Any] = []
    endless.append(endless)
    assert STRICT.difference([[[1]]], endless) is not None


# Another node would be given the same.


@pytest.mark.parametrize(
    ("arrives", "text"),
    [
        (
            lambda msg: [*msg[:1], Price(2, "USD")],
            "it would arrive as another: msg[1].currency: the str 'EUR' was sent, and the str 'USD'"
            " arrives",
        ),
        (
            lambda msg: tuple(msg),
            "msg: the list [0, Price(amount=2, currency='EUR')] was sent, and",
        ),
    ],
)
def test_what_would_arrive_as_another_is_an_error_that_says_where(
    arrives: Callable[[Any], Any], text: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        Strict(Halves(arrives)).arriving(Envelope(TO, [0, Price(2)]))
    assert text in str(caught.value)


class Growing(Process):
    """Sends the same list three times, and changes it in between."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        one: list[int] = []
        for number in range(3):
            one.append(number)
            yield Envelope(sender, one)


def test_each_envelope_has_its_message_as_it_was_when_it_left_receive() -> None:
    with rabble.rouse(strict=True) as node, node.mailbox() as box:
        box.send(node.spawn(Growing(), "growing"), "go")
        assert [box.receive(PATIENCE_S).msg for _ in range(3)] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("strict", [1, "yes", None, Odd(1)])
def test_a_mode_that_does_not_exist_is_refused(strict: Any) -> None:
    with pytest.raises(ValueError, match="strict must be False, True or 'changes', not "):
        rabble.rouse(strict=strict)


# Who changed it.


class Keeps(Process):
    """Keeps the list that it sends, and sends it again with one more element each time."""

    def __init__(self) -> None:
        self.items = [0]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        self.items.append(len(self.items))
        return Envelope(msg, self.items)


def changes_it(process: Process, msg: Any, sender: Pid | None) -> Output:
    msg.append("more")
    return None if sender is None else Envelope(sender, "done")


def changes_it_late(process: Process, msg: Any, sender: Pid | None) -> Iterator[Envelope]:
    if sender is not None:
        yield Envelope(sender, "nearly done")
    msg.append("more")


def takes_it(process: Process, msg: Any, sender: Pid | None) -> Output:
    return None


@pytest.fixture
def node() -> Iterator[rabble.Node]:
    with rabble.rouse(strict="changes") as node:
        yield node


def test_what_nobody_changes_is_handed_over_itself(node: rabble.Node) -> None:
    kept: list[Any] = []
    message = [1, [2]]

    def keeps(process: Process, msg: Any, sender: Pid | None) -> Output:
        kept.append(msg)
        return Envelope(sender, msg)

    with node.mailbox() as box:
        box.send(node.spawn(Does(keeps), "keeps"), message)
        assert box.receive(PATIENCE_S).msg is message
    assert kept[0] is message
    assert node.executor_status().dead_letters == {}


def test_what_a_thread_changes_after_it_sent_it_is_not_delivered_and_it_is_named(
    node: rabble.Node, caplog: pytest.LogCaptureFixture
) -> None:
    held, go_on = threading.Event(), threading.Event()

    def holds(process: Process, msg: Any, sender: Pid | None) -> Output:
        held.set()
        go_on.wait(PATIENCE_S)
        return None

    holder = node.spawn(Does(holds), "holds")
    taker = node.spawn(Does(takes_it), "takes")
    with node.mailbox("box") as box, node.mailbox("letters") as letters:
        node.subscribe_dead_letters(letters.pid)
        box.send(holder, "hold")
        assert held.wait(PATIENCE_S)
        message: dict[str, list[Any]] = {"prices": [1, [2]]}
        box.send(taker, message)
        message["prices"][1].append(3)
        go_on.set()
        letter = letters.receive(PATIENCE_S).msg
    assert letter.reason is DeadLetterReason.CHANGED
    assert letter.envelope == Envelope(taker, message, box.pid)
    node.shutdown()
    (record,) = caplog.records
    assert (
        f"the dict from {box.pid} to {taker} was changed between its send and its delivery, "
        f"msg['prices'][1]: the list [2] was sent, and the list [2, 3] is there now; only who "
        f"holds the object can have changed it: {box.pid} kept it"
    ) in record.getMessage()


def test_what_a_process_changes_after_it_sent_it_reaches_no_mailbox(node: rabble.Node) -> None:
    with node.mailbox() as box:
        keeps = node.spawn(Keeps(), "keeps")
        for _ in range(3):
            node.send(keeps, box.pid)
        until(lambda: len(box) == 3)
        assert box.receive(PATIENCE_S).msg == [0, 1, 2, 3]
        with pytest.raises(rabble.CallTimeout):
            box.receive(0)
    until(lambda: node.executor_status().dead_letters == {"changed": 2})


@pytest.mark.parametrize("react", [changes_it, changes_it_late])
def test_a_process_that_changes_what_it_was_given_crashes_and_is_named_to_the_next(
    node: rabble.Node, react: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = node.spawn(Does(react), "first")
    second = node.spawn(Does(takes_it), "second")
    message = [1]
    both = [Envelope(first, message), Envelope(second, message)]
    sender = node.spawn(Does(lambda process, msg, sender: both), "sender")
    with node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), rabble.Monitor(first))
        box.send(sender, "go")
        detail = box.receive(PATIENCE_S).msg.reason.detail
    assert detail.startswith(
        f"RuntimeError: Does.receive changed the list that {sender} sent to {first} while it "
        f"handled it: msg: the list [1] was sent, and the list [1, 'more'] is there now"
    )
    until(lambda: "changed" in node.executor_status().dead_letters)
    node.shutdown()
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any(f"{first}, which was given the same object, changed it" in text for text in texts)


def test_a_caller_is_told_at_once_of_a_request_or_an_answer_that_was_changed(
    node: rabble.Node,
) -> None:
    with pytest.raises(ProcessCrashed):
        node.call(node.spawn(Does(changes_it), "changes"), [1], PATIENCE_S)

    def answers(msg: Any, sender: Pid, correlation_id: Any) -> Iterator[Envelope]:
        answer = ["an answer"]
        yield Envelope(sender, answer, correlation_id=correlation_id)
        answer.append("and more")

    process = Does(takes_it)
    process.receive = answers  # type: ignore[assignment, method-assign]
    with pytest.raises(EncodeError, match="was changed after it was sent"):
        node.call(node.spawn(process, "answers"), "a request", PATIENCE_S)


class Changing(ServiceHandler):
    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        envelope.msg.append("more")
        return envelope.correlation_id and Envelope(
            envelope.sender, "done", correlation_id=envelope.correlation_id
        )


def test_a_service_that_changes_what_it_was_given_crashes(node: rabble.Node) -> None:
    with node.mailbox() as box:
        service = node.register_service(Changing(), "changing")
        box.send(node.pid("executor", "rabble"), rabble.Monitor(service.pid))
        box.send(service.pid, [1])
        reason = box.receive(PATIENCE_S).msg.reason
    assert reason.kind == "crashed" and f"{service.pid} changed the list" in reason.detail


def test_what_a_service_returns_that_changed_what_it_was_given_is_not_sent(
    node: rabble.Node,
) -> None:
    service = node.register_service(Changing(), "changing")
    with pytest.raises(rabble.ProcessCrashed, match="changed the list"):
        node.call(service.pid, [1], PATIENCE_S)


def test_what_a_service_sends_and_changes_is_not_delivered(node: rabble.Node) -> None:
    held, go_on = threading.Event(), threading.Event()

    class Sends(ServiceHandler):
        def init(self, service: Service) -> Output:
            message = [1]
            service.send(taker, message)
            message.append(2)
            go_on.set()
            return None

    def holds(process: Process, msg: Any, sender: Pid | None) -> Output:
        held.set()
        go_on.wait(PATIENCE_S)
        return None

    taker = node.spawn(Does(takes_it), "takes")
    node.send(node.spawn(Does(holds), "holds"), "hold")
    assert held.wait(PATIENCE_S)
    node.register_service(Sends(), "sends")
    until(lambda: node.executor_status().dead_letters == {"changed": 1})


def test_what_a_coroutine_asks_for_and_changes_is_not_delivered(node: rabble.Node) -> None:
    held, go_on = threading.Event(), threading.Event()

    def holds(process: Process, msg: Any, sender: Pid | None) -> Output:
        held.set()
        go_on.wait(PATIENCE_S)
        return None

    async def ask() -> None:
        taker = node.spawn(Does(takes_it), "takes")
        node.send(node.spawn(Does(holds), "holds"), "hold")
        assert held.wait(PATIENCE_S)
        message = [1]
        task = asyncio.create_task(node.call_async(taker, message, PATIENCE_S))
        await asyncio.sleep(0)
        message.append(2)
        go_on.set()
        with pytest.raises(EncodeError, match="was changed after it was sent"):
            await task

    asyncio.run(ask())
    assert node.executor_status().dead_letters == {"changed": 1}


def test_what_cannot_travel_is_refused_as_in_strict_mode(node: rabble.Node) -> None:
    with node.mailbox() as box:
        sender = node.spawn(Does(lambda process, msg, sender: Envelope(box.pid, object())), "sends")
        node.send(sender, "go")
        box.send(box.pid, object())
        until(lambda: node.executor_status().dead_letters == {"unencodable": 2})
        assert node.executor_status().crashes == 0


def test_a_frozen_class_that_shares_a_list_names_the_field(node: rabble.Node) -> None:
    registry = MessageRegistry()

    @rabble.message(name="Order", registry=registry)
    class Order:
        items: list[int]

    with rabble.rouse("other@127.0.0.1:0", strict="changes", registry=registry) as other:

        def changes(process: Process, msg: Any, sender: Pid | None) -> Output:
            msg.items.append(2)
            return None

        with other.mailbox() as box:
            pid = other.spawn(Does(changes), "changes")
            box.send(other.pid("executor", "rabble"), rabble.Monitor(pid))
            box.send(pid, Order([1]))
            detail = box.receive(PATIENCE_S).msg.reason.detail
    assert "changed the Order" in detail
    assert "msg.items: the list [1] was sent, and the list [1, 2] is there now" in detail
    assert dataclasses.is_dataclass(Order)


class AsksWhatItChanges(Process):
    """Asks with a list that it changes before the request has its turn."""

    def __init__(self, to: Pid, changes: bool, told: queue.SimpleQueue[Any]) -> None:
        self.to = to
        self.told = told
        self.changes = changes
        self.items = [1]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, (Reply, Failed)):
            self.told.put(msg)
        elif msg == "ask":
            ask = Envelope(self.executor, Ask(self.to, self.items, 60_000))
            return [Envelope(self.pid, "change"), ask] if self.changes else ask
        elif msg == "change":
            self.items.append(2)
        return None


class AnswersWhatItChanges(Process):
    """Answers with a list that it changes before the answer has its turn."""

    def __init__(self) -> None:
        self.items = [1]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if msg == "change":
            self.items.append(2)
            return None
        return [Envelope(self.pid, "change"), reply(self.items, sender, correlation_id)]


class ChangesWhatItIsAsked(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        msg.append(3)
        return reply(0, sender, correlation_id)


@pytest.mark.parametrize(
    ("answers", "changes", "said"),
    [
        (Echo, False, None),
        (Echo, True, "the message for answers::{} was changed after it was sent"),
        (AnswersWhatItChanges, False, "the reply of answers::{} was changed after it was sent"),
        (ChangesWhatItIsAsked, False, "answers::{} crashed: "),
    ],
)
def test_who_asks_is_told_of_what_was_changed(
    node: rabble.Node, answers: type[Process], changes: bool, said: str | None
) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    to = node.spawn(answers(), "answers")
    asker = AsksWhatItChanges(to, changes, told)
    node.send(node.spawn(asker, "asks"), "ask")
    end = told.get(timeout=PATIENCE_S)
    if said is None:
        # The very object, there and back.
        assert end == Reply(None, [1]) and end.value is asker.items
    else:
        assert isinstance(end, Failed)
        assert str(end.reason).startswith(said.format(node.node_id))
