from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from rabble._core.frame cimport Frame

cdef class UnfinishedMessages:
    # What the messages of several sessions that come in parts have taken so far, and may.
    cdef readonly Py_ssize_t bytes      # of all parts that came
    cdef readonly Py_ssize_t bytes_max  # ... and how many these may be
    cdef Fragments* first               # those that have some

cdef struct Fragments:
    # Zeros are none. All sizes are of what one ENVELOPE has, which begins with its flags.
    unsigned char* head         # what came, but for the payload; NULL: none comes in parts
    Py_ssize_t head_size        # ... how many bytes ...
    Py_ssize_t head_capacity    # ... and room for how many there is
    PyObject* payload           # its message, owned, if that is nothing but bytes; or NULL
    Py_ssize_t payload_size     # ... bytes of it that came
    Py_ssize_t payload_claimed  # ... and that shall come
    Py_ssize_t claimed          # bytes that shall come in all
    PyObject* unfinished        # owned: the `UnfinishedMessages` that counts them; NULL: none
    Fragments* next             # of the same
    Fragments* previous
    Py_ssize_t counted          # bytes that are counted there
    int64_t part_ns             # when the last part came; 0: none comes in parts
    bint is_read                # the whole is being read: it stays
    bint is_evicted             # another message took its place: the next part ends the connection

# Add a FRAGMENT. Returns whether it is the last one: then all that was announced is there, for its
# caller to read and `drop_fragments`. Raises SessionError if the parts do not fit together, or
# announce a message of more than `message_bytes_max`; and if the messages that are counted together
# have more bytes than they may, unless another one has more than this one: that is dropped.
cdef bint add_fragment(
    Fragments* fragments, const Frame* frame, Py_ssize_t message_bytes_max
) except -1

# Empty it and give its memory back.
cdef void drop_fragments(Fragments* fragments) noexcept
