"""Bulk pairs: whose messages are in the bulk lane, so that what they send next follows by it.

The data lane overtakes the bulk lane. Between one sender and one receiver that must not happen, so
as long as something of a pair has not been consumed by the peer, the rest of it goes by the same
lane; and so does what tells of envelopes of that pair that were dropped.
"""

cimport cython
from libc.stdint cimport uint64_t

from rabble._core.capacities cimport PAIRS_MIN
from rabble._core.gather cimport GatherWriter, gathered_sent
from rabble._core.ids cimport Pid, is_reserved

__all__ = ["BulkPairs"]


@cython.final
cdef class BulkPairs:
    """The pairs of one connection. The executor's thread owns it, as it does the frame encoder."""

    cdef bint has(self, const GatherWriter* lane, Pid sender, Pid to) except -1:
        cdef uint64_t sent = gathered_sent(lane)
        cdef dict ends = self.ends
        if sent == lane.written:
            self.ends = None
            return False
        end = ends.get(pair_of(sender, to))
        return end is not None and <uint64_t>end > sent

    cdef int add(self, GatherWriter* lane, Pid sender, Pid to, Py_ssize_t size) except -1:
        """The caller must append them at once: bytes that are noted and never come are waited for.

        """
        cdef uint64_t sent
        cdef dict ends = self.ends
        if ends is None:
            ends = {}
            self.pairs_max = PAIRS_MIN
        elif len(ends) >= self.pairs_max:
            # A lane that never runs empty must not remember every pair for ever.
            sent = gathered_sent(lane)
            ends = {pair: end for pair, end in ends.items() if <uint64_t>end > sent}
            self.pairs_max = max(<Py_ssize_t>PAIRS_MIN, 2 * len(ends))
        ends[pair_of(sender, to)] = lane.written + <uint64_t>size
        self.ends = ends
        lane.written += size
        return 0

    cdef int note_refused(self, const GatherWriter* lane, Pid sender, Pid to) except -1:
        if self.ends is not None and self.has(lane, sender, to):
            if self.refused_pairs is None:
                self.refused_pairs = set()
            self.refused_pairs.add(pair_of(sender, to))
            self.refused += 1
        return 0

    cdef int move_refused(self, uint64_t end) except -1:
        cdef dict ends = self.ends
        for pair in self.refused_pairs:
            ends[pair] = end
        return 0

    cdef void forget_refused(self) noexcept:
        self.refused = 0
        self.refused_pairs = None


cdef tuple pair_of(Pid sender, Pid to):
    """What keeps its order: a sender and a receiver.

    A thread is one sender, whether it sends, without a pid, or calls, by one of the runtime's.
    """
    if sender is not None and is_reserved(sender):
        sender = None
    return (sender, to)
