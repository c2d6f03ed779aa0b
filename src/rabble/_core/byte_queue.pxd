# Byte queues: the FIFOs in which a connection's frames wait. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memmove

from rabble._core.buffer_writer cimport BufferWriter
from rabble._core.capacities cimport BYTE_QUEUE_BYTES_KEPT, BYTE_QUEUE_BYTES_MIN
from rabble._core.frame cimport FRAME_HEADER, store_header

cdef struct ByteQueue:
    unsigned char* data
    size_t head                     # first byte that is held
    size_t tail                     # behind the last one
    size_t capacity

cdef inline size_t length(const ByteQueue* queue) noexcept nogil:
    return queue.tail - queue.head

cdef inline int reserve(ByteQueue* queue, size_t room) noexcept nogil:
    """Make room for so many bytes behind the last one. -1 if there is no memory."""
    cdef size_t capacity = queue.capacity
    cdef unsigned char* data
    if queue.capacity - queue.tail >= room:
        return 0
    if queue.head >= length(queue) // 4 and queue.capacity - length(queue) >= room:
        # Not for less: what little is gained would soon be used, and all be moved once more.
        memmove(queue.data, queue.data + queue.head, length(queue))
        queue.tail -= queue.head
        queue.head = 0
        return 0
    if capacity < BYTE_QUEUE_BYTES_MIN:
        capacity = BYTE_QUEUE_BYTES_MIN
    while capacity - queue.tail < room:
        capacity *= 2
    data = <unsigned char*>PyMem_RawRealloc(queue.data, capacity)
    if data is NULL:
        return -1
    queue.data = data
    queue.capacity = capacity
    return 0

cdef inline int append(ByteQueue* queue, const void* data, size_t size) noexcept nogil:
    if size == 0:
        # Without a buffer there is nothing to copy to.
        return 0
    if reserve(queue, size) != 0:
        return -1
    memcpy(queue.data + queue.tail, data, size)
    queue.tail += size
    return 0

cdef inline void consume(
    ByteQueue* queue, size_t size, size_t kept=BYTE_QUEUE_BYTES_KEPT
) noexcept nogil:
    queue.head += size
    if queue.head == queue.tail:
        queue.head = queue.tail = 0
        if queue.capacity > kept:
            drop(queue)

cdef inline void drop(ByteQueue* queue) noexcept nogil:
    PyMem_RawFree(queue.data)
    queue.data = NULL
    queue.head = queue.tail = queue.capacity = 0

cdef inline int take_over(ByteQueue* queue, BufferWriter* writer) noexcept nogil:
    """Append all that a writer holds; without a copy if the queue is empty: they swap buffers."""
    cdef ByteQueue old = queue[0]
    if length(queue) != 0:
        if append(queue, writer.data, writer.size) != 0:
            return -1
    else:
        if old.data is NULL:
            # A writer always has a buffer.
            old.capacity = BYTE_QUEUE_BYTES_MIN
            old.data = <unsigned char*>PyMem_RawMalloc(old.capacity)
            if old.data is NULL:
                return -1
        queue.data = writer.data
        queue.head = 0
        queue.tail = writer.size
        queue.capacity = writer.capacity
        writer.data = old.data
        writer.capacity = old.capacity
    writer.size = 0
    return 0

cdef inline int append_frame(
    ByteQueue* queue, int kind, int flags, const void* body, size_t size
) noexcept nogil:
    if reserve(queue, FRAME_HEADER + size) != 0:
        return -1
    store_header(
        queue.data + queue.tail, FRAME_HEADER + size, <uint8_t>kind, <uint8_t>flags
    )
    queue.tail += FRAME_HEADER
    return append(queue, body, size)

cdef inline int move_range(
    ByteQueue* source, size_t run, size_t end, ByteQueue* queue
) noexcept nogil:
    """Move the bytes from `run` to `end` behind those of `queue`, and drop what stands before.

    If that queue is empty they swap buffers, and only what stands behind is copied.
    """
    cdef ByteQueue other
    if run == end or length(queue) != 0 or end - run < source.tail - end:
        if append(queue, source.data + run, end - run) != 0:
            return -1
        consume(source, end - source.head)
        return 0
    other = queue[0]
    queue[0] = source[0]
    queue.head = run
    queue.tail = end
    end = source.tail
    source[0] = other
    source.head = source.tail = 0
    return append(source, queue.data + queue.tail, end - queue.tail)

cdef inline void swap(ByteQueue* one, ByteQueue* other) noexcept nogil:
    cdef ByteQueue old = one[0]
    one[0] = other[0]
    other[0] = old
