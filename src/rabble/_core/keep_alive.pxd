from libc.stdint cimport int64_t

from rabble._core.transport cimport Sockets

# Send what is due by the clock, and end what has taken too long. Needs the lock.
cdef void keep_alive(Sockets* s, int64_t now) noexcept nogil
