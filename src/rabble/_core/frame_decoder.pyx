"""The frame decoder: frames of a peer to envelopes and events, one batch at a time.

Pids come as slots of the pid cache, so to find what a slot means is to read an array. A byte beside
each slot tells what its pid may be used for: no string is compared for an envelope.

What comes from the peer is checked as a stranger's is, and whatever it sends, what is put together
for it is bounded: see `fragments`.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

from rabble._core.buffer_reader cimport BufferReader, decode_utf8
from rabble._core.byteorder cimport load_16, load_32, load_64
from rabble._core.contexts cimport Thread, clear_context
from rabble._core.decoder cimport Decoder, parse_pid, quiet_parser
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.failure cimport PyErr_GivenExceptionMatches, owned, take_failure
from rabble._core.fragments cimport (
    Fragments, UnfinishedMessages, add_fragment, drop_fragments,
)
from rabble._core.frame cimport (
    CACHE_PID, CODE_DECODE, CODE_DECODE_LIMIT, CODE_LIMIT, CODE_PROTOCOL, CODE_SPOOF, DETAIL_MAX,
    DOWN, DOWN_TAIL, ENVELOPE, EXIT, FLAG_CID, FLAG_CONNECTION, FLAG_FORWARDED, FLAG_FULL,
    FLAG_REQUEST, FLAG_SENDER, FRAGMENT, FRAME_HEADER, LINK, LOST, PID_CACHE_SLOTS, PING,
    REFERENCE_BYTES, UNDELIVERED, UNDELIVERED_TAIL, UNLINK, VERSION_OF_LINKS, Frame,
    may_be_forwarded, next_frame, numbers_size,
)
from rabble._core.ids cimport CorrelationId, NodeId, Pid, is_reserved, same_node
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.texts cimport bounded_str, must_pass, type_name

from rabble._core.errors import (
    DecodeError, DecodeLimitError, SessionError, UnknownMessageError,
)
from rabble._core.messages import DOWN_KINDS, PASSED_ON, UNANSWERED_KINDS, UNDELIVERED_REASONS

__all__ = ["FrameDecoder", "PeerEvent"]

cdef extern from "Python.h":
    int PyException_SetTraceback(object error, PyObject* traceback) except -1

cdef enum:
    TEXT_MAX = 500                          # characters of what is said of an error

# The pid cache of all peers that have sent no pid yet, which is never written to: most connections
# of a large mesh carry no messages for long.
cdef PyObject* NEVER_CACHED[PID_CACHE_SLOTS]
cdef unsigned char ABOUT_NOBODY[PID_CACHE_SLOTS]


cdef int make_cache(FrameDecoder frame_decoder) except -1:
    """Take the memory of a pid cache."""
    cdef PyObject** pids = <PyObject**>PyMem_Calloc(PID_CACHE_SLOTS, sizeof(PyObject*))
    cdef unsigned char* about = <unsigned char*>PyMem_Calloc(PID_CACHE_SLOTS, 1)
    if pids is NULL or about is NULL:
        PyMem_Free(pids)
        PyMem_Free(about)
        raise MemoryError
    frame_decoder.cached_pids = pids
    frame_decoder.cached_about = about
    return 0


# What returns a status, with its exception pending, instead of raising it.
ctypedef int (*quiet_reading)(FrameDecoder frame_decoder, Cursor* c, EnvelopeQueue out) noexcept


#: Made while there is memory, for when there is none.
NO_MEMORY = SessionError(CODE_LIMIT, "there is no memory for what it sent")


@cython.final
cdef class PeerEvent:
    """A frame that is no envelope for a process: the message of an envelope to the executor.

    :ivar session: the `Session` that read it.
    :ivar kind: of the frame; or 101: a message that could not be built, 102: one to a reserved pid.
    :ivar to: whom of this node it concerns, or `None`.
    :ivar about: whom of the peer it concerns, or `None`.
    :ivar correlation_id: that of an envelope that was not delivered, or `None`.
    :ivar why: the number of the reason, as DOWN, EXIT and UNDELIVERED have it; else 0.
    :ivar reference: which monitor or link of the one by the other it is about; else 0.
    :ivar life: which life of `about` has ended; 0: it is not known.
    :ivar crash: the number of a crash in the peer's log; 0: none is known.
    :ivar detail: why a process has ended, a message was not delivered or could not be built.
    :ivar count: how many envelopes LOST counts.

    It is not changed, so any thread may read it.
    """

    def __repr__(self):
        fields = ", ".join(
            f"{name}={value!r}"
            for name, value in (
                ("to", self.to), ("about", self.about), ("correlation_id", self.correlation_id),
                ("reference", self.reference), ("why", self.why), ("life", self.life),
                ("crash", self.crash), ("detail", self.detail), ("count", self.count),
            )
            if value
        )
        return f"<PeerEvent {self.kind} from {self.session.peer}: {fields}>"


cdef PeerEvent new_event(FrameDecoder frame_decoder, int kind, Pid to, Pid about):
    cdef PeerEvent event = PeerEvent.__new__(PeerEvent)
    event.session = <object>frame_decoder.session
    event.kind = kind
    event.to = to
    event.about = about
    event.detail = ""
    return event


@cython.final
cdef class FrameDecoder:
    """The decoder of one connection: a `Session` makes it, and has checked what it is made of.

    :param session: that one, which each `PeerEvent` refers to. It owns this, so it is borrowed.
    """

    def __cinit__(
        self, object session, NodeId own not None, NodeId peer not None, Pid executor not None,
        Decoder decoder not None, frozenset open_names not None, Py_ssize_t message_bytes_max,
        Py_ssize_t frame_bytes_max, int version, UnfinishedMessages unfinished=None,
    ):
        if unfinished is not None:
            # Not by an attribute, which the collector may clear before the fragments are dropped.
            Py_INCREF(unfinished)
            self.fragments.unfinished = <PyObject*>unfinished
        self.session = <PyObject*>session
        self.own = own
        self.peer = peer
        self.executor = executor
        self.decoder = decoder
        self.open_names = open_names
        self.message_bytes_max = message_bytes_max
        self.frame_bytes_max = frame_bytes_max
        self.version = version
        self.cached_pids = NEVER_CACHED
        self.cached_about = ABOUT_NOBODY

    def __dealloc__(self):
        cdef size_t i
        if self.cached_pids is not NULL and self.cached_pids is not NEVER_CACHED:
            for i in range(<size_t>PID_CACHE_SLOTS):
                Py_XDECREF(self.cached_pids[i])
            PyMem_Free(self.cached_pids)
            PyMem_Free(self.cached_about)
        drop_fragments(&self.fragments)
        Py_XDECREF(self.fragments.unfinished)

    cdef int read_batch(
        self, const unsigned char* data, size_t size, EnvelopeQueue out, Thread* thread
    ) except -1:
        cdef Cursor c
        if self.failed:
            raise SessionError(self.failed, "something wrong came before, and nothing more is read")
        if self.is_decoding:
            raise RuntimeError("a message that is built on arrival made its own session read")
        # What is built on arrival may run code that lets go of the session, which owns this.
        _session = <object>self.session
        c.at = data
        c.end = data + size
        c.thread = thread
        self.is_decoding = True
        try:
            while (<quiet_reading><void*>read_frames)(self, &c, out) != 0:
                self.go_on_after(&c, take_failure(), out)
        finally:
            self.is_decoding = False
        return 0

    cdef int go_on_after(self, Cursor* c, object error, EnvelopeQueue out) except -1:
        """After a message that cannot be built reading goes on; whatever else came ends it."""
        if PyErr_GivenExceptionMatches(error, UnknownMessageError):
            c.undecodable = <PyObject*>error
            if (<quiet_reading><void*>read_undecodable)(self, c, out) == 0:
                return 0
            error = take_failure()
        # Where the next frame begins is not known any more.
        drop_fragments(&self.fragments)
        self.failed = CODE_LIMIT
        if must_pass(error):
            raise error
        if PyErr_GivenExceptionMatches(error, SessionError):
            self.failed = error.code
            raise error
        if PyErr_GivenExceptionMatches(error, MemoryError):
            # Drop the traceback of the last time that NO_MEMORY was raised.
            PyException_SetTraceback(NO_MEMORY, <PyObject*>None)
            raise NO_MEMORY
        if PyErr_GivenExceptionMatches(error, DecodeError):
            limit = PyErr_GivenExceptionMatches(error, DecodeLimitError)
            self.failed = CODE_DECODE_LIMIT if limit else CODE_DECODE
            raise SessionError(self.failed, bounded_str(error, TEXT_MAX))
        raise SessionError(
            self.failed, f"{type_name(error)}: {bounded_str(error, TEXT_MAX)}"
        ) from error

    cdef int read_frames(self, Cursor* c, EnvelopeQueue out) except -1:
        cdef Frame* frame = &c.frame
        cdef Py_ssize_t n
        while c.at != c.end:
            n = next_frame(c.at, c.end - c.at, self.frame_bytes_max, frame)
            if n <= 0:
                if n == 0:
                    raise SessionError(CODE_PROTOCOL, "a frame is not whole")
                raise SessionError(-n, unframed(c.at, c.end - c.at))
            c.at += n
            if frame.kind == ENVELOPE:
                self.read_envelope(c, frame.flags, frame.body, frame.size, None, out)
            elif frame.kind == CACHE_PID:
                self.read_cache_pid(frame)
            elif frame.kind == FRAGMENT:
                self.read_fragment(c, out)
            elif frame.kind == DOWN or frame.kind == EXIT:
                self.read_down(frame, out)
            elif frame.kind == LINK or frame.kind == UNLINK:
                self.read_link(frame, out)
            elif frame.kind == UNDELIVERED:
                self.read_undelivered(frame, out)
            elif frame.kind < PING:
                self.read_monitor(frame, out)
        return 0

    cdef int read_envelope(
        self, Cursor* c, int flags, const unsigned char* body, size_t size, bytes payload,
        EnvelopeQueue out,
    ) except -1:
        """Append an envelope. Its message is what stands behind the head, or the `payload`."""
        cdef Head head
        cdef CorrelationId cid = None
        cdef Envelope envelope
        cdef Py_ssize_t at = self.read_head(flags, body, size, &head)
        if head.about_to & IS_RESERVED:
            return self.put_event(event_of_head(self, EVENT_REFUSED, &head), out)
        c.flags = flags
        c.body = body
        c.size = size
        if <Py_ssize_t>size - at > self.message_bytes_max:
            raise SessionError(
                CODE_DECODE_LIMIT,
                f"a message of {size - at} bytes is longer than {self.message_bytes_max}",
            )
        if c.thread is not NULL and c.thread.context is not NULL:
            clear_context(c.thread)
        msg = self.decoder.read_whole(body + at, size - at) if payload is None else payload
        if flags & FLAG_CID:
            cid = head_cid(&head)
        if flags & FLAG_SENDER:
            envelope = new_envelope(<Pid>head.to, msg, <Pid>head.sender, cid)
        else:
            envelope = new_envelope(<Pid>head.to, msg, None, cid)
        out.append(envelope)
        return 0

    cdef int read_undecodable(self, Cursor* c, EnvelopeQueue out) except -1:
        """Go on after an envelope whose message the registry refused, and make an event of it."""
        cdef Head head
        cdef PeerEvent event
        self.read_head(c.flags, c.body, c.size, &head)
        event = event_of_head(self, EVENT_UNDECODABLE, &head)
        event.detail = bounded_str(<object>c.undecodable, DETAIL_MAX)
        if c.frame.kind == FRAGMENT:
            drop_fragments(&self.fragments)
        return self.put_event(event, out)

    cdef int put_event(self, PeerEvent event, EnvelopeQueue out) except -1:
        """Put it into an envelope for the executor."""
        cdef Envelope envelope = new_envelope(self.executor, event, None, None)
        out.append(envelope)
        return 0

    cdef int read_cache_pid(self, Frame* frame) except -1:
        cdef size_t index = load_16(frame.body)
        cdef PyObject* former
        cdef PyObject* found
        cdef Pid pid
        cdef int about
        if index >= PID_CACHE_SLOTS:
            raise SessionError(CODE_PROTOCOL, f"the pid cache has no slot {index}")
        found = (<quiet_parser><void*>parse_pid)(frame.body + 2, frame.size - 2)
        if found is NULL:
            error = take_failure()
            if PyErr_GivenExceptionMatches(error, ValueError):
                raise SessionError(CODE_DECODE, f"no pid: {bounded_str(error, TEXT_MAX)}")
            raise error
        pid = <Pid>owned(found)
        # The nodes of thousands of pids are one object, which also is compared at a glance.
        if same_node(pid.node, self.own):
            pid.node = self.own
        elif same_node(pid.node, self.peer):
            pid.node = self.peer
        about = self.about(pid)
        if self.cached_pids is NEVER_CACHED:
            make_cache(self)
        former = self.cached_pids[index]
        Py_INCREF(pid)
        self.cached_pids[index] = <PyObject*>pid
        self.cached_about[index] = <unsigned char>about
        Py_XDECREF(former)
        return 0

    cdef int about(self, Pid pid) except -1:
        cdef int found = MAY_ASK if may_be_forwarded(pid) else 0
        if same_node(pid.node, self.own):
            if is_reserved(pid) and pid.name not in self.open_names:
                found |= IS_RESERVED
            return found | IS_OWN
        # A peer never forwards requests of its own processes: it sends them as their sender.
        return IS_PEER if same_node(pid.node, self.peer) else found | IS_ELSEWHERE

    cdef int read_fragment(self, Cursor* c, EnvelopeQueue out) except -1:
        cdef Fragments* fragments = &self.fragments
        cdef bytes payload = None
        if add_fragment(fragments, &c.frame, self.message_bytes_max):
            if fragments.payload is not NULL:
                payload = <bytes>fragments.payload
            # What it builds may run code that has other sessions read.
            fragments.is_read = True
            self.read_envelope(
                c, fragments.head[0], fragments.head + 1, fragments.head_size - 1, payload, out
            )
            drop_fragments(fragments)
        return 0

    cdef int read_monitor(self, Frame* frame, EnvelopeQueue out) except -1:
        """MONITOR, DEMONITOR and LOST."""
        cdef PeerEvent event = new_event(self, frame.kind, None, None)
        if frame.kind == LOST:
            event.count = load_32(frame.body)
        else:
            event.about = <Pid>pid_at(self, frame.body, IS_PEER)
            event.to = <Pid>pid_at(self, frame.body + 2, IS_OWN)
            event.reference = load_64(frame.body + 4)
        return self.put_event(event, out)

    cdef int read_down(self, Frame* frame, EnvelopeQueue out) except -1:
        """DOWN and EXIT."""
        cdef PeerEvent event = new_event(self, frame.kind, None, None)
        cdef const unsigned char* p = self.read_pair(frame, event, True)
        cdef const unsigned char* end = frame.body + frame.size
        if not DOWN_TAIL <= end - p <= DOWN_TAIL + DETAIL_MAX:
            raise SessionError(
                CODE_PROTOCOL, f"a DOWN or EXIT has {end - p} bytes behind its pids"
            )
        event.reference = load_64(p)
        event.why = p[REFERENCE_BYTES]
        event.life = load_64(p + REFERENCE_BYTES + 1)
        p += DOWN_TAIL
        if event.why not in DOWN_KINDS:
            raise SessionError(CODE_DECODE, f"why {event.why} of a DOWN or EXIT is unknown")
        event.detail = self.read_detail(p, end)
        return self.put_event(event, out)

    cdef int read_link(self, Frame* frame, EnvelopeQueue out) except -1:
        """LINK and UNLINK."""
        cdef PeerEvent event = new_event(self, frame.kind, None, None)
        cdef const unsigned char* p = self.read_pair(frame, event, False)
        if frame.body + frame.size - p != REFERENCE_BYTES:
            raise SessionError(
                CODE_PROTOCOL,
                f"a LINK or UNLINK has {frame.body + frame.size - p} bytes behind its pids",
            )
        event.reference = load_64(p)
        return self.put_event(event, out)

    cdef const unsigned char* read_pair(
        self, Frame* frame, PeerEvent event, bint to_first
    ) except NULL:
        """The two pids of a frame, of which `to_first` says the order; returns what follows."""
        cdef const unsigned char* p = frame.body
        cdef const unsigned char* end = frame.body + frame.size
        cdef int first = IS_OWN if to_first else IS_PEER
        cdef int second = IS_PEER if to_first else IS_OWN
        cdef Pid one, other
        if frame.kind >= LINK and self.version < VERSION_OF_LINKS:
            raise SessionError(
                CODE_PROTOCOL, f"version {self.version} has no frame of kind {frame.kind}"
            )
        if frame.flags & FLAG_FULL:
            one = self.read_text(&p, end, first)
            other = self.read_text(&p, end, second)
        else:
            one = <Pid>pid_at(self, p, first)
            other = <Pid>pid_at(self, p + 2, second)
            p += 4
        event.to = one if to_first else other
        event.about = other if to_first else one
        return p

    cdef str read_detail(self, const unsigned char* p, const unsigned char* end):
        """The text to the end of a frame."""
        cdef PyObject* text = decode_utf8(<const char*>p, end - p, NULL)
        if text is NULL:
            error = take_failure()
            if PyErr_GivenExceptionMatches(error, UnicodeDecodeError):
                raise SessionError(CODE_DECODE, f"a text is not UTF-8: {error.reason}")
            raise error
        return <str>owned(text)

    cdef int read_undelivered(self, Frame* frame, EnvelopeQueue out) except -1:
        cdef Head head
        cdef PeerEvent event
        cdef const unsigned char* p = frame.body
        cdef const unsigned char* end = frame.body + frame.size
        cdef int why
        # Its fields are those of an ENVELOPE without a sender.
        p += self.read_head(frame.flags, frame.body, frame.size, &head)
        why = p[0]
        if why not in UNDELIVERED_REASONS and why not in UNANSWERED_KINDS and why != PASSED_ON:
            raise SessionError(CODE_DECODE, f"why {why} of an UNDELIVERED is unknown")
        event = event_of_head(self, UNDELIVERED, &head)
        event.why = why
        event.crash = load_64(p + 1)
        p += UNDELIVERED_TAIL - 2
        if load_16(p):
            event.about = self.read_text(
                &p, end, IS_OWN | IS_PEER | IS_ELSEWHERE if why == PASSED_ON else IS_PEER
            )
        else:
            p += 2
        if end - p > DETAIL_MAX:
            raise SessionError(CODE_PROTOCOL, f"an UNDELIVERED has {end - p} bytes of text")
        event.detail = self.read_detail(p, end)
        return self.put_event(event, out)

    cdef Py_ssize_t read_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1:
        """Read the fields in front of a message; returns where it begins."""
        cdef const unsigned char* p = body
        head.flags = flags
        if flags & FLAG_FULL:
            return self.read_full_head(flags, body, size, head)
        # The frame is long enough: `next_frame` saw to it.
        head.to = pid_at(self, p, IS_OWN)
        head.about_to = self.cached_about[load_16(p)]
        p += 2
        if flags & FLAG_SENDER:
            head.sender = pid_at(self, p, IS_PEER)
            p += 2
        if flags & FLAG_CID:
            head.asker = pid_at(self, p, askers(flags))
            p = read_numbers(p + 2, head)
            if flags & FLAG_FORWARDED:
                head.sender = head.asker
        return p - body

    cdef Py_ssize_t read_full_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1:
        cdef const unsigned char* p = body
        cdef const unsigned char* end = body + size
        self.full_to = self.read_text(&p, end, IS_OWN)
        head.to = <PyObject*>self.full_to
        head.about_to = self.about(self.full_to)
        if flags & FLAG_SENDER:
            self.full_sender = self.read_text(&p, end, IS_PEER)
            head.sender = <PyObject*>self.full_sender
        if flags & FLAG_CID:
            self.full_asker = self.read_text(&p, end, askers(flags))
            head.asker = <PyObject*>self.full_asker
            if flags & FLAG_FORWARDED:
                head.sender = head.asker
            if end - p < numbers_size(flags):
                raise SessionError(CODE_PROTOCOL, "an envelope ends within its head")
            p = read_numbers(p, head)
        if p == end:
            raise SessionError(CODE_PROTOCOL, "an envelope has no message")
        return p - body

    cdef Pid read_text(
        self, const unsigned char** at, const unsigned char* end, int wanted
    ):
        """A pid in full."""
        cdef BufferReader r
        cdef Pid pid
        cdef const unsigned char* p = at[0]
        cdef Py_ssize_t n = 0
        if end - p >= 2:
            n = load_16(p)
            p += 2
        if n == 0 or n > end - p:
            raise SessionError(CODE_PROTOCOL, "a pid is longer than its frame, or has no length")
        at[0] = p + n
        self.decoder.begin(&r, p, n)
        pid = self.decoder.read_pid(&r, p, n)
        if not self.about(pid) & wanted:
            raise SessionError(CODE_SPOOF, spoof(pid, wanted))
        return pid


cdef int read_frames(FrameDecoder frame_decoder, Cursor* c, EnvelopeQueue out) except -1:
    return frame_decoder.read_frames(c, out)


cdef int read_undecodable(FrameDecoder frame_decoder, Cursor* c, EnvelopeQueue out) except -1:
    return frame_decoder.read_undecodable(c, out)


cdef inline PyObject* pid_at(
    FrameDecoder frame_decoder, const unsigned char* p, int wanted
) except NULL:
    """The pid whose slot stands there, borrowed from the cache."""
    cdef size_t index = load_16(p)
    # A slot that was not filled is about nobody.
    if index >= PID_CACHE_SLOTS or not frame_decoder.cached_about[index] & wanted:
        raise no_cached_pid(frame_decoder, index, wanted)
    return frame_decoder.cached_pids[index]


cdef inline int askers(int flags) noexcept:
    """What the pid of an ENVELOPE's correlation id may be: see "Forwarding" in the protocol."""
    return MAY_ASK if flags & FLAG_FORWARDED else IS_OWN | IS_PEER | IS_ELSEWHERE


cdef object no_cached_pid(FrameDecoder frame_decoder, size_t index, int wanted):
    if index >= PID_CACHE_SLOTS or frame_decoder.cached_pids[index] is NULL:
        return SessionError(CODE_PROTOCOL, f"slot {index} of the pid cache was not filled")
    return SessionError(CODE_SPOOF, spoof(<Pid>frame_decoder.cached_pids[index], wanted))


cdef str spoof(Pid pid, int wanted):
    if wanted == MAY_ASK:
        return f"{ascii(str(pid))} is nobody whose requests that node may pass on"
    where = "this node" if wanted & IS_OWN else "the node that sent it"
    return f"{ascii(str(pid))} is no pid of {where}"


cdef str unframed(const unsigned char* data, Py_ssize_t size):
    return f"no frame begins with {data[:min(size, FRAME_HEADER)].hex(' ')}"


cdef inline const unsigned char* read_numbers(
    const unsigned char* p, Head* head
) except NULL:
    if head.flags & FLAG_CONNECTION:
        head.connection = load_64(p)
        p += 8
        if head.connection >> 63:
            raise SessionError(CODE_DECODE, "the connection of a correlation id is 2**63 or more")
    if head.flags & FLAG_REQUEST:
        head.request = load_64(p)
        p += 8
        if head.request >> 63:
            raise SessionError(CODE_DECODE, "the request of a correlation id is 2**63 or more")
    return p


cdef CorrelationId head_cid(Head* head):
    connection = None
    request = None
    if head.flags & FLAG_CONNECTION:
        connection = head.connection
    if head.flags & FLAG_REQUEST:
        request = head.request
    return CorrelationId(<Pid>head.asker, connection, request)


cdef PeerEvent event_of_head(FrameDecoder frame_decoder, int kind, Head* head):
    """The event of an ENVELOPE or of an UNDELIVERED."""
    cdef PeerEvent event = new_event(frame_decoder, kind, <Pid>head.to, None)
    if head.flags & FLAG_SENDER:
        event.about = <Pid>head.sender
    if head.flags & FLAG_CID:
        event.correlation_id = head_cid(head)
    return event
