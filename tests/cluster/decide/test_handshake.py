"""The handshake: its bytes, its turns, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from rabble import Limits, Mesh, NodeId
from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.handshake import (
    Action,
    Authenticate,
    Authorize,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Peer,
    Role,
    Send,
)
from rabble.cluster.decide.node_keys import NodeKey, derived
from rabble.cluster.decide.refusal import Refusal, RefusalCode

VECTORS = json.loads((Path(__file__).parent / "vectors" / "handshake.json").read_text())

A = NodeId("alpha", "10.0.0.1:7000")
B = NodeId("beta", "10.0.0.2:7000")
KEY = bytes(range(32))
NONCE_A = b"a" * 32
NONCE_B = b"b" * 32
# Of the first version, which the vectors are of.
AT_A = HandshakeConfig(A, 11, "shop", KEY, versions=(1, 1))
AT_B = HandshakeConfig(B, 22, "shop", KEY, versions=(1, 1))
OPEN_A = dataclasses.replace(AT_A, key=None, secured=True)
OPEN_B = dataclasses.replace(AT_B, key=None, secured=True)


class Side:
    """A handshake with all that it said and came to."""

    def __init__(
        self, handshake: Handshake, verdict: Refusal | None = None, answers: bool = True
    ) -> None:
        self.handshake = handshake
        self.verdict = verdict
        self.answers = answers
        self.received = b""
        self.sent = b""
        self.unread = b""
        self.answered: Peer | None = None
        self.judged: Peer | None = None
        self.end: Established | Failed | None = None
        self.take(handshake.start())

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.end is None, f"{action} after the end"
            if isinstance(action, Send):
                self.write(action.data)
            elif isinstance(action, Authenticate):
                assert self.answered is None
                self.answered = action.peer
                if self.verdict is not None:
                    self.take(self.handshake.refuse(self.verdict))
                else:
                    self.write(action.proof)
            elif isinstance(action, Authorize):
                assert self.judged is None
                self.judged = action.peer
                if self.answers:
                    self.take(self.handshake.decide(self.verdict))
            else:
                self.end = action
        assert self.handshake.done == (self.end is not None)

    def write(self, data: bytes) -> None:
        assert data
        self.sent += data
        self.unread += data

    def hear(self, data: bytes, now: float = 0.0) -> None:
        """What the stream brings; a server reads no more once the handshake is done."""
        if self.end is None:
            self.received += data
            self.take(self.handshake.receive(data, now))

    def tick(self, now: float) -> None:
        self.take(self.handshake.tick(now))

    def flush(self) -> bytes:
        data, self.unread = self.unread, b""
        return data

    @property
    def failed(self) -> Failed:
        assert isinstance(self.end, Failed), self.end
        return self.end

    @property
    def established(self) -> Established:
        assert isinstance(self.end, Established), self.end
        return self.end

    @property
    def stream_keys(self) -> tuple[bytes, bytes] | None:
        return self.established.stream_keys


def initiator(
    config: HandshakeConfig = AT_A,
    nonce: bytes = NONCE_A,
    verdict: Refusal | None = None,
    **more,
) -> Side:
    return Side(Handshake(Role.INITIATOR, config, nonce, 0.0, **more), verdict)


def responder(
    config: HandshakeConfig = AT_B,
    nonce: bytes = NONCE_B,
    verdict: Refusal | None = None,
    answers: bool = True,
    **more,
) -> Side:
    return Side(Handshake(Role.RESPONDER, config, nonce, 0.0, **more), verdict, answers)


def talk(left: Side, right: Side) -> None:
    """Carry what both say until they are silent."""
    while left.unread or right.unread:
        if data := left.flush():
            right.hear(data)
        if data := right.flush():
            left.hear(data)


def refusals(data: bytes) -> list[tuple[int, tuple[int, int], int, str]]:
    """The REFUSE in what a responder said, behind a PROOF if there is one."""
    if data[:1] == bytes([wire.PROOF]):
        data = data[3 + int.from_bytes(data[1:3], "big") :]
    assert data[:1] == bytes([wire.REFUSE])
    assert len(data) == 3 + int.from_bytes(data[1:3], "big")
    return [wire.parse_refuse(data[3:])]


def hello_of(
    config: HandshakeConfig = AT_A, nonce: bytes = NONCE_A, extra: bytes = b"", **changes
) -> bytes:
    """A HELLO with some fields replaced."""
    hello = wire.Hello(
        *config.versions,
        wire.KEY_FLAG | wire.STREAM_FLAG if config.key is not None else 0,
        config.incarnation,
        nonce,
        config.cluster.encode(),
        config.own.name.encode(),
        config.own.addr.encode(),
        config.message_bytes_max,
    )
    whole = wire.pack_hello(dataclasses.replace(hello, **changes)) + extra
    size = len(whole) - wire.HELLO_HEAD
    return whole[:8] + size.to_bytes(2, "big") + whole[10:]


# The good case, and its bytes.


@pytest.mark.parametrize("configs", [(AT_A, AT_B), (OPEN_A, OPEN_B)], ids=["key", "no key"])
@pytest.mark.parametrize("join", [False, True])
def test_both_sides_come_to_know_each_other(
    configs: tuple[HandshakeConfig, HandshakeConfig], join: bool
) -> None:
    left, right = initiator(configs[0], join=join, expected=B), responder(configs[1])
    talk(left, right)
    assert left.established == Established(Peer(B, 22, False, 1), b"", left.stream_keys)
    assert right.established == Established(Peer(A, 11, join, 1), b"", right.stream_keys)
    assert (left.stream_keys is None) == (configs[0].key is None)
    assert right.judged == right.established.peer


def test_each_side_is_told_how_long_a_message_the_other_takes() -> None:
    left = initiator(dataclasses.replace(AT_A, message_bytes_max=5), expected=B)
    right = responder(dataclasses.replace(AT_B, message_bytes_max=2**64 - 1))
    talk(left, right)
    assert left.established.peer.message_bytes_max == 2**64 - 1
    assert right.established.peer.message_bytes_max == 5
    for wrong in (0, -1, 2**64):
        with pytest.raises(ValueError, match="message_bytes_max"):
            dataclasses.replace(AT_A, message_bytes_max=wrong)


def from_vectors(who: str) -> tuple[HandshakeConfig, bytes]:
    side = VECTORS[who]
    config = HandshakeConfig(
        NodeId(side["name"], side["addr"]),
        int(side["incarnation"], 16),
        VECTORS["cluster"],
        bytes.fromhex(VECTORS["key"]),
        message_bytes_max=side["message_bytes_max"],
        versions=(1, 1),
    )
    return config, bytes.fromhex(side["nonce"])


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_said_are_the_vectors(refused: bool) -> None:
    said = [bytes.fromhex(step["hex"]) for step in VECTORS["said"]]
    refuse = VECTORS["refuse"]
    incarnation = int(refuse["incarnation"], 16)
    verdict = Refusal(RefusalCode.STALE_INCARNATION, refuse["text"], incarnation)
    left = initiator(*from_vectors("initiator"), join=True)
    right = responder(*from_vectors("responder"), verdict=verdict if refused else None)
    talk(left, right)
    assert left.sent == said[0] + said[2]
    assert right.sent == said[1] + said[3] + (bytes.fromhex(refuse["hex"]) if refused else said[4])
    if refused:
        text = f"the peer refused: {refuse['text']}"
        assert left.failed == Failed(
            RefusalCode.STALE_INCARNATION, text, True, incarnation, by_peer=True
        )
    else:
        assert left.established.peer.node.name == VECTORS["responder"]["name"]
        keys = tuple(bytes.fromhex(VECTORS["stream keys"][who.value]) for who in Role)
        assert left.stream_keys == keys
        assert right.stream_keys == keys[::-1]


def test_bytes_behind_accept_are_handed_over_whatever_their_number() -> None:
    left, right = initiator(), responder()
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush())
    frames = bytes(range(256)) * 300
    left.hear(right.flush() + frames)
    assert left.established.leftover == frames


def test_bytes_behind_the_known_fields_are_hashed_and_ignored() -> None:
    theirs = hello_of(extra=b"later versions say more")
    right = responder()
    right.hear(theirs)
    said = hashlib.sha256(theirs + right.flush()).digest()
    right.hear(wire.follow_up(1, wire.proof_of(KEY, wire.INITIATOR_LABEL, said)))
    assert right.established.peer == Peer(A, 11, False, 1)
    # Had they not been hashed, this proof would be right.
    right = responder()
    right.hear(theirs)
    said = hashlib.sha256(hello_of() + right.flush()).digest()
    right.hear(wire.follow_up(1, wire.proof_of(KEY, wire.INITIATOR_LABEL, said)))
    assert right.failed.code is RefusalCode.AUTH


def proven(key: bytes, transcript: bytes, what: int, body: bytes) -> bytes:
    """A verdict with its MAC."""
    verdict = wire.follow_up(what, body, wire.MAC_BYTES)
    digest = hashlib.sha256(transcript + verdict).digest()
    return verdict + wire.proof_of(key, wire.VERDICT_LABEL, digest)


def at_the_verdict(left: Side, right: Side) -> tuple[bytes, bytes]:
    """All that was said up to the responder's PROOF; and that PROOF, which left has not heard."""
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush())
    proof = right.flush()[: 3 + 32]
    hello, theirs = hello_of(), hello_of(AT_B, NONCE_B)
    return hello + theirs + left.sent[len(hello) :] + proof, proof


def test_bytes_in_an_accept_are_ignored() -> None:
    left, right = initiator(), responder()
    transcript, proof = at_the_verdict(left, right)
    left.hear(proof + proven(KEY, transcript, wire.ACCEPT, b"more") + b"frame")
    assert left.established.leftover == b"frame"
    assert left.stream_keys == right.stream_keys[::-1]
    left, right = initiator(OPEN_A), responder(OPEN_B)
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush())
    left.hear(wire.follow_up(wire.PROOF) + wire.follow_up(wire.ACCEPT, b"more") + b"frame")
    assert left.established.leftover == b"frame"


@pytest.mark.parametrize("what", [wire.ACCEPT, wire.REFUSE])
@pytest.mark.parametrize("by", ["nobody", "another key", "another handshake", "a changed bit"])
def test_a_verdict_that_is_not_the_responders_is_not_believed(what: int, by: str) -> None:
    """A man in the middle lets both prove themselves, and says then what he likes."""
    left, right = initiator(), responder()
    transcript, proof = at_the_verdict(left, right)
    body = wire.pack_refuse(Refusal(RefusalCode.REMOVED), (1, 1))[3:] if what == 3 else b""
    verdict = wire.follow_up(what, body)
    if by == "another key":
        verdict = proven(bytes(32), transcript, what, body)
    elif by == "another handshake":
        verdict = proven(KEY, b"x" + transcript, what, body)
    elif by == "a changed bit":
        good = proven(KEY, transcript, what, body)
        verdict = good[:-33] + bytes([good[-33] ^ 1]) + good[-32:]
        if what == wire.ACCEPT:
            verdict = good[:-1] + bytes([good[-1] ^ 1])
    left.hear(proof + verdict)
    assert left.failed.code is RefusalCode.AUTH
    assert not left.failed.authenticated and not left.failed.by_peer


# The stream: who asks for it to be authenticated, and its keys.


LOOPBACK = {"on_loopback": True}
ASKS_A = dataclasses.replace(AT_A, authenticate_loopback=True)
ASKS_B = dataclasses.replace(AT_B, authenticate_loopback=True)


@pytest.mark.parametrize(
    ("left", "right", "is_authenticated"),
    [
        pytest.param((AT_A, {}), (AT_B, {}), True, id="between machines"),
        pytest.param((AT_A, LOOPBACK), (AT_B, LOOPBACK), False, id="on loopback"),
        pytest.param((ASKS_A, LOOPBACK), (AT_B, LOOPBACK), True, id="the initiator asks"),
        pytest.param((AT_A, LOOPBACK), (ASKS_B, LOOPBACK), True, id="the responder asks"),
        pytest.param((ASKS_A, LOOPBACK), (ASKS_B, LOOPBACK), True, id="both ask"),
        pytest.param((AT_A, LOOPBACK), (AT_B, {}), True, id="a tunnel at one end"),
        pytest.param((OPEN_A, LOOPBACK), (OPEN_B, LOOPBACK), False, id="without a key"),
        pytest.param((OPEN_A, {}), (OPEN_B, {}), False, id="TLS without a key"),
    ],
)
def test_the_stream_is_authenticated_when_either_side_asks(
    left: tuple[HandshakeConfig, dict[str, bool]],
    right: tuple[HandshakeConfig, dict[str, bool]],
    is_authenticated: bool,
) -> None:
    one, other = initiator(left[0], **left[1]), responder(right[0], **right[1])
    talk(one, other)
    assert (one.stream_keys is not None) == is_authenticated
    if is_authenticated:
        assert one.stream_keys == other.stream_keys[::-1]
        assert one.stream_keys[0] != one.stream_keys[1]
        assert all(len(key) == 32 for key in one.stream_keys)
        assert repr(one.stream_keys[0]) not in repr(one.established)
    else:
        assert other.stream_keys is None


def test_over_tls_no_stream_is_authenticated_and_nobody_may_ask() -> None:
    names = frozenset({"alpha", "beta"})
    left, right = initiator(ASKS_A, certified=names), responder(ASKS_B, certified=names)
    talk(left, right)
    assert left.stream_keys is right.stream_keys is None
    right = responder(certified=names)
    right.hear(hello_of())
    assert right.failed.code is RefusalCode.PROTOCOL


def test_each_handshake_has_keys_of_its_own() -> None:
    keys = set()
    for n in range(3):
        for m in range(3):
            left, right = initiator(nonce=bytes([n]) * 32), responder(nonce=bytes([8 + m]) * 32)
            talk(left, right)
            keys.update(left.stream_keys)
    assert len(keys) == 18


@pytest.mark.parametrize("who", list(Role))
def test_the_wish_cannot_be_taken_away_on_the_way(who: Role) -> None:
    left, right = initiator(ASKS_A, **LOOPBACK), responder(ASKS_B, **LOOPBACK)
    flags = 13
    hello = bytearray(left.flush())
    if who is Role.INITIATOR:
        hello[flags] &= ~wire.STREAM_FLAG
    right.hear(bytes(hello))
    hello = bytearray(right.flush())
    if who is Role.RESPONDER:
        hello[flags] &= ~wire.STREAM_FLAG
    left.hear(bytes(hello))
    talk(left, right)
    assert right.failed.code is RefusalCode.AUTH
    assert right.judged is None
    assert left.failed.by_peer and not left.failed.authenticated


def test_the_deadline_is_that_of_the_limits() -> None:
    assert AT_A.deadline_s * 1_000 == Limits().handshake_ms


# Strangers.


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303"),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        random.Random(9).randbytes(4096),
        wire.MAGIC[:7] + b"\x1b",
        bytes(100),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_who_is_no_node_is_told_nothing(said: bytes, at_once: bool) -> None:
    right = responder()
    wrong = next(n for n in range(8) if said[n] != wire.MAGIC[n])
    for piece in [said] if at_once else [said[n : n + 1] for n in range(len(said))]:
        right.hear(piece)
    assert right.sent == b""
    assert right.failed.silent
    assert right.failed.code is RefusalCode.PROTOCOL
    if not at_once:
        assert len(right.received) == wrong + 1
    left = initiator()
    left.hear(said)
    assert left.sent == hello_of()
    assert left.failed.silent


def test_a_refuse_in_place_of_the_first_hello_is_from_no_node() -> None:
    right = responder()
    right.hear(b"\x03")
    assert right.failed.silent and right.sent == b""


# The deadline and the bound.


def test_the_deadline_is_that_of_the_whole() -> None:
    silent = responder()
    silent.tick(4.999)
    assert silent.end is None
    silent.tick(5.0)
    assert silent.failed == Failed(
        RefusalCode.TIMEOUT, "no the peer's HELLO within 5 s", False, silent=True
    )
    slow = responder()
    for second, byte in enumerate(hello_of()):
        slow.hear(bytes([byte]), float(second))
    assert slow.failed.code is RefusalCode.TIMEOUT
    assert len(slow.received) == 6
    assert slow.sent == b""


@pytest.mark.parametrize("who", [initiator, responder])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_every_stage_ends_at_the_deadline(who, steps: int) -> None:
    left, right = initiator(), responder(answers=False)
    for _ in range(steps):
        right.hear(left.flush())
        left.hear(right.flush())
    side = left if who is initiator else right
    sent = side.sent
    assert side.end is None
    side.tick(5.0)
    assert side.failed.code is RefusalCode.TIMEOUT
    assert side.failed.silent and side.sent == sent
    assert side.handshake.tick(9.0) == []


def test_more_than_a_kibibyte_before_authentication() -> None:
    right = responder()
    right.hear(hello_of(extra=bytes(1_000 - (len(hello_of()) - 10))))
    assert right.end is None
    right.flush()
    right.hear(b"\x01\x00\x20")
    assert right.failed.code is RefusalCode.LIMIT
    assert right.failed.silent and right.unread == b""


@pytest.mark.parametrize("size", [0, 46, 1_001, 65_535])
def test_a_hello_of_no_possible_length(size: int) -> None:
    right = responder()
    right.hear(wire.MAGIC + size.to_bytes(2, "big"))
    assert right.failed.code is RefusalCode.PROTOCOL
    assert refusals(right.sent)[0][0] == RefusalCode.PROTOCOL


def test_a_text_longer_than_its_hello() -> None:
    right = responder()
    whole = bytearray(hello_of())
    whole[10 + 44 + 1 + 4] = 255
    right.hear(bytes(whole))
    assert right.failed.code is RefusalCode.PROTOCOL
    assert "the name exceeds the HELLO" in right.failed.text


# Authentication.


def test_a_wrong_key() -> None:
    left, right = initiator(dataclasses.replace(AT_A, key=bytes(31) + b"k")), responder()
    talk(left, right)
    assert right.judged is None
    assert right.failed == Failed(RefusalCode.AUTH, "the peer's proof is wrong", False)
    assert left.failed.code is RefusalCode.AUTH
    assert left.failed.by_peer and not left.failed.authenticated
    # Generic: it does not say what was wrong, nor what would be right.
    assert refusals(right.sent[len(hello_of(AT_B)) :]) == [(3, (1, 1), 0, "")]


def test_a_responder_with_a_wrong_key_is_told_nothing_more() -> None:
    left = initiator()
    left.hear(hello_of(AT_B, NONCE_B))
    sent = left.sent
    said = hashlib.sha256(hello_of() + hello_of(AT_B, NONCE_B) + sent[-35:]).digest()
    left.hear(wire.follow_up(1, wire.proof_of(bytes(32), wire.RESPONDER_LABEL, said)) + b"\x02\0\0")
    assert left.failed == Failed(RefusalCode.AUTH, "the peer's proof is wrong", False)
    assert left.sent == sent


@pytest.mark.parametrize("wrong", ["truncated", "empty", "longer", "zero", "of the other role"])
@pytest.mark.parametrize("role", list(Role))
def test_a_proof_that_is_none(wrong: str, role: Role) -> None:
    side = initiator() if role is Role.INITIATOR else responder()
    said = [hello_of(), hello_of(AT_B, NONCE_B)]
    side.hear(said[1] if role is Role.INITIATOR else said[0])
    sent = side.sent
    label, other = wire.INITIATOR_LABEL, wire.RESPONDER_LABEL
    if role is Role.INITIATOR:
        label, other = other, label
        said.append(sent[-35:])
    digest = hashlib.sha256(b"".join(said)).digest()
    right = wire.proof_of(KEY, label, digest)
    proof = {
        "truncated": right[:31],
        "empty": b"",
        "longer": right + b"\0",
        "zero": bytes(32),
        "of the other role": wire.proof_of(KEY, other, digest),
    }[wrong]
    side.hear(wire.follow_up(wire.PROOF, proof) + (b"\x02\0\0" if role is Role.INITIATOR else b""))
    assert side.failed.code is RefusalCode.AUTH
    assert not side.failed.authenticated
    assert side.judged is None


def test_in_the_mode_without_a_key_a_proof_is_empty() -> None:
    right = responder(OPEN_B)
    right.hear(hello_of(OPEN_A))
    right.hear(wire.follow_up(wire.PROOF, bytes(32)))
    assert right.failed.code is RefusalCode.AUTH


def test_a_reflected_hello() -> None:
    left = initiator()
    left.hear(left.flush())
    assert left.failed.code is RefusalCode.AUTH
    assert "reflected" in left.failed.text


def test_a_reflected_proof() -> None:
    """The attacker has a name of its own, and gives back the nonce or the proof."""
    left = initiator()
    left.hear(hello_of(AT_B, NONCE_A))
    assert left.failed.code is RefusalCode.AUTH
    left = initiator()
    left.flush()
    left.hear(hello_of(AT_B, NONCE_B))
    left.hear(left.flush() + b"\x02\0\0")
    assert left.failed.code is RefusalCode.AUTH
    assert not left.failed.authenticated


OLD, NEW = bytes([1] * 32), bytes([2] * 32)
#: The steps in which the key of a mesh is changed, node by node.
STEPS = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]


@pytest.mark.parametrize(
    ("of_initiator", "of_responder"),
    [
        (first, second)
        for n, first in enumerate(STEPS)
        for m, second in enumerate(STEPS)
        if abs(n - m) <= 1
    ],
)
def test_a_key_is_changed_step_by_step(
    of_initiator: tuple[bytes, ...], of_responder: tuple[bytes, ...]
) -> None:
    left, right = (
        dataclasses.replace(config, key=keys[0], other_keys=keys[1:])
        for config, keys in ((AT_A, of_initiator), (AT_B, of_responder))
    )
    first, second = initiator(left), responder(right)
    talk(first, second)
    assert first.established.peer.node == AT_B.own
    assert second.established.peer.node == AT_A.own


def test_of_two_keys_that_are_accepted_none_is_a_third() -> None:
    third = dataclasses.replace(AT_A, key=bytes([3] * 32))
    both = dataclasses.replace(AT_B, key=OLD, other_keys=(NEW,))
    for first, second in ((initiator(third), responder(both)), (initiator(both), responder(third))):
        talk(first, second)
        assert first.failed.code is second.failed.code is RefusalCode.AUTH


def test_other_keys_are_keys_beside_a_key() -> None:
    with pytest.raises(ValueError, match="the key must be 32 bytes, not 3"):
        dataclasses.replace(AT_A, other_keys=(b"abc",))
    with pytest.raises(ValueError, match="of no use without a key"):
        dataclasses.replace(OPEN_A, other_keys=(OLD,))
    assert repr(OLD) not in repr(dataclasses.replace(AT_A, other_keys=(OLD,)))


def test_a_proof_got_from_the_node_itself_as_responder() -> None:
    """The attacker dials back and asks the node to prove itself over the same nonces."""
    left = initiator()
    theirs = hello_of(AT_B, NONCE_B)
    left.flush()
    left.hear(theirs)
    oracle = responder(AT_A, b"c" * 32)
    oracle.hear(theirs)
    oracle.flush()
    oracle.hear(left.flush())
    assert oracle.failed.code is RefusalCode.AUTH
    left.hear(wire.follow_up(wire.PROOF, bytes(32)))
    assert left.failed.code is RefusalCode.AUTH


@pytest.mark.parametrize("victim", list(Role))
def test_a_replayed_session(victim: Role) -> None:
    left, right = initiator(), responder()
    talk(left, right)
    fresh = b"f" * 32
    if victim is Role.RESPONDER:
        side, recorded = responder(nonce=fresh), left.sent
    else:
        side, recorded = initiator(nonce=fresh), right.sent
    first = len(hello_of()) if victim is Role.RESPONDER else len(hello_of(AT_B))
    side.hear(recorded[:first])
    side.hear(recorded[first:])
    assert side.failed.code is RefusalCode.AUTH
    assert side.judged is None


@pytest.mark.parametrize("configs", [(AT_A, OPEN_B), (OPEN_A, AT_B)])
def test_a_node_with_a_key_and_one_without(configs) -> None:
    left, right = initiator(configs[0]), responder(configs[1])
    talk(left, right)
    assert left.failed.code is right.failed.code is RefusalCode.AUTH
    assert left.failed.by_peer
    # The initiator looks, too: the responder may be another program.
    left = initiator(configs[0])
    left.hear(hello_of(configs[1], NONCE_B))
    assert left.failed.code is RefusalCode.AUTH
    assert refusals(left.sent[len(hello_of(configs[0])) :])[0][0] == RefusalCode.AUTH


# Versions, clusters, names.


def test_no_common_version() -> None:
    left = initiator(dataclasses.replace(AT_A, versions=(3, 4)))
    right = responder(dataclasses.replace(AT_B, versions=(1, 2)))
    talk(left, right)
    assert left.failed.code is right.failed.code is RefusalCode.VERSION
    assert refusals(right.sent)[0][1] == (1, 2)
    assert left.failed.text == (
        "the peer refused: the peer speaks versions 1 to 2, this node 3 to 4"
    )
    assert right.failed.text == "the peer speaks versions 3 to 4, this node 1 to 2"


@pytest.mark.parametrize(
    ("ours", "theirs", "spoken"), [((1, 3), (2, 5), 3), ((1, 1), (1, 9), 1), ((2, 9), (1, 4), 4)]
)
def test_the_highest_common_version_is_spoken(ours, theirs, spoken: int) -> None:
    left = initiator(dataclasses.replace(AT_A, versions=ours))
    right = responder(dataclasses.replace(AT_B, versions=theirs))
    talk(left, right)
    assert left.established.peer.version == right.established.peer.version == spoken


def test_a_node_knows_two_versions() -> None:
    left, right = initiator(HandshakeConfig(A, 11, "shop", KEY)), responder(AT_B)
    talk(left, right)
    assert left.established.peer.version == right.established.peer.version == 1
    left, right = (
        side(HandshakeConfig(node, number, "shop", KEY))
        for side, node, number in ((initiator, A, 11), (responder, B, 22))
    )
    talk(left, right)
    assert left.established.peer.version == right.established.peer.version == 2


def test_a_version_comes_before_what_it_may_change() -> None:
    right = responder()
    right.hear(hello_of(lowest=2, highest=3, flags=0xFFFF, name=b"::"))
    assert right.failed.code is RefusalCode.VERSION


@pytest.mark.parametrize("flags", [0b100, 0b1001, 0x8001, 0xFFFF])
def test_reserved_flags(flags: int) -> None:
    right = responder()
    right.hear(hello_of(flags=flags))
    assert right.failed.code is RefusalCode.PROTOCOL


def test_a_responder_does_not_join() -> None:
    left = initiator()
    left.hear(hello_of(AT_B, NONCE_B, flags=0b11))
    assert left.failed.code is RefusalCode.PROTOCOL


#: A frame as links have it: a PING, an ENVELOPE, and a state of the membership.
FRAMES = [
    bytes.fromhex("00000012 10 00") + bytes(16),
    bytes.fromhex("00000007 02 00 0001 93010203"),
    bytes.fromhex("00000003 13 00 80"),
]


@pytest.mark.parametrize("frame", FRAMES, ids=["ping", "envelope", "membership"])
@pytest.mark.parametrize("together", [True, False])
def test_a_frame_before_authentication(frame: bytes, together: bool) -> None:
    first = responder()
    first.hear(frame)
    assert first.failed.silent
    right = responder()
    if together:
        right.hear(hello_of() + frame)
    else:
        right.hear(hello_of())
        right.flush()
        right.hear(frame)
    assert right.failed.code is RefusalCode.STATE
    assert right.judged is None
    assert refusals(right.unread)[0][0] == RefusalCode.STATE


@pytest.mark.parametrize("config", [AT_B, OPEN_B], ids=["key", "no key"])
def test_speaking_out_of_turn(config: HandshakeConfig) -> None:
    """A proof before the nonce that it has to answer, even where it would be empty; and frames
    while the node decides."""
    theirs = OPEN_A if config is OPEN_B else AT_A
    right = responder(config)
    right.hear(
        hello_of(theirs) + wire.follow_up(wire.PROOF, b"" if config is OPEN_B else bytes(32))
    )
    assert right.failed.code is RefusalCode.STATE
    left, right = initiator(theirs), responder(config, answers=False)
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush())
    assert right.judged is not None and right.end is None
    right.hear(b"")
    right.hear(FRAMES[0])
    assert right.failed.code is RefusalCode.STATE
    with pytest.raises(RuntimeError, match="decide"):
        right.handshake.decide(None)
    left.hear(right.flush())
    assert left.failed.code is RefusalCode.STATE
    assert left.failed.by_peer and left.failed.authenticated
    left, right = initiator(theirs), responder(config)
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush() + b"\0")
    assert right.failed.code is RefusalCode.STATE
    assert right.judged is None


@pytest.mark.parametrize("what", [0, 2, 4, 0x8E, 255])
def test_anything_else_in_place_of_a_proof(what: int) -> None:
    for side, hello in ((initiator(), hello_of(AT_B, NONCE_B)), (responder(), hello_of())):
        side.hear(hello)
        side.flush()
        side.hear(bytes([what]))
        assert side.failed.code is RefusalCode.STATE
        # The initiator's last turn was its PROOF.
        assert bool(side.unread) == (side.handshake.role is Role.RESPONDER)


def test_a_proof_in_place_of_accept() -> None:
    left, right = initiator(), responder()
    right.hear(left.flush())
    left.hear(right.flush())
    right.hear(left.flush())
    proof = right.flush()[:35]
    left.hear(proof + proof)
    assert left.failed.code is RefusalCode.STATE


def test_what_follows_is_not_longer_than_512_bytes() -> None:
    right = responder()
    right.hear(hello_of())
    right.hear(b"\x01\x02\x01")
    assert right.failed.code is RefusalCode.PROTOCOL


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"", "it is empty"),
        (b"a\0b", "'a\\x00b'"),
        (b"a\nb", "'a\\nb'"),
        (b"a::b", "'::'"),
        (b"a@@b", "'@'"),
        ("e\u0301".encode(), "normal form C"),
        (b"\x1b[2Jx", "'\\x1b[2Jx'"),
        ("a\u202eb".encode(), "U+202E, which is not shown"),
        ("b\u200b".encode(), "U+200B, which is not shown"),
        ("b\u0435ta".encode(), "CYRILLIC and LATIN"),
        (b"beta ", "begins or ends with a space"),
        (b"\xff\xfe", "can't decode"),
        (b"\xed\xa0\x80", "can't decode"),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_names_that_break_the_rules(name: bytes, shown: str, role: Role) -> None:
    side = initiator() if role is Role.INITIATOR else responder()
    side.flush()
    config, nonce = (AT_B, NONCE_B) if role is Role.INITIATOR else (AT_A, NONCE_A)
    side.hear(hello_of(config, nonce, name=name))
    assert side.failed.code is RefusalCode.NAME_INVALID
    assert shown in side.failed.text
    assert side.failed.text.isascii() and side.failed.text.isprintable()
    assert refusals(side.unread)[0][0] == RefusalCode.NAME_INVALID


def test_a_name_of_300_bytes_has_no_place_in_a_hello() -> None:
    """Its length is one byte, so what says 300 says 44, and the rest is taken for an address."""
    whole = hello_of()
    at = whole.index(b"\x05alpha")
    body = whole[10:at] + bytes([300 % 256]) + b"n" * 300 + whole[at + 6 :]
    right = responder()
    right.hear(wire.MAGIC + len(body).to_bytes(2, "big") + body)
    assert right.failed.code in (RefusalCode.NAME_INVALID, RefusalCode.PROTOCOL)


@pytest.mark.parametrize(
    "addr",
    [b"", b"nohost", b"a:b", b"h:70000", b"h h:1", b"\xff:1", b"a..b:1", b".a:1", b"[a]:1"]
    + [b"x" * 64 + b":1"],
)
def test_addresses_that_break_the_rules(addr: bytes) -> None:
    right = responder()
    right.hear(hello_of(addr=addr))
    assert right.failed.code is RefusalCode.NAME_INVALID


def test_this_very_node() -> None:
    left, right = initiator(AT_A), responder(AT_A)
    talk(left, right)
    assert right.failed.code is left.failed.code is RefusalCode.SELF
    assert right.judged is None
    # So it is believed, and the address need not be dialled again.
    assert left.failed.authenticated and left.failed.by_peer
    # A responder that lets itself be taken for this node, and accepts.
    left = initiator(AT_A)
    theirs = hello_of(AT_A, NONCE_B)
    left.hear(theirs)
    said = hashlib.sha256(hello_of() + theirs + left.sent[-35:]).digest()
    sent = left.sent
    proof = wire.follow_up(1, wire.proof_of(KEY, wire.RESPONDER_LABEL, said))
    transcript = hello_of() + theirs + sent[-35:] + proof
    left.hear(proof + proven(KEY, transcript, wire.ACCEPT, b""))
    assert left.failed == Failed(RefusalCode.SELF, "the peer is this node", True)
    assert left.sent == sent


def test_another_node_of_this_name() -> None:
    left = initiator(dataclasses.replace(AT_A, incarnation=12))
    right = responder(AT_A)
    talk(left, right)
    assert right.failed.code is left.failed.code is RefusalCode.NAME_CONFLICT
    assert left.failed.authenticated


def test_nobody_can_claim_to_be_this_node_without_the_key() -> None:
    left = initiator(AT_A)
    left.hear(hello_of(AT_A, NONCE_B))
    left.hear(wire.follow_up(wire.PROOF, bytes(32)))
    assert left.failed.code is RefusalCode.AUTH


def test_another_cluster_with_the_same_key() -> None:
    left, right = initiator(), responder(dataclasses.replace(AT_B, cluster="sh\u00f6p"))
    talk(left, right)
    assert right.failed.code is left.failed.code is RefusalCode.CLUSTER
    assert right.failed.text == "the peer is of the cluster 'shop', this node of 'sh\\xf6p'"
    # A stranger does not learn the cluster's id from a refusal.
    assert "p" not in refusals(right.sent)[0][3]


def test_another_name_than_was_dialled() -> None:
    left, right = initiator(expected=NodeId("gamma", "10.0.0.2:7000")), responder()
    talk(left, right)
    assert left.failed.code is right.failed.code is RefusalCode.NAME_MISMATCH
    assert left.failed.text == "'gamma' was dialled, 'beta' answers"
    assert not left.failed.authenticated
    assert right.failed.by_peer
    # Another address is for the judge.
    left, right = initiator(expected=NodeId("beta", "elsewhere:1")), responder()
    talk(left, right)
    assert left.established.peer.node == B


@pytest.mark.parametrize("names", [frozenset(), frozenset({"gamma"}), frozenset({"beta2", "bet"})])
def test_a_name_that_is_not_in_the_certificate(names: frozenset[str]) -> None:
    left, right = initiator(OPEN_A, certified=names), responder(OPEN_B)
    talk(left, right)
    assert left.failed.code is right.failed.code is RefusalCode.NAME_MISMATCH
    left, right = initiator(OPEN_A), responder(OPEN_B, certified=names)
    talk(left, right)
    assert left.failed.code is right.failed.code is RefusalCode.NAME_MISMATCH


def test_a_name_that_is_in_the_certificate() -> None:
    left = initiator(OPEN_A, certified=frozenset({"beta"}))
    right = responder(OPEN_B, certified=frozenset({"alpha", "more"}))
    talk(left, right)
    assert left.established and right.established


# Refusals.


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_decision_against_a_peer(code: RefusalCode) -> None:
    left, right = initiator(), responder(verdict=Refusal(code, "b\u00e9cause\n", 77))
    talk(left, right)
    assert right.failed == Failed(code, "refused: b\\xe9cause\\n", True)
    assert left.failed.code is code
    assert left.failed.authenticated and left.failed.by_peer
    assert left.failed.incarnation == (77 if code is RefusalCode.STALE_INCARNATION else 0)
    if code is not RefusalCode.VERSION:
        assert left.failed.text == "the peer refused: b\\xe9cause\\n"


@pytest.mark.parametrize("at", ["initiator", "responder"])
def test_an_incarnation_that_is_not_believed_is_refused(at: str) -> None:
    """Who believed it had to refuse all later starts of that node as stale."""
    for config in (AT_A, AT_B):
        assert config.incarnation < 1_000
    left_most, right_most = (999, 2**64 - 1) if at == "initiator" else (2**64 - 1, 999)
    high = dataclasses.replace(AT_B if at == "initiator" else AT_A, incarnation=1_000)
    left = initiator(
        dataclasses.replace(high if at == "responder" else AT_A, highest_believed=left_most)
    )
    right = responder(
        dataclasses.replace(high if at == "initiator" else AT_B, highest_believed=right_most)
    )
    talk(left, right)
    here = left if at == "initiator" else right
    assert (here.failed.code, here.failed.by_peer) == (RefusalCode.LIMIT, False)
    assert here.failed.text == "the incarnation 1000 is a hundred years ahead of the clock"
    if at == "responder":
        assert (left.failed.code, left.failed.by_peer) == (RefusalCode.LIMIT, True)
        assert left.failed.text == f"the peer refused: {here.failed.text}"


def test_a_stale_incarnation_that_is_not_believed_raises_nothing() -> None:
    for known, told in ((999, 999), (1_000, 0), (2**64 - 1, 0)):
        verdict = Refusal(RefusalCode.STALE_INCARNATION, "", known)
        left = initiator(dataclasses.replace(AT_A, highest_believed=999))
        right = responder(verdict=verdict)
        talk(left, right)
        assert left.failed.code is RefusalCode.STALE_INCARNATION
        assert left.failed.incarnation == told
        assert ("a hundred years ahead" in left.failed.text) is (told == 0)


def test_a_refusal_before_the_proof_comes_from_anybody() -> None:
    for begin in (b"", hello_of(AT_B, NONCE_B)):
        left = initiator()
        if begin:
            left.hear(begin)
        left.flush()
        left.hear(wire.pack_refuse(Refusal(RefusalCode.REMOVED), (1, 1)))
        assert left.failed == Failed(
            RefusalCode.REMOVED,
            "the peer refused: the node was removed from the cluster",
            False,
            by_peer=True,
        )
        assert left.unread == b""


def test_an_initiator_may_refuse_in_place_of_its_proof() -> None:
    right = responder()
    right.hear(hello_of())
    right.flush()
    right.hear(wire.pack_refuse(Refusal(RefusalCode.SHUTDOWN, "bye"), (1, 1)))
    assert right.failed == Failed(
        RefusalCode.SHUTDOWN, "the peer refused: bye", False, by_peer=True
    )
    assert right.unread == b""


def test_a_refusal_for_a_reason_that_is_not_known_yet() -> None:
    left = initiator()
    body = bytes([77, 1, 9]) + bytes(8) + b"\x04what" + b"later versions say more"
    left.hear(wire.follow_up(wire.REFUSE, body))
    assert left.failed.code is RefusalCode.PROTOCOL
    assert left.failed.text == "the peer refused with the unknown code 77: what"
    assert left.failed.by_peer


@pytest.mark.parametrize("body", [b"", bytes(11), bytes(11) + b"\x05text"])
def test_a_malformed_refusal_is_not_answered(body: bytes) -> None:
    left = initiator()
    left.flush()
    left.hear(wire.follow_up(wire.REFUSE, body))
    assert left.failed.code is RefusalCode.PROTOCOL
    assert left.unread == b""


def test_texts_of_a_peer_are_escaped_and_cut() -> None:
    left = initiator()
    text = b"\x1b[31m" + b"\xff" * 250
    body = bytes([11, 1, 1]) + bytes(8) + bytes([len(text)]) + text
    left.hear(wire.follow_up(wire.REFUSE, body))
    prefix = "the peer refused: "
    assert left.failed.text.startswith(prefix + "\\x1b[31m\\ufffd")
    assert left.failed.text.isascii() and left.failed.text.isprintable()
    assert len(left.failed.text) == len(prefix) + 200


# Misuse.


def test_a_handshake_that_is_done_takes_nothing_more() -> None:
    left, right = initiator(), responder()
    talk(left, right)
    for side in (left, right):
        with pytest.raises(RuntimeError, match="receive"):
            side.handshake.receive(b"", 0.0)
        with pytest.raises(RuntimeError, match="decide"):
            side.handshake.decide(None)
        assert side.handshake.tick(100.0) == []


def test_a_handshake_is_started_once_and_first() -> None:
    handshake = Handshake(Role.INITIATOR, AT_A, NONCE_A, 0.0)
    with pytest.raises(RuntimeError, match="waits for start"):
        handshake.receive(b"", 0.0)
    handshake.start()
    with pytest.raises(RuntimeError, match="started"):
        handshake.start()
    assert Handshake(Role.RESPONDER, AT_A, NONCE_A, 0.0).start() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"incarnation": -1}, "incarnation"),
        ({"incarnation": 1 << 64}, "incarnation"),
        ({"cluster": "c" * 65}, "64 bytes"),
        ({"cluster": "e\u0301"}, "normal form C"),
        ({"cluster": "shop\u200d"}, "U\\+200D"),
        ({"cluster": "sh\u043ep"}, "several scripts"),
        ({"cluster": " shop"}, "space"),
        ({"key": b"short"}, "32 bytes, not 5"),
        ({"key": None}, "TLS, or both sides on loopback"),
        ({"versions": (2, 1)}, "versions"),
        ({"versions": (0, 256)}, "versions"),
        ({"deadline_s": 0.0}, "deadline_s"),
    ],
)
def test_configs_that_cannot_be_used(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(AT_A, **change)


def test_arguments_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="nonce"):
        Handshake(Role.INITIATOR, AT_A, b"", 0.0)
    for more in ({"join": True}, {"expected": A}):
        with pytest.raises(ValueError, match="initiator's"):
            Handshake(Role.RESPONDER, AT_A, NONCE_A, 0.0, **more)


def test_a_config_does_not_show_the_key() -> None:
    assert "key" not in repr(AT_A)
    assert repr(KEY) not in repr(AT_A)


# Two handshakes and a network that does what it wants.

MUTATION = st.tuples(
    st.sampled_from(["flip", "drop", "insert", "repeat", "cut"]),
    st.one_of(st.integers(0, 250), st.integers(0, 12), st.integers(75, 85)),
    st.integers(1, 255),
)


class Wire:
    """One direction: bytes go in, changed ones come out in pieces."""

    def __init__(self, mutations: list[tuple[str, int, int]], pieces: list[int]) -> None:
        self.mutations = mutations
        self.pieces = pieces
        self.place = 0
        self.turn = 0
        self.cut = False
        self.waiting = bytearray()

    def push(self, data: bytes) -> None:
        for byte in data:
            out = bytes([byte])
            for kind, place, value in self.mutations:
                if place != self.place:
                    continue
                if kind == "flip":
                    out = bytes([out[0] ^ value]) + out[1:] if out else out
                elif kind == "drop":
                    out = b""
                elif kind == "insert":
                    out += bytes([value])
                elif kind == "repeat":
                    out += bytes(self.waiting[-value:])
                else:
                    self.cut = True
            self.place += 1
            if not self.cut:
                self.waiting += out

    def pop(self) -> bytes:
        size = self.pieces[self.turn % len(self.pieces)]
        self.turn += 1
        data = bytes(self.waiting[:size])
        del self.waiting[:size]
        return data


def drive(left: Side, right: Side, there: Wire, back: Wire) -> None:
    """Let both talk over the wires until nothing comes any more; then the deadline passes."""
    while True:
        there.push(left.flush())
        back.push(right.flush())
        if not ((there.waiting and right.end is None) or (back.waiting and left.end is None)):
            break
        right.hear(there.pop())
        assert not right.sent or right.received.startswith(wire.MAGIC)
        left.hear(back.pop())
    left.tick(4.9)
    right.tick(4.9)
    left.tick(5.0)
    right.tick(5.0)
    assert left.end is not None and right.end is not None
    assert left.sent.startswith(wire.MAGIC)


PIECES = st.lists(st.integers(1, 120), min_size=1, max_size=8)
MUTATIONS = st.lists(MUTATION, max_size=3)
VERDICTS = st.one_of(
    st.none(), st.builds(Refusal, st.sampled_from(RefusalCode), st.text(max_size=300))
)


@given(PIECES, PIECES, VERDICTS, st.booleans())
def test_however_the_bytes_are_cut(there, back, verdict, keyed) -> None:
    left = initiator(AT_A if keyed else OPEN_A)
    right = responder(AT_B if keyed else OPEN_B, verdict=verdict)
    drive(left, right, Wire([], there), Wire([], back))
    if verdict is None:
        assert left.established.peer == Peer(B, 22, False, 1)
        assert right.established.peer == Peer(A, 11, False, 1)
    else:
        assert left.failed.code is right.failed.code is verdict.code
        assert left.failed.authenticated and right.failed.authenticated


@given(MUTATIONS, MUTATIONS, PIECES, PIECES, VERDICTS, st.booleans())
def test_both_are_never_up_unless_all_that_was_said_agrees(
    there, back, pieces, answers, verdict, same_key
) -> None:
    left = initiator()
    key = KEY if same_key else bytes(31) + b"k"
    right = responder(dataclasses.replace(AT_B, key=key), verdict=verdict)
    drive(left, right, Wire(there, pieces), Wire(back, answers))
    event(f"{type(left.end).__name__}, {type(right.end).__name__}")
    proven = len(hello_of(AT_B)) + 35
    if right.judged is not None:
        assert same_key
        assert right.received == left.sent
        assert left.received[: len(hello_of(AT_B))] == right.sent[: len(hello_of(AT_B))]
    if isinstance(left.end, Established) or left.failed.authenticated:
        assert same_key
        assert left.received[:proven] == right.sent[:proven]
        assert right.judged is not None
    if isinstance(right.end, Established):
        assert verdict is None


@given(MUTATIONS, MUTATIONS, PIECES, PIECES)
def test_without_a_key_it_ends_as_well(there, back, pieces, answers) -> None:
    """TLS has to see to it that nothing is changed."""
    left, right = initiator(OPEN_A), responder(OPEN_B)
    drive(left, right, Wire(there, pieces), Wire(back, answers))
    if not there and not back:
        assert left.established and right.established


# Bytes that come from anywhere.


def garbled(rng: random.Random, said: bytes) -> bytes:
    """What was said, with a few things done to it."""
    data = bytearray(said)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.randbytes(rng.choice((1, 3, 40, 600)))
            case 3:
                data[place:place] = data[place : place + rng.randrange(1, 80)]
            case 4:
                del data[place : place + rng.randrange(1, 20)]
            case 5:
                data[place : place + 1] = rng.choice((b"\0", b"\xff", b"\x03", b"\x7f"))
    return bytes(data)


def fuzz(seed: int, count: int) -> dict[str, int]:
    """Feed garbled handshakes to either side; what became of them."""
    rng = random.Random(seed)
    seen: dict[str, int] = {}
    left, right = initiator(), responder()
    talk(left, right)
    good = {Role.INITIATOR: right.sent, Role.RESPONDER: left.sent}
    refuse = wire.pack_refuse(Refusal(RefusalCode.BUSY, "later"), (1, 1))
    for n in range(count):
        role = rng.choice((Role.INITIATOR, Role.RESPONDER))
        side = initiator() if role is Role.INITIATOR else responder()
        first = len(hello_of(AT_B if role is Role.INITIATOR else AT_A))
        said = good[role]
        match rng.randrange(8):
            case 0:
                said = rng.randbytes(rng.randrange(100))
            case 1:
                said = wire.MAGIC + rng.randbytes(rng.randrange(100))
            case 2:
                said = said[:first] + rng.randbytes(rng.randrange(100))
            case 3:
                said = (said[:first] if rng.random() < 0.5 else b"") + refuse
            case 4:
                config = AT_B if role is Role.INITIATOR else AT_A
                padded = hello_of(config, extra=rng.randbytes(rng.randrange(890, 930)))
                said, first = padded + said[first:], len(padded)
        stream = garbled(rng, said)
        place = 0
        while place < len(stream) and side.end is None:
            # Mostly in two pieces, as the turns are.
            size = first if place == 0 and rng.random() < 0.8 else rng.choice((1, 7, 50, 2_000))
            side.hear(stream[place : place + size])
            place += size
        if role is Role.RESPONDER and side.sent:
            assert side.received.startswith(wire.MAGIC), (seed, n)
        if side.judged is not None or isinstance(side.end, Established):
            proven = len(good[role]) if role is Role.RESPONDER else first + 35
            assert side.received[:proven] == good[role][:proven], (seed, n)
        side.tick(5.0)
        assert side.end is not None, (seed, n)
        if isinstance(side.end, Failed):
            assert side.end.text.isascii() and side.end.text.isprintable(), (seed, n)
            outcome = side.end.code.name
        else:
            outcome = "ESTABLISHED"
        seen[outcome] = seen.get(outcome, 0) + 1
    return seen


#: What the fuzz has to come to now and then, or it does not reach far enough.
REACHED = {
    *("ESTABLISHED", "AUTH", "BUSY", "CLUSTER", "LIMIT", "NAME_INVALID", "PROTOCOL", "STATE"),
    *("TIMEOUT", "VERSION"),
}


def test_twenty_thousand_garbled_handshakes() -> None:
    assert fuzz(20_000, 20_000).keys() >= REACHED


@pytest.mark.soak
def test_a_million_garbled_handshakes() -> None:
    assert fuzz(random.SystemRandom().getrandbits(32), 1_000_000).keys() >= REACHED


# Keys of their own.

AUTHORITY = bytes(range(100, 132))
OWN_A = dataclasses.replace(AT_A, key=None, node_key=derived(AUTHORITY, "alpha", b"a" * 16))
OWN_B = dataclasses.replace(AT_B, key=None, node_key=derived(AUTHORITY, "beta", b"b" * 16))


def test_two_nodes_with_keys_of_their_own_prove_themselves_and_show_whose_keys_these_are() -> None:
    left, right = initiator(OWN_A, expected=B), responder(OWN_B)
    talk(left, right)
    assert left.established.peer.keys == (OWN_B.node_key.fingerprint,)
    assert right.established.peer.keys == (OWN_A.node_key.fingerprint,)
    assert left.stream_keys == right.stream_keys[::-1] and left.stream_keys is not None
    # What is said is what the page has: the id behind the limits, and the key of the pair.
    hello = left.sent[: len(left.sent) - 35]
    assert hello[8 + 2 + 2 : 8 + 2 + 4] == b"\x00\x0d" and hello.endswith(b"a" * 16)
    answer = right.sent[: wire.HELLO_HEAD + int.from_bytes(right.sent[8:10], "big")]
    assert answer.endswith(b"b" * 16)
    said = hashlib.sha256(hello + answer).digest()
    pair_key = OWN_B.node_key.pair_key("alpha", b"a" * 16)
    assert left.sent[-32:] == wire.proof_of(pair_key, wire.INITIATOR_LABEL, said)


@pytest.mark.parametrize("lies", ["name", "id", "both"])
def test_with_a_key_of_its_own_a_node_can_be_no_other(lies: str) -> None:
    """Somebody has the key of gamma, and says that he is alpha."""
    gamma = derived(AUTHORITY, "gamma", b"c" * 16)
    name = "gamma" if lies == "id" else "alpha"
    key_id = b"c" * 16 if lies == "name" else b"a" * 16
    stolen = NodeKey(name, key_id, gamma.coefficients)
    config = dataclasses.replace(OWN_A, own=NodeId(name, "10.0.0.1:7000"), node_key=stolen)
    left, right = initiator(config), responder(OWN_B)
    talk(left, right)
    assert right.failed.code is RefusalCode.AUTH and right.judged is None
    left, right = initiator(OWN_B), responder(config)
    talk(left, right)
    assert right.failed.code is RefusalCode.AUTH and right.judged is None


def test_another_authority_makes_other_keys() -> None:
    other = dataclasses.replace(OWN_A, node_key=derived(bytes(32), "alpha", b"a" * 16))
    left, right = initiator(other), responder(OWN_B)
    talk(left, right)
    assert right.failed.code is RefusalCode.AUTH


@pytest.mark.parametrize("configs", [(AT_A, OWN_B), (OWN_A, AT_B)])
def test_the_key_of_all_and_keys_of_their_own_do_not_go_together(configs) -> None:
    left, right = initiator(configs[0]), responder(configs[1])
    talk(left, right)
    assert right.failed.code is left.failed.code is RefusalCode.AUTH
    texts = ("the cluster's key", "a key of its own")
    mine, its = texts if configs[0] is AT_A else texts[::-1]
    assert right.failed.text == f"the peer has {mine}, this node {its}"


@pytest.mark.parametrize(
    ("flags", "key_id", "text"),
    [
        (wire.NODE_KEY_FLAG, b"a" * 16, "flags 0x0008"),
        (wire.NODE_KEY_FLAG | wire.KEY_FLAG, b"a" * 15, "the id of the key exceeds"),
        (wire.NODE_KEY_FLAG | wire.KEY_FLAG, b"", "the id of the key exceeds"),
    ],
)
def test_what_is_said_of_a_key_is_checked(flags: int, key_id: bytes, text: str) -> None:
    right = responder(OWN_B)
    right.hear(hello_of(flags=flags, key_id=key_id))
    assert right.failed.code is RefusalCode.PROTOCOL and text in right.failed.text
    assert text in refusals(right.sent)[0][3]


# What a node says that it is for.


def test_labels_are_told() -> None:
    labels = frozenset({"storage", "größer"})
    left = initiator(dataclasses.replace(AT_A, labels=labels))
    right = responder(AT_B)
    talk(left, right)
    assert right.established.peer.labels == labels
    assert left.established.peer.labels == frozenset()


@pytest.mark.parametrize(
    ("labels", "code", "text"),
    [
        (None, RefusalCode.PROTOCOL, "the labels exceed the HELLO"),
        ((b"",), RefusalCode.NAME_INVALID, "empty"),
        ((b"\xff",), RefusalCode.NAME_INVALID, "utf-8"),
        ((b"a::b",), RefusalCode.NAME_INVALID, "::"),
        ((b"a\n",), RefusalCode.NAME_INVALID, ""),
    ],
)
def test_labels_are_checked(labels: tuple[bytes, ...] | None, code: RefusalCode, text: str) -> None:
    right = responder(AT_B)
    flags = wire.KEY_FLAG | wire.STREAM_FLAG | wire.LABELS_FLAG
    if labels is None:
        right.hear(
            hello_of(flags=flags & ~wire.LABELS_FLAG, labels=(), extra=b"").replace(
                (wire.KEY_FLAG | wire.STREAM_FLAG).to_bytes(2, "big"), flags.to_bytes(2, "big"), 1
            )
        )
    else:
        right.hear(hello_of(flags=flags, labels=labels))
    assert right.failed.code is code and text in right.failed.text


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({""}, "label '' is not usable"),
        ({"x" * 255}, "the labels take 256 bytes"),
        ({f"label-{number:04}" for number in range(24)}, "the labels take 264 bytes"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: set[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(AT_A, labels=frozenset(labels))
    with pytest.raises(ValueError, match=text):
        Mesh(labels=labels)


def test_labels_of_another_type_are_refused() -> None:
    for labels in ("storage", b"storage", 5, iter(["a"])):
        with pytest.raises(TypeError, match="labels must be a list or set of str"):
            Mesh(labels=labels)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a label must be a str"):
        Mesh(labels=[1])  # type: ignore[list-item]


def test_the_fingerprint_of_a_certificate_comes_first() -> None:
    fingerprint = bytes(range(32))
    names = frozenset({"alpha", "beta"})
    for config, more in ((OWN_B, [OWN_A.node_key.fingerprint]), (OPEN_B, [])):
        peer = OWN_A if more else OPEN_A
        left = initiator(peer, certified=names)
        right = responder(config, certified=names, certificate_fingerprint=fingerprint)
        talk(left, right)
        assert right.established.peer.keys == (fingerprint, *more)


def test_a_config_with_a_key_of_its_own() -> None:
    assert "key" not in repr(OWN_A)
    with pytest.raises(ValueError, match="and not both"):
        dataclasses.replace(OWN_A, key=KEY)
    with pytest.raises(ValueError, match="the key is that of the node beta, not of alpha@"):
        dataclasses.replace(OWN_A, node_key=OWN_B.node_key)


# Bans.


@pytest.mark.parametrize("ban_s", [1, 3_600, 2**64 - 1])
def test_who_is_banned_is_told_for_how_long_and_believes_it_behind_the_proof(ban_s: int) -> None:
    verdict = Refusal(RefusalCode.BANNED, "the name alpha is banned for a while", ban_s=ban_s)
    left, right = initiator(), responder(verdict=verdict)
    talk(left, right)
    assert left.failed == Failed(
        RefusalCode.BANNED,
        "the peer refused: the name alpha is banned for a while",
        True,
        by_peer=True,
        ban_s=ban_s,
    )
    [(code, _, number, _)] = refusals(right.sent[right.sent.index(b"\x01\x00\x20") :])
    assert (code, number) == (RefusalCode.BANNED, ban_s)


OTHER = bytes(31) + b"x"
BAN = Refusal(RefusalCode.BANNED, "the key of beta is banned for a while", ban_s=77)


@pytest.mark.parametrize(
    ("dials", "answers"),
    [
        (AT_A, AT_B),
        (OPEN_A, OPEN_B),
        (OWN_A, OWN_B),
        # While the key is changed.
        (dataclasses.replace(AT_A, key=OTHER), dataclasses.replace(AT_B, other_keys=(OTHER,))),
    ],
    ids=["key", "no key", "keys of their own", "the other key"],
)
def test_who_is_dialled_and_is_banned_is_told_so_in_place_of_the_proof(
    dials: HandshakeConfig, answers: HandshakeConfig
) -> None:
    left, right = initiator(dials, verdict=BAN), responder(answers)
    talk(left, right)
    assert left.failed == Failed(RefusalCode.BANNED, BAN.text, False, ban_s=77)
    text = f"the peer refused: {BAN.text}"
    assert right.failed == Failed(RefusalCode.BANNED, text, True, by_peer=True, ban_s=77)
    assert right.judged is None


def at_the_proof(verdict: Refusal | None = BAN) -> tuple[Side, bytes]:
    """A responder that waits for the PROOF, and what an initiator says in its place."""
    left, right = initiator(verdict=verdict), responder()
    right.hear(left.flush())
    left.hear(right.flush())
    return right, left.flush()


def test_nobody_without_the_key_tells_a_node_that_it_is_banned() -> None:
    _, said = at_the_proof()
    forged = [
        # Of another handshake; with another word; without a MAC; with that of somebody else.
        responder(nonce=b"c" * 32),
        *(at_the_proof()[0] for _ in range(3)),
    ]
    other = initiator(dataclasses.replace(AT_A, key=b"x" * 32), verdict=BAN)
    lies = [said, said.replace(b"beta", b"Beta"), wire.pack_refuse(BAN, (1, 1)), b""]
    forged[0].hear(hello_of())
    right = forged[3]
    other.hear(right.sent)
    lies[3] = other.flush()[-len(said) :]
    for right, lie in zip(forged, lies, strict=True):
        right.hear(lie)
        assert right.failed.code is RefusalCode.AUTH, right.failed
        assert not right.failed.authenticated and not right.failed.ban_s


def test_what_else_an_initiator_refuses_with_needs_no_proof_and_is_not_believed() -> None:
    right, _ = at_the_proof()
    right.hear(wire.pack_refuse(Refusal(RefusalCode.VERSION, "no"), (1, 1)))
    assert right.failed.code is RefusalCode.VERSION and not right.failed.authenticated


def test_only_an_initiator_that_was_answered_refuses() -> None:
    left = initiator()
    for handshake in (left.handshake, responder().handshake):
        with pytest.raises(RuntimeError, match="refuse on a handshake"):
            handshake.refuse(BAN)


# Guests.

GUEST = dataclasses.replace(AT_A, own=NodeId("alpha", "guest-1:0"))


def test_a_guest_says_that_it_is_one_and_its_address_does() -> None:
    left, right = initiator(GUEST, expected=B), responder()
    talk(left, right)
    assert left.established.peer.node == B
    assert right.established.peer.node == GUEST.own
    assert int.from_bytes(left.sent[12:14], "big") & wire.GUEST_FLAG


@pytest.mark.parametrize("flags", [0, wire.GUEST_FLAG], ids=["port 0", "the flag"])
def test_a_guest_is_known_by_flag_and_port_or_refused(flags: int) -> None:
    side = responder()
    own = "10.0.0.1:7000" if flags else "guest-1:0"
    said = hello_of(
        flags=wire.KEY_FLAG | wire.STREAM_FLAG | flags, addr=own.encode(), nonce=NONCE_A
    )
    side.hear(said)
    assert side.failed.code is RefusalCode.NAME_INVALID
    ((code, _, _, text),) = refusals(side.flush())
    assert code == RefusalCode.NAME_INVALID and "port 0 is a guest's" in text


def test_nobody_who_answers_is_a_guest() -> None:
    left = initiator(expected=None)
    left.hear(
        hello_of(
            AT_B, NONCE_B, flags=wire.KEY_FLAG | wire.STREAM_FLAG | wire.GUEST_FLAG, addr=b"g:0"
        )
    )
    assert left.failed.code is RefusalCode.PROTOCOL


def test_a_node_that_knows_no_guests_refuses_them_with_words() -> None:
    """What the version before says of a flag that it does not know."""
    left = initiator(GUEST, expected=B)
    text = "flags 0x0025, allowed are 0x001f"
    left.hear(wire.pack_refuse(Refusal(RefusalCode.PROTOCOL, text), (1, 1)))
    assert left.failed.code is RefusalCode.PROTOCOL
    assert left.failed.text == (
        f"the peer refused: {text} (a node of a version that knows no guests takes none)"
    )
