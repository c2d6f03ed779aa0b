# One connection's encoder and decoder: what two nodes say to each other, as frames and as objects.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from rabble._core.codec cimport Codec
from rabble._core.envelope cimport Envelope
from rabble._core.frame cimport Frame
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.writer cimport Writer

cdef enum:
    # Kinds of `Heard` besides those of frames.
    HEARD_UNDECODABLE = 101     # an envelope whose message this node's registry cannot build
    HEARD_REFUSED = 102         # an envelope to a reserved pid

cdef enum:
    PLACES = 8192               # of the table of names, in each direction
    HEAD_MAX = 3 * 1027 + 16    # bytes in front of an ENVELOPE's message

cdef struct Head:
    # What an ENVELOPE says in front of its message. The references are borrowed; NULL is none.
    PyObject* to
    PyObject* sender
    PyObject* asker             # the correlation id's pid
    uint64_t connection
    uint64_t request
    int flags                   # which of them it has
    int about_to                # `About` its receiver

cdef struct Cursor:
    # Where `hear` is.
    const unsigned char* at
    const unsigned char* end
    Frame frame                 # the one that is being heard
    int flags                   # of the ENVELOPE whose message is being decoded ...
    const unsigned char* body   # ... and its body: in the frame, or put together of fragments
    size_t size

cdef enum About:
    # What is known of a pid that the peer named.
    IS_OWN = 1                  # it lives on this node
    IS_PEER = 2                 # it lives on the node that speaks
    IS_ELSEWHERE = 4            # ... or on neither
    IS_RESERVED = 8             # it is not to be reached from outside

cdef struct Place:
    # A place of the sending table. Two of them, side by side, are where a pid can stand.
    PyObject* pid               # owned; NULL: never used
    bint is_own                 # whether it lives on the node that speaks ...
    bint is_peer                # ... or on the one that is spoken to

cdef struct BulkFrame:
    # A frame of the bulk lane: bytes of the lane's own buffer, and behind them bytes that stay
    # where they are, in a message. So a large one is not copied before the kernel does it.
    size_t own_size
    size_t rest_size
    const unsigned char* rest
    PyObject* message           # owned, by the last of its frames; NULL: none

cdef class Heard:
    """What a peer said that is no envelope for a process; the message of one for the executor."""
    cdef readonly Link link
    cdef readonly int kind                      # FrameKind or HEARD_*
    cdef readonly Pid to                        # whom of this node it concerns, or None
    cdef readonly Pid about                     # whom of the peer it concerns, or None
    cdef readonly CorrelationId correlation_id
    cdef readonly int why                       # DOWN, UNDELIVERED: as in the frame
    cdef readonly str detail
    cdef readonly uint32_t count                # LOST

cdef class Link:
    cdef readonly NodeId own
    cdef readonly NodeId peer
    cdef readonly uint64_t incarnation          # of the peer
    cdef readonly Codec codec
    cdef Pid executor                           # who gets what is no envelope
    cdef object open_names                      # frozenset of reserved names that peers may reach
    cdef readonly Py_ssize_t fragment_bytes
    cdef readonly Py_ssize_t message_bytes_max
    cdef readonly Py_ssize_t frame_bytes_max

    # Speaking: whole frames that the poller has not taken yet. The poller may take them (swap the
    # buffer, which is of PyMem_RawMalloc, or take the bytes and set `size` to 0) while it holds the
    # GIL in the executor's thread, and never while a `say_` runs, which may call Python code.
    cdef Writer data                            # the data lane
    cdef Writer bulk                            # the bulk lane: what is its own of its frames ...
    cdef Writer bulk_frames                     # ... and the frames, `BulkFrame` each
    cdef size_t bulk_size                       # bytes of these frames, those of messages included
    cdef volatile size_t bulk_unsent            # its bytes not taken by the peer; the poller's word
    cdef dict bulk_pairs                        # (sender, to) to where its last frame ends there
    cdef Py_ssize_t bulk_pairs_max              # how many are kept before they are looked through
    cdef uint32_t bulk_refused                  # envelopes that would have gone there ...
    cdef set refused_pairs                      # ... and whose
    cdef uint64_t bulk_said                     # bytes ever put there
    cdef Place* said                            # the table of names that the peer was told
    cdef unsigned char* latest                  # of each two places: which was used last
    cdef size_t sets_mask                       # how many pairs of places are used, less 1
    cdef bint is_speaking                       # a `say_` runs

    # Hearing.
    cdef PyObject** heard                       # the table of names that the peer told, owned
    cdef unsigned char* heard_about             # `About` each
    cdef unsigned char* whole                   # the ENVELOPE of which fragments come; NULL: none
    cdef Py_ssize_t whole_size                  # ... bytes that came
    cdef Py_ssize_t whole_capacity
    cdef Py_ssize_t whole_claimed               # ... bytes that shall come
    cdef PyObject* payload                      # bytes, owned: its message if that is such; or NULL
    cdef Py_ssize_t payload_size                # ... bytes of it that came
    cdef Py_ssize_t payload_claimed
    cdef Pid full_to                            # keep alive what a Head in full refers to
    cdef Pid full_sender
    cdef Pid full_asker
    cdef bint is_hearing
    cdef int failed                             # the code of the error that ended it, or 0

    # What is said is appended to a lane. On an EncodeError nothing of it is.
    cdef int say_envelope(self, Envelope envelope) except -1
    cdef int say_monitor(self, Pid watcher, Pid watched) except -1
    cdef int say_demonitor(self, Pid watcher, Pid watched) except -1
    cdef int say_down(self, Pid watcher, Pid watched, int why, str detail) except -1
    cdef int say_undelivered(self, Pid to, CorrelationId correlation_id, int why) except -1
    cdef int say_lost(self, uint32_t count) except -1
    # Note that an envelope was refused instead of said; `say_lost` is to tell of it.
    cdef int note_refused(self, Envelope envelope) except -1
    cdef int say_taken(self, uint64_t taken) except -1

    # Decode whole frames and append what they say to `out`, as Envelopes. Frames of the control
    # lane are skipped. LinkError ends the connection; what was decoded before it stays in `out`.
    cdef int hear(
        self, const unsigned char* data, size_t size, EnvelopeQueue out
    ) except -1

    cdef Py_ssize_t say_message(self, object msg, Py_ssize_t start) except -1
    cdef int say_in_full(self, Envelope envelope) except -1
    cdef bint is_large_bytes(self, object msg) noexcept
    cdef int say_bytes(self, Envelope envelope, bytes msg) except -1
    cdef int put_in_bulk(
        self,
        Envelope envelope,
        const unsigned char* begin,
        Py_ssize_t begin_size,
        const unsigned char* source,
        Py_ssize_t source_size,
        bytes message,
    ) except -1
    cdef BulkFrame* add_frame(self, size_t own_size, size_t rest_size) except NULL
    cdef void forget_frames(self) noexcept
    cdef int move_to_bulk(
        self, Envelope envelope, Py_ssize_t start, Py_ssize_t message
    ) except -1
    cdef bint is_in_bulk(self, Pid sender, Pid to) except -1
    cdef int goes_to_bulk(self, Pid sender, Pid to, Py_ssize_t size) except -1
    cdef int say_watch(self, int kind, Pid watcher, Pid watched) except -1
    cdef Py_ssize_t place_of(self, Pid pid, Py_ssize_t kept) except -1
    cdef Py_ssize_t place_anew(self, Pid pid, Py_ssize_t kept) except -1
    cdef int reserve(self, Writer* w, Py_ssize_t n) except -1
    cdef void cut_back(self, Py_ssize_t size) noexcept
    cdef Py_ssize_t write_head(self, unsigned char* p, Envelope envelope) except -1

    cdef int hear_frames(self, Cursor* c, EnvelopeQueue out) except -1
    cdef int hear_envelope(
        self, Cursor* c, int flags, const unsigned char* body, size_t size, bytes payload,
        EnvelopeQueue out,
    ) except -1
    cdef int hear_undecodable(self, Cursor* c, object error, EnvelopeQueue out) except -1
    cdef int tell(self, Heard heard, EnvelopeQueue out) except -1
    cdef int hear_name(self, Frame* frame) except -1
    cdef int about(self, Pid pid) except -1
    cdef int hear_fragment(self, Cursor* c, EnvelopeQueue out) except -1
    cdef int begin_payload(self, const unsigned char* body, Py_ssize_t size) except -1
    cdef int keep_fragment(self, const unsigned char* data, Py_ssize_t size) except -1
    cdef int keep_payload(self, const unsigned char* data, Py_ssize_t size) except -1
    cdef void drop_whole(self) noexcept
    cdef int hear_watch(self, Frame* frame, EnvelopeQueue out) except -1
    cdef int hear_down(self, Frame* frame, EnvelopeQueue out) except -1
    cdef int hear_undelivered(self, Frame* frame, EnvelopeQueue out) except -1
    cdef Py_ssize_t read_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1
    cdef Py_ssize_t read_full_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1
    cdef Pid read_text(self, const unsigned char** at, const unsigned char* end, int wanted)
