"""What goes to clients: answers, failures, refusals, pushes and goodbyes; and the ends of requests.

A frame is written to the codec's own buffer and then behind what its connection has written in this
turn, so whatever a user's code does while a value is encoded finds nothing half done.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from rabble._core.byte_queue cimport ByteQueue, append, drop, length
from rabble._core.capacities cimport FLUSH_BYTES
from rabble._core.client_codec cimport (
    NO_ID,
    OUT_ANSWER,
    OUT_FAILURE,
    OUT_GOODBYE,
    OUT_PUSH,
    ClientCodec,
    OutgoingKind,
)
from rabble._core.client_gate cimport call_gate
from rabble._core.client_requests cimport Slot
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.client_socket cimport (
    CLIENT_OPEN,
    END_CLIENT,
    END_DRAIN,
    END_SERVER,
    ClientSocket,
    ClientSockets,
    flush_client,
    make_ready_client,
    part_by_rule,
    part_client,
)
from rabble._core.envelope cimport new_envelope
from rabble._core.executor cimport Executor
from rabble._core.failure cimport what_failed
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.linux cimport (
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from rabble._core.requests cimport Asked
from rabble._core.texts cimport bounded_repr, failure_text
from rabble._core.transport cimport Sockets

__all__ = []

cdef enum:
    SCANNED_MAX = 32         # requests of one connection that are looked at one by one

# Called so that what it raises stays pending: it returns -1 then.
ctypedef int (*quiet_put)(
    ClientConnection conn, OutgoingKind kind, int64_t id, object value, object code, object text,
    int64_t retry_ms,
) noexcept


# Requests.

cdef bint waits(ClientConnection conn, int64_t id) except -1:
    """Whether a request of that id waits. Of who counts upwards nobody has to ask."""
    cdef Slot* slots = conn.server.requests.slots
    cdef int32_t place = conn.first
    if conn.ids is None:
        if conn.in_flight <= SCANNED_MAX:
            while place >= 0 and slots[place].id != id:
                place = slots[place].own_next
            return place >= 0
        keep_ids(conn)
    return id in conn.ids


cdef int keep_ids(ClientConnection conn) except -1:
    cdef Slot* slots = conn.server.requests.slots
    cdef int32_t place = conn.first
    if conn.ids is None:
        conn.ids = set()
        while place >= 0:
            conn.ids.add(slots[place].id)
            place = slots[place].own_next
    return 0


cdef int32_t place_of(ClientConnection conn, object request) except -2:
    cdef ClientServer server = conn.server
    cdef int32_t place
    if type(request) is not CorrelationId:
        raise TypeError(
            f"a request is named by the RequestId that handle_message was given, "
            f"not by {bounded_repr(request, 80)}"
        )
    place = server.requests.find((<CorrelationId>request).request)
    if place < 0 or server.requests.slots[place].owner is not <PyObject*>conn:
        server.late += 1
        return -1
    return place


cdef int end_request(ClientConnection conn, int32_t place, bint is_answered) except -1:
    cdef ClientServer server = conn.server
    cdef Slot* slot = &server.requests.slots[place]
    cdef int64_t begun_ns = slot.begun_ns
    cdef int64_t number = slot.asked
    if conn.ids is not None:
        conn.ids.discard(slot.id)
    server.requests.end(place, &conn.first)
    if number:
        stop_asking(server.executor, number)
    conn.in_flight -= 1
    if conn.in_flight == 0:
        # An idle connection keeps none.
        conn.ids = None
        conn.id_newest = NO_ID
    if is_answered:
        server.answered += 1
    else:
        server.failed += 1
    if server.gate is not None:
        call_gate(server, "ended", server.executor.now_ns(), begun_ns, is_answered)
        server.gate_stale = True
    return touch(conn)


cdef int stop_asking(Executor executor, int64_t number) except -1:
    """Who asked for a request waits no more, as that has ended in another way."""
    cdef PyObject* found = executor.requests.find(number)
    cdef Asked asked
    if found is not NULL:
        asked = <Asked>found
        executor.requests.end_ask(asked, executor.timeouts)
    return 0


cdef int answer(ClientConnection conn, int32_t place, object value) except -1:
    cdef int64_t id = conn.server.requests.slots[place].id
    cdef size_t size
    if (<quiet_put><void*>put)(conn, OUT_ANSWER, id, value, "", "", 0) < 0:
        error = what_failed()
        unencodable(conn, value, error)
        return fail(conn, place, "failed", failure_text(error))
    if not conn.parts:
        # Of one that parts nothing was written.
        size = conn.server.codec.out.size
        if size >= conn.answer_bytes:
            conn.answer_bytes = size
        else:
            conn.answer_bytes -= (conn.answer_bytes - size + 7) // 8
        conn.is_answered = True
    return end_request(conn, place, True)


cdef int pass_answer(ClientServer server, CorrelationId request, object value) except -1:
    cdef int32_t place = server.requests.find(request.request)
    if place < 0:
        server.late += 1
        return 0
    server.requests.slots[place].asked = 0
    return answer(<ClientConnection>server.requests.slots[place].owner, place, value)


cdef int fail(ClientConnection conn, int32_t place, object code, object text) except -1:
    cdef int64_t id = conn.server.requests.slots[place].id
    end_request(conn, place, False)
    return write(conn, OUT_FAILURE, id, None, code, text, 0)


cdef int expire_requests(ClientServer server, int64_t now) except -1:
    cdef ClientConnection conn
    cdef int32_t place = server.requests.expired(now)
    while place >= 0:
        conn = <ClientConnection>server.requests.slots[place].owner
        fail(conn, place, "timeout", "nobody has answered in time")
        place = server.requests.expired(now)
    return 0


cdef int push(ClientConnection conn, object msg) except -1:
    if (<quiet_put><void*>put)(conn, OUT_PUSH, NO_ID, msg, "", "", 0) < 0:
        return unencodable(conn, msg, what_failed())
    return 0


cdef int unencodable(ClientConnection conn, object value, object error) except -1:
    """What a handler answered, or pushed, cannot be written. That is reported."""
    cdef Executor executor = conn.server.executor
    cdef Pid pid = conn.server.pid
    executor.interrupts.note(error)
    return executor.hooks.call("unencodable", new_envelope(pid, value, pid, conn.id), error)


# Frames.

cdef int put(
    ClientConnection conn, OutgoingKind kind, int64_t id, object value, object code, object text,
    int64_t retry_ms,
) except -1:
    cdef ClientCodec codec = conn.server.codec
    if conn.is_over or conn.parts:
        return 0
    codec.write(kind, id, value, code, text, retry_ms)
    if append(&conn.staged, codec.out.data, codec.out.size) != 0:
        raise MemoryError
    if length(&conn.staged) >= FLUSH_BYTES:
        send_staged(conn, False)
    return touch(conn)


cdef int write(
    ClientConnection conn, OutgoingKind kind, int64_t id, object value, object code, object text,
    int64_t retry_ms,
) except -1:
    cdef Executor executor = conn.server.executor
    if (<quiet_put><void*>put)(conn, kind, id, value, code, text, retry_ms) < 0:
        error = what_failed()
        executor.interrupts.note(error)
        executor.crashes += 1
        executor.hooks.call("crashed", conn.server.pid, error)
        # Its client cannot be told, so it is told nothing more.
        conn.parts = True
        return touch(conn)
    return 0


cdef int part(ClientConnection conn, object code, object text) except -1:
    write(conn, OUT_GOODBYE, NO_ID, None, code, text, 0)
    conn.parts = True
    return touch(conn)


# Sockets.

cdef int touch(ClientConnection conn) except -1:
    if not conn.is_dirty:
        conn.server.dirty.append(conn)
        conn.is_dirty = True
    return 0


cdef int flush_one(ClientConnection conn) except -1:
    conn.is_dirty = False
    return send_staged(conn, True)


cdef int send_staged(ClientConnection conn, bint is_turn_over) except -1:
    cdef ClientServer server = conn.server
    cdef Sockets* s = &server.poller.sockets
    cdef int room = server.in_flight_max - conn.in_flight
    cdef int in_flight = conn.in_flight
    cdef size_t answer_bytes = conn.answer_bytes
    cdef bint parts = conn.parts
    cdef bint draining = server.draining
    cdef bint is_held
    if server.executor.has_forked():
        # Who has the lock may be in the parent.
        return 0
    if pthread_mutex_trylock(&s.lock) == 0:
        is_held = settle(
            s, conn.socket, &conn.staged, answer_bytes, room, in_flight, parts, draining,
            is_turn_over,
        )
        pthread_mutex_unlock(&s.lock)
    else:
        with nogil:
            pthread_mutex_lock(&s.lock)
            is_held = settle(
                s, conn.socket, &conn.staged, answer_bytes, room, in_flight, parts, draining,
                is_turn_over,
            )
            pthread_mutex_unlock(&s.lock)
    drop(&conn.staged)
    # At one byte there is nothing left to relent: the buffer has room for fewer answers than that.
    if is_held and not conn.is_answered and not conn.is_held and conn.answer_bytes > 1:
        conn.is_held = True
        server.held.append(conn)
    return 0


cdef int relent(ClientServer server) except -1:
    cdef ClientConnection conn
    cdef list held = server.held
    server.held = []
    for conn in held:
        conn.is_held = False
        if not conn.is_answered and not conn.is_over:
            conn.answer_bytes = max(conn.answer_bytes // 2, <size_t>1)
            flush_one(conn)
    return 0


cdef bint settle(
    Sockets* s, ClientSocket* c, ByteQueue* staged, size_t answer_bytes, int room, int in_flight,
    bint parts, bint draining, bint is_turn_over,
) noexcept nogil:
    """Send what was written to a client, and see what is to become of it. Needs the lock.

    No more requests are begun than there is room for answers that are as long as the last ones.
    Whether there are some that are not begun for that reason alone is returned. Amid a turn nothing
    is seen: there may be frames that were taken and not handled yet, and more that a handler
    returned.
    """
    cdef ClientSockets* k = &s.clients
    cdef bint is_full = room <= 0
    cdef size_t fitting
    if length(staged):
        flush_client(k, c, staged.data + staged.head, length(staged))
    if not is_turn_over:
        return False
    fitting = c.rules.unsent_bytes_max - min(length(&c.unsent), c.rules.unsent_bytes_max)
    fitting //= max(answer_bytes, <size_t>1)
    if fitting <= <size_t>in_flight:
        if in_flight == 0 and room > 0 and length(&c.unsent) <= c.rules.unsent_bytes_low:
            # One at a time, however long its answer is.
            room = 1
        else:
            room = 0
            c.wants_room = c.wants_room or length(&c.unsent) > c.rules.unsent_bytes_low
    else:
        room = <int>min(<size_t>max(room, 0), fitting - in_flight)
    c.room = room
    c.busy = in_flight != 0
    if c.state != CLIENT_OPEN:
        return False
    if parts:
        part_client(k, c, END_SERVER, NULL, 0)
    elif c.frames:
        if room > 0 and not c.wants_room:
            make_ready_client(k, c)
        return room == 0 and not is_full and not c.wants_room
    elif in_flight == 0 and draining:
        part_by_rule(k, c, END_DRAIN)
    elif in_flight == 0 and c.peer_ended and length(&c.unsent) == 0:
        part_client(k, c, END_CLIENT, NULL, 0)
    return False
