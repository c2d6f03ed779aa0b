"""What both versions of the application of `test_upgrade` do, each in a process of its own.

    python -m tests.cluster.app_v1 [HOST:PORT of a node to join]

It prints `at HOST:PORT`, and once it has met the other node what that answered to an order, which
is what the desk of that node was given. It ends when its standard input does.
"""

from __future__ import annotations

import sys
from typing import Any

import rabble
from rabble import NodeUp, Pid, Process
from tests.cluster.mesh import rouse
from tests.support import PATIENCE_S


class Desk(Process):
    """Answers an order with what it was given."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
        return rabble.Envelope(sender, repr(msg), correlation_id=correlation_id)


def run(name: str, order: Any) -> None:
    seeds = tuple(sys.argv[1:2])
    with rouse(name, mesh={"seeds": seeds}) as node:
        node.spawn(Desk(), "desk")
        box = node.mailbox()
        node.subscribe_nodes(box.pid)
        print("at", node.node_id.addr, flush=True)
        while not isinstance(told := box.receive(PATIENCE_S).msg, NodeUp):
            pass
        answer = node.call(Pid("desk", told.node), order, PATIENCE_S)
        print(answer, flush=True)
        sys.stdin.read()
        print("dropped", node.metrics().counters["fields_dropped"], flush=True)
