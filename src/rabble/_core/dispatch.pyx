"""The dispatch table: which process or service answers to a pid.

Entries by their pids, in slots that grow and shrink a few at a time. Every access holds the GIL,
and none lets it go half-way, so any thread may add; only the executor removes.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from rabble._core.ids cimport Pid
from rabble._core.pid_slots cimport (
    PidSlots, begin_slots, drop_slots, put_item, remove_item, sort_taken, sorted_items, take_slots,
)

__all__ = ["DispatchTable", "Entry", "MailboxLimit", "Scene", "show_runtime"]

# Epochs are unique in the whole process, so that a pid cannot take one table's for another's.
# Guarded by the GIL; 0 is never one.
cdef uint64_t epochs = 0


cdef uint64_t next_epoch() noexcept:
    global epochs
    epochs += 1
    return epochs


@cython.final
@cython.no_gc
cdef class MailboxLimit:
    """How many envelopes may wait for a process. It refers to a pid alone, so it is in no cycle."""


@cython.final
@cython.no_gc
cdef class Scene:
    """Where a process runs: the pid, the clock and the seed of its executor.

    It refers to names and a text, so it is in no cycle.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a Scene cannot be made by itself: an executor makes its own")

    @property
    def now(self):
        """Monotonic seconds at which the executor's current batch began."""
        return self.batch_ns * 1e-9

    def new_random(self, Pid pid not None, life):
        """The random source of one life of a process."""
        from random import Random
        return Random(f"{self.seed}:{pid}:{life}")


@cython.final
@cython.no_gc
cdef class Rare:
    """What few lives have. Its entry alone refers to it, and lets go of it when it ends."""


cdef Rare rare_of(Entry entry):
    if entry.rare is None:
        entry.rare = Rare.__new__(Rare)
    return entry.rare


@cython.final
@cython.no_gc
cdef class Entry:
    """What the executor keeps of one life of a process, and what a process sees as its runtime.

    It is not tracked by the garbage collector: a full collection would otherwise walk over the
    entries of a million idle processes. Process and entry refer to each other, and a timer and its
    entry too. Both circles are cut by hand, and each entry comes to that: it is in its table from
    the moment the process knows it, and whatever takes it out of there (the end of the process, or
    of the executor, which ends in any case) leaves it with neither target nor timers, nor the
    random source, which may have attributes. What stays is the scene: a pid, a number and a text.
    It is not the executor, from which a way may lead back, by what a user keeps at the node.
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
        """This life's own `random.Random`, seeded from the node's seed, its pid and its number."""
        cdef Rare rare = rare_of(self)
        if rare.random_source is None:
            rare.random_source = self.runtime.new_random(self.pid, self.life)
        return rare.random_source

    @property
    def queued(self):
        """How many of the envelopes that wait for it are counted: none without a limit."""
        return 0 if self.limit is None else self.limit.queued

    @property
    def mailbox_max(self):
        """How many may wait; 0 is without limit."""
        return 0 if self.limit is None else self.limit.most

    def __repr__(self):
        return f"<Entry {self.pid} delivered={self.delivered}>"


# What a process asks of its runtime with each message, nothing of which is Python: a `property` of
# a function would take three times as long.

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #include <structmember.h>
    #endif
    static Py_ssize_t rabble_runtime_at = 0;
    enum { RABBLE_PID, RABBLE_NODE_ID, RABBLE_EXECUTOR, RABBLE_NOW };
    static PyGetSetDef rabble_shown[] = {
        {"pid", NULL, NULL, "This process's own pid.", (void *)RABBLE_PID},
        {"node_id", NULL, NULL, "The node it runs on.", (void *)RABBLE_NODE_ID},
        {"executor", NULL, NULL, "The pid that control messages go to.", (void *)RABBLE_EXECUTOR},
        {"now", NULL, NULL,
         "Monotonic seconds at which the executor's current batch of deliveries began.",
         (void *)RABBLE_NOW},
        {NULL, NULL, NULL, NULL, NULL},
    };
    /* Have a class, which has a slot `_runtime`, show them. */
    static int rabble_show(PyTypeObject *cls, getter get) {
        PyGetSetDef *field;
        PyObject *slot = PyObject_GetAttrString((PyObject *)cls, "_runtime");
        if (slot == NULL) return -1;
        if (!Py_IS_TYPE(slot, &PyMemberDescr_Type)) {
            Py_DECREF(slot);
            PyErr_SetString(PyExc_TypeError, "_runtime must be a slot");
            return -1;
        }
        rabble_runtime_at = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_DECREF(slot);
        for (field = rabble_shown; field->name != NULL; field++) {
            PyObject *shown;
            int failed;
            field->get = get;
            shown = PyDescr_NewGetSet(cls, field);
            if (shown == NULL) return -1;
            failed = PyObject_SetAttrString((PyObject *)cls, field->name, shown);
            Py_DECREF(shown);
            if (failed) return -1;
        }
        return 0;
    }
    /* Borrowed; NULL before the spawn. The descriptor has seen that it is a process. */
    static PyObject *rabble_runtime_of(PyObject *process) {
        return *(PyObject **)((char *)process + rabble_runtime_at);
    }
    """
    ctypedef object (*getter)(object process, void* which)
    int rabble_show(type cls, getter get) except -1
    PyObject* rabble_runtime_of(object process) noexcept
    const Py_ssize_t PID "RABBLE_PID"
    const Py_ssize_t NODE_ID "RABBLE_NODE_ID"
    const Py_ssize_t EXECUTOR_PID "RABBLE_EXECUTOR"


cdef object get_shown(object process, void* which):
    cdef PyObject* found = rabble_runtime_of(process)
    cdef Entry entry
    if found is not NULL and type(<object>found) is Entry:
        entry = <Entry>found
        if <Py_ssize_t>which == PID:
            return entry.pid
        if <Py_ssize_t>which == NODE_ID:
            return entry.pid.node
        if type(entry.runtime) is Scene:
            if <Py_ssize_t>which == EXECUTOR_PID:
                return (<Scene>entry.runtime).pid
            return (<Scene>entry.runtime).batch_ns * 1e-9
    # A test's own; or none yet, which raises.
    runtime = process._attached()
    if <Py_ssize_t>which == PID:
        return runtime.pid
    if <Py_ssize_t>which == NODE_ID:
        return runtime.pid.node
    return runtime.executor if <Py_ssize_t>which == EXECUTOR_PID else runtime.now


def show_runtime(type cls not None):
    """Give `Process` what it shows of its runtime: `pid`, `node_id`, `executor`, `now`.

    :param cls: which has a slot `_runtime`.
    """
    rabble_show(cls, get_shown)


cdef PyObject* pid_of(PyObject* entry) noexcept:
    return <PyObject*>(<Entry>entry).pid


cdef uint64_t life_of(PyObject* entry) noexcept:
    return (<Entry>entry).life


# No entry is seen by the garbage collector, so it has nothing to look at here.
@cython.final
@cython.no_gc
cdef class DispatchTable:
    """Pid to `Entry`."""

    def __cinit__(self):
        begin_slots(&self.entries, pid_of)
        self.epoch = next_epoch()

    def __dealloc__(self):
        drop_slots(&self.entries)

    def __len__(self):
        return self.entries.count

    def __contains__(self, Pid pid not None):
        return self.find(pid) is not NULL

    def get(self, Pid pid not None):
        """The entry of `pid`, or `None`."""
        cdef PyObject* found = self.find(pid)
        return None if found is NULL else <object>found

    def insert(self, Pid pid not None, target):
        """Add an entry whose `target` is called with each envelope. False if the pid is taken.

        Whatever it is: what kind of entry an object fits is the executor's to know.
        """
        cdef Entry entry = Entry.__new__(Entry)
        entry.pid = pid
        entry.target = target
        entry.kind = CALLBACK
        entry.life = next_epoch()
        return self.add(entry)

    def discard(self, Pid pid not None):
        """Remove and return the entry of `pid`, or `None`."""
        return self.remove(pid)

    def snapshot(self):
        """All entries, as a list in the order of their lives."""
        return sorted_items(&self.entries, life_of)

    cdef bint add(self, Entry entry) except -1:
        if self.find(entry.pid) is not NULL:
            return False
        if put_item(&self.entries, entry.pid, <PyObject*>entry) < 0:
            raise MemoryError
        Py_INCREF(entry)
        return True

    cdef Entry remove(self, Pid pid):
        cdef Entry entry
        cdef PyObject* owned = remove_item(&self.entries, pid)
        if owned is NULL:
            return None
        self.epoch = next_epoch()
        entry = <Entry>owned
        Py_DECREF(entry)
        return entry

    cdef void clear(self, PidSlots* taken) noexcept:
        take_slots(&self.entries, taken)
        self.epoch = next_epoch()
        sort_taken(taken, life_of)
