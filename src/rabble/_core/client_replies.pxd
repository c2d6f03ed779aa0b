from libc.stdint cimport int32_t, int64_t

from rabble._core.client_codec cimport OutgoingKind
from rabble._core.client_server cimport ClientConnection, ClientServer
from rabble._core.ids cimport CorrelationId

# What goes to clients, and the ends of their requests. All in the executor's thread.

# Where a request of this connection waits, by its RequestId; -1 if it has ended: it is counted.
cdef int32_t place_of(ClientConnection conn, object request) except -2
# Whether a request of that id waits, of one that is not the highest so far.
cdef bint waits(ClientConnection conn, int64_t id) except -1
# Have the ids of those that wait in `ids`, from now on until none does.
cdef int keep_ids(ClientConnection conn) except -1
# A request ends, of which nothing more is written; with an answer, by a failure.
cdef int end_request(ClientConnection conn, int32_t place, bint is_answered) except -1
cdef int answer(ClientConnection conn, int32_t place, object value) except -1
cdef int fail(ClientConnection conn, int32_t place, object code, object text) except -1
# Those whose time is over fail.
cdef int expire_requests(ClientServer server, int64_t now) except -1
# The process that it was passed on to has answered; it may have ended meanwhile.
cdef int pass_answer(ClientServer server, CorrelationId request, object value) except -1
# A message that answers nothing; the last frame.
cdef int push(ClientConnection conn, object msg) except -1
cdef int part(ClientConnection conn, object code, object text) except -1
# Any other frame. What a user's codec raises is reported, and the connection closed.
cdef int write(
    ClientConnection conn, OutgoingKind kind, int64_t id, object value, object code, object text,
    int64_t retry_ms,
) except -1

# See that what was written is sent, and that it is looked after at the turn's end; do it now.
cdef int touch(ClientConnection conn) except -1
cdef int flush_one(ClientConnection conn) except -1
# Nobody has anything to do, so no first answer is under way: those clients of whom nothing more is
# begun until it says how long answers are may have twice as many requests. Their handlers may be
# waiting for more of them.
cdef int relent(ClientServer server) except -1
