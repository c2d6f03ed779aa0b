"""The codec against msgspec and msgpack, which have the payload alone to encode and decode."""

from __future__ import annotations

import pytest

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble.bench import structs
from rabble.bench.codec import msgpack_of, msgspec_of
from rabble.bench.typed import KINDS, REGISTRY, SHAPES, plain
from rabble.bench.values import EVERYDAY, from_extension, to_extension

NODE = NodeId("local", "127.0.0.1:4000")

PLAIN = {"small": {"n": 1, "op": "inc"}, "int": 7, "1KiB": b"x" * 1024}
TYPED = {
    f"{kind.name}-{shape}": (make(kind, 7), make(structs.KIND, 7))
    for kind in (*KINDS, structs.KIND)
    for shape, make in SHAPES
}
VALUES = {name: (make(7), types) for name, make, types in EVERYDAY}


@pytest.mark.parametrize("name", [*PLAIN, *TYPED, *VALUES])
def test_envelope(benchmark, name):
    message = PLAIN[name] if name in PLAIN else {**TYPED, **VALUES}[name][0]
    codec = Codec(REGISTRY)
    envelope = Envelope(Pid("counter", NODE), message, Pid("client", NODE))
    encode, decode = codec.encode_envelope, codec.decode_envelope
    benchmark.group = name
    assert benchmark(lambda: decode(encode(envelope))) == envelope


def rival(benchmark, name, encode, decode, payload):
    benchmark.group = name
    assert benchmark(lambda: decode(encode(payload))) == payload


@pytest.mark.parametrize("name", [*PLAIN, *TYPED, *VALUES])
def test_msgspec(benchmark, name):
    if name in PLAIN:
        payload, types = PLAIN[name], type(PLAIN[name])
    elif name in TYPED:
        payload, types = TYPED[name][1], type(TYPED[name][1])
    else:
        payload, types = VALUES[name]
    encode, decode, _ = msgspec_of([payload], types)
    rival(benchmark, name, encode, decode, payload)


@pytest.mark.parametrize("name", [*PLAIN, *TYPED, *VALUES])
def test_msgpack(benchmark, name):
    if name in VALUES:
        payload = VALUES[name][0]
        encode, decode, _ = msgpack_of([payload], to_extension, from_extension)
    else:
        payload = PLAIN[name] if name in PLAIN else fields_of(name)
        encode, decode, _ = msgpack_of([payload])
    rival(benchmark, name, encode, decode, payload)


def fields_of(name):
    """A typed message as lists; every kind has the same fields."""
    return plain(dict(SHAPES)[name.rpartition("-")[2]](KINDS[0], 7))
