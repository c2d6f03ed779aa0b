"""The operating-system processes of `forming`: nodes that join one seed, and one that counts them.

`main(NODES, SETTLE_S, IDLE_S)` prints what it saw, as JSON. It forks the nodes before it has any
thread, as each interpreter that starts by itself would take longer than its part of the mesh.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from rabble.cluster.config import Mesh
from rabble.messages import NodeDown, NodeUp
from rabble.node import rouse

__all__ = ["Formed", "main"]

PATIENCE_S = 180.0
#: Endings of handshakes by which nothing has failed: both dialled each other, and one gave way.
GAVE_WAY = frozenset({"DUPLICATE", "CLOSED"})


@dataclasses.dataclass(frozen=True)
class Formed:
    """What was seen of one mesh.

    :param formed_s: from the first word to join until the last node was up with all others.
    :param processor_s: what all nodes together used of the processor in that time.
    :param failed: handshakes that failed; `gave_way`: dials that gave way to another one.
    :param downs: how often a node was called down, though all of them lived.
    :param sent_bytes: by all nodes, until all had grown quiet.
    :param idle_percent: of a core, used by each node thereafter, on average; and by the busiest.
    """

    nodes: int
    formed_s: float
    processor_s: float
    failed: int
    gave_way: int
    downs: int
    sent_bytes: int
    idle_percent: float
    idle_percent_max: float


class Lines:
    """One end of a conversation by lines."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self._sock = sock
        self._lines = sock.makefile("r", encoding="utf-8")

    def write(self, what: object) -> None:
        self._sock.sendall(f"{json.dumps(what)}\n".encode())

    def read(self) -> Any:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("a node of the mesh has ended")
        return json.loads(line)


def node_side(number: int, nodes: int, key: bytes, lines: Lines) -> None:
    """One node: says where it is, is told whom to join, and answers for what is asked of it."""
    mesh = Mesh(key=key)
    with rouse(f"n{number:04}@127.0.0.1:0", mesh=mesh) as node, node.mailbox() as main:
        node.subscribe_nodes(main.pid)
        lines.write(node.node_id.addr)
        seed = lines.read()
        used = time.process_time()
        if seed is not None:
            node.join(seed)
        ups = downs = 0
        while ups - downs < nodes - 1:
            event = main.receive(PATIENCE_S).msg
            ups += isinstance(event, NodeUp)
            downs += isinstance(event, NodeDown)
        lines.write(time.monotonic())
        # All of them are there.
        lines.read()
        lines.write(time.process_time() - used)
        idle_s = lines.read()
        status = node.cluster_status()
        used, begun = time.process_time(), time.monotonic()
        time.sleep(idle_s)
        percent = 100 * (time.process_time() - used) / (time.monotonic() - begun)
        while len(main):
            downs += isinstance(main.receive(0).msg, NodeDown)
        sent_bytes = sum(peer.bytes_sent for peer in status.connections)
        lines.write([dict(status.refusals), downs, sent_bytes, percent])
        # Until the others have looked, too.
        lines.read()
    os._exit(0)


def fork(target: Callable[[Lines], None]) -> tuple[int, Lines]:
    """An operating-system process that does this; its id, and how to speak with it."""
    here, there = socket.socketpair()
    child = os.fork()
    if child:
        there.close()
        return child, Lines(here)
    try:
        here.close()
        target(Lines(there))
    except BaseException as error:
        print(f"a node of the mesh failed: {error!r}", file=sys.stderr, flush=True)
    os._exit(1)


def form(nodes: int, settle_s: float, idle_s: float) -> Formed:
    """Form a mesh of so many nodes, and look at it when it is idle.

    :param settle_s: after the last connection, for digests to be compared.
    """
    key = secrets.token_bytes(32)
    # What is there already stays shared, instead of being copied when it is looked through.
    gc.collect()
    gc.freeze()
    children: list[tuple[int, Lines]] = []
    try:
        for number in range(nodes):
            children.append(
                fork(lambda lines, number=number: node_side(number, nodes, key, lines))  # type: ignore[misc]
            )
        sides = [lines for _, lines in children]
        addrs = [side.read() for side in sides]
        begun = time.monotonic()
        for side, addr in zip(sides, [None] + [addrs[0]] * (nodes - 1), strict=True):
            side.write(addr)
        formed_s = max(side.read() for side in sides) - begun
        for side in sides:
            side.write("formed")
        processor_s = sum(side.read() for side in sides)
        time.sleep(settle_s)
        for side in sides:
            side.write(idle_s)
        seen = [side.read() for side in sides]
        for side in sides:
            side.write("end")
    except BaseException:
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        for child, _ in children:
            os.waitpid(child, 0)
    endings = [(why, count) for refusals, *_ in seen for why, count in refusals.items()]
    percents = [percent for *_, percent in seen]
    return Formed(
        nodes,
        formed_s,
        processor_s,
        sum(count for why, count in endings if why not in GAVE_WAY),
        sum(count for why, count in endings if why in GAVE_WAY),
        sum(downs for _, downs, _, _ in seen),
        sum(sent_bytes for _, _, sent_bytes, _ in seen),
        sum(percents) / nodes,
        max(percents),
    )


def main(nodes: str, settle_s: str, idle_s: str) -> None:
    """Print what was seen."""
    print(json.dumps(dataclasses.asdict(form(int(nodes), float(settle_s), float(idle_s)))))
