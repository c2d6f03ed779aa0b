"""Chain replication over three nodes: what was written is the same everywhere, in the same order.

Writes go to the head of the chain, from link to link, and are answered by its tail, when all have
them (van Renesse and Schneider 2004, "Chain replication for supporting high throughput and
availability"). Then the link in the middle is killed while writes are under way: the head is given
the tail as its successor, sends again what was not acknowledged, and no write is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nodes import NodeProcess

import rabble
from rabble import (
    CorrelationId,
    Envelope,
    Mailbox,
    Mesh,
    Node,
    NodeDown,
    NodeUp,
    Output,
    Pid,
    Process,
    SubscribeNodes,
)

WRITES = 200


@rabble.message(name="chain_replication.Write")
class Write:
    """Asks the head to write; the tail answers with the number of the write."""

    value: int


@rabble.message(name="chain_replication.Update")
class Update:
    """A write on its way down the chain."""

    number: int
    value: int
    client: Pid | None
    correlation_id: CorrelationId | None


@rabble.message(name="chain_replication.Written")
class Written:
    """Goes up the chain: all links have the writes up to this number."""

    number: int


@rabble.message(name="chain_replication.Successor")
class Successor:
    """Tells a link who follows it now."""

    link: Pid


@rabble.message(name="chain_replication.GetHistory")
class GetHistory:
    """Asks a link for all that was written, in order."""


class Link(Process):
    """One link of the chain; without a successor its tail."""

    def __init__(self, successor: Pid | None = None) -> None:
        self.successor = successor
        self.predecessor: Pid | None = None
        self.history: list[int] = []
        #: What the tail may not have yet, in order.
        self.under_way: list[Update] = []

    def init(self) -> Output:
        return Envelope(self.executor, SubscribeNodes())

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Write(value):
                return self.write(Update(len(self.history) + 1, value, sender, correlation_id))
            case Update(number):
                self.predecessor = sender
                if number == len(self.history) + 1:
                    return self.write(msg)
                if number <= len(self.history) and self.successor is None:
                    # It comes again, since nobody knew that it had come.
                    return self.written(number)
                # What should be before it was lost on the way; both come again.
            case Written(number):
                return self.written(number)
            case Successor(link):
                self.successor = link
                return self.again()
            case NodeUp(node, _) if self.successor is not None and node == self.successor.node:
                return self.again()
            case GetHistory() if sender is not None:
                return Envelope(sender, list(self.history), correlation_id=correlation_id)
            case _:
                pass
        return None

    def write(self, update: Update) -> Output:
        self.history.append(update.value)
        if self.successor is not None:
            self.under_way.append(update)
            return Envelope(self.successor, update)
        answer = self.written(update.number)
        if update.client is not None:
            number, request = update.number, update.correlation_id
            answer.append(Envelope(update.client, number, correlation_id=request))
        return answer

    def again(self) -> Output:
        """Send what the successor may have missed."""
        link = self.successor
        return [] if link is None else [Envelope(link, update) for update in self.under_way]

    def written(self, number: int) -> list[Envelope]:
        self.under_way = [update for update in self.under_way if update.number > number]
        return [] if self.predecessor is None else [Envelope(self.predecessor, Written(number))]


def start(node: Node) -> None:
    """For `rabble node --app chain_replication:start`: links may be spawned here."""
    node.export("link", Link)


async def write_all(node: Node, head: Pid, values: range) -> list[int]:
    """Write all at once. Returns the numbers that the writes got."""
    calls = (node.call_async(head, Write(value), timeout=60) for value in values)
    numbers: list[int] = await asyncio.gather(*calls)
    return numbers


async def write_while_one_is_killed(
    node: Node, head: Pid, tail: Pid, middle: NodeProcess, news: Mailbox
) -> None:
    writes = asyncio.create_task(write_all(node, head, range(WRITES, 2 * WRITES)))
    # Two turns of the loop, until the writes are sent.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    middle.kill()
    told = (await asyncio.to_thread(news.receive, 60)).msg
    if not isinstance(told, NodeDown):
        raise SystemExit(f"not down, but {told}")
    print(f"{told.node.name} is down; {head.name} is followed by {tail.name} now")
    node.send(head, Successor(tail))
    print(f"{len(await writes)} writes are answered")


def main() -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", "chain_replication:start") as b,
        NodeProcess("c@127.0.0.1:0", "chain_replication:start") as c,
        node.mailbox() as news,
    ):
        node.subscribe_nodes(news.pid)
        node.join(b.node_id)
        node.join(c.node_id)
        for _ in range(2):
            news.receive(timeout=60)

        tail = node.spawn_on(c.node_id, "link", "tail", None)
        middle = node.spawn_on(b.node_id, "link", "middle", tail)
        head = node.spawn(Link(middle), "head")
        links = [head, middle, tail]
        print(*(f"{link.name} on {link.node.name}" for link in links), sep=", ")

        numbers = asyncio.run(write_all(node, head, range(WRITES)))
        print(f"{len(numbers)} writes are answered")
        compare(node, links)

        asyncio.run(write_while_one_is_killed(node, head, tail, b, news))
        compare(node, [head, tail])


def compare(node: Node, links: list[Pid]) -> None:
    """Ask all links for what was written."""
    histories = [node.call(link, GetHistory()) for link in links]
    if any(history != histories[0] for history in histories):
        raise SystemExit("the histories differ")
    print(f"{len(links)} histories of {len(histories[0])} writes are equal")


if __name__ == "__main__":
    main()
