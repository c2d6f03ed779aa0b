"""What comes of bans: who is refused, whose connections end, and what a banned node is told."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence

from rabble._core.ids import NodeId
from rabble.cluster.connections import Connections, PeerConnection
from rabble.cluster.decide.actions import Action
from rabble.cluster.decide.bans import BanChanges, BanInForce, Bans, Subject, subject_text
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake_actions import Peer
from rabble.cluster.decide.refusal import Refusal
from rabble.cluster.gossip import Gossip
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard

__all__ = ["ShutOut"]


class ShutOut:
    """Keeps banned nodes out. For the cluster server's thread.

    :param own_subjects: this node's name and keys, now.
    :param carry_out: does what `ConnectionManager` decided.

    Who is banned stays a member, and is connected again by itself when that is over: a removal
    would last, and reach those who hear of it late when there is no ban any more.
    """

    def __init__(
        self,
        own: NodeId,
        bans: Bans,
        gossip: Gossip,
        connection_manager: ConnectionManager,
        connections: Connections,
        status_board: StatusBoard,
        runtime: ClusterRuntime,
        *,
        clock: Callable[[], float],
        own_subjects: Callable[[], tuple[Subject, ...]],
        carry_out: Callable[[Sequence[Action]], None],
    ) -> None:
        self._own = own
        self._bans = bans
        self._gossip = gossip
        self._connection_manager = connection_manager
        self._connections = connections
        self._status_board = status_board
        self._runtime = runtime
        self._clock = clock
        self._own_subjects = own_subjects
        self._carry_out = carry_out

    @property
    def has_bans(self) -> bool:
        """Whether anything is known of any ban."""
        return len(self._bans) != 0

    def is_banned(self, name: str) -> bool:
        """Whether a name is banned."""
        return self._bans.get(name, self._clock()) is not None

    def in_force(self) -> list[BanInForce]:
        """The bans that hold."""
        return self._bans.in_force(self._clock())

    def refusal(self, peer: Peer, now: float) -> Refusal | None:
        """Why a peer may not be connected, by its name or its keys."""
        return self._bans.refusal(peer.node.name, peer.keys, now)

    def next_tick(self) -> float | None:
        """When `tick` has something to do, in monotonic seconds."""
        return self._bans.next_tick()

    def tick(self, now: float) -> None:
        """Let in again whose ban is over."""
        over = self._bans.tick(now)
        if over:
            self._status_board.has_changed = True
            self._connection_manager.dial_banned(now)
        for subject in over:
            self._report(logging.INFO, f"{subject_text(subject)} is banned no longer")

    # What the operator of this node says.

    def ban(self, subjects: Sequence[Subject], seconds: float) -> None:
        """Shut these names and keys out from now on, for so long."""
        now = self._clock()
        for subject in subjects:
            self._gossip.bans.report_forgotten(self._bans.ban(subject, seconds, now))
        self._gossip.bans_changed(subjects, now)
        self._enforce(subjects, now)

    def lift(self, subjects: Iterable[Subject]) -> None:
        """Let these in again."""
        now = self._clock()
        lifted = []
        for subject in subjects:
            if self._bans.lift(subject, now):
                lifted.append(subject)
            else:
                text = f"no ban to lift: {subject_text(subject)} is not banned, as far as is known"
                self._report(logging.WARNING, text)
        self._gossip.bans_changed(lifted, now)
        self.tick(now)

    # What others say.

    def learned(self, changes: BanChanges) -> None:
        """Act upon what a peer has told."""
        now = self._clock()
        self._enforce(changes.learned, now)
        self.tick(now)

    def _enforce(self, subjects: Iterable[Subject], now: float) -> None:
        """End what there is to those whose bans hold, and have just become known."""
        bans = [ban for each in subjects if (ban := self._bans.get(each, now)) is not None]
        if not bans:
            return
        self._status_board.has_changed = True
        own = self._own_subjects()
        for ban in bans:
            about = f"{subject_text(ban.subject)} is banned for {ban.left_s(now)} s"
            if ban.subject in own:
                about += f", by {ban.by}: that is this node, which nobody lets in until then"
                self._report(logging.WARNING, about)
                continue
            self._report(logging.WARNING, f"{about}, by {ban.by}")
            if isinstance(ban.subject, str) and not self._is_connected(ban.subject):
                self._keep_out(ban.subject, (), now)
        for peer in self._connections.all():
            self.look_at(peer)

    def look_at(self, peer: PeerConnection) -> None:
        """End the connection to a peer that is banned."""
        now = self._clock()
        if self._bans.refusal(peer.node.name, peer.keys, now) is not None:
            # By which it learns for how long.
            self._gossip.bans.send_about(peer, (peer.node.name, *peer.keys), now)
            self._keep_out(peer.node.name, peer.keys, now)

    def _is_connected(self, name: str) -> bool:
        return self._connection_manager.connection_of(name) is not None

    def _keep_out(self, name: str, keys: Iterable[bytes], now: float) -> None:
        """End the connection or the dial to who is banned; from now on it is dialled seldom."""
        refusal = self._bans.refusal(name, keys, now)
        if refusal is not None:
            actions = self._connection_manager.shut_out(name, now, refusal.text, refusal.ban_s)
            self._carry_out(actions)

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, f"{self._own.name}: {text}"))
