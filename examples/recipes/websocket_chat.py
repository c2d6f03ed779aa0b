"""A chat over WebSockets: each process is a node that serves clients, and rooms are on all nodes.

    python websocket_chat.py one@127.0.0.1:4001 --port 8001
    python websocket_chat.py two@127.0.0.1:4002 --port 8002 --join 127.0.0.1:4001

A client connects to ws://127.0.0.1:8001/ROOM/NAME, sends lines, and is sent those of all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import rabble
from rabble import Group, GroupChanged, Mailbox, Mesh, Node, Pid

#: What may wait for a client that does not read. What exceeds that it misses.
LINES_MAX = 1_000


@rabble.message(name="chat.Said")
class Said:
    """Somebody in a room says something."""

    text: str


async def push(mailbox: Mailbox, room: Group, socket: ServerConnection) -> None:
    """Send a client what comes for it, as fast as it reads."""
    async for envelope in mailbox:
        room.takes(envelope.msg)
        for line in lines(envelope.msg, envelope.sender):
            await socket.send(line)


def lines(msg: Said | GroupChanged, sender: Pid | None) -> list[str]:
    match msg:
        case Said(text) if sender is not None:
            return [f"{sender.name}: {text}"]
        case GroupChanged(_, joined, left):
            return [
                *(f"{pid.name} comes in" for pid in joined),
                *(f"{pid.name} is gone" for pid in left),
            ]
        case _:
            return []


async def serve_client(node: Node, socket: ServerConnection) -> None:
    """A client is a mailbox, which is a member of the room for as long as the client is there."""
    assert socket.request is not None
    try:
        _, room_name, name = socket.request.path.split("/")
        mailbox = node.mailbox(name, room_name, envelopes_max=LINES_MAX)
    except ValueError as error:
        # Another path, a name that cannot be one, or one that somebody has.
        await socket.close(1008, str(error)[:100])
        return
    with mailbox:
        members = await node.groups.subscribe_async(room_name, mailbox.pid)
        room = Group(room_name, members=members)
        await socket.send(f"here: {' '.join(pid.name for pid in members)}")
        await node.groups.join_async(room_name, mailbox.pid)
        pushing = asyncio.create_task(push(mailbox, room, socket))
        try:
            async for text in socket:
                for member in room.members:
                    mailbox.send(member, Said(str(text)))
        finally:
            pushing.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await pushing


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("node_id")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--join", action="append", default=[])
    options = parser.parse_args()

    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    mesh = Mesh(cluster="chat", seeds=options.join)
    async with rabble.rouse(options.node_id, mesh=mesh) as node:

        async def client(socket: ServerConnection) -> None:
            await serve_client(node, socket)

        async with serve(client, "127.0.0.1", options.port) as server:
            (listener,) = server.sockets
            print("ready", node.node_id, listener.getsockname()[1], flush=True)
            await end.wait()


if __name__ == "__main__":
    asyncio.run(main())
