from libc.stdint cimport int64_t, uint32_t

from rabble._core.byte_queue cimport ByteQueue
from rabble._core.inbox cimport monotonic_ns

cdef enum ClientState:
    CLIENT_OPEN = 0      # frames go both ways
    CLIENT_PARTING = 1   # its last frame was written: what still comes is thrown away
    CLIENT_CLOSED = 2    # the descriptor is closed

cdef enum ClientEnd:
    # Why one is no longer open; `ENDS` of client_socket.pyx has the words.
    END_NONE = 0         # nobody has said
    END_CLIENT = 1       # the client closed it
    END_ERROR = 2        # the system did: see `error`
    END_TOO_LARGE = 3    # a frame was longer than allowed
    END_IDLE = 4         # nothing came for too long
    END_PARTIAL = 5      # a frame was not finished in time
    END_SLOW = 6         # it did not read what was written
    END_SERVER = 7       # the executor: it knows why, or could not even say goodbye
    END_DRAIN = 8        # the server ends
    ENDS_COUNT = 9

cdef enum Framing:
    BY_LENGTH = 0        # 4 bytes, big-endian, and so many that follow
    BY_DELIMITER = 1     # up to a byte that no frame has in it

cdef enum:
    # The lists that a client may be in, by what was longest ago at their heads.
    READY = 0            # there is something for the executor
    IDLING = 1           # open: by when something last came
    UNFINISHED = 2       # half a frame came: by when it began
    STUCK = 3            # something waits to be sent: by when something last was
    PARTED = 4           # parting: by when that began
    LINKS_COUNT = 5

# The socket of one client. All of it is guarded by the lock of the poller's sockets, but for what
# is said to be the executor's. An idle one has no buffer.
cdef struct ClientSocket:
    int fd                       # owned; -1 once it is closed
    volatile int state           # ClientState
    int end                      # ClientEnd
    int error                    # an errno, of END_ERROR
    uint32_t interest            # what epoll watches for
    uint32_t linked              # bits: the lists that it is in
    bint paused                  # nothing is read until what came is taken
    bint peer_ended              # the client sends no more
    bint unwatched               # it was taken out of the epoll set, as it hung up
    bint half_closed             # this side sends no more
    bint wants_room              # the executor waits for what is unsent to become less
    volatile bint busy           # the executor's: requests wait for their ends, so it is not idle
    int room                     # the executor's: how many frames it takes now at most
    ByteQueue received           # what came and was not taken ...
    size_t whole                 # ... bytes of whole frames at its head ...
    uint32_t frames              # ... so many of them ...
    size_t scanned               # ... and bytes behind these without a delimiter
    ByteQueue unsent             # what the kernel has not taken
    int64_t active_ns            # when something last came, or the executor was last busy with it
    int64_t partial_ns           # when the unfinished frame began
    int64_t progress_ns          # when something of what waits was last sent
    int64_t parted_ns            # when it parted
    ClientRules* rules           # of its server
    void* connection             # the object that has it, borrowed
    ClientSocket* older[5]       # its neighbours in each list
    ClientSocket* newer[5]

cdef struct ClientList:
    ClientSocket* oldest
    ClientSocket* newest

# What all clients of one server share. It outlives them.
cdef struct ClientRules:
    int framing                  # Framing
    unsigned char delimiter      # ... of BY_DELIMITER
    size_t frame_bytes_max       # of one frame, without its length or delimiter
    size_t unsent_bytes_max      # of what a client does not read
    size_t unsent_bytes_low      # ... below which it is answered again
    int64_t idle_ns_max
    int64_t partial_ns_max
    int64_t stuck_ns_max         # for which a client may read nothing while something waits
    int64_t linger_ns_max        # for which a parting client may take to close its side
    unsigned char* goodbyes[9]   # by ClientEnd: the last frame, owned; NULL: none
    size_t goodbye_sizes[9]
    bint deaf                    # the server ends: nothing more is read
    ClientList lists[5]          # of its clients; READY is unused
    volatile int64_t connections  # that are not closed
    ClientRules* next            # of the same sockets

# What the clients of all servers of one node share: a member of the poller's sockets.
cdef struct ClientSockets:
    int epfd                     # that of the poller's sockets
    int wake_fd                  # wakes who sleeps on it
    volatile bint* sleeper       # whether the executor does
    volatile bint pending        # there is something in `ready`
    ClientList ready             # clients that have something for the executor
    volatile int64_t connections  # that are not closed
    ClientRules* first           # of all servers
    unsigned char* scratch       # where what comes is read to, owned; NULL before the first client

# What epoll gives back for a client: its address with the lowest bit set, as no other has it.
cdef inline void* client_mark(ClientSocket* c) noexcept nogil:
    return <void*>(<size_t>c | 1)

cdef inline bint is_client_mark(const void* mark) noexcept nogil:
    return <size_t>mark & 1

cdef inline ClientSocket* client_of(const void* mark) noexcept nogil:
    return <ClientSocket*>(<size_t>mark & ~<size_t>1)

# All that follows needs the lock of the sockets, and no GIL.

# The beginning and the end: an errno if it cannot be watched. `release` may be called at any time.
cdef int admit_client(ClientSockets* k, ClientSocket* c) noexcept nogil
cdef void release_client(ClientSockets* k, ClientSocket* c) noexcept nogil
cdef int add_rules(ClientSockets* k, ClientRules* rules) noexcept nogil
cdef void remove_rules(ClientSockets* k, ClientRules* rules) noexcept nogil

# What epoll has seen of a client.
cdef void client_event(ClientSockets* k, ClientSocket* c, uint32_t events) noexcept nogil
# What the clock ends.
cdef void expire_clients(ClientSockets* k, int64_t now) noexcept nogil
# In a forked child: close its copies of the descriptors.
cdef void close_inherited_clients(ClientSockets* k) noexcept nogil

# The executor's. The next client that there is something of; NULL: none.
cdef ClientSocket* next_ready(ClientSockets* k) noexcept nogil
cdef void make_ready_client(ClientSockets* k, ClientSocket* c) noexcept nogil
# Append whole frames to `into`, so many and (but for the first) so many bytes at most; returns how
# many, or -1 if there is no memory.
cdef int take_frames(
    ClientSockets* k, ClientSocket* c, ByteQueue* into, int most, size_t bytes_most
) noexcept nogil
# Read nothing more of it, as the server ends.
cdef void deafen_client(ClientSockets* k, ClientSocket* c) noexcept nogil
# Send, or keep, what was written.
cdef void flush_client(
    ClientSockets* k, ClientSocket* c, const unsigned char* data, size_t size
) noexcept nogil
# Send a last frame, and close when the client has taken it or its time is over.
cdef void part_client(
    ClientSockets* k, ClientSocket* c, int end, const unsigned char* data, size_t size
) noexcept nogil
# The same with the last frame that is kept for that end.
cdef void part_by_rule(ClientSockets* k, ClientSocket* c, int end) noexcept nogil
# The size of the whole frame that begins at `at`, with its length or delimiter; 0: none is whole.
cdef size_t whole_frame(
    const ClientRules* rules, const unsigned char* at, size_t size
) noexcept nogil
