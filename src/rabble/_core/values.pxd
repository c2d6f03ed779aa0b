from cpython.object cimport PyObject

# What a container or value takes in memory where it is decoded, in bytes, by estimate: what a
# header announces is charged before anything is built. An element is its place and a small object;
# what it has of containers, values, and bytes of text is charged where that comes, or is bounded by
# the message's bytes. Encoders charge the same, so that what they write is taken elsewhere.
cdef enum Cost:
    COST_CONTAINER = 80         # of a list, tuple or message, and of what is no container itself
    COST_ELEMENT = 40           # ... of each element, entry or field
    COST_ENTRY = 120            # of a dict's entry, besides
    COST_SET = 152              # of a set, besides
    COST_MEMBER = 88            # ... of each element, besides
    COST_ATTRIBUTES = 256       # of a message that has no slots, or is built by a call, besides
    COST_PID = 256              # of a pid, node id or correlation id
    COST_VALUE = 128            # of one of the extensions below that is no container

cdef enum:
    NUMBER_BYTES_MAX = 1024     # of an int in a Fraction, range, set or key, whose time is no line
    ZONE_BYTES_MAX = 255        # of the key of a time zone

# Of an extension's body.
cdef enum:
    DATE_BYTES = 4
    TIME_BYTES = 6
    DATETIME_BYTES = 10
    TIMEDELTA_BYTES = 12
    COMPLEX_BYTES = 16
    UUID_BYTES = 16

# The extension that a class has, itself and not a subclass of it; 0 if it has none.
cdef int code_of(object cls) noexcept

# Store the body, or its beginning, of a value of `code`, for which there is room; bytes taken.
cdef int put_fixed(unsigned char* p, int code, object value) noexcept
# Of a datetime or time, with its zone if that is UTC; any other one is put into `zone`, borrowed.
cdef int put_moment(unsigned char* p, int code, object value, PyObject** zone) noexcept
# Bytes of an int's two's complement, and how to store them.
cdef Py_ssize_t int_size(object value) except -1
cdef int put_large(unsigned char* p, Py_ssize_t size, object value) except -1
cdef bint put_uuid(unsigned char* p, object value) except -1    # False if it has no such number
cdef tuple parts_of(object fraction)            # numerator and denominator
cdef tuple offset_of(object zone)               # of a timezone: microseconds, or these and its name

# What a body is, or ValueError, with what is wrong. To be called as a `quiet_parser`.
cdef object parse_int(const unsigned char* data, Py_ssize_t size)
cdef object parse_date(const unsigned char* data, Py_ssize_t size)
cdef object parse_timedelta(const unsigned char* data, Py_ssize_t size)
cdef object parse_decimal(const unsigned char* data, Py_ssize_t size)
cdef object parse_complex(const unsigned char* data, Py_ssize_t size)
cdef object parse_uuid(const unsigned char* data, Py_ssize_t size)

# What its parts are; NULL with the exception pending, which is a ValueError if they are wrong.
cdef PyObject* new_time(const unsigned char* data, object zone) noexcept
cdef PyObject* new_datetime(const unsigned char* data, object zone) noexcept
cdef PyObject* new_timezone(object offset, object name) noexcept
cdef PyObject* new_fraction(object numerator, object denominator) noexcept
cdef PyObject* new_range(object start, object stop, object step) noexcept

cdef object utc()
cdef frozenset zone_names()                     # that this machine has
cdef object new_zone(str key)
