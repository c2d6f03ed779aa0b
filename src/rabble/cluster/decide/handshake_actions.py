"""What a handshake asks to be done, and who is at its other side."""

from __future__ import annotations

import dataclasses

from rabble._core.ids import NodeId
from rabble.cluster.decide.refusal import RefusalCode

__all__ = [
    "Action",
    "Authenticate",
    "Authorize",
    "Established",
    "Failed",
    "MESSAGE_BYTES_MAX",
    "Peer",
    "Send",
]

#: That of `rabble.limits.Limits`.
MESSAGE_BYTES_MAX = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """The node at the other side.

    :param node: its name and the address that it gives as its own.
    :param incarnation: of this start of it.
    :param join: this start of it was told to join; never set of a responder.
    :param version: of the protocol, which both sides speak from now on.
    :param message_bytes_max: of the longest message that it takes.
    :param keys: the fingerprints of the keys that it alone has, 32 bytes each: of its certificate's
        public key, of its own key; none in a mesh with one key for all.
    :param labels: that it gives itself.
    """

    node: NodeId
    incarnation: int
    join: bool
    version: int
    message_bytes_max: int = MESSAGE_BYTES_MAX
    keys: tuple[bytes, ...] = ()
    labels: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes."""

    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Authenticate:
    """The responder's HELLO is good: write `proof` if this peer is still to be connected.

    Otherwise call `Handshake.refuse` if it is to know why, or close the connection, and drop the
    handshake. From the PROOF on the peer may take the
    connection for established.
    """

    peer: Peer
    proof: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Authorize:
    """The initiator has proven itself: call `decide` with the answer it shall get."""

    peer: Peer


@dataclasses.dataclass(frozen=True, slots=True)
class Established:
    """Both sides have proven themselves and agree; frames follow.

    :param leftover: what came behind the handshake already: the first bytes of the stream.
    :param stream_keys: of what is sent and of what is received, if the stream is authenticated.
    """

    peer: Peer
    leftover: bytes
    stream_keys: tuple[bytes, bytes] | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """Close the connection, after what was to be sent before.

    :param code: why; of a refusal by the peer its code, PROTOCOL if that is unknown here.
    :param text: more about it, in printable ASCII.
    :param authenticated: the peer had proven itself; else anybody may be behind this.
    :param incarnation: that which the peer knows, of an own STALE_INCARNATION; else 0.
    :param ban_s: for how many seconds more, with BANNED; else 0.
    :param silent: no REFUSE is sent: the peer is no node, is too slow, or sends too much.
    :param by_peer: it was the peer who refused.
    :param hung_up: the peer closed the connection without a word.
    :param nobody: the host of the address says that nobody listens there.
    """

    code: RefusalCode
    text: str
    authenticated: bool
    incarnation: int = 0
    silent: bool = False
    by_peer: bool = False
    hung_up: bool = False
    nobody: bool = False
    ban_s: int = 0

    @property
    def is_usual(self) -> bool:
        """Whether this is nothing to warn of: a peer that drops its own dial, as another connection
        stays, or one that learns that both dialled each other.
        """
        return self.code is RefusalCode.DUPLICATE or (
            self.silent and self.code is RefusalCode.TIMEOUT
        )


Action = Send | Authenticate | Authorize | Established | Failed
