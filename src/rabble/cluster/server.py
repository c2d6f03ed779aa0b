"""The cluster server: the thread that drives the control plane.

It owns membership, links and liveness, which decide; the sockets of handshakes; and, by way of the
poller, the connections. It does what they say and tells them what happened. Whatever other threads
want of it is a command in its queue.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import os
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rabble._core.codec import Codec, DecodeError
from rabble._core.ids import NodeId
from rabble._core.poller import Connection, Poller
from rabble._core.session import Session
from rabble.cluster import liveness, membership
from rabble.cluster.codes import Refusal, RefusalCode
from rabble.cluster.config import Mesh
from rabble.cluster.handshake import Failed, HandshakeConfig, Peer
from rabble.cluster.handshakes import Handshakes
from rabble.cluster.link_actions import (
    Action,
    Close,
    Dial,
    Down,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.links import Links
from rabble.cluster.liveness import Liveness
from rabble.cluster.membership import Membership, MembershipError
from rabble.cluster.names import Resolver
from rabble.cluster.relay import Relay
from rabble.cluster.seeds import Seeds
from rabble.errors import NodeStopped
from rabble.limits import Limits
from rabble.messages import ClusterStatus, NodeStalled, PeerStatus
from rabble.messages import Removed as RemovedMessage
from rabble.registry import MessageRegistry
from rabble.steps import take_steps

__all__ = ["ClusterServer", "Surroundings", "new_incarnation"]

KIND_BYE = 18
KIND_MEMBERSHIP = 19
#: Of a peer's state; its size is bounded by the longest frame.
ELEMENTS_MAX = 2**31 - 1
SHUTDOWN_LOOK_S = 0.05


def new_incarnation(
    clock: Callable[[], float] = time.time, rng: random.Random | None = None
) -> int:
    """The incarnation of a start at this moment: milliseconds since 1970, and 20 random bits."""
    bits = (rng or random.SystemRandom()).getrandbits(20)
    return (int(clock() * 1000) << 20) | bits


class Surroundings(Protocol):
    """What the cluster server needs of its node. Everything may be called from its thread."""

    def connection_up(self, connection: Connection) -> None:
        """A connection is established."""

    def notify_nodes(self, msg: object) -> None:
        """Send a message to all that subscribed to nodes."""

    def make_session(self, peer: NodeId, incarnation: int) -> Session:
        """The encoder and decoder of a new connection."""

    def report(self, level: int, words: Callable[[], str]) -> None:
        """Write to the log, at a bounded rate."""

    def failed(self, what: str, error: BaseException) -> None:
        """A thread of the control plane cannot go on: neither can the node."""


@dataclasses.dataclass(eq=False)
class Linked:
    """An established connection, as the server knows it."""

    link_id: int
    connection: Connection
    peer: NodeId
    incarnation: int
    stalled: bool = False


class ClusterServer:
    """The control plane of one node, in a thread of its own.

    :param own: this node.
    :param mesh: how it takes part.
    :param key: of the mesh; `None` without.
    :param listeners: owned from now on.
    :param clock: monotonic seconds.
    :param rng: for the jitter of waits.
    :param token_bytes: a cryptographic random source.
    :param incarnation: makes an incarnation, of now.

    `join`, `leave`, `status`, `request_stop` are for any thread.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        key: bytes | None,
        listeners: Sequence[socket.socket],
        poller: Poller,
        surroundings: Surroundings,
        *,
        limits: Limits,
        clock: Callable[[], float],
        rng: random.Random,
        token_bytes: Callable[[int], bytes],
        incarnation: Callable[[], int] = new_incarnation,
    ) -> None:
        self.own = own
        self._poller = poller
        self._node = surroundings
        self._limits = limits
        self._clock = clock
        self._new_incarnation = incarnation
        self.incarnation = incarnation()
        self._mesh = mesh
        self._key = key
        self._tls = mesh.tls
        self._links = Links(own, self.incarnation, rng, limits)
        self._liveness = Liveness(limits)
        self._membership = Membership(own, self.incarnation, limits)
        self._codec = Codec(MessageRegistry(), elements_max=ELEMENTS_MAX)
        self._by_id: dict[int, Linked] = {}
        #: Connections that say goodbye; kept until their descriptor is closed.
        self._parting: list[Connection] = []
        #: Sockets whose handshake is done, until `Links` says what becomes of them.
        self._fresh: dict[int, tuple[socket.socket, bytes, bool]] = {}
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        self._removed = False
        #: Peers that are to leave, and have not said yet that they are members.
        self._early_leaves: set[str] = set()
        self._draining = False
        self._stop_at: float | None = None
        self._closed = False
        # Which thread serves, or lets go of what no thread ever served.
        self._owner: dict[None, int] = {}
        # Held until the thread has nothing more to do. Who waits for the end waits for this and
        # not in thread.join(), for threading's locks may be held by whoever a signal handler
        # interrupted.
        self._serving = threading.Lock()
        self._serving.acquire()
        self._next_beat: float | None = None
        self._next_digest = clock()
        self._refusals: collections.Counter[str] = collections.Counter()
        self._snapshot: tuple[tuple[NodeId, ...], tuple[Linked, ...]] = ((own,), ())
        self._selector = selectors.DefaultSelector()
        self._selector.register(poller, selectors.EVENT_READ, self._poller_ready)
        contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        self._relay: Relay | None = None
        if mesh.tls is not None:
            contexts = (mesh.tls.client_context(), mesh.tls.server_context())
            self._relay = Relay(
                f"rabble:{own.name}:tls",
                buffer_bytes_max=limits.relay_buffer_bytes_max,
                clock=clock,
                failed=functools.partial(surroundings.failed, "the TLS relay"),
            )
        self._handshakes = Handshakes(
            self,
            self._selector,
            listeners,
            config=self._handshake_config,
            contexts=contexts,
            loopback_only=mesh.open_to_all,
            resolver=Resolver(
                f"rabble:{own.name}:names",
                functools.partial(surroundings.failed, "a thread that looks up names"),
            ),
            limits=limits,
            clock=clock,
            token_bytes=token_bytes,
        )
        self._seeds = Seeds(
            mesh,
            Resolver(
                f"rabble:{own.name}:seeds",
                functools.partial(surroundings.failed, "a thread that looks up seeds"),
            ),
            added=self._add_seed,
            dropped=self._drop_seed,
            post=self.post,
            report=surroundings.report,
            refresh_s=limits.seeds_refresh_ms / 1000,
        )
        self.thread = threading.Thread(
            target=take_steps,
            args=(self._failed, self._serve, *self._last_steps()),
            name=f"rabble:{own.name}:cluster",
            daemon=False,
        )
        self.poll_thread = threading.Thread(
            target=take_steps,
            args=(functools.partial(surroundings.failed, "the poll loop"), poller.run),
            name=f"rabble:{own.name}:poll",
            daemon=False,
        )

    # For any thread.

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the server's thread. Never blocks.

        When that has ended nothing is done any more.
        """
        if not self._closed:
            self._commands.append(command)
            self._poller.nudge()

    def join(self, target: NodeId | str) -> None:
        """Make a node a member, or whoever answers at an address. Returns at once.

        :raises NodeStopped: if the server has ended. So do `leave` and `watch_seed_file`.
        """
        self._check_runs()
        self.post(functools.partial(self._join, target))

    def leave(self, name: str) -> None:
        """Make the node of that name no member, or dial that address no longer. Returns at once."""
        self._check_runs()
        self.post(functools.partial(self._leave, name))

    def watch_seed_file(self, path: str | os.PathLike[str]) -> None:
        """Join who is listed in a file, which is read again when it changes. Returns at once."""
        self._check_runs()
        self.post(functools.partial(self._seeds.watch_file, os.fspath(path)))

    def _check_runs(self) -> None:
        if self._closed:
            raise NodeStopped(f"the cluster server of {self.own} has ended")

    def status(self) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks."""
        members, linked = self._snapshot
        return ClusterStatus(
            node=self.own,
            incarnation=self.incarnation,
            members=members,
            removed=self._removed,
            links=tuple(self._peer_status(each) for each in linked if each.connection.open),
            refusals=dict(self._refusals),
        )

    def _peer_status(self, linked: Linked) -> PeerStatus:
        counters = linked.connection.status()
        return PeerStatus(
            node=linked.peer,
            incarnation=linked.incarnation,
            stalled=linked.stalled,
            bytes_received=counters["bytes_received"],
            bytes_sent=counters["bytes_sent"],
            queued_bytes=counters["queued_bytes"],
            round_trip_us=counters["round_trip_ns"] / 1000,
        )

    def start(self) -> None:
        """Start both threads. Called once; if it raises, `wait_for_end` lets go of all there is."""
        self.poll_thread.start()
        self.thread.start()

    def wait_for_end(self) -> list[threading.Thread]:
        """Wait for the end that was requested, and return the threads, to be joined."""
        if self.thread.ident is None:
            # Never started. One that comes to life all the same finds that it is too late.
            take_steps(self._failed, *self._last_steps())
        else:
            self._serving.acquire()
            self._serving.release()
        threads = [self.thread, self.poll_thread]
        if self._relay is not None and self._relay.thread is not None:
            threads.append(self._relay.thread)
        return [thread for thread in threads if thread.ident is not None]

    def drain(self) -> None:
        """The node is about to end: let no new peer in, and dial none. Never blocks."""
        self.post(self._drain)

    def request_stop(self, within_s: float) -> None:
        """Say goodbye to all peers, after what was sent to them, and end. Never blocks."""
        self.post(functools.partial(self._stop, within_s))

    # The loop.

    def _serve(self) -> None:
        if self._closed or self._stop_at is not None:
            return
        self._seeds.start()
        while not self._is_over():
            for key, events in self._selector.select(self._patience()):
                key.data(events)
            self._do_commands()
            self._tick()

    def _failed(self, error: BaseException) -> None:
        self._closed = True
        self._node.failed("the cluster server", error)

    def _patience(self) -> float:
        """How long there is nothing for `_tick` to do, in seconds."""
        if self._commands:
            return 0.0
        now = self._clock()
        times = [self._handshakes.next_tick()]
        if self._stop_at is not None:
            times.append(now + SHUTDOWN_LOOK_S)
        else:
            times += [self._next_digest, self._next_beat, self._seeds.next_tick()]
            if not self._removed and not self._draining:
                times.append(self._links.next_tick(now))
        return max(min(time_ for time_ in times if time_ is not None) - now, 0.0)

    def _do_commands(self) -> None:
        for _ in range(len(self._commands)):
            self._commands.popleft()()

    def _tick(self) -> None:
        now = self._clock()
        self._handshakes.tick(now)
        if self._stop_at is not None:
            return
        self._seeds.tick(now)
        if self._next_beat is not None and now >= self._next_beat:
            self._look_at_peers(now)
        self._next_beat = self._liveness.next_tick(now)
        if now >= self._next_digest:
            self._next_digest = now + self._limits.digest_ms / 1000
            digest = self._codec.encode_message({"d": self._membership.digest()})
            for linked in list(self._by_id.values()):
                linked.connection.send_control(KIND_MEMBERSHIP, digest)
        if not self._removed and not self._draining:
            self._carry_out(self._links.tick(now))

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        return not self._parting or self._clock() >= self._stop_at

    def _drain(self) -> None:
        self._draining = True
        self._handshakes.stop_listening()
        self._handshakes.stop_dialling()

    def _stop(self, within_s: float) -> None:
        if self._stop_at is not None:
            return
        self._stop_at = self._clock() + within_s
        self._drain()
        for linked in list(self._by_id.values()):
            linked.connection.close(RefusalCode.SHUTDOWN, "the node ends", after_all=True)
            self._parting.append(linked.connection)
        self._by_id.clear()
        self._publish()

    def _last_steps(self) -> tuple[Callable[[], bool | None], ...]:
        """What follows the service, or takes its place, in one thread."""
        return (
            self._is_late,
            lambda: self._handshakes.close(),
            lambda: self._seeds.close(),
            self._abort_all,
            self._end_relay,
            self._selector.close,
            self._poller.stop,
            self._end_serving,
        )

    def _is_late(self) -> bool:
        """Whether another thread has taken these steps already."""
        self._closed = True
        self._commands.clear()
        current = threading.get_ident()
        return self._owner.setdefault(None, current) != current

    def _abort_all(self) -> None:
        while self._by_id:
            # There are some only if this thread failed: that is no end in order.
            link_id, linked = next(iter(self._by_id.items()))
            linked.connection.abort(0)
            del self._by_id[link_id]
        while self._parting:
            self._parting[-1].abort(RefusalCode.SHUTDOWN)
            del self._parting[-1]
        for sock, _, _ in self._fresh.values():
            sock.close()
        self._fresh.clear()
        self._publish()

    def _end_relay(self) -> None:
        if self._relay is not None:
            self._relay.stop()

    def _end_serving(self) -> None:
        if self._serving.locked():
            self._serving.release()

    # Handshakes.

    def _handshake_config(self) -> HandshakeConfig:
        return HandshakeConfig(
            own=self.own,
            incarnation=self.incarnation,
            cluster=self._mesh.cluster,
            key=self._key,
            secured=self._key is None,
            deadline_s=self._limits.handshake_ms / 1000,
        )

    def number(self) -> int:
        """See `Decider`."""
        return self._links.accepting()

    def judge(self, peer: Peer) -> Refusal | None:
        """See `Decider`."""
        if self._draining:
            return Refusal(RefusalCode.SHUTDOWN)
        if self._removed:
            return Refusal(RefusalCode.STATE, "this node was removed from the cluster")
        standing = self._membership.standing(peer.node.name, peer.incarnation)
        restarted = standing == "unknown" and self._membership.incarnation_of(peer.node.name)
        if standing == "removed" or (restarted and not peer.join):
            return Refusal(RefusalCode.REMOVED, "join again")
        silent_s = None
        link_id = self._links.link_of(peer.node.name)
        if link_id is not None and link_id in self._by_id:
            silent_s = self._by_id[link_id].connection.silent_ns / 1e9
        return self._links.judge(peer.node, peer.incarnation, self._clock(), silent_s)

    def may_prove(self, link_id: int, peer: Peer) -> bool:
        """See `Decider`."""
        actions = self._links.proving(link_id, peer.node, peer.incarnation, self._clock())
        self._carry_out(actions)
        return not actions

    def established(
        self, link_id: int, sock: socket.socket, peer: Peer, leftover: bytes, initiated: bool
    ) -> None:
        """See `Decider`."""
        self._fresh[link_id] = (sock, leftover, initiated)
        self._carry_out(
            self._links.established(link_id, peer.node, peer.incarnation, initiated, self._clock())
        )
        unused = self._fresh.pop(link_id, None)
        if unused is not None:
            unused[0].close()

    def failed(self, link_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        """See `Decider`."""
        self._refusals[failed.code.name] += 1
        whose = "dialling" if initiated else "a connection from"
        # A peer that drops its own dial, because another connection stays, is nothing to warn of.
        # Nor is one that learns that both dialled each other.
        usual = failed.code is RefusalCode.DUPLICATE or (
            failed.silent and failed.code is RefusalCode.TIMEOUT
        )
        self._node.report(
            logging.DEBUG if usual else logging.WARNING,
            lambda: f"{self.own.name}: {whose} {remote}: {failed.code.name}: {failed.text}",
        )
        if initiated:
            self._carry_out(
                self._links.dial_failed(
                    link_id,
                    self._clock(),
                    code=None if failed.silent else failed.code,
                    authenticated=failed.authenticated,
                    incarnation=failed.incarnation,
                )
            )

    # What `Links` decides.

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    self._handshakes.dial(action)
                case Close(link_id, code, text):
                    self._end_link(link_id, code, text)
                case Up(link_id, peer, incarnation):
                    self._begin_link(link_id, peer, incarnation)
                case Down(link_id, _, _):
                    # The executor sees by itself that the connection has ended, and tells.
                    self._end_link(link_id, RefusalCode.SHUTDOWN, "")
                case RaiseIncarnation(at_least):
                    self._raise_incarnation(at_least)
                case Removed(_, node):
                    self._be_removed(node)
                case SelfAddress(addr, node):
                    who = "itself" if node is None else f"itself, as {node}"
                    text = f"{self.own.name}: at {addr} this node finds {who}; not dialled again"
                    self._node.report(logging.WARNING, functools.partial(str, text))
        self._publish()

    def _begin_link(self, link_id: int, peer: NodeId, incarnation: int) -> None:
        sock, leftover, initiated = self._fresh.pop(link_id)
        link = self._node.make_session(peer, incarnation)
        try:
            fd = self._hand_over(sock)
            try:
                connection = self._poller.attach(fd, link, leftover, initiated=initiated)
            except BaseException:
                os.close(fd)
                raise
        except (OSError, RuntimeError) as error:
            # No descriptors, or no more threads, are left; or the relay has failed.
            text = f"{self.own.name}: the connection to {peer} cannot be used: {error}"
            self._node.report(logging.ERROR, lambda: text)
            sock.close()
            self._carry_out(self._links.lost(link_id, self._clock()))
            return
        now = self._clock()
        self._by_id[link_id] = Linked(link_id, connection, peer, incarnation)
        self._liveness.add(link_id, peer.name, now)
        # Who is told of it finds it in the status.
        self._publish()
        self._node.connection_up(connection)
        self._say_state(self._by_id[link_id])

    def _hand_over(self, sock: socket.socket) -> int:
        """The descriptor that the poller gets, tuned for what it does."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        heartbeat_s = max(self._limits.heartbeat_ms // 1000, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, heartbeat_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, heartbeat_s)
        # No TCP_USER_TIMEOUT: on a lossy line it counts from the first segment that was sent again,
        # and goes on as long as more is lost, though the peer is heard. Silence ends a connection.
        # So that a heartbeat does not queue behind megabytes in the kernel.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 256 << 10)
        if isinstance(sock, ssl.SSLSocket):
            assert self._relay is not None
            return self._relay.adopt(sock)
        return sock.detach()

    def _end_link(self, link_id: int, code: RefusalCode, text: str) -> None:
        """Close a connection, or whatever goes by that number."""
        fresh = self._fresh.pop(link_id, None)
        if fresh is not None:
            fresh[0].close()
        elif not self._handshakes.drop(link_id):
            linked = self._by_id.pop(link_id, None)
            if linked is not None:
                self._liveness.remove(link_id)
                # The peer is to learn the state that says why.
                linked.connection.close(code, text, after_all=code is RefusalCode.REMOVED)
                self._parting.append(linked.connection)

    # What the poller tells.

    def _poller_ready(self, events: int) -> None:
        self._poller.drain()
        for linked in list(self._by_id.values()):
            self._take_told(linked)
            if not linked.connection.open and linked.link_id in self._by_id:
                self._lost(linked)
        self._parting = [each for each in self._parting if not each.closed]

    def _take_told(self, linked: Linked) -> None:
        for kind, body in linked.connection.take_control():
            if kind != KIND_MEMBERSHIP or linked.link_id not in self._by_id:
                continue
            try:
                self._hear_membership(linked, body)
            except (DecodeError, MembershipError) as error:
                text = f"{self.own.name}: {linked.peer} says no membership: {error}"
                self._node.report(logging.ERROR, functools.partial(str, text))
                linked.connection.close(RefusalCode.DECODE, "membership")

    def _lost(self, linked: Linked) -> None:
        connection = linked.connection
        self._early_leaves.discard(linked.peer.name)
        del self._by_id[linked.link_id]
        self._liveness.remove(linked.link_id)
        if not connection.closed:
            self._parting.append(connection)
        code = None
        if connection.code:
            with contextlib.suppress(ValueError):
                code = RefusalCode(connection.code)
        if code is not None:
            why = code.name
        elif connection.error:
            why = os.strerror(connection.error)
        else:
            why = "it closed the connection"
        if code is not None:
            self._refusals[code.name] += 1
        elif connection.ended_mid_frame:
            self._refusals["TORN"] += 1
            why += ", in the middle of a frame"
        if self._stop_at is None:
            text = f"{self.own.name}: the connection to {linked.peer} ended: {why}"
            self._node.report(logging.INFO, lambda: text)
        self._carry_out(self._links.lost(linked.link_id, self._clock(), code))

    def _look_at_peers(self, now: float) -> None:
        for linked in self._by_id.values():
            progress, idle, told_ns = linked.connection.progress
            self._liveness.observe(
                linked.link_id,
                now,
                linked.connection.silent_ns / 1e9,
                progress,
                idle,
                told_ago_s=told_ns / 1e9,
            )
        for action in self._liveness.tick(now):
            match action:
                case liveness.Down(link_id, silence_s):
                    self._hang_up(link_id, silence_s)
                case liveness.Stalled(name, _):
                    self._say_stalled(name, True)
                case liveness.Recovered(name):
                    self._say_stalled(name, False)

    def _hang_up(self, link_id: int, silence_s: float) -> None:
        linked = self._by_id.get(link_id)
        if linked is not None:
            text = f"{self.own.name}: nothing was heard of {linked.peer} for {silence_s:.1f} s"
            self._node.report(logging.WARNING, lambda: text)
            linked.connection.abort(RefusalCode.TIMEOUT)
            self._lost(linked)

    def _say_stalled(self, name: str, stalled: bool) -> None:
        for linked in self._by_id.values():
            if linked.peer.name == name and linked.stalled != stalled:
                linked.stalled = stalled
                self._node.notify_nodes(NodeStalled(linked.peer, stalled))

    # Membership.

    def _say_state(self, linked: Linked) -> None:
        state = self._membership.encoded()
        if len(state) + 2 <= self._limits.frame_bytes_max:
            linked.connection.send_control(KIND_MEMBERSHIP, state)
            return
        text = (
            f"{self.own.name}: the state of {len(self._membership)} members is {len(state)} bytes, "
            f"more than Limits.frame_bytes_max: {linked.peer} is not told"
        )
        self._node.report(logging.ERROR, lambda: text)

    def _hear_membership(self, linked: Linked, body: bytes) -> None:
        if body == self._membership.encoded():
            return
        state = self._codec.decode_message(body)
        if isinstance(state, dict) and state.keys() == {"d"}:
            if state["d"] != self._membership.digest():
                self._say_state(linked)
            return
        changes = self._membership.merge(state)
        if changes.state_changed:
            self._membership_changed(changes)
        if linked.peer.name in self._early_leaves:
            self._leave(linked.peer.name)

    def _membership_changed(self, changes: membership.Changes | None = None) -> None:
        """Tell all peers, then keep the connections that the members ask for."""
        for linked in list(self._by_id.values()):
            self._say_state(linked)
        if self._membership.is_removed and not self._removed:
            self._be_removed(None)
            return
        now = self._clock()
        members = self._membership.members()
        if changes is not None:
            for node in changes.removed:
                if node.name not in members:
                    self._carry_out(self._links.unwanted(node.name, now))
        for node in members.values():
            if node.name != self.own.name:
                self._carry_out(self._links.wanted(node, now))
        self._publish()

    def _be_removed(self, by: NodeId | None) -> None:
        """Somebody removed this node: tell it, and leave the others alone."""
        if self._removed:
            return
        self._removed = True
        self._links.joins = False
        now = self._clock()
        for name in list(self._links.statuses(now)):
            self._carry_out(self._links.unwanted(name, now))
        for addr in list(self._links.seed_statuses(now)):
            self._carry_out(self._links.unseed(addr))
        self._node.report(
            logging.WARNING, lambda: f"{self.own} was removed from the cluster; join() begins anew"
        )
        self._node.notify_nodes(RemovedMessage(by))
        self._publish()

    def _raise_incarnation(self, at_least: int) -> None:
        incarnation = max(at_least, self._new_incarnation(), self.incarnation + 1)
        self.incarnation = incarnation
        self._links.incarnation = incarnation
        known = self._membership.incarnation_of(self.own.name)
        self._membership.rejoin(max(incarnation, known + 1))
        self.incarnation = self._links.incarnation = self._membership.incarnation
        self._membership_changed()

    def _join(self, target: NodeId | str) -> None:
        if self._draining:
            return
        if self._removed:
            # To the others this incarnation is gone for good.
            self._removed = False
            self._links.joins = True
            self._raise_incarnation(self.incarnation + 1)
        if isinstance(target, str):
            self._seeds.add(target)
            return
        if target.name == self.own.name:
            return
        self._early_leaves.discard(target.name)
        try:
            self._membership.add(target)
        except MembershipError as error:
            text = f"{self.own.name}: cannot join {target}: {error}"
            self._node.report(logging.ERROR, functools.partial(str, text))
            return
        self._carry_out(self._links.wanted(target, self._clock(), explicit=True))
        self._membership_changed()

    def _leave(self, name: str) -> None:
        # An address that was joined, and of which nothing else is known yet.
        self._seeds.remove(name)
        early = name in self._early_leaves
        self._early_leaves.discard(name)
        if self._membership.remove(name):
            self._membership_changed()
        elif not early and any(linked.peer.name == name for linked in self._by_id.values()):
            # What makes it a member is on its way, and would do so again after it was removed.
            self._early_leaves.add(name)
            return
        if name != self.own.name:
            self._carry_out(self._links.unwanted(name, self._clock()))

    def _add_seed(self, addr: str) -> None:
        if not self._removed:
            self._links.seed(addr, self._clock())

    def _drop_seed(self, addr: str) -> None:
        self._carry_out(self._links.unseed(addr))

    def _publish(self) -> None:
        self._snapshot = (
            tuple(self._membership.members().values()),
            tuple(self._by_id.values()),
        )
