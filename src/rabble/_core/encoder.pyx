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
    KIND_ARRAY, KIND_MAP, BufferWriter, put_bytes_head, put_head, put_int, put_str_head,
)
from rabble._core.byteorder cimport store_16, store_32, store_64
from rabble._core.capacities cimport ENCODE_BYTES_KEPT, ENCODE_BYTES_MIN, SENT_PID_SLOTS
from rabble._core.envelope cimport Envelope
from rabble._core.failure cimport PyErr_ExceptionMatches, owned, take_failure
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_pid
from rabble._core.plan cimport (
    EXT_CORRELATION_ID, EXT_ENUM, EXT_MESSAGE, EXT_NODE_ID, EXT_PID, RABBLE_SLOT, Plan, plan_of,
)
from rabble._core.texts cimport bounded_repr, type_name

__all__ = ["EncodeError", "Encoder"]

cdef extern from "Python.h":
    # These return NULL with their exception pending, for who calls them to look at.
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) noexcept
    PyObject* PyObject_GetAttr(object value, object name) noexcept
    bint PyType_Check(object value) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object value) except? 0xffffffffffffffff


class EncodeError(ValueError):
    """A message cannot be put into bytes; says what is in the way."""


cdef str refusal(object value):
    """Why a value of that type is not encoded, and what to do. It is not asked itself."""
    advice = "declare its class with @rabble.message"
    for plain in (bool, int, float, str, bytes, list, tuple, dict):
        if is_of(plain, value):
            advice = (
                f"it is a subclass of {plain.__name__}: send {plain.__name__}(value), "
                f"or register its class if it is an enum"
            )
            break
    if is_of(set, value) or is_of(frozenset, value):
        advice = "send a sorted list of its elements"
    elif is_of(bytearray, value) or is_of(memoryview, value):
        advice = "send bytes(value)"
    elif PyType_Check(value) or PyCallable_Check(value):
        advice = "classes and functions do not travel; send a name that the receiver knows"
    return (
        f"a {type_name(value)} cannot be in a message: {advice}. Allowed are None, bool, int, "
        f"float, str, bytes, list, tuple, dict with str keys, NodeId, Pid, CorrelationId and "
        f"registered classes"
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


cdef object too_large(Encoder encoder):
    return EncodeError(
        f"the message takes more than {encoder.message_bytes_max} bytes; send it in parts"
    )


@cython.final
cdef class Encoder:
    """Encodes by the classes of one registry, within the bounds that a `Codec` has checked."""

    def __cinit__(
        self, registry not None, Py_ssize_t message_bytes_max, int depth_max,
        Py_ssize_t elements_max,
    ):
        self.registry = registry
        self.plans_by_class = registry.plans_by_class
        self.message_bytes_max = message_bytes_max
        self.depth_max = depth_max
        self.elements_max = elements_max
        self.sent_pids = [None] * SENT_PID_SLOTS
        self.sent_texts = [None] * SENT_PID_SLOTS

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
        if cls is list or cls is tuple:
            return self.write_sequence(w, value)
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
        cdef int64_t n = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            if overflow < 0 or value >= 1 << 64:
                raise EncodeError(
                    f"an int of {value.bit_length()} bits cannot be in a message: -2**63 to "
                    f"2**64 - 1 is the range; send it as str or bytes"
                )
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
        if n > w.elements:
            raise EncodeError(
                f"the message has more than {self.elements_max} elements in its containers; "
                f"send it in parts, or as bytes"
            )
        w.depth -= 1
        w.elements -= n
        return 0

    cdef int write_sequence(self, BufferWriter* w, object value) except -1:
        cdef Py_ssize_t i
        cdef bint is_list = type(value) is list
        cdef Py_ssize_t n = PyList_GET_SIZE(value) if is_list else PyTuple_GET_SIZE(value)
        self.enter(w, value, n)
        self.write_head(w, KIND_ARRAY, n)
        for i in range(n):
            if not is_list:
                item = <object>PyTuple_GET_ITEM(value, i)
            elif i < PyList_GET_SIZE(value):
                item = <object>PyList_GET_ITEM(value, i)
            else:
                break
            self.write(w, item)
        if is_list and PyList_GET_SIZE(value) != n:
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
        self.write_head(w, KIND_MAP, n)
        # A value's properties may change the dict: both are held, and there is an end to it.
        while written != n and PyDict_Next(value, &place, &key, &item):
            name = <object>key
            held = <object>item
            if type(name) is not str:
                raise EncodeError(
                    f"a dict's key is a {type_name(name)}; only str keys can be in a message"
                )
            self.write_str(w, <str>name)
            self.write(w, held)
            written += 1
        if written != n or PyDict_Size(value) != n:
            raise EncodeError("a dict changed its size while it was encoded")
        w.depth += 1
        return 0

    cdef int write_other(self, BufferWriter* w, object value) except -1:
        cdef PyObject* found
        cdef Plan plan
        cdef bytes encoded
        cdef Py_ssize_t start
        cls = type(value)
        if cls is Pid:
            return self.write_pid(w, <Pid>value)
        if cls is NodeId or cls is CorrelationId:
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
        found = PyDict_GetItemWithError(self.plans_by_class, plan_key(cls))
        if found is not NULL and is_plan_of(found, cls):
            plan = <Plan>found
        else:
            plan = self.plan_of_class(cls)
            if plan is None:
                raise EncodeError(refusal(value))
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
        if w.capacity - start < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, plan.head)
        for i in range(plan.count):
            if plan.offsets is not NULL:
                self.write_slot(w, plan, value, i)
            else:
                self.write(w, field_of(plan, value, i))
        w.depth += 1
        return self.write_ext(w, EXT_MESSAGE, start)

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
        self.sent_pids[place] = pid
        self.sent_texts[place] = text
        return text

    cdef int write_pid(self, BufferWriter* w, Pid pid) except -1:
        cdef Py_ssize_t start = w.size
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
            if plan.members is None:
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


cdef object field_of(Plan plan, object value, Py_ssize_t i):
    """What an instance says that a field of it is."""
    cdef PyObject* found = PyObject_GetAttr(value, plan.fields[i])
    if found is not NULL:
        return owned(found)
    matches = PyErr_ExceptionMatches(AttributeError)
    error = take_failure()
    if matches:
        raise never_set(plan, i)
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
