from libc.stdint cimport int64_t, uint32_t, uint64_t

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.frame_encoder cimport FrameEncoder
from rabble._core.session cimport Session
from rabble._core.transport cimport Sockets, Transport

cdef class Connection:
    cdef readonly Session session      # encodes and decodes its frames
    cdef FrameEncoder frame_encoder    # of that session: one step less away
    cdef readonly object poller        # the Poller whose it is, and which has ...
    cdef Sockets* sockets              # ... these; NULL until it is one of theirs
    cdef readonly bint initiated       # whether this node dialled
    cdef Transport* transport          # owned, never NULL; gone from the sockets when this goes
    cdef bint is_dirty                 # has something to be flushed (executor's thread)
    cdef uint32_t lost                 # envelopes refused since the last LOST
    cdef int64_t begun_ns              # when it was made
    cdef uint64_t peer_lost            # envelopes that the peer says it refused since then
    cdef dict monitoring               # remote pid -> local pid that monitors it -> RemoteMonitor
    cdef uint64_t references           # of MONITORs and LINKs sent: the last one
    cdef dict monitored_by             # local pid -> remote pid that monitors it -> reference ...
    cdef Py_ssize_t monitored_by_count  # ... and how many pairs these are, and links by the peer
    cdef dict links                    # Link to one of the peer's -> local pid that has it
    cdef ByteQueue decoding            # whole frames that the executor is decoding
    cdef ByteQueue decoding_bulk       # ... and those of the bulk lane
    cdef bint bulk_waits               # ... for what came before it on the data lane
    cdef uint64_t bulk_consumed        # bytes of the bulk lane that were decoded
    cdef uint64_t bulk_acknowledged    # ... of which a WINDOW_UPDATE told the peer
    cdef bint window_update_due        # the next one is due
    cdef size_t batch_end              # where in the run queue the last batch of it ended
    cdef uint64_t number               # in the order in which the executor was to be told of them
    cdef bint is_replaced              # another one waits for the turn of what came by it
    cdef bint is_told                  # this node's processes were told of it: in the run queue ...
    cdef size_t told_mark              # ... what stands before this was returned before that
    cdef size_t large_size             # of the last message that was longer than the queue may be,
    cdef uint64_t large_end            # ... and where in the bulk lane it ends

    # The executor's. What is flushed, the session encoded; what is taken, it is to decode.
    cdef size_t unsent(self) noexcept
    cdef size_t counted(self) noexcept
    cdef size_t answers(self) noexcept
    cdef bint may_have_lost(self, uint32_t count) noexcept
    cdef bint is_open(self) noexcept
    cdef bint has_received(self) noexcept
    cdef int flush(self) except -1
    cdef bint let_go(self) noexcept
    cdef size_t take(
        self, size_t most, int frames_most, bint bulk, const unsigned char** frames
    ) noexcept

# One that is not among the poller's sockets yet: its transport is CLOSED.
cdef Connection new_connection(object poller, Sockets* sockets, Session session, bint initiated)

# Raises RuntimeError in a forked child, where a thread that is not there may hold the lock.
cdef int check_owner(const Sockets* sockets) except -1
