from cpython.object cimport PyObject

cdef class CodecBounds:
    # What encoder, decoder and codec have in common, each being one of these.
    cdef readonly object registry               # of the classes that may be sent and built
    cdef readonly Py_ssize_t message_bytes_max  # of one message or envelope
    cdef readonly int depth_max                 # how deep containers may be nested
    cdef readonly Py_ssize_t elements_max       # of all containers of one message together
    cdef readonly Py_ssize_t decoded_bytes_max  # of memory that these take, see values.pxd

# Extension types of msgpack, all bodies being msgpack themselves but for the two texts.
cdef enum Ext:
    EXT_MESSAGE = 1           # str: wire name; array: fields
    EXT_ENUM = 2              # str: wire name; value
    EXT_NODE_ID = 3           # the text form
    EXT_PID = 4               # the text form
    EXT_CORRELATION_ID = 5    # str: the pid's text; connection; request
    EXT_TYPE = 6              # str: wire name of a registered type; what its encode returned
    EXT_TUPLE = 7
    EXT_SET = 8
    EXT_FROZENSET = 9
    EXT_BYTEARRAY = 10
    EXT_INT = 11              # of more than 64 bits
    EXT_DATE = 12
    EXT_TIME = 13
    EXT_DATETIME = 14
    EXT_TIMEDELTA = 15
    EXT_TIMEZONE = 16
    EXT_ZONEINFO = 17
    EXT_DECIMAL = 18
    EXT_FRACTION = 19
    EXT_COMPLEX = 20
    EXT_UUID = 21
    EXT_RANGE = 22

# How an instance of a message class is built.
cdef enum Build:
    BUILD_CALL = 0            # `maker` is called, which may be the user's own
    BUILD_SLOTS = 1           # its memory is taken and its slots are filled
    BUILD_ATTRIBUTES = 2      # ... and its attributes are set, as a frozen dataclass does it
    BUILD_TUPLE = 3           # it is a named tuple

cdef class Plan:
    cdef object cls             # what is built
    cdef str name               # its wire name
    cdef bytes key              # ... in UTF-8: the object that the registry has the plan by
    cdef tuple fields           # of a message: names of its fields
    cdef Py_ssize_t count       # ... how many
    cdef Py_ssize_t required    # ... how many have to come: the others have defaults
    cdef Py_ssize_t* offsets    # ... where each lies in the instance; NULL: ask by name
    cdef int build              # ... a `Build`
    cdef object maker           # ... what takes the fields by name
    cdef tuple defaults         # ... for each: None, or whether it is a factory and what it is
    cdef dict members           # of an enum: value to (its type, the member)
    cdef object encode          # of a type: the user's two functions, else None
    cdef object decode
    # The decoder's, which makes the plan ready before it builds by it.
    cdef bint is_ready          # whether these are there:
    cdef tuple checks           # for each field its Check, or None
    cdef PyObject** quick       # ... the class that passes at once; NULL: whatever it is
    # The encoder's, which completes the plan before it writes by it.
    cdef bytes head             # of a message: its name and the header of its fields; None: not yet
    cdef dict encoded           # of an enum: id(member) to its whole encoding

# The plan of what is registered, which the registry keeps by the wire name. The caller holds the
# registry's lock until the plan is in the last table that it goes into: a class that is replaced
# meanwhile must not come back by way of these.
cdef Plan plan_of(object registry, object registration)

# The checks of a class's fields, which may run code of the program: so without the lock.
cdef tuple checks_of(object registry, object registration)
# Keep them in its plan, if it has none; under the same lock, and if nothing was registered since.
cdef int make_ready(Plan plan, tuple checks) except -1

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
