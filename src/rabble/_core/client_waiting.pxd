from libc.stdint cimport int64_t

from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.ids cimport CorrelationId

# Requests that the gate has no room for, and that wait for a moment. All in the executor's thread.

# Whether a request is begun now. If not it waits, and `take_admitted` has it, or refuses it.
cdef bint let_in(
    ClientServer server, ClientConnection conn, int64_t id, object msg, int priority, int64_t now
) except -1
# One begins, from now on.
cdef CorrelationId note_request(ClientConnection conn, int64_t id, int64_t now)
# Those that are to be begun now, as (connection, id, message), of each of which the gate knows.
# Whose time is over is refused.
cdef list take_admitted(ClientServer server, int64_t now)
# The server ends: refuse all that wait. A connection is over: forget what it has waiting.
cdef int refuse_waiting(ClientServer server) except -1
cdef int drop_waiting(ClientServer server, ClientConnection conn) except -1
