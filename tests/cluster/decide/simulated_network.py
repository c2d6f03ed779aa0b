"""Connection managers in virtual time: two sides see their connection at different times."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

from rabble._core.ids import NodeId
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
from rabble.limits import Limits

HANDSHAKE_S = 5.0
DIAL_S = 2.0
DOWN_S = 8.0


class End:
    """One side of a connection, with what it is to hear next."""

    def __init__(self, node: Node, connection_id: int, initiates: bool) -> None:
        self.node = node
        self.connection_id = connection_id
        self.initiates = initiates
        self.other: End | None = None
        self.awaits = "HELLO"
        self.open = True
        self.cut_at: float | None = None  # nothing comes through from then on, either way
        self.last_arrival = 0.0

    @property
    def up(self) -> bool:
        return self.open and self.awaits == "frames"


class Node:
    """A start of a node: its `ConnectionManager`, its ends of connections, and what it was told."""

    def __init__(self, world: World, node_id: NodeId, incarnation: int) -> None:
        self.world = world
        self.id = node_id
        self.manager = ConnectionManager(node_id, incarnation, world.rng, world.limits)
        self.ends: dict[int, End] = {}
        self.events: list[Action] = []
        self.peers: dict[str, Up] = {}
        self.highest: dict[str, int] = {}

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial():
                    self.world.dial(self, action)
                case Close(connection_id):
                    if (end := self.ends.get(connection_id)) is not None:
                        self.world.close(end)
                case Up(connection_id, peer, incarnation):
                    # G8 and G3.
                    assert peer.name not in self.peers
                    assert incarnation >= self.highest.get(peer.name, -1)
                    assert self.ends[connection_id].open
                    self.peers[peer.name] = action
                    self.highest[peer.name] = incarnation
                case Down(connection_id, peer, incarnation):
                    assert self.peers.pop(peer.name) == Up(connection_id, peer, incarnation)
                case RaiseIncarnation(at_least):
                    self.manager.incarnation = at_least
                case SelfAddress() | Removed():
                    pass
            self.events.append(action)

    def ups_and_downs(self) -> list[Action]:
        return [event for event in self.events if isinstance(event, Up | Down)]


@dataclasses.dataclass(slots=True)
class Event:
    at: float
    number: int
    channel: object  # events of one channel keep their order; None: a timer
    happen: Callable[[], None]


class World:
    """Nodes, what is under way between them, and the time.

    :param delays: seconds that something may take from one side to the other.
    """

    def __init__(self, rng: random.Random, delays: tuple[float, ...] = (0.001,)) -> None:
        self.rng = rng
        self.delays = delays
        self.limits = Limits()
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.by_addr: dict[str, Node] = {}
        self.blocked: set[frozenset[str]] = set()
        self.pending: list[Event] = []
        self.count = 0
        self.incarnation = 0

    # Nodes.

    def start(self, name: str, addr: str | None = None) -> Node:
        node_id = NodeId(name, addr or f"{name}:1")
        self.incarnation += 1
        node = Node(self, node_id, self.incarnation)
        self.nodes[name] = self.by_addr[node_id.addr] = node
        return node

    def restart(self, name: str, silently: bool) -> Node:
        """A node dies and comes back; its peers hear of it in a moment, or only by silence."""
        for end in list(self.nodes[name].ends.values()):
            if silently:
                self.cut(end)
                end.open = False
            else:
                self.close(end)
        return self.start(name, self.nodes[name].id.addr)

    def meet(self, explicit: bool = False) -> None:
        """All want all."""
        for node in self.nodes.values():
            for other in self.nodes.values():
                node.carry_out(node.manager.add_peer(other.id, self.now, explicit))

    def alive(self, node: Node) -> bool:
        return self.nodes.get(node.id.name) is node

    # What happens.

    def later(self, seconds: float, happen: Callable[[], None], channel: object = None) -> None:
        self.count += 1
        self.pending.append(Event(self.now + seconds, self.count, channel, happen))

    def dial(self, node: Node, dial: Dial) -> None:
        mine = End(node, dial.connection_id, initiates=True)
        node.ends[dial.connection_id] = mine
        self.deadline(mine)
        target = self.by_addr.get(dial.addr)
        if target is None:
            self.later(self.rng.choice(self.delays), lambda: self.give_up(mine), mine)
        elif frozenset({node.id.name, target.id.name}) in self.blocked:
            self.later(DIAL_S, lambda: self.give_up(mine))
        else:
            self.later(self.rng.choice(self.delays), lambda: self.arrive(mine, dial.addr), mine)

    def arrive(self, mine: End, addr: str) -> None:
        target = self.by_addr[addr]
        if not mine.open or mine.cut_at is not None:
            return
        theirs = End(target, target.manager.accepting(), initiates=False)
        target.ends[theirs.connection_id] = theirs
        mine.other, theirs.other = theirs, mine
        self.deadline(theirs)
        self.say(mine, "HELLO", mine.node.id, mine.node.manager.incarnation)

    def deadline(self, end: End) -> None:
        def over() -> None:
            if not end.up:
                self.give_up(end)

        self.later(HANDSHAKE_S, over)

    def give_up(self, end: End) -> None:
        """This side sees that its connection, or its dial, is no more."""
        if not end.open:
            return
        self.close(end)
        self.tell_end(end)

    def tell_end(self, end: End, **why: object) -> None:
        if not self.alive(end.node):
            return
        manager = end.node.manager
        if end.up or end.awaits == "frames":
            end.node.carry_out(manager.lost(end.connection_id, self.now))
        elif end.initiates:
            end.node.carry_out(manager.dial_failed(end.connection_id, self.now, **why))  # type: ignore[arg-type]

    def close(self, end: End) -> None:
        if end.open:
            self.say(end, "END")
            end.open = False
            end.node.ends.pop(end.connection_id, None)

    def cut(self, end: End) -> None:
        """Nothing comes through any more; either side notices when it has waited long enough."""
        for side in (end, end.other):
            if side is not None and side.cut_at is None:
                side.cut_at = self.now
                wait = self.rng.uniform(0, DOWN_S)
                self.later(wait, lambda side=side: self.give_up(side) if side.up else None)

    def say(self, end: End, what: str, *about: object) -> None:
        other = end.other
        if other is None or end.cut_at is not None:
            return
        at = max(self.now + self.rng.choice(self.delays), other.last_arrival)
        other.last_arrival = at
        self.later(at - self.now, lambda: self.hear(other, what, *about), (id(other)))

    def hear(self, end: End, what: str, *about: object) -> None:
        if not end.open or end.cut_at is not None or not self.alive(end.node):
            return
        manager, node = end.node.manager, end.node
        if what == "END":
            end.open = False
            node.ends.pop(end.connection_id, None)
            self.tell_end(end)
        elif what == "REFUSE":
            code, incarnation = about
            self.close(end)
            self.tell_end(end, code=code, authenticated=True, incarnation=incarnation)
        elif what == "HELLO" and end.initiates:
            peer, incarnation = end.heard = about
            if manager.authenticating(end.connection_id, peer, incarnation, self.now):
                self.close(end)
            else:
                end.awaits = "ACCEPT"
                self.say(end, "PROOF")
        elif what == "HELLO":
            end.heard = about
            end.awaits = "PROOF"
            self.say(end, "HELLO", node.id, manager.incarnation)
        elif what == "PROOF":
            self.authorize(end)
        else:
            assert what == "ACCEPT"
            end.awaits = "frames"
            node.carry_out(manager.established(end.connection_id, *end.heard, True, self.now))

    def authorize(self, end: End) -> None:
        manager, (peer, incarnation) = end.node.manager, end.heard
        refusal = manager.authorize(peer, incarnation, self.now, self.silence(end.node, peer.name))
        if refusal is not None:
            self.say(end, "REFUSE", refusal.code, refusal.incarnation)
            self.close(end)
        else:
            self.say(end, "ACCEPT")
            end.awaits = "frames"
            end.node.carry_out(
                manager.established(end.connection_id, peer, incarnation, False, self.now)
            )

    def silence(self, node: Node, name: str) -> float | None:
        connection_id = node.manager.connection_of(name)
        if connection_id is None:
            return None
        end = node.ends[connection_id]
        return 0.0 if end.cut_at is None else self.now - end.cut_at

    # Time.

    def run(self, until: float) -> None:
        """In the order of time."""
        while True:
            ticks = [
                (max(tick, self.now), node)
                for node in self.nodes.values()
                if (tick := self.next_tick(node)) is not None
            ]
            event = min(self.pending, key=lambda e: (e.at, e.number), default=None)
            tick, node = min(ticks, key=lambda pair: pair[0], default=(until + 1, None))
            if min(tick, event.at if event else tick) > until:
                self.now = until
                return
            if node is not None and (event is None or tick <= event.at):
                self.now = tick
                node.carry_out(node.manager.tick(tick))
            else:
                assert event is not None
                self.now = event.at
                self.pending.remove(event)
                event.happen()

    def next_tick(self, node: Node) -> float | None:
        """What the manager keeps of that is no later than the first dial for which it has room."""
        manager, now = node.manager, self.now
        kept = manager.next_tick(now)
        places = manager._dials.places(now)
        dials = (
            manager._rates.due(target, now)
            for target in manager._waiting
            if places[target.is_looked_up].has(target.is_hearsay)
        )
        first = min((each for each in dials if each is not None), default=None)
        # The time of a token depends on when it is asked for, by a rounding.
        assert first is None or (kept is not None and kept <= max(first, now) + 1e-5)
        return kept

    def run_chosen(self, choose: Callable[[int], int]) -> None:
        """In any order that keeps that of each direction of a connection; time stands still."""
        while True:
            heads: dict[object, Event] = {}
            for event in self.pending:
                if event.channel is not None:
                    heads.setdefault(event.channel, event)
            for node in self.nodes.values():
                tick = self.next_tick(node)
                if tick is not None and tick <= self.now:
                    heads[node] = Event(
                        self.now, 0, node, lambda n=node: n.carry_out(n.manager.tick(self.now))
                    )
            if not heads:
                return
            events = list(heads.values())
            event = events[choose(len(events))]
            if event in self.pending:
                self.pending.remove(event)
            event.happen()

    # What must hold.

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        names = sorted(self.nodes)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                yield self.nodes[first], self.nodes[second]

    def agrees(self, first: Node, second: Node) -> bool:
        """Both are up with each other, by the same connection, and there is no other one."""
        mine, theirs = (
            first.manager.connection_of(second.id.name),
            second.manager.connection_of(first.id.name),
        )
        if mine is None or theirs is None:
            return False
        end = first.ends[mine]
        between = [e for e in first.ends.values() if e.other is not None and e.other.node is second]
        return between == [end] and end.other is second.ends[theirs] and end.cut_at is None

    def full(self) -> bool:
        return all(self.agrees(first, second) for first, second in self.pairs())
