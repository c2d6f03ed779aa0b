"""What both versions of the application of rolling_upgrade.py have in common: desks and clerks.

Each node has a desk, which takes orders, and a clerk, who makes them and gives each to the desk
whose turn it is, on whatever node. The class of an order is that of the version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import rabble
from rabble import (
    Ask,
    CorrelationId,
    Envelope,
    Failed,
    Group,
    GroupJoined,
    JoinGroup,
    Node,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Reply,
    Request,
    StartTimer,
    Tick,
)

#: Between two orders of a clerk.
ORDER_MS = 20
ORDER_TIMEOUT_MS = 5_000


@rabble.message(name="orders.Receipt")
class Receipt:
    """An order was taken; by which version, and as what."""

    version: int
    order: str


@rabble.message(name="orders.Count")
class Count:
    """What a clerk has had: how many receipts of each version, and how often it asked again."""

    version: int
    receipts: dict[int, int]
    again: int
    #: How many orders were refused for good.
    failed: int


@rabble.message(name="orders.GetCount")
class GetCount(Request[Count]):
    """Asks a clerk."""


class Desk(Process[Any]):
    """Takes orders."""

    def __init__(self, version: int) -> None:
        self.version = version

    def init(self) -> Output:
        return Envelope(self.executor, JoinGroup("desks"))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        if isinstance(msg, GroupJoined):
            return None
        return rabble.reply(Receipt(self.version, repr(msg)), sender, correlation_id)


class Clerk(Process[Any]):
    """Makes orders, and gives each to a desk, until one has taken it."""

    def __init__(self, version: int, make: Callable[[int], Any]) -> None:
        self.make = make
        self.desks = Group("desks")
        self.made = 0
        self.count = Count(version, {}, 0, 0)

    def init(self) -> Output:
        beat = StartTimer("order", ORDER_MS, "order", repeat=True)
        return [self.desks.subscribe(self.executor), Envelope(self.executor, beat)]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Tick():
                self.made += 1
                return self.order(self.make(self.made))
            case Reply(_, Receipt(version, _)):
                receipts = dict(self.count.receipts)
                receipts[version] = receipts.get(version, 0) + 1
                self.count = dataclasses.replace(self.count, receipts=receipts)
            case Failed(_, ProcessCrashed() | rabble.DecodeError() | rabble.EncodeError()):
                # Asking again would be no better.
                self.count = dataclasses.replace(self.count, failed=self.count.failed + 1)
            case Failed(order, _):
                self.count = dataclasses.replace(self.count, again=self.count.again + 1)
                return self.order(order)
            case GetCount():
                return rabble.reply(self.count, sender, correlation_id)
            case _:
                self.desks.takes(msg)
        return None

    def order(self, order: Any) -> list[Envelope]:
        return [
            Envelope(self.executor, Ask(each.to, order, ORDER_TIMEOUT_MS, tag=order))
            for each in self.desks.to_one(order)
        ]


def serve(node: Node, version: int, make: Callable[[int], Any]) -> None:
    """What a node of either version runs."""
    node.spawn(Desk(version), "desk")
    node.spawn(Clerk(version, make), "clerk")
