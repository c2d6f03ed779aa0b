from libc.stdint cimport int64_t, uint64_t

from rabble._core.capacities cimport WHEEL_LEVELS

cdef extern from *:
    """
    #ifndef RABBLE_WHEEL_SLOTS
    #define RABBLE_WHEEL_SLOTS (1 << RABBLE_WHEEL_SLOT_BITS)
    #define RABBLE_WHEEL_WORD_BITS (RABBLE_WHEEL_SLOTS < 64 ? RABBLE_WHEEL_SLOTS : 64)
    #define RABBLE_WHEEL_WORDS (RABBLE_WHEEL_SLOTS / RABBLE_WHEEL_WORD_BITS)
    #endif
    """
    # A slot of level n is SLOTS**n ticks long; there are WHEEL_LEVELS of them.
    enum: SLOTS "RABBLE_WHEEL_SLOTS"            # of each level; 2**WHEEL_SLOT_BITS
    enum: WORD_BITS "RABBLE_WHEEL_WORD_BITS"    # used of a word, one for each slot; 64 or SLOTS
    enum: WORDS "RABBLE_WHEEL_WORDS"            # of each level

cdef struct Node:
    Node* next                        # towards the end of the slot; the last one's is the head
    Node* prev                        # towards its start; the first one's is the head
    int64_t deadline                  # tick at which it is due; unused in a head

cdef class Timer:
    cdef readonly object owner            # whose it is; not looked at
    cdef readonly object correlation_id   # what it is known by; not looked at
    cdef Node node                        # its place; what it points to is void unless active
    cdef void* wheel                      # where it runs, NULL: nowhere. Compared, never followed

cdef class TimerWheel:
    cdef readonly int64_t now             # in ticks; no deadline is before it
    cdef Py_ssize_t count                 # timers that run; the wheel owns a reference to each
    cdef readonly int64_t visits          # slots ever emptied: what all advancing has cost
    cdef uint64_t occupied[WHEEL_LEVELS * WORDS]    # bit n: slot n holds a timer
    cdef Node slots[WHEEL_LEVELS * SLOTS]           # heads of rings, level after level

    cdef Timer c_start(self, object owner, object cid, int64_t delay)
    # Start one that has fired once more, which takes no memory.
    cdef void c_restart(self, Timer timer, int64_t delay) noexcept
    cdef bint c_cancel(self, Timer timer) except -1
    cdef int c_advance(self, int64_t now, list out) except -1
    cdef int64_t c_next_deadline(self) noexcept
    cdef int fire(self, int slot, list out) except -1
    cdef int64_t earliest(self, int* slot) noexcept nogil
    cdef void link(self, Node* node) noexcept nogil
    cdef void unlink(self, Node* node) noexcept nogil
    cdef void cascade(self, int slot) noexcept nogil
    cdef Py_ssize_t drop_all(self) noexcept

# What a user asked for as a delay, in whole milliseconds: see `validate_delay_ms`.
cdef int64_t delay_ms_of(object value) except -1
# The same of a period, in nanoseconds: 1 ms at least, and not rounded to whole milliseconds.
cdef int64_t period_ns_of(object value) except -1
