"""The dispatch table: which process or service answers to a pid.

A dict from pid to entry. Every access holds the GIL, and none lets it go half-way, so any thread
may add; only the executor removes.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.ids cimport Pid

__all__ = ["DispatchTable", "Entry"]

# Epochs are unique in the whole process, so that a pid cannot take one table's for another's.
# Guarded by the GIL; 0 is never one.
cdef uint64_t epochs = 0


cdef uint64_t next_epoch() noexcept:
    global epochs
    epochs += 1
    return epochs


@cython.final
@cython.no_gc
cdef class Entry:
    """What the executor keeps of one process or service, and what a process sees as its runtime.

    It is not tracked by the garbage collector, to keep an idle process small. Process and entry
    refer to each other; removing the entry from its table cuts that cycle.
    """

    @property
    def now(self):
        """Monotonic seconds at which the executor's current batch began."""
        return self.runtime.now

    @property
    def executor(self):
        """The pid of the executor, to which control messages go."""
        return self.runtime.pid

    @property
    def random(self):
        """This process's own `random.Random`, seeded from the node's seed and its pid."""
        if self.random_source is None:
            self.random_source = self.runtime.new_random(self.pid)
        return self.random_source

    def __repr__(self):
        return f"<Entry {self.pid} delivered={self.delivered}>"


@cython.final
cdef class DispatchTable:
    """Pid to `Entry`."""

    def __cinit__(self):
        self.entries = {}
        self.epoch = next_epoch()

    def __len__(self):
        return len(self.entries)

    def __contains__(self, Pid pid not None):
        return self.find(pid) is not NULL

    def get(self, Pid pid not None):
        """The entry of `pid`, or `None`."""
        cdef PyObject* found = self.find(pid)
        return None if found is NULL else <object>found

    def insert(self, Pid pid not None, target):
        """Add an entry for a service's `target`. Returns False if the pid is taken."""
        cdef Entry entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = target
        entry.kind = INBOX
        return self.add(entry)

    def discard(self, Pid pid not None):
        """Remove and return the entry of `pid`, or `None`."""
        return self.remove(pid)

    def snapshot(self):
        """All entries, as a list made in one step."""
        return list(self.entries.values())

    cdef bint add(self, Entry entry) except -1:
        if self.find(entry.pid) is not NULL:
            return False
        self.entries[entry.pid] = entry
        return True

    cdef Entry remove(self, Pid pid):
        cdef Entry entry = self.entries.pop(pid, None)
        if entry is not None:
            self.epoch = next_epoch()
        return entry

    cdef int clear(self) except -1:
        """Remove everything."""
        self.epoch = next_epoch()
        self.entries.clear()
        return 0
