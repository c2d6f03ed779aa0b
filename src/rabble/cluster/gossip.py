"""Membership on the wire: states and digests to the peers, and theirs into the own state."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from rabble._core.codec import Codec
from rabble._core.ids import NodeId
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.membership import Changes, Membership
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits
from rabble.registry import MessageRegistry

__all__ = ["KIND_MEMBERSHIP", "Gossip"]

#: The kind of its frames; docs/internals/wire-protocol.md.
KIND_MEMBERSHIP = 19
#: Bytes of a frame besides its body: kind and flags.
FRAME_HEAD_BYTES = 2
#: Of a peer's state; its size is bounded by the longest frame.
ELEMENTS_MAX = 2**31 - 1


class Gossip:
    """Sends the membership to peers, and merges theirs. For the cluster server's thread.

    :param membership: the state that is sent and merged into.
    :param now: monotonic seconds.
    """

    def __init__(
        self,
        own: NodeId,
        membership: Membership,
        runtime: ClusterRuntime,
        limits: Limits,
        now: float,
    ) -> None:
        self._own = own
        self._membership = membership
        self._runtime = runtime
        self._frame_bytes_max = limits.frame_bytes_max
        self._digest_s = limits.digest_ms / 1000
        self._codec = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
        #: When the digest is sent next.
        self.next_tick = now

    def tick(self, now: float, peers: Iterable[PeerConnection]) -> None:
        """Send the digest if it is time to: who knows another state answers with it."""
        if now < self.next_tick:
            return
        self.next_tick = now + self._digest_s
        digest = self._codec.encode_message({"d": self._membership.digest()})
        for peer in peers:
            connection = peer.connection
            connection.send_control(KIND_MEMBERSHIP, digest)

    def send_state(self, peer: PeerConnection) -> None:
        """Send the whole state to a peer."""
        state = self._membership.encoded()
        if len(state) + FRAME_HEAD_BYTES <= self._frame_bytes_max:
            connection = peer.connection
            connection.send_control(KIND_MEMBERSHIP, state)
            return
        text = (
            f"{self._own.name}: the state of {len(self._membership)} members is {len(state)} bytes,"
            f" more than Limits.frame_bytes_max: {peer.node} is not told"
        )
        self._runtime.report(logging.ERROR, lambda: text)

    def read(self, peer: PeerConnection, body: bytes) -> Changes | None:
        """Take in what a peer sent.

        :returns: what its state changed; `None` if it is the own one, or a digest.
        :raises DecodeError: if it cannot be decoded.
        :raises MembershipError: if it is no state.
        """
        if body == self._membership.encoded():
            return None
        state = self._codec.decode_message(body)
        if isinstance(state, dict) and state.keys() == {"d"}:
            if state["d"] != self._membership.digest():
                self.send_state(peer)
            return None
        return self._membership.merge(state)
