"""A chat over three nodes: an asyncio server on each, for plain TCP clients, and one room for all.

The room is a process, which any node finds by its name; whoever is connected, to whatever node, is
a mailbox in a group. All hear the same, in the same order, and who comes and goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator

import rabble
from rabble import (
    CorrelationId,
    Envelope,
    Group,
    GroupChanged,
    GroupMembers,
    Mailbox,
    Mesh,
    Node,
    Output,
    Pid,
    Process,
)


@rabble.message(name="chat.Say")
class Say:
    """Something to be said to all."""

    text: str


Heard = Say | GroupMembers | GroupChanged


class Room(Process[Heard]):
    """Tells everybody what anybody says."""

    def __init__(self) -> None:
        self.guests = Group("guests")

    def init(self) -> Output:
        return self.guests.subscribe(self.executor)

    def receive(
        self, msg: Heard, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        self.guests.takes(msg)
        if isinstance(msg, Say) and sender is not None:
            yield from self.guests.to_all(f"{sender.name}: {msg.text}")
        elif isinstance(msg, GroupChanged):
            for guest in msg.joined:
                yield from self.guests.to_all(f"{guest.name} comes in")
            for guest in msg.left:
                yield from self.guests.to_all(f"{guest.name} is gone")


async def show(guest: Mailbox, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for heard in guest:
            writer.write(f"{heard.msg}\n".encode())
            await writer.drain()
    writer.close()


async def serve(node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a client of a node: it says its name, and then what there is to say."""
    name = (await reader.readline()).decode().strip()
    room = await node.names.whereis_async("room")
    with node.mailbox(name, envelopes_max=1_000) as guest:
        await node.groups.join_async("guests", guest.pid)
        showing = asyncio.create_task(show(guest, writer))
        async for line in reader:
            if room is not None:
                guest.send(room, Say(line.decode().strip()))
    await showing


async def open_room(nodes: list[Node]) -> None:
    """On the first of them. Returns when all know of it."""
    await nodes[0].names.register_async("room", nodes[0].spawn(Room(), "room"))


# Trying it out.


class Client:
    """What somebody has who connects to a node, as `nc` would be."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def come(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.say(self.name)

    def say(self, text: str) -> None:
        self.writer.write(f"{text}\n".encode())

    async def hear(self) -> str:
        return (await self.reader.readline()).decode().strip()

    async def leave(self) -> None:
        with contextlib.suppress(OSError):  # the server may have gone
            self.writer.write_eof()
            await self.reader.read()
        self.writer.close()
        await self.writer.wait_closed()


async def hear(clients: list[Client]) -> None:
    """Have all hear one line, and print it."""
    lines = {await client.hear() for client in clients}
    if len(lines) > 1:
        raise SystemExit(f"they heard different things: {lines}")
    print(*lines)


Served = Callable[[Node, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def run(open_room: Callable[[list[Node]], Awaitable[None]], serve: Served) -> None:
    async with contextlib.AsyncExitStack() as stack:
        a, b, c = nodes = [
            await stack.enter_async_context(rabble.rouse(f"{name}@127.0.0.1:0", mesh=Mesh()))
            for name in "abc"
        ]
        with a.mailbox() as news:
            a.subscribe_nodes(news.pid)
            for other in (b, c):
                a.join(other.node_id)
                await news.receive_async(timeout=60)
        await open_room(nodes)
        ports: list[int] = []
        for node in nodes:
            server = await asyncio.start_server(functools.partial(serve, node), "127.0.0.1", 0)
            stack.callback(server.close)
            ports.append(server.sockets[0].getsockname()[1])

        names = ("ann", "bob", "cem")
        ann, bob, cem = clients = [Client(*each) for each in zip(names, ports, strict=True)]
        for number, client in enumerate(clients):
            await client.come()
            await hear(clients[: number + 1])
        bob.say("good evening")
        await hear(clients)
        cem.say("hello from a node that is about to end")
        await hear(clients)
        # Whoever dials it from now on would warn that it is refused.
        logging.getLogger("rabble").setLevel(logging.ERROR)
        await c.shutdown_async()
        await hear([ann, bob])
        await cem.leave()
        await bob.leave()
        await hear([ann])
        ann.say("where are you all?")
        await hear([ann])
        await ann.leave()


if __name__ == "__main__":
    asyncio.run(run(open_room, serve))
