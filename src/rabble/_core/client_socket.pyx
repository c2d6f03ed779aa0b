"""Clients: the sockets of a server's connections, read, cut into frames, and written to.

Like a transport, a client's socket is a C struct in the poller's epoll set, and only touched under
the lock of its sockets, by functions that need no GIL and never block, whichever thread calls them.
It is a smaller thing: one kind of frame each way, and no buffer while nothing waits, so that ten
thousand idle ones cost little. All of them are read to one buffer, and what came is copied.

What takes too long has a list for each kind, in which the one that began first stands first: so the
clock looks at the heads of these lists alone, however many clients there are.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr
from posix.unistd cimport close, write

from rabble._core.byte_queue cimport ByteQueue, append, consume, drop, length
from rabble._core.byteorder cimport load_32
from rabble._core.capacities cimport CLIENT_HIGH, CLIENT_READ_BYTES
from rabble._core.inbox cimport monotonic_ns
from rabble._core.linux cimport (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    epoll_ctl,
    epoll_event,
    recv,
    send,
    shutdown,
)

__all__ = ["ENDS"]

#: The words of each `ClientEnd`, in their order: codes of the protocol where a frame says them.
ENDS = ("", "closed", "error", "too_large", "idle", "timeout", "slow", "crashed", "drain")

# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False


# Lists.

cdef inline ClientList* list_of(ClientSockets* k, ClientSocket* c, int which) noexcept nogil:
    return &k.ready if which == READY else &c.rules.lists[which]


cdef inline bint is_linked(const ClientSocket* c, int which) noexcept nogil:
    return c.linked >> which & 1


cdef void unlink(ClientSockets* k, ClientSocket* c, int which) noexcept nogil:
    cdef ClientList* links
    if not is_linked(c, which):
        return
    links = list_of(k, c, which)
    if c.older[which] is not NULL:
        c.older[which].newer[which] = c.newer[which]
    else:
        links.oldest = c.newer[which]
    if c.newer[which] is not NULL:
        c.newer[which].older[which] = c.older[which]
    else:
        links.newest = c.older[which]
    c.linked &= ~(<uint32_t>1 << which)


cdef void link_last(ClientSockets* k, ClientSocket* c, int which) noexcept nogil:
    """Put it behind all others, wherever it stood."""
    cdef ClientList* links = list_of(k, c, which)
    if links.newest is c:
        return
    unlink(k, c, which)
    c.older[which] = links.newest
    c.newer[which] = NULL
    if links.newest is not NULL:
        links.newest.newer[which] = c
    else:
        links.oldest = c
    links.newest = c
    c.linked |= <uint32_t>1 << which


cdef void make_ready_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    cdef uint64_t one = 1
    if is_linked(c, READY):
        return
    link_last(k, c, READY)
    k.pending = True
    if k.sleeper[0]:
        # It fails when the counter is full, which is as good.
        write(k.wake_fd, &one, 8)


cdef ClientSocket* next_ready(ClientSockets* k) noexcept nogil:
    cdef ClientSocket* c = k.ready.oldest
    if c is not NULL:
        unlink(k, c, READY)
    k.pending = k.ready.oldest is not NULL
    return c


# The beginning and the end.

cdef int add_rules(ClientSockets* k, ClientRules* rules) noexcept nogil:
    """-1 if there is no memory."""
    if k.scratch is NULL:
        k.scratch = <unsigned char*>PyMem_RawMalloc(CLIENT_READ_BYTES)
        if k.scratch is NULL:
            return -1
    rules.next = k.first
    k.first = rules
    return 0


cdef void remove_rules(ClientSockets* k, ClientRules* rules) noexcept nogil:
    cdef ClientRules** place = &k.first
    cdef int end
    while place[0] is not NULL and place[0] is not rules:
        place = &place[0].next
    if place[0] is rules:
        place[0] = rules.next
    for end in range(<int>ENDS_COUNT):
        PyMem_RawFree(rules.goodbyes[end])
        rules.goodbyes[end] = NULL


cdef int admit_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = client_mark(c)
    if epoll_ctl(k.epfd, EPOLL_CTL_ADD, c.fd, &event) != 0:
        return errno
    c.interest = EPOLLIN
    c.state = CLIENT_OPEN
    k.connections += 1
    c.rules.connections += 1
    c.active_ns = monotonic_ns()
    link_last(k, c, IDLING)
    # It begins: the executor has a handler made for it.
    make_ready_client(k, c)
    return 0


cdef void release_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    close_client(k, c, END_NONE, 0)
    unlink(k, c, READY)
    k.pending = k.ready.oldest is not NULL


cdef void close_client(ClientSockets* k, ClientSocket* c, int end, int error) noexcept nogil:
    cdef epoll_event unused
    cdef int which
    if c.state == CLIENT_CLOSED:
        return
    # Out of the set before it is closed: another file may get its number.
    epoll_ctl(k.epfd, EPOLL_CTL_DEL, c.fd, &unused)
    close(c.fd)
    c.fd = -1
    if c.state == CLIENT_OPEN:
        c.end = end
        c.error = error
    c.state = CLIENT_CLOSED
    for which in range(READY + 1, LINKS_COUNT):
        unlink(k, c, which)
    forget_received(c)
    drop(&c.unsent)
    k.connections -= 1
    c.rules.connections -= 1
    make_ready_client(k, c)


cdef void close_inherited_clients(ClientSockets* k) noexcept nogil:
    cdef ClientRules* rules = k.first
    cdef ClientSocket* c
    cdef int which
    while rules is not NULL:
        # An open one is in the first of these lists, a parting one in the last.
        for which in range(IDLING, LINKS_COUNT):
            c = rules.lists[which].oldest
            while c is not NULL:
                if c.fd >= 0:
                    close(c.fd)
                c.fd = -1
                c.state = CLIENT_CLOSED
                c = c.newer[which]
        rules = rules.next
    k.connections = 0


cdef void set_interest(ClientSockets* k, ClientSocket* c, uint32_t interest) noexcept nogil:
    cdef epoll_event event
    cdef int how = EPOLL_CTL_MOD
    if c.interest == interest or c.fd < 0:
        return
    c.interest = interest
    if c.unwatched:
        if not interest & EPOLLIN:
            return
        c.unwatched = False
        how = EPOLL_CTL_ADD
    event.events = interest
    event.data.ptr = client_mark(c)
    if epoll_ctl(k.epfd, how, c.fd, &event) != 0:
        # Only if it is to be watched again: there is no memory for that.
        close_client(k, c, END_ERROR, errno)


cdef void part_client(
    ClientSockets* k, ClientSocket* c, int end, const unsigned char* data, size_t size
) noexcept nogil:
    """What waits unsent goes before the last frame.

    To close at once, with bytes of the client unread, would have the kernel answer them with a
    reset, which overtakes what was sent.
    """
    cdef int which
    if c.state != CLIENT_OPEN:
        return
    c.state = CLIENT_PARTING
    c.end = end
    c.parted_ns = monotonic_ns()
    for which in range(READY + 1, LINKS_COUNT):
        unlink(k, c, which)
    link_last(k, c, PARTED)
    forget_received(c)
    if append(&c.unsent, data, size) != 0:
        close_client(k, c, end, ENOMEM)
        return
    if c.paused:
        c.paused = False
        set_interest(k, c, c.interest | EPOLLIN)
    make_ready_client(k, c)
    write_client(k, c)


cdef void part_by_rule(ClientSockets* k, ClientSocket* c, int end) noexcept nogil:
    part_client(k, c, end, c.rules.goodbyes[end], c.rules.goodbye_sizes[end])


cdef inline void forget_received(ClientSocket* c) noexcept nogil:
    drop(&c.received)
    c.whole = c.scanned = 0
    c.frames = 0


# What comes.

cdef void client_event(ClientSockets* k, ClientSocket* c, uint32_t events) noexcept nogil:
    cdef epoll_event unused
    # Closed by an earlier event of this look, perhaps.
    if c.state != CLIENT_CLOSED and events & EPOLLOUT:
        write_client(k, c)
    if c.state == CLIENT_CLOSED or not events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        return
    if not c.paused and not c.peer_ended:
        read_client(k, c)
    elif events & EPOLLERR or events & EPOLLHUP and c.state == CLIENT_PARTING:
        close_client(k, c, END_CLIENT, 0)
    elif events & EPOLLHUP:
        # Nobody reads answers any more, and epoll would say so for ever; but what was sent before,
        # of which some may still be in the kernel, is looked at.
        epoll_ctl(k.epfd, EPOLL_CTL_DEL, c.fd, &unused)
        c.unwatched = True


cdef void read_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    """Read once, and cut what came into frames."""
    cdef Py_ssize_t got
    while True:
        got = recv(c.fd, k.scratch, CLIENT_READ_BYTES, MSG_DONTWAIT)
        if got >= 0 or errno != EINTR:
            break
    if got < 0:
        if errno != EAGAIN:
            close_client(k, c, END_ERROR, errno)
        return
    if got == 0:
        end_of_client(k, c)
        return
    if c.state != CLIENT_OPEN:
        return
    if append(&c.received, k.scratch, got) != 0:
        close_client(k, c, END_ERROR, ENOMEM)
        return
    c.active_ns = monotonic_ns()
    link_last(k, c, IDLING)
    split_client(k, c)


cdef void end_of_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    """The client sends no more. What it has asked by now is answered all the same."""
    c.peer_ended = True
    set_interest(k, c, c.interest & ~<uint32_t>EPOLLIN)
    if c.state == CLIENT_PARTING:
        if length(&c.unsent) == 0:
            close_client(k, c, c.end, 0)
        return
    unlink(k, c, UNFINISHED)
    make_ready_client(k, c)


cdef size_t whole_frame(
    const ClientRules* rules, const unsigned char* at, size_t size
) noexcept nogil:
    cdef size_t needed
    cdef const void* found
    if rules.framing == BY_LENGTH:
        if size < 4:
            return 0
        needed = 4 + <size_t>load_32(at)
        return needed if needed <= size else 0
    found = memchr(at, rules.delimiter, size)
    return 0 if found is NULL else <const unsigned char*>found - at + 1


cdef bint is_too_large(ClientSocket* c, const unsigned char* at, size_t size) noexcept nogil:
    """Whether the frame that begins there, and is not whole, can only become too large.

    Who speaks HTTP or TLS to a server of frames by length is refused by the first byte.
    """
    cdef size_t least = 0
    cdef size_t n
    if c.rules.framing == BY_LENGTH:
        for n in range(4):
            least = least << 8 | (at[n] if n < size else 0)
        return least > c.rules.frame_bytes_max
    return size > c.rules.frame_bytes_max


cdef void split_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    cdef const ClientRules* rules = c.rules
    cdef const unsigned char* at
    cdef size_t rest, size
    cdef bint finished = False
    while True:
        at = c.received.data + c.received.head + c.whole
        rest = length(&c.received) - c.whole
        size = whole_frame(rules, at + c.scanned, rest - c.scanned)
        if size == 0:
            break
        size += c.scanned
        c.scanned = 0
        if size - (4 if rules.framing == BY_LENGTH else 1) > rules.frame_bytes_max:
            part_by_rule(k, c, END_TOO_LARGE)
            return
        finished = True
        c.whole += size
        c.frames += 1
    if is_too_large(c, at, rest):
        part_by_rule(k, c, END_TOO_LARGE)
        return
    if rules.framing == BY_DELIMITER:
        c.scanned = rest
    if rest == 0:
        unlink(k, c, UNFINISHED)
    elif finished or not is_linked(c, UNFINISHED):
        c.partial_ns = c.active_ns
        link_last(k, c, UNFINISHED)
    if c.frames:
        make_ready_client(k, c)
    if c.whole > CLIENT_HIGH:
        c.paused = True
        # It is this side that does not listen.
        unlink(k, c, UNFINISHED)
        set_interest(k, c, c.interest & ~<uint32_t>EPOLLIN)


cdef int take_frames(
    ClientSockets* k, ClientSocket* c, ByteQueue* into, int most, size_t bytes_most
) noexcept nogil:
    cdef const unsigned char* data = c.received.data + c.received.head
    cdef size_t size = 0
    cdef size_t next_size
    cdef int count = 0
    while count < most and <uint32_t>count < c.frames:
        next_size = whole_frame(c.rules, data + size, c.whole - size)
        if count and size + next_size > bytes_most:
            break
        size += next_size
        count += 1
    if count == 0:
        return 0
    if append(into, data, size) != 0:
        return -1
    c.whole -= size
    c.frames -= count
    consume(&c.received, size)
    if length(&c.received) == 0:
        drop(&c.received)
    if c.paused and not c.rules.deaf and c.whole <= CLIENT_HIGH // 2:
        c.paused = False
        c.active_ns = monotonic_ns()
        link_last(k, c, IDLING)
        if length(&c.received) > c.whole:
            c.partial_ns = c.active_ns
            link_last(k, c, UNFINISHED)
        if not c.peer_ended:
            set_interest(k, c, c.interest | EPOLLIN)
    return count


cdef void deafen_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    if c.state == CLIENT_OPEN:
        c.paused = True
        unlink(k, c, UNFINISHED)
        set_interest(k, c, c.interest & ~<uint32_t>EPOLLIN)


# What goes.

cdef void write_client(ClientSockets* k, ClientSocket* c) noexcept nogil:
    """Send what waits, as much as the kernel takes."""
    cdef Py_ssize_t sent
    cdef bint progress = False
    while length(&c.unsent):
        sent = send(
            c.fd, c.unsent.data + c.unsent.head, length(&c.unsent), MSG_DONTWAIT | MSG_NOSIGNAL
        )
        if sent < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                close_client(k, c, END_ERROR, errno)
                return
            break
        progress = True
        consume(&c.unsent, sent)
    if length(&c.unsent) == 0:
        drop(&c.unsent)
        unlink(k, c, STUCK)
        set_interest(k, c, c.interest & ~<uint32_t>EPOLLOUT)
        if c.state == CLIENT_PARTING:
            if c.peer_ended:
                close_client(k, c, c.end, 0)
                return
            if not c.half_closed:
                c.half_closed = True
                shutdown(c.fd, SHUT_WR)
        elif c.peer_ended:
            make_ready_client(k, c)
    else:
        if c.state == CLIENT_OPEN and (progress or not is_linked(c, STUCK)):
            c.progress_ns = monotonic_ns()
            link_last(k, c, STUCK)
        set_interest(k, c, c.interest | EPOLLOUT)
    if c.wants_room and length(&c.unsent) <= c.rules.unsent_bytes_low:
        c.wants_room = False
        make_ready_client(k, c)


cdef void flush_client(
    ClientSockets* k, ClientSocket* c, const unsigned char* data, size_t size
) noexcept nogil:
    cdef Py_ssize_t sent = 0
    if c.state != CLIENT_OPEN:
        return
    if length(&c.unsent) == 0:
        # Nothing waits, so it goes past the queue.
        sent = send(c.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                close_client(k, c, END_ERROR, errno)
                return
            sent = 0
        if <size_t>sent == size:
            return
    if append(&c.unsent, data + sent, size - sent) != 0:
        close_client(k, c, END_ERROR, ENOMEM)
        return
    if not c.interest & EPOLLOUT:
        write_client(k, c)
    if c.state == CLIENT_OPEN and length(&c.unsent) > c.rules.unsent_bytes_max:
        part_by_rule(k, c, END_SLOW)


# The clock.

cdef void expire_clients(ClientSockets* k, int64_t now) noexcept nogil:
    cdef ClientRules* rules = k.first
    cdef ClientSocket* c
    while rules is not NULL:
        c = rules.lists[IDLING].oldest
        while c is not NULL and now - c.active_ns >= rules.idle_ns_max:
            if c.busy:
                # It waits for this side.
                c.active_ns = now
                link_last(k, c, IDLING)
            else:
                part_by_rule(k, c, END_IDLE)
            c = rules.lists[IDLING].oldest
        c = rules.lists[UNFINISHED].oldest
        while c is not NULL and now - c.partial_ns >= rules.partial_ns_max:
            part_by_rule(k, c, END_PARTIAL)
            c = rules.lists[UNFINISHED].oldest
        c = rules.lists[STUCK].oldest
        while c is not NULL and now - c.progress_ns >= rules.stuck_ns_max:
            part_by_rule(k, c, END_SLOW)
            c = rules.lists[STUCK].oldest
        c = rules.lists[PARTED].oldest
        while c is not NULL and now - c.parted_ns >= rules.linger_ns_max:
            close_client(k, c, c.end, 0)
            c = rules.lists[PARTED].oldest
        rules = rules.next
