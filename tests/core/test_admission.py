"""Admission: what is looked at before an envelope is queued, and the strict mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rabble import (
    DeadLetterReason,
    Down,
    DownReason,
    Envelope,
    Monitor,
    Pid,
    Process,
    Spawn,
)
from rabble._core.codec import Codec
from rabble._core.executor import Executor
from rabble.registry import default_registry
from tests.core.processes import OddCodec, Recorder, returning, spawn_recorder
from tests.support import BARE, Does, Witness, bare_executor, settle


class StrictWitness(Witness):
    """Keeps what could not be encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.unencodables: list[tuple[Any, str]] = []

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        self.unencodables.append((envelope.msg, str(error)))


@pytest.fixture
def strict_witness() -> StrictWitness:
    return StrictWitness()


@pytest.fixture
def strict_executor(strict_witness: StrictWitness) -> Iterator[Executor]:
    """An executor in strict mode, with the codec that the wire has."""
    with bare_executor(witness=strict_witness, codec=Codec(default_registry)) as made:
        yield made


# The shape of what `receive` returned.


class NotIterable:
    """What no loop goes through."""


@pytest.mark.parametrize("strictly", [False, True])
@pytest.mark.parametrize(
    ("output", "text"),
    [
        (5, "5 (a int)"),
        ("text", "'t' (a str)"),
        (NotIterable(), "(a NotIterable)"),
        ([5], "5 (a int)"),
        ((None,), "None (a NoneType)"),
        ([[]], "[] (a list)"),
    ],
)
def test_an_output_that_is_no_envelopes_is_the_end_of_its_process_which_is_told_what_it_was(
    output: object, text: str, strictly: bool
) -> None:
    with bare_executor(codec=Codec(default_registry) if strictly else None) as executor:
        monitoring, told = spawn_recorder(executor, "monitoring")
        pid = executor.spawn(returning(output), "wrong")
        executor.send(executor.pid, Monitor(pid), sender=monitoring)
        executor.send(pid, 1)
        settle(executor)
        (down,) = told
        assert down.reason.kind == "crashed"
        assert down.reason.detail.startswith("TypeError: Does.receive returned ")
        assert text in down.reason.detail
        assert down.reason.detail.endswith(
            "it may return None, one Envelope, or an iterable of Envelopes"
        )


# Strict mode: as if it went to another node.


def test_in_strict_mode_a_message_arrives_as_a_copy(strict_executor: Executor) -> None:
    to, got = spawn_recorder(strict_executor)
    message = {"list": [1, 2]}
    strict_executor.send(to, message)
    strict_executor.send(strict_executor.spawn(returning(Envelope(to, message)), "sender"), 1)
    settle(strict_executor)
    assert got == [message, message]
    assert all(each is not message and each["list"] is not message["list"] for each in got)


#: What no registry knows.
UNKNOWN = object()


def test_in_strict_mode_what_no_wire_carries_is_a_dead_letter_and_its_sender_goes_on(
    strict_executor: Executor, strict_witness: StrictWitness
) -> None:
    to, got = spawn_recorder(strict_executor)
    sender = strict_executor.spawn(
        returning([Envelope(to, "before"), Envelope(to, [UNKNOWN, 2]), Envelope(to, "after")]),
        "sender",
    )
    strict_executor.send(to, UNKNOWN)
    strict_executor.send(sender, 1)
    settle(strict_executor)
    assert got == ["before", "after"] and sender in strict_executor.table
    assert strict_executor.dead_letters == {DeadLetterReason.UNENCODABLE: 2}
    assert [msg for msg, _ in strict_witness.unencodables] == [UNKNOWN, [UNKNOWN, 2]]
    assert all("object" in text for _, text in strict_witness.unencodables)


def test_in_strict_mode_system_messages_pass_as_they_are(strict_executor: Executor) -> None:
    """To the executor whatever it is; to others by their class, as they never leave their node."""
    child = Recorder()
    to, got = spawn_recorder(strict_executor)
    down = Down(to, DownReason("stopped"))
    outputs = [Envelope(strict_executor.pid, Spawn(child, "child")), Envelope(to, down)]
    strict_executor.send(strict_executor.spawn(returning(outputs), "parent"), 1)
    settle(strict_executor)
    assert got == [down] and got[0] is down
    entry = strict_executor.table.get(Pid("child", BARE))
    assert entry is not None and entry.target is child


def test_in_strict_mode_an_output_that_fails_half_way_sends_nothing(
    strict_executor: Executor,
) -> None:
    to, got = spawn_recorder(strict_executor)

    def fails_late(process: Process, msg: Any, sender: Any) -> Iterator[Envelope]:
        yield Envelope(to, "never")
        raise RuntimeError

    strict_executor.send(strict_executor.spawn(Does(fails_late), "fails"), 1)
    settle(strict_executor)
    assert got == [] and strict_executor.crashes == 1


@pytest.mark.parametrize("count", [1, 300])
def test_in_strict_mode_no_memory_for_a_message_ends_who_sent_it(count: int) -> None:
    error = MemoryError()
    with bare_executor(witness=Witness(), codec=OddCodec()) as executor:
        to, got = spawn_recorder(executor)
        output = [Envelope(to, "discarded")] * count + [Envelope(to, error)]
        victim = executor.spawn(returning(output), "victim")
        executor.send(victim, 1)
        # From another thread there is nobody to end: that envelope does.
        executor.send(to, error)
        executor.send(to, "after")
        settle(executor)
        assert got == ["after"]
        assert victim not in executor.table
        assert executor.dead_letters == {
            DeadLetterReason.PROCESS_CRASHED: 1,
            DeadLetterReason.UNENCODABLE: 1,
        }
