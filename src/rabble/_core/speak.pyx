"""What one node says to another: envelopes and all else, as frames.

Whole frames are written into one of two buffers, the lanes, in one pass: the NAMEs that an envelope
needs, room for the frame's header, the fields in front of the message, the message; then the header
is filled in.

Pids travel as indexes of a table, so that the usual envelope takes some ten bytes besides its
message. A place of that table also tells whether its pid may be spoken to, or for: no string is
compared for an envelope.

What is held to be sent is bounded by the poll loop, which is asked before something is said.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import unicodedata

from rabble._core.bulk cimport (
    BulkFrame, add_frame, bulk_sent, forget_frames, free_bulk, make_room, put_envelope,
    put_fragments, reserve_envelope, reserve_frame,
)
from rabble._core.capacities cimport DATA_BYTES_KEPT, PAIRS_MIN
from rabble._core.encode cimport Encoder
from rabble._core.encode import EncodeError
from rabble._core.envelope cimport Envelope
from rabble._core.frame cimport (
    DEMONITOR, DETAIL_MAX, DOWN, DOWN_TAIL, ENVELOPE, FLAG_CID, FLAG_CONNECTION, FLAG_FORWARDED,
    FLAG_FULL, FLAG_REQUEST, FLAG_SENDER, FRAME_HEADER, HEAD_MAX, LOST, MONITOR, NAME, TAKEN,
    UNDELIVERED, may_be_forwarded, store_16, store_32, store_64, store_header,
)
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid
from rabble._core.writer cimport Writer

__all__ = ["Speaker"]

RESERVED_GROUP = "rabble"

cdef enum:
    HEAD_ROOM = FRAME_HEADER + 3 * 2 + 16   # header and fields of an ENVELOPE, by index
    NO_PLACE = -2


@cython.final
cdef class Speaker:
    """The encoder of one connection: a `Link` makes it, and has checked what it is made of."""

    def __cinit__(
        self, NodeId own not None, NodeId peer not None, Pid executor not None,
        Encoder encoder not None, Py_ssize_t fragment_bytes, Py_ssize_t message_bytes_max,
        Py_ssize_t places,
    ):
        if places < 2 or places & (places - 1):
            raise ValueError(f"Speaker: places must be a power of two, not {places}")
        self.own = own
        self.peer = peer
        self.executor = executor
        self.encoder = encoder
        self.fragment_bytes = fragment_bytes
        self.message_bytes_max = message_bytes_max
        self.sets_mask = <size_t>places // 2 - 1
        self.said = <Place*>PyMem_Calloc(places, sizeof(Place))
        self.latest = <unsigned char*>PyMem_Calloc(places // 2, 1)
        if self.said is NULL or self.latest is NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        if self.said is not NULL:
            for i in range(2 * self.sets_mask + 2):
                Py_XDECREF(self.said[i].pid)
        PyMem_Free(self.said)
        PyMem_Free(self.latest)
        PyMem_RawFree(self.data.data)
        free_bulk(&self.bulk)

    cdef bytes take_data(self):
        """The bytes of the data lane, which is empty then."""
        if self.is_speaking:
            raise speaking()
        data = PyBytes_FromStringAndSize(<char*>self.data.data, self.data.size)
        self.data.size = 0
        return data

    cdef bytes take_bulk(self, size_t unsent):
        """Those of the bulk lane, of which `unsent` wait in the poll loop from now on."""
        cdef const BulkFrame* frame = <const BulkFrame*>self.bulk.frames.data
        cdef const BulkFrame* end = <const BulkFrame*>(
            self.bulk.frames.data + self.bulk.frames.size
        )
        cdef const unsigned char* own = self.bulk.own.data
        cdef list parts = []
        if self.is_speaking:
            raise speaking()
        # Lists take memory, which may make the collector run anybody's code.
        self.is_speaking = True
        try:
            while frame != end:
                parts.append(PyBytes_FromStringAndSize(<const char*>own, frame.own_size))
                parts.append(PyBytes_FromStringAndSize(<const char*>frame.rest, frame.rest_size))
                own += frame.own_size
                frame += 1
            data = b"".join(parts)
        finally:
            self.is_speaking = False
        forget_frames(&self.bulk)
        self.bulk.unsent = unsent
        return data

    cdef int say_envelope(self, Envelope envelope, Pid forwarder) except -1:
        cdef Writer* w = &self.data
        cdef CorrelationId cid = envelope.correlation_id
        cdef Py_ssize_t to, start, message
        cdef Py_ssize_t sender = 0
        cdef Py_ssize_t asker = 0
        cdef int flags = 0
        cdef unsigned char* p
        if self.is_speaking:
            raise speaking()
        if self.pairs is not None and self.is_in_bulk(envelope.sender, envelope.to):
            return self.say_in_full(envelope, forwarder)
        # The names first, so that their frames come first. They stay said if the message cannot be
        # encoded: the peer's table then is as this one.
        to = self.place_of(envelope.to, -1)
        if not self.said[to].is_peer:
            raise foreign(envelope.to, "receiver", self.peer)
        if envelope.sender is not None:
            flags = FLAG_SENDER
            sender = self.place_of(envelope.sender, -1)
            if not self.said[sender].is_own:
                flags |= FLAG_FORWARDED
                sender = self.place_of_forwarder(envelope, forwarder, to)
                if sender == NO_PLACE:
                    return self.say_in_full(envelope, forwarder)
        if cid is not None:
            flags |= FLAG_CID
            asker = self.place_of(cid.pid, to)
            if asker == NO_PLACE:
                # Three pids fight for two places.
                return self.say_in_full(envelope, forwarder)
        if self.is_large_bytes(envelope.msg):
            return self.say_bytes(envelope, forwarder, <bytes>envelope.msg)
        start = w.size
        if w.capacity - start < HEAD_ROOM:
            make_room(self.encoder, w, HEAD_ROOM)
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
            return self.move_to_bulk(envelope, forwarder, start, message)
        store_header(w.data + start, w.size - start, ENVELOPE, <unsigned char>flags)
        return 0

    cdef Py_ssize_t say_message(self, object msg, Py_ssize_t start) except -1:
        """Append the encoded message to the data lane and return its length.

        On an error the lane is cut back to `start`.
        """
        cdef Writer* w = &self.data
        cdef Py_ssize_t message = w.size
        cdef bint said = False
        w.limit = message + self.message_bytes_max + 16
        w.depth = self.encoder.depth_max
        w.elements = self.encoder.elements_max
        self.is_speaking = True
        try:
            self.encoder.write(w, msg)
            if w.size - message > self.message_bytes_max:
                raise too_long(self, w.size - message)
            said = True
        finally:
            self.is_speaking = False
            if not said:
                self.cut_back(start)
        return w.size - message

    cdef int say_in_full(self, Envelope envelope, Pid forwarder) except -1:
        """Say it without indexes, by the bulk lane, which has what is in full."""
        cdef Py_ssize_t start = self.data.size
        if self.is_large_bytes(envelope.msg):
            return self.say_bytes(envelope, forwarder, <bytes>envelope.msg)
        self.say_message(envelope.msg, start)
        return self.move_to_bulk(envelope, forwarder, start, start)

    cdef inline bint is_large_bytes(self, object msg) noexcept:
        return type(msg) is bytes and 2 + PyBytes_GET_SIZE(msg) > self.fragment_bytes

    cdef int say_bytes(self, Envelope envelope, Pid forwarder, bytes msg) except -1:
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
            envelope, forwarder, head, head_size, <const unsigned char*>PyBytes_AS_STRING(msg),
            size, msg,
        )

    cdef int move_to_bulk(
        self, Envelope envelope, Pid forwarder, Py_ssize_t start, Py_ssize_t message
    ) except -1:
        """Move the message at the end of the data lane to the bulk lane; cut that back to `start`.

        So a message is encoded once, wherever it goes.
        """
        try:
            self.put_in_bulk(
                envelope, forwarder, NULL, 0, self.data.data + message,
                self.data.size - message, None,
            )
        finally:
            self.cut_back(start)
        return 0

    cdef int put_in_bulk(
        self,
        Envelope envelope,
        Pid forwarder,
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
        cdef Py_ssize_t head_size, size
        cdef bint cut = begin_size + source_size > self.fragment_bytes
        # To note a pair takes memory, which may make the collector run anybody's code.
        self.is_speaking = True
        try:
            head_size = self.write_head(head, envelope, forwarder)
            if begin_size:
                memcpy(head + head_size, begin, begin_size)
                head_size += begin_size
            size = reserve_envelope(
                &self.bulk, self.encoder, head_size, source_size, message is not None,
                self.fragment_bytes if cut else 0,
            )
            self.goes_to_bulk(envelope.sender, envelope.to, size)
            # There is memory for it, so it is there in whole.
            if cut:
                put_fragments(
                    &self.bulk, self.encoder, head, head_size, source, source_size, message,
                    self.fragment_bytes,
                )
            else:
                put_envelope(&self.bulk, self.encoder, head, head_size, source, source_size)
        finally:
            self.is_speaking = False
        return 0

    cdef bint is_in_bulk(self, Pid sender, Pid to) except -1:
        """Whether something of that pair is in the bulk lane, which what follows must not overtake.

        To be asked only while there is a `pairs`.
        """
        cdef uint64_t sent = bulk_sent(&self.bulk)
        cdef dict pairs = self.pairs
        if sent == self.bulk.said:
            self.pairs = None
            return False
        end = pairs.get(pair_of(sender, to))
        return end is not None and <uint64_t>end > sent

    cdef int goes_to_bulk(self, Pid sender, Pid to, Py_ssize_t size) except -1:
        """Note that the next `size` bytes of the bulk lane are of that pair.

        They must be put there at once: what was noted and does not come is waited for for ever.
        """
        cdef uint64_t sent
        cdef dict pairs = self.pairs
        if pairs is None:
            pairs = {}
            self.pairs_max = PAIRS_MIN
        elif len(pairs) >= self.pairs_max:
            # A lane that never runs empty must not remember every pair for ever.
            sent = bulk_sent(&self.bulk)
            pairs = {pair: end for pair, end in pairs.items() if <uint64_t>end > sent}
            self.pairs_max = max(<Py_ssize_t>PAIRS_MIN, 2 * len(pairs))
        pairs[pair_of(sender, to)] = self.bulk.said + <uint64_t>size
        self.pairs = pairs
        self.bulk.said += size
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
        make_room(self.encoder, w, FRAME_HEADER + 4)
        store_header(w.data + w.size, FRAME_HEADER + 4, <unsigned char>kind, 0)
        store_16(w.data + w.size + FRAME_HEADER, <uint32_t>first)
        store_16(w.data + w.size + FRAME_HEADER + 2, <uint32_t>second)
        w.size += FRAME_HEADER + 4
        return 0

    cdef int say_down(
        self, Pid watcher, Pid watched, int why, uint64_t life, str detail
    ) except -1:
        cdef bytes text = detail_text(detail)
        cdef bytes watcher_text, watched_text
        cdef Py_ssize_t first, second, n
        cdef unsigned char* start
        cdef unsigned char* p
        cdef unsigned char flags = 0
        if self.is_speaking:
            raise speaking()
        # What the ended process said to the watcher comes before, in whichever lane it is.
        if self.pairs is not None and self.is_in_bulk(watched, watcher):
            self.check_down(same_node(watcher.node, self.peer), watcher,
                            same_node(watched.node, self.own), watched)
            flags = FLAG_FULL
            watcher_text = self.encoder.text_of(watcher)
            watched_text = self.encoder.text_of(watched)
            n = FRAME_HEADER + 4 + len(watcher_text) + len(watched_text) + DOWN_TAIL + len(text)
            self.is_speaking = True
            try:
                reserve_frame(&self.bulk, self.encoder, n)
                self.goes_to_bulk(watched, watcher, n)
                add_frame(&self.bulk, self.encoder, n, 0)
            finally:
                self.is_speaking = False
            start = self.bulk.own.data + self.bulk.own.size - n
            p = store_text(store_text(start + FRAME_HEADER, watcher_text), watched_text)
        else:
            first = self.place_of(watcher, -1)
            second = self.place_of(watched, -1)
            self.check_down(self.said[first].is_peer, watcher, self.said[second].is_own, watched)
            n = FRAME_HEADER + 4 + DOWN_TAIL + len(text)
            make_room(self.encoder, &self.data, n)
            start = self.data.data + self.data.size
            self.data.size += n
            store_16(start + FRAME_HEADER, <uint32_t>first)
            store_16(start + FRAME_HEADER + 2, <uint32_t>second)
            p = start + FRAME_HEADER + 4
        p[0] = <unsigned char>why
        store_64(p + 1, life)
        memcpy(p + DOWN_TAIL, PyBytes_AS_STRING(text), len(text))
        store_header(start, n, DOWN, flags)
        return 0

    cdef int check_down(
        self, bint is_peer, Pid watcher, bint is_own, Pid watched
    ) except -1:
        if not is_peer:
            raise foreign(watcher, "watcher", self.peer)
        if not is_own:
            raise foreign(watched, "watched", self.own)
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
        make_room(self.encoder, w, HEAD_ROOM)
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
        if self.pairs is not None and self.is_in_bulk(envelope.sender, envelope.to):
            if self.refused_pairs is None:
                self.refused_pairs = set()
            self.refused_pairs.add(pair_of(envelope.sender, envelope.to))
            self.refused += 1
        return 0

    cdef int say_lost(self, uint32_t count) except -1:
        """Say that so many envelopes were dropped, in the lanes that they would have gone by.

        So it stands between what was said before the hole and what is said behind it.
        """
        cdef uint32_t in_bulk = 0
        cdef unsigned char* end
        if self.is_speaking:
            raise speaking()
        if self.pairs is not None:
            in_bulk = min(self.refused, count)
        # All that may fail comes first: what is lost is told once.
        make_room(self.encoder, &self.data, FRAME_HEADER + 4)
        if in_bulk:
            self.is_speaking = True
            try:
                reserve_frame(&self.bulk, self.encoder, FRAME_HEADER + 4)
                for pair in self.refused_pairs:
                    # What they say next must not overtake this.
                    self.pairs[pair] = self.bulk.said + FRAME_HEADER + 4
                add_frame(&self.bulk, self.encoder, FRAME_HEADER + 4, 0)
            finally:
                self.is_speaking = False
            self.bulk.said += FRAME_HEADER + 4
            end = self.bulk.own.data + self.bulk.own.size
            store_lost(end - FRAME_HEADER - 4, FLAG_FULL, in_bulk)
        if count != in_bulk:
            store_lost(self.data.data + self.data.size, 0, count - in_bulk)
            self.data.size += FRAME_HEADER + 4
        self.refused = 0
        self.refused_pairs = None
        return 0

    cdef int say_taken(self, uint64_t taken) except -1:
        """Say how many bytes of the peer's bulk lane were taken."""
        cdef Writer* w = &self.data
        if self.is_speaking:
            raise speaking()
        make_room(self.encoder, w, FRAME_HEADER + 8)
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
        text = self.encoder.text_of(pid)
        n = FRAME_HEADER + 2 + PyBytes_GET_SIZE(text)
        make_room(self.encoder, w, n)
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

    cdef void cut_back(self, Py_ssize_t size) noexcept:
        """Drop what the data lane has from `size` on, and the memory if a large message took it."""
        cdef Writer* w = &self.data
        cdef Py_ssize_t capacity = size + DATA_BYTES_KEPT // 2
        cdef unsigned char* data
        w.size = size
        if w.capacity > DATA_BYTES_KEPT and capacity < w.capacity // 2:
            data = <unsigned char*>PyMem_RawRealloc(w.data, capacity)
            if data is not NULL:
                w.data = data
                w.capacity = capacity

    cdef Py_ssize_t place_of_forwarder(
        self, Envelope envelope, Pid forwarder, Py_ssize_t kept
    ) except -1:
        return self.place_of(self.who_forwards(envelope, forwarder), kept)

    cdef Pid who_forwards(self, Envelope envelope, Pid forwarder):
        """Who passes on an envelope whose sender is not of this node; `EncodeError` if nobody may.

        What may be passed on is a request, in the name of who asked it.
        """
        cdef Pid sender = envelope.sender
        cdef CorrelationId cid = envelope.correlation_id
        if cid is None or not same_pid(cid.pid, sender) or not may_be_forwarded(sender):
            raise foreign(sender, "sender", self.own)
        if forwarder is None:
            return self.executor
        if not same_node(forwarder.node, self.own):
            raise foreign(forwarder, "forwarder", self.own)
        return forwarder

    cdef Py_ssize_t write_head(
        self, unsigned char* p, Envelope envelope, Pid forwarder
    ) except -1:
        """The flags of an ENVELOPE in full and the fields in front of its message; how many bytes.

        At most HEAD_MAX + 1.
        """
        cdef unsigned char* start = p
        cdef CorrelationId cid = envelope.correlation_id
        cdef Pid sender = envelope.sender
        cdef int flags = FLAG_FULL
        p = store_text(p + 1, self.encoder.text_of(envelope.to))
        if sender is not None:
            flags |= FLAG_SENDER
            if not same_node(sender.node, self.own):
                flags |= FLAG_FORWARDED
                sender = self.who_forwards(envelope, forwarder)
            p = store_text(p, self.encoder.text_of(sender))
        if cid is not None:
            flags |= FLAG_CID
            p = store_numbers(store_text(p, self.encoder.text_of(cid.pid)), cid, &flags)
        start[0] = <unsigned char>flags
        return p - start


cdef tuple pair_of(Pid sender, Pid to):
    """What keeps its order: a sender and a receiver.

    A thread is one sender, whether it sends, without a pid, or calls, by one of the runtime's.
    """
    if sender is not None and sender.group is not None and sender.group == RESERVED_GROUP:
        sender = None
    return (sender, to)


cdef object speaking():
    return RuntimeError("a message that is being encoded made its own link speak")


cdef object foreign(Pid pid, str role, NodeId node):
    return EncodeError(
        f"the {role} {pid} does not live on {node}, so the peer would end the connection"
    )


cdef object too_long(Speaker speaker, Py_ssize_t size):
    return EncodeError(
        f"the message takes {size} bytes, more than the {speaker.message_bytes_max} allowed; "
        f"send it in parts"
    )


cdef bytes detail_text(str detail):
    """The text as DOWN carries it: in normal form C, cut to DETAIL_MAX bytes."""
    if not detail:
        return b""
    # A character takes a byte at least, so most of a huge text need not be looked at.
    text = unicodedata.normalize("NFC", detail[:2 * DETAIL_MAX]).encode("utf-8", "replace")
    if len(text) <= DETAIL_MAX:
        return text
    return text[:DETAIL_MAX].decode("utf-8", "ignore").encode()


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
