# Distribution: what happens per connection, and what other nodes send besides envelopes.

from rabble._core.executor cimport Executor
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport Pid
from rabble._core.poller cimport Connection

# A connection to a node is established; it has come to its end.
cdef int add_connection(Executor executor, Connection connection) except -1
cdef int end_connection(Executor executor, Connection connection) except -1

# A peer sent what is no envelope for a process: a monitor, a Down, what became of an envelope.
cdef int handle_event(Executor executor, PeerEvent event) except -1

# A process of this node ended that one of the peer's monitors.
cdef int send_down(Executor executor, Connection connection, Pid monitoring, object down) except -1
