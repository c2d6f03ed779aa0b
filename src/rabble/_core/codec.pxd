# The codec: envelopes and messages to msgpack and back.

from cpython.object cimport PyObject

from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport Pid

cdef enum:
    CACHE_PLACES = 256      # a power of two

cdef struct Writer:
    unsigned char* data     # what was written so far; moves when it grows
    Py_ssize_t size
    Py_ssize_t capacity     # of memory that PyMem_RawMalloc gave
    Py_ssize_t limit        # a size beyond which it does not grow
    Py_ssize_t elements     # how many elements containers may still have
    int depth               # how many containers may still be opened

cdef struct Reader:
    const unsigned char* start
    const unsigned char* at
    const unsigned char* end    # of the whole, or of the extension being read
    Py_ssize_t owed             # elements announced and not yet read: each takes a byte at least
    Py_ssize_t elements         # how many elements containers may still have
    int depth                   # how many containers may still be opened

cdef class ByteCache:
    cdef list keys              # bytes, or None; a key has one possible place
    cdef list values

    cdef PyObject* find(self, const unsigned char* data, Py_ssize_t size) noexcept
    cdef int keep(self, const unsigned char* data, Py_ssize_t size, object value) except -1

cdef class Plan:
    cdef object cls             # what is built
    cdef str name               # its wire name
    cdef bytes head             # of a message: its name and the header of its fields
    cdef tuple fields           # of a message: names of its fields
    cdef Py_ssize_t count       # ... how many
    cdef Py_ssize_t* offsets    # ... where each lies in the instance; NULL: ask by name
    cdef bint built_by_slots    # ... whether its constructor does nothing but fill them
    cdef dict encoded           # of an enum: id(member) to its whole encoding
    cdef dict members           # of an enum: value to member

cdef class Codec:
    cdef readonly object registry
    cdef readonly Py_ssize_t message_bytes_max
    cdef readonly int depth_max
    cdef readonly Py_ssize_t elements_max
    cdef dict plans_by_class    # shared with the registry, which empties it when it changes
    cdef dict plans_by_name     # the same, by the wire name's bytes
    cdef unsigned char* spare   # the buffer between two encodings
    cdef Py_ssize_t spare_capacity
    cdef list sent_pids         # encoded of late: place is the pid's hash
    cdef list sent_texts        # ... their encodings
    cdef ByteCache seen_pids    # decoded of late
    cdef PyObject* seen_texts[CACHE_PLACES]     # short strs decoded of late, owned; NULL: none

    # What a connection calls, which has the bytes in a buffer of its own: `allow` and then `write`
    # append one message, of which the writer's error leaves a part there; `read_whole` reads one.
    cdef void allow(self, Writer* w) noexcept
    cdef object read_whole(self, const unsigned char* data, Py_ssize_t size)

    cdef int write_envelope(self, Writer* w, Envelope envelope) except -1
    cdef Envelope read_envelope(self, const unsigned char* data, Py_ssize_t size)

    cdef int open(self, Writer* w) except -1
    cdef void close(self, Writer* w) noexcept
    cdef bytes finish(self, Writer* w)
    cdef int grow(self, Writer* w, Py_ssize_t n) except -1
    cdef int write(self, Writer* w, object value) except -1
    cdef int write_int(self, Writer* w, object value) except -1
    cdef int write_str(self, Writer* w, str value) except -1
    cdef int write_head(self, Writer* w, int kind, Py_ssize_t n) except -1
    cdef int enter(self, Writer* w, object value, Py_ssize_t n) except -1
    cdef int write_sequence(self, Writer* w, object value) except -1
    cdef int write_dict(self, Writer* w, dict value) except -1
    cdef int write_other(self, Writer* w, object value) except -1
    cdef int write_message(self, Writer* w, Plan plan, object value) except -1
    cdef bytes text_of(self, Pid pid)
    cdef int write_pid(self, Writer* w, Pid pid) except -1
    cdef int write_text(self, Writer* w, bytes text) except -1
    cdef int write_ext(self, Writer* w, int code, Py_ssize_t start) except -1
    cdef Plan plan_of_class(self, object cls)
    cdef Plan plan_of_name(self, Reader* r, const unsigned char* data, Py_ssize_t size)

    cdef void begin(self, Reader* r, const unsigned char* data, Py_ssize_t size) noexcept
    cdef object read(self, Reader* r)
    cdef object read_key(self, Reader* r)
    cdef str read_known_str(self, Reader* r, Py_ssize_t n)
    cdef list read_list(self, Reader* r, Py_ssize_t n)
    cdef dict read_map(self, Reader* r, Py_ssize_t n)
    cdef object read_ext(self, Reader* r, Py_ssize_t size)
    cdef object read_message(self, Reader* r)
    cdef object read_enum(self, Reader* r)
    cdef object read_correlation_id(self, Reader* r)
    cdef object read_pid(self, Reader* r, const unsigned char* data, Py_ssize_t size)
