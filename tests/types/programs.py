"""Programs that are right and wrong, for the type checkers; nothing here is run.

Where a line is wrong the comment beside it names the complaint of mypy, and of pyright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import rabble
from rabble import (
    ChildSpec,
    CorrelationId,
    Envelope,
    Node,
    Output,
    Pid,
    Process,
    Request,
    Service,
    ServiceHandler,
    Timeout,
)


@rabble.message
@dataclasses.dataclass(frozen=True, slots=True)
class Sell:
    item: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    cents: int


@dataclasses.dataclass(frozen=True, slots=True)
class GetPrice(Request[Price]):
    item: str


# Right.


class Printer(ServiceHandler):
    def __init__(self, name: str) -> None:
        self.name = name

    def handle_envelope(self, envelope: Envelope, service: Service) -> Output:
        return Envelope(service.pid, self.name)


def children() -> list[ChildSpec]:
    """A process, a service, and what another node exports."""
    return [
        ChildSpec("till", Till),
        ChildSpec("printer", Printer, ("one",), service=True),
        ChildSpec("far", "till", node="host@10.0.0.7:4370"),
    ]


class Till(Process[Sell | GetPrice | Timeout]):
    """It says what it takes, and knows what it was given."""

    def __init__(self) -> None:
        self.sold = 0

    def receive(
        self,
        msg: Sell | GetPrice | Timeout,
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        match msg:
            case Sell(_, count):
                self.sold += count
            case GetPrice():
                if sender is not None:
                    return Envelope(sender, Price(len(msg.item)), correlation_id=correlation_id)
            case Timeout():
                self.sold = msg.correlation_id.request or 0
        return None


class Anything(Process):
    """It takes what is sent to it, under parameters of its own names."""

    def receive(self, order: object, who: Pid | None, cid: CorrelationId | None) -> Output:
        return None if who is None else [Envelope(who, order, correlation_id=cid)]


class Several(Process[int]):
    """A generator."""

    def init(self) -> Iterator[Envelope]:
        yield Envelope(self.pid, 1)

    def receive(
        self, msg: int, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        for number in range(msg):
            yield Envelope(self.pid, number)


class Wider(Process[int]):
    """Whoever takes more takes this, too."""

    def receive(
        self, msg: int | str, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> None: ...


def runs_them(node: Node) -> int:
    till = node.spawn(Till(), "till")
    node.spawn(Several(), "several")
    price = node.call(till, GetPrice("apple"), 1.0)
    return price.cents


async def awaits_them(node: Node, till: Pid) -> int:
    price = await node.call_async(till, GetPrice("apple"))
    return price.cents


async def over_a_mailbox() -> list[str]:
    async with rabble.rouse() as node:
        with node.mailbox() as box:
            return [str(envelope.msg) async for envelope in box]


# Wrong.


class Narrower(Process[int | str]):
    def receive(  # wrong # pyright: reportIncompatibleMethodOverride
        self,
        msg: int,  # mypy: override
        sender: Pid | None,
        correlation_id: CorrelationId | None,
    ) -> Output:
        return None


class Forgetful(Process[int]):
    def receive(  # mypy: override # pyright: reportIncompatibleMethodOverride
        self, msg: int
    ) -> Output:
        return None


class Sloppy(Process[int]):
    def receive(  # mypy: override # pyright: reportIncompatibleMethodOverride
        self, msg: int, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> int:
        return msg


class Careless(Process[Sell]):
    def receive(
        self, msg: Sell, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Output:
        return Envelope(sender, msg.prise)  # mypy: attr-defined # pyright: reportAttributeAccessIssue reportUnknownMemberType reportUnknownArgumentType


def takes_it_for_something_else(node: Node, till: Pid) -> str:
    return node.call(till, GetPrice("apple"))  # mypy: return-value # pyright: reportReturnType


async def awaits_something_else(node: Node, till: Pid) -> object:
    price = await node.call_async(till, GetPrice("apple"))
    return price.dollars  # mypy: attr-defined # pyright: reportAttributeAccessIssue reportUnknownMemberType reportUnknownVariableType


def sends_to_a_name(node: Node) -> None:
    node.send("till", 1)  # mypy: arg-type # pyright: reportArgumentType
    ChildSpec("price", Price)  # mypy: arg-type # pyright: reportArgumentType
    node.spawn(Sell("apple", 1), "till")  # mypy: arg-type # pyright: reportArgumentType


def forgets_to_await(node: Node, till: Pid) -> int:
    cents: int = node.call_async(till, GetPrice("a"))  # mypy: assignment # pyright: reportAssignmentType
    return cents
