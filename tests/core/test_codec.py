"""The codec: what goes in comes out, strangers' bytes do no harm, and msgpack reads it too."""

from __future__ import annotations

import dataclasses
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

from rabble._core import codec as codec_module
from rabble._core import decoder as decoder_module
from rabble._core import encoder as encoder_module
from rabble._core import frame_decoder as frame_decoder_module
from rabble._core import frame_encoder as frame_encoder_module
from rabble._core import plan as plan_module
from rabble._core import session as session_module
from rabble._core.codec import Codec, DecodeError, DecodeLimitError, EncodeError
from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.texts import Interrupted
from rabble.registry import MessageRegistry, Registration, message
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


# Each header claims all that is left: together they may claim it only once.
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


# Nesting without end, decoded and encoded, in a thread with little stack.
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


# The codec's part.
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


# Names of classes and of enums, keys, texts and pids.
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


# What a user's code does while the codec looks at its objects. On a build of `asan` what is used
# after its end is a finding by itself.


def declared(registry, **attributes):
    """A registered class without slots, whose fields are what `__getattribute__` makes of them."""

    @dataclasses.dataclass(frozen=True)
    class Meddler:
        field: object = None

        def __getattribute__(self, name):
            return attributes[name]()

    registry.register(Meddler, "Meddler")
    return Meddler


def test_what_a_property_replaces_is_written_to_its_end():
    registry = MessageRegistry()

    @message(name="Outer", registry=registry)
    class Outer:
        first: object
        then: object

    def replace():
        object.__setattr__(outer, "first", None)
        listed[1] = None
        mapped["also"] = None
        return 7

    meddler = declared(registry, field=replace)
    listed, mapped = [[meddler(), 1], ["x" * 40]], {"k": [meddler(), 2], "also": "y" * 40}
    outer = Outer([meddler(), ["z" * 40] * 20], [listed, mapped])
    data = Codec(registry).encode_message(outer)
    back = Codec(MessageRegistry()).decode_message
    with pytest.raises(DecodeError):
        back(data)
    # The slot's old value was written whole, what was changed before its turn as it then was.
    meddled = ext(1, "Meddler", [7])
    assert data[-len(reference.encode(registry, {"also": None})[1:]) :].endswith(b"also\xc0")
    assert data.count(meddled) == 3
    assert data.count(b"z" * 40) == 20
    assert b"x" * 40 not in data and b"y" * 40 not in data


def test_a_dict_that_grows_with_each_look_has_an_end():
    registry = MessageRegistry()
    looks = []

    def grow():
        looks.append(0)
        mapped[f"k{len(looks)}"] = meddler()
        return 1

    meddler = declared(registry, field=grow)
    mapped = {"k": meddler()}
    with pytest.raises(EncodeError, match="changed its size"):
        Codec(registry).encode_message(mapped)
    assert len(looks) == 1
    mapped = {"first" + "x" * 100: meddler(), "second" + "x" * 100: 1}
    looks[:] = [0] * 10

    def clear():
        mapped.clear()
        return 1

    declared_again = declared(MessageRegistry(), field=clear)
    registry = MessageRegistry()
    registry.register(declared_again, "Clears")
    mapped = {"first" + "x" * 100: declared_again(), "second" + "x" * 100: 1}
    with pytest.raises(EncodeError, match="changed its size"):
        Codec(registry).encode_message(mapped)


def test_classes_that_are_registered_meanwhile():
    registry = MessageRegistry()

    def register():
        name = f"New{len(registry)}"
        registry.register(
            type(name, (enum.Enum,), enum.EnumType.__prepare__(name, (enum.Enum,))), name
        )
        return Colour.RED

    meddler = declared(registry, field=register)
    registry.register(Colour, "Colour")
    codec = Codec(registry)
    expected = [ext(1, "Meddler", [Colour.RED])]
    assert codec.encode_message([meddler()] * 3) == b"\x93" + expected[0] * 3
    assert len(registry) == 5
    assert codec.encode_message([meddler()]) == b"\x91" + expected[0]


@pytest.mark.parametrize("error", [SystemExit, KeyError, MemoryError, GeneratorExit])
def test_what_a_property_raises_comes_out_as_it_is(error):
    registry = MessageRegistry()

    def fail():
        raise error("no")

    meddler = declared(registry, field=fail)
    codec = Codec(registry)
    for value in (meddler(), [meddler()], {"k": meddler()}):
        with pytest.raises(error, match="no"):
            codec.encode_message(value)
    assert codec.decode_message(codec.encode_message([1])) == [1]


@pytest.mark.parametrize("error", [SystemExit, KeyError, MemoryError, GeneratorExit])
def test_whatever_a_constructor_raises_it_refuses(error):
    registry = MessageRegistry()

    @message(name="Fails", registry=registry)
    class Fails:
        n: int

        def __post_init__(self):
            raise error("x" * 1_000_000)

    with pytest.raises(DecodeError, match=f"Fails refuses: {error.__name__}: '?x+") as caught:
        Codec(registry).decode_message(ext(1, "Fails", [1]))
    assert len(str(caught.value)) < 1_000


def test_an_interruption_is_nobodys_failure():
    registry = MessageRegistry()

    @message(name="Ends", registry=registry)
    class Ends:
        def __post_init__(self):
            raise Interrupted

    with pytest.raises(Interrupted):
        Codec(registry).decode_message(ext(1, "Ends", []))


class Equal(type):
    """Its classes are all equal, and have one hash."""

    def __eq__(cls, other):
        return True

    def __hash__(cls):
        return 7


class Unhashable(type):
    __hash__ = None  # type: ignore[assignment]


class Raising(type):
    """Once the class is declared, which compares it."""

    declared = False

    def __hash__(cls):
        if Raising.declared:
            raise SystemExit(cls.__name__)
        return 7

    def __eq__(cls, other):
        return hash(cls) == 7


def test_classes_that_say_they_are_equal_are_told_apart():
    """By another class's plan memory would be read that the instance does not have."""
    registry = MessageRegistry()

    class Wide(metaclass=Equal):
        fields = [f"f{n}" for n in range(200)]
        __annotations__ = dict.fromkeys(fields, int)

    del Wide.fields
    wide = message(name="Wide", registry=registry)(Wide)

    class Thin(metaclass=Equal):
        __slots__ = ()

    codec = Codec(registry)
    one = wide(*range(200))
    expected = reference.extension(
        1, CODEC.encode_message("Wide") + CODEC.encode_message(list(range(200)))
    )
    assert codec.encode_message(one) == expected
    assert Thin not in registry
    with pytest.raises(EncodeError, match="a Thin cannot be in a message"):
        codec.encode_message(Thin())
    assert codec.encode_message(one) == expected


@pytest.mark.parametrize("metaclass", [Unhashable, Raising, Equal])
def test_a_class_of_any_metaclass_travels_or_is_refused(metaclass, monkeypatch):
    registry = MessageRegistry()

    @message(name="Odd", registry=registry)
    class Odd(metaclass=metaclass):
        n: int

    class Unknown(metaclass=metaclass):
        pass

    monkeypatch.setattr(Raising, "declared", True)
    codec = Codec(registry)
    for _ in range(2):
        data = codec.encode_message([Odd(1), Odd(2)])
        assert data == b"\x92" + ext(1, "Odd", [1]) + ext(1, "Odd", [2])
        assert [odd.n for odd in codec.decode_message(data)] == [1, 2]
        with pytest.raises(EncodeError, match="an? Unknown cannot be in a message"):
            codec.encode_message(Unknown())
    # ... also where an enum's value should be.
    with pytest.raises(DecodeError, match="no member of that value"):
        codec_of(registry).decode_message(reference.extension(2, b"\xa6Colour" + data[1:13]))


def codec_of(registry):
    registry.register(Colour, "Colour")
    return Codec(registry)


def test_an_object_that_lies_about_its_class_is_refused_all_the_same():
    class Liar:
        @property
        def __class__(self):
            raise SystemExit("asked")

    class Name(str):
        __slots__ = ()

    for value, text in ((Liar(), "a Liar cannot"), (Name("x"), "it is a subclass of str")):
        with pytest.raises(EncodeError, match=text):
            CODEC.encode_message(value)
    with pytest.raises(EncodeError, match="a dict's key is a Liar"):
        CODEC.encode_message({Liar(): 1})


def test_a_slot_of_another_class_is_none():
    """Its offset lies behind the end of the instance."""
    registry = MessageRegistry()

    class Wide:
        __slots__ = tuple(f"f{n}" for n in range(200))

    @message(name="Thin", registry=registry)
    class Thin:
        n: int
        m: int

    one = Thin(1, 2)
    Thin.m = Wide.f199
    codec = Codec(registry)
    with pytest.raises(TypeError, match="f199"):
        codec.encode_message(one)
    with pytest.raises(DecodeError, match="refuses: TypeError"):
        codec.decode_message(ext(1, "Thin", [1, 2]))


def test_two_names_of_one_slot_and_a_slot_that_hides_another():
    registry = MessageRegistry()

    @message(name="Twin", registry=registry)
    class Twin:
        a: object
        b: object

    Twin.b = Twin.a
    codec = Codec(registry)
    assert codec.encode_message(Twin(1, 2)) == ext(1, "Twin", [2, 2])
    data = ext(1, "Twin", [[1], [2]])

    def build():
        for _ in range(1_000):
            assert codec.decode_message(data).a == [2]

    build()
    gc.collect()
    before = sys.getallocatedblocks()
    build()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500

    class Base:
        __slots__ = ("n",)

    @dataclasses.dataclass(frozen=True)
    class Derived(Base):
        __slots__ = ("n",)
        n: int

    registry.register(Derived, "Derived")
    assert codec.decode_message(codec.encode_message(Derived(5))) == Derived(5)


def test_a_registry_that_says_any_class_is_built_by_its_slots():
    class Claims(MessageRegistry):
        def registration_named(self, name):
            found = super().registration_named(name)
            return found and dataclasses.replace(found, built_by_slots=True)

    registry = Claims()

    class Many(dict):
        __slots__ = ("n",)

        def __init__(self, n):
            self.n = n

    registry._by_name["Many"] = Registration(Many, "Many", ("n",))
    many = Codec(registry).decode_message(ext(1, "Many", [1]))
    many["k"] = many.n
    assert many == {"k": 1}


def test_what_stands_in_a_registrys_tables_is_looked_at():
    registry = MessageRegistry()

    @message(name="Order", registry=registry)
    class Order:
        id: int

    codec = Codec(registry)
    data = codec.encode_message(Order(1))
    assert codec.decode_message(data) == Order(1)
    plan = registry.plans_by_name[b"Order"]
    for junk in (None, 5, type(plan).__new__(type(plan)), codec):
        registry.plans_by_class[Order] = junk
        assert codec.encode_message(Order(1)) == data
        registry.plans_by_class.clear()
        registry.plans_by_name[b"Order"] = junk
        try:
            assert codec.encode_message(Order(1)) == data
        except EncodeError:
            registry.plans_by_name.clear()
        registry.plans_by_name[b"Order"] = junk
        try:
            assert codec.decode_message(data) == Order(1)
        except DecodeError:
            registry.plans_by_name.clear()
    registry.plans_by_class[Empty] = plan
    with pytest.raises(EncodeError, match="an? Empty cannot"):
        codec.encode_message(Empty())


def test_a_member_is_found_without_asking_it():
    asked = []

    class Asked(enum.Enum):
        A = 1

        @property
        def value(self):
            if asked:
                raise SystemExit("asked")
            return self._value_

    registry = MessageRegistry()
    registry.register(Asked, "Asked")
    codec = Codec(registry)
    data = codec.encode_message(Asked.A)
    asked.append(1)
    assert codec.decode_message(data) is Asked.A
    with pytest.raises(DecodeError, match="no member"):
        codec.decode_message(ext(2, "Asked", True))
    # A class that cannot be looked at now is no more than unknown.
    with pytest.raises(DecodeError, match="'Asked' cannot be built here: SystemExit: asked"):
        registry.plans_by_name.clear()
        codec.decode_message(data)


def test_a_list_that_is_not_filled_yet_is_seen_by_nobody():
    registry = MessageRegistry()
    seen = []

    @message(name="Looks", registry=registry)
    class Looks:
        def __post_init__(self):
            lists = (each for each in gc.get_objects() if type(each) is list)
            seen.extend(each[-1] for each in lists if len(each) == 7_654)

    data = b"\xdc" + struct.pack(">H", 7_654) + ext(1, "Looks", []) + b"\x01" * 7_653
    value = Codec(registry).decode_message(data)
    assert seen == []
    assert gc.is_tracked(value)


def test_blank_and_wrong_objects():
    for wrong in (None, 1, "x", bytearray(b"\1"), memoryview(b"\1")):
        with pytest.raises(TypeError):
            CODEC.decode_message(wrong)
        with pytest.raises(TypeError):
            CODEC.decode_envelope(wrong)
        with pytest.raises(TypeError):
            CODEC.encode_envelope(wrong)
    for module, name in (
        (codec_module, "Codec"), (encoder_module, "Encoder"), (decoder_module, "Decoder"),
        (frame_decoder_module, "FrameDecoder"), (frame_encoder_module, "FrameEncoder"),
        (session_module, "Session"),
    ):  # fmt: skip
        cls = getattr(module, name)
        with pytest.raises(TypeError):
            cls.__new__(cls)
        with pytest.raises(TypeError):
            type("Sub", (cls,), {})
    assert repr(plan_module.Plan.__new__(plan_module.Plan))
    event = frame_decoder_module.PeerEvent.__new__(frame_decoder_module.PeerEvent)
    assert (event.session, event.life, event.to) == (None, 0, None)
    with pytest.raises(AttributeError):
        repr(event)
    try:
        blank = Envelope.__new__(Envelope)
    except TypeError:
        return
    with pytest.raises(TypeError, match="never filled"):
        CODEC.encode_envelope(blank)


@pytest.mark.parametrize("lasting", [1, 40])
def test_without_memory_it_encodes_and_decodes_or_says_so(starvation, lasting):
    starve, feed = starvation
    value = [
        {"k": [1, "é" * 100, 2.5, 1 << 63]}, PID, NODE, CorrelationId(PID, 1, 2), Empty(),
        Order(1, Colour.GREEN, 0.5), Positive(1), b"x" * 2_000,
    ]  # fmt: skip
    data = CODEC.encode_message(value)
    failed = 0
    for first in range(1, 120):
        codec = Codec(REGISTRY)
        for act, argument, expected in (
            (codec.encode_message, value, data),
            (codec.decode_message, data, value),
        ):
            result = None
            try:
                starve(first, first + lasting)
                try:
                    result = act(argument)
                finally:
                    feed()
            except (MemoryError, DecodeError):
                failed += 1
            assert result in (None, expected)
            # It is as good as before.
            assert act(argument) == expected
    assert failed
