"""What it costs to make bytes of an envelope and an envelope of bytes; no network."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgpack

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble.bench.messaging import HERE
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.limits import Limits
from rabble.messages import MessageRegistry

__all__ = ["codec"]


@dataclasses.dataclass(frozen=True)
class Order:
    """A typed message, as an application has them."""

    number: int
    item: str
    price: float


def codec(envelopes: int = 100_000) -> list[Case]:
    """Encode and decode small, typed and 1 KiB envelopes.

    The limit is msgpack's `packb` and `unpackb` of the payload alone: without pids, and for the
    typed one as a list of its fields.
    """
    registry = MessageRegistry()
    registry.register(Order, "rabble.bench.Order")
    order = Order(7, "lamp", 12.5)
    kilobyte = bytes(range(256)) * 4
    return [
        case("codec-small", ["add", 42], ["add", 42], envelopes, registry, Target(0.6)),
        case("codec-typed", order, [7, "lamp", 12.5], envelopes, registry, Target(0.35)),
        case("codec-1KiB", kilobyte, kilobyte, envelopes, registry, None),
    ]


def case(
    name: str,
    msg: Any,
    payload: Any,
    envelopes: int,
    registry: MessageRegistry,
    target: Target | None,
) -> Case:
    """One message, held against its payload alone."""
    envelope = Envelope(Pid("counter", HERE), msg, Pid("producer", HERE))

    def run() -> Sample:
        limits = Limits()
        coder = Codec(
            registry,
            message_bytes_max=limits.message_bytes_max,
            depth_max=limits.message_depth_max,
            elements_max=limits.message_elements_max,
        )
        encode, decode = coder.encode_envelope, coder.decode_envelope
        decoded = 0
        start = time.perf_counter()
        for _ in range(envelopes):
            result = decode(encode(envelope))
            decoded += 1
        seconds = time.perf_counter() - start
        expect(name, decoded, envelopes)
        if result.msg != msg or result.to != envelope.to or result.sender != envelope.sender:
            raise ValueError(f"{name}: {envelope!r} came back as {result!r}")
        return Sample(decoded, seconds, details={"bytes": len(encode(envelope))})

    def bare() -> Sample:
        pack, unpack = msgpack.packb, msgpack.unpackb
        decoded = 0
        start = time.perf_counter()
        for _ in range(envelopes):
            result = unpack(pack(payload))
            decoded += 1
        seconds = time.perf_counter() - start
        expect(f"{name} payload", decoded, envelopes)
        if result != payload:
            raise ValueError(f"{name}: {payload!r} came back as {result!r}")
        return Sample(decoded, seconds, details={"bytes": len(pack(payload))})

    limit = Limit("msgpack of the payload", bare)
    return Case(name, {"envelopes": envelopes}, "envelopes/s", run, limit, target)
