"""Mailboxes: pids that a plain thread, a script or a test holds, and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import rabble
from rabble import CallTimeout, Down, DownReason, Monitor, NameTaken, Node, NodeStopped
from tests.support import PATIENCE_S, Echo


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("test@127.0.0.1:0") as node:
        yield node


def test_a_mailbox_waits_for_a_bounded_time_and_gives_its_name_back(node: Node) -> None:
    with node.mailbox("box") as box:
        with pytest.raises(CallTimeout, match="received nothing in 0.01 s"):
            box.receive(0.01)
        with pytest.raises(NameTaken):
            node.mailbox("box")
    with pytest.raises(NodeStopped):
        box.receive(PATIENCE_S)
    box.close()


def test_a_mailbox_is_woken_by_the_end_of_its_node() -> None:
    node = rabble.rouse()
    box = node.mailbox()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            box.receive(PATIENCE_S)
        except NodeStopped as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    node.shutdown()
    thread.join()
    assert len(ended) == 1


def test_what_a_closed_mailbox_held_is_dead_letters() -> None:
    with rabble.rouse() as node:
        with node.mailbox() as box:
            echo = node.spawn(Echo(), "echo")
            box.send(echo, "unread")
            assert node.call(echo, "later") == "later"
        assert node.call(echo, "again") == "again"
        assert node.executor_status().dead_letters == {"no_process": 1}


def test_a_mailbox_that_nobody_holds_any_more_is_closed_by_the_next(node: Node) -> None:
    dropped = node.mailbox("dropped")
    pid = dropped.pid
    with node.mailbox() as box:
        box.send(node.pid("executor", "rabble"), Monitor(pid))
        assert node.call(node.spawn(Echo(), "echo"), 1) == 1
        del dropped
        with node.mailbox():
            assert box.receive(PATIENCE_S).msg == Down(pid, DownReason("stopped"))
    assert not node._mailboxes.dropped


def test_mailboxes_without_a_name_get_different_ones(node: Node) -> None:
    with node.mailbox() as one, node.mailbox() as other, node.mailbox(group="tenant") as third:
        assert len({one.pid, other.pid, third.pid}) == 3
        assert third.pid.group == "tenant"
