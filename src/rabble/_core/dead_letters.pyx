"""Dead letters: envelopes that were not delivered, counted, and reported to the subscribers.

All of it belongs to the executor's thread. Any may read `closed`, and `drop` once that is set.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.dispatch cimport CALLBACK, Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, Pid, same_node, same_pid
from rabble._core.connection cimport Connection

from rabble._core.messages import UNDELIVERED_CODES, DeadLetter

__all__ = []


@cython.final
cdef class DeadLetters:
    """The dead letters of one executor."""

    def __cinit__(self):
        self.counts = {}
        self.subscribers = {}

    cdef int drop(
        self, Envelope envelope, object reason, str detail="", unsigned long long crash=0
    ) except -1:
        cdef Pid asker
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.opened is not None:
            envelope = self.opened(envelope)
        if type(envelope.msg) is DeadLetter or self.closed:
            return 0
        if envelope.correlation_id is None:
            if self.subscribers:
                self.notifier.notify_all(
                    self.subscribers, DeadLetter(envelope, reason, detail, crash)
                )
            return 0
        letter = DeadLetter(envelope, reason, detail, crash)
        self.notifier.notify_all(self.subscribers, letter)
        asker = self.who_waits(envelope)
        if envelope.sender is not None:
            self.tell(envelope.sender, envelope, letter, envelope.to)
        if asker is not None and asker is not envelope.sender:
            # A reply, for which a call waits.
            self.tell(asker, envelope, letter, envelope.sender)
        return 0

    cdef Pid who_waits(self, Envelope envelope):
        """The asker of the call that this envelope was to answer, or whose request it was."""
        cdef CorrelationId cid = envelope.correlation_id
        key = self.requests.key_of(cid)
        if key is None:
            return None
        if same_pid(cid.pid, envelope.to):
            self.requests.drop(key)
            return envelope.to
        if envelope.sender is not None and same_pid(cid.pid, envelope.sender):
            self.requests.drop(key)
            return envelope.sender
        return None

    cdef int tell(self, Pid to, Envelope envelope, object letter, Pid about) except -1:
        cdef PyObject* found
        if not same_node(to.node, self.node):
            return self.tell_peer(
                to, envelope.correlation_id, letter.reason, about, letter.detail, letter.crash
            )
        found = self.notifier.table.find(to)
        if found is not NULL and (<Entry>found).kind == CALLBACK:
            self.notifier.notify(<Entry>found, letter, envelope.correlation_id)
        return 0

    cdef int tell_peer(
        self, Pid to, CorrelationId correlation_id, object reason, Pid about, str detail,
        unsigned long long crash,
    ) except -1:
        cdef Connection connection
        if self.routes is None:
            return 0
        connection = self.routes.find(to.node)
        if connection is None or not connection.is_open():
            return 0
        if about is not None and not same_node(about.node, self.node):
            about = None
        connection.frame_encoder.write_undelivered(
            to, correlation_id, UNDELIVERED_CODES[reason], crash, about, detail
        )
        return self.routes.touch(connection)
