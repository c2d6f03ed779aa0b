"""What it costs to make frames of envelopes and envelopes of frames; no network."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble._core.session import Session
from rabble.bench.messaging import HERE
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.limits import Limits
from rabble.registry import MessageRegistry

__all__ = ["codec"]


@dataclasses.dataclass(frozen=True)
class Order:
    """A typed message, as an application has them."""

    number: int
    item: str
    price: float


#: The node at the other end of the connection, which nobody dials.
THERE = NodeId("there", "127.0.0.1:1")

#: How many envelopes are said before they are taken as bytes, as a busy executor does it.
BATCH = 64

#: How many different messages take turns; and pairs of pids, where there is more than one.
DIFFERENT = 256


def codec(envelopes: int = 100_000) -> list[Case]:
    """Encode and decode small, typed and 1 KiB envelopes between one pair of processes, as they
    cross a connection: frames with pids as indexes, in batches; and small ones between many pairs.

    The limit is msgpack's `packb` and `unpackb` of the payload alone: without pids, and for the
    typed one as a list of its fields.
    """
    registry = MessageRegistry()
    registry.register(Order, "rabble.bench.Order")
    numbers = range(DIFFERENT)
    small = [["add", n] for n in numbers]
    orders = [Order(n, f"lamp {n}", n / 8) for n in numbers]
    fields = [[order.number, order.item, order.price] for order in orders]
    kilobytes = [bytes([n]) * 1024 for n in numbers]
    return [
        case("codec-small", small, small, 1, envelopes, registry, Target(0.6)),
        case("codec-pairs", small, small, DIFFERENT, envelopes, registry, Target(0.6)),
        case("codec-typed", orders, fields, 1, envelopes, registry, Target(0.35)),
        case("codec-1KiB", kilobytes, kilobytes, 1, envelopes, registry, None),
    ]


def case(
    name: str,
    messages: Sequence[Any],
    payloads: Sequence[Any],
    pairs: int,
    envelopes: int,
    registry: MessageRegistry,
    target: Target | None,
) -> Case:
    """Messages, held against their payloads alone."""

    def run() -> Sample:
        writer, reader = session(registry, HERE, THERE), session(registry, THERE, HERE)
        pids = [(Pid(f"counter-{n}", THERE), Pid(f"producer-{n}", HERE)) for n in range(pairs)]
        several = itertools.cycle(
            [
                Envelope(to, msg, sender)
                for msg, (to, sender) in zip(messages, itertools.cycle(pids), strict=False)
            ]
        )
        sizes = [BATCH] * (envelopes // BATCH) + [envelopes % BATCH]
        batches = [list(itertools.islice(several, size)) for size in sizes if size]
        write_all, take, decode = writer.write_all, writer.take_data, reader.decode
        decoded = 0
        start = time.perf_counter()
        for batch in batches:
            write_all(batch)
            results = decode(take())
            decoded += len(results)
        seconds = time.perf_counter() - start
        expect(name, decoded, envelopes)
        if results != batch:
            raise ValueError(f"{name}: {batch[-1]!r} came back as {results[-1]!r}")
        return Sample(decoded, seconds, details={"bytes": len(writer.encode(batch[-1]))})

    def bare() -> Sample:
        pack, unpack = msgpack.packb, msgpack.unpackb
        decoded = 0
        start = time.perf_counter()
        for payload in itertools.islice(itertools.cycle(payloads), envelopes):
            result = unpack(pack(payload))
            decoded += 1
        seconds = time.perf_counter() - start
        expect(f"{name} payload", decoded, envelopes)
        if result != payload:
            raise ValueError(f"{name}: {payload!r} came back as {result!r}")
        return Sample(decoded, seconds, details={"bytes": len(pack(payload))})

    params = {"envelopes": envelopes, "messages": len(messages), "pairs": pairs}
    limit = Limit("msgpack of the payload", bare)
    return Case(name, params, "envelopes/s", run, limit, target)


def session(registry: MessageRegistry, own: NodeId, peer: NodeId) -> Session:
    """One end of a connection."""
    limits = Limits()
    coder = Codec(
        registry,
        message_bytes_max=limits.message_bytes_max,
        depth_max=limits.message_depth_max,
        elements_max=limits.message_elements_max,
    )
    return Session(own, peer, 1, Pid("executor", own, "rabble"), codec=coder)
