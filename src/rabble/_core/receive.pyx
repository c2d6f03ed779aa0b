"""What transports receive: read, split into frames, sorted by lanes, and answered or kept.

A frame of the control lane is acted upon where it is split off, so a PING is answered whatever the
executor does. Those of the other lanes wait until it takes them; while too many do, nothing more is
read.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read

from rabble._core.byte_queue cimport ByteQueue, append, drop, length, move_range, reserve, swap
from rabble._core.byteorder cimport load_64, store_64
from rabble._core.capacities cimport (
    POLL_EVENTS,
    RECV_BULK_HIGH,
    RECV_BYTES_MAX,
    RECV_BYTES_MIN,
    RECV_HIGH,
    RECV_LOW,
)
from rabble._core.frame cimport (
    BYE, CODE_LIMIT, DOWN, ENVELOPE, FLAG_FULL, FRAGMENT, LOST, PING, PONG, WINDOW_UPDATE, Frame,
    next_frame,
)
from rabble._core.inbox cimport monotonic_ns
from rabble._core.transport cimport (
    CLOSED,
    CONTROL_BYTES_MAX,
    EPOLLIN,
    EPOLLOUT,
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

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLERR
    enum: EPOLLHUP
    union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int epfd, epoll_event* events, int most, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    Py_ssize_t recv(int fd, void* data, size_t size, int flags)


# Every function below needs the lock.

cdef void read_socket(Sockets* s, Transport* t) noexcept nogil:
    """Read once, and split what came into frames."""
    cdef size_t room
    cdef Py_ssize_t got
    room = RECV_BYTES_MIN
    while room < RECV_BYTES_MAX and room <= t.recv_buffer.capacity // 2:
        room *= 2
    if reserve(&t.recv_buffer, room) != 0:
        give_up(s, t, 0, ENOMEM)
        return
    room = min(t.recv_buffer.capacity - t.recv_buffer.tail, <size_t>RECV_BYTES_MAX)
    while True:
        got = recv(t.fd, t.recv_buffer.data + t.recv_buffer.tail, room, MSG_DONTWAIT)
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
    if t.state == OPEN:
        t.recv_buffer.tail += got
        if <size_t>got == room and t.recv_buffer.capacity < RECV_BYTES_MAX:
            reserve(&t.recv_buffer, t.recv_buffer.capacity)
        split_frames(s, t)


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
        and (frame.kind == ENVELOPE or frame.kind == DOWN or frame.kind == LOST)
    )


cdef inline int64_t round_trip(int64_t received_ns, uint64_t sent_ns) noexcept nogil:
    """How long ago that was; the least there is for a time that this side cannot have sent."""
    return received_ns - <int64_t>sent_ns if sent_ns < <uint64_t>received_ns else 1


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
        t.peer_idle = frame.flags & 1
        t.peer_progress = load_64(frame.body + 8)
        t.progress_ns = t.received_ns
        if frame.kind == PONG:
            t.round_trip_ns = round_trip(t.received_ns, load_64(frame.body))
            if t.round_trip_least_ns == 0 or t.round_trip_ns < t.round_trip_least_ns:
                t.round_trip_least_ns = t.round_trip_ns
            return
        if length(&t.control) > CONTROL_BYTES_MAX:
            write_bye(s, t, CODE_LIMIT, NULL, 0, False)
            return
        memcpy(body, frame.body, 8)
        store_64(body + 8, s.progress)
        queue_control(s, t, PONG, s.idle, body, 16)
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


cdef void take_locked(
    Sockets* s, Transport* t, ByteQueue* decoding, ByteQueue* decoding_bulk, bint* bulk_waits
) noexcept nogil:
    """Swap empty queues for all the whole frames that came.

    Those of the bulk lane must not be decoded before what came before them on the data lane, as
    that may be of the same pair. The other way round they may be overtaken.
    """
    swap(decoding, &t.recv_data)
    if length(decoding_bulk) == 0:
        swap(decoding_bulk, &t.recv_bulk)
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
        # Closed by an earlier event of this look, perhaps.
        if t.state != CLOSED and events[n].events & EPOLLOUT:
            write_socket(s, t)
        if t.state != CLOSED and events[n].events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            if t.paused and not events[n].events & (EPOLLERR | EPOLLHUP):
                continue
            read_socket(s, t)
    return found == POLL_EVENTS
