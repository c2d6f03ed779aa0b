# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False
"""The poller: the sockets of a node's connections, and which thread looks at them.

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
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close, getpid, read

from rabble._core.byte_queue cimport append
from rabble._core.capacities cimport BATCH_FRAMES_MAX, LARGE_BYTES, RECORD_BYTES_BEGIN
from rabble._core.client_socket cimport close_inherited_clients
from rabble._core.connection cimport Connection, check_owner, new_connection
from rabble._core.inbox cimport monotonic_ns, new_eventfd, wait_readable
from rabble._core.keep_alive cimport keep_alive
from rabble._core.linux cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_DEL,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    sched_yield,
)
from rabble._core.mac cimport MAC_KEY_BYTES
from rabble._core.receive cimport poll_sockets, split_frames, verify_records
from rabble._core.session cimport Session
from rabble._core.texts cimport bounded_repr, type_name
from rabble._core.transport cimport (
    CLOSED,
    Sockets,
    Transport,
    add_to_epoll,
    admit,
    signal,
)

__all__ = ["Poller"]

cdef enum:
    STUCK_NS = 2_000_000              # after which the poll thread looks in the executor's place
    BUSY_TICK_NS = 50_000_000         # how often it looks whether it has to
    GIVE_WAY_TIMES = 4                # at most; fewer saved less, see docs/benchmarks.md
    GIVE_WAY_NS = 20_000_000          # beside others that compute, once or twice is enough

cdef extern from *:
    """
    #define RABBLE_MS_MAX (INT64_C(366) * 24 * 60 * 60 * 1000)
    #define RABBLE_BYTES_MAX (INT64_C(1) << 62)
    """
    const int64_t MS_MAX "RABBLE_MS_MAX"
    const int64_t BYTES_MAX "RABBLE_BYTES_MAX"


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


cdef int authenticate(Transport* t, tuple keys) except -1:
    """Have both directions of a transport cut into records, under these keys."""
    if len(keys) != 2 or {(type(key), len(key)) for key in keys} != {(bytes, MAC_KEY_BYTES)}:
        raise ValueError(f"Poller: stream_keys must be two of {MAC_KEY_BYTES} bytes, or None")
    memcpy(t.sealing.key, PyBytes_AS_STRING(keys[0]), MAC_KEY_BYTES)
    memcpy(t.verifying.key, PyBytes_AS_STRING(keys[1]), MAC_KEY_BYTES)
    t.is_authenticated = True
    t.record_bytes = RECORD_BYTES_BEGIN
    return 0


cdef void close_if_open(int fd) noexcept:
    if fd >= 0:
        close(fd)


# It refers to no object, so there is nothing for the garbage collector to see: its connections
# refer to it.
@cython.final
cdef class Poller:
    """The sockets of one node's connections.

    :param heartbeat_ms: how often it sends PING; 1 ms to 366 days.
    :param frame_bytes_max: the longest frame that is taken, without its length field: 32 to 2**31.
    :param queue_bytes_max: unsent bytes of a connection at which its peer counts as busy: 1 to
        2**62.
    :param partial_ms_max: how long a frame may take from its first byte to its last; 1 ms to 366
        days.
    :raises TypeError: if one of them is no int.
    :raises ValueError: if one of them is out of range.
    :raises OSError: if the system has no descriptor left.

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
        s.owner = getpid()
        s.epfd = epoll_create1(EPOLL_CLOEXEC)
        if s.epfd < 0:
            PyErr_SetFromErrno(OSError)
        self.stop_fd = new_eventfd(0)
        self.inbox_fd = -1
        s.server_fd = new_eventfd(0)
        s.wake_fd = new_eventfd(0)
        s.clients.epfd = s.epfd
        s.clients.wake_fd = s.wake_fd
        s.clients.sleeper = &s.sleeper
        cdef int failed = add_to_epoll(s, s.wake_fd, s)
        if failed:
            raise OSError(failed, "epoll_ctl")

    def __dealloc__(self):
        cdef Sockets* s = &self.sockets
        if s.owner == 0:
            # Its arguments were wrong, and nothing was opened: 0 is no descriptor of its own.
            return
        # No transport is left: each is kept by a Connection, which keeps its poller. So do clients.
        PyMem_RawFree(s.clients.scratch)
        # (One by one: a loop over them would make a tuple, for which there may be no memory.)
        close_if_open(s.epfd)
        close_if_open(self.stop_fd)
        close_if_open(s.server_fd)
        close_if_open(s.wake_fd)
        pthread_mutex_destroy(&s.lock)

    @property
    def connections(self):
        """How many connections are not closed."""
        return self.sockets.connections

    @property
    def clients(self):
        """How many connections of clients are not closed."""
        return self.sockets.clients.connections

    @property
    def queue_bytes_max(self):
        """Unsent bytes of a connection at which its peer counts as busy."""
        return self.sockets.queue_bytes_max

    def fileno(self):
        """A descriptor, which is readable when there is something for the cluster server.

        It stays so until `drain`. For any thread.
        """
        return self.sockets.server_fd

    def drain(self):
        """Make `fileno` unreadable again; to be done before looking for what there is.

        For the cluster server's thread.
        """
        cdef uint64_t count
        check_owner(&self.sockets)
        read(self.sockets.server_fd, &count, 8)

    def nudge(self):
        """Make `fileno` readable. For any thread; never blocks."""
        check_owner(&self.sockets)
        signal(self.sockets.server_fd)

    def give_way(self):
        """Let others have the processor, if they want it: the thread stays ready.

        Where the peers are on the same machine and it has not enough processors, they say more
        meanwhile than one thing. For any thread.
        """
        cdef int _
        cdef int64_t until = monotonic_ns() + GIVE_WAY_NS
        with nogil:
            for _ in range(GIVE_WAY_TIMES):
                sched_yield()
                if monotonic_ns() >= until:
                    break

    def watch(self, int fd):
        """Have a descriptor wake the executor when it sleeps here: that of its inbox.

        For the thread that makes the node.

        :raises OSError: if it cannot be polled.
        """
        check_owner(&self.sockets)
        cdef int failed = add_to_epoll(&self.sockets, fd, NULL)
        if failed:
            raise OSError(failed, "epoll_ctl")
        self.inbox_fd = fd

    def executor_ended(self):
        """From now on the poll thread waits for the sockets itself. For the executor's thread.

        What waits for the peers is sent as fast as they take it. Without memory for that the poll
        thread goes on to look now and then.
        """
        cdef Sockets* s = &self.sockets
        cdef epoll_event unused
        check_owner(s)
        if self.inbox_fd >= 0:
            # Nobody reads it any more: it would be ready for ever.
            epoll_ctl(s.epfd, EPOLL_CTL_DEL, self.inbox_fd, &unused)
            self.inbox_fd = -1
        self.is_alone = self.is_alone or add_to_epoll(s, self.stop_fd, s) == 0

    def attach(
        self, int fd, Session session not None, bytes leftover not None=b"", *,
        bint initiated=False, tuple stream_keys=None,
    ):
        """Take over a connected socket after its handshake. For the cluster server's thread.

        :param fd: of the socket, which does not block; from now on the poller's to close. It stays
            the caller's if this raises.
        :param session: what encodes and decodes its frames.
        :param leftover: what came behind the handshake.
        :param initiated: whether this node dialled.
        :param stream_keys: two of 32 bytes if the stream is authenticated: of what is sent, and of
            what is received.
        :returns: the `Connection`.
        :raises OSError: if it cannot be polled.
        :raises ValueError: if the keys are no such two.
        """
        cdef Sockets* s = &self.sockets
        cdef Connection connection
        cdef Transport* t
        cdef int failed
        check_owner(s)
        connection = new_connection(self, s, session, initiated)
        t = connection.transport
        if stream_keys is not None:
            authenticate(t, stream_keys)
        if append(
            &t.recv_records if t.is_authenticated else &t.recv_buffer,
            PyBytes_AS_STRING(leftover), PyBytes_GET_SIZE(leftover),
        ) != 0:
            raise MemoryError
        t.fd = fd
        t.initiated = initiated
        t.bulk_unsent = <volatile size_t*>&session.frame_encoder.bulk.unsent
        t.received_ns = t.pinged_ns = t.progress_ns = t.unanswered_ns = monotonic_ns()
        with nogil:
            failed = admit(s, t)
        if failed:
            # It stays CLOSED, and the descriptor the caller's.
            t.fd = -1
            raise OSError(failed, "epoll_ctl")
        with nogil:
            pthread_mutex_lock(&s.lock)
            if t.is_authenticated:
                verify_records(s, t)
            else:
                split_frames(s, t)
            pthread_mutex_unlock(&s.lock)
        return connection

    def run(self):
        """What the poll thread does until `stop`: heartbeats, and looks in the executor's place.

        :raises RuntimeError: if another thread does that already.
        """
        check_owner(&self.sockets)
        if self.running:
            raise RuntimeError("this Poller has its thread already")
        self.running = True
        with nogil:
            poll_until_stopped(self)
        self.running = False

    def stop(self):
        """End `run`. For any thread; never blocks."""
        check_owner(&self.sockets)
        self.stopping = True
        signal(self.stop_fd)

    def close_inherited(self):
        """In a forked child: close its copies of the descriptors. Elsewhere nothing happens.

        A connection that the parent ends would go on for the peer as long as a child has it open.
        Nothing is taken out of the epoll set, which is the parent's as well, and the lock, which a
        thread that is not here may hold, is not asked for.
        """
        cdef Sockets* s = &self.sockets
        cdef Transport* t = s.first
        if s.owner == 0 or s.owner == getpid():
            return
        while t is not NULL:
            close_if_open(t.fd)
            t.fd = -1
            t.state = CLOSED
            t = t.next
        s.connections = 0
        close_inherited_clients(&s.clients)
        close_if_open(s.epfd)
        close_if_open(self.stop_fd)
        close_if_open(s.server_fd)
        close_if_open(s.wake_fd)
        s.epfd = self.stop_fd = s.server_fd = s.wake_fd = -1

    # For tests, which have no executor.

    def poll(self):
        """Look at the sockets once; returns whether something may be there to be taken."""
        check_owner(&self.sockets)
        with nogil:
            self.look()
        return self.sockets.pending or self.sockets.clients.pending

    def flush_session(self, Connection connection not None):
        """Send what the connection's session has encoded."""
        self.check_idle(connection)
        connection.flush()

    def take_frames(self, Connection connection not None, size_t most=65536):
        """The bytes of the whole frames that came: those of the data lane before those of bulk.

        :param most: bytes that they have together at most, unless the first has more.
        """
        cdef const unsigned char* frames
        self.check_idle(connection)
        cdef size_t size = connection.take(most, BATCH_FRAMES_MAX, False, &frames)
        if size == 0:
            size = connection.take(most, BATCH_FRAMES_MAX, True, &frames)
        frames_in = PyBytes_FromStringAndSize(<const char*>frames, size)
        if connection.window_update_due:
            connection.flush()
        return frames_in

    cdef int check_idle(self, Connection connection) except -1:
        """Nothing here may move the bytes that a session is just reading or writing."""
        if connection.poller is not self:
            raise ValueError("the connection is another Poller's")
        if connection.frame_encoder.is_encoding or connection.session.frame_decoder.is_decoding:
            raise RuntimeError("a message that is encoded or decoded made its own session go on")
        return check_owner(&self.sockets)

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
        asleep = not s.pending and not s.clients.pending
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
        s.sleeper = (
            stays_asleep and not s.pending and not s.clients.pending and not s.inbox_ready
        )
        pthread_mutex_unlock(&s.lock)


cdef void poll_until_stopped(Poller p) noexcept nogil:
    cdef Sockets* s = &p.sockets
    cdef int64_t now
    cdef int64_t tick = min(s.heartbeat_ns // 8, 250_000_000)
    cdef bint has_more = False
    while not p.stopping:
        if p.is_alone:
            wait_readable(s.epfd, tick)
        elif not has_more:
            wait_readable(p.stop_fd, tick if s.sleeper or s.idle else min(tick, BUSY_TICK_NS))
        pthread_mutex_lock(&s.lock)
        now = monotonic_ns()
        if p.is_alone or not s.sleeper and (has_more or now - s.polled_ns > STUCK_NS):
            has_more = poll_sockets(s)
        else:
            has_more = False
        keep_alive(s, now)
        pthread_mutex_unlock(&s.lock)
