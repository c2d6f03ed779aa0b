from libc.stdint cimport int32_t, int64_t

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.client_codec cimport ClientCodec
from rabble._core.client_requests cimport ClientRequests
from rabble._core.client_socket cimport ClientRules, ClientSocket
from rabble._core.dispatch cimport Entry
from rabble._core.executor cimport Executor
from rabble._core.ids cimport CorrelationId, Pid
from rabble._core.poller cimport Poller

cdef class ClientConnection:
    cdef ClientSocket* socket          # owned
    cdef Poller poller                 # whose socket it is
    cdef ClientServer server
    cdef object number                 # unique among those of its server, ever
    cdef readonly CorrelationId id     # by which its handler is reached
    cdef readonly str peer             # the client's address, as text
    cdef object host                   # of it: what counts for the bound by address
    cdef object handler                # None before it begins and when it is over
    cdef bint is_begun                 # its handler was made
    cdef bint is_over                  # nothing of it is handled any more
    cdef bint parts                    # its last frame is in `staged`
    cdef bint is_dirty                 # there is something for `flush`
    cdef ByteQueue staged              # what was written in this turn
    cdef int64_t id_newest             # the highest id that came since none waited; NO_ID: none
    cdef set ids                       # those that wait, where a client does not count upwards
    cdef int32_t first                 # its newest request that waits; -1: none does
    cdef int in_flight                 # how many do
    cdef size_t answer_bytes           # how long its answers are of late, about ...
    cdef bint is_answered              # ... which before the first one is a guess ...
    cdef bint is_held                  # ... by which nothing more of it is begun: in `held`
    cdef int64_t next_id               # of its next request, where answers are in order

cdef class ClientServer:
    cdef Executor executor
    cdef Poller poller                 # of its sockets
    cdef readonly Pid pid
    cdef Entry entry                   # of that pid
    cdef object make_handler           # makes the handler of a connection
    cdef ClientCodec codec
    cdef object gate                   # None: all are admitted
    cdef int64_t gate_next_ns          # when the gate has something to do ...
    cdef bint gate_stale               # ... which is to be asked again
    cdef object front                  # the queue in front of the gate; None without one ...
    cdef Py_ssize_t waiting            # ... and how many requests are in it
    cdef tuple nodes                   # (name, pid) of those through which canaries go, too
    cdef object pressures              # called for how full queues of the layers above are, by name
    cdef dict pressed                  # name -> fraction: what the gate was last told of queues ...
    cdef int64_t look_ns               # ... which are looked at again from then on
    cdef object changed                # called with what the gate says of its state
    cdef object closed                 # called with the host of each connection that closed
    cdef object notify                 # wakes the thread that accepts
    cdef ClientRules rules             # what its sockets share; the frames of goodbyes are owned
    cdef ClientRequests requests
    cdef dict connections              # number -> ClientConnection
    cdef list dirty                    # those with something to be flushed
    cdef list held                     # those that wait for `relent`
    cdef int64_t canaries              # sent through the run queue, ever
    cdef int64_t numbers               # of connections, ever
    cdef int in_flight_max             # requests of one connection
    cdef int64_t request_ns_max        # that a request may take ...
    cdef int64_t delay_ms              # ... in milliseconds,
    cdef object request_ms             # ... and as an object
    cdef int64_t retry_ms              # after which a client may try again that was refused
    cdef volatile bint wants_drain     # somebody asked for it ...
    cdef readonly bint draining        # ... and it has begun
    cdef volatile bint wants_close     # what is left is to be cut
    cdef readonly int64_t answered     # requests that ended with an answer,
    cdef readonly int64_t failed       # ... with a failure,
    cdef readonly int64_t refused      # ... and that were not begun
    cdef readonly int64_t late         # answers to requests that had ended
    cdef readonly int64_t messages     # what came from clients, requests included

    cdef int keep_goodbye(self, int end, bytes frame) except -1
    cdef int wake(self) except -1
    # Close what is left. For the executor's thread, or when that has ended.
    cdef int cut(self) except -1
