"""How nodes stand with the membership: whether a peer may be connected, and this node itself."""

from __future__ import annotations

from rabble._core.messages import is_guest
from rabble.cluster.decide.handshake import Peer
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import Refusal, RefusalCode

__all__ = ["OwnStanding", "refusal_by_standing"]


def refusal_by_standing(membership: Membership, peer: Peer) -> Refusal | None:
    """Why a peer that dialled may not be connected, for what is known of its membership."""
    name = peer.node.name
    if is_guest(peer.node):
        # It is nobody to the membership, but does not take a member's name.
        if name not in membership:
            return None
        return Refusal(RefusalCode.NAME_CONFLICT, "a member has your name, so no guest can")
    standing = membership.standing(name, peer.incarnation)
    known = membership.incarnation_of(name)
    if standing == "removed" and peer.join and peer.incarnation < known:
        # A later start was removed, and this one was told to join: it has to become a later one.
        text = "a later start of you was removed"
        return Refusal(RefusalCode.STALE_INCARNATION, text, known)
    if standing == "removed" or (standing == "unknown" and known and not peer.join):
        return Refusal(RefusalCode.REMOVED, "join again")
    return None


class OwnStanding:
    """When this node has to become a later start, as others know of one.

    Whether a member made that one up, or another node has the name, cannot be told from here. So as
    not to quarrel with another one all the time, it waits.

    :param wait_s: seconds from when it is noticed.
    """

    def __init__(self, membership: Membership, wait_s: float) -> None:
        self._membership = membership
        self._wait_s = wait_s
        #: When `is_outbid` has something to say, in monotonic seconds; `None` if nothing is wrong.
        self.next_tick: float | None = None

    def is_outbid(self, now: float) -> bool:
        """Whether it is time to become a later start."""
        if self._membership.is_removed or not self._membership.is_superseded:
            self.next_tick = None
        elif self.next_tick is None:
            self.next_tick = now + self._wait_s
        elif now >= self.next_tick:
            self.next_tick = None
            return True
        return False
