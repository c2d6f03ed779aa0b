# The poller: whose the connections are, and who looks at their sockets.

from libc.stdint cimport uint32_t, uint64_t

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.session cimport Session
from rabble._core.transport cimport Sockets, Transport

cdef class Connection:
    cdef readonly Session session      # encodes and decodes its frames
    cdef FrameEncoder frame_encoder    # of that session: one step less away
    cdef readonly Poller poller        # whose it is
    cdef readonly bint initiated       # whether this node dialled
    cdef Transport* transport          # owned, never NULL; gone from the sockets when this goes
    cdef bint is_dirty                 # has something to be flushed (executor's thread)
    cdef uint32_t lost                 # envelopes refused since the last LOST
    cdef dict monitoring               # remote pid -> the local pids that monitor it
    cdef dict monitored_by             # local pid -> the remote pids that monitor it ...
    cdef Py_ssize_t monitored_by_count  # ... and how many pairs these are
    cdef ByteQueue decoding            # whole frames that the executor is decoding
    cdef ByteQueue decoding_bulk       # ... and those of the bulk lane
    cdef bint bulk_waits               # ... for what came before it on the data lane
    cdef uint64_t bulk_consumed        # bytes of the bulk lane that were decoded
    cdef uint64_t bulk_acknowledged    # ... of which a WINDOW_UPDATE told the peer
    cdef bint window_update_due        # the next one is due
    cdef size_t batch_end              # where in the run queue the last batch of it ended
    cdef size_t large_size             # of the last message that was longer than the queue may be,
    cdef uint64_t large_end            # ... and where in the bulk lane it ends

    cdef size_t unsent(self) noexcept
    cdef size_t counted(self) noexcept
    cdef bint is_open(self) noexcept
    cdef bint has_received(self) noexcept

cdef class Poller:
    cdef int owner                     # the process that made it
    cdef int stop_fd                   # eventfd, owned: wakes the poll thread
    cdef Sockets sockets               # what its transports share; the descriptors in it are owned
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
