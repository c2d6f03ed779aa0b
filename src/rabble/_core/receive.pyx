"""What transports receive: read, split into frames, sorted by lanes, and answered or kept.

A frame of the control lane is acted upon where it is split off, so a PING is answered whatever the
executor does. Those of the other lanes wait until it takes them; while too many do, nothing more is
read.

What an authenticated transport receives stands in a queue of its own until a whole record of it is
verified. Only then is it bytes of frames: nobody's header is looked at before.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read

from rabble._core.byte_queue cimport ByteQueue, append, drop, length, move_range, reserve, swap
from rabble._core.byteorder cimport load_32, load_64, store_64
from rabble._core.capacities cimport (
    BYTE_QUEUE_BYTES_KEPT,
    POLL_EVENTS,
    RECV_BULK_HIGH,
    RECV_BYTES_MAX,
    RECV_BYTES_MIN,
    RECV_HIGH,
    RECV_LOW,
)
from rabble._core.client_socket cimport client_event, client_of, is_client_mark
from rabble._core.frame cimport (
    BYE, CODE_INTEGRITY, CODE_LIMIT, DOWN, ENVELOPE, EXIT, FLAG_FULL, FLAG_IDLE, FRAGMENT, LOST,
    MEMBERSHIP, PING, PONG, WINDOW_UPDATE, Frame, next_frame,
)
from rabble._core.inbox cimport monotonic_ns
from rabble._core.linux cimport (
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    MSG_DONTWAIT,
    epoll_event,
    epoll_wait,
    recv,
)
from rabble._core.record cimport RECORD_HEAD, verify_record
from rabble._core.transport cimport (
    CLOSED,
    CONTROL_BYTES_MAX,
    OPEN,
    Sockets,
    Transport,
    give_up,
    make_ready,
    queue_control,
    set_interest,
    signal,
    write_bye,
    write_socket,
)


# Every function below needs the lock.

cdef void read_socket(Sockets* s, Transport* t) noexcept nogil:
    """Read once, and split what came into frames."""
    cdef ByteQueue* lane = &t.recv_buffer
    cdef size_t begun = 0       # bytes of a frame that came before, and are put in front once more
    cdef size_t room
    cdef Py_ssize_t got
    if t.is_authenticated:
        lane = &t.recv_records
    elif t.bulk_goes_on and t.state == OPEN:
        # Most likely more of the bulk lane, which is then read to where it belongs: to append it
        # there from the other buffer would copy every byte of a large message once more.
        lane = &t.recv_bulk
        begun = length(&t.recv_buffer)
    room = RECV_BYTES_MIN
    while room < RECV_BYTES_MAX and room <= lane.capacity // 2:
        room *= 2
    if reserve(lane, begun + room) != 0:
        give_up(s, t, 0, ENOMEM)
        return
    if begun:
        memcpy(lane.data + lane.tail, t.recv_buffer.data + t.recv_buffer.head, begun)
    room = min(lane.capacity - lane.tail - begun, <size_t>RECV_BYTES_MAX)
    if t.is_authenticated:
        room = min(room, record_room(lane))
    while True:
        got = recv(t.fd, lane.data + lane.tail + begun, room, MSG_DONTWAIT)
        if got >= 0 or errno != EINTR:
            break
    if got < 0:
        if errno != EAGAIN:
            give_up(s, t, 0, errno)
        return
    if got == 0:
        give_up(s, t, 0, 0)
        return
    t.received_ns = monotonic_ns()
    t.bytes_received += got
    if t.state != OPEN:
        return
    if lane is &t.recv_bulk:
        keep_bulk_frames(s, t, begun + got)
        if <size_t>got < begun and length(&t.recv_buffer) == begun + got:
            # Less came than was copied: the rest of this frame is read behind what there is of it,
            # or a member that says it byte by byte would have all of it copied for each.
            t.bulk_goes_on = False
    else:
        lane.tail += got
    if <size_t>got == room and lane.capacity < RECV_BYTES_MAX:
        reserve(lane, lane.capacity)
    if t.is_authenticated:
        verify_records(s, t)
    elif t.state == OPEN:
        split_frames(s, t)


cdef size_t record_room(const ByteQueue* records) noexcept nogil:
    """How many bytes to read at once: of a long record its end, and the head of the next one.

    Then its body stands alone, and the buffer can change hands as it is.
    """
    cdef size_t have = length(records)
    cdef size_t whole
    if have < 4:
        return RECV_BYTES_MAX
    whole = RECORD_HEAD + <size_t>load_32(records.data + records.head)
    # There are whole ones if they followed the handshake, and another thread reads first.
    if whole < RECV_BYTES_MIN or whole <= have:
        return RECV_BYTES_MAX
    return whole - have + RECORD_HEAD


cdef void verify_records(Sockets* s, Transport* t) noexcept nogil:
    """Split the whole records that were received into frames, each when it is verified."""
    cdef ByteQueue* records = &t.recv_records
    cdef size_t body
    cdef Py_ssize_t size = 0
    while t.state == OPEN:
        size = verify_record(&t.verifying, records.data + records.head, length(records))
        if size <= 0:
            break
        body = records.head + RECORD_HEAD
        if move_range(records, body, body + size, &t.recv_buffer) != 0:
            give_up(s, t, 0, ENOMEM)
        else:
            split_frames(s, t)
    if size < 0:
        write_bye(s, t, CODE_INTEGRITY, b"a record that does not verify", 29, False)
    if t.state != OPEN:
        drop(records)
    elif length(records) and t.partial_ns == 0:
        t.partial_ns = t.received_ns


cdef void keep_bulk_frames(Sockets* s, Transport* t, size_t size) noexcept nogil:
    """Of so many bytes behind those of `recv_bulk` the first whole frames of that lane stay there.

    The rest goes where it would have been read to otherwise: half a frame, or others' frames.
    """
    cdef Frame frame
    cdef const unsigned char* data = t.recv_bulk.data + t.recv_bulk.tail
    cdef size_t at = 0
    cdef Py_ssize_t next_size
    while True:
        next_size = next_frame(data + at, size - at, s.frame_bytes_max, &frame)
        if next_size <= 0 or frame.kind >= PING or not is_bulk(&frame):
            break
        t.frames_received += 1
        t.partial_ns = 0
        at += next_size
    t.recv_bulk.tail += at
    t.recv_buffer.head = t.recv_buffer.tail = 0
    if append(&t.recv_buffer, data + at, size - at) != 0:
        give_up(s, t, 0, ENOMEM)


cdef void split_frames(Sockets* s, Transport* t) noexcept nogil:
    """Sort what was received into whole frames by their lanes; answer those of the control lane."""
    cdef Frame frame
    cdef ByteQueue* lane = NULL              # that the frames belong to ...
    cdef ByteQueue* next_lane
    cdef size_t run = t.recv_buffer.head     # ... which begin here ...
    cdef size_t at = run                     # ... and end here
    cdef bint failed = False
    cdef Py_ssize_t size = 0
    while t.state == OPEN and not failed:
        size = next_frame(
            t.recv_buffer.data + at, t.recv_buffer.tail - at, s.frame_bytes_max, &frame
        )
        if size <= 0:
            break
        t.frames_received += 1
        t.partial_ns = 0
        next_lane = (
            NULL if frame.kind >= PING
            else &t.recv_bulk if is_bulk(&frame)
            else &t.recv_data
        )
        t.bulk_goes_on = next_lane is &t.recv_bulk
        if next_lane is not lane:
            failed = append(lane, t.recv_buffer.data + run, at - run) != 0
            run = at
            lane = next_lane
        if lane is NULL:
            handle_control(s, t, &frame, t.recv_buffer.data + at, size)
            run += size
        at += size
    if failed or move_range(&t.recv_buffer, run, at, lane) != 0:
        give_up(s, t, 0, ENOMEM)
    elif size < 0:
        write_bye(s, t, <int>-size, NULL, 0, False)
    t.complete = length(&t.recv_data) + length(&t.recv_bulk)
    if t.complete:
        make_ready(s)
    if t.state != OPEN:
        # Nothing of what follows is read.
        drop(&t.recv_buffer)
        return
    if length(&t.recv_buffer) and t.partial_ns == 0:
        t.partial_ns = t.received_ns
    if length(&t.recv_data) > RECV_HIGH or length(&t.recv_bulk) > RECV_BULK_HIGH:
        t.paused = True
        set_interest(s, t, t.interest & ~<uint32_t>EPOLLIN)


cdef inline bint is_bulk(const Frame* frame) noexcept nogil:
    return frame.kind == FRAGMENT or (
        frame.flags & FLAG_FULL
        and (
            frame.kind == ENVELOPE or frame.kind == DOWN or LOST <= frame.kind <= EXIT
        )
    )


cdef enum:
    ROUND_TRIP_HEARTBEATS = 16      # that a round trip takes at most: the peer is down long before


cdef void note_round_trip(Sockets* s, Transport* t, int64_t sent_ns) noexcept nogil:
    """Note how long a PING took, if it can be one that this side sent and nobody answered yet."""
    cdef int64_t took
    if not t.unanswered_ns <= sent_ns <= t.pinged_ns:
        return
    took = t.received_ns - sent_ns
    if took > ROUND_TRIP_HEARTBEATS * s.heartbeat_ns:
        return
    t.unanswered_ns = sent_ns + 1
    t.round_trip_ns = max(took, <int64_t>1)
    if t.round_trip_least_ns == 0 or t.round_trip_ns < t.round_trip_least_ns:
        t.round_trip_least_ns = t.round_trip_ns


cdef void handle_control(
    Sockets* s, Transport* t, const Frame* frame, const unsigned char* raw, size_t size
) noexcept nogil:
    cdef unsigned char body[16]
    if frame.kind == WINDOW_UPDATE:
        # More than was given is a lie that only delays the liar's own messages less.
        t.bulk_consumed = min(load_64(frame.body), t.bulk_queued - t.bulk_held)
        t.bulk_unsent[0] = t.bulk_queued - t.bulk_consumed
        if not t.interest & EPOLLOUT:
            write_socket(s, t)
        return
    if frame.kind == PING or frame.kind == PONG:
        t.peer_idle = frame.flags & FLAG_IDLE
        t.peer_progress = load_64(frame.body + 8)
        t.progress_ns = t.received_ns
        if frame.kind == PONG:
            note_round_trip(s, t, <int64_t>load_64(frame.body))
            return
        t.ping_received_ns = t.received_ns
        if length(&t.control) > CONTROL_BYTES_MAX:
            write_bye(s, t, CODE_LIMIT, NULL, 0, False)
            return
        memcpy(body, frame.body, 8)
        store_64(body + 8, s.progress)
        queue_control(s, t, PONG, s.idle, body, 16)
        return
    if frame.kind == MEMBERSHIP and length(&t.recv_control) + size > CONTROL_BYTES_MAX:
        # A member that has this node read much, or has others tell it much, would part it from
        # them. It is dropped: digests find what is lost of the membership.
        return
    if (
        length(&t.recv_control) + size > CONTROL_BYTES_MAX
        or append(&t.recv_control, raw, size) != 0
    ):
        write_bye(s, t, CODE_LIMIT, NULL, 0, False)
        return
    signal(s.server_fd)
    if frame.kind == BYE:
        give_up(s, t, frame.body[0], 0)


cdef inline void trade(ByteQueue* empty, ByteQueue* received) noexcept nogil:
    """Swap them. What a burst took is given back when less comes than needs it."""
    if empty.capacity > BYTE_QUEUE_BYTES_KEPT and length(received) < BYTE_QUEUE_BYTES_KEPT // 4:
        drop(empty)
    swap(empty, received)


cdef void take_locked(
    Sockets* s, Transport* t, ByteQueue* decoding, ByteQueue* decoding_bulk, bint* bulk_waits
) noexcept nogil:
    """Swap empty queues for all the whole frames that came.

    Those of the bulk lane must not be decoded before what came before them on the data lane, as
    that may be of the same pair. The other way round they may be overtaken.
    """
    trade(decoding, &t.recv_data)
    if length(decoding_bulk) == 0:
        trade(decoding_bulk, &t.recv_bulk)
        bulk_waits[0] = length(decoding) != 0
    t.complete = length(&t.recv_data) + length(&t.recv_bulk)
    if t.paused and length(&t.recv_data) < RECV_LOW and length(&t.recv_bulk) < RECV_BULK_HIGH // 2:
        t.paused = False
        # The peer was not silent, nor slow with its frame: we did not listen.
        t.received_ns = monotonic_ns()
        if t.partial_ns != 0:
            t.partial_ns = t.received_ns
        if t.state == OPEN:
            set_interest(s, t, t.interest | EPOLLIN)


cdef bint poll_sockets(Sockets* s) noexcept nogil:
    """One look at all sockets. Never blocks. Whether as much was found as one look may find."""
    cdef epoll_event events[POLL_EVENTS]
    cdef uint64_t count
    cdef Transport* t
    cdef int found, n
    found = epoll_wait(s.epfd, events, POLL_EVENTS, 0)
    for n in range(found):
        t = <Transport*>events[n].data.ptr
        if t is NULL:
            s.inbox_ready = True
            continue
        if <void*>t is <void*>s:
            read(s.wake_fd, &count, 8)
            continue
        if is_client_mark(t):
            client_event(&s.clients, client_of(t), events[n].events)
            continue
        # Closed by an earlier event of this look, perhaps.
        if t.state != CLOSED and events[n].events & EPOLLOUT:
            write_socket(s, t)
        if t.state != CLOSED and events[n].events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            if t.paused and not events[n].events & (EPOLLERR | EPOLLHUP):
                continue
            read_socket(s, t)
    return found == POLL_EVENTS
