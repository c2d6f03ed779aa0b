"""Whole control planes in one thread, with a clock that a test turns and no port.

A frame goes through a real pair of sockets, the compiled poller and the compiled decoder. What is
left out is the bytes of a handshake: whoever dials an address finds who is there, and both planes
are asked what a handshake would ask them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import random
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from rabble import Limits, Mesh, NodeId
from rabble.cluster.control_plane import ControlPlane
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import Authenticate, Authorize, Established, Failed, Peer
from rabble.cluster.decide.patience import Patience
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from tests.cluster.plane import KEY, Runtime, make_poller
from tests.support import TINY

#: The protocol's version in what planes tell each other.
VERSION = 2
#: At the sockets in a turn. A tiny build reads seven bytes each time.
LOOKS = 1_000 if TINY else 1
#: An hour: by the true clock nobody is silent in a test, and by the test's clock nobody at all.
NEVER_MS = 3_600_000
NOBODY = Failed(RefusalCode.TIMEOUT, "nobody", False, silent=True, nobody=True)
HUNG_UP = Failed(RefusalCode.TIMEOUT, "it hung up", False, silent=True, hung_up=True)


class Stream:
    """One end of a pair of sockets, where the socket of a TCP connection would be."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def setsockopt(self, *option: object) -> None:
        """Options of TCP."""

    def detach(self) -> int:
        self._sock.setblocking(False)
        return self._sock.detach()

    def close(self) -> None:
        self._sock.close()


@dataclasses.dataclass(eq=False)
class Side:
    """What a plane has in place of a `HandshakeSocket`."""

    plane: VirtualPlane
    connection_id: int
    initiated: bool
    remote: str
    dial: Dial | None = None
    handshake: None = None
    #: The other side, once somebody is there, and what that has said of itself then.
    other: Side | Stranger | None = None
    peer: Peer | None = None
    sock: socket.socket | None = None

    @property
    def own_incarnation(self) -> int:
        return self.plane.incarnation

    def take(self) -> Stream:
        assert self.sock is not None
        return Stream(self.sock)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


class Stranger:
    """Who is at an address and no plane: a test says how it answers.

    :param peer: what it calls itself.
    :param refusal: it refuses who dials it; `None` to accept.
    :param up: is given its end of the sockets of a connection.
    """

    def __init__(
        self, peer: Peer, refusal: Refusal | None, up: Callable[[VirtualPlane, socket.socket], None]
    ) -> None:
        self.peer, self.refusal, self.up = peer, refusal, up


class Handshakes:
    """Stands in for `HandshakeRunner`: the actions that a plane asks for, without bytes."""

    def __init__(self, plane: VirtualPlane) -> None:
        self._plane = plane
        self.patience = Patience()
        self.looked_at = 0.0

    def due(self, looked_at: float) -> tuple[Any, ...]:
        return ()

    def authenticate(self, side: Side, question: Authenticate) -> None:
        self._plane.network.later(lambda: self._plane.network.prove(side))

    def decide(self, side: Side, refusal: Refusal | None) -> Established | Failed:
        side.plane.network.answer(side, refusal)
        if refusal is not None:
            return Failed(refusal.code, refusal.text, True)
        return established(side)

    def refuse(self, side: Side, refusal: Refusal) -> Failed:
        side.plane.network.forget(side)
        return Failed(refusal.code, refusal.text, False, ban_s=refusal.ban_s)

    def drop(self, connection_id: int) -> bool:
        return self._plane.network.drop(self._plane, connection_id)


class VirtualPlane(ControlPlane):
    """The control plane of one node, in a `VirtualNetwork`."""

    def __init__(self, network: VirtualNetwork, own: NodeId, incarnation: int) -> None:
        self.network, self.own = network, own
        self.runtime = Runtime(own)
        self.first_incarnation: int | None = incarnation
        poller = self.poller = make_poller(network.limits)
        self.ready: Callable[[int], None] | None = None
        super().__init__(
            own,
            Mesh(key=KEY),
            [],
            poller,
            self.runtime,
            selector_of(self),
            post=network.later,
            limits=network.limits,
            clock=lambda: network.now,
            rng=network.rng,
            token_bytes=network.rng.randbytes,
            new_incarnation=self.new_incarnation,
            processor_clock=lambda: 0.0,
        )
        self._handshakes = self.sockets.handshakes = Handshakes(self)  # type: ignore[assignment]
        self.membership, self.bans = self._membership, self.members.shut_out._bans

    def new_incarnation(self) -> int:
        incarnation, self.first_incarnation = self.first_incarnation, None
        return self.network.new_incarnation() if incarnation is None else incarnation

    def _dial(self, dial: Dial) -> None:
        self.network.dial(self, dial)

    @property
    def peers(self) -> dict[str, int]:
        """Who is connected, and by which incarnation."""
        return {each.node.name: each.incarnation for each in self._connections.all()}

    def turn(self, *, is_asked: bool = True) -> None:
        """One turn of the loop of `ClusterServer`, which waits for nothing.

        :param is_asked: whether it is due, whatever there is to be read.
        """
        for _ in range(LOOKS):
            self.poller.poll()
        if not (is_asked or self._is_ready()):
            return
        self.looks()
        assert self.ready is not None
        self.ready(selectors.EVENT_READ)
        self.tick(self.network.now)

    def _is_ready(self) -> bool:
        """Whether a peer has said something, or has gone."""
        return any(
            each.unread or each.connection.has_control or not each.connection.open
            for each in self._connections.all()
        )

    def close(self) -> None:
        self.abort_connections()
        self.poller.stop()


def selector_of(plane: VirtualPlane) -> Any:
    """A selector that tells a plane what to call when its poller has something."""

    class Selector:
        def register(self, what: object, events: int, ready: Callable[[int], None]) -> None:
            plane.ready = ready

    return Selector()


class VirtualNetwork:
    """Planes by their addresses, the dials between them, and the time.

    :param rng: of all jitter.
    :param first: what an incarnation is at the beginning of time.
    """

    def __init__(self, limits: Mapping[str, int], rng: random.Random, first: int) -> None:
        wide = {"heartbeat_ms": NEVER_MS, "down_after_ms": 2 * NEVER_MS}
        self.limits = Limits(**{**wide, **limits})
        self.rng, self.now = rng, 1_000.0
        self._first, self._drawn = first, itertools.count()
        self.planes: dict[str, VirtualPlane] = {}
        #: Those at other addresses.
        self.strangers: dict[str, Stranger] = {}
        self.events: collections.deque[Callable[[], None]] = collections.deque()
        self._sides: dict[tuple[VirtualPlane, int], Side] = {}

    def new_incarnation(self) -> int:
        """As `server.new_incarnation` draws one of the clock."""
        return self._first + (int(self.now * 1_000) << 20) + next(self._drawn)

    def start(self, name: str, incarnation: int | None = None) -> VirtualPlane:
        """Start a node, and end the one that had its name."""
        own = NodeId(name, f"{name}:1")
        if (before := self.planes.get(own.addr)) is not None:
            self.stop(before)
        first = self.new_incarnation() if incarnation is None else incarnation
        plane = self.planes[own.addr] = VirtualPlane(self, own, first)
        return plane

    def stop(self, plane: VirtualPlane) -> None:
        del self.planes[plane.own.addr]
        for side in [side for (whose, _), side in self._sides.items() if whose is plane]:
            self.hang_up(side)
        plane.close()

    def close(self) -> None:
        for plane in list(self.planes.values()):
            self.stop(plane)

    def later(self, step: Callable[[], None]) -> None:
        self.events.append(step)

    def run(self, seconds: float = 0.0, turns: int = 3) -> None:
        """Time goes on, and so do all planes, until they have nothing to do at this time."""
        self.now += seconds
        for number in range(turns):
            for plane in list(self.planes.values()):
                plane.turn(is_asked=number == 0)
            for _ in range(len(self.events)):
                self.events.popleft()()

    # Dials. Each step asks a plane what a handshake asks it.

    def dial(self, plane: VirtualPlane, dial: Dial) -> None:
        side = Side(plane, dial.connection_id, True, dial.addr, dial)
        self._sides[plane, dial.connection_id] = side
        self.later(lambda: self._reach(side))

    def call(self, stranger: Stranger, plane: VirtualPlane) -> None:
        """Somebody who is no plane dials one."""
        number = plane._connection_manager.accepting()
        side = Side(plane, number, False, "h:9", other=stranger, peer=stranger.peer)
        self._sides[plane, side.connection_id] = side
        plane._see_to(side, Authorize(stranger.peer))  # type: ignore[arg-type]

    def _reach(self, side: Side) -> None:
        """The dial has come to its address."""
        if not self._has(side):
            return
        plane = self.planes.get(side.remote)
        if plane is side.plane:
            self._fail(side, Failed(RefusalCode.SELF, "you are this node", True))
        elif plane is not None:
            number = plane._connection_manager.accepting()
            other = side.other = Side(plane, number, False, side.plane.own.addr, other=side)
            assert side.dial is not None
            other.peer = Peer(side.plane.own, side.plane.incarnation, side.dial.join, VERSION)
            side.peer = Peer(plane.own, plane.incarnation, False, VERSION)
            self._sides[plane, number] = other
        elif (stranger := self.strangers.get(side.remote)) is not None:
            side.other, side.peer = stranger, stranger.peer
        if side.peer is None:
            self._fail(side, NOBODY)
            return
        expected = None if side.dial is None else side.dial.node
        if expected is not None and expected.name != side.peer.node.name:
            self._fail(side, Failed(RefusalCode.NAME_MISMATCH, "another one answers", False))
            return
        side.plane._see_to(side, Authenticate(side.peer, b""))  # type: ignore[arg-type]

    def prove(self, side: Side) -> None:
        """Who dialled has proven itself: it is decided on at the other side."""
        if not self._has(side):
            return
        other = side.other
        if isinstance(other, Stranger):
            self._answered(side, other.refusal, other)
            return
        if other is None or not self._has(other):
            self._fail(side, HUNG_UP)
            return
        assert other.peer is not None
        other.plane._see_to(other, Authorize(other.peer))  # type: ignore[arg-type]

    def answer(self, side: Side, refusal: Refusal | None) -> None:
        """A plane has decided on who dialled it."""
        other = side.other
        self.forget(side)
        if isinstance(other, Side):
            if refusal is None:
                side.sock, other.sock = socket.socketpair()
            self.later(lambda: self._answered(other, refusal, side))
        elif refusal is None:
            assert other is not None
            side.sock, theirs = socket.socketpair()
            other.up(side.plane, theirs)

    def _answered(self, side: Side, refusal: Refusal | None, other: Side | Stranger) -> None:
        if not self._has(side):
            side.close()
            return
        if refusal is not None:
            self._fail(
                side,
                Failed(
                    *(refusal.code, refusal.text, True, refusal.incarnation),
                    by_peer=True,
                    ban_s=refusal.ban_s,
                ),
            )
            return
        if isinstance(other, Stranger):
            side.sock, theirs = socket.socketpair()
            other.up(side.plane, theirs)
        self.forget(side)
        side.plane._see_to(side, established(side))  # type: ignore[arg-type]

    def _fail(self, side: Side, failed: Failed) -> None:
        self.forget(side)
        side.plane._see_to(side, failed)  # type: ignore[arg-type]

    def _has(self, side: Side) -> bool:
        return self._sides.get((side.plane, side.connection_id)) is side

    def forget(self, side: Side) -> None:
        self._sides.pop((side.plane, side.connection_id), None)

    def drop(self, plane: VirtualPlane, connection_id: int) -> bool:
        """A plane drops a dial, or a handshake."""
        side = self._sides.get((plane, connection_id))
        if side is None:
            return False
        self.hang_up(side)
        return True

    def hang_up(self, side: Side) -> None:
        self.forget(side)
        side.close()
        other = side.other
        if isinstance(other, Side) and self._has(other):
            self.later(lambda: self._fail(other, HUNG_UP) if self._has(other) else None)


def established(side: Side) -> Established:
    assert side.peer is not None
    return Established(side.peer, b"")


class Wire:
    """What somebody who is no plane has of a connection: raw bytes, and nothing that it reads."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.is_open = True

    def send(self, data: bytes) -> None:
        try:
            if self.is_open:
                self._sock.sendall(data)
        except OSError:
            # The other side has closed it, or reads nothing.
            self.close()

    def read(self) -> None:
        """Take what came, so that nobody waits."""
        if not self.is_open:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._sock.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self.close()
                    return

    def close(self) -> None:
        self.is_open = False
        self._sock.close()
