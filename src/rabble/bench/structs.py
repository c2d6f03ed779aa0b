"""The typed messages as `msgspec.Struct` classes. Imported only where msgspec is installed."""

from __future__ import annotations

import msgspec

from rabble.bench.typed import REGISTRY, Kind
from rabble.registry import message

__all__ = ["KIND", "Basket", "Buyer", "Order", "Sale"]


@message(name="bench.StructOrder", registry=REGISTRY)
class Order(msgspec.Struct, frozen=True):
    """Three fields."""

    number: int
    item: str
    price: float


@message(name="bench.StructSale", registry=REGISTRY)
class Sale(msgspec.Struct, frozen=True):
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


@message(name="bench.StructBuyer", registry=REGISTRY)
class Buyer(msgspec.Struct, frozen=True):
    """Part of a `Basket`."""

    name: str
    city: str


@message(name="bench.StructBasket", registry=REGISTRY)
class Basket(msgspec.Struct, frozen=True):
    """Nested: three fields, of which one is a message and one a list of them."""

    number: int
    buyer: Buyer
    orders: list[Order]


KIND = Kind("struct", Order, Sale, Buyer, Basket)
