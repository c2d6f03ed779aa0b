from libc.stdint cimport int64_t

from rabble._core.client_messages cimport Canary
from rabble._core.client_server cimport ClientServer

# What a server asks and tells its gate. All in the executor's thread.

# What a method of the gate returns; if it raises there is no gate any more: None.
cdef object call_gate(
    ClientServer server, str method, object now, object second=*, object third=*
)
# The same of the queue in front of it, whose failure is the gate's.
cdef object call_front(
    ClientServer server, str method, object first, object second=*, object third=*, object fourth=*
)
# What a method that returns a number, or None, returned: if None `other`; also if it is no number,
# which is a failure of the gate.
cdef int64_t checked_number(
    ClientServer server, str method, object value, int64_t other
) except? -1
# When the gate has something to do, asked again after what it was told; what it has to do then.
cdef int refresh_gate(ClientServer server) except -1
cdef int tick_gate(ClientServer server, int64_t now) except -1
# Nanoseconds until then, `most` of them at most; less than 0 is without end.
cdef int64_t gate_time_left(ClientServer server, int64_t now, int64_t most) noexcept
# A canary has come back; or one through another node has ended, with a code if it failed.
cdef int canary_back(ClientServer server, Canary canary, str code) except -1
