"""Batches: what the desk takes at once of all clients, a few frames of each in its turn.

Each connection that has something has its turn when those that had something before have had
theirs: round robin, with a bound in frames and in bytes for each turn, and one for them all. So how
long a request waits depends on how many clients have some, and not on how many one of them sent.
"""

from cpython.object cimport PyObject

from rabble._core.byte_queue cimport ByteQueue, length
from rabble._core.capacities cimport CLIENT_BATCH_FRAMES, CLIENT_TURN_BYTES, CLIENT_TURN_FRAMES
from rabble._core.client_socket cimport (
    CLIENT_OPEN,
    END_ERROR,
    ClientSocket,
    ClientSockets,
    make_ready_client,
    next_ready,
    part_client,
    take_frames,
)
from rabble._core.transport cimport Sockets

__all__ = []


cdef int take_batch(Sockets* s, ByteQueue* taken, Visit* visits) noexcept nogil:
    cdef ClientSockets* k = &s.clients
    cdef ClientSocket* c
    cdef Visit* visit
    cdef size_t before
    cdef int budget = CLIENT_BATCH_FRAMES
    cdef int count = 0
    cdef int got
    while count < BATCH_VISITS_MAX and budget > 0:
        c = next_ready(k)
        if c is NULL:
            break
        before = length(taken)
        if c.state == CLIENT_OPEN:
            if length(&c.unsent) > c.rules.unsent_bytes_low:
                # What it asks is not even begun while it does not read the answers.
                c.wants_room = True
            elif c.room > 0:
                got = take_frames(
                    k, c, taken, min(min(c.room, CLIENT_TURN_FRAMES), budget), CLIENT_TURN_BYTES
                )
                if got < 0:
                    part_client(k, c, END_ERROR, NULL, 0)
                else:
                    c.room -= got
                    budget -= got
                    if got and c.frames and c.room > 0:
                        make_ready_client(k, c)
        visit = &visits[count]
        count += 1
        visit.connection = <PyObject*>c.connection
        visit.size = length(taken) - before
        visit.state = c.state
        visit.end = c.end
        visit.peer_ended = c.peer_ended
    return count
