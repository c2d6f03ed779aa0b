"""What a test asks about the build: its capacities, and in the debug build counts of live objects.

Everything an object of a compiled class costs goes through two slots of its type: `tp_alloc` gives
it memory and `tp_free` takes it back. In a debug build, importing this module puts functions that
count in front of both. So the classes know nothing of it, and the release build, where this module
does nothing, carries no code for it. Free lists would go past both slots; `setup.py` leaves them
out of the debug build, where a use after the end is then seen as one.

The capacities are those of `capacities.pxd`, which are others in the `tiny` build: a test that
means "more than fits" takes its numbers from here.

What was made before the import is not counted: tests compare counts, and import this first.
"""

cimport rabble._core.capacities as capacities

from importlib import import_module
from pkgutil import iter_modules

from rabble import _core

__all__ = ["CAPACITIES", "ENABLED", "live_counts"]

cdef extern from *:
    """
    #ifdef RABBLE_DEBUG
    #define RABBLE_COUNTS 1
    #define RABBLE_COUNTED_MAX 128
    static struct {
        PyTypeObject *type;
        allocfunc alloc;
        freefunc free;
        Py_ssize_t live;
    } rabble_counted[RABBLE_COUNTED_MAX];
    static int rabble_counted_n = 0;

    static int rabble_place(PyTypeObject *type) {
        int i;
        for (i = 0; i < rabble_counted_n; i++)
            if (rabble_counted[i].type == type)
                return i;
        return -1;
    }
    static PyObject *rabble_alloc(PyTypeObject *type, Py_ssize_t items) {
        int i = rabble_place(type);
        PyObject *made = rabble_counted[i].alloc(type, items);
        rabble_counted[i].live += made != NULL;
        return made;
    }
    static void rabble_free(void *object) {
        int i = rabble_place(Py_TYPE((PyObject *)object));
        rabble_counted[i].live -= 1;
        rabble_counted[i].free(object);
    }
    /* Whether it is counted from now on: static types only, which nobody can inherit slots from. */
    static int rabble_count(PyObject *object) {
        PyTypeObject *type = (PyTypeObject *)object;
        if (type->tp_flags & (Py_TPFLAGS_HEAPTYPE | Py_TPFLAGS_BASETYPE) ||
            rabble_counted_n == RABBLE_COUNTED_MAX || rabble_place(type) >= 0)
            return 0;
        rabble_counted[rabble_counted_n].type = type;
        rabble_counted[rabble_counted_n].alloc = type->tp_alloc;
        rabble_counted[rabble_counted_n].free = type->tp_free;
        rabble_counted_n += 1;
        type->tp_alloc = rabble_alloc;
        type->tp_free = rabble_free;
        PyType_Modified(type);
        return 1;
    }
    static Py_ssize_t rabble_live(PyObject *type) {
        return rabble_counted[rabble_place((PyTypeObject *)type)].live;
    }
    #else
    #define RABBLE_COUNTS 0
    #define rabble_count(type) 0
    #define rabble_live(type) 0
    #endif
    """
    bint RABBLE_COUNTS
    bint rabble_count(object cls) noexcept
    Py_ssize_t rabble_live(object cls) noexcept

#: Whether this is a debug build, which counts.
ENABLED = bool(RABBLE_COUNTS)

#: By name, those of this build.
CAPACITIES = {
    "IS_TINY": capacities.IS_TINY,
    "QUEUE_SLOTS_MIN": capacities.QUEUE_SLOTS_MIN,
    "QUEUE_SLOTS_KEPT": capacities.QUEUE_SLOTS_KEPT,
    "SLOTS_MIN": capacities.SLOTS_MIN,
    "SLOTS_MOVED": capacities.SLOTS_MOVED,
    "SLOTS_MAPPED": capacities.SLOTS_MAPPED,
    "TURN_DELIVERIES_MAX": capacities.TURN_DELIVERIES_MAX,
    "DUE_QUEUED_MAX": capacities.DUE_QUEUED_MAX,
    "WHEEL_SLOT_BITS": capacities.WHEEL_SLOT_BITS,
    "WHEEL_LEVELS": capacities.WHEEL_LEVELS,
    "SENT_PID_SLOTS": capacities.SENT_PID_SLOTS,
    "DECODER_CACHE_SLOTS": capacities.DECODER_CACHE_SLOTS,
    "ENCODE_BYTES_MIN": capacities.ENCODE_BYTES_MIN,
    "ENCODE_BYTES_KEPT": capacities.ENCODE_BYTES_KEPT,
    "PID_CACHE_SLOTS_USED": capacities.PID_CACHE_SLOTS_USED,
    "PAIRS_MIN": capacities.PAIRS_MIN,
    "DATA_BYTES_KEPT": capacities.DATA_BYTES_KEPT,
    "PAYLOAD_BYTES_MIN": capacities.PAYLOAD_BYTES_MIN,
    "BYTE_QUEUE_BYTES_MIN": capacities.BYTE_QUEUE_BYTES_MIN,
    "BYTE_QUEUE_BYTES_KEPT": capacities.BYTE_QUEUE_BYTES_KEPT,
    "BULK_WINDOW": capacities.BULK_WINDOW,
    "BULK_WINDOW_SHARED": capacities.BULK_WINDOW_SHARED,
    "SEND_BYTES_MAX": capacities.SEND_BYTES_MAX,
    "SEND_PIECES": capacities.SEND_PIECES,
    "SEAL_BYTES": capacities.SEAL_BYTES,
    "RECORD_BYTES_BEGIN": capacities.RECORD_BYTES_BEGIN,
    "WRITE_SOCKET_BYTES_MAX": capacities.WRITE_SOCKET_BYTES_MAX,
    "BULK_BYTES_KEPT": capacities.BULK_BYTES_KEPT,
    "POLL_EVENTS": capacities.POLL_EVENTS,
    "RECV_BYTES_MIN": capacities.RECV_BYTES_MIN,
    "RECV_BYTES_MAX": capacities.RECV_BYTES_MAX,
    "RECV_HIGH": capacities.RECV_HIGH,
    "RECV_LOW": capacities.RECV_LOW,
    "RECV_BULK_HIGH": capacities.RECV_BULK_HIGH,
    "LARGE_BYTES": capacities.LARGE_BYTES,
    "BATCH_FRAMES_MAX": capacities.BATCH_FRAMES_MAX,
    "BATCH_BULK_FRAMES_MIN": capacities.BATCH_BULK_FRAMES_MIN,
    "BATCH_DATA_BYTES": capacities.BATCH_DATA_BYTES,
    "BATCH_BULK_BYTES": capacities.BATCH_BULK_BYTES,
    "FLUSH_BYTES": capacities.FLUSH_BYTES,
    "CLIENT_READ_BYTES": capacities.CLIENT_READ_BYTES,
    "CLIENT_HIGH": capacities.CLIENT_HIGH,
    "CLIENT_BATCH_FRAMES": capacities.CLIENT_BATCH_FRAMES,
    "CLIENT_TURN_FRAMES": capacities.CLIENT_TURN_FRAMES,
    "CLIENT_TURN_BYTES": capacities.CLIENT_TURN_BYTES,
    "CLIENT_SLOTS_MIN": capacities.CLIENT_SLOTS_MIN,
}

# By their names: it refers to what is there when it runs, and is not compiled against any of them.
MODULES = sorted(module.name for module in iter_modules(_core.__path__) if module.name != "debug")
COUNTED = {
    f"{module}.{name}": value
    for module in MODULES
    for name, value in vars(import_module(f"rabble._core.{module}")).items()
    if isinstance(value, type)
    and value.__module__ == f"rabble._core.{module}"
    and rabble_count(value)
}


def live_counts():
    """How many objects of each class are alive: `module.Class` to a number.

    Empty, but in a debug build.
    """
    return {name: rabble_live(cls) for name, cls in COUNTED.items()}
