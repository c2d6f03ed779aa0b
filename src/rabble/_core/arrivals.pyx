"""What arrives on channels: read, cut into frames, sorted by lanes, and answered or kept.

A frame of the control lane is acted upon where it is cut, so a PING is answered whatever the
executor does. Those of the other lanes wait until it takes them; while too many do, nothing more is
read.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read

from rabble._core.capacities cimport (
    POLL_EVENTS,
    RECV_BULK_HIGH,
    RECV_BYTES_MAX,
    RECV_BYTES_MIN,
    RECV_HIGH,
    RECV_LOW,
)
from rabble._core.channel cimport (
    CLOSED,
    CONTROL_BYTES_MAX,
    EPOLLIN,
    EPOLLOUT,
    OPEN,
    Channel,
    Sockets,
    give_up,
    make_ready,
    push,
    queue_control,
    say_goodbye,
    signal,
    watch_for,
)
from rabble._core.frame cimport (
    BYE,
    CODE_LIMIT,
    DOWN,
    ENVELOPE,
    FLAG_FULL,
    FRAGMENT,
    LOST,
    PING,
    PONG,
    TAKEN,
    Frame,
    load_64,
    next_frame,
    store_64,
)
from rabble._core.inbox cimport monotonic_ns
from rabble._core.lane cimport Lane, append, drop, hand_on, held, reserve, trade

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

cdef void pull(Sockets* s, Channel* c) noexcept nogil:
    """Read once, and cut what came into frames."""
    cdef size_t room
    cdef Py_ssize_t got
    room = RECV_BYTES_MIN
    while room < RECV_BYTES_MAX and room <= c.heard.capacity // 2:
        room *= 2
    if reserve(&c.heard, room) != 0:
        give_up(s, c, 0, ENOMEM)
        return
    room = min(c.heard.capacity - c.heard.tail, <size_t>RECV_BYTES_MAX)
    while True:
        got = recv(c.fd, c.heard.data + c.heard.tail, room, MSG_DONTWAIT)
        if got >= 0 or errno != EINTR:
            break
    if got < 0:
        if errno != EAGAIN:
            give_up(s, c, 0, errno)
        return
    if got == 0:
        give_up(s, c, 0, 0)
        return
    c.heard_ns = monotonic_ns()
    c.bytes_heard += got
    if c.state == OPEN:
        c.heard.tail += got
        if <size_t>got == room and c.heard.capacity < RECV_BYTES_MAX:
            reserve(&c.heard, c.heard.capacity)
        cut(s, c)


cdef void cut(Sockets* s, Channel* c) noexcept nogil:
    """Sort what was heard into whole frames by their lanes; answer those of the control lane."""
    cdef Frame frame
    cdef Lane* lane = NULL                   # that the frames belong to ...
    cdef Lane* next_lane
    cdef size_t run = c.heard.head           # ... which begin here ...
    cdef size_t at = run                     # ... and end here
    cdef bint failed = False
    cdef Py_ssize_t size = 0
    while c.state == OPEN and not failed:
        size = next_frame(c.heard.data + at, c.heard.tail - at, s.frame_bytes_max, &frame)
        if size <= 0:
            break
        c.frames_heard += 1
        c.partial_ns = 0
        next_lane = NULL if frame.kind >= PING else &c.ready_bulk if is_bulk(&frame) else &c.ready
        if next_lane is not lane:
            failed = append(lane, c.heard.data + run, at - run) != 0
            run = at
            lane = next_lane
        if lane is NULL:
            control(s, c, &frame, c.heard.data + at, size)
            run += size
        at += size
    if failed or hand_on(&c.heard, run, at, lane) != 0:
        give_up(s, c, 0, ENOMEM)
    elif size < 0:
        say_goodbye(s, c, <int>-size, NULL, 0, False)
    c.whole = held(&c.ready) + held(&c.ready_bulk)
    if c.whole:
        make_ready(s)
    if c.state != OPEN:
        # Nothing of what follows is read.
        drop(&c.heard)
        return
    if held(&c.heard) and c.partial_ns == 0:
        c.partial_ns = c.heard_ns
    if held(&c.ready) > RECV_HIGH or held(&c.ready_bulk) > RECV_BULK_HIGH:
        c.paused = True
        watch_for(s, c, c.interest & ~<uint32_t>EPOLLIN)


cdef inline bint is_bulk(const Frame* frame) noexcept nogil:
    return frame.kind == FRAGMENT or (
        frame.flags & FLAG_FULL
        and (frame.kind == ENVELOPE or frame.kind == DOWN or frame.kind == LOST)
    )


cdef inline int64_t round_trip(int64_t heard_ns, uint64_t said_ns) noexcept nogil:
    """How long ago that was; the least there is for a time that this side cannot have said."""
    return heard_ns - <int64_t>said_ns if said_ns < <uint64_t>heard_ns else 1


cdef void control(
    Sockets* s, Channel* c, const Frame* frame, const unsigned char* whole, size_t size
) noexcept nogil:
    cdef unsigned char body[16]
    if frame.kind == TAKEN:
        # More than was given is a lie that only delays the liar's own messages less.
        c.bulk_taken = min(load_64(frame.body), c.bulk_given - c.bulk_held)
        c.bulk_unsent[0] = c.bulk_given - c.bulk_taken
        if not c.interest & EPOLLOUT:
            push(s, c)
        return
    if frame.kind == PING or frame.kind == PONG:
        c.peer_idle = frame.flags & 1
        c.peer_progress = load_64(frame.body + 8)
        c.told_ns = c.heard_ns
        if frame.kind == PONG:
            c.round_trip_ns = round_trip(c.heard_ns, load_64(frame.body))
            if c.round_trip_least_ns == 0 or c.round_trip_ns < c.round_trip_least_ns:
                c.round_trip_least_ns = c.round_trip_ns
            return
        if held(&c.control) > CONTROL_BYTES_MAX:
            say_goodbye(s, c, CODE_LIMIT, NULL, 0, False)
            return
        memcpy(body, frame.body, 8)
        store_64(body + 8, s.progress)
        queue_control(s, c, PONG, s.idle, body, 16)
        return
    if held(&c.told) + size > CONTROL_BYTES_MAX or append(&c.told, whole, size) != 0:
        say_goodbye(s, c, CODE_LIMIT, NULL, 0, False)
        return
    signal(s.told_fd)
    if frame.kind == BYE:
        give_up(s, c, frame.body[0], 0)


cdef void take_locked(
    Sockets* s, Channel* c, Lane* taken, Lane* taken_bulk, bint* bulk_waits
) noexcept nogil:
    """Trade empty lanes for all the whole frames that came.

    Those of the bulk lane must not be decoded before what came before them on the data lane, as
    that may be of the same pair. The other way round they may be overtaken.
    """
    trade(taken, &c.ready)
    if held(taken_bulk) == 0:
        trade(taken_bulk, &c.ready_bulk)
        bulk_waits[0] = held(taken) != 0
    c.whole = held(&c.ready) + held(&c.ready_bulk)
    if c.paused and held(&c.ready) < RECV_LOW and held(&c.ready_bulk) < RECV_BULK_HIGH // 2:
        c.paused = False
        # The peer was not silent, nor slow with its frame: we did not listen.
        c.heard_ns = monotonic_ns()
        if c.partial_ns != 0:
            c.partial_ns = c.heard_ns
        if c.state == OPEN:
            watch_for(s, c, c.interest | EPOLLIN)


cdef bint step(Sockets* s) noexcept nogil:
    """One look at all sockets. Never blocks. Whether as much was found as one look may find."""
    cdef epoll_event events[POLL_EVENTS]
    cdef uint64_t count
    cdef Channel* c
    cdef int found, n
    found = epoll_wait(s.epfd, events, POLL_EVENTS, 0)
    for n in range(found):
        c = <Channel*>events[n].data.ptr
        if c is NULL:
            s.inbox_ready = True
            continue
        if <void*>c is <void*>s:
            read(s.wake_fd, &count, 8)
            continue
        # Closed by an earlier event of this look, perhaps.
        if c.state != CLOSED and events[n].events & EPOLLOUT:
            push(s, c)
        if c.state != CLOSED and events[n].events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            if c.paused and not events[n].events & (EPOLLERR | EPOLLHUP):
                continue
            pull(s, c)
    return found == POLL_EVENTS
