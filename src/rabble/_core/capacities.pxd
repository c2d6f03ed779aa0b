# Every capacity of the core that is no limit of the user's: how large a thing begins, how much of
# it is taken at once, how many slots it has. The `tiny` build gives each its smallest value, so
# that every test meets a ring that grows, a table that is full and a batch that ends: see
# CONTRIBUTING. Nothing here is part of the protocol, so nodes of all builds talk to each other.

cdef extern from *:
    """
    #ifndef RABBLE_CAPACITIES
    #define RABBLE_CAPACITIES
    #ifdef RABBLE_TINY
    #define RABBLE_CAPACITY(release, tiny) (tiny)
    #else
    #define RABBLE_CAPACITY(release, tiny) (release)
    #endif
    #define RABBLE_IS_TINY RABBLE_CAPACITY(0, 1)

    /* queue */
    #define RABBLE_QUEUE_SLOTS_MIN RABBLE_CAPACITY(256, 2)
    #define RABBLE_QUEUE_SLOTS_KEPT RABBLE_CAPACITY(1 << 16, 2)
    /* pid slots: so many are moved per change that an array is empty before its successor is full
       (5 would do) or is itself to be followed by a smaller one (16) */
    #define RABBLE_SLOTS_MIN RABBLE_CAPACITY(8, 2)
    #define RABBLE_SLOTS_MOVED RABBLE_CAPACITY(32, 16)
    #define RABBLE_SLOTS_MAPPED RABBLE_CAPACITY(1 << 16, 64)
    /* executor */
    #define RABBLE_TURN_DELIVERIES_MAX RABBLE_CAPACITY(1024, 1)
    #define RABBLE_DUE_QUEUED_MAX RABBLE_CAPACITY(1024, 1)
    /* timers: a slot of level n is 2**(n * bits) ticks long; all levels span 38 bits at least */
    #define RABBLE_WHEEL_SLOT_BITS RABBLE_CAPACITY(8, 2)
    #define RABBLE_WHEEL_LEVELS RABBLE_CAPACITY(5, 20)
    /* codec */
    #define RABBLE_SENT_PID_SLOTS RABBLE_CAPACITY(256, 2)
    #define RABBLE_DECODER_CACHE_SLOTS RABBLE_CAPACITY(256, 2)
    #define RABBLE_ENCODE_BYTES_MIN RABBLE_CAPACITY(1024, 16)
    #define RABBLE_ENCODE_BYTES_KEPT RABBLE_CAPACITY(65536, 16)
    /* session: of the pid cache, whose 8192 slots are the protocol's, so many are used */
    #define RABBLE_PID_CACHE_SLOTS_USED RABBLE_CAPACITY(8192, 2)
    #define RABBLE_PAIRS_MIN RABBLE_CAPACITY(256, 2)
    #define RABBLE_DATA_BYTES_KEPT RABBLE_CAPACITY(8 << 20, 16)
    #define RABBLE_PAYLOAD_BYTES_MIN RABBLE_CAPACITY(4 << 20, 16)
    /* byte queues, transports and what is received */
    #define RABBLE_BYTE_QUEUE_BYTES_MIN RABBLE_CAPACITY(1024, 16)
    #define RABBLE_BYTE_QUEUE_BYTES_KEPT RABBLE_CAPACITY(1 << 20, 16)
    #define RABBLE_BULK_WINDOW RABBLE_CAPACITY(2 << 20, 1)
    #define RABBLE_BULK_WINDOW_SHARED RABBLE_CAPACITY(32 << 10, 1)
    #define RABBLE_SEND_BYTES_MAX RABBLE_CAPACITY(256 << 10, 7)
    #define RABBLE_SEND_PIECES RABBLE_CAPACITY(32, 2)
    #define RABBLE_SEAL_BYTES RABBLE_CAPACITY(128 << 10, 1)
    #define RABBLE_RECORD_BYTES_BEGIN RABBLE_CAPACITY(20 << 10, 7)
    #define RABBLE_WRITE_SOCKET_BYTES_MAX RABBLE_CAPACITY(1 << 20, 64)
    #define RABBLE_BULK_BYTES_KEPT RABBLE_CAPACITY(8 << 20, 16)
    #define RABBLE_POLL_EVENTS RABBLE_CAPACITY(64, 1)
    #define RABBLE_RECV_BYTES_MIN RABBLE_CAPACITY(16 << 10, 7)
    #define RABBLE_RECV_BYTES_MAX RABBLE_CAPACITY(256 << 10, 64)
    #define RABBLE_RECV_HIGH RABBLE_CAPACITY(1 << 20, 64)
    #define RABBLE_RECV_LOW RABBLE_CAPACITY(256 << 10, 1)
    #define RABBLE_RECV_BULK_HIGH RABBLE_CAPACITY(8 << 20, 64)
    #define RABBLE_LARGE_BYTES RABBLE_CAPACITY(8 << 20, 16)
    /* routes: what one batch has */
    #define RABBLE_BATCH_FRAMES_MAX RABBLE_CAPACITY(72, 1)
    #define RABBLE_BATCH_BULK_FRAMES_MIN RABBLE_CAPACITY(32, 1)
    #define RABBLE_BATCH_DATA_BYTES RABBLE_CAPACITY(256 << 10, 1)
    #define RABBLE_BATCH_BULK_BYTES RABBLE_CAPACITY(320 << 10, 1)
    #define RABBLE_FLUSH_BYTES RABBLE_CAPACITY(64 << 10, 1)
    /* clients of servers: what one read brings, where the reading stops, and what one batch has */
    #define RABBLE_CLIENT_READ_BYTES RABBLE_CAPACITY(64 << 10, 7)
    #define RABBLE_CLIENT_HIGH RABBLE_CAPACITY(64 << 10, 16)
    #define RABBLE_CLIENT_BATCH_FRAMES RABBLE_CAPACITY(64, 1)
    #define RABBLE_CLIENT_TURN_FRAMES RABBLE_CAPACITY(16, 1)
    #define RABBLE_CLIENT_TURN_BYTES RABBLE_CAPACITY(32 << 10, 1)
    #define RABBLE_CLIENT_SLOTS_MIN RABBLE_CAPACITY(64, 1)
    #endif
    """
    enum: IS_TINY "RABBLE_IS_TINY"

    enum: QUEUE_SLOTS_MIN "RABBLE_QUEUE_SLOTS_MIN"            # of a ring at first; a power of two
    enum: QUEUE_SLOTS_KEPT "RABBLE_QUEUE_SLOTS_KEPT"          # what an emptied ring keeps at most

    enum: SLOTS_MIN "RABBLE_SLOTS_MIN"              # of an array at first; a power of two
    enum: SLOTS_MOVED "RABBLE_SLOTS_MOVED"          # from the former array, per item that changes
    enum: SLOTS_MAPPED "RABBLE_SLOTS_MAPPED"        # an array of so many is mapped by itself

    enum: TURN_DELIVERIES_MAX "RABBLE_TURN_DELIVERIES_MAX"    # between two looks outside
    enum: DUE_QUEUED_MAX "RABBLE_DUE_QUEUED_MAX"    # timers that fired and stand in the run queue

    enum: WHEEL_SLOT_BITS "RABBLE_WHEEL_SLOT_BITS"            # a level has 2**bits slots
    enum: WHEEL_LEVELS "RABBLE_WHEEL_LEVELS"

    enum: SENT_PID_SLOTS "RABBLE_SENT_PID_SLOTS"    # texts of pids the encoder keeps; power of two
    enum: DECODER_CACHE_SLOTS "RABBLE_DECODER_CACHE_SLOTS"    # of each cache; a power of two
    enum: ENCODE_BYTES_MIN "RABBLE_ENCODE_BYTES_MIN"          # an encoder's buffer at first
    enum: ENCODE_BYTES_KEPT "RABBLE_ENCODE_BYTES_KEPT"        # a larger one is not kept

    enum: PID_CACHE_SLOTS_USED "RABBLE_PID_CACHE_SLOTS_USED"    # of the pid cache, for writing
    enum: PAIRS_MIN "RABBLE_PAIRS_MIN"    # pairs in bulk, remembered before they are sifted
    enum: DATA_BYTES_KEPT "RABBLE_DATA_BYTES_KEPT"            # a larger data lane is cut back
    enum: PAYLOAD_BYTES_MIN "RABBLE_PAYLOAD_BYTES_MIN"        # taken for a payload before it came

    enum: BYTE_QUEUE_BYTES_MIN "RABBLE_BYTE_QUEUE_BYTES_MIN"
    enum: BYTE_QUEUE_BYTES_KEPT "RABBLE_BYTE_QUEUE_BYTES_KEPT"  # what an emptied byte queue keeps
    enum: BULK_WINDOW "RABBLE_BULK_WINDOW"          # bytes sent ahead of what the peer consumed
    enum: BULK_WINDOW_SHARED "RABBLE_BULK_WINDOW_SHARED"      # the same while the data lane is used
    enum: SEND_BYTES_MAX "RABBLE_SEND_BYTES_MAX"    # that one send takes
    enum: SEND_PIECES "RABBLE_SEND_PIECES"          # of memory that one send takes; a frame has two
    enum: SEAL_BYTES "RABBLE_SEAL_BYTES"    # of a flush, sealed without letting go of the GIL
    enum: RECORD_BYTES_BEGIN "RABBLE_RECORD_BYTES_BEGIN"    # of a record where the line may be slow
    enum: WRITE_SOCKET_BYTES_MAX "RABBLE_WRITE_SOCKET_BYTES_MAX"    # sent in one look on one
    enum: BULK_BYTES_KEPT "RABBLE_BULK_BYTES_KEPT"
    enum: POLL_EVENTS "RABBLE_POLL_EVENTS"          # that one look takes from the kernel
    enum: RECV_BYTES_MIN "RABBLE_RECV_BYTES_MIN"    # room for what one recv brings; doubled if full
    enum: RECV_BYTES_MAX "RABBLE_RECV_BYTES_MAX"
    enum: RECV_HIGH "RABBLE_RECV_HIGH"              # whole frames that wait: no more is read ...
    enum: RECV_LOW "RABBLE_RECV_LOW"                # ... until so few do
    enum: RECV_BULK_HIGH "RABBLE_RECV_BULK_HIGH"    # the same of the bulk lane
    enum: LARGE_BYTES "RABBLE_LARGE_BYTES"          # messages up to here find memory that is there

    # Of all connections together: so few that what they become is delivered and gone before the
    # garbage collector comes to look at it, after 700 new objects (2,000 in 3.12).
    enum: BATCH_FRAMES_MAX "RABBLE_BATCH_FRAMES_MAX"
    enum: BATCH_BULK_FRAMES_MIN "RABBLE_BATCH_BULK_FRAMES_MIN"
    enum: BATCH_DATA_BYTES "RABBLE_BATCH_DATA_BYTES"
    enum: BATCH_BULK_BYTES "RABBLE_BATCH_BULK_BYTES"
    enum: FLUSH_BYTES "RABBLE_FLUSH_BYTES"          # that are sent before the turn's end

    enum: CLIENT_READ_BYTES "RABBLE_CLIENT_READ_BYTES"        # that one read of a client brings
    enum: CLIENT_HIGH "RABBLE_CLIENT_HIGH"          # whole frames of one that wait: no more is read
    enum: CLIENT_BATCH_FRAMES "RABBLE_CLIENT_BATCH_FRAMES"    # of all clients: taken at once
    enum: CLIENT_TURN_FRAMES "RABBLE_CLIENT_TURN_FRAMES"      # of one, before the next has its turn
    enum: CLIENT_TURN_BYTES "RABBLE_CLIENT_TURN_BYTES"        # the same, but for a longer frame
    enum: CLIENT_SLOTS_MIN "RABBLE_CLIENT_SLOTS_MIN"          # of requests at first; power of two
