from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport write

from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.byte_queue cimport ByteQueue
from rabble._core.byteorder cimport load_32
from rabble._core.client_socket cimport ClientSockets
from rabble._core.linux cimport pthread_mutex_t
from rabble._core.record cimport RecordStream

cdef enum:
    CONTROL_BYTES_MAX = 8 << 20       # of control frames that wait, either way
    LINGER_NS = 1_000_000_000         # for a BYE and what goes before it, if nobody says otherwise

cdef enum TransportState:
    OPEN = 0         # frames go both ways
    LINGERING = 1    # BYE was sent: what still comes is thrown away until the peer closes, too
    CLOSED = 2       # the descriptor is closed

# One connection. All of it is guarded by the lock of its `Sockets`; what is volatile may be read
# without.
cdef struct Transport:
    int fd                         # owned; -1 once it is closed
    volatile int state             # TransportState
    volatile int code              # why it is no longer open: a refusal code, or 0
    volatile int error             # ... or an errno
    ByteQueue control              # frames to be sent, lane by lane: of the control lane
    ByteQueue data                 # ... of the data lane
    ByteQueue bulk                 # ... and what is its own of the frames of the bulk lane ...
    ByteQueue bulk_frames          # ... and these, `GatherFrame` each, in their order
    ByteQueue bulk_marks           # ... and of each not yet sent how much of data goes before it
    size_t bulk_sent_frames        # how many at its head were sent and still hold their message
    size_t bulk_partial            # bytes of the next one that were sent
    volatile size_t bulk_held      # bytes of those that were not
    ByteQueue partial_frame        # the rest of a frame that was sent in part: goes before all else
    ByteQueue bye                  # the last frame: goes after all else
    bint is_authenticated          # both directions are cut into records, which have tags
    RecordStream sealing           # ... what is sent ...
    RecordStream verifying         # ... and what is received
    ByteQueue record_rest          # the rest of a record that was sent in part: goes before all
    int64_t record_begun_ns        # ... and when that was
    size_t record_bytes            # that a record takes at most, as what overtakes waits behind it
    uint64_t data_queued           # bytes ever put into the data lane
    int64_t data_written_ns        # when something was last put into the data lane
    size_t bulk_window             # bytes of the bulk lane that are sent ahead of the peer's word
    size_t data_run                # bytes of data sent since the last frame of the bulk lane
    volatile size_t queued         # bytes in all of these lanes
    volatile bint notify_writable  # the executor wants to know when that is below the limit
    volatile bint holds_answers    # ... when less waits than it holds the peer's frames back for
    uint64_t bytes_taken           # of these, or of all if it lingers, as that was last seen ...
    int64_t taken_ns               # ... and when that grew
    uint64_t bulk_queued           # bytes ever put into the bulk lane
    uint64_t bulk_consumed         # ... of which the peer has said that it consumed them
    volatile size_t* bulk_unsent   # where the frame encoder sees the difference
    ByteQueue recv_records         # what came and was not verified yet, if it is authenticated
    ByteQueue recv_buffer          # what came and was not split into frames yet
    ByteQueue recv_data            # whole frames of the data lane
    ByteQueue recv_bulk            # those of the bulk lane, which others overtake here, too
    bint bulk_goes_on              # the last whole frame that came was one of the bulk lane
    volatile size_t complete       # bytes of both
    ByteQueue recv_control         # control frames for the cluster server
    uint32_t interest              # what epoll watches for
    volatile bint paused           # nothing is read until what came is taken
    volatile int64_t received_ns   # when the last byte came
    bint initiated                 # by this node: the side that sends PING as a rule
    int64_t pinged_ns              # when the last PING was sent
    int64_t unanswered_ns          # no PONG is believed for a PING before this
    int64_t ping_received_ns       # when the last one of the peer came; 0 before the first
    int64_t linger_ns              # a lingering one is closed if nothing was taken for so long ...
    int64_t linger_end_ns          # ... and at that time, whatever the peer does
    volatile uint64_t unsent       # bytes that the peer's kernel had not taken when it was closed
    int64_t partial_ns             # since when a frame or record was incomplete; 0: none is
    bint half_closed               # nothing is sent any more
    volatile uint64_t bytes_received     # ever
    volatile uint64_t bytes_sent   # ever
    volatile uint64_t frames_received    # ever
    volatile uint64_t peer_progress      # deliveries of the peer's executor, as it last sent them
    volatile int64_t progress_ns   # when that came
    volatile bint peer_idle        # ... and whether it had nothing to do then
    volatile int64_t round_trip_ns       # of the last PING; 0 before the first
    int64_t round_trip_least_ns    # of all of them: what the way alone takes
    Transport* next                # of the same sockets

# What the transports of one node share: a member of the poller, which owns the descriptors. The
# lock guards this, too; what is volatile may be read without it. `progress`, `idle` and `pending`
# are also written without it, by the executor.
cdef struct Sockets:
    int epfd                       # the executor sleeps on it
    int wake_fd                    # eventfd: wakes the executor that sleeps on `epfd`
    int server_fd                  # eventfd: there is something for the cluster server
    int owner                      # the process that made these descriptors; 0: none did
    pthread_mutex_t lock           # of all transports; who holds it never waits for the GIL
    Transport* first               # all transports that are not released
    size_t frame_bytes_max         # the longest frame that is taken, without its length field
    size_t queue_bytes_max         # unsent bytes of a transport at which its peer counts as busy
    int64_t heartbeat_ns           # how often each transport sends PING
    int64_t partial_ns_max         # how long a frame may take from its first byte to its last
    volatile bint inbox_ready      # the executor's inbox was signalled
    volatile int64_t connections   # how many transports are not closed
    volatile bint sleeper          # the executor watches the sockets itself, asleep
    volatile bint idle             # the executor has nothing to do
    volatile uint64_t progress     # its deliveries
    volatile int64_t polled_ns     # when somebody last looked at the sockets
    volatile bint pending          # a transport may have whole frames, or was closed
    ClientSockets clients          # those of the node's servers

# Have `poll_sockets` see when there is something to be read; an errno if that cannot be, or 0.
# `what` tells it where: a transport; the `Sockets` themselves for `wake_fd`; NULL for the inbox of
# the executor. Needs no lock.
cdef int add_to_epoll(Sockets* s, int fd, void* what) noexcept nogil

# The beginning and the end of a transport's stay. Two take the lock, the third needs the GIL
# instead. One that was never admitted is CLOSED, and can be released, too.
cdef int admit(Sockets* s, Transport* t) noexcept nogil
cdef void release(Sockets* s, Transport* t) noexcept nogil
cdef void forget_messages(Transport* t) noexcept

cdef inline void signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    # It fails when the counter is full, which is as good.
    write(fd, &one, 8)

cdef inline size_t frame_size(const unsigned char* at) noexcept nogil:
    return 4 + <size_t>load_32(at)

# All that follows needs the lock.
cdef void set_interest(Sockets* s, Transport* t, uint32_t interest) noexcept nogil
cdef void give_up(Sockets* s, Transport* t, int code, int error) noexcept nogil
cdef void write_bye(
    Sockets* s, Transport* t, int code, const unsigned char* text, size_t size, bint after_all,
) noexcept nogil
# How many of the bytes ever sent the peer's kernel has acknowledged.
cdef uint64_t taken_by_peer(const Transport* t) noexcept nogil
cdef void write_socket(Sockets* s, Transport* t) noexcept nogil
cdef void queue_control(
    Sockets* s, Transport* t, int kind, int flags, const void* body, size_t size
) noexcept nogil
cdef void flush_locked(
    Sockets* s, Transport* t, BufferWriter* data, BufferWriter* bulk, BufferWriter* frames,
    size_t bulk_size, uint64_t consumed,
) noexcept nogil

cdef inline void make_ready(Sockets* s) noexcept nogil:
    """There is something for the executor, which may be asleep and not see it by itself."""
    s.pending = True
    if s.sleeper:
        signal(s.wake_fd)
