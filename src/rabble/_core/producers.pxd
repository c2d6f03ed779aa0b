from rabble._core.connection cimport Connection
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport Pid

cdef class Producers:
    # Who waits until there is room in the queue to a peer. Of one executor, in its thread.
    cdef Executor executor
    cdef dict waiting              # Connection -> deque of the Waiting, the oldest first
    cdef set draining              # (Connection, Entry) of those that wait to be told

    # A thread or a coroutine hands an envelope over: the request is answered as a call is.
    cdef int produce(self, Envelope request) except -1
    # A process wants to be told when most of what it sent has gone. (None: that life is over.)
    cdef int drain(self, Envelope request, Entry entry) except -1
    # Some may have room by now.
    cdef int go_on(self) except -1
    # A connection has ended, or the node ends (None): who waits for it has waited in vain.
    cdef int end(self, Connection connection) except -1

    cdef int wait(self, Connection connection, Waiting waiting) except -1
    cdef int look(self, Connection connection) except -1
    cdef int put_local(self, Envelope request, Envelope envelope) except -1
    cdef int put_remote(self, Envelope request) except -1
    cdef int drop(self, Envelope request, object reason) except -1
    cdef int answer(self, Envelope request, object letter) except -1
    cdef int tell(self, Connection connection, Waiting waiting) except -1
    cdef int drop_queued(self, Connection connection) except -1

cdef class Waiting:
    cdef Envelope request          # with a Produce or a Drain
    cdef Entry entry               # who sent the Drain
