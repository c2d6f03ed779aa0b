"""What an executor asks of its node, and tells it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

import rabble
from rabble import Envelope, NodeId, NodeStopped, Pid
from rabble.cluster.decide.refusal import RefusalCode
from rabble.hooks import Hooks
from rabble.texts import TEXT_CHARS_MAX
from tests.support import BARE, PATIENCE_S

FAR = NodeId("far", "h:2")
FROM_FAR = Envelope(Pid("one", BARE), None, Pid("two", FAR))


class Runtime:
    """What hooks are given of a node; keeps what they pass on."""

    def __init__(self, *idle: bool) -> None:
        self.services = dict.fromkeys(Idle(each) for each in idle)
        self.reporter = self
        self.calls = self
        self.reports: list[str] = []
        self.ended: list[NodeId] = []

    def report(self, level: int, words: Any) -> None:
        self.reports.append(words())

    def disconnected(self, node: NodeId, why: str) -> None:
        self.ended.append(node)


class Idle:
    """A service, as far as it is asked."""

    def __init__(self, idle: bool) -> None:
        self.idle = idle


def hooks(*idle: bool) -> tuple[Hooks, Runtime]:
    runtime = Runtime(*idle)
    return Hooks(runtime), runtime  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("is_open", "code", "reason"),
    [
        (True, 0, "replaced"),  # another connection to that node is about to take its place
        (False, RefusalCode.STALE_INCARNATION, "replaced"),
        (False, RefusalCode.SHUTDOWN, "shutdown"),
        (False, RefusalCode.TIMEOUT, "timeout"),
        (False, 0, "lost"),
    ],
)
def test_the_reason_of_a_node_down(is_open: bool, code: int, reason: str) -> None:
    connection: Any = SimpleNamespace(open=is_open, code=code)
    assert hooks()[0].why_ended(connection) == reason


@pytest.mark.parametrize(
    ("idle", "quiet"), [([], True), ([True, True], True), ([True, False], False)]
)
def test_a_drain_waits_until_every_service_is_idle(idle: list[bool], quiet: bool) -> None:
    assert hooks(*idle)[0].quiet() is quiet


def test_what_a_message_has_in_it_is_reported_bounded() -> None:
    asked, runtime = hooks()
    asked.undecodable(FROM_FAR, "x" * 10_000)
    asked.unencodable(FROM_FAR, ValueError("y" * 10_000))
    undecodable, unencodable = runtime.reports
    assert undecodable.startswith(f"{FROM_FAR.sender} sent what cannot be decoded: xxx")
    assert unencodable.startswith(f"{FROM_FAR.sender} sent what cannot be encoded: yyy")
    assert max(map(len, runtime.reports)) < TEXT_CHARS_MAX + 100


def test_the_calls_to_a_node_end_with_the_connection_to_it() -> None:
    asked, runtime = hooks()
    asked.disconnected(SimpleNamespace(open=True, code=0, session=SimpleNamespace(peer=FAR)))  # type: ignore[arg-type]
    assert runtime.ended == [FAR]


def test_a_defect_of_the_executor_ends_its_node_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(hooks: Hooks) -> bool:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Hooks, "quiet", fail)
    node = rabble.rouse()
    box = node.mailbox()
    node.shutdown()
    assert (node.status, repr(node)) == ("failed", "<Node local@127.0.0.1:0 failed>")
    with pytest.raises(NodeStopped):
        box.receive(PATIENCE_S)
    assert "ZeroDivisionError: a defect" in caplog.text
    assert not any(t.name.startswith("rabble:") for t in threading.enumerate())
