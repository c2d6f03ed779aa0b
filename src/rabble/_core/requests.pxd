from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, NodeId, Pid

cdef class Unanswered:
    # A life has ended without having answered these.
    cdef Entry entry                       # which
    cdef list keys                         # as in `Requests.held`
    cdef str kind                          # how it ended: that of a DownReason
    cdef str detail                        # why
    cdef unsigned long long crash          # the number of its crash in the log; 0: it did not crash

cdef class Requests:
    cdef readonly Pid asker                # the pid of this node's threads that call
    cdef dict waiting                      # number -> anything, of this node's calls that wait
    cdef Pid executor                      # handles `Unanswered`
    cdef Py_ssize_t peers_max              # how many requests of peers are known at once
    # Who has a request: the Entry of this node that took it, or the Pid that it was passed on to.
    cdef dict holders                      # number of a call of this node -> who
    cdef object peers                      # correlation id of a peer's -> who; the oldest first
    cdef dict held                         # Entry -> its keys in these two, as a dict of None

    # A life of this node is given an envelope with a correlation id.
    cdef int taken(self, Entry entry, Envelope envelope) except -1
    # The key of a call's request, from whatever node; None: it is none.
    cdef object key_of(self, CorrelationId correlation_id)
    # Who has the request with a key, or None.
    cdef object holder_of(self, object key)
    # Whoever has it answers no more: it is answered, passed on, or known to have failed.
    cdef object drop(self, object key)
    # A request of this node's went to a pid of another one.
    cdef int passed_on(self, object number, Pid to) except -1
    # Whether a life has any.
    cdef bint has(self, Entry entry) noexcept
    # An `Unanswered` of a life that ends and has some, to be queued behind what it sent.
    cdef Envelope unanswered(self, Entry entry, str kind, str detail, unsigned long long crash)
    cdef int forget_oldest(self) except -1
    # The connection to a node has ended: nobody there waits for an answer any more.
    cdef int forget_node(self, NodeId node) except -1
    cdef int clear(self) except -1
