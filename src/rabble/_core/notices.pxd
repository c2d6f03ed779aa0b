# Notices: what the runtime asks of an executor, each the message of an envelope to its pid.

from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.poller cimport Connection

cdef class Discard:
    cdef Pid pid                           # remove this ...
    cdef object target                     # ... if it is still this one's
    cdef object reason                     # what its monitors are told

cdef class Connected:
    cdef Connection connection             # established from now on

cdef class Undelivered:
    cdef Envelope envelope                 # what a service was given and did not take
    cdef object reason

cdef class Notice:
    # What the runtime has to say, and to which life: its successor under the same name gets no
    # notice that was meant for the one before.
    cdef Entry entry                       # whom it is for, of this node; or None:
    cdef Connection connection             # a Down for a process at the other end of this ...
    cdef Pid monitoring                    # ... and which
    cdef object msg
    cdef CorrelationId correlation_id
