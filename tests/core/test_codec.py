"""The codec: what goes in comes out, strangers' bytes do no harm, and msgpack reads it too."""

from __future__ import annotations

import datetime
import gc
import math
import struct
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core import codec as codec_module
from rabble._core import debug
from rabble._core import decoder as decoder_module
from rabble._core import encoder as encoder_module
from rabble._core import frame_decoder as frame_decoder_module
from rabble._core import frame_encoder as frame_encoder_module
from rabble._core import plan as plan_module
from rabble._core import session as session_module
from rabble._core.codec import Codec
from rabble._core.envelope import Envelope
from rabble._core.errors import DecodeError, DecodeLimitError, EncodeError
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.registry import MessageRegistry, message
from tests.core import strategies
from tests.core.codecs import (
    CODEC,
    NODE,
    PID,
    REGISTRY,
    Colour,
    Empty,
    Equal,
    Order,
    Positive,
    ext,
)
from tests.reference import codec as reference

#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")

plain = strategies.of_msgpack()
values = strategies.values(
    st.sampled_from(Colour),
    st.just(Empty()),
    lambda inner: st.builds(Order, st.integers(0, 9), inner, st.just(0.5)),
)
envelopes = st.builds(
    Envelope, strategies.pids, values, st.none() | strategies.pids, st.none() | strategies.cids
)


@given(values)
def test_what_goes_in_comes_out(value):
    data = CODEC.encode_message(value)
    assert data == reference.encode(REGISTRY, value)
    assert strategies.same(CODEC.decode_message(data), value)
    assert strategies.same(reference.decode(REGISTRY, data), value)


@given(envelopes)
def test_envelopes_come_out_of_any_codec(envelope):
    data = CODEC.encode_envelope(envelope)
    assert data == reference.encode_envelope(REGISTRY, envelope)
    for codec in (CODEC, Codec(REGISTRY)):
        back = codec.decode_envelope(data)
        assert (back.to, back.sender) == (envelope.to, envelope.sender)
        assert back.correlation_id == envelope.correlation_id
        assert strategies.same(back.msg, envelope.msg)


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
        found = CODEC.decode_message(data)
        # A set with a NaN in it has another order each time; an object may have a NaN in a field.
        assert strategies.same(found, expected) or repr(found) == repr(expected)


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


def test_nan_stays_and_a_float_of_four_bytes_is_read():
    assert math.isnan(CODEC.decode_message(CODEC.encode_message(math.nan)))
    assert CODEC.decode_message(b"\xca" + struct.pack(">f", 0.5)) == 0.5


# Nesting without end, decoded and encoded, in a thread with little stack.
DEEP = """
import threading
from rabble._core.codec import Codec
import enum
from rabble._core.errors import DecodeError, DecodeLimitError, EncodeError
from rabble.registry import MessageRegistry

REGISTRY = MessageRegistry()
REGISTRY.register(enum.Enum("Colour", "RED"), "Colour")

def within_each_other(codec):
    # Extensions that are no containers, each in the one before it.
    for code, begin in ((2, b"\\xa6Colour"), (16, b""), (19, b""), (22, b""), (13, b"\\0" * 6)):
        data = b"\\xc0"
        for _ in range(3_000):
            data = begin + data
            data = b"\\xc9" + len(data).to_bytes(4, "big") + bytes([code]) + data
            if len(data) > 2_000_000:
                break
        try:
            codec.decode_message(data)
        except DecodeError:
            pass
        else:
            raise AssertionError

def check():
    for depth in (64, 256):
        codec = Codec(REGISTRY, depth_max=depth)
        tuples = b"\\xc0"
        for _ in range(3_000):
            tuples = b"\\xc9" + (len(tuples) + 1).to_bytes(4, "big") + b"\\x07\\x91" + tuples
        keys = b"\\x81" * 100_000
        for data in (
            b"\\x91" * 100_000, b"\\x81\\xa1k" * 100_000, tuples, keys, b"\\x81" + tuples,
            tuples.replace(b"\\x07\\x91", b"\\x09\\x91"),
        ):
            try:
                codec.decode_message(data)
            except DecodeLimitError:
                pass
            else:
                raise AssertionError
        assert codec.decode_message(b"\\x91" * (depth - 1) + b"\\x90")
        for wrap in (lambda v: [v], lambda v: (v,), lambda v: frozenset([v]), lambda v: {(v,): 1}):
            value = ()
            for _ in range(2_000 if wrap(1) != {(1,): 1} else 1):
                value = wrap(value)
            try:
                codec.encode_message([value] if type(value) is dict else value)
            except EncodeError:
                pass
            else:
                assert type(value) is dict
        within_each_other(codec)

check()
threading.stack_size(KIBIBYTES * 1024)
results = []
thread = threading.Thread(target=lambda: results.append(check()))
thread.start()
thread.join()
assert results == [None]
print("survived")
"""


def test_depth_is_refused_on_a_small_stack_too():
    # Without optimisation a frame of the decoder takes twice as much.
    deep = DEEP.replace("KIBIBYTES", "512" if debug.ENABLED else "256")
    done = subprocess.run([sys.executable, "-c", deep], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


def test_elements_are_bounded_both_ways_if_one_says_so():
    codec = Codec(REGISTRY, elements_max=65_536)
    many = b"\xdc\xff\xff" + b"\x80" * 65_534 + b"\x92\xc0\xc0"
    with pytest.raises(DecodeLimitError, match="65536 elements"):
        codec.decode_message(many)
    with pytest.raises(EncodeError, match="65536 elements"):
        codec.encode_message([None] * 65_537)
    assert len(codec.decode_message(codec.encode_message([None] * 65_536))) == 65_536


def test_a_snapshot_of_many_keys_travels():
    snapshot = {f"{n:x}": n for n in range(70_000)}
    assert CODEC.decode_message(CODEC.encode_message(snapshot)) == snapshot
    assert CODEC.decode_message(CODEC.encode_message(set(snapshot))) == set(snapshot)


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
    with pytest.raises(TypeError, match="Envelope needs both"):
        Envelope.__new__(Envelope)
    with pytest.raises(TypeError, match="goes to nobody, and has no encoding"):
        CODEC.encode_envelope(Envelope(None, 1))


@pytest.mark.parametrize("lasting", [1, 40])
def test_without_memory_it_encodes_and_decodes_or_says_so(starvation, lasting):
    starve, feed = starvation
    value = [
        {"k": [1, "é" * 100, 2.5, 1 << 63]}, PID, NODE, CorrelationId(PID, 1, 2), Empty(),
        Order(1, Colour.GREEN, 0.5), Positive(1), b"x" * 2_000,
        (1, (2**70,)), {1, (2, "x")}, frozenset(range(40)), {(1,): 2, "k": 3}, bytearray(b"x"),
        datetime.datetime(2026, 11, 29, tzinfo=datetime.timezone(datetime.timedelta(1 / 24), "x")),
        datetime.timedelta(1), Decimal("1.5"), Fraction(1, 3), 1j, UUID(int=7), range(3),
    ]  # fmt: skip
    data = CODEC.encode_message(value)
    failed = 0
    for first in range(1, 400):
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
