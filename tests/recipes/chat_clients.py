"""The clients of test_websockets.py, run where the library `websockets` is.

    python chat_clients.py PORT PORT PORT

It prints what it has seen to be so.
"""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

LINES = 100
PATIENCE_S = 60


async def until(client: ClientConnection, wanted: set[str]) -> list[str]:
    """What a client is sent, up to the last of these lines."""
    seen = []
    missing = set(wanted)
    async with asyncio.timeout(PATIENCE_S):
        while missing:
            line = await client.recv()
            assert isinstance(line, str)
            seen.append(line)
            missing.discard(line)
    return seen


async def knows(client: ClientConnection, names: set[str]) -> None:
    """Wait until a client was told of these, each in whatever way."""
    missing = set(names)
    async with asyncio.timeout(PATIENCE_S):
        while missing:
            match str(await client.recv()).split():
                case ["here:", *there]:
                    missing -= set(there)
                case [name, "comes", "in"]:
                    missing.discard(name)


async def main() -> None:
    names = ("ann", "bob", "cem")
    there = dict(zip(names, sys.argv[1:], strict=True))
    clients: dict[str, ClientConnection] = {}
    for name, port in there.items():
        clients[name] = await connect(f"ws://127.0.0.1:{port}/lobby/{name}")
    for client in clients.values():
        await knows(client, set(names))
    print("all are in", flush=True)

    # The third one comes from another room, which hears nothing of this one.
    elsewhere = await connect(f"ws://127.0.0.1:{there['cem']}/attic/ann")
    assert await until(elsewhere, {"ann comes in"}) == ["here: ", "ann comes in"]

    for number in range(LINES):
        for name in ("ann", "bob"):
            await clients[name].send(str(number))
    last = {f"{name}: {LINES - 1}" for name in ("ann", "bob")}
    for client in clients.values():
        seen = await until(client, last)
        for name in ("ann", "bob"):
            said = [line for line in seen if line.startswith(name)]
            assert said == [f"{name}: {number}" for number in range(LINES)]
    print("all heard each in order", flush=True)

    async with connect(f"ws://127.0.0.1:{there['ann']}/lobby/ann") as second:
        try:
            await second.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            print(f"refused: {closed.rcvd.code} {closed.rcvd.reason}", flush=True)
    await elsewhere.send("is anybody here?")
    assert await until(elsewhere, {"ann: is anybody here?"}) == ["ann: is anybody here?"]

    await clients["bob"].close()
    assert await until(clients["ann"], {"bob is gone"}) == ["bob is gone"]
    print("bob is gone", flush=True)
    assert await until(clients["ann"], {"cem is gone"}) == ["cem is gone"]
    print("cem is gone", flush=True)
    await clients["ann"].send("alone")
    await until(clients["ann"], {"ann: alone"})
    try:
        await clients["ann"].recv()
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        print(f"the server ends: {closed.rcvd.code}", flush=True)


asyncio.run(main())
