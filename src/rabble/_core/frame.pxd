# A function here needs the GIL only if it is given a Pid or a text.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from rabble._core.byteorder cimport load_32, store_32
from rabble._core.ids cimport Pid

cdef enum FrameKind:
    # Data lane; ENVELOPE, DOWN and the three of links also bulk lane, FRAGMENT only that.
    CACHE_PID = 1       # a pid takes a slot of the peer's pid cache
    ENVELOPE = 2
    FRAGMENT = 3        # a part of an ENVELOPE
    MONITOR = 4
    DEMONITOR = 5
    DOWN = 6            # a monitored process has ended
    UNDELIVERED = 7     # an ENVELOPE became a dead letter, or a request is not answered
    LOST = 8            # envelopes were dropped because the queue was full
    LINK = 9            # since version 2, as the next two; a process links with one of the peer
    UNLINK = 10
    EXIT = 11           # a linked process has ended
    # Control lane.
    PING = 16
    PONG = 17
    BYE = 18
    MEMBERSHIP = 19
    WINDOW_UPDATE = 20  # how many bytes of the bulk lane were consumed

cdef enum:
    FRAME_HEADER = 6    # bytes: length (4), kind (1), flags (1)

cdef enum Flag:
    FLAG_SENDER = 1         # ENVELOPE
    FLAG_CID = 2            # ENVELOPE, UNDELIVERED; so are the next two
    FLAG_CONNECTION = 4
    FLAG_REQUEST = 8
    FLAG_FULL = 16          # texts of pids instead of indexes; LOST: bulk lane
    FLAG_FORWARDED = 32     # ENVELOPE: its sender passed on what the correlation id's pid asked
    FLAG_FIRST = 1          # FRAGMENT
    FLAG_LAST = 2
    FLAG_IDLE = 1           # PING, PONG
    ENVELOPE_FLAGS = 63     # all that an ENVELOPE may have

cdef enum Code:
    # Why a connection is refused or ended: the numbers of REFUSE and BYE, which stand here alone.
    CODE_VERSION = 1
    CODE_CLUSTER = 2
    CODE_AUTH = 3
    CODE_NAME_INVALID = 4
    CODE_NAME_MISMATCH = 5
    CODE_NAME_CONFLICT = 6
    CODE_SELF = 7
    CODE_STALE_INCARNATION = 8
    CODE_REMOVED = 9
    CODE_DUPLICATE = 10
    CODE_BUSY = 11
    CODE_STATE = 12
    CODE_FRAME_TOO_LARGE = 13
    CODE_DECODE = 14
    CODE_DECODE_LIMIT = 15
    CODE_PROTOCOL = 16
    CODE_SPOOF = 17
    CODE_TIMEOUT = 18
    CODE_LIMIT = 19
    CODE_SHUTDOWN = 20
    CODE_INTEGRITY = 21
    CODE_BANNED = 22
    CODE_NOT_JOINED = 23

cdef enum:
    VERSION_MIN = 1         # of the protocol, that this node knows
    VERSION_MAX = 2
    VERSION_OF_LINKS = 2    # from which on there are links

cdef enum:
    PID_TEXT_MIN = 8        # bytes: n::n@h:1
    PID_TEXT_MAX = 1025     # four parts of 255, "::" twice and "@"
    REFERENCE_BYTES = 8     # which MONITOR a DEMONITOR or DOWN is about, which LINK an EXIT
    # Bytes of a DOWN between its pids and its text: the reference, why, and the life.
    DOWN_TAIL = REFERENCE_BYTES + 1 + 8
    UNDELIVERED_TAIL = 1 + 8 + 2    # ... of an UNDELIVERED: why, the crash, and a text's length
    DETAIL_MAX = 1000       # bytes of text that a DOWN or an UNDELIVERED may have
    BYE_TEXT_MAX = 255         # ... and of a BYE's text
    HEAD_MAX = 3 * (2 + PID_TEXT_MAX) + 16      # bytes in front of an ENVELOPE's message
    PID_CACHE_SLOTS = 8192      # of the pid cache, in each direction

# Whether another node than its own may pass on what this one asked: see "Forwarding" in the
# protocol. Of the pids of the runtime that is the one of threads that call.
cdef bint may_be_forwarded(Pid asker) noexcept

# A text as DOWN, UNDELIVERED and BYE carry it: in normal form C, cut to `most` bytes.
cdef bytes text_of_frame(str text, Py_ssize_t most)

cdef struct Frame:
    uint8_t kind
    uint8_t flags
    const unsigned char* body
    size_t size             # of the body

# The slow path of `next_frame`, for all but plain ENVELOPEs.
cdef Py_ssize_t check_frame(
    const unsigned char* data, size_t size, size_t frame_bytes_max, Frame* out
) noexcept nogil

cdef inline void store_header(
    unsigned char* p, size_t frame_size, uint8_t kind, uint8_t flags
) noexcept nogil:
    """The header of a frame of `frame_size` bytes, header included."""
    store_32(p, <uint32_t>(frame_size - 4))
    p[4] = kind
    p[5] = flags

cdef inline Py_ssize_t numbers_size(int flags) noexcept nogil:
    """How many bytes the numbers of a correlation id take."""
    return (8 if flags & FLAG_CONNECTION else 0) + (8 if flags & FLAG_REQUEST else 0)

cdef inline size_t least_head(uint8_t flags) noexcept nogil:
    """The least bytes in front of an ENVELOPE's message; with indexes, exactly so many."""
    cdef size_t pid = 2 + PID_TEXT_MIN if flags & FLAG_FULL else 2
    return (
        pid
        + (pid if flags & FLAG_SENDER else 0)
        + (pid if flags & FLAG_CID else 0)
        + numbers_size(flags)
    )

cdef inline bint flags_agree(uint8_t flags) noexcept nogil:
    """Whether the flags fit: numbers need a correlation id; FORWARDED needs that and a sender."""
    if flags & FLAG_FORWARDED and not flags & FLAG_SENDER:
        return False
    return flags & FLAG_CID or not flags & (FLAG_CONNECTION | FLAG_REQUEST | FLAG_FORWARDED)

cdef inline Py_ssize_t next_frame(
    const unsigned char* data, size_t size, size_t frame_bytes_max, Frame* out
) noexcept nogil:
    """Cut the first frame off `data`.

    Returns > 0: the length of that frame, header included, and `out` is filled; 0: it is not
    complete; < 0: minus the code why this is none. The length is checked as soon as its bytes are
    there, kind, flags and the size that they allow as soon as theirs are.
    """
    cdef size_t length
    # Nearly all are an ENVELOPE between two cached pids, or to one: each is asked for twice, here
    # within the caller.
    if size >= FRAME_HEADER and data[4] == ENVELOPE and data[5] <= FLAG_SENDER:
        length = load_32(data)
        if 5 + 2 * <size_t>data[5] <= length <= min(frame_bytes_max, size - 4):
            out.kind = ENVELOPE
            out.flags = data[5]
            out.body = data + FRAME_HEADER
            out.size = length - 2
            return 4 + <Py_ssize_t>length
    return check_frame(data, size, frame_bytes_max, out)
