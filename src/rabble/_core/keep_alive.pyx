"""What the clock does for transports and clients: heartbeats, and the ends of what takes too long.

The poll thread calls it eight times in a heartbeat, under the lock of the sockets.
"""

from libc.stdint cimport int64_t, uint64_t

from rabble._core.byte_queue cimport length
from rabble._core.byteorder cimport store_64
from rabble._core.client_socket cimport expire_clients
from rabble._core.frame cimport CODE_LIMIT, CODE_TIMEOUT, PING
from rabble._core.transport cimport (
    LINGERING,
    OPEN,
    Sockets,
    Transport,
    give_up,
    queue_control,
    taken_by_peer,
    write_bye,
)

cdef enum:
    TAKEN_HEARTBEATS = 8              # in which a peer takes something of what waits for it
    RESPONDER_PINGS = 16              # every so many heartbeats a responder sends PING unasked

# The C structs here are never None, and a check would need the GIL.
# cython: nonecheck=False


cdef inline bint is_ping_due(const Sockets* s, const Transport* t, int64_t now) noexcept nogil:
    """Whether to send PING: as a rule the initiator does, and PONG tells it of the responder.

    All of a node's are sent at the same time, or each answer would wake the executor by itself.
    This is called eight times in a heartbeat, and some byte is to come within each: so a period is
    seven eighths of one, and times are those of the node's own clock, which no other one shares.
    """
    cdef int64_t eighth = s.heartbeat_ns // 8
    cdef int64_t period = max(7 * eighth, <int64_t>1)
    cdef int64_t phase = <int64_t>(<uint64_t><size_t>s // 64 * 40_503 % <uint64_t>period)
    if t.initiated:
        return (now + phase) // period != (t.pinged_ns + phase) // period
    # The responder does so if nothing comes, and now and then, to know how long the way takes.
    return (
        now - max(t.pinged_ns, t.ping_received_ns) >= period + 2 * eighth
        or now - t.pinged_ns >= RESPONDER_PINGS * s.heartbeat_ns
        or t.round_trip_ns == 0 and now - t.pinged_ns >= period
    )


cdef void keep_alive(Sockets* s, int64_t now) noexcept nogil:
    """Send what is due by the clock, and end what has taken too long."""
    cdef unsigned char body[16]
    cdef uint64_t taken
    cdef Transport* t = s.first
    while t is not NULL:
        if t.state == OPEN:
            if is_ping_due(s, t, now):
                # Also amid other frames, since only PING and PONG tell of progress.
                t.pinged_ns = now
                store_64(body, <uint64_t>now)
                store_64(body + 8, s.progress)
                queue_control(s, t, PING, s.idle, body, 16)
            if t.partial_ns != 0 and not t.paused and now - t.partial_ns > s.partial_ns_max:
                write_bye(s, t, CODE_TIMEOUT, b"an unfinished frame", 19, False)
            # What is sent by the clock, and goes first, does not count.
            taken = t.data_queued - length(&t.data) + t.bulk_consumed
            if not t.holds_answers or taken != t.bytes_taken:
                t.bytes_taken = taken
                t.taken_ns = now
            elif now - t.taken_ns > TAKEN_HEARTBEATS * s.heartbeat_ns:
                write_bye(s, t, CODE_LIMIT, b"it reads no answers", 19, False)
        elif t.state == LINGERING:
            taken = taken_by_peer(t)
            if taken != t.bytes_taken:
                t.bytes_taken = taken
                t.taken_ns = now
            if now - t.taken_ns >= t.linger_ns or now >= t.linger_end_ns:
                give_up(s, t, t.code, 0)
        t = t.next
    if s.clients.first is not NULL:
        expire_clients(&s.clients, now)
