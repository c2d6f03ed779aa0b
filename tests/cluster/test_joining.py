"""Joining: how soon five nodes are one mesh, a removal of a node that is away, silent addresses."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rabble import Node, NodeId, NodeUp, Pid, Removed
from rabble.addresses import Address
from rabble.cluster.io import resolver as cluster_names
from tests.cluster.mesh import SLACK_S, Told, linked, meet, names, nothing_left, rouse, until
from tests.faults.rig.proxy import Proxy
from tests.support import PATIENCE_S, Echo


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.mark.parametrize("attempt", range(3))
def test_five_nodes_that_join_one_of_them_are_connected_by_ten_links(attempt: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    nodes = [rouse(name) for name in "abcde"]
    try:
        told = [Told(node) for node in nodes]
        newcomers = list(nodes)
        rng.shuffle(newcomers)
        first = newcomers.pop()
        began = time.monotonic()
        for node in newcomers:
            node.join(first.node_id.addr)
        for each, node in zip(told, nodes, strict=True):
            each.up(*(other for other in nodes if other is not node))
        took_s = time.monotonic() - began
        print(f"connected after {took_s:.3f} s")
        assert took_s < 3 + SLACK_S
        for each, node in zip(told, nodes, strict=True):
            until(lambda node=node: names(node) == list("abcde"))
            assert linked(node) == sorted(set("abcde") - {node.node_id.name})
            each.alternate()
        pairs = {frozenset((x.node_id.name, name)) for x in nodes for name in linked(x)}
        assert len(pairs) == 10
        # Each of these links carries something.
        for node in nodes:
            node.spawn(Echo(), "echo")
        for node in nodes:
            for other in nodes:
                pid = Pid("echo", other.node_id)
                assert node.call(pid, [node.node_id.name], PATIENCE_S) == [node.node_id.name]
    finally:
        for node in nodes:
            node.shutdown()


# Removed while it was away, and lived.


@contextlib.contextmanager
def behind_proxies(*who: str) -> Iterator[tuple[list[Node], list[Proxy], list[str]]]:
    """Nodes whose addresses are those of proxies, and the addresses where they really listen."""
    with contextlib.ExitStack() as stack:
        proxies, behind = [], []
        for _ in who:
            # Keeps the port until the node listens there, which a socket that only has it allows.
            holds = stack.enter_context(socket.socket())
            holds.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holds.bind(("127.0.0.1", 0))
            proxies.append(stack.enter_context(Proxy(holds.getsockname(), record=False)))
            behind.append(f"127.0.0.1:{holds.getsockname()[1]}")
        # They end before their proxies do.
        nodes = [
            stack.enter_context(rouse(name, proxy.address[1], mesh={"bind": bind}))
            for name, proxy, bind in zip(who, proxies, behind, strict=True)
        ]
        yield nodes, proxies, behind


def test_a_node_that_lived_on_when_it_was_removed_learns_it_at_its_return() -> None:
    with behind_proxies("a", "b", "c") as ((a, b, c), proxies, behind):
        told = [Told(node) for node in (a, b, c)]
        # These two have a way to each other that is not cut.
        a.join(behind[1])
        told[0].up(b)
        told[1].up(a)
        c.join(a.node_id.addr)
        told[0].up(c)
        told[1].up(c)
        told[2].up(a, b)
        until(lambda: names(a) == names(b) == names(c) == ["a", "b", "c"])
        first = c.cluster_status().incarnation

        for proxy in proxies:
            proxy.refuse()
        assert sum(proxy.drop(reset=True) for proxy in proxies) == 2
        told[0].down(c.node_id)
        told[1].down(c.node_id)
        told[2].down(a.node_id)
        told[2].down(b.node_id)
        a.leave("c")
        until(lambda: names(a) == names(b) == ["a", "b"])
        # It tries to reach them all the time, and knows nothing.
        tried = sum(c.cluster_status().refusals.values())
        until(lambda: sum(c.cluster_status().refusals.values()) > tried + 3)
        assert names(c) == ["a", "b", "c"] and not c.cluster_status().removed
        assert c.call(c.spawn(Echo(), "echo"), 1, PATIENCE_S) == 1
        assert not [e for e in told[2].events if isinstance(e, Removed)]

        # Its way to `a` stays cut, from where it is reached by itself later.
        for proxy in proxies[1:]:
            proxy.refuse(False)
        told[2].until(lambda events: isinstance(events[-1], Removed))
        assert told[2].events[-1] == Removed(b.node_id)
        assert c.cluster_status().removed and linked(c) == []
        assert names(a) == names(b) == ["a", "b"]
        assert all(len(each.box) == 0 for each in told)

        c.join(b.node_id.addr)
        told[0].up(c)
        told[1].up(c)
        told[2].up(a, b)
        until(lambda: names(a) == names(b) == names(c) == ["a", "b", "c"])
        assert not c.cluster_status().removed
        assert c.cluster_status().incarnation > first
        for node in (a, b):
            assert node.call(c.pid("echo"), 2, PATIENCE_S) == 2
        # Of each other the two were told nothing in all that time.
        assert told[0].of(b.node_id) == [NodeUp(b.node_id, b.cluster_status().incarnation)]
        assert told[1].of(a.node_id) == [NodeUp(a.node_id, a.cluster_status().incarnation)]
        assert sum(isinstance(e, Removed) for each in told for e in each.events) == 1
        for each in told:
            each.alternate()


# Addresses at which nobody answers.

#: Nobody waits for these: it would take longer than a test has patience.
LIMITS: dict[str, Any] = {
    "connect_ms": 60_000,
    "handshake_ms": 60_000,
    "redial_most_ms": 100,
    "seeds_refresh_ms": 100,
}
#: In which somebody who still dialled would have done it several times.
QUIET_S = 0.6

ENDS = [
    ("address", "it leaves"),
    ("address", "it ends"),
    ("node id", "it leaves"),
    ("node id", "it is said to leave"),
    ("node id", "it ends"),
]


def without_waiting(step: Callable[[], object]) -> None:
    """Do what waits for nobody who does not answer."""
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def joins_at_once(node: Node, by: str, addr: str) -> None:
    target = addr if by == "address" else NodeId("nobody", addr)
    without_waiting(lambda: node.join(target))


def is_joined(node: Node) -> Told:
    """Another one comes, whatever the node waits for; and goes, or it would dial its members."""
    with rouse("b") as b:
        told, _ = meet(node, b)
    told.down(b.node_id)
    return told


def ends(node: Node, how: str, told: Told) -> None:
    """Have the node dial no more."""
    if how == "it ends":
        without_waiting(node.shutdown)
    elif how == "it leaves":
        node.leave()
        told.until(lambda events: any(isinstance(e, Removed) for e in events))
    else:
        assert "nobody" in names(node)
        node.leave("nobody")
        until(lambda: names(node) == ["a", "b"])


def nobody_dials(listener: socket.socket) -> None:
    listener.settimeout(QUIET_S)
    with pytest.raises(TimeoutError):
        listener.accept()


def connecting_to(port: int) -> int:
    """How many sockets of this machine wait for an answer of that port on loopback."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[2:4] == [f"0100007F:{port:04X}", "02"] for line in lines)


@pytest.mark.parametrize(("by", "how"), ENDS)
def test_a_port_that_refuses_is_dialled_until_the_node_leaves(by: str, how: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with rouse("a", limits=LIMITS) as a:
            joins_at_once(a, by, f"127.0.0.1:{listener.getsockname()[1]}")
            told = is_joined(a)
            until(lambda: a.cluster_status().refusals.get("REFUSED", 0) >= 3)
            ends(a, how, told)
            listener.listen()
            nobody_dials(listener)


@pytest.mark.parametrize(("by", "how"), ENDS)
def test_a_black_hole_is_dialled_until_the_node_leaves(by: str, how: str) -> None:
    with socket.socket() as listener, socket.socket() as fills:
        listener.bind(("127.0.0.1", 0))
        # One has room in its backlog; what else is said to it is not heard.
        listener.listen(0)
        fills.connect(listener.getsockname())
        port = listener.getsockname()[1]
        with rouse("a", limits=LIMITS) as a:
            joins_at_once(a, by, f"127.0.0.1:{port}")
            until(lambda: connecting_to(port) == 1)
            told = is_joined(a)
            until(lambda: connecting_to(port) == 1)
            ends(a, how, told)
            until(lambda: connecting_to(port) == 0)
            listener.accept()[0].close()
            nobody_dials(listener)


class Names:
    """Look-ups of one host name, which take as long as the test wants."""

    def __init__(self) -> None:
        self.real = cluster_names.look_up
        self.asked = 0
        self.answers = threading.Event()
        self.found: list[Address] = []

    def __call__(self, host: str, port: int, flags: int = 0) -> list[Address]:
        if host != "nobody.invalid":
            return self.real(host, port, flags)
        if not flags:
            self.asked += 1
            assert self.answers.wait(PATIENCE_S)
        if flags or not self.found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.found

    def until_asked(self, times: int) -> None:
        before = self.asked
        until(lambda: self.asked >= before + times)


@pytest.mark.parametrize(("by", "how"), ENDS)
def test_a_name_without_address_is_asked_for_until_the_node_leaves(
    by: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = Names()
    monkeypatch.setattr(cluster_names, "look_up", look_up)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            with rouse("a", limits=LIMITS) as a:
                joins_at_once(a, by, "nobody.invalid:5")
                until(lambda: look_up.asked)
                told = is_joined(a)
                look_up.answers.set()
                look_up.until_asked(3)
                look_up.answers.clear()
                look_up.until_asked(1)
                ends(a, how, told)
                # The answer comes too late.
                look_up.found = [(socket.AF_INET, listener.getsockname())]
                look_up.answers.set()
                nobody_dials(listener)
        finally:
            look_up.answers.set()


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("by", ["address", "node id"])
def test_who_has_the_smallest_name_can_come_back_too(by: str, attempt: int) -> None:
    """It dials the others at once, who may have heard of its removal only."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(rouse(name)) for name in "abcde"]
        told = meet(*nodes)
        a, b, *_ = nodes
        b.leave("a")
        told[0].until(lambda events: any(isinstance(event, Removed) for event in events))
        for each in told[1:]:
            each.down(a.node_id)
        until(lambda: names(b) == list("bcde"))
        a.join(b.node_id if by == "node id" else b.node_id.addr)
        until(lambda: all(names(node) == list("abcde") for node in nodes))
        until(lambda: len(a.cluster_status().connections) == 4)
        assert not a.cluster_status().removed
        assert not [event for event in told[0].events if isinstance(event, Removed)][1:]
