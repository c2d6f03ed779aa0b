from libc.stdint cimport uint32_t, uint64_t

from rabble._core.gather cimport GatherWriter
from rabble._core.ids cimport Pid

cdef class BulkPairs:
    cdef dict ends              # (sender, to) to where its last frame in the lane ends; None: empty
    cdef Py_ssize_t pairs_max   # how many are kept before they are looked through
    cdef uint32_t refused       # envelopes that would have gone there and were dropped instead ...
    cdef set refused_pairs      # ... and whose; None: nobody's

    # Whether something of that pair is in the lane. To be asked only while there are `ends`.
    cdef bint has(self, const GatherWriter* lane, Pid sender, Pid to) except -1
    # Note that the next `size` bytes of the lane are of that pair.
    cdef int add(self, GatherWriter* lane, Pid sender, Pid to, Py_ssize_t size) except -1
    # Note that an envelope of that pair was refused, if it would have gone by the lane.
    cdef int note_refused(self, const GatherWriter* lane, Pid sender, Pid to) except -1
    # Move the end of each pair with refused envelopes to `end`; then forget the refusals.
    cdef int move_refused(self, uint64_t end) except -1
    cdef void forget_refused(self) noexcept
