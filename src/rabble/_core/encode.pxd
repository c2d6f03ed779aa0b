# The encoder: messages and envelopes to msgpack.

from rabble._core.envelope cimport Envelope
from rabble._core.ids cimport Pid
from rabble._core.plan cimport Plan
from rabble._core.writer cimport Writer

cdef class Encoder:
    cdef object registry        # of the classes that may be sent
    cdef dict plans_by_class    # complete ones, by `plan_key`; the registry's, which empties it
    cdef Py_ssize_t message_bytes_max   # of one message or envelope
    cdef int depth_max          # how deep containers may be nested
    cdef Py_ssize_t elements_max        # of all containers of one message together
    cdef unsigned char* spare   # the buffer between two encodings, or NULL
    cdef Py_ssize_t spare_capacity      # how large it is
    cdef list sent_pids         # encoded of late: place is the pid's hash
    cdef list sent_texts        # ... their encodings

    cdef bytes encode_message(self, object msg)
    cdef bytes encode_envelope(self, Envelope envelope)

    # What a connection calls, which has the bytes in a buffer of its own: `allow`, or the same with
    # a limit of its own, and then `write` append one message; an error leaves a part of it there.
    cdef void allow(self, Writer* w) noexcept
    cdef int grow(self, Writer* w, Py_ssize_t n) except -1
    cdef int write(self, Writer* w, object value) except -1
    cdef bytes text_of(self, Pid pid)

    cdef int open(self, Writer* w) except -1
    cdef void close(self, Writer* w) noexcept
    cdef bytes finish(self, Writer* w)
    cdef int write_envelope(self, Writer* w, Envelope envelope) except -1
    cdef int write_int(self, Writer* w, object value) except -1
    cdef int write_str(self, Writer* w, str value) except -1
    cdef int write_head(self, Writer* w, int kind, Py_ssize_t n) except -1
    cdef int enter(self, Writer* w, object value, Py_ssize_t n) except -1
    cdef int write_sequence(self, Writer* w, object value) except -1
    cdef int write_dict(self, Writer* w, dict value) except -1
    cdef int write_other(self, Writer* w, object value) except -1
    cdef int write_message(self, Writer* w, Plan plan, object value) except -1
    cdef int write_slot(self, Writer* w, Plan plan, object value, Py_ssize_t i) except -1
    cdef int write_pid(self, Writer* w, Pid pid) except -1
    cdef int write_text(self, Writer* w, bytes text) except -1
    cdef int write_ext(self, Writer* w, int code, Py_ssize_t start) except -1
    cdef Plan plan_of_class(self, object cls)
    cdef int complete(self, Plan plan) except -1
