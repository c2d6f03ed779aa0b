"""The control plane of one node: what composes decisions and sockets, for one thread.

`ConnectionManager`, `Membership` and `FailureDetector` decide; listener, connector, seeds and the
poller's connections do. `ControlPlane` hands what happened to those that decide, and carries out
the actions that they return.
"""

from __future__ import annotations

import functools
import logging
import random
import selectors
import socket
from collections.abc import Callable, Sequence

from rabble._core.codec import DecodeError
from rabble._core.ids import NodeId
from rabble._core.poller import Poller
from rabble.cluster.config import Mesh
from rabble.cluster.connections import Connections, PeerConnection, ending_of
from rabble.cluster.decide import failure_detector
from rabble.cluster.decide.actions import (
    Action,
    Close,
    Dial,
    Down,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake import Failed, HandshakeConfig, Peer
from rabble.cluster.decide.membership import Changes, Membership, MembershipError
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.gossip import KIND_MEMBERSHIP, Gossip
from rabble.cluster.io.connector import Connector
from rabble.cluster.io.handshake_runner import HandshakeRunner
from rabble.cluster.io.listener import Listener
from rabble.cluster.io.resolver import Resolver
from rabble.cluster.io.seeds import Seeds
from rabble.cluster.io.tls_proxy import TlsProxy
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard
from rabble.limits import Limits
from rabble.messages import ClusterStatus
from rabble.messages import Removed as RemovedMessage

__all__ = ["ControlPlane"]

SHUTDOWN_LOOK_S = 0.05


class ControlPlane:
    """Everything that the cluster server's thread owns; all but `status` is for that thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param post: has something done in that thread. For any thread.
    :param new_incarnation: makes an incarnation, of now.

    The other parameters are those of `ClusterServer`. It is a `HandshakeOwner`.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        key: bytes | None,
        listeners: Sequence[socket.socket],
        poller: Poller,
        runtime: ClusterRuntime,
        selector: selectors.BaseSelector,
        *,
        post: Callable[[Callable[[], None]], None],
        limits: Limits,
        clock: Callable[[], float],
        rng: random.Random,
        token_bytes: Callable[[int], bytes],
        new_incarnation: Callable[[], int],
    ) -> None:
        self._own = own
        self._mesh = mesh
        self._key = key
        self._runtime = runtime
        self._limits = limits
        self._clock = clock
        self._new_incarnation = new_incarnation
        self.post = post
        self.incarnation = new_incarnation()
        self._connection_manager = ConnectionManager(own, self.incarnation, rng, limits)
        self._membership = Membership(own, self.incarnation, limits)
        self._gossip = Gossip(own, self._membership, runtime, limits, clock())
        self._removed = False
        #: Peers that are to leave, and whose membership has not come yet.
        self._early_leaves: set[str] = set()
        self._draining = False
        self._stop_at: float | None = None
        self._next_check: float | None = None
        self._status_board = StatusBoard(own)
        client_context = server_context = None
        self.tls_proxy: TlsProxy | None = None
        if mesh.tls is not None:
            client_context, server_context = mesh.tls.client_context(), mesh.tls.server_context()
            self.tls_proxy = TlsProxy(
                f"rabble:{own.name}:tls",
                buffer_bytes_max=limits.relay_buffer_bytes_max,
                clock=clock,
                failed=functools.partial(runtime.failed, "the TLS relay"),
            )
        self._poller = poller
        self._connections = Connections(own, poller, runtime, limits, clock, self.tls_proxy)
        selector.register(poller, selectors.EVENT_READ, self._poller_ready)
        self._handshakes = HandshakeRunner(
            self, selector, config=self._handshake_config, clock=clock, token_bytes=token_bytes
        )
        self._connector = Connector(
            self,
            self._handshakes,
            context=client_context,
            loopback_only=mesh.open_to_all,
            resolver=Resolver(
                f"rabble:{own.name}:names",
                functools.partial(runtime.failed, "a thread that looks up names"),
            ),
            limits=limits,
            clock=clock,
        )
        self._listener = Listener(
            self,
            self._handshakes,
            selector,
            listeners,
            context=server_context,
            limits=limits,
            clock=clock,
        )
        # A resolver of its own: a host of a seed that no server knows takes long to look up, and
        # nobody else's dial waits for that.
        self._seeds = Seeds(
            mesh.seeds,
            mesh.seed_file,
            Resolver(
                f"rabble:{own.name}:seeds",
                functools.partial(runtime.failed, "a thread that looks up seeds"),
            ),
            added=self._add_seed,
            dropped=self._drop_seed,
            post=post,
            report=runtime.report,
            refresh_s=limits.seeds_refresh_ms / 1000,
        )

    def status(self) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks; for any thread."""
        return self._status_board.status(self.incarnation, self._removed)

    # What the node asks for.

    def join(self, target: NodeId | str) -> None:
        """Make a node a member, or whoever answers at an address."""
        if self._draining:
            return
        if self._removed:
            # To the others this incarnation is gone for good.
            self._removed = False
            self._connection_manager.joins = True
            self._raise_incarnation(self.incarnation + 1)
        if isinstance(target, str):
            self._seeds.add(target)
            return
        if target.name == self._own.name:
            return
        self._early_leaves.discard(target.name)
        try:
            self._membership.add(target)
        except MembershipError as error:
            text = f"{self._own.name}: cannot join {target}: {error}"
            self._runtime.report(logging.ERROR, functools.partial(str, text))
            return
        self._carry_out(self._connection_manager.add_peer(target, self._clock(), explicit=True))
        self._membership_changed()

    def leave(self, name: str) -> None:
        """Make the node of that name no member, or dial that address no longer."""
        # An address that was joined, and of which nothing else is known yet.
        self._seeds.remove(name)
        early = name in self._early_leaves
        self._early_leaves.discard(name)
        if self._membership.remove(name):
            self._membership_changed()
        elif not early and any(peer.node.name == name for peer in self._connections.all()):
            # What makes it a member is on its way, and would do so again after it was removed.
            self._early_leaves.add(name)
            return
        if name != self._own.name:
            self._carry_out(self._connection_manager.remove_peer(name, self._clock()))

    def watch_seed_file(self, path: str) -> None:
        """Join who is listed in a file, which is read again when it changes."""
        self._seeds.watch_file(path)

    def drain(self) -> None:
        """Let no new peer in, and dial none."""
        self._draining = True
        self._listener.close()
        self._connector.drop_all()
        self._handshakes.drop_unauthenticated_dials()

    def stop(self, within_s: float) -> None:
        """Send all peers BYE, behind what was sent to them."""
        if self._stop_at is not None:
            return
        self._stop_at = self._clock() + within_s
        self.drain()
        self._connections.close_all(RefusalCode.SHUTDOWN, "the node ends")
        self._publish()

    # Time.

    def start(self) -> None:
        """Begin to look for seeds."""
        self._seeds.start()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop_at is not None

    @property
    def is_over(self) -> bool:
        """Whether all has been sent since `stop`, or time is up."""
        if self._stop_at is None:
            return False
        return not self._connections.are_parting or self._clock() >= self._stop_at

    def next_tick(self, now: float) -> float:
        """When `tick` has something to do if nothing else happens, in monotonic seconds."""
        times = [self._handshakes.next_tick(), self._listener.next_tick()]
        if self._stop_at is not None:
            times.append(now + SHUTDOWN_LOOK_S)
        else:
            times += [self._gossip.next_tick, self._next_check, self._seeds.next_tick()]
            if not self._removed and not self._draining:
                times.append(self._connection_manager.next_tick(now))
        return min(time_ for time_ in times if time_ is not None)

    def tick(self, now: float) -> None:
        """Do what the time has come for."""
        self._handshakes.tick(now)
        self._listener.tick(now)
        if self._stop_at is not None:
            return
        self._seeds.tick(now)
        if self._next_check is not None and now >= self._next_check:
            self._check_peers(now)
        self._next_check = self._connections.next_check(now)
        self._gossip.tick(now, self._connections.all())
        if not self._removed and not self._draining:
            self._carry_out(self._connection_manager.tick(now))

    # The end, in steps that may be taken twice; see `take_steps`.

    def close_handshakes(self) -> None:
        """Close the listeners and every socket whose handshake goes on."""
        self._listener.close()
        self._handshakes.close()
        self._connector.close()

    def close_seeds(self) -> None:
        """Look for seeds no longer."""
        self._seeds.close()

    def abort_connections(self) -> None:
        """Cut the connections that are left."""
        self._connections.abort_all()
        self._publish()

    def stop_tls_proxy(self) -> None:
        """End the thread of the TLS connections."""
        if self.tls_proxy is not None:
            self.tls_proxy.stop()

    # Handshakes: the methods of a `HandshakeOwner`.

    def _handshake_config(self) -> HandshakeConfig:
        return HandshakeConfig(
            own=self._own,
            incarnation=self.incarnation,
            cluster=self._mesh.cluster,
            key=self._key,
            secured=self._key is None,
            deadline_s=self._limits.handshake_ms / 1000,
        )

    def next_connection_id(self) -> int:
        """See `HandshakeOwner`."""
        return self._connection_manager.accepting()

    def authorize(self, peer: Peer) -> Refusal | None:
        """See `HandshakeOwner`."""
        if self._draining:
            return Refusal(RefusalCode.SHUTDOWN)
        if self._removed:
            return Refusal(RefusalCode.STATE, "this node was removed from the cluster")
        standing = self._membership.standing(peer.node.name, peer.incarnation)
        restarted = standing == "unknown" and self._membership.incarnation_of(peer.node.name)
        if standing == "removed" or (restarted and not peer.join):
            return Refusal(RefusalCode.REMOVED, "join again")
        connection_id = self._connection_manager.connection_of(peer.node.name)
        silent_s = None if connection_id is None else self._connections.silent_s(connection_id)
        return self._connection_manager.authorize(
            peer.node, peer.incarnation, self._clock(), silent_s
        )

    def may_authenticate(self, connection_id: int, peer: Peer) -> bool:
        """See `HandshakeOwner`."""
        actions = self._connection_manager.authenticating(
            connection_id, peer.node, peer.incarnation, self._clock()
        )
        self._carry_out(actions)
        return not actions

    def established(
        self,
        connection_id: int,
        sock: socket.socket,
        peer: Peer,
        leftover: bytes,
        initiated: bool,
    ) -> None:
        """See `HandshakeOwner`."""
        owned: socket.socket | None = sock
        try:
            for action in self._connection_manager.established(
                connection_id, peer.node, peer.incarnation, initiated, self._clock()
            ):
                if isinstance(action, Up):
                    owned = None
                    self._open_connection(action, sock, leftover, initiated)
                else:
                    self._carry_out_one(action)
        finally:
            # Another connection stays in place of this one.
            if owned is not None:
                owned.close()
        self._publish()

    def failed(self, connection_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        """See `HandshakeOwner`."""
        self._status_board.count_refusal(failed.code.name)
        whose = "dialling" if initiated else "a connection from"
        # A peer that drops its own dial, because another connection stays, is nothing to warn of.
        # Nor is one that learns that both dialled each other.
        usual = failed.code is RefusalCode.DUPLICATE or (
            failed.silent and failed.code is RefusalCode.TIMEOUT
        )
        self._runtime.report(
            logging.DEBUG if usual else logging.WARNING,
            lambda: f"{self._own.name}: {whose} {remote}: {failed.code.name}: {failed.text}",
        )
        if initiated:
            self._carry_out(
                self._connection_manager.dial_failed(
                    connection_id,
                    self._clock(),
                    code=None if failed.silent else failed.code,
                    authenticated=failed.authenticated,
                    incarnation=failed.incarnation,
                )
            )

    # The actions of `ConnectionManager`.

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._carry_out_one(action)
        self._publish()

    def _carry_out_one(self, action: Action) -> None:
        match action:
            case Dial():
                self._connector.dial(action)
            case Close(connection_id, code, text):
                self._close_connection(connection_id, code, text)
            case Down(connection_id, _, _):
                # The executor sees by itself that the connection has ended, and sends `NodeDown`.
                self._close_connection(connection_id, RefusalCode.SHUTDOWN, "")
            case RaiseIncarnation(at_least):
                self._raise_incarnation(at_least)
            case Removed(_, node):
                self._be_removed(node)
            case SelfAddress(addr, node):
                who = "itself" if node is None else f"itself, as {node}"
                text = f"{self._own.name}: at {addr} this node finds {who}; not dialled again"
                self._runtime.report(logging.WARNING, functools.partial(str, text))

    def _close_connection(self, connection_id: int, code: RefusalCode, text: str) -> None:
        """Close whatever goes by that id: a dial, a handshake, or a connection."""
        # A dial is at its host name or at a socket, never at both.
        if not (self._connector.drop(connection_id) or self._handshakes.drop(connection_id)):
            self._connections.close(connection_id, code, text)

    def _open_connection(
        self, up: Up, sock: socket.socket, leftover: bytes, initiated: bool
    ) -> None:
        peer = self._connections.open(up, sock, leftover, initiated)
        if peer is None:
            self._carry_out(self._connection_manager.lost(up.connection_id, self._clock()))
            return
        # A subscriber that is told NodeUp finds the connection in `ClusterStatus`.
        self._publish()
        self._runtime.connection_up(peer.connection)
        self._gossip.send_state(peer)

    # Events of the poller and the failure detector.

    def _poller_ready(self, events: int) -> None:
        self._poller.drain()
        for peer in self._connections.all():
            self._read_control_frames(peer)
            if not peer.connection.open and peer.connection_id in self._connections:
                self._lost(peer)
        self._connections.forget_closed()

    def _read_control_frames(self, peer: PeerConnection) -> None:
        for kind, body in peer.connection.take_control():
            if kind != KIND_MEMBERSHIP or peer.connection_id not in self._connections:
                continue
            try:
                self._read_membership(peer, body)
            except (DecodeError, MembershipError) as error:
                text = f"{self._own.name}: {peer.node} says no membership: {error}"
                self._runtime.report(logging.ERROR, functools.partial(str, text))
                peer.connection.close(RefusalCode.DECODE, "membership")

    def _lost(self, peer: PeerConnection) -> None:
        self._early_leaves.discard(peer.node.name)
        self._connections.remove(peer)
        ending = ending_of(peer.connection)
        if ending.counted_as is not None:
            self._status_board.count_refusal(ending.counted_as)
        if self._stop_at is None:
            text = f"{self._own.name}: the connection to {peer.node} ended: {ending.text}"
            self._runtime.report(logging.INFO, lambda: text)
        self._carry_out(
            self._connection_manager.lost(peer.connection_id, self._clock(), ending.code)
        )

    def _check_peers(self, now: float) -> None:
        for action in self._connections.check_peers(now):
            match action:
                case failure_detector.Down(connection_id, silence_s):
                    self._hang_up(connection_id, silence_s)
                case failure_detector.Stalled(name, _):
                    self._connections.set_stalled(name, True)
                case failure_detector.Recovered(name):
                    self._connections.set_stalled(name, False)

    def _hang_up(self, connection_id: int, silence_s: float) -> None:
        peer = self._connections.get(connection_id)
        if peer is not None:
            text = f"{self._own.name}: nothing was heard of {peer.node} for {silence_s:.1f} s"
            self._runtime.report(logging.WARNING, lambda: text)
            peer.connection.abort(RefusalCode.TIMEOUT)
            self._lost(peer)

    # Membership.

    def _read_membership(self, peer: PeerConnection, body: bytes) -> None:
        changes = self._gossip.read(peer, body)
        if changes is None:
            return
        if changes.state_changed:
            self._membership_changed(changes)
        if peer.node.name in self._early_leaves:
            self.leave(peer.node.name)

    def _membership_changed(self, changes: Changes | None = None) -> None:
        """Send all peers the state, then keep the connections that the members ask for."""
        for peer in self._connections.all():
            self._gossip.send_state(peer)
        if self._membership.is_removed and not self._removed:
            self._be_removed(None)
            return
        now = self._clock()
        members = self._membership.members()
        if changes is not None:
            for node in changes.removed:
                if node.name not in members:
                    self._carry_out(self._connection_manager.remove_peer(node.name, now))
        for node in members.values():
            if node.name != self._own.name:
                self._carry_out(self._connection_manager.add_peer(node, now))
        self._publish()

    def _be_removed(self, by: NodeId | None) -> None:
        """Somebody removed this node: send `Removed` here, and leave the others alone."""
        if self._removed:
            return
        self._removed = True
        self._connection_manager.joins = False
        now = self._clock()
        for name in list(self._connection_manager.statuses(now)):
            self._carry_out(self._connection_manager.remove_peer(name, now))
        for addr in list(self._connection_manager.seed_statuses(now)):
            self._carry_out(self._connection_manager.remove_seed(addr))
        self._runtime.report(
            logging.WARNING,
            lambda: f"{self._own} was removed from the cluster; join() begins anew",
        )
        self._runtime.notify_nodes(RemovedMessage(by))
        self._publish()

    def _raise_incarnation(self, at_least: int) -> None:
        incarnation = max(at_least, self._new_incarnation(), self.incarnation + 1)
        self.incarnation = incarnation
        self._connection_manager.incarnation = incarnation
        known = self._membership.incarnation_of(self._own.name)
        self._membership.rejoin(max(incarnation, known + 1))
        self.incarnation = self._connection_manager.incarnation = self._membership.incarnation
        self._membership_changed()

    def _add_seed(self, addr: str) -> None:
        if not self._removed:
            self._connection_manager.add_seed(addr, self._clock())

    def _drop_seed(self, addr: str) -> None:
        self._carry_out(self._connection_manager.remove_seed(addr))

    def _publish(self) -> None:
        self._status_board.publish(self._membership.members().values(), self._connections.all())
