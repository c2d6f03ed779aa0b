from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.ids cimport Pid

# Which pid an item is found by, borrowed: a function that runs nobody's code.
ctypedef PyObject* (*pid_function)(PyObject* item) noexcept

cdef struct Slot:
    Py_hash_t hash          # of the item's pid; -1, which none has: the item was moved or removed
    PyObject* item          # owned; NULL: the slot was never used

cdef struct Slots:
    Slot* at
    size_t mask             # how many there are, less one: a power of two less one

cdef struct PidSlots:
    # Items, by their pids: open addressing. Made by `begin_slots`.
    Slots current           # where items are put
    Slots former            # what `current` takes the place of; `at` is NULL: nothing
    size_t emptied          # how many slots of `former` were looked at and moved
    size_t count            # items in both
    pid_function pid_of

cdef void begin_slots(PidSlots* slots, pid_function pid_of) noexcept

# The item of `pid`, borrowed, or NULL.
cdef PyObject* find_item(const PidSlots* slots, Pid pid) noexcept
# Put an item where none of its pid is; it takes over the reference. -1 without memory and an
# exception: then nothing was changed.
cdef int put_item(PidSlots* slots, Pid pid, PyObject* owned) noexcept
# Remove the item of `pid` and hand over its reference; NULL if there is none.
cdef PyObject* remove_item(PidSlots* slots, Pid pid) noexcept

# The next item, borrowed, from a place that begins with 0; NULL behind the last one. Each change
# may move items.
cdef PyObject* next_item(const PidSlots* slots, size_t* place) noexcept
# Empty it, and give all items' references and all memory to `taken`, which has nothing.
cdef void take_slots(PidSlots* slots, PidSlots* taken) noexcept
# Drop what is there. It is empty before the first reference is dropped.
cdef void drop_slots(PidSlots* slots) noexcept

# A number of an item by which they are put in order: the slots themselves are in none that two
# runs would have in common. Less than 2**63.
ctypedef uint64_t (*order_function)(PyObject* item) noexcept

# Have `next_item` return what was taken in order. It is good for that and `drop_slots` alone then.
cdef void sort_taken(PidSlots* taken, order_function order_of) noexcept
# The items in order, as a list.
cdef list sorted_items(const PidSlots* slots, order_function order_of)

# A set of pids, which has the same of dict and set: it may have millions.
cdef class PidSet:
    cdef PidSlots slots

    cdef int put(self, Pid pid) except -1
    # Whether it was there.
    cdef bint drop(self, Pid pid) noexcept
    cdef inline bint has(self, Pid pid) noexcept:
        return find_item(&self.slots, pid) is not NULL
