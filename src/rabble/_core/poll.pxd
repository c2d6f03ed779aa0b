# The poll loop: what connections say and hear, below the interpreter.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from rabble._core.lane cimport Lane
from rabble._core.link cimport Link
from rabble._core.speak cimport Speaker

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    # Of frames that are decoded at once: so few that what they become is delivered and gone before
    # the garbage collector comes to look at it, after 700 new objects (2,000 in 3.12).
    TAKEN_FRAMES_MAX = 384

cdef enum ChannelState:
    OPEN = 0         # frames go both ways
    LINGERING = 1    # BYE was said: what still comes is thrown away until the peer closes, too
    CLOSED = 2       # the descriptor is closed

# One connection. All of it is guarded by the poller's lock; what is volatile may be read without.
cdef struct Channel:
    int fd                         # owned; -1 once it is closed
    volatile int state             # ChannelState
    volatile int code              # why it is no longer open: a refusal code, or 0
    volatile int error             # ... or an errno
    Lane control                   # frames to be sent, lane by lane
    Lane data
    Lane bulk                      # what is its own of the frames of the bulk lane ...
    Lane bulk_frames               # ... and these, `BulkFrame` each, in their order
    size_t bulk_gone               # how many at its head were sent and still hold their message
    size_t bulk_begun              # bytes of the next one that were sent
    volatile size_t bulk_held      # bytes of those that were not
    Lane torn                      # the rest of a frame that was sent in part: goes before all else
    Lane bye                       # the last frame: goes after all else
    int64_t data_said_ns           # when something was last put into the data lane
    size_t bulk_window             # bytes of the bulk lane that are sent ahead of the peer's word
    size_t data_run                # bytes of data sent since the last frame of the bulk lane
    volatile size_t queued         # bytes in all of these lanes
    volatile bint notice           # the executor wants to know when that is below the limit
    uint64_t bulk_given            # bytes ever put into the bulk lane
    uint64_t bulk_taken            # ... of which the peer has said that it took them
    volatile size_t* bulk_unsent   # where the link is told the difference
    Lane heard                     # what came and was not cut into frames yet
    Lane ready                     # whole frames of the data lane
    Lane ready_bulk                # those of the bulk lane, which others overtake here, too
    volatile size_t whole          # bytes of both
    Lane told                      # control frames for the cluster server
    uint32_t interest              # what epoll watches for
    volatile bint paused           # nothing is read until what was heard is taken
    volatile int64_t heard_ns      # when the last byte came
    int64_t pinged_ns              # when the last PING was said
    int64_t linger_until_ns        # when a lingering one is closed, whatever the peer does
    int64_t partial_ns             # since when a frame has been incomplete; 0: none is
    bint half_closed               # nothing is sent any more
    volatile uint64_t bytes_heard
    volatile uint64_t bytes_said
    volatile uint64_t frames_heard
    volatile uint64_t peer_progress
    volatile int64_t told_ns       # when that was heard
    volatile bint peer_idle
    volatile int64_t round_trip_ns       # of the last PING; 0 before the first
    int64_t round_trip_least_ns    # of all of them: what the way alone takes
    Channel* next                  # of the same poller

cdef class Connection:
    cdef readonly Link link
    cdef Speaker speaker               # of that link: what is said is one step less away
    cdef readonly Poller poller
    cdef readonly bint initiated       # whether this node dialled
    cdef Channel* channel
    cdef bint is_dirty                 # has something to be flushed (executor's thread)
    cdef uint32_t lost                 # envelopes refused since the peer was last told
    cdef dict watches                  # remote pid -> the local pids that monitor it
    cdef dict watched                  # local pid -> the remote pids that monitor it ...
    cdef Py_ssize_t watched_count      # ... and how many pairs these are
    cdef Lane taken                    # whole frames that the executor is decoding
    cdef Lane taken_bulk
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
    cdef int epfd                      # owned; the executor sleeps on it
    cdef int stop_fd                   # eventfd, owned: wakes the poll thread
    cdef int wake_fd                   # eventfd, owned: wakes the executor that sleeps on `epfd`
    cdef int told_fd                   # eventfd, owned: there is something for the cluster server
    cdef pthread_mutex_t lock          # of all channels; who holds it never waits for the GIL
    cdef Channel* first                # all channels that are not closed
    cdef size_t frame_bytes_max
    cdef readonly size_t queue_bytes_max
    cdef int64_t heartbeat_ns
    cdef int64_t partial_ns_max
    cdef volatile bint inbox_ready     # the executor's inbox was signalled
    cdef readonly int64_t connections  # how many channels are not closed
    cdef volatile bint sleeper         # the executor watches the sockets itself, asleep
    cdef volatile bint idle            # the executor has nothing to do
    cdef volatile uint64_t progress    # its deliveries
    cdef volatile int64_t looked_ns    # when somebody last looked at the sockets
    cdef volatile bint ready           # a channel may have whole frames, or was closed
    cdef volatile bint stopping
    cdef readonly bint running

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
