from cpython.object cimport PyObject

from rabble._core.buffer_reader cimport BufferReader
from rabble._core.capacities cimport DECODER_CACHE_SLOTS
from rabble._core.envelope cimport Envelope
from rabble._core.plan cimport CodecBounds, Plan

# What returns NULL, with its exception pending, instead of raising it.
ctypedef PyObject* (*quiet_parser)(const unsigned char* data, Py_ssize_t size) noexcept

# The pid of a text; to be called as a `quiet_parser`.
cdef object parse_pid(const unsigned char* data, Py_ssize_t size)

cdef class ByteCache:
    cdef list keys              # bytes, or None; a key has one possible place
    cdef list values            # ... what they decode to

    cdef PyObject* find(self, const unsigned char* data, Py_ssize_t size) noexcept
    cdef int keep(self, const unsigned char* data, Py_ssize_t size, object value) except -1

cdef class Decoder(CodecBounds):
    cdef dict plans_by_name     # by their names' bytes; shared with the registry, which empties it
    cdef ByteCache seen_pids    # decoded of late
    cdef ByteCache seen_names   # wire names of plans that were used of late: the bytes themselves
    cdef readonly Py_ssize_t fields_dropped     # that came, and are not known here
    cdef PyObject* seen_texts[DECODER_CACHE_SLOTS]  # short strs decoded of late, owned; NULL: none
    cdef frozenset zone_names   # that this machine has; None: not looked for yet
    cdef dict zones             # of these, those that came, by their bytes

    cdef object read_whole(self, const unsigned char* data, Py_ssize_t size)
    cdef Envelope read_envelope(self, const unsigned char* data, Py_ssize_t size)

    cdef void begin(self, BufferReader* r, const unsigned char* data, Py_ssize_t size) noexcept
    cdef object read(self, BufferReader* r)
    cdef str read_known_str(self, BufferReader* r, Py_ssize_t n)
    cdef list read_list(self, BufferReader* r, Py_ssize_t n)
    cdef dict read_map(self, BufferReader* r, Py_ssize_t n)
    cdef dict read_any_map(self, BufferReader* r, dict out, Py_ssize_t done, Py_ssize_t n)
    cdef object read_ext(self, BufferReader* r, Py_ssize_t size)
    cdef object read_other(self, BufferReader* r, int code, Py_ssize_t size)
    # What msgpack has no type for: see values.pxd.
    cdef tuple read_tuple(self, BufferReader* r)
    cdef object read_set(self, BufferReader* r, int code)
    cdef object read_any_set(
        self, BufferReader* r, int code, const unsigned char* first, Py_ssize_t done, Py_ssize_t n
    )
    cdef object read_value(self, BufferReader* r, int code, Py_ssize_t size)
    cdef object read_moment(self, BufferReader* r, int code, Py_ssize_t size)
    cdef object read_timezone(self, BufferReader* r)
    cdef object read_zone_info(self, BufferReader* r, Py_ssize_t size)
    cdef object read_message(self, BufferReader* r)
    cdef object read_filled(self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more)
    cdef object read_named_tuple(
        self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more
    )
    cdef object read_by_constructor(
        self, BufferReader* r, Plan plan, Py_ssize_t known, Py_ssize_t more
    )
    cdef object read_field(self, BufferReader* r, Plan plan, Py_ssize_t i)
    cdef int drop(self, BufferReader* r, Py_ssize_t n) except -1
    cdef object read_type(self, BufferReader* r)
    cdef object read_enum(self, BufferReader* r)
    cdef object read_correlation_id(self, BufferReader* r)
    cdef object read_pid(self, BufferReader* r, const unsigned char* data, Py_ssize_t size)
    cdef Plan plan_of_name(self, BufferReader* r, const unsigned char* data, Py_ssize_t size)
