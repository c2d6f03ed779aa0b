from libc.stdint cimport int64_t

from rabble._core.backlog cimport Backlog
from rabble._core.connection cimport Connection
from rabble._core.contexts cimport Thread
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport NodeId
from rabble._core.poller cimport Poller
from rabble._core.queue cimport EnvelopeQueue

cdef enum SendStatus:
    SENT = 0
    NOT_CONNECTED = 1    # no connection leads there
    PEER_BUSY = 2        # as much waits for that peer as may
    UNENCODABLE = 3      # it cannot travel: `Executor.route` says so, `Routes.send` raises

cdef class Routes:
    cdef readonly Poller poller      # whose the connections are
    cdef Backlog backlog             # of the run queue that envelopes are routed from
    cdef Thread* thread              # the executor's, in which messages are built
    cdef dict by_name                # the peer's name -> Connection
    cdef list connections            # the same ones
    cdef NodeId recent_node          # the one asked for last that has a connection, or None ...
    cdef Connection recent           # ... and that: most of what is sent goes where the last went
    cdef list dirty                  # those with something to be flushed
    cdef Py_ssize_t first            # of `connections`, where the next receiving begins
    cdef Py_ssize_t decoded          # how many were decoded that may not be delivered yet ...
    cdef size_t decoded_mark         # ... and how many will have been popped when they are
    cdef readonly int64_t envelopes_sent     # handed to connections
    cdef readonly int64_t batches_received   # of frames, taken from them

    cdef Connection find(self, NodeId node)
    cdef void forget_recent(self) noexcept
    cdef int add(self, Connection connection) except -1
    cdef bint remove(self, Connection connection) except -1
    cdef int send(self, Envelope envelope) except -1
    cdef void notify_when_writable(self, Connection connection) noexcept
    cdef int write_lost(self, Connection connection) except -1
    cdef int touch(self, Connection connection) except -1
    cdef int flush(self) except -1
    cdef list receive(self, EnvelopeQueue queue, size_t popped)
    cdef void shrunk(self, size_t end) noexcept
    # What stood at these places of the run queue was taken out of it.
    cdef int moved_up(self, list places) except -1
    # What is delivered now may have been returned before the processes were told of a connection.
    cdef inline bint is_untold(self, Connection connection) noexcept:
        return (
            not connection.is_told
            or <Py_ssize_t>(connection.told_mark - self.backlog.popped) >= 0
        )
    cdef bint holds(self, Connection connection) noexcept
    cdef int receive_all(self, Connection connection, EnvelopeQueue queue) except -1
    cdef int receive_batch(
        self, Connection connection, EnvelopeQueue queue, int frames_most
    ) except -1
