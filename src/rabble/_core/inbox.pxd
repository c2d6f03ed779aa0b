from libc.stdint cimport int64_t

from rabble._core.envelope cimport Envelope
from rabble._core.queue cimport EnvelopeQueue

cdef class Inbox:
    cdef EnvelopeQueue queue       # what was put and not yet taken
    cdef readonly size_t limit     # how many envelopes it holds at most
    cdef size_t elsewhere          # ... counting those that its owner took and has not handled yet
    cdef int fd                    # eventfd, owned; -1: given back, as nobody needs it any more
    cdef bint is_polled            # somebody else may poll it: it stays until the inbox goes
    cdef Py_ssize_t waiting        # threads in `wait`, which poll it
    cdef volatile bint armed       # the owner sleeps, or is about to: the next put must wake it
    cdef bint is_closed            # refuses further puts
    cdef bint signalled            # the eventfd was written and not yet drained

    cdef inline bint is_full(self) noexcept:
        return self.queue.count() + self.elsewhere >= self.limit

    cdef bint put(self, Envelope envelope) except -1
    cdef int put_always(self, Envelope envelope) except -1
    cdef void wake(self) noexcept
    cdef bint arm_now(self) noexcept
    cdef int sleep(self, int64_t left) except -1
    cdef void drain(self) noexcept
    cdef void give_back(self) noexcept

cdef int new_eventfd(int count) except -1
cdef int wait_readable(int fd, int64_t timeout_ns) noexcept nogil
cdef int64_t monotonic_ns() noexcept nogil
