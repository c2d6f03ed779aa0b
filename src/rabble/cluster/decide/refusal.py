"""Why a node refuses or closes a connection: what the codes of the wire mean."""

from __future__ import annotations

import dataclasses
import enum

from rabble._core.frame import REFUSAL_CODES

__all__ = ["Refusal", "RefusalCode", "ended", "known_code"]


class RefusalCode(enum.IntEnum):
    """The codes of REFUSE and BYE; `meaning` is one line for people.

    The core has their numbers, as it sends and receives them: a name that it does not know fails
    here, when this module is imported.
    """

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> RefusalCode:
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning = meaning
        return member

    VERSION = REFUSAL_CODES["VERSION"], "no common version of the protocol"
    CLUSTER = REFUSAL_CODES["CLUSTER"], "another cluster id"
    AUTH = REFUSAL_CODES["AUTH"], "no or a wrong proof, or the other mode"
    NAME_INVALID = REFUSAL_CODES["NAME_INVALID"], "a name or address breaks the rules"
    NAME_MISMATCH = (
        REFUSAL_CODES["NAME_MISMATCH"],
        "the name is not in the certificate, or not the one that was dialled",
    )
    NAME_CONFLICT = REFUSAL_CODES["NAME_CONFLICT"], "a node of that name lives at another address"
    SELF = REFUSAL_CODES["SELF"], "the peer is this node"
    STALE_INCARNATION = REFUSAL_CODES["STALE_INCARNATION"], "a later start of that node is known"
    REMOVED = REFUSAL_CODES["REMOVED"], "the node was removed from the cluster"
    DUPLICATE = REFUSAL_CODES["DUPLICATE"], "there is a connection already, which stays"
    BUSY = REFUSAL_CODES["BUSY"], "too many handshakes"
    STATE = REFUSAL_CODES["STATE"], "what was said has no place here"
    FRAME_TOO_LARGE = REFUSAL_CODES["FRAME_TOO_LARGE"], "a frame is longer than allowed"
    DECODE = REFUSAL_CODES["DECODE"], "a frame's body is malformed"
    DECODE_LIMIT = REFUSAL_CODES["DECODE_LIMIT"], "a frame's body exceeds a bound"
    PROTOCOL = (
        REFUSAL_CODES["PROTOCOL"],
        "an unknown kind, a reserved flag, or a length that cannot be",
    )
    SPOOF = (
        REFUSAL_CODES["SPOOF"],
        "a sender that is not of the peer, or in whose name it may not send",
    )
    TIMEOUT = REFUSAL_CODES["TIMEOUT"], "silence"
    LIMIT = REFUSAL_CODES["LIMIT"], "another bound is reached"
    SHUTDOWN = REFUSAL_CODES["SHUTDOWN"], "the node ends"
    INTEGRITY = REFUSAL_CODES["INTEGRITY"], "the stream is not what was sent"
    BANNED = REFUSAL_CODES["BANNED"], "the node, or its key, is banned for a time"
    NOT_JOINED = REFUSAL_CODES["NOT_JOINED"], "the node that answers was removed, and has to join"


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
    :param ban_s: for how many seconds more, rounded up, for BANNED; else 0.
    """

    code: RefusalCode
    text: str = ""
    incarnation: int = 0
    ban_s: int = 0
