"""What idle processes take of the memory: run in an interpreter of its own by `spawn`.

`main` prints the resident bytes of each.
"""

from __future__ import annotations

import os
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.node import rouse
from rabble.process import Process

__all__ = ["Idle", "main", "resident_bytes"]


class Idle(Process):
    """Does nothing until it is asked, and then answers."""

    def __init__(self) -> None:
        self.asked = 0

    def receive(self, msg: Any, sender: Any, correlation_id: CorrelationId | None) -> Envelope:
        self.asked += 1
        return Envelope(sender, msg)


def resident_bytes() -> int:
    """Bytes of this operating-system process that are in memory."""
    with open("/proc/self/statm", "rb") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rabble_bytes(processes: int) -> int:
    """What so many spawned processes take."""
    with rouse() as node, node.mailbox() as main:
        before = resident_bytes()
        for n in range(processes):
            last = node.spawn(Idle(), f"idle-{n}")
        main.send(last, "begun?")
        main.receive(120.0)
        return resident_bytes() - before


def bare_bytes(processes: int) -> int:
    """What the same objects and their pids take in one dict."""
    here = NodeId("bare", "127.0.0.1:1")
    table: dict[Pid, Idle] = {}
    before = resident_bytes()
    for n in range(processes):
        table[Pid(f"idle-{n}", here)] = Idle()
    return resident_bytes() - before


def main(kind: str, processes: str) -> None:
    """Print the resident bytes of each.

    :param kind: `rabble` or `bare`.
    """
    measured = {"rabble": rabble_bytes, "bare": bare_bytes}[kind](int(processes))
    print(measured / int(processes))
