"""Hooks: the layer above is told, and what it raises holds up nobody."""

from __future__ import annotations

from typing import NoReturn

import pytest

from rabble import DeadLetterReason, Envelope, MessageRegistry, Monitor, Pid, message
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.core.peers import Hub
from tests.core.processes import raising, returning, spawn_recorder
from tests.support import BARE, Witness, bare_executor, settle

PEERS_CLASSES = MessageRegistry()


@message(name="hooks.OfThePeer", registry=PEERS_CLASSES)
class OfThePeer:
    """A class that only the peer knows."""


def fail(*args: object) -> NoReturn:
    raise SystemExit("a defect of the layer above")


def test_a_hook_that_raises_about_a_crash_holds_up_nobody(
    executor: Executor, witness: Witness
) -> None:
    witness.crashed = fail  # type: ignore[method-assign]
    to, got = spawn_recorder(executor)
    victim = executor.spawn(raising(ValueError()), "victim")
    executor.send(executor.pid, Monitor(victim), sender=to)
    executor.send(victim, 1)
    settle(executor)
    assert len(got) == 1 and executor.failed_reports == 1


def test_a_hook_that_raises_about_a_refused_message_holds_up_nobody(
    executor: Executor, witness: Witness
) -> None:
    witness.crashed = fail  # type: ignore[method-assign]
    to, got = spawn_recorder(executor)
    executor.send(executor.pid, "what it does not understand")
    executor.send(to, "after")
    settle(executor)
    assert got == ["after"] and executor.failed_reports == 1
    assert executor.dead_letters == {DeadLetterReason.REFUSED: 1}


def test_a_hook_that_raises_about_a_callback_holds_up_nobody(
    executor: Executor, witness: Witness
) -> None:
    witness.crashed = fail  # type: ignore[method-assign]
    callback = Pid("callback", BARE)
    executor.add_callback(callback, fail)
    to, got = spawn_recorder(executor)
    executor.send(callback, 1)
    executor.send(to, "after")
    settle(executor)
    assert got == ["after"] and executor.failed_reports == 1
    assert callback in executor.table


@pytest.mark.parametrize("from_outside", [False, True])
def test_a_hook_that_raises_about_what_strict_mode_refuses_holds_up_nobody(
    witness: Witness, from_outside: bool
) -> None:
    witness.unencodable = fail  # type: ignore[method-assign]
    with bare_executor(witness=witness, codec=Codec(default_registry)) as executor:
        to, got = spawn_recorder(executor)
        if from_outside:
            executor.send(to, object())
        else:
            executor.send(executor.spawn(returning(Envelope(to, object())), "sender"), 1)
        executor.send(to, "after")
        settle(executor)
        assert got == ["after"] and executor.failed_reports == 1
        assert executor.dead_letters == {DeadLetterReason.UNENCODABLE: 1}


def test_a_hook_that_raises_about_what_cannot_be_written_holds_up_nobody(hub: Hub) -> None:
    hub.witness.unencodable = fail  # type: ignore[method-assign]
    peer = hub.connect()
    for msg in (object(), "after"):
        hub.executor.send(peer.pid("anybody"), msg)
    hub.settle()
    assert peer.messages == ["after"] and hub.executor.failed_reports == 1
    assert hub.executor.dead_letters == {DeadLetterReason.UNENCODABLE: 1}


def test_a_hook_that_raises_about_what_cannot_be_read_holds_up_nobody(hub: Hub) -> None:
    hub.witness.undecodable = fail  # type: ignore[method-assign]
    to, got = spawn_recorder(hub.executor)
    peer = hub.connect(registry=PEERS_CLASSES)
    for msg in (OfThePeer(), "after"):
        peer.send(to, msg)
    hub.settle()
    assert got == ["after"] and peer.connection.open
    assert hub.executor.dead_letters == {DeadLetterReason.UNDECODABLE: 1}
    assert hub.executor.failed_reports == 1
