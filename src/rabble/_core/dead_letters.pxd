from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.notices cimport Notifier
from rabble._core.requests cimport Requests
from rabble._core.routes cimport Routes

cdef class DeadLetters:
    cdef NodeId node                       # whose they are
    cdef Notifier notifier
    cdef Routes routes                     # to other nodes; None without a mesh
    cdef Requests requests                 # who has those of calls
    cdef object opened                     # an envelope as it was sent, of one on its way; or None
    cdef dict counts                       # reason -> how many
    cdef dict subscribers                  # Pid -> Entry of those that are sent each
    cdef bint closed                       # the executor has ended: from now on they are counted

    # An envelope was not delivered; `detail` says more, `crash` is the number of one.
    cdef int drop(
        self, Envelope envelope, object reason, str detail=*, unsigned long long crash=*
    ) except -1

    # The asker of the call that it was to answer, or whose request it was; None: it is neither.
    cdef Pid who_waits(self, Envelope envelope)
    # Tell a pid, here or at its node.
    cdef int tell(self, Pid to, Envelope envelope, object letter, Pid about) except -1
    cdef int tell_peer(
        self, Pid to, CorrelationId correlation_id, object reason, Pid about, str detail,
        unsigned long long crash,
    ) except -1
