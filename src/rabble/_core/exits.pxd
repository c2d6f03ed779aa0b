from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport Entry
from rabble._core.executor cimport Executor
from rabble._core.frame_decoder cimport PeerEvent
from rabble._core.ids cimport Pid
from rabble._core.links cimport Exiting

# What a process asks: TypeError or ValueError if it may not ask for that.
cdef int begin_link(Executor executor, Entry entry, Pid pid) except -1
cdef int check_linking(Entry entry) except -1

# What a peer sends of links: LINK, UNLINK or EXIT.
cdef int handle_link_event(Executor executor, PeerEvent event, Connection connection) except -1

# What the end of a life means to another one, whose turn it is.
cdef int handle_exiting(Executor executor, Exiting exiting) except -1

# A connection has come to its end, and the links that crossed it with that reason.
cdef int exit_connection(Executor executor, Connection connection, object reason) except -1
