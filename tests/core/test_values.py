"""Everyday values: written as the page says, read as they were, and no time or memory for more."""

from __future__ import annotations

import datetime
import decimal
import gc
import math
import random
import struct
import sys
import tracemalloc
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from uuid import UUID, uuid4

import msgpack
import pytest

from rabble._core.codec import Codec
from rabble._core.errors import DecodeError, DecodeLimitError, EncodeError, UnknownMessageError
from rabble.registry import MessageRegistry, message
from tests.core.codecs import CODEC, REGISTRY, Order, declared
from tests.core.strategies import same
from tests.reference import codec as reference
from tests.support import TINY

#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")

UTC = datetime.UTC
MOMENT = datetime.datetime(2026, 11, 29, 23, 59, 59, 999_999)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
HOURS = datetime.timedelta(hours=1)

# By hand, from docs/internals/wire-protocol.md.
VECTORS = [
    ((), "c7 01 07 90"),
    ((1, (2,)), "c7 07 07 92 01 c7 02 07 91 02"),
    ([(1,)], "91 c7 02 07 91 01"),
    (set(), "c7 01 08 90"),
    ({1}, "c7 02 08 91 01"),
    (frozenset({"a"}), "c7 03 09 91 a1 61"),
    (bytearray(b"ab"), "c7 02 0a 61 62"),
    (2**64, "c7 09 0b 01 00 00 00 00 00 00 00 00"),
    (-(2**63) - 1, "c7 09 0b ff 7f ff ff ff ff ff ff ff"),
    (2**71, "c7 0a 0b 00 80 00 00 00 00 00 00 00 00"),
    (-(2**71), "c7 09 0b 80 00 00 00 00 00 00 00 00"),
    (datetime.date(2026, 11, 29), "c7 04 0c 07 ea 0b 1d"),
    (datetime.date.min, "c7 04 0c 00 01 01 01"),
    (datetime.time(23, 59, 59, 999_999), "c7 06 0d 17 3b 3b 0f 42 3f"),
    (datetime.time(0, fold=1), "c7 06 0d 00 00 00 80 00 00"),
    (datetime.time(1, tzinfo=UTC), "c7 09 0d 01 00 00 00 00 00 c7 00 10"),
    (MOMENT, "c7 0a 0e 07 ea 0b 1d 17 3b 3b 0f 42 3f"),
    (MOMENT.replace(tzinfo=UTC), "c7 0d 0e 07 ea 0b 1d 17 3b 3b 0f 42 3f c7 00 10"),
    (
        MOMENT.replace(tzinfo=BERLIN, fold=1),
        "c7 1a 0e 07 ea 0b 1d 17 3b 3b 8f 42 3f c7 0d 11 45 75 72 6f 70 65 2f 42 65 72 6c 69 6e",
    ),
    (datetime.timedelta(1, 2, 3), "c7 0c 0f 00 00 00 01 00 00 00 02 00 00 00 03"),
    (-datetime.timedelta.resolution, "c7 0c 0f ff ff ff ff 00 01 51 7f 00 0f 42 3f"),
    (UTC, "c7 00 10"),
    (datetime.timezone(HOURS), "c7 05 10 ce d6 93 a4 00"),
    (datetime.timezone(-HOURS, "x"), "c7 0b 10 d3 ff ff ff ff 29 6c 5c 00 a1 78"),
    (datetime.timezone(datetime.timedelta(), "Z"), "c7 03 10 00 a1 5a"),
    (zoneinfo.ZoneInfo("UTC"), "c7 03 11 55 54 43"),
    (Decimal("-1.10"), "c7 05 12 2d 31 2e 31 30"),
    (Decimal("1E+3"), "c7 04 12 31 45 2b 33"),
    (Decimal("sNaN7"), "c7 05 12 73 4e 61 4e 37"),
    (Decimal("-Infinity"), "c7 09 12 2d 49 6e 66 69 6e 69 74 79"),
    (Fraction(-1, 3), "c7 02 13 ff 03"),
    (Fraction(2**64), "c7 0d 13 c7 09 0b 01 00 00 00 00 00 00 00 00 01"),
    (complex(1, -0.0), "c7 10 14 3f f0 00 00 00 00 00 00 80 00 00 00 00 00 00 00"),
    (UUID(int=1), "c7 10 15" + " 00" * 15 + " 01"),
    (range(0, 10, 2), "c7 03 16 00 0a 02"),
    ({1: "a", (2,): None}, "82 01 a1 61 c7 02 07 91 02 c0"),
    ({None: 1, 2.5: 2}, "82 c0 01 cb 40 04 00 00 00 00 00 00 02"),
]


@pytest.mark.parametrize(("value", "hexes"), VECTORS)
def test_vectors(value, hexes):
    data = bytes.fromhex(hexes)
    assert CODEC.encode_message(value) == data
    assert reference.encode(REGISTRY, value) == data
    assert same(CODEC.decode_message(data), value)
    assert same(reference.decode(REGISTRY, data), value)
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            CODEC.decode_message(data[:end])
    # The same within headers that say that it is all there.
    if data[0] == 0xC7:
        for end in range(3, len(data)):
            cut = b"\xc7" + bytes([end - 3]) + data[2:end]
            try:
                CODEC.decode_message(cut)
            except DecodeError:
                with pytest.raises(ValueError):
                    reference.decode(REGISTRY, cut)
            else:
                reference.decode(REGISTRY, cut)
    # Another library sees extensions, and what is around them.
    if data[0] == 0xC7:
        assert msgpack.unpackb(data) == msgpack.ExtType(data[2], data[3:])


def test_bodies_above_255_bytes_have_the_large_header():
    for value in (
        (None,) * 252, (None,) * 253, (None,) * 70_000, tuple("x" * 40 for _ in range(9)),
        set(range(1_000)), frozenset(map(str, range(100))), bytearray(255), bytearray(256),
        bytearray(70_000), 1 << 8 * 255 - 2, 1 << 8 * 256, 3**200_000, Decimal(3**1_000),
        Fraction(3**2_000, 2**3_000), range(2**3_000), datetime.timezone(HOURS, "x" * 300),
    ):  # fmt: skip
        data = CODEC.encode_message(value)
        assert data == reference.encode(REGISTRY, value)
        assert data[0] == (0xC7 if len(data) < 259 else 0xC9)
        assert same(CODEC.decode_message(data), value)


def test_a_message_class_with_tuples_is_hashable_where_it_arrives():
    order = Order(1, (("a", 1), frozenset({UUID(int=7)})), 0.5)
    back = CODEC.decode_message(CODEC.encode_message({order: {order}}))
    assert back == {order: {order}}
    assert hash(next(iter(back))) == hash(order)


BAD = [
    (7, "80"), (7, "01"), (7, ""), (7, "91 01 02"), (8, "92 01 01"), (8, "91 90"), (8, "91 80"),
    (8, "a1 61"), (8, ""), (9, "92 01 c3"), (9, "91 c7 01 08 90"), (9, "91 c7 01 0a 61"),
    (11, ""), (11, "01"), (11, "00 80 00 00 00 00 00 00 00"), (11, "80 00 00 00 00 00 00 00"),
    (11, "00 01 00 00 00 00 00 00 00 00"), (11, "ff ff 7f ff ff ff ff ff ff ff"),
    (12, "07 ea 0d 1d"), (12, "00 00 01 01"), (12, "27 10 01 01"), (12, "07 ea 02 1e"),
    (12, "07 ea 0b"), (12, "07 ea 0b 1d 00"), (13, "18 00 00 00 00 00"), (13, "00 3c 00 00 00 00"),
    (13, "00 00 3c 00 00 00"), (13, "00 00 00 0f 42 40"), (13, "00 00 00 40 00 00"),
    (13, "00 00 00 00 00"), (13, "00 00 00 00 00 00 c0"), (13, "00 00 00 00 00 00 c7 00 10 01"),
    (13, "00 00 00 00 00 00 c7 02 13 01 02"), (13, "00 00 00 00 00 00 90"),
    (14, "07 ea 0b 1d 17 3b 3b 0f 42"), (14, "07 ea 0b 1d 17 3b 3b 0f 42 3f 01"),
    (15, "00 00 00 00 00 01 51 80 00 00 00 00"), (15, "00 00 00 00 00 00 00 00 00 0f 42 40"),
    (15, "3b 9a ca 00 00 00 00 00 00 00 00 00"), (15, "c4 65 36 00 00 00 00 00 00 00 00 00"),
    (15, "00 00 00 00"), (15, ""), (16, "00"), (16, "c0"), (16, "a1 61"), (16, "c3"),
    (16, "cf 00 00 00 14 1d d7 60 00"), (16, "d3 ff ff ff eb e2 28 a0 00"), (16, "01 01"),
    (16, "01 a1 61 01"), (16, "e0 c0"), (16, "01 02"),
    (16, "c7 09 0b 01 00 00 00 00 00 00 00 00"), (17, ""), (17, "ff"),
    (18, ""), (18, "2b 31"), (18, "20 31"), (18, "31 20"), (18, "31 5f 31"), (18, "2e 31"),
    (18, "31 2e"), (18, "31 45"), (18, "31 45 2b"), (18, "2d"), (18, "d9 a1"), (18, "31 0a"),
    (18, "4e 61 4e 78"), (18, "69 6e 66"), (18, "2d 2d 31"),
    (18, b"1E9999999999999999999".hex()), (18, b"1E-9999999999999999999".hex()),
    (18, b"1E99999999999999999999".hex()), (18, b"-1.5E+2000000000000000000".hex()),
    (19, "02 04"), (19, "01 00"), (19, "01 ff"), (19, "00 02"), (19, "01"), (19, "01 02 03"),
    (19, "c3 02"), (19, "01 cb 3f f0 00 00 00 00 00 00"), (19, "c7 02 13 01 02 01"),
    (20, "00"), (20, "00" * 15), (20, "00" * 17), (21, "00" * 15), (21, "00" * 17),
    (22, "00 01 00"), (22, "00 01"), (22, "00 01 01 01"), (22, "c0 01 01"), (22, "c3 01 01"),
    (23, "00"), (6, "a1 61 c0"), (131, "00" * 16), (148, "00" * 16), (255, "00" * 4),
]  # fmt: skip


@pytest.mark.parametrize(("code", "hexes"), BAD)
def test_what_is_no_such_value_is_refused(code, hexes):
    data = reference.extension(code, bytes.fromhex(hexes))
    for each in (data, b"\x91" + data, b"\x81" + data + b"\x01"):
        with pytest.raises(DecodeError):
            CODEC.decode_message(each)
        with pytest.raises(ValueError):
            reference.decode(REGISTRY, each)


def test_a_program_s_decimal_context_changes_nothing():
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps = dict.fromkeys(context.traps, False)
        for value in (Decimal("1.23456789"), Decimal("1E+100")):
            assert same(CODEC.decode_message(CODEC.encode_message(value)), value)
        with pytest.raises(DecodeError, match="exponent"):
            CODEC.decode_message(reference.extension(18, b"1E9999999999999999999"))
        context.capitals = 0
        value = Decimal("1E+100")
        assert same(CODEC.decode_message(CODEC.encode_message(value)), value)
        context.traps = dict.fromkeys(context.traps, True)
        assert same(CODEC.decode_message(CODEC.encode_message(value)), value)


def test_equal_numbers_of_other_types_stay_what_they_are():
    values = [1, True, 1.0, Decimal(1), Fraction(1), complex(1), Decimal("1.0")]
    back = CODEC.decode_message(CODEC.encode_message(values))
    assert [type(each) for each in back] == [type(each) for each in values]
    for value in ({1: "a"}, {True: "a"}, {1.0: "a"}, {Decimal(1): "a"}, {-0.0}, {Fraction(1)}):
        assert same(CODEC.decode_message(CODEC.encode_message(value)), value)


def test_the_order_of_a_dict_stays_whatever_its_keys_are():
    keys = [("b", 1), "z", 7, None, "a", (1, 2), 2.5, frozenset({1}), b"x", uuid4()]
    value = dict.fromkeys(keys)
    for n in range(len(keys)):
        turned = dict.fromkeys(keys[n:] + keys[:n])
        assert list(CODEC.decode_message(CODEC.encode_message(turned))) == list(turned)
    many = {(n, str(n)): n for n in range(1_000)}
    assert list(CODEC.decode_message(CODEC.encode_message(many))) == list(many)
    assert value


def test_a_nan_is_a_key_of_its_own():
    back = CODEC.decode_message(CODEC.encode_message({math.nan: 1, 2: 2}))
    assert len(back) == 2 and any(key != key for key in back)


# What is no message, and what to do about it.


class Stamp(datetime.datetime):
    pass


class Span(datetime.timedelta):
    pass


class Ratio(Fraction):
    pass


class Zone(datetime.tzinfo):
    pass


def without_key():
    for folder in zoneinfo.TZPATH:
        try:
            with open(f"{folder}/UTC", "rb") as file:
                return zoneinfo.ZoneInfo.from_file(file)
        except OSError:
            continue
    import importlib.resources

    with importlib.resources.files("tzdata.zoneinfo").joinpath("UTC").open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file)


def broken_uuid(number):
    value = UUID(int=1)
    object.__setattr__(value, "int", number)
    return value


def broken_fraction():
    value = Fraction(1, 3)
    value._numerator = 1.5
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Stamp(2026, 1, 1), "subclass of datetime: send value.to_pydatetime"),
        (Span(1), "subclass of timedelta: send value.to_pytimedelta"),
        (Ratio(1), r"subclass of Fraction: send Fraction\(value\)"),
        (type("Bag", (set,), {})(), r"subclass of set: send set\(value\)"),
        (Zone(), "a datetime.timezone and a zoneinfo.ZoneInfo travel"),
        (MOMENT.replace(tzinfo=Zone()), "astimezone"),
        (without_key(), r"no key.* make it by ZoneInfo\(key\)"),
        (MOMENT.replace(tzinfo=without_key()), "no key"),
        (datetime.timezone(HOURS, "\ud800"), "lone surrogates"),
        (broken_uuid(-1), "no number of 128 bits"),
        (broken_uuid(1 << 128), "no number of 128 bits"),
        (broken_uuid(1 << 2000), "no number of 128 bits"),
        (broken_uuid("x"), "no number of 128 bits"),
        (UUID.__new__(UUID), "no number of 128 bits"),
        (broken_fraction(), "a number of a Fraction is a float"),
        (Fraction(1 << 8191), "8192 bits, and at most 8191"),
        (range(1 << 8191), "8192 bits, and at most 8191"),
        ({1 << 8191}, "1025 bytes"),
        ({(1, (1 << 8191,)): 1}, "1025 bytes"),
        ({Decimal(10**1_024)}, "1025 digits"),
        (iter(()), "Allowed are .*datetime.*and registered classes"),
    ],
)
def test_what_cannot_be_encoded_says_why(value, text):
    with pytest.raises(EncodeError, match=text):
        CODEC.encode_message([value])
    assert CODEC.decode_message(CODEC.encode_message([1 << 8191])) == [1 << 8191]


def test_a_set_that_changes_while_it_is_written_is_written_as_it_was():
    registry = MessageRegistry()

    def change():
        bag.clear()
        bag.update(range(100))
        return 7

    class Hashed:
        pass

    meddler = declared(registry, field=change)
    meddler.__hash__ = object.__hash__
    bag = {1, 2, meddler()}
    assert Hashed
    data = Codec(registry).encode_message(bag)
    assert data[:4] == b"\xc7" + bytes([len(data) - 3]) + b"\x08\x93"
    assert len(bag) == 100


# Time zones: what is on this node, and nothing that a name could bring here.


@pytest.mark.parametrize(
    "key",
    [
        b"Nowhere/At_All", b"../../etc/passwd", b"/etc/localtime", b"tests.core", b"os",
        b"x/../UTC", b"antigravity", b"UTC\0", b"utc/", b"xml.dom.pulldom/PullDOM",
    ],
)  # fmt: skip
def test_a_zone_that_this_node_does_not_have_is_refused_by_name_alone(key, monkeypatch):
    codec = Codec(REGISTRY)
    codec.decode_message(reference.extension(17, b"UTC"))
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr("builtins.__import__", None)
    before = set(sys.modules)
    with pytest.raises(UnknownMessageError, match="is not on this node; install tzdata") as caught:
        codec.decode_message(reference.extension(17, key))
    monkeypatch.undo()
    assert set(sys.modules) == before
    assert len(str(caught.value)) < 300
    assert codec.decode_message(reference.extension(17, b"UTC")).key == "UTC"


def test_the_names_of_zones_are_looked_for_once(monkeypatch):
    asked = []
    names = zoneinfo.available_timezones()
    monkeypatch.setattr(zoneinfo, "available_timezones", lambda: asked.append(0) or names)
    codec = Codec(REGISTRY)
    codec.decode_message(CODEC.encode_message([MOMENT, MOMENT.replace(tzinfo=UTC)]))
    assert asked == []
    for key in (b"Europe/Berlin", b"UTC", b"No/Where", b"No/Where"):
        try:
            codec.decode_message(reference.extension(17, key))
        except DecodeError:
            assert key == b"No/Where"
    assert asked == [0]


def test_a_zone_that_arrived_is_the_one_that_the_program_has():
    back = CODEC.decode_message(CODEC.encode_message(MOMENT.replace(tzinfo=BERLIN)))
    assert back.tzinfo is BERLIN
    with pytest.raises(DecodeError, match="256 bytes"):
        CODEC.decode_message(reference.extension(17, b"x" * 256))


# Bounds: memory by what is announced, depth, and time by hashes that were chosen.


@pytest.mark.parametrize("code", [*range(7, 10), *range(11, 23)])
@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\x00\xff\xff\xff"])
def test_announced_sizes_allocate_nothing(code, size):
    for tail in (b"", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x0f\xff\xff", b"\x9f"):
        for head in (b"\xc9" + size + bytes([code]), b"\xc7\x05" + bytes([code])):
            tracemalloc.start()
            try:
                with pytest.raises(DecodeError):
                    CODEC.decode_message(head + tail)
                assert tracemalloc.get_traced_memory()[1] < 20_000
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize(
    "piece",
    [
        b"\x90", b"\x80", b"\xc7\x01\x08\x90", b"\xc7\x02\x09\x91\x01", b"\x81\xc0\xc0",
        b"\x91\xc0", b"\xc7\x02\x07\x91\x01", b"\xc7\x01\x12\x31", b"\xc7\x02\x13\x01\x02",
        b"\xc7\x05\x10\xce\x00\x00\x00\x01", b"\xc7\x00\x0a", b"\xc7\x03\x16\x00\x09\x01",
        b"\xc7\x10\x15" + bytes(16), b"\xa3abc",
    ],
)  # fmt: skip
def test_what_a_message_becomes_takes_no_more_memory_than_is_allowed(piece):
    allowed = 1 << 16 if TINY else 1 << 20
    codec = Codec(REGISTRY, decoded_bytes_max=allowed)
    count = 2 * allowed // 40
    data = b"\xdd" + struct.pack(">I", count) + piece * count
    tracemalloc.start()
    try:
        with pytest.raises(DecodeLimitError, match=f"{allowed} bytes of memory"):
            codec.decode_message(data)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * allowed + 10_000
        # As many as may be.
        count, above = 1, allowed // 30
        while above - count > 1:
            n = (count + above) // 2
            if decodes(codec, b"\xdd" + struct.pack(">I", n) + piece * n):
                count = n
            else:
                above = n
        tracemalloc.reset_peak()
        kept = codec.decode_message(b"\xdd" + struct.pack(">I", count) + piece * count)
        taken = tracemalloc.get_traced_memory()[0]
        assert len(kept) == count > allowed // 600
        assert taken < 2 * allowed + 10_000
        # Who writes it is told where he is, and nobody is cut off for what was written.
        assert codec.encode_message(kept)
        with pytest.raises(EncodeError, match=f"{allowed} bytes of memory"):
            codec.encode_message([*kept, kept[0]])
    finally:
        tracemalloc.stop()


def decodes(codec, data):
    try:
        codec.decode_message(data)
    except DecodeLimitError:
        return False
    return True


def test_sets_and_dicts_of_many_elements_take_what_they_are_charged():
    for value in (
        {n: n for n in range(300, 20_000)}, set(range(300, 20_000)),
        {(n, n): n for n in range(300 if TINY else 9_000)},
    ):  # fmt: skip
        data = CODEC.encode_message(value)
        low, high = 1, 1 << 30
        while high - low > 1_000:
            middle = (low + high) // 2
            if decodes(Codec(REGISTRY, decoded_bytes_max=middle), data):
                high = middle
            else:
                low = middle
        gc.collect()
        tracemalloc.start()
        try:
            kept = CODEC.decode_message(data)
            assert tracemalloc.get_traced_memory()[0] < 1.5 * high
        finally:
            tracemalloc.stop()
        assert kept == value
        # ... and so much is what the encoder asks for.
        with pytest.raises(EncodeError):
            Codec(REGISTRY, decoded_bytes_max=low).encode_message(value)
        Codec(REGISTRY, decoded_bytes_max=high).encode_message(value)


P = sys.hash_info.modulus
#: In the tiny build the collector comes with every object.
MANY = 1_000 if TINY else 30_000


def of_one_hash(n, start=5):
    return [start + P * k for k in range(n)]


@pytest.mark.parametrize(
    "elements",
    [
        of_one_hash(33),
        of_one_hash(1_000),
        [Fraction(n, n - 4) for n in of_one_hash(100)[1:] if math.gcd(n, 4) == 1],
        [Decimal(5 + P * k) for k in range(100)],
        [UUID(int=5 + P * k) for k in range(100)],
        [complex(5, 0)] + [(5 + P * k,) for k in range(100)],
        [frozenset({5 + P * k}) for k in range(100)],
        [math.ldexp(1, 61 * k) for k in range(-17, 17)] + of_one_hash(10, 1)[1:],
        [Order(5 + P * k, None, 0.0) for k in range(100)],
        # Each level has fewer than are allowed, all of them together more.
        [frozenset((n,) for n in of_one_hash(7) if n != left) for left in of_one_hash(7)],
    ],
)  # fmt: skip
def test_elements_of_one_hash_are_refused(elements):
    for code, body in ((8, None), (9, None), (0, None)):
        items = [CODEC.encode_message(element) for element in dict.fromkeys(elements)]
        if code:
            body = reference.sized(len(items), {16: 0x90}, "\0\xdc\xdd") + b"".join(items)
            data = reference.extension(code, body)
        else:
            data = (
                reference.sized(len(items), {16: 0x80}, "\0\xde\xdf") + b"\x01".join(items) + b"\1"
            )
        with pytest.raises(UnknownMessageError, match="have the same hash|hashes that were chosen"):
            CODEC.decode_message(data)


def test_some_elements_of_one_hash_are_nothing_to_refuse():
    for elements in (
        of_one_hash(32),
        [*of_one_hash(32, 1), *range(1_000)],
        [(a, b, c, d, e) for a in (-1, -2) for b in (-1, -2) for c in (-1, -2) for d in (-1, -2)
         for e in (-1, -2)],
        [frozenset({-1, -2, n}) for n in range(300)],
        [math.ldexp(1, 61 * k) for k in range(-10, 10)],
    ):  # fmt: skip
        for value in (set(elements), frozenset(elements), dict.fromkeys(elements, 1)):
            assert CODEC.decode_message(CODEC.encode_message(value)) == value


@pytest.mark.parametrize(
    "elements",
    [
        range(MANY),
        [n << 44 for n in range(MANY)],
        [n << 20 for n in range(MANY)],
        [n * 1_000_000 for n in range(MANY)],
        [float(n) for n in range(MANY)],
        [n / 1024 for n in range(MANY)],
        [-n for n in range(MANY)],
        [(n, n + 1) for n in range(MANY)],
        [UUID(int=n << 64) for n in range(MANY)],
    ],
)
def test_regular_elements_are_nothing_to_refuse(elements):
    for value in (set(elements), dict.fromkeys(elements)):
        assert CODEC.decode_message(CODEC.encode_message(value)) == value


def test_ints_that_were_chosen_to_find_each_other_are_refused():
    """Half of them stand in the order in which a dict looks for a place, the others lead there."""
    rng, size = random.Random(7), 1 << 13
    mask, runs = size - 1, 2_700
    place, run = 0, []
    for _ in range(runs):
        run.append(place)
        place = (5 * place + 1) & mask
    taken, chosen = set(run), []
    beginning = set(run[: runs // 4])
    while len(chosen) < 2_400:
        number = rng.getrandbits(22)
        perturb, at = number, number & mask
        while perturb and at in taken:
            perturb >>= 5
            at = (5 * at + 1 + perturb) & mask
        if not perturb and at in beginning and number >= size:
            chosen.append(number)
    keys = list(dict.fromkeys(run + chosen))
    data = CODEC.encode_message(dict.fromkeys(keys))
    with pytest.raises(UnknownMessageError, match="hashes that were chosen"):
        CODEC.decode_message(data)
    # None of these by itself.
    assert CODEC.decode_message(CODEC.encode_message(dict.fromkeys(run))) == dict.fromkeys(run)
    rng.shuffle(keys)
    assert CODEC.decode_message(CODEC.encode_message(keys)) == keys


def test_numbers_whose_time_is_no_line_are_bounded():
    large = reference.encode(REGISTRY, 1 << 8 * 1024)
    for data in (
        reference.extension(19, large + b"\x01"), reference.extension(19, b"\x01" + large),
        reference.extension(22, b"\x00" + large + b"\x01"), reference.extension(8, b"\x91" + large),
        b"\x81" + large + b"\x01", b"\x81" + reference.extension(7, b"\x91" + large) + b"\x01",
        reference.extension(9, b"\x91" + reference.extension(18, b"1" * 1_025)),
    ):  # fmt: skip
        with pytest.raises(DecodeError, match="1024"):
            CODEC.decode_message(data)
    edge = (1 << 8191) - 1
    for value in (
        Fraction(edge, 2),
        range(-edge, edge),
        {edge, Decimal("9" * 1_024)},
        {edge: edge * edge},
    ):
        assert CODEC.decode_message(CODEC.encode_message(value)) == value


@pytest.mark.parametrize("what", ["__hash__", "__eq__"])
@pytest.mark.parametrize("error", [SystemExit, KeyError, MemoryError, GeneratorExit, TypeError])
def test_whatever_an_element_raises_the_message_is_refused(what, error):
    registry = MessageRegistry()

    @message(name="Fails", registry=registry)
    class Fails:
        n: int

    def fail(*_):
        raise error("x" * 1_000_000)

    codec = Codec(registry)
    one, other = codec.encode_message(Fails(1)), codec.encode_message(Fails(2))
    Fails.__hash__ = lambda self: 7
    setattr(Fails, what, fail)
    for data in (
        reference.extension(8, b"\x92" + one + other), b"\x82" + one + b"\1" + other + b"\1",
        b"\x83\xa1a\1" + one + b"\1" + other + b"\1",
    ):  # fmt: skip
        with pytest.raises(UnknownMessageError, match=f"{error.__name__}: '?x+") as caught:
            codec.decode_message(data)
        assert len(str(caught.value)) < 1_000


def test_what_is_not_filled_yet_is_seen_by_nobody():
    registry = MessageRegistry()
    seen = []

    @message(name="Looks", registry=registry, post_init=True)
    class Looks:
        n: int

        def __post_init__(self):
            self.__hash__()

        def __hash__(self):
            for each in gc.get_objects():
                # Not by `in`, which compares: others' metaclasses may raise then.
                kinds = [kind for kind in (tuple, list, set, frozenset) if type(each) is kind]
                if kinds and len(each) == 6_543:
                    seen.append(each)
            return 5

    looks = reference.extension(1, b"\xa5Looks\x91\x01")
    items = looks + b"".join(reference.encode(REGISTRY, n) for n in range(6_542))
    body = b"\xdc" + struct.pack(">H", 6_543) + items
    codec = Codec(registry)
    for code, kind in ((7, tuple), (8, set), (9, frozenset)):
        value = codec.decode_message(reference.extension(code, body))
        assert type(value) is kind and len(value) == 6_543
        assert seen == []
        assert gc.is_tracked(value)
        del value
    pairs = looks + b"\1" + b"".join(reference.encode(REGISTRY, n) + b"\1" for n in range(6_542))
    assert len(codec.decode_message(b"\xde" + struct.pack(">H", 6_543) + pairs)) == 6_543
    assert seen == []
