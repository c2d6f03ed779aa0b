"""What a node proves itself with: a key that all have, one that it alone has, a certificate."""

from __future__ import annotations

from collections.abc import Sequence

from rabble._core.ids import NodeId
from rabble.cluster.decide.bans import Subject, subject_text
from rabble.cluster.decide.node_keys import NodeKey
from rabble.cluster.renewal import Renewal
from rabble.limits import Limits
from rabble.texts import argument_text

__all__ = ["Identity", "check_ban"]


class Identity:
    """The keys of one node. What it tells is for any thread.

    :param key: of the mesh; `None` without, or if each node has one of its own.
    :param other_keys: that are accepted, too.
    :param node_key: that this node alone has.
    :param renewal: knows its certificate.
    """

    def __init__(
        self,
        own: NodeId,
        key: bytes | None,
        other_keys: Sequence[bytes],
        node_key: NodeKey | None,
        renewal: Renewal,
    ) -> None:
        self._own = own
        self.key = key
        self.other_keys = tuple(other_keys)
        self.node_key = node_key
        self._renewal = renewal

    def own_keys(self) -> tuple[bytes, ...]:
        """The fingerprints of the keys that this node alone has, now."""
        certificate = self._renewal.key
        own = () if self.node_key is None else (self.node_key.fingerprint,)
        return own if certificate is None else (certificate, *own)

    def subjects(self) -> tuple[Subject, ...]:
        """All by which this node can be banned."""
        return (self._own.name, *self.own_keys())


def check_ban(
    subjects: Sequence[Subject], seconds: object, limits: Limits, identity: Identity
) -> None:
    """Raise the `TypeError` or `ValueError` of a ban that cannot be. For any thread."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"ban: seconds must be a number, not {argument_text(seconds)}")
    if not 0 < seconds <= limits.ban_seconds_max:
        raise ValueError(
            f"ban: seconds must be above 0 and at most {limits.ban_seconds_max}, which is "
            f"Limits.ban_seconds_max, not {argument_text(seconds)}"
        )
    own = identity.subjects()
    if len(own) == 1 and any(isinstance(subject, bytes) for subject in subjects):
        raise ValueError(
            "ban: the nodes of this mesh have no keys of their own that could be banned; give each "
            "a certificate, or a key of `rabble keygen --node`; or ban a name, and change the key"
        )
    for subject in subjects:
        if subject in own:
            raise ValueError(f"ban: {subject_text(subject)} is this node's own; see leave()")
