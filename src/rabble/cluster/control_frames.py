"""Control frames of peers: a few of each in a turn, and what is not taken in of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from rabble._core.errors import DecodeError
from rabble._core.ids import NodeId
from rabble.cluster.connections import Connections, PeerConnection
from rabble.cluster.decide.membership import Membership, MembershipError, MembershipLimit
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.gossip import KIND_MEMBERSHIP, code_of
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard

__all__ = ["FRAMES_A_TURN", "LIMIT_REPORT_S", "SECONDS_A_TURN", "ControlFrames"]

#: Of a peer: before it may have more read, it is the others' turn.
FRAMES_A_TURN = 16
#: After so many it is their turn, too, however few frames they went into. One of 1 MiB takes 16 ms,
#: or 280 if the names in it are of other letters than ASCII.
SECONDS_A_TURN = 0.02
#: Seconds between two reports that a member's membership does not fit in here.
LIMIT_REPORT_S = 60.0


class ControlFrames:
    """Reads the control frames of connections. For the cluster server's thread.

    :param read_membership: takes in the body of a MEMBERSHIP frame of a peer, and raises as
        `Gossip.read` does.
    """

    def __init__(
        self,
        own: NodeId,
        membership: Membership,
        connections: Connections,
        status_board: StatusBoard,
        runtime: ClusterRuntime,
        clock: Callable[[], float],
        read_membership: Callable[[PeerConnection, bytes], None],
    ) -> None:
        self._own = own
        self._membership = membership
        self._connections = connections
        self._status_board = status_board
        self._runtime = runtime
        self._clock = clock
        self._read_membership = read_membership

    def read(self, peer: PeerConnection) -> bool:
        """Read what a peer said, but not too much of it; whether there is more."""
        unread = peer.unread
        if not unread and peer.connection.has_control:
            unread.extend(peer.connection.take_control())
        ends_at = self._clock() + SECONDS_A_TURN
        for number in range(min(len(unread), FRAMES_A_TURN)):
            if number and self._clock() >= ends_at:
                break
            kind, body = unread.popleft()
            if kind != KIND_MEMBERSHIP or peer.connection_id not in self._connections:
                continue
            try:
                self._read_membership(peer, body)
            except (DecodeError, MembershipError) as error:
                self._refuse(peer, error)
                if not peer.connection.open:
                    unread.clear()
                    break
        return bool(unread)

    def _refuse(self, peer: PeerConnection, error: Exception) -> None:
        """What a peer sent of the membership is not taken in.

        That ends its connection, but not a member's for which there only is no room: whoever made
        so many members up would part those that took in some from those that took in others.
        """
        text = f"{self._own.name}: the membership of {peer.node} is not taken in: {error}"
        if not isinstance(error, MembershipLimit) or peer.node.name not in self._membership:
            self._runtime.report(logging.ERROR, functools.partial(str, text))
            peer.connection.close(code_of(error), "membership")
            return
        self._status_board.count_refusal(RefusalCode.LIMIT.name)
        now = self._clock()
        if now - peer.limit_reported_at >= LIMIT_REPORT_S:
            peer.limit_reported_at = now
            self._runtime.report(logging.ERROR, functools.partial(str, text))
