"""What it costs to make frames of envelopes and envelopes of frames; no network."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgpack

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import NodeId, Pid
from rabble._core.session import Session
from rabble.bench.messaging import HERE
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.bench.typed import KINDS, REGISTRY, SHAPES, Kind, has_msgspec, plain
from rabble.limits import Limits

__all__ = ["against", "codec", "msgpack_of", "msgspec_of", "session"]

#: The node at the other end of the connection, which nobody dials.
THERE = NodeId("there", "127.0.0.1:1")

#: How many envelopes are said before they are taken as bytes, as a busy executor does it.
BATCH = 64

#: How many different messages take turns; and pairs of pids, where there is more than one.
DIFFERENT = 256

UNIT = "envelopes/s"


def codec(envelopes: int = 100_000) -> list[Case]:
    """Encode and decode small, 1 KiB and typed envelopes between one pair of processes, as they
    cross a connection: frames with pids as indexes, in batches; and small ones between many pairs.

    The limit is a kept encoder and decoder of msgspec, of the payload alone, without pids; for a
    typed one that of the same fields in a `msgspec.Struct`, whose types the decoder checks. Beside
    it is msgpack's kept `Packer` with `unpackb`, of a typed one as lists of its fields. Ten fields
    are held against a dict of them, too.
    """
    numbers = range(DIFFERENT)
    small = [["add", n] for n in numbers]
    kilobytes = [bytes([n]) * 1024 for n in numbers]
    cases = [
        against("codec-small", small, 1, envelopes, payload_rivals(small), Target(1.0)),
        against("codec-pairs", small, DIFFERENT, envelopes, payload_rivals(small), None),
        against("codec-1KiB", kilobytes, 1, envelopes, payload_rivals(kilobytes), None),
    ]
    struct = importlib.import_module("rabble.bench.structs").KIND if has_msgspec() else None
    kinds = KINDS if struct is None else (*KINDS, struct)
    for kind, (shape, make) in itertools.product(kinds, SHAPES):
        messages = [make(kind, n) for n in numbers]
        rivals = typed_rivals(make, struct)
        name = f"codec-{kind.name}-{shape}"
        cases.append(against(name, messages, 1, envelopes, rivals, Target(0.6)))
        if shape == "10":
            cases.append(against_dict(name, messages, envelopes))
    return cases


#: What another library makes of payloads: how it encodes and decodes them, and which they are.
Rival = tuple[Callable[[Any], bytes], Callable[[bytes], Any], Sequence[Any]]


def msgspec_of(payloads: Sequence[Any], types: Any = Any) -> Rival:
    """A kept encoder and decoder, the decoder with the payloads' types."""
    coders: Any = importlib.import_module("msgspec.msgpack")
    return coders.Encoder().encode, coders.Decoder(types).decode, payloads


def msgpack_of(
    payloads: Sequence[Any],
    default: Callable[[Any], Any] | None = None,
    ext_hook: Callable[[int, bytes], Any] = msgpack.ExtType,
) -> Rival:
    """A kept packer, and the function that unpacks: an `Unpacker` is for streams."""
    packer = msgpack.Packer(default=default, strict_types=default is not None)
    unpack = msgpack.unpackb
    if default is None:
        return packer.pack, unpack, payloads
    return packer.pack, lambda data: unpack(data, ext_hook=ext_hook, strict_map_key=False), payloads


def payload_rivals(payloads: Sequence[Any]) -> dict[str, Rival]:
    """Of payloads that both libraries take as they are; the first is the limit."""
    rivals = {"msgpack": msgpack_of(payloads)}
    return {"msgspec": msgspec_of(payloads), **rivals} if has_msgspec() else rivals


def typed_rivals(make: Callable[[Kind, int], Any], struct: Kind | None) -> dict[str, Rival]:
    """Of the same fields in structs, and in lists."""
    numbers = range(DIFFERENT)
    rivals = {"msgpack": msgpack_of([plain(make(KINDS[0], n)) for n in numbers])}
    if struct is None:
        return rivals
    structs = [make(struct, n) for n in numbers]
    return {"msgspec": msgspec_of(structs, type(structs[0])), **rivals}


def against(
    name: str,
    messages: Sequence[Any],
    pairs: int,
    envelopes: int,
    rivals: Mapping[str, Rival],
    target: Target | None,
) -> Case:
    """Messages in envelopes, held against their payloads alone in other libraries."""
    (first, limit), *others = (
        (whose, rival_run(f"{name} {whose}", rival, envelopes)) for whose, rival in rivals.items()
    )
    return Case(
        name,
        {"envelopes": envelopes, "messages": len(messages), "pairs": pairs},
        UNIT,
        envelope_run(name, messages, pairs, envelopes),
        Limit(f"{first} of the payload", limit),
        target,
        beside=dict(others),
    )


def against_dict(name: str, messages: Sequence[Any], envelopes: int) -> Case:
    """Ten fields, held against a dict of them that goes the same way."""
    fields = type(messages[0]).__annotations__
    dicts = [{field: getattr(msg, field) for field in fields} for msg in messages]
    return Case(
        f"{name}-dict",
        {"envelopes": envelopes, "messages": len(messages), "pairs": 1},
        UNIT,
        envelope_run(name, messages, 1, envelopes),
        Limit("a dict of the fields", envelope_run(f"{name} as dict", dicts, 1, envelopes)),
        Target(0.5),
    )


def envelope_run(
    name: str, messages: Sequence[Any], pairs: int, envelopes: int
) -> Callable[[], Sample]:
    """A run of rabble's codec."""

    def run() -> Sample:
        writer, reader = session(HERE, THERE), session(THERE, HERE)
        pids = [(Pid(f"counter-{n}", THERE), Pid(f"producer-{n}", HERE)) for n in range(pairs)]
        several = [
            Envelope(to, msg, sender)
            for msg, (to, sender) in zip(messages, itertools.cycle(pids), strict=False)
        ]
        prepared = batches(several, envelopes)
        write_all, take, decode = writer.write_all, writer.take_data, reader.decode
        decoded = 0
        start = time.perf_counter()
        for batch in prepared:
            write_all(batch)
            results = decode(take())
            decoded += len(results)
        seconds = time.perf_counter() - start
        expect(name, decoded, envelopes)
        if results != batch:
            raise ValueError(f"{name}: {batch[-1]!r} came back as {results[-1]!r}")
        return Sample(decoded, seconds, details={"bytes": len(writer.encode(batch[-1]))})

    return run


def rival_run(name: str, rival: Rival, envelopes: int) -> Callable[[], Sample]:
    """A run of another library, in the same batches; the loop over each is `map`'s, in C."""
    encode, decode, payloads = rival

    def run() -> Sample:
        prepared = batches(payloads, envelopes)
        decoded = 0
        start = time.perf_counter()
        for batch in prepared:
            results = list(map(decode, map(encode, batch)))
            decoded += len(results)
        seconds = time.perf_counter() - start
        expect(name, decoded, envelopes)
        if results != batch:
            raise ValueError(f"{name}: {batch[-1]!r} came back as {results[-1]!r}")
        return Sample(decoded, seconds, details={"bytes": len(encode(batch[-1]))})

    return run


def batches(values: Iterable[Any], count: int) -> list[list[Any]]:
    """So many values, each in its turn, in lists of `BATCH` and a rest."""
    several = itertools.cycle(values)
    sizes = [BATCH] * (count // BATCH) + [count % BATCH]
    return [list(itertools.islice(several, size)) for size in sizes if size]


def session(own: NodeId, peer: NodeId) -> Session:
    """One end of a connection."""
    limits = Limits()
    coder = Codec(
        REGISTRY,
        message_bytes_max=limits.message_bytes_max,
        depth_max=limits.message_depth_max,
        elements_max=limits.message_elements_max,
        decoded_bytes_max=limits.message_decoded_bytes_max,
    )
    return Session(own, peer, 1, Pid("executor", own, "rabble"), codec=coder)
