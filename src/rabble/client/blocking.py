"""`Client`: the client for threads."""

from __future__ import annotations

import functools
import os
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from rabble.client.addresses import parse_addresses
from rabble.client.arguments import check_arguments
from rabble.client.connection import WITHIN, Connection
from rabble.client.dialling import Dialling, Uniform
from rabble.client.errors import ClientClosed, ConnectionLost, ForkedClient, Nack
from rabble.client.framing import Framing, MsgpackFrames
from rabble.client.limits import ClientLimits
from rabble.client.protocol import ClientProtocol
from rabble.client.pushes import PushBuffer, missed_end
from rabble.client.retries import RetryPolicy
from rabble.client.sockets import dial
from rabble.errors import CallTimeout
from rabble.registry import MessageRegistry, default_registry
from rabble.request import Replied, Request
from rabble.timeouts import checked_timeout

__all__ = ["Client"]

Result = TypeVar("Result")


class Client:
    """A client of a `TcpServer`, for threads: all share one connection, by which they pipeline.

    It connects when it is first used, and again when it is used after a connection was lost; while
    all addresses fail it waits longer and longer before it dials again, and what is asked meanwhile
    fails at once. It has no thread of its own: whoever waits for an answer reads.

    :param addresses: each `host:port`, an IPv6 host in brackets, or a Unix socket as `unix:PATH`,
        or as the path alone if that has a `/` in it. They are tried in turn.
    :param tls: for TLS; with a certificate, if the server wants one.
    :param server_hostname: the name that the server's certificate has to have; by default the host
        of the address.
    :param framing: how messages become bytes: `MsgpackFrames`, `JsonLines` or `PlainLines`, as the
        server has it.
    :param registry: the classes that may travel; by default those of `@rabble.message`.
    :param limits: the bounds.
    :param retry: what is asked again by itself; by default nothing is.
    :param clock: seconds, of a clock that never goes back, for the waits between dials.
    :param rng: where their jitter comes from.
    :raises ValueError: if an address is none, or there is none.
    :raises TypeError: if an address is no str, or another argument is of another type.

    For any thread. In a forked process it refuses to work: make another one there.
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
        check_arguments("Client", framing, limits, retry, tls)
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
        #: Held by who dials.
        self._dial_lock = threading.Lock()
        #: Which thread that is.
        self._dialler: int | None = None
        #: Held for the two below, and never for long.
        self._state_lock = threading.RLock()
        self._connection: Connection | None = None
        #: How many there were.
        self._made = 0
        self._closing = threading.Event()

    @overload
    def call(
        self, msg: Request[Replied], timeout: float = 5.0, *, priority: int = 0
    ) -> Replied: ...
    @overload
    def call(self, msg: Any, timeout: float = 5.0, *, priority: int = 0) -> Any: ...
    def call(self, msg: Any, timeout: float = 5.0, *, priority: int = 0) -> Any:
        """Send a request and wait for its answer. Blocks: not for asyncio.

        :param msg: the request.
        :param timeout: in seconds, with all that it may take to connect and to retry; infinity
            waits for as long as the connection lasts.
        :param priority: -1: the server may refuse it earlier; 0; 1: it lets it through longer, as
            a health check.
        :returns: the answer. Of a `Request[Value]` type checkers take it for a `Value`.
        :raises CallTimeout: if none came in time. One that comes later goes to nobody.
        :raises Nack: if the server has too much to do. It has not begun; nothing happened.
        :raises RequestFailed: if it failed at the server; its `code` says how.
        :raises ConnectionLost: if there is no connection, or it ended before the answer came; its
            attribute `sent` says whether the request may have happened.
        :raises TypeError: if `timeout` is no number, or `ValueError` if it is NaN.
        :raises QueueFull: if `ClientLimits.in_flight_max` requests are in flight.
        :raises EncodeError: if the request cannot be sent.
        :raises DecodeError: if the answer cannot be built here, as its class is not known, say.
        :raises ClientClosed: if the client was closed, also meanwhile.
        :raises ForkedClient: in a forked process.
        :raises RuntimeError: in the thread of an event loop that runs: there take `AsyncClient`.
        """
        self._check()
        deadline = time.monotonic() + checked_timeout(timeout)
        policy = self._retry
        if policy is not None:
            policy.budget.deposit()
        attempt = 1
        while True:
            try:
                return self._use(
                    functools.partial(
                        Connection.request, msg=msg, priority=priority, deadline=deadline
                    ),
                    deadline,
                )
            except (Nack, ConnectionLost) as error:
                wait = None if policy is None else policy.wait_s(error, attempt, self._rng)
                if wait is None:
                    raise
                wait = max(wait, self._dialling.wait_s())
                if time.monotonic() + wait >= deadline:
                    raise
            if self._closing.wait(wait):
                raise ClientClosed("the client was closed")
            attempt += 1
            priority = priority or -1

    def send(self, msg: Any, timeout: float = 5.0) -> None:
        """Send a message that has no answer. Whether it arrives is not known.

        :param msg: the message.
        :param timeout: in seconds, for the system to take it; the server may not read.
        :raises CallTimeout: if the system has not taken it in time.
        :raises ConnectionLost: if there is no connection.

        The other errors are those of `call`.
        """
        self._check()
        deadline = time.monotonic() + checked_timeout(timeout)
        self._use(lambda it: it.message(msg, deadline), deadline)

    def pushes(self, timeout: float = float("inf")) -> Iterator[Any]:
        """What the server sends unasked, one by one, as it comes. Connects if need be.

        :param timeout: seconds to wait for each.
        :returns: an iterator, which ends when the client is closed. Several share what comes. Have
            it before you subscribe: then it misses no end of a connection.
        :raises ConnectionLost: from the iterator, when the connection is lost and what came by it
            was taken; also if it was lost before the iterator was asked, or before this was called
            and nobody has replaced it. Whoever had subscribed has to do so again.
        :raises PushesLost: from the iterator, where more came than `ClientLimits.pushes_max`.
        :raises CallTimeout: from the iterator, if none came in time.
        :raises DecodeError: from the iterator, where one came that cannot be built here.

        After an error call it again to go on.
        """
        self._check()
        with self._state_lock:
            connection, made = self._connection, self._made
        if connection is not None and connection.end_told:
            connection = None
        return self._pushed(connection, made, timeout)

    def _pushed(self, connection: Connection | None, made: int, timeout: float) -> Iterator[Any]:
        """What comes by this connection; or by the next one, if so many were made before."""
        while not self._closing.is_set():
            if len(self._pushes):
                try:
                    push = self._pushes.take()
                except IndexError:
                    # Another thread took it.
                    continue
                yield push
                continue
            deadline = time.monotonic() + checked_timeout(timeout)
            if connection is None:
                try:
                    connection, _ = self._connected(deadline)
                except ClientClosed:
                    return
                if self._made > made + 1:
                    raise missed_end()
            connection.wait_for_pushes(deadline)
            if connection.is_over and not len(self._pushes):
                if self._closing.is_set():
                    return
                connection.end_told = True
                raise connection.error()

    def close(self) -> None:
        """End the connection, and all that waits for it with `ClientClosed`. Idempotent.

        A signal's handler may do it, too, though the client is at work in the same thread. Who is
        just dialling ends when that does, which is within `ClientLimits.connect_ms` for each IP
        address.
        """
        if os.getpid() != self._pid:
            if self._connection is not None:
                self._connection.close_copy()
            return
        with self._state_lock:
            self._closing.set()
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClient("this client is the parent process's: make another one here")
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "a Client would block the event loop that runs in this thread: take AsyncClient, "
                "or call it in another thread, by asyncio.to_thread"
            )
        if self._closing.is_set():
            raise ClientClosed("the client was closed")

    def _use(self, what: Callable[[Connection], Result], deadline: float) -> Result:
        """Do something by a connection; by a new one, if that was over before it was sent."""
        while True:
            connection, is_new = self._connected(deadline)
            try:
                return what(connection)
            except ConnectionLost as error:
                if error.sent or is_new:
                    raise

    def _connected(self, deadline: float) -> tuple[Connection, bool]:
        """A connection that is not known to be over, and whether it was just made."""
        connection = self._connection
        if connection is not None and connection.look():
            return connection, False
        current = threading.get_ident()
        if self._dialler == current:
            raise RuntimeError(WITHIN)
        wait = max(0, min(deadline - time.monotonic(), 3600))
        got: list[bool] = []
        try:
            # Noted by the very call that waits: what a signal's handler raises comes behind that.
            got.extend(map(self._dial_lock.acquire, (True,), (wait,)))
            if not got[0]:
                raise CallTimeout("no connection was made in time; the request was not sent")
            self._dialler = current
            connection = self._connection
            if connection is not None:
                if not connection.is_over:
                    return connection, False
                self._connection = None
                self._dialling.lost(connection.reason, connection.code, connection.ended_at)
            return self._dialled(deadline), True
        finally:
            if True in got:
                self._dialler = None
                self._dial_lock.release()

    def _dialled(self, deadline: float) -> Connection:
        """Try each address once, in turn."""
        dialling = self._dialling
        for _ in self._addresses:
            if self._closing.is_set():
                raise ClientClosed("the client was closed")
            if dialling.wait_s() > 0:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise CallTimeout(
                    f"no connection was made in time: {dialling.reason}; the request was not sent"
                )
            address = dialling.address
            timeout = min(left, self._limits.connect_ms / 1000)
            try:
                sock = dial(address, timeout, self._limits, self._tls, self._server_hostname)
            except OSError as error:
                dialling.failed(f"{address}: {error}")
                continue
            dialling.connected()
            protocol: ClientProtocol[Any] = ClientProtocol(
                self._framing(self._registry, self._limits), self._limits.in_flight_max
            )
            made = Connection(sock, protocol, self._pushes, self._limits.out_bytes_max, self._clock)
            with self._state_lock:
                self._connection = made
                self._made += 1
                # Asked behind that: a signal's handler may close the client amid this.
                if not self._closing.is_set():
                    return made
                self._connection = None
            made.close()
            raise ClientClosed("the client was closed")
        raise dialling.not_connected()
