"""Two nodes are upgraded one by one, while they send orders to each other.

The versions are orders_v1.py and orders_v2.py; in a real program they are one module of two dates.
"""

from __future__ import annotations

import contextlib

from nodes import NodeProcess, wait_until
from orders_node import Count, GetCount

import rabble
from rabble import Mailbox, Mesh, Node, NodeId, NodeUp, Pid

NAMES = ("a", "b")


def until_up(news: Mailbox, process: NodeProcess) -> None:
    """Wait until this start of a node is reached."""
    while True:
        match news.receive(timeout=60).msg:
            case NodeUp(_, incarnation) if incarnation == process.incarnation:
                return
            case _:
                pass


def counts(node: Node, nodes: dict[str, NodeId]) -> dict[str, Count]:
    """What the clerk of each node has had so far."""
    return {name: node.call(Pid("clerk", at), GetCount(), 60) for name, at in nodes.items()}


def until_all_have_receipts(node: Node, nodes: dict[str, NodeId], versions: dict[int, int]) -> None:
    """Wait until each clerk has some more receipts of each version that runs now.

    :param versions: how many nodes run each.
    """
    before = counts(node, nodes)

    def all_have_them() -> bool:
        """Each clerk has a receipt of each version."""
        return all(
            count.receipts.get(version, 0) > before[name].receipts.get(version, 0)
            for name, count in counts(node, nodes).items()
            for version, number in versions.items()
            if number
        )

    wait_until(all_have_them)


def main() -> None:
    with (
        rabble.rouse("driver@127.0.0.1:0", mesh=Mesh()) as node,
        node.mailbox() as news,
        contextlib.ExitStack() as stack,
    ):
        node.subscribe_nodes(news.pid)
        running: dict[str, NodeProcess] = {}
        for name in NAMES:
            running[name] = NodeProcess(f"{name}@127.0.0.1:0", "orders_v1:start")
            stack.enter_context(running[name])
            node.join(running[name].node_id)
            until_up(news, running[name])
        nodes = {name: process.node_id for name, process in running.items()}
        until_all_have_receipts(node, nodes, {1: len(NAMES)})
        print("a and b run version 1")

        failed = 0
        for done, name in enumerate(NAMES, 1):
            failed += counts(node, nodes)[name].failed
            running[name].end()
            running[name] = NodeProcess(nodes[name], "orders_v2:start")
            stack.enter_context(running[name])
            until_up(news, running[name])
            until_all_have_receipts(node, nodes, {1: len(NAMES) - done, 2: done})
            versions = [f"{n} {count.version}" for n, count in counts(node, nodes).items()]
            print(f"{name} was upgraded: {', '.join(versions)}; each has receipts of each")
        failed += sum(count.failed for count in counts(node, nodes).values())
        print(f"{failed} orders were refused")


if __name__ == "__main__":
    main()
