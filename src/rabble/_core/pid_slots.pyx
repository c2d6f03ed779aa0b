"""Pid slots: a hash table of what has a pid, for millions, that never stops to copy them all.

Open addressing with linear probing; at most two thirds are used. When it is to grow or to shrink,
an array of the other size takes the place of the one that is there, and each later change moves
SLOTS_MOVED slots from the former one, which is therefore empty before the next such time comes. An
item is looked for in both meanwhile. A dict copies all its items at once as it grows, which takes
100 ms at three million, and never shrinks.

Large arrays are mapped by themselves: what is mapped is zeros without being written, and what is
unmapped goes back to the system, whatever the heap looks like.

All of it is guarded by the GIL, and nothing here runs anybody's code but `drop_slots`.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.object cimport PyObject
from libc.stdlib cimport qsort

from rabble._core.capacities cimport SLOTS_MAPPED, SLOTS_MIN, SLOTS_MOVED
from rabble._core.ids cimport Pid, same_pid

__all__ = ["PidSet"]

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    void* MAP_FAILED
    void* mmap(void* addr, size_t size, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t size)

# What every table has at first. It is full with nothing, so it is never written.
cdef Slot UNUSED
UNUSED.hash = 0
UNUSED.item = NULL


cdef PyObject* itself(PyObject* pid) noexcept:
    return pid


# Pids are not seen by the garbage collector, so it has nothing to look at here.
@cython.final
@cython.no_gc
cdef class PidSet:
    """A set of pids, in no order. All of it is the executor's thread's."""

    def __cinit__(self):
        begin_slots(&self.slots, itself)

    def __dealloc__(self):
        drop_slots(&self.slots)

    def __len__(self):
        return self.slots.count

    def __contains__(self, Pid pid not None):
        return self.has(pid)

    def add(self, Pid pid not None):
        """Add a pid, if it is not there."""
        self.put(pid)

    def discard(self, Pid pid not None):
        """Remove a pid. Returns whether it was there."""
        return self.drop(pid)

    def pids(self):
        """All pids, as a list."""
        cdef list pids = []
        cdef PyObject* pid
        cdef size_t place = 0
        while True:
            pid = next_item(&self.slots, &place)
            if pid is NULL:
                return pids
            pids.append(<Pid>pid)

    @property
    def slots_held(self):
        """How many slots its arrays have, for tests: of the current one, and of the former one."""
        return (
            self.slots.current.mask + 1,
            0 if self.slots.former.at is NULL else self.slots.former.mask + 1,
        )

    cdef int put(self, Pid pid) except -1:
        if find_item(&self.slots, pid) is NULL:
            if put_item(&self.slots, pid, <PyObject*>pid) < 0:
                raise MemoryError
            Py_INCREF(pid)
        return 0

    cdef bint drop(self, Pid pid) noexcept:
        cdef PyObject* owned = remove_item(&self.slots, pid)
        if owned is NULL:
            return False
        Py_DECREF(<Pid>owned)
        return True


cdef void begin_slots(PidSlots* slots, pid_function pid_of) noexcept:
    slots.current.at = &UNUSED
    slots.current.mask = 0
    slots.former.at = NULL
    slots.former.mask = 0
    slots.emptied = 0
    slots.count = 0
    slots.pid_of = pid_of


cdef PyObject* find_item(const PidSlots* slots, Pid pid) noexcept:
    cdef Slot* found = find_slot(slots, &slots.current, pid)
    if found is NULL and slots.former.at is not NULL:
        found = find_slot(slots, &slots.former, pid)
    return NULL if found is NULL else found.item


cdef int put_item(PidSlots* slots, Pid pid, PyObject* owned) noexcept:
    if 3 * (slots.count + 1) > 2 * (slots.current.mask + 1):
        # It is empty already, see SLOTS_MOVED.
        move_items(slots, slots.former.mask + 1)
        if replace_array(slots, max(2 * (slots.current.mask + 1), <size_t>SLOTS_MIN)) < 0:
            return -1
    store_item(&slots.current, pid.hash_value, owned)
    slots.count += 1
    move_items(slots, SLOTS_MOVED)
    return 0


cdef PyObject* remove_item(PidSlots* slots, Pid pid) noexcept:
    cdef PyObject* item
    cdef Slot* found = find_slot(slots, &slots.current, pid)
    if found is not NULL:
        item = found.item
        close_gap(&slots.current, found - slots.current.at)
    else:
        if slots.former.at is NULL:
            return NULL
        found = find_slot(slots, &slots.former, pid)
        if found is NULL:
            return NULL
        item = found.item
        # What was put behind it must be found still.
        found.hash = -1
    slots.count -= 1
    if slots.count == 0 and slots.current.mask >= SLOTS_MIN:
        free_array(&slots.current)
        free_array(&slots.former)
        begin_slots(slots, slots.pid_of)
        return item
    move_items(slots, SLOTS_MOVED)
    if (
        8 * slots.count <= slots.current.mask
        and slots.current.mask >= SLOTS_MIN
        and slots.former.at is NULL
    ):
        # Where there is no memory for a smaller one it stays as it is.
        replace_array(slots, (slots.current.mask + 1) // 2)
    return item


cdef PyObject* next_item(const PidSlots* slots, size_t* place) noexcept:
    cdef size_t first = slots.current.mask + 1
    cdef const Slot* slot
    while True:
        if place[0] < first:
            slot = &slots.current.at[place[0]]
        elif slots.former.at is not NULL and place[0] - first <= slots.former.mask:
            slot = &slots.former.at[place[0] - first]
        else:
            return NULL
        place[0] += 1
        if slot.item is not NULL and slot.hash != -1:
            return slot.item


cdef void take_slots(PidSlots* slots, PidSlots* taken) noexcept:
    taken[0] = slots[0]
    begin_slots(slots, taken.pid_of)


cdef void drop_slots(PidSlots* slots) noexcept:
    cdef PidSlots taken
    cdef PyObject* item
    cdef size_t place = 0
    take_slots(slots, &taken)
    while True:
        item = next_item(&taken, &place)
        if item is NULL:
            break
        Py_DECREF(<object>item)
    free_array(&taken.current)
    free_array(&taken.former)


cdef void sort_taken(PidSlots* taken, order_function order_of) noexcept:
    cdef Slot* slot
    cdef Slot* first = taken.current.at
    cdef size_t n
    # There is room: at most two thirds of the current array are used with all that is in both.
    move_items(taken, taken.former.mask + 1)
    for n in range(taken.current.mask + 1):
        slot = &taken.current.at[n]
        if slot.item is not NULL:
            first.item = slot.item
            first.hash = <Py_hash_t>order_of(slot.item)
            if first is not slot:
                slot.item = NULL
            first += 1
    qsort(taken.current.at, taken.count, sizeof(Slot), in_order)


cdef list sorted_items(const PidSlots* slots, order_function order_of):
    cdef list items = []
    cdef Slot* sorted_slots
    cdef PyObject* item
    cdef size_t place, count, n
    if slots.count == 0:
        return items
    sorted_slots = <Slot*>PyMem_RawMalloc(slots.count * sizeof(Slot))
    if sorted_slots is NULL:
        raise MemoryError
    count = 0
    place = 0
    while True:
        item = next_item(slots, &place)
        if item is NULL:
            break
        # Held: to make the list may run the garbage collector, and with it anybody's code.
        Py_INCREF(<object>item)
        sorted_slots[count].item = item
        sorted_slots[count].hash = <Py_hash_t>order_of(item)
        count += 1
    qsort(sorted_slots, count, sizeof(Slot), in_order)
    n = 0
    try:
        while n < count:
            items.append(<object>sorted_slots[n].item)
            n += 1
    finally:
        for n in range(count):
            Py_DECREF(<object>sorted_slots[n].item)
        PyMem_RawFree(sorted_slots)
    return items


cdef int in_order(const void* one, const void* other) noexcept nogil:
    cdef Py_hash_t a = (<const Slot*>one).hash
    cdef Py_hash_t b = (<const Slot*>other).hash
    return (a > b) - (a < b)


cdef Slot* find_slot(const PidSlots* slots, const Slots* array, Pid pid) noexcept:
    cdef size_t mask = array.mask
    cdef size_t n = <size_t>pid.hash_value & mask
    cdef Slot* slot = &array.at[n]
    cdef PyObject* known
    while slot.item is not NULL:
        if slot.hash == pid.hash_value:
            known = slots.pid_of(slot.item)
            if known is <PyObject*>pid or same_pid(<Pid>known, pid):
                return slot
        n = (n + 1) & mask
        slot = &array.at[n]
    return NULL


cdef void store_item(Slots* array, Py_hash_t hash, PyObject* item) noexcept:
    cdef size_t n = <size_t>hash & array.mask
    while array.at[n].item is not NULL:
        n = (n + 1) & array.mask
    array.at[n].hash = hash
    array.at[n].item = item


cdef void close_gap(Slots* array, size_t gap) noexcept:
    """Free a slot, and move up what would not be found any more behind it."""
    cdef size_t mask = array.mask
    cdef size_t n = gap
    cdef Slot* slot
    while True:
        n = (n + 1) & mask
        slot = &array.at[n]
        if slot.item is NULL:
            break
        # How far it is from where it should be, and from the gap.
        if ((n - <size_t>slot.hash) & mask) >= ((n - gap) & mask):
            array.at[gap] = slot[0]
            gap = n
    array.at[gap].item = NULL


cdef void move_items(PidSlots* slots, size_t most) noexcept:
    """Move what the next slots of the former array have."""
    cdef Slot* slot
    if slots.former.at is NULL:
        return
    while most != 0 and slots.emptied <= slots.former.mask:
        slot = &slots.former.at[slots.emptied]
        if slot.item is not NULL and slot.hash != -1:
            store_item(&slots.current, slot.hash, slot.item)
            # The item stays there, so that what was put behind it is found still.
            slot.hash = -1
        slots.emptied += 1
        most -= 1
    if slots.emptied > slots.former.mask:
        free_array(&slots.former)


cdef int replace_array(PidSlots* slots, size_t capacity) noexcept:
    cdef Slot* made = NULL
    if capacity > <size_t>-1 // (2 * sizeof(Slot)):
        return -1
    if capacity >= SLOTS_MAPPED:
        made = <Slot*>mmap(
            NULL, capacity * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
            0,
        )
        if made is MAP_FAILED:
            return -1
    else:
        made = <Slot*>PyMem_RawCalloc(capacity, sizeof(Slot))
        if made is NULL:
            return -1
    slots.former = slots.current
    slots.emptied = 0
    slots.current.at = made
    slots.current.mask = capacity - 1
    if slots.former.mask < SLOTS_MOVED:
        move_items(slots, SLOTS_MOVED)
    return 0


cdef void free_array(Slots* array) noexcept:
    if array.at is not NULL and array.at is not &UNUSED:
        if array.mask + 1 >= SLOTS_MAPPED:
            munmap(array.at, (array.mask + 1) * sizeof(Slot))
        else:
            PyMem_RawFree(array.at)
    array.at = NULL
    array.mask = 0
