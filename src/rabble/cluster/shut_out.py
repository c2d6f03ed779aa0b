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
    :param leave: makes the node of a name no member, and ends what there is to it.
    :param connect_again: keeps a connection to a node of that name from now on, if it is a member.
    :param be_removed: this node was shut out.
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
        leave: Callable[[str], None],
        connect_again: Callable[[str], None],
        be_removed: Callable[[NodeId | None], object],
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
        self._leave = leave
        self._connect_again = connect_again
        self._be_removed = be_removed

    def is_banned(self, name: str) -> bool:
        """Whether a name is banned."""
        return self._bans.get(name, self._clock()) is not None

    def must_leave(self, name: str) -> bool:
        """Whether a member is to be removed: it is banned, and by this node. One does that."""
        ban = self._bans.get(name, self._clock())
        return ban is not None and ban.by == self._own.name

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
            # Whose key was banned is a member still.
            self._connection_manager.dial_banned(now)
        for subject in over:
            self._report(logging.INFO, f"{subject_text(subject)} is banned no longer")
            if isinstance(subject, str):
                self._connect_again(subject)

    # What the operator of this node says.

    def ban(self, subjects: Sequence[Subject], seconds: float) -> None:
        """Shut these names and keys out from now on, for so long."""
        now = self._clock()
        for subject in subjects:
            self._gossip.bans.report_forgotten(self._bans.ban(subject, seconds, now))
        self._gossip.bans_changed(subjects, now)
        self._enforce(subjects, now)
        for subject in subjects:
            if isinstance(subject, str):
                self._leave(subject)

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
                self._be_banned(ban, about)
                continue
            self._report(logging.WARNING, f"{about}, by {ban.by}")
            if isinstance(ban.subject, str):
                # Of a dial, too; and of a member that is dialled later.
                self._part(ban.subject, now)
        for peer in self._connections.all():
            self.look_at(peer)

    def look_at(self, peer: PeerConnection) -> None:
        """End the connection to a peer that is banned."""
        now = self._clock()
        refusal = self._bans.refusal(peer.node.name, peer.keys, now)
        if refusal is None:
            return
        # By which it learns for how long.
        self._gossip.bans.send_about(peer, (peer.node.name, *peer.keys), now)
        actions = self._connection_manager.shut_out(
            peer.node.name, now, refusal.text, refusal.ban_s
        )
        self._carry_out(actions)
        if self._bans.get(peer.node.name, now) is not None:
            self._carry_out(self._connection_manager.remove_peer(peer.node.name, now))

    def _part(self, name: str, now: float) -> None:
        """Dial a banned name no longer. If it is connected `look_at` sees to it."""
        connection_id = self._connection_manager.connection_of(name)
        if connection_id is None:
            self._carry_out(self._connection_manager.remove_peer(name, now))

    def _be_banned(self, ban: BanInForce, about: str) -> None:
        """Peers say that this node is banned: it says so, once for each time that it is banned."""
        text = f"{about}, by {ban.by}: that is this node, which nobody lets in until then"
        self._report(logging.WARNING, text)
        if isinstance(ban.subject, str):
            self._be_removed(None)

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, f"{self._own.name}: {text}"))
