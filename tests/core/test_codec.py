"""The codec: what goes in comes out, strangers' bytes do no harm, and msgpack reads it too."""

from __future__ import annotations

import enum
import gc
import math
import struct
import subprocess
import sys
import threading
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.codec import Codec, DecodeError, DecodeLimitError, EncodeError
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import MessageRegistry, message
from tests.reference import codec as reference

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


@message(name="Positive", registry=REGISTRY)
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
#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")

numbers = st.none() | st.integers(0, 2**63 - 1)
names = st.text("abcxyz0189-_é", min_size=1, max_size=40)
nodes = st.builds(NodeId, names, st.sampled_from(["127.0.0.1:1", "[::1]:65535", "host:80"]))
pids = st.builds(Pid, names, nodes, st.none() | names)
cids = st.builds(CorrelationId, pids, numbers, numbers)
plain_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from([b"x" * 255, b"x" * 256, b"x" * 65536, "y" * 31, "y" * 32, "y" * 65536])
)
scalars = plain_scalars | nodes | pids | cids | st.sampled_from(Colour) | st.just(Empty())


def nested(leaves, *more):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=20),
            st.dictionaries(st.text(max_size=40), inner, max_size=20),
            *(build(inner) for build in more),
        ),
        max_leaves=30,
    )


plain = nested(plain_scalars)
values = nested(scalars, lambda inner: st.builds(Order, st.integers(0, 9), inner, st.just(0.5)))
envelopes = st.builds(Envelope, pids, values, st.none() | pids, st.none() | cids)


@given(values)
def test_what_goes_in_comes_out(value):
    data = CODEC.encode_message(value)
    assert data == reference.encode(REGISTRY, value)
    back = CODEC.decode_message(data)
    assert back == value
    assert type(back) is type(value)
    assert reference.decode(REGISTRY, data) == value


@given(envelopes)
def test_envelopes_come_out_of_any_codec(envelope):
    data = CODEC.encode_envelope(envelope)
    assert data == reference.encode_envelope(REGISTRY, envelope)
    assert CODEC.decode_envelope(data) == envelope
    assert Codec(REGISTRY).decode_envelope(data) == envelope


@given(plain)
def test_msgpack_reads_and_writes_the_same(value):
    assert msgpack.unpackb(CODEC.encode_message(value)) == value
    assert CODEC.decode_message(msgpack.packb(value)) == value
    assert CODEC.encode_message(value) == msgpack.packb(value)


@given(st.binary(max_size=80))
def test_any_bytes_decode_as_in_the_reference(data):
    try:
        expected = reference.decode(REGISTRY, data)
    except (ValueError, RecursionError):
        with pytest.raises(DecodeError):
            CODEC.decode_message(data)
    else:
        assert repr(CODEC.decode_message(data)) == repr(expected)


@given(values, st.data())
def test_damaged_bytes_decode_as_in_the_reference(value, draw):
    data = bytearray(CODEC.encode_message(value)[:200])
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] = draw.draw(st.integers(0, 255))
    test_any_bytes_decode_as_in_the_reference.hypothesis.inner_test(bytes(data))


@given(envelopes, st.data())
def test_cut_envelopes_are_refused(envelope, draw):
    data = CODEC.encode_envelope(envelope)
    with pytest.raises(DecodeError):
        CODEC.decode_envelope(data[: draw.draw(st.integers(0, len(data) - 1))])


def test_tuples_arrive_as_lists_and_nan_stays():
    assert CODEC.decode_message(CODEC.encode_message((1, (2,)))) == [1, [2]]
    assert math.isnan(CODEC.decode_message(CODEC.encode_message(math.nan)))
    assert CODEC.decode_message(b"\xca" + struct.pack(">f", 0.5)) == 0.5


def test_an_object_in_the_way_of_a_pid_is_refused():
    for parts in ([1, None, None, 0], [PID, 1, None, 0], [PID, None, 1, 0]):
        data = b"\x94" + b"".join(CODEC.encode_message(part) for part in parts)
        with pytest.raises(DecodeError):
            CODEC.decode_envelope(data)


# FAULTS row 16.
@pytest.mark.parametrize(
    "data",
    [bytes([tag]) + b"\xff" * 4 for tag in (0xDD, 0xDF, 0xDB, 0xC6)] + [b"\xc9" + b"\xff" * 4],
)
def test_announced_sizes_allocate_nothing(data):
    for tail in (b"", b"\x01"):
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError) as caught:
                CODEC.decode_message(data + tail)
            assert tracemalloc.get_traced_memory()[1] < 20_000
        finally:
            tracemalloc.stop()
        if data[0] != 0xC9 or tail:
            assert caught.type is DecodeLimitError


# FAULTS row 17. Each header claims all that is left: together they may claim it only once.
def test_nested_claims_share_what_is_left():
    size = 65_536
    deep = Codec(REGISTRY, depth_max=256, elements_max=1 << 30)
    data = b"".join(b"\xdc" + struct.pack(">H", size - 3 * i - 3) for i in range(1000))
    data = data.ljust(size, b"\xc0")
    tracemalloc.start()
    try:
        with pytest.raises(DecodeLimitError):
            deep.decode_message(data)
        assert tracemalloc.get_traced_memory()[1] <= 8 * size + 10_000
    finally:
        tracemalloc.stop()


# FAULTS row 18, and the encoding side of it.
DEEP = """
import threading
from rabble._core.codec import Codec, DecodeLimitError, EncodeError
from rabble.registry import MessageRegistry

def check():
    for depth in (64, 256):
        codec = Codec(MessageRegistry(), depth_max=depth)
        for data in (b"\\x91" * 100_000, b"\\x81\\xa1k" * 100_000):
            try:
                codec.decode_message(data)
            except DecodeLimitError:
                pass
            else:
                raise AssertionError
        assert codec.decode_message(b"\\x91" * (depth - 1) + b"\\x90")
        value = []
        for _ in range(2_000):
            value = [value]
        try:
            codec.encode_message(value)
        except EncodeError:
            pass
        else:
            raise AssertionError

check()
threading.stack_size(256 * 1024)
results = []
thread = threading.Thread(target=lambda: results.append(check()))
thread.start()
thread.join()
assert results == [None]
print("survived")
"""


def test_depth_is_refused_on_a_small_stack_too():
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


# FAULTS row 19.
def test_a_million_empty_maps_exceed_the_budget():
    with pytest.raises(DecodeLimitError, match="65536 elements"):
        CODEC.decode_message(b"\xdd" + struct.pack(">I", 1_000_000) + b"\x80" * 1_000_000)
    many = b"\xdc\xff\xff" + b"\x80" * 65_534 + b"\x92\xc0\xc0"
    with pytest.raises(DecodeLimitError):
        CODEC.decode_message(many)
    with pytest.raises(EncodeError, match="65536 elements"):
        CODEC.encode_message([None] * 65_537)
    assert len(CODEC.decode_message(CODEC.encode_message([None] * 65_536))) == 65_536


@pytest.mark.parametrize(
    ("row", "data"),
    [
        (20, b"\xc1"),
        (20, b"\x91\xc1"),
        (22, b"\xc0\xc0"),
        (22, b"\x90\x00"),
        (23, b"\xd4\x06\x00"),
        (23, b"\xd4\x00\x00"),
        (23, b"\xd6\xff\x00\x00\x00\x00"),
        (23, b"\xd7\xff" + struct.pack(">Q", 1_000_000_000 << 34)),
        (23, b"\xc7\x0c\xff" + struct.pack(">Iq", 1_000_000_000, 0)),
        (24, b"\x81\x01\x01"),
        (24, b"\x81\xc0\x01"),
        (24, b"\x81\xc4\x01a\x01"),
        (25, b"\x82\xa1a\x01\xa1a\x02"),
        (25, b"\x82\xa1a\x01\xd9\x01a\x02"),
        (29, b"\xc7\x0b\x01\xa9os.system\x90"),
        (29, b"\xc7\x0b\x02\xa9os.system\x01"),
        (29, b"\xc7\x03\x01\xa1\xff\x90"),
    ],
)
def test_bad_bytes_are_refused(row, data):
    with pytest.raises(DecodeError):
        CODEC.decode_message(data)


def test_unknown_names_import_nothing():
    name = b"xml.dom.pulldom.PullDOM"
    sys.modules.pop("xml.dom.pulldom", None)
    with pytest.raises(DecodeError, match="xml.dom.pulldom.PullDOM"):
        CODEC.decode_message(bytes([0xC7, len(name) + 2, 1, 0xA0 | len(name)]) + name + b"\x90")
    assert "xml.dom.pulldom" not in sys.modules


def ext(code, *parts):
    body = b"".join(CODEC.encode_message(part) for part in parts)
    return bytes([0xC7, len(body), code]) + body


@pytest.mark.parametrize(
    "data",
    [
        ext(1, "Order", [1, 2]),
        ext(1, "Order", 1),
        ext(1, "Order", [1, 2, 3], 4),
        ext(1, "Colour", [1]),
        ext(1, 1, [1]),
        ext(1),
        ext(1, "Positive", [0]),
        ext(1, "Positive", ["x"]),
        ext(2, "Order", 1),
        ext(2, "Colour", 2),
        ext(2, "Colour", True),
        ext(2, "Colour", [1]),
        ext(2, "Colour"),
        ext(2, 1),
        ext(3, 1),
        b"\xc7\x01\x03\xff",
        b"\xc7\x01\x04\xff",
        b"\xc7\x01\x04a",
        ext(5, "no pid", None, None),
        ext(5, str(PID), -1, None),
        ext(5, str(PID), "x", None),
        ext(5, 1, None, None),
        ext(5, str(PID), None),
        b"\xa2\xff\xff",
        b"\xa3\xed\xa0\x80",
        b"\x81\xa2\xff\xff\x01",
        b"\x81",
        b"\x81\xd9",
        b"\xcd\x01",
        b"\xd4",
        b"\xdc\x00",
        b"",
    ],
)
def test_what_is_no_such_thing_is_refused(data):
    with pytest.raises(DecodeError):
        CODEC.decode_message(data)


class Int(int):
    pass


def looped():
    value = []
    value.append(value)
    return value


# FAULTS row 27, the codec's part.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**64, "65 bits"),
        (-(2**63) - 1, "64 bits"),
        ({1}, "sorted list"),
        (frozenset(), "sorted list"),
        (object(), "@rabble.message"),
        (bytearray(b"x"), "bytes"),
        (Int(1), "subclass of int"),
        (len, "functions do not travel"),
        (int, "functions do not travel"),
        ({1: 2}, "str keys"),
        ({"a": {(1,): 2}}, "str keys"),
        (looped(), "contains itself"),
        ("\ud800", "lone surrogates"),
        ({"\ud800": 1}, "lone surrogates"),
        (Order.__new__(Order), "never set"),
        (Order(1, {2}, 3.0), "sorted list"),
    ],
)
def test_what_cannot_be_encoded_says_why(value, text):
    with pytest.raises(EncodeError, match=text):
        CODEC.encode_message(value)
    with pytest.raises(EncodeError, match=text):
        CODEC.encode_envelope(Envelope(PID, [value]))
    assert CODEC.decode_message(CODEC.encode_message([1])) == [1]


def test_size_is_bounded_both_ways():
    codec = Codec(REGISTRY, message_bytes_max=2_000)
    assert codec.decode_message(codec.encode_message(b"x" * 1_997)) == b"x" * 1_997
    for value in (b"x" * 1_998, b"x" * 10_000, ["y" * 100] * 20):
        with pytest.raises(EncodeError, match="2000 bytes"):
            codec.encode_message(value)
    with pytest.raises(DecodeLimitError, match="2000"):
        codec.decode_message(CODEC.encode_message(b"x" * 1_998))
    with pytest.raises(DecodeLimitError, match="2000"):
        codec.decode_envelope(CODEC.encode_envelope(Envelope(PID, b"x" * 2_000)))


@pytest.mark.parametrize(
    "bounds",
    [{"depth_max": 0}, {"depth_max": 257}, {"elements_max": True}, {"message_bytes_max": 1.5}],
)
def test_bounds_are_checked(bounds):
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Codec(REGISTRY, **bounds)


def test_long_pids_and_long_messages():
    pid = Pid("n" * 255, NodeId("m" * 255, "127.0.0.1:1"), "g" * 255)
    for value in (pid, CorrelationId(pid, 1, 2), Order(1, "x" * 300, 2.0), [Order(1, pid, 1.0)]):
        assert CODEC.decode_message(CODEC.encode_message(value)) == value


def test_more_pids_and_strings_than_the_caches_hold():
    for _ in range(2):
        for i in range(2_000):
            msg = {f"key{i}": [f"text{i}", f"tëxt{i}", f"te\0xt{i}", str(i), "always"]}
            envelope = Envelope(Pid(f"p{i}", NODE), msg, PID)
            assert CODEC.decode_envelope(CODEC.encode_envelope(envelope)) == envelope


# FAULTS row 130: names of classes and of enums, keys, texts and pids.
@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_what_never_comes_again_is_not_remembered(count):
    registry = MessageRegistry()
    codec = Codec(registry)

    def flood(numbers):
        for n in numbers:
            for code, rest in ((1, b"\x90"), (2, b"\x01")):
                name = CODEC.encode_message(f"Type-{n}")
                body = bytes([0xC7, len(name) + 1, code]) + name + rest
                try:
                    codec.decode_message(body)
                except DecodeError as error:
                    assert "no class is registered" in str(error)
                else:
                    pytest.fail(f"{name!r} was decoded")
            codec.decode_message(CODEC.encode_message([f"text-{n}", Pid(f"pid-{n}", NODE)]))
        # All the keys at once: none of them outlives its map.
        for start in range(numbers.start, numbers.stop, 5_000):
            keys = {f"key-{n}": None for n in range(start, start + 5_000)}
            assert codec.decode_message(CODEC.encode_message(keys)) == keys

    # The caches are full after these, and so are those of CODEC.
    flood(range(5_000))
    gc.collect()
    blocks = sys.getallocatedblocks()
    flood(range(5_000, 5_000 + count))
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2_000
    assert registry.plans_by_name == registry.plans_by_class == {}


def test_classes_may_be_registered_later_and_replaced():
    registry = MessageRegistry()
    codec = Codec(registry)

    def declare(default):
        @message(name="Late", registry=registry)
        class Late:
            n: int = default

        return Late

    first = declare(1)
    data = codec.encode_message(first())
    assert type(codec.decode_message(data)) is first
    second = declare(2)
    assert type(codec.decode_message(data)) is second
    assert codec.encode_message(second(1)) == data
    with pytest.raises(EncodeError):
        codec.encode_message(first())


def test_post_init_runs_at_the_receiver():
    assert CODEC.decode_message(CODEC.encode_message(Positive(3))) == Positive(3)
    with pytest.raises(DecodeError, match="0 is not positive"):
        CODEC.decode_message(ext(1, "Positive", [0]))


def test_structs_travel():
    msgspec = pytest.importorskip("msgspec")
    registry = MessageRegistry()
    point = msgspec.defstruct("Point", [("x", int), ("y", int)], frozen=True)
    registry.register(point, "Point")
    codec = Codec(registry)
    assert codec.decode_message(codec.encode_message([point(1, 2)])) == [point(1, 2)]


def test_several_threads_share_a_codec():
    wrong = []

    def work(n):
        for i in range(2_000):
            value = [n, i, "x" * (i % 50)]
            if CODEC.decode_message(CODEC.encode_message(value)) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_leaks():
    value = [Order(1, {"k": Colour.RED}, 2.0), PID, CorrelationId(PID, 1, 2), Empty()]
    bad = CODEC.encode_message([Order(1000, [10**9], 2.0)])[:-1]

    def work():
        for _ in range(2_000):
            CODEC.decode_message(CODEC.encode_message(value))
            with pytest.raises(DecodeError):
                CODEC.decode_message(bad)

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500
