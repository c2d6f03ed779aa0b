from libc.stdint cimport uint64_t

from rabble._core.executor cimport Executor
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport Pid
from rabble._core.connection cimport Connection
from rabble._core.requests cimport Unanswered

# A connection to a node is established; it has come to its end.
cdef int add_connection(Executor executor, Connection connection) except -1
cdef int end_connection(Executor executor, Connection connection) except -1
# The processes have been told of one: what they return from now on may go there.
cdef int note_told(Executor executor, Connection connection) except -1

# A peer sent what is no envelope for a process: a monitor, a Down, what became of an envelope.
cdef int handle_event(Executor executor, PeerEvent event) except -1

# A life has ended without having answered the requests of some calls.
cdef int tell_unanswered(Executor executor, Unanswered unanswered) except -1

# A process of this node ended that one of the peer's monitors.
cdef int send_down(
    Executor executor, Connection connection, Pid monitoring, uint64_t reference, object down
) except -1
