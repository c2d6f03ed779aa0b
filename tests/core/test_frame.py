"""The frame cutter: whatever comes in whichever pieces, the same frames or the same refusal."""

from __future__ import annotations

import re
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core import frame as frame_module
from rabble._core.errors import FrameError
from rabble._core.frame import FRAME_KINDS, REFUSAL_CODES, split_frame
from tests.reference import session as reference
from tests.reference.session import frame

KINDS = sorted(reference.SHAPES)
FRAME_TOO_LARGE, PROTOCOL = REFUSAL_CODES["FRAME_TOO_LARGE"], REFUSAL_CODES["PROTOCOL"]
CACHE_PID = frame(1, 0, b"\0\0n::n@h:1")
#: One frame of every kind, and those whose flags make them longer.
SAMPLES = [
    CACHE_PID,
    frame(2, 0, b"\0\0\7"),
    frame(2, 1, b"\0\0\0\1\7"),
    frame(2, 0x0F, bytes(22) + b"\7"),
    frame(2, 0x1F, 3 * b"\0\x08n::n@h:1" + bytes(16) + b"\7"),
    frame(3, 1, b"\0\0\0\x0c\x10"),
    frame(3, 0, b"x"),
    frame(3, 2, bytes(100)),
    frame(4, 0, bytes(12)),
    frame(5, 0, bytes(12)),
    frame(2, 0x23, bytes(6) + b"\7"),
    frame(6, 0, bytes(21)),
    frame(6, 16, 2 * b"\0\x08n::n@h:1" + bytes(8) + b"\1" + bytes(8) + b"why"),
    frame(9, 0, bytes(12)),
    frame(9, 16, 2 * b"\0\x08n::n@h:1" + bytes(8)),
    frame(10, 0, bytes(12)),
    frame(11, 0, bytes(21)),
    frame(7, 0, bytes(13)),
    frame(7, 14, bytes(31) + b"why"),
    frame(8, 0, bytes(4)),
    frame(16, 1, bytes(16)),
    frame(17, 0, bytes(16)),
    frame(18, 0, b"\x14\0"),
    frame(8, 16, bytes(4)),
    frame(19, 0, b"\x80"),
    frame(20, 0, bytes(8)),
]


def outcome(function, *args):
    """What it returns, or the code of its refusal."""
    try:
        return function(*args)
    except (FrameError, reference.Wrong) as error:
        return error.code


def frames_of(pieces):
    """What a reader that gets these pieces cuts: frames, then what refuses the next one, if any."""
    found, waiting = [], b""
    for piece in pieces:
        waiting += piece
        while result := outcome(split_frame, waiting):
            if type(result) is int:
                return [*found, result]
            found.append(result[:3])
            waiting = waiting[result[3] :]
    return [*found, len(waiting)] if waiting else found


def test_the_kinds_are_those_of_the_page():
    page = Path(__file__).parents[2] / "docs" / "internals" / "wire-protocol.md"
    table = page.read_text().split("\n## Frames\n", 1)[1].split("**Lanes.**", 1)[0]
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", table, flags=re.M)
    assert {name: int(number) for number, name in rows} == FRAME_KINDS
    assert sorted(FRAME_KINDS.values()) == KINDS


def test_python_knows_each_number_that_the_core_has():
    summary = Path(frame_module.__file__).with_name("frame.pxd").read_text()
    kinds = summary.split("cdef enum FrameKind:", 1)[1].split("cdef enum", 1)[0]
    found = re.findall(r"^    ([A-Z_]+) = (\d+)", kinds, flags=re.M)
    assert {name: int(number) for name, number in found} == FRAME_KINDS
    found = re.findall(r"^    CODE_(\w+) = (\d+)$", summary, flags=re.M)
    assert {name: int(number) for name, number in found} == REFUSAL_CODES


def test_the_samples_are_of_every_kind_and_whole():
    assert {data[4] for data in SAMPLES} == set(KINDS)
    for data in SAMPLES:
        assert split_frame(data) == (data[4], data[5], data[6:], len(data))


@given(st.lists(st.sampled_from(SAMPLES), max_size=20), st.data())
def test_any_pieces_give_the_same_frames(frames, draw):
    data = b"".join(frames)
    ends = draw.draw(st.lists(st.integers(0, len(data)), max_size=20).map(sorted))
    pieces = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    expected = [(one[4], one[5], one[6:]) for one in frames]
    assert frames_of(pieces) == expected
    assert frames_of(data[i : i + 1] for i in range(len(data))) == expected


@given(st.binary(max_size=40))
def test_any_bytes_are_cut_as_in_the_reference(data):
    assert outcome(split_frame, data) == outcome(reference.split_frame, data)


@given(st.sampled_from([*KINDS, 0, 12, 15, 21, 255]), st.integers(0, 255), st.binary(max_size=70))
def test_any_kind_and_flags_and_size_are_judged_as_in_the_reference(kind, flags, body):
    data = frame(kind, flags, body)
    for end in (4, 6, len(data) - 1, len(data)):
        assert outcome(split_frame, data[:end]) == outcome(reference.split_frame, data[:end])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [0, 1, 2, 3, 14, 16, 31])
def test_sizes_around_every_bound_are_judged_as_in_the_reference(kind, flags):
    for size in (*range(44), 257, 258, 1005, 1006, 1027, 1028, 2038, 2039, 3055, 3056):
        data = frame(kind, flags, bytes(size))
        assert outcome(split_frame, data) == outcome(reference.split_frame, data)


# The length alone is enough to refuse.
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\0\0\0\0", PROTOCOL),
        (b"\0\0\0\1", PROTOCOL),
        (struct.pack(">I", (1 << 20) + 1), FRAME_TOO_LARGE),
        (b"\xff\xff\xff\xff", FRAME_TOO_LARGE),
        (b"GET / HTTP/1.1\r\n", FRAME_TOO_LARGE),
    ],
)
def test_an_impossible_length_is_refused_at_once(data, code):
    for end in range(4):
        assert split_frame(data[:end]) is None
    assert outcome(split_frame, data[:4]) == outcome(split_frame, data) == code


def test_the_longest_frame_is_a_matter_of_the_reader():
    data = frame(19, 0, bytes(98))
    assert split_frame(data, 100) is not None
    assert outcome(split_frame, data, 99) == FRAME_TOO_LARGE
    assert split_frame(struct.pack(">I", 1 << 20), 1 << 20) is None


# Kind and flags are refused before anything of the body is waited for.
@pytest.mark.parametrize(
    "header", ["0000ffff 0000", "0000ffff 0900", "0000ffff 0220", "0000ffff 0400"]
)
def test_what_no_body_can_mend_is_refused_with_the_header(header):
    data = bytes.fromhex(header)
    assert split_frame(data[:5]) is None
    assert outcome(split_frame, data) == PROTOCOL


def test_what_is_claimed_allocates_nothing():
    data = struct.pack(">IBB", 1 << 20, 19, 0)
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert split_frame(data) is None
            assert outcome(split_frame, b"\xff" * 8) == FRAME_TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
