# The bulk lane as it is written: whole frames, whose bytes may stay in the messages.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.encode cimport Encoder
from rabble._core.writer cimport Writer

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef struct BulkFrame:
    # A frame of the bulk lane: bytes of the lane's own buffer, and behind them bytes that stay
    # where they are, in a message. So a large one is not copied before the kernel does it.
    size_t own_size             # bytes in the lane's buffer ...
    size_t rest_size            # ... and how many stay elsewhere:
    const unsigned char* rest   # here; NULL: none do
    PyObject* message           # owned, by the last of its frames; NULL: none

cdef struct BulkWriter:
    # Zeros are an empty one. The buffers are of PyMem_RawMalloc, so that the poller may swap them.
    Writer own                  # what is its own of the frames ...
    Writer frames               # ... and the frames, `BulkFrame` each
    size_t size                 # bytes of these frames, those of messages included
    volatile size_t unsent      # bytes taken over that the peer did not take; the poller's word
    uint64_t said               # bytes ever put there; who puts them counts them

cdef inline int make_room(Encoder encoder, Writer* w, Py_ssize_t n) except -1:
    # Only messages are bounded; how much may wait in a lane is the poll loop's to say.
    w.limit = PY_SSIZE_T_MAX
    return encoder.grow(w, n)

cdef inline uint64_t bulk_sent(const BulkWriter* bulk) noexcept:
    """How many of the bytes ever put there the peer has taken."""
    return bulk.said - bulk.size - bulk.unsent

# Take the memory that a frame of `own_size` bytes needs, so that to add it cannot fail.
cdef int reserve_frame(BulkWriter* bulk, Encoder encoder, size_t own_size) except -1

# Add a frame, and so many bytes of its own that are to be filled in.
cdef BulkFrame* add_frame(
    BulkWriter* bulk, Encoder encoder, size_t own_size, size_t rest_size
) except NULL

# Take all the memory that an encoded envelope needs, so that it is there in whole or not at all.
# Returns how many bytes its frames have; they then are put there by one of the two below it.
# `fragment_bytes` is 0 if it is one frame, `stays` whether the `source` is not copied.
cdef Py_ssize_t reserve_envelope(
    BulkWriter* bulk, Encoder encoder, Py_ssize_t head_size, Py_ssize_t source_size, bint stays,
    Py_ssize_t fragment_bytes,
) except -1
cdef int put_envelope(
    BulkWriter* bulk, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size,
) except -1
cdef int put_fragments(
    BulkWriter* bulk, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size, bytes message, Py_ssize_t fragment_bytes,
) except -1

# Empty it; `free_bulk` gives its memory back, too.
cdef void forget_frames(BulkWriter* bulk) noexcept
cdef void free_bulk(BulkWriter* bulk) noexcept
