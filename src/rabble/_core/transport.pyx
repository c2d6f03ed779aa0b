"""Transports: what a connection sends, from its lanes to its socket, and how it ends.

A *transport* is the C struct of one connection. It is only touched under the lock of its `Sockets`,
by functions that need no GIL and never block, whichever thread calls them. What arrives on it is
the matter of `receive`; who looks, and when, that of `poller`.

An authenticated transport sends records, each of the bytes that would be one `send` without: so the
lanes know nothing of them. A record is sealed once; what the kernel does not take of it is kept as
it is, and goes before all else.
"""

from cpython.ref cimport Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport SIZE_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.byte_queue cimport (
    ByteQueue,
    append,
    append_frame,
    consume,
    drop,
    length,
    reserve,
    take_over,
)
from rabble._core.byteorder cimport store_64
from rabble._core.capacities cimport (
    BULK_BYTES_KEPT,
    BULK_WINDOW,
    BULK_WINDOW_SHARED,
    RECORD_BYTES_BEGIN,
    SEND_BYTES_MAX,
    SEND_PIECES,
    WRITE_SOCKET_BYTES_MAX,
)
from rabble._core.frame cimport BYE, WINDOW_UPDATE
from rabble._core.gather cimport GatherFrame
from rabble._core.inbox cimport monotonic_ns
from rabble._core.linux cimport (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLIN,
    EPOLLOUT,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SIOCOUTQ,
    epoll_ctl,
    epoll_event,
    ioctl,
    iovec,
    msghdr,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    send,
    sendmsg,
    shutdown,
)
from rabble._core.record cimport RECORD_BYTES_MAX, RECORD_HEAD, seal_record

cdef enum:
    RECORD_BYTES = 64 << 10           # of the bulk lane: then another lane may have its turn
    SHARED_NS = 5_000_000             # for how long the data lane counts as in use
    SHARED_NS_PER_BYTE = 3            # ... over a long way, which takes as long by itself
    RECORD_FAST_NS = 10_000_000       # in which a record is gone where the line is no slow one


cdef int add_to_epoll(Sockets* s, int fd, void* what) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = what
    return 0 if epoll_ctl(s.epfd, EPOLL_CTL_ADD, fd, &event) == 0 else errno


cdef int admit(Sockets* s, Transport* t) noexcept nogil:
    """Take a new transport among the others and watch its socket; an errno if that cannot be."""
    cdef int failed
    pthread_mutex_lock(&s.lock)
    failed = add_to_epoll(s, t.fd, t)
    if not failed:
        t.state = OPEN
        t.interest = EPOLLIN
        t.next = s.first
        s.first = t
        s.connections += 1
    pthread_mutex_unlock(&s.lock)
    return failed


cdef void release(Sockets* s, Transport* t) noexcept nogil:
    """Close what is not closed, and give back its memory but the transport and its messages."""
    cdef Transport** place
    pthread_mutex_lock(&s.lock)
    give_up(s, t, 0, 0)
    place = &s.first
    while place[0] is not NULL and place[0] is not t:
        place = &place[0].next
    if place[0] is t:
        place[0] = t.next
    pthread_mutex_unlock(&s.lock)
    drop(&t.recv_records)
    drop(&t.recv_buffer)
    drop(&t.recv_data)
    drop(&t.recv_bulk)
    drop(&t.recv_control)


cdef void forget_messages(Transport* t) noexcept:
    """Drop the messages of all frames of the bulk lane."""
    cdef GatherFrame* frame = <GatherFrame*>(t.bulk_frames.data + t.bulk_frames.head)
    cdef size_t left = length(&t.bulk_frames) // sizeof(GatherFrame)
    while left:
        Py_XDECREF(frame.message)
        frame += 1
        left -= 1
    drop(&t.bulk_frames)


# Every function below needs the lock.

cdef void set_interest(Sockets* s, Transport* t, uint32_t interest) noexcept nogil:
    cdef epoll_event event
    if t.interest != interest and t.fd >= 0:
        event.events = interest
        event.data.ptr = t
        # Cannot fail: the descriptor is in the set.
        epoll_ctl(s.epfd, EPOLL_CTL_MOD, t.fd, &event)
        t.interest = interest


cdef void give_up(Sockets* s, Transport* t, int code, int error) noexcept nogil:
    """Close the descriptor. The whole frames that came can still be taken."""
    cdef epoll_event unused
    if t.state == CLOSED:
        return
    if t.state == LINGERING:
        t.unsent = t.queued - length(&t.bye) + (t.bytes_sent - taken_by_peer(t))
    # Out of the set before it is closed: another file may get its number.
    epoll_ctl(s.epfd, EPOLL_CTL_DEL, t.fd, &unused)
    close(t.fd)
    t.fd = -1
    if t.state == OPEN:
        t.code = code
        t.error = error
    t.state = CLOSED
    forget_unsent(t)
    drop(&t.record_rest)
    drop(&t.partial_frame)
    drop(&t.control)
    drop(&t.bye)
    recount(t)
    s.connections -= 1
    make_ready(s)
    signal(s.server_fd)


cdef void forget_unsent(Transport* t) noexcept nogil:
    drop(&t.data)
    drop(&t.bulk)
    drop(&t.bulk_marks)
    # Their messages are let go of by who holds the GIL.
    t.bulk_sent_frames = length(&t.bulk_frames) // sizeof(GatherFrame)
    t.bulk_partial = t.bulk_held = 0
    recount(t)


cdef void recount(Transport* t) noexcept nogil:
    t.queued = (
        length(&t.record_rest) + length(&t.partial_frame) + length(&t.control) + length(&t.data)
        + t.bulk_held + length(&t.bye)
    )


cdef void write_bye(
    Sockets* s, Transport* t, int code, const unsigned char* text, size_t size, bint after_all,
) noexcept nogil:
    """Send BYE, at once or after all that was sent, and wait a bounded time for the peer's close.

    Closing at once, with bytes of the peer unread, would have the kernel answer them with a reset,
    which overtakes the BYE.
    """
    cdef unsigned char body[2 + 255]
    if t.state != OPEN:
        return
    size = min(size, <size_t>255)
    body[0] = <uint8_t>code
    body[1] = <uint8_t>size
    if size:
        memcpy(body + 2, text, size)
    t.state = LINGERING
    t.code = code
    t.taken_ns = monotonic_ns()
    t.bytes_taken = taken_by_peer(t)
    t.linger_ns = LINGER_NS
    t.linger_end_ns = t.taken_ns + LINGER_NS
    if t.paused:
        # Nobody will take what came to have the reading go on, and the close be seen.
        t.paused = False
        set_interest(s, t, t.interest | EPOLLIN)
    if not after_all:
        if finish_partial(t) != 0:
            give_up(s, t, code, ENOMEM)
            return
        forget_unsent(t)
        drop(&t.control)
    if append_frame(&t.bye, BYE, 0, body, size + 2) != 0:
        give_up(s, t, code, ENOMEM)
        return
    make_ready(s)
    signal(s.server_fd)
    write_socket(s, t)


cdef uint64_t taken_by_peer(const Transport* t) noexcept nogil:
    cdef int waiting = 0
    ioctl(t.fd, SIOCOUTQ, &waiting)
    return t.bytes_sent - waiting


cdef size_t end_of_frame(const unsigned char* data, size_t size) noexcept nogil:
    """Where the frame ends that byte `size - 1` is part of."""
    cdef size_t at = 0
    while at < size:
        at += frame_size(data + at)
    return at


cdef inline size_t send_bytes_max(const Transport* t) noexcept nogil:
    """How many bytes one `transmit` may be given."""
    if t.is_authenticated:
        return min(<size_t>SEND_BYTES_MAX, t.record_bytes)
    return SEND_BYTES_MAX


cdef inline void note_fast_line(Transport* t, size_t size) noexcept nogil:
    """A record of that size was sent without a long wait: the next ones may be longer."""
    if 2 * size >= t.record_bytes:
        t.record_bytes = min(2 * t.record_bytes, <size_t>RECORD_BYTES_MAX)


cdef Py_ssize_t transmit(Transport* t, iovec* pieces, int count) noexcept nogil:
    """Send the bytes of pieces 1 to `count`; how many of them are done with, or minus an errno.

    Piece 0 is room for the head of a record. What has become part of a record is done with.
    """
    cdef unsigned char head[RECORD_HEAD]
    cdef msghdr message
    cdef size_t size = 0
    cdef size_t begun
    cdef Py_ssize_t sent
    cdef int n
    if not t.is_authenticated:
        if count == 1:
            sent = send(t.fd, pieces[1].iov_base, pieces[1].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            memset(&message, 0, sizeof(message))
            message.msg_iov = pieces + 1
            message.msg_iovlen = count
            sent = sendmsg(t.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            return -errno
        t.bytes_sent += sent
        return sent
    for n in range(1, count + 1):
        size += pieces[n].iov_len
    seal_record(&t.sealing, pieces + 1, count, head)
    pieces[0].iov_base = head
    pieces[0].iov_len = RECORD_HEAD
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = count + 1
    sent = sendmsg(t.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            return -errno
        sent = 0
    t.bytes_sent += sent
    if <size_t>sent == RECORD_HEAD + size:
        note_fast_line(t, size)
        return size
    t.record_begun_ns = monotonic_ns()
    begun = sent
    for n in range(count + 1):
        sent = min(begun, pieces[n].iov_len)
        if append(&t.record_rest, <char*>pieces[n].iov_base + sent, pieces[n].iov_len - sent) != 0:
            return -ENOMEM
        begun -= sent
    return size


cdef inline Py_ssize_t transmit_one(
    Transport* t, const unsigned char* data, size_t size
) noexcept nogil:
    """The same of bytes that stand together, or as many of the first of them as may be."""
    cdef iovec pieces[2]
    pieces[1].iov_base = <void*>data
    pieces[1].iov_len = min(size, send_bytes_max(t))
    return transmit(t, pieces, 1)


cdef inline bint is_its_turn(const Transport* t, size_t nth) noexcept nogil:
    """Whether all that was put into the data lane before the nth frame of bulk has been sent.

    That may be of the same pair, and is not to be overtaken. What came later is, now and then.
    """
    cdef const uint64_t* marks = <const uint64_t*>(t.bulk_marks.data + t.bulk_marks.head)
    return marks[nth] <= t.data_queued - length(&t.data)


cdef inline bint may_send_bulk(const Transport* t) noexcept nogil:
    """Whether the bulk lane has something whose turn it is, and that the peer has room for.

    The last of it, before a BYE, goes in any case: what the peer consumes is not noted any more.
    """
    return t.bulk_held and (
        t.bulk_partial
        or is_its_turn(t, 0) and (
            t.state != OPEN or t.bulk_queued - t.bulk_held - t.bulk_consumed < t.bulk_window
        )
    )


cdef inline GatherFrame* next_bulk(const Transport* t) noexcept nogil:
    return <GatherFrame*>(t.bulk_frames.data + t.bulk_frames.head) + t.bulk_sent_frames


cdef int finish_partial(Transport* t) noexcept nogil:
    """Keep the rest of a frame of the bulk lane that was begun; -1 if there is no memory."""
    cdef GatherFrame* frame
    cdef size_t begun = t.bulk_partial
    if begun == 0:
        return 0
    frame = next_bulk(t)
    if begun < frame.own_size:
        if append(&t.partial_frame, t.bulk.data + t.bulk.head + begun, frame.own_size - begun) != 0:
            return -1
        begun = frame.own_size
    begun -= frame.own_size
    return append(&t.partial_frame, frame.rest + begun, frame.rest_size - begun)


cdef Py_ssize_t send_bulk(Transport* t, bint one) noexcept nogil:
    """Send the next frames of the bulk lane, or just `one`, or the rest of it: see `transmit`."""
    cdef size_t most = min(
        <size_t>RECORD_BYTES if t.is_authenticated else <size_t>SEND_BYTES_MAX, t.bulk_window
    )
    # Of all pieces together a record has a bound, and otherwise each by itself.
    cdef size_t record_left = send_bytes_max(t) if t.is_authenticated else SIZE_MAX
    cdef iovec pieces[1 + SEND_PIECES]
    cdef GatherFrame* frame = next_bulk(t)
    cdef const unsigned char* own = t.bulk.data + t.bulk.head
    cdef size_t begun = t.bulk_partial
    cdef size_t total = 0
    cdef size_t left, size
    cdef size_t nth = 0
    cdef int n = 0
    cdef Py_ssize_t sent
    # Frames go in whole, the last one past `most`, but none of them past what one send takes.
    while total < t.bulk_held and total < most and n + 2 <= SEND_PIECES:
        if n and frame.own_size + frame.rest_size > record_left:
            break
        left = frame.own_size - min(begun, frame.own_size)
        if left:
            size = min(left, <size_t>SEND_BYTES_MAX, record_left)
            n += 1
            pieces[n].iov_base = <void*>(own + frame.own_size - left)
            pieces[n].iov_len = size
            total += size
            record_left -= size
            if size < left:
                break
        begun -= frame.own_size - left
        if frame.rest_size:
            left = frame.rest_size - begun
            size = min(left, <size_t>SEND_BYTES_MAX, record_left)
            if size == 0:
                break
            n += 1
            pieces[n].iov_base = <void*>(frame.rest + begun)
            pieces[n].iov_len = size
            total += size
            record_left -= size
            if size < left:
                break
        own += frame.own_size
        begun = 0
        frame += 1
        nth += 1
        if one or total >= t.bulk_held or not is_its_turn(t, nth):
            break
    sent = transmit(t, pieces, n)
    if sent <= 0:
        return sent
    t.bulk_held -= sent
    t.bulk_partial += sent
    frame = next_bulk(t)
    left = length(&t.bulk_frames) // sizeof(GatherFrame) - t.bulk_sent_frames
    while left and t.bulk_partial >= frame.own_size + frame.rest_size:
        t.bulk_partial -= frame.own_size + frame.rest_size
        consume(&t.bulk, frame.own_size, BULK_BYTES_KEPT)
        consume(&t.bulk_marks, sizeof(uint64_t))
        t.bulk_sent_frames += 1
        frame += 1
        left -= 1
    return sent


cdef Py_ssize_t send_record_rest(Transport* t) noexcept nogil:
    """Go on with the record that was sent in part: how many bytes went, or minus an errno."""
    cdef Py_ssize_t sent = send(
        t.fd, t.record_rest.data + t.record_rest.head,
        min(length(&t.record_rest), <size_t>SEND_BYTES_MAX), MSG_DONTWAIT | MSG_NOSIGNAL,
    )
    if sent < 0:
        return -errno
    t.bytes_sent += sent
    if <size_t>sent == length(&t.record_rest):
        if monotonic_ns() - t.record_begun_ns <= RECORD_FAST_NS:
            note_fast_line(t, t.record_bytes)
        else:
            t.record_bytes = RECORD_BYTES_BEGIN
    return sent


cdef void write_socket(Sockets* s, Transport* t) noexcept nogil:
    """Send what the lanes hold, until the kernel takes no more or it is the others' turn."""
    cdef ByteQueue* lane
    cdef size_t end
    cdef Py_ssize_t sent
    cdef size_t total = 0
    t.bulk_window = BULK_WINDOW
    if t.bulk_held and monotonic_ns() - t.data_written_ns < SHARED_NS:
        t.bulk_window = min(
            t.bulk_window,
            max(<size_t>BULK_WINDOW_SHARED, <size_t>t.round_trip_least_ns // SHARED_NS_PER_BYTE),
        )
    while t.state != CLOSED:
        lane = NULL         # the bulk lane
        if length(&t.record_rest):
            lane = &t.record_rest
        elif length(&t.partial_frame):
            lane = &t.partial_frame
        elif t.bulk_partial:
            pass
        elif length(&t.control):
            lane = &t.control
        elif length(&t.data) and (t.data_run < SEND_BYTES_MAX or not may_send_bulk(t)):
            lane = &t.data
        elif may_send_bulk(t):
            pass
        elif length(&t.bye) and not t.bulk_held:
            lane = &t.bye
        else:
            break
        if lane is NULL:
            # The bulk lane sends one frame per turn.
            sent = send_bulk(t, length(&t.control) or length(&t.data))
        elif lane is &t.record_rest:
            sent = send_record_rest(t)
        else:
            sent = transmit_one(t, lane.data + lane.head, length(lane))
        if sent < 0:
            if sent == -EINTR:
                continue
            if sent != -EAGAIN:
                give_up(s, t, 0, <int>-sent)
            break
        total += sent
        if lane is NULL:
            t.data_run = 0
            if t.bulk_held == 0:
                # The messages can be let go of.
                make_ready(s)
        elif lane is &t.partial_frame or lane is &t.record_rest:
            consume(lane, sent)
        else:
            end = end_of_frame(lane.data + lane.head, sent)
            if end > <size_t>sent:
                if append(&t.partial_frame, lane.data + lane.head + sent, end - sent) != 0:
                    give_up(s, t, 0, ENOMEM)
                    break
            consume(lane, end)
            t.data_run = t.data_run + end if lane is &t.data else 0
        if total >= WRITE_SOCKET_BYTES_MAX:
            break
    if t.state == CLOSED:
        return
    recount(t)
    release_answers(s, t)
    if t.notify_writable and t.queued < s.queue_bytes_max // 4:
        t.notify_writable = False
        make_ready(s)
    if t.queued - t.bulk_held or may_send_bulk(t):
        set_interest(s, t, t.interest | EPOLLOUT)
        return
    set_interest(s, t, t.interest & ~<uint32_t>EPOLLOUT)
    if t.state == LINGERING and not t.queued and not t.half_closed:
        t.half_closed = True
        shutdown(t.fd, SHUT_WR)


cdef inline void release_answers(Sockets* s, Transport* t) noexcept nogil:
    """Let the executor look again at what it holds back while the data lane is full of answers."""
    if t.holds_answers and t.queued - t.bulk_held < s.queue_bytes_max:
        t.holds_answers = False
        make_ready(s)


cdef void queue_control(
    Sockets* s, Transport* t, int kind, int flags, const void* body, size_t size
) noexcept nogil:
    if append_frame(&t.control, kind, flags, body, size) != 0:
        give_up(s, t, 0, ENOMEM)
        return
    recount(t)
    if not t.interest & EPOLLOUT:
        write_socket(s, t)


cdef void flush_locked(
    Sockets* s, Transport* t, BufferWriter* data, BufferWriter* bulk, BufferWriter* frames,
    size_t bulk_size, uint64_t consumed,
) noexcept nogil:
    cdef unsigned char body[8]
    cdef Py_ssize_t sent
    cdef size_t end
    cdef size_t begun = 0
    cdef size_t count = frames.size // sizeof(GatherFrame)
    cdef bint failed = False
    if t.state != OPEN:
        return
    t.data_queued += data.size
    if bulk_size:
        failed = (
            reserve(&t.bulk_frames, frames.size) != 0
            or reserve(&t.bulk_marks, count * sizeof(uint64_t)) != 0
            or take_over(&t.bulk, bulk) != 0
            or take_over(&t.bulk_frames, frames) != 0
        )
        if failed:
            give_up(s, t, 0, ENOMEM)
            return
        # The order of data and bulk within this flush is not known here, so data goes first.
        while count:
            append(&t.bulk_marks, &t.data_queued, sizeof(uint64_t))
            count -= 1
        t.bulk_queued += bulk_size
        t.bulk_held += bulk_size
        t.bulk_unsent[0] = t.bulk_queued - t.bulk_consumed
    if consumed != 0:
        store_64(body, consumed)
        failed = append_frame(&t.control, WINDOW_UPDATE, 0, body, 8) != 0
    if data.size:
        t.data_written_ns = monotonic_ns()
        if not (
            t.interest & EPOLLOUT or length(&t.record_rest) or length(&t.partial_frame)
            or length(&t.control) or length(&t.data) or t.bulk_held
        ):
            # Nothing waits, so it goes past the lanes.
            sent = transmit_one(t, data.data, data.size)
            if sent > 0:
                begun = sent
                if sent < data.size:
                    end = end_of_frame(data.data, sent)
                    failed = append(&t.partial_frame, data.data + sent, end - sent) != 0
                    begun = end
            elif sent != -EAGAIN and sent != -EINTR:
                give_up(s, t, 0, <int>-sent)
                return
        failed = failed or append(&t.data, data.data + begun, data.size - begun) != 0
    if failed:
        give_up(s, t, 0, ENOMEM)
        return
    recount(t)
    release_answers(s, t)
    if t.queued and not t.interest & EPOLLOUT:
        write_socket(s, t)
