"""Channels: what a connection says, from its lanes to its socket, and how it ends.

A *channel* is the C struct of one connection. It is only touched under the lock of its `Sockets`,
by functions that need no GIL and never block, whichever thread calls them. What arrives on it is
the matter of `arrivals`; who looks, and when, that of `poll`.
"""

from cpython.ref cimport Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from rabble._core.bulk cimport BulkFrame
from rabble._core.capacities cimport (
    BULK_BYTES_KEPT,
    BULK_WINDOW,
    BULK_WINDOW_SHARED,
    PUSH_BYTES_MAX,
    SEND_BYTES_MAX,
    SEND_PIECES,
)
from rabble._core.frame cimport BYE, CODE_TIMEOUT, PING, TAKEN, store_64
from rabble._core.inbox cimport monotonic_ns
from rabble._core.lane cimport (
    Lane,
    append,
    append_frame,
    consume,
    drop,
    held,
    reserve,
    take_over,
)
from rabble._core.writer cimport Writer

cdef enum:
    SHARED_NS = 5_000_000             # for how long the data lane counts as in use
    SHARED_NS_PER_BYTE = 3            # ... over a long way, which takes as long by itself
    LINGER_NS = 1_000_000_000

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CTL_MOD
    union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: SHUT_WR
    Py_ssize_t send(int fd, const void* data, size_t size, int flags)
    int shutdown(int fd, int how)
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    Py_ssize_t sendmsg(int fd, const msghdr* message, int flags)


cdef int watch_fd(Sockets* s, int fd, void* what) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = what
    return 0 if epoll_ctl(s.epfd, EPOLL_CTL_ADD, fd, &event) == 0 else errno


cdef int admit(Sockets* s, Channel* c) noexcept nogil:
    """Take a new channel among the others and watch its socket; an errno if that cannot be."""
    cdef int failed
    pthread_mutex_lock(&s.lock)
    failed = watch_fd(s, c.fd, c)
    if not failed:
        c.state = OPEN
        c.interest = EPOLLIN
        c.next = s.first
        s.first = c
        s.connections += 1
    pthread_mutex_unlock(&s.lock)
    return failed


cdef void release(Sockets* s, Channel* c) noexcept nogil:
    """Close what is not closed, and give back its memory but the channel and its messages."""
    cdef Channel** place
    pthread_mutex_lock(&s.lock)
    give_up(s, c, 0, 0)
    place = &s.first
    while place[0] is not NULL and place[0] is not c:
        place = &place[0].next
    if place[0] is c:
        place[0] = c.next
    pthread_mutex_unlock(&s.lock)
    drop(&c.heard)
    drop(&c.ready)
    drop(&c.ready_bulk)
    drop(&c.told)


cdef void forget_messages(Channel* c) noexcept:
    """Drop the messages of all frames of the bulk lane."""
    cdef BulkFrame* frame = <BulkFrame*>(c.bulk_frames.data + c.bulk_frames.head)
    cdef size_t left = held(&c.bulk_frames) // sizeof(BulkFrame)
    while left:
        Py_XDECREF(frame.message)
        frame += 1
        left -= 1
    drop(&c.bulk_frames)


# Every function below needs the lock.

cdef void watch_for(Sockets* s, Channel* c, uint32_t interest) noexcept nogil:
    cdef epoll_event event
    if c.interest != interest and c.fd >= 0:
        event.events = interest
        event.data.ptr = c
        # Cannot fail: the descriptor is in the set.
        epoll_ctl(s.epfd, EPOLL_CTL_MOD, c.fd, &event)
        c.interest = interest


cdef void give_up(Sockets* s, Channel* c, int code, int error) noexcept nogil:
    """Close the descriptor. The whole frames that were heard can still be taken."""
    cdef epoll_event unused
    if c.state == CLOSED:
        return
    # Out of the set before it is closed: another file may get its number.
    epoll_ctl(s.epfd, EPOLL_CTL_DEL, c.fd, &unused)
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
    s.connections -= 1
    make_ready(s)
    signal(s.told_fd)


cdef void forget_unsent(Channel* c) noexcept nogil:
    drop(&c.data)
    drop(&c.bulk)
    drop(&c.bulk_marks)
    # Their messages are let go of by who holds the GIL.
    c.bulk_gone = held(&c.bulk_frames) // sizeof(BulkFrame)
    c.bulk_begun = c.bulk_held = 0
    recount(c)


cdef void recount(Channel* c) noexcept nogil:
    c.queued = held(&c.torn) + held(&c.control) + held(&c.data) + c.bulk_held + held(&c.bye)


cdef void say_goodbye(
    Sockets* s, Channel* c, int code, const unsigned char* text, size_t size, bint after_all
) noexcept nogil:
    """Say BYE, at once or after all that was said, and wait a bounded time for the peer's close.

    Closing at once, with bytes of the peer unread, would have the kernel answer them with a reset,
    which overtakes the BYE.
    """
    cdef unsigned char body[2 + 255]
    if c.state != OPEN:
        return
    size = min(size, <size_t>255)
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
        watch_for(s, c, c.interest | EPOLLIN)
    if not after_all:
        if finish_begun(c) != 0:
            give_up(s, c, code, ENOMEM)
            return
        forget_unsent(c)
        drop(&c.control)
    if append_frame(&c.bye, BYE, 0, body, size + 2) != 0:
        give_up(s, c, code, ENOMEM)
        return
    make_ready(s)
    signal(s.told_fd)
    push(s, c)


cdef size_t whole_frames(const unsigned char* data, size_t size) noexcept nogil:
    """Where the frame ends that byte `size - 1` is part of."""
    cdef size_t at = 0
    while at < size:
        at += frame_size(data + at)
    return at


cdef inline bint is_its_turn(const Channel* c, size_t nth) noexcept nogil:
    """Whether all that was put into the data lane before the nth frame of bulk has been sent.

    That may be of the same pair, and is not to be overtaken. What came later is, now and then.
    """
    cdef const uint64_t* marks = <const uint64_t*>(c.bulk_marks.data + c.bulk_marks.head)
    return marks[nth] <= c.data_given - held(&c.data)


cdef inline bint may_send_bulk(const Channel* c) noexcept nogil:
    """Whether the bulk lane has something whose turn it is, and that the peer has room for.

    The last of it, before a BYE, goes in any case: what the peer took is not heard any more.
    """
    return c.bulk_held and (
        c.bulk_begun
        or is_its_turn(c, 0) and (
            c.state != OPEN or c.bulk_given - c.bulk_held - c.bulk_taken < c.bulk_window
        )
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
    cdef size_t most = min(<size_t>SEND_BYTES_MAX, c.bulk_window)
    cdef iovec pieces[SEND_PIECES]
    cdef msghdr message
    cdef BulkFrame* frame = next_bulk(c)
    cdef const unsigned char* own = c.bulk.data + c.bulk.head
    cdef size_t begun = c.bulk_begun
    cdef size_t total = 0
    cdef size_t left
    cdef size_t nth = 0
    cdef int n = 0
    cdef Py_ssize_t sent
    # Frames go in whole, the last one past `most`, but none of them past what one send takes.
    while total < c.bulk_held and total < most and n + 2 <= SEND_PIECES:
        left = frame.own_size - min(begun, frame.own_size)
        if left:
            pieces[n].iov_base = <void*>(own + frame.own_size - left)
            pieces[n].iov_len = min(left, <size_t>SEND_BYTES_MAX)
            total += pieces[n].iov_len
            n += 1
            if left > SEND_BYTES_MAX:
                break
        begun -= frame.own_size - left
        if frame.rest_size:
            left = frame.rest_size - begun
            pieces[n].iov_base = <void*>(frame.rest + begun)
            pieces[n].iov_len = min(left, <size_t>SEND_BYTES_MAX)
            total += pieces[n].iov_len
            n += 1
            if left > SEND_BYTES_MAX:
                break
        own += frame.own_size
        begun = 0
        frame += 1
        nth += 1
        if one or total >= c.bulk_held or not is_its_turn(c, nth):
            break
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
        consume(&c.bulk_marks, sizeof(uint64_t))
        c.bulk_gone += 1
        frame += 1
        left -= 1
    return sent


cdef void push(Sockets* s, Channel* c) noexcept nogil:
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
        elif held(&c.data) and (c.data_run < SEND_BYTES_MAX or not may_send_bulk(c)):
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
                c.fd, lane.data + lane.head, min(held(lane), <size_t>SEND_BYTES_MAX),
                MSG_DONTWAIT | MSG_NOSIGNAL,
            )
        if sent < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                give_up(s, c, 0, errno)
            break
        c.bytes_said += sent
        total += sent
        if lane is NULL:
            c.data_run = 0
            if c.bulk_held == 0:
                # The messages can be let go of.
                make_ready(s)
        elif lane is &c.torn:
            consume(lane, sent)
        else:
            end = whole_frames(lane.data + lane.head, sent)
            if end > <size_t>sent:
                if append(&c.torn, lane.data + lane.head + sent, end - sent) != 0:
                    give_up(s, c, 0, ENOMEM)
                    break
            consume(lane, end)
            c.data_run = c.data_run + end if lane is &c.data else 0
        if total >= PUSH_BYTES_MAX:
            break
    if c.state == CLOSED:
        return
    recount(c)
    if c.notice and c.queued < s.queue_bytes_max // 4:
        c.notice = False
        make_ready(s)
    if c.queued - c.bulk_held or may_send_bulk(c):
        watch_for(s, c, c.interest | EPOLLOUT)
        return
    watch_for(s, c, c.interest & ~<uint32_t>EPOLLOUT)
    if c.state == LINGERING and not c.queued and not c.half_closed:
        c.half_closed = True
        shutdown(c.fd, SHUT_WR)


cdef void queue_control(
    Sockets* s, Channel* c, int kind, int flags, const void* body, size_t size
) noexcept nogil:
    if append_frame(&c.control, kind, flags, body, size) != 0:
        give_up(s, c, 0, ENOMEM)
        return
    recount(c)
    if not c.interest & EPOLLOUT:
        push(s, c)


cdef void flush_locked(
    Sockets* s, Channel* c, Writer* data, Writer* bulk, Writer* frames, size_t bulk_size,
    uint64_t taken,
) noexcept nogil:
    cdef unsigned char body[8]
    cdef Py_ssize_t sent
    cdef size_t end
    cdef size_t begun = 0
    cdef size_t count = frames.size // sizeof(BulkFrame)
    cdef bint failed = False
    if c.state != OPEN:
        return
    c.data_given += data.size
    if bulk_size:
        failed = (
            reserve(&c.bulk_frames, frames.size) != 0
            or reserve(&c.bulk_marks, count * sizeof(uint64_t)) != 0
            or take_over(&c.bulk, bulk) != 0
            or take_over(&c.bulk_frames, frames) != 0
        )
        if failed:
            give_up(s, c, 0, ENOMEM)
            return
        # What of this very flush was said first is not known here: data goes before bulk.
        while count:
            append(&c.bulk_marks, &c.data_given, sizeof(uint64_t))
            count -= 1
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
            sent = send(
                c.fd, data.data, min(<size_t>data.size, <size_t>SEND_BYTES_MAX),
                MSG_DONTWAIT | MSG_NOSIGNAL,
            )
            if sent > 0:
                c.bytes_said += sent
                begun = sent
                if sent < data.size:
                    end = whole_frames(data.data, sent)
                    failed = append(&c.torn, data.data + sent, end - sent) != 0
                    begun = end
            elif errno != EAGAIN and errno != EINTR:
                give_up(s, c, 0, errno)
                return
        failed = failed or append(&c.data, data.data + begun, data.size - begun) != 0
    if failed:
        give_up(s, c, 0, ENOMEM)
        return
    recount(c)
    if c.queued and not c.interest & EPOLLOUT:
        push(s, c)


cdef void keep_alive(Sockets* s, int64_t now) noexcept nogil:
    """Say what is due by the clock, and end what has taken too long."""
    cdef unsigned char body[16]
    cdef Channel* c = s.first
    while c is not NULL:
        if c.state == OPEN:
            if now - c.pinged_ns >= s.heartbeat_ns:
                # Also amid other frames, since only PING and PONG tell of progress.
                c.pinged_ns = now
                store_64(body, <uint64_t>now)
                store_64(body + 8, s.progress)
                queue_control(s, c, PING, s.idle, body, 16)
            if c.partial_ns != 0 and not c.paused and now - c.partial_ns > s.partial_ns_max:
                say_goodbye(s, c, CODE_TIMEOUT, b"an unfinished frame", 19, False)
        elif c.state == LINGERING and now >= c.linger_until_ns:
            give_up(s, c, c.code, 0)
        c = c.next
