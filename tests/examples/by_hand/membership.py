"""Groups of processes over the nodes of a mesh by hand; a name is a group with one member."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import rabble
from rabble import (
    CorrelationId,
    Down,
    Envelope,
    Monitor,
    Node,
    NodeDown,
    NodeId,
    NodeUp,
    Pid,
    Process,
    SubscribeNodes,
)


@rabble.message(name="by_hand.Join")
class Join:
    group: str


@rabble.message(name="by_hand.Watch")
class Watch:
    group: str


@rabble.message(name="by_hand.Who")
class Who:
    group: str


@rabble.message(name="by_hand.Ours")
class Ours:
    """What a directory tells those of other nodes: who is a member of its own node."""

    group: str
    members: list[Pid]


@rabble.message(name="by_hand.Members")
class Members:
    """What it tells a process that watches a group, or asks."""

    group: str
    members: list[Pid]


class Directory(Process):
    """Knows the groups. There is one on each node, under the same name."""

    def __init__(self) -> None:
        self.nodes: set[NodeId] = set()
        self.members: dict[str, set[Pid]] = collections.defaultdict(set)
        self.watchers: dict[str, set[Pid]] = collections.defaultdict(set)

    def init(self) -> Envelope:
        return Envelope(self.executor, SubscribeNodes())

    def receive(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        match msg:
            case Join(group) if sender is not None:
                yield Envelope(self.executor, Monitor(sender))
                yield from self.change(group, self.members[group] | {sender})
                yield from self.tell_nodes(group, self.nodes)
                yield Envelope(sender, "joined", correlation_id=correlation_id)
            case Watch(group) if sender is not None:
                yield Envelope(self.executor, Monitor(sender))
                self.watchers[group].add(sender)
                yield Envelope(sender, Members(group, sorted(self.members[group])))
            case Who(group) if sender is not None:
                who = Members(group, sorted(self.members[group]))
                yield Envelope(sender, who, correlation_id=correlation_id)
            case Ours(group, members) if sender is not None and sender.node in self.nodes:
                theirs = {pid for pid in members if pid.node == sender.node}
                yield from self.change(group, self.without(group, sender.node) | theirs)
            case Down(pid):
                for watchers in self.watchers.values():
                    watchers.discard(pid)
                for group in [name for name, members in self.members.items() if pid in members]:
                    yield from self.change(group, self.members[group] - {pid})
                    yield from self.tell_nodes(group, self.nodes)
            case NodeUp(node):
                self.nodes.add(node)
                for group in self.members:
                    yield from self.tell_nodes(group, {node})
            case NodeDown(node):
                self.nodes.discard(node)
                for group in self.members:
                    yield from self.change(group, self.without(group, node))
            case _:
                pass

    def without(self, group: str, node: NodeId) -> set[Pid]:
        return {pid for pid in self.members[group] if pid.node != node}

    def change(self, group: str, members: set[Pid]) -> list[Envelope]:
        if members == self.members[group]:
            return []
        self.members[group] = members
        news = Members(group, sorted(members))
        return [Envelope(watcher, news) for watcher in self.watchers[group]]

    def tell_nodes(self, group: str, nodes: set[NodeId]) -> list[Envelope]:
        ours = Ours(group, [pid for pid in self.members[group] if pid.node == self.node_id])
        return [Envelope(Pid("directory", node), ours) for node in nodes]


def directory_of(node: NodeId) -> Pid:
    return Pid("directory", node)


def members_of(node: Node, group: str) -> list[Pid]:
    """Who is in a group, those of this node first."""
    answered: Members = node.call(directory_of(node.node_id), Who(group))
    return sorted(answered.members, key=lambda pid: (pid.node != node.node_id, pid))
