"""What tests of whole nodes need: nodes with short limits, and what they are told of each other."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rabble
from rabble import Limits, Mesh, NameTaken, Node, NodeDown, NodeId, NodeUp, Pid
from tests.faults.raw import CLUSTER, KEY
from tests.support import PATIENCE_S, Echo, until

#: What a step may take longer than it should, because the machine is busy.
SLACK_S = 5.0

#: A silent peer is down after 1.6 s, and dialled again soon.
SHORT: dict[str, Any] = {
    "heartbeat_ms": 200,
    "down_after_ms": 1_600,
    "redial_first_ms": 20,
    "redial_most_ms": 300,
    "redial_refused_ms": 300,
    "dial_hold_back_ms": 50,
    "digest_ms": 500,
}


def rouse(
    name: str, port: int = 0, *, limits: dict[str, Any] | None = None, mesh: Any = None, **more: Any
) -> Node:
    """A node on this machine's loopback, with the key of the tests."""
    return rabble.rouse(
        f"{name}@127.0.0.1:{port}",
        mesh=Mesh(**{"key": KEY, "cluster": CLUSTER, **(mesh or {})}),
        limits=Limits(**{**SHORT, **(limits or {})}),
        **more,
    )


def subscribe_to_letters(node: Node, pid: Pid) -> None:
    """Have the dead letters of a node sent to `pid`, also those for which another node is why.

    What this thread sends comes behind the subscription anyway; what comes by a socket need not.
    """
    node.subscribe_dead_letters(pid)
    with contextlib.suppress(NameTaken):
        node.spawn(Echo(), "behind the subscription")
    assert node.call(node.pid("behind the subscription"), 1, PATIENCE_S) == 1


def port_of(node: Node) -> int:
    return int(node.node_id.addr.rpartition(":")[2])


class Told:
    """A mailbox that is told of nodes, and keeps what it was told.

    It lives as long as its node: what a dropped mailbox was sent becomes dead letters.
    """

    def __init__(self, node: Node) -> None:
        self.box = node.mailbox()
        vars(node).setdefault("_told_in_tests", []).append(self)
        self.events: list[Any] = []
        node.subscribe_nodes(self.box.pid)

    def until(self, holds: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until the events are such."""
        end = time.monotonic() + PATIENCE_S
        while not holds(self.events):
            left = end - time.monotonic()
            assert left > 0, f"told so far: {self.events}"
            self.events.append(self.box.receive(left).msg)
        return self.events

    def of(self, node: NodeId) -> list[NodeUp | NodeDown]:
        return [e for e in self.events if isinstance(e, NodeUp | NodeDown) and e.node == node]

    def up(self, *nodes: Node) -> None:
        """Wait until they are all up."""
        for node in nodes:
            self.until(
                lambda _, node=node: (
                    (of := self.of(node.node_id))
                    and isinstance(of[-1], NodeUp)
                    and of[-1].incarnation == node.cluster_status().incarnation
                )
            )

    def down(self, node: NodeId) -> NodeDown:
        """Wait until it is down."""
        self.until(lambda _: (of := self.of(node)) and isinstance(of[-1], NodeDown))
        last = self.of(node)[-1]
        assert isinstance(last, NodeDown)
        return last

    def alternate(self) -> None:
        """Of each node ups and downs take turns, and a later start comes later."""
        for node in {e.node for e in self.events if isinstance(e, NodeUp | NodeDown)}:
            of = self.of(node)
            for n, event in enumerate(of):
                assert isinstance(event, NodeDown if n % 2 else NodeUp), of
                if n % 2:
                    assert event.incarnation == of[n - 1].incarnation
                elif n:
                    assert event.incarnation >= of[n - 1].incarnation


def meet(*nodes: Node) -> list[Told]:
    """Have all join the first one, and wait until everybody is connected to everybody."""
    told = [Told(node) for node in nodes]
    for node in nodes[1:]:
        node.join(nodes[0].node_id.addr)
    for each, node in zip(told, nodes, strict=True):
        each.up(*(other for other in nodes if other is not node))
    return told


def names(node: Node) -> list[str]:
    return [member.name for member in node.cluster_status().members]


def linked(node: Node) -> list[str]:
    return sorted(link.node.name for link in node.cluster_status().connections)


def used() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors and threads are where they were."""
    before = used()
    yield
    end = time.monotonic() + 5
    # Fewer are well: what a failed test held goes with its report.
    while more_than(before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not more_than(before), f"{before} descriptors and threads have become {used()}"


def more_than(before: tuple[int, int]) -> bool:
    return any(now > then for now, then in zip(used(), before, strict=True))


def refused(dialler: Node, answers: Node, times: int = 1) -> tuple[set[str], set[str]]:
    """What both sides count when one dials the other so often; nobody becomes anything."""
    events = [Told(dialler), Told(answers)]
    dialler.join(answers.node_id.addr)
    until(
        lambda: all(
            sum(node.cluster_status().refusals.values()) >= times for node in (dialler, answers)
        )
    )
    for node, told in zip((dialler, answers), events, strict=True):
        assert names(node) == [node.node_id.name]
        assert linked(node) == []
        assert len(told.box) == 0
    return set(dialler.cluster_status().refusals), set(answers.cluster_status().refusals)
