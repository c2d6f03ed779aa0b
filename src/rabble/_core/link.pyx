"""One connection's encoder and decoder: what two nodes say to each other, as frames and as objects.

Speaking writes whole frames into one of two buffers, the lanes, in one pass: the NAMEs that an
envelope needs, room for the frame's header, the fields in front of the message, the message; then
the header is filled in. Hearing turns whole frames into envelopes, one batch at a time.

Pids travel as indexes of a table, so that the usual envelope takes some ten bytes besides its
message, and to find what an index means is to read an array. The same array tells whether that pid
may be spoken to, or for: no string is compared for an envelope.

What comes from the peer is checked as a stranger's is. What a peer can make a link hold is bounded:

- 2 x 8,192 references to pids and what is known of them, 204 KiB. The pids that the peer named take
  some 200 bytes each, 4.5 KiB at worst (three names and an address of 255 bytes, as wide
  characters): some 2 MiB, 36 MiB at worst;
- of a message in fragments at most 4 MiB or twice the bytes that came, and no more than
  `message_bytes_max` and a head of 3 KiB;
- the codec's caches of 256 pids and 256 keys of maps.

What it holds to be sent is bounded by the poll loop, which is asked before something is said.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_RawFree, PyMem_RawRealloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_CLEAR, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import unicodedata

from rabble._core.codec cimport Codec
from rabble._core.codec import DecodeError, DecodeLimitError, EncodeError, UnknownMessageError
from rabble._core.envelope cimport Envelope, new_envelope
from rabble._core.frame cimport (
    CODE_DECODE, CODE_DECODE_LIMIT, CODE_FRAME_TOO_LARGE, CODE_LIMIT, CODE_PROTOCOL, CODE_SPOOF,
    DEMONITOR, DETAIL_MAX, DOWN, ENVELOPE, FLAG_CID, FLAG_CONNECTION, FLAG_FIRST, FLAG_FULL,
    FLAG_LAST, FLAG_REQUEST, FLAG_SENDER, FRAGMENT, FRAME_HEADER, Frame, LOST, MONITOR, NAME, PING,
    TAKEN, UNDELIVERED, flags_agree, load_16, load_32, load_64, next_frame, store_16, store_32,
    store_64, store_header,
)
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.queue cimport EnvelopeQueue
from rabble._core.reader cimport Reader
from rabble._core.writer cimport Writer

__all__ = ["Heard", "Link", "LinkError"]

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)
    # As they are, for bytes that are still being written: these must have no other owner.
    PyObject* new_bytes "PyBytes_FromStringAndSize" (const char* data, Py_ssize_t size) except NULL
    char* bytes_data "PyBytes_AS_STRING" (PyObject* value)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject* value)
    int _PyBytes_Resize(PyObject** value, Py_ssize_t size) except -1
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    FRAGMENT_BYTES_MIN = 16
    HEAD_ROOM = FRAME_HEADER + 3 * 2 + 16   # header and fields of an ENVELOPE, by index
    KEPT_BYTES_MAX = 8 << 20                # a lane's buffer that grew above this is cut back
    PAYLOAD_BYTES_MIN = 4 << 20             # memory taken for a payload before more of it has come
    BULK_PAIRS_MIN = 256                    # so many are remembered before they are looked through
    NO_PLACE = -2
    ENVELOPE_FLAGS = FLAG_SENDER | FLAG_CID | FLAG_CONNECTION | FLAG_REQUEST | FLAG_FULL
    WHY_DOWN_MAX = 5
    WHY_UNDELIVERED_MAX = 6

RESERVED_GROUP = "rabble"


class LinkError(ValueError):
    """What the peer said ends the connection.

    `code` is what it is told in BYE, `text` what is wrong.
    """

    def __init__(self, code, text):
        super().__init__(f"code {code}: {text}")
        self.code = code
        self.text = text


@cython.final
cdef class Heard:
    """What a peer said that is no envelope for a process.

    :ivar kind: of the frame; or 101: a message that could not be built, 102: one to a reserved pid.
    :ivar to: whom of this node it concerns; :ivar about: whom of the peer.

    It reaches the executor as the message of an envelope.
    """

    def __repr__(self):
        fields = ", ".join(
            f"{name}={value!r}"
            for name, value in (
                ("to", self.to), ("about", self.about), ("correlation_id", self.correlation_id),
                ("why", self.why), ("detail", self.detail), ("count", self.count),
            )
            if value
        )
        return f"<Heard {self.kind} from {self.link.peer}: {fields}>"


cdef object too_long(Link link, Py_ssize_t size):
    return EncodeError(
        f"the message takes {size} bytes, more than the {link.message_bytes_max} allowed; "
        f"send it in parts"
    )


cdef Heard new_heard(Link link, int kind, Pid to, Pid about):
    cdef Heard heard = Heard.__new__(Heard)
    heard.link = link
    heard.kind = kind
    heard.to = to
    heard.about = about
    heard.detail = ""
    return heard


@cython.final
cdef class Link:
    """The encoder and decoder of one connection. Not thread-safe: the executor's thread owns it.

    :param own: this node; :param peer: the other one; :param incarnation: the peer's.
    :param executor: whom what is no envelope is for.
    :param codec: used by nothing else at the same time.
    :param fragment_bytes: longer messages are cut into parts of that size; 16 or more.
    :param message_bytes_max: bytes of one message, in both directions; no more than the codec's.
    :param frame_bytes_max: the longest frame that is heard.
    :param open_names: the names of group `rabble` that the peer may send to.
    :param places: how many places of the table of names are used for speaking: a power of two, 2 to
        8,192.
    :raises ValueError: if a bound is not usable.
    """

    def __cinit__(
        self, NodeId own not None, NodeId peer not None, uint64_t incarnation,
        Pid executor not None, *, Codec codec not None, Py_ssize_t fragment_bytes=65536,
        message_bytes_max=None, Py_ssize_t frame_bytes_max=1 << 20, open_names=frozenset(),
        Py_ssize_t places=PLACES,
    ):
        if message_bytes_max is None:
            message_bytes_max = codec.message_bytes_max
        if not 1 <= message_bytes_max <= codec.message_bytes_max:
            raise ValueError(
                f"Link: message_bytes_max must be 1 to {codec.message_bytes_max}, which is the "
                f"codec's, not {message_bytes_max}"
            )
        most = frame_bytes_max - HEAD_MAX - 2
        if not FRAGMENT_BYTES_MIN <= fragment_bytes <= most:
            raise ValueError(
                f"Link: fragment_bytes must be {FRAGMENT_BYTES_MIN} to {most}, which leaves room "
                f"in a frame of {frame_bytes_max}, not {fragment_bytes}"
            )
        if not 2 <= places <= PLACES or places & (places - 1):
            raise ValueError(f"Link: places must be a power of two, 2 to {PLACES}, not {places}")
        if own == peer:
            raise ValueError(f"Link: {own} does not need a connection to itself")
        self.own = own
        self.peer = peer
        self.incarnation = incarnation
        self.executor = executor
        self.codec = codec
        self.open_names = frozenset(open_names)
        self.fragment_bytes = fragment_bytes
        self.message_bytes_max = message_bytes_max
        self.frame_bytes_max = frame_bytes_max
        self.sets_mask = <size_t>places // 2 - 1
        self.said = <Place*>PyMem_Calloc(places, sizeof(Place))
        self.latest = <unsigned char*>PyMem_Calloc(places // 2, 1)
        self.heard = <PyObject**>PyMem_Calloc(PLACES, sizeof(PyObject*))
        self.heard_about = <unsigned char*>PyMem_Calloc(PLACES, 1)
        if (
            self.said is NULL
            or self.latest is NULL
            or self.heard is NULL
            or self.heard_about is NULL
        ):
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        if self.said is not NULL:
            for i in range(2 * self.sets_mask + 2):
                Py_XDECREF(self.said[i].pid)
        if self.heard is not NULL:
            for i in range(<size_t>PLACES):
                Py_XDECREF(self.heard[i])
        PyMem_Free(self.said)
        PyMem_Free(self.latest)
        PyMem_Free(self.heard)
        PyMem_Free(self.heard_about)
        self.forget_frames()
        self.drop_whole()
        PyMem_RawFree(self.data.data)
        PyMem_RawFree(self.bulk.data)
        PyMem_RawFree(self.bulk_frames.data)

    # For tests and benchmarks: the same as the poll loop and the executor do, in Python's terms.

    def say(self, Envelope envelope not None):
        """Append an envelope to its lane. Raises `EncodeError`."""
        self.say_envelope(envelope)

    def say_all(self, list envelopes not None):
        """Append several envelopes, in order, up to the first that raises `EncodeError`."""
        for envelope in envelopes:
            self.say_envelope(<Envelope?>envelope)

    def monitor(self, Pid watcher not None, Pid watched not None):
        """Say that `watcher`, of this node, monitors `watched`, of the peer."""
        self.say_monitor(watcher, watched)

    def demonitor(self, Pid watcher not None, Pid watched not None):
        """Say that it does no longer."""
        self.say_demonitor(watcher, watched)

    def down(self, Pid watcher not None, Pid watched not None, int why, str detail=""):
        """Say that `watched`, of this node, has ended."""
        self.say_down(watcher, watched, why, detail)

    def undelivered(self, Pid to not None, CorrelationId correlation_id, int why):
        """Say that an envelope of `to`, of the peer, became a dead letter here."""
        self.say_undelivered(to, correlation_id, why)

    def refuse(self, Envelope envelope not None):
        """Note that an envelope was dropped instead of said; it is one of those of `lost`."""
        self.note_refused(envelope)

    def lost(self, uint32_t count):
        """Say that `count` envelopes for the peer were dropped."""
        self.say_lost(count)

    def take_data(self):
        """The bytes of the data lane, which is empty then."""
        return taken(self, &self.data)

    def take_bulk(self, size_t unsent=0):
        """The bytes of the bulk lane; the poll loop holds `unsent` of its bytes from now on."""
        cdef const BulkFrame* frame = <const BulkFrame*>self.bulk_frames.data
        cdef const BulkFrame* end = <const BulkFrame*>(
            self.bulk_frames.data + self.bulk_frames.size
        )
        cdef bytes own = taken(self, &self.bulk)
        cdef Py_ssize_t at = 0
        cdef list parts = []
        while frame != end:
            parts.append(own[at:at + <Py_ssize_t>frame.own_size])
            parts.append(PyBytes_FromStringAndSize(<const char*>frame.rest, frame.rest_size))
            at += frame.own_size
            frame += 1
        self.forget_frames()
        self.bulk_unsent = unsent
        return b"".join(parts)

    def encode(self, Envelope envelope not None):
        """The bytes of an envelope, with whatever else waited in both lanes."""
        self.say_envelope(envelope)
        return self.take_data() + self.take_bulk()

    def decode(self, bytes data not None):
        """The list of the envelopes that `data`, which is whole frames, says.

        :raises LinkError: if the connection is to end; then nothing more can be decoded.
        """
        queue = EnvelopeQueue()
        self.decode_into(data, queue)
        return [queue.take() for _ in range(len(queue))]

    def decode_into(self, bytes data not None, EnvelopeQueue queue not None):
        """The same into a queue, which also has what came before an error."""
        self.hear(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), queue
        )

    # Speaking.

    cdef int say_envelope(self, Envelope envelope) except -1:
        cdef Writer* w = &self.data
        cdef CorrelationId cid = envelope.correlation_id
        cdef Py_ssize_t to, start, message
        cdef Py_ssize_t sender = 0
        cdef Py_ssize_t asker = 0
        cdef int flags = 0
        cdef unsigned char* p
        if self.is_speaking:
            raise speaking()
        if self.bulk_pairs is not None and self.is_in_bulk(envelope.sender, envelope.to):
            return self.say_in_full(envelope)
        # The names first, so that their frames come first. They stay said if the message cannot be
        # encoded: the peer's table then is as this one.
        to = self.place_of(envelope.to, -1)
        if not self.said[to].is_peer:
            raise foreign(envelope.to, "receiver", self.peer)
        if envelope.sender is not None:
            flags = FLAG_SENDER
            sender = self.place_of(envelope.sender, -1)
            if not self.said[sender].is_own:
                raise foreign(envelope.sender, "sender", self.own)
        if cid is not None:
            flags |= FLAG_CID
            asker = self.place_of(cid.pid, to)
            if asker == NO_PLACE:
                # Three pids fight for two places.
                return self.say_in_full(envelope)
        if self.is_large_bytes(envelope.msg):
            return self.say_bytes(envelope, <bytes>envelope.msg)
        start = w.size
        if w.capacity - start < HEAD_ROOM:
            self.reserve(w, HEAD_ROOM)
        p = w.data + start + FRAME_HEADER
        store_16(p, <uint32_t>to)
        p += 2
        if envelope.sender is not None:
            store_16(p, <uint32_t>sender)
            p += 2
        if cid is not None:
            store_16(p, <uint32_t>asker)
            p = store_numbers(p + 2, cid, &flags)
        message = w.size = p - w.data
        if self.say_message(envelope.msg, start) > self.fragment_bytes:
            return self.move_to_bulk(envelope, start, message)
        store_header(w.data + start, w.size - start, ENVELOPE, <unsigned char>flags)
        return 0

    cdef Py_ssize_t say_message(self, object msg, Py_ssize_t start) except -1:
        """Append the encoded message to the data lane and return its length.

        On an error the lane is cut back to `start`.
        """
        cdef Writer* w = &self.data
        cdef Py_ssize_t message = w.size
        w.limit = message + self.message_bytes_max + 16
        w.depth = self.codec.depth_max
        w.elements = self.codec.elements_max
        self.is_speaking = True
        try:
            self.codec.encoder.write(w, msg)
            if w.size - message > self.message_bytes_max:
                raise too_long(self, w.size - message)
        except BaseException:
            self.cut_back(start)
            raise
        finally:
            self.is_speaking = False
        return w.size - message

    cdef int say_in_full(self, Envelope envelope) except -1:
        """Say it without indexes, by the bulk lane, which has what is in full."""
        cdef Py_ssize_t start = self.data.size
        if self.is_large_bytes(envelope.msg):
            return self.say_bytes(envelope, <bytes>envelope.msg)
        self.say_message(envelope.msg, start)
        return self.move_to_bulk(envelope, start, start)

    cdef inline bint is_large_bytes(self, object msg) noexcept:
        return type(msg) is bytes and 2 + PyBytes_GET_SIZE(msg) > self.fragment_bytes

    cdef int say_bytes(self, Envelope envelope, bytes msg) except -1:
        """Say a message that is nothing but many bytes: the bulk lane has them from where they are.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(msg)
        cdef unsigned char head[5]
        cdef Py_ssize_t head_size
        if size < 1 << 8:
            head[0] = 0xc4
            head[1] = <unsigned char>size
            head_size = 2
        elif size < 1 << 16:
            head[0] = 0xc5
            store_16(head + 1, <uint32_t>size)
            head_size = 3
        else:
            head[0] = 0xc6
            store_32(head + 1, <uint32_t>size)
            head_size = 5
        if head_size + size > self.message_bytes_max:
            raise too_long(self, head_size + size)
        return self.put_in_bulk(
            envelope, head, head_size, <const unsigned char*>PyBytes_AS_STRING(msg), size, msg
        )

    cdef int move_to_bulk(
        self, Envelope envelope, Py_ssize_t start, Py_ssize_t message
    ) except -1:
        """Move the message at the end of the data lane to the bulk lane; cut that back to `start`.

        So a message is encoded once, wherever it goes.
        """
        try:
            return self.put_in_bulk(
                envelope, NULL, 0, self.data.data + message, self.data.size - message, None
            )
        finally:
            self.cut_back(start)

    cdef int put_in_bulk(
        self,
        Envelope envelope,
        const unsigned char* begin,
        Py_ssize_t begin_size,
        const unsigned char* source,
        Py_ssize_t source_size,
        bytes message,
    ) except -1:
        """Put an encoded message, which is in two pieces, into the bulk lane, cut into frames.

        The first piece is at most 5 bytes. The second is copied, unless `message` is what it is of.
        """
        cdef unsigned char head[HEAD_MAX + 1 + 5]
        cdef const unsigned char* end = source + source_size
        cdef BulkFrame* frame
        cdef unsigned char* p
        cdef Py_ssize_t head_size, whole, frames, extra, part, begun
        cdef Py_ssize_t n = 0       # how much of the head is gone
        cdef int flags = FLAG_FIRST
        cdef bint cut = begin_size + source_size > self.fragment_bytes
        head_size = self.write_head(head, envelope)
        if begin_size:
            memcpy(head + head_size, begin, begin_size)
            head_size += begin_size
        whole = head_size + source_size
        frames = 1 + (whole - 1) // self.fragment_bytes if cut else 1
        extra = 4 + frames * FRAME_HEADER if cut else FRAME_HEADER - 1
        # All the memory that it takes, so that it is there in whole or not at all.
        self.reserve(&self.bulk, extra + (whole if message is None else head_size))
        self.reserve(&self.bulk_frames, frames * sizeof(BulkFrame))
        self.goes_to_bulk(envelope.sender, envelope.to, whole + extra)
        if not cut:
            frame = self.add_frame(FRAME_HEADER - 1 + whole, 0)
            p = self.bulk.data + self.bulk.size - frame.own_size
            memcpy(p + FRAME_HEADER - 1, head, head_size)
            memcpy(p + FRAME_HEADER - 1 + head_size, source, source_size)
            store_header(p, frame.own_size, ENVELOPE, head[0])
            return 0
        # The first part has the head in it, or of it what has room.
        while not flags & FLAG_LAST:
            part = min(self.fragment_bytes, head_size - n + (end - source))
            if part == head_size - n + (end - source):
                flags |= FLAG_LAST
            begun = min(part, head_size - n)
            extra = FRAME_HEADER + (4 if flags & FLAG_FIRST else 0)
            if message is None:
                frame = self.add_frame(extra + part, 0)
            else:
                frame = self.add_frame(extra + begun, part - begun)
            p = self.bulk.data + self.bulk.size - frame.own_size
            store_header(p, extra + part, FRAGMENT, <unsigned char>flags)
            if flags & FLAG_FIRST:
                store_32(p + FRAME_HEADER, <uint32_t>whole)
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

    cdef BulkFrame* add_frame(self, size_t own_size, size_t rest_size) except NULL:
        """Add a frame to the bulk lane, and so many bytes of its own that are to be filled in."""
        cdef BulkFrame* frame
        self.reserve(&self.bulk, own_size)
        self.reserve(&self.bulk_frames, sizeof(BulkFrame))
        frame = <BulkFrame*>(self.bulk_frames.data + self.bulk_frames.size)
        frame.own_size = own_size
        frame.rest_size = rest_size
        frame.rest = NULL
        frame.message = NULL
        self.bulk_frames.size += sizeof(BulkFrame)
        self.bulk.size += own_size
        self.bulk_size += own_size + rest_size
        return frame

    cdef void forget_frames(self) noexcept:
        """Empty the bulk lane."""
        cdef BulkFrame* frame = <BulkFrame*>self.bulk_frames.data
        cdef BulkFrame* end = <BulkFrame*>(self.bulk_frames.data + self.bulk_frames.size)
        while frame != end:
            Py_XDECREF(frame.message)
            frame += 1
        self.bulk.size = self.bulk_frames.size = 0
        self.bulk_size = 0

    cdef bint is_in_bulk(self, Pid sender, Pid to) except -1:
        """Whether something of that pair is in the bulk lane, which what follows must not overtake.

        To be asked only while there is a `bulk_pairs`.
        """
        cdef uint64_t sent = self.bulk_said - self.bulk_size - self.bulk_unsent
        if sent == self.bulk_said:
            self.bulk_pairs = None
            return False
        end = self.bulk_pairs.get((sender, to))
        return end is not None and <uint64_t>end > sent

    cdef int goes_to_bulk(self, Pid sender, Pid to, Py_ssize_t size) except -1:
        """Note that the next `size` bytes of the bulk lane are of that pair."""
        cdef uint64_t sent
        if self.bulk_pairs is None:
            self.bulk_pairs = {}
            self.bulk_pairs_max = BULK_PAIRS_MIN
        elif len(self.bulk_pairs) >= self.bulk_pairs_max:
            # A lane that never runs empty must not remember every pair for ever.
            sent = self.bulk_said - self.bulk_size - self.bulk_unsent
            self.bulk_pairs = {
                pair: end for pair, end in self.bulk_pairs.items() if <uint64_t>end > sent
            }
            self.bulk_pairs_max = max(BULK_PAIRS_MIN, 2 * len(self.bulk_pairs))
        self.bulk_pairs[(sender, to)] = self.bulk_said + <uint64_t>size
        self.bulk_said += size
        return 0

    cdef int say_monitor(self, Pid watcher, Pid watched) except -1:
        return self.say_watch(MONITOR, watcher, watched)

    cdef int say_demonitor(self, Pid watcher, Pid watched) except -1:
        return self.say_watch(DEMONITOR, watcher, watched)

    cdef int say_watch(self, int kind, Pid watcher, Pid watched) except -1:
        cdef Writer* w = &self.data
        cdef Py_ssize_t first, second
        if self.is_speaking:
            raise speaking()
        first = self.place_of(watcher, -1)
        second = self.place_of(watched, -1)
        if not self.said[first].is_own:
            raise foreign(watcher, "watcher", self.own)
        if not self.said[second].is_peer:
            raise foreign(watched, "watched", self.peer)
        self.reserve(w, FRAME_HEADER + 4)
        store_header(w.data + w.size, FRAME_HEADER + 4, <unsigned char>kind, 0)
        store_16(w.data + w.size + FRAME_HEADER, <uint32_t>first)
        store_16(w.data + w.size + FRAME_HEADER + 2, <uint32_t>second)
        w.size += FRAME_HEADER + 4
        return 0

    cdef int say_down(self, Pid watcher, Pid watched, int why, str detail) except -1:
        cdef bytes text = detail_text(detail)
        cdef bytes watcher_text, watched_text
        cdef Py_ssize_t first, second, n
        cdef unsigned char* start
        cdef unsigned char* p
        cdef unsigned char flags = 0
        if self.is_speaking:
            raise speaking()
        # What the ended process said to the watcher comes before, in whichever lane it is.
        if self.bulk_pairs is not None and self.is_in_bulk(watched, watcher):
            flags = FLAG_FULL
            watcher_text = self.codec.encoder.text_of(watcher)
            watched_text = self.codec.encoder.text_of(watched)
            n = FRAME_HEADER + 5 + len(watcher_text) + len(watched_text) + len(text)
            self.add_frame(n, 0)
            self.goes_to_bulk(watched, watcher, n)
            start = self.bulk.data + self.bulk.size - n
            p = store_text(store_text(start + FRAME_HEADER, watcher_text), watched_text)
        else:
            first = self.place_of(watcher, -1)
            second = self.place_of(watched, -1)
            if not self.said[first].is_peer:
                raise foreign(watcher, "watcher", self.peer)
            if not self.said[second].is_own:
                raise foreign(watched, "watched", self.own)
            n = FRAME_HEADER + 5 + len(text)
            self.reserve(&self.data, n)
            start = self.data.data + self.data.size
            self.data.size += n
            store_16(start + FRAME_HEADER, <uint32_t>first)
            store_16(start + FRAME_HEADER + 2, <uint32_t>second)
            p = start + FRAME_HEADER + 4
        p[0] = <unsigned char>why
        memcpy(p + 1, PyBytes_AS_STRING(text), len(text))
        store_header(start, n, DOWN, flags)
        return 0

    cdef int say_undelivered(self, Pid to, CorrelationId correlation_id, int why) except -1:
        cdef Writer* w = &self.data
        cdef Py_ssize_t first
        cdef Py_ssize_t asker = 0
        cdef unsigned char* p
        cdef int flags = 0
        if self.is_speaking:
            raise speaking()
        first = self.place_of(to, -1)
        if not self.said[first].is_peer:
            raise foreign(to, "receiver", self.peer)
        if correlation_id is not None:
            asker = self.place_of(correlation_id.pid, -1)
        self.reserve(w, HEAD_ROOM)
        p = w.data + w.size + FRAME_HEADER
        store_16(p, <uint32_t>first)
        p += 2
        if correlation_id is not None:
            flags = FLAG_CID
            store_16(p, <uint32_t>asker)
            p = store_numbers(p + 2, correlation_id, &flags)
        p[0] = <unsigned char>why
        p += 1
        store_header(
            w.data + w.size, p - w.data - w.size, UNDELIVERED, <unsigned char>flags
        )
        w.size = p - w.data
        return 0

    cdef int note_refused(self, Envelope envelope) except -1:
        if self.bulk_pairs is not None and self.is_in_bulk(envelope.sender, envelope.to):
            self.bulk_refused += 1
            if self.refused_pairs is None:
                self.refused_pairs = set()
            self.refused_pairs.add((envelope.sender, envelope.to))
        return 0

    cdef int say_lost(self, uint32_t count) except -1:
        """Say that so many envelopes were dropped, in the lanes that they would have gone by.

        So it stands between what was said before the hole and what is said behind it.
        """
        cdef uint32_t in_bulk = 0
        if self.is_speaking:
            raise speaking()
        if self.bulk_pairs is not None:
            in_bulk = min(self.bulk_refused, count)
        if in_bulk:
            self.add_frame(FRAME_HEADER + 4, 0)
            store_lost(self.bulk.data + self.bulk.size - FRAME_HEADER - 4, FLAG_FULL, in_bulk)
            self.bulk_said += FRAME_HEADER + 4
            for pair in self.refused_pairs:
                # What they say next must not overtake this.
                self.bulk_pairs[pair] = self.bulk_said
        if count != in_bulk:
            self.reserve(&self.data, FRAME_HEADER + 4)
            store_lost(self.data.data + self.data.size, 0, count - in_bulk)
            self.data.size += FRAME_HEADER + 4
        self.bulk_refused = 0
        self.refused_pairs = None
        return 0

    cdef int say_taken(self, uint64_t taken) except -1:
        """Say how many bytes of the peer's bulk lane were taken."""
        cdef Writer* w = &self.data
        self.reserve(w, FRAME_HEADER + 8)
        store_header(w.data + w.size, FRAME_HEADER + 8, TAKEN, 0)
        store_64(w.data + w.size + FRAME_HEADER, taken)
        w.size += FRAME_HEADER + 8
        return 0

    cdef inline Py_ssize_t place_of(self, Pid pid, Py_ssize_t kept) except -1:
        """The index that stands for `pid`, said to the peer if need be.

        A pid can stand in one of two places, of which it takes the one not used last. So the one
        that was asked for before is still there, but the one before that may not be: `kept` is its
        index, and NO_PLACE the answer if it would have to go.
        """
        cdef size_t pair = <size_t>pid.hash_value & self.sets_mask
        cdef Place* places = self.said + 2 * pair
        if places[0].pid is <PyObject*>pid:
            self.latest[pair] = 0
            return 2 * pair
        if places[1].pid is <PyObject*>pid:
            self.latest[pair] = 1
            return 2 * pair + 1
        return self.place_anew(pid, kept)

    cdef Py_ssize_t place_anew(self, Pid pid, Py_ssize_t kept) except -1:
        cdef size_t pair = <size_t>pid.hash_value & self.sets_mask
        cdef Place* places = self.said + 2 * pair
        cdef Writer* w = &self.data
        cdef PyObject* former
        cdef Py_ssize_t i, n
        cdef unsigned char* p
        cdef bytes text
        for i in range(2):
            if places[i].pid is not NULL and same_pid(<Pid>places[i].pid, pid):
                self.latest[pair] = <unsigned char>i
                return 2 * pair + i
        i = 0 if places[0].pid is NULL else 1 - self.latest[pair]
        if <Py_ssize_t>(2 * pair + i) == kept:
            return NO_PLACE
        text = self.codec.encoder.text_of(pid)
        n = FRAME_HEADER + 2 + PyBytes_GET_SIZE(text)
        self.reserve(w, n)
        p = w.data + w.size
        store_header(p, n, NAME, 0)
        store_16(p + FRAME_HEADER, <uint32_t>(2 * pair + i))
        memcpy(p + FRAME_HEADER + 2, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        w.size += n
        former = places[i].pid
        Py_INCREF(pid)
        places[i].pid = <PyObject*>pid
        places[i].is_own = same_node(pid.node, self.own)
        places[i].is_peer = same_node(pid.node, self.peer)
        self.latest[pair] = <unsigned char>i
        Py_XDECREF(former)
        return 2 * pair + i

    cdef int reserve(self, Writer* w, Py_ssize_t n) except -1:
        # Only messages are bounded here; how much may wait in a lane is the poll loop's to say.
        w.limit = PY_SSIZE_T_MAX
        return self.codec.encoder.grow(w, n)

    cdef void cut_back(self, Py_ssize_t size) noexcept:
        """Drop what the data lane has from `size` on, and the memory if a large message took it."""
        cdef Writer* w = &self.data
        cdef Py_ssize_t capacity = size + KEPT_BYTES_MAX // 2
        cdef unsigned char* data
        w.size = size
        if w.capacity > KEPT_BYTES_MAX and capacity < w.capacity // 2:
            data = <unsigned char*>PyMem_RawRealloc(w.data, capacity)
            if data is not NULL:
                w.data = data
                w.capacity = capacity

    cdef Py_ssize_t write_head(self, unsigned char* p, Envelope envelope) except -1:
        """The flags of an ENVELOPE in full and the fields in front of its message; how many bytes.

        At most HEAD_MAX + 1.
        """
        cdef unsigned char* start = p
        cdef CorrelationId cid = envelope.correlation_id
        cdef int flags = FLAG_FULL
        p = store_text(p + 1, self.codec.encoder.text_of(envelope.to))
        if envelope.sender is not None:
            flags |= FLAG_SENDER
            p = store_text(p, self.codec.encoder.text_of(envelope.sender))
        if cid is not None:
            flags |= FLAG_CID
            p = store_numbers(store_text(p, self.codec.encoder.text_of(cid.pid)), cid, &flags)
        start[0] = <unsigned char>flags
        return p - start

    # Hearing.

    cdef int hear(
        self, const unsigned char* data, size_t size, EnvelopeQueue out
    ) except -1:
        cdef Cursor c
        if self.failed:
            raise LinkError(self.failed, "it was told something wrong before, and hears no more")
        if self.is_hearing:
            raise RuntimeError("a message that is built on arrival made its own link hear")
        c.at = data
        c.end = data + size
        self.is_hearing = True
        try:
            while c.at != c.end:
                # One `try` for the batch; a message that cannot be built interrupts it.
                try:
                    self.hear_frames(&c, out)
                except UnknownMessageError as error:
                    self.hear_undecodable(&c, error, out)
        except BaseException as error:
            # Whatever it was, where the next frame begins is not known any more.
            self.drop_whole()
            if isinstance(error, LinkError):
                self.failed = error.code
                raise
            if isinstance(error, DecodeError):
                limit = isinstance(error, DecodeLimitError)
                self.failed = CODE_DECODE_LIMIT if limit else CODE_DECODE
                raise LinkError(self.failed, str(error)) from None
            self.failed = CODE_LIMIT
            raise
        finally:
            self.is_hearing = False
        return 0

    cdef int hear_frames(self, Cursor* c, EnvelopeQueue out) except -1:
        cdef Frame* frame = &c.frame
        cdef Py_ssize_t n
        while c.at != c.end:
            n = next_frame(c.at, c.end - c.at, self.frame_bytes_max, frame)
            if n <= 0:
                if n == 0:
                    raise LinkError(CODE_PROTOCOL, "a frame is not whole")
                raise LinkError(-n, unframed(c.at, c.end - c.at))
            c.at += n
            if frame.kind == ENVELOPE:
                self.hear_envelope(c, frame.flags, frame.body, frame.size, None, out)
            elif frame.kind == NAME:
                self.hear_name(frame)
            elif frame.kind == FRAGMENT:
                self.hear_fragment(c, out)
            elif frame.kind == DOWN:
                self.hear_down(frame, out)
            elif frame.kind == UNDELIVERED:
                self.hear_undelivered(frame, out)
            elif frame.kind < PING:
                self.hear_watch(frame, out)
        return 0

    cdef int hear_envelope(
        self, Cursor* c, int flags, const unsigned char* body, size_t size, bytes payload,
        EnvelopeQueue out,
    ) except -1:
        """Append an envelope. Its message is what stands behind the head, or the `payload`."""
        cdef Head head
        cdef CorrelationId cid = None
        cdef Envelope envelope
        cdef Py_ssize_t at = self.read_head(flags, body, size, &head)
        if head.about_to & IS_RESERVED:
            return self.tell(head_heard(self, HEARD_REFUSED, &head), out)
        c.flags = flags
        c.body = body
        c.size = size
        if <Py_ssize_t>size - at > self.message_bytes_max:
            raise LinkError(
                CODE_DECODE_LIMIT,
                f"a message of {size - at} bytes is longer than {self.message_bytes_max}",
            )
        msg = self.codec.decoder.read_whole(body + at, size - at) if payload is None else payload
        if flags & FLAG_CID:
            cid = head_cid(&head)
        if flags & FLAG_SENDER:
            envelope = new_envelope(<Pid>head.to, msg, <Pid>head.sender, cid)
        else:
            envelope = new_envelope(<Pid>head.to, msg, None, cid)
        out.put_owned(<PyObject*>envelope)
        Py_INCREF(envelope)
        return 0

    cdef int hear_undecodable(self, Cursor* c, object error, EnvelopeQueue out) except -1:
        """Go on after an envelope whose message the registry refused, and tell of it."""
        cdef Head head
        cdef Heard heard
        self.read_head(c.flags, c.body, c.size, &head)
        heard = head_heard(self, HEARD_UNDECODABLE, &head)
        heard.detail = str(error)[:DETAIL_MAX]
        if c.frame.kind == FRAGMENT:
            self.drop_whole()
        return self.tell(heard, out)

    cdef int tell(self, Heard heard, EnvelopeQueue out) except -1:
        """Put it into an envelope for the executor."""
        cdef Envelope envelope = new_envelope(self.executor, heard, None, None)
        out.put_owned(<PyObject*>envelope)
        Py_INCREF(envelope)
        return 0

    cdef int hear_name(self, Frame* frame) except -1:
        cdef size_t index = load_16(frame.body)
        cdef PyObject* former
        cdef Pid pid
        if index >= PLACES:
            raise LinkError(CODE_PROTOCOL, f"the table of names has no place {index}")
        try:
            pid = Pid.parse(
                PyUnicode_DecodeUTF8(<const char*>frame.body + 2, frame.size - 2, NULL)
            )
        except ValueError as error:
            raise LinkError(CODE_DECODE, f"no pid: {error}") from None
        # The nodes of thousands of pids are one object, which also is compared at a glance.
        if same_node(pid.node, self.own):
            pid.node = self.own
        elif same_node(pid.node, self.peer):
            pid.node = self.peer
        former = self.heard[index]
        Py_INCREF(pid)
        self.heard[index] = <PyObject*>pid
        self.heard_about[index] = <unsigned char>self.about(pid)
        Py_XDECREF(former)
        return 0

    cdef int about(self, Pid pid) except -1:
        if same_node(pid.node, self.own):
            if pid.group == RESERVED_GROUP and pid.name not in self.open_names:
                return IS_OWN | IS_RESERVED
            return IS_OWN
        return IS_PEER if same_node(pid.node, self.peer) else IS_ELSEWHERE

    cdef int hear_fragment(self, Cursor* c, EnvelopeQueue out) except -1:
        cdef const unsigned char* part = c.frame.body
        cdef Py_ssize_t size = c.frame.size
        cdef Py_ssize_t n
        cdef bytes payload = None
        cdef int flags
        if c.frame.flags & FLAG_FIRST:
            if self.whole is not NULL:
                raise LinkError(CODE_PROTOCOL, "a first fragment comes within another envelope's")
            self.whole_claimed = load_32(part)
            self.whole_size = 0
            self.whole_capacity = 0
            part += 4
            size -= 4
            if self.whole_claimed > self.message_bytes_max + HEAD_MAX + 1:
                raise LinkError(
                    CODE_FRAME_TOO_LARGE,
                    f"an envelope of {self.whole_claimed} bytes is announced; messages may take "
                    f"{self.message_bytes_max}",
                )
            flags = part[0]
            if flags & ~ENVELOPE_FLAGS or not flags & FLAG_FULL or not flags_agree(flags):
                raise LinkError(CODE_PROTOCOL, f"fragments of an envelope with flags {flags:#x}")
            n = self.begin_payload(part, min(size, self.whole_claimed))
            if n:
                self.keep_fragment(part, n)
                part += n
                size -= n
        elif self.whole is NULL:
            raise LinkError(CODE_PROTOCOL, "a fragment comes without a first one")
        if size > self.whole_claimed - self.whole_size - self.payload_size:
            raise LinkError(
                CODE_PROTOCOL, f"fragments have more than the {self.whole_claimed} bytes announced"
            )
        if self.payload is NULL:
            self.keep_fragment(part, size)
        else:
            self.keep_payload(part, size)
        if c.frame.flags & FLAG_LAST:
            if self.whole_size + self.payload_size != self.whole_claimed:
                raise LinkError(
                    CODE_PROTOCOL,
                    f"fragments end after {self.whole_size + self.payload_size} of "
                    f"{self.whole_claimed} bytes",
                )
            if self.payload is not NULL:
                payload = <bytes>self.payload
            self.hear_envelope(c, self.whole[0], self.whole + 1, self.whole_size - 1, payload, out)
            self.drop_whole()
        return 0

    cdef int begin_payload(self, const unsigned char* body, Py_ssize_t size) except -1:
        """See whether a message in fragments is nothing but bytes, which then are put together as
        the object that they become.

        :param body: the flags of the envelope and what the first fragment has of it.
        :returns: how much of it stands before those bytes; 0 if the message is something else.
        """
        cdef const unsigned char* p = body + 1
        cdef const unsigned char* end = body + size
        cdef int flags = body[0]
        cdef int texts = 1 + (flags & FLAG_SENDER != 0) + (flags & FLAG_CID != 0)
        cdef Py_ssize_t claimed
        while texts:
            if end - p < 2:
                return 0
            p += 2 + load_16(p)
            texts -= 1
        p += (8 if flags & FLAG_CONNECTION else 0) + (8 if flags & FLAG_REQUEST else 0)
        if end - p < 5 or p[0] != 0xc6:
            return 0
        claimed = load_32(p + 1)
        p += 5
        if claimed != self.whole_claimed - (p - body) or claimed + 5 > self.message_bytes_max:
            return 0
        self.payload = new_bytes(NULL, min(claimed, PAYLOAD_BYTES_MIN))
        self.payload_claimed = claimed
        return p - body

    cdef int keep_fragment(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Append a part to what came; memory grows with that, not with what was announced."""
        cdef Py_ssize_t needed = self.whole_size + size
        cdef Py_ssize_t capacity
        cdef unsigned char* whole
        if needed > self.whole_capacity:
            capacity = min(max(needed, 2 * self.whole_capacity), self.whole_claimed)
            whole = <unsigned char*>PyMem_Realloc(self.whole, capacity)
            if whole is NULL:
                raise MemoryError
            self.whole = whole
            self.whole_capacity = capacity
        memcpy(self.whole + self.whole_size, data, size)
        self.whole_size = needed
        return 0

    cdef int keep_payload(self, const unsigned char* data, Py_ssize_t size) except -1:
        """The same of a message that is nothing but bytes."""
        cdef Py_ssize_t needed = self.payload_size + size
        cdef Py_ssize_t capacity = bytes_size(self.payload)
        if needed > capacity:
            capacity = min(max(needed, 2 * capacity), self.payload_claimed)
            _PyBytes_Resize(&self.payload, capacity)
        memcpy(bytes_data(self.payload) + self.payload_size, data, size)
        self.payload_size = needed
        return 0

    cdef void drop_whole(self) noexcept:
        PyMem_Free(self.whole)
        self.whole = NULL
        Py_CLEAR(self.payload)
        self.payload_size = 0

    cdef int hear_watch(self, Frame* frame, EnvelopeQueue out) except -1:
        """MONITOR, DEMONITOR and LOST."""
        cdef Heard heard = new_heard(self, frame.kind, None, None)
        if frame.kind == LOST:
            heard.count = load_32(frame.body)
        else:
            heard.about = <Pid>name_at(self, frame.body, IS_PEER)
            heard.to = <Pid>name_at(self, frame.body + 2, IS_OWN)
        return self.tell(heard, out)

    cdef int hear_down(self, Frame* frame, EnvelopeQueue out) except -1:
        cdef const unsigned char* p = frame.body
        cdef const unsigned char* end = frame.body + frame.size
        cdef Heard heard = new_heard(self, DOWN, None, None)
        if frame.flags & FLAG_FULL:
            heard.to = self.read_text(&p, end, IS_OWN)
            heard.about = self.read_text(&p, end, IS_PEER)
        else:
            heard.to = <Pid>name_at(self, p, IS_OWN)
            heard.about = <Pid>name_at(self, p + 2, IS_PEER)
            p += 4
        if not 1 <= end - p <= 1 + DETAIL_MAX:
            raise LinkError(CODE_PROTOCOL, f"a DOWN has {end - p} bytes behind its pids")
        heard.why = p[0]
        if not 1 <= heard.why <= WHY_DOWN_MAX:
            raise LinkError(CODE_DECODE, f"why {heard.why} of a DOWN is unknown")
        try:
            heard.detail = PyUnicode_DecodeUTF8(<const char*>p + 1, end - p - 1, NULL)
        except UnicodeDecodeError as error:
            raise LinkError(CODE_DECODE, f"a text is not UTF-8: {error.reason}") from None
        return self.tell(heard, out)

    cdef int hear_undelivered(self, Frame* frame, EnvelopeQueue out) except -1:
        cdef Head head
        cdef Heard heard
        cdef int why = frame.body[frame.size - 1]
        # Its fields are those of an ENVELOPE without a sender.
        self.read_head(frame.flags, frame.body, frame.size, &head)
        if not 1 <= why <= WHY_UNDELIVERED_MAX:
            raise LinkError(CODE_DECODE, f"why {why} of an UNDELIVERED is unknown")
        heard = head_heard(self, UNDELIVERED, &head)
        heard.why = why
        return self.tell(heard, out)

    cdef Py_ssize_t read_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1:
        """Read the fields in front of a message; returns where it begins."""
        cdef const unsigned char* p = body
        head.flags = flags
        if flags & FLAG_FULL:
            return self.read_full_head(flags, body, size, head)
        # The frame is long enough: `next_frame` saw to it.
        head.to = name_at(self, p, IS_OWN)
        head.about_to = self.heard_about[load_16(p)]
        p += 2
        if flags & FLAG_SENDER:
            head.sender = name_at(self, p, IS_PEER)
            p += 2
        if flags & FLAG_CID:
            head.asker = name_at(self, p, IS_OWN | IS_PEER | IS_ELSEWHERE)
            p = read_numbers(p + 2, head)
        return p - body

    cdef Py_ssize_t read_full_head(
        self, int flags, const unsigned char* body, size_t size, Head* head
    ) except -1:
        cdef const unsigned char* p = body
        cdef const unsigned char* end = body + size
        cdef Py_ssize_t numbers
        self.full_to = self.read_text(&p, end, IS_OWN)
        head.to = <PyObject*>self.full_to
        head.about_to = self.about(self.full_to)
        if flags & FLAG_SENDER:
            self.full_sender = self.read_text(&p, end, IS_PEER)
            head.sender = <PyObject*>self.full_sender
        if flags & FLAG_CID:
            self.full_asker = self.read_text(&p, end, IS_OWN | IS_PEER | IS_ELSEWHERE)
            head.asker = <PyObject*>self.full_asker
            numbers = (8 if flags & FLAG_CONNECTION else 0) + (8 if flags & FLAG_REQUEST else 0)
            if end - p < numbers:
                raise LinkError(CODE_PROTOCOL, "an envelope ends within its head")
            p = read_numbers(p, head)
        if p == end:
            raise LinkError(CODE_PROTOCOL, "an envelope has no message")
        return p - body

    cdef Pid read_text(
        self, const unsigned char** at, const unsigned char* end, int wanted
    ):
        """A pid in full."""
        cdef Reader r
        cdef Pid pid
        cdef const unsigned char* p = at[0]
        cdef Py_ssize_t n = 0
        if end - p >= 2:
            n = load_16(p)
            p += 2
        if n == 0 or n > end - p:
            raise LinkError(CODE_PROTOCOL, "a pid is longer than its frame, or has no length")
        at[0] = p + n
        self.codec.decoder.begin(&r, p, n)
        pid = self.codec.decoder.read_pid(&r, p, n)
        if not self.about(pid) & wanted:
            raise LinkError(CODE_SPOOF, spoof(pid, wanted))
        return pid


cdef inline PyObject* name_at(Link link, const unsigned char* p, int wanted) except NULL:
    """The pid whose index stands there, borrowed from the table."""
    cdef size_t index = load_16(p)
    # A place that was not filled is about nobody.
    if index >= PLACES or not link.heard_about[index] & wanted:
        raise no_name(link, index, wanted)
    return link.heard[index]


cdef object no_name(Link link, size_t index, int wanted):
    if index >= PLACES or link.heard[index] is NULL:
        return LinkError(CODE_PROTOCOL, f"place {index} of the table of names was not filled")
    return LinkError(CODE_SPOOF, spoof(<Pid>link.heard[index], wanted))


cdef object speaking():
    return RuntimeError("a message that is being encoded made its own link speak")


cdef object foreign(Pid pid, str role, NodeId node):
    return EncodeError(
        f"the {role} {pid} does not live on {node}, so the peer would end the connection"
    )


cdef str spoof(Pid pid, int wanted):
    where = "this node" if wanted & IS_OWN else "the node that speaks"
    return f"{ascii(str(pid))} is no pid of {where}"


cdef str unframed(const unsigned char* data, Py_ssize_t size):
    return f"no frame begins with {data[:min(size, FRAME_HEADER)].hex(' ')}"


cdef bytes detail_text(str detail):
    """The text as DOWN carries it: in normal form C, cut to DETAIL_MAX bytes."""
    if not detail:
        return b""
    # A character takes a byte at least, so most of a huge text need not be looked at.
    text = unicodedata.normalize("NFC", detail[:2 * DETAIL_MAX]).encode("utf-8", "replace")
    if len(text) <= DETAIL_MAX:
        return text
    return text[:DETAIL_MAX].decode("utf-8", "ignore").encode()


cdef bytes taken(Link link, Writer* w):
    if link.is_speaking:
        raise speaking()
    data = PyBytes_FromStringAndSize(<char*>w.data, w.size)
    w.size = 0
    return data


cdef void store_lost(unsigned char* p, unsigned char flags, uint32_t count) noexcept:
    store_header(p, FRAME_HEADER + 4, LOST, flags)
    store_32(p + FRAME_HEADER, count)


cdef inline unsigned char* store_text(unsigned char* p, bytes text) noexcept:
    """A length and what is that long; returns where that ends."""
    store_16(p, <uint32_t>PyBytes_GET_SIZE(text))
    memcpy(p + 2, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return p + 2 + PyBytes_GET_SIZE(text)


cdef inline unsigned char* store_numbers(
    unsigned char* p, CorrelationId cid, int* flags
) except NULL:
    """The numbers that a correlation id has, and the flags that say so."""
    if cid.connection is not None:
        flags[0] |= FLAG_CONNECTION
        store_64(p, <uint64_t>cid.connection)
        p += 8
    if cid.request is not None:
        flags[0] |= FLAG_REQUEST
        store_64(p, <uint64_t>cid.request)
        p += 8
    return p


cdef inline const unsigned char* read_numbers(
    const unsigned char* p, Head* head
) except NULL:
    if head.flags & FLAG_CONNECTION:
        head.connection = load_64(p)
        p += 8
        if head.connection >> 63:
            raise LinkError(CODE_DECODE, "the connection of a correlation id is 2**63 or more")
    if head.flags & FLAG_REQUEST:
        head.request = load_64(p)
        p += 8
        if head.request >> 63:
            raise LinkError(CODE_DECODE, "the request of a correlation id is 2**63 or more")
    return p


cdef CorrelationId head_cid(Head* head):
    connection = None
    request = None
    if head.flags & FLAG_CONNECTION:
        connection = head.connection
    if head.flags & FLAG_REQUEST:
        request = head.request
    return CorrelationId(<Pid>head.asker, connection, request)


cdef Heard head_heard(Link link, int kind, Head* head):
    """What is told of an ENVELOPE, or of an UNDELIVERED."""
    cdef Heard heard = new_heard(link, kind, <Pid>head.to, None)
    if head.flags & FLAG_SENDER:
        heard.about = <Pid>head.sender
    if head.flags & FLAG_CID:
        heard.correlation_id = head_cid(head)
    return heard
