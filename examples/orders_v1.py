"""The first version of the application that rolling_upgrade.py upgrades."""

from __future__ import annotations

from orders_node import serve

import rabble
from rabble import Node


@rabble.message(name="orders.Order")
class Order:
    """Something to be sold."""

    number: int
    item: str


def start(node: Node) -> None:
    """For `rabble node --app orders_v1:start`."""
    serve(node, 1, lambda number: Order(number, "apple"))
