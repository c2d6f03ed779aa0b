"""What a node alone has, and can be banned by: its name, its key, its certificate."""

from __future__ import annotations

from collections.abc import Sequence

from rabble._core.ids import NodeId
from rabble.cluster.decide.bans import Subject, subject_text
from rabble.cluster.renewal import Renewal
from rabble.limits import Limits
from rabble.texts import argument_text

__all__ = ["Identity", "check_ban"]


class Identity:
    """By what one node can be told from all others. What it tells is for any thread.

    :param renewal: knows its keys and its certificate.
    """

    def __init__(self, own: NodeId, renewal: Renewal) -> None:
        self._own = own
        self._renewal = renewal

    def own_fingerprints(self) -> tuple[bytes, ...]:
        """The fingerprints of the keys that this node alone has, now."""
        certificate, node_key = (
            self._renewal.certificate_fingerprint,
            self._renewal.credentials.node_key,
        )
        own = () if node_key is None else (node_key.fingerprint,)
        return own if certificate is None else (certificate, *own)

    def subjects(self) -> tuple[Subject, ...]:
        """All by which this node can be banned."""
        return (self._own.name, *self.own_fingerprints())


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
