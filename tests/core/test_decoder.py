"""The decoder: a stranger's bytes take no more than they are worth, and build what is known."""

from __future__ import annotations

import enum
import gc
import struct
import sys
import tracemalloc

import pytest

from rabble._core.codec import Codec
from rabble._core.errors import DecodeError, DecodeLimitError, Interrupted
from rabble._core.ids import Pid
from rabble.registry import MessageRegistry, message
from tests.core.codecs import CODEC, NODE, PID, REGISTRY, Positive, ext

#: Of the core's objects, what the caches of CODEC may hold when the tests are done.
KEPT_IN_CACHES = ("ids.NodeId", "ids.Pid")


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
        (24, b"\x81\x90\x01"),
        (24, b"\x81\x80\x01"),
        (24, b"\x82\xa1a\x01\x80\x01"),
        (25, b"\x82\x01\x01\x01\x02"),
        (25, b"\x83\xa1a\x01\x01\x01\xa1a\x02"),
        (25, b"\x82\x01\x01\xc3\x02"),
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


def test_post_init_runs_at_the_receiver():
    assert CODEC.decode_message(CODEC.encode_message(Positive(3))) == Positive(3)
    with pytest.raises(DecodeError, match="0 is not positive"):
        CODEC.decode_message(ext(1, "Positive", [0]))


@pytest.mark.parametrize("error", [SystemExit, KeyError, MemoryError, GeneratorExit])
def test_whatever_a_constructor_raises_it_refuses(error):
    registry = MessageRegistry()

    @message(name="Fails", registry=registry, post_init=True)
    class Fails:
        n: int

        def __post_init__(self):
            raise error("x" * 1_000_000)

    with pytest.raises(DecodeError, match=f"Fails refuses: {error.__name__}: '?x+") as caught:
        Codec(registry).decode_message(ext(1, "Fails", [1]))
    assert len(str(caught.value)) < 1_000


def test_an_interruption_is_nobodys_failure():
    registry = MessageRegistry()

    @message(name="Ends", registry=registry, post_init=True)
    class Ends:
        def __post_init__(self):
            raise Interrupted

    with pytest.raises(Interrupted):
        Codec(registry).decode_message(ext(1, "Ends", []))


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

    @message(name="Looks", registry=registry, post_init=True)
    class Looks:
        def __post_init__(self):
            lists = (each for each in gc.get_objects() if type(each) is list)
            seen.extend(each[-1] for each in lists if len(each) == 7_654)

    data = b"\xdc" + struct.pack(">H", 7_654) + ext(1, "Looks", []) + b"\x01" * 7_653
    value = Codec(registry).decode_message(data)
    assert seen == []
    assert gc.is_tracked(value)
