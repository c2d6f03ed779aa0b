"""Routes: which connection leads to another node, and what goes over it.

All of it belongs to the executor's thread. What is sent within a turn is encoded at once and goes
at the turn's end, or when it fills 64 KiB: one system call for all that goes to one peer. What was
received is decoded in batches. A connection's next batch is taken when the one before has been
delivered, so that no peer fills the run queue faster than it is emptied; and of all connections
together no more is taken at once than is gone again when the garbage collector looks.

What a process returned goes to the start of a node that this node's processes had been told of by
then, or nowhere: a process that stands in the queue before NodeDown and NodeUp knows the start
before. Nothing is stamped for that. When the processes have been told of a connection, all that was
returned before stands in the queue, so its end marks what is not to go over that connection.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.capacities cimport (
    BATCH_BULK_BYTES,
    BATCH_BULK_FRAMES_MIN,
    BATCH_DATA_BYTES,
    BATCH_FRAMES_MAX,
    FLUSH_BYTES,
)
from rabble._core.connection cimport Connection
from rabble._core.envelope cimport Envelope
from rabble._core.failure cimport take_failure
from rabble._core.frame cimport CODE_LIMIT
from rabble._core.ids cimport NodeId, same_node
from rabble._core.poller cimport Poller
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.texts cimport bounded_str

from bisect import bisect_left

from rabble._core.errors import SessionError

__all__ = ["Routes"]

cdef enum:
    TEXT_MAX = 500            # characters of an error's text that the peer is told
    ANSWERS_MAX = 2           # queues' lengths that may wait with the runtime's answers

cdef extern from *:
    """
    #define RABBLE_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    void RABBLE_FENCE() noexcept nogil

cdef extern from "Python.h":
    PyObject* PyDict_GetItem(object mapping, object key) noexcept


cdef bint is_longer(object msg, size_t size):
    if isinstance(msg, (bytes, bytearray, str)):
        return <size_t>len(msg) > size
    return False


@cython.final
cdef class Routes:
    """The connections of one node, by their peers. The executor's thread owns it.

    :param poller: whose they are.
    """

    def __cinit__(self, Poller poller not None):
        self.poller = poller
        self.by_name = {}
        self.connections = []
        self.dirty = []

    def __len__(self):
        return len(self.connections)

    def get(self, NodeId node not None):
        """The connection that leads to that node, or `None`. For the executor's thread."""
        return self.find(node)

    cdef Connection find(self, NodeId node):
        cdef PyObject* found
        cdef Connection connection
        if node is self.recent_node:
            return self.recent
        found = PyDict_GetItem(self.by_name, node.name)
        if found is NULL:
            return None
        connection = <Connection>found
        if not same_node(connection.session.peer, node):
            return None
        self.recent_node = node
        self.recent = connection
        return connection

    cdef void forget_recent(self) noexcept:
        self.recent_node = None
        self.recent = None

    cdef int add(self, Connection connection) except -1:
        self.forget_recent()
        self.by_name[connection.session.peer.name] = connection
        self.connections = self.connections + [connection]
        self.poller.sockets.pending = True
        return 0

    cdef bint remove(self, Connection connection) except -1:
        """False if it was not there."""
        cdef str name = connection.session.peer.name
        if self.by_name.get(name) is not connection:
            return False
        del self.by_name[name]
        self.forget_recent()
        self.connections = [each for each in self.connections if each is not connection]
        return True

    cdef int send(self, Envelope envelope) except -1:
        """Encode an envelope for the peer it goes to; returns a `SendStatus`.

        :raises EncodeError: if it cannot travel.
        """
        cdef Connection connection = self.find(envelope.to.node)
        cdef size_t most
        cdef uint64_t bulk_written
        if connection is None or not connection.is_open():
            return NOT_CONNECTED
        if self.is_untold(connection) and self.backlog.is_of_process(envelope):
            return NOT_CONNECTED
        most = self.poller.sockets.queue_bytes_max
        # Asked before, so that one message may be longer than the whole queue.
        if connection.lost:
            # Full once, it stays so until there is room again for more than one envelope.
            if connection.counted() >= most // 4:
                connection.lost += 1
                connection.frame_encoder.note_refused(envelope)
                return PEER_BUSY
            self.write_lost(connection)
        elif connection.unsent() >= most and connection.counted() >= most:
            connection.lost = 1
            connection.frame_encoder.note_refused(envelope)
            self.notify_when_writable(connection)
            return PEER_BUSY
        bulk_written = connection.frame_encoder.bulk.written
        if connection.large_size and is_longer(envelope.msg, most):
            # Only one overlong message at a time; of other types the length is not known yet.
            connection.counted()
            if connection.large_size:
                connection.lost = 1
                connection.frame_encoder.note_refused(envelope)
                self.notify_when_writable(connection)
                return PEER_BUSY
        connection.frame_encoder.write_envelope(envelope, None)
        if connection.frame_encoder.bulk.written - bulk_written > most:
            connection.large_size = connection.frame_encoder.bulk.written - bulk_written
            connection.large_end = connection.frame_encoder.bulk.written
        self.envelopes_sent += 1
        self.touch(connection)
        return SENT

    cdef void notify_when_writable(self, Connection connection) noexcept:
        """Have the executor look again once there is room, which there may be by now."""
        connection.transport.notify_writable = True
        RABBLE_FENCE()
        if connection.counted() < self.poller.sockets.queue_bytes_max // 4:
            self.poller.sockets.pending = True

    cdef int write_lost(self, Connection connection) except -1:
        connection.frame_encoder.write_lost(connection.lost)
        connection.lost = 0
        return self.touch(connection)

    cdef int touch(self, Connection connection) except -1:
        """Something was written, by the runtime itself perhaps: see that it is sent."""
        if connection.frame_encoder.data.size + connection.frame_encoder.bulk.size >= FLUSH_BYTES:
            connection.flush()
        elif not connection.is_dirty:
            connection.is_dirty = True
            self.dirty.append(connection)
        return 0

    cdef bint holds(self, Connection connection) noexcept:
        """Whether nothing more of a connection is decoded before its peer has taken what waits.

        A peer that asks, and does not read the answers, is not let fill this node's memory: what it
        sends stays where it is. If it takes nothing at all for a while, that ends the connection,
        see `keep_alive`.
        """
        cdef size_t most = ANSWERS_MAX * self.poller.sockets.queue_bytes_max
        if connection.answers() <= most or not connection.is_open():
            return False
        # Said first, and then looked at again: who sends looks at it without the GIL.
        connection.transport.holds_answers = True
        RABBLE_FENCE()
        if connection.answers() > most:
            return True
        connection.transport.holds_answers = False
        return False

    cdef int flush(self) except -1:
        """Send what was written since the last time."""
        cdef Connection connection
        cdef list dirty = self.dirty
        self.dirty = []
        for connection in dirty:
            if connection.is_dirty:
                connection.flush()
        return 0

    cdef list receive(self, EnvelopeQueue queue, size_t popped):
        """Decode a batch of connections that have one; returns those that have come to an end.

        All of them together fill up one batch, and take turns: the first next time is the first
        that found no room, or the one behind who took it. The next batch is due when
        this one has been delivered, or, if a long queue of others is before it, in the next turn.

        :param queue: where it goes, behind what is there.
        :param popped: how many were ever taken out of `queue`.
        """
        cdef Connection connection
        cdef list over = None
        cdef size_t before = queue.count()
        cdef Py_ssize_t connections = len(self.connections)
        cdef Py_ssize_t at = self.first if self.first < connections else 0
        cdef Py_ssize_t next_first = -1
        cdef Py_ssize_t _
        cdef int left
        if (
            <Py_ssize_t>(self.decoded_mark - popped) <= 0
            or <Py_ssize_t>before - self.decoded >= BATCH_FRAMES_MAX
        ):
            self.decoded = 0
        # First of all: what comes from now on sets it again.
        self.poller.sockets.pending = False
        RABBLE_FENCE()
        for _ in range(connections):
            connection = <Connection>self.connections[at]
            at = at + 1 if at + 1 < connections else 0
            if connection.has_received() and not self.holds(connection):
                if <Py_ssize_t>(connection.batch_end - popped) > 0:
                    self.poller.sockets.pending = True
                    continue
                left = BATCH_FRAMES_MAX - <int>self.decoded
                if left <= 0:
                    self.poller.sockets.pending = True
                    if next_first < 0:
                        next_first = at - 1 if at > 0 else connections - 1
                    continue
                before = queue.count()
                self.receive_batch(connection, queue, left)
                self.decoded += queue.count() - before
                self.decoded_mark = connection.batch_end = popped + queue.count()
                if connection.has_received() and not self.holds(connection):
                    self.poller.sockets.pending = True
                    if next_first < 0:
                        next_first = at
            if connection.transport.bulk_sent_frames and not connection.let_go():
                self.poller.sockets.pending = True
            if connection.lost and connection.is_open():
                # The peer learns of the hole though nothing may follow it.
                if connection.counted() < self.poller.sockets.queue_bytes_max // 4:
                    self.write_lost(connection)
                else:
                    self.notify_when_writable(connection)
            if not connection.is_open() and not connection.has_received():
                if <Py_ssize_t>(connection.batch_end - popped) > 0:
                    # What it sent last, a Down say, has not had its turn yet.
                    self.poller.sockets.pending = True
                    continue
                if over is None:
                    over = []
                over.append(connection)
        if next_first >= 0:
            self.first = next_first
        return over

    cdef void shrunk(self, size_t end) noexcept:
        """What was queued has been taken out again: no batch ends behind `end`, the queue's.

        Else who waits until a batch was delivered would wait for ever.
        """
        cdef Connection connection
        for connection in self.connections:
            if <Py_ssize_t>(connection.batch_end - end) > 0:
                connection.batch_end = end
        if <Py_ssize_t>(self.decoded_mark - end) > 0:
            self.decoded_mark = end

    cdef int moved_up(self, list places) except -1:
        cdef Connection connection
        for connection in self.connections:
            connection.told_mark -= <size_t>bisect_left(places, connection.told_mark)
        return 0

    cdef int receive_all(self, Connection connection, EnvelopeQueue queue) except -1:
        """Decode all that a connection has received so far."""
        while connection.has_received():
            self.receive_batch(connection, queue, BATCH_FRAMES_MAX)
        return 0

    cdef int receive_batch(
        self, Connection connection, EnvelopeQueue queue, int frames_most
    ) except -1:
        """Decode some of the data lane, and then of the bulk lane less than what delays others.

        Whatever is wrong with it ends this connection: what the peer sent, or that there is no
        memory for it.
        """
        cdef const unsigned char* frames
        self.batches_received += 1
        if (<quiet_decode><void*>decode)(
            self, connection, queue, frames_most
        ) < 0:
            error = take_failure()
            if type(error) is SessionError:
                connection.close(error.code, error.text)
            else:
                connection.close(
                    CODE_LIMIT, f"it could not be decoded: {bounded_str(error, TEXT_MAX)}"
                )
            # Nothing of it is read any more.
            while connection.has_received():
                connection.take(BATCH_DATA_BYTES, BATCH_FRAMES_MAX, False, &frames)
                connection.take(BATCH_DATA_BYTES, BATCH_FRAMES_MAX, True, &frames)
        return 0


ctypedef int (*quiet_decode)(
    Routes routes, Connection connection, EnvelopeQueue queue, int frames_most
) noexcept


cdef int decode(
    Routes routes, Connection connection, EnvelopeQueue queue, int frames_most
) except -1:
    cdef bint bulk
    cdef size_t size
    cdef size_t before = queue.count()
    cdef const unsigned char* frames
    for bulk in (False, True):
        if bulk:
            # A little in any case: it must not starve.
            frames_most = max(frames_most - <int>(queue.count() - before), BATCH_BULK_FRAMES_MIN)
        size = connection.take(
            BATCH_BULK_BYTES if bulk else BATCH_DATA_BYTES, frames_most, bulk, &frames
        )
        if size:
            connection.session.frame_decoder.read_batch(frames, size, queue, routes.thread)
            if bulk and connection.window_update_due:
                routes.touch(connection)
    return 0
