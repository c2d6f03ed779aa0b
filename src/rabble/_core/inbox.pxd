# The inbox: how envelopes reach a thread from the others.

from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope
from rabble._core.queue cimport EnvelopeQueue

cdef class Inbox:
    cdef EnvelopeQueue queue       # what was put and not yet taken
    cdef readonly size_t limit     # how many envelopes it holds at most
    cdef int fd                    # eventfd; -1 once it is closed
    cdef bint polled               # others than `wait` may look at it: closed with the object
    cdef unsigned int waiting      # threads that sleep in `wait`
    cdef volatile bint armed       # the owner sleeps, or is about to: the next put must wake it
    cdef bint is_closed            # refuses further puts
    cdef bint signalled            # the eventfd was written and not yet drained

    cdef bint put(self, Envelope envelope) except -1
    cdef int put_always(self, Envelope envelope) except -1
    cdef void wake(self) noexcept
    cdef bint arm_now(self) noexcept
    cdef void drain(self) noexcept
    cdef void let_go(self) noexcept

cdef int wait_readable(int fd, int64_t timeout_ns) noexcept nogil
cdef int64_t monotonic_ns() noexcept nogil
