"""`examples/chat.py` without names, groups and mailboxes of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import chat
from chat import Say
from membership import Directory, Join, Members, Watch, Who, directory_of
from pushing import AsyncBox

from rabble import CorrelationId, Envelope, Node, Output, Pid, Process


class Room(Process):
    """Tells everybody what anybody says."""

    def __init__(self) -> None:
        self.guests: list[Pid] = []

    def init(self) -> Output:
        directory = directory_of(self.node_id)
        return [Envelope(directory, Join("room")), Envelope(directory, Watch("guests"))]

    def receive(
        self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Iterator[Envelope]:
        if isinstance(msg, Say) and sender is not None:
            yield from self.tell(f"{sender.name}: {msg.text}")
        elif isinstance(msg, Members):
            before, self.guests = self.guests, msg.members
            for guest in self.guests:
                if guest not in before:
                    yield from self.tell(f"{guest.name} comes in")
            for guest in before:
                if guest not in self.guests:
                    yield from self.tell(f"{guest.name} is gone")

    def tell(self, line: str) -> list[Envelope]:
        return [Envelope(guest, line) for guest in self.guests]


async def show(guest: AsyncBox, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for heard in guest:
            if heard != "joined":
                writer.write(f"{heard}\n".encode())
                await writer.drain()
    writer.close()


async def serve(node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = (await reader.readline()).decode().strip()
    directory = directory_of(node.node_id)
    rooms = (await node.call_async(directory, Who("room"))).members
    with AsyncBox(node, name, 1_000) as guest:
        guest.send(directory, Join("guests"))
        showing = asyncio.create_task(show(guest, writer))
        async for line in reader:
            if rooms:
                guest.send(rooms[0], Say(line.decode().strip()))
    await showing


async def open_room(nodes: list[Node]) -> None:
    for node in nodes:
        directory = node.spawn(Directory(), "directory")
        await node.call_async(directory, Who("room"))
    nodes[0].spawn(Room(), "room")
    for node in nodes:
        with AsyncBox(node, "opening", 1_000) as box:
            box.send(directory_of(node.node_id), Watch("room"))
            async for told in box:
                if told.members:
                    break


# Trying it out.


if __name__ == "__main__":
    asyncio.run(chat.run(open_room, serve))
