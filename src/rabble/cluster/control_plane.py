"""The control plane of one node: what composes decisions and sockets, for one thread.

`ConnectionManager`, `Membership`, `Bans` and `FailureDetector` decide; listener, connector, seeds
and the poller's connections do. `ControlPlane` hands what happened to those that decide, and
carries out the actions that they return. Neither side calls it, but `Seeds`, when an address is
found or gone.
"""

from __future__ import annotations

import functools
import logging
import random
import selectors
import socket
import time
from collections.abc import Callable, Sequence

from rabble._core.ids import NodeId
from rabble._core.poller import Poller
from rabble.addresses import Address
from rabble.cluster.admission import Admission
from rabble.cluster.config import Mesh
from rabble.cluster.connections import Connections, PeerConnection
from rabble.cluster.control_frames import ControlFrames
from rabble.cluster.decide.actions import (
    Action,
    Close,
    Dial,
    Down,
    Held,
    RaiseIncarnation,
    Removed,
    SelfAddress,
    Up,
)
from rabble.cluster.decide.bans import Bans
from rabble.cluster.decide.belief import highest_believed
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake import (
    Authenticate,
    Authorize,
    Established,
    Failed,
)
from rabble.cluster.decide.membership import Membership
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.failed_handshakes import TOO_MANY, FailedHandshakes
from rabble.cluster.failures import Failures
from rabble.cluster.gossip import Gossip
from rabble.cluster.handshake_configs import HandshakeConfigs
from rabble.cluster.identity import Identity
from rabble.cluster.io.handshake_runner import Outcome, Unreached
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.joins import Joining, Joins
from rabble.cluster.members import Members
from rabble.cluster.renewal import Renewal
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.sockets import Sockets
from rabble.cluster.status import StatusBoard
from rabble.limits import Limits
from rabble.messages import ClusterStatus

__all__ = ["ControlPlane"]

SHUTDOWN_LOOK_S = 0.05


class ControlPlane:
    """Everything that the cluster server's thread owns; all but `status` and `gauges` is for it.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param post: has something done in that thread. For any thread.
    :param new_incarnation: makes an incarnation, of now.
    :param processor_clock: what that thread has used of a processor, in seconds.

    The other parameters are those of `ClusterServer`.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
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
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._own, self._runtime, self._limits = own, runtime, limits
        self._clock, self._post = clock, post
        incarnation = new_incarnation()
        self._connection_manager = ConnectionManager(own, incarnation, rng, limits)
        #: Of the numbers that others name: what is beyond it, they have made up.
        self._highest_believed: Callable[[], int] = lambda: highest_believed(new_incarnation())
        self._membership = Membership(own, incarnation, limits, self._highest_believed)
        self._status_board = StatusBoard(own, clock=clock)
        #: What is for `Metrics.gauges`. Never blocks; for any thread.
        self.gauges = self._status_board.gauges
        self._renewal = Renewal(own.name, mesh, self._status_board, runtime, limits, clock())
        self.identity = Identity(own, self._renewal)
        bans, subjects = Bans(own, limits, self._highest_believed), self.identity.subjects
        self._gossip = Gossip(own, self._membership, runtime, limits, clock(), rng, bans, subjects)
        #: Those that somebody waits for.
        self.joins = Joins(own)
        #: When the thread last had something to do, and what it had used of a processor by then.
        self._worked_from: tuple[float, float] | None = None
        self._processor_clock = processor_clock
        self._stop_at: float | None = None
        #: When the peers are looked at; `None` without any.
        self._next_check: float | None = None
        self._failed_handshakes = FailedHandshakes(
            own.name, self._connection_manager, self._status_board, runtime
        )
        count = functools.partial(self._status_board.count_refusal, "INTERNAL_ERROR")
        #: What failed for itself, in any thread of the mesh.
        self.failures = Failures(own.name, runtime.report, count)
        self.sockets = Sockets(
            own,
            mesh,
            self._renewal,
            listeners,
            runtime,
            selector,
            self.failures,
            limits=limits,
            clock=clock,
            token_bytes=token_bytes,
            post=post,
            accept=self._accept,
            proceed=self._handshake_ready,
            config=HandshakeConfigs(
                own,
                mesh,
                limits,
                clock,
                credentials=lambda: self._renewal.credentials,
                incarnation=lambda: self._life.incarnation,
                highest_believed=self._highest_believed,
            ).current,
            next_id=self._connection_manager.accepting,
            seed_looked_up=self.joins.looked_up,
            seed_added=lambda addr, resolved: self.members.add_seed(addr, resolved),
            seed_dropped=lambda addr: self._carry_out(self._connection_manager.remove_seed(addr)),
            seeds_dialled=self._connection_manager.seed_statuses,
        )
        self._handshakes, self._connector = self.sockets.handshakes, self.sockets.connector
        self._listener, self._seeds = self.sockets.listener, self.sockets.seeds
        self._poller = poller
        self._connections = Connections(own, poller, runtime, limits, clock, self.sockets.tls_proxy)
        #: Joins, removals and bans, also for the node.
        self.members = Members(
            own,
            self._membership,
            bans,
            self._gossip,
            self._connection_manager,
            self._connections,
            self._seeds,
            self._status_board,
            runtime,
            limits,
            identity=self.identity,
            clock=clock,
            new_incarnation=new_incarnation,
            carry_out=self._carry_out,
            note=self.failures.note,
        )
        self._life, self._shut_out = self.members.life, self.members.shut_out
        self._admission = Admission(
            self._life,
            self._membership,
            self._connection_manager,
            self._connections,
            self._shut_out,
            clock=clock,
        )
        self._control_frames = ControlFrames(
            own,
            self._membership,
            self._connections,
            self._status_board,
            runtime,
            clock,
            self._read_membership,
        )
        selector.register(poller, selectors.EVENT_READ, self._poller_ready)

    @property
    def incarnation(self) -> int:
        """Of the start of this node that counts. For any thread."""
        return self._life.incarnation

    def status(self) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks; for any thread."""
        return self._status_board.status(self._life.incarnation, self._life.is_removed)

    # What the node asks for.

    def join(self, target: NodeId | str, joining: Joining | None = None) -> None:
        """Make a node a member, or whoever answers at an address.

        :param joining: is ended when it is known what comes of it.
        """
        if joining is not None:
            self.joins.add(joining)
        if self._admission.is_draining:
            self.joins.close()
        elif (problem := self.members.join(target)) is not None and joining is not None:
            self.joins.cannot_be(joining, problem)

    def leave(self, name: str) -> None:
        """Make the node of that name no member, or dial that address no longer."""
        self.joins.left(name)
        self.members.leave(name)

    def drain(self) -> None:
        """Let no new peer in, and dial none."""
        self._admission.is_draining = True
        self.joins.close()
        self.sockets.drain()

    def stop(self, patience_s: float, within_s: float) -> None:
        """Send all peers BYE, behind what was sent to them.

        :param patience_s: seconds for which a peer may take nothing of it.
        :param within_s: seconds that all of it may take.
        """
        if self._stop_at is not None:
            return
        self._stop_at = self._clock() + within_s
        self.drain()
        for peer in self._connections.all():
            step = functools.partial(self._gossip.tell_before_parting, peer, self._clock())
            self.failures.attempt(f"the last words to {peer.node}", step)
        self._connections.close_all(RefusalCode.SHUTDOWN, "the node ends", patience_s, within_s)
        self._status_board.has_changed = True

    # Time.

    @property
    def is_over(self) -> bool:
        """Whether all has been sent since `stop`, or time is up."""
        if self._stop_at is None:
            return False
        return not self._connections.are_parting or self._clock() >= self._stop_at

    def next_tick(self, now: float) -> float:
        """When `tick` has something to do if nothing else happens, in monotonic seconds."""
        times = [self.sockets.next_tick()]
        if self._stop_at is not None:
            times.append(now + SHUTDOWN_LOOK_S)
        else:
            times += [self._gossip.next_tick, self._next_check, self._seeds.next_tick()]
            times += [self._life.next_tick, self._renewal.next_tick, self._shut_out.next_tick()]
            times += [now] if self.failures.is_unmended else []
            if not self._life.is_removed and not self._admission.is_draining:
                times.append(self._connection_manager.next_tick(now))
        return min(time_ for time_ in times if time_ is not None)

    def looks(self) -> None:
        """The sockets are about to be looked at. Whoever is ready then was in time."""
        now = self._clock()
        if self._worked_from is not None:
            elapsed_s = now - self._worked_from[0]
            processor_s = self._processor_clock() - self._worked_from[1]
            self._handshakes.patience.worked(elapsed_s, processor_s)
        self._handshakes.looked_at = self._handshakes.patience.at(now)

    def looked(self) -> None:
        """They have been: this thread has something to do from now until `looks`."""
        self._worked_from = self._clock(), self._processor_clock()

    def tick(self, now: float) -> None:
        """Do what the time has come for; what fails of it is done again, and the rest is done."""
        looked_at = self._handshakes.looked_at
        for handshake_socket in self._handshakes.due(looked_at):
            step = functools.partial(self._handshakes.tick, handshake_socket, looked_at)
            self._take_step(handshake_socket, step)
        # At each wake: what is not due is not attempted, since it would pass.
        attempt = self.failures.attempt_at
        if (at := self._listener.next_tick()) is not None and now >= at:
            attempt("listening", self._listener.tick, now)
        if (at := self._connector.next_tick()) is not None and now >= at:
            attempt("the end of look-ups", self._end_look_ups, now)
        if self._stop_at is None:
            self._tick_running(now)
        if self._status_board.is_unpublished:
            self.failures.attempt("the status", self.publish)
        if self.joins:
            self.failures.attempt("what is waited for", self._settle_joins)

    def _tick_running(self, now: float) -> None:
        """What is of no use any more at the end."""
        attempt = self.failures.attempt_at
        if (at := self._seeds.next_tick()) is not None and now >= at:
            attempt("the look at the seeds", self._seeds.tick, now)
        if (at := self._renewal.next_tick) is not None and now >= at:
            attempt("the look at keys and certificates", self.sockets.renew, now)
        if self._next_check is None or now >= self._next_check:
            attempt("the look at the peers", self._check_peers, now)
        if self._life.is_to_look:
            attempt("this node's own standing", self._life.tick, now)
        if (at := self._shut_out.next_tick()) is not None and now >= at:
            attempt("the end of bans", self._shut_out.tick, now)
        if now >= self._gossip.next_tick:
            attempt("the digest", self._tell, now)
        if self.failures.is_unmended:
            attempt("what broke off", self._mend, now)
        if now >= self._connection_manager.none_before and not (
            self._life.is_removed or self._admission.is_draining
        ):
            attempt("dialling", self._tick_dials, now)

    def _tell(self, now: float) -> None:
        self._gossip.tick(now, self._connections.all())

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, text))

    def publish(self) -> None:
        """Show other threads what has changed since the last call."""
        self._status_board.publish_changes(
            self.members.shown,
            self._connections.all,
            self._shut_out.in_force,
            self._runtime.connection_up,
        )

    def _settle_joins(self) -> None:
        if self._life.is_removed:
            self.joins.removed()
        self.joins.settle(self._connections.all())

    def _end_look_ups(self, now: float) -> None:
        for dial, failed in self._connector.end_late(now):
            self._join_failed(dial, failed)
            self._handshake_failed(dial.connection_id, failed, dial.addr, initiated=True)

    def _tick_dials(self, now: float) -> None:
        self._carry_out(self._connection_manager.tick(now))

    def _mend(self, now: float) -> None:
        """After a failure: what was noted by half is put right, and no member is forgotten."""
        if not self.failures.is_unmended:
            return
        self.failures.is_unmended = False
        try:
            manager, connections = self._connection_manager, self._connections
            known = {peer.connection_id for peer in connections.all()}
            known.update(each for each in manager.dials() if each in self.sockets)
            self._carry_out(manager.mend(known, now))
            for peer in connections.all():
                if manager.connection_of(peer.node.name) != peer.connection_id:
                    self._close_connection(peer.connection_id, RefusalCode.DUPLICATE, "mended")
            self.members.mend()
        except BaseException:
            self.failures.is_unmended = True
            raise

    def abort_connections(self) -> None:
        """Cut the connections that are left."""
        self._connections.abort_all()
        self._status_board.has_changed = True
        self.publish()

    # Handshakes: what the selector leads to, and what is asked and comes of them.

    def _accept(self, listening: socket.socket, events: int) -> None:
        for accepted in self._listener.accept(listening):
            if isinstance(accepted, Failed):
                self._handshake_failed(0, accepted, "anybody", initiated=False)
            else:
                self._take_step(accepted, functools.partial(self._begin, accepted))

    def _begin(self, accepted: HandshakeSocket) -> Outcome | None:
        # Of too many handshakes an old one gives way: an honest one takes milliseconds.
        oldest = self._handshakes.drop_oldest(self._limits.handshakes_max)
        if oldest is not None:
            self._see_to(oldest, TOO_MANY)
        return self._handshakes.add_accepted(accepted)

    def _dial(self, dial: Dial) -> None:
        def answer(found: list[Address] | OSError) -> None:
            self._post(functools.partial(self._connect, dial, found))

        self._connector.dial(dial, answer)

    def _connect(self, dial: Dial, found: list[Address] | OSError) -> None:
        try:
            failed = self._connector.connect(dial, found)
            if failed is not None:
                self._join_failed(dial, failed, unresolved=isinstance(found, OSError))
                self._handshake_failed(dial.connection_id, failed, dial.addr, initiated=True)
        except BaseException as error:
            self._abandon(dial.connection_id, f"the dial of {dial.addr}", error)

    def _handshake_ready(self, handshake_socket: HandshakeSocket, events: int) -> None:
        step = functools.partial(self._handshakes.proceed, handshake_socket)
        self._take_step(handshake_socket, step)

    def _take_step(
        self, handshake_socket: HandshakeSocket, step: Callable[[], Outcome | None]
    ) -> None:
        """Take a step of a handshake, and see to what it comes to."""
        try:
            self._see_to(handshake_socket, step())
        except BaseException as error:
            what = f"the handshake with {handshake_socket.remote}"
            self._abandon(handshake_socket.connection_id, what, error)
            handshake_socket.close()

    def _abandon(self, connection_id: int, what: str, error: BaseException) -> None:
        """End whatever goes by that id, and nothing else, for what came of it here.

        :param what: that was, for the log.
        """
        self.failures.note(what, error)
        if not self.sockets.drop(connection_id):
            self._connections.abort(connection_id)
            self._gossip.forget(connection_id)
            self._status_board.has_changed = True
        now = self._clock()
        self._carry_out(self._connection_manager.dial_failed(connection_id, now))
        self._carry_out(self._connection_manager.lost(connection_id, now))

    def _see_to(self, handshake_socket: HandshakeSocket, outcome: Outcome | None) -> None:
        """Answer what a handshake asks, until it waits for its peer or has ended."""
        connection_id, initiated = handshake_socket.connection_id, handshake_socket.initiated
        while outcome is not None:
            if handshake_socket.own_incarnation != self._life.incarnation:
                outcome = self._handshakes.outdated(handshake_socket, outcome)
            match outcome:
                case Authenticate(peer):
                    if (dial := handshake_socket.dial) is not None:
                        self.joins.answered(dial.addr, dial.node, peer.node, peer.incarnation)
                    # Is the dial still wanted, now that it is known who answers?
                    refusal = self._admission.refusal_of_answer(connection_id, peer)
                    if refusal is None:
                        outcome = self._handshakes.authenticate(handshake_socket, outcome)
                    elif refusal.code is RefusalCode.BANNED:
                        # It may not dial by itself, and would not know why nobody lets it in.
                        outcome = self._handshakes.refuse(handshake_socket, refusal)
                    else:
                        failed = Failed(refusal.code, refusal.text, False)
                        self._handshakes.drop(connection_id)
                        self._join_failed(handshake_socket.dial, failed)
                        return
                case Authorize(peer):
                    outcome = self._handshakes.decide(
                        handshake_socket, self._admission.refusal(peer)
                    )
                case Established():
                    self._established(handshake_socket, outcome)
                    return
                case Unreached(problem):
                    outcome = self._connector.connect_next(handshake_socket, problem)
                case Failed():
                    ended = connection_id, outcome, handshake_socket.remote, initiated
                    self._handshake_failed(*ended, handshake_socket)
                    return

    def _established(self, done: HandshakeSocket, established: Established) -> None:
        """A handshake is done. Its socket is this method's from now on."""
        sock, initiated, peer = done.take(), done.initiated, established.peer
        self._failed_handshakes.succeeded(done.remote, peer.node)
        owned: socket.socket | None = sock
        try:
            for action in self._connection_manager.established(
                done.connection_id, peer.node, peer.incarnation, initiated, self._clock()
            ):
                if isinstance(action, Up):
                    owned = None
                    self._open_connection(action, sock, established, initiated)
                else:
                    self._carry_out_one(action)
        finally:
            # Another connection stays in place of this one.
            if owned is not None:
                owned.close()

    def _handshake_failed(
        self,
        connection_id: int,
        failed: Failed,
        remote: str,
        initiated: bool,
        handshake_socket: HandshakeSocket | None = None,
    ) -> None:
        """A handshake, or a dial, came to nothing. The socket is closed."""
        self._join_failed(None if handshake_socket is None else handshake_socket.dial, failed)
        self._failed_handshakes.count(connection_id, failed, remote, initiated, handshake_socket)
        if initiated:
            self._carry_out(
                self._connection_manager.dial_failed(
                    connection_id,
                    self._clock(),
                    code=None if failed.silent else failed.code,
                    authenticated=failed.authenticated,
                    incarnation=failed.incarnation,
                    ban_s=failed.ban_s,
                )
            )

    def _join_failed(self, dial: Dial | None, failed: Failed, *, unresolved: bool = False) -> None:
        if dial is not None:
            self.joins.failed(dial.addr, dial.node, failed, unresolved=unresolved)

    # The actions of `ConnectionManager`.

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            try:
                self._carry_out_one(action)
            except BaseException as error:
                if isinstance(action, Dial | Close | Down):
                    self._abandon(action.connection_id, f"{action}", error)
                else:
                    self.failures.note(f"{action}", error)

    def _carry_out_one(self, action: Action) -> None:
        match action:
            case Dial():
                self._dial(action)
            case Close(connection_id, code, text):
                self._close_connection(connection_id, code, text)
            case Down(connection_id, _, _):
                # The executor sees by itself that the connection has ended, and sends `NodeDown`.
                self._close_connection(connection_id, RefusalCode.SHUTDOWN, "")
            case RaiseIncarnation(at_least):
                self._life.become_later(at_least)
            case Removed(_, node):
                self._life.be_removed(node)
            case SelfAddress(text=text) | Held(text=text):
                self._runtime.report(logging.WARNING, lambda: f"{self._own.name}: {text}")

    def _close_connection(self, connection_id: int, code: RefusalCode, text: str) -> None:
        """Close whatever goes by that id: a dial, a handshake, or a connection."""
        if not self.sockets.drop(connection_id):
            self._connections.close(connection_id, code, text)
            self._gossip.forget(connection_id)
            self._status_board.has_changed = True

    def _open_connection(
        self, up: Up, sock: socket.socket, established: Established, initiated: bool
    ) -> None:
        peer = self._connections.open(up, sock, established, initiated)
        if peer is None:
            self._carry_out(self._connection_manager.lost(up.connection_id, self._clock()))
            return
        self._status_board.came_up(peer.connection)
        self._gossip.greet(peer, self._clock())
        # It may have been banned since it was authorized.
        self._shut_out.look_at(peer)

    # Events of the poller.

    def _poller_ready(self, events: int) -> None:
        self._poller.drain()
        is_more = False
        for peer in self._connections.all():
            connection = peer.connection
            if not (peer.unread or connection.has_control) and connection.open:
                # As of most of them, whenever one of them has something.
                continue
            try:
                if self._control_frames.read(peer):
                    is_more = True
                elif not connection.open and peer.connection_id in self._connections:
                    self._lost(peer)
            except BaseException as error:
                self._abandon(peer.connection_id, f"the connection to {peer.node}", error)
        self._connections.forget_closed()
        if is_more:
            self._poller.nudge()

    def _read_membership(self, peer: PeerConnection, body: bytes) -> None:
        changes = self._gossip.read(peer, body, self._clock())
        if changes is not None:
            self.members.follow(peer, changes)

    def _lost(self, peer: PeerConnection) -> None:
        self.members.lost(peer)
        ending = self._connections.ended(peer, reported=self._stop_at is None)
        self._gossip.forget(peer.connection_id)
        self._status_board.has_changed = True
        if ending.counted_as is not None:
            self._status_board.count_refusal(ending.counted_as)
        self._carry_out(
            self._connection_manager.lost(
                peer.connection_id, self._clock(), ending.code, holed=peer.is_holed
            )
        )

    def _check_peers(self, now: float) -> None:
        due = self._next_check is not None and now >= self._next_check
        for peer, silence_s in self._connections.silent(now) if due else ():
            try:
                self._connections.cut(peer, silence_s)
                self._lost(peer)
            except BaseException as error:
                self._abandon(peer.connection_id, f"the connection to {peer.node}", error)
        self._next_check = self._connections.next_check(now)
