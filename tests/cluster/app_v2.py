"""The second version: orders have a price and a clerk, of a class that the first does not have."""

from __future__ import annotations

import rabble
from tests.cluster.upgrade import run


@rabble.message(name="upgrade.Clerk")
class Clerk:
    name: str


@rabble.message(name="upgrade.Order")
class Order:
    id: int
    item: str
    price: float = 0.5
    clerk: Clerk | None = None


if __name__ == "__main__":
    run("v2", Order(2, "pear", 1.5, Clerk("ann")))
