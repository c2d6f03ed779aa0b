# What both halves of the codec know: the extension types, and the plans of registered classes.

from cpython.object cimport PyObject

# Extension types of msgpack, all bodies being msgpack themselves but for the two texts.
cdef enum Ext:
    EXT_MESSAGE = 1           # str: wire name; array: fields
    EXT_ENUM = 2              # str: wire name; value
    EXT_NODE_ID = 3           # the text form
    EXT_PID = 4               # the text form
    EXT_CORRELATION_ID = 5    # str: the pid's text; connection; request

cdef class Plan:
    cdef object cls             # what is built
    cdef str name               # its wire name
    cdef tuple fields           # of a message: names of its fields
    cdef Py_ssize_t count       # ... how many
    cdef Py_ssize_t* offsets    # ... where each lies in the instance; NULL: ask by name
    cdef bint built_by_slots    # ... whether its constructor does nothing but fill them
    cdef dict members           # of an enum: value to (its type, the member)
    # The encoder's, which completes the plan before it writes by it.
    cdef bytes head             # of a message: its name and the header of its fields; None: not yet
    cdef dict encoded           # of an enum: id(member) to its whole encoding

# The plan of what is registered, which the registry keeps by the wire name. The caller holds the
# registry's lock until the plan is in the last table that it goes into: a class that is replaced
# meanwhile must not come back by way of these.
cdef Plan plan_of(object registry, object registration)

# A slot of an instance, by the offset that the plan has.
cdef extern from *:
    """
    #ifndef RABBLE_SLOT
    #define RABBLE_SLOT(instance, offset) (*(PyObject **)((char *)(instance) + (offset)))
    #define RABBLE_SET_SLOT(instance, offset, value) (RABBLE_SLOT(instance, offset) = (value))
    #endif
    """
    PyObject* RABBLE_SLOT(object instance, Py_ssize_t offset) noexcept
    void RABBLE_SET_SLOT(object instance, Py_ssize_t offset, PyObject* value) noexcept
