"""Fragments: what comes in parts is whole or refused, and takes no more memory than came."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from rabble._core.envelope import Envelope
from rabble._core.errors import SessionError
from rabble._core.fragments import UnfinishedMessages
from tests.core.sessions import FRAGMENT, RECEIVER, B, expect_same, read, reader, session
from tests.reference.session import frame


def test_bytes_longer_than_what_is_set_aside_for_them_grow():
    payload = random.Random(1).randbytes((9 << 20) + 5)
    assert reader().decode(session().encode(Envelope(RECEIVER, payload)))[0].msg == payload


@pytest.mark.parametrize("claimed", [0, 99, 101, 1 << 31])
@pytest.mark.parametrize("first", [10, 13, 14, 15, 60])
def test_bytes_in_fragments_that_are_not_as_long_as_they_say_are_refused(claimed, first):
    to = f"p@{B}".encode()
    head = bytes([16]) + struct.pack(">H", len(to)) + to
    whole = head + b"\xc6" + struct.pack(">I", claimed) + bytes(100)
    data = frame(FRAGMENT, 1, struct.pack(">I", len(whole)) + whole[:first])
    data += frame(FRAGMENT, 2, whole[first:])
    assert read(reader(), data)[1] is not None
    expect_same(data)
    expect_same(data.replace(struct.pack(">I", claimed), struct.pack(">I", 100), 1))


def test_memory_for_fragments_grows_with_what_came():
    to = reader()
    head = b"\x10\0\x08n::b@h:2"
    tracemalloc.start()
    try:
        to.decode(frame(FRAGMENT, 1, struct.pack(">I", 64 << 20) + head))
        assert tracemalloc.get_traced_memory()[0] < 10_000
        for _ in range(16):
            to.decode(frame(FRAGMENT, 0, bytes(65_536)))
        assert tracemalloc.get_traced_memory()[0] < 2 * 16 * 65_536 + 100_000
        with pytest.raises(SessionError):
            to.decode(frame(FRAGMENT, 2, b"x"))
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


# The messages of several connections together.

HEAD = b"\x10\0\x08n::b@h:2"


def part(flags: int, data: bytes, claimed: int = 1 << 20) -> bytes:
    return frame(FRAGMENT, flags, (struct.pack(">I", claimed) + HEAD if flags & 1 else b"") + data)


def test_what_is_unfinished_is_counted_until_it_is_complete_or_dropped():
    unfinished = UnfinishedMessages(1 << 30)
    readers = [reader(unfinished=unfinished) for _ in range(3)]
    assert unfinished.bytes == 0 and readers[0].unfinished_ns == 0
    for i, to in enumerate(readers):
        to.decode(part(1, bytes(100 * (i + 1))))
    assert unfinished.bytes == 600 + 3 * (4 + len(HEAD))
    assert 0 < readers[0].unfinished_ns < 10**11
    # One breaks a rule, one ends, one is complete.
    with pytest.raises(SessionError):
        readers[0].decode(part(1, b"x"))
    readers.pop(1)
    assert unfinished.bytes == 300 + 4 + len(HEAD)
    data = bytes(300)
    tail = b"\xc5" + struct.pack(">H", 5_000) + bytes(5_000)
    whole = len(HEAD) + len(tail)
    other = reader(unfinished=unfinished)
    other.decode(part(1, tail[:3_000], whole))
    assert unfinished.bytes == 300 + 3_000 + 2 * (4 + len(HEAD))
    [envelope] = other.decode(part(2, tail[3_000:]))
    assert len(envelope.msg) == 5_000 and other.unfinished_ns == 0
    assert unfinished.bytes == len(data) + 4 + len(HEAD)
    readers.clear()
    del to
    assert unfinished.bytes == 0


def test_of_too_much_that_is_unfinished_the_largest_gives_way_and_ends_its_connection():
    unfinished = UnfinishedMessages(100_000)
    greedy, honest = (reader(unfinished=unfinished) for _ in range(2))
    greedy.decode(part(1, bytes(60_000)))
    honest.decode(part(1, bytes(30_000)))
    honest.decode(part(0, bytes(20_000)))
    assert unfinished.bytes < 60_000 and greedy.unfinished_ns == 0
    with pytest.raises(SessionError, match="had most bytes of all unfinished ones"):
        greedy.decode(part(0, b"x"))
    # The one that has most itself ends at once.
    honest.decode(part(0, bytes(40_000)))
    with pytest.raises(SessionError, match="have more than 100000 bytes, and this one 1") as caught:
        honest.decode(part(0, bytes(20_000)))
    assert caught.value.code == 19  # LIMIT
    assert unfinished.bytes == 0


def test_ten_connections_hold_no_more_than_they_may_together():
    unfinished = UnfinishedMessages(4 << 20)
    readers = [reader(unfinished=unfinished) for _ in range(10)]
    ended = set()
    tracemalloc.start()
    try:
        for turn in range(40):
            for i, to in enumerate(readers):
                if i in ended:
                    continue
                try:
                    to.decode(part(int(turn == 0), bytes(64_000), 64 << 20))
                except SessionError as error:
                    assert error.code == 19
                    ended.add(i)
                assert unfinished.bytes <= 4 << 20
            assert tracemalloc.get_traced_memory()[0] < 2 * (4 << 20) + 500_000
    finally:
        tracemalloc.stop()
    assert len(ended) >= 8


def test_bytes_that_are_unfinished_are_counted_as_others_are():
    unfinished = UnfinishedMessages(1 << 20)
    payload = random.Random(1).randbytes(900_000)
    data = session().encode(Envelope(RECEIVER, payload))
    assert reader(unfinished=unfinished).decode(data)[0].msg == payload
    assert unfinished.bytes == 0
    with pytest.raises(SessionError):
        reader(unfinished=unfinished).decode(
            session().encode(Envelope(RECEIVER, payload + payload))
        )
    assert unfinished.bytes == 0


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(ValueError, match="bytes_max must be 1 or more"):
        UnfinishedMessages(0)
