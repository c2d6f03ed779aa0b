# Control messages: what processes ask of their runtime, and the runtime of its executor.

from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.hear cimport Heard
from rabble._core.poll cimport Connection
from rabble._core.table cimport Entry

cdef class Control:
    cdef Executor executor
    cdef object timeout_class      # protocol.Timeout: built for every timer that fires
    cdef object down_reason        # protocol.DownReason

    cdef Entry asker(self, Envelope envelope)
    cdef int watch(self, Heard heard, Connection connection) except -1
    cdef int unwatch(self, Heard heard, Connection connection) except -1
    cdef int down(self, Heard heard, Connection connection) except -1
    cdef int bounced(self, Heard heard) except -1
    cdef int unfit(self, Heard heard) except -1
