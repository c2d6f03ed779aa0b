"""Membership on the wire: what changed, whole states and digests, to the peers and from them.

What is sent is one map, see MEMBERSHIP in docs/internals/wire-protocol.md. A new connection begins
with a *greeting*: what the node says of itself, and whether it knew the peer. Two that know nothing
of each other send each other all they know. Others know nearly the same, as everybody is told what
changes; what was lost on the way is found by a digest, when nothing has changed for a while.

A guest begins with its digest, which has it sent the whole state, and is told what changes like a
member. It says nothing but digests, and is not listened to if it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from rabble._core.codec import Codec
from rabble._core.frame import FRAME_KINDS
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.cluster.ban_gossip import BanGossip
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.backoff import Uniform
from rabble.cluster.decide.bans import BanChanges, Bans, Subject
from rabble.cluster.decide.dissemination import Dissemination
from rabble.cluster.decide.membership import Changes, Membership, MembershipError
from rabble.cluster.decide.membership_delta import Part, changed_parts, rows_by_part
from rabble.cluster.decide.membership_state import FRAME_HEAD_BYTES, MembershipLimit
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits
from rabble.registry import MessageRegistry

__all__ = ["KIND_MEMBERSHIP", "Gossip", "code_of"]

#: The kind of its frames; docs/internals/wire-protocol.md.
KIND_MEMBERSHIP = FRAME_KINDS["MEMBERSHIP"]
#: Of a peer's state; its size is bounded by the longest frame.
ELEMENTS_MAX = 2**31 - 1
NOTHING_NEW = Changes((), (), False)


class Gossip:
    """Sends the membership to peers, and merges theirs. For the cluster server's thread.

    :param membership: the state that is sent and merged into.
    :param now: monotonic seconds, as everywhere.
    :param rng: for the jitter of what is told, and when.
    :param bans: those that are known; none if left out.
    :param own_subjects: this node's name and keys, now.
    """

    def __init__(
        self,
        own: NodeId,
        membership: Membership,
        runtime: ClusterRuntime,
        limits: Limits,
        now: float,
        rng: Uniform,
        bans: Bans | None = None,
        own_subjects: Callable[[], tuple[Subject, ...]] = tuple,
    ) -> None:
        self._own = own
        self._is_guest = is_guest(own)
        self._membership = membership
        self._runtime = runtime
        self._rng = rng
        self._frame_bytes_max = limits.frame_bytes_max
        self._digest_s = limits.digest_ms / 1000
        self._settled_s = limits.digest_settled_ms / 1000
        #: What is sent first on a connection, by whether its peer is known, as long as these are
        #: the rows that this node makes itself.
        self._greetings: dict[bool, bytes] = {}
        self._greeting_rows: tuple[object, ...] = ()
        #: Digests of an honest peer are at least twice as far apart, however late one of them is.
        self._whole_after_s = min(self._digest_s, self._settled_s) / 2
        #: The last digest that a peer and this node have both seen, and when: one of them has sent
        #: it, and the other would have answered another one.
        self._compared: dict[int, tuple[bytes, float]] = {}
        #: When a peer was last sent the whole state for a digest, by the id of its connection.
        self._whole_sent_at: dict[int, float] = {}
        self._codec = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
        self._dissemination: Dissemination[Part] = Dissemination(rng, limits)
        bans = Bans(own, limits) if bans is None else bans
        #: What is told and heard of bans.
        self.bans = BanGossip(own, bans, runtime, limits, rng, self._codec, own_subjects)
        #: The state whose changes have all been noticed.
        self._noticed = membership.known()
        #: Peers, by the id of their connection, of which nothing was known when it came up.
        self._strangers: set[int] = set()
        self._digest_at = now
        #: When there has been no change for so long that all should have heard of the last one.
        self._settled_at: float | None = None

    @property
    def next_tick(self) -> float:
        """When to call `tick`."""
        at = self._digest_at
        for other in (self._settled_at, self._dissemination.due, self.bans.due):
            if other is not None and other < at:
                at = other
        return at

    def tick(self, now: float, peers: Iterable[PeerConnection]) -> None:
        """Tell what changed, and send the digest, if it is time to."""
        due = self._dissemination.due
        is_due = due is not None and now >= due
        # That somebody is banned goes before that he was removed.
        self.bans.tick(now, peers, at_once=is_due)
        if is_due:
            self._tell(now, peers)
        if now >= min(self._digest_at, self._settled_at or self._digest_at):
            # A guest asks when it hears a digest that is not its own.
            self._send_digests(now, () if self._is_guest else peers)

    # What is sent.

    def greet(self, peer: PeerConnection, now: float) -> None:
        """Begin a new connection."""
        self._dissemination.connection_up(peer.connection_id)
        self.bans.connection_up(peer)
        if self._is_guest:
            self._send_digest(peer, now)
        if self._is_guest or is_guest(peer.node):
            # That a guest comes or goes changes nothing for the others.
            return
        known = self._membership.incarnation_of(peer.node.name) >= peer.incarnation
        if not known:
            self._strangers.add(peer.connection_id)
        self._send_body(peer, self._greeting(known))
        self._digest_soon(now)

    def _greeting(self, known: bool) -> bytes:
        parts = self._membership.own_parts()
        rows = tuple(map(self._membership.row_of, parts))
        if rows != self._greeting_rows:
            own = self._membership.delta(parts).plain()
            self._greetings = {
                each: self._codec.encode_message({**own, "k": each}) for each in (False, True)
            }
            self._greeting_rows = rows
        return self._greetings[known]

    def forget(self, connection_id: int) -> None:
        """A connection has ended."""
        self._strangers.discard(connection_id)
        self._compared.pop(connection_id, None)
        self._whole_sent_at.pop(connection_id, None)
        self._dissemination.connection_down(connection_id)
        self.bans.connection_down(connection_id)

    def changed(self, now: float) -> None:
        """This node has changed its membership."""
        self._dissemination.changed(self._notice(now), now)

    def tell_before_parting(self, peer: PeerConnection, now: float) -> None:
        """Send a peer whose connection ends what it has not been told yet: it may be why."""
        # That somebody is banned goes before that he was removed.
        self.bans.tell_before_parting(peer, now)
        parts = self._dissemination.untold_to(peer.connection_id)
        if parts:
            self._send(peer, self._membership.delta(parts).plain())

    def send_state(self, peer: PeerConnection, now: float) -> None:
        """Send the whole state to a peer, behind all bans."""
        self.bans.send_all(peer, now)
        self._send(peer, {**self._membership.state(), "k": True})

    def _tell(self, now: float, peers: Iterable[PeerConnection]) -> None:
        by_id = {peer.connection_id: peer for peer in peers}
        for parts, connection_ids in self._dissemination.take(now).items():
            body = self._membership.delta(parts).encoded()
            for connection_id in connection_ids:
                if (peer := by_id.get(connection_id)) is not None:
                    self._send_body(peer, body)

    def _send_digest(self, peer: PeerConnection, now: float) -> None:
        body = self._codec.encode_message({"d": self._digest(peer, now)})
        peer.connection.send_control(KIND_MEMBERSHIP, body)

    def _send_digests(self, now: float, peers: Iterable[PeerConnection]) -> None:
        """Send the digest to those with whom this one has not been compared, or not of late."""
        # At its time one of two is first, and then the other need not be.
        compared_since = now - self._digest_s / 2 if now >= self._digest_at else float("-inf")
        self._digest_at, self._settled_at = now + self._digest_s, None
        digest_for = self.bans.digests(self._membership.digest(), now)
        bodies: dict[bytes, bytes] = {}
        for peer in peers:
            digest = digest_for(peer)
            seen, seen_at = self._compared.get(peer.connection_id, (b"", 0.0))
            if seen == digest and seen_at >= compared_since:
                continue
            if digest not in bodies:
                bodies[digest] = self._codec.encode_message({"d": digest})
            peer.connection.send_control(KIND_MEMBERSHIP, bodies[digest])
            self._compared[peer.connection_id] = digest, now

    def _digest(self, peer: PeerConnection, now: float) -> bytes:
        """Of all that is known, for a peer."""
        return self.bans.digests(self._membership.digest(), now)(peer)

    def _digest_soon(self, now: float) -> None:
        """Nothing is settled: let others have their say, and compare digests then."""
        self._settled_at = now + self._settled_s * self._rng.uniform(1, 1.5)

    def _send(self, peer: PeerConnection, message: dict[str, Any]) -> None:
        self._send_body(peer, self._codec.encode_message(message))

    def _send_body(self, peer: PeerConnection, body: bytes) -> None:
        if self._is_guest:
            return
        if len(body) + FRAME_HEAD_BYTES <= self._frame_bytes_max:
            peer.connection.send_control(KIND_MEMBERSHIP, body)
            return
        text = (
            f"{self._own.name}: the state of {len(self._membership)} members is {len(body)} bytes,"
            f" more than Limits.frame_bytes_max: {peer.node} is not told"
        )
        self._runtime.report(logging.ERROR, lambda: text)

    # What comes.

    def read(self, peer: PeerConnection, body: bytes, now: float) -> Changes | BanChanges | None:
        """Take in what a peer sent.

        :returns: what its state or its bans changed; `None` if it is a digest and no state.
        :raises DecodeError: if it cannot be decoded.
        :raises MembershipError: if it is no state, or does not fit in here.
        """
        message = self._codec.decode_message(body)
        if is_guest(peer.node) and not (isinstance(message, dict) and message.keys() == {"d"}):
            raise MembershipError("it is a guest, which has no say in it")
        if not isinstance(message, dict):
            return self._membership.merge(message)
        digest = checked_field(message, "d", bytes)
        knew_us = checked_field(message, "k", bool)
        if digest is None and message.keys() == {"b"}:
            return self._read_bans(peer, message["b"], now, spread=knew_us is None)
        if digest is not None and not message:
            if self._is_answered(peer, digest, now):
                if self._is_guest:
                    self._send_digest(peer, now)
                    return None
                self.bans.send_all(peer, now)
                # With the digest, so that the peer sees whether it knows more than that.
                self._send(peer, {**self._membership.state(), "d": self._digest(peer, now)})
            return None
        is_delta = digest is None and knew_us is None
        changes = self._merge(peer, message, now, is_delta)
        if digest is not None and self._is_answered(peer, digest, now):
            self.send_state(peer, now)
        if knew_us is not None:
            is_stranger = peer.connection_id in self._strangers
            self._strangers.discard(peer.connection_id)
            if is_stranger and not knew_us:
                self.send_state(peer, now)
        return changes

    def _read_bans(
        self, peer: PeerConnection, rows: object, now: float, *, spread: bool
    ) -> BanChanges:
        changes = self.bans.read(peer, rows, now, spread)
        if changes.learned:
            self._digest_soon(now)
        return changes

    def bans_changed(self, subjects: Iterable[Subject], now: float) -> None:
        """This node has banned these, or lifted their bans."""
        self.bans.changed(subjects, now)
        self._digest_soon(now)

    def _is_answered(self, peer: PeerConnection, digest: bytes, now: float) -> bool:
        """Whether a peer that says this digest is sent the whole state, which takes some work."""
        if digest == self._digest(peer, now):
            self._compared[peer.connection_id] = digest, now
            return False
        self._compared.pop(peer.connection_id, None)
        sent_at = self._whole_sent_at.get(peer.connection_id, float("-inf"))
        if now - sent_at < self._whole_after_s:
            return False
        self._whole_sent_at[peer.connection_id] = now
        return True

    def _merge(
        self, peer: PeerConnection, message: dict[str, Any], now: float, is_delta: bool
    ) -> Changes:
        """Take in a state, or parts of one.

        :param is_delta: the peer tells that to all its peers.
        """
        if self._is_known_start(message):
            # As most greetings are: somebody else has told of that node before.
            name = message["s"][0][0]
            self._dissemination.heard((name,), peer.connection_id, spread=is_delta)
            return NOTHING_NEW
        changes = self._membership.merge(message)
        if changes.disbelieved:
            text = (
                f"{self._own.name}: {changes.disbelieved} rows of {peer.node}'s membership are not "
                f"believed: they are a hundred years ahead of the clock"
            )
            self._runtime.report(logging.WARNING, lambda: text)
        if changes.state_changed:
            parts = self._notice(now)
            own = parts.intersection(self._membership.own_parts())
            self._dissemination.learned(parts - own, now)
            if own:
                self._dissemination.contradicted(own, now)
        untold = self._dissemination.untold
        exactly = {
            part
            for part, row in rows_by_part(message, among=untold)
            if row == self._membership.row_of(part)
        }
        self._dissemination.heard(exactly, peer.connection_id, spread=is_delta)
        return changes

    def _is_known_start(self, message: dict[str, Any]) -> bool:
        """Whether a state consists of one start, which is known."""
        match message:
            case {
                "s": [[str() as name, int(), int(), int(), str() | None] as row],
                "v": [],
                "m": [],
                **others,
            } if not others:
                return tuple(row) == self._membership.row_of(name)
        return False

    def _notice(self, now: float) -> set[Part]:
        """What has changed since the last call."""
        known = self._membership.known()
        parts = changed_parts(self._noticed, known)
        self._noticed = known
        self._digest_soon(now)
        return parts


def code_of(error: Exception) -> RefusalCode:
    """Why a connection is closed whose peer sent what `Gossip.read` raised this for."""
    return RefusalCode.LIMIT if isinstance(error, MembershipLimit) else RefusalCode.DECODE


def checked_field(message: dict[str, Any], key: str, kind: type) -> Any:
    """Take one of the fields that go with a state out of a message; `None` if it is not there."""
    value = message.pop(key, None)
    if value is not None and type(value) is not kind:
        raise MembershipError(f"{key!r} must be {kind.__name__}, not {type(value).__name__}")
    return value
