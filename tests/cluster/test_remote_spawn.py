"""Spawning on other nodes: what is exported, by name, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import (
    CallTimeout,
    CorrelationId,
    Envelope,
    Limits,
    Mesh,
    Node,
    NodeId,
    NodeUp,
    NotConnected,
    Output,
    Pid,
    Process,
    SpawnRefused,
    spawn_request,
)
from rabble.cluster.remote_spawn import TEXT_CHARS_MAX, pid_of_answer
from tests.cluster.mesh import subscribe_to_letters
from tests.support import KEY, PATIENCE_S, Does


class Adder(Process):
    """Answers with the sum of a number and its own."""

    def __init__(self, own: int, more: int = 0) -> None:
        if own < 0:
            raise ArithmeticError(f"{own} is below 0, " + "x" * 1000)
        self.own = own + more

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return None if sender is None else Envelope(sender, self.own + msg, None, correlation_id)


class Waits(Process):
    async def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:  # type: ignore[override]
        pass


def exits() -> Process:
    raise SystemExit("bye")


@pytest.fixture(params=["plain", "authenticated"])
def two(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    """Two nodes that are connected; the second exports."""
    mesh = Mesh(key=KEY, authenticate_loopback=request.param == "authenticated")
    with (
        rabble.rouse("asker@127.0.0.1:0", mesh=mesh) as asker,
        rabble.rouse("host@127.0.0.1:0", mesh=mesh, limits=Limits(exports_max=7)) as host,
        asker.mailbox() as news,
    ):
        asker.subscribe_nodes(news.pid)
        asker.join(host.node_id)
        assert isinstance(news.receive(PATIENCE_S).msg, NodeUp)
        host.export("adder", Adder)
        host.export("more", lambda more: Adder(1, more))
        host.export("exits", exits)
        host.export("text", str)
        host.export("waits", Waits)
        yield asker, host


def test_what_is_exported_is_spawned_and_answers(two: tuple[Node, Node]) -> None:
    asker, host = two
    pid = asker.spawn_on(host.node_id, "adder", "five", 3, 2)
    assert pid == Pid("five", host.node_id)
    assert asker.call(pid, 1) == 6
    assert pid in host.processes()
    tenant = asker.spawn_on(host.node_id, "more", "five", 7, group="tenant")
    assert tenant == Pid("five", host.node_id, "tenant")
    assert asker.call(tenant, 1) == 9


def test_asyncio_spawns_as_well(two: tuple[Node, Node]) -> None:
    asker, host = two

    async def spawn_all() -> list[Pid | BaseException]:
        asked = [
            asker.spawn_on_async(host.node_id, "adder", "five", 5),
            asker.spawn_on_async(host.node_id, "more", "five", 7, group="tenant"),
            asker.spawn_on_async(host.node_id, "subtractor", "six", 6),
            asker.spawn_on_async(NodeId("nowhere", "127.0.0.1:1"), "adder", "five", 5),
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    five, tenant, refused, unknown = asyncio.run(spawn_all())
    assert five == Pid("five", host.node_id)
    assert tenant == Pid("five", host.node_id, "tenant")
    assert isinstance(refused, SpawnRefused)
    assert isinstance(unknown, NotConnected)
    assert asker.call(five, 1) == 6


def test_a_node_may_ask_itself(two: tuple[Node, Node]) -> None:
    _, host = two
    assert host.call(host.spawn_on(host.node_id, "adder", "own", 4), 4) == 8


@pytest.mark.parametrize(
    ("exported", "name", "args", "text"),
    [
        ("subtractor", "five", (5,), "exports no 'subtractor'"),
        ("tests.support.Echo", "five", (), "exports no 'tests.support.Echo'"),
        ("adder", "taken", (5,), "the name is taken: taken::host@"),
        ("adder", "five", (), "wrong arguments for 'adder': missing a required argument: 'own'"),
        ("adder", "five", (1, 2, 3), "wrong arguments for 'adder': too many positional"),
        ("adder", "five", (-1,), "making 'adder' raised ArithmeticError: -1 is below 0, xxx"),
        ("adder", "five", ("a",), "making 'adder' raised TypeError: "),
        ("exits", "five", (), "making 'exits' raised SystemExit: bye"),
        (
            "text",
            "five",
            (),
            "'text' cannot be spawned: only a Process can be spawned, not the str",
        ),
        (
            "waits",
            "five",
            (),
            "'waits' cannot be spawned: Waits.receive is async, but the executor",
        ),
    ],
)
def test_what_is_refused_says_why(
    two: tuple[Node, Node], exported: str, name: str, args: tuple[Any, ...], text: str
) -> None:
    asker, host = two
    host.spawn(Adder(0), "taken")
    before = host.processes().keys()
    with pytest.raises(SpawnRefused) as caught:
        asker.spawn_on(host.node_id, exported, name, *args)
    assert text in str(caught.value)
    assert len(str(caught.value)) <= TEXT_CHARS_MAX
    assert "Traceback" not in str(caught.value)
    assert host.processes().keys() == before
    assert host.status == "running"


def test_a_constructor_that_raises_is_logged_where_it_did(
    two: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    asker, host = two
    with caplog.at_level(logging.ERROR, "rabble"):
        with pytest.raises(SpawnRefused):
            asker.spawn_on(host.node_id, "adder", "five", -1)
        host.shutdown()
    (record,) = caplog.records
    assert "five::host@" in record.getMessage()
    assert "ArithmeticError" in str(record.exc_text)


@pytest.mark.parametrize(
    "msg",
    [
        None,
        "spawn",
        ["spawn"],
        ["spawn", "adder", 5, "five", None],
        ["spawn", "adder", [5], None, None],
        ["spawn", "adder", [5], "five", 5],
        ["spawn", 1, [5], "five", None],
        ["spawn", "adder", [5], "five", None, None],
        ["import", "adder", [5], "five", None],
        ["spawn", "adder", [5], "", None],
        ["spawn", "adder", [5], "a::b", None],
        ["spawn", "adder", [5], "five", "rabble"],
        ["spawn", "adder", [5], "five", "a" * 300],
    ],
)
def test_what_is_no_request_is_refused(two: tuple[Node, Node], msg: Any) -> None:
    asker, host = two
    before = host.processes().keys()
    answer = asker.call(Pid("spawner", host.node_id, "rabble"), msg)
    assert answer[0] == "refused" and isinstance(answer[1], str)
    assert host.processes().keys() == before


def test_a_request_without_a_sender_is_a_dead_letter(two: tuple[Node, Node]) -> None:
    asker, host = two
    with host.mailbox() as letters:
        subscribe_to_letters(host, letters.pid)
        envelope = spawn_request(host.node_id, "adder", "five", 5)
        asker.send(envelope.to, envelope.msg)
        letter = letters.receive(PATIENCE_S).msg
    assert letter.reason is rabble.DeadLetterReason.REFUSED
    assert Pid("five", host.node_id) not in host.processes()


def test_an_asker_that_is_gone_does_no_harm(two: tuple[Node, Node]) -> None:
    """Its answer becomes a dead letter, of which the spawner is told: that is no request."""
    _, host = two
    with host.mailbox() as letters:
        host.subscribe_dead_letters(letters.pid)
        envelope = spawn_request(host.node_id, "adder", "five", 5)
        host.send(
            envelope.to,
            envelope.msg,
            sender=host.pid("nobody"),
            correlation_id=CorrelationId(host.pid("nobody"), request=1),
        )
        letter = letters.receive(PATIENCE_S).msg
        assert letter.envelope.msg == ["spawned", Pid("five", host.node_id)]
        # No answer to the answer.
        assert host.call(host.spawn_on(host.node_id, "adder", "six", 6), 0) == 6
        assert len(letters) == 0


def test_a_process_asks_and_is_answered(two: tuple[Node, Node]) -> None:
    asker, host = two
    answers: list[tuple[Any, int | None]] = []

    class Asks(Process):
        def init(self) -> Output:
            ids = [CorrelationId(self.pid, request=number) for number in (1, 2)]
            return [
                spawn_request(host.node_id, "adder", "first", 1, correlation_id=ids[0]),
                spawn_request(host.node_id, "none", "second", correlation_id=ids[1]),
            ]

        def receive(self, msg: Any, sender: Pid | None, cid: CorrelationId | None) -> Output:
            assert cid is not None
            answers.append((msg, cid.request))
            return Envelope(done.pid, "done") if len(answers) == 2 else None

    with asker.mailbox() as done:
        asker.spawn(Asks(), "asks")
        done.receive(PATIENCE_S)
    (first, one), (second, two_) = answers
    assert (one, two_) == (1, 2)
    assert pid_of_answer(first) == Pid("first", host.node_id)
    with pytest.raises(SpawnRefused, match="exports no 'none'"):
        pid_of_answer(second)
    with pytest.raises(SpawnRefused, match="the answer is none: 7"):
        pid_of_answer(7)


def test_a_request_is_checked_before_it_is_sent() -> None:
    node = NodeId("host", "h:1")
    for exported, name, group in (("a::b", "five", None), ("adder", "", None), ("adder", "x", "")):
        with pytest.raises(ValueError):
            spawn_request(node, exported, name, group=group)
    with pytest.raises(TypeError):
        spawn_request("host@h:1", "adder", "five")  # type: ignore[arg-type]


def test_a_node_that_is_not_there(two: tuple[Node, Node]) -> None:
    asker, host = two
    with pytest.raises(NotConnected):
        asker.spawn_on(NodeId("nowhere", "127.0.0.1:1"), "adder", "five", 5)
    host.spawn(Does(lambda process, msg, sender: None), "silent")
    with pytest.raises(CallTimeout):
        asker.call(host.pid("silent"), 1, timeout=0.01)


def test_what_may_be_exported(two: tuple[Node, Node]) -> None:
    _, host = two
    host.export("adder", Adder)
    with pytest.raises(ValueError, match="'adder' is exported already, as <class"):
        host.export("adder", exits)
    with pytest.raises(TypeError, match="a Process class or a function that makes one, not 5"):
        host.export("five", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        host.export("a::b", Adder)
    host.export("5th", Adder)
    host.export("6th", Adder)
    with pytest.raises(ValueError, match=r"7 names are exported already; Limits\.exports_max is 7"):
        host.export("7th", Adder)


def test_a_node_that_ends_refuses(two: tuple[Node, Node]) -> None:
    """Whoever asks hears something: an answer, or that the connection ended."""
    asker, host = two
    host.request_shutdown()
    with pytest.raises((SpawnRefused, NotConnected)):
        asker.spawn_on(host.node_id, "adder", "late", 5)
