"""Why a node refuses or closes a connection, in the numbers of the wire."""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Refusal", "RefusalCode", "ended", "known_code"]


class RefusalCode(enum.IntEnum):
    """The codes of REFUSE and BYE; `meaning` is one line for people."""

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> RefusalCode:
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning = meaning
        return member

    VERSION = 1, "no common version of the protocol"
    CLUSTER = 2, "another cluster id"
    AUTH = 3, "no or a wrong proof, or the other mode"
    NAME_INVALID = 4, "a name or address breaks the rules"
    NAME_MISMATCH = 5, "the name is not in the certificate, or not the one that was dialled"
    NAME_CONFLICT = 6, "a node of that name lives at another address"
    SELF = 7, "the peer is this node"
    STALE_INCARNATION = 8, "a later start of that node is known"
    REMOVED = 9, "the node was removed from the cluster"
    DUPLICATE = 10, "there is a connection already, which stays"
    BUSY = 11, "too many handshakes"
    STATE = 12, "what was said has no place here"
    FRAME_TOO_LARGE = 13, "a frame is longer than allowed"
    DECODE = 14, "a frame's body is malformed"
    DECODE_LIMIT = 15, "a frame's body exceeds a bound"
    PROTOCOL = 16, "an unknown kind, a reserved flag, or a length that cannot be"
    SPOOF = 17, "a sender that is not of the peer"
    TIMEOUT = 18, "silence"
    LIMIT = 19, "another bound is reached"
    SHUTDOWN = 20, "the node ends"


def known_code(number: int) -> RefusalCode | None:
    """The code of that number from the wire; `None` if this version knows none.

    Numbers of this node's own are looked up by `RefusalCode(number)`, which raises `ValueError`.
    """
    try:
        return RefusalCode(number)
    except ValueError:
        return None


def ended(number: int) -> str:
    """One word for how a connection ended: the code of the BYE in lower case, or `lost`."""
    code = known_code(number)
    return "lost" if code is None else code.name.lower()


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """A decision against a peer.

    :param code: why.
    :param text: more about it, for people at the other side; it is cut to 200 characters.
    :param incarnation: the one that is known, for STALE_INCARNATION; else 0.
    """

    code: RefusalCode
    text: str = ""
    incarnation: int = 0
