"""`AsyncClient`: the client for asyncio."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar, overload

from rabble.client.addresses import ServerAddress, parse_addresses
from rabble.client.arguments import check_arguments
from rabble.client.dialling import Dialling, Uniform
from rabble.client.errors import (
    ClientClosed,
    ConnectionLost,
    ForkedClient,
    Nack,
    ProtocolError,
)
from rabble.client.events import Answer, Event, Goodbye, Push, Undecoded, error_of
from rabble.client.framing import Framing, MsgpackFrames
from rabble.client.limits import ClientLimits
from rabble.client.protocol import ClientProtocol
from rabble.client.pushes import PushBuffer, missed_end
from rabble.client.retries import RetryPolicy
from rabble.client.sockets import prepare
from rabble.errors import CallTimeout
from rabble.registry import MessageRegistry, default_registry
from rabble.request import Replied, Request
from rabble.timeouts import checked_timeout

__all__ = ["AsyncClient"]

Result = TypeVar("Result")
Reply = asyncio.Future[Any]


class AsyncConnection(asyncio.Protocol):
    """One connection, and the futures that wait for what comes by it. For its loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: ClientProtocol[Reply],
        pushes: PushBuffer,
        limits: ClientLimits,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._protocol = protocol
        self._pushes = pushes
        self._limits = limits
        self._clock = clock
        self._transport: Any = None
        #: Set while there is room to write; set when a push came; both when it is over.
        self._room = asyncio.Event()
        self._news = asyncio.Event()
        self._room.set()
        self.is_over = False
        #: Whether who takes pushes was told so.
        self.end_told = False
        self.ended_at = 0.0
        self.reason = ""
        self.code = ""
        self._cause: Exception | None = None
        #: Done when the transport has let go of the socket.
        self.gone: asyncio.Future[None] = loop.create_future()

    @property
    def late(self) -> int:
        """Answers that came when nobody waited for them any more."""
        return self._protocol.late

    # What the event loop calls.

    def connection_made(self, transport: Any) -> None:
        """As of `asyncio.Protocol`, and so are the next five."""
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.out_bytes_max)
        prepare(transport.get_extra_info("socket"), self._limits)
        if self.is_over:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._protocol.feed(data)
        try:
            for waiter, event in self._protocol.events():
                self._handle(waiter, event)
        except ProtocolError as error:
            self.end(f"the server does not keep to the protocol: {error}", cause=error)

    def eof_received(self) -> None:
        self.end(f"the server closed the connection{self._protocol.doubt(is_over=True)}")

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection broke" + (f": {error}" if error else ""), cause=error)
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # What tasks call.

    async def request(self, msg: Any, priority: int, deadline: float) -> Any:
        """Ask, and wait for the answer.

        :param deadline: by the loop's clock.
        """
        await self._writable(deadline)
        if self._protocol.is_stuck:
            self.end("the server answers none of the requests in flight")
            raise self.error(sent=False)
        future: Reply = self._loop.create_future()
        request_id, frame = self._protocol.request(future, msg, priority)
        self._transport.write(frame)
        timer = self._loop.call_at(deadline, self._expire, future)
        try:
            return await future
        finally:
            # Its time was over, or the task was cancelled: nobody waits any more.
            self._protocol.abandon(request_id, future)
            timer.cancel()

    async def message(self, msg: Any, deadline: float) -> None:
        """Send."""
        await self._writable(deadline)
        self._transport.write(self._protocol.message(msg))

    async def _writable(self, deadline: float) -> None:
        if not self._room.is_set():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.wait()
            except TimeoutError:
                raise CallTimeout("the server did not read in time; this was not sent") from None
        if self.is_over:
            raise self.error(sent=False)

    async def wait_for_pushes(self, deadline: float) -> None:
        """Return when there are some, or the connection is over."""
        if not len(self._pushes) and not self.is_over:
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                raise CallTimeout("no push came in time") from None

    async def close(self, cause: Exception) -> None:
        """End it; what was written before is sent, if the server reads it in time."""
        self.end(str(cause), cause=cause, aborts=False)
        try:
            async with asyncio.timeout(self._limits.connect_ms / 1000):
                await asyncio.shield(self.gone)
        except TimeoutError:
            self._transport.abort()

    def error(self, *, sent: bool) -> Exception:
        """What is raised for it when it is over."""
        if isinstance(self._cause, ClientClosed):
            return ClientClosed(str(self._cause))
        happened = "the request may have happened" if sent else "the request was not sent"
        lost = ConnectionLost(f"{self.reason}; {happened}")
        lost.sent, lost.code, lost.detail = sent, self.code, self.reason
        lost.__cause__ = self._cause
        return lost

    def end(
        self, reason: str, *, code: str = "", cause: Exception | None = None, aborts: bool = True
    ) -> None:
        """It is over, for everybody who waits for something of it.

        :param aborts: whether what was not sent yet is dropped.
        """
        if self.is_over:
            return
        self.is_over = True
        self.ended_at = self._clock()
        self.reason, self.code, self._cause = reason, code, cause
        for future in self._protocol.end():
            if not future.done():
                future.set_exception(self.error(sent=True))
        self._room.set()
        self._news.set()
        if self._transport is not None:
            # Nobody would see to it that one which waits for a server to read has an end.
            self._transport.abort() if aborts else self._transport.close()

    def _handle(self, waiter: Reply | None, event: Event) -> None:
        if isinstance(event, Goodbye):
            text = f": {event.text}" if event.text else ""
            self.end(f"the server said goodbye: {event.code}{text}", code=event.code)
        elif waiter is not None:
            # Its task may have been cancelled, and not have had its turn yet.
            if waiter.done():
                return
            if isinstance(event, Answer):
                waiter.set_result(event.value)
            else:
                error = error_of(event)
                assert error is not None
                waiter.set_exception(error)
        elif isinstance(event, Push | Undecoded):
            if isinstance(event, Push):
                self._pushes.put(event.msg)
            else:
                self._pushes.put(None, event.error)
            self._news.set()

    def _expire(self, future: Reply) -> None:
        if not future.done():
            doubt = self._protocol.doubt(is_over=False)
            future.set_exception(CallTimeout(f"no answer came in time{doubt}"))


class AsyncClient:
    """As `Client`, for asyncio: all tasks of a loop share one connection, by which they pipeline.

    The arguments are those of `Client`. It belongs to the event loop in which it is first used, and
    is used in its thread alone. Cancelling a task gives up what that one waits for, and nothing of
    others.
    """

    def __init__(
        self,
        *addresses: str,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        framing: Callable[[MessageRegistry, ClientLimits], Framing] = MsgpackFrames,
        registry: MessageRegistry = default_registry,
        limits: ClientLimits | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: Uniform | None = None,
    ) -> None:
        check_arguments("AsyncClient", framing, limits, retry, tls)
        self._addresses = parse_addresses(addresses)
        self._tls = tls
        self._server_hostname = server_hostname
        self._framing = framing
        self._registry = registry
        self._limits = ClientLimits() if limits is None else limits
        self._retry = retry
        self._clock = clock
        self._rng: Uniform = random.Random() if rng is None else rng
        self._dialling = Dialling(self._addresses, self._limits, clock, self._rng)
        self._pushes = PushBuffer(self._limits.pushes_max)
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: AsyncConnection | None = None
        #: How many there were.
        self._made = 0
        self._dial: asyncio.Task[AsyncConnection] | None = None
        self._closing = asyncio.Event()

    @overload
    async def call(
        self, msg: Request[Replied], timeout: float = 5.0, *, priority: int = 0
    ) -> Replied: ...
    @overload
    async def call(self, msg: Any, timeout: float = 5.0, *, priority: int = 0) -> Any: ...
    async def call(self, msg: Any, timeout: float = 5.0, *, priority: int = 0) -> Any:
        """As `Client.call`; cancelling it gives the request up, and its answer goes to nobody."""
        loop = self._check()
        deadline = loop.time() + checked_timeout(timeout)
        policy = self._retry
        if policy is not None:
            policy.budget.deposit()
        attempt = 1
        while True:
            try:
                return await self._use(
                    functools.partial(
                        AsyncConnection.request, msg=msg, priority=priority, deadline=deadline
                    ),
                    deadline,
                )
            except (Nack, ConnectionLost) as error:
                wait = None if policy is None else policy.wait_s(error, attempt, self._rng)
                if wait is None:
                    raise
                wait = max(wait, self._dialling.wait_s())
                if loop.time() + wait >= deadline:
                    raise
            try:
                async with asyncio.timeout(wait):
                    await self._closing.wait()
            except TimeoutError:
                pass
            self._check()
            attempt += 1
            priority = priority or -1

    async def send(self, msg: Any, timeout: float = 5.0) -> None:
        """As `Client.send`; it has been written when this returns, and is sent as the loop goes on.

        :raises CallTimeout: if as much as `ClientLimits.out_bytes_max` waits for the server to read
            it, and that has not changed in time.
        """
        deadline = self._check().time() + checked_timeout(timeout)
        await self._use(lambda it: it.message(msg, deadline), deadline)

    def pushes(self, timeout: float = float("inf")) -> AsyncIterator[Any]:
        """As `Client.pushes`: `async for msg in client.pushes()`."""
        self._check()
        connection = self._connection
        if connection is not None and connection.end_told:
            connection = None
        return self._pushed(connection, self._made, timeout)

    async def _pushed(
        self, connection: AsyncConnection | None, made: int, timeout: float
    ) -> AsyncIterator[Any]:
        """What comes by this connection; or by the next one, if so many were made before."""
        while not self._closing.is_set():
            if len(self._pushes):
                yield self._pushes.take()
                continue
            deadline = self._check().time() + checked_timeout(timeout)
            if connection is None:
                try:
                    connection, _ = await self._connected(deadline)
                except ClientClosed:
                    return
                if self._made > made + 1:
                    raise missed_end()
            await connection.wait_for_pushes(deadline)
            if connection.is_over and not len(self._pushes):
                if self._closing.is_set():
                    return
                connection.end_told = True
                raise connection.error(sent=False)

    async def close(self) -> None:
        """End the connection, and all that waits for it with `ClientClosed`. Idempotent.

        What was sent before is written, if the server reads it within `ClientLimits.connect_ms`.
        """
        self._closing.set()
        if os.getpid() != self._pid:
            return
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
            await asyncio.wait([dial])
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(ClientClosed("the client was closed"))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check(self) -> asyncio.AbstractEventLoop:
        if os.getpid() != self._pid:
            raise ForkedClient("this client is the parent process's: make another one here")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "an AsyncClient belongs to one event loop: make another one for this"
            )
        if self._closing.is_set():
            raise ClientClosed("the client was closed")
        return loop

    async def _use(
        self, what: Callable[[AsyncConnection], Coroutine[Any, Any, Result]], deadline: float
    ) -> Result:
        """Do something by a connection; by a new one, if that was over before it was sent."""
        while True:
            connection, is_new = await self._connected(deadline)
            try:
                return await what(connection)
            except ConnectionLost as error:
                if error.sent or is_new:
                    raise

    async def _connected(self, deadline: float) -> tuple[AsyncConnection, bool]:
        """A connection that is not known to be over, and whether it was just made."""
        connection = self._connection
        if connection is not None and not connection.is_over:
            return connection, False
        if self._dial is None:
            if connection is not None:
                self._connection = None
                self._dialling.lost(connection.reason, connection.code, connection.ended_at)
            self._dial = asyncio.get_running_loop().create_task(self._dialled())
            # If all who wait for it are cancelled its failure is nobody's.
            self._dial.add_done_callback(lambda dial: dial.cancelled() or dial.exception())
        dial = self._dial
        try:
            # It is everybody's: who is cancelled leaves it to the others.
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(dial), True
        except TimeoutError:
            raise CallTimeout(
                f"no connection was made in time: {self._dialling.reason}; the request was not sent"
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if dial.cancelled() and task is not None and not task.cancelling():
                raise ClientClosed("the client was closed") from None
            raise

    async def _dialled(self) -> AsyncConnection:
        """Try each address once, in turn."""
        dialling = self._dialling
        try:
            for _ in self._addresses:
                if dialling.wait_s() > 0:
                    break
                address = dialling.address
                try:
                    async with asyncio.timeout(self._limits.connect_ms / 1000):
                        connection = await self._opened(address)
                except TimeoutError:
                    dialling.failed(f"{address}: it did not take the connection in time")
                    continue
                except OSError as error:
                    dialling.failed(f"{address}: {error}")
                    continue
                dialling.connected()
                self._connection = connection
                self._made += 1
                return connection
            raise dialling.not_connected()
        finally:
            self._dial = None

    async def _opened(self, address: ServerAddress) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        protocol: ClientProtocol[Reply] = ClientProtocol(
            self._framing(self._registry, self._limits), self._limits.in_flight_max
        )
        connection = AsyncConnection(loop, protocol, self._pushes, self._limits, self._clock)
        name = self._server_hostname or address.host or None
        hostname = name if self._tls is not None else None
        if address.path:
            await loop.create_unix_connection(
                lambda: connection, address.path, ssl=self._tls, server_hostname=hostname
            )
        else:
            await loop.create_connection(
                lambda: connection,
                address.host,
                address.port,
                ssl=self._tls,
                server_hostname=hostname,
            )
        return connection
