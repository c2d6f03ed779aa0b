"""The first version of an application: its orders have two fields."""

from __future__ import annotations

import rabble
from tests.cluster.upgrade import run


@rabble.message(name="upgrade.Order")
class Order:
    id: int
    item: str


if __name__ == "__main__":
    run("v1", Order(1, "apple"))
