"""A script as a guest of a mesh: it asks a question, watches, and nobody remembers it."""

from __future__ import annotations

from typing import Any

import rabble


class Stock(rabble.Process):
    """Knows how many there are of each thing."""

    def __init__(self) -> None:
        self.counts = {"apple": 3, "plum": 5}

    def receive(
        self, msg: Any, sender: rabble.Pid | None, correlation_id: rabble.CorrelationId | None
    ) -> rabble.Output:
        return rabble.reply(self.counts.get(msg, 0), sender, correlation_id)


def main() -> None:
    # Of a real mesh the members run elsewhere: `rabble node a@10.0.0.1:4000 --key mesh.key`.
    mesh = rabble.Mesh(cluster="shop", key=bytes(range(32)))
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=mesh) as a,
        rabble.rouse("b@127.0.0.1:0", mesh=mesh) as b,
    ):
        a.spawn(Stock(), "stock")
        b.join(a.node_id, wait=10)
        watches(a)


def watches(a: rabble.Node) -> None:
    """Watch from one member how a guest comes, does its work, and goes."""
    with a.mailbox() as news:
        a.subscribe_nodes(news.pid)
        print("a is connected to", news.receive(10).msg.node.name)
        visit(a.node_id.addr)
        came, went = news.receive(10).msg, news.receive(10).msg
        print("a guest came:", came.guest, "and went:", went.reason)
        print("members:", *(member.name for member in a.cluster_status().members))


def visit(addr: str) -> None:
    """What a script does that knows the address of one member."""
    guest_mesh = rabble.Mesh(cluster="shop", key=bytes(range(32)), guest=True)
    with rabble.rouse("report", mesh=guest_mesh) as guest:
        stock = rabble.Pid("stock", guest.join(addr, wait=10))
        for thing in ("apple", "plum"):
            print(thing, guest.call(stock, thing))


if __name__ == "__main__":
    main()
