"""The handshake of two nodes, for either side, without I/O.

docs/internals/wire-protocol.md has the bytes and the turns. A peer is believed only after its
PROOF: until then nothing that it sends is dispatched or kept.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac

from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.handshake_actions import (
    Action,
    Authenticate,
    Authorize,
    Established,
    Failed,
    Peer,
    Send,
)
from rabble.cluster.decide.handshake_config import (
    HandshakeConfig,
    check_cluster,
    check_key,
    check_labels,
)
from rabble.cluster.decide.handshake_wire import Hello, printable
from rabble.cluster.decide.node_keys import KEY_ID_BYTES, fingerprint_of
from rabble.cluster.decide.refusal import Refusal, RefusalCode, known_code

__all__ = [
    "Action",
    "Authenticate",
    "Authorize",
    "Established",
    "Failed",
    "Handshake",
    "HandshakeConfig",
    "Peer",
    "Role",
    "Send",
    "check_cluster",
    "check_key",
]


class Role(enum.Enum):
    """Which side of the connection this is."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Stage(enum.Enum):
    """What comes next."""

    NEW = "start"
    HELLO = "the peer's HELLO"
    PROOF = "the peer's PROOF"
    AUTHORIZATION = "the node's decision"
    VERDICT = "the responder's decision"
    DONE = "nothing"


class Fault(Exception):
    """Why this handshake ends; never leaves this module.

    :param peer_text: the text of the REFUSE that the peer gets.
    """

    def __init__(
        self,
        code: RefusalCode,
        text: str,
        *,
        peer_text: str = "",
        silent: bool = False,
        by_peer: bool = False,
        incarnation: int = 0,
        ban_s: int = 0,
    ) -> None:
        super().__init__(text)
        self.failed = Failed(code, text, False, incarnation, silent, by_peer, ban_s=ban_s)
        self.peer_text = peer_text


class Handshake:
    """One handshake, from the first byte to `Established` or `Failed`, of which one is the last
    action.

    :param role: this side's.
    :param config: this node's.
    :param nonce: 32 bytes of a cryptographic random source, never used before.
    :param now: monotonic seconds; all times are of the same clock.
    :param join: tell the responder that this node was told to join. For the initiator.
    :param expected: the node that was dialled; `None` where only its address is known. For the
        initiator.
    :param certified: the names in the peer's certificate; `None` if the stream is not TLS.
    :param certificate_fingerprint: the fingerprint of that certificate's public key.
    :param on_loopback: the stream does not leave this machine.
    :raises ValueError: if an argument cannot be used.

    Begin with `start`, then hand in what is received and call `tick` now and then. A server that
    sees the stream end just drops the object. For one thread at a time.
    """

    def __init__(
        self,
        role: Role,
        config: HandshakeConfig,
        nonce: bytes,
        now: float,
        join: bool = False,
        expected: NodeId | None = None,
        *,
        certified: frozenset[str] | None = None,
        certificate_fingerprint: bytes | None = None,
        on_loopback: bool = False,
    ) -> None:
        if len(nonce) != wire.NONCE_BYTES:
            raise ValueError(f"the nonce must be {wire.NONCE_BYTES} bytes, not {len(nonce)}")
        if role is Role.RESPONDER and (join or expected is not None):
            raise ValueError("join and expected are the initiator's")
        self.role = role
        self.deadline = now + config.deadline_s
        self._initiates = role is Role.INITIATOR
        self._config = config
        #: That the initiator proves itself with, and the responder with the same. Of two nodes
        #: with keys of their own it is that of the pair, known from the peer's HELLO on.
        self._key = config.key
        self._nonce = nonce
        self._join = join
        self._expected = expected
        self._certified = certified
        self._certificate_fingerprint = certificate_fingerprint
        #: Whether what follows is to be authenticated; the peer may ask for it, too.
        self._authenticates_stream = (
            config.is_keyed
            and certified is None
            and (config.authenticate_loopback or not on_loopback)
        )
        self._stage = Stage.NEW if self._initiates else Stage.HELLO
        self._buffer = bytearray()
        self._consumed_bytes = 0
        self._transcript = hashlib.sha256()
        #: Of both HELLOs. An initiator has it apart, as it writes a PROOF that it may hold back.
        self._hellos = self._transcript
        self._authenticated = False
        self._peer: Peer | None = None

    @property
    def done(self) -> bool:
        """Whether the last action was given."""
        return self._stage is Stage.DONE

    @property
    def own_incarnation(self) -> int:
        """As which start of this node it was begun."""
        return self._config.incarnation

    @property
    def claimed(self) -> NodeId | None:
        """Who the peer says it is, proven or not; `None` before its HELLO."""
        return None if self._peer is None else self._peer.node

    def extend(self, now: float) -> None:
        """Allow as much time again: for an initiator that sends its PROOF.

        The responder, whose time began before, may call the connection established until that is
        over. An initiator that gives up earlier would be seen to come and go.
        """
        self.deadline = now + self._config.deadline_s

    def start(self) -> list[Action]:
        """Begin: an initiator sends HELLO at once, a responder nothing.

        :raises RuntimeError: if an initiator was started before.
        """
        if not self._initiates:
            return []
        if self._stage is not Stage.NEW:
            raise RuntimeError("this handshake was started before")
        self._stage = Stage.HELLO
        return [Send(self._write_hello())]

    def receive(self, data: bytes, now: float) -> list[Action]:
        """Take in the bytes of the peer, in any pieces.

        :raises RuntimeError: once the handshake is done, or before it was started.
        """
        if self._stage in (Stage.NEW, Stage.DONE):
            raise RuntimeError(f"receive on a handshake that waits for {self._stage.value}")
        if late := self.tick(now):
            return late
        self._buffer += data
        try:
            return self._advance()
        except Fault as fault:
            return self._end(fault)

    def tick(self, now: float) -> list[Action]:
        """Note the time; ends the handshake at its `deadline`. Nothing to do once it is done."""
        if self.done or now < self.deadline:
            return []
        text = f"no {self._stage.value} within {self._config.deadline_s:g} s"
        return self._end(Fault(RefusalCode.TIMEOUT, text, silent=True))

    def decide(self, refusal: Refusal | None) -> list[Action]:
        """Answer `Authorize`: `None` accepts the peer.

        :raises RuntimeError: if there is nothing to decide, for one as it failed meanwhile.
        """
        if self._stage is not Stage.AUTHORIZATION:
            raise RuntimeError(f"decide on a handshake that waits for {self._stage.value}")
        assert self._peer is not None
        if refusal is not None:
            text = f"refused: {printable(refusal.text) or refusal.code.meaning}"
            fault = Fault(
                refusal.code,
                text,
                peer_text=refusal.text,
                incarnation=refusal.incarnation,
                ban_s=refusal.ban_s,
            )
            return self._end(fault)
        self._stage = Stage.DONE
        said = self._write_proof() + self._proven(wire.follow_up(wire.ACCEPT, b"", self._mac_bytes))
        return [Send(said), Established(self._peer, b"", self._stream_keys())]

    def refuse(self, refusal: Refusal) -> list[Action]:
        """Answer `Authenticate`: refuse the responder, in place of the PROOF, and prove that.

        :raises RuntimeError: if there is nothing to refuse.
        """
        if not self._initiates or self._stage is not Stage.PROOF:
            raise RuntimeError(f"refuse on a handshake that waits for {self._stage.value}")
        self._stage = Stage.DONE
        refuse = wire.pack_refuse(refusal, self._config.versions, self._mac_bytes)
        said = refuse + self._refusal_mac(self._key, refuse)
        return [Send(said), Failed(refusal.code, refusal.text, False, ban_s=refusal.ban_s)]

    # Messages of the peer.

    def _advance(self) -> list[Action]:
        if self._stage is Stage.AUTHORIZATION:
            self._refuse_early_bytes()
            return []
        while (complete := self._next_message()) is not None:
            what, body, message = complete
            if self._stage is Stage.VERDICT:
                self._check_verdict(message)
            if what == wire.REFUSE:
                fault = self._refused(body)
                if self._stage is Stage.PROOF and not self._initiates:
                    self._check_refusal(fault, message)
                raise fault
            if self._stage is Stage.HELLO:
                return self._read_hello(body, message)
            if self._stage is Stage.VERDICT:
                return self._read_accept()
            self._read_proof(body, message)
            if not self._initiates:
                return self._ask()
        return []

    def _next_message(self) -> tuple[int, bytes, bytes] | None:
        """The kind of the next message, its body, and all its bytes; `None` while it is partial.

        A fault is seen at the first byte that shows it, so how the bytes are cut does not matter.
        """
        buffer = self._buffer
        if not buffer:
            return None
        what = buffer[0]
        if self._stage is Stage.HELLO and not (self._initiates and what == wire.REFUSE):
            head, what = wire.HELLO_HEAD, 0
            if not wire.MAGIC.startswith(buffer[: len(wire.MAGIC)]):
                text = f"no node: it says {printable(buffer[:8].decode('latin-1'))}"
                raise Fault(RefusalCode.PROTOCOL, text, silent=True)
            least, most = wire.HELLO_BODY_MIN, wire.HELLO_BODY_MAX
        else:
            head, least, most = wire.FOLLOW_UP_HEAD, 0, wire.FOLLOW_UP_BODY_MAX
            due = wire.ACCEPT if self._stage is Stage.VERDICT else wire.PROOF
            if what not in (due, wire.REFUSE):
                text = f"{what:#04x} in place of {self._stage.value}"
                raise Fault(RefusalCode.STATE, text, peer_text=text)
        if len(buffer) < head:
            return None
        size = int.from_bytes(buffer[head - 2 : head], "big")
        if not least <= size <= most:
            text = f"a length of {size}, allowed are {least} to {most}"
            raise Fault(RefusalCode.PROTOCOL, text, peer_text=text)
        end = head + size
        if self._consumed_bytes + end > wire.HANDSHAKE_BYTES_MAX:
            text = f"more than {wire.HANDSHAKE_BYTES_MAX} bytes of handshake"
            raise Fault(RefusalCode.LIMIT, text, silent=True)
        if len(buffer) < end:
            return None
        message = bytes(buffer[:end])
        del buffer[:end]
        self._consumed_bytes += end
        return what, message[head:], message

    def _read_hello(self, body: bytes, message: bytes) -> list[Action]:
        try:
            hello = wire.parse_hello(body)
        except ValueError as error:
            raise Fault(RefusalCode.PROTOCOL, str(error), peer_text=str(error)) from None
        self._peer = self._checked(hello)
        if self._config.node_key is not None:
            self._key = self._config.node_key.pair_key(self._peer.node.name, hello.key_id)
        self._authenticates_stream |= bool(hello.flags & wire.STREAM_FLAG)
        self._refuse_early_bytes()
        self._transcript.update(message)
        self._stage = Stage.PROOF
        if self._initiates:
            self._hellos = self._transcript.copy()
            return [Authenticate(self._peer, self._write_proof())]
        return [Send(self._write_hello())]

    def _read_proof(self, proof: bytes, message: bytes) -> None:
        label = wire.RESPONDER_LABEL if self._initiates else wire.INITIATOR_LABEL
        transcript = self._transcript.digest()
        proven = [
            key
            for key in (self._key, *self._config.other_keys)
            if hmac.compare_digest(proof, wire.proof_of(key, label, transcript))
        ]
        if not proven:
            raise Fault(RefusalCode.AUTH, "the peer's proof is wrong")
        if not self._initiates:
            # Another one the initiator may not have yet, or have no longer.
            self._key = proven[0]
        self._transcript.update(message)
        self._authenticated = True
        self._stage = Stage.VERDICT if self._initiates else Stage.AUTHORIZATION

    def _ask(self) -> list[Action]:
        assert self._peer is not None
        self._refuse_early_bytes()
        self._refuse_own_name(self._peer)
        return [Authorize(self._peer)]

    def _check_verdict(self, message: bytes) -> None:
        """In key mode it has to be the responder's own: another could say that we were removed."""
        covered = message[: len(message) - self._mac_bytes]
        if not hmac.compare_digest(self._proven(covered), message):
            self._authenticated = False
            raise Fault(RefusalCode.AUTH, "the answer to the proof is not of who has proven itself")

    def _check_refusal(self, fault: Fault, message: bytes) -> None:
        """An initiator's refusal in place of its PROOF: one that is to be believed proves itself.

        What it says of this node's HELLO needs no proof, and nothing comes of it here.
        """
        covered = message[: len(message) - self._mac_bytes]
        self._authenticated = any(
            hmac.compare_digest(covered + self._refusal_mac(key, covered), message)
            for key in (self._key, *self._config.other_keys)
        )
        if fault.failed.code is RefusalCode.BANNED and not self._authenticated:
            raise Fault(RefusalCode.AUTH, "the refusal is of nobody who has proven itself")

    def _read_accept(self) -> list[Action]:
        assert self._peer is not None
        self._refuse_own_name(self._peer)
        leftover = bytes(self._buffer)
        self._buffer.clear()
        self._stage = Stage.DONE
        return [Established(self._peer, leftover, self._stream_keys())]

    def _end(self, fault: Fault) -> list[Action]:
        actions: list[Action] = []
        failed = dataclasses.replace(fault.failed, authenticated=self._authenticated)
        if not (failed.silent or failed.by_peer) and self._may_refuse():
            stale = failed.code is RefusalCode.STALE_INCARNATION
            refusal = Refusal(
                failed.code, fault.peer_text, failed.incarnation if stale else 0, failed.ban_s
            )
            versions = self._config.versions
            if self._stage is Stage.AUTHORIZATION:
                proof = self._write_proof()
                refuse = wire.pack_refuse(refusal, versions, self._mac_bytes)
                actions.append(Send(proof + self._proven(refuse)))
            else:
                actions.append(Send(wire.pack_refuse(refusal, versions)))
        if not failed.by_peer:
            # A STALE_INCARNATION of the peer's is of no use to this node.
            failed = dataclasses.replace(failed, incarnation=0)
        self._stage = Stage.DONE
        self._buffer.clear()
        return [*actions, failed]

    def _may_refuse(self) -> bool:
        """Whether a REFUSE of this side has a place: an initiator's last turn is its PROOF."""
        return not self._initiates or self._stage is Stage.HELLO

    # What is sent.

    def _write_hello(self) -> bytes:
        config = self._config
        flags = (
            (wire.KEY_FLAG if config.is_keyed else 0)
            | (wire.NODE_KEY_FLAG if config.node_key is not None else 0)
            | (wire.JOIN_FLAG if self._join else 0)
            | (wire.STREAM_FLAG if self._authenticates_stream else 0)
            | (wire.LABELS_FLAG if config.labels else 0)
            | (wire.GUEST_FLAG if is_guest(config.own) else 0)
        )
        hello = Hello(
            *config.versions,
            flags,
            config.incarnation,
            self._nonce,
            config.cluster.encode(),
            config.own.name.encode(),
            config.own.addr.encode(),
            config.message_bytes_max,
            b"" if config.node_key is None else config.node_key.key_id,
            tuple(label.encode() for label in sorted(config.labels)),
        )
        message = wire.pack_hello(hello)
        self._transcript.update(message)
        return message

    def _write_proof(self) -> bytes:
        label = wire.INITIATOR_LABEL if self._initiates else wire.RESPONDER_LABEL
        proof = wire.proof_of(self._key, label, self._transcript.digest())
        message = wire.follow_up(wire.PROOF, proof)
        self._transcript.update(message)
        return message

    @property
    def _mac_bytes(self) -> int:
        """Of the MAC behind a verdict."""
        return wire.MAC_BYTES if self._config.is_keyed else 0

    def _proven(self, verdict: bytes) -> bytes:
        """A verdict with its MAC, which covers both PROOFs, too."""
        transcript = self._transcript.copy()
        transcript.update(verdict)
        return verdict + wire.proof_of(self._key, wire.VERDICT_LABEL, transcript.digest())

    def _refusal_mac(self, key: bytes | None, refuse: bytes) -> bytes:
        """Of a REFUSE in place of a PROOF; it covers both HELLOs, too."""
        transcript = self._hellos.copy()
        transcript.update(refuse)
        return wire.proof_of(key, wire.REFUSAL_LABEL, transcript.digest())

    def _stream_keys(self) -> tuple[bytes, bytes] | None:
        """Of what this side sends and of what it receives. Both PROOFs are in the transcript."""
        key = self._key
        if key is None or not self._authenticates_stream:
            return None
        labels = [wire.INITIATOR_STREAM_LABEL, wire.RESPONDER_STREAM_LABEL]
        own, peers = labels if self._initiates else labels[::-1]
        transcript = self._transcript.digest()
        return (
            wire.stream_key_of(key, own, transcript),
            wire.stream_key_of(key, peers, transcript),
        )

    # What is checked.

    def _checked(self, hello: Hello) -> Peer:
        """The peer as it calls itself, if this node wants to talk to such a one."""
        config = self._config
        lowest, highest = config.versions
        version = min(highest, hello.highest)
        if version < max(lowest, hello.lowest):
            # The peer learns the own range from the fields of REFUSE.
            raise Fault(RefusalCode.VERSION, self._version_text(hello.lowest, hello.highest))
        keyed = bool(hello.flags & wire.KEY_FLAG)
        has_own = bool(hello.flags & wire.NODE_KEY_FLAG)
        allowed = (
            wire.KEY_FLAG
            # A guest only dials.
            | (0 if self._initiates else wire.JOIN_FLAG | wire.GUEST_FLAG)
            | (wire.STREAM_FLAG if keyed and self._certified is None else 0)
            | (wire.NODE_KEY_FLAG if keyed else 0)
            | wire.LABELS_FLAG
        )
        if hello.flags & ~allowed:
            text = f"flags {hello.flags:#06x}, allowed are {allowed:#06x}"
            raise Fault(RefusalCode.PROTOCOL, text, peer_text=text)
        if has_own and len(hello.key_id) < KEY_ID_BYTES:
            text = "the id of the key exceeds the HELLO"
            raise Fault(RefusalCode.PROTOCOL, text, peer_text=text)
        if hello.labels is None:
            text = "the labels exceed the HELLO"
            raise Fault(RefusalCode.PROTOCOL, text, peer_text=text)
        if keyed != config.is_keyed:
            text = "the peer has a key, this node none" if keyed else "the peer has no key"
            raise Fault(RefusalCode.AUTH, text)
        if has_own != (config.node_key is not None):
            texts = ("the cluster's key", "a key of its own")
            text = f"the peer has {texts[has_own]}, this node {texts[not has_own]}"
            raise Fault(RefusalCode.AUTH, text)
        if hello.cluster != config.cluster.encode():
            shown = printable(hello.cluster.decode("utf-8", "replace"))
            text = f"the peer is of the cluster '{shown}', this node of '{config.cluster}'"
            raise Fault(RefusalCode.CLUSTER, printable(text))
        if hmac.compare_digest(hello.nonce, self._nonce):
            raise Fault(RefusalCode.AUTH, "the peer's nonce is this node's own, reflected")
        try:
            node = NodeId(hello.name.decode(), hello.addr.decode())
            labels = frozenset(label.decode() for label in hello.labels)
            check_labels(labels)
        except ValueError as error:
            text = printable(str(error))
            raise Fault(RefusalCode.NAME_INVALID, text, peer_text=text) from None
        if is_guest(node) != bool(hello.flags & wire.GUEST_FLAG):
            # From here on a guest is known by its address.
            text = f"the address {node.addr}: port 0 is a guest's, and a guest's is 0"
            raise Fault(RefusalCode.NAME_INVALID, printable(text), peer_text=text)
        if hello.incarnation > config.highest_believed:
            # Who believes it has no word for the starts that come after.
            text = f"the incarnation {hello.incarnation} is a hundred years ahead of the clock"
            raise Fault(RefusalCode.LIMIT, text, peer_text=text)
        if self._certified is not None and node.name not in self._certified:
            text = printable(f"'{node.name}' is not in the certificate of that peer")
            raise Fault(RefusalCode.NAME_MISMATCH, text, peer_text=text)
        if self._expected is not None and node.name != self._expected.name:
            text = printable(f"'{self._expected.name}' was dialled, '{node.name}' answers")
            raise Fault(RefusalCode.NAME_MISMATCH, text, peer_text=text)
        return Peer(
            node,
            hello.incarnation,
            bool(hello.flags & wire.JOIN_FLAG),
            version,
            hello.message_bytes_max,
            self._keys_of(hello),
            labels,
        )

    def _keys_of(self, hello: Hello) -> tuple[bytes, ...]:
        """The fingerprints of what the peer alone can prove itself with."""
        certificate = (
            () if self._certificate_fingerprint is None else (self._certificate_fingerprint,)
        )
        if not hello.key_id:
            return certificate
        return (*certificate, fingerprint_of(hello.name.decode(), hello.key_id))

    def _refuse_early_bytes(self) -> None:
        """A peer that sends out of turn cannot have read what it has to answer."""
        if self._buffer:
            text = f"{len(self._buffer)} bytes out of turn"
            raise Fault(RefusalCode.STATE, text, peer_text=text)

    def _refuse_own_name(self, peer: Peer) -> None:
        """Only behind the proof: a forger of this could keep the node from ever dialling again."""
        if peer.node.name != self._config.own.name:
            return
        if peer.incarnation == self._config.incarnation:
            raise Fault(RefusalCode.SELF, "the peer is this node", peer_text="you are this node")
        text = f"the peer at {peer.node.addr} has this node's name"
        raise Fault(RefusalCode.NAME_CONFLICT, text, peer_text="this node has your name")

    def _refused(self, body: bytes) -> Fault:
        """What a REFUSE of the peer means here."""
        try:
            number, versions, told, peer_text = wire.parse_refuse(body)
        except ValueError as error:
            return Fault(RefusalCode.PROTOCOL, str(error), by_peer=True)
        code = known_code(number)
        if code is None:
            text = f"the peer refused with the unknown code {number}: {peer_text}"
            return Fault(RefusalCode.PROTOCOL, text, by_peer=True)
        text = f"the peer refused: {peer_text or code.meaning}"
        if code is RefusalCode.VERSION:
            text = f"the peer refused: {self._version_text(*versions)}"
        if code is RefusalCode.PROTOCOL and is_guest(self._config.own):
            text = f"{text} (a node of a version that knows no guests takes none)"
        incarnation = told if code is RefusalCode.STALE_INCARNATION else 0
        if incarnation > self._config.highest_believed:
            text = f"{text}; its incarnation {incarnation} is a hundred years ahead of the clock"
            incarnation = 0
        ban_s = told if code is RefusalCode.BANNED else 0
        return Fault(code, text, by_peer=True, incarnation=incarnation, ban_s=ban_s)

    def _version_text(self, lowest: int, highest: int) -> str:
        own_lowest, own_highest = self._config.versions
        return (
            f"the peer speaks versions {lowest} to {highest}, "
            f"this node {own_lowest} to {own_highest}"
        )
