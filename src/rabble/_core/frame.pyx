"""Frames: what a connection's stream of bytes is cut into.

All that a stranger claims about a frame is checked, here and for the most usual one in the summary,
before anything waits for its body: the poll loop, which calls this without the GIL, keeps at most
one frame that is not complete, of a length that its kind allows. What the bodies say is the matter
of `frame_encoder` and `frame_decoder`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from rabble._core.byteorder cimport load_32
from rabble._core.ids cimport Pid

__all__ = ["FrameError", "split_frame"]


class FrameError(ValueError):
    """The bytes are no frame. Its `code` is that which the peer is told."""

    def __init__(self, code):
        super().__init__(f"no frame: code {code}")
        self.code = code


cdef bint may_be_forwarded(Pid asker) noexcept:
    return asker.group != "rabble" or asker.name == "calls"


cdef Py_ssize_t check_frame(
    const unsigned char* data, size_t size, size_t frame_bytes_max, Frame* out
) noexcept nogil:
    cdef size_t length, least, most
    cdef uint8_t kind, flags, allowed
    if size < 4:
        return 0
    length = load_32(data)
    if length < 2:
        return -CODE_PROTOCOL
    if length > frame_bytes_max:
        return -CODE_FRAME_TOO_LARGE
    if size < FRAME_HEADER:
        return 0
    kind = data[4]
    flags = data[5]
    length -= 2
    # Of each kind: the flags it has, and the least and the most bytes its body can take.
    allowed = 0
    most = length
    if kind == ENVELOPE:
        allowed = ENVELOPE_FLAGS
        least = least_head(flags) + 1
    elif kind == CACHE_PID:
        least = 2 + PID_TEXT_MIN
        most = 2 + PID_TEXT_MAX
    elif kind == FRAGMENT:
        allowed = FLAG_FIRST | FLAG_LAST
        least = 5 if flags & FLAG_FIRST else 1
    elif kind == MONITOR or kind == DEMONITOR:
        least = most = 4
    elif kind == DOWN:
        allowed = FLAG_FULL
        least = DOWN_TAIL + (2 * (2 + PID_TEXT_MIN) if flags & FLAG_FULL else 4)
        most = DOWN_TAIL + (2 * (2 + PID_TEXT_MAX) if flags & FLAG_FULL else 4) + DETAIL_MAX
    elif kind == UNDELIVERED:
        allowed = FLAG_CID | FLAG_CONNECTION | FLAG_REQUEST
        least = most = least_head(flags) + 1
    elif kind == LOST:
        allowed = FLAG_FULL
        least = most = 4
    elif kind == PING or kind == PONG:
        allowed = FLAG_IDLE
        least = most = 16
    elif kind == BYE:
        least = 2
        most = 2 + 255
    elif kind == MEMBERSHIP:
        least = 1
    elif kind == WINDOW_UPDATE:
        least = most = 8
    else:
        return -CODE_PROTOCOL
    if flags & ~allowed or length < least or length > most:
        return -CODE_PROTOCOL
    if (kind == ENVELOPE or kind == UNDELIVERED) and not flags_agree(flags):
        return -CODE_PROTOCOL
    if size - FRAME_HEADER < length:
        return 0
    out.kind = kind
    out.flags = flags
    out.body = data + FRAME_HEADER
    out.size = length
    return FRAME_HEADER + length


def split_frame(bytes data not None, size_t frame_bytes_max=1 << 20):
    """`next_frame` for tests: (kind, flags, body, length of the frame), or `None`: not complete.

    :raises FrameError: if the bytes are no frame, whatever may follow.
    """
    cdef Frame frame
    cdef Py_ssize_t n = next_frame(
        <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), frame_bytes_max,
        &frame,
    )
    if n < 0:
        raise FrameError(-n)
    if n == 0:
        return None
    body = PyBytes_FromStringAndSize(<const char*>frame.body, frame.size)
    return frame.kind, frame.flags, body, n
