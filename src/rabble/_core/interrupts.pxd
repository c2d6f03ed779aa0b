from libc.stdint cimport int64_t

cdef class Interrupts:
    cdef unsigned long thread_id   # whose thread it is
    cdef bint pending              # `Interrupted` was asked for and not yet seen
    cdef int64_t considered_at     # how many deliveries there were when one was considered last

    # Have `Interrupted` raised in the thread, if what runs there does not return.
    cdef int ask(self, bint in_receive, int64_t delivered) except -1
    # Note that an exception came, and return whether it is the one.
    cdef bint note(self, object error) noexcept
