"""The codec: envelopes and messages to msgpack and back.

What it writes is msgpack that any library reads: an envelope is an array of four (to, sender,
correlation id, message), and what msgpack has no type for is an extension, see `Ext`. What it
reads comes from strangers. So nothing is allocated for what was only announced: a container's
count is first held against the bytes that are left, less those that the containers around it
still need, and against the budget of elements. Depth is bounded, on both sides, which also is
what ends a cycle. And only classes of the registry are ever built.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.mem cimport (
    PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_pid

__all__ = ["Codec", "DecodeError", "DecodeLimitError", "EncodeError", "UnknownMessageError"]

cdef extern from *:
    """
    #include <structmember.h>

    /* Where a slot's value lies in an instance; -1 if `descriptor` is no slot. */
    static Py_ssize_t rabble_slot_offset(PyObject *descriptor) {
        PyMemberDef *member;
        if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return -1;
        member = ((PyMemberDescrObject *)descriptor)->d_member;
        return member->type == T_OBJECT_EX ? member->offset : -1;
    }
    /* Whether `text`, a compact str of ASCII, consists of these bytes. */
    static inline int rabble_is_text(PyObject *text, const unsigned char *p, Py_ssize_t n) {
        return PyUnicode_GET_LENGTH(text) == n && memcmp(PyUnicode_DATA(text), p, n) == 0;
    }
    #define RABBLE_SLOT(instance, offset) (*(PyObject **)((char *)(instance) + (offset)))
    #define RABBLE_SET_SLOT(instance, offset, value) (RABBLE_SLOT(instance, offset) = (value))
    #define RABBLE_ALLOCATE(cls) (((PyTypeObject *)(cls))->tp_alloc((PyTypeObject *)(cls), 0))
    #define RABBLE_STORE_16(p, v) do { (p)[0] = (unsigned char)((v) >> 8); \\
        (p)[1] = (unsigned char)(v); } while (0)
    #define RABBLE_STORE_32(p, v) do { uint32_t swapped = __builtin_bswap32((uint32_t)(v)); \\
        memcpy((p), &swapped, 4); } while (0)
    #define RABBLE_STORE_64(p, v) do { uint64_t swapped = __builtin_bswap64((uint64_t)(v)); \\
        memcpy((p), &swapped, 8); } while (0)
    static inline uint32_t rabble_load_16(const unsigned char *p) {
        return (uint32_t)p[0] << 8 | p[1];
    }
    static inline uint32_t rabble_load_32(const unsigned char *p) {
        uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v);
    }
    static inline uint64_t rabble_load_64(const unsigned char *p) {
        uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v);
    }
    static inline uint64_t rabble_hash(const unsigned char *p, Py_ssize_t n) {
        uint64_t h = (uint64_t)n * 0x9e3779b97f4a7c15ULL, w;
        for (; n >= 8; p += 8, n -= 8) {
            memcpy(&w, p, 8);
            h = (h ^ w) * 0xff51afd7ed558ccdULL;
            h ^= h >> 32;
        }
        for (w = 0; n > 0; p++, n--) w = w << 8 | *p;
        h = (h ^ w) * 0xff51afd7ed558ccdULL;
        return h ^ h >> 32;
    }
    """
    Py_ssize_t rabble_slot_offset(object descriptor) noexcept
    bint rabble_is_text(PyObject* text, const unsigned char* p, Py_ssize_t n) noexcept
    PyObject* RABBLE_SLOT(object instance, Py_ssize_t offset) noexcept
    void RABBLE_SET_SLOT(object instance, Py_ssize_t offset, PyObject* value) noexcept
    object RABBLE_ALLOCATE(object cls)
    void RABBLE_STORE_16(unsigned char* p, Py_ssize_t v) noexcept
    void RABBLE_STORE_32(unsigned char* p, Py_ssize_t v) noexcept
    void RABBLE_STORE_64(unsigned char* p, uint64_t v) noexcept
    uint32_t rabble_load_16(const unsigned char* p) noexcept
    uint32_t rabble_load_32(const unsigned char* p) noexcept
    uint64_t rabble_load_64(const unsigned char* p) noexcept
    uint64_t rabble_hash(const unsigned char* p, Py_ssize_t n) noexcept

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object value) except? 0xffffffffffffffff
    object PyObject_Vectorcall(
        object callee, PyObject* const* args, size_t nargs, PyObject* names
    )

# Extension types of msgpack, all bodies being msgpack themselves but for the two texts.
cdef enum Ext:
    EXT_MESSAGE = 1           # str: wire name; array: fields
    EXT_ENUM = 2              # str: wire name; value
    EXT_NODE_ID = 3           # the text form
    EXT_PID = 4               # the text form
    EXT_CORRELATION_ID = 5    # str: the pid's text; connection; request

cdef enum Kind:
    KIND_MAP
    KIND_ARRAY

cdef enum:
    DEPTH_MAX_MAX = 256       # every level takes some 300 bytes of stack
    SPARE_BYTES_MAX = 65536   # a buffer that grew above this is not kept
    BUFFER_BYTES_MIN = 1024
    KNOWN_BYTES_MIN = 2       # of these strings some are cached; CPython has all shorter ones ...
    KNOWN_BYTES_MAX = 32      # ... and longer keys rarely come again


class EncodeError(ValueError):
    """A message cannot be put into bytes; says what is in the way."""


class DecodeError(ValueError):
    """The bytes are no message; says what is wrong and where."""


class DecodeLimitError(DecodeError):
    """The bytes exceed a bound, or announce more than they hold."""


class UnknownMessageError(DecodeError):
    """The bytes are well-formed so far, but the registry has no such class, or it refuses."""


cdef str kind_of(object value):
    return type(value).__name__


cdef str shown(const unsigned char* data, Py_ssize_t size):
    text = data[:min(size, 80)]
    return ascii(text.decode("utf-8", "replace"))


cdef str reason_of(object error):
    """What an exception of the user's says of itself, if it can."""
    try:
        return f"{kind_of(error)}: {error}"
    except Exception:
        return kind_of(error)


cdef object malformed(Reader* r, str what):
    return DecodeError(f"byte {r.at - r.start}: {what}")


cdef object unknown(Reader* r, str what):
    return UnknownMessageError(f"byte {r.at - r.start}: {what}")


cdef object beyond(Reader* r, str what):
    return DecodeLimitError(f"byte {r.at - r.start}: {what}")


cdef str refusal(object value):
    """Why a value of that type is not encoded, and what to do."""
    name = kind_of(value)
    advice = "declare its class with @rabble.message"
    for plain in (bool, int, float, str, bytes, list, tuple, dict):
        if isinstance(value, plain):
            advice = (
                f"it is a subclass of {plain.__name__}: send {plain.__name__}(value), "
                f"or register its class if it is an enum"
            )
            break
    if isinstance(value, (set, frozenset)):
        advice = "send a sorted list of its elements"
    elif isinstance(value, (bytearray, memoryview)):
        advice = "send bytes(value)"
    elif isinstance(value, type) or callable(value):
        advice = "classes and functions do not travel; send a name that the receiver knows"
    return (
        f"a {name} cannot be in a message: {advice}. Allowed are None, bool, int, float, str, "
        f"bytes, list, tuple, dict with str keys, NodeId, Pid, CorrelationId and registered classes"
    )


@cython.final
cdef class ByteCache:
    """A bounded table from bytes to what they decode to; a newcomer takes the place it needs.

    The hash is no secret: who makes keys collide gets the time of an uncached decoding, no worse.
    """

    def __cinit__(self):
        self.keys = [None] * CACHE_PLACES
        self.values = [None] * CACHE_PLACES

    cdef PyObject* find(self, const unsigned char* data, Py_ssize_t size) noexcept:
        cdef Py_ssize_t place = rabble_hash(data, size) & (CACHE_PLACES - 1)
        cdef PyObject* key = PyList_GET_ITEM(self.keys, place)
        if (
            key is not <PyObject*>None
            and PyBytes_GET_SIZE(<object>key) == size
            and memcmp(PyBytes_AS_STRING(<object>key), data, size) == 0
        ):
            return PyList_GET_ITEM(self.values, place)
        return NULL

    cdef int keep(self, const unsigned char* data, Py_ssize_t size, object value) except -1:
        cdef Py_ssize_t place = rabble_hash(data, size) & (CACHE_PLACES - 1)
        cdef bytes key = PyBytes_FromStringAndSize(<const char*>data, size)
        self.keys[place] = key
        self.values[place] = value
        return 0


@cython.final
cdef class Plan:
    """How instances of one registered class are written and built."""

    def __dealloc__(self):
        PyMem_Free(self.offsets)


cdef Plan make_plan(object registration):
    cdef Plan plan = Plan.__new__(Plan)
    cdef Py_ssize_t i
    plan.cls = registration.cls
    plan.name = registration.name
    if registration.members is not None:
        plan.members = {member.value: member for member in registration.members}
        return plan
    plan.fields = tuple(registration.fields)
    plan.count = len(plan.fields)
    slots = [rabble_slot_offset(getattr(plan.cls, name, None)) for name in plan.fields]
    if -1 not in slots:
        plan.offsets = <Py_ssize_t*>PyMem_Malloc((len(slots) or 1) * sizeof(Py_ssize_t))
        if plan.offsets is NULL:
            raise MemoryError
        for i in range(plan.count):
            plan.offsets[i] = slots[i]
    plan.built_by_slots = plan.offsets is not NULL and registration.built_by_slots
    return plan


@cython.final
cdef class Codec:
    """Encodes and decodes by the classes of one registry.

    :param registry: the `MessageRegistry` of the classes that may be sent and built.
    :param message_bytes_max: bytes of one encoded message or envelope.
    :param depth_max: how deep containers may be nested, 1 to 256.
    :param elements_max: elements of all containers of one message together; an entry of a dict is
        one element, and so is a field of a message.
    :raises ValueError: if a bound is not usable.

    Tuples arrive as lists. Any thread may use it, also several.
    """

    def __cinit__(
        self, registry not None, *, message_bytes_max=64 << 20, depth_max=64, elements_max=65536
    ):
        for name, value, most in (
            ("message_bytes_max", message_bytes_max, 1 << 31),
            ("depth_max", depth_max, DEPTH_MAX_MAX),
            ("elements_max", elements_max, 1 << 31),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"Codec: {name} must be 1 to {most}, not {value!r}")
        self.registry = registry
        self.message_bytes_max = message_bytes_max
        self.depth_max = depth_max
        self.elements_max = elements_max
        self.plans_by_class = registry.plans_by_class
        self.plans_by_name = registry.plans_by_name
        self.sent_pids = [None] * CACHE_PLACES
        self.sent_texts = [None] * CACHE_PLACES
        self.seen_pids = ByteCache()

    def __dealloc__(self):
        cdef Py_ssize_t place
        for place in range(CACHE_PLACES):
            Py_XDECREF(self.seen_texts[place])
        PyMem_RawFree(self.spare)

    def encode_message(self, msg):
        """The bytes of a message. Raises `EncodeError`."""
        cdef Writer w
        self.open(&w)
        try:
            self.write(&w, msg)
            return self.finish(&w)
        finally:
            self.close(&w)

    def decode_message(self, bytes data not None):
        """The message that `encode_message` was given. Raises `DecodeError`."""
        return self.read_whole(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )

    def encode_envelope(self, Envelope env not None):
        """The bytes of an envelope. Raises `EncodeError`."""
        cdef Writer w
        self.open(&w)
        try:
            self.write_envelope(&w, env)
            return self.finish(&w)
        finally:
            self.close(&w)

    def decode_envelope(self, bytes data not None):
        """The envelope that `encode_envelope` was given. Raises `DecodeError`."""
        return self.read_envelope(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )

    # Writing.

    cdef int open(self, Writer* w) except -1:
        # The buffer is taken out while it is in use: what runs in between (a property, another
        # thread) may encode too, and then makes one of its own.
        w.data = self.spare
        w.capacity = self.spare_capacity
        self.spare = NULL
        if w.data is NULL:
            w.data = <unsigned char*>PyMem_RawMalloc(BUFFER_BYTES_MIN)
            w.capacity = BUFFER_BYTES_MIN
            if w.data is NULL:
                raise MemoryError
        w.size = 0
        self.allow(w)
        return 0

    cdef void allow(self, Writer* w) noexcept:
        # Headers are reserved at their largest, so the exact check is the one at the end.
        w.limit = w.size + self.message_bytes_max + 16
        w.depth = self.depth_max
        w.elements = self.elements_max

    cdef void close(self, Writer* w) noexcept:
        if self.spare is NULL and w.capacity <= SPARE_BYTES_MAX:
            self.spare = w.data
            self.spare_capacity = w.capacity
        else:
            PyMem_RawFree(w.data)

    cdef bytes finish(self, Writer* w):
        if w.size > self.message_bytes_max:
            raise too_large(self)
        return PyBytes_FromStringAndSize(<char*>w.data, w.size)

    cdef int grow(self, Writer* w, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity = max(w.capacity, BUFFER_BYTES_MIN)
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

    cdef int write_envelope(self, Writer* w, Envelope envelope) except -1:
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

    cdef int write(self, Writer* w, object value) except -1:
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
            RABBLE_STORE_64(p + 1, bits)
            w.size += 9
            return 0
        if cls is bytes:
            size = PyBytes_GET_SIZE(value)
            if size < 1 << 8:
                p[0] = 0xc4
                p[1] = <unsigned char>size
                w.size += 2
            elif size < 1 << 16:
                p[0] = 0xc5
                RABBLE_STORE_16(p + 1, size)
                w.size += 3
            else:
                p[0] = 0xc6
                RABBLE_STORE_32(p + 1, size)
                w.size += 5
            if w.capacity - w.size < size:
                self.grow(w, size)
            memcpy(w.data + w.size, PyBytes_AS_STRING(value), size)
            w.size += size
            return 0
        return self.write_other(w, value)

    cdef int write_int(self, Writer* w, object value) except -1:
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
            RABBLE_STORE_64(p + 1, large)
            w.size += 9
        elif -32 <= n < 128:
            p[0] = <unsigned char>n
            w.size += 1
        elif n >= 0:
            if n < 1 << 8:
                p[0] = 0xcc
                p[1] = <unsigned char>n
                w.size += 2
            elif n < 1 << 16:
                p[0] = 0xcd
                RABBLE_STORE_16(p + 1, n)
                w.size += 3
            elif n < <int64_t>1 << 32:
                p[0] = 0xce
                RABBLE_STORE_32(p + 1, n)
                w.size += 5
            else:
                p[0] = 0xcf
                RABBLE_STORE_64(p + 1, <uint64_t>n)
                w.size += 9
        elif n >= -(1 << 7):
            p[0] = 0xd0
            p[1] = <unsigned char>n
            w.size += 2
        elif n >= -(1 << 15):
            p[0] = 0xd1
            RABBLE_STORE_16(p + 1, n)
            w.size += 3
        elif n >= -(<int64_t>1 << 31):
            p[0] = 0xd2
            RABBLE_STORE_32(p + 1, n)
            w.size += 5
        else:
            p[0] = 0xd3
            RABBLE_STORE_64(p + 1, <uint64_t>n)
            w.size += 9
        return 0

    cdef int write_str(self, Writer* w, str value) except -1:
        cdef Py_ssize_t size = 0
        cdef const char* text
        cdef unsigned char* p
        try:
            text = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise EncodeError(
                f"the str {ascii(value[:40])} has lone surrogates, which UTF-8 does not carry"
            ) from None
        if w.capacity - w.size < size + 5:
            self.grow(w, size + 5)
        p = w.data + w.size
        if size < 32:
            p[0] = <unsigned char>(0xa0 | size)
            p += 1
        elif size < 1 << 8:
            p[0] = 0xd9
            p[1] = <unsigned char>size
            p += 2
        elif size < 1 << 16:
            p[0] = 0xda
            RABBLE_STORE_16(p + 1, size)
            p += 3
        else:
            p[0] = 0xdb
            RABBLE_STORE_32(p + 1, size)
            p += 5
        memcpy(p, text, size)
        w.size = p - w.data + size
        return 0

    cdef int write_head(self, Writer* w, int kind, Py_ssize_t n) except -1:
        cdef unsigned char* p
        if w.capacity - w.size < 5:
            self.grow(w, 5)
        p = w.data + w.size
        if n < 16:
            p[0] = <unsigned char>((0x80 if kind == KIND_MAP else 0x90) | n)
            w.size += 1
        elif n < 1 << 16:
            p[0] = 0xde if kind == KIND_MAP else 0xdc
            RABBLE_STORE_16(p + 1, n)
            w.size += 3
        else:
            p[0] = 0xdf if kind == KIND_MAP else 0xdd
            RABBLE_STORE_32(p + 1, n)
            w.size += 5
        return 0

    cdef int enter(self, Writer* w, object value, Py_ssize_t n) except -1:
        if w.depth == 0:
            raise EncodeError(
                f"a {kind_of(value)} is nested deeper than {self.depth_max} containers, "
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

    cdef int write_sequence(self, Writer* w, object value) except -1:
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

    cdef int write_dict(self, Writer* w, dict value) except -1:
        cdef PyObject* key
        cdef PyObject* item
        cdef Py_ssize_t place = 0
        cdef Py_ssize_t n = PyDict_Size(value)
        cdef Py_ssize_t written = 0
        self.enter(w, value, n)
        self.write_head(w, KIND_MAP, n)
        while PyDict_Next(value, &place, &key, &item):
            if type(<object>key) is not str:
                raise EncodeError(
                    f"a dict's key is a {kind_of(<object>key)}; only str keys can be in a message"
                )
            held = <object>item
            self.write_str(w, <str>key)
            self.write(w, held)
            written += 1
        if written != n or PyDict_Size(value) != n:
            raise EncodeError("a dict changed its size while it was encoded")
        w.depth += 1
        return 0

    cdef int write_other(self, Writer* w, object value) except -1:
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
            RABBLE_STORE_16(w.data + w.size + 1, PyBytes_GET_SIZE(encoded))
            w.size += 3
            self.write_text(w, encoded)
            self.write(w, (<CorrelationId>value).connection)
            self.write(w, (<CorrelationId>value).request)
            return self.write_ext(w, EXT_CORRELATION_ID, start)
        found = PyDict_GetItem(self.plans_by_class, cls)
        if found is not NULL:
            plan = <Plan>found
        else:
            plan = self.plan_of_class(cls)
            if plan is None:
                raise EncodeError(refusal(value))
        if plan.members is None:
            return self.write_message(w, plan, value)
        encoded = plan.encoded.get(<size_t><PyObject*>value)
        if encoded is None:
            raise EncodeError(f"{value!r} is no member of {plan.name}")
        return self.write_text(w, encoded)

    cdef int write_message(self, Writer* w, Plan plan, object value) except -1:
        cdef Py_ssize_t start = w.size
        cdef Py_ssize_t i
        cdef PyObject* item
        self.enter(w, value, plan.count)
        if w.capacity - start < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, plan.head)
        for i in range(plan.count):
            if plan.offsets is not NULL:
                item = RABBLE_SLOT(value, plan.offsets[i])
                if item is NULL:
                    raise EncodeError(f"{plan.name}: field {plan.fields[i]} was never set")
                self.write(w, <object>item)
            else:
                try:
                    held = getattr(value, plan.fields[i])
                except AttributeError:
                    raise EncodeError(
                        f"{plan.name}: field {plan.fields[i]} was never set"
                    ) from None
                self.write(w, held)
        w.depth += 1
        return self.write_ext(w, EXT_MESSAGE, start)

    cdef bytes text_of(self, Pid pid):
        cdef Py_ssize_t place = pid.hash_value & (CACHE_PLACES - 1)
        cdef object known = <object>PyList_GET_ITEM(self.sent_pids, place)
        cdef bytes text
        if known is pid or (known is not None and same_pid(<Pid>known, pid)):
            return <bytes>PyList_GET_ITEM(self.sent_texts, place)
        text = str(pid).encode()
        self.sent_pids[place] = pid
        self.sent_texts[place] = text
        return text

    cdef int write_pid(self, Writer* w, Pid pid) except -1:
        cdef Py_ssize_t start = w.size
        if w.capacity - start < 3:
            self.grow(w, 3)
        w.size += 3
        self.write_text(w, self.text_of(pid))
        return self.write_ext(w, EXT_PID, start)

    cdef int write_text(self, Writer* w, bytes text) except -1:
        """Write bytes as they are."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
        if w.capacity - w.size < size:
            self.grow(w, size)
        memcpy(w.data + w.size, PyBytes_AS_STRING(text), size)
        w.size += size
        return 0

    cdef int write_ext(self, Writer* w, int code, Py_ssize_t start) except -1:
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
        RABBLE_STORE_32(p + 1, size)
        p[5] = <unsigned char>code
        w.size += 3
        return 0

    cdef Plan plan_of_class(self, object cls):
        cdef Plan plan
        cdef Writer w
        # The lock: a class that is replaced meanwhile must not come back by way of the tables.
        with self.registry.lock:
            registration = self.registry.registration_of(cls)
            if registration is None:
                return None
            plan = make_plan(registration)
            self.open(&w)
            try:
                self.write_str(&w, plan.name)
                if plan.members is None:
                    self.write_head(&w, KIND_ARRAY, plan.count)
                plan.head = PyBytes_FromStringAndSize(<char*>w.data, w.size)
                if plan.members is not None:
                    plan.encoded = {}
                    for value, member in plan.members.items():
                        w.size = 3
                        self.write_text(&w, plan.head)
                        self.write(&w, value)
                        self.write_ext(&w, EXT_ENUM, 0)
                        plan.encoded[<size_t><PyObject*>member] = self.finish(&w)
            finally:
                self.close(&w)
            self.plans_by_class[cls] = plan
            self.plans_by_name[plan.name.encode()] = plan
        return plan

    # Reading.

    cdef void begin(self, Reader* r, const unsigned char* data, Py_ssize_t size) noexcept:
        r.start = data
        r.at = data
        r.end = data + size
        r.owed = 0
        r.depth = self.depth_max
        r.elements = self.elements_max

    cdef object read_whole(self, const unsigned char* data, Py_ssize_t size):
        cdef Reader r
        self.begin(&r, data, size)
        check_size(self, &r)
        msg = self.read(&r)
        check_end(&r)
        return msg

    cdef Envelope read_envelope(self, const unsigned char* data, Py_ssize_t size):
        cdef Reader r
        self.begin(&r, data, size)
        check_size(self, &r)
        if size == 0 or data[0] != 0x94:
            raise malformed(&r, "an envelope is an array of four")
        r.at += 1
        to = self.read(&r)
        sender = self.read(&r)
        correlation_id = self.read(&r)
        if type(to) is not Pid:
            raise malformed(&r, f"the receiver is a {kind_of(to)}, no pid")
        if sender is not None and type(sender) is not Pid:
            raise malformed(&r, f"the sender is a {kind_of(sender)}, no pid")
        if correlation_id is not None and type(correlation_id) is not CorrelationId:
            raise malformed(&r, f"the correlation id is a {kind_of(correlation_id)}")
        msg = self.read(&r)
        check_end(&r)
        return new_envelope(<Pid>to, msg, <Pid>sender, <CorrelationId>correlation_id)

    cdef object read(self, Reader* r):
        cdef unsigned char tag
        cdef const unsigned char* p
        cdef Py_ssize_t n
        cdef uint32_t bits32
        cdef uint64_t bits64
        cdef float single
        cdef double number
        if r.at >= r.end:
            raise malformed(r, "the data ends where a value should begin")
        tag = r.at[0]
        r.at += 1
        if tag < 0x80:
            return <long>tag
        if tag < 0x90:
            return self.read_map(r, tag & 15)
        if tag < 0xa0:
            return self.read_list(r, tag & 15)
        if tag < 0xb0:
            return self.read_known_str(r, tag & 15)
        if tag < 0xc0:
            # Of this length they tend to be names of single things, and no tags.
            return read_str(r, tag & 31)
        if tag >= 0xe0:
            return <long><int8_t>tag
        if tag == 0xc0:
            return None
        if tag == 0xc2:
            return False
        if tag == 0xc3:
            return True
        if tag == 0xc1:
            raise malformed(r, "0xc1 begins no value of msgpack")
        if 0xd4 <= tag <= 0xd8:
            return self.read_ext(r, 1 << (tag - 0xd4))
        n = width_of(tag)
        if r.end - r.at < n:
            raise malformed(r, "the data ends within a number")
        p = r.at
        r.at += n
        if tag == 0xca:
            bits32 = rabble_load_32(p)
            memcpy(&single, &bits32, 4)
            return <double>single
        if tag == 0xcb:
            bits64 = rabble_load_64(p)
            memcpy(&number, &bits64, 8)
            return number
        if tag == 0xcc:
            return <long>p[0]
        if tag == 0xcd:
            return <long>rabble_load_16(p)
        if tag == 0xce:
            return <int64_t>rabble_load_32(p)
        if tag == 0xcf:
            return rabble_load_64(p)
        if tag == 0xd0:
            return <long><int8_t>p[0]
        if tag == 0xd1:
            return <long><int16_t>rabble_load_16(p)
        if tag == 0xd2:
            return <long><int32_t>rabble_load_32(p)
        if tag == 0xd3:
            return <int64_t>rabble_load_64(p)
        # The rest are sizes, in one, two or four bytes.
        n = p[0] if n == 1 else rabble_load_16(p) if n == 2 else rabble_load_32(p)
        if tag == 0xc4 or tag == 0xc5 or tag == 0xc6:
            check_length(r, n)
            r.at += n
            return PyBytes_FromStringAndSize(<const char*>r.at - n, n)
        if tag == 0xc7 or tag == 0xc8 or tag == 0xc9:
            return self.read_ext(r, n)
        if tag == 0xd9 or tag == 0xda or tag == 0xdb:
            return read_str(r, n)
        if tag == 0xdc or tag == 0xdd:
            return self.read_list(r, n)
        return self.read_map(r, n)

    cdef object read_key(self, Reader* r):
        cdef Py_ssize_t n = str_header(r)
        if n < 0:
            raise malformed(r, "the key of a map is no string")
        return self.read_known_str(r, n)

    cdef str read_known_str(self, Reader* r, Py_ssize_t n):
        """A string that may well have come before, as tags and keys do.

        The last one of each place is kept if it is short and ASCII; a newcomer takes the place.
        """
        cdef PyObject** place
        cdef PyObject* former
        cdef str text
        if n < KNOWN_BYTES_MIN or n > KNOWN_BYTES_MAX:
            return read_str(r, n)
        check_length(r, n)
        place = &self.seen_texts[rabble_hash(r.at, n) & (CACHE_PLACES - 1)]
        if place[0] is not NULL and rabble_is_text(place[0], r.at, n):
            r.at += n
            return <str>place[0]
        text = read_str(r, n)
        if PyUnicode_IS_COMPACT_ASCII(text):
            former = place[0]
            Py_INCREF(text)
            place[0] = <PyObject*>text
            Py_XDECREF(former)
        return text

    cdef list read_list(self, Reader* r, Py_ssize_t n):
        cdef Py_ssize_t i
        cdef list out
        claim(self, r, n, n)
        out = PyList_New(n)
        for i in range(n):
            r.owed -= 1
            item = self.read(r)
            Py_INCREF(item)
            PyList_SET_ITEM(out, i, item)
        r.depth += 1
        return out

    cdef dict read_map(self, Reader* r, Py_ssize_t n):
        cdef Py_ssize_t _i
        cdef dict out
        claim(self, r, n, 2 * n)
        out = {}
        for _i in range(n):
            r.owed -= 2
            key = self.read_key(r)
            PyDict_SetItem(out, key, self.read(r))
        if PyDict_Size(out) != n:
            raise malformed(r, "a map has the same key twice")
        r.depth += 1
        return out

    cdef object read_ext(self, Reader* r, Py_ssize_t size):
        cdef int code
        cdef const unsigned char* outer_end = r.end
        cdef Py_ssize_t outer_owed = r.owed
        if r.at >= r.end:
            raise malformed(r, "the data ends within an extension")
        code = <int8_t>r.at[0]
        r.at += 1
        check_length(r, size)
        if code == EXT_PID:
            r.at += size
            return self.read_pid(r, r.at - size, size)
        r.end = r.at + size
        r.owed = 0
        if code == EXT_MESSAGE:
            value = self.read_message(r)
        elif code == EXT_ENUM:
            value = self.read_enum(r)
        elif code == EXT_CORRELATION_ID:
            value = self.read_correlation_id(r)
        elif code == EXT_NODE_ID:
            try:
                value = NodeId.parse(read_str(r, size))
            except DecodeError:
                raise
            except ValueError as error:
                raise malformed(r, str(error)) from None
        else:
            raise malformed(r, f"extension type {code} is unknown")
        if r.at != r.end:
            raise malformed(r, f"{r.end - r.at} bytes too many in an extension of type {code}")
        r.end = outer_end
        r.owed = outer_owed
        return value

    cdef object read_message(self, Reader* r):
        cdef Py_ssize_t n, i, _i
        cdef Plan plan = None
        cdef PyObject** items
        n = str_header(r)
        if n >= 0:
            check_length(r, n)
            plan = self.plan_of_name(r, r.at, n)
            r.at += n
        if plan is None:
            raise malformed(r, "a message begins with the wire name of its class")
        if plan.members is not None:
            raise unknown(r, f"{plan.name} is an enum here, and no message class")
        n = array_header(r)
        if n < 0:
            raise malformed(r, f"no array of fields comes after the name {plan.name}")
        if n != plan.count:
            raise unknown(r, f"{plan.name} has {plan.count} fields here, but {n} came")
        claim(self, r, n, n)
        if plan.built_by_slots:
            value = RABBLE_ALLOCATE(plan.cls)
            for i in range(n):
                r.owed -= 1
                item = self.read(r)
                Py_INCREF(item)
                RABBLE_SET_SLOT(value, plan.offsets[i], <PyObject*>item)
        else:
            values = []
            for _i in range(n):
                r.owed -= 1
                values.append(self.read(r))
            items = <PyObject**>PyMem_Calloc(n or 1, sizeof(PyObject*))
            if items is NULL:
                raise MemoryError
            for i in range(n):
                items[i] = PyList_GET_ITEM(values, i)
            try:
                value = PyObject_Vectorcall(
                    plan.cls, items, 0, <PyObject*>plan.fields if n else NULL
                )
            except Exception as error:
                raise unknown(r, f"{plan.name} refuses: {reason_of(error)}") from error
            finally:
                PyMem_Free(items)
        r.depth += 1
        return value

    cdef object read_enum(self, Reader* r):
        cdef Py_ssize_t n
        cdef Plan plan = None
        n = str_header(r)
        if n >= 0:
            check_length(r, n)
            plan = self.plan_of_name(r, r.at, n)
            r.at += n
        if plan is None:
            raise malformed(r, "an enum's member begins with the wire name of an enum")
        if plan.members is None:
            raise unknown(r, f"{plan.name} is a message class here, and no enum")
        value = self.read(r)
        member = None
        if type(value) in (int, str, bytes, bool, float, type(None)):
            member = plan.members.get(value)
        if member is None or type(member.value) is not type(value):
            raise unknown(r, f"{plan.name} has no member of that value")
        return member

    cdef object read_correlation_id(self, Reader* r):
        cdef Py_ssize_t n = str_header(r)
        if n < 0:
            raise malformed(r, "a correlation id begins with the text of a pid")
        check_length(r, n)
        pid = self.read_pid(r, r.at, n)
        r.at += n
        connection = self.read(r)
        request = self.read(r)
        try:
            return CorrelationId(pid, connection, request)
        except (TypeError, ValueError) as error:
            raise malformed(r, str(error)) from None

    cdef object read_pid(self, Reader* r, const unsigned char* data, Py_ssize_t size):
        cdef PyObject* found = self.seen_pids.find(data, size)
        if found is not NULL:
            return <object>found
        try:
            pid = Pid.parse(PyUnicode_DecodeUTF8(<const char*>data, size, NULL))
        except ValueError as error:
            raise malformed(r, f"no pid: {error}") from None
        self.seen_pids.keep(data, size, pid)
        return pid

    cdef Plan plan_of_name(self, Reader* r, const unsigned char* data, Py_ssize_t size):
        cdef bytes name = PyBytes_FromStringAndSize(<const char*>data, size)
        cdef PyObject* found = PyDict_GetItem(self.plans_by_name, name)
        cdef Plan plan = None
        if found is not NULL:
            return <Plan>found
        try:
            cls = self.registry.class_of(name.decode())
            plan = self.plan_of_class(cls)
        except UnicodeDecodeError:
            raise malformed(r, f"the wire name {shown(data, size)} is not UTF-8") from None
        except LookupError:
            pass
        if plan is None:
            raise unknown(
                r, f"no class is registered as {shown(data, size)}; the receiver builds only "
                   f"what it registered itself"
            )
        return plan


cdef object too_large(Codec codec):
    return EncodeError(
        f"the message takes more than {codec.message_bytes_max} bytes; send it in parts"
    )


cdef int check_size(Codec codec, Reader* r) except -1:
    if r.end - r.at > codec.message_bytes_max:
        raise beyond(
            r, f"{r.end - r.at} bytes are more than the {codec.message_bytes_max} allowed"
        )
    return 0


cdef int check_end(Reader* r) except -1:
    if r.at != r.end:
        raise malformed(r, f"{r.end - r.at} bytes too many")
    return 0


cdef inline int check_length(Reader* r, Py_ssize_t n) except -1:
    if n > r.end - r.at:
        raise beyond(r, f"{n} bytes are announced, {r.end - r.at} are left")
    return 0


cdef inline int claim(Codec codec, Reader* r, Py_ssize_t n, Py_ssize_t bytes_min) except -1:
    """Enter a container of `n` elements that take at least `bytes_min` bytes."""
    if bytes_min > r.end - r.at - r.owed:
        raise beyond(r, f"{n} elements are announced, {r.end - r.at} bytes are left for all")
    if r.depth == 0:
        raise beyond(r, f"containers are nested deeper than {codec.depth_max}")
    if n > r.elements:
        raise beyond(r, f"more than {codec.elements_max} elements in containers")
    r.depth -= 1
    r.elements -= n
    r.owed += bytes_min
    return 0


cdef inline str read_str(Reader* r, Py_ssize_t n):
    cdef const char* data = <const char*>r.at
    check_length(r, n)
    r.at += n
    try:
        return PyUnicode_DecodeUTF8(data, n, NULL)
    except UnicodeDecodeError as error:
        r.at -= n
        raise malformed(r, f"a string is not UTF-8: {error.reason}") from None


cdef inline Py_ssize_t str_header(Reader* r) except -2:
    """The length of the string that begins here; -1 if none does."""
    cdef unsigned char tag
    cdef Py_ssize_t n
    if r.at >= r.end:
        return -1
    tag = r.at[0]
    if tag & 0xe0 == 0xa0:
        r.at += 1
        return tag & 31
    n = tag - 0xd8
    if n < 1 or n > 3:
        return -1
    return read_size(r, 1 << (n - 1))


cdef inline Py_ssize_t array_header(Reader* r) except -2:
    """The length of the array that begins here; -1 if none does."""
    cdef unsigned char tag
    if r.at >= r.end:
        return -1
    tag = r.at[0]
    if tag & 0xf0 == 0x90:
        r.at += 1
        return tag & 15
    if tag != 0xdc and tag != 0xdd:
        return -1
    return read_size(r, 2 if tag == 0xdc else 4)


cdef Py_ssize_t read_size(Reader* r, int width) except -2:
    """The size in the `width` bytes behind the tag that stands here."""
    cdef const unsigned char* p = r.at + 1
    if r.end - p < width:
        raise malformed(r, "the data ends within a size")
    r.at = p + width
    return p[0] if width == 1 else rabble_load_16(p) if width == 2 else rabble_load_32(p)


cdef inline Py_ssize_t width_of(unsigned char tag) noexcept:
    """How many bytes of number or size follow a tag of 0xc4 to 0xd3 or 0xd9 to 0xdf."""
    if tag <= 0xc6:
        return 1 << (tag - 0xc4)
    if tag <= 0xc9:
        return 1 << (tag - 0xc7)
    if tag <= 0xcb:
        return 4 << (tag - 0xca)
    if tag <= 0xcf:
        return 1 << (tag - 0xcc)
    if tag <= 0xd3:
        return 1 << (tag - 0xd0)
    if tag <= 0xdb:
        return 1 << (tag - 0xd9)
    return 2 if tag == 0xdc or tag == 0xde else 4
