"""The proxy between TLS connections and the poll loop, which speaks plain bytes.

For each connection it holds the TLS socket and one end of a socket pair; the poll loop has the
other end, and does not know the difference. All connections of a node share one thread and one
buffer: what is read goes out at once, and only what the other side does not take is kept. While
something is kept that direction reads nothing, so each direction of a connection keeps at most one
buffer, and an idle one none.
"""

from __future__ import annotations

import collections
import dataclasses
import socket
import ssl
import threading
import time
from collections.abc import Callable

from rabble._core.inbox import Inbox
from rabble.cluster.failures import RETRY_S, Failures
from rabble.cluster.io.tls_proxy_pump import FAREWELL_S, Counts, Pump, Stream
from rabble.steps import take_steps

__all__ = ["TlsProxy", "TlsProxyStatus"]

#: Seconds beyond FAREWELL_S that the thread has to end.
STOP_SLACK_S = 4.0


@dataclasses.dataclass(frozen=True, slots=True)
class TlsProxyStatus:
    """What a proxy did so far."""

    #: Connections that it has now.
    streams: int
    #: Connections that it was ever given.
    adopted: int
    #: Bytes, decrypted, that came from peers.
    bytes_in: int
    #: Bytes, not encrypted yet, that went to peers.
    bytes_out: int
    #: How often its thread returned from waiting.
    wakeups: int


class TlsProxy:
    """One node's TLS connections, and the thread that carries their bytes.

    :param name: of its thread, which starts with the first connection.
    :param buffer_bytes_max: how much each direction of a connection keeps at most, besides what
        the kernel does; also how much it carries before the next connection has its turn.
    :param clock: monotonic seconds.
    :param failed: called with what ends the thread, in the thread.
    :param failures: is told of what ends a single connection.

    The poll loop closes its end when it is done with a peer, or gives up on it. The bytes that it
    wrote before are sent to the peer first, but not for longer than 5 s; then the connection ends
    with close_notify. An end from outside closes the plain end: behind all that was received if the
    peer said close_notify, at once if the connection failed. To the poll loop both are end of file
    or ECONNRESET, and both mean that the peer is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        buffer_bytes_max: int,
        clock: Callable[[], float],
        failed: Callable[[BaseException], None],
        failures: Failures,
    ) -> None:
        if buffer_bytes_max < 1:
            raise ValueError(f"TlsProxy: buffer_bytes_max must be positive, not {buffer_bytes_max}")
        self._name = name
        self._buffer_bytes_max = buffer_bytes_max
        self._clock = clock
        self._lock = threading.Lock()
        self._new_streams: collections.deque[Stream] = collections.deque()
        self._wake_up = Inbox(1)
        self._counts = Counts()
        self._adopted = 0
        self._stopping = False
        self._failed = failed
        self._failures = failures
        self._pump: Pump | None = None
        # One that may run; `thread` is the one that can be joined.
        self._has_thread = False
        self.thread: threading.Thread | None = None

    def adopt(self, stream: ssl.SSLSocket) -> int:
        """Take a connection over. Never blocks; for one thread other than the proxy's.

        :param stream: whose TLS handshake is done, and which nobody else uses from now on.
        :returns: the descriptor of the plain end, a non-blocking stream that the caller closes.
        :raises RuntimeError: if the proxy was stopped.
        :raises OSError: if there are no descriptors left. After any error, one that there are no
            threads left too, the stream is the caller's.
        """
        near, far = socket.socketpair()
        try:
            near.setblocking(False)
            far.setblocking(False)
            stream.setblocking(False)
            with self._lock:
                if self._stopping:
                    raise RuntimeError(f"{self._name}: a proxy that was stopped adopts nothing")
                if self._pump is None:
                    # Here, where it ends one connection and no thread if there is no descriptor.
                    self._pump = Pump(
                        self._wake_up,
                        self._buffer_bytes_max,
                        self._clock,
                        self._counts,
                        self._failures,
                    )
                if not self._has_thread:
                    self._start_thread()
                self._new_streams.append(Stream(near, stream))
                self._adopted += 1
        except BaseException:
            near.close()
            far.close()
            raise
        self._wake_up.signal()
        return far.detach()

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=take_steps,
            args=(self._fail, self._carry, self._refuse, self._close_pump),
            name=self._name,
            daemon=False,
        )
        self._has_thread = True
        try:
            thread.start()
        except BaseException:
            # There are no more threads, or there is no memory. It may have begun all the same.
            self._has_thread = thread.ident is not None
            raise
        finally:
            if self._has_thread:
                self.thread = thread

    def stop(self) -> None:
        """End the thread and close every connection. For any thread but the proxy's; idempotent.

        Connections whose plain end is closed have 1 s to send what is left; others are cut.

        :raises TimeoutError: if the thread still runs after 5 s.
        """
        with self._lock:
            self._stopping = True
            thread = self.thread
        self._wake_up.signal()
        if not self._has_thread:
            # There was none for the pump that was made.
            self._close_pump()
        if thread is not None:
            thread.join(FAREWELL_S + STOP_SLACK_S)
            if thread.is_alive():
                raise TimeoutError(f"{self._name} has not ended")

    def close_inherited(self) -> None:
        """In a forked child: close its copies of the sockets, without a word to any peer."""
        for stream in list(self._new_streams):
            stream.close()
        if self._pump is not None:
            self._pump.close_inherited()

    def status(self) -> TlsProxyStatus:
        """What it did so far. For any thread."""
        counts = self._counts
        return TlsProxyStatus(
            streams=counts.streams + len(self._new_streams),
            adopted=self._adopted,
            bytes_in=counts.bytes_in,
            bytes_out=counts.bytes_out,
            wakeups=counts.wakeups,
        )

    def _carry(self) -> None:
        if self._stopping:
            return
        pump = self._pump
        assert pump is not None
        while not self._stopping:
            try:
                pump.turn()
                self._hand_over(pump)
            except BaseException as error:
                self._failures.again(self._name, error)
                pump.look_at_all()
                time.sleep(RETRY_S)
            else:
                self._failures.passed(self._name)
        self._hand_over(pump)
        pump.finish(self._clock() + FAREWELL_S)

    def _fail(self, error: BaseException) -> None:
        self._stopping = True
        self._failed(error)

    def _refuse(self) -> None:
        """Take no more; streams that came too late are cut."""
        self._stopping = True
        while self._new_streams:
            self._new_streams[0].close()
            self._new_streams.popleft()

    def _close_pump(self) -> None:
        if self._pump is not None:
            self._pump.close()

    def _hand_over(self, pump: Pump) -> None:
        while self._new_streams:
            pump.add(self._new_streams.popleft())
