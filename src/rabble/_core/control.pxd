# Control messages: what processes ask of their runtime, and the runtime of its executor.

from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.table cimport Entry

cdef class Control:
    cdef Executor executor
    cdef object timeout_class      # protocol.Timeout: built for every timer that fires
    cdef object down_reason        # protocol.DownReason

    cdef Entry asker(self, Envelope envelope)
