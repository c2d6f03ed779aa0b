"""The frame encoder: what one node sends to another, as frames.

Whole frames are written into one of two buffers, the lanes, in one pass: the CACHE_PIDs that an
envelope needs, room for the frame's header, the fields in front of the message, the message; then
the header is filled in.

Pids travel as slots of a cache, so that the usual envelope takes some ten bytes besides its
message. A slot of that cache also tells whether its pid may be sent to, or from: no string is
compared for an envelope.

What is held to be sent is bounded by the poll loop, which is asked before something is written.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from rabble._core.buffer_writer cimport BufferWriter, put_bytes_head
from rabble._core.byteorder cimport store_16, store_32, store_64
from rabble._core.bulk_pairs cimport BulkPairs
from rabble._core.capacities cimport DATA_BYTES_KEPT
from rabble._core.encoder cimport Encoder
from rabble._core.envelope cimport Envelope
from rabble._core.frame cimport (
    CACHE_PID, DEMONITOR, DETAIL_MAX, DOWN, DOWN_TAIL, ENVELOPE, EXIT, FLAG_CID, FLAG_CONNECTION,
    FLAG_FORWARDED, FLAG_FULL, FLAG_REQUEST, FLAG_SENDER, FRAME_HEADER, HEAD_MAX, LINK, LOST,
    MONITOR, PID_CACHE_SLOTS, REFERENCE_BYTES, UNDELIVERED, UNDELIVERED_TAIL, UNLINK,
    WINDOW_UPDATE, may_be_forwarded, store_header, text_of_frame,
)
from rabble._core.gather cimport (
    GatherFrame, add_frame, forget_frames, free_gather, make_room, put_envelope, put_fragments,
    reserve_envelope, reserve_frame,
)
from rabble._core.ids cimport CorrelationId, NodeId, Pid, same_node, same_pid

from rabble._core.errors import EncodeError

__all__ = ["FrameEncoder"]

cdef enum:
    HEAD_ROOM = FRAME_HEADER + 3 * 2 + 16   # header and fields of an ENVELOPE, by index
    NO_SLOT = -2

# The pid cache of all those who have sent no pid yet, which is never written to: most connections
# of a large mesh carry no messages for long.
cdef PidSlot NEVER_USED[PID_CACHE_SLOTS]


cdef int make_slots(FrameEncoder frame_encoder) except -1:
    """Take the memory of a pid cache."""
    cdef size_t pairs = frame_encoder.sets_mask + 1
    cdef PidSlot* slots = <PidSlot*>PyMem_Calloc(2 * pairs, sizeof(PidSlot))
    cdef unsigned char* latest = <unsigned char*>PyMem_Calloc(pairs, 1)
    if slots is NULL or latest is NULL:
        PyMem_Free(slots)
        PyMem_Free(latest)
        raise MemoryError
    frame_encoder.slots = slots
    frame_encoder.latest = latest
    return 0


@cython.final
cdef class FrameEncoder:
    """The encoder of one connection: a `Session` makes it, and has checked what it is made of."""

    def __cinit__(
        self, NodeId own not None, NodeId peer not None, Pid executor not None,
        Encoder encoder not None, Py_ssize_t fragment_bytes, Py_ssize_t message_bytes_max,
        Py_ssize_t peer_bytes_max, Py_ssize_t slots,
    ):
        if not 2 <= slots <= PID_CACHE_SLOTS or slots & (slots - 1):
            raise ValueError(f"FrameEncoder: slots must be a power of two, not {slots}")
        self.own = own
        self.peer = peer
        self.executor = executor
        self.encoder = encoder
        self.fragment_bytes = fragment_bytes
        self.message_bytes_max = message_bytes_max
        self.peer_bytes_max = peer_bytes_max
        self.pairs = BulkPairs.__new__(BulkPairs)
        self.sets_mask = <size_t>slots // 2 - 1
        self.slots = NEVER_USED

    def __dealloc__(self):
        cdef size_t i
        if self.latest is not NULL:
            for i in range(2 * self.sets_mask + 2):
                Py_XDECREF(self.slots[i].pid)
            PyMem_Free(self.slots)
            PyMem_Free(self.latest)
        PyMem_RawFree(self.data.data)
        free_gather(&self.bulk)

    cdef bytes take_data(self):
        """The bytes of the data lane, which is empty then."""
        if self.is_encoding:
            raise reentered()
        data = PyBytes_FromStringAndSize(<char*>self.data.data, self.data.size)
        self.data.size = 0
        return data

    cdef bytes take_bulk(self, size_t unsent):
        """Those of the bulk lane, of which `unsent` wait in the poll loop from now on."""
        cdef const GatherFrame* frame = <const GatherFrame*>self.bulk.frames.data
        cdef const GatherFrame* end = <const GatherFrame*>(
            self.bulk.frames.data + self.bulk.frames.size
        )
        cdef const unsigned char* own = self.bulk.own.data
        cdef list parts = []
        if self.is_encoding:
            raise reentered()
        # Lists take memory, which may make the collector run anybody's code.
        self.is_encoding = True
        try:
            while frame != end:
                parts.append(PyBytes_FromStringAndSize(<const char*>own, frame.own_size))
                parts.append(PyBytes_FromStringAndSize(<const char*>frame.rest, frame.rest_size))
                own += frame.own_size
                frame += 1
            data = b"".join(parts)
        finally:
            self.is_encoding = False
        forget_frames(&self.bulk)
        self.bulk.unsent = unsent
        return data

    cdef int write_envelope(self, Envelope envelope, Pid forwarder) except -1:
        cdef BufferWriter* w = &self.data
        cdef CorrelationId cid = envelope.correlation_id
        cdef Py_ssize_t to, start, message
        cdef Py_ssize_t sender = 0
        cdef Py_ssize_t asker = 0
        cdef int flags = 0
        cdef unsigned char* p
        if self.is_encoding:
            raise reentered()
        if self.pairs.ends is not None and self.pairs.has(&self.bulk, envelope.sender, envelope.to):
            return self.write_in_full(envelope, forwarder)
        # The pids first, so that their frames come first. They stay if the message is not encoded:
        # the peer's cache then is as this one.
        to = self.slot_of(envelope.to, -1)
        if not self.slots[to].is_peer:
            raise foreign(envelope.to, "receiver", self.peer)
        if envelope.sender is not None:
            flags = FLAG_SENDER
            sender = self.slot_of(envelope.sender, -1)
            if not self.slots[sender].is_own:
                flags |= FLAG_FORWARDED
                sender = self.slot_of_forwarder(envelope, forwarder, to)
                if sender == NO_SLOT:
                    return self.write_in_full(envelope, forwarder)
        if cid is not None:
            flags |= FLAG_CID
            asker = self.slot_of(cid.pid, to)
            if asker == NO_SLOT:
                # Three pids fight for two slots.
                return self.write_in_full(envelope, forwarder)
        if self.is_large_bytes(envelope.msg):
            return self.write_bytes(envelope, forwarder, <bytes>envelope.msg)
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
        if self.write_message(envelope.msg, start) > self.fragment_bytes:
            return self.move_to_bulk(envelope, forwarder, start, message)
        store_header(w.data + start, w.size - start, ENVELOPE, <unsigned char>flags)
        return 0

    cdef Py_ssize_t write_message(self, object msg, Py_ssize_t start) except -1:
        """Append the encoded message to the data lane and return its length.

        On an error the lane is cut back to `start`.
        """
        cdef BufferWriter* w = &self.data
        cdef Py_ssize_t message = w.size
        cdef bint is_done = False
        w.limit = message + self.message_bytes_max + 16
        w.depth = self.encoder.depth_max
        w.elements = self.encoder.elements_max
        w.memory = self.encoder.decoded_bytes_max
        w.hashed = 0
        self.is_encoding = True
        try:
            self.encoder.write(w, msg)
            if w.size - message > self.peer_bytes_max:
                raise too_long(self, w.size - message)
            is_done = True
        finally:
            self.is_encoding = False
            if not is_done:
                self.cut_back(start)
        return w.size - message

    cdef int write_in_full(self, Envelope envelope, Pid forwarder) except -1:
        """Write it without slots, into the bulk lane, which has what is in full."""
        cdef Py_ssize_t start = self.data.size
        if self.is_large_bytes(envelope.msg):
            return self.write_bytes(envelope, forwarder, <bytes>envelope.msg)
        self.write_message(envelope.msg, start)
        return self.move_to_bulk(envelope, forwarder, start, start)

    cdef inline bint is_large_bytes(self, object msg) noexcept:
        return type(msg) is bytes and 2 + PyBytes_GET_SIZE(msg) > self.fragment_bytes

    cdef int write_bytes(self, Envelope envelope, Pid forwarder, bytes msg) except -1:
        """Write a message that is nothing but many bytes: the bulk lane has them where they are.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(msg)
        cdef unsigned char head[5]
        cdef Py_ssize_t head_size = put_bytes_head(head, size)
        if head_size + size > self.peer_bytes_max:
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
        cdef bint in_fragments = begin_size + source_size > self.fragment_bytes
        # To note a pair takes memory, which may make the collector run anybody's code.
        self.is_encoding = True
        try:
            head_size = self.write_head(head, envelope, forwarder)
            if begin_size:
                memcpy(head + head_size, begin, begin_size)
                head_size += begin_size
            size = reserve_envelope(
                &self.bulk, self.encoder, head_size, source_size, message is not None,
                self.fragment_bytes if in_fragments else 0,
            )
            self.pairs.add(&self.bulk, envelope.sender, envelope.to, size)
            # The memory is reserved, so the whole envelope fits.
            if in_fragments:
                put_fragments(
                    &self.bulk, self.encoder, head, head_size, source, source_size, message,
                    self.fragment_bytes,
                )
            else:
                put_envelope(&self.bulk, self.encoder, head, head_size, source, source_size)
        finally:
            self.is_encoding = False
        return 0

    cdef int write_monitor(self, Pid monitoring, Pid monitored, uint64_t reference) except -1:
        return self.write_monitor_frame(MONITOR, monitoring, monitored, reference)

    cdef int write_demonitor(self, Pid monitoring, Pid monitored, uint64_t reference) except -1:
        return self.write_monitor_frame(DEMONITOR, monitoring, monitored, reference)

    cdef int write_monitor_frame(
        self, int kind, Pid monitoring, Pid monitored, uint64_t reference
    ) except -1:
        cdef BufferWriter* w = &self.data
        cdef Py_ssize_t first, second
        cdef Py_ssize_t n = FRAME_HEADER + 4 + REFERENCE_BYTES
        cdef unsigned char* start
        if self.is_encoding:
            raise reentered()
        first = self.slot_of(monitoring, -1)
        second = self.slot_of(monitored, -1)
        self.check_pair(
            self.slots[first].is_own, monitoring, self.slots[second].is_peer, monitored
        )
        make_room(self.encoder, w, n)
        start = w.data + w.size
        store_header(start, n, <unsigned char>kind, 0)
        store_16(start + FRAME_HEADER, <uint32_t>first)
        store_16(start + FRAME_HEADER + 2, <uint32_t>second)
        store_64(start + FRAME_HEADER + 4, reference)
        w.size += n
        return 0

    cdef int write_down(
        self, Pid monitoring, Pid monitored, uint64_t reference, int why, uint64_t life, str detail
    ) except -1:
        # The DOWN must follow what the ended process sent to the monitoring one, in the same lane.
        return self.write_down_frame(DOWN, monitoring, monitored, reference, why, life, detail)

    cdef int write_exit(
        self, Pid linked, Pid ended, uint64_t reference, int why, uint64_t life, str detail
    ) except -1:
        return self.write_down_frame(EXIT, linked, ended, reference, why, life, detail)

    cdef int write_link(self, Pid linking, Pid linked, uint64_t reference) except -1:
        return self.write_link_frame(LINK, linking, linked, reference)

    cdef int write_unlink(self, Pid linking, Pid linked, uint64_t reference) except -1:
        return self.write_link_frame(UNLINK, linking, linked, reference)

    cdef int write_link_frame(
        self, int kind, Pid linking, Pid linked, uint64_t reference
    ) except -1:
        cdef unsigned char* tail
        self.begin_pair_frame(kind, linking, linked, True, REFERENCE_BYTES, &tail)
        store_64(tail, reference)
        return 0

    cdef int write_down_frame(
        self, int kind, Pid to, Pid ended, uint64_t reference, int why, uint64_t life, str detail
    ) except -1:
        cdef bytes text = text_of_frame(detail, DETAIL_MAX)
        cdef unsigned char* tail
        self.begin_pair_frame(kind, ended, to, False, DOWN_TAIL + len(text), &tail)
        store_64(tail, reference)
        tail[REFERENCE_BYTES] = <unsigned char>why
        store_64(tail + REFERENCE_BYTES + 1, life)
        memcpy(tail + DOWN_TAIL, PyBytes_AS_STRING(text), len(text))
        return 0

    cdef int begin_pair_frame(
        self, int kind, Pid own, Pid peer, bint own_first, Py_ssize_t size, unsigned char** tail
    ) except -1:
        cdef Pid first = own if own_first else peer
        cdef Pid second = peer if own_first else own
        cdef bytes first_text, second_text
        cdef Py_ssize_t first_slot, second_slot, n
        cdef unsigned char* start
        cdef unsigned char* p
        if self.is_encoding:
            raise reentered()
        if self.pairs.ends is not None and self.pairs.has(&self.bulk, own, peer):
            self.check_pair(
                same_node(own.node, self.own), own, same_node(peer.node, self.peer), peer
            )
            first_text = self.encoder.text_of(first)
            second_text = self.encoder.text_of(second)
            n = FRAME_HEADER + 4 + len(first_text) + len(second_text) + size
            self.is_encoding = True
            try:
                reserve_frame(&self.bulk, self.encoder, n)
                self.pairs.add(&self.bulk, own, peer, n)
                add_frame(&self.bulk, self.encoder, n, 0)
                self.down_bytes += n
                self.down_end = self.bulk.written
            finally:
                self.is_encoding = False
            start = self.bulk.own.data + self.bulk.own.size - n
            p = store_text(store_text(start + FRAME_HEADER, first_text), second_text)
            store_header(start, n, <unsigned char>kind, FLAG_FULL)
        else:
            first_slot = self.slot_of(first, -1)
            second_slot = self.slot_of(second, -1)
            self.check_pair(
                self.slots[first_slot if own_first else second_slot].is_own, own,
                self.slots[second_slot if own_first else first_slot].is_peer, peer,
            )
            n = FRAME_HEADER + 4 + size
            make_room(self.encoder, &self.data, n)
            start = self.data.data + self.data.size
            self.data.size += n
            store_16(start + FRAME_HEADER, <uint32_t>first_slot)
            store_16(start + FRAME_HEADER + 2, <uint32_t>second_slot)
            p = start + FRAME_HEADER + 4
            store_header(start, n, <unsigned char>kind, 0)
        tail[0] = p
        return 0

    cdef int check_pair(self, bint is_own, Pid own, bint is_peer, Pid peer) except -1:
        if not is_peer:
            raise foreign(peer, "receiver", self.peer)
        if not is_own:
            raise foreign(own, "sender", self.own)
        return 0

    cdef int write_undelivered(
        self, Pid to, CorrelationId correlation_id, int why, uint64_t crash, Pid about, str detail
    ) except -1:
        cdef BufferWriter* w = &self.data
        cdef bytes text = text_of_frame(detail, DETAIL_MAX)
        cdef bytes about_text = b""
        cdef Py_ssize_t first
        cdef Py_ssize_t asker = 0
        cdef unsigned char* p
        cdef int flags = 0
        if self.is_encoding:
            raise reentered()
        first = self.slot_of(to, -1)
        if not self.slots[first].is_peer:
            raise foreign(to, "receiver", self.peer)
        if correlation_id is not None:
            asker = self.slot_of(correlation_id.pid, -1)
        if about is not None:
            about_text = self.encoder.text_of(about)
        make_room(
            self.encoder, w, HEAD_ROOM + UNDELIVERED_TAIL + len(about_text) + len(text)
        )
        p = w.data + w.size + FRAME_HEADER
        store_16(p, <uint32_t>first)
        p += 2
        if correlation_id is not None:
            flags = FLAG_CID
            store_16(p, <uint32_t>asker)
            p = store_numbers(p + 2, correlation_id, &flags)
        p[0] = <unsigned char>why
        store_64(p + 1, crash)
        p = store_text(p + 9, about_text)
        memcpy(p, PyBytes_AS_STRING(text), len(text))
        p += len(text)
        store_header(
            w.data + w.size, p - w.data - w.size, UNDELIVERED, <unsigned char>flags
        )
        w.size = p - w.data
        return 0

    cdef int note_refused(self, Envelope envelope) except -1:
        return self.pairs.note_refused(&self.bulk, envelope.sender, envelope.to)

    cdef int write_lost(self, uint32_t count) except -1:
        """Write that so many envelopes were dropped, in the lanes that they would have gone by.

        So it stands between what was sent before the hole and what is sent behind it.
        """
        cdef uint32_t in_bulk = 0
        cdef unsigned char* end
        if self.is_encoding:
            raise reentered()
        if self.pairs.ends is not None:
            in_bulk = min(self.pairs.refused, count)
        # All that may fail comes first: what is lost is counted once.
        make_room(self.encoder, &self.data, FRAME_HEADER + 4)
        if in_bulk:
            self.is_encoding = True
            try:
                reserve_frame(&self.bulk, self.encoder, FRAME_HEADER + 4)
                # Later envelopes of the refused pairs must not overtake this LOST.
                self.pairs.move_refused(self.bulk.written + FRAME_HEADER + 4)
                add_frame(&self.bulk, self.encoder, FRAME_HEADER + 4, 0)
            finally:
                self.is_encoding = False
            self.bulk.written += FRAME_HEADER + 4
            end = self.bulk.own.data + self.bulk.own.size
            store_lost(end - FRAME_HEADER - 4, FLAG_FULL, in_bulk)
        if count != in_bulk:
            store_lost(self.data.data + self.data.size, 0, count - in_bulk)
            self.data.size += FRAME_HEADER + 4
        self.pairs.forget_refused()
        return 0

    cdef int write_window_update(self, uint64_t consumed) except -1:
        """Write how many bytes of the peer's bulk lane were consumed."""
        cdef BufferWriter* w = &self.data
        if self.is_encoding:
            raise reentered()
        make_room(self.encoder, w, FRAME_HEADER + 8)
        store_header(w.data + w.size, FRAME_HEADER + 8, WINDOW_UPDATE, 0)
        store_64(w.data + w.size + FRAME_HEADER, consumed)
        w.size += FRAME_HEADER + 8
        return 0

    cdef inline Py_ssize_t slot_of(self, Pid pid, Py_ssize_t kept) except -1:
        """The slot that stands for `pid`, sent to the peer if need be.

        A pid can stand in one of two slots, of which it takes the one not used last. So the one
        that was asked for before is still there, but the one before that may not be: `kept` is its
        slot, and NO_SLOT the answer if it would have to go.
        """
        cdef size_t pair = <size_t>pid.hash_value & self.sets_mask
        cdef PidSlot* pair_slots = self.slots + 2 * pair
        if pair_slots[0].pid is <PyObject*>pid:
            self.latest[pair] = 0
            return 2 * pair
        if pair_slots[1].pid is <PyObject*>pid:
            self.latest[pair] = 1
            return 2 * pair + 1
        return self.assign_slot(pid, kept)

    cdef Py_ssize_t assign_slot(self, Pid pid, Py_ssize_t kept) except -1:
        if self.latest is NULL:
            make_slots(self)
        cdef size_t pair = <size_t>pid.hash_value & self.sets_mask
        cdef PidSlot* pair_slots = self.slots + 2 * pair
        cdef BufferWriter* w = &self.data
        cdef PyObject* former
        cdef Py_ssize_t i, n
        cdef unsigned char* p
        cdef bytes text
        for i in range(2):
            if pair_slots[i].pid is not NULL and same_pid(<Pid>pair_slots[i].pid, pid):
                self.latest[pair] = <unsigned char>i
                return 2 * pair + i
        i = 0 if pair_slots[0].pid is NULL else 1 - self.latest[pair]
        if <Py_ssize_t>(2 * pair + i) == kept:
            return NO_SLOT
        text = self.encoder.text_of(pid)
        n = FRAME_HEADER + 2 + PyBytes_GET_SIZE(text)
        make_room(self.encoder, w, n)
        p = w.data + w.size
        store_header(p, n, CACHE_PID, 0)
        store_16(p + FRAME_HEADER, <uint32_t>(2 * pair + i))
        memcpy(p + FRAME_HEADER + 2, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        w.size += n
        former = pair_slots[i].pid
        Py_INCREF(pid)
        pair_slots[i].pid = <PyObject*>pid
        pair_slots[i].is_own = same_node(pid.node, self.own)
        pair_slots[i].is_peer = same_node(pid.node, self.peer)
        self.latest[pair] = <unsigned char>i
        Py_XDECREF(former)
        return 2 * pair + i

    cdef void cut_back(self, Py_ssize_t size) noexcept:
        """Drop what the data lane has from `size` on, and the memory if a large message took it."""
        cdef BufferWriter* w = &self.data
        cdef Py_ssize_t capacity = size + DATA_BYTES_KEPT // 2
        cdef unsigned char* data
        w.size = size
        if w.capacity > DATA_BYTES_KEPT and capacity < w.capacity // 2:
            data = <unsigned char*>PyMem_RawRealloc(w.data, capacity)
            if data is not NULL:
                w.data = data
                w.capacity = capacity

    cdef Py_ssize_t slot_of_forwarder(
        self, Envelope envelope, Pid forwarder, Py_ssize_t kept
    ) except -1:
        return self.slot_of(self.who_forwards(envelope, forwarder), kept)

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


cdef object reentered():
    return RuntimeError("a message that is being encoded made its own session write")


cdef object foreign(Pid pid, str role, NodeId node):
    return EncodeError(
        f"the {role} {pid} does not live on {node}, so the peer would end the connection"
    )


cdef object too_long(FrameEncoder frame_encoder, Py_ssize_t size):
    most = f"{frame_encoder.message_bytes_max} allowed"
    if size <= frame_encoder.message_bytes_max:
        most = (
            f"{frame_encoder.peer_bytes_max} that {frame_encoder.peer} takes, whose "
            f"message_bytes_max is less than the {frame_encoder.message_bytes_max} of "
            f"{frame_encoder.own}"
        )
    return EncodeError(f"the message takes {size} bytes, more than the {most}; send it in parts")


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
