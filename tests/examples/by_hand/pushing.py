"""A mailbox for asyncio by hand: a service whose thread hands over to an event loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import Any

from rabble import Envelope, Node, NodeStopped, Pid, Service, ServiceHandler


class Handler(ServiceHandler):
    """Runs in the service's thread."""

    def __init__(self, box: AsyncBox) -> None:
        self.box = box

    def handle_envelope(self, envelope: Envelope, service: Service) -> None:
        self.box.from_thread(self.box.take_in, envelope.msg)

    def close(self, service: Service) -> None:
        self.box.from_thread(self.box.end)


class AsyncBox:
    """What is sent to a pid of a node, for one task of the running loop: `async for`."""

    def __init__(self, node: Node, name: str, messages_max: int) -> None:
        self.node = node
        self.loop = asyncio.get_running_loop()
        self.messages: collections.deque[Any] = collections.deque()
        self.messages_max = messages_max
        self.dropped = 0
        self.ended = False
        self.changed = asyncio.Event()
        self.pid = node.register_service(Handler(self), name).pid

    def from_thread(self, function: Any, *arguments: Any) -> None:
        # The loop may be closed, with a message still on its way.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *arguments)

    def take_in(self, msg: Any) -> None:
        if len(self.messages) < self.messages_max:
            self.messages.append(msg)
            self.changed.set()
        else:
            self.dropped += 1

    def end(self) -> None:
        self.ended = True
        self.changed.set()

    def send(self, to: Pid, msg: Any) -> None:
        self.node.send(to, msg, sender=self.pid)

    def __aiter__(self) -> AsyncBox:
        return self

    async def __anext__(self) -> Any:
        while not self.messages:
            if self.ended:
                raise StopAsyncIteration
            self.changed.clear()
            await self.changed.wait()
        return self.messages.popleft()

    def __enter__(self) -> AsyncBox:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(NodeStopped):
            self.node.stop(self.pid)
