"""The FIFO ring that the run queue and the inboxes are made of.

A C array of owned references whose capacity is a power of two. It grows by doubling and gives
memory back when it runs empty after a burst. Positions count upwards and are masked on use, so
that full and empty differ; unsigned wrap-around keeps `tail - head` right.

The collector sees what is in it: an unread message may refer to the mailbox that it waits in.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.string cimport memcpy

from rabble._core.capacities cimport QUEUE_SLOTS_KEPT, QUEUE_SLOTS_MIN
from rabble._core.envelope cimport Envelope

__all__ = ["EnvelopeQueue"]

cdef extern from *:
    """
    static void rabble_set_collected(PyObject *type, traverseproc traverse, inquiry clear) {
        ((PyTypeObject *)type)->tp_traverse = traverse;
        ((PyTypeObject *)type)->tp_clear = clear;
    }
    /* Py_VISIT, as a function. */
    static inline int rabble_visit(PyObject *object, visitproc visit, void *arg) {
        Py_VISIT(object);
        return 0;
    }
    """
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    void rabble_set_collected(object cls, traverseproc traverse, inquiry clear) noexcept
    int rabble_visit(PyObject* obj, visitproc visit, void* arg) noexcept


@cython.final
cdef class EnvelopeQueue:
    """FIFO of envelopes. Not thread-safe beyond the GIL, which every method holds."""

    def __cinit__(self):
        self.slots = <PyObject**>PyMem_RawMalloc(QUEUE_SLOTS_MIN * sizeof(PyObject*))
        if self.slots is NULL:
            raise MemoryError()
        self.mask = QUEUE_SLOTS_MIN - 1

    def __dealloc__(self):
        if self.slots is not NULL:
            self.drop_newest(self.count())
            PyMem_RawFree(self.slots)

    def __len__(self):
        return self.count()

    def put(self, Envelope envelope not None):
        """Append an envelope. Raises `MemoryError` if the ring cannot grow."""
        self.append(envelope)

    def take(self):
        """Remove and return the oldest object. Raises `IndexError` when empty."""
        if self.count() == 0:
            raise IndexError("take from an empty queue")
        cdef PyObject* owned = self.take_owned()
        obj = <object>owned
        Py_XDECREF(owned)
        return obj

    def move_all_from(self, EnvelopeQueue source not None):
        """Move everything of `source` behind what is here; returns how many moved."""
        cdef size_t moved = source.count()
        if source is self:
            raise ValueError("a queue cannot be moved into itself")
        if not self.take_all(source):
            raise MemoryError()
        return moved

    def drop_last(self, Py_ssize_t count):
        """Drop the `count` objects put last, newest first."""
        if count < 0 or <size_t>count > self.count():
            raise ValueError(f"cannot drop {count} of {self.count()} envelopes")
        self.drop_newest(<size_t>count)

    cdef bint has_room(self, size_t places) noexcept:
        """Whether so many more objects find a place, which is made if need be: no put fails then.

        False if there is no memory for it; no exception is raised.
        """
        cdef size_t needed = self.count() + places
        cdef size_t capacity = self.mask + 1
        if needed <= capacity:
            return True
        while capacity < needed:
            if capacity > <size_t>-1 // (2 * sizeof(PyObject*)):
                return False
            capacity *= 2
        return self.resize(capacity)

    cdef int reserve(self, size_t places) except -1:
        if not self.has_room(places):
            raise MemoryError()
        return 0

    cdef bint resize(self, size_t capacity) noexcept:
        cdef size_t held = self.count()
        cdef size_t start = self.head & self.mask
        cdef size_t first = min(held, self.mask + 1 - start)
        cdef PyObject** slots = <PyObject**>PyMem_RawMalloc(capacity * sizeof(PyObject*))
        if slots is NULL:
            return False
        memcpy(slots, self.slots + start, first * sizeof(PyObject*))
        memcpy(slots + first, self.slots, (held - first) * sizeof(PyObject*))
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.mask = capacity - 1
        self.head = 0
        self.tail = held
        return True

    cdef bint take_all(self, EnvelopeQueue source) noexcept:
        """Move everything of `source` behind what is here.

        An empty queue swaps its ring with the source's, so a burst of any size costs nothing.
        False, and nothing has moved, if there is no memory for it.
        """
        if self.count() == 0:
            self.slots, source.slots = source.slots, self.slots
            self.mask, source.mask = source.mask, self.mask
            self.head, source.head = source.head, self.head
            self.tail, source.tail = source.tail, self.tail
            source.head = source.tail = 0
            if source.mask >= QUEUE_SLOTS_KEPT:
                # It stays as it is where there is no memory for a smaller one.
                source.resize(QUEUE_SLOTS_MIN)
            return True
        if not self.has_room(source.count()):
            return False
        while source.count() != 0:
            self.slots[self.tail & self.mask] = source.take_owned()
            self.tail += 1
        return True

    cdef void drop_newest(self, size_t count) noexcept:
        """Drop the `count` objects that were put last, newest first.

        Dropping a reference may run code, so the ring is consistent before each drop.
        """
        while count != 0 and self.tail != self.head:
            count -= 1
            self.tail -= 1
            Py_XDECREF(self.slots[self.tail & self.mask])


# By hand, since the references are in no attribute. No line here may count a reference: the
# collector is at work, and `self` may be on its way out.

cdef int traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef size_t position
    cdef int status
    if (<EnvelopeQueue>self).slots is NULL:
        return 0
    position = (<EnvelopeQueue>self).head
    while position != (<EnvelopeQueue>self).tail:
        status = rabble_visit(
            (<EnvelopeQueue>self).slots[position & (<EnvelopeQueue>self).mask], visit, arg
        )
        if status != 0:
            return status
        position += 1
    return 0


cdef int clear(PyObject* self) noexcept:
    cdef PyObject* taken
    while (<EnvelopeQueue>self).tail != (<EnvelopeQueue>self).head:
        taken = (<EnvelopeQueue>self).slots[
            (<EnvelopeQueue>self).head & (<EnvelopeQueue>self).mask
        ]
        (<EnvelopeQueue>self).head += 1
        Py_XDECREF(taken)
    return 0


rabble_set_collected(EnvelopeQueue, traverse, clear)
