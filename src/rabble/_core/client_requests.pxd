from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

cdef enum:
    SLOT_BITS = 24           # of a number: which slot; above it, which generation of that
    BUCKETS = 256
    EXPIRED = BUCKETS        # the list of those whose time is over
    TICK_BITS = 26           # of nanoseconds: 67 ms

cdef struct Slot:
    int64_t number           # generation << SLOT_BITS | place: of the request, or of the next one
    PyObject* owner          # whose request it is, borrowed; NULL: the slot is free
    int64_t id               # that the client gave it
    int64_t begun_ns
    int64_t due_ns           # when it ends, if nothing else has ended it
    int64_t asked            # the number of the Asked whose end is to be its own; 0: there is none
    int32_t bucket           # the list that it is in ...
    int32_t next             # ... its neighbours there, or the next free slot; -1: none
    int32_t previous
    int32_t own_next         # those of the same owner
    int32_t own_previous

cdef class ClientRequests:
    cdef Slot* slots
    cdef int32_t capacity    # a power of two
    cdef int32_t most        # how many requests there may be
    cdef int32_t free        # the free slot that was left last; -1: none
    cdef readonly int32_t count            # that wait
    cdef int64_t tick        # up to which the buckets were looked at
    cdef int32_t buckets[257]

    # The place of a new request; -1: there are too many. `first` is its owner's: see `own_next`.
    cdef int32_t begin(
        self, object owner, int64_t id, int32_t* first, int64_t now_ns, int64_t due_ns
    ) except -2
    # The place of a request that waits; -1: it has ended.
    cdef int32_t find(self, object number) noexcept
    cdef int end(self, int32_t place, int32_t* first) noexcept
    # One whose time is over, and that is to be ended next; -1: none is.
    cdef int32_t expired(self, int64_t now_ns) noexcept
    cdef int64_t time_left(self, int64_t now_ns) noexcept
    cdef void link(self, int32_t place, int32_t bucket) noexcept
    cdef void unlink(self, int32_t place) noexcept
