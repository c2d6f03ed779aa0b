"""The typed messages of the benchmarks: the same fields as a `@rabble.message` class and as a
frozen dataclass without slots. `structs` has them as `msgspec.Struct`."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from rabble.registry import MessageRegistry, message

__all__ = [
    "KINDS",
    "REGISTRY",
    "SHAPES",
    "Basket",
    "Buyer",
    "Kind",
    "Order",
    "Sale",
    "has_msgspec",
    "plain",
]

#: The classes below, under the same names in every operating-system process.
REGISTRY = MessageRegistry()


@message(name="bench.Order", registry=REGISTRY)
class Order:
    """Three fields."""

    number: int
    item: str
    price: float


@message(name="bench.Sale", registry=REGISTRY)
class Sale:
    """Ten fields."""

    number: int
    item: str
    price: float
    quantity: int
    customer: str
    currency: str
    discount: float
    paid: bool
    note: str | None
    placed_ms: int


@message(name="bench.Buyer", registry=REGISTRY)
class Buyer:
    """Part of a `Basket`."""

    name: str
    city: str


@message(name="bench.Basket", registry=REGISTRY)
class Basket:
    """Nested: three fields, of which one is a message and one a list of them."""

    number: int
    buyer: Buyer
    orders: list[Order]


@message(name="bench.DataOrder", registry=REGISTRY)
@dataclasses.dataclass(frozen=True)
class DataOrder:
    """As `Order`."""

    number: int
    item: str
    price: float


@message(name="bench.DataSale", registry=REGISTRY)
@dataclasses.dataclass(frozen=True)
class DataSale:
    """As `Sale`."""

    number: int
    item: str
    price: float
    quantity: int
    customer: str
    currency: str
    discount: float
    paid: bool
    note: str | None
    placed_ms: int


@message(name="bench.DataBuyer", registry=REGISTRY)
@dataclasses.dataclass(frozen=True)
class DataBuyer:
    """As `Buyer`."""

    name: str
    city: str


@message(name="bench.DataBasket", registry=REGISTRY)
@dataclasses.dataclass(frozen=True)
class DataBasket:
    """As `Basket`."""

    number: int
    buyer: DataBuyer
    orders: list[DataOrder]


class Kind:
    """One way to declare the four classes."""

    def __init__(self, name: str, order: Any, sale: Any, buyer: Any, basket: Any) -> None:
        self.name = name
        self._order = order
        self._sale = sale
        self._buyer = buyer
        self._basket = basket

    def order(self, n: int) -> Any:
        """A message of three fields."""
        return self._order(n, f"lamp {n}", n / 8)

    def sale(self, n: int) -> Any:
        """A message of ten fields."""
        fields = (3 + n, f"customer {n}", "EUR", n / 16, n % 2 == 0, None, 1_790_000_000_000 + n)
        return self._sale(n, f"lamp {n}", n / 8, *fields)

    def basket(self, n: int) -> Any:
        """A nested message."""
        buyer = self._buyer(f"customer {n}", "Ulm")
        return self._basket(n, buyer, [self.order(n), self.order(n + 1)])


KINDS: Sequence[Kind] = (
    Kind("message", Order, Sale, Buyer, Basket),
    Kind("dataclass", DataOrder, DataSale, DataBuyer, DataBasket),
)

#: By what the lines of the table call it: how a message of that shape is made.
SHAPES: Sequence[tuple[str, Callable[[Kind, int], Any]]] = (
    ("3", Kind.order),
    ("10", Kind.sale),
    ("nested", Kind.basket),
)


def has_msgspec() -> bool:
    """Whether msgspec is installed."""
    return importlib.util.find_spec("msgspec") is not None


def plain(value: Any) -> Any:
    """A message as lists of its fields: what msgpack has to carry where it knows no classes."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value
