"""The requests of a server's clients that wait for their ends: slots with generations.

A request's number has the slot that it is in and how many were in that slot before it. So a late
answer, whose number is of an earlier generation, finds nobody; and to find the request of a number
takes a look at one place.

Each has a time by which it ends. They stand in a hashed wheel (Varghese and Lauck, "Hashed and
hierarchical timing wheels", 1987, scheme 6): 256 buckets of 67 ms each, where one of a later round
stays when its bucket has its turn. It ends never early, and at most a bucket's length late.
"""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from rabble._core.capacities cimport CLIENT_SLOTS_MIN

__all__ = ["ClientRequests"]


# Borrows what it refers to: there is nothing to collect.
@cython.final
@cython.no_gc
cdef class ClientRequests:
    """The requests of one server's clients. For the executor's thread.

    :param most: how many may wait, 1 to 2**24.
    :param now_ns: the time, in nanoseconds, from which on it is told.
    """

    def __cinit__(self, int32_t most, int64_t now_ns):
        cdef int bucket
        if not 1 <= most <= 1 << SLOT_BITS:
            raise ValueError(f"ClientRequests: most must be 1 to {1 << SLOT_BITS}, not {most}")
        self.most = most
        self.free = -1
        self.tick = now_ns >> TICK_BITS
        for bucket in range(BUCKETS + 1):
            self.buckets[bucket] = -1

    def __dealloc__(self):
        PyMem_RawFree(self.slots)

    cdef int32_t begin(
        self, object owner, int64_t id, int32_t* first, int64_t now_ns, int64_t due_ns
    ) except -2:
        cdef int32_t place = self.free
        cdef int32_t capacity
        cdef Slot* slots
        cdef Slot* slot
        if self.count >= self.most:
            return -1
        if place < 0:
            capacity = max(2 * self.capacity, CLIENT_SLOTS_MIN)
            slots = <Slot*>PyMem_RawRealloc(self.slots, capacity * sizeof(Slot))
            if slots is NULL:
                raise MemoryError
            self.slots = slots
            for place in range(capacity - 1, self.capacity - 1, -1):
                slots[place].owner = NULL
                slots[place].number = place
                slots[place].next = self.free
                self.free = place
            self.capacity = capacity
            place = self.free
        slot = &self.slots[place]
        self.free = slot.next
        slot.owner = <PyObject*>owner
        slot.id = id
        slot.begun_ns = now_ns
        slot.due_ns = due_ns
        slot.asked = 0
        slot.own_previous = -1
        slot.own_next = first[0]
        if first[0] >= 0:
            self.slots[first[0]].own_previous = place
        first[0] = place
        self.link(place, <int32_t>(
            (max(due_ns - 1, self.tick << TICK_BITS) >> TICK_BITS) + 1 & BUCKETS - 1
        ))
        self.count += 1
        return place

    cdef int32_t find(self, object number) noexcept:
        cdef int overflow = 0
        cdef int64_t known
        cdef int32_t place
        if type(number) is not int:
            return -1
        known = PyLong_AsLongLongAndOverflow(number, &overflow)
        if overflow or known < 0:
            return -1
        place = <int32_t>(known & (1 << SLOT_BITS) - 1)
        if place >= self.capacity:
            return -1
        if self.slots[place].owner is NULL or self.slots[place].number != known:
            return -1
        return place

    cdef int end(self, int32_t place, int32_t* first) noexcept:
        cdef Slot* slot = &self.slots[place]
        if slot.own_previous >= 0:
            self.slots[slot.own_previous].own_next = slot.own_next
        else:
            first[0] = slot.own_next
        if slot.own_next >= 0:
            self.slots[slot.own_next].own_previous = slot.own_previous
        self.unlink(place)
        slot.owner = NULL
        slot.number += 1 << SLOT_BITS
        slot.next = self.free
        self.free = place
        self.count -= 1
        return 0

    cdef void link(self, int32_t place, int32_t bucket) noexcept:
        cdef Slot* slot = &self.slots[place]
        slot.bucket = bucket
        slot.previous = -1
        slot.next = self.buckets[bucket]
        if slot.next >= 0:
            self.slots[slot.next].previous = place
        self.buckets[bucket] = place

    cdef void unlink(self, int32_t place) noexcept:
        cdef Slot* slot = &self.slots[place]
        if slot.previous >= 0:
            self.slots[slot.previous].next = slot.next
        else:
            self.buckets[slot.bucket] = slot.next
        if slot.next >= 0:
            self.slots[slot.next].previous = slot.previous

    cdef int32_t expired(self, int64_t now_ns) noexcept:
        cdef int64_t now = now_ns >> TICK_BITS
        cdef int32_t place, next_place
        if self.count == 0:
            self.tick = max(self.tick, now)
            return -1
        # Of what was slept through each bucket is looked at once.
        self.tick = max(self.tick, now - BUCKETS)
        while self.tick < now:
            self.tick += 1
            place = self.buckets[self.tick & BUCKETS - 1]
            while place >= 0:
                next_place = self.slots[place].next
                if self.slots[place].due_ns <= now_ns:
                    self.unlink(place)
                    self.link(place, EXPIRED)
                place = next_place
        return self.buckets[EXPIRED]

    cdef int64_t time_left(self, int64_t now_ns) noexcept:
        """Nanoseconds until one may be over; -1 if none waits."""
        cdef int64_t ahead
        if self.count == 0:
            return -1
        if self.buckets[EXPIRED] >= 0:
            return 0
        for ahead in range(1, BUCKETS + 1):
            if self.buckets[self.tick + ahead & BUCKETS - 1] >= 0:
                return max((self.tick + ahead << TICK_BITS) - now_ns, 0)
        return -1

    # For tests.

    def try_begin(self, int64_t id, int64_t now_ns, int64_t due_ns):
        """Begin one that nobody owns in particular: its number, or `None` if there are too many."""
        cdef int32_t first = -1
        cdef int32_t place = self.begin(self, id, &first, now_ns, due_ns)
        return None if place < 0 else self.slots[place].number

    def try_end(self, number):
        """End it; returns its id, or `None` if it has ended."""
        cdef int32_t first = -1
        cdef int32_t place = self.find(number)
        if place < 0:
            return None
        id = self.slots[place].id
        self.end(place, &first)
        return id

    def next_expired(self, int64_t now_ns):
        """The number of one whose time is over, which is to be ended next; or `None`."""
        cdef int32_t place = self.expired(now_ns)
        return None if place < 0 else self.slots[place].number

    def next_due_ns(self, int64_t now_ns):
        """Nanoseconds until `next_expired` may have one; -1 if none waits."""
        return self.time_left(now_ns)
