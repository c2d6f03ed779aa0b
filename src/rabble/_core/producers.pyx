"""Producers: those that send more than they are asked for, and wait where a peer is slow.

A thread or a coroutine hands its envelope over in a `Produce`, in a call to the executor. It stands
in no queue but the producer's own hand until there is room: then it is encoded at once, and the
call ends. So whatever the sizes, and however many produce, one message at most goes beyond the high
mark of the queue: what the one before it takes is known when the next one is looked at. Above the
high mark the envelopes wait, the oldest first, until the queue has fallen below its low mark.

A process, which waits for nothing, sends a `Drain`, and is told by a `Drained`.

All of it belongs to the executor's thread.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport INBOX, PROCESS, Entry
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport NodeId, same_node
from rabble._core.inbox cimport Inbox
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.routes cimport NOT_CONNECTED, SENT, UNENCODABLE
from rabble._core.texts cimport given

from collections import deque

from rabble._core.messages import DeadLetter, DeadLetterReason, Drained, Produce

__all__ = []

cdef enum:
    LOOK_MAX = 256           # who waits and is let go on within one turn

cdef extern from *:
    """
    #define RABBLE_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    void RABBLE_FENCE() noexcept nogil


@cython.final
cdef class Waiting:
    """One that waits for a connection."""


cdef inline size_t low_mark(Executor executor) noexcept:
    return executor.routes.poller.sockets.queue_bytes_max // 4


cdef inline bint is_low(Executor executor, Connection connection) noexcept:
    return connection.unsent() < low_mark(executor)


cdef inline bint has_room(Executor executor, Connection connection) noexcept:
    """Whether the queue is below its high mark, and would refuse nothing.

    It refuses all after the first until it is low, and of overlong messages the second one.
    """
    cdef size_t waits = connection.unsent()
    connection.counted()
    return waits < low_mark(executor) or (
        waits < 3 * low_mark(executor) and not connection.lost and not connection.large_size
    )


cdef inline bint claim(object produce) except -1:
    """Whether its producer still waits: then from now on the envelope is the executor's."""
    cdef list tokens = produce.tokens
    if tokens is None or not tokens:
        return False
    tokens.pop()
    return True


cdef inline bint still_waits(object produce) except -1:
    cdef list tokens = produce.tokens
    return tokens is not None and len(tokens) != 0


@cython.final
cdef class Producers:
    """The producers of one executor.

    :param executor: whose.
    """

    def __cinit__(self, Executor executor not None):
        self.executor = executor
        self.waiting = {}
        self.draining = set()

    cdef int produce(self, Envelope request) except -1:
        cdef Executor executor = self.executor
        cdef object produced = request.msg
        cdef Envelope envelope
        cdef Connection connection = None
        cdef Waiting waiting
        if request.sender is None or request.correlation_id is None:
            raise ValueError("a Produce comes from a call, which it answers")
        if type(produced.envelope) is not Envelope:
            raise TypeError(
                f"Produce: envelope must be an Envelope, not {given(produced.envelope)}"
            )
        envelope = <Envelope>produced.envelope
        if not still_waits(produced):
            return 0
        if same_node(envelope.to.node, executor.node):
            return self.put_local(request, envelope)
        if executor.routes is not None:
            connection = executor.routes.find(envelope.to.node)
        if connection is None or not connection.is_open():
            return self.drop(request, DeadLetterReason.NOT_CONNECTED)
        if connection not in self.waiting and has_room(executor, connection):
            return self.put_remote(request)
        waiting = Waiting.__new__(Waiting)
        waiting.request = request
        return self.wait(connection, waiting)

    cdef int drain(self, Envelope request, Entry entry) except -1:
        cdef Executor executor = self.executor
        cdef object node = request.msg.node
        cdef Connection connection = None
        cdef Waiting waiting
        if type(node) is not NodeId:
            raise TypeError(f"Drain: node must be a NodeId, not {given(node)}")
        if entry is None:
            return 0
        waiting = Waiting.__new__(Waiting)
        waiting.request = request
        waiting.entry = entry
        if executor.routes is not None and not same_node(<NodeId>node, executor.node):
            connection = executor.routes.find(<NodeId>node)
            if connection is not None and connection.is_open() and (
                connection in self.waiting or not is_low(executor, connection)
            ):
                if (connection, entry) in self.draining:
                    # It is told once of all that it sent.
                    return 0
                self.draining.add((connection, entry))
                return self.wait(connection, waiting)
        return self.tell(connection, waiting)

    cdef int wait(self, Connection connection, Waiting waiting) except -1:
        if self.executor.is_stopping:
            # Nobody looks at the sockets any more.
            if waiting.entry is not None:
                return self.tell(None, waiting)
            return self.drop(waiting.request, DeadLetterReason.NODE_SHUTDOWN)
        if connection not in self.waiting:
            self.waiting[connection] = deque()
        self.waiting[connection].append(waiting)
        self.executor.system_messages.has_producers = True
        return self.look(connection)

    cdef int look(self, Connection connection) except -1:
        """Have the executor look again once the queue is low, which it may be by now."""
        connection.transport.notify_writable = True
        RABBLE_FENCE()
        if is_low(self.executor, connection):
            self.executor.routes.poller.sockets.pending = True
        return 0

    cdef int go_on(self) except -1:
        cdef Executor executor = self.executor
        cdef Connection connection
        cdef Waiting waiting
        cdef int left = LOOK_MAX
        for connection in list(self.waiting):
            queue = self.waiting[connection]
            if not connection.is_open():
                # Which the executor notices in its turn: see `end`.
                continue
            if is_low(executor, connection):
                while queue and left > 0:
                    waiting = <Waiting>queue[0]
                    if waiting.entry is not None:
                        if not is_low(executor, connection):
                            break
                        queue.popleft()
                        self.draining.discard((connection, waiting.entry))
                        self.tell(connection, waiting)
                    elif not has_room(executor, connection):
                        break
                    else:
                        queue.popleft()
                        self.put_remote(waiting.request)
                    left -= 1
            if not queue:
                del self.waiting[connection]
            elif left <= 0:
                executor.routes.poller.sockets.pending = True
            else:
                self.look(connection)
        executor.system_messages.has_producers = len(self.waiting) != 0
        return 0

    cdef int end(self, Connection connection) except -1:
        cdef Waiting waiting
        cdef object reason = DeadLetterReason.NOT_CONNECTED
        if connection is None:
            reason = DeadLetterReason.NODE_SHUTDOWN
        for each in list(self.waiting) if connection is None else [connection]:
            queue = self.waiting.pop(each, None)
            while queue:
                waiting = <Waiting>queue.popleft()
                if waiting.entry is not None:
                    self.draining.discard((each, waiting.entry))
                    self.tell(None, waiting)
                else:
                    self.drop(waiting.request, reason)
        self.executor.system_messages.has_producers = len(self.waiting) != 0
        return 0 if connection is None else self.drop_queued(connection)

    cdef int drop_queued(self, Connection connection) except -1:
        """What has not had its turn was meant for that start of the node, and reaches no other."""
        cdef EnvelopeQueue queue = self.executor.run_queue
        cdef list found = []
        cdef Envelope request
        cdef size_t place
        for place in range(queue.count()):
            request = <Envelope>queue.slots[(queue.head + place) & queue.mask]
            if type(request.msg) is Produce:
                found.append(request)
        for request in found:
            if type(request.msg.envelope) is Envelope and same_node(
                (<Envelope>request.msg.envelope).to.node, connection.session.peer
            ):
                self.drop(request, DeadLetterReason.NOT_CONNECTED)
        return 0

    cdef int put_local(self, Envelope request, Envelope envelope) except -1:
        cdef Executor executor = self.executor
        cdef PyObject* found = executor.table.find(envelope.to)
        cdef Entry entry
        if found is NULL:
            return self.drop(request, DeadLetterReason.NO_PROCESS)
        entry = <Entry>found
        if entry.kind == PROCESS and entry.limit is not None:
            if entry.limit.queued >= entry.limit.most:
                # All that fills its mailbox stands before the end of the queue.
                executor.run_queue.append(request)
                return 0
        elif entry.kind == INBOX and (<Inbox>entry.target).is_full():
            return self.drop(request, DeadLetterReason.MAILBOX_FULL)
        if not claim(request.msg):
            return 0
        if executor.backlog.is_strict:
            executor.admission.admit_outside(envelope)
        else:
            # This is its turn: so what was looked at just now still holds.
            executor.follow_up = envelope
        return self.answer(request, None)

    cdef int put_remote(self, Envelope request) except -1:
        """Encode it, if its producer still waits."""
        cdef Envelope envelope = <Envelope>request.msg.envelope
        cdef Connection connection = self.executor.routes.find(envelope.to.node)
        cdef int status
        if not claim(request.msg):
            return 0
        if connection is not None and is_low(self.executor, connection):
            # What is left of an overlong message counts as any other: a second one may follow.
            connection.large_size = 0
        status = self.executor.route(envelope)
        if status == SENT:
            return self.answer(request, None)
        if status == UNENCODABLE:
            letter = DeadLetter(
                envelope, DeadLetterReason.UNENCODABLE, self.executor.unencodable_detail
            )
        elif status == NOT_CONNECTED:
            letter = DeadLetter(envelope, DeadLetterReason.NOT_CONNECTED)
        else:
            letter = DeadLetter(envelope, DeadLetterReason.PEER_BUSY)
        return self.answer(request, letter)

    cdef int drop(self, Envelope request, object reason) except -1:
        """It cannot be sent: a dead letter, of which its producer is told as well."""
        cdef Envelope envelope = <Envelope>request.msg.envelope
        if not claim(request.msg):
            return 0
        self.executor.letters.drop(envelope, reason)
        return self.answer(request, DeadLetter(envelope, reason))

    cdef int answer(self, Envelope request, object letter) except -1:
        self.executor.run_queue.append(
            new_envelope(request.sender, letter, self.executor.pid, request.correlation_id)
        )
        return 0

    cdef int tell(self, Connection connection, Waiting waiting) except -1:
        """A process may go on, or should know that it cannot."""
        cdef object node = waiting.request.msg.node
        cdef bint connected = same_node(<NodeId>node, self.executor.node) or (
            connection is not None and connection.is_open()
        )
        return self.executor.notifier.notify(
            waiting.entry, Drained(node, connected), waiting.request.correlation_id
        )
