from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport Pid
from rabble._core.plan cimport CodecBounds, Plan

cdef class Encoder(CodecBounds):
    cdef dict plans_by_class    # complete ones, by `plan_key`; the registry's, which empties it
    cdef unsigned char* spare   # the buffer between two encodings, or NULL
    cdef Py_ssize_t spare_capacity      # how large it is
    cdef list sent_pids         # encoded of late: place is the pid's hash
    cdef list sent_texts        # ... their encodings

    cdef bytes encode_message(self, object msg)
    cdef bytes encode_envelope(self, Envelope envelope)

    # What a connection calls, which has the bytes in a buffer of its own: `allow`, or the same with
    # a limit of its own, and then `write` append one message; an error leaves a part of it there.
    cdef void allow(self, BufferWriter* w) noexcept
    cdef int grow(self, BufferWriter* w, Py_ssize_t n) except -1
    cdef int write(self, BufferWriter* w, object value) except -1
    cdef bytes text_of(self, Pid pid)

    cdef int open(self, BufferWriter* w) except -1
    cdef void close(self, BufferWriter* w) noexcept
    cdef bytes finish(self, BufferWriter* w)
    cdef int write_envelope(self, BufferWriter* w, Envelope envelope) except -1
    cdef int write_int(self, BufferWriter* w, object value) except -1
    cdef int write_str(self, BufferWriter* w, str value) except -1
    cdef int write_head(self, BufferWriter* w, int kind, Py_ssize_t n) except -1
    cdef int enter(self, BufferWriter* w, object value, Py_ssize_t n) except -1
    cdef int write_list(self, BufferWriter* w, list value) except -1
    cdef int write_dict(self, BufferWriter* w, dict value) except -1
    cdef int write_key(self, BufferWriter* w, object key) except -1
    # What msgpack has no type for: see values.pxd.
    cdef int spend(self, BufferWriter* w, Py_ssize_t cost) except -1
    cdef int write_large(self, BufferWriter* w, object value) except -1
    cdef int write_tuple(self, BufferWriter* w, int code, object value, tuple items) except -1
    cdef int write_set(self, BufferWriter* w, int code, object value) except -1
    cdef int write_moment(self, BufferWriter* w, int code, object value) except -1
    cdef int write_value(self, BufferWriter* w, int code, object value) except -1
    cdef int write_body(self, BufferWriter* w, int code, object value) except -1
    cdef int write_numbers(self, BufferWriter* w, tuple numbers, str what) except -1
    cdef int write_zone(self, BufferWriter* w, object zone) except -1
    cdef int write_other(self, BufferWriter* w, object value) except -1
    cdef int write_message(self, BufferWriter* w, Plan plan, object value) except -1
    cdef int write_type(self, BufferWriter* w, Plan plan, object value) except -1
    cdef int write_slot(self, BufferWriter* w, Plan plan, object value, Py_ssize_t i) except -1
    cdef int write_pid(self, BufferWriter* w, Pid pid) except -1
    cdef int write_text(self, BufferWriter* w, bytes text) except -1
    cdef int write_ext(self, BufferWriter* w, int code, Py_ssize_t start) except -1
    cdef Plan plan_of_class(self, object cls)
    cdef int complete(self, Plan plan) except -1
