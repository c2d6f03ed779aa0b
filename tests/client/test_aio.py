"""What is of the asyncio client alone: cancellation, loops, one dial for all."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import Any

import pytest

from rabble.client import ClientClosed, ClientLimits, ConnectionLost
from rabble.errors import CallTimeout
from tests.client.servers import PatientAsyncClient as AsyncClient
from tests.client.servers import Peer, Script, requests


def test_cancelling_a_task_loses_nothing_of_others():
    asked = threading.Event()
    goes_on = threading.Event()

    def serve(peer: Peer) -> None:
        got = list(requests(peer, 10))
        asked.set()
        assert goes_on.wait(60)
        for request_id, msg in got:
            peer.send(0, request_id, msg)
        peer.echo()

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            tasks = [asyncio.create_task(client.call(n, timeout=60)) for n in range(10)]
            await asyncio.to_thread(asked.wait, 60)
            for task in tasks[::2]:
                task.cancel()
            # The answers come before the tasks that were cancelled have had their turn.
            goes_on.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert found[1::2] == [1, 3, 5, 7, 9]
            assert all(isinstance(each, asyncio.CancelledError) for each in found[::2])
            assert await client.call("more") == "more"

    with Script(serve) as server:
        asyncio.run(main())
    assert server.connections == 1


def test_one_dial_is_everybodys_and_who_is_cancelled_leaves_it_to_the_others():
    async def main() -> None:
        async with AsyncClient(server.address) as client:
            tasks = [asyncio.create_task(client.call(n, timeout=60)) for n in range(10)]
            await asyncio.sleep(0)
            for task in tasks[:5]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert found[5:] == list(range(5, 10))

    with Script(Peer.echo) as server:
        asyncio.run(main())
    assert server.connections == 1


def test_a_dial_that_nobody_waits_for_any_more_fails_in_silence(caplog):
    async def main() -> None:
        client = AsyncClient("127.0.0.1:1")
        task = asyncio.create_task(client.call(1))
        await asyncio.sleep(0)
        dial = client._dial
        task.cancel()
        assert dial is not None
        await asyncio.wait([task, dial])
        assert isinstance(dial.exception(), ConnectionLost)
        await client.close()

    asyncio.run(main(), debug=True)
    assert "never retrieved" not in caplog.text


def test_closing_ends_a_dial_and_who_waits_for_it():
    async def main() -> None:
        # The server takes the connection, and says nothing to the TLS handshake.
        client = AsyncClient(
            server.address,
            tls=ssl.create_default_context(),
            limits=ClientLimits(connect_ms=60_000),
        )
        task = asyncio.create_task(client.call(1, timeout=60))
        await asyncio.to_thread(came.wait, 60)
        await client.close()
        with pytest.raises(ClientClosed):
            await task

    came = threading.Event()

    def serve(peer: Peer) -> None:
        came.set()
        peer.file.read()

    with Script(serve) as server:
        asyncio.run(main())


def test_it_belongs_to_one_loop():
    async def call() -> Any:
        return await client.call(1)

    async def close() -> None:
        await client.close()

    with Script(Peer.echo) as server:
        client = AsyncClient(server.address)

        async def main() -> None:
            assert await call() == 1
            with pytest.raises(RuntimeError, match="one event loop"):
                await asyncio.to_thread(asyncio.run, call())
            await close()

        asyncio.run(main())


def test_what_is_sent_before_the_close_arrives():
    got: list[Any] = []

    def serve(peer: Peer) -> None:
        while (said := peer.frame()) is not None:
            got.append(said[1])

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            for n in range(100):
                await client.send([n, bytes(10_000)])

    with Script(serve) as server:
        asyncio.run(main())
        server.join_first()
    assert [n for n, _ in got] == list(range(100))


def test_a_server_that_never_reads_does_not_hold_up_the_close():
    holds = threading.Event()

    def serve(peer: Peer) -> None:
        assert holds.wait(60)

    async def main() -> None:
        client = AsyncClient(server.address, limits=ClientLimits(connect_ms=500))
        with pytest.raises(CallTimeout):
            while True:
                await client.send(bytes(1 << 20), timeout=0.2)
        await asyncio.wait_for(client.close(), 60)
        holds.set()

    with Script(serve) as server:
        asyncio.run(main())


def test_pushes_wait_for_the_next_one():
    goes_on = threading.Event()

    def serve(peer: Peer) -> None:
        assert goes_on.wait(60)
        for n in range(3):
            peer.send(3, n)
        peer.ended()

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            asyncio.get_running_loop().call_later(0.01, goes_on.set)
            got = []
            async for push in client.pushes():
                got.append(push)
                if len(got) == 3:
                    break
            assert got == [0, 1, 2]

    with Script(serve) as server:
        asyncio.run(main())
