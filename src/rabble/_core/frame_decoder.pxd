from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from rabble._core.contexts cimport Thread
from rabble._core.decoder cimport Decoder
from rabble._core.fragments cimport Fragments
from rabble._core.frame cimport Frame
from rabble._core.ids cimport CorrelationId, NodeId, Pid
from rabble._core.queue cimport EnvelopeQueue

cdef enum:
    # Kinds of `PeerEvent` besides those of frames.
    EVENT_UNDECODABLE = 101     # an envelope whose message this node's registry cannot build
    EVENT_REFUSED = 102         # an envelope to a reserved pid

cdef struct Head:
    # What an ENVELOPE has in front of its message. The references are borrowed; NULL is none.
    PyObject* to                # whom it is for
    PyObject* sender            # whom it is from; of what was passed on, who asked
    PyObject* asker             # the correlation id's pid ...
    uint64_t connection         # ... and its numbers: of the connection ...
    uint64_t request            # ... and of the request
    int flags                   # which of them it has
    int about_to                # `About` its receiver

cdef struct Cursor:
    # Where `read_batch` is.
    const unsigned char* at     # the next frame
    const unsigned char* end    # of the batch
    Frame frame                 # the one that is being read
    int flags                   # of the ENVELOPE whose message is being decoded ...
    const unsigned char* body   # ... and its body: in the frame, or put together of fragments
    size_t size                 # ... and how long that is
    PyObject* undecodable       # borrowed: why that message could not be built
    Thread* thread              # the executor's, which builds each in a clean context; or NULL

cdef enum About:
    # What is known of a pid that the peer sent.
    IS_OWN = 1                  # it lives on this node
    IS_PEER = 2                 # it lives on the peer
    IS_ELSEWHERE = 4            # ... or on neither
    IS_RESERVED = 8             # it is not to be reached from outside
    MAY_ASK = 16                # the peer may pass on what it asked

cdef class PeerEvent:
    """A frame that is no envelope for a process; the message of one for the executor."""
    cdef readonly object session                # the Session that read it
    cdef readonly int kind                      # FrameKind or EVENT_*
    cdef readonly Pid to                        # whom of this node it concerns, or None
    cdef readonly Pid about                     # whom of the peer it concerns, or None
    cdef readonly CorrelationId correlation_id  # UNDELIVERED, EVENT_*: the envelope's, or None
    cdef readonly int why                       # DOWN, EXIT, UNDELIVERED: as in the frame
    cdef readonly uint64_t reference            # of MONITOR to DOWN, LINK to EXIT: as in the frame
    cdef readonly uint64_t life                 # DOWN, EXIT: of the process that ended; 0: unknown
    cdef readonly uint64_t crash                # UNDELIVERED: its number in the log there; 0: none
    cdef readonly str detail                    # DOWN, EXIT, UNDELIVERED, ..UNDECODABLE: the reason
    cdef readonly uint32_t count                # LOST: how many envelopes

cdef class FrameDecoder:
    cdef PyObject* session                      # borrowed: the Session that owns this one
    cdef NodeId own                             # this node
    cdef NodeId peer                            # the one that writes
    cdef Pid executor                           # who gets what is no envelope
    cdef Decoder decoder                        # decodes messages, and pids in full
    cdef frozenset open_names                   # of reserved pids that the peer may reach
    cdef Py_ssize_t message_bytes_max           # a longer message ends the connection ...
    cdef Py_ssize_t frame_bytes_max             # ... and so does a longer frame

    cdef PyObject** cached_pids                 # the peer's pid cache, by slot; owned
    cdef unsigned char* cached_about            # `About` each
    cdef Fragments fragments                    # of the ENVELOPE that comes in parts, if one does
    cdef Pid full_to                            # keep alive what a Head in full refers to
    cdef Pid full_sender                        # ... as its sender
    cdef Pid full_asker                         # ... and in its correlation id
    cdef int version                            # of the protocol
    cdef bint is_decoding                       # `read_batch` runs
    cdef int failed                             # the code of the error that ended it, or 0

    # Decode whole frames and append what they become to `out`, as Envelopes. Frames of the control
    # lane are skipped. SessionError ends the connection; what was decoded before it stays in `out`.
    # `thread` is the executor's, whose context is cleared for each message; NULL leaves it alone.
    cdef int read_batch(
        self, const unsigned char* data, size_t size, EnvelopeQueue out, Thread* thread
    ) except -1

    cdef int read_frames(self, Cursor* c, EnvelopeQueue out) except -1
    cdef int read_envelope(
        self, Cursor* c, int flags, const unsigned char* body, size_t size, bytes payload,
        EnvelopeQueue out,
    ) except -1
    cdef int go_on_after(self, Cursor* c, object error, EnvelopeQueue out) except -1
    cdef int read_undecodable(self, Cursor* c, EnvelopeQueue out) except -1
    cdef int put_event(self, PeerEvent event, EnvelopeQueue out) except -1
    cdef int read_cache_pid(self, Frame* frame) except -1
    cdef int about(self, Pid pid) except -1
    cdef int read_fragment(self, Cursor* c, EnvelopeQueue out) except -1
    cdef int read_monitor(self, Frame* frame, EnvelopeQueue out) except -1
    cdef int read_down(self, Frame* frame, EnvelopeQueue out) except -1
    cdef int read_link(self, Frame* frame, EnvelopeQueue out) except -1
    cdef const unsigned char* read_pair(
        self, Frame* frame, PeerEvent event, bint to_first
    ) except NULL
    cdef int read_undelivered(self, Frame* frame, EnvelopeQueue out) except -1
    cdef Py_ssize_t read_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1
    cdef Py_ssize_t read_full_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1
    cdef Pid read_text(self, const unsigned char** at, const unsigned char* end, int wanted)
    cdef str read_detail(self, const unsigned char* p, const unsigned char* end)
