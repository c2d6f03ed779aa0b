# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False
"""The poll loop: what connections say and hear, below the interpreter.

Each connection is a *channel*, a C struct that is only touched under the poller's lock, by
functions that need no GIL and never block. Three threads call them:

- the executor, which looks at the sockets in every turn, while it spins, and when it sleeps: it
  sleeps on this very epoll set. What comes for an idle node thus costs one wake-up, not one of a
  thread that reads and another of the one that is to act;
- the poll thread, which does the same when the executor does not get to it, because a `receive`
  takes long or another thread holds the GIL. It also says the heartbeats: so a node whose
  interpreter stands still is seen to be alive, and not to make progress;
- the cluster server, which adds and ends connections and says control frames.

Nobody waits for the GIL while holding the lock. Who holds the GIL only tries to take it, and lets
go of the GIL to wait for it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport close, getpid, read, write

from rabble._core.bulk cimport BulkFrame, forget_frames
from rabble._core.frame cimport (
    BYE,
    CODE_LIMIT,
    CODE_TIMEOUT,
    DOWN,
    ENVELOPE,
    FLAG_FULL,
    FRAGMENT,
    FRAME_HEADER,
    LOST,
    PING,
    PONG,
    TAKEN,
    Frame,
    load_32,
    load_64,
    next_frame,
    store_64,
)
from rabble._core.inbox cimport monotonic_ns, wait_readable
from rabble._core.lane cimport (
    Lane,
    append,
    append_frame,
    consume,
    drop,
    hand_on,
    held,
    reserve,
    take_over,
    trade,
)
from rabble._core.link cimport Link
from rabble._core.speak cimport Speaker
from rabble._core.writer cimport Writer

__all__ = ["Connection", "Poller"]

cdef enum:
    EVENTS = 64                       # that one look takes from the kernel
    HEARD_BYTES_MIN = 16 << 10        # room for what one recv brings; doubled while it fills up
    HEARD_BYTES_MAX = 256 << 10
    HEARD_HIGH = 1 << 20              # of whole frames that wait: nothing more is read ...
    HEARD_LOW = 256 << 10             # ... until so few do
    HEARD_BULK_HIGH = 8 << 20         # the same of the bulk lane, to keep the way free for others
    BULK_WINDOW = 2 << 20             # of the bulk lane, that is sent ahead of the peer's TAKEN ...
    BULK_WINDOW_SHARED = 32 << 10     # ... and while the data lane is in use, which waits behind it
    SHARED_NS = 5_000_000             # for how long it counts as such
    SHARED_NS_PER_BYTE = 3            # ... over a long way, which takes as long by itself
    SAID_BYTES_MAX = 256 << 10        # that one send takes
    PIECES = 32                       # of memory that one send takes: two are a frame
    PUSH_BYTES_MAX = 1 << 20          # that one look sends on one connection
    BULK_BYTES_KEPT = 8 << 20         # ... of the bulk lane, where the next will be as large
    LARGE_BYTES = 8 << 20             # messages up to here find memory that is there already
    CONTROL_BYTES_MAX = 8 << 20       # of control frames that wait, either way
    STUCK_NS = 2_000_000              # after which the poll thread looks in the executor's place
    BUSY_TICK_NS = 50_000_000         # how often it looks whether it has to
    LINGER_NS = 1_000_000_000

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* lock, const void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* lock)
    int pthread_mutex_trylock(pthread_mutex_t* lock)
    int pthread_mutex_unlock(pthread_mutex_t* lock)
    int pthread_mutex_destroy(pthread_mutex_t* lock)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC
    union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int most, int timeout_ms)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: SHUT_WR
    Py_ssize_t recv(int fd, void* data, size_t size, int flags)
    Py_ssize_t send(int fd, const void* data, size_t size, int flags)
    int shutdown(int fd, int how)
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    Py_ssize_t sendmsg(int fd, const msghdr* message, int flags)


# Channels. Every function below needs the lock.

cdef void watch_for(Poller p, Channel* c, uint32_t interest) noexcept nogil:
    cdef epoll_event event
    if c.interest != interest and c.fd >= 0:
        event.events = interest
        event.data.ptr = c
        # Cannot fail: the descriptor is in the set.
        epoll_ctl(p.epfd, EPOLL_CTL_MOD, c.fd, &event)
        c.interest = interest


cdef void signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    # It fails when the counter is full, which is as good.
    write(fd, &one, 8)


cdef void make_ready(Poller p) noexcept nogil:
    """There is something for the executor, which may be asleep and not see it by itself."""
    p.ready = True
    if p.sleeper:
        signal(p.wake_fd)


cdef void give_up(Poller p, Channel* c, int code, int error) noexcept nogil:
    """Close the descriptor. The whole frames that were heard can still be taken."""
    cdef epoll_event unused
    if c.state == CLOSED:
        return
    # Out of the set before it is closed: another file may get its number.
    epoll_ctl(p.epfd, EPOLL_CTL_DEL, c.fd, &unused)
    close(c.fd)
    c.fd = -1
    if c.state == OPEN:
        c.code = code
        c.error = error
    c.state = CLOSED
    forget_unsent(c)
    drop(&c.torn)
    drop(&c.control)
    drop(&c.bye)
    recount(c)
    p.connections -= 1
    make_ready(p)
    signal(p.told_fd)


cdef void forget_unsent(Channel* c) noexcept nogil:
    drop(&c.data)
    drop(&c.bulk)
    # Their messages are let go of by who holds the GIL.
    c.bulk_gone = held(&c.bulk_frames) // sizeof(BulkFrame)
    c.bulk_begun = c.bulk_held = 0
    recount(c)


cdef void recount(Channel* c) noexcept nogil:
    c.queued = held(&c.torn) + held(&c.control) + held(&c.data) + c.bulk_held + held(&c.bye)


cdef void say_goodbye(Poller p, Channel* c, int code, const unsigned char* text, size_t size,
                      bint after_all) noexcept nogil:
    """Say BYE, at once or after all that was said, and wait a bounded time for the peer's close.

    Closing at once, with bytes of the peer unread, would have the kernel answer them with a reset,
    which overtakes the BYE.
    """
    cdef unsigned char body[2 + 255]
    if c.state != OPEN:
        return
    size = min(size, 255)
    body[0] = <uint8_t>code
    body[1] = <uint8_t>size
    if size:
        memcpy(body + 2, text, size)
    c.state = LINGERING
    c.code = code
    c.linger_until_ns = monotonic_ns() + LINGER_NS
    if c.paused:
        # Nobody will take what was heard to have the reading go on, and the close be seen.
        c.paused = False
        watch_for(p, c, c.interest | EPOLLIN)
    if not after_all:
        if finish_begun(c) != 0:
            give_up(p, c, code, ENOMEM)
            return
        forget_unsent(c)
        drop(&c.control)
    if append_frame(&c.bye, BYE, 0, body, size + 2) != 0:
        give_up(p, c, code, ENOMEM)
        return
    make_ready(p)
    signal(p.told_fd)
    push(p, c)


cdef size_t frame_size(const unsigned char* at) noexcept nogil:
    return 4 + <size_t>load_32(at)


cdef size_t whole_frames(const unsigned char* data, size_t size) noexcept nogil:
    """Where the frame ends that byte `size - 1` is part of."""
    cdef size_t at = 0
    while at < size:
        at += frame_size(data + at)
    return at


cdef inline bint may_send_bulk(const Channel* c) noexcept nogil:
    """Whether the bulk lane has something that the peer has room for.

    The last of it, before a BYE, goes in any case: what the peer took is not heard any more.
    """
    return c.bulk_held and (
        c.bulk_begun
        or c.state != OPEN
        or c.bulk_given - c.bulk_held - c.bulk_taken < c.bulk_window
    )


cdef inline BulkFrame* next_bulk(const Channel* c) noexcept nogil:
    return <BulkFrame*>(c.bulk_frames.data + c.bulk_frames.head) + c.bulk_gone


cdef int finish_begun(Channel* c) noexcept nogil:
    """Keep the rest of a frame of the bulk lane that was begun; -1 if there is no memory."""
    cdef BulkFrame* frame
    cdef size_t begun = c.bulk_begun
    if begun == 0:
        return 0
    frame = next_bulk(c)
    if begun < frame.own_size:
        if append(&c.torn, c.bulk.data + c.bulk.head + begun, frame.own_size - begun) != 0:
            return -1
        begun = frame.own_size
    begun -= frame.own_size
    return append(&c.torn, frame.rest + begun, frame.rest_size - begun)


cdef Py_ssize_t send_bulk(Channel* c, bint one) noexcept nogil:
    """Send the next frames of the bulk lane, or just `one`, or the rest of it."""
    cdef size_t most = min(<size_t>SAID_BYTES_MAX, c.bulk_window)
    cdef iovec pieces[PIECES]
    cdef msghdr message
    cdef BulkFrame* frame = next_bulk(c)
    cdef const unsigned char* own = c.bulk.data + c.bulk.head
    cdef size_t begun = c.bulk_begun
    cdef size_t total = 0
    cdef size_t left
    cdef int n = 0
    cdef Py_ssize_t sent
    while total < c.bulk_held and total < most and n + 2 <= PIECES:
        left = frame.own_size - min(begun, frame.own_size)
        if left:
            pieces[n].iov_base = <void*>(own + frame.own_size - left)
            pieces[n].iov_len = left
            total += left
            n += 1
        begun -= frame.own_size - left
        if frame.rest_size:
            pieces[n].iov_base = <void*>(frame.rest + begun)
            pieces[n].iov_len = frame.rest_size - begun
            total += frame.rest_size - begun
            n += 1
        if one:
            break
        own += frame.own_size
        begun = 0
        frame += 1
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = n
    sent = sendmsg(c.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent <= 0:
        return sent
    c.bulk_held -= sent
    c.bulk_begun += sent
    frame = next_bulk(c)
    left = held(&c.bulk_frames) // sizeof(BulkFrame) - c.bulk_gone
    while left and c.bulk_begun >= frame.own_size + frame.rest_size:
        c.bulk_begun -= frame.own_size + frame.rest_size
        consume(&c.bulk, frame.own_size, BULK_BYTES_KEPT)
        c.bulk_gone += 1
        frame += 1
        left -= 1
    return sent


cdef void push(Poller p, Channel* c) noexcept nogil:
    """Send what the lanes hold, until the kernel takes no more or it is the others' turn."""
    cdef Lane* lane
    cdef size_t end
    cdef Py_ssize_t sent
    cdef size_t total = 0
    c.bulk_window = BULK_WINDOW
    if c.bulk_held and monotonic_ns() - c.data_said_ns < SHARED_NS:
        c.bulk_window = min(
            c.bulk_window,
            max(<size_t>BULK_WINDOW_SHARED, <size_t>c.round_trip_least_ns // SHARED_NS_PER_BYTE),
        )
    while c.state != CLOSED:
        lane = NULL         # the bulk lane
        if held(&c.torn):
            lane = &c.torn
        elif c.bulk_begun:
            pass
        elif held(&c.control):
            lane = &c.control
        elif held(&c.data) and (c.data_run < SAID_BYTES_MAX or not may_send_bulk(c)):
            lane = &c.data
        elif may_send_bulk(c):
            pass
        elif held(&c.bye) and not c.bulk_held:
            lane = &c.bye
        else:
            break
        if lane is NULL:
            # Its turn among the others' frames is one frame.
            sent = send_bulk(c, held(&c.control) or held(&c.data))
        else:
            sent = send(
                c.fd, lane.data + lane.head, min(held(lane), <size_t>SAID_BYTES_MAX),
                MSG_DONTWAIT | MSG_NOSIGNAL,
            )
        if sent < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                give_up(p, c, 0, errno)
            break
        c.bytes_said += sent
        total += sent
        if lane is NULL:
            c.data_run = 0
            if c.bulk_held == 0:
                # The messages can be let go of.
                make_ready(p)
        elif lane is &c.torn:
            consume(lane, sent)
        else:
            end = whole_frames(lane.data + lane.head, sent)
            if end > <size_t>sent:
                if append(&c.torn, lane.data + lane.head + sent, end - sent) != 0:
                    give_up(p, c, 0, ENOMEM)
                    break
            consume(lane, end)
            c.data_run = c.data_run + end if lane is &c.data else 0
        if total >= PUSH_BYTES_MAX:
            break
    if c.state == CLOSED:
        return
    recount(c)
    if c.notice and c.queued < p.queue_bytes_max // 4:
        c.notice = False
        make_ready(p)
    if c.queued - c.bulk_held or may_send_bulk(c):
        watch_for(p, c, c.interest | EPOLLOUT)
        return
    watch_for(p, c, c.interest & ~<uint32_t>EPOLLOUT)
    if c.state == LINGERING and not c.queued and not c.half_closed:
        c.half_closed = True
        shutdown(c.fd, SHUT_WR)


cdef void pull(Poller p, Channel* c) noexcept nogil:
    """Read once, and cut what came into frames."""
    cdef size_t room
    cdef Py_ssize_t got
    room = HEARD_BYTES_MIN
    while room < HEARD_BYTES_MAX and room <= c.heard.capacity // 2:
        room *= 2
    if reserve(&c.heard, room) != 0:
        give_up(p, c, 0, ENOMEM)
        return
    room = min(c.heard.capacity - c.heard.tail, <size_t>HEARD_BYTES_MAX)
    while True:
        got = recv(c.fd, c.heard.data + c.heard.tail, room, MSG_DONTWAIT)
        if got >= 0 or errno != EINTR:
            break
    if got < 0:
        if errno != EAGAIN:
            give_up(p, c, 0, errno)
        return
    if got == 0:
        give_up(p, c, 0, 0)
        return
    c.heard_ns = monotonic_ns()
    c.bytes_heard += got
    if c.state == OPEN:
        c.heard.tail += got
        if <size_t>got == room and c.heard.capacity < HEARD_BYTES_MAX:
            reserve(&c.heard, c.heard.capacity)
        cut(p, c)


cdef void cut(Poller p, Channel* c) noexcept nogil:
    """Sort what was heard into whole frames by their lanes; answer those of the control lane."""
    cdef Frame frame
    cdef Lane* lane = NULL                   # that the frames belong to ...
    cdef Lane* next_lane
    cdef size_t run = c.heard.head           # ... which begin here ...
    cdef size_t at = run                     # ... and end here
    cdef bint failed = False
    cdef Py_ssize_t size = 0
    while c.state == OPEN and not failed:
        size = next_frame(c.heard.data + at, c.heard.tail - at, p.frame_bytes_max, &frame)
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
            control(p, c, &frame, c.heard.data + at, size)
            run += size
        at += size
    if failed or hand_on(&c.heard, run, at, lane) != 0:
        give_up(p, c, 0, ENOMEM)
    elif size < 0:
        say_goodbye(p, c, <int>-size, NULL, 0, False)
    c.whole = held(&c.ready) + held(&c.ready_bulk)
    if c.whole:
        make_ready(p)
    if c.state != OPEN:
        # Nothing of what follows is read.
        drop(&c.heard)
        return
    if held(&c.heard) and c.partial_ns == 0:
        c.partial_ns = c.heard_ns
    if held(&c.ready) > HEARD_HIGH or held(&c.ready_bulk) > HEARD_BULK_HIGH:
        c.paused = True
        watch_for(p, c, c.interest & ~<uint32_t>EPOLLIN)


cdef inline bint is_bulk(const Frame* frame) noexcept nogil:
    return frame.kind == FRAGMENT or (
        frame.flags & FLAG_FULL
        and (frame.kind == ENVELOPE or frame.kind == DOWN or frame.kind == LOST)
    )


cdef inline int64_t round_trip(int64_t heard_ns, uint64_t said_ns) noexcept nogil:
    """How long ago that was; the least there is for a time that this side cannot have said."""
    return heard_ns - <int64_t>said_ns if said_ns < <uint64_t>heard_ns else 1


cdef void control(
    Poller p, Channel* c, const Frame* frame, const unsigned char* whole, size_t size
) noexcept nogil:
    cdef unsigned char body[16]
    if frame.kind == TAKEN:
        # More than was given is a lie that only delays the liar's own messages less.
        c.bulk_taken = min(load_64(frame.body), c.bulk_given - c.bulk_held)
        c.bulk_unsent[0] = c.bulk_given - c.bulk_taken
        if not c.interest & EPOLLOUT:
            push(p, c)
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
            say_goodbye(p, c, CODE_LIMIT, NULL, 0, False)
            return
        memcpy(body, frame.body, 8)
        store_64(body + 8, p.progress)
        queue_control(p, c, PONG, p.idle, body, 16)
        return
    if held(&c.told) + size > CONTROL_BYTES_MAX or append(&c.told, whole, size) != 0:
        say_goodbye(p, c, CODE_LIMIT, NULL, 0, False)
        return
    signal(p.told_fd)
    if frame.kind == BYE:
        give_up(p, c, frame.body[0], 0)


cdef void queue_control(
    Poller p, Channel* c, int kind, int flags, const void* body, size_t size
) noexcept nogil:
    if append_frame(&c.control, kind, flags, body, size) != 0:
        give_up(p, c, 0, ENOMEM)
        return
    recount(c)
    if not c.interest & EPOLLOUT:
        push(p, c)


cdef void step(Poller p) noexcept nogil:
    """One look at all sockets. Never blocks."""
    cdef epoll_event events[EVENTS]
    cdef uint64_t count
    cdef Channel* c
    cdef int found, n
    found = epoll_wait(p.epfd, events, EVENTS, 0)
    for n in range(found):
        c = <Channel*>events[n].data.ptr
        if c is NULL:
            p.inbox_ready = True
            continue
        if <void*>c is <void*>p:
            read(p.wake_fd, &count, 8)
            continue
        # Closed by an earlier event of this look, perhaps.
        if c.state != CLOSED and events[n].events & EPOLLOUT:
            push(p, c)
        if c.state != CLOSED and events[n].events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            if c.paused and not events[n].events & (EPOLLERR | EPOLLHUP):
                continue
            pull(p, c)


cdef void keep_alive(Poller p, int64_t now) noexcept nogil:
    """Say what is due by the clock, and end what has taken too long."""
    cdef unsigned char body[16]
    cdef Channel* c = p.first
    while c is not NULL:
        if c.state == OPEN:
            if now - c.pinged_ns >= p.heartbeat_ns:
                # Also amid other frames, since only PING and PONG tell of progress.
                c.pinged_ns = now
                store_64(body, <uint64_t>now)
                store_64(body + 8, p.progress)
                queue_control(p, c, PING, p.idle, body, 16)
            if c.partial_ns != 0 and not c.paused and now - c.partial_ns > p.partial_ns_max:
                say_goodbye(p, c, CODE_TIMEOUT, b"an unfinished frame", 19, False)
        elif c.state == LINGERING and now >= c.linger_until_ns:
            give_up(p, c, c.code, 0)
        c = c.next


cdef void flush_locked(
    Poller p, Channel* c, Writer* data, Writer* bulk, Writer* frames, size_t bulk_size,
    uint64_t taken,
) noexcept nogil:
    cdef unsigned char body[8]
    cdef Py_ssize_t sent
    cdef size_t end
    cdef size_t begun = 0
    cdef bint failed = False
    if c.state != OPEN:
        return
    if bulk_size:
        failed = (
            reserve(&c.bulk_frames, frames.size) != 0
            or take_over(&c.bulk, bulk) != 0
            or take_over(&c.bulk_frames, frames) != 0
        )
        if failed:
            give_up(p, c, 0, ENOMEM)
            return
        c.bulk_given += bulk_size
        c.bulk_held += bulk_size
        c.bulk_unsent[0] = c.bulk_given - c.bulk_taken
    if taken != 0:
        store_64(body, taken)
        failed = append_frame(&c.control, TAKEN, 0, body, 8) != 0
    if data.size:
        c.data_said_ns = monotonic_ns()
        if not (
            c.interest & EPOLLOUT or held(&c.torn) or held(&c.control) or held(&c.data)
            or c.bulk_held
        ):
            # Nothing waits, so it goes past the lanes.
            sent = send(c.fd, data.data, data.size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent > 0:
                c.bytes_said += sent
                begun = sent
                if sent < data.size:
                    end = whole_frames(data.data, sent)
                    failed = append(&c.torn, data.data + sent, end - sent) != 0
                    begun = end
            elif errno != EAGAIN and errno != EINTR:
                give_up(p, c, 0, errno)
                return
        failed = failed or append(&c.data, data.data + begun, data.size - begun) != 0
    if failed:
        give_up(p, c, 0, ENOMEM)
        return
    recount(c)
    if c.queued and not c.interest & EPOLLOUT:
        push(p, c)


cdef size_t some_frames(const Lane* lane, size_t most, int frames_most) noexcept nogil:
    """How many bytes so many frames, of at most so many bytes, are; one frame at least."""
    cdef size_t size = 0
    cdef size_t next_size
    cdef int _
    for _ in range(frames_most):
        if size >= held(lane):
            break
        next_size = frame_size(lane.data + lane.head + size)
        if size and size + next_size > most:
            break
        size += next_size
    return size


cdef void take_locked(Poller p, Connection connection) noexcept nogil:
    """Trade empty lanes for all the whole frames that came.

    Those of the bulk lane must not be decoded before what came before them on the data lane, as
    that may be of the same pair. The other way round they may be overtaken.
    """
    cdef Channel* c = connection.channel
    trade(&connection.taken, &c.ready)
    if held(&connection.taken_bulk) == 0:
        trade(&connection.taken_bulk, &c.ready_bulk)
        connection.bulk_waits = held(&connection.taken) != 0
    c.whole = held(&c.ready) + held(&c.ready_bulk)
    if c.paused and held(&c.ready) < HEARD_LOW and held(&c.ready_bulk) < HEARD_BULK_HIGH // 2:
        c.paused = False
        # The peer was not silent, nor slow with its frame: we did not listen.
        c.heard_ns = monotonic_ns()
        if c.partial_ns != 0:
            c.partial_ns = c.heard_ns
        if c.state == OPEN:
            watch_for(p, c, c.interest | EPOLLIN)


@cython.final
@cython.no_gc
cdef class Connection:
    """One established connection to another node. Made by `Poller.attach`.

    Its methods are for the cluster server's thread.
    """

    def __init__(self):
        raise TypeError("a Connection cannot be made by itself: Poller.attach makes them")

    def __dealloc__(self):
        if self.channel is not NULL:
            if getpid() == self.poller.owner:
                # In a forked child the lock may be held by a thread that is not here, and the
                # epoll set is the parent's, too.
                with nogil:
                    release(self.poller, self.channel)
                forget_messages(self.channel)
                free(self.channel)
        drop(&self.taken)
        drop(&self.taken_bulk)

    cdef size_t unsent(self) noexcept:
        """Bytes that the peer's kernel has not taken yet, those not flushed included."""
        return self.channel.queued + self.speaker.data.size + self.speaker.bulk.size

    cdef size_t counted(self) noexcept:
        """What of that counts for the queue's limit: not a message that exceeds it by itself.

        Else all that others say beside such a message, which they overtake, would be refused.
        """
        cdef size_t waits = self.unsent()
        cdef size_t bulk
        cdef uint64_t behind
        if self.large_size:
            bulk = self.channel.bulk_held + self.speaker.bulk.size
            behind = self.speaker.bulk.said - self.large_end
            if bulk <= behind:
                self.large_size = 0
            else:
                waits -= min(waits, min(self.large_size, bulk - behind))
        return waits

    cdef bint is_open(self) noexcept:
        return self.channel.state == OPEN

    cdef bint has_heard(self) noexcept:
        """Whether there are whole frames that were not decoded yet."""
        return self.channel.whole != 0 or held(&self.taken) != 0 or held(&self.taken_bulk) != 0

    @property
    def open(self):
        """Whether frames go both ways."""
        return self.channel.state == OPEN

    @property
    def closed(self):
        """Whether its descriptor is closed."""
        return self.channel.state == CLOSED

    @property
    def code(self):
        """The refusal code with which it was ended, by whichever side; or 0."""
        return self.channel.code

    @property
    def error(self):
        """The errno that ended it, or 0: the peer closed it, or a code says why."""
        return self.channel.error

    @property
    def torn(self):
        """Whether the peer closed it in the middle of a frame."""
        cdef Channel* c = self.channel
        return c.state == CLOSED and c.code == 0 and c.partial_ns != 0

    @property
    def silent_ns(self):
        """For how long nothing was heard. A pause of this side's own does not count."""
        if self.channel.paused:
            return 0
        return max(monotonic_ns() - self.channel.heard_ns, 0)

    @property
    def progress(self):
        """What the peer's executor had delivered, whether it idled, and how many ns ago it said so.
        """
        return (
            self.channel.peer_progress,
            bool(self.channel.peer_idle),
            max(monotonic_ns() - self.channel.told_ns, 0),
        )

    def status(self):
        """Counters and gauges of the connection, by name."""
        cdef Channel* c = self.channel
        return {
            "bytes_heard": c.bytes_heard,
            "bytes_said": c.bytes_said,
            "frames_heard": c.frames_heard,
            "queued_bytes": c.queued,
            "round_trip_ns": c.round_trip_ns,
        }

    def say(self, int kind, bytes body not None):
        """Queue a control frame. Returns False if the connection is not open, or does not send.

        :raises ValueError: if the frame would be longer than the peer takes.
        """
        cdef Channel* c = self.channel
        cdef const char* data = PyBytes_AS_STRING(body)
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef bint said = False
        if size + 2 > self.poller.frame_bytes_max:
            raise ValueError(
                f"a control frame of {size} bytes is longer than the "
                f"{self.poller.frame_bytes_max} allowed"
            )
        with nogil:
            pthread_mutex_lock(&self.poller.lock)
            if c.state == OPEN and held(&c.control) + size <= CONTROL_BYTES_MAX:
                queue_control(self.poller, c, kind, 0, data, size)
                said = c.state == OPEN
            pthread_mutex_unlock(&self.poller.lock)
        return said

    def take_told(self):
        """The control frames that came for the cluster server, as (kind, body)."""
        cdef Channel* c = self.channel
        cdef Lane told
        cdef list frames = []
        cdef size_t at, size
        with nogil:
            pthread_mutex_lock(&self.poller.lock)
            told = c.told
            c.told.data = NULL
            c.told.head = c.told.tail = c.told.capacity = 0
            pthread_mutex_unlock(&self.poller.lock)
        try:
            at = told.head
            while at < told.tail:
                size = frame_size(told.data + at)
                frames.append((
                    told.data[at + 4],
                    PyBytes_FromStringAndSize(
                        <char*>told.data + at + FRAME_HEADER, size - FRAME_HEADER
                    ),
                ))
                at += size
        finally:
            PyMem_RawFree(told.data)
        return frames

    def close(self, int code, str text="", *, bint after_all=False):
        """End the connection with a BYE.

        :param after_all: after what was said before, instead of at once.

        For any thread.
        """
        cdef bytes encoded = text.encode("utf-8", "replace")[:255]
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(encoded)
        cdef size_t size = PyBytes_GET_SIZE(encoded)
        with nogil:
            pthread_mutex_lock(&self.poller.lock)
            say_goodbye(self.poller, self.channel, code, data, size, after_all)
            pthread_mutex_unlock(&self.poller.lock)

    def abort(self, int code):
        """Close the descriptor at once: the peer is held to be dead."""
        with nogil:
            pthread_mutex_lock(&self.poller.lock)
            give_up(self.poller, self.channel, code, 0)
            pthread_mutex_unlock(&self.poller.lock)

    def __repr__(self):
        state = ("open", "lingering", "closed")[self.channel.state]
        return f"<Connection to {self.link.peer} {state}>"


cdef void forget_messages(Channel* c) noexcept:
    """Drop the messages of all frames of the bulk lane."""
    cdef BulkFrame* frame = <BulkFrame*>(c.bulk_frames.data + c.bulk_frames.head)
    cdef size_t left = held(&c.bulk_frames) // sizeof(BulkFrame)
    while left:
        Py_XDECREF(frame.message)
        frame += 1
        left -= 1
    drop(&c.bulk_frames)


cdef void release(Poller p, Channel* c) noexcept nogil:
    """Close what is not closed, and give back its memory but the channel and its messages."""
    cdef Channel** place
    pthread_mutex_lock(&p.lock)
    give_up(p, c, 0, 0)
    place = &p.first
    while place[0] is not c:
        place = &place[0].next
    place[0] = c.next
    pthread_mutex_unlock(&p.lock)
    drop(&c.heard)
    drop(&c.ready)
    drop(&c.ready_bulk)
    drop(&c.told)


@cython.final
@cython.no_gc
cdef class Poller:
    """The sockets of one node's connections.

    :param heartbeat_ms: after so long a silence of this side it says PING.
    :param frame_bytes_max: the longest frame that is taken, without its length field.
    :param queue_bytes_max: unsent bytes of a connection at which its peer counts as busy.
    :param partial_ms_max: how long a frame may take from its first byte to its last.
    """

    def __cinit__(self, *, heartbeat_ms, frame_bytes_max, queue_bytes_max, partial_ms_max):
        cdef epoll_event event
        # The C library gives freed memory back to the kernel from twice the size on of the largest
        # block it ever mapped and unmapped by itself. Below that, a stream of messages of some MiB
        # would have each page of each message come from the kernel anew, which takes longer than
        # to fill it. Nothing is written, so this takes no memory.
        PyMem_RawFree(PyMem_RawMalloc(LARGE_BYTES))
        self.epfd = self.stop_fd = self.told_fd = self.wake_fd = -1
        pthread_mutex_init(&self.lock, NULL)
        self.owner = getpid()
        self.heartbeat_ns = heartbeat_ms * 1_000_000
        self.frame_bytes_max = frame_bytes_max
        self.queue_bytes_max = queue_bytes_max
        self.partial_ns_max = partial_ms_max * 1_000_000
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        self.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        event.events = EPOLLIN
        event.data.ptr = <void*>self
        if (
            self.epfd < 0
            or self.stop_fd < 0
            or self.told_fd < 0
            or self.wake_fd < 0
            or epoll_ctl(self.epfd, EPOLL_CTL_ADD, self.wake_fd, &event) != 0
        ):
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        cdef int fd
        # No channel is left: each is kept by a Connection, which keeps its poller.
        for fd in (self.epfd, self.stop_fd, self.told_fd, self.wake_fd):
            if fd >= 0:
                close(fd)
        pthread_mutex_destroy(&self.lock)

    def fileno(self):
        """Readable when there is something for the cluster server, until `drain`."""
        return self.told_fd

    def drain(self):
        """Make `fileno` unreadable again; to be done before looking for what there is."""
        cdef uint64_t count
        read(self.told_fd, &count, 8)

    def nudge(self):
        """Make `fileno` readable. For any thread; never blocks."""
        signal(self.told_fd)

    def watch(self, int fd):
        """Have the executor woken, when it sleeps here, by this descriptor: its inbox's."""
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = NULL
        if epoll_ctl(self.epfd, EPOLL_CTL_ADD, fd, &event) != 0:
            PyErr_SetFromErrno(OSError)

    def attach(self, int fd, Link link not None, bytes leftover=b"", *, bint initiated=False):
        """Take over a connected socket after its handshake.

        :param fd: from now on the poller's to close; it stays the caller's if this raises.
        :param leftover: what came behind the handshake.
        :raises OSError: if it cannot be polled.
        """
        cdef Connection connection
        cdef epoll_event event
        cdef Channel* c = <Channel*>calloc(1, sizeof(Channel))
        cdef int failed
        cdef size_t size = PyBytes_GET_SIZE(leftover)
        if c is NULL:
            raise MemoryError
        if size and append(&c.heard, PyBytes_AS_STRING(leftover), size) != 0:
            free(c)
            raise MemoryError
        c.fd = fd
        c.interest = EPOLLIN
        c.bulk_unsent = <volatile size_t*>&link.speaker.bulk.unsent
        c.heard_ns = c.pinged_ns = c.told_ns = monotonic_ns()
        event.events = EPOLLIN
        event.data.ptr = c
        with nogil:
            pthread_mutex_lock(&self.lock)
            failed = epoll_ctl(self.epfd, EPOLL_CTL_ADD, fd, &event)
            if not failed:
                c.next = self.first
                self.first = c
                self.connections += 1
            else:
                failed = errno
            pthread_mutex_unlock(&self.lock)
        if failed:
            drop(&c.heard)
            free(c)
            raise OSError(failed, "epoll_ctl")
        connection = Connection.__new__(Connection)
        connection.link = link
        connection.speaker = link.speaker
        connection.poller = self
        connection.initiated = initiated
        connection.channel = c
        connection.watches = {}
        connection.watched = {}
        with nogil:
            pthread_mutex_lock(&self.lock)
            cut(self, c)
            pthread_mutex_unlock(&self.lock)
        return connection

    def run(self):
        """What the poll thread does until `stop`: heartbeats, and looks in the executor's place."""
        self.running = True
        with nogil:
            poll_until_stopped(self)
        self.running = False

    def stop(self):
        """End `run`. For any thread; never blocks."""
        self.stopping = True
        signal(self.stop_fd)

    # For tests, which have no executor.

    def poll(self):
        """Look at the sockets once; returns whether something may be there to be taken."""
        with nogil:
            self.look()
        return self.ready

    def flush_link(self, Connection connection not None):
        """Send what the connection's link has encoded."""
        self.flush(connection)

    def take_heard(self, Connection connection not None, size_t most=65536):
        """The whole frames that came, of at most so many bytes, but one at least.

        Those of the data lane come before those of the bulk lane.
        """
        cdef const unsigned char* frames
        cdef size_t size = self.take(connection, most, TAKEN_FRAMES_MAX, False, &frames)
        if size == 0:
            size = self.take(connection, most, TAKEN_FRAMES_MAX, True, &frames)
        heard = PyBytes_FromStringAndSize(<const char*>frames, size)
        if connection.owes_taken:
            self.flush(connection)
        return heard

    # For the executor.

    cdef void look(self) noexcept nogil:
        """Look at the sockets, unless the poll thread does just that."""
        if pthread_mutex_trylock(&self.lock) == 0:
            step(self)
            self.looked_ns = monotonic_ns()
            pthread_mutex_unlock(&self.lock)

    cdef bint fall_asleep(self) noexcept nogil:
        """Take over the sockets for the time of a sleep. False if there is something to do."""
        cdef bint asleep
        pthread_mutex_lock(&self.lock)
        self.inbox_ready = False
        asleep = not self.ready
        self.sleeper = asleep
        pthread_mutex_unlock(&self.lock)
        return asleep

    cdef void wake_up(self, bint stays_asleep) noexcept nogil:
        """Look at the sockets after a sleep. Then `ready` and `inbox_ready` say what is there.

        :param stays_asleep: go on sleeping if there is nothing.
        """
        pthread_mutex_lock(&self.lock)
        self.sleeper = False
        step(self)
        self.looked_ns = monotonic_ns()
        self.sleeper = stays_asleep and not self.ready and not self.inbox_ready
        pthread_mutex_unlock(&self.lock)

    cdef int flush(self, Connection connection) except -1:
        """Hand over what the connection's link has encoded, and send what the kernel takes."""
        cdef Speaker speaker = connection.speaker
        cdef uint64_t taken = connection.bulk_heard if connection.owes_taken else 0
        connection.is_dirty = False
        if connection.owes_taken:
            connection.owes_taken = False
            connection.bulk_told = taken
            if speaker.data.size and connection.channel.queued == 0:
                # It need not overtake anything, so one send does for both.
                speaker.say_taken(taken)
                taken = 0
        if pthread_mutex_trylock(&self.lock) == 0:
            flush_locked(
                self, connection.channel, &speaker.data, &speaker.bulk.own,
                &speaker.bulk.frames, speaker.bulk.size, taken,
            )
            pthread_mutex_unlock(&self.lock)
        else:
            with nogil:
                pthread_mutex_lock(&self.lock)
                flush_locked(
                    self, connection.channel, &speaker.data, &speaker.bulk.own,
                    &speaker.bulk.frames, speaker.bulk.size, taken,
                )
                pthread_mutex_unlock(&self.lock)
        speaker.data.size = 0
        # Of a connection that is not open they were not taken over.
        forget_frames(&speaker.bulk)
        if connection.channel.bulk_gone:
            self.let_go(connection)
        return 0

    cdef bint let_go(self, Connection connection) noexcept:
        """Drop the messages that have gone out. False if that is to be tried again."""
        cdef Channel* c = connection.channel
        cdef BulkFrame* frame
        if pthread_mutex_trylock(&self.lock) != 0:
            return False
        frame = <BulkFrame*>(c.bulk_frames.data + c.bulk_frames.head)
        while c.bulk_gone:
            # Bytes and nothing else: their end runs no code of anybody's.
            Py_XDECREF(frame.message)
            frame += 1
            c.bulk_gone -= 1
            consume(&c.bulk_frames, sizeof(BulkFrame))
        pthread_mutex_unlock(&self.lock)
        return True

    cdef size_t take(
        self,
        Connection connection,
        size_t most,
        int frames_most,
        bint bulk,
        const unsigned char** frames,
    ) noexcept:
        """Whole frames that came on one lane: where they are until the next call, and their size.

        What is taken over under the lock is all there is, without a copy; given out are at most
        `frames_most` frames of `most` bytes at a time, but one frame at least.
        """
        cdef Lane* taken = &connection.taken_bulk if bulk else &connection.taken
        cdef size_t size
        cdef bint locked
        if held(&connection.taken) == 0:
            locked = pthread_mutex_trylock(&self.lock) == 0
            if locked:
                take_locked(self, connection)
                pthread_mutex_unlock(&self.lock)
            else:
                with nogil:
                    pthread_mutex_lock(&self.lock)
                    take_locked(self, connection)
                    pthread_mutex_unlock(&self.lock)
        if bulk and connection.bulk_waits:
            return 0
        size = some_frames(taken, most, frames_most)
        if bulk and size:
            connection.bulk_heard += size
            # Told too often, it would wake a peer that has not yet room enough to go on.
            if (
                connection.bulk_heard - connection.bulk_told >= BULK_WINDOW // 4
                or held(taken) == size and held(&connection.channel.ready_bulk) == 0
            ):
                connection.owes_taken = True
        frames[0] = taken.data + taken.head
        taken.head += size
        if taken.head == taken.tail:
            # Its buffer stays, for the next trade, and the bytes in it until then.
            taken.head = taken.tail = 0
            if not bulk:
                connection.bulk_waits = False
        return size


cdef void poll_until_stopped(Poller p) noexcept nogil:
    cdef int64_t now
    cdef int64_t tick = min(p.heartbeat_ns // 4, 250_000_000)
    while not p.stopping:
        wait_readable(p.stop_fd, tick if p.sleeper or p.idle else min(tick, BUSY_TICK_NS))
        pthread_mutex_lock(&p.lock)
        now = monotonic_ns()
        if not p.sleeper and now - p.looked_ns > STUCK_NS:
            step(p)
        keep_alive(p, now)
        pthread_mutex_unlock(&p.lock)
