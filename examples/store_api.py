"""The store of cas_store.py for any program: a server on each node that speaks lines of JSON.

docs/examples.md shows it in four terminals, with `rabble node NAME@HOST:PORT --app store_api:start`
and `nc`. By itself this script is one node, starts two others, and asks all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Generator
from typing import Any

from cas_store import CompareAndSet, CountReplicas, Get, Put, Replica
from nodes import NodeProcess, wait_until

import rabble
from rabble import Mesh, Node, Pid
from rabble.client import AsyncClient, Client, JsonLines, Nack, RetryPolicy
from rabble.services import server as servers
from rabble.services.gate import GradientGate, GradientPolicy
from rabble.services.server import (
    CloseConnection,
    ConnectionHandler,
    Fail,
    RequestId,
    ServerOutput,
    TcpServer,
    ask,
)

#: Requests that a server has begun at once, at most. Others are refused, until some have ended.
REQUESTS_MAX = 64
USAGE = (
    'say {"get": KEY}, {"put": KEY, "value": VALUE}, {"delete": KEY}, '
    '{"cas": KEY, "old": VALUE, "new": VALUE} or "health"; a VALUE is a string, or null'
)


class Api(ConnectionHandler):
    """One client. What it says is looked at here, so the store is asked nothing else."""

    def __init__(self, replica: Pid) -> None:
        self.replica = replica

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        if request is None:
            return CloseConnection("malformed")
        match msg:
            case {"get": str(key)}:
                return ask(self.replica, Get(key), request)
            case {"put": str(key), "value": str() | None as value}:
                return ask(self.replica, Put(key, value), request)
            case {"delete": str(key)}:
                return ask(self.replica, Put(key, None), request)
            case {"cas": str(key), "old": str() | None as old, "new": str() | None as new}:
                return ask(self.replica, CompareAndSet(key, old, new), request)
            case "health":
                return ask(self.replica, CountReplicas(), request, timeout_ms=1_000)
            case _:
                return Fail(request, "failed", USAGE)


def serve(node: Node) -> TcpServer:
    """A replica and its server, which listens where `API` of the environment says."""
    replica = node.spawn(Replica(), "replica")
    # By the latency of requests: what they wait for is other nodes, not this executor.
    gate = GradientGate(GradientPolicy(limit_max=REQUESTS_MAX), random.Random().uniform)
    bind = os.environ.get("API", "127.0.0.1:0")
    return TcpServer(node, lambda: Api(replica), bind, codec=servers.JsonLines, gate=gate)


def start(node: Node) -> TcpServer:
    """For `rabble node --app store_api:start`, which closes the server at the end."""
    server = serve(node)
    print("clients connect to", server.address, flush=True)
    return server


# Trying it out.


def connect(address: str) -> Client:
    return Client(address, framing=JsonLines, retry=RetryPolicy())


def count_by_cas(servers: list[str], times: int) -> None:
    """Each of several clients, at another server each, adds ones to the same value."""

    async def count(address: str) -> None:
        async with AsyncClient(address, framing=JsonLines) as client:
            value = None
            for _ in range(times):
                while True:
                    new = str(int(value or 0) + 1)
                    asked = {"cas": "count", "old": value, "new": new}
                    outcome = await client.call(asked, timeout=60)
                    value = outcome["value"]
                    if outcome["done"]:
                        break

    async def all_count() -> None:
        await asyncio.gather(*map(count, servers))

    asyncio.run(all_count())


@contextlib.contextmanager
def standing_still(nodes: list[NodeProcess]) -> Generator[None, None, None]:
    """They are there, and do nothing."""
    for node in nodes:
        node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for node in nodes:
            node.process.send_signal(signal.SIGCONT)


def overload(address: str, others: list[NodeProcess]) -> None:
    """Ask more than can be done, as the replicas of a majority stand still for a moment."""

    async def ask_all() -> None:
        async with AsyncClient(address, framing=JsonLines) as client:
            with standing_still(others):
                asked = [asyncio.create_task(client.call({"get": "x"})) for _ in range(100)]
                health = await client.call("health", priority=1)
                await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
            answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer.retry_after for answer in answers if isinstance(answer, Nack)]
        print("two stand still; a health check is answered:", health)
        print("some of 100 are refused, to come again later:", min(refused) > 0)

    asyncio.run(ask_all())


def main() -> None:
    with (
        rabble.rouse("a@127.0.0.1:0", mesh=Mesh()) as node,
        NodeProcess("b@127.0.0.1:0", "store_api:start") as b,
        NodeProcess("c@127.0.0.1:0", "store_api:start") as c,
        serve(node) as server,
        connect(server.address) as at_a,
        connect(b.address) as at_b,
        connect(c.address) as at_c,
    ):
        node.join(b.node_id)
        node.join(c.node_id)

        def all_met() -> bool:
            """Every replica knows the others."""
            counts = [client.call("health") for client in (at_a, at_b, at_c)]
            return counts == [{"replicas": 3}] * 3

        wait_until(all_met)
        print("a puts", at_a.call({"put": "x", "value": "red"}))
        print("b gets", at_b.call({"get": "x"}))
        print("c sets", at_c.call({"cas": "x", "old": "red", "new": "blue"}))
        print("a does not", at_a.call({"cas": "x", "old": "red", "new": "green"}))

        count_by_cas([server.address, b.address, c.address], 20)
        print("three clients count to 20 each:", at_a.call({"get": "count"})["value"])

        overload(server.address, [b, c])
        c.kill()
        print("c is killed, and b deletes", at_b.call({"delete": "x"}, timeout=60))
        b.kill()
        print("b is killed, and a gets", at_a.call({"get": "x"}, timeout=60))


if __name__ == "__main__":
    main()
