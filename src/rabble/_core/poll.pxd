# The poll loop: whose the connections are, and who looks at their sockets.

from libc.stdint cimport uint32_t, uint64_t

from rabble._core.channel cimport Channel, Sockets
from rabble._core.lane cimport Lane
from rabble._core.link cimport Link
from rabble._core.speak cimport Speaker

cdef class Connection:
    cdef readonly Link link            # what is said in it
    cdef Speaker speaker               # of that link: what is said is one step less away
    cdef readonly Poller poller        # whose it is
    cdef readonly bint initiated       # whether this node dialled
    cdef Channel* channel              # owned, never NULL; gone from the sockets when this goes
    cdef bint is_dirty                 # has something to be flushed (executor's thread)
    cdef uint32_t lost                 # envelopes refused since the peer was last told
    cdef dict watches                  # remote pid -> the local pids that monitor it
    cdef dict watched                  # local pid -> the remote pids that monitor it ...
    cdef Py_ssize_t watched_count      # ... and how many pairs these are
    cdef Lane taken                    # whole frames that the executor is decoding
    cdef Lane taken_bulk               # ... and those of the bulk lane
    cdef bint bulk_waits               # ... for what came before it on the data lane
    cdef uint64_t bulk_heard           # bytes of the bulk lane that were decoded
    cdef uint64_t bulk_told            # ... of which the peer was told
    cdef bint owes_taken               # it is to be told more
    cdef size_t mark                   # where in the run queue the last batch of it ended
    cdef size_t large_size             # of the last message that was longer than the queue may be,
    cdef uint64_t large_end            # ... and where in the bulk lane it ends

    cdef size_t unsent(self) noexcept
    cdef size_t counted(self) noexcept
    cdef bint is_open(self) noexcept
    cdef bint has_heard(self) noexcept

cdef class Poller:
    cdef int owner                     # the process that made it
    cdef int stop_fd                   # eventfd, owned: wakes the poll thread
    cdef Sockets sockets               # what its channels share; the descriptors in it are owned
    cdef volatile bint stopping        # `run` is to return
    cdef readonly bint running         # ... and has not returned

    cdef int check_owner(self) except -1
    cdef int check_idle(self, Connection connection) except -1
    cdef void look(self) noexcept nogil
    cdef bint fall_asleep(self) noexcept nogil
    cdef void wake_up(self, bint stays_asleep) noexcept nogil
    cdef int flush(self, Connection connection) except -1
    cdef bint let_go(self, Connection connection) noexcept
    cdef size_t take(
        self,
        Connection connection,
        size_t most,
        int frames_most,
        bint bulk,
        const unsigned char** frames,
    ) noexcept
