"""The gather writer: frames of the bulk lane, whose bytes may stay in the messages.

What is long goes by this lane, cut into fragments, and so does what must not overtake it. A message
that is nothing but bytes is not copied: its frames refer to it, and the last of them owns it.
"""

from cpython.mem cimport PyMem_RawFree
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from rabble._core.byteorder cimport store_32
from rabble._core.frame cimport (
    ENVELOPE, FLAG_FIRST, FLAG_LAST, FRAGMENT, FRAME_HEADER, store_header,
)

__all__ = []


cdef int reserve_frame(GatherWriter* gather, Encoder encoder, size_t own_size) except -1:
    make_room(encoder, &gather.own, own_size)
    return make_room(encoder, &gather.frames, sizeof(GatherFrame))


cdef GatherFrame* add_frame(
    GatherWriter* gather, Encoder encoder, size_t own_size, size_t rest_size
) except NULL:
    cdef GatherFrame* frame
    reserve_frame(gather, encoder, own_size)
    frame = <GatherFrame*>(gather.frames.data + gather.frames.size)
    frame.own_size = own_size
    frame.rest_size = rest_size
    frame.rest = NULL
    frame.message = NULL
    gather.frames.size += sizeof(GatherFrame)
    gather.own.size += own_size
    gather.size += own_size + rest_size
    return frame


cdef Py_ssize_t reserve_envelope(
    GatherWriter* gather, Encoder encoder, Py_ssize_t head_size, Py_ssize_t source_size, bint stays,
    Py_ssize_t fragment_bytes,
) except -1:
    cdef Py_ssize_t whole = head_size + source_size
    cdef Py_ssize_t frames = 1
    cdef Py_ssize_t extra = FRAME_HEADER - 1
    if fragment_bytes:
        frames = 1 + (whole - 1) // fragment_bytes
        extra = 4 + frames * FRAME_HEADER
    make_room(encoder, &gather.own, extra + (head_size if stays else whole))
    make_room(encoder, &gather.frames, frames * sizeof(GatherFrame))
    return whole + extra


cdef int put_envelope(
    GatherWriter* gather, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size,
) except -1:
    """Put an envelope there as one frame. The first byte of its head is the frame's flags."""
    cdef GatherFrame* frame = add_frame(
        gather, encoder, FRAME_HEADER - 1 + head_size + source_size, 0
    )
    cdef unsigned char* p = gather.own.data + gather.own.size - frame.own_size
    memcpy(p + FRAME_HEADER - 1, head, head_size)
    memcpy(p + FRAME_HEADER - 1 + head_size, source, source_size)
    store_header(p, frame.own_size, ENVELOPE, head[0])
    return 0


cdef int put_fragments(
    GatherWriter* gather, Encoder encoder, const unsigned char* head, Py_ssize_t head_size,
    const unsigned char* source, Py_ssize_t source_size, bytes message, Py_ssize_t fragment_bytes,
) except -1:
    """Put an envelope there, cut into frames; without a copy if `message` is what `source` is of.

    The first part has the head in it, or of it what has room.
    """
    cdef const unsigned char* end = source + source_size
    cdef GatherFrame* frame = NULL
    cdef unsigned char* p
    cdef Py_ssize_t extra, part, begun
    cdef Py_ssize_t n = 0       # how much of the head is gone
    cdef int flags = FLAG_FIRST
    while not flags & FLAG_LAST:
        part = min(fragment_bytes, head_size - n + (end - source))
        if part == head_size - n + (end - source):
            flags |= FLAG_LAST
        begun = min(part, head_size - n)
        extra = FRAME_HEADER + (4 if flags & FLAG_FIRST else 0)
        if message is None:
            frame = add_frame(gather, encoder, extra + part, 0)
        else:
            frame = add_frame(gather, encoder, extra + begun, part - begun)
        p = gather.own.data + gather.own.size - frame.own_size
        store_header(p, extra + part, FRAGMENT, <unsigned char>flags)
        if flags & FLAG_FIRST:
            store_32(p + FRAME_HEADER, <uint32_t>(head_size + source_size))
        memcpy(p + extra, head + n, begun)
        if message is None:
            memcpy(p + extra + begun, source, part - begun)
        else:
            frame.rest = source
        n += begun
        source += part - begun
        flags &= ~FLAG_FIRST
    if message is not None:
        Py_INCREF(message)
        frame.message = <PyObject*>message
    return 0


cdef void forget_frames(GatherWriter* gather) noexcept:
    cdef GatherFrame* frame = <GatherFrame*>gather.frames.data
    cdef GatherFrame* end = <GatherFrame*>(gather.frames.data + gather.frames.size)
    while frame != end:
        Py_XDECREF(frame.message)
        frame += 1
    gather.own.size = gather.frames.size = 0
    gather.size = 0


cdef void free_gather(GatherWriter* gather) noexcept:
    forget_frames(gather)
    PyMem_RawFree(gather.own.data)
    PyMem_RawFree(gather.frames.data)
