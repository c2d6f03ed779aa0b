# The FIFO ring that run queue and inboxes are made of.

from cpython.object cimport PyObject

cdef class EnvelopeQueue:
    cdef PyObject** slots          # ring of owned references, `mask + 1` places
    cdef size_t mask               # capacity - 1; the capacity is a power of two
    cdef size_t head               # number of objects ever taken: next one is slots[head & mask]
    cdef size_t tail               # number of objects ever put: next one goes to slots[tail & mask]

    cdef int grow(self) except -1
    cdef int resize(self, size_t capacity) except -1
    cdef int take_all(self, EnvelopeQueue source) except -1
    cdef void truncate(self, size_t tail) noexcept

    cdef inline size_t count(self) noexcept:
        return self.tail - self.head

    cdef inline int put_owned(self, PyObject* obj) except -1:
        """Take over the caller's reference; on an error the caller still has it."""
        if self.tail - self.head > self.mask:
            self.grow()
        self.slots[self.tail & self.mask] = obj
        self.tail += 1
        return 0

    cdef inline PyObject* take_owned(self) noexcept:
        """The oldest object, its reference now the caller's. The queue must not be empty."""
        cdef PyObject* obj = self.slots[self.head & self.mask]
        self.head += 1
        return obj
