"""The codec against msgpack, which has the payload alone to pack and unpack."""

from __future__ import annotations

import msgpack
import pytest

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble.registry import MessageRegistry, message

REGISTRY = MessageRegistry()
NODE = NodeId("local", "127.0.0.1:4000")


@message(name="Order", registry=REGISTRY)
class Order:
    id: int
    item: str
    price: float


PAYLOADS = {
    "small": ({"n": 1, "op": "inc"},) * 2,
    "int": (7, 7),
    "typed": (Order(1, "apple", 2.5), [1, "apple", 2.5]),
    "1KiB": (b"x" * 1024,) * 2,
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_envelope(benchmark, name):
    codec = Codec(REGISTRY)
    envelope = Envelope(Pid("counter", NODE), PAYLOADS[name][0], Pid("client", NODE))
    encode, decode = codec.encode_envelope, codec.decode_envelope
    benchmark.group = name
    assert benchmark(lambda: decode(encode(envelope))) == envelope


@pytest.mark.parametrize("name", PAYLOADS)
def test_msgpack(benchmark, name):
    payload = PAYLOADS[name][1]
    pack, unpack = msgpack.packb, msgpack.unpackb
    benchmark.group = name
    assert benchmark(lambda: unpack(pack(payload))) == payload
