# The decoder: msgpack to messages and envelopes.

from cpython.object cimport PyObject

from rabble._core.buffer_reader cimport BufferReader
from rabble._core.capacities cimport DECODER_CACHE_SLOTS
from rabble._core.envelope cimport Envelope
from rabble._core.plan cimport Plan

cdef class ByteCache:
    cdef list keys              # bytes, or None; a key has one possible place
    cdef list values            # ... what they decode to

    cdef PyObject* find(self, const unsigned char* data, Py_ssize_t size) noexcept
    cdef int keep(self, const unsigned char* data, Py_ssize_t size, object value) except -1

cdef class Decoder:
    cdef object registry        # of the classes that may be built
    cdef dict plans_by_name     # by their names' bytes; shared with the registry, which empties it
    cdef Py_ssize_t message_bytes_max   # of one message or envelope
    cdef int depth_max          # how deep containers may be nested
    cdef Py_ssize_t elements_max        # of all containers of one message together
    cdef ByteCache seen_pids    # decoded of late
    cdef PyObject* seen_texts[DECODER_CACHE_SLOTS]  # short strs decoded of late, owned; NULL: none

    cdef object read_whole(self, const unsigned char* data, Py_ssize_t size)
    cdef Envelope read_envelope(self, const unsigned char* data, Py_ssize_t size)

    cdef void begin(self, BufferReader* r, const unsigned char* data, Py_ssize_t size) noexcept
    cdef object read(self, BufferReader* r)
    cdef object read_key(self, BufferReader* r)
    cdef str read_known_str(self, BufferReader* r, Py_ssize_t n)
    cdef list read_list(self, BufferReader* r, Py_ssize_t n)
    cdef dict read_map(self, BufferReader* r, Py_ssize_t n)
    cdef object read_ext(self, BufferReader* r, Py_ssize_t size)
    cdef object read_message(self, BufferReader* r)
    cdef object read_by_constructor(self, BufferReader* r, Plan plan)
    cdef object read_enum(self, BufferReader* r)
    cdef object read_correlation_id(self, BufferReader* r)
    cdef object read_pid(self, BufferReader* r, const unsigned char* data, Py_ssize_t size)
    cdef Plan plan_of_name(self, BufferReader* r, const unsigned char* data, Py_ssize_t size)
