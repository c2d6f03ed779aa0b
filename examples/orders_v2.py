"""The second version: an order has grown. What is new has a default, and comes last."""

from __future__ import annotations

from orders_node import serve

import rabble
from rabble import Node


@rabble.message(name="orders.Order")
class Order:
    """Something to be sold."""

    number: int
    item: str
    gift: bool = False


def start(node: Node) -> None:
    """For `rabble node --app orders_v2:start`."""
    serve(node, 2, lambda number: Order(number, "pear", gift=True))
