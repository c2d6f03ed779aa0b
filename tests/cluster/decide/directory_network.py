"""Nodes with names and groups in virtual time, and what their processes were told.

A seed decides all. Messages of a connection come in order, as an executor is given them, unless a
test says otherwise; the sender's queue may have been full, and then one is lost.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from rabble import CorrelationId, Limits, MessageRegistry, NodeId, Pid
from rabble._core.codec import Codec
from rabble._core.directory_messages import (
    GroupChanged,
    GroupJoined,
    GroupLeft,
    GroupMembers,
    GroupRefused,
    NameHolder,
    NameLost,
    NameRefused,
    Registered,
    Unregistered,
)
from rabble.cluster.decide.directory import Action, Answer, Asker, Directory, Life

CODEC = Codec(MessageRegistry())
LIMITS = Limits()
LATENCY_S = (0.001, 0.1)
#: What answers a request.
ANSWERS = (
    Registered, Unregistered, NameRefused, NameHolder, GroupJoined, GroupLeft, GroupRefused,
    GroupMembers,
)  # fmt: skip


@dataclasses.dataclass(eq=False)
class Host:
    """Where a node runs, again and again."""

    node: NodeId
    directory: Directory | None = None
    #: Which start of it this is.
    start: int = 0
    side: int = 0
    lives: dict[str, Life] = dataclasses.field(default_factory=dict)
    numbers: Any = dataclasses.field(default_factory=lambda: itertools.count(1))
    #: The names that each life believes it has.
    believed: dict[Life, set[str]] = dataclasses.field(default_factory=dict)
    #: The members of groups, as the subscriber of each was told.
    views: dict[str, set[Pid]] = dataclasses.field(default_factory=dict)
    planned: float | None = None
    skew_ms: int = 0


class Network:
    """A mesh of directories.

    :param loss: how often a message is lost.
    :param shuffled: messages come in any order, and some twice.
    """

    def __init__(
        self,
        seed: int,
        hosts: int,
        *,
        limits: Limits = LIMITS,
        loss: float = 0.0,
        shuffled: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.limits = limits
        self.loss = loss
        self.shuffled = shuffled
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.hosts = [Host(NodeId(f"n{number}", f"h:{number + 1}")) for number in range(hosts)]
        self.by_node = {host.node: host for host in self.hosts}
        #: Connections that are up, by both ends: which one it is, and when the last message comes.
        self.connections: dict[tuple[NodeId, NodeId], int] = {}
        self.last_comes: dict[tuple[NodeId, NodeId], float] = {}
        self.happened: collections.Counter[str] = collections.Counter()
        self.open_requests: dict[int, str] = {}
        self.sent = 0

    # Time.

    def at(self, time: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (time, next(self.order), what, args))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self.events)
            what(*args)
        self.now = until

    # Nodes.

    @property
    def live(self) -> list[Host]:
        return [host for host in self.hosts if host.directory is not None]

    def start(self, host: Host) -> None:
        if host.directory is not None:
            return
        host.skew_ms = self.rng.randrange(-60_000, 60_000)
        host.directory = Directory(
            host.node,
            self.limits,
            lambda: 1_700_000_000_000 + host.skew_ms + int(self.now * 1_000),
        )
        host.start += 1
        host.planned = None
        self.happened["start"] += 1
        for other in self.live:
            if other is not host and other.side == host.side:
                self.connect(host, other)

    def crash(self, host: Host) -> None:
        if host.directory is None:
            return
        host.directory = None
        host.lives.clear()
        host.believed.clear()
        host.views.clear()
        self.happened["crash"] += 1
        for other in self.live:
            self.disconnect(host, other)

    def connect(self, one: Host, other: Host) -> None:
        if (one.node, other.node) in self.connections:
            return
        number = next(self.order)
        for a, b in ((one, other), (other, one)):
            self.connections[a.node, b.node] = number
            self.last_comes[a.node, b.node] = self.now
            self.at(self.now + self.rng.uniform(0, 0.05), self.up, a, a.start, b.node, number)

    def up(self, host: Host, start: int, peer: NodeId, number: int) -> None:
        if self.is_connected(host, start, peer, number):
            assert host.directory is not None
            self.do(host, host.directory.peer_up(peer, self.now))

    def is_connected(self, host: Host, start: int, peer: NodeId, number: int) -> bool:
        return (
            host.directory is not None
            and host.start == start
            and self.connections.get((host.node, peer)) == number
        )

    def disconnect(self, one: Host, other: Host) -> None:
        for a, b in ((one, other), (other, one)):
            if self.connections.pop((a.node, b.node), None) is not None and a.directory:
                self.do(a, a.directory.peer_down(b.node, self.now))

    def divide(self, sides: int) -> None:
        for host in self.hosts:
            host.side = self.rng.randrange(sides)
        for one, other in itertools.combinations(self.live, 2):
            if one.side == other.side:
                self.connect(one, other)
            else:
                self.disconnect(one, other)
        self.happened["split" if sides > 1 else "heal"] += 1

    # What is to be done.

    def do(self, host: Host, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer):
                self.told(host, action)
            else:
                self.send(host, action.node, action.message)
        due = host.directory.due if host.directory is not None else None
        if due is not None and (host.planned is None or due < host.planned):
            host.planned = due
            self.at(max(due, self.now), self.tick, host, host.start, due)

    def tick(self, host: Host, start: int, due: float) -> None:
        if host.directory is None or host.start != start or host.planned != due:
            return
        host.planned = None
        self.do(host, host.directory.tick(self.now))

    def send(self, host: Host, peer: NodeId, message: dict[str, Any]) -> None:
        self.sent += 1
        number = self.connections.get((host.node, peer))
        if number is None or self.rng.random() < self.loss:
            return
        data = CODEC.encode_message(message)
        comes = self.now + self.rng.uniform(*LATENCY_S)
        if not self.shuffled:
            comes = self.last_comes[host.node, peer] = max(
                comes, self.last_comes[host.node, peer] + 1e-9
            )
        receiver = self.by_node[peer]
        for _ in range(1 + (self.shuffled and self.rng.random() < 0.2)):
            self.at(comes, self.arrive, receiver, receiver.start, host.node, number, data)
            comes += self.rng.uniform(0, 0.1)

    def arrive(self, host: Host, start: int, peer: NodeId, number: int, data: bytes) -> None:
        if self.is_connected(host, start, peer, number):
            assert host.directory is not None
            message = CODEC.decode_message(data)
            self.do(host, host.directory.read(peer, message, self.now))

    # Processes.

    def told(self, host: Host, answer: Answer) -> None:
        """A process is told something, if it is still there."""
        life, msg = answer.to.life, answer.msg
        if isinstance(msg, ANSWERS):
            correlation_id = answer.to.correlation_id
            assert correlation_id is not None and correlation_id.request is not None
            # Each request has one answer.
            del self.open_requests[correlation_id.request]
            if isinstance(msg, NameRefused):
                self.happened[f"refused: {msg.reason}"] += 1
        if host.lives.get(life.pid.name) != life:
            return
        believed = host.believed.setdefault(life, set())
        match msg:
            case Registered(name, pid):
                assert pid == life.pid
                believed.add(name)
                self.happened["registered"] += 1
            case NameLost(name, holder):
                assert holder != life.pid and name in believed
                believed.remove(name)
                self.happened["lost"] += 1
            case Unregistered(name, had_it):
                believed.discard(name)
                self.happened["unregistered"] += had_it
            case GroupMembers(group, members):
                host.views[group] = set(members)
            case GroupChanged(group, joined, left):
                view = host.views[group]
                assert not view & set(joined) and set(left) <= view and (joined or left)
                assert not set(joined) & set(left)
                host.views[group] = view - set(left) | set(joined)
            case _:
                assert isinstance(msg, ANSWERS), msg

    def spawn(self, host: Host, name: str) -> Life:
        if name not in host.lives:
            host.lives[name] = Life(Pid(name, host.node), next(host.numbers))
        return host.lives[name]

    def asker(self, host: Host, life: Life, what: str) -> Asker:
        number = next(self.order)
        self.open_requests[number] = f"{life}: {what}"
        return Asker(life, CorrelationId(life.pid, request=number))

    def register(self, host: Host, life: Life, name: str) -> None:
        assert host.directory is not None
        asker = self.asker(host, life, f"register {name}")
        self.do(host, host.directory.register(name, life, asker, self.now))

    def unregister(self, host: Host, life: Life, name: str) -> None:
        assert host.directory is not None
        asker = self.asker(host, life, f"unregister {name}")
        self.do(host, host.directory.unregister(name, life, asker, self.now))

    def join(self, host: Host, life: Life, group: str) -> None:
        assert host.directory is not None
        asker = self.asker(host, life, f"join {group}")
        self.do(host, host.directory.join(group, life, asker, self.now))

    def leave(self, host: Host, life: Life, group: str) -> None:
        assert host.directory is not None
        asker = self.asker(host, life, f"leave {group}")
        self.do(host, host.directory.leave(group, life, asker, self.now))

    def subscribe(self, host: Host, group: str, wanted: bool = True) -> None:
        assert host.directory is not None
        life = self.spawn(host, f"subscriber-of-{group}")
        asker = self.asker(host, life, f"subscribe {group}")
        self.do(host, host.directory.subscribe(group, life, wanted, asker))

    def end(self, host: Host, life: Life) -> None:
        assert host.directory is not None
        del host.lives[life.pid.name]
        host.believed.pop(life, None)
        self.happened["ended"] += 1
        self.do(host, host.directory.ended(life, self.now))

    # What has to hold.

    def believers(self) -> dict[str, list[Pid]]:
        """Of each name those who think that they have it."""
        found: dict[str, list[Pid]] = collections.defaultdict(list)
        for host in self.live:
            for life, names in host.believed.items():
                for name in names:
                    found[name].append(life.pid)
        return found

    def is_agreed(self) -> bool:
        """Whether all live nodes have the same names and groups."""
        found = [
            (host.directory.names, set_of(host.directory)) for host in self.live if host.directory
        ]
        return all(each == found[0] for each in found)

    def check(self) -> None:
        """All live nodes agree, and what they agree on is so."""
        directories = [host.directory for host in self.live if host.directory is not None]
        first = directories[0]
        for host, directory in zip(self.live, directories, strict=True):
            assert directory.names == first.names, (host.node, directory.names, first.names)
            assert set_of(directory) == set_of(first), host.node
            for group, view in host.views.items():
                assert view == set(directory.members(group)), (host.node, group)
        believers = self.believers()
        assert {name: [pid] for name, pid in first.names.items()} == dict(believers)
        for pids in (*([pid] for pid in first.names.values()), *first.groups.values()):
            for pid in pids:
                assert pid in {life.pid for life in self.by_node[pid.node].lives.values()}, pid


def set_of(directory: Directory) -> dict[str, set[Pid]]:
    return {group: set(members) for group, members in directory.groups.items()}
