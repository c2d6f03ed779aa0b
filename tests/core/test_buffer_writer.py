"""Writing: each number, text and container has the shortest header that there is for it."""

from __future__ import annotations

import struct

import msgpack
import pytest

from rabble._core.codec import Codec
from rabble.registry import MessageRegistry

CODEC = Codec(MessageRegistry(), elements_max=1 << 20)
#: Around each number that needs one more bit.
POWERS = [1 << bits for bits in (0, 5, 7, 8, 15, 16, 31, 32, 63)]
INTS = sorted({sign * power + near for power in POWERS for sign in (1, -1) for near in (-1, 0, 1)})
#: Around each length that needs another header.
SIZES = [0, 1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 65_535, 65_536, 65_537]


@pytest.mark.parametrize("number", [n for n in INTS if n >= -(1 << 63)] + [(1 << 64) - 1], ids=hex)
def test_an_int_is_as_short_as_it_can_be(number):
    assert CODEC.encode_message(number) == msgpack.packb(number)
    assert CODEC.decode_message(msgpack.packb(number)) == number


@pytest.mark.parametrize("size", SIZES)
def test_the_head_of_what_has_a_length_is_as_short_as_it_can_be(size):
    for value in ("x" * size, b"x" * size, [None] * size, {str(n): n for n in range(size)}):
        assert CODEC.encode_message(value) == msgpack.packb(value)
        assert CODEC.decode_message(msgpack.packb(value)) == value


def test_a_float_is_written_with_its_eight_bytes():
    for number in (0.0, -0.0, 1.5, 1e308, float("inf")):
        assert CODEC.encode_message(number) == b"\xcb" + struct.pack(">d", number)
