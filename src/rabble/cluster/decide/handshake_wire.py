"""The bytes of the handshake: docs/internals/wire-protocol.md, in code."""

from __future__ import annotations

import dataclasses
import hmac
import struct

from rabble.cluster.decide.node_keys import KEY_ID_BYTES
from rabble.cluster.decide.refusal import Refusal, RefusalCode

__all__ = [
    "ACCEPT",
    "FOLLOW_UP_HEAD",
    "GUEST_FLAG",
    "HANDSHAKE_BYTES_MAX",
    "HELLO_BODY_MAX",
    "HELLO_BODY_MIN",
    "HELLO_HEAD",
    "Hello",
    "INITIATOR_LABEL",
    "INITIATOR_STREAM_LABEL",
    "JOIN_FLAG",
    "KEY_BYTES",
    "KEY_FLAG",
    "LABELS_BYTES_MAX",
    "LABELS_FLAG",
    "MAC_BYTES",
    "MAGIC",
    "NODE_KEY_FLAG",
    "NONCE_BYTES",
    "PROOF",
    "REFUSAL_LABEL",
    "REFUSE",
    "RESPONDER_LABEL",
    "RESPONDER_STREAM_LABEL",
    "STREAM_FLAG",
    "TEXT_CHARACTERS_MAX",
    "VERDICT_LABEL",
    "follow_up",
    "pack_hello",
    "pack_refuse",
    "parse_hello",
    "parse_refuse",
    "printable",
    "proof_of",
    "stream_key_of",
]

MAGIC = bytes.fromhex("8e5242424c0d0a1a")
#: Bytes of handshake that a side takes.
HANDSHAKE_BYTES_MAX = 1_024
NONCE_BYTES = 32
KEY_BYTES = 32
#: Of a PROOF, and behind a verdict, in key mode.
MAC_BYTES = 32

#: Bytes in front of the body of a HELLO, and of what follows it.
HELLO_HEAD = len(MAGIC) + 2
FOLLOW_UP_HEAD = 3
#: The least is a HELLO of three empty texts.
HELLO_BODY_MIN = 55
HELLO_BODY_MAX = 1_000
FOLLOW_UP_BODY_MAX = 512

KEY_FLAG = 1
JOIN_FLAG = 2
STREAM_FLAG = 4
NODE_KEY_FLAG = 8
LABELS_FLAG = 16
GUEST_FLAG = 32

PROOF = 1
ACCEPT = 2
REFUSE = 3

INITIATOR_LABEL = b"rabble 1 initiator"
RESPONDER_LABEL = b"rabble 1 responder"
VERDICT_LABEL = b"rabble 1 verdict"
REFUSAL_LABEL = b"rabble 1 refusal"
INITIATOR_STREAM_LABEL = b"rabble 1 initiator's stream"
RESPONDER_STREAM_LABEL = b"rabble 1 responder's stream"

#: Characters that are kept of a peer's text, and sent of an own one.
TEXT_CHARACTERS_MAX = 200

HELLO_FIELDS = struct.Struct(">BBHQ32s")
#: Behind the texts: bytes of the longest message that the node takes.
HELLO_LIMITS = struct.Struct(">Q")
#: Bytes of all labels, each with its length in front.
LABELS_BYTES_MAX = 255
REFUSE_FIELDS = struct.Struct(">BBBQB")


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """The body of a HELLO. Its texts are bytes: nobody has looked at them yet."""

    lowest: int
    highest: int
    flags: int
    incarnation: int
    nonce: bytes
    cluster: bytes
    name: bytes
    addr: bytes
    message_bytes_max: int
    #: Of the key that the node alone has, with `NODE_KEY_FLAG`.
    key_id: bytes = b""
    #: With `LABELS_FLAG`; `None` where they exceed the HELLO.
    labels: tuple[bytes, ...] | None = ()


def pack_hello(hello: Hello) -> bytes:
    """A whole HELLO, magic and length included."""
    body = HELLO_FIELDS.pack(
        hello.lowest, hello.highest, hello.flags, hello.incarnation, hello.nonce
    )
    for text in (hello.cluster, hello.name, hello.addr):
        body += bytes([len(text)]) + text
    body += HELLO_LIMITS.pack(hello.message_bytes_max) + hello.key_id
    if hello.flags & LABELS_FLAG:
        labels = b"".join(bytes([len(label)]) + label for label in hello.labels or ())
        body += bytes([len(labels)]) + labels
    return MAGIC + len(body).to_bytes(2, "big") + body


def parse_hello(body: bytes) -> Hello:
    """Take a HELLO's body apart; bytes behind the known fields are ignored.

    :raises ValueError: if a text is longer than what is left, or nothing is left for the limits.
    """
    if len(body) < HELLO_BODY_MIN:
        raise ValueError(f"a HELLO of {len(body)} bytes, the least is {HELLO_BODY_MIN}")
    texts = []
    at = HELLO_FIELDS.size
    for what in ("cluster id", "name", "address"):
        end = at + 1 + body[at] if at < len(body) else len(body) + 1
        if end > len(body):
            raise ValueError(f"the {what} exceeds the HELLO")
        texts.append(body[at + 1 : end])
        at = end
    if at + HELLO_LIMITS.size > len(body):
        raise ValueError("the limits exceed the HELLO")
    lowest, highest, flags, incarnation, nonce = HELLO_FIELDS.unpack_from(body)
    message_bytes_max = int.from_bytes(body[at : at + HELLO_LIMITS.size], "big")
    at += HELLO_LIMITS.size
    # Whether it is whole is asked once the version is known.
    key_id = body[at : at + KEY_ID_BYTES] if flags & NODE_KEY_FLAG else b""
    at += len(key_id)
    labels = labels_in(body[at:]) if flags & LABELS_FLAG else ()
    cluster, name, addr = texts
    return Hello(
        lowest,
        highest,
        flags,
        incarnation,
        nonce,
        cluster,
        name,
        addr,
        message_bytes_max,
        key_id,
        labels,
    )


def labels_in(rest: bytes) -> tuple[bytes, ...] | None:
    """The labels that a HELLO goes on with; `None` if they are longer than what there is."""
    labels = []
    said = rest[1 : 1 + rest[0]] if rest else b""
    at = 0
    while at < len(said):
        end = at + 1 + said[at]
        if end > len(said):
            return None
        labels.append(said[at + 1 : end])
        at = end
    return tuple(labels) if rest and len(said) == rest[0] else None


def follow_up(what: int, body: bytes = b"", mac_bytes: int = 0) -> bytes:
    """A whole PROOF, ACCEPT or REFUSE.

    :param mac_bytes: of a MAC that is still to follow, and counts.
    """
    return bytes([what]) + (len(body) + mac_bytes).to_bytes(2, "big") + body


def pack_refuse(refusal: Refusal, versions: tuple[int, int], mac_bytes: int = 0) -> bytes:
    """A whole REFUSE, with the versions that the refuser speaks."""
    text = printable(refusal.text).encode("ascii")
    number = refusal.ban_s if refusal.code is RefusalCode.BANNED else refusal.incarnation
    fields = REFUSE_FIELDS.pack(refusal.code, *versions, number, len(text))
    return follow_up(REFUSE, fields + text, mac_bytes)


def parse_refuse(body: bytes) -> tuple[int, tuple[int, int], int, str]:
    """A REFUSE's code, versions, number and text, which is made `printable`.

    The number is an incarnation or seconds, as the code has it.

    :raises ValueError: if it is too short.
    """
    if len(body) < REFUSE_FIELDS.size:
        raise ValueError(f"a REFUSE of {len(body)} bytes, the least is {REFUSE_FIELDS.size}")
    code, lowest, highest, number, size = REFUSE_FIELDS.unpack_from(body)
    text = body[REFUSE_FIELDS.size : REFUSE_FIELDS.size + size]
    if len(text) < size:
        raise ValueError("the text exceeds the REFUSE")
    return code, (lowest, highest), number, printable(text.decode("utf-8", "replace"))


def printable(text: str) -> str:
    """A text in printable ASCII, at most 200 characters: escaped if need be, then cut."""
    shown = text
    if not (text.isascii() and text.isprintable()):
        # Cut first, too: there is no need to escape what nobody will see.
        shown = ascii(text[: TEXT_CHARACTERS_MAX + 1])[1:-1]
    if len(shown) <= TEXT_CHARACTERS_MAX:
        return shown
    return shown[: TEXT_CHARACTERS_MAX - 3] + "..."


def proof_of(key: bytes | None, label: bytes, transcript: bytes) -> bytes:
    """The body of a PROOF: HMAC-SHA256 (RFC 2104), or nothing in the mode without a key.

    :param transcript: SHA-256 of all handshake bytes before the PROOF, in both directions.
    """
    return b"" if key is None else hmac.digest(key, label + transcript, "sha256")


def stream_key_of(key: bytes, label: bytes, transcript: bytes) -> bytes:
    """The key of the records that one side sends.

    :param transcript: SHA-256 of both HELLOs and both PROOFs.
    """
    return hmac.digest(key, label + transcript, "sha256")
