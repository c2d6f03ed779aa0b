"""Reading: sizes and numbers in every width that they may have, and none that is cut off."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from rabble._core.codec import Codec
from rabble._core.errors import DecodeError
from rabble.registry import MessageRegistry

CODEC = Codec(MessageRegistry())


def wide(first_tag: int, widths: str, number: float, rest: bytes = b"") -> list[bytes]:
    """A number or size in each width, behind the tags from the first on."""
    return [
        bytes([first_tag + n]) + struct.pack(f">{width}", number) + rest
        for n, width in enumerate(widths)
    ]


#: Of each value all its forms: other writers may be less thrifty than this one.
FORMS: list[tuple[Any, list[bytes]]] = [
    (7, [b"\x07", *wide(0xCC, "BHIQbhiq", 7)]),
    (-3, [b"\xfd", *wide(0xD0, "bhiq", -3)]),
    (0.5, wide(0xCA, "fd", 0.5)),
    ("ab", [b"\xa2ab", *wide(0xD9, "BHI", 2, b"ab")]),
    (b"ab", wide(0xC4, "BHI", 2, b"ab")),
    ([1], [b"\x91\1", *wide(0xDC, "HI", 1, b"\1")]),
    ({"a": 1}, [b"\x81\xa1a\1", *wide(0xDE, "HI", 1, b"\xa1a\1")]),
]


@pytest.mark.parametrize(("value", "forms"), FORMS, ids=repr)
def test_a_value_is_read_in_each_of_its_forms(value, forms):
    for data in forms:
        found = CODEC.decode_message(data)
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("data", [data for _, forms in FORMS for data in forms], ids=bytes.hex)
def test_a_value_that_is_cut_off_is_refused_with_the_byte_at_which_it_is(data):
    for end in range(len(data)):
        with pytest.raises(DecodeError, match=r"^byte \d+: "):
            CODEC.decode_message(data[:end])
