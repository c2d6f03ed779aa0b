from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from rabble._core.envelope cimport Envelope

cdef class EnvelopeQueue:
    cdef object collected          # always None: an attribute that makes it known to the collector
    cdef PyObject** slots          # ring of owned references, `mask + 1` places
    cdef size_t mask               # capacity - 1; the capacity is a power of two
    cdef size_t head               # the oldest object is slots[head & mask]
    cdef size_t tail               # the next one goes to slots[tail & mask]

    # `head` and `tail` mean something for as long as nothing is put: a ring that grows, or takes
    # another one's over, begins to count anew. To find again what was put, count the envelopes.

    cdef bint has_room(self, size_t places) noexcept
    cdef int reserve(self, size_t places) except -1
    cdef bint resize(self, size_t capacity) noexcept
    cdef bint take_all(self, EnvelopeQueue source) noexcept
    cdef void drop_newest(self, size_t count) noexcept

    cdef inline size_t count(self) noexcept:
        return self.tail - self.head

    cdef inline int put_owned(self, PyObject* obj) except -1:
        """Take over the caller's reference; on an error the caller still has it."""
        if self.tail - self.head > self.mask:
            self.reserve(1)
        self.slots[self.tail & self.mask] = obj
        self.tail += 1
        return 0

    cdef inline int append(self, Envelope envelope) except -1:
        """`put`, for the core."""
        self.put_owned(<PyObject*>envelope)
        Py_INCREF(envelope)
        return 0

    cdef inline PyObject* take_owned(self) noexcept:
        """The oldest object, its reference now the caller's. The queue must not be empty."""
        cdef PyObject* obj = self.slots[self.head & self.mask]
        self.head += 1
        return obj
