"""The frames of clients, read and written: the protocol in msgpack, against the plain codec."""

from __future__ import annotations

import datetime
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble._core.client_codec import ClientCodec
from rabble._core.client_messages import Incoming, Outgoing
from rabble._core.codec import Codec
from rabble._core.debug import CAPACITIES
from rabble.errors import DecodeError, EncodeError
from rabble.registry import MessageRegistry

CODEC = Codec(MessageRegistry())


def codec(**bounds: int) -> ClientCodec:
    return ClientCodec(Codec(MessageRegistry(), **bounds))


def read(frame: Any) -> Any:
    return codec().read_frame(CODEC.encode_message(frame))


def written(*args: Any, **more: Any) -> Any:
    data = codec().write_frame(*args, **more)
    assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
    return CODEC.decode_message(data[4:])


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ([0, 7, "x"], ("x", 7, 0)),
        ([0, 2**53 - 1, ("a", 1), -1], (("a", 1), 2**53 - 1, -1)),
        ([0, 0, None, 1, "later", [1, 2]], (None, 0, 1)),
        ([1, datetime.date(2024, 2, 29)], (datetime.date(2024, 2, 29), None, 0)),
        ([1, "x", "later"], ("x", None, 0)),
    ],
)
def test_frames_of_clients(frame: list[Any], expected: Any) -> None:
    assert read(frame) == expected


@pytest.mark.parametrize(
    "kind", ["00", "cc00", "cd0000", "ce00000000", "d000", "d30000000000000000"]
)
@pytest.mark.parametrize("key", ["07", "cc07", "cf0000000000000007", "d10007"])
def test_integers_are_those_of_msgpack_in_as_many_bytes_as_a_client_likes(
    kind: str, key: str
) -> None:
    assert codec().read_frame(bytes.fromhex(f"93{kind}{key}a178")) == ("x", 7, 0)
    one = kind[:-1] + "1"
    assert codec().read_frame(bytes.fromhex(f"92{one}a178")) == ("x", None, 0)


@pytest.mark.parametrize("kind", ["02", "cc02", "ff", "c2", "c3", "cb0000000000000000", "c1", "cd"])
def test_what_is_no_kind_of_frame(kind: str) -> None:
    with pytest.raises(DecodeError):
        codec().read_frame(bytes.fromhex(f"93{kind}07a178"))


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [0],
        [0, 1],
        [1],
        [2, 1, "x"],
        ["0", 1, "x"],
        [0, -1, "x"],
        [0, 2**53, "x"],
        [0, "1", "x"],
        [0, True, "x"],
        [0, 1.0, "x"],
        [0, 1, "x", 2],
        [0, 1, "x", None],
        [0, 1, "x", True],
        {0: 1, 1: 2},
        "text",
        7,
        None,
        (0, 1, "x"),
    ],
)
def test_what_is_no_frame(frame: Any) -> None:
    with pytest.raises(DecodeError):
        read(frame)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    try:
        _, key, priority = codec().read_frame(data)
    except DecodeError:
        return
    assert (key is None or 0 <= key < 2**53) and priority in (-1, 0, 1)


def test_bytes_behind_a_frame() -> None:
    with pytest.raises(DecodeError, match="too many"):
        codec().read_frame(CODEC.encode_message([1, "x"]) + b"\x00")


def test_frames_for_clients() -> None:
    assert written("answer", 7, ("x", 1)) == [0, 7, ("x", 1)]
    assert written("failure", 7, code="timeout", text="late") == [1, 7, "timeout", "late"]
    assert written("nack", 2**53 - 1, text="busy", retry_ms=2**40) == [2, 2**53 - 1, 2**40, "busy"]
    assert written("push", value=None) == [3, None]
    assert written("goodbye", code="idle", text="x" * 900)[:2] == [4, "idle"]
    assert len(written("goodbye", code="c" * 900, text="x" * 900)[1]) <= 40


def test_what_cannot_be_written_leaves_the_codec_as_it_was() -> None:
    one = codec(message_bytes_max=100)
    with pytest.raises(EncodeError, match="object cannot be"):
        one.write_frame("answer", 1, object())
    with pytest.raises(EncodeError, match="more than 100 bytes"):
        one.write_frame("answer", 1, "x" * 200)
    assert CODEC.decode_message(one.write_frame("answer", 1, "x")[4:]) == [0, 1, "x"]


def test_a_long_message_is_written_and_read_whole() -> None:
    text = "x" * (2 * CAPACITIES["ENCODE_BYTES_KEPT"])
    one = codec()
    for _ in range(2):
        data = one.write_frame("push", value=text)
        assert CODEC.decode_message(data[4:]) == [3, text]
    assert one.write_frame("push", value=1) == b"\x00\x00\x00\x03\x92\x03\x01"


def functions(**more: Any) -> ClientCodec:
    def decode(data: bytes) -> Any:
        return {b"none": None, b"id": Incoming("x", -1), b"prio": Incoming("x", 1, 7)}.get(
            data, Incoming(data, 3, 1)
        )

    def encode(out: Outgoing) -> Any:
        if out.value == "no bytes":
            return "text"
        return f"{out.kind} {out.id} {out.value} {out.code} {out.retry_after_ms}".encode()

    return ClientCodec(None, decode, encode, **more)


def test_a_codec_of_two_functions() -> None:
    one = functions()
    assert one.read_frame(b"abc") == (b"abc", 3, 1)
    assert one.write_frame("answer", 1, 5) == b"\x00\x00\x00\ranswer 1 5  0"
    lines = functions(delimiter=ord("\n"))
    assert lines.write_frame("nack", 1, retry_ms=9) == b"nack 1 None  9\n"
    for data in b"none", b"id", b"prio":
        with pytest.raises(DecodeError):
            one.read_frame(data)
    with pytest.raises(EncodeError, match="and no bytes"):
        one.write_frame("answer", 1, "no bytes")
    with pytest.raises(EncodeError, match="its own delimiter"):
        lines.write_frame("answer", 1, "two\nlines")
    # An empty frame is one.
    empty = ClientCodec(None, Incoming, lambda out: b"")
    assert empty.write_frame("answer", 1) == b"\x00\x00\x00\x00"
