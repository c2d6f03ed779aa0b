"""ChaCha20 and Poly1305: the published vectors, and the slow Python of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.mac import chacha20_block, one_time_key, poly1305
from rabble._core.record import RECORD_LIMITS
from tests.reference import records as slow

VECTORS = json.loads((Path(__file__).parent / "vectors" / "records.json").read_text())
#: How many blocks are taken at a time; what the processor cannot is done by less.
WIDE = [1, 4, 8]
#: Around one block, and where several at a time begin to be worth it.
SIZES = [
    *range(70),
    *range(500, 600),
    *range(2_030, 2_200),
    4_095,
    4_096,
    16_384,
    RECORD_LIMITS["RECORD_BYTES_MAX"],
]


@pytest.mark.parametrize("vector", VECTORS["poly1305"], ids=lambda each: each["from"])
@pytest.mark.parametrize("wide", WIDE)
def test_poly1305_has_the_published_tags(vector: dict[str, str], wide: int) -> None:
    key, data, tag = (bytes.fromhex(vector[name]) for name in ("key", "data", "tag"))
    assert poly1305(key, data, wide=wide) == slow.poly1305(key, data) == tag
    for cut in range(1, len(data)):
        assert poly1305(key, data[:cut], data[cut:], wide=wide) == tag


@pytest.mark.parametrize("vector", VECTORS["chacha20"], ids=lambda each: each["from"])
def test_chacha20_has_the_published_blocks(vector: dict[str, str]) -> None:
    key, nonce, block = (bytes.fromhex(vector[name]) for name in ("key", "nonce", "block"))
    counter = int(vector["counter"])
    assert chacha20_block(key, counter, nonce) == slow.chacha20_block(key, counter, nonce) == block


@pytest.mark.parametrize("vector", VECTORS["one-time keys"], ids=lambda each: each["from"])
def test_one_time_keys_are_the_published_ones(vector: dict[str, str]) -> None:
    key, nonce, made = (bytes.fromhex(vector[name]) for name in ("key", "nonce", "one-time key"))
    assert chacha20_block(key, 0, nonce)[:32] == made
    if nonce[:4] == bytes(4):
        number = int.from_bytes(nonce[4:], "little")
        assert one_time_key(key, number) == slow.one_time_key(key, number) == made


@pytest.mark.parametrize("size", SIZES)
def test_tags_of_every_size_are_those_of_the_slow_python(size: int) -> None:
    rng = random.Random(size)
    for data in (rng.randbytes(size), b"\xff" * size, bytes(size)):
        for key in (rng.randbytes(32), b"\xff" * 32, bytes([2]) + bytes(31)):
            expected = slow.poly1305(key, data)
            for wide in WIDE:
                assert poly1305(key, data, wide=wide) == expected
                cuts = sorted(rng.randrange(size + 1) for _ in range(3))
                pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
                assert poly1305(key, *pieces, wide=wide) == expected


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
def test_one_time_keys_are_those_of_the_slow_python(key: bytes, number: int) -> None:
    assert one_time_key(key, number) == slow.one_time_key(key, number)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    for use in (lambda k: poly1305(k, b""), lambda k: one_time_key(k, 0)):
        with pytest.raises(ValueError, match="32 bytes"):
            use(key)
    with pytest.raises(ValueError, match="12 bytes"):
        chacha20_block(bytes(32), 0, bytes(8))
