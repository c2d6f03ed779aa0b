# The envelope: one message on its way.

from rabble._core.ids cimport CorrelationId, Pid

cdef class Envelope:
    cdef readonly Pid to                          # whom it is for; never None
    cdef readonly object msg                      # what is said; not to be changed after sending
    cdef readonly Pid sender                      # who said it; the executor fills in None
    cdef readonly CorrelationId correlation_id    # which request it belongs to, or None

# Make one. `to` must not be None.
cdef Envelope new_envelope(Pid to, object msg, Pid sender, CorrelationId correlation_id)
