from rabble._core.ids cimport CorrelationId, Pid

cdef class Envelope:
    cdef readonly Pid to                          # the receiver; Python sees nobody's pid as None
    cdef readonly object msg                      # what is said; not to be changed after sending
    cdef readonly Pid sender                      # the sender; the executor fills in None
    cdef readonly CorrelationId correlation_id    # which request it belongs to, or None

# Make one. `to` must not be None.
cdef Envelope new_envelope(Pid to, object msg, Pid sender, CorrelationId correlation_id)

# Whether it was made with None as its receiver. Its `to` is a pid all the same, which nobody has
# and nobody can make: so no code of the core has to ask before it looks at a receiver.
cdef bint is_to_nobody(Envelope envelope) noexcept
