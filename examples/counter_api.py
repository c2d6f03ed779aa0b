"""A counter that is replicated over three nodes, with an API server on each for its clients.

Clients say how much they have counted so far, and each replica keeps the most that it has heard of
each client: a grow-only counter (Shapiro et al. 2011, "Conflict-free replicated data types") whose
parts are the clients'. So one that loses its server says the same to another, and nothing is
counted twice.

docs/examples.md shows it in four terminals, with `rabble node NAME@HOST:PORT --app
counter_api:start` and counter_client.py. By itself this script is one node and starts two others.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from counter_client import Counting
from counter_messages import Counted, GetTotal, Total, Watch
from nodes import NodeProcess

import rabble
from rabble import (
    CorrelationId,
    Envelope,
    Mesh,
    Node,
    NodeDown,
    NodeUp,
    Output,
    Pid,
    Process,
    SubscribeNodes,
    reply,
)
from rabble.client import Client
from rabble.services.server import (
    CloseConnection,
    ConnectionHandler,
    Fail,
    Push,
    RequestId,
    ServerOutput,
    TcpServer,
    ask,
)

TIMES = 100


@rabble.message(name="counter_api.Counts")
class Counts:
    """Tells another replica how much some clients have counted."""

    by_client: dict[str, int]


@rabble.message(name="counter_api.Unwatch")
class Unwatch:
    """Who watched is gone."""


class Counter(Process):
    """One replica."""

    def __init__(self) -> None:
        self.by_client: dict[str, int] = {}
        self.others: set[Pid] = set()
        #: Connections of this node's server: its pid, and the correlation id of each.
        self.watchers: set[tuple[Pid | None, CorrelationId | None]] = set()

    def init(self) -> Output:
        return Envelope(self.executor, SubscribeNodes())

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Counted(client, count):
                news = Counts({client: count})
                told = [Envelope(other, news) for other in self.others]
                return [*told, *self.learn(news), reply(self.total, sender, correlation_id)]
            case GetTotal():
                return reply(self.total, sender, correlation_id)
            case Counts():
                return self.learn(msg)
            case Watch():
                self.watchers.add((sender, correlation_id))
                return reply(self.total, sender, correlation_id)
            case Unwatch():
                self.watchers.discard((sender, correlation_id))
            case NodeUp(node, _):
                other = Pid(self.pid.name, node)
                self.others.add(other)
                return Envelope(other, Counts(dict(self.by_client)))
            case NodeDown(node, _):
                self.others.discard(Pid(self.pid.name, node))
            case _:
                pass
        return None

    def learn(self, counts: Counts) -> list[Envelope]:
        """Keep the most of each, and tell who watches if that is more than before."""
        before = self.total
        for client, count in counts.by_client.items():
            self.by_client[client] = max(count, self.by_client.get(client, 0))
        if self.total == before:
            return []
        return [reply(self.total, *watcher) for watcher in self.watchers]

    @property
    def total(self) -> Total:
        return Total(sum(self.by_client.values()))


class Api(ConnectionHandler):
    """One client, and what it may ask the replica of this node."""

    def __init__(self, counter: Pid) -> None:
        self.counter = counter

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        match msg:
            case Watch():
                return Envelope(self.counter, msg)
            case Counted() | GetTotal() if request is not None:
                return ask(self.counter, msg, request)
            case _ if request is not None:
                return Fail(request, "failed", "ask for Counted or GetTotal")
            case _:
                return CloseConnection("malformed")

    def handle_envelope(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> ServerOutput:
        return Push(msg)

    def closed(self, reason: str) -> ServerOutput:
        return Envelope(self.counter, Unwatch())


def serve(node: Node) -> TcpServer:
    """A replica and its server, which listens where `API` of the environment says."""
    counter = node.spawn(Counter(), "counter")
    return TcpServer(node, lambda: Api(counter), os.environ.get("API", "127.0.0.1:0"))


def start(node: Node) -> TcpServer:
    """For `rabble node --app counter_api:start`, which closes the server at the end."""
    server = serve(node)
    print("clients connect to", server.address, flush=True)
    return server


# Trying it out.


def watch_until(total: int, address: str) -> None:
    """Watch a server until it has this total."""
    with Client(address) as client:
        client.send(Watch())
        for push in client.pushes(timeout=60):
            if push == Total(total):
                return


def main() -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", "counter_api:start") as b,
        NodeProcess("c@127.0.0.1:0", "counter_api:start") as c,
        serve(node) as server,
        contextlib.ExitStack() as stack,
    ):
        node.join(b.node_id)
        node.join(c.node_id)
        servers = [server.address, b.address, c.address]
        # Each has all addresses, and another one first.
        people = [
            stack.enter_context(Counting(name, *servers[n:], *servers[:n]))
            for n, name in enumerate(("ann", "bob", "cem"))
        ]

        def count() -> None:
            for _ in range(TIMES):
                for each in people:
                    each.add(1)

        count()
        for address in servers:
            watch_until(3 * TIMES, address)
        print(f"three clients count to {TIMES} each: all servers come to {3 * TIMES}")

        c.kill()
        count()
        for address in servers[:2]:
            watch_until(6 * TIMES, address)
        print(f"c is killed, and its client goes on elsewhere: the others come to {6 * TIMES}")

        with NodeProcess(c.node_id, "counter_api:start") as later:
            watch_until(6 * TIMES, later.address)
            print(f"c is back, and comes to {6 * TIMES}")


if __name__ == "__main__":
    main()
