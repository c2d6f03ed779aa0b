"""The bytes of the handshake: what is packed is parsed, and all else raises `ValueError`."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.node_keys import KEY_ID_BYTES
from rabble.cluster.decide.refusal import Refusal, RefusalCode

VECTORS = json.loads((Path(__file__).parent / "vectors" / "handshake.json").read_text())

u8 = st.integers(0, 2**8 - 1)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def hellos(draw: st.DrawFn) -> wire.Hello:
    size = draw(st.sampled_from((0, KEY_ID_BYTES)))
    flags = draw(st.integers(0, 2**16 - 1)) & ~(wire.NODE_KEY_FLAG | wire.LABELS_FLAG)
    labels = draw(st.none() | st.lists(st.binary(max_size=41), max_size=6).map(tuple))
    return wire.Hello(
        lowest=draw(u8),
        highest=draw(u8),
        flags=flags
        | (wire.NODE_KEY_FLAG if size else 0)
        | (wire.LABELS_FLAG if labels is not None else 0),
        incarnation=draw(u64),
        nonce=draw(st.binary(min_size=wire.NONCE_BYTES, max_size=wire.NONCE_BYTES)),
        cluster=draw(st.binary(max_size=255)),
        name=draw(st.binary(max_size=255)),
        addr=draw(st.binary(max_size=255)),
        message_bytes_max=draw(u64),
        key_id=draw(st.binary(min_size=size, max_size=size)),
        labels=labels or (),
    )


def test_the_vectors_are_what_the_page_says() -> None:
    """Computed from the page with nothing but hashlib and hmac."""

    def text(value: str) -> bytes:
        return bytes([len(value.encode())]) + value.encode()

    def hello(side: dict, flags: int) -> bytes:
        body = bytes([1, 1]) + flags.to_bytes(2, "big")
        body += int(side["incarnation"], 16).to_bytes(8, "big") + bytes.fromhex(side["nonce"])
        body += text(VECTORS["cluster"]) + text(side["name"]) + text(side["addr"])
        body += side["message_bytes_max"].to_bytes(8, "big")
        return bytes.fromhex("8e5242424c0d0a1a") + len(body).to_bytes(2, "big") + body

    def mac(label: bytes, said: bytes) -> bytes:
        data = b"rabble 1 " + label + hashlib.sha256(said).digest()
        return hmac.new(bytes.fromhex(VECTORS["key"]), data, hashlib.sha256).digest()

    def proof(role: bytes, said: bytes) -> bytes:
        return b"\x01\x00\x20" + mac(role, said)

    def verdict(what: bytes, body: bytes) -> bytes:
        message = what + (len(body) + 32).to_bytes(2, "big") + body
        return message + mac(b"verdict", transcript + message)

    said = [hello(VECTORS["initiator"], 0b111), hello(VECTORS["responder"], 0b101)]
    said.append(proof(b"initiator", b"".join(said)))
    said.append(proof(b"responder", b"".join(said)))
    transcript = b"".join(said)
    said.append(verdict(b"\x02", b""))
    assert [step["hex"] for step in VECTORS["said"]] == [data.hex() for data in said]
    refuse = b"\x08\x01\x01" + int(VECTORS["refuse"]["incarnation"], 16).to_bytes(8, "big")
    refuse += text(VECTORS["refuse"]["text"])
    assert VECTORS["refuse"]["hex"] == verdict(b"\x03", refuse).hex()
    assert VECTORS["stream keys"] == {
        role: mac(f"{role}'s stream".encode(), transcript).hex()
        for role in ("initiator", "responder")
    }


@given(hellos(), st.binary(max_size=20))
def test_a_hello_is_what_was_packed_whatever_a_later_version_adds(
    hello: wire.Hello, more: bytes
) -> None:
    whole = wire.pack_hello(hello)
    assert whole.startswith(wire.MAGIC)
    body = whole[wire.HELLO_HEAD :]
    assert int.from_bytes(whole[len(wire.MAGIC) : wire.HELLO_HEAD], "big") == len(body)
    assert wire.parse_hello(body + more) == hello


@given(hellos(), st.data())
def test_a_hello_that_is_cut_is_refused(hello: wire.Hello, data: st.DataObject) -> None:
    """But for the id of a key and for labels, of which a later version may have none."""
    hello = dataclasses.replace(hello, flags=hello.flags & ~wire.LABELS_FLAG, labels=())
    body = wire.pack_hello(hello)[wire.HELLO_HEAD :]
    body = body.removesuffix(hello.key_id)
    size = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(ValueError, match="HELLO"):
        wire.parse_hello(body[:size])


@given(st.binary(max_size=40))
def test_labels_are_read_as_far_as_there_are_any(rest: bytes) -> None:
    found = wire.labels_in(rest)
    if found is not None:
        written = b"".join(bytes([len(each)]) + each for each in found)
        assert rest.startswith(bytes([len(written)]) + written)


@pytest.mark.parametrize("rest", ["", "01", "ff", "4106", "0203", "020061ff03", "0102"])
def test_labels_that_exceed_what_is_there_are_none(rest: str) -> None:
    assert wire.labels_in(bytes.fromhex(rest)) is None


def test_labels_stand_behind_the_limits_and_the_key() -> None:
    hello = wire.Hello(
        1, 1, wire.LABELS_FLAG, 0, bytes(32), b"", b"", b"", 1, b"", (b"ssd", b"hdd")
    )
    assert wire.pack_hello(hello).endswith(bytes.fromhex("0000000000000001 08 03737364 03686464"))


def test_the_least_hello_has_three_empty_texts() -> None:
    least = wire.Hello(1, 1, 0, 0, bytes(wire.NONCE_BYTES), b"", b"", b"", 1)
    assert len(wire.pack_hello(least)) == wire.HELLO_HEAD + wire.HELLO_BODY_MIN


@given(st.sampled_from(RefusalCode), st.tuples(u8, u8), u64, st.text(max_size=400))
def test_a_refuse_is_what_was_packed_with_a_text_for_people(
    code: RefusalCode, versions: tuple[int, int], incarnation: int, text: str
) -> None:
    number = {code: incarnation, RefusalCode.BANNED: incarnation // 2}[code]
    whole = wire.pack_refuse(Refusal(code, text, incarnation, incarnation // 2), versions)
    assert whole[0] == wire.REFUSE
    body = whole[wire.FOLLOW_UP_HEAD :]
    assert int.from_bytes(whole[1 : wire.FOLLOW_UP_HEAD], "big") == len(body)
    assert len(body) <= wire.FOLLOW_UP_BODY_MAX
    assert wire.parse_refuse(body) == (code, versions, number, wire.printable(text))


@given(st.binary(max_size=300))
def test_whatever_a_peer_sends_as_refuse_is_read_or_refused(body: bytes) -> None:
    try:
        *_, text = wire.parse_refuse(body)
    except ValueError:
        return
    assert text.isascii() and len(text) <= wire.TEXT_CHARACTERS_MAX


@given(st.text(max_size=400))
def test_printable_is_printable_and_bounded(text: str) -> None:
    shown = wire.printable(text)
    assert shown.isascii() and shown.isprintable()
    assert len(shown) <= 200
    assert wire.printable(shown) == shown


def test_without_a_key_there_is_nothing_to_prove_with() -> None:
    transcript = hashlib.sha256(b"said").digest()
    assert wire.proof_of(None, wire.INITIATOR_LABEL, transcript) == b""
    key = bytes(wire.KEY_BYTES)
    assert len({wire.proof_of(key, label, transcript) for label in LABELS}) == len(LABELS)


#: What a proof of the one side is by, so that it is none of the other.
LABELS = (wire.INITIATOR_LABEL, wire.RESPONDER_LABEL)
