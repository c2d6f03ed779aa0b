from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.encoder cimport Encoder

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef struct GatherFrame:
    # A frame of the bulk lane: bytes of the lane's own buffer, and behind them bytes that stay
    # where they are, in a message. So a large one is not copied before the kernel does it.
    size_t own_size             # bytes in the lane's buffer ...
    size_t rest_size            # ... and how many stay elsewhere:
    const unsigned char* rest   # here; NULL: none do
    PyObject* message           # owned, by the last of its frames; NULL: none

cdef struct GatherWriter:
    # Zeros are an empty one. The buffers are of PyMem_RawMalloc, so that the poller may swap them.
    BufferWriter own            # what is its own of the frames ...
    BufferWriter frames         # ... and the frames, `GatherFrame` each
    size_t size                 # bytes of these frames, those of messages included
    volatile size_t unsent      # bytes taken over that the peer has not consumed; the poller's word
    uint64_t written            # bytes ever put there; who puts them counts them

cdef inline int make_room(Encoder encoder, BufferWriter* w, Py_ssize_t n) except -1:
    # Only messages are bounded; how much may wait in a lane is the poll loop's to say.
    w.limit = PY_SSIZE_T_MAX
    return encoder.grow(w, n)

cdef inline uint64_t gathered_sent(const GatherWriter* gather) noexcept:
    """How many of the bytes ever put there the peer has consumed."""
    return gather.written - gather.size - gather.unsent

# Take the memory that a frame of `own_size` bytes needs, so that to add it cannot fail.
cdef int reserve_frame(GatherWriter* gather, Encoder encoder, size_t own_size) except -1

# Add a frame, and so many bytes of its own that are to be filled in.
cdef GatherFrame* add_frame(
    GatherWriter* gather, Encoder encoder, size_t own_size, size_t rest_size
) except NULL

# Take all the memory that an encoded envelope needs, so that it is there in whole or not at all.
# Returns how many bytes its frames have; they then are put there by one of the two below it.
# `fragment_bytes` is 0 if it is one frame, `stays` whether the `source` is not copied.
cdef Py_ssize_t reserve_envelope(
    GatherWriter* gather, Encoder encoder, Py_ssize_t head_size, Py_ssize_t source_size, bint stays,
    Py_ssize_t fragment_bytes,
) except -1
cdef int put_envelope(
    GatherWriter* gather, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size,
) except -1
cdef int put_fragments(
    GatherWriter* gather, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size, bytes message, Py_ssize_t fragment_bytes,
) except -1

# Empty it; `free_gather` gives its memory back, too.
cdef void forget_frames(GatherWriter* gather) noexcept
cdef void free_gather(GatherWriter* gather) noexcept
