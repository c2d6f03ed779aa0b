"""Who belongs to the mesh: what joins, removals and bans come to, here and from others."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence

from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble.addresses import Address
from rabble.cluster.connections import Connections, PeerConnection
from rabble.cluster.decide.actions import Action
from rabble.cluster.decide.bans import BanChanges, Bans
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.membership import Changes, Membership, MembershipError
from rabble.cluster.gossip import Gossip
from rabble.cluster.identity import Identity
from rabble.cluster.io.seeds import Seeds
from rabble.cluster.own_life import OwnLife
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.shut_out import ShutOut
from rabble.cluster.status import StatusBoard
from rabble.limits import Limits

__all__ = ["Members"]


class Members:
    """Keeps the connections that the membership asks for, and no others; for one thread.

    :param identity: of this node.
    :param new_incarnation: makes an incarnation, of now.
    :param carry_out: does what `ConnectionManager` decided.
    :param note: is told of what failed, and for what.

    The other parameters are those that `ControlPlane` has put together.
    """

    def __init__(
        self,
        own: NodeId,
        membership: Membership,
        bans: Bans,
        gossip: Gossip,
        connection_manager: ConnectionManager,
        connections: Connections,
        seeds: Seeds,
        status_board: StatusBoard,
        runtime: ClusterRuntime,
        limits: Limits,
        *,
        identity: Identity,
        clock: Callable[[], float],
        new_incarnation: Callable[[], int],
        carry_out: Callable[[Sequence[Action]], None],
        note: Callable[[str, BaseException], None],
    ) -> None:
        self._own = own
        self._membership = membership
        self._gossip = gossip
        self._connection_manager = connection_manager
        self._connections = connections
        self._seeds = seeds
        self._status_board = status_board
        self._runtime = runtime
        self._clock = clock
        self._carry_out = carry_out
        self._note = note
        #: Peers that are to leave, and whose membership has not come yet.
        self._early_leaves: set[str] = set()
        self.life = OwnLife(
            own,
            membership,
            connection_manager,
            runtime,
            limits,
            new_incarnation=new_incarnation,
            part=self._part,
            changed=self._changed,
        )
        self.shut_out = ShutOut(
            own,
            bans,
            gossip,
            connection_manager,
            connections,
            status_board,
            runtime,
            clock=clock,
            own_subjects=identity.subjects,
            carry_out=carry_out,
        )

    # What the node asks for.

    def join(self, target: NodeId | str) -> str | None:
        """Make a node a member, or whoever answers at an address.

        :returns: why not even a dial comes of it, which has been reported.
        """
        if self.life.is_removed:
            if not self.life.come_back():
                return "this node was removed from the mesh, in which there is no room for it"
            # There are none left of the peers, nor of the seeds.
            self._add_peers(self._membership.members().values())
            self._seeds.resume()
        if isinstance(target, str):
            return None if self._seeds.add(target) else "there are too many addresses to join"
        if target.name == self._own.name:
            return "this node has that name"
        self._early_leaves.discard(target.name)
        try:
            if self.shut_out.is_banned(target.name):
                raise MembershipError("its name is banned; lift_ban() lets it in")
            if is_guest(target):
                raise MembershipError("port 0 is a guest's, which nobody can dial")
            if not is_guest(self._own):
                self._membership.add(target)
        except MembershipError as error:
            text = f"{self._own.name}: cannot join {target}: {error}"
            self._runtime.report(logging.ERROR, functools.partial(str, text))
            return str(error)
        self._carry_out(self._connection_manager.add_peer(target, self._clock(), explicit=True))
        self._changed()
        return None

    def leave(self, name: str) -> None:
        """Make the node of that name no member, or dial that address no longer."""
        # An address that was joined, and of which nothing else is known yet.
        self._seeds.remove(name)
        early = name in self._early_leaves
        self._early_leaves.discard(name)
        if self._membership.remove(name):
            self._changed()
            if name == self._own.name:
                self.life.be_removed(None)
        elif not early and any(peer.node.name == name for peer in self._connections.all()):
            # The state that makes it a member is on its way, and would undo a removal now.
            self._early_leaves.add(name)
            return
        if name != self._own.name:
            self._remove_peer(name, self._clock())

    # What others say.

    def follow(self, peer: PeerConnection, changes: Changes | BanChanges) -> None:
        """Act upon what a peer has told."""
        if isinstance(changes, BanChanges):
            self.shut_out.learned(changes)
            return
        if changes.state_changed:
            self._status_board.has_changed |= bool(changes.added or changes.removed)
            if self._membership.is_removed:
                self.life.be_removed(None)
            else:
                self._keep_connections(changes)
        if peer.node.name in self._early_leaves:
            self.leave(peer.node.name)

    def lost(self, peer: PeerConnection) -> None:
        """A connection has ended: what was under way on it does not come."""
        self._early_leaves.discard(peer.node.name)

    def add_seed(self, addr: str, resolved: Address) -> None:
        """Join whoever answers at an address that a seed stands for."""
        if not self.life.is_removed:
            self._connection_manager.add_seed(addr, self._clock(), resolved)

    def mend(self) -> None:
        """Something has broken off: have the connections that there should be, and no others."""
        if self._membership.is_removed and not self.life.is_removed:
            self.life.be_removed(None)
        elif self.life.is_removed:
            self._part()
        else:
            now = self._clock()
            for name in list(self._connection_manager.statuses(now)):
                # Whoever is connected may be a later start, of which the state is on its way.
                is_connected = self._connection_manager.connection_of(name) is not None
                if not is_connected and self._membership.standing(name, 0) == "removed":
                    self._remove_peer(name, now)
            for peer in self._connections.all():
                self.shut_out.look_at(peer)
            self._add_peers(self._membership.members().values())

    # What is shown.

    def shown(self) -> Sequence[NodeId]:
        """The members, without those that are banned."""
        nodes = self._membership.nodes()
        if not self.shut_out.has_bans:
            return nodes
        return [node for node in nodes if not self.shut_out.is_banned(node.name)]

    # The rest is internal.

    def _changed(self) -> None:
        """This node has changed its membership: all peers are to be told."""
        self._status_board.has_changed = True
        self._gossip.changed(self._clock())

    def _keep_connections(self, changes: Changes) -> None:
        now = self._clock()
        for node in changes.removed:
            if node.name not in self._membership:
                self._remove_peer(node.name, now)
        self._add_peers(changes.added)

    def _remove_peer(self, name: str, now: float) -> None:
        """A node is no member any more, which it has to learn before its connection ends."""
        try:
            peer = self._connections.get(self._connection_manager.connection_of(name))
            if peer is not None:
                self._gossip.tell_before_parting(peer, now)
        except BaseException as error:
            self._note(f"telling {name} of its removal", error)
        self._carry_out(self._connection_manager.remove_peer(name, now))

    def _add_peers(self, nodes: Iterable[NodeId]) -> None:
        now = self._clock()
        for node in nodes:
            self._carry_out(self._connection_manager.add_peer(node, now))

    def _part(self) -> None:
        """End all connections and dials, as this node was removed."""
        now = self._clock()
        for name in self._connection_manager.statuses(now):
            self._remove_peer(name, now)
        self._seeds.pause()
        for addr in self._connection_manager.seed_statuses(now):
            self._carry_out(self._connection_manager.remove_seed(addr))
        self._status_board.has_changed = True
