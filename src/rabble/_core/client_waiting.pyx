"""Requests that wait for the gate: taken from their clients, and not begun.

A gate alone would give what room there is to those who ask most often. So a request that it has no
room for waits for some milliseconds in an `AdmissionQueue`, which gives each room to the next
connection in turn; then it is refused after all. It counts among the requests that its connection
may have, its id is taken, and it goes with its connection. Nobody else knows of it yet: it has no
slot in `ClientRequests`, no handler was called for it, and the gate was told nothing.

Where nothing waits and there is room the queue is asked, and not entered.
"""

from libc.stdint cimport int32_t, int64_t

from rabble._core.client_codec cimport NO_ID, OUT_NACK
from rabble._core.client_gate cimport call_front, call_gate, checked_number
from rabble._core.client_replies cimport keep_ids, touch, write
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.ids cimport CorrelationId, new_correlation_id

__all__ = []

cdef int64_t RETRY_MS_MAX = (<int64_t>1 << 53) - 1


cdef bint let_in(
    ClientServer server, ClientConnection conn, int64_t id, object msg, int priority, int64_t now
) except -1:
    is_let_in = call_front(server, "enter", now, priority)
    if is_let_in is True or server.gate is None:
        return True
    # It has no slot in which its id could be found.
    keep_ids(conn)
    conn.ids.add(id)
    conn.id_newest = max(conn.id_newest, id)
    conn.in_flight += 1
    server.waiting += 1
    request = (id, msg)
    call_front(server, "wait", now, conn, request, priority)
    if server.gate is None and not server.front.holds(request):
        # It failed before it had it: it begins now, as all that comes from here on.
        leave(server, conn, id)
        return True
    return False


cdef CorrelationId note_request(ClientConnection conn, int64_t id, int64_t now):
    """It begins, from now on. There is room for it."""
    cdef ClientServer server = conn.server
    cdef int32_t place = server.requests.begin(
        conn, id, &conn.first, now, now + server.request_ns_max
    )
    if conn.ids is not None:
        conn.ids.add(id)
    conn.id_newest = max(conn.id_newest, id)
    conn.in_flight += 1
    return new_correlation_id(server.pid, conn.number, server.requests.slots[place].number)


cdef list take_admitted(ClientServer server, int64_t now):
    cdef ClientConnection conn
    cdef int64_t retry_ms = 0
    cdef list admitted = []
    decided = call_front(server, "decide", now)
    if server.gate is None:
        # It has failed: of what waits nothing waits any longer.
        decided = server.front.drop_all()
    for each in decided:
        conn = <ClientConnection?>each.connection
        id, msg = each.request
        leave(server, conn, id)
        if each.retry_after_ms is not None and server.gate is not None:
            # The protocol has no more than a double has exactly, and clients hold it to that.
            retry_ms = min(
                checked_number(server, "refuse", each.retry_after_ms, 0), RETRY_MS_MAX
            )
        if each.retry_after_ms is None or server.gate is None:
            if server.requests.count + len(admitted) < server.requests.most:
                admitted.append((conn, id, msg))
                continue
            # The gate has failed, and all come at once; or it let in more than there may be.
            retry_ms = server.retry_ms
            call_gate(server, "ended", now, now, False)
        server.refused += 1
        write(conn, OUT_NACK, id, None, "", "the server has too much to do", retry_ms)
        touch(conn)
    return admitted


cdef int refuse_waiting(ClientServer server) except -1:
    cdef ClientConnection conn
    if not server.waiting:
        return 0
    for each in server.front.drop_all():
        conn = <ClientConnection?>each.connection
        id = each.request[0]
        leave(server, conn, id)
        server.refused += 1
        write(conn, OUT_NACK, id, None, "", "the server ends", server.retry_ms)
        touch(conn)
    return 0


cdef int drop_waiting(ClientServer server, ClientConnection conn) except -1:
    for id, _ in server.front.gone(conn):
        leave(server, conn, id)
        server.failed += 1
    return 0


cdef int leave(ClientServer server, ClientConnection conn, object id) except -1:
    server.waiting -= 1
    if conn.ids is not None:
        conn.ids.discard(id)
    conn.in_flight -= 1
    if conn.in_flight == 0:
        conn.ids = None
        conn.id_newest = NO_ID
    return 0
