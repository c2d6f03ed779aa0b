"""Requests to the directory: handed over with the lives that they concern, and how refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rabble import CorrelationId, DeadLetterReason, Down, Envelope, NodeId, Pid, Timeout
from rabble._core.directory_messages import (
    DIRECTORY_REQUESTS,
    GetGroupMembers,
    JoinGroup,
    LeaveGroup,
    Register,
    SubscribeGroup,
    Unregister,
    WhereIs,
)
from rabble._core.directory_requests import Asked, DirectoryPort
from rabble._core.executor import Executor
from rabble.messages import Monitor, Stop
from tests.core.processes import returning, spawn_recorder
from tests.support import BARE, Does, bare_executor, settle

DIRECTORY = Pid("directory", BARE, "rabble")
ELSEWHERE = Pid("far", NodeId("far", "h:2"))
REQUESTS = [
    GetGroupMembers("g"), JoinGroup("g"), LeaveGroup("g"), Register("n"), SubscribeGroup("g"),
    Unregister("n"), WhereIs("n"),
]  # fmt: skip


class Host:
    """An executor, and what its directory was given."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.given: list[Envelope] = []
        assert self.executor.add_callback(DIRECTORY, self.given.append)
        self.port = DirectoryPort(self.executor, DIRECTORY)

    def ask(self, sender: Pid | None, request: object, **more: Any) -> None:
        self.executor.send(self.executor.pid, request, sender=sender, **more)
        settle(self.executor)

    def taken(self) -> list[Any]:
        messages = [envelope.msg for envelope in self.given]
        self.given.clear()
        return messages

    def life(self, pid: Pid) -> int:
        entry = self.executor.table.get(pid)
        assert entry is not None
        return entry.life


@pytest.fixture
def host() -> Iterator[Host]:
    with bare_executor() as executor:
        yield Host(executor)


def test_these_are_all_requests() -> None:
    assert {type(request) for request in REQUESTS} == set(DIRECTORY_REQUESTS)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_a_request_comes_with_the_life_of_who_asks(host: Host, request_: object) -> None:
    asker, _ = spawn_recorder(host.executor, "asker")
    cid = CorrelationId(asker, request=7)
    host.ask(asker, request_, correlation_id=cid)
    (envelope,) = host.given
    asked = envelope.msg
    assert (envelope.sender, envelope.correlation_id) == (host.executor.pid, cid)
    assert asked.request is request_
    assert (asked.pid, asked.asker, asked.asker_life) == (asker, asker, host.life(asker))
    concerns = hasattr(request_, "pid")
    assert asked.life == (host.life(asker) if concerns else 0)
    host.taken()
    life = host.life(asker)
    host.ask(asker, Stop(asker))
    downs = [(down.pid, down.life) for down in host.taken()]
    assert downs == ([(asker, life)] if concerns else [])


def test_a_request_may_concern_another_process_of_the_node(host: Host) -> None:
    asker, _ = spawn_recorder(host.executor, "asker")
    other, _ = spawn_recorder(host.executor, "other")
    host.ask(asker, Register("n", other))
    host.ask(asker, Register("n", Pid("nobody", BARE)))
    first, second = host.taken()
    assert (first.pid, first.life, first.asker) == (other, host.life(other), asker)
    assert (second.pid, second.life) == (Pid("nobody", BARE), 0)
    host.ask(None, Stop(asker))
    assert host.taken() == []
    host.ask(None, Stop(other))
    assert [type(msg) for msg in host.taken()] == [Down]


def test_what_a_life_asked_before_its_end_is_nobodys_and_its_successor_has_its_own(
    host: Host,
) -> None:
    asker, _ = spawn_recorder(host.executor, "asker")
    # Both stand in the queue when the successor comes.
    host.executor.send(host.executor.pid, Stop(asker))
    host.executor.send(host.executor.pid, Register("n"), sender=asker)
    settle(host.executor)
    assert host.taken() == []
    again, _ = spawn_recorder(host.executor, "asker")
    host.ask(again, Register("n"))
    (asked,) = host.taken()
    assert asked.life == host.life(again)
    # The end of a life comes before what its successor asks.
    life = host.life(again)
    host.executor.send(host.executor.pid, Stop(again))
    settle(host.executor)
    spawn_recorder(host.executor, "asker")
    host.ask(again, Register("n"))
    down, asked = host.taken()
    assert type(down) is Down and down.life == life and asked.life > life


def unmade(cls: Any, **fields: object) -> Any:
    """A request whose own check was passed by."""
    request = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            Register("n", ELSEWHERE),
            "ValueError: Register: far::far@h:2 is no process of bare@h:1; ",
        ),
        (JoinGroup("g", Pid("executor", BARE, "rabble")), "ValueError: JoinGroup: "),
        (SubscribeGroup("g", True, DIRECTORY), "ValueError: SubscribeGroup: "),
        (unmade(Register, name="", pid=None), "ValueError: "),
        (unmade(Register, name="n", pid="p"), "TypeError: Register: pid must be a Pid or None"),
        (unmade(WhereIs, name=5), "TypeError: "),
        (unmade(GetGroupMembers), "AttributeError: "),
    ],
)
def test_what_cannot_be_asked_ends_the_process_that_asks(
    host: Host, request_: object, text: str
) -> None:
    monitoring, told = spawn_recorder(host.executor, "monitoring")
    asker = host.executor.spawn(returning(Envelope(host.executor.pid, request_)), "asker")
    host.ask(monitoring, Monitor(asker))
    host.executor.send(asker, "go")
    settle(host.executor)
    (down,) = told
    assert down.reason.kind == "crashed" and down.reason.detail.startswith(text)
    assert host.taken() == []


@pytest.mark.parametrize("text", ["", " x", "a::b", "x" * 256, "a\x00", "a​b"])
def test_names_are_checked_where_they_enter(text: str) -> None:
    for cls in DIRECTORY_REQUESTS:
        with pytest.raises(ValueError):
            cls(text)
        with pytest.raises(TypeError):
            cls(b"bytes")


def test_nobody_to_be_answered_is_an_error(host: Host) -> None:
    host.ask(None, WhereIs("n"))
    assert host.taken() == []
    assert host.executor.dead_letters[DeadLetterReason.REFUSED] == 1


def test_an_executor_without_a_directory_says_so() -> None:
    with bare_executor() as executor:
        monitoring, told = spawn_recorder(executor, "monitoring")
        asker = executor.spawn(returning(Envelope(executor.pid, WhereIs("n"))), "asker")
        executor.send(executor.pid, Monitor(asker), sender=monitoring)
        executor.send(asker, "go")
        settle(executor)
    (down,) = told
    assert down.reason.detail == "RuntimeError: bare@h:1 has no names and groups"


def test_a_life_is_told_and_no_other_one(host: Host) -> None:
    pid, told = spawn_recorder(host.executor, "p")
    cid = CorrelationId(pid, request=3)
    life = host.life(pid)
    host.port.notify(pid, life, "yes", cid)
    host.port.notify(pid, life + 2, "no", cid)
    host.port.notify(Pid("nobody", BARE), life, "no", None)
    settle(host.executor)
    assert told == ["yes"]
    host.port.notify(pid, life, "too late", None)
    host.ask(None, Stop(pid))
    assert told == ["yes", "too late"]
    host.ask(None, Stop(pid))
    host.port.notify(pid, life, "never", None)
    settle(host.executor)
    assert told == ["yes", "too late"]


def test_the_directory_sends_and_wakes(host: Host) -> None:
    told = []
    pid = host.executor.spawn(Does(lambda _, msg, sender: told.append((msg, sender))), "p")
    host.port.tell(pid, {"f": 0})
    settle(host.executor)
    assert told == [({"f": 0}, DIRECTORY)]
    cid = CorrelationId(DIRECTORY)
    host.port.wake_after(3_600_000, cid)
    host.port.wake_after(0, cid)
    while not host.given:
        settle(host.executor)
    assert host.taken() == [Timeout(cid)] and host.executor.timers == 0


def test_only_the_core_makes_an_asked() -> None:
    asked = Asked()
    with pytest.raises(AttributeError):
        asked.life = 5  # type: ignore[misc]
