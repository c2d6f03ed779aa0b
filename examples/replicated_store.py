"""A key-value store with a replica on each of three nodes, which goes on as long as two live.

A client may ask any replica. That one asks all for what they have, and then gives all the latest of
it, or the client's value as a later one; each time it waits for a majority. So whoever reads
afterwards, anywhere, finds that or something later (Attiya, Bar-Noy and Dolev 1995, "Sharing memory
robustly in message-passing systems"; Lynch and Shvartsman 1997 for several writers).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nodes import NodeProcess, wait_until

import rabble
from rabble import (
    Ask,
    CorrelationId,
    Envelope,
    Failed,
    Group,
    JoinGroup,
    Mesh,
    Node,
    Output,
    Pid,
    Process,
    Reply,
    Request,
    reply,
)

REPLICAS = 3
MAJORITY = REPLICAS // 2 + 1
NO_MAJORITY = "no majority"

#: A number, the name of the node that gave it, and the value. The greater one is the later one.
Version = tuple[int, str, str | None]


@rabble.message(name="replicated_store.Get")
class Get(Request[str | None]):
    """Asks a replica for a value; answered with `NO_MAJORITY` if it cannot ask enough others."""

    key: str


@rabble.message(name="replicated_store.Put")
class Put(Request[str | None]):
    """Gives a replica a value for all, and is answered with it, or as `Get` is."""

    key: str
    value: str


@rabble.message(name="replicated_store.Read")
class Read:
    """Asks a replica for its `Version`."""

    key: str


@rabble.message(name="replicated_store.Write")
class Write:
    """Gives a replica a version, which it keeps unless it has a later one, and answers with it."""

    key: str
    version: Version


@dataclasses.dataclass
class Round:
    """What a replica has asked all others for a client."""

    wanted: Get | Put
    client: Pid | None
    request: CorrelationId | None
    answers: list[Version]
    #: Whether it asks them to write, and no more what they have.
    is_last: bool = False
    failed: int = 0


class Replica(Process):
    """Has a version of each key, and asks all replicas for its clients."""

    def __init__(self) -> None:
        self.replicas = Group("replicas")
        self.versions: dict[str, Version] = collections.defaultdict(lambda: (0, "", None))
        self.number = 0

    def init(self) -> Output:
        join = JoinGroup("replicas")
        return [Envelope(self.executor, join), self.replicas.subscribe(self.executor)]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Get(key) | Put(key):
                return self.ask_all(Read(key), Round(msg, sender, correlation_id, []))
            case Read(key):
                return reply(self.versions[key], sender, correlation_id)
            case Write(key, version):
                self.versions[key] = max(self.versions[key], version)
                return reply(version, sender, correlation_id)
            case Reply(Round() as asked, version):
                asked.answers.append(version)
                if len(asked.answers) == MAJORITY:
                    return self.go_on(asked, max(asked.answers))
            case Failed(Round() as asked):
                asked.failed += 1
                if asked.failed == REPLICAS - MAJORITY + 1:
                    return reply(NO_MAJORITY, asked.client, asked.request)
            case "how many are you?":
                return reply(len(self.replicas), sender, correlation_id)
            case _:
                self.replicas.takes(msg)
        return None

    def ask_all(self, msg: Read | Write, asked: Round) -> Output:
        asked.failed = REPLICAS - len(self.replicas)
        if len(self.replicas) < MAJORITY:
            return reply(NO_MAJORITY, asked.client, asked.request)
        members = self.replicas.members
        return [Envelope(self.executor, Ask(member, msg, 5_000, asked)) for member in members]

    def go_on(self, asked: Round, version: Version) -> Output:
        """A majority has answered, and this is the latest version that any of them has."""
        if asked.is_last:
            return reply(version[2], asked.client, asked.request)
        if isinstance(asked.wanted, Put):
            self.number = max(self.number, version[0]) + 1
            version = self.number, self.node_id.name, asked.wanted.value
        last = Round(asked.wanted, asked.client, asked.request, [], is_last=True)
        return self.ask_all(Write(asked.wanted.key, version), last)


def start(node: Node) -> None:
    """For `rabble node --app replicated_store:start`."""
    node.spawn(Replica(), "replica")


# Trying it out.


def run(start: Callable[[Node], None], app: str, members: Callable[[Node], Sequence[Pid]]) -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", app) as b,
        NodeProcess("c@127.0.0.1:0", app) as c,
    ):
        start(node)
        node.join(b.node_id)
        node.join(c.node_id)

        def all_met() -> bool:
            """Every replica knows the others."""
            counts = [node.call(each, "how many are you?") for each in members(node)]
            return counts == [REPLICAS] * REPLICAS

        wait_until(all_met)
        replicas = members(node)
        for number, replica in enumerate(replicas):
            print(f"{replica.node.name} writes", node.call(replica, Put("x", f"value {number}")))
        print("all read", *{node.call(replica, Get("x")) for replica in replicas})
        b.kill()
        print("b is killed, and a writes", node.call(replicas[0], Put("x", "value 3")))
        print("c reads", node.call(replicas[2], Get("x")))
        c.kill()
        print("c is killed, and a reads:", node.call(replicas[0], Get("x")))


if __name__ == "__main__":
    run(start, "replicated_store:start", lambda node: node.groups.members("replicas"))
