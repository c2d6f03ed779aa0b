"""The encoder: messages and envelopes to msgpack.

What it writes is msgpack that any library reads: an envelope is an array of four (to, sender,
correlation id, message), and what msgpack has no type for is an extension, see `Ext` in `plan.pxd`.
Depth is bounded, as it is for who reads it; that also is what ends a cycle.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next, PyDict_Size
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyCallable_Check, PyObject, PyObject_TypeCheck, PyTypeObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from rabble._core.buffer_writer cimport (
    KIND_ARRAY, KIND_MAP, BufferWriter, put_bytes_head, put_ext_head, put_head, put_int,
    put_str_head,
)
from rabble._core.byteorder cimport store_16, store_32, store_64
from rabble._core.capacities cimport ENCODE_BYTES_KEPT, ENCODE_BYTES_MIN, SENT_PID_SLOTS
from rabble._core.envelope cimport Envelope
from rabble._core.failure cimport PyErr_ExceptionMatches, owned, take_failure
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_pid
from rabble._core.plan cimport (
    BUILD_SLOTS, BUILD_TUPLE, EXT_BYTEARRAY, EXT_CORRELATION_ID, EXT_DATETIME, EXT_DECIMAL,
    EXT_ENUM,
    EXT_FRACTION, EXT_FROZENSET, EXT_INT, EXT_MESSAGE, EXT_NODE_ID, EXT_PID, EXT_RANGE, EXT_SET,
    EXT_TIME, EXT_TIMEZONE, EXT_TUPLE, EXT_TYPE, EXT_UUID, EXT_ZONEINFO, RABBLE_SLOT, CodecBounds,
    Plan, plan_of,
)
from rabble._core.texts cimport bounded_repr, bounded_str, must_pass, type_name
from rabble._core.values cimport (
    COST_ATTRIBUTES, COST_CONTAINER, COST_ELEMENT, COST_ENTRY, COST_MEMBER, COST_PID, COST_SET,
    COST_VALUE, NUMBER_BYTES_MAX,
    UUID_BYTES, ZONE_BYTES_MAX, code_of, int_size, offset_of, parts_of, put_fixed, put_large,
    put_moment, put_uuid, utc,
)

import datetime
import decimal
import fractions
import math
import uuid
import zoneinfo

from rabble._core.errors import EncodeError

__all__ = ["Encoder"]

cdef extern from "Python.h":
    # These return NULL with their exception pending, for who calls them to look at.
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) noexcept
    PyObject* PyObject_GetAttr(object value, object name) noexcept
    Py_ssize_t PyByteArray_GET_SIZE(object value) noexcept
    char* PyByteArray_AS_STRING(object value) noexcept
    PyObject* PyObject_CallOneArg(object callee, object argument) noexcept
    bint PyType_Check(object value) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object value) except? 0xffffffffffffffff

cdef extern from *:
    """
    /* An int of one digit, as nearly all are: what it is needs no call then. */
    #if PY_VERSION_HEX >= 0x030C0000
    #define RABBLE_IS_COMPACT(value) PyUnstable_Long_IsCompact((const PyLongObject *)(value))
    #define RABBLE_COMPACT(value) PyUnstable_Long_CompactValue((const PyLongObject *)(value))
    #else
    #define RABBLE_IS_COMPACT(value) ((size_t)Py_SIZE(value) + 1 < 3)
    #define RABBLE_COMPACT(value) (Py_SIZE(value) * ((PyLongObject *)(value))->ob_digit[0])
    #endif
    /* The elements of a set, as it stands: a tuple of them, or NULL with an exception pending. */
    static PyObject *rabble_elements_of(PyObject *set) {
    #if PY_VERSION_HEX < 0x03100000
        /* An iterator takes three times as long. */
        PyObject *out;
        PySetObject *table = (PySetObject *)set;
        Py_ssize_t i, n = 0;
        /* What the collector runs may let go of whatever holds the set. */
        Py_INCREF(set);
        out = PyTuple_New(PySet_GET_SIZE(set));
        if (out == NULL) {
            Py_DECREF(set);
            return NULL;
        }
        /* To make it may have run the collector, and so anybody's code. From here on none runs. */
        if (table->used != PyTuple_GET_SIZE(out)) {
            Py_DECREF(set);
            Py_DECREF(out);
            PyErr_SetString(PyExc_RuntimeError, "a set changed its size");
            return NULL;
        }
        for (i = 0; i <= table->mask && n < PyTuple_GET_SIZE(out); i++) {
            PyObject *element = table->table[i].key;
            /* A place that was left has a key, and a hash that nothing has. */
            if (element == NULL || table->table[i].hash == -1) continue;
            Py_INCREF(element);
            PyTuple_SET_ITEM(out, n++, element);
        }
        Py_DECREF(set);
        return out;
    #else
        return PySequence_Tuple(set);
    #endif
    }
    """
    bint RABBLE_IS_COMPACT(object value) noexcept
    int64_t RABBLE_COMPACT(object value) noexcept
    PyObject* rabble_elements_of(object value) noexcept

cdef enum:
    REASON_CHARS_MAX = 500    # of what an exception of the user's says of itself

# What encoders have that have sent no pid yet; never changed.
cdef list NEVER_SENT = [None] * SENT_PID_SLOTS


cdef object older(Encoder encoder, object cls):
    """What is said of an instance of a class that was declared anew; None if it was not."""
    name = encoder.registry.replaced_by(cls)
    if name is None:
        return None
    return (
        f"the object was made by an older declaration of {name}, which was declared anew since "
        f"(a notebook cell that ran twice, a reload): make the object again"
    )


cdef extern from *:
    """
    #define RABBLE_IS_HEAP_TYPE(cls) \\
        PyType_HasFeature((PyTypeObject *)(cls), Py_TPFLAGS_HEAPTYPE)
    """
    bint RABBLE_IS_HEAP_TYPE(object cls) noexcept


cdef str refusal(object value):
    """Why a value of that type is not encoded, and what to do. It is not asked itself."""
    advice = "declare its class with @rabble.message"
    for plain, how in (
        (bool, ""), (int, ""), (float, ""), (str, ""), (bytes, ""), (list, ""), (tuple, ""),
        (dict, ""), (set, ""), (frozenset, ""), (bytearray, ""), (complex, ""),
        (datetime.datetime, "value.to_pydatetime() if it has that, else a datetime of its fields"),
        (datetime.date, "a date of its fields"), (datetime.time, "a time of its fields"),
        (datetime.timedelta, "value.to_pytimedelta() if it has that, else timedelta(0) + value"),
        (decimal.Decimal, ""), (fractions.Fraction, ""), (uuid.UUID, "UUID(int=value.int)"),
        (zoneinfo.ZoneInfo, "ZoneInfo(value.key)"),
    ):
        if is_of(plain, value):
            advice = (
                f"it is a subclass of {plain.__name__}: send "
                f"{how or plain.__name__ + '(value)'}, or register its class"
            )
            break
    if is_of(memoryview, value):
        advice = "send bytes(value)"
    elif is_of(datetime.tzinfo, value) and not is_of(zoneinfo.ZoneInfo, value):
        advice = "of time zones a datetime.timezone and a zoneinfo.ZoneInfo travel"
    elif PyType_Check(value) or PyCallable_Check(value):
        advice = "classes and functions do not travel; send a name that the receiver knows"
    return (
        f"a {type_name(value)} cannot be in a message: {advice}. Allowed are None, bool, int, "
        f"float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, date, "
        f"time, datetime, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID, NodeId, Pid, "
        f"CorrelationId and registered classes"
    )


cdef inline bint is_of(object cls, object value) noexcept:
    """`isinstance`, without what a value may say of its class."""
    return PyObject_TypeCheck(value, <PyTypeObject*>cls)


cdef inline object plan_key(object cls):
    """What a class has in the table of plans: itself, or its address.

    A metaclass may hash and compare its classes as it likes. None of that is the table's matter.
    """
    return cls if type(cls) is type else <size_t><PyObject*>cls


cdef inline bint is_plan_of(PyObject* found, object cls) noexcept:
    """Whether what the table has is a complete plan, and of that very class.

    Anybody can put things there, and by another class's plan memory would be read that is none.
    """
    return (
        type(<object>found) is Plan
        and (<Plan>found).cls is cls
        and ((<Plan>found).head is not None)
    )


cdef object too_much(Encoder encoder, BufferWriter* w):
    if w.elements < 0:
        return EncodeError(
            f"the message has more than {encoder.elements_max} elements in its containers; "
            f"send it in parts, or as bytes"
        )
    return EncodeError(
        f"the message would take more than {encoder.decoded_bytes_max} bytes of memory where it is "
        f"decoded, by estimate; send it in parts, or as bytes"
    )


cdef object too_large(Encoder encoder):
    return EncodeError(
        f"the message takes more than {encoder.message_bytes_max} bytes; send it in parts"
    )


@cython.final
cdef class Encoder(CodecBounds):
    """Encodes by the classes of one registry, within its bounds. A `Codec` makes it.

    :param registry: as of `CodecBounds`, and so are the bounds.
    """

    def __cinit__(self, registry, **bounds):
        self.plans_by_class = registry.plans_by_class
        self.sent_pids = self.sent_texts = NEVER_SENT

    def __dealloc__(self):
        PyMem_RawFree(self.spare)

    cdef bytes encode_message(self, object msg):
        cdef BufferWriter w
        self.open(&w)
        try:
            self.write(&w, msg)
            return self.finish(&w)
        finally:
            self.close(&w)

    cdef bytes encode_envelope(self, Envelope envelope):
        cdef BufferWriter w
        self.open(&w)
        try:
            self.write_envelope(&w, envelope)
            return self.finish(&w)
        finally:
            self.close(&w)

    cdef int open(self, BufferWriter* w) except -1:
        # The buffer is taken out while it is in use: what runs in between (a property, another
        # thread) may encode too, and then makes one of its own.
        w.data = self.spare
        w.capacity = self.spare_capacity
        self.spare = NULL
        if w.data is NULL:
            w.data = <unsigned char*>PyMem_RawMalloc(ENCODE_BYTES_MIN)
            w.capacity = ENCODE_BYTES_MIN
            if w.data is NULL:
                raise MemoryError
        w.size = 0
        self.allow(w)
        return 0

    cdef void allow(self, BufferWriter* w) noexcept:
        # Headers are reserved at their largest, so the exact check is the one at the end.
        w.limit = w.size + self.message_bytes_max + 16
        w.depth = self.depth_max
        w.elements = self.elements_max
        w.memory = self.decoded_bytes_max
        w.hashed = 0

    cdef void close(self, BufferWriter* w) noexcept:
        if self.spare is NULL and w.capacity <= ENCODE_BYTES_KEPT:
            self.spare = w.data
            self.spare_capacity = w.capacity
        else:
            PyMem_RawFree(w.data)

    cdef bytes finish(self, BufferWriter* w):
        if w.size > self.message_bytes_max:
            raise too_large(self)
        return PyBytes_FromStringAndSize(<char*>w.data, w.size)

    cdef int grow(self, BufferWriter* w, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity = max(w.capacity, ENCODE_BYTES_MIN)
        cdef unsigned char* data
        if w.capacity - w.size >= n:
            return 0
        if n > w.limit - w.size:
            raise too_large(self)
        while capacity < w.size + n:
            capacity *= 2
        data = <unsigned char*>PyMem_RawRealloc(w.data, capacity)
        if data is NULL:
            raise MemoryError
        w.data = data
        w.capacity = capacity
        return 0

    cdef int write_envelope(self, BufferWriter* w, Envelope envelope) except -1:
        cdef CorrelationId cid = envelope.correlation_id
        if w.capacity - w.size < 8:
            self.grow(w, 8)
        w.data[w.size] = 0x94
        w.size += 1
        self.write_pid(w, envelope.to)
        if envelope.sender is None:
            self.write(w, None)
        else:
            self.write_pid(w, envelope.sender)
        self.write(w, cid)
        return self.write(w, envelope.msg)

    cdef int write(self, BufferWriter* w, object value) except -1:
        cdef type cls = type(value)
        cdef double number
        cdef uint64_t bits
        cdef Py_ssize_t size
        cdef unsigned char* p
        if w.capacity - w.size < 9:
            self.grow(w, 9)
        p = w.data + w.size
        if cls is str:
            return self.write_str(w, <str>value)
        if cls is int:
            return self.write_int(w, value)
        if value is None:
            p[0] = 0xc0
            w.size += 1
            return 0
        if cls is dict:
            return self.write_dict(w, <dict>value)
        if cls is list:
            return self.write_list(w, <list>value)
        if cls is tuple:
            return self.write_tuple(w, EXT_TUPLE, value, <tuple>value)
        if cls is bool:
            p[0] = 0xc3 if value is True else 0xc2
            w.size += 1
            return 0
        if cls is float:
            number = value
            memcpy(&bits, &number, 8)
            p[0] = 0xcb
            store_64(p + 1, bits)
            w.size += 9
            return 0
        if cls is bytes:
            size = PyBytes_GET_SIZE(value)
            w.size += put_bytes_head(p, size)
            if w.capacity - w.size < size:
                self.grow(w, size)
            memcpy(w.data + w.size, PyBytes_AS_STRING(value), size)
            w.size += size
            return 0
        return self.write_other(w, value)

    cdef int write_int(self, BufferWriter* w, object value) except -1:
        cdef int overflow = 0
        cdef unsigned char* p = w.data + w.size
        cdef uint64_t large
        cdef int64_t n
        if RABBLE_IS_COMPACT(value):
            w.size += put_int(p, RABBLE_COMPACT(value))
            return 0
        n = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            if overflow < 0 or value >= 1 << 64:
                return self.write_large(w, value)
            large = PyLong_AsUnsignedLongLong(value)
            p[0] = 0xcf
            store_64(p + 1, large)
            w.size += 9
        else:
            w.size += put_int(p, n)
        return 0

    cdef int write_str(self, BufferWriter* w, str value) except -1:
        cdef Py_ssize_t size = 0
        cdef const char* text
        cdef unsigned char* p
        text = PyUnicode_AsUTF8AndSize(value, &size)
        if text is NULL:
            raise without_utf8(value)
        if w.capacity - w.size < size + 5:
            self.grow(w, size + 5)
        p = w.data + w.size
        p += put_str_head(p, size)
        memcpy(p, text, size)
        w.size = p - w.data + size
        return 0

    cdef int write_head(self, BufferWriter* w, int kind, Py_ssize_t n) except -1:
        if w.capacity - w.size < 5:
            self.grow(w, 5)
        w.size += put_head(w.data + w.size, kind, n)
        return 0

    cdef int enter(self, BufferWriter* w, object value, Py_ssize_t n) except -1:
        if w.depth == 0:
            raise EncodeError(
                f"a {type_name(value)} is nested deeper than {self.depth_max} containers, "
                f"or contains itself"
            )
        # Not beyond what the multiplication bears: a list has at most 2**60 elements.
        w.elements -= n
        w.memory -= COST_CONTAINER + COST_ELEMENT * n
        if (w.elements | w.memory) < 0:
            raise too_much(self, w)
        w.depth -= 1
        return 0

    cdef inline int spend(self, BufferWriter* w, Py_ssize_t cost) except -1:
        """Charge what it will take in memory where it is decoded."""
        w.memory -= cost
        if w.memory < 0:
            raise too_much(self, w)
        return 0

    cdef int write_list(self, BufferWriter* w, list value) except -1:
        cdef Py_ssize_t i
        cdef Py_ssize_t n = PyList_GET_SIZE(value)
        self.enter(w, value, n)
        self.write_head(w, KIND_ARRAY, n)
        for i in range(n):
            if i >= PyList_GET_SIZE(value):
                break
            item = <object>PyList_GET_ITEM(value, i)
            self.write(w, item)
        if PyList_GET_SIZE(value) != n:
            raise EncodeError("a list changed its size while it was encoded")
        w.depth += 1
        return 0

    cdef int write_dict(self, BufferWriter* w, dict value) except -1:
        cdef PyObject* key
        cdef PyObject* item
        cdef Py_ssize_t place = 0
        cdef Py_ssize_t n = PyDict_Size(value)
        cdef Py_ssize_t written = 0
        self.enter(w, value, n)
        self.spend(w, COST_ENTRY * n)
        self.write_head(w, KIND_MAP, n)
        # A value's properties may change the dict: both are held, and there is an end to it.
        while written != n and PyDict_Next(value, &place, &key, &item):
            name = <object>key
            held = <object>item
            if type(name) is str:
                self.write_str(w, <str>name)
            else:
                self.write_key(w, name)
            self.write(w, held)
            written += 1
        if written != n or PyDict_Size(value) != n:
            raise EncodeError("a dict changed its size while it was encoded")
        w.depth += 1
        return 0

    cdef int write_key(self, BufferWriter* w, object key) except -1:
        w.hashed += 1
        self.write(w, key)
        w.hashed -= 1
        return 0

    cdef int write_large(self, BufferWriter* w, object value) except -1:
        cdef Py_ssize_t size = int_size(value)
        self.spend(w, COST_VALUE)
        if w.hashed and size > NUMBER_BYTES_MAX:
            raise EncodeError(
                f"an int of {size} bytes is in a set or a dict's key, where {NUMBER_BYTES_MAX} "
                f"are allowed; send it as bytes, or the set as a list"
            )
        if w.capacity - w.size < size + 6:
            self.grow(w, size + 6)
        w.size += put_ext_head(w.data + w.size, EXT_INT, size)
        put_large(w.data + w.size, size, value)
        w.size += size
        return 0

    cdef int write_tuple(self, BufferWriter* w, int code, object value, tuple items) except -1:
        """Write the elements of a tuple or set, which nobody changes meanwhile."""
        cdef Py_ssize_t i
        cdef Py_ssize_t n = PyTuple_GET_SIZE(items)
        cdef Py_ssize_t start = w.size
        # Each takes a byte at least: if they are many, the large header need not be moved for.
        cdef Py_ssize_t head = 3 if n < 1 << 8 else 6
        self.enter(w, value, n)
        if w.capacity - start < head:
            self.grow(w, head)
        w.size += head
        self.write_head(w, KIND_ARRAY, n)
        for i in range(n):
            self.write(w, <object>PyTuple_GET_ITEM(items, i))
        w.depth += 1
        if head == 3:
            return self.write_ext(w, code, start)
        put_ext_head(w.data + start, code, w.size - start - head)
        return 0

    cdef int write_set(self, BufferWriter* w, int code, object value) except -1:
        # What is written may run code that changes the set.
        cdef PyObject* found = rabble_elements_of(value)
        if found is NULL:
            matches = PyErr_ExceptionMatches(RuntimeError)
            error = take_failure()
            raise EncodeError("a set changed its size while it was encoded") if matches else error
        items = owned(found)
        self.spend(w, COST_SET + COST_MEMBER * PyTuple_GET_SIZE(items))
        w.hashed += 1
        self.write_tuple(w, code, value, <tuple>items)
        w.hashed -= 1
        return 0

    cdef int write_moment(self, BufferWriter* w, int code, object value) except -1:
        """Write a datetime or time."""
        cdef Py_ssize_t start = w.size
        cdef Py_ssize_t size
        cdef PyObject* rest
        cdef unsigned char* p
        self.spend(w, COST_VALUE)
        if w.capacity - start < 3 + 16:
            self.grow(w, 3 + 16)
        p = w.data + start
        size = put_moment(p + 3, code, value, &rest)
        if rest is NULL:
            w.size += put_ext_head(p, code, size) + size
            return 0
        zone = <object>rest
        w.size += 3 + size
        self.write_zone(w, zone)
        return self.write_ext(w, code, start)

    cdef int write_value(self, BufferWriter* w, int code, object value) except -1:
        """Write a value of one of the extensions of values.pxd."""
        cdef Py_ssize_t start, size
        if code == EXT_DATETIME or code == EXT_TIME:
            return self.write_moment(w, code, value)
        if code == EXT_SET or code == EXT_FROZENSET:
            return self.write_set(w, code, value)
        if code == EXT_TUPLE:
            return self.write_tuple(w, code, value, <tuple>value)
        self.spend(w, COST_VALUE)
        start = w.size
        if w.capacity - start < 3 + 16:
            self.grow(w, 3 + 16)
        if code == EXT_BYTEARRAY:
            size = PyByteArray_GET_SIZE(value)
            self.grow(w, size + 6)
            w.size += put_ext_head(w.data + w.size, code, size)
            memcpy(w.data + w.size, PyByteArray_AS_STRING(value), size)
            w.size += size
            return 0
        w.size += 3
        self.write_body(w, code, value)
        return self.write_ext(w, code, start)

    cdef int write_body(self, BufferWriter* w, int code, object value) except -1:
        """Write what is in an extension, for which there is room if its size is fixed."""
        cdef const char* digits
        cdef Py_ssize_t size = 0
        if code == EXT_UUID:
            if not put_uuid(w.data + w.size, value):
                raise EncodeError("the int of a UUID is no number of 128 bits")
            w.size += UUID_BYTES
        elif code == EXT_DECIMAL:
            # ASCII, and exact.
            number = str(value)
            digits = PyUnicode_AsUTF8AndSize(number, &size)
            if digits is NULL:
                raise take_failure()
            if w.hashed and size > NUMBER_BYTES_MAX:
                raise EncodeError(
                    f"a Decimal of {size} digits is in a set or a dict's key, where "
                    f"{NUMBER_BYTES_MAX} are allowed; send it as str, or the set as a list"
                )
            if w.capacity - w.size < size:
                self.grow(w, size)
            memcpy(w.data + w.size, digits, size)
            w.size += size
        elif code == EXT_FRACTION:
            numbers = parts_of(value)
            self.write_numbers(w, numbers, "Fraction")
            if math.gcd(*numbers) != 1:
                raise EncodeError(
                    "a Fraction is not in lowest terms: "
                    "send Fraction(value.numerator, value.denominator)"
                )
        elif code == EXT_RANGE:
            self.write_numbers(w, (value.start, value.stop, value.step), "range")
        elif code == EXT_TIMEZONE:
            if value is not utc():
                parts = offset_of(value)
                self.write(w, parts[0])
                if PyTuple_GET_SIZE(parts) > 1:
                    self.write(w, parts[1])
        elif code == EXT_ZONEINFO:
            self.write_text(w, key_of(value))
        else:
            w.size += put_fixed(w.data + w.size, code, value)
        return 0

    cdef int write_numbers(self, BufferWriter* w, tuple numbers, str what) except -1:
        for number in numbers:
            if type(number) is not int:
                raise EncodeError(f"a number of a {what} is a {type_name(number)}, and no int")
            if int_size(number) > NUMBER_BYTES_MAX:
                raise EncodeError(
                    f"a number of a {what} has {number.bit_length()} bits, and at most "
                    f"{8 * NUMBER_BYTES_MAX - 1} can be in a message; send a tuple of its ints"
                )
            self.write(w, number)
        return 0

    cdef int write_zone(self, BufferWriter* w, object zone) except -1:
        cdef int code
        code = code_of(type(zone))
        if code != EXT_TIMEZONE and code != EXT_ZONEINFO:
            raise EncodeError(
                f"the tzinfo of a datetime or time is a {type_name(zone)}; a datetime.timezone and "
                f"a zoneinfo.ZoneInfo travel: send value.astimezone(ZoneInfo(...)), or in UTC"
            )
        return self.write_value(w, code, zone)

    cdef int write_other(self, BufferWriter* w, object value) except -1:
        cdef int code
        cdef PyObject* found
        cdef Plan plan
        cdef bytes encoded
        cdef Py_ssize_t start
        cls = type(value)
        if cls is Pid:
            return self.write_pid(w, <Pid>value)
        if cls is NodeId or cls is CorrelationId:
            self.spend(w, COST_PID)
            start = w.size
            w.size += 3
            if cls is NodeId:
                self.write_text(w, str(value).encode())
                return self.write_ext(w, EXT_NODE_ID, start)
            encoded = self.text_of((<CorrelationId>value).pid)
            self.grow(w, 3)
            w.data[w.size] = 0xda
            store_16(w.data + w.size + 1, PyBytes_GET_SIZE(encoded))
            w.size += 3
            self.write_text(w, encoded)
            self.write(w, (<CorrelationId>value).connection)
            self.write(w, (<CorrelationId>value).request)
            return self.write_ext(w, EXT_CORRELATION_ID, start)
        # Classes that Python code made may be registered ones; some of values.pxd are among them.
        code = 0 if RABBLE_IS_HEAP_TYPE(cls) else code_of(cls)
        if code == EXT_DATETIME or code == EXT_TIME:
            return self.write_moment(w, code, value)
        if code:
            return self.write_value(w, code, value)
        found = PyDict_GetItemWithError(self.plans_by_class, plan_key(cls))
        if found is not NULL and is_plan_of(found, cls):
            plan = <Plan>found
        else:
            code = code_of(cls)
            if code:
                return self.write_value(w, code, value)
            plan = self.plan_of_class(cls)
            if plan is None:
                raise EncodeError(older(self, cls) or refusal(value))
        if plan.encode is not None:
            return self.write_type(w, plan, value)
        if plan.members is None:
            return self.write_message(w, plan, value)
        encoded = plan.encoded.get(<size_t><PyObject*>value)
        if encoded is None:
            raise EncodeError(f"{bounded_repr(value, 200)} is no member of {plan.name}")
        return self.write_text(w, encoded)

    cdef int write_message(self, BufferWriter* w, Plan plan, object value) except -1:
        cdef Py_ssize_t start = w.size
        cdef Py_ssize_t i
        self.enter(w, value, plan.count)
        if plan.build != BUILD_SLOTS and plan.build != BUILD_TUPLE:
            self.spend(w, COST_ATTRIBUTES)
        if w.capacity - start < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, plan.head)
        for i in range(plan.count):
            if plan.offsets is not NULL:
                self.write_slot(w, plan, value, i)
            elif plan.build == BUILD_TUPLE:
                if i >= PyTuple_GET_SIZE(value):
                    raise never_set(plan, i)
                self.write(w, <object>PyTuple_GET_ITEM(value, i))
            else:
                self.write(w, field_of(plan, value, i))
        w.depth += 1
        return self.write_ext(w, EXT_MESSAGE, start)

    cdef int write_type(self, BufferWriter* w, Plan plan, object value) except -1:
        """Write what the user's function gives for a value; that it does so for ever ends here."""
        cdef Py_ssize_t start = w.size
        cdef PyObject* found
        self.enter(w, value, 1)
        found = PyObject_CallOneArg(plan.encode, value)
        if found is NULL:
            error = take_failure()
            if must_pass(error):
                raise error
            raise EncodeError(
                f"the encode function of {plan.name} raised {type_name(error)}: "
                f"{bounded_str(error, REASON_CHARS_MAX)}"
            ) from error
        encoded = owned(found)
        if w.capacity - w.size < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, plan.head)
        self.write(w, encoded)
        w.depth += 1
        return self.write_ext(w, EXT_TYPE, start)

    cdef inline int write_slot(
        self, BufferWriter* w, Plan plan, object value, Py_ssize_t i
    ) except -1:
        """Write what a slot has, which is held: a property of what it contains may replace it."""
        cdef PyObject* item = RABBLE_SLOT(value, plan.offsets[i])
        if item is NULL:
            raise never_set(plan, i)
        held = <object>item
        return self.write(w, held)

    cdef bytes text_of(self, Pid pid):
        cdef Py_ssize_t place = pid.hash_value & (SENT_PID_SLOTS - 1)
        cdef object known = <object>PyList_GET_ITEM(self.sent_pids, place)
        cdef bytes text
        if known is pid or (known is not None and same_pid(<Pid>known, pid)):
            return <bytes>PyList_GET_ITEM(self.sent_texts, place)
        text = str(pid).encode()
        if self.sent_pids is NEVER_SENT:
            pids, texts = [None] * SENT_PID_SLOTS, [None] * SENT_PID_SLOTS
            self.sent_pids, self.sent_texts = pids, texts
        self.sent_pids[place] = pid
        self.sent_texts[place] = text
        return text

    cdef int write_pid(self, BufferWriter* w, Pid pid) except -1:
        cdef Py_ssize_t start = w.size
        self.spend(w, COST_PID)
        if w.capacity - start < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, self.text_of(pid))
        return self.write_ext(w, EXT_PID, start)

    cdef int write_text(self, BufferWriter* w, bytes text) except -1:
        """Write bytes as they are."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
        if w.capacity - w.size < size:
            self.grow(w, size)
        memcpy(w.data + w.size, PyBytes_AS_STRING(text), size)
        w.size += size
        return 0

    cdef int write_ext(self, BufferWriter* w, int code, Py_ssize_t start) except -1:
        """Fill in the header of an extension, for which three bytes were left at `start`."""
        cdef Py_ssize_t size = w.size - start - 3
        cdef unsigned char* p
        if size < 1 << 8:
            p = w.data + start
            p[0] = 0xc7
            p[1] = <unsigned char>size
            p[2] = <unsigned char>code
            return 0
        if w.capacity - w.size < 3:
            self.grow(w, 3)
        p = w.data + start
        memmove(p + 6, p + 3, size)
        p[0] = 0xc9
        store_32(p + 1, size)
        p[5] = <unsigned char>code
        w.size += 3
        return 0

    cdef Plan plan_of_class(self, object cls):
        """The plan to write instances of a class by; None if it is not registered."""
        cdef Plan plan = None
        # No `with`, which takes exceptions as `except` does: see failure.pxd.
        self.registry.lock.acquire()
        try:
            registration = self.registry.registration_of(cls)
            if registration is not None and registration.cls is cls:
                plan = plan_of(self.registry, registration)
                if plan.cls is not cls:
                    raise EncodeError(f"the plan of {plan.name} is not of its class")
                if plan.head is None:
                    self.complete(plan)
                self.plans_by_class[plan_key(cls)] = plan
        finally:
            self.registry.lock.release()
        return plan

    cdef int complete(self, Plan plan) except -1:
        """Work out what is the same for all instances, or all of it for an enum's members."""
        cdef BufferWriter w
        cdef bytes head
        cdef dict encoded = None
        self.open(&w)
        try:
            self.write_str(&w, plan.name)
            if plan.members is None and plan.encode is None:
                self.write_head(&w, KIND_ARRAY, plan.count)
            head = PyBytes_FromStringAndSize(<char*>w.data, w.size)
            if plan.members is not None:
                encoded = {}
                for value, (_, member) in plan.members.items():
                    w.size = 3
                    self.write_text(&w, head)
                    self.write(&w, value)
                    self.write_ext(&w, EXT_ENUM, 0)
                    encoded[<size_t><PyObject*>member] = self.finish(&w)
        finally:
            self.close(&w)
        plan.encoded = encoded
        plan.head = head
        return 0


cdef bytes key_of(object zone):
    """The key of a ZoneInfo, by which another node finds the same zone."""
    key = zone.key
    if type(key) is not str:
        raise EncodeError(
            "a ZoneInfo that was read from a file has no key, by which the receiver would find "
            "it: make it by ZoneInfo(key), or send value.astimezone(timezone.utc)"
        )
    if not (key.isascii() and 1 <= len(key) <= ZONE_BYTES_MAX):
        raise EncodeError(
            f"the key of a ZoneInfo is {bounded_repr(key, 100)}; it must be ASCII, of 1 to "
            f"{ZONE_BYTES_MAX} characters"
        )
    return key.encode()


cdef object field_of(Plan plan, object value, Py_ssize_t i):
    """What an instance says that a field of it is."""
    cdef PyObject* found = PyObject_GetAttr(value, plan.fields[i])
    if found is not NULL:
        return owned(found)
    matches = PyErr_ExceptionMatches(AttributeError)
    error = take_failure()
    if matches:
        # With its cause: of a property it may be any other attribute that is missing.
        raise never_set(plan, i) from error
    raise error


cdef object never_set(Plan plan, Py_ssize_t i):
    return EncodeError(f"{plan.name}: field {plan.fields[i]} was never set")


cdef object without_utf8(str value):
    """What to raise for a str of which there is no UTF-8: it has none, or there is no memory."""
    matches = PyErr_ExceptionMatches(UnicodeEncodeError)
    error = take_failure()
    if not matches:
        return error
    return EncodeError(
        f"the str {ascii(value[:40])} has lone surrogates, which UTF-8 does not carry"
    )
