"""What the thread of the proxy does: it carries bytes between TLS sockets and plain ones."""

from __future__ import annotations

import dataclasses
import enum
import select
import socket
import ssl
from collections.abc import Callable

from rabble._core.inbox import Inbox
from rabble.cluster.failures import Failures

__all__ = ["Counts", "FAREWELL_S", "Pump", "Stream"]

#: Seconds that what was written before the plain end was closed has to get through.
FLUSH_S = 5.0
#: Seconds that the peer has to answer close_notify, once the plain end was closed. Until then the
#: poll loop waits for it, and knows for how long.
FAREWELL_S = 1.0
#: Of the longest TLS record (RFC 8446, 5.1).
RECORD_BYTES = 16_384

FAILED = select.EPOLLERR | select.EPOLLHUP
NOT_WATCHED = -1


@dataclasses.dataclass(slots=True)
class Counts:
    """Written by the proxy's thread only."""

    streams: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    wakeups: int = 0


class Stage(enum.Enum):
    """How far a connection is."""

    #: Bytes are carried both ways.
    OPEN = enum.auto()
    #: All is sent, and close_notify is about to be.
    PARTING = enum.auto()
    #: Nothing is sent any more. Later bytes of the peer are dropped, earlier ones delivered.
    LINGERING = enum.auto()


class Stream:
    """One connection: a plain side, a TLS side, and what the one has for the other.

    `up` is what the TLS side, `down` what the plain side has not taken yet.
    """

    __slots__ = (
        "down",
        "held",
        "hung_up",
        "plain",
        "plain_ended",
        "plain_mask",
        "plain_events",
        "read_waits",
        "stage",
        "tls",
        "tls_closed",
        "tls_ended",
        "tls_mask",
        "tls_events",
        "up",
        "write_waits",
    )

    def __init__(self, plain: socket.socket, tls: ssl.SSLSocket) -> None:
        self.plain = plain
        self.tls = tls
        self.stage = Stage.OPEN
        self.up: memoryview | None = None
        self.down: memoryview | None = None
        # What TLS has to wait for before it can read or write: mostly, but not always, the same.
        self.read_waits = select.EPOLLIN
        self.write_waits = select.EPOLLOUT
        # Decrypted bytes may be inside the SSL object, where no poll sees them.
        self.held = tls.pending() > 0
        # Nothing more comes from this side.
        self.plain_ended = False
        self.tls_ended = False
        self.tls_closed = False
        # The poll loop has closed its end: nobody reads what is delivered.
        self.hung_up = False
        # What epoll waits for on each side, and what it has seen since the last turn.
        self.plain_mask = NOT_WATCHED
        self.tls_mask = NOT_WATCHED
        self.plain_events = 0
        self.tls_events = 0

    def close(self) -> None:
        self.plain.close()
        self.tls.close()


class Pump:
    """What the proxy's thread does. All of it is for that thread.

    It uses epoll itself because `selectors` cannot wait for nothing but the end of a file: a plain
    end may be closed while its bytes are not wanted yet, and then it must be noticed, once.
    """

    def __init__(
        self,
        wake_up: Inbox,
        buffer_bytes: int,
        clock: Callable[[], float],
        counts: Counts,
        failures: Failures,
    ) -> None:
        self._wake_up = wake_up
        self._clock = clock
        self._counts = counts
        self._failures = failures
        self._buffer = memoryview(bytearray(buffer_bytes))
        self._streams: dict[Stream, None] = {}
        self._by_fd: dict[int, Stream] = {}
        # Those that have something to do whatever epoll says.
        self._ready: dict[Stream, None] = {}
        # When those that are about to end are cut.
        self._ends: dict[Stream, float] = {}
        self._epoll = select.epoll()
        self._epoll.register(wake_up.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Cut all streams, whatever state an exception has left them in. Idempotent."""
        for stream in list(self._streams):
            stream.close()
            del self._streams[stream]
        self._counts.streams = 0
        self._by_fd.clear()
        self._ready.clear()
        self._ends.clear()
        self._epoll.close()

    def close_inherited(self) -> None:
        """In a forked child: close its copies."""
        for stream in list(self._streams):
            stream.close()
        self._epoll.close()

    def add(self, stream: Stream) -> None:
        """Begin to carry the bytes of a stream, which is the pump's from now on."""
        try:
            self._streams[stream] = None
            self._counts.streams = len(self._streams)
            self._by_fd[stream.plain.fileno()] = stream
            self._by_fd[stream.tls.fileno()] = stream
            self._settle(stream)
        except BaseException as error:
            self._cut(stream, error)

    def turn(self, until: float | None = None) -> None:
        """Wait until something can be done, then do it once for each stream that it is for."""
        events = self._epoll.poll(self._patience(until), len(self._by_fd) + 1)
        self._counts.wakeups += 1
        ready, self._ready = self._ready, {}
        # First all that was seen, then what to do about it: closing a file frees its number.
        for fd, mask in events:
            stream = self._by_fd.get(fd)
            if stream is None:
                self._wake_up.take(0)
            else:
                if fd == stream.plain.fileno():
                    stream.plain_events = mask
                else:
                    stream.tls_events = mask
                ready[stream] = None
        for stream in ready:
            try:
                self._serve(stream)
            except BaseException as error:
                self._cut(stream, error)
        if self._ends:
            now = self._clock()
            for stream in [stream for stream, end in self._ends.items() if end <= now]:
                self._end(stream)

    def look_at_all(self) -> None:
        """Do in the next turn what can be done for any stream: a turn was left in the middle."""
        self._ready.update(self._streams)

    def finish(self, until: float) -> None:
        """Cut what nobody closed, and let the others end until then."""
        # This sees which plain ends were closed.
        self.turn(self._clock())
        for stream in list(self._streams):
            if not (stream.plain_ended or stream.hung_up):
                self._end(stream)
        while self._streams and self._clock() < until:
            self.turn(until)

    def _patience(self, until: float | None) -> float | None:
        """Seconds to wait for epoll, `None` for as long as it takes."""
        if self._ready:
            return 0.0
        ends = [*self._ends.values()] if until is None else [*self._ends.values(), until]
        return max(min(ends) - self._clock(), 0.0) if ends else None

    def _serve(self, stream: Stream) -> None:
        plain, stream.plain_events = stream.plain_events, 0
        tls, stream.tls_events = stream.tls_events, 0
        if plain & FAILED:
            self._hang_up(stream)
        try:
            if stream.stage is Stage.LINGERING:
                self._linger(stream, plain, tls)
            elif tls & FAILED:
                # Says more, but there is nobody to tell.
                raise ConnectionResetError
            elif stream.stage is Stage.PARTING:
                self._part(stream)
            else:
                self._carry_down(stream, plain, tls)
                self._carry_up(stream, plain, tls)
        except OSError:
            # The error is the TLS side's; an error of the plain side ends the stream elsewhere.
            self._tls_failed(stream)
        self._settle(stream)

    def _carry_down(self, stream: Stream, plain: int, tls: int) -> None:
        """From TLS to the plain side, at most one buffer."""
        if stream.down is not None:
            if plain & select.EPOLLOUT:
                self._deliver(stream, stream.down)
            return
        if stream.tls_ended or stream.hung_up or not (stream.held or tls & stream.read_waits):
            return
        stream.read_waits = select.EPOLLIN
        size = 0
        failure: OSError | None = None
        try:
            # One record of 16 KiB, or what is left of one, for each call.
            while size < len(self._buffer):
                count = stream.tls.recv_into(self._buffer[size:])
                if count == 0:
                    stream.tls_ended = True
                    break
                size += count
                # Mostly there is nothing behind a short record, and to be told so is expensive.
                if count < RECORD_BYTES:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            stream.read_waits = select.EPOLLOUT
        except OSError as error:
            failure = error
        self._counts.bytes_in += size
        if size:
            self._deliver(stream, self._buffer[:size])
        if failure is not None:
            raise failure
        stream.held = stream.tls.pending() > 0

    def _deliver(self, stream: Stream, data: memoryview) -> None:
        try:
            count = stream.plain.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self._hang_up(stream)
            return
        stream.down = rest_of(data, count, stream.down)

    def _carry_up(self, stream: Stream, plain: int, tls: int) -> None:
        """From the plain side to TLS, at most one buffer."""
        data = stream.up
        if data is not None:
            if not tls & stream.write_waits:
                return
        else:
            if stream.plain_ended or not (stream.hung_up or plain & select.EPOLLIN):
                return
            try:
                count = stream.plain.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # Closed with something unread in it.
                count = 0
            if count == 0:
                stream.plain_ended = True
                return
            data = self._buffer[:count]
        stream.write_waits = select.EPOLLOUT
        # OpenSSL has taken part of what it says it cannot take, and wants to see it all again.
        count = 0
        try:
            count = stream.tls.send(data)
        except ssl.SSLWantWriteError:
            pass
        except ssl.SSLWantReadError:
            stream.write_waits = select.EPOLLIN
        self._counts.bytes_out += count
        stream.up = rest_of(data, count, stream.up)

    def _hang_up(self, stream: Stream) -> None:
        """The plain end was closed. There may be something to read yet, which needs no waiting."""
        if not stream.hung_up:
            stream.hung_up = True
            stream.down = None
            within_s = FLUSH_S if stream.stage is Stage.OPEN else FAREWELL_S
            self._ends.setdefault(stream, self._clock() + within_s)

    def _part(self, stream: Stream) -> None:
        """Say close_notify. The peer's is not waited for here."""
        try:
            stream.tls.unwrap()
        except ssl.SSLWantWriteError:
            return
        except OSError:
            # Mostly SSLWantReadError. It also fails if the peer's bytes crossed ours.
            pass
        # Ends TLS for the socket object, too: from here on it reads what is on the wire.
        stream.tls.shutdown(socket.SHUT_WR)
        stream.stage = Stage.LINGERING

    def _linger(self, stream: Stream, plain: int, tls: int) -> None:
        """Read on until the peer closes, and drop it.

        To close a socket with something unread in it resets the connection, and the peer would
        lose what it has not read yet (RFC 1122, 4.2.2.13).
        """
        if stream.down is not None and plain & select.EPOLLOUT:
            self._deliver(stream, stream.down)
        if tls and not stream.tls_closed and stream.tls.recv_into(self._buffer) == 0:
            self._close_tls(stream)

    def _tls_failed(self, stream: Stream) -> None:
        self._close_tls(stream)
        stream.stage = Stage.LINGERING
        stream.up = None
        if not stream.tls_ended:
            stream.down = None

    def _settle(self, stream: Stream) -> None:
        """Draw the conclusions, and have epoll wait for exactly what can be used."""
        if stream.stage is Stage.OPEN and stream.plain_ended and stream.up is None:
            stream.stage = Stage.PARTING
            if stream.hung_up:
                self._ends[stream] = self._clock() + FAREWELL_S
            try:
                self._part(stream)
            except OSError:
                self._tls_failed(stream)
        if stream.tls_closed and stream.down is None:
            self._close(stream)
            return
        if stream.tls_ended and stream.down is None and not stream.hung_up:
            self._end_plain(stream)
        is_open = stream.stage is Stage.OPEN
        if is_open and (
            (stream.hung_up and stream.up is None) or (stream.held and stream.down is None)
        ):
            self._ready[stream] = None
        self._watch(stream)

    def _end_plain(self, stream: Stream) -> None:
        try:
            stream.plain.shutdown(socket.SHUT_WR)
        except OSError:
            self._hang_up(stream)

    def _watch(self, stream: Stream) -> None:
        plain = tls = 0
        if stream.down is not None:
            plain |= select.EPOLLOUT
        if stream.stage is Stage.OPEN:
            if stream.up is None and not stream.plain_ended:
                plain |= select.EPOLLIN
            if stream.up is not None:
                tls |= stream.write_waits
            if stream.down is None and not stream.tls_ended and not stream.hung_up:
                tls |= stream.read_waits
        else:
            tls = select.EPOLLOUT if stream.stage is Stage.PARTING else select.EPOLLIN
        # One that hung up would be reported for ever.
        plain = NOT_WATCHED if stream.hung_up else plain
        if plain != stream.plain_mask:
            self._wait_for(stream.plain, stream.plain_mask, plain)
            stream.plain_mask = plain
        if not stream.tls_closed and tls != stream.tls_mask:
            self._wait_for(stream.tls, stream.tls_mask, tls)
            stream.tls_mask = tls

    def _wait_for(self, side: socket.socket, before: int, mask: int) -> None:
        if before == NOT_WATCHED:
            self._epoll.register(side.fileno(), mask)
        elif mask == NOT_WATCHED:
            self._epoll.unregister(side.fileno())
        else:
            self._epoll.modify(side.fileno(), mask)

    def _end(self, stream: Stream) -> None:
        try:
            self._close(stream)
        except BaseException as error:
            self._cut(stream, error)

    def _cut(self, stream: Stream, error: BaseException) -> None:
        """Close a stream for what was raised, whatever state that has left it in."""
        self._failures.note("a TLS connection", error)
        # A descriptor that is closed leaves the epoll set by itself.
        stream.close()
        for fd in [fd for fd, each in self._by_fd.items() if each is stream]:
            del self._by_fd[fd]
        self._ready.pop(stream, None)
        self._ends.pop(stream, None)
        self._streams.pop(stream, None)
        self._counts.streams = len(self._streams)

    def _close_tls(self, stream: Stream) -> None:
        if not stream.tls_closed:
            stream.tls_closed = True
            del self._by_fd[stream.tls.fileno()]
            if stream.tls_mask != NOT_WATCHED:
                self._epoll.unregister(stream.tls.fileno())
            stream.tls.close()

    def _close(self, stream: Stream) -> None:
        self._close_tls(stream)
        del self._by_fd[stream.plain.fileno()]
        if stream.plain_mask != NOT_WATCHED:
            self._epoll.unregister(stream.plain.fileno())
        stream.plain.close()
        self._ready.pop(stream, None)
        self._ends.pop(stream, None)
        del self._streams[stream]
        self._counts.streams = len(self._streams)


def rest_of(data: memoryview, count: int, kept: memoryview | None) -> memoryview | None:
    """What is to be kept of data of which `count` bytes were taken.

    :param kept: what was kept before. Other data is in the shared buffer, so it has to be copied.
    """
    if count == len(data):
        return None
    return data[count:] if data is kept else memoryview(bytes(data[count:]))
