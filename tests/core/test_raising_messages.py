"""What a user's object raises while the runtime looks at it is that object's failure.

Whatever it is and wherever it comes from: a message becomes a dead letter that says why, and all
others go on.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

import rabble
from rabble import (
    CorrelationId,
    DeadLetter,
    DeadLetterReason,
    DownReason,
    Envelope,
    MessageRegistry,
    Monitor,
    Pid,
    message,
)
from rabble._core.codec import Codec
from rabble.registry import default_registry
from tests.core.peers import Hub, Peer
from tests.core.processes import raising, spawn_recorder
from tests.reference.session import UNDELIVERED_CODES
from tests.support import (
    PATIENCE_S,
    Does,
    bare_executor,
    settle,
    subscribe_dead_letters,
    until,
)

PEERS_CLASSES = MessageRegistry()
#: What the objects below raise now, made anew each time.
raised: list[Callable[[], BaseException]] = []


class Speechless(BaseException):
    """Of whom even its text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit("no str")

    def __repr__(self) -> str:
        raise KeyboardInterrupt("no repr")


class Mute(Exception):
    def __str__(self) -> str:
        raise GeneratorExit


class Numb(ValueError):
    """One that is taken for the runtime's own, and has no text either."""

    def __str__(self) -> str:
        raise Speechless


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit("the object's"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("the object's"),
    "GeneratorExit": lambda: GeneratorExit("the object's"),
    "ValueError": lambda: ValueError("the object's"),
    "RecursionError": lambda: RecursionError("the object's"),
    "StopIteration": lambda: StopIteration("the object's"),
    "Speechless": Speechless,
    "Mute": Mute,
    "Numb": Numb,
}


def fail() -> Any:
    if raised:
        raise raised[0]()
    return 0


# Each has the same wire name in the registry of the peer, where it raises nothing.


@message(name="raising.Post", post_init=True)
class Post:
    n: int

    def __post_init__(self) -> None:
        fail()


@message(name="raising.Post", registry=PEERS_CLASSES)
class PeersPost:
    n: int


@message(name="raising.Default")
class Default:
    n: int
    more: Any = dataclasses.field(default_factory=fail)


@message(name="raising.Default", registry=PEERS_CLASSES)
class PeersDefault:
    n: int


@message(name="raising.Hash")
class Hash:
    n: int

    def __hash__(self) -> int:
        return int(fail())

    def __eq__(self, other: object) -> bool:
        return self is other


@message(name="raising.Hash", registry=PEERS_CLASSES)
class PeersHash:
    n: int


@message(name="raising.Equal")
class Equal:
    n: int

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        fail()
        return self is other


@message(name="raising.Equal", registry=PEERS_CLASSES)
class PeersEqual:
    n: int


class Measure:
    """Travels by two functions, in either direction."""


def measured(value: Measure) -> object:
    return fail()


def measure(data: object) -> Measure:
    fail()
    return Measure()


default_registry.register_type(Measure, "raising.Measure", measured, measure)
PEERS_CLASSES.register_type(Measure, "raising.Measure", lambda value: 0, lambda data: Measure())


@dataclasses.dataclass(frozen=True)
class Property:
    n: int = 0

    def __getattribute__(self, name: str) -> Any:
        return fail() if name == "n" else super().__getattribute__(name)


default_registry.register(Property, "raising.Property")

#: What a peer sends, of which this node has a class that raises.
BUILT: dict[str, Callable[[], object]] = {
    "__post_init__": lambda: PeersPost(1),
    "a default": lambda: PeersDefault(1),
    "__hash__ in a set": lambda: {PeersHash(1), PeersHash(2)},
    "__hash__ of a key": lambda: {PeersHash(1): 1},
    "__eq__ in a set": lambda: {PeersEqual(1), PeersEqual(2)},
    "__eq__ of a key": lambda: {PeersEqual(1): 1, PeersEqual(2): 2},
    "a decode function": Measure,
}
#: What a process of this node sends.
ENCODED: dict[str, Callable[[], object]] = {
    "a property": Property,
    "an encode function": Measure,
    "behind much": lambda: ["x" * 100_000, Property()],
    "in a set": lambda: frozenset({Property()}),
}


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest) -> Callable[[], BaseException]:
    return ERRORS[request.param]


def elsewhere(do: Callable[[], object], error: Callable[[], BaseException] | None = None) -> None:
    """Do something in a thread: in the main one a KeyboardInterrupt is of who presses Ctrl-C.

    :param error: what the objects raise meanwhile.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as caught:
            failed.append(caught)

    if error is not None:
        raised.append(error)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        raised.clear()
    assert failed == []


def works(hub: Hub, peer: Peer) -> None:
    to, got = spawn_recorder(hub.executor, "works")
    peer.send(to, "still")
    hub.executor.send(peer.pid("far"), "still")
    elsewhere(hub.settle)
    assert got == ["still"] and peer.messages[-1] == "still" and peer.connection.open


@pytest.mark.parametrize("built", BUILT)
def test_what_is_raised_while_a_message_is_built_is_told_its_sender(
    hub: Hub, built: str, error: Callable[[], BaseException]
) -> None:
    peer = hub.connect(registry=PEERS_CLASSES)
    to, got = spawn_recorder(hub.executor)
    peer.send(to, BUILT[built](), peer.pid("sender"), CorrelationId(peer.pid("sender"), None, 1))
    elsewhere(hub.settle, error)
    assert hub.executor.dead_letters == {DeadLetterReason.UNDECODABLE: 1} and got == []
    (event,) = peer.events
    assert event[3] == UNDELIVERED_CODES["undecodable"] and event[6]
    works(hub, peer)


@pytest.mark.parametrize("encoded", ENCODED)
@pytest.mark.parametrize("of_process", [False, True])
def test_what_is_raised_while_a_message_is_encoded_is_its_dead_letter(
    hub: Hub, encoded: str, of_process: bool, error: Callable[[], BaseException]
) -> None:
    peer = hub.connect()
    subscriber, told = spawn_recorder(hub.executor, "subscriber")
    subscribe_dead_letters(hub.executor, subscriber)
    msg = ENCODED[encoded]()
    if of_process:
        sender = hub.executor.spawn(
            Does(
                lambda process, _, __: [Envelope(peer.pid("far"), each) for each in (msg, "next")]
            ),
            "sender",
        )
        hub.executor.send(sender, "go")
    else:
        hub.executor.send(peer.pid("far"), msg)
        hub.executor.send(peer.pid("far"), "next")
    elsewhere(hub.settle, error)
    ((letter),) = told
    assert type(letter) is DeadLetter and letter.reason is DeadLetterReason.UNENCODABLE
    assert letter.detail and letter.envelope.msg is msg
    assert peer.messages == ["next"]
    assert hub.witness.unencodables == [letter.envelope] and hub.witness.errors == []
    works(hub, peer)


@pytest.mark.parametrize("encoded", ENCODED)
@pytest.mark.parametrize("of_process", [False, True])
def test_in_strict_mode_it_is_the_same(
    encoded: str, of_process: bool, error: Callable[[], BaseException]
) -> None:
    with bare_executor(codec=Codec(default_registry)) as executor:
        to, got = spawn_recorder(executor)
        subscriber, told = spawn_recorder(executor, "subscriber")
        subscribe_dead_letters(executor, subscriber)
        settle(executor)
        msg = ENCODED[encoded]()
        if of_process:
            sender = executor.spawn(
                Does(lambda process, _, __: [Envelope(to, each) for each in (msg, "next")]),
                "sender",
            )
            executor.send(sender, "go")
        else:
            executor.send(to, msg)
            executor.send(to, "next")
        elsewhere(lambda: settle(executor), error)
        assert [letter.reason for letter in told] == [DeadLetterReason.UNENCODABLE]
        assert told[0].detail and told[0].envelope.msg is msg
        assert got == ["next"]


def test_who_raises_what_has_no_words_is_down_all_the_same(
    hub: Hub, error: Callable[[], BaseException]
) -> None:
    peer = hub.connect()
    crashing = hub.executor.spawn(raising(error()), "crashing")
    watch, told = spawn_recorder(hub.executor, "watch")
    hub.executor.send(hub.executor.pid, Monitor(crashing), sender=watch)
    peer.write("monitor", peer.pid("far"), crashing, 1)
    elsewhere(hub.settle)
    peer.send(crashing, "go", peer.pid("far"), CorrelationId(peer.pid("far"), None, 1))
    elsewhere(hub.settle)
    (down,) = told
    assert down.reason.kind == DownReason("crashed").kind and down.reason.detail
    assert [(what[0], bool(what[6])) for what in peer.events] == [
        ("undelivered", True),
        ("down", True),
    ]
    assert Pid("crashing", hub.executor.node) not in hub.executor.table
    works(hub, peer)


@pytest.mark.parametrize("strict", [True, "changes"])
def test_a_thread_that_sends_it_goes_on_and_so_does_the_node(
    strict: Any, error: Callable[[], BaseException]
) -> None:
    """In each mode of strictness: with `changes` it is encoded in the thread that sends."""
    with rabble.rouse(strict=strict) as node, node.mailbox() as box, node.mailbox() as told:
        node.subscribe_dead_letters(told.pid)
        until(lambda: node.executor_status().delivered)

        def send() -> None:
            node.send(box.pid, Property())
            until(lambda: node.executor_status().dead_letters)

        elsewhere(send, error)
        node.send(box.pid, "after")
        assert box.receive(PATIENCE_S).msg == "after"
        letter = told.receive(PATIENCE_S).msg
        assert letter.reason is DeadLetterReason.UNENCODABLE and letter.detail
        assert node.failure is None
