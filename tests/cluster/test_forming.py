"""Hundreds of nodes in virtual time become a full mesh: by how many frames and bytes, and how soon.

Each node has the membership, the gossip and the connection manager of a real one. Between them
stands a network that takes a while, and handshakes of as many turns as the real ones, without their
bytes. What a node says is encoded and decoded. If the world has a processor, which all of them
share, whatever comes waits for its turn there.
"""

from __future__ import annotations

import dataclasses
import gc
import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from rabble import Limits, NodeId
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.actions import Action, Close, Dial, Down, Up
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.membership import Membership
from rabble.cluster.gossip import Gossip
from rabble.cluster.runtime import ClusterRuntime

#: Seconds that something takes from one node to another.
LATENCY_S = (0.001, 0.02)
#: Within so many seconds all nodes are told to join.
START_S = 0.5
PATIENCE_S = 30.0
#: That a handshake may take.
HANDSHAKE_S = Limits().handshake_ms / 1000
#: What reading a frame takes, in steps of a handshake.
FRAME_STEP = 0.25
#: Besides its body, length, kind and flags.
FRAME_HEADER_BYTES = 6


@dataclasses.dataclass(eq=False, slots=True)
class End:
    """One side of a connection, or of a handshake."""

    host: Host
    connection_id: int
    other: End | None = None
    is_open: bool = True
    peer: PeerConnection | None = None
    last_arrival: float = 0.0
    #: Of its handshake.
    deadline: float = 0.0

    def send_control(self, kind: int, body: bytes) -> bool:
        """What `Connection` does."""
        world = self.host.world
        world.frames += 1
        world.frame_bytes += len(body) + FRAME_HEADER_BYTES
        self.say(lambda other: other.host.read(other, body), FRAME_STEP)
        return True

    def say(self, what: Callable[[End], None], step: float = 1.0) -> None:
        """Have something happen at the other side, after what was said before."""
        other, world = self.other, self.host.world
        if other is None or not self.is_open:
            return
        other.last_arrival = max(
            world.now + world.rng.uniform(*LATENCY_S), other.last_arrival + 1e-9
        )

        def arrives() -> None:
            if other.is_open:
                world.work(step, lambda: what(other) if other.is_open else None)

        world.at(other.last_arrival, arrives)

    def close(self) -> None:
        if self.is_open:
            self.say(lambda other: other.host.hung_up(other))
            self.is_open = False


class Host:
    """A node."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        # Names in another order than that in which they start.
        self.own = NodeId(f"n{number * 7_919 % 10_007:05}", f"host-{number}:1")
        self.membership = Membership(self.own, 100 + number, world.limits)
        self.manager = ConnectionManager(self.own, 100 + number, world.rng, world.limits)
        self.gossip = Gossip(
            self.own,
            self.membership,
            cast(ClusterRuntime, None),
            world.limits,
            world.now,
            world.rng,
        )
        self.ends: dict[int, End] = {}
        self.up: dict[int, End] = {}
        self.downs = 0
        self.failed = 0
        self.wakes_at = float("inf")

    def join(self, addr: str) -> None:
        self.manager.add_seed(addr, self.world.now)
        self.round()

    def round(self) -> None:
        """What the server's loop does after each event."""
        now = self.world.now
        if self.gossip.next_tick <= now:
            self.gossip.tick(now, [end.peer for end in self.up.values() if end.peer is not None])
        self.carry_out(self.manager.tick(now))
        times = (self.gossip.next_tick, self.manager.next_tick(now))
        wakes_at = min(time for time in times if time is not None)
        if wakes_at < self.wakes_at:
            self.wakes_at = wakes_at
            self.world.at(wakes_at, self.wake)

    def wake(self) -> None:
        if self.world.now >= self.wakes_at:
            self.wakes_at = float("inf")
            self.round()

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    self.dial(action)
                case Close(connection_id):
                    if (end := self.ends.pop(connection_id, None)) is not None:
                        self.up.pop(connection_id, None)
                        self.gossip.forget(connection_id)
                        end.close()
                case Up(connection_id, peer, incarnation):
                    end = self.ends[connection_id]
                    end.peer = PeerConnection(connection_id, cast(Any, end), peer, incarnation)
                    self.up[connection_id] = end
                    self.gossip.greet(end.peer, self.world.now)
                case Down():
                    self.downs += 1
                case other:
                    raise AssertionError(other)

    # Handshakes, with the turns of the real ones.

    def dial(self, dial: Dial) -> None:
        self.world.dials += 1
        target = self.world.by_addr[dial.addr]
        mine = End(self, dial.connection_id)
        theirs = End(target, target.manager.accepting(), mine)
        mine.other = theirs
        self.ends[mine.connection_id] = mine
        target.ends[theirs.connection_id] = theirs
        self.allow_time(mine)
        mine.say(lambda responder: target.greeted(responder, self))

    def allow_time(self, end: End) -> None:
        end.deadline = self.world.now + HANDSHAKE_S
        self.world.at(end.deadline, lambda: self.look_at_time(end))

    def look_at_time(self, end: End) -> None:
        """The handshake is done by now, or has failed."""
        if end.peer is not None or self.world.now < end.deadline:
            return
        if self.ends.pop(end.connection_id, None) is not None:
            end.close()
            self.failed += 1
            self.carry_out(self.manager.dial_failed(end.connection_id, self.world.now))
            self.round()

    def greeted(self, theirs: End, by: Host) -> None:
        self.allow_time(theirs)
        theirs.say(lambda mine: by.answered(mine, self))

    def answered(self, mine: End, by: Host) -> None:
        self.allow_time(mine)
        peer, incarnation = by.own, by.membership.incarnation
        if self.manager.authenticating(mine.connection_id, peer, incarnation, self.world.now):
            del self.ends[mine.connection_id]
            mine.close()
        else:
            mine.say(lambda theirs: by.proven(theirs, self))
        self.round()

    def proven(self, theirs: End, by: Host) -> None:
        peer, incarnation = by.own, by.membership.incarnation
        refusal = self.manager.authorize(peer, incarnation, self.world.now, 0.0)
        if refusal is not None:
            theirs.say(lambda mine: by.refused(mine, refusal.code))
            del self.ends[theirs.connection_id]
            theirs.is_open = False
            return
        # Whoever accepts says so before it says anything else.
        theirs.say(lambda mine: by.accepted(mine, self))
        self.carry_out(
            self.manager.established(theirs.connection_id, peer, incarnation, False, self.world.now)
        )
        self.round()

    def refused(self, mine: End, code: Any) -> None:
        del self.ends[mine.connection_id]
        mine.is_open = False
        self.carry_out(
            self.manager.dial_failed(
                mine.connection_id, self.world.now, code=code, authenticated=True
            )
        )
        self.round()

    def accepted(self, mine: End, by: Host) -> None:
        self.carry_out(
            self.manager.established(
                mine.connection_id, by.own, by.membership.incarnation, True, self.world.now
            )
        )
        self.round()

    def hung_up(self, end: End) -> None:
        end.is_open = False
        if self.ends.pop(end.connection_id, None) is None:
            return
        if self.up.pop(end.connection_id, None) is not None:
            self.gossip.forget(end.connection_id)
            self.carry_out(self.manager.lost(end.connection_id, self.world.now))
        else:
            self.failed += bool(self.manager.dial_failed(end.connection_id, self.world.now))
        self.round()

    # Membership.

    def read(self, end: End, body: bytes) -> None:
        assert end.peer is not None
        changes = self.gossip.read(end.peer, body, self.world.now)
        if changes is not None:
            for node in changes.added:
                self.carry_out(self.manager.add_peer(node, self.world.now))
        self.round()


class World:
    """:param step_s: that a step of a node takes of the processor; 0 is for one of no limits."""

    def __init__(self, nodes: int, seed: int, step_s: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.step_s = step_s
        #: When the processor has done all that waits for it.
        self.idle_at = 0.0
        self.limits = Limits()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.dials = self.frames = self.frame_bytes = 0
        self.hosts = [Host(self, number) for number in range(nodes)]
        self.by_addr = {host.own.addr: host for host in self.hosts}

    def at(self, time: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), what))

    def work(self, steps: float, what: Callable[[], None]) -> None:
        """Have it done when the processor comes to it."""
        if not self.step_s:
            what()
            return
        self.idle_at = max(self.idle_at, self.now) + steps * self.step_s
        self.at(self.idle_at, what)

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    def is_full(self) -> bool:
        return all(len(host.up) == len(self.hosts) - 1 for host in self.hosts)


def form(nodes: int, seed: int, step_s: float = 0.0, patience_s: float = PATIENCE_S) -> World:
    """All join the first one; until they are a full mesh."""
    world = World(nodes, seed, step_s)
    first, *others = world.hosts
    for host in others:
        world.at(world.rng.uniform(0, START_S), lambda host=host: host.join(first.own.addr))  # type: ignore[misc]
    while not world.is_full():
        assert world.now < patience_s, [len(host.up) for host in world.hosts]
        world.run(world.now + 0.1)
    return world


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Nothing here is garbage before the end."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("nodes", "seed"),
    [
        *((20, seed) for seed in range(10)),
        (100, 1),
        (100, 2),
        pytest.param(200, 1, marks=pytest.mark.soak),
        pytest.param(500, 1, marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(600)
def test_nodes_form_with_frames_and_bytes_in_proportion_to_their_connections(
    nodes: int, seed: int
) -> None:
    world = form(nodes, seed)
    formed_s = world.now
    world.run(world.now + 5.0)
    connections = nodes * (nodes - 1) // 2
    assert len({host.membership.digest() for host in world.hosts}) == 1
    assert all(len(host.membership) == nodes for host in world.hosts)
    # Nobody came twice, nobody went, and nothing failed.
    assert world.is_full()
    assert sum(host.downs + host.failed for host in world.hosts) == 0
    assert formed_s < 8.0
    # A greeting each way, a digest or two, and the starts of others, told in common.
    assert world.frames < 9 * connections
    assert world.frame_bytes < 900 * connections


@pytest.mark.parametrize(
    ("nodes", "step_s", "seed"),
    [
        (20, 0.01, 1),
        (20, 0.03, 2),
        (30, 0.008, 1),
        pytest.param(60, 0.002, 1, marks=pytest.mark.soak),
        pytest.param(100, 0.001, 1, marks=pytest.mark.soak),
        pytest.param(100, 0.002, 2, marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(600)
def test_no_handshake_fails_where_a_slow_processor_is_shared(
    nodes: int, step_s: float, seed: int
) -> None:
    connections = nodes * (nodes - 1) // 2
    # Four steps are a handshake's; the others are frames, and dials that gave way.
    world = form(nodes, seed, step_s, patience_s=PATIENCE_S + 10 * step_s * connections)
    assert sum(host.downs + host.failed for host in world.hosts) == 0
    assert world.dials < 1.2 * connections
