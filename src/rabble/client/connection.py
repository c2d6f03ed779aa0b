"""One connection of the blocking client: no thread of its own; whoever waits reads for all.

A thread that waits for an answer takes the reading over if nobody has it, and gives everybody what
comes. When it has its own answer it wakes another one, who goes on. So no thread outlives a call,
none is lost in a fork, and a thread alone is woken by its answer itself. ("Leader and followers",
D. Schmidt et al., "Pattern-Oriented Software Architecture", volume 2, 2000.)

There is one lock, which is held for operations on the socket that do not block, never for a wait;
two threads in OpenSSL with one connection would not be safe. A signal's handler, a finalizer or the
code of a message's class may run amid them, in the thread that has it: they may close the client,
and whatever else they ask of it is refused, as they would wait for themselves.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from rabble.client.errors import ClientClosed, ConnectionLost, ProtocolError
from rabble.client.events import Answer, Event, Goodbye, Push, Undecoded, error_of
from rabble.client.protocol import ClientProtocol
from rabble.client.pushes import PushBuffer
from rabble.errors import CallTimeout

__all__ = ["WITHIN", "Connection"]

READ_BYTES = 256 * 1024
WRITE_BYTES = 256 * 1024
#: Seconds after which a thread that cannot write looks whether somebody still reads.
LOOK_S = 0.05
#: Seconds of one wait, which the system bounds.
WAIT_S_MAX = 3600.0


#: What is said to a signal's handler that would wait for what it has interrupted.
WITHIN = (
    "this client is at work in this thread already: a signal's handler, a finalizer or the code of "
    "a message may close it, but not use it; do that later"
)


class Waiter:
    """A thread that waits: for an answer, for its bytes to be sent, or for pushes."""

    __slots__ = (
        *("error", "event", "is_done", "mark", "request_id", "thread", "value", "wants_pushes"),
    )

    def __init__(self, *, wants_pushes: bool = False) -> None:
        self.event = threading.Event()
        self.thread = threading.get_ident()
        #: How many bytes of the connection's stream have to be sent for all of its own to be.
        self.mark = 0
        self.request_id: int | None = None
        self.is_done = False
        self.value: Any = None
        self.error: Exception | None = None
        self.wants_pushes = wants_pushes


class Connection:
    """A connected socket, and the threads that wait for what comes by it. For any thread.

    :param sock: it does not block; the connection closes it.
    :param protocol: fresh, and nobody else's.
    :param pushes: where pushes go.
    :param out_bytes_max: of frames that wait to be sent, before whoever has more waits.
    :param clock: what says when it ended.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: ClientProtocol[Waiter],
        pushes: PushBuffer,
        out_bytes_max: int,
        clock: Callable[[], float],
    ) -> None:
        self._sock = sock
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._protocol = protocol
        self._pushes = pushes
        self._out_bytes_max = out_bytes_max
        self._clock = clock
        self._lock = threading.RLock()
        #: Whether it was closed by what ran amid an operation of its own.
        self._is_closed_within = False
        self._reader: Waiter | None = None
        #: Who waits while another one reads, in order.
        self._followers: dict[Waiter, None] = {}
        #: Bytes to be sent; how many ever were queued, and sent.
        self._out = bytearray()
        self._queued = 0
        self._sent = 0
        #: Whether TLS has something to say of its own before it goes on to read.
        self._tls_writes = False
        #: Threads that have the socket's number in a system call: it is not closed under them.
        self._polling = 0
        self._is_closed = False
        self.is_over = False
        #: Whether who takes pushes was told so.
        self.end_told = False
        #: When it ended, why, and with which goodbye.
        self.ended_at = 0.0
        self.reason = ""
        self.code = ""
        self._cause: Exception | None = None

    @property
    def late(self) -> int:
        """Answers that came when nobody waited for them any more."""
        return self._protocol.late

    # What threads call.

    def request(self, msg: Any, priority: int, deadline: float) -> Any:
        """Ask, and wait for the answer.

        :param deadline: by `time.monotonic`.
        """
        waiter = Waiter()

        def begin() -> None:
            if self._protocol.is_stuck:
                self._end("the server answers none of the requests in flight")
                raise self._lost(sent=False)
            waiter.request_id, frame = self._protocol.request(waiter, msg, priority)
            self._queue(waiter, frame)

        try:
            self._begin(begin, deadline)
            in_time = self._wait(waiter, lambda: waiter.is_done, deadline)
        except BaseException:
            # It was not sent, or a signal's handler raised: nobody waits any more.
            self._abandon(waiter)
            raise
        if waiter.is_done:
            if waiter.error is not None:
                raise waiter.error
            return waiter.value
        assert not in_time
        self._abandon(waiter)
        doubt = self._protocol.doubt(is_over=False)
        raise CallTimeout(f"no answer came in time by the connection to {self._peer()}{doubt}")

    def message(self, msg: Any, deadline: float) -> None:
        """Send, and wait until the system has taken it."""
        waiter = Waiter()
        self._begin(lambda: self._queue(waiter, self._protocol.message(msg)), deadline)
        in_time = self._wait(waiter, lambda: self._sent >= waiter.mark, deadline)
        with self._lock:
            if self._sent >= waiter.mark:
                return
            if self.is_over:
                raise self._lost(sent=False)
        assert not in_time
        raise CallTimeout(
            f"the server at {self._peer()} did not read in time; what is sent may still come to it"
        )

    def wait_for_pushes(self, deadline: float) -> None:
        """Return when there are some, or the connection is over.

        :raises CallTimeout: if it takes too long.
        """
        self._check_reentry()
        waiter = Waiter(wants_pushes=True)
        if not self._wait(waiter, lambda: len(self._pushes) > 0, deadline):
            raise CallTimeout("no push came in time")

    def look(self) -> bool:
        """Notice whether an idle connection has ended. Does not block.

        :returns: whether it is usable.
        """
        self._check_reentry()
        with self._lock:
            if self._reader is None and not self.is_over:
                self._read()
            return not self.is_over

    def error(self) -> ConnectionLost | ClientClosed:
        """What is raised for it when it is over, to who has sent nothing by it."""
        return self._lost(sent=False)

    def close(self) -> None:
        """End it, and all waits, with `ClientClosed`."""
        if self._is_within():
            # Whoever goes on when this returns, or waits for the socket, finds that it is over.
            self._is_closed_within = True
            self._shut_down()
            return
        with self._lock:
            if self._is_tls and not self.is_over:
                try:
                    # Says the TLS goodbye, and does not wait for the other one.
                    self._sock.unwrap()  # type: ignore[attr-defined]
                except (OSError, ValueError):
                    pass
            self._end("the client was closed", cause=ClientClosed("the client was closed"))

    def close_copy(self) -> None:
        """In a forked process: let go of the socket, which stays the parent's."""
        self._sock.close()

    def _is_within(self) -> bool:
        """Whether this thread is amid an operation of this connection already."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def _check_reentry(self) -> None:
        reader = self._reader
        if self._is_within() or (reader is not None and reader.thread == threading.get_ident()):
            raise RuntimeError(WITHIN)

    # Waiting.

    def _begin(self, begin: Callable[[], None], deadline: float) -> None:
        """Queue a frame, when there is room for it."""
        waiter: Waiter | None = None
        while True:
            with self._lock:
                if self.is_over:
                    raise self._lost(sent=False)
                if len(self._out) < self._out_bytes_max:
                    begin()
                    return
                waiter = Waiter()
                waiter.mark = self._queued
            if not self._wait(waiter, lambda: len(self._out) < self._out_bytes_max, deadline):
                raise CallTimeout(
                    f"the server at {self._peer()} did not read in time; this was not sent"
                )

    def _wait(self, waiter: Waiter, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait, and read or write for all if nobody else does.

        :param is_done: asked under the lock.
        :returns: False if the time is over, and it is neither done nor the connection over.
        """
        try:
            while True:
                with self._lock:
                    if self._out:
                        self._write()
                    if is_done() or self.is_over:
                        return True
                    if self._reader is None:
                        self._reader = waiter
                        self._followers.pop(waiter, None)
                    leads = self._reader is waiter
                    writes = bool(self._out) and (leads or self._sent < waiter.mark)
                    writes = writes or (leads and self._tls_writes)
                    if not leads and not writes:
                        waiter.event.clear()
                        self._followers[waiter] = None
                    else:
                        # OpenSSL keeps what it has read and nobody took: no poll tells of it.
                        has_more = leads and self._is_tls and self._tls_pending() > 0
                        self._polling += 1
                timeout = min(deadline - time.monotonic(), WAIT_S_MAX)
                if not leads and not writes:
                    if timeout <= 0:
                        return False
                    waiter.event.wait(timeout)
                    continue
                self._turn(leads, writes, 0.0 if has_more else timeout)
                if timeout <= 0:
                    with self._lock:
                        return is_done() or self.is_over
        finally:
            with self._lock:
                self._followers.pop(waiter, None)
                if self._reader is waiter:
                    self._reader = None
                # Also if it was woken to read, and has no more time for that.
                if self._reader is None:
                    for other in self._followers:
                        other.event.set()
                        break

    def _turn(self, leads: bool, writes: bool, timeout: float) -> None:
        """Wait for the socket, and read if this thread is the one that does."""
        try:
            if timeout > 0:
                wait_for(self._sock, leads, writes, timeout if leads else min(timeout, LOOK_S))
        finally:
            with self._lock:
                self._polling -= 1
                self._close_if_unused()
        if leads:
            with self._lock:
                # At the end of the time, too: it may have come.
                if not self.is_over:
                    self._read()

    # Under the lock.

    def _queue(self, waiter: Waiter, frame: bytes) -> None:
        self._out += frame
        self._queued += len(frame)
        waiter.mark = self._queued
        self._write()

    def _tls_pending(self) -> int:
        sock: Any = self._sock
        return int(sock.pending())

    def _write(self) -> None:
        """Send what there is, as far as the system takes it."""
        try:
            self._send()
        except BaseException:
            # A signal's handler raised, and how much was sent is not known.
            self._end("a signal's handler raised while something was sent")
            raise

    def _send(self) -> None:
        while self._out:
            try:
                sent = self._sock.send(bytes(self._out[:WRITE_BYTES]))
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                # It may have said why it closed.
                self._read()
                self._end(f"the connection broke: {error}")
                return
            del self._out[:sent]
            self._sent += sent

    def _read(self) -> None:
        """Take what has come, without waiting for it."""
        try:
            self._receive()
        except BaseException:
            # As of `_write`.
            self._end("a signal's handler raised while something was read")
            raise

    def _receive(self) -> None:
        self._tls_writes = False
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return
        except ssl.SSLWantWriteError:
            self._tls_writes = True
            return
        except OSError as error:
            self._end(f"the connection broke: {error}")
            return
        if not data:
            doubt = self._protocol.doubt(is_over=True)
            self._end(f"the server closed the connection{doubt}")
            return
        self._protocol.feed(data)
        try:
            for waiter, event in self._protocol.events():
                self._handle(waiter, event)
        except ProtocolError as error:
            self._end(f"the server does not keep to the protocol: {error}", cause=error)

    def _handle(self, waiter: Waiter | None, event: Event) -> None:
        if isinstance(event, Goodbye):
            text = f": {event.text}" if event.text else ""
            self._end(f"the server said goodbye: {event.code}{text}", code=event.code)
        elif waiter is not None:
            if isinstance(event, Answer):
                waiter.value = event.value
            else:
                waiter.error = error_of(event)
            waiter.is_done = True
            waiter.event.set()
        elif isinstance(event, Push | Undecoded):
            if isinstance(event, Push):
                self._pushes.put(event.msg)
            else:
                self._pushes.put(None, event.error)
            for follower in self._followers:
                if follower.wants_pushes:
                    follower.event.set()

    def _end(self, reason: str, *, code: str = "", cause: Exception | None = None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.ended_at = self._clock()
        if self._is_closed_within:
            reason = "the client was closed"
            cause = ClientClosed(reason)
        self.reason, self.code, self._cause = reason, code, cause
        for waiter in self._protocol.end():
            waiter.error = self._lost(sent=self._sent >= waiter.mark)
            waiter.is_done = True
            waiter.event.set()
        self._out.clear()
        for follower in self._followers:
            follower.event.set()
        self._shut_down()
        self._close_if_unused()

    def _shut_down(self) -> None:
        try:
            # Ends the system calls of others. Of TLS nothing is taken away, which may be amid it.
            if self._is_tls:
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
            else:
                self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _close_if_unused(self) -> None:
        if self.is_over and self._polling == 0 and not self._is_closed:
            self._is_closed = True
            self._sock.close()

    def _lost(self, *, sent: bool) -> ConnectionLost | ClientClosed:
        if isinstance(self._cause, ClientClosed):
            return ClientClosed(str(self._cause))
        happened = "the request may have happened" if sent else "the request was not sent"
        lost = ConnectionLost(f"{self.reason}; {happened}")
        lost.sent, lost.code, lost.detail = sent, self.code, self.reason
        lost.__cause__ = self._cause
        return lost

    def _abandon(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter.request_id is not None:
                self._protocol.abandon(waiter.request_id, waiter)

    def _peer(self) -> str:
        try:
            peer = self._sock.getpeername()
        except OSError:
            return "the server"
        return peer if isinstance(peer, str) else f"{peer[0]}:{peer[1]}"


def wait_for(sock: socket.socket, reads: bool, writes: bool, timeout_s: float) -> None:
    """Wait until a socket can be read or written, or has ended, or the time is over."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0))
        poll.poll(max(1, round(timeout_s * 1000)))
    else:
        select.select([sock] if reads else [], [sock] if writes else [], [sock], timeout_s)
