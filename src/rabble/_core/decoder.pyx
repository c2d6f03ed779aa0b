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
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from rabble._core.buffer_reader cimport (
    BufferReader, array_header, beyond, check_end, check_length, malformed, read_str, str_header,
    unknown, width_of,
)
from rabble._core.byteorder cimport load_16, load_32, load_64
from rabble._core.capacities cimport DECODER_CACHE_SLOTS
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport PyErr_GivenExceptionMatches, owned, take_failure
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.plan cimport (
    EXT_CORRELATION_ID, EXT_ENUM, EXT_MESSAGE, EXT_NODE_ID, EXT_PID, RABBLE_SET_SLOT, Plan, plan_of,
)
from rabble._core.texts cimport bounded_str, must_pass, type_name

__all__ = ["Decoder"]

cdef extern from *:
    """
    /* Whether `text`, a compact str of ASCII, consists of these bytes. */
    static inline int rabble_is_text(PyObject *text, const unsigned char *p, Py_ssize_t n) {
        return PyUnicode_GET_LENGTH(text) == n && memcmp(PyUnicode_DATA(text), p, n) == 0;
    }
    #define RABBLE_ALLOCATE(cls) (((PyTypeObject *)(cls))->tp_alloc((PyTypeObject *)(cls), 0))
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
    bint rabble_is_text(PyObject* text, const unsigned char* p, Py_ssize_t n) noexcept
    object RABBLE_ALLOCATE(object cls)
    uint64_t rabble_hash(const unsigned char* p, Py_ssize_t n) noexcept

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)
    # NULL with its exception pending, for who calls it to look at.
    PyObject* PyObject_Vectorcall(
        object callee, PyObject* const* args, size_t nargs, PyObject* names
    ) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) noexcept
    void PyObject_GC_UnTrack(PyObject* value) noexcept
    void PyObject_GC_Track(PyObject* value) noexcept

# What returns NULL, with its exception pending, instead of raising it.
ctypedef PyObject* (*quiet_parser)(const unsigned char* data, Py_ssize_t size) noexcept
ctypedef PyObject* (*quiet_planner)(PyObject* registry, PyObject* name) noexcept

cdef enum:
    KNOWN_BYTES_MIN = 2       # of these strings some are cached; CPython has all shorter ones ...
    KNOWN_BYTES_MAX = 32      # ... and longer keys rarely come again
    REASON_MAX = 500          # characters of what an exception of the user's says of itself
    FIELDS_NEAR = 16          # fields of a message for which no memory is taken


cdef str shown(const unsigned char* data, Py_ssize_t size):
    text = data[:min(size, 80)]
    return ascii(text.decode("utf-8", "replace"))


cdef str reason_of(object error):
    """What an exception of the user's says of itself, if it can."""
    return f"{type_name(error)}: {bounded_str(error, REASON_MAX)}"


cdef object parse_pid(const unsigned char* data, Py_ssize_t size):
    return Pid.parse(PyUnicode_DecodeUTF8(<const char*>data, size, NULL))


cdef object parse_node_id(const unsigned char* data, Py_ssize_t size):
    return NodeId.parse(PyUnicode_DecodeUTF8(<const char*>data, size, NULL))


cdef object parsed(BufferReader* r, quiet_parser parse, const unsigned char* data, Py_ssize_t size):
    """What that text is, or a DecodeError that says what is wrong with it."""
    cdef PyObject* found = parse(data, size)
    if found is not NULL:
        return owned(found)
    error = take_failure()
    if PyErr_GivenExceptionMatches(error, ValueError):
        # One of the texts of ids.pyx or of Python, which are short.
        raise malformed(r, str(error))
    raise error


cdef object find_plan(object registry, bytes name):
    """The plan of what is registered under a wire name; None if nothing is."""
    registration = registry.registration_named(name.decode())
    if registration is None:
        return None
    # No `with`, which takes exceptions as `except` does: see failure.pxd.
    registry.lock.acquire()
    try:
        # What is registered may have been replaced meanwhile.
        registration = registry.registration_named(registration.name)
        return plan_of(registry, registration)
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
cdef class Decoder:
    """Decodes by the classes of one registry, within the bounds that a `Codec` has checked."""

    def __cinit__(
        self, registry not None, Py_ssize_t message_bytes_max, int depth_max,
        Py_ssize_t elements_max,
    ):
        self.registry = registry
        self.plans_by_name = registry.plans_by_name
        self.message_bytes_max = message_bytes_max
        self.depth_max = depth_max
        self.elements_max = elements_max
        self.seen_pids = ByteCache()

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
            bits32 = load_32(p)
            memcpy(&single, &bits32, 4)
            return <double>single
        if tag == 0xcb:
            bits64 = load_64(p)
            memcpy(&number, &bits64, 8)
            return number
        if tag == 0xcc:
            return <long>p[0]
        if tag == 0xcd:
            return <long>load_16(p)
        if tag == 0xce:
            return <int64_t>load_32(p)
        if tag == 0xcf:
            return load_64(p)
        if tag == 0xd0:
            return <long><int8_t>p[0]
        if tag == 0xd1:
            return <long><int16_t>load_16(p)
        if tag == 0xd2:
            return <long><int32_t>load_32(p)
        if tag == 0xd3:
            return <int64_t>load_64(p)
        # The rest are sizes, in one, two or four bytes.
        n = p[0] if n == 1 else load_16(p) if n == 2 else load_32(p)
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

    cdef object read_key(self, BufferReader* r):
        cdef Py_ssize_t n = str_header(r)
        if n < 0:
            raise malformed(r, "the key of a map is no string")
        return self.read_known_str(r, n)

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
            value = parsed(r, <quiet_parser><void*>parse_node_id, r.at, size)
            r.at += size
        else:
            raise malformed(r, f"extension type {code} is unknown")
        if r.at != r.end:
            raise malformed(r, f"{r.end - r.at} bytes too many in an extension of type {code}")
        r.end = outer_end
        r.owed = outer_owed
        return value

    cdef object read_message(self, BufferReader* r):
        cdef Py_ssize_t n, i
        cdef Plan plan = None
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
            value = self.read_by_constructor(r, plan)
        r.depth += 1
        return value

    cdef object read_by_constructor(self, BufferReader* r, Plan plan):
        """An instance whose constructor is called, which may be the user's own."""
        cdef PyObject* near[FIELDS_NEAR]
        cdef PyObject** items = near
        cdef PyObject* found
        cdef Py_ssize_t i
        cdef Py_ssize_t count = 0
        if plan.count > FIELDS_NEAR:
            items = <PyObject**>PyMem_Malloc(plan.count * sizeof(PyObject*))
            if items is NULL:
                raise MemoryError
        try:
            while count != plan.count:
                r.owed -= 1
                item = self.read(r)
                Py_INCREF(item)
                items[count] = <PyObject*>item
                count += 1
            found = PyObject_Vectorcall(
                plan.cls, items, 0, <PyObject*>plan.fields if count else NULL
            )
        finally:
            for i in range(count):
                Py_XDECREF(items[i])
            if items != near:
                PyMem_Free(items)
        if found is not NULL:
            return owned(found)
        error = take_failure()
        if must_pass(error):
            raise error
        raise unknown(r, f"{plan.name} refuses: {reason_of(error)}") from error

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
            raise unknown(r, f"{plan.name} is a message class here, and no enum")
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
        cdef bytes name = PyBytes_FromStringAndSize(<const char*>data, size)
        cdef PyObject* found = PyDict_GetItemWithError(self.plans_by_name, name)
        # Anybody can put things there.
        if found is not NULL and type(<object>found) is Plan and (<Plan>found).cls is not None:
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


cdef inline int claim(
    Decoder decoder, BufferReader* r, Py_ssize_t n, Py_ssize_t bytes_min
) except -1:
    """Enter a container of `n` elements that take at least `bytes_min` bytes."""
    if bytes_min > r.end - r.at - r.owed:
        raise beyond(r, f"{n} elements are announced, {r.end - r.at} bytes are left for all")
    if r.depth == 0:
        raise beyond(r, f"containers are nested deeper than {decoder.depth_max}")
    if n > r.elements:
        raise beyond(r, f"more than {decoder.elements_max} elements in containers")
    r.depth -= 1
    r.elements -= n
    r.owed += bytes_min
    return 0
