"""What is behind the web recipes: a process that keeps the stock, on a node of its own.

rabble node shop@127.0.0.1:4000 --app shop:start
"""

from __future__ import annotations

import rabble
from rabble import CorrelationId, Node, Output, Pid, Process, Request


@rabble.message(name="shop.Sold")
class Sold:
    """An order was taken."""

    left: int


@rabble.message(name="shop.SoldOut")
class SoldOut:
    """There is not as much of it."""

    left: int


@rabble.message(name="shop.Order")
class Order(Request[Sold | SoldOut]):
    """Some pieces of an item are wanted."""

    item: str
    count: int


class Stock(Process[Order]):
    """Sells what there is."""

    def __init__(self) -> None:
        self.left = {"apple": 100, "pear": 3}

    def receive(
        self, msg: Order, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Output:
        left = self.left.get(msg.item, 0)
        if msg.count > left:
            return rabble.reply(SoldOut(left), sender, correlation_id)
        self.left[msg.item] = left - msg.count
        return rabble.reply(Sold(left - msg.count), sender, correlation_id)


def start(node: Node) -> None:
    """For `rabble node --app shop:start`."""
    node.names.register("stock", node.spawn(Stock(), "stock"))
