"""The FIFO ring that the run queue and the inboxes are made of.

A C array of owned references whose capacity is a power of two. It grows by doubling and gives
memory back when it runs empty after a burst. Positions count upwards for ever and are masked on
use, so that full and empty differ; unsigned wrap-around keeps `tail - head` right.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.string cimport memcpy

__all__ = ["EnvelopeQueue"]

cdef enum:
    CAPACITY_MIN = 256
    CAPACITY_KEPT_MAX = 1 << 16    # what an emptied queue keeps


@cython.final
@cython.no_gc
cdef class EnvelopeQueue:
    """FIFO of Python objects. Not thread-safe beyond the GIL, which every method holds."""

    def __cinit__(self):
        self.slots = <PyObject**>PyMem_RawMalloc(CAPACITY_MIN * sizeof(PyObject*))
        if self.slots is NULL:
            raise MemoryError()
        self.mask = CAPACITY_MIN - 1

    def __dealloc__(self):
        if self.slots is not NULL:
            self.truncate(self.head)
            PyMem_RawFree(self.slots)

    def __len__(self):
        return self.count()

    def put(self, obj):
        """Append `obj`. Raises `MemoryError` if the ring cannot grow."""
        self.put_owned(<PyObject*>obj)
        Py_INCREF(obj)

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
        self.take_all(source)
        return moved

    def drop_last(self, Py_ssize_t count):
        """Drop the `count` objects put last, newest first."""
        if count < 0 or <size_t>count > self.count():
            raise ValueError(f"cannot drop {count} of {self.count()} objects")
        self.truncate(self.tail - <size_t>count)

    cdef int grow(self) except -1:
        return self.resize((self.mask + 1) * 2)

    cdef int resize(self, size_t capacity) except -1:
        cdef size_t held = self.count()
        cdef size_t start = self.head & self.mask
        cdef size_t first = min(held, self.mask + 1 - start)
        cdef PyObject** slots = <PyObject**>PyMem_RawMalloc(capacity * sizeof(PyObject*))
        if slots is NULL:
            raise MemoryError()
        memcpy(slots, self.slots + start, first * sizeof(PyObject*))
        memcpy(slots + first, self.slots, (held - first) * sizeof(PyObject*))
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.mask = capacity - 1
        self.head = 0
        self.tail = held
        return 0

    cdef int take_all(self, EnvelopeQueue source) except -1:
        """Move everything of `source` behind what is here.

        An empty queue swaps its ring with the source's, so a burst of any size costs nothing.
        """
        cdef size_t needed, capacity
        if self.count() == 0:
            self.slots, source.slots = source.slots, self.slots
            self.mask, source.mask = source.mask, self.mask
            self.head, source.head = source.head, self.head
            self.tail, source.tail = source.tail, self.tail
            source.head = source.tail = 0
            if source.mask >= CAPACITY_KEPT_MAX:
                source.resize(CAPACITY_MIN)
            return 0
        needed = self.count() + source.count()
        capacity = self.mask + 1
        while capacity < needed:
            capacity *= 2
        if capacity > self.mask + 1:
            self.resize(capacity)
        while source.count() != 0:
            self.slots[self.tail & self.mask] = source.take_owned()
            self.tail += 1
        return 0

    cdef void truncate(self, size_t tail) noexcept:
        """Drop what was put at and after position `tail`, newest first.

        Dropping a reference may run code that puts something here, so the ring is consistent
        before each drop.
        """
        while self.tail != tail:
            self.tail -= 1
            Py_XDECREF(self.slots[self.tail & self.mask])
