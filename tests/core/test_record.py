"""Records: those of the protocol's page, and those of the slow Python."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.record import RECORD_LIMITS, Records
from tests.reference import records as slow

VECTORS = json.loads((Path(__file__).parent / "vectors" / "records.json").read_text())
KEY = bytes(range(32))
HEAD, BODY_MAX = RECORD_LIMITS["RECORD_HEAD"], RECORD_LIMITS["RECORD_BYTES_MAX"]


def test_the_records_of_the_protocols_page() -> None:
    page = VECTORS["records"]
    records = Records(bytes.fromhex(page["key"]))
    verifying = Records(bytes.fromhex(page["key"]))
    for number, each in enumerate(page["said"]):
        body, record = bytes.fromhex(each["body"]), bytes.fromhex(each["record"])
        assert records.seal(body) == slow.seal(bytes.fromhex(page["key"]), number, body) == record
        assert verifying.verify(record) == len(body)


@given(st.binary(min_size=32, max_size=32), st.lists(st.lists(st.binary(), max_size=8), max_size=5))
def test_records_are_those_of_the_slow_python(key: bytes, said: list[list[bytes]]) -> None:
    sealing, verifying, sealer = Records(key), Records(key), slow.Sealer(key)
    verifier = slow.Verifier(key)
    for pieces in said:
        body = b"".join(pieces)
        if not body:
            continue
        record = sealing.seal(*pieces)
        assert record == sealer.seal(body)
        assert verifying.verify(record + b"what follows") == len(body)
        assert verifier.take(record) == body
    assert sealing.count == verifying.count == verifier.count


@given(st.data())
def test_no_bit_of_a_record_can_change(data: st.DataObject) -> None:
    body = data.draw(st.binary(min_size=1, max_size=600))
    record = bytearray(Records(KEY).seal(body))
    bit = data.draw(st.integers(0, 8 * len(record) - 1))
    record[bit // 8] ^= 1 << bit % 8
    # One that claims to be longer is waited for.
    longer = int.from_bytes(record[:4], "big") > len(body)
    verifying = Records(KEY)
    assert verifying.verify(bytes(record)) <= 0
    assert verifying.verify(bytes(record) + bytes(BODY_MAX)) == -1
    assert longer or verifying.verify(bytes(record)) == -1
    assert verifying.count == 0


def test_only_the_next_record_verifies() -> None:
    sealing, other = Records(KEY), Records(bytes(32))
    first, second = sealing.seal(b"first"), sealing.seal(b"second")
    verifying = Records(KEY)
    assert verifying.verify(second) == -1
    assert verifying.verify(other.seal(b"first")) == -1
    assert verifying.verify(first) == 5
    assert verifying.verify(first) == -1
    assert verifying.verify(second) == 6


def test_a_record_is_waited_for_until_it_is_whole() -> None:
    record = Records(KEY).seal(b"body")
    verifying = Records(KEY)
    for size in range(len(record)):
        assert verifying.verify(record[:size]) == 0
    assert verifying.verify(record) == 4


@pytest.mark.parametrize("size", [0, BODY_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_that_cannot_be_is_seen_at_once(size: int) -> None:
    assert Records(KEY).verify(size.to_bytes(4, "big")) == -1


def test_the_longest_record() -> None:
    body = random.Random(1).randbytes(BODY_MAX)
    record = Records(KEY).seal(body[:7], body[7:])
    assert (HEAD, BODY_MAX) == (slow.HEAD, slow.BODY_MAX)
    assert record == slow.seal(KEY, 0, body)
    assert Records(KEY).verify(record) == BODY_MAX
    with pytest.raises(ValueError, match="no record"):
        Records(KEY).seal(body, b"x")


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Records(key)
