"""What tests of the codec share: classes of one registry, and a codec of it."""

from __future__ import annotations

import dataclasses
import enum

from rabble._core.codec import Codec
from rabble._core.ids import NodeId, Pid
from rabble.registry import MessageRegistry, message

REGISTRY = MessageRegistry()
NODE = NodeId("local", "127.0.0.1:4000")
PID = Pid("counter", NODE)


@message(name="Order", registry=REGISTRY)
class Order:
    id: int
    item: object
    price: float


@message(name="Empty", registry=REGISTRY)
class Empty:
    pass


@message(name="Positive", registry=REGISTRY, post_init=True)
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError(f"{self.n} is not positive")


@message(name="Colour", registry=REGISTRY)
class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    NONE = None


CODEC = Codec(REGISTRY)


def ext(code, *parts):
    body = b"".join(CODEC.encode_message(part) for part in parts)
    return bytes([0xC7, len(body), code]) + body


def declared(registry, **attributes):
    """A registered class without slots, whose fields are what `__getattribute__` makes of them."""

    @dataclasses.dataclass(frozen=True)
    class Meddler:
        field: object = None

        def __getattribute__(self, name):
            return attributes[name]()

    registry.register(Meddler, "Meddler")
    return Meddler


class Equal(type):
    """Its classes are all equal, and have one hash."""

    def __eq__(cls, other):
        return True

    def __hash__(cls):
        return 7
