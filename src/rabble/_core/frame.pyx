"""Frames: what a connection's stream of bytes is cut into.

All that a stranger claims about a frame is checked, here and for the most usual one in the summary,
before anything waits for its body: the poll loop, which calls this without the GIL, keeps at most
one frame that is not complete, of a length that its kind allows. What the bodies say is the matter
of `frame_encoder` and `frame_decoder`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from rabble._core.byteorder cimport load_32
from rabble._core.ids cimport Pid, is_reserved

import unicodedata

from rabble._core.errors import FrameError

__all__ = ["FRAME_KINDS", "PROTOCOL_VERSIONS", "REFUSAL_CODES", "split_frame"]

#: The kinds of frames, by name: for Python, which has no numbers of its own.
FRAME_KINDS = {
    "CACHE_PID": CACHE_PID,
    "ENVELOPE": ENVELOPE,
    "FRAGMENT": FRAGMENT,
    "MONITOR": MONITOR,
    "DEMONITOR": DEMONITOR,
    "DOWN": DOWN,
    "UNDELIVERED": UNDELIVERED,
    "LOST": LOST,
    "LINK": LINK,
    "UNLINK": UNLINK,
    "EXIT": EXIT,
    "PING": PING,
    "PONG": PONG,
    "BYE": BYE,
    "MEMBERSHIP": MEMBERSHIP,
    "WINDOW_UPDATE": WINDOW_UPDATE,
}

#: The lowest and the highest version of the protocol that this node knows.
PROTOCOL_VERSIONS = (VERSION_MIN, VERSION_MAX)

#: The codes of REFUSE and BYE, by name. `rabble.cluster.decide.refusal` says what they mean.
REFUSAL_CODES = {
    "VERSION": CODE_VERSION,
    "CLUSTER": CODE_CLUSTER,
    "AUTH": CODE_AUTH,
    "NAME_INVALID": CODE_NAME_INVALID,
    "NAME_MISMATCH": CODE_NAME_MISMATCH,
    "NAME_CONFLICT": CODE_NAME_CONFLICT,
    "SELF": CODE_SELF,
    "STALE_INCARNATION": CODE_STALE_INCARNATION,
    "REMOVED": CODE_REMOVED,
    "DUPLICATE": CODE_DUPLICATE,
    "BUSY": CODE_BUSY,
    "STATE": CODE_STATE,
    "FRAME_TOO_LARGE": CODE_FRAME_TOO_LARGE,
    "DECODE": CODE_DECODE,
    "DECODE_LIMIT": CODE_DECODE_LIMIT,
    "PROTOCOL": CODE_PROTOCOL,
    "SPOOF": CODE_SPOOF,
    "TIMEOUT": CODE_TIMEOUT,
    "LIMIT": CODE_LIMIT,
    "SHUTDOWN": CODE_SHUTDOWN,
    "INTEGRITY": CODE_INTEGRITY,
    "BANNED": CODE_BANNED,
    "NOT_JOINED": CODE_NOT_JOINED,
}


cdef bint may_be_forwarded(Pid asker) noexcept:
    return not is_reserved(asker) or asker.name == "calls"


cdef bytes text_of_frame(str text, Py_ssize_t most):
    if not text:
        return b""
    # A character takes a byte at least, so most of a huge text need not be looked at.
    encoded = unicodedata.normalize("NFC", text[:2 * most]).encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded
    return encoded[:most].decode("utf-8", "ignore").encode()


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
        least = most = 4 + REFERENCE_BYTES
    elif kind == LINK or kind == UNLINK:
        allowed = FLAG_FULL
        least = REFERENCE_BYTES + (2 * (2 + PID_TEXT_MIN) if flags & FLAG_FULL else 4)
        most = REFERENCE_BYTES + (2 * (2 + PID_TEXT_MAX) if flags & FLAG_FULL else 4)
    elif kind == DOWN or kind == EXIT:
        allowed = FLAG_FULL
        least = DOWN_TAIL + (2 * (2 + PID_TEXT_MIN) if flags & FLAG_FULL else 4)
        most = DOWN_TAIL + (2 * (2 + PID_TEXT_MAX) if flags & FLAG_FULL else 4) + DETAIL_MAX
    elif kind == UNDELIVERED:
        allowed = FLAG_CID | FLAG_CONNECTION | FLAG_REQUEST
        least = least_head(flags) + UNDELIVERED_TAIL
        most = least + PID_TEXT_MAX + DETAIL_MAX
    elif kind == LOST:
        allowed = FLAG_FULL
        least = most = 4
    elif kind == PING or kind == PONG:
        allowed = FLAG_IDLE
        least = most = 16
    elif kind == BYE:
        least = 2
        most = 2 + BYE_TEXT_MAX
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
    if kind == BYE and length != 2 + <size_t>data[FRAME_HEADER + 1]:
        return -CODE_PROTOCOL
    out.kind = kind
    out.flags = flags
    out.body = data + FRAME_HEADER
    out.size = length
    return FRAME_HEADER + length


def split_frame(bytes data not None, size_t frame_bytes_max=1 << 20):
    """`next_frame` for tests. From any thread.

    :param data: the beginning of what a peer sent.
    :param frame_bytes_max: bytes of the longest frame, without its length field.
    :returns: kind, flags and body of the first frame, and how long that is with its header; `None`
        if it is not complete.
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
