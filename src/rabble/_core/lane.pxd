# Lanes: the FIFOs of bytes that a connection's frames wait in. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memmove

from rabble._core.capacities cimport LANE_BYTES_KEPT, LANE_BYTES_MIN
from rabble._core.writer cimport Writer
from rabble._core.frame cimport FRAME_HEADER, store_32

cdef struct Lane:
    unsigned char* data
    size_t head                     # first byte that is held
    size_t tail                     # behind the last one
    size_t capacity

cdef inline size_t held(const Lane* lane) noexcept nogil:
    return lane.tail - lane.head

cdef inline int reserve(Lane* lane, size_t room) noexcept nogil:
    """Make room for so many bytes behind the last one. -1 if there is no memory."""
    cdef size_t capacity = lane.capacity
    cdef unsigned char* data
    if lane.capacity - lane.tail >= room:
        return 0
    if lane.head != 0:
        memmove(lane.data, lane.data + lane.head, held(lane))
        lane.tail -= lane.head
        lane.head = 0
        if lane.capacity - lane.tail >= room:
            return 0
    if capacity < LANE_BYTES_MIN:
        capacity = LANE_BYTES_MIN
    while capacity - lane.tail < room:
        capacity *= 2
    data = <unsigned char*>PyMem_RawRealloc(lane.data, capacity)
    if data is NULL:
        return -1
    lane.data = data
    lane.capacity = capacity
    return 0

cdef inline int append(Lane* lane, const void* data, size_t size) noexcept nogil:
    if size == 0:
        # Without a buffer there is nothing to copy to.
        return 0
    if reserve(lane, size) != 0:
        return -1
    memcpy(lane.data + lane.tail, data, size)
    lane.tail += size
    return 0

cdef inline void consume(Lane* lane, size_t size, size_t kept=LANE_BYTES_KEPT) noexcept nogil:
    lane.head += size
    if lane.head == lane.tail:
        lane.head = lane.tail = 0
        if lane.capacity > kept:
            drop(lane)

cdef inline void drop(Lane* lane) noexcept nogil:
    PyMem_RawFree(lane.data)
    lane.data = NULL
    lane.head = lane.tail = lane.capacity = 0

cdef inline int take_over(Lane* lane, Writer* writer) noexcept nogil:
    """Append all that a writer holds; without a copy if the lane is empty: they trade buffers."""
    cdef Lane old = lane[0]
    if held(lane) != 0:
        if append(lane, writer.data, writer.size) != 0:
            return -1
    else:
        if old.data is NULL:
            # A writer always has a buffer.
            old.capacity = 4096
            old.data = <unsigned char*>PyMem_RawMalloc(old.capacity)
            if old.data is NULL:
                return -1
        lane.data = writer.data
        lane.head = 0
        lane.tail = writer.size
        lane.capacity = writer.capacity
        writer.data = old.data
        writer.capacity = old.capacity
    writer.size = 0
    return 0

cdef inline int append_frame(
    Lane* lane, int kind, int flags, const void* body, size_t size
) noexcept nogil:
    cdef unsigned char head[FRAME_HEADER]
    store_32(head, <uint32_t>(size + 2))
    head[4] = <uint8_t>kind
    head[5] = <uint8_t>flags
    if reserve(lane, FRAME_HEADER + size) != 0:
        return -1
    append(lane, head, FRAME_HEADER)
    return append(lane, body, size)

cdef inline int hand_on(Lane* heard, size_t run, size_t end, Lane* lane) noexcept nogil:
    """Move what stands between the two to the end of `lane`, and drop what stands before.

    If that lane is empty they trade buffers, and only what stands behind is copied.
    """
    cdef Lane other
    if run == end or held(lane) != 0 or end - run < heard.tail - end:
        if append(lane, heard.data + run, end - run) != 0:
            return -1
        consume(heard, end - heard.head)
        return 0
    other = lane[0]
    lane[0] = heard[0]
    lane.head = run
    lane.tail = end
    end = heard.tail
    heard[0] = other
    heard.head = heard.tail = 0
    return append(heard, lane.data + lane.tail, end - lane.tail)

cdef inline void trade(Lane* one, Lane* other) noexcept nogil:
    cdef Lane old = one[0]
    one[0] = other[0]
    other[0] = old
