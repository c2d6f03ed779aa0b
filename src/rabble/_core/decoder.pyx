"""The decoder: msgpack to messages and envelopes.

What it reads comes from strangers. So nothing is allocated for what was only announced: a
container's count is first held against the bytes that are left, less those that the containers
around it still need, and against the budget of elements. Depth is bounded. And only classes of the
registry are ever built.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError, PyDict_SetItem, PyDict_Size
from cpython.list cimport PyList_GET_ITEM, PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from rabble._core.buffer_reader cimport (
    BufferReader, array_header, beyond, check_end, check_length, malformed, read_str, str_header,
    too_large, unknown,
)
from rabble._core.byteorder cimport load_16, load_32, load_64
from rabble._core.capacities cimport DECODER_CACHE_SLOTS
from rabble._core.checks cimport RABBLE_CLASS
from rabble._core.collisions cimport (
    begins_harmless, check_hashable, check_same_hash, most_of_one_hash, put_item, unseen_list,
)
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport PyErr_GivenExceptionMatches, owned, take_failure
from rabble._core.fields cimport check_field, default, kind_of, lacking, reason_of, refuses, skip
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.plan cimport (
    BUILD_ATTRIBUTES, BUILD_SLOTS, BUILD_TUPLE, EXT_BYTEARRAY, EXT_CORRELATION_ID, EXT_DATE,
    EXT_DATETIME, EXT_DECIMAL, EXT_ENUM, EXT_FRACTION, EXT_FROZENSET, EXT_INT, EXT_MESSAGE,
    EXT_NODE_ID, EXT_PID, EXT_RANGE, EXT_SET, EXT_TIME, EXT_TIMEDELTA, EXT_TIMEZONE, EXT_TUPLE,
    EXT_TYPE, EXT_UUID, EXT_ZONEINFO, RABBLE_SET_SLOT, CodecBounds, Plan, checks_of, make_ready,
    plan_of,
)
from rabble._core.texts cimport must_pass, type_name
from rabble._core.values cimport (
    COST_ATTRIBUTES, COST_CONTAINER, COST_ELEMENT, COST_ENTRY, COST_MEMBER, COST_PID, COST_SET,
    COST_VALUE, DATETIME_BYTES,
    NUMBER_BYTES_MAX, TIME_BYTES, ZONE_BYTES_MAX, code_of, new_datetime,
    new_fraction, new_range, new_time, new_timezone, new_zone, parse_complex, parse_date,
    parse_decimal, parse_int, parse_timedelta, parse_uuid, utc, zone_names,
)

__all__ = ["Decoder"]

cdef extern from *:
    """
    /* Whether `text`, a compact str of ASCII, consists of these bytes. */
    static inline int rabble_is_text(PyObject *text, const unsigned char *p, Py_ssize_t n) {
        return PyUnicode_GET_LENGTH(text) == n && memcmp(PyUnicode_DATA(text), p, n) == 0;
    }
    /* A named tuple of None, whose items are to be replaced; nobody sees it before they are. */
    static PyObject *rabble_allocate_tuple(PyObject *cls, Py_ssize_t n) {
        PyObject *value = ((PyTypeObject *)cls)->tp_alloc((PyTypeObject *)cls, n);
        if (value == NULL) return NULL;
        PyObject_GC_UnTrack(value);
        for (Py_ssize_t i = 0; i < n; i++) {
            Py_INCREF(Py_None);
            ((PyTupleObject *)value)->ob_item[i] = Py_None;
        }
    #if PY_VERSION_HEX >= 0x030E0000
        ((PyTupleObject *)value)->ob_hash = -1;
    #endif
        return value;
    }
    static void rabble_replace_item(PyObject *tuple, Py_ssize_t i, PyObject *item) {
        PyObject **place = &((PyTupleObject *)tuple)->ob_item[i], *former = *place;
        *place = item;
        Py_DECREF(former);
    }
    #define RABBLE_ALLOCATE(cls) (((PyTypeObject *)(cls))->tp_alloc((PyTypeObject *)(cls), 0))
    /* As `object.__new__`: from it alone an instance of CPython 3.11 and 3.12 has room for its
       attributes, and no dict of its own is made of them, which takes twice the time. */
    static inline PyObject *rabble_new_object(PyObject *cls, PyObject *no_arguments) {
        return PyBaseObject_Type.tp_new((PyTypeObject *)cls, no_arguments, NULL);
    }
    static inline uint64_t rabble_hash(const unsigned char *p, Py_ssize_t n) {
        uint64_t h = (uint64_t)n * 0x9e3779b97f4a7c15ULL, w;
        for (; n > 8; p += 8, n -= 8) {
            memcpy(&w, p, 8);
            h = (h ^ w) * 0xff51afd7ed558ccdULL;
            h ^= h >> 32;
        }
        /* The rest in as few loads as it takes, which may overlap: n is a part of the hash. */
        if (n == 8) memcpy(&w, p, 8);
        else if (n >= 4) w = (uint64_t)rabble_load_32(p) << 32 | rabble_load_32(p + n - 4);
        else w = n > 0 ? p[0] | p[n >> 1] << 8 | p[n - 1] << 16 : 0;
        h = (h ^ w) * 0xff51afd7ed558ccdULL;
        return h ^ h >> 32;
    }
    """
    bint rabble_is_text(PyObject* text, const unsigned char* p, Py_ssize_t n) noexcept
    object rabble_allocate_tuple(object cls, Py_ssize_t n)
    void rabble_replace_item(object tuple, Py_ssize_t i, PyObject* item) noexcept
    object RABBLE_ALLOCATE(object cls)
    # NULL with its exception pending, of a class that is abstract.
    PyObject* rabble_new_object(object cls, object no_arguments) noexcept
    uint64_t rabble_hash(const unsigned char* p, Py_ssize_t n) noexcept

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)
    # NULL with its exception pending, for who calls it to look at.
    PyObject* PyObject_Vectorcall(
        object callee, PyObject* const* args, size_t nargs, PyObject* names
    ) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) noexcept
    PyObject* PyObject_CallOneArg(object callee, object argument) noexcept
    int PyObject_GenericSetAttr(object value, object name, object item) noexcept
    void PyObject_GC_UnTrack(PyObject* value) noexcept
    void PyObject_GC_Track(PyObject* value) noexcept
    object PyByteArray_FromStringAndSize(const char* data, Py_ssize_t size)
    object PySet_New(PyObject* elements)
    object PyFrozenSet_New(PyObject* elements)
    Py_ssize_t PySet_GET_SIZE(object value) noexcept
    # -1 with its exception pending, for who calls them to look at.
    int PySet_Add(PyObject* out, PyObject* element) noexcept
    int set_item "PyDict_SetItem" (PyObject* out, PyObject* key, PyObject* item) noexcept

# What returns NULL, with its exception pending, instead of raising it.
ctypedef PyObject* (*quiet_planner)(PyObject* registry, PyObject* name) noexcept
ctypedef PyObject* (*quiet_maker)(PyObject* name) noexcept
ctypedef PyObject* (*quiet_names)() noexcept

cdef enum:
    KNOWN_BYTES_MIN = 2       # of these strings some are cached; CPython has all shorter ones ...
    KNOWN_BYTES_MAX = 32      # ... and longer keys rarely come again
    FIELDS_NEAR = 16          # fields of a message for which no memory is taken
    NESTED_MAX = 2            # extensions around each other, each of which is no container


# What the first 128 bytes are, which are numbers: they are there for ever, so each is made once.
cdef PyObject* SMALL_INTS[128]


cdef int make_small_ints() except -1:
    cdef object number
    cdef int n
    for n in range(128):
        number = n
        Py_INCREF(number)
        SMALL_INTS[n] = <PyObject*>number
    return 0


make_small_ints()


cdef str shown(const unsigned char* data, Py_ssize_t size):
    text = data[:min(size, 80)]
    return ascii(text.decode("utf-8", "replace"))


cdef object parse_pid(const unsigned char* data, Py_ssize_t size):
    return Pid.parse(PyUnicode_DecodeUTF8(<const char*>data, size, NULL))


cdef object parse_node_id(const unsigned char* data, Py_ssize_t size):
    return NodeId.parse(PyUnicode_DecodeUTF8(<const char*>data, size, NULL))


cdef object parsed(BufferReader* r, quiet_parser parse, const unsigned char* data, Py_ssize_t size):
    """What that text is, or a DecodeError that says what is wrong with it."""
    cdef PyObject* found = parse(data, size)
    if found is not NULL:
        return owned(found)
    raise failure_of(r)


cdef object made(BufferReader* r, PyObject* found):
    """What a call returned that leaves its exception pending."""
    if found is not NULL:
        return owned(found)
    raise failure_of(r)


cdef object failure_of(BufferReader* r):
    """What to raise for the pending exception."""
    error = take_failure()
    if PyErr_GivenExceptionMatches(error, ValueError):
        # One of the texts of ids.pyx, values.pyx or of Python, which are short.
        return malformed(r, str(error))
    return error


cdef object find_plan(object registry, bytes name):
    """The plan of what is registered under a wire name; None if nothing is."""
    cdef Plan plan
    cdef tuple checks
    wanted = name.decode()
    while True:
        changes = registry.changes
        registration = registry.registration_named(wanted)
        if registration is None:
            return None
        # Without the lock: annotations run code of the program's, which may import modules. A
        # thread that imports one waits for this lock where it declares a class.
        checks = checks_of(registry, registration)
        # No `with`, which takes exceptions as `except` does: see failure.pxd.
        registry.lock.acquire()
        try:
            if registry.changes == changes:
                plan = plan_of(registry, registration)
                make_ready(plan, checks)
                return plan
        finally:
            registry.lock.release()


@cython.final
cdef class ByteCache:
    """A bounded table from bytes to what they decode to; a newcomer takes the place it needs.

    The hash is no secret: who makes keys collide gets the time of an uncached decoding, no worse.
    """

    def __cinit__(self):
        self.keys = [None] * DECODER_CACHE_SLOTS
        self.values = [None] * DECODER_CACHE_SLOTS

    cdef PyObject* find(self, const unsigned char* data, Py_ssize_t size) noexcept:
        cdef Py_ssize_t place = rabble_hash(data, size) & (DECODER_CACHE_SLOTS - 1)
        cdef PyObject* key = PyList_GET_ITEM(self.keys, place)
        if (
            key is not <PyObject*>None
            and PyBytes_GET_SIZE(<object>key) == size
            and memcmp(PyBytes_AS_STRING(<object>key), data, size) == 0
        ):
            return PyList_GET_ITEM(self.values, place)
        return NULL

    cdef int keep(self, const unsigned char* data, Py_ssize_t size, object value) except -1:
        cdef Py_ssize_t place = rabble_hash(data, size) & (DECODER_CACHE_SLOTS - 1)
        cdef bytes key = PyBytes_FromStringAndSize(<const char*>data, size)
        self.keys[place] = key
        self.values[place] = value
        return 0


@cython.final
cdef class Decoder(CodecBounds):
    """Decodes by the classes of one registry, within its bounds. A `Codec` makes it.

    :param registry: as of `CodecBounds`, and so are the bounds.
    """

    def __cinit__(self, registry, **bounds):
        self.plans_by_name = registry.plans_by_name
        self.seen_pids = ByteCache()
        self.seen_names = ByteCache()
        self.zones = {}

    def __dealloc__(self):
        cdef Py_ssize_t place
        for place in range(DECODER_CACHE_SLOTS):
            Py_XDECREF(self.seen_texts[place])

    cdef void begin(self, BufferReader* r, const unsigned char* data, Py_ssize_t size) noexcept:
        r.start = data
        r.at = data
        r.end = data + size
        r.owed = 0
        r.depth = self.depth_max
        r.elements = self.elements_max
        r.memory = self.decoded_bytes_max
        r.nested = 0
        r.hashed = 0
        r.same_hash = 1

    cdef object read_whole(self, const unsigned char* data, Py_ssize_t size):
        cdef BufferReader r
        self.begin(&r, data, size)
        check_size(self, &r)
        msg = self.read(&r)
        check_end(&r)
        return msg

    cdef Envelope read_envelope(self, const unsigned char* data, Py_ssize_t size):
        cdef BufferReader r
        self.begin(&r, data, size)
        check_size(self, &r)
        if size == 0 or data[0] != 0x94:
            raise malformed(&r, "an envelope is an array of four")
        r.at += 1
        to = self.read(&r)
        sender = self.read(&r)
        correlation_id = self.read(&r)
        if type(to) is not Pid:
            raise malformed(&r, f"the receiver is a {type_name(to)}, no pid")
        if sender is not None and type(sender) is not Pid:
            raise malformed(&r, f"the sender is a {type_name(sender)}, no pid")
        if correlation_id is not None and type(correlation_id) is not CorrelationId:
            raise malformed(&r, f"the correlation id is a {type_name(correlation_id)}")
        msg = self.read(&r)
        check_end(&r)
        return new_envelope(<Pid>to, msg, <Pid>sender, <CorrelationId>correlation_id)

    cdef object read(self, BufferReader* r):
        cdef unsigned char tag
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
            return <object>SMALL_INTS[tag]
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
        # As one chain of what it is equal to: a C compiler finds the place by a table.
        if tag == 0xc0:
            return None
        elif tag == 0xc2:
            return False
        elif tag == 0xc3:
            return True
        elif tag == 0xc7:
            return self.read_ext(r, number_bytes(r, 1)[0])
        elif tag == 0xc8 or tag == 0xc9:
            return self.read_ext(r, read_number(r, 2 if tag == 0xc8 else 4))
        elif tag == 0xca:
            bits32 = load_32(number_bytes(r, 4))
            memcpy(&single, &bits32, 4)
            return <double>single
        elif tag == 0xcb:
            bits64 = load_64(number_bytes(r, 8))
            memcpy(&number, &bits64, 8)
            return number
        elif tag == 0xcc:
            return <long>number_bytes(r, 1)[0]
        elif tag == 0xcd:
            return <long>load_16(number_bytes(r, 2))
        elif tag == 0xce:
            return <int64_t>load_32(number_bytes(r, 4))
        elif tag == 0xcf:
            return load_64(number_bytes(r, 8))
        elif tag == 0xd0:
            return <long><int8_t>number_bytes(r, 1)[0]
        elif tag == 0xd1:
            return <long><int16_t>load_16(number_bytes(r, 2))
        elif tag == 0xd2:
            return <long><int32_t>load_32(number_bytes(r, 4))
        elif tag == 0xd3:
            return <int64_t>load_64(number_bytes(r, 8))
        elif tag == 0xd4 or tag == 0xd5 or tag == 0xd6 or tag == 0xd7 or tag == 0xd8:
            return self.read_ext(r, 1 << (tag - 0xd4))
        elif tag == 0xc4 or tag == 0xc5 or tag == 0xc6:
            n = read_number(r, 1 << (tag - 0xc4))
            check_length(r, n)
            r.at += n
            return PyBytes_FromStringAndSize(<const char*>r.at - n, n)
        elif tag == 0xd9 or tag == 0xda or tag == 0xdb:
            return read_str(r, read_number(r, 1 << (tag - 0xd9)))
        elif tag == 0xdc or tag == 0xdd:
            return self.read_list(r, read_number(r, 2 if tag == 0xdc else 4))
        elif tag == 0xde or tag == 0xdf:
            return self.read_map(r, read_number(r, 2 if tag == 0xde else 4))
        raise malformed(r, "0xc1 begins no value of msgpack")

    cdef str read_known_str(self, BufferReader* r, Py_ssize_t n):
        """A string that may well have come before, as tags and keys do.

        The last one of each place is kept if it is short and ASCII; a newcomer takes the place.
        """
        cdef PyObject** place
        cdef PyObject* former
        cdef str text
        if n < KNOWN_BYTES_MIN or n > KNOWN_BYTES_MAX:
            return read_str(r, n)
        check_length(r, n)
        place = &self.seen_texts[rabble_hash(r.at, n) & (DECODER_CACHE_SLOTS - 1)]
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

    cdef list read_list(self, BufferReader* r, Py_ssize_t n):
        cdef Py_ssize_t i
        cdef list out
        claim(self, r, n, n)
        out = PyList_New(n)
        # Its places are empty at first, and what is built meanwhile may run a user's code, which
        # must not come by it: `gc.get_objects()` shows what is tracked.
        PyObject_GC_UnTrack(<PyObject*>out)
        for i in range(n):
            r.owed -= 1
            item = self.read(r)
            Py_INCREF(item)
            PyList_SET_ITEM(out, i, item)
        PyObject_GC_Track(<PyObject*>out)
        r.depth += 1
        return out

    cdef dict read_map(self, BufferReader* r, Py_ssize_t n):
        cdef Py_ssize_t i, size
        cdef dict out
        claim(self, r, n, 2 * n)
        spend(self, r, COST_ENTRY * n)
        out = {}
        for i in range(n):
            size = str_header(r)
            if size < 0:
                return self.read_any_map(r, out, i, n)
            r.owed -= 2
            key = self.read_known_str(r, size)
            PyDict_SetItem(out, key, self.read(r))
        if PyDict_Size(out) != n:
            # As it stands to reason of one that was changed while it was encoded.
            raise unknown(r, "a map has the same key twice")
        r.depth += 1
        return out

    cdef dict read_any_map(self, BufferReader* r, dict out, Py_ssize_t done, Py_ssize_t n):
        """The rest of a map of `n` entries, of which `done` were read, from one on that has no str
        as its key: what these hash to is looked at before they go into the dict."""
        cdef Py_ssize_t i
        cdef Py_ssize_t outer = r.same_hash
        cdef Py_ssize_t most = 1
        cdef list keys = unseen_list(n)
        cdef list items = unseen_list(n)
        if PyDict_Size(out) != done:
            raise unknown(r, "a map has the same key twice")
        for i, (key, item) in enumerate(out.items()):
            put_item(keys, i, key)
            put_item(items, i, item)
        for i in range(done, n):
            r.owed -= 1
            r.hashed += 1
            r.same_hash = 1
            put_item(keys, i, self.read(r))
            r.hashed -= 1
            most = max(most, r.same_hash)
            r.owed -= 1
            r.same_hash = 1
            put_item(items, i, self.read(r))
            outer = max(outer, r.same_hash)
        r.same_hash = max(outer, most * most_of_one_hash(r, keys, False))
        check_same_hash(r)
        out = {}
        for i in range(n):
            check_hashable(
                r, set_item(<PyObject*>out, PyList_GET_ITEM(keys, i), PyList_GET_ITEM(items, i))
            )
        if PyDict_Size(out) != n:
            raise unknown(r, "a map has the same key twice")
        r.depth += 1
        return out

    cdef object read_ext(self, BufferReader* r, Py_ssize_t size):
        cdef int code
        cdef const unsigned char* outer_end = r.end
        cdef Py_ssize_t outer_owed = r.owed
        if r.at >= r.end:
            raise malformed(r, "the data ends within an extension")
        code = <int8_t>r.at[0]
        r.at += 1
        check_length(r, size)
        if code == EXT_PID:
            spend(self, r, COST_PID)
            r.at += size
            return self.read_pid(r, r.at - size, size)
        r.end = r.at + size
        r.owed = 0
        if code == EXT_MESSAGE:
            value = self.read_message(r)
        elif code == EXT_TUPLE:
            value = self.read_tuple(r)
        elif code == EXT_SET or code == EXT_FROZENSET:
            value = self.read_set(r, code)
        elif code == EXT_TYPE:
            value = self.read_type(r)
        elif code == EXT_DATETIME or code == EXT_TIME:
            value = self.read_moment(r, code, size)
        else:
            value = self.read_other(r, code, size)
        if r.at != r.end:
            raise malformed(r, f"{r.end - r.at} bytes too many in an extension of type {code}")
        r.end = outer_end
        r.owed = outer_owed
        return value

    cdef object read_other(self, BufferReader* r, int code, Py_ssize_t size):
        """What an extension is that is no container.

        Such a one may be in another one, as a time zone in a datetime, and in that no more: so they
        need no depth, and have an end.
        """
        cdef int first = EXT_BYTEARRAY
        cdef int last = EXT_RANGE
        check_nested(r, code)
        r.nested += 1
        # As ints: Cython compares as the enum, in which a negative code is a large one.
        if code >= first and code <= last:
            value = self.read_value(r, code, size)
        elif code == EXT_ENUM:
            value = self.read_enum(r)
        elif code == EXT_CORRELATION_ID:
            value = self.read_correlation_id(r)
        elif code == EXT_NODE_ID:
            spend(self, r, COST_PID)
            value = parsed(r, <quiet_parser><void*>parse_node_id, r.at, size)
            r.at += size
        else:
            raise malformed(r, f"extension type {code} is unknown")
        r.nested -= 1
        return value

    cdef tuple read_tuple(self, BufferReader* r):
        cdef Py_ssize_t i
        cdef Py_ssize_t n = array_header(r)
        cdef tuple out
        if n < 0:
            raise malformed(r, "a tuple is no array")
        claim(self, r, n, n)
        r.depth += n == 0
        if n == 0:
            return ()
        out = PyTuple_New(n)
        # Nobody comes by it before it is filled, see `read_list`.
        PyObject_GC_UnTrack(<PyObject*>out)
        for i in range(n):
            r.owed -= 1
            item = self.read(r)
            Py_INCREF(item)
            PyTuple_SET_ITEM(out, i, item)
        PyObject_GC_Track(<PyObject*>out)
        r.depth += 1
        return out

    cdef object read_set(self, BufferReader* r, int code):
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t n = array_header(r)
        cdef Py_ssize_t outer = r.same_hash
        cdef const unsigned char* first = r.at
        if n < 0:
            raise malformed(r, "a set is no array")
        claim(self, r, n, n)
        spend(self, r, COST_SET + COST_MEMBER * n)
        r.hashed += 1
        r.same_hash = 1
        out = PySet_New(NULL) if code == EXT_SET else PyFrozenSet_New(NULL)
        # While only such come, nobody's code runs.
        while done != n and r.at != r.end and begins_harmless(r.at[0], n):
            r.owed -= 1
            item = self.read(r)
            if PySet_Add(<PyObject*>out, <PyObject*>item) < 0:
                check_hashable(r, -1)
            done += 1
        if done != n:
            out = self.read_any_set(r, code, first, done, n)
        if PySet_GET_SIZE(out) != n:
            raise unknown(r, "a set has the same element twice")
        r.hashed -= 1
        r.same_hash = max(outer, r.same_hash)
        r.depth += 1
        return out

    cdef object read_any_set(
        self, BufferReader* r, int code, const unsigned char* first, Py_ssize_t done, Py_ssize_t n
    ):
        """The set of `n` elements, of which the first that may take time comes after `done` others.

        What they all hash to is looked at before they go into it. Those before it, which are
        scalars, are read once more, from `first` on: so the order is that in which they came.
        """
        cdef Py_ssize_t i
        cdef const unsigned char* at = r.at
        cdef list items = unseen_list(n)
        r.at = first
        for i in range(done):
            put_item(items, i, self.read(r))
        r.at = at
        for i in range(done, n):
            r.owed -= 1
            put_item(items, i, self.read(r))
        r.same_hash *= most_of_one_hash(r, items, True)
        check_same_hash(r)
        out = PySet_New(NULL) if code == EXT_SET else PyFrozenSet_New(NULL)
        # Until it has all its elements nobody comes by it: what compares them may be a user's.
        PyObject_GC_UnTrack(<PyObject*>out)
        for i in range(n):
            check_hashable(r, PySet_Add(<PyObject*>out, PyList_GET_ITEM(items, i)))
            # CPython 3.15 tracks a frozenset with what is put into it.
            PyObject_GC_UnTrack(<PyObject*>out)
        PyObject_GC_Track(<PyObject*>out)
        return out

    cdef object read_value(self, BufferReader* r, int code, Py_ssize_t size):
        """A value of one of the extensions of values.pxd that are no containers."""
        cdef const unsigned char* p = r.at
        spend(self, r, COST_VALUE)
        if code == EXT_FRACTION:
            first = self.read(r)
            second = self.read(r)
            return made(r, new_fraction(first, second))
        if code == EXT_RANGE:
            first = self.read(r)
            second = self.read(r)
            third = self.read(r)
            return made(r, new_range(first, second, third))
        if code == EXT_TIMEZONE:
            return self.read_timezone(r)
        if code == EXT_ZONEINFO:
            return self.read_zone_info(r, size)
        if r.hashed and size > NUMBER_BYTES_MAX and (code == EXT_INT or code == EXT_DECIMAL):
            raise beyond(
                r, f"a number of {size} bytes is in a set or a key, where {NUMBER_BYTES_MAX} may be"
            )
        if code == EXT_BYTEARRAY:
            value = PyByteArray_FromStringAndSize(<const char*>p, size)
        else:
            value = parsed(r, parser_of(code), p, size)
        r.at += size
        return value

    cdef object read_moment(self, BufferReader* r, int code, Py_ssize_t size):
        """A datetime or time."""
        cdef const unsigned char* p = r.at
        cdef Py_ssize_t fixed = DATETIME_BYTES if code == EXT_DATETIME else TIME_BYTES
        cdef PyObject* found
        check_nested(r, code)
        spend(self, r, COST_VALUE)
        if size < fixed:
            raise malformed(r, "a datetime or time ends within its numbers")
        r.at += fixed
        if size == fixed:
            zone = None
        elif size == fixed + 3 and p[fixed] == 0xc7 and p[fixed + 1] == 0 and (
            p[fixed + 2] == EXT_TIMEZONE
        ):
            # What UTC is written as.
            r.at += 3
            zone = utc()
        else:
            r.nested += 1
            zone = self.read(r)
            r.nested -= 1
            if not is_zone(zone):
                raise malformed(r, f"the tzinfo of a datetime or time is a {type_name(zone)}")
        found = new_datetime(p, zone) if code == EXT_DATETIME else new_time(p, zone)
        if found is NULL:
            raise failure_of(r)
        return owned(found)

    cdef object read_timezone(self, BufferReader* r):
        if r.at == r.end:
            return utc()
        offset = self.read(r)
        name = None
        if r.at != r.end:
            name = self.read(r)
            if type(name) is not str:
                raise malformed(r, f"the name of a timezone is a {type_name(name)}, no str")
        return made(r, new_timezone(offset, name))

    cdef object read_zone_info(self, BufferReader* r, Py_ssize_t size):
        cdef bytes key
        cdef PyObject* found
        if size > ZONE_BYTES_MAX:
            raise malformed(r, f"the key of a time zone takes {size} bytes, not 1 to 255")
        key = PyBytes_FromStringAndSize(<const char*>r.at, size)
        found = PyDict_GetItemWithError(self.zones, key)
        if found is NULL:
            if not self.zone_names:
                # None at all are no answer: the files could not be read just then, say.
                found = (<quiet_names><void*>zone_names)()
                if found is NULL:
                    error = take_failure()
                    if must_pass(error):
                        raise error
                    raise unknown(r, f"the time zones here cannot be read: {reason_of(error)}")
                self.zone_names = owned(found)
            name = read_str(r, size)
            text = ascii(name)
            # By a name from the wire nothing is looked for: zoneinfo would, among modules too.
            if name not in self.zone_names:
                raise unknown(
                    r, f"the time zone {text} is not on this node; "
                       f"install tzdata there, or send the datetime in UTC"
                )
            found = (<quiet_maker><void*>new_zone)(<PyObject*>name)
            if found is NULL:
                error = take_failure()
                if must_pass(error):
                    raise error
                raise unknown(r, f"the time zone {text} cannot be read: {reason_of(error)}")
            zone = owned(found)
            self.zones[key] = zone
            return zone
        r.at += size
        return <object>found

    cdef object read_message(self, BufferReader* r):
        cdef Py_ssize_t n, i, known
        cdef Plan plan = None
        n = str_header(r)
        if n >= 0:
            check_length(r, n)
            plan = self.plan_of_name(r, r.at, n)
            r.at += n
        if plan is None:
            raise malformed(r, "a message begins with the wire name of its class")
        if plan.fields is None:
            raise unknown(r, f"{plan.name} is no message class here, but {kind_of(plan)}")
        n = array_header(r)
        if n < 0:
            raise malformed(r, f"no array of fields comes after the name {plan.name}")
        if n < plan.required:
            raise unknown(r, lacking(plan, n))
        claim(self, r, n, n)
        known = n
        if plan.build != BUILD_SLOTS and plan.build != BUILD_TUPLE:
            spend(self, r, COST_ATTRIBUTES)
        if n < plan.count:
            # Defaults take memory that no byte of the message stands for.
            spend(self, r, (COST_CONTAINER + COST_ELEMENT) * (plan.count - n))
        else:
            known = plan.count
        if plan.build == BUILD_SLOTS and n == plan.count:
            value = RABBLE_ALLOCATE(plan.cls)
            for i in range(n):
                r.owed -= 1
                item = self.read(r)
                if plan.quick[i] is not RABBLE_CLASS(item) and plan.quick[i] is not NULL:
                    check_field(r, plan, i, item)
                Py_INCREF(item)
                RABBLE_SET_SLOT(value, plan.offsets[i], <PyObject*>item)
        elif plan.build == BUILD_SLOTS or plan.build == BUILD_ATTRIBUTES:
            value = self.read_filled(r, plan, known, n - known)
        elif plan.build == BUILD_TUPLE:
            value = self.read_named_tuple(r, plan, known, n - known)
        else:
            value = self.read_by_constructor(r, plan, known, n - known)
        r.depth += 1
        return value

    cdef inline object read_field(self, BufferReader* r, Plan plan, Py_ssize_t i):
        r.owed -= 1
        item = self.read(r)
        if plan.quick[i] is not RABBLE_CLASS(item) and plan.quick[i] is not NULL:
            check_field(r, plan, i, item)
        return item

    cdef object read_filled(
        self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more
    ):
        """An instance whose memory is taken and filled, as its generated constructor would."""
        cdef Py_ssize_t i
        cdef PyObject* found
        if plan.build == BUILD_SLOTS:
            value = RABBLE_ALLOCATE(plan.cls)
        else:
            found = rabble_new_object(plan.cls, ())
            if found is NULL:
                raise refuses(r, plan)
            value = owned(found)
        for i in range(plan.count):
            item = self.read_field(r, plan, i) if i < known else default(r, plan, i)
            if plan.build == BUILD_SLOTS:
                Py_INCREF(item)
                RABBLE_SET_SLOT(value, plan.offsets[i], <PyObject*>item)
            elif PyObject_GenericSetAttr(value, plan.fields[i], item) < 0:
                raise refuses(r, plan)
        self.drop(r, more)
        return value

    cdef object read_named_tuple(
        self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more
    ):
        cdef Py_ssize_t i
        # Filled with None at first: where a field is none, its `__del__` sees what is there.
        value = rabble_allocate_tuple(plan.cls, plan.count)
        for i in range(plan.count):
            item = self.read_field(r, plan, i) if i < known else default(r, plan, i)
            Py_INCREF(item)
            rabble_replace_item(value, i, <PyObject*>item)
        PyObject_GC_Track(<PyObject*>value)
        self.drop(r, more)
        return value

    cdef object read_by_constructor(
        self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more
    ):
        """An instance whose constructor is called, which may be the user's own."""
        cdef PyObject* near[FIELDS_NEAR]
        cdef PyObject** items = near
        cdef PyObject* found
        cdef Py_ssize_t i
        cdef Py_ssize_t count = 0
        cdef tuple names = plan.fields
        if known > FIELDS_NEAR:
            items = <PyObject**>PyMem_Malloc(known * sizeof(PyObject*))
            if items is NULL:
                raise MemoryError
        try:
            if known != plan.count:
                names = plan.fields[:known]
            while count != known:
                item = self.read_field(r, plan, count)
                Py_INCREF(item)
                items[count] = <PyObject*>item
                count += 1
            self.drop(r, more)
            found = PyObject_Vectorcall(
                plan.maker, items, 0, <PyObject*>names if count else NULL
            )
        finally:
            for i in range(count):
                Py_XDECREF(items[i])
            if items != near:
                PyMem_Free(items)
        if found is NULL:
            raise refuses(r, plan)
        value = owned(found)
        if type(value) is not plan.cls:
            raise unknown(r, f"{plan.name}: a {type_name(value)} was built instead")
        return value

    cdef int drop(self, BufferReader* r, Py_ssize_t n) except -1:
        """Go over fields that came last and are not known here; nothing is built of them."""
        cdef Py_ssize_t _i
        for _i in range(n):
            r.owed -= 1
            skip(self, r)
        if n:
            self.fields_dropped += n
            self.registry.note_dropped(n)
        return 0

    cdef object read_type(self, BufferReader* r):
        """A value that a function of the user's makes of what came."""
        cdef Py_ssize_t n
        cdef Plan plan = None
        cdef PyObject* found
        n = str_header(r)
        if n >= 0:
            check_length(r, n)
            plan = self.plan_of_name(r, r.at, n)
            r.at += n
        if plan is None:
            raise malformed(r, "a value of a registered type begins with its wire name")
        if plan.encode is None:
            raise unknown(r, f"{plan.name} is no registered type here, but {kind_of(plan)}")
        claim(self, r, 1, 1)
        r.owed -= 1
        item = self.read(r)
        r.depth += 1
        found = PyObject_CallOneArg(plan.decode, item)
        if found is NULL:
            raise refuses(r, plan)
        value = owned(found)
        if type(value) is not plan.cls:
            raise unknown(
                r, f"{plan.name}: its decode function returned a {type_name(value)}, and no "
                   f"instance of its class"
            )
        return value

    cdef object read_enum(self, BufferReader* r):
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
            raise unknown(r, f"{plan.name} is no enum here, but {kind_of(plan)}")
        value = self.read(r)
        cls = type(value)
        found = None
        # What these are equal to no user's code decides.
        if (
            cls is int or cls is str or value is None or cls is bytes or cls is bool
            or cls is float
        ):
            found = plan.members.get(value)
        if found is None or (<tuple>found)[0] is not cls:
            raise unknown(r, f"{plan.name} has no member of that value")
        return (<tuple>found)[1]

    cdef object read_correlation_id(self, BufferReader* r):
        cdef Py_ssize_t n = str_header(r)
        spend(self, r, COST_PID)
        if n < 0:
            raise malformed(r, "a correlation id begins with the text of a pid")
        check_length(r, n)
        pid = self.read_pid(r, r.at, n)
        r.at += n
        connection = self.read(r)
        request = self.read(r)
        # Looked at here: the error of a CorrelationId would word what is no number.
        if not is_number(connection) or not is_number(request):
            raise malformed(r, "a number of a correlation id is not nil or 0 to 2**63 - 1")
        return CorrelationId(pid, connection, request)

    cdef object read_pid(self, BufferReader* r, const unsigned char* data, Py_ssize_t size):
        cdef PyObject* found = self.seen_pids.find(data, size)
        if found is not NULL:
            return <object>found
        pid = parsed(r, <quiet_parser><void*>parse_pid, data, size)
        self.seen_pids.keep(data, size, pid)
        return pid

    cdef Plan plan_of_name(self, BufferReader* r, const unsigned char* data, Py_ssize_t size):
        # The bytes of a name that came before have been hashed already.
        cdef PyObject* found = self.seen_names.find(data, size)
        cdef bint known = found is not NULL
        cdef bytes name = (
            <bytes>found if known else PyBytes_FromStringAndSize(<const char*>data, size)
        )
        found = PyDict_GetItemWithError(self.plans_by_name, name)
        # Anybody can put things there.
        if found is not NULL and type(<object>found) is Plan and (<Plan>found).is_ready:
            if not known:
                # The table's own object if it is of that name (anybody can put a plan under another
                # one): by what it has itself a dict finds it without comparing bytes.
                own = (<Plan>found).key
                self.seen_names.keep(data, size, own if own == name else name)
            return <Plan>found
        found = (<quiet_planner><void*>find_plan)(<PyObject*>self.registry, <PyObject*>name)
        if found is NULL:
            error = take_failure()
            if must_pass(error):
                raise error
            if PyErr_GivenExceptionMatches(error, UnicodeDecodeError):
                raise malformed(r, f"the wire name {shown(data, size)} is not UTF-8")
            # To look at a class may run its metaclass's code, or an enum's.
            raise unknown(
                r, f"{shown(data, size)} cannot be built here: {reason_of(error)}"
            ) from error
        plan = owned(found)
        if plan is None:
            raise unknown(
                r, f"no class is registered as {shown(data, size)}; the receiver builds only "
                   f"what it registered itself"
            )
        return <Plan>plan


cdef inline const unsigned char* number_bytes(BufferReader* r, Py_ssize_t n) except NULL:
    """The next bytes, of a number or size, which are read with that."""
    if r.end - r.at < n:
        raise malformed(r, "the data ends within a number")
    r.at += n
    return r.at - n


cdef inline Py_ssize_t read_number(BufferReader* r, int width) except -1:
    """A size in one, two or four bytes."""
    cdef const unsigned char* p = number_bytes(r, width)
    return p[0] if width == 1 else load_16(p) if width == 2 else load_32(p)


cdef inline bint is_number(object value) noexcept:
    """Whether a correlation id may have it as connection or request."""
    cdef int overflow = 0
    if value is None:
        return True
    return type(value) is int and PyLong_AsLongLongAndOverflow(value, &overflow) >= 0 and (
        overflow == 0
    )


cdef int check_size(Decoder decoder, BufferReader* r) except -1:
    if r.end - r.at > decoder.message_bytes_max:
        raise beyond(
            r, f"{r.end - r.at} bytes are more than the {decoder.message_bytes_max} allowed"
        )
    return 0


cdef inline int check_nested(BufferReader* r, int code) except -1:
    """Whether an extension that is no container may be where it is, see `Decoder.read_other`."""
    if r.nested == NESTED_MAX:
        raise malformed(r, f"an extension of type {code} is in one that has none")
    return 0


cdef inline int claim(
    Decoder decoder, BufferReader* r, Py_ssize_t n, Py_ssize_t bytes_min
) except -1:
    """Enter a container of `n` elements that take at least `bytes_min` bytes."""
    if bytes_min > r.end - r.at - r.owed:
        raise beyond(r, f"{n} elements are announced, {r.end - r.at} bytes are left for all")
    if r.depth == 0:
        raise beyond(r, f"containers are nested deeper than {decoder.depth_max}")
    r.elements -= n
    r.memory -= COST_CONTAINER + COST_ELEMENT * n
    if (r.elements | r.memory) < 0:
        raise too_much(decoder, r)
    r.depth -= 1
    r.owed += bytes_min
    return 0


cdef inline int spend(Decoder decoder, BufferReader* r, Py_ssize_t cost) except -1:
    """Charge memory, by the estimate of values.pxd, before it is taken."""
    r.memory -= cost
    if r.memory < 0:
        raise too_much(decoder, r)
    return 0


cdef object too_much(Decoder decoder, BufferReader* r):
    if r.elements < 0:
        return beyond(r, f"more than {decoder.elements_max} elements in containers")
    return too_large(
        r, f"it would take more than {decoder.decoded_bytes_max} bytes of memory, by estimate"
    )


cdef quiet_parser parser_of(int code) noexcept:
    if code == EXT_UUID:
        return <quiet_parser><void*>parse_uuid
    if code == EXT_DECIMAL:
        return <quiet_parser><void*>parse_decimal
    if code == EXT_INT:
        return <quiet_parser><void*>parse_int
    if code == EXT_DATE:
        return <quiet_parser><void*>parse_date
    if code == EXT_TIMEDELTA:
        return <quiet_parser><void*>parse_timedelta
    return <quiet_parser><void*>parse_complex


cdef inline bint is_zone(object value) noexcept:
    cdef int code = code_of(type(value))
    return code == EXT_TIMEZONE or code == EXT_ZONEINFO
