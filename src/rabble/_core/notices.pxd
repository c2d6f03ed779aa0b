from libc.stdint cimport uint64_t

from rabble._core.dispatch cimport DispatchTable, Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.connection cimport Connection
from rabble._core.queue cimport EnvelopeQueue

cdef class Discard:
    cdef Pid pid                           # remove this ...
    cdef object target                     # ... if it is still this one's
    cdef object reason                     # what its monitors are told
    cdef uint64_t crash                    # the number of the crash that ended it, or 0

cdef class Connected:
    cdef Connection connection             # established from now on ...
    cdef bint is_told                      # ... of which the processes have been told by now

cdef class Undelivered:
    cdef Envelope envelope                 # what a service was given and did not take
    cdef object reason
    cdef str detail                        # more about it
    cdef uint64_t crash                    # the number of the crash that was the reason, or 0

cdef class Notice:
    # What the runtime has to say, and to which life: its successor under the same name gets no
    # notice that was meant for the one before.
    cdef Entry entry                       # its receiver, of this node; or None:
    cdef Connection connection             # a Down for a process at the other end of this ...
    cdef Pid monitoring                    # ... and which ...
    cdef uint64_t reference                # ... by which of its monitors
    cdef object msg
    cdef CorrelationId correlation_id

cdef class Notifier:
    # Sends what the runtime has to say, each in its turn of the run queue.
    cdef Pid pid                           # the executor's, which handles notices
    cdef DispatchTable table
    cdef EnvelopeQueue run_queue

    # To a life of this node.
    cdef int notify(self, Entry entry, object msg, CorrelationId correlation_id=*) except -1
    # To each of several.
    cdef int notify_all(self, dict entries, object msg) except -1
    # To the life that has that pid now; of another node, too.
    cdef int notify_pid(self, Pid to, object msg, CorrelationId correlation_id=*) except -1
