# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False
"""Connections: what binds a session to its transport.

What the session has encoded goes to the transport here, and what the transport has received comes
from it, in batches and without a copy. The executor's thread does both; the cluster server's ends
connections, and sends and takes control frames.

As in the poller, nobody waits for the GIL while holding the lock of the sockets.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_XDECREF
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from rabble._core.byte_queue cimport ByteQueue, append, consume, drop, length
from rabble._core.capacities cimport BULK_WINDOW, SEAL_BYTES
from rabble._core.frame cimport BYE_TEXT_MAX, FRAME_HEADER, PING, WINDOW_UPDATE, text_of_frame
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.gather cimport GatherFrame, forget_frames
from rabble._core.inbox cimport monotonic_ns
from rabble._core.linux cimport (
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from rabble._core.receive cimport take_locked
from rabble._core.session cimport Session
from rabble._core.transport cimport (
    CLOSED,
    CONTROL_BYTES_MAX,
    LINGER_NS,
    OPEN,
    Sockets,
    Transport,
    flush_locked,
    forget_messages,
    frame_size,
    give_up,
    queue_control,
    release,
    signal,
    write_bye,
)

__all__ = ["Connection"]

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)

cdef extern from "netinet/tcp.h" nogil:
    int IPPROTO_TCP "SOL_TCP"
    int TCP_INFO

cdef enum:
    REFUSAL_NS_MIN = 20           # that to refuse one envelope takes, on whatever machine
    LOST_AT_ONCE = 1 << 20        # what the peer may have refused before this side had begun
    TCP_INFO_BYTES = 256
    SEGS_IN_AT = 140              # tcpi_segs_in and
    RCV_OOOPACK_AT = 224          # tcpi_rcv_ooopack, which the C library's headers may not have

# Whoever has this may make a Connection: nobody but this module.
cdef object MAKING = object()


# Seen by the garbage collector, as a session leads to the user's registered functions, and those to
# anything. Nothing is taken away from it: each cycle has a dict, a function or another such thing
# in it to be cut at, and what is here is needed to the end, without asking whether it is there.
@cython.final
@cython.no_gc_clear
cdef class Connection:
    """One established connection to another node. Made by `Poller.attach`.

    :raises TypeError: always, when it is called.

    Its properties may be read by any thread. Its methods are for the cluster server's, but for
    `close` and `abort`, which are for any; in a forked child they raise `RuntimeError`.
    """

    def __cinit__(self, *arguments, **more):
        if more or len(arguments) != 1 or arguments[0] is not MAKING:
            raise TypeError("a Connection cannot be made by itself: Poller.attach makes them")
        self.transport = <Transport*>calloc(1, sizeof(Transport))
        if self.transport is NULL:
            raise MemoryError
        # Until it is admitted to the sockets.
        self.transport.state = CLOSED
        self.transport.fd = -1

    def __dealloc__(self):
        if self.transport is not NULL:
            if self.sockets is NULL or getpid() == self.sockets.owner:
                # In a forked child the lock may be held by a thread that is not here, and the
                # epoll set is the parent's, too.
                if self.sockets is not NULL:
                    with nogil:
                        release(self.sockets, self.transport)
                forget_messages(self.transport)
                free(self.transport)
        drop(&self.decoding)
        drop(&self.decoding_bulk)

    cdef size_t unsent(self) noexcept:
        """Bytes that the peer's kernel has not taken yet, those not flushed included."""
        return self.transport.queued + self.frame_encoder.data.size + self.frame_encoder.bulk.size

    cdef size_t counted(self) noexcept:
        """The unsent bytes that count for the limit; a message that exceeds it alone does not.

        Else all that others send beside such a message, which they overtake, would be refused.
        """
        cdef size_t waits = self.unsent()
        cdef size_t bulk
        cdef uint64_t behind
        if self.large_size:
            bulk = self.transport.bulk_held + self.frame_encoder.bulk.size
            behind = self.frame_encoder.bulk.written - self.large_end
            if bulk <= behind:
                self.large_size = 0
            else:
                waits -= min(waits, min(self.large_size, bulk - behind))
        return waits

    cdef size_t answers(self) noexcept:
        """At most so many unsent bytes are what the runtime answered, which no limit refuses.

        Messages of the data lane are among them: no more of these waits than the limit lets. Those
        of the bulk lane, a single one of which may be longer than that, are not.
        """
        cdef FrameEncoder encoder = self.frame_encoder
        cdef size_t bulk = self.transport.bulk_held
        cdef size_t waits = self.transport.queued
        waits = waits - min(waits, bulk) + encoder.data.size
        if encoder.down_bytes:
            if bulk + encoder.bulk.size <= encoder.bulk.written - encoder.down_end:
                encoder.down_bytes = 0
            waits += encoder.down_bytes
        return waits

    cdef bint may_have_lost(self, uint32_t count) noexcept:
        """Count what the peer says it refused. False if nobody can have refused so many by now."""
        self.peer_lost += count
        return self.peer_lost <= LOST_AT_ONCE + <uint64_t>(
            (monotonic_ns() - self.begun_ns) // REFUSAL_NS_MIN
        )

    cdef bint is_open(self) noexcept:
        return self.transport.state == OPEN

    cdef bint has_received(self) noexcept:
        """Whether there are whole frames that were not decoded yet."""
        return (
            self.transport.complete != 0
            or length(&self.decoding) != 0
            or length(&self.decoding_bulk) != 0
        )

    @property
    def open(self):
        """Whether frames go both ways."""
        return self.transport.state == OPEN

    @property
    def closed(self):
        """Whether its descriptor is closed."""
        return self.transport.state == CLOSED

    @property
    def code(self):
        """The refusal code with which either side ended it; 0 while it is open, or for none."""
        return self.transport.code

    @property
    def error(self):
        """The errno that ended it, or 0: the peer closed it, or a code says why."""
        return self.transport.error

    @property
    def authenticated(self):
        """Whether what goes over it is verified, record by record."""
        return bool(self.transport.is_authenticated)

    @property
    def ended_mid_frame(self):
        """Whether the peer closed it in the middle of a frame."""
        cdef Transport* t = self.transport
        return t.state == CLOSED and t.code == 0 and t.partial_ns != 0

    @property
    def has_control(self):
        """Whether `take_control` may have something to give."""
        cdef Sockets* s = self.sockets
        cdef bint has_some = True
        if pthread_mutex_trylock(&s.lock) == 0:
            has_some = length(&self.transport.recv_control) != 0
            pthread_mutex_unlock(&s.lock)
        return has_some

    @property
    def silent_ns(self):
        """For how many ns nothing was received. A pause of this side's own does not count."""
        if self.transport.paused:
            return 0
        return max(monotonic_ns() - self.transport.received_ns, 0)

    def is_well(self, int64_t within_ns):
        """Whether the peer was heard of within so many ns, had nothing to do when it last said how
        it is, and is not amid a message in parts."""
        return (
            bool(self.transport.peer_idle)
            and self.session.frame_decoder.fragments.part_ns == 0
            and (
                bool(self.transport.paused)
                or monotonic_ns() - self.transport.received_ns <= within_ns
            )
        )

    @property
    def segments(self):
        """How many segments the kernel has received, those that only confirm something too, and
        how many of them came before one that was sent earlier. Zeros if it does not tell, as of a
        socket that is not TCP's."""
        cdef Sockets* s = self.sockets
        cdef unsigned char info[TCP_INFO_BYTES]
        cdef socklen_t size = TCP_INFO_BYTES
        cdef uint32_t received = 0
        cdef uint32_t out_of_order = 0
        check_owner(s)
        memset(info, 0, TCP_INFO_BYTES)
        with nogil:
            pthread_mutex_lock(&s.lock)
            if self.transport.fd >= 0:
                # What an older kernel does not know stays 0, and so does all where this fails.
                getsockopt(self.transport.fd, IPPROTO_TCP, TCP_INFO, info, &size)
            pthread_mutex_unlock(&s.lock)
        memcpy(&received, info + SEGS_IN_AT, sizeof(received))
        memcpy(&out_of_order, info + RCV_OOOPACK_AT, sizeof(out_of_order))
        return received, out_of_order

    @property
    def progress(self):
        """How many envelopes the peer's executor had delivered, as a PING or PONG last said,
        whether it had nothing to do, and how many ns ago that was."""
        return (
            self.transport.peer_progress,
            bool(self.transport.peer_idle),
            max(monotonic_ns() - self.transport.progress_ns, 0),
        )

    def status(self):
        """What came and went: `bytes_received`, `bytes_sent`, `frames_received`; and what holds
        now: `queued_bytes`, and `round_trip_ns`, which is 0 before the first PONG."""
        cdef Transport* t = self.transport
        return {
            "bytes_received": t.bytes_received,
            "bytes_sent": t.bytes_sent,
            "frames_received": t.frames_received,
            "queued_bytes": t.queued,
            "round_trip_ns": t.round_trip_ns,
        }

    @property
    def unsent(self):
        """How many bytes were for the peer, and not taken by its kernel, when a close that waited
        for that had waited long enough. 0 before, and after any other end."""
        return self.transport.unsent

    def send_control(self, int kind, bytes body not None):
        """Queue a control frame.

        :param kind: of the frame, 16 to 20.
        :param body: what follows the frame's header.
        :returns: False if the connection is not open, or if 8 MiB wait there already.
        :raises ValueError: if it is no kind of that lane, or would be longer than the peer takes.
        """
        cdef Sockets* s = self.sockets
        cdef Transport* t = self.transport
        cdef const char* data = PyBytes_AS_STRING(body)
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef bint is_queued = False
        check_owner(s)
        if not <int>PING <= kind <= <int>WINDOW_UPDATE:
            raise ValueError(
                f"a control frame is of a kind from {PING} to {WINDOW_UPDATE}, not {kind}"
            )
        if size + 2 > s.frame_bytes_max:
            raise ValueError(
                f"a control frame of {size} bytes is longer than the "
                f"{s.frame_bytes_max} allowed"
            )
        with nogil:
            pthread_mutex_lock(&s.lock)
            if t.state == OPEN and length(&t.control) + size <= CONTROL_BYTES_MAX:
                queue_control(s, t, kind, 0, data, size)
                is_queued = t.state == OPEN
            pthread_mutex_unlock(&s.lock)
        return is_queued

    def take_control(self):
        """The control frames that came for the cluster server, and are given out once.

        :returns: a pair of kind and body for each, in their order.
        :raises MemoryError: if there is none for them; they stay, for the next call.
        """
        cdef Sockets* s = self.sockets
        cdef Transport* t = self.transport
        cdef ByteQueue control
        cdef list frames = []
        cdef bint is_done = False
        cdef size_t at, size
        check_owner(s)
        with nogil:
            pthread_mutex_lock(&s.lock)
            control = t.recv_control
            t.recv_control.data = NULL
            t.recv_control.head = t.recv_control.tail = t.recv_control.capacity = 0
            pthread_mutex_unlock(&s.lock)
        try:
            at = control.head
            while at < control.tail:
                size = frame_size(control.data + at)
                frames.append((
                    control.data[at + 4],
                    PyBytes_FromStringAndSize(
                        <char*>control.data + at + FRAME_HEADER, size - FRAME_HEADER
                    ),
                ))
                at += size
            is_done = True
        finally:
            if is_done:
                drop(&control)
            else:
                with nogil:
                    pthread_mutex_lock(&s.lock)
                    put_back(s, t, &control)
                    pthread_mutex_unlock(&s.lock)
        return frames

    def close(
        self, int code, str text not None="", *, bint after_all=False, linger_s=LINGER_NS / 1e9,
        within_s=None,
    ):
        """End the connection with a BYE, unless it has ended. For any thread.

        :param code: of a refusal, 0 to 255.
        :param text: why, for people at the other side; it is cut to 255 bytes.
        :param after_all: after what was sent before, instead of at once.
        :param linger_s: seconds that the peer may take nothing of that, and not close its side when
            it has taken all; at most 1e9.
        :param within_s: seconds that it has in all, at most 1e9; None: as many.
        :raises ValueError: if the code is no such number, or a time no such time.
        """
        cdef Sockets* s = self.sockets
        cdef bytes encoded = text_of_frame(text, BYE_TEXT_MAX)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(encoded)
        cdef size_t size = PyBytes_GET_SIZE(encoded)
        cdef Transport* t = self.transport
        cdef int64_t linger_ns = time_of_close(linger_s, "linger_s")
        cdef int64_t within_ns = linger_ns
        if within_s is not None:
            within_ns = time_of_close(within_s, "within_s")
        check_owner(s)
        check_code(code)
        with nogil:
            pthread_mutex_lock(&s.lock)
            if t.state == OPEN:
                write_bye(s, t, code, data, size, after_all)
                t.linger_ns = linger_ns
                t.linger_end_ns = t.taken_ns + within_ns
            pthread_mutex_unlock(&s.lock)

    def abort(self, int code):
        """Close the descriptor at once, as the peer is held to be dead. For any thread.

        :param code: why, 0 to 255: what `code` says from now on.
        :raises ValueError: if it is no such number.
        """
        cdef Sockets* s = self.sockets
        check_owner(s)
        check_code(code)
        with nogil:
            pthread_mutex_lock(&s.lock)
            give_up(s, self.transport, code, 0)
            pthread_mutex_unlock(&s.lock)

    def __repr__(self):
        state = ("open", "lingering", "closed")[self.transport.state]
        return f"<Connection to {self.session.peer} {state}>"

    # For the executor.

    cdef int flush(self) except -1:
        """Hand over what the session has encoded, and send what the kernel takes."""
        cdef Sockets* s = self.sockets
        cdef FrameEncoder frame_encoder = self.frame_encoder
        cdef uint64_t consumed = self.bulk_consumed if self.window_update_due else 0
        self.is_dirty = False
        if self.window_update_due:
            self.window_update_due = False
            self.bulk_acknowledged = consumed
            if (
                frame_encoder.data.size
                and self.transport.queued == 0
                and frame_encoder.data.capacity - frame_encoder.data.size >= FRAME_HEADER + 8
            ):
                # It need not overtake anything, so one send does for both. There is room for it:
                # were it lost for want of memory, the peer would wait for it for ever.
                frame_encoder.write_window_update(consumed)
                consumed = 0
        # To seal a flush takes as long as to send it, and to get the GIL back may take much longer:
        # not so of large messages.
        if (
            not (self.transport.is_authenticated and self.unsent() > SEAL_BYTES)
            and pthread_mutex_trylock(&s.lock) == 0
        ):
            flush_locked(
                s, self.transport, &frame_encoder.data, &frame_encoder.bulk.own,
                &frame_encoder.bulk.frames, frame_encoder.bulk.size, consumed,
            )
            pthread_mutex_unlock(&s.lock)
        else:
            # Who has the GIL meanwhile must not write more, which could move these bytes.
            frame_encoder.is_encoding = True
            with nogil:
                pthread_mutex_lock(&s.lock)
                flush_locked(
                    s, self.transport, &frame_encoder.data, &frame_encoder.bulk.own,
                    &frame_encoder.bulk.frames, frame_encoder.bulk.size, consumed,
                )
                pthread_mutex_unlock(&s.lock)
            frame_encoder.is_encoding = False
        frame_encoder.data.size = 0
        # The transport of a connection that is not open did not take these frames over.
        forget_frames(&frame_encoder.bulk)
        if self.transport.bulk_sent_frames:
            self.let_go()
        return 0

    cdef bint let_go(self) noexcept:
        """Drop the messages that have gone out. False if that is to be tried again."""
        cdef Sockets* s = self.sockets
        cdef Transport* t = self.transport
        cdef GatherFrame* frame
        if pthread_mutex_trylock(&s.lock) != 0:
            return False
        frame = <GatherFrame*>(t.bulk_frames.data + t.bulk_frames.head)
        while t.bulk_sent_frames:
            # Bytes and nothing else: their end runs no code of anybody's.
            Py_XDECREF(frame.message)
            frame += 1
            t.bulk_sent_frames -= 1
            consume(&t.bulk_frames, sizeof(GatherFrame))
        pthread_mutex_unlock(&s.lock)
        return True

    cdef size_t take(
        self, size_t most, int frames_most, bint bulk, const unsigned char** frames
    ) noexcept:
        """Whole frames that came on one lane: where they are until the next call, and their size.

        What is taken over under the lock is all there is, without a copy; given out are at most
        `frames_most` frames of `most` bytes at a time, but one frame at least.
        """
        cdef Sockets* s = self.sockets
        cdef Transport* t = self.transport
        cdef ByteQueue* decoding = &self.decoding_bulk if bulk else &self.decoding
        cdef size_t size
        cdef bint locked
        if length(&self.decoding) == 0:
            locked = pthread_mutex_trylock(&s.lock) == 0
            if locked:
                take_locked(s, t, &self.decoding, &self.decoding_bulk, &self.bulk_waits)
                pthread_mutex_unlock(&s.lock)
            else:
                with nogil:
                    pthread_mutex_lock(&s.lock)
                    # Another thread that took them over meanwhile has not given out all of them.
                    if length(&self.decoding) == 0:
                        take_locked(s, t, &self.decoding, &self.decoding_bulk, &self.bulk_waits)
                    pthread_mutex_unlock(&s.lock)
        if bulk and self.bulk_waits:
            return 0
        size = some_frames(decoding, most, frames_most)
        if bulk and size:
            self.bulk_consumed += size
            # Sent too often, it would wake a peer that has not yet room enough to go on.
            if (
                self.bulk_consumed - self.bulk_acknowledged >= BULK_WINDOW // 4
                or length(decoding) == size and length(&t.recv_bulk) == 0
            ):
                self.window_update_due = True
        frames[0] = decoding.data + decoding.head
        decoding.head += size
        if decoding.head == decoding.tail:
            # Its buffer stays, for the next trade, and the bytes in it until then.
            decoding.head = decoding.tail = 0
            if not bulk:
                self.bulk_waits = False
        return size


cdef Connection new_connection(object poller, Sockets* sockets, Session session, bint initiated):
    cdef Connection connection = Connection.__new__(Connection, MAKING)
    connection.session = session
    connection.frame_encoder = session.frame_encoder
    connection.poller = poller
    connection.sockets = sockets
    connection.initiated = initiated
    connection.begun_ns = monotonic_ns()
    connection.monitoring = {}
    connection.links = {}
    connection.monitored_by = {}
    return connection


cdef int check_owner(const Sockets* sockets) except -1:
    if sockets.owner != getpid():
        raise RuntimeError(
            f"this Poller is of process {sockets.owner}, and this is its forked child"
        )
    return 0


cdef int check_code(int code) except -1:
    if not 0 <= code <= 255:
        raise ValueError(f"a connection ends with a code from 0 to 255, not {code}")
    return 0


cdef int64_t time_of_close(object seconds, str name) except -1:
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"{name} must be 0 to 1e9 seconds, not {seconds}")
    return <int64_t>(seconds * 1e9)


cdef void put_back(Sockets* s, Transport* t, ByteQueue* control) noexcept nogil:
    """Undo the taking of control frames: in front of those that have come since."""
    if append(control, t.recv_control.data + t.recv_control.head, length(&t.recv_control)) != 0:
        drop(control)
        give_up(s, t, 0, ENOMEM)
        return
    drop(&t.recv_control)
    t.recv_control = control[0]
    signal(s.server_fd)


cdef size_t some_frames(const ByteQueue* lane, size_t most, int frames_most) noexcept nogil:
    """How many bytes so many frames, of at most so many bytes, are; one frame at least."""
    cdef size_t size = 0
    cdef size_t next_size
    cdef int _
    for _ in range(frames_most):
        if size >= length(lane):
            break
        next_size = frame_size(lane.data + lane.head + size)
        if size and size + next_size > most:
            break
        size += next_size
    return size
