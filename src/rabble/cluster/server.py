"""The cluster server: the thread that drives the control plane, and its queue of commands.

Other threads put commands into the queue. Nothing else of the control plane is touched by two
threads, but the status, which is published for all to read.
"""

from __future__ import annotations

import collections
import functools
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence

from rabble._core.ids import NodeId
from rabble._core.messages import is_guest
from rabble._core.poller import Poller
from rabble.cluster.config import Mesh
from rabble.cluster.control_plane import ControlPlane
from rabble.cluster.decide.bans import Subject
from rabble.cluster.identity import check_ban
from rabble.cluster.joins import Joining
from rabble.cluster.runtime import ClusterRuntime
from rabble.errors import NodeStopped, QueueFull
from rabble.limits import Limits
from rabble.messages import ClusterStatus
from rabble.steps import take_steps

__all__ = ["ClusterServer", "new_incarnation"]

#: The loop looks around now and then whatever it waits for: epoll's timeout is a C int.
PATIENCE_MAX_S = 3_600.0
#: Then the sockets are looked at again: a thousand bans take tenths of a second.
COMMANDS_PER_TURN = 64


def new_incarnation(
    clock: Callable[[], float] = time.time, rng: random.Random | None = None
) -> int:
    """The incarnation of a start at this moment: milliseconds since 1970, and 20 random bits."""
    bits = (rng or random.SystemRandom()).getrandbits(20)
    return (int(clock() * 1000) << 20) | bits


class ClusterServer:
    """The control plane of one node, in a thread of its own.

    :param own: this node.
    :param mesh: how it takes part.
    :param listeners: owned from now on.
    :param clock: monotonic seconds.
    :param rng: for the jitter of waits.
    :param token_bytes: a cryptographic random source.
    :param incarnation: makes an incarnation, of now.
    :raises KeyFileError: if the mesh's key or certificates cannot be used.

    All its methods are for any thread.
    """

    def __init__(
        self,
        own: NodeId,
        mesh: Mesh,
        listeners: Sequence[socket.socket],
        poller: Poller,
        runtime: ClusterRuntime,
        *,
        limits: Limits,
        clock: Callable[[], float],
        rng: random.Random,
        token_bytes: Callable[[int], bytes],
        incarnation: Callable[[], int] = new_incarnation,
    ) -> None:
        self.own = own
        self._poller = poller
        self._runtime = runtime
        self._limits = limits
        self._clock = clock
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        #: One entry for each of those that a user has asked for. Threads that ask at the same time
        #: may go beyond the bound by as many as they are.
        self._waiting: collections.deque[None] = collections.deque()
        #: The joins that somebody waits for, by their ids: also those whose command is never done.
        self._joins: dict[int, Joining] = {}
        #: What was ready at the last look at the sockets.
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        #: Seconds that a peer may take nothing, and that the end may take, once it is asked for.
        self._stop_within: tuple[float, float] | None = None
        self._is_stopping = False
        self._closed = False
        # The thread that serves; or the one that lets go, if no thread ever served.
        self._owner: dict[None, int] = {}
        # Held until the thread has nothing more to do. `wait_for_end` waits for this and not in
        # thread.join(): a signal handler may have interrupted the holder of a lock of threading's.
        self._serving = threading.Lock()
        self._serving.acquire()
        self._selector = selectors.DefaultSelector()
        self._control_plane = ControlPlane(
            own,
            mesh,
            listeners,
            poller,
            runtime,
            self._selector,
            post=self.post,
            limits=limits,
            clock=clock,
            rng=rng,
            token_bytes=token_bytes,
            new_incarnation=incarnation,
        )
        self._failures = self._control_plane.failures
        self.thread = threading.Thread(
            target=take_steps,
            args=(self._failed, self._serve, *self._last_steps()),
            name=f"rabble:{own.name}:cluster",
            daemon=False,
        )
        self.poll_thread = threading.Thread(
            target=take_steps,
            args=(functools.partial(runtime.failed, "the poll loop"), poller.run),
            name=f"rabble:{own.name}:poll",
            daemon=False,
        )

    # What the node calls.

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the server's thread. Never blocks.

        When that has ended nothing is done any more.
        """
        if not self._closed:
            self._commands.append(command)
            self._poller.nudge()

    def join(self, target: NodeId | str, joining: Joining | None = None) -> None:
        """Make a node a member, or whoever answers at an address. Returns at once.

        :param joining: is ended when it is known what comes of it; the caller has it forgotten.
        :raises NodeStopped: if the server has ended. So do the other commands.
        :raises QueueFull: if `Limits.mesh_commands_max` of them wait already.
        """
        if joining is None:
            self._ask(self._control_plane.join, target)
            return
        self._joins[id(joining)] = joining
        try:
            self._ask(self._control_plane.join, target, joining)
        except BaseException:
            self._joins.pop(id(joining), None)
            raise
        if self._closed:
            self._end_joins()

    def forget_join(self, joining: Joining) -> None:
        """Nobody waits for that join any more, which goes on. Never blocks."""
        if self._joins.pop(id(joining), None) is not None:
            self.post(functools.partial(self._control_plane.joins.forget, joining))

    def leave(self, name: str) -> None:
        """Make the node of that name no member, or dial that address no longer. Returns at once.

        :raises RuntimeError: if this node is a guest, and that is a member, or itself.
        """
        if name in {self.own.name, *(member.name for member in self.status().members)}:
            self._check_member("leave")
        self._ask(self._control_plane.leave, name)

    def ban(self, subjects: Sequence[Subject], seconds: float) -> None:
        """Shut names and keys out, for so many seconds. Returns at once.

        :raises TypeError: if `seconds` is no number.
        :raises ValueError: if that is out of range, one is this node's own, or there are no keys.
        :raises RuntimeError: if this node is a guest.
        """
        self._check_runs()
        self._check_member("ban")
        check_ban(subjects, seconds, self._limits, self._control_plane.identity)
        self._ask(self._control_plane.members.shut_out.ban, subjects, seconds)

    def lift_ban(self, subjects: Sequence[Subject]) -> None:
        """Let names and keys in again. Returns at once.

        :raises RuntimeError: if this node is a guest.
        """
        self._check_member("lift_ban")
        self._ask(self._control_plane.members.shut_out.lift, subjects)

    def watch_seed_file(self, path: str | os.PathLike[str]) -> None:
        """Join who is listed in a file, which is read again when it changes. Returns at once."""
        self._ask(self._control_plane.sockets.seeds.watch_file, os.fspath(path))

    def _ask(self, command: Callable[..., object], *arguments: object) -> None:
        """Post what a user asks for, as long as not too much of that waits."""
        self._check_runs()
        waiting, most = len(self._waiting), self._limits.mesh_commands_max
        if waiting >= most:
            raise QueueFull(
                f"{waiting} commands for the mesh wait already; Limits.mesh_commands_max is {most}"
            )
        self._waiting.append(None)

        def do() -> None:
            self._waiting.pop()
            command(*arguments)

        self.post(do)

    def _check_member(self, method: str) -> None:
        if is_guest(self.own):
            raise RuntimeError(
                f"{method}: {self.own} is a guest, which has no say in who belongs to the mesh; "
                f"rouse a node without Mesh(guest=True) for that. shutdown() ends the guest"
            )

    def _check_runs(self) -> None:
        if self._closed:
            raise NodeStopped(f"the cluster server of {self.own} has ended")

    def status(self) -> ClusterStatus:
        """The mesh as this node sees it. Never blocks."""
        return self._control_plane.status()

    def gauges(self) -> dict[str, float]:
        """What of the mesh is for `Metrics.gauges`. Never blocks."""
        return self._control_plane.gauges()

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
        tls_proxy = self._control_plane.sockets.tls_proxy
        if tls_proxy is not None and tls_proxy.thread is not None:
            threads.append(tls_proxy.thread)
        return [thread for thread in threads if thread.ident is not None]

    def drain(self) -> None:
        """The node is about to end: let no new peer in, and dial none. Never blocks."""
        self.post(self._control_plane.drain)

    def request_stop(self, patience_s: float, within_s: float) -> None:
        """The executor has ended: send all peers BYE, behind what was sent to them, and end.

        Never blocks.

        :param patience_s: seconds for which a peer may take nothing of it.
        :param within_s: seconds that all of it may take.
        """
        if not self._closed:
            self._poller.executor_ended()
            self._stop_within = patience_s, within_s
            self._poller.nudge()

    def close_inherited(self) -> None:
        """In a forked child: close its copies of the descriptors that the mesh has.

        So what the parent closes is closed for its peers, whatever becomes of the child.
        """
        self._closed = True
        self._control_plane.sockets.close_inherited()
        self._selector.close()
        self._poller.close_inherited()

    # The loop. A socket, a command or a timer that fails does so for itself; what is raised here
    # all the same is the end of the node.

    def _serve(self) -> None:
        if self._closed or self._is_stopping:
            return
        self._control_plane.sockets.seeds.start()
        while not self._control_plane.is_over:
            if rest_s := self._failures.rest_s():
                # Not in the selector: what failed may be what is ready there.
                time.sleep(rest_s)
            self._failures.attempt("the look at the sockets", self._look)
            for key, events in self._ready:
                step = functools.partial(key.data, events)
                self._failures.attempt(f"descriptor {key.fd}", step)
            self._do_commands()
            self._failures.attempt("the look at the time", self._tick)

    def _look(self) -> None:
        self._ready = []
        patience = self._patience()
        self._control_plane.looks()
        if patience and len(self._control_plane.sockets.handshakes):
            # Peers of the same machine say more meanwhile, and one wake does for all of it.
            self._poller.give_way()
        self._ready = self._selector.select(patience)
        self._control_plane.looked()

    def _failed(self, error: BaseException) -> None:
        self._closed = True
        self._runtime.failed("the cluster server", error)

    def _patience(self) -> float:
        """How long there is nothing for `_tick` to do, in seconds."""
        if self._commands or (self._stop_within is not None and not self._is_stopping):
            return 0.0
        now = self._clock()
        return min(max(self._control_plane.next_tick(now) - now, 0.0), PATIENCE_MAX_S)

    def _do_commands(self) -> None:
        # Asked before the commands are counted: what was posted before the end is done before it.
        stop_within = None if self._is_stopping else self._stop_within
        count = len(self._commands)
        for _ in range(min(count, COMMANDS_PER_TURN) if stop_within is None else count):
            command = self._commands.popleft()
            try:
                command()
            except BaseException as error:
                self._failures.note("a command", error)
        if stop_within is not None:
            self._is_stopping = True
            self._control_plane.stop(*stop_within)

    def _tick(self) -> None:
        self._control_plane.tick(self._clock())

    # The end.

    def _last_steps(self) -> tuple[Callable[[], bool | None], ...]:
        """What follows the service, or takes its place, in one thread."""
        return (
            self._is_late,
            self._end_joins,
            self._control_plane.sockets.close_handshakes,
            self._control_plane.sockets.close_seeds,
            self._control_plane.abort_connections,
            self._control_plane.sockets.stop_tls_proxy,
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

    def _end_joins(self) -> None:
        for joining in self._joins.copy().values():
            joining.ending.set_exception(NodeStopped(f"{self.own} ends"))

    def _end_serving(self) -> None:
        if self._serving.locked():
            self._serving.release()
