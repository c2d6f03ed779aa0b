"""A counter that is replicated over the nodes of a mesh, and survives that one of them is killed.

Each node has a replica. What is counted at one is told to all others, and who comes back is told
everything: a grow-only counter (Shapiro et al. 2011, "Conflict-free replicated data types").

The README shows it in three terminals, with `rabble node NAME@HOST:PORT --app mesh_counter:start`.
Run by itself, this script is one node and starts two others.
"""

from __future__ import annotations

from typing import Any

from nodes import NodeProcess, wait_until
from replicated_counter import GetTotal, Increment, Total

import rabble
from rabble import (
    CorrelationId,
    Envelope,
    Mesh,
    Node,
    NodeDown,
    NodeId,
    NodeUp,
    NotConnected,
    Output,
    Pid,
    Process,
    Service,
    ServiceHandler,
    StartTimer,
    SubscribeNodes,
    Timeout,
)

INCREMENTS = 20


@rabble.message(name="mesh_counter.Counts")
class Counts:
    """What one replica knows: how much was counted by each start of each replica."""

    by_start: dict[str, int]


class Counter(Process):
    """One replica."""

    def init(self) -> Output:
        # A name that is new with each start: the others still know what was counted under the one
        # before, and that is not to be counted anew.
        self.own = f"{self.node_id.name}-{self.random.getrandbits(64):x}"
        self.by_start = {self.own: 0}
        self.others: set[Pid] = set()
        return Envelope(self.executor, SubscribeNodes())

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Increment(by):
                self.by_start[self.own] += by
                news = Counts({self.own: self.by_start[self.own]})
                return [
                    *(Envelope(other, news) for other in self.others),
                    *self.total(sender, correlation_id),
                ]
            case GetTotal():
                return self.total(sender, correlation_id)
            case Counts(by_start):
                for start, count in by_start.items():
                    self.by_start[start] = max(count, self.by_start.get(start, 0))
            case NodeUp(node, _):
                other = Pid(self.pid.name, node)
                self.others.add(other)
                return Envelope(other, Counts(dict(self.by_start)))
            case NodeDown(node, _):
                self.others.discard(Pid(self.pid.name, node))
            case _:
                pass
        return None

    def total(self, to: Pid | None, correlation_id: CorrelationId | None) -> list[Envelope]:
        if to is None:
            return []
        return [Envelope(to, Total(sum(self.by_start.values())), correlation_id=correlation_id)]


class Ticker(Process):
    """Counts one each second, and has the total printed."""

    def __init__(self, counter: Pid, printer: Pid) -> None:
        self.counter = counter
        self.printer = printer

    def init(self) -> Output:
        return Envelope(self.executor, StartTimer(CorrelationId(self.pid), 1000))

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Timeout():
                return [
                    Envelope(self.counter, Increment(1)),
                    Envelope(self.executor, StartTimer(CorrelationId(self.pid), 1000)),
                ]
            case Total(value):
                return Envelope(self.printer, f"{self.node_id.name}: the total is {value}")
            case _:
                pass
        return None


class Printer(ServiceHandler):
    """Prints what it is sent: processes do no I/O."""

    def handle_envelope(self, envelope: Envelope, service: Service) -> None:
        print(envelope.msg, flush=True)


def replica(node: Node) -> None:
    """For `rabble node --app mesh_counter:replica`: counts what it is told."""
    node.spawn(Counter(), "counter")


def start(node: Node) -> None:
    """For `rabble node --app mesh_counter:start`: counts one each second, too."""
    counter = node.spawn(Counter(), "counter")
    printer = node.register_service(Printer(), "printer")
    node.spawn(Ticker(counter, printer.pid), "ticker")


def main() -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", "mesh_counter:replica") as b,
        NodeProcess("c@127.0.0.1:0", "mesh_counter:replica") as c,
        node.mailbox() as news,
    ):
        replica(node)
        node.subscribe_nodes(news.pid)
        node.join(b.node_id)
        node.join(c.node_id)
        nodes = [node.node_id, b.node_id, c.node_id]
        for _ in range(2):
            news.receive(timeout=60)
        print("members:", *(member.name for member in node.cluster_status().members))

        def increment(times: int, where: list[NodeId]) -> None:
            for each in where:
                for _ in range(times):
                    node.call(Pid("counter", each), Increment(1))

        def agree(where: list[NodeId], wanted: int) -> None:
            def all_have_it() -> bool:
                counters = [Pid("counter", each) for each in where]
                return all(node.call(pid, GetTotal()).value == wanted for pid in counters)

            wait_until(all_have_it)
            print(", ".join(f"{each.name} has {wanted}" for each in where))

        increment(INCREMENTS, nodes)
        agree(nodes, 3 * INCREMENTS)

        c.kill()
        match news.receive(timeout=60).msg:
            case NodeDown(gone, incarnation) if (gone, incarnation) == (c.node_id, c.incarnation):
                print("c was killed: it is down")
            case _:
                pass
        try:
            node.call(Pid("counter", c.node_id), Increment(1))
        except NotConnected:
            print("what is said to it now is not kept for it")
        increment(INCREMENTS, nodes[:2])
        agree(nodes[:2], 5 * INCREMENTS)

        with NodeProcess(c.node_id, "mesh_counter:replica") as later:
            match news.receive(timeout=60).msg:
                case NodeUp(back, incarnation) if back == c.node_id:
                    if c.incarnation < incarnation == later.incarnation:
                        print("c is back: it is up, with a later incarnation")
                case _:
                    pass
            agree(nodes, 5 * INCREMENTS)
            increment(INCREMENTS, [later.node_id])
            agree(nodes, 6 * INCREMENTS)


if __name__ == "__main__":
    main()
