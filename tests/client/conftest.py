"""Both clients by one interface: what a test says of one holds for the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client.servers import PatientAsyncClient, PatientClient


class Looped:
    """An `AsyncClient` in a thread with its event loop, called as a `Client` is."""

    def __init__(self, *addresses: str, **arguments: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.client = PatientAsyncClient(*addresses, **arguments)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(100)

    def call(self, *arguments: Any, **named: Any) -> Any:
        return self.run(self.client.call(*arguments, **named))

    def send(self, *arguments: Any, **named: Any) -> None:
        self.run(self.client.send(*arguments, **named))

    def pushes(self, *arguments: Any, **named: Any) -> Iterator[Any]:
        async def begin() -> Any:
            return self.client.pushes(*arguments, **named)

        def iterate(pushes: Any) -> Iterator[Any]:
            while True:
                try:
                    yield self.run(anext(pushes))
                except StopAsyncIteration:
                    return

        return iterate(self.run(begin()))

    @property
    def late(self) -> int:
        connection = self.client._connection
        assert connection is not None
        return connection.late

    @property
    def is_lost(self) -> bool:
        """Whether the client knows that its connection has ended."""
        connection = self.client._connection
        return connection is not None and connection.is_over

    def close(self) -> None:
        self.run(self.client.close())

    def stop(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(concurrent.futures.CancelledError):
            self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Threaded(PatientClient):
    @property
    def late(self) -> int:
        assert self._connection is not None
        return self._connection.late

    @property
    def is_lost(self) -> bool:
        return self._connection is not None and not self._connection.look()

    def stop(self) -> None:
        pass


@pytest.fixture(params=[Threaded, Looped], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client, which is closed at the end."""
    made: list[Any] = []

    def make(*addresses: str, **arguments: Any) -> Any:
        made.append(request.param(*addresses, **arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.stop()
