"""Bans on the wire: what changed, and all that is known, to the peers and from them.

They travel in MEMBERSHIP frames of their own, `b` in docs/internals/wire-protocol.md, and so take
no room from the members. What changes is told as it is with the membership, see `dissemination`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from rabble._core.codec import Codec
from rabble._core.frame import FRAME_KINDS
from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.backoff import Uniform
from rabble.cluster.decide.bans import ROW_BYTES_MAX, BanChanges, Bans, Subject, subject_text
from rabble.cluster.decide.dissemination import Dissemination
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits

__all__ = ["BanGossip"]

KIND_MEMBERSHIP = FRAME_KINDS["MEMBERSHIP"]
#: Bytes of a frame of bans besides its rows: kind and flags, a map, its keys, and an array.
HEAD_BYTES = 2 + 1 + 2 + 5 + 3


class BanGossip:
    """Sends bans to peers, and takes in theirs. For the cluster server's thread.

    :param codec: of the frames.
    :param own_subjects: this node's name and keys, now.
    :param rng: for the jitter of what is told, and when.
    """

    def __init__(
        self,
        own: NodeId,
        bans: Bans,
        runtime: ClusterRuntime,
        limits: Limits,
        rng: Uniform,
        codec: Codec,
        own_subjects: Callable[[], tuple[Subject, ...]],
    ) -> None:
        self._own = own
        self._bans = bans
        self._runtime = runtime
        self._codec = codec
        self._own_subjects = own_subjects
        #: What this node showed its peer when a connection came up, by the id of the connection: it
        #: may have another key by now, and the peer does not know that.
        self._shown: dict[int, tuple[Subject, ...]] = {}
        self._rows_max = (limits.frame_bytes_max - HEAD_BYTES) // ROW_BYTES_MAX
        self._dissemination: Dissemination[Subject] = Dissemination(rng, limits)

    @property
    def due(self) -> float | None:
        """When to call `tick`; `None` while nothing is untold."""
        return self._dissemination.due

    def tick(self, now: float, peers: Iterable[PeerConnection], *, at_once: bool = False) -> None:
        """Tell what changed, if it is time to, or at once."""
        if self.due is None or (now < self.due and not at_once):
            return
        by_id = {peer.connection_id: peer for peer in peers}
        for subjects, connection_ids in self._dissemination.take(now).items():
            told = [by_id[each] for each in connection_ids if each in by_id]
            self._send(told, now, subjects, is_for_all=True)

    def digests(self, digest: bytes, now: float) -> Callable[[PeerConnection], bytes]:
        """Makes the digest of all that is known, for a peer.

        What is said of the two nodes themselves is left out. Neither is believed about itself, so
        they need not agree on it.

        :param digest: that of the membership.
        """
        made: dict[frozenset[Subject], bytes] = {}

        def digest_for(peer: PeerConnection) -> bytes:
            shown = self._shown.get(peer.connection_id, ())
            both: tuple[Subject, ...] = (*shown, peer.node.name, *peer.keys)
            without = frozenset(each for each in both if each in self._bans)
            if without not in made:
                summary = self._bans.summary(now, without)
                encoded = self._codec.encode_message(summary)
                made[without] = hashlib.sha256(digest + encoded).digest() if summary else digest
            return made[without]

        return digest_for

    # What is sent.

    def connection_up(self, peer: PeerConnection) -> None:
        """From now on a peer is told what changes."""
        own = self._shown[peer.connection_id] = self._own_subjects()
        if not is_guest(peer.node):
            # Who lets this node in knows better what is said of it.
            self._bans.forget(own)
        self._dissemination.connection_up(peer.connection_id)

    def connection_down(self, connection_id: int) -> None:
        """Tell it nothing more."""
        self._shown.pop(connection_id, None)
        self._dissemination.connection_down(connection_id)

    def changed(self, subjects: Iterable[Subject], now: float) -> None:
        """This node has banned these, or lifted their bans."""
        self._dissemination.changed(subjects, now)

    def send_all(self, peer: PeerConnection, now: float) -> None:
        """Send all bans that are known to a peer."""
        self._send([peer], now, None, is_for_all=False)

    def tell_before_parting(self, peer: PeerConnection, now: float) -> None:
        """Send a peer whose connection ends what it has not been told yet."""
        if subjects := self._dissemination.untold_to(peer.connection_id):
            self._send([peer], now, subjects, is_for_all=True)

    def send_about(self, peer: PeerConnection, subjects: Iterable[Subject], now: float) -> None:
        """Send a peer what is known of these: it is banned, and may not hear it from others."""
        self._send([peer], now, subjects, is_for_all=False)

    def _send(
        self,
        peers: Iterable[PeerConnection],
        now: float,
        subjects: Iterable[Subject] | None,
        *,
        is_for_all: bool,
    ) -> None:
        """Send all these peers the same; it is encoded once. A guest sends nothing."""
        if is_guest(self._own):
            return
        bodies: dict[frozenset[Subject], list[bytes]] = {}
        for peer in peers:
            # It would believe that it is banned, and here nobody keeps it out.
            about: tuple[Subject, ...] = (peer.node.name, *peer.keys)
            without = frozenset(each for each in about if self._bans.is_cut(each, now))
            if without not in bodies:
                rows = self._bans.rows(now, subjects, without)
                bodies[without] = self._encoded(rows, is_for_all=is_for_all)
            for body in bodies[without]:
                peer.connection.send_control(KIND_MEMBERSHIP, body)

    def _encoded(self, rows: list[list[Any]], *, is_for_all: bool) -> list[bytes]:
        """The frames of these rows."""
        more = {} if is_for_all else {"k": True}
        parts = (rows[i : i + self._rows_max] for i in range(0, len(rows), self._rows_max))
        return [self._codec.encode_message({"b": part, **more}) for part in parts]

    # What comes.

    def read(self, peer: PeerConnection, rows: object, now: float, spread: bool) -> BanChanges:
        """Take in what a peer sent.

        :param spread: it tells that to all its peers, and not to this node alone.
        :raises MembershipError: if these are no bans.
        """
        changes = self._bans.merge(rows, now, (peer.node.name, *peer.keys))
        if changes.disbelieved:
            text = (
                f"{changes.disbelieved} bans that {peer.node} tells of are not believed: "
                f"they are a hundred years ahead of the clock"
            )
            self._report(logging.WARNING, text)
        self.report_forgotten(changes.forgotten)
        self._dissemination.learned(changes.learned, now)
        heard = (*changes.learned, *changes.confirmed)
        self._dissemination.heard(heard, peer.connection_id, spread=spread)
        return changes

    def report_forgotten(self, subjects: Iterable[Subject]) -> None:
        """Say which bans there was no room for any more."""
        for subject in subjects:
            text = f"the ban of {subject_text(subject)} is forgotten: Limits.bans_max is reached"
            self._report(logging.ERROR, text)

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, f"{self._own.name}: {text}"))
