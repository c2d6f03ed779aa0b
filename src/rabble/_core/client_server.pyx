"""Servers and the connections of their clients: what the desk of an executor works on.

A server's parts belong to the executor's thread, but that another thread, which accepts, adds
connections. Each of these is kept by its server until its socket is closed, so the socket's struct,
which refers to the connection, never outlives it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawMalloc
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strerror
from posix.unistd cimport getpid

from rabble._core.byte_queue cimport drop
from rabble._core.client_codec cimport NO_ID, ClientCodec
from rabble._core.client_requests cimport ClientRequests
from rabble._core.client_socket cimport (
    CLIENT_CLOSED,
    END_DRAIN,
    END_IDLE,
    END_PARTIAL,
    END_SLOW,
    END_TOO_LARGE,
    add_rules,
    admit_client,
    release_client,
    remove_rules,
)
from rabble._core.connection cimport check_owner
from rabble._core.executor cimport Executor
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from rabble._core.poller cimport Poller

from rabble._core.client_socket import ENDS

__all__ = ["ClientConnection", "ClientServer"]

cdef enum:
    LONG_ANSWERS = 16        # that the buffer of a client has room for

cdef dict TEXTS = {
    END_TOO_LARGE: "a frame was longer than this server takes",
    END_IDLE: "nothing was asked for a long time",
    END_PARTIAL: "a frame was not finished in time",
    END_SLOW: "what was answered was not read",
    END_DRAIN: "the server ends",
}

# Whoever has this may make a ClientConnection: nobody but this module.
cdef object MAKING = object()


# Seen by the garbage collector, as its handler leads anywhere. Nothing is taken away from it: each
# cycle goes through a handler or a dict, which are cut.
@cython.final
@cython.no_gc_clear
cdef class ClientConnection:
    """One client's connection, as its handler sees it: `ConnectionHandler` shows its properties.

    :raises TypeError: always, when it is called.
    """

    def __cinit__(self, *arguments, **more):
        if more or len(arguments) != 1 or arguments[0] is not MAKING:
            raise TypeError("a ClientConnection cannot be made by itself: a server accepts them")
        self.socket = <ClientSocket*>calloc(1, sizeof(ClientSocket))
        if self.socket is NULL:
            raise MemoryError
        self.socket.state = CLIENT_CLOSED
        self.socket.fd = -1
        self.socket.connection = <void*>self
        self.first = -1
        self.id_newest = NO_ID

    def __dealloc__(self):
        drop(&self.staged)
        if self.socket is NULL:
            return
        # In a forked child the lock may be held by a thread that is not here.
        if self.poller is not None and getpid() == self.poller.sockets.owner:
            with nogil:
                pthread_mutex_lock(&self.poller.sockets.lock)
                release_client(&self.poller.sockets.clients, self.socket)
                pthread_mutex_unlock(&self.poller.sockets.lock)
            free(self.socket)

    @property
    def server_pid(self):
        """The pid of the server, at which `id` reaches the handler."""
        return self.server.pid

    @property
    def now(self):
        """Monotonic seconds at which the executor's current batch of deliveries began."""
        return self.server.executor.scene.batch_ns / 1e9


@cython.final
@cython.no_gc_clear
cdef class ClientServer:
    """A server of one node: the rules of its connections, and these.

    :param executor: in whose thread the handlers run; it looks at the sockets of `poller` already.
    :param pid: of the server.
    :param make_handler: a function that makes the `ConnectionHandler` of each connection.
    :param codec: of the clients' frames.
    :param gate: a `Gate`, or `None`: all requests are admitted.
    :param front: an `AdmissionQueue` in front of it, if there is one.
    :param nodes: of each other node through which the gate wants canaries, its name for the gate
        and the pid that answers them.
    :param pressures: returns how full queues behind the gate are, by their names.
    :param changed: called with what the gate says of changes of its state; returns the pids that
        are to be told.
    :param closed: called with the host of each connection that was closed.
    :param notify: wakes the thread that accepts. Neither may block.

    The other parameters are those of `ServerLimits` in the core's units.

    :raises OSError: if a frame for its goodbyes cannot be made.
    """

    def __cinit__(
        self, Executor executor not None, Poller poller not None, Pid pid not None, *,
        make_handler, ClientCodec codec not None, gate, front, tuple nodes, pressures, changed,
        closed, notify,
        size_t frame_bytes_max, size_t unsent_bytes_max, int64_t idle_ns_max,
        int64_t partial_ns_max, int64_t stuck_ns_max, int64_t linger_ns_max,
        int requests_per_connection_max, int requests_max, int64_t request_ns_max,
        int64_t retry_ms,
    ):
        cdef int added
        self.executor = executor
        self.poller = poller
        self.pid = pid
        self.make_handler = make_handler
        self.codec = codec
        self.gate = gate
        self.front = front
        self.nodes = nodes
        self.pressures = pressures
        self.pressed = {}
        self.changed = changed
        self.closed = closed
        self.notify = notify
        self.rules.framing = codec.framing
        self.rules.delimiter = <unsigned char>max(codec.delimiter, 0)
        self.rules.frame_bytes_max = frame_bytes_max
        self.rules.unsent_bytes_max = unsent_bytes_max
        self.rules.unsent_bytes_low = unsent_bytes_max // 2
        self.rules.idle_ns_max = idle_ns_max
        self.rules.partial_ns_max = partial_ns_max
        self.rules.stuck_ns_max = stuck_ns_max
        self.rules.linger_ns_max = linger_ns_max
        self.requests = ClientRequests(requests_max, executor.now_ns())
        self.connections = {}
        self.dirty = []
        self.held = []
        if gate is not None:
            executor.backlog.watch()
        self.in_flight_max = 1 if codec.is_ordered else requests_per_connection_max
        self.request_ns_max = request_ns_max
        self.delay_ms = request_ns_max // 1_000_000
        self.request_ms = self.delay_ms
        self.retry_ms = retry_ms
        for end, text in TEXTS.items():
            self.keep_goodbye(end, codec.write_frame("goodbye", code=ENDS[end], text=text))
        check_owner(&poller.sockets)
        with nogil:
            pthread_mutex_lock(&poller.sockets.lock)
            added = add_rules(&poller.sockets.clients, &self.rules)
            pthread_mutex_unlock(&poller.sockets.lock)
        if added != 0:
            raise MemoryError

    def __dealloc__(self):
        # Its connections are gone: each keeps its server.
        if self.poller is not None and getpid() == self.poller.sockets.owner:
            with nogil:
                pthread_mutex_lock(&self.poller.sockets.lock)
                remove_rules(&self.poller.sockets.clients, &self.rules)
                pthread_mutex_unlock(&self.poller.sockets.lock)

    cdef int keep_goodbye(self, int end, bytes frame) except -1:
        """Keep the last frame of an end that comes without the executor."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame)
        cdef unsigned char* data = <unsigned char*>PyMem_RawMalloc(size + 1)
        if data is NULL:
            raise MemoryError
        memcpy(data, PyBytes_AS_STRING(frame), size)
        self.rules.goodbyes[end] = data
        self.rules.goodbye_sizes[end] = size
        return 0

    def attach(self, int fd, str peer not None, str host not None):
        """Take over the socket of a client that was accepted. For the thread that accepts.

        :param fd: which does not block, the server's to close from now on; if this raises it stays
            the caller's.
        :param peer: the client's address.
        :param host: of it: what `closed` is given in the end.
        :raises OSError: if it cannot be polled.
        """
        cdef Poller poller = self.poller
        cdef ClientConnection conn
        cdef int failed
        check_owner(&poller.sockets)
        conn = ClientConnection(MAKING)
        conn.server = self
        conn.number = self.numbers
        self.numbers += 1
        conn.id = CorrelationId(self.pid, conn.number)
        conn.peer = peer
        conn.host = host
        conn.poller = poller
        conn.socket.fd = fd
        conn.socket.rules = &self.rules
        # Until the first answer each is taken for a long one, see `relent`.
        conn.answer_bytes = max(self.rules.unsent_bytes_max // LONG_ANSWERS, <size_t>1)
        conn.socket.room = min(self.in_flight_max, <int>LONG_ANSWERS)
        # First: from the moment that it is watched the executor may find it.
        self.connections[conn.number] = conn
        with nogil:
            pthread_mutex_lock(&poller.sockets.lock)
            failed = admit_client(&poller.sockets.clients, conn.socket)
            pthread_mutex_unlock(&poller.sockets.lock)
        if failed:
            conn.socket.fd = -1
            del self.connections[conn.number]
            raise OSError(failed, strerror(failed).decode())
        # The executor may be asleep on its inbox alone, or spin without looking at sockets.
        self.executor.idle.recall()

    def request_drain(self):
        """Begin nothing more, and close each connection when what was begun is answered.

        Never blocks; for any thread.
        """
        self.wants_drain = True
        self.wake()

    cdef int wake(self) except -1:
        self.executor.inbox.wake()
        self.executor.idle.recall()
        return 0

    def close(self):
        """Close what is left, without a word: at once when the executor has ended, else it does.

        For the thread that accepts. Only the executor's thread lets go of connections, as long as
        it runs: it may be in the middle of a batch of theirs.
        """
        self.wants_close = True
        if self.executor.letters.closed:
            self.cut()
        else:
            self.wake()

    cdef int cut(self) except -1:
        cdef ClientConnection conn
        cdef Poller poller = self.poller
        connections = self.connections
        self.connections = {}
        if self.front is not None:
            self.front.drop_all()
            self.waiting = 0
        for conn in connections.values():
            # Which refers to the connection.
            conn.handler = None
            conn.is_over = True
            with nogil:
                pthread_mutex_lock(&poller.sockets.lock)
                release_client(&poller.sockets.clients, conn.socket)
                pthread_mutex_unlock(&poller.sockets.lock)
        return 0

    @property
    def open(self):
        """How many connections are not closed."""
        return len(self.connections)

    @property
    def sockets(self):
        """How many sockets of them are not closed, once the executor has ended as well."""
        return self.rules.connections

    @property
    def in_flight(self):
        """How many requests wait for their ends."""
        return self.requests.count

    @property
    def has_gate(self):
        """Whether it has a gate, which has not failed."""
        return self.gate is not None

    @property
    def waiting_for_gate(self):
        """How many requests wait for the gate, and are not begun."""
        return self.waiting
