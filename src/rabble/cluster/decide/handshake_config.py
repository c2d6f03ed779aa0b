"""What a node brings to each of its handshakes."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable

from rabble._core.directory_messages import checked_name
from rabble._core.frame import PROTOCOL_VERSIONS
from rabble._core.ids import NodeId, misleading
from rabble.cluster.decide import handshake_wire as wire
from rabble.cluster.decide.belief import INCARNATION_MAX
from rabble.cluster.decide.handshake_actions import MESSAGE_BYTES_MAX
from rabble.cluster.decide.handshake_wire import printable
from rabble.cluster.decide.node_keys import NodeKey

__all__ = ["HandshakeConfig", "check_cluster", "check_key", "check_labels"]

CLUSTER_BYTES_MAX = 64


def check_cluster(cluster: str) -> None:
    """Raise `ValueError` if that cannot be a cluster's id."""
    if len(cluster.encode()) > CLUSTER_BYTES_MAX:
        raise ValueError(
            f"cluster id {printable(cluster)} is not usable: "
            f"at most {CLUSTER_BYTES_MAX} bytes of UTF-8"
        )
    if not unicodedata.is_normalized("NFC", cluster):
        raise ValueError(
            f"cluster id {printable(cluster)} is not usable: it is not in Unicode normal form C"
        )
    problem = misleading(cluster)
    if problem is not None:
        raise ValueError(f"cluster id {printable(cluster)} is not usable: {problem}")


def check_labels(labels: Iterable[str]) -> None:
    """Raise `ValueError` if these cannot be the labels of a node."""
    for label in labels:
        try:
            checked_name(label)
        except ValueError as error:
            raise ValueError(f"label {printable(label)!r} is not usable: {error}") from None
    size = sum(1 + len(label.encode()) for label in labels)
    if size > wire.LABELS_BYTES_MAX:
        raise ValueError(
            f"the labels take {size} bytes, one for each and those of their texts in UTF-8: "
            f"at most {wire.LABELS_BYTES_MAX} are allowed"
        )


def check_key(key: bytes) -> None:
    """Raise `ValueError` if that cannot be a key; it is not shown."""
    if len(key) != wire.KEY_BYTES:
        raise ValueError(f"the key must be {wire.KEY_BYTES} bytes, not {len(key)}")


@dataclasses.dataclass(frozen=True, slots=True)
class HandshakeConfig:
    """What a node brings to each of its handshakes.

    :param own: this node.
    :param incarnation: of this node, a u64.
    :param cluster: the cluster's id, at most 64 bytes of UTF-8 in normal form C.
    :param key: the 32 bytes that the nodes share; `None` is the mode without a key.
    :param other_keys: that a peer may prove itself with as well, while the key is changed.
    :param node_key: what this node proves itself with, in a mesh where each has a key of its own.
    :param secured: the stream is TLS with certificates on both sides, or both sides are on
        loopback: only then there is a mode without a key.
    :param authenticate_loopback: authenticate the stream on loopback, too; in key mode, without
        TLS.
    :param versions: lowest and highest protocol version spoken.
    :param deadline_s: seconds that the whole handshake may take.
    :param highest_believed: of the incarnations of others, now; see `belief`.
    :param message_bytes_max: of the longest message that the node takes, which its peers are told.
    :param labels: of this node, which its peers are told.
    :raises ValueError: says what cannot be used. It never shows the key.
    """

    own: NodeId
    incarnation: int
    cluster: str = ""
    key: bytes | None = dataclasses.field(default=None, repr=False)
    other_keys: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)
    node_key: NodeKey | None = dataclasses.field(default=None, repr=False)
    secured: bool = False
    authenticate_loopback: bool = False
    versions: tuple[int, int] = PROTOCOL_VERSIONS
    deadline_s: float = 5.0
    highest_believed: int = INCARNATION_MAX
    message_bytes_max: int = MESSAGE_BYTES_MAX
    labels: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.incarnation < 1 << 64:
            raise ValueError(f"incarnation must be 0 to 2**64 - 1, not {self.incarnation}")
        check_cluster(self.cluster)
        check_labels(self.labels)
        for key in (self.key, *self.other_keys):
            if key is not None:
                check_key(key)
        if self.key is None and self.other_keys:
            raise ValueError("other_keys are of no use without a key")
        if self.node_key is not None:
            if self.key is not None:
                raise ValueError("a node has the cluster's key, or one of its own, and not both")
            if self.node_key.name != self.own.name:
                name = printable(self.node_key.name)
                raise ValueError(f"the key is that of the node {name}, not of {self.own}")
        if not self.is_keyed and not self.secured:
            raise ValueError("without a key the stream must be TLS, or both sides on loopback")
        lowest, highest = self.versions
        if not 0 <= lowest <= highest <= 255:
            raise ValueError(f"versions must be (lowest, highest) of 0 to 255, not {self.versions}")
        if not 1 <= self.message_bytes_max < 1 << 64:
            raise ValueError(
                f"message_bytes_max must be 1 to 2**64 - 1, not {self.message_bytes_max}"
            )
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be positive, not {self.deadline_s}")

    @property
    def is_keyed(self) -> bool:
        """Whether a PROOF is made with a key."""
        return self.key is not None or self.node_key is not None
