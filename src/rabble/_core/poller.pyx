# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False
"""The poller: whose the connections of a node are, and who looks at their sockets.

Each connection has a *transport*, a C struct that is only touched under the lock of the poller's
sockets, by functions that need no GIL and never block. Three threads call them:

- the executor, which looks at the sockets in every turn, while it spins, and when it sleeps: it
  sleeps on this very epoll set. What comes for an idle node thus costs one wake-up, not one of a
  thread that reads and another of the one that is to act;
- the poll thread, which does the same when the executor does not get to it, because a `receive`
  takes long or another thread holds the GIL. It also sends the heartbeats: so a node whose
  interpreter stands still is seen to be alive, and not to make progress;
- the cluster server, which adds and ends connections and sends control frames.

Nobody waits for the GIL while holding the lock. Who holds the GIL only tries to take it, and lets
go of the GIL to wait for it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_XDECREF
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, getpid, read

from rabble._core.byte_queue cimport ByteQueue, append, consume, drop, length
from rabble._core.capacities cimport BATCH_FRAMES_MAX, BULK_WINDOW, LARGE_BYTES
from rabble._core.frame cimport FRAME_HEADER, PING, WINDOW_UPDATE
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.gather cimport GatherFrame, forget_frames
from rabble._core.inbox cimport monotonic_ns, new_eventfd, wait_readable
from rabble._core.receive cimport poll_sockets, split_frames, take_locked
from rabble._core.session cimport Session
from rabble._core.texts cimport bounded_repr, type_name
from rabble._core.transport cimport (
    CLOSED,
    CONTROL_BYTES_MAX,
    OPEN,
    Sockets,
    Transport,
    add_to_epoll,
    admit,
    flush_locked,
    forget_messages,
    frame_size,
    give_up,
    keep_alive,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    queue_control,
    release,
    signal,
    write_bye,
)

__all__ = ["Connection", "Poller"]

cdef enum:
    STUCK_NS = 2_000_000              # after which the poll thread looks in the executor's place
    BUSY_TICK_NS = 50_000_000         # how often it looks whether it has to

cdef extern from *:
    """
    #define RABBLE_MS_MAX (INT64_C(366) * 24 * 60 * 60 * 1000)
    #define RABBLE_BYTES_MAX (INT64_C(1) << 62)
    """
    const int64_t MS_MAX "RABBLE_MS_MAX"
    const int64_t BYTES_MAX "RABBLE_BYTES_MAX"

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC
    int epoll_create1(int flags)


# Whoever has this may make a Connection: nobody but this module.
cdef object MAKING = object()


# Seen by the garbage collector, as a session leads to the user's registered functions, and those to
# anything. Nothing is taken away from it: each cycle has a dict, a function or another such thing
# in it to be cut at, and what is here is needed to the end, without asking whether it is there.
@cython.final
@cython.no_gc_clear
cdef class Connection:
    """One established connection to another node. Made by `Poller.attach`.

    Its methods are for the cluster server's thread.
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
            if self.poller is None or getpid() == self.poller.owner:
                # In a forked child the lock may be held by a thread that is not here, and the
                # epoll set is the parent's, too.
                if self.poller is not None:
                    with nogil:
                        release(&self.poller.sockets, self.transport)
                forget_messages(self.transport)
                free(self.transport)
        drop(&self.decoding)
        drop(&self.decoding_bulk)

    cdef size_t unsent(self) noexcept:
        """Bytes that the peer's kernel has not taken yet, those not flushed included."""
        return self.transport.queued + self.frame_encoder.data.size + self.frame_encoder.bulk.size

    cdef size_t counted(self) noexcept:
        """What of that counts for the queue's limit: not a message that exceeds it by itself.

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
        """The refusal code with which it was ended, by whichever side; or 0."""
        return self.transport.code

    @property
    def error(self):
        """The errno that ended it, or 0: the peer closed it, or a code says why."""
        return self.transport.error

    @property
    def ended_mid_frame(self):
        """Whether the peer closed it in the middle of a frame."""
        cdef Transport* t = self.transport
        return t.state == CLOSED and t.code == 0 and t.partial_ns != 0

    @property
    def silent_ns(self):
        """For how long nothing was received. A pause of this side's own does not count."""
        if self.transport.paused:
            return 0
        return max(monotonic_ns() - self.transport.received_ns, 0)

    @property
    def progress(self):
        """What the peer's executor had delivered, whether it idled, and how many ns ago that was.
        """
        return (
            self.transport.peer_progress,
            bool(self.transport.peer_idle),
            max(monotonic_ns() - self.transport.progress_ns, 0),
        )

    def status(self):
        """Counters and gauges of the connection, by name."""
        cdef Transport* t = self.transport
        return {
            "bytes_received": t.bytes_received,
            "bytes_sent": t.bytes_sent,
            "frames_received": t.frames_received,
            "queued_bytes": t.queued,
            "round_trip_ns": t.round_trip_ns,
        }

    def send_control(self, int kind, bytes body not None):
        """Queue a control frame. Returns False if the connection is not open, or does not send.

        :raises ValueError: if it is no kind of that lane, or would be longer than the peer takes.
        """
        cdef Sockets* s = &self.poller.sockets
        cdef Transport* t = self.transport
        cdef const char* data = PyBytes_AS_STRING(body)
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef bint is_queued = False
        self.poller.check_owner()
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
        """The control frames that came for the cluster server, as (kind, body).

        If there is no memory for them they stay, for the next call.
        """
        cdef Sockets* s = &self.poller.sockets
        cdef Transport* t = self.transport
        cdef ByteQueue control
        cdef list frames = []
        cdef bint is_done = False
        cdef size_t at, size
        self.poller.check_owner()
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

    def close(self, int code, str text not None="", *, bint after_all=False):
        """End the connection with a BYE.

        :param code: of a refusal, 0 to 255.
        :param after_all: after what was sent before, instead of at once.

        For any thread.
        """
        cdef Sockets* s = &self.poller.sockets
        cdef bytes encoded = text.encode("utf-8", "replace")[:255]
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(encoded)
        cdef size_t size = PyBytes_GET_SIZE(encoded)
        self.poller.check_owner()
        check_code(code)
        with nogil:
            pthread_mutex_lock(&s.lock)
            write_bye(s, self.transport, code, data, size, after_all)
            pthread_mutex_unlock(&s.lock)

    def abort(self, int code):
        """Close the descriptor at once: the peer is held to be dead."""
        cdef Sockets* s = &self.poller.sockets
        self.poller.check_owner()
        check_code(code)
        with nogil:
            pthread_mutex_lock(&s.lock)
            give_up(s, self.transport, code, 0)
            pthread_mutex_unlock(&s.lock)

    def __repr__(self):
        state = ("open", "lingering", "closed")[self.transport.state]
        return f"<Connection to {self.session.peer} {state}>"


cdef int check_code(int code) except -1:
    if not 0 <= code <= 255:
        raise ValueError(f"a connection ends with a code from 0 to 255, not {code}")
    return 0


cdef int64_t in_range(object value, str name, int64_t least, int64_t most) except -1:
    """A whole number within bounds; the error says what else it is."""
    cdef int overflow = 0
    cdef int64_t number = 0
    if not PyLong_Check(value):
        raise TypeError(f"Poller: {name} must be an int, not a {type_name(value)}")
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not least <= number <= most:
        raise ValueError(
            f"Poller: {name} must be {least} to {most}, not {bounded_repr(value, 40)}"
        )
    return number


# It refers to no object, so there is nothing for the garbage collector to see: its connections
# refer to it.
@cython.final
cdef class Poller:
    """The sockets of one node's connections.

    :param heartbeat_ms: after so long a silence of this side it sends PING; 1 ms to 366 days.
    :param frame_bytes_max: the longest frame that is taken, without its length field: 32 to 2**31.
    :param queue_bytes_max: unsent bytes of a connection at which its peer counts as busy.
    :param partial_ms_max: how long a frame may take from its first byte to its last; to 366 days.
    :raises TypeError: if one of them is no int.
    :raises ValueError: if one of them is out of range.

    In a forked child its methods, and those of its connections, raise `RuntimeError`.
    """

    def __cinit__(self, *, heartbeat_ms, frame_bytes_max, queue_bytes_max, partial_ms_max):
        cdef Sockets* s = &self.sockets
        s.heartbeat_ns = in_range(heartbeat_ms, "heartbeat_ms", 1, MS_MAX) * 1_000_000
        s.partial_ns_max = in_range(partial_ms_max, "partial_ms_max", 1, MS_MAX) * 1_000_000
        s.frame_bytes_max = in_range(frame_bytes_max, "frame_bytes_max", 32, 1 << 31)
        s.queue_bytes_max = in_range(queue_bytes_max, "queue_bytes_max", 1, BYTES_MAX)
        # The C library gives freed memory back to the kernel from twice the size on of the largest
        # block it ever mapped and unmapped by itself. Below that, a stream of messages of some MiB
        # would have each page of each message come from the kernel anew, which takes longer than
        # to fill it. Nothing is written, so this takes no memory.
        PyMem_RawFree(PyMem_RawMalloc(LARGE_BYTES))
        s.epfd = self.stop_fd = s.server_fd = s.wake_fd = -1
        pthread_mutex_init(&s.lock, NULL)
        self.owner = getpid()
        s.epfd = epoll_create1(EPOLL_CLOEXEC)
        if s.epfd < 0:
            PyErr_SetFromErrno(OSError)
        self.stop_fd = new_eventfd(0)
        s.server_fd = new_eventfd(0)
        s.wake_fd = new_eventfd(0)
        cdef int failed = add_to_epoll(s, s.wake_fd, s)
        if failed:
            raise OSError(failed, "epoll_ctl")

    def __dealloc__(self):
        cdef Sockets* s = &self.sockets
        cdef int fd
        if self.owner == 0:
            # Its arguments were wrong, and nothing was opened: 0 is no descriptor of its own.
            return
        # No transport is left: each is kept by a Connection, which keeps its poller.
        for fd in (s.epfd, self.stop_fd, s.server_fd, s.wake_fd):
            if fd >= 0:
                close(fd)
        pthread_mutex_destroy(&s.lock)

    @property
    def connections(self):
        """How many connections are not closed."""
        return self.sockets.connections

    @property
    def queue_bytes_max(self):
        """Unsent bytes of a connection at which its peer counts as busy."""
        return self.sockets.queue_bytes_max

    def fileno(self):
        """Readable when there is something for the cluster server, until `drain`."""
        return self.sockets.server_fd

    def drain(self):
        """Make `fileno` unreadable again; to be done before looking for what there is."""
        cdef uint64_t count
        self.check_owner()
        read(self.sockets.server_fd, &count, 8)

    def nudge(self):
        """Make `fileno` readable. For any thread; never blocks."""
        self.check_owner()
        signal(self.sockets.server_fd)

    def watch(self, int fd):
        """Have the executor woken, when it sleeps here, by this descriptor: its inbox's."""
        self.check_owner()
        cdef int failed = add_to_epoll(&self.sockets, fd, NULL)
        if failed:
            raise OSError(failed, "epoll_ctl")

    def attach(
        self, int fd, Session session not None, bytes leftover not None=b"", *, bint initiated=False
    ):
        """Take over a connected socket after its handshake.

        :param fd: from now on the poller's to close; it stays the caller's if this raises.
        :param leftover: what came behind the handshake.
        :raises OSError: if it cannot be polled.
        """
        cdef Sockets* s = &self.sockets
        cdef Connection connection = Connection.__new__(Connection, MAKING)
        cdef Transport* t = connection.transport
        cdef int failed
        cdef size_t size = PyBytes_GET_SIZE(leftover)
        self.check_owner()
        connection.session = session
        connection.frame_encoder = session.frame_encoder
        connection.poller = self
        connection.initiated = initiated
        connection.monitoring = {}
        connection.monitored_by = {}
        if append(&t.recv_buffer, PyBytes_AS_STRING(leftover), size) != 0:
            raise MemoryError
        t.fd = fd
        t.bulk_unsent = <volatile size_t*>&session.frame_encoder.bulk.unsent
        t.received_ns = t.pinged_ns = t.progress_ns = monotonic_ns()
        with nogil:
            failed = admit(s, t)
        if failed:
            # It stays CLOSED, and the descriptor the caller's.
            t.fd = -1
            raise OSError(failed, "epoll_ctl")
        with nogil:
            pthread_mutex_lock(&s.lock)
            split_frames(s, t)
            pthread_mutex_unlock(&s.lock)
        return connection

    def run(self):
        """What the poll thread does until `stop`: heartbeats, and looks in the executor's place.

        :raises RuntimeError: if another thread does that already.
        """
        self.check_owner()
        if self.running:
            raise RuntimeError("this Poller has its thread already")
        self.running = True
        with nogil:
            poll_until_stopped(self)
        self.running = False

    def stop(self):
        """End `run`. For any thread; never blocks."""
        self.check_owner()
        self.stopping = True
        signal(self.stop_fd)

    # For tests, which have no executor.

    def poll(self):
        """Look at the sockets once; returns whether something may be there to be taken."""
        self.check_owner()
        with nogil:
            self.look()
        return self.sockets.pending

    def flush_session(self, Connection connection not None):
        """Send what the connection's session has encoded."""
        self.check_idle(connection)
        self.flush(connection)

    def take_frames(self, Connection connection not None, size_t most=65536):
        """The whole frames that came, of at most so many bytes, but one at least.

        Those of the data lane come before those of the bulk lane.
        """
        cdef const unsigned char* frames
        self.check_idle(connection)
        cdef size_t size = self.take(connection, most, BATCH_FRAMES_MAX, False, &frames)
        if size == 0:
            size = self.take(connection, most, BATCH_FRAMES_MAX, True, &frames)
        frames_in = PyBytes_FromStringAndSize(<const char*>frames, size)
        if connection.window_update_due:
            self.flush(connection)
        return frames_in

    cdef int check_idle(self, Connection connection) except -1:
        """Nothing here may move the bytes that a session is just reading or writing."""
        if connection.poller is not self:
            raise ValueError("the connection is another Poller's")
        if connection.frame_encoder.is_encoding or connection.session.frame_decoder.is_decoding:
            raise RuntimeError("a message that is encoded or decoded made its own session go on")
        return self.check_owner()

    cdef int check_owner(self) except -1:
        """In a forked child the lock may be held by a thread that is not there."""
        if self.owner != getpid():
            raise RuntimeError(
                f"this Poller is of process {self.owner}, and this is its forked child"
            )
        return 0

    # For the executor.

    cdef void look(self) noexcept nogil:
        """Look at the sockets, unless the poll thread does just that."""
        cdef Sockets* s = &self.sockets
        if pthread_mutex_trylock(&s.lock) == 0:
            poll_sockets(s)
            s.polled_ns = monotonic_ns()
            pthread_mutex_unlock(&s.lock)

    cdef bint fall_asleep(self) noexcept nogil:
        """Take over the sockets for the time of a sleep. False if there is something to do."""
        cdef Sockets* s = &self.sockets
        cdef bint asleep
        pthread_mutex_lock(&s.lock)
        s.inbox_ready = False
        asleep = not s.pending
        s.sleeper = asleep
        pthread_mutex_unlock(&s.lock)
        return asleep

    cdef void wake_up(self, bint stays_asleep) noexcept nogil:
        """Look at the sockets after a sleep. Then `pending` and `inbox_ready` tell what is there.

        :param stays_asleep: go on sleeping if there is nothing.
        """
        cdef Sockets* s = &self.sockets
        pthread_mutex_lock(&s.lock)
        s.sleeper = False
        poll_sockets(s)
        s.polled_ns = monotonic_ns()
        s.sleeper = stays_asleep and not s.pending and not s.inbox_ready
        pthread_mutex_unlock(&s.lock)

    cdef int flush(self, Connection connection) except -1:
        """Hand over what the connection's session has encoded, and send what the kernel takes."""
        cdef Sockets* s = &self.sockets
        cdef FrameEncoder frame_encoder = connection.frame_encoder
        cdef uint64_t consumed = connection.bulk_consumed if connection.window_update_due else 0
        connection.is_dirty = False
        if connection.window_update_due:
            connection.window_update_due = False
            connection.bulk_acknowledged = consumed
            if (
                frame_encoder.data.size
                and connection.transport.queued == 0
                and frame_encoder.data.capacity - frame_encoder.data.size >= FRAME_HEADER + 8
            ):
                # It need not overtake anything, so one send does for both. There is room for it:
                # were it lost for want of memory, the peer would wait for it for ever.
                frame_encoder.write_window_update(consumed)
                consumed = 0
        if pthread_mutex_trylock(&s.lock) == 0:
            flush_locked(
                s, connection.transport, &frame_encoder.data, &frame_encoder.bulk.own,
                &frame_encoder.bulk.frames, frame_encoder.bulk.size, consumed,
            )
            pthread_mutex_unlock(&s.lock)
        else:
            # Who has the GIL meanwhile must not write more, which could move these bytes.
            frame_encoder.is_encoding = True
            with nogil:
                pthread_mutex_lock(&s.lock)
                flush_locked(
                    s, connection.transport, &frame_encoder.data, &frame_encoder.bulk.own,
                    &frame_encoder.bulk.frames, frame_encoder.bulk.size, consumed,
                )
                pthread_mutex_unlock(&s.lock)
            frame_encoder.is_encoding = False
        frame_encoder.data.size = 0
        # Of a connection that is not open they were not taken over.
        forget_frames(&frame_encoder.bulk)
        if connection.transport.bulk_sent_frames:
            self.let_go(connection)
        return 0

    cdef bint let_go(self, Connection connection) noexcept:
        """Drop the messages that have gone out. False if that is to be tried again."""
        cdef Transport* t = connection.transport
        cdef GatherFrame* frame
        if pthread_mutex_trylock(&self.sockets.lock) != 0:
            return False
        frame = <GatherFrame*>(t.bulk_frames.data + t.bulk_frames.head)
        while t.bulk_sent_frames:
            # Bytes and nothing else: their end runs no code of anybody's.
            Py_XDECREF(frame.message)
            frame += 1
            t.bulk_sent_frames -= 1
            consume(&t.bulk_frames, sizeof(GatherFrame))
        pthread_mutex_unlock(&self.sockets.lock)
        return True

    cdef size_t take(
        self,
        Connection connection,
        size_t most,
        int frames_most,
        bint bulk,
        const unsigned char** frames,
    ) noexcept:
        """Whole frames that came on one lane: where they are until the next call, and their size.

        What is taken over under the lock is all there is, without a copy; given out are at most
        `frames_most` frames of `most` bytes at a time, but one frame at least.
        """
        cdef Sockets* s = &self.sockets
        cdef Transport* t = connection.transport
        cdef ByteQueue* decoding = &connection.decoding_bulk if bulk else &connection.decoding
        cdef size_t size
        cdef bint locked
        if length(&connection.decoding) == 0:
            locked = pthread_mutex_trylock(&s.lock) == 0
            if locked:
                take_locked(
                    s, t, &connection.decoding, &connection.decoding_bulk, &connection.bulk_waits
                )
                pthread_mutex_unlock(&s.lock)
            else:
                with nogil:
                    pthread_mutex_lock(&s.lock)
                    # Another thread that took them over meanwhile has not given out all of them.
                    if length(&connection.decoding) == 0:
                        take_locked(
                            s, t, &connection.decoding, &connection.decoding_bulk,
                            &connection.bulk_waits,
                        )
                    pthread_mutex_unlock(&s.lock)
        if bulk and connection.bulk_waits:
            return 0
        size = some_frames(decoding, most, frames_most)
        if bulk and size:
            connection.bulk_consumed += size
            # Sent too often, it would wake a peer that has not yet room enough to go on.
            if (
                connection.bulk_consumed - connection.bulk_acknowledged >= BULK_WINDOW // 4
                or length(decoding) == size and length(&t.recv_bulk) == 0
            ):
                connection.window_update_due = True
        frames[0] = decoding.data + decoding.head
        decoding.head += size
        if decoding.head == decoding.tail:
            # Its buffer stays, for the next trade, and the bytes in it until then.
            decoding.head = decoding.tail = 0
            if not bulk:
                connection.bulk_waits = False
        return size


cdef void poll_until_stopped(Poller p) noexcept nogil:
    cdef Sockets* s = &p.sockets
    cdef int64_t now
    cdef int64_t tick = min(s.heartbeat_ns // 4, 250_000_000)
    cdef bint has_more = False
    while not p.stopping:
        if not has_more:
            wait_readable(p.stop_fd, tick if s.sleeper or s.idle else min(tick, BUSY_TICK_NS))
        pthread_mutex_lock(&s.lock)
        now = monotonic_ns()
        if not s.sleeper and (has_more or now - s.polled_ns > STUCK_NS):
            has_more = poll_sockets(s)
        else:
            has_more = False
        keep_alive(s, now)
        pthread_mutex_unlock(&s.lock)


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
