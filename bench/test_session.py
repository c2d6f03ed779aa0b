"""What crosses a connection, against msgpack, which has the payloads alone to pack and unpack.

`test_codec` has every shape of message; here it is the frames that are looked at.
"""

from __future__ import annotations

import msgpack
import pytest

from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.session import Session
from rabble.registry import MessageRegistry, message

REGISTRY = MessageRegistry()
HERE = NodeId("here", "127.0.0.1:4000")
THERE = NodeId("there", "127.0.0.1:4001")
BATCH = 64


@message(name="Order", registry=REGISTRY)
class Order:
    id: int
    item: str
    price: float


#: Message, payload, pairs of pids, whether there is a correlation id.
CASES = {
    "small": (["add", 7], ["add", 7], 1, False),
    "pairs": (["add", 7], ["add", 7], 256, False),
    "request": (["add", 7], ["add", 7], 1, True),
    "typed": (Order(1, "apple", 2.5), [1, "apple", 2.5], 1, False),
    "1KiB": (b"x" * 1024, b"x" * 1024, 1, False),
    "1MiB": (b"x" * (1 << 20), b"x" * (1 << 20), 1, False),
}


def session(own: NodeId, peer: NodeId) -> Session:
    return Session(own, peer, 1, Pid("executor", own, "rabble"), codec=Codec(REGISTRY))


@pytest.mark.parametrize("name", CASES)
def test_link(benchmark, name):
    msg, _, pairs, asks = CASES[name]
    writer, listener = session(HERE, THERE), session(THERE, HERE)
    batch = []
    for n in range(max(BATCH, pairs)):
        to, sender = Pid(f"to-{n % pairs}", THERE), Pid(f"from-{n % pairs}", HERE)
        batch.append(Envelope(to, msg, sender, CorrelationId(sender, None, n) if asks else None))

    def cross():
        writer.write_all(batch)
        return listener.decode(writer.take_data() + writer.take_bulk())

    benchmark.group = name
    assert benchmark(cross) == batch


@pytest.mark.parametrize("name", CASES)
def test_msgpack(benchmark, name):
    payloads = [CASES[name][1]] * max(BATCH, CASES[name][2])
    pack, unpack = msgpack.Packer().pack, msgpack.unpackb
    benchmark.group = name
    assert benchmark(lambda: [unpack(pack(payload)) for payload in payloads]) == payloads
