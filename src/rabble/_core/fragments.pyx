"""Fragments: an ENVELOPE that comes in parts, put together in no more memory than they justify.

What is announced takes no memory: that grows with what came, to twice as much, and for a message
that is nothing but bytes to PAYLOAD_BYTES_MIN at once. Such a message is put together as the object
that it becomes, so it is not copied again.

Those of all connections of a node are counted together. Where they would have more bytes than they
may, the message that has most of them gives way, and ends its connection: so whoever begins many
and finishes none keeps nobody else from being heard.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_CLEAR
from libc.string cimport memcpy

from rabble._core.byteorder cimport load_16, load_32
from rabble._core.capacities cimport PAYLOAD_BYTES_MIN
from rabble._core.frame cimport (
    CODE_FRAME_TOO_LARGE, CODE_LIMIT, CODE_PROTOCOL, ENVELOPE_FLAGS, FLAG_CID, FLAG_FIRST,
    FLAG_FULL, FLAG_LAST, FLAG_SENDER, HEAD_MAX, flags_agree, numbers_size,
)

from rabble._core.inbox cimport monotonic_ns

from rabble._core.errors import SessionError

__all__ = ["UnfinishedMessages"]

cdef extern from "Python.h":
    # As they are, for bytes that are still being written: these must have no other owner.
    PyObject* new_bytes "PyBytes_FromStringAndSize" (const char* data, Py_ssize_t size) except NULL
    char* bytes_data "PyBytes_AS_STRING" (PyObject* value)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE" (PyObject* value)
    int _PyBytes_Resize(PyObject** value, Py_ssize_t size) except -1


@cython.final
cdef class UnfinishedMessages:
    """The messages of the sessions of a node that come in parts and are not complete yet.

    :param bytes_max: of all their parts that came; 1 or more. Their memory is at most twice that,
        and 4 MiB for each that is nothing but bytes.

    For one thread, as its sessions are.
    """

    def __cinit__(self, Py_ssize_t bytes_max):
        if bytes_max < 1:
            raise ValueError(f"UnfinishedMessages: bytes_max must be 1 or more, not {bytes_max}")
        self.bytes_max = bytes_max


cdef int count_part(Fragments* fragments, Py_ssize_t size) except -1:
    """Count a part, and make room for it among the messages that are counted together."""
    cdef UnfinishedMessages all_of
    cdef Fragments* largest
    fragments.part_ns = monotonic_ns()
    if fragments.unfinished is NULL:
        return 0
    all_of = <UnfinishedMessages>fragments.unfinished
    if fragments.counted == 0 and size:
        fragments.previous = NULL
        fragments.next = all_of.first
        if all_of.first is not NULL:
            all_of.first.previous = fragments
        all_of.first = fragments
    fragments.counted += size
    all_of.bytes += size
    while all_of.bytes > all_of.bytes_max:
        largest = largest_of(all_of.first)
        if largest is NULL or largest is fragments:
            raise SessionError(
                CODE_LIMIT,
                f"unfinished messages of all peers have more than {all_of.bytes_max} bytes, and "
                f"this one {fragments.counted}",
            )
        drop_fragments(largest)
        largest.is_evicted = True
    return 0


cdef Fragments* largest_of(Fragments* each) noexcept:
    """The one with most bytes that is not being read, of a list; NULL if there is none."""
    cdef Fragments* largest = NULL
    while each is not NULL:
        if not each.is_read and (largest is NULL or each.counted > largest.counted):
            largest = each
        each = each.next
    return largest


cdef bint add_fragment(
    Fragments* fragments, const Frame* frame, Py_ssize_t message_bytes_max
) except -1:
    cdef const unsigned char* part = frame.body
    cdef Py_ssize_t size = frame.size
    cdef Py_ssize_t begun
    if fragments.is_evicted:
        raise SessionError(
            CODE_LIMIT, "this message had most bytes of all unfinished ones, which were too many"
        )
    if frame.flags & FLAG_FIRST:
        begun = begin(fragments, part, size, message_bytes_max)
        part += begun
        size -= begun
    elif fragments.head is NULL:
        raise SessionError(CODE_PROTOCOL, "a fragment comes without a first one")
    if size > fragments.claimed - fragments.head_size - fragments.payload_size:
        raise SessionError(
            CODE_PROTOCOL, f"fragments have more than the {fragments.claimed} bytes announced"
        )
    count_part(fragments, frame.size)
    if fragments.payload is NULL:
        keep_head(fragments, part, size)
    else:
        keep_payload(fragments, part, size)
    if not frame.flags & FLAG_LAST:
        return False
    size = fragments.head_size + fragments.payload_size
    if size != fragments.claimed:
        raise SessionError(
            CODE_PROTOCOL, f"fragments end after {size} of {fragments.claimed} bytes"
        )
    return True


cdef Py_ssize_t begin(
    Fragments* fragments, const unsigned char* body, Py_ssize_t size, Py_ssize_t message_bytes_max
) except -1:
    """Read what a first fragment announces; returns how many bytes of its body that took."""
    cdef Py_ssize_t begun
    cdef int flags
    if fragments.head is not NULL:
        raise SessionError(CODE_PROTOCOL, "a first fragment comes within another envelope's")
    fragments.claimed = load_32(body)
    fragments.head_size = 0
    fragments.head_capacity = 0
    body += 4
    size -= 4
    if fragments.claimed > message_bytes_max + HEAD_MAX + 1:
        raise SessionError(
            CODE_FRAME_TOO_LARGE,
            f"an envelope of {fragments.claimed} bytes is announced; messages may take "
            f"{message_bytes_max}",
        )
    flags = body[0]
    if flags & ~ENVELOPE_FLAGS or not flags & FLAG_FULL or not flags_agree(flags):
        raise SessionError(CODE_PROTOCOL, f"fragments of an envelope with flags {flags:#x}")
    begun = begin_payload(fragments, body, min(size, fragments.claimed), message_bytes_max)
    if begun:
        keep_head(fragments, body, begun)
    return 4 + begun


cdef Py_ssize_t begin_payload(
    Fragments* fragments, const unsigned char* body, Py_ssize_t size, Py_ssize_t message_bytes_max
) except -1:
    """See whether the message is nothing but bytes, which then are its payload.

    :param body: the flags of the envelope and what the first fragment has of it.
    :returns: how much of it stands before those bytes; 0 if the message is something else.
    """
    cdef const unsigned char* p = body + 1
    cdef const unsigned char* end = body + size
    cdef int flags = body[0]
    cdef int texts = 1 + (flags & FLAG_SENDER != 0) + (flags & FLAG_CID != 0)
    cdef Py_ssize_t claimed
    while texts:
        if end - p < 2:
            return 0
        p += 2 + load_16(p)
        texts -= 1
    p += numbers_size(flags)
    # Those whose length has fewer bits are short enough to be copied once more.
    if end - p < 5 or p[0] != 0xc6:
        return 0
    claimed = load_32(p + 1)
    p += 5
    if claimed != fragments.claimed - (p - body) or claimed + 5 > message_bytes_max:
        return 0
    fragments.payload = new_bytes(NULL, min(claimed, PAYLOAD_BYTES_MIN))
    fragments.payload_claimed = claimed
    return p - body


cdef int keep_head(Fragments* fragments, const unsigned char* data, Py_ssize_t size) except -1:
    """Append a part to what came."""
    cdef Py_ssize_t needed = fragments.head_size + size
    cdef Py_ssize_t capacity
    cdef unsigned char* head
    if needed > fragments.head_capacity:
        capacity = min(max(needed, 2 * fragments.head_capacity), fragments.claimed)
        head = <unsigned char*>PyMem_Realloc(fragments.head, capacity)
        if head is NULL:
            raise MemoryError
        fragments.head = head
        fragments.head_capacity = capacity
    memcpy(fragments.head + fragments.head_size, data, size)
    fragments.head_size = needed
    return 0


cdef int keep_payload(Fragments* fragments, const unsigned char* data, Py_ssize_t size) except -1:
    """Append a part to the payload."""
    cdef Py_ssize_t needed = fragments.payload_size + size
    cdef Py_ssize_t capacity = bytes_size(fragments.payload)
    if needed > capacity:
        capacity = min(max(needed, 2 * capacity), fragments.payload_claimed)
        _PyBytes_Resize(&fragments.payload, capacity)
    memcpy(bytes_data(fragments.payload) + fragments.payload_size, data, size)
    fragments.payload_size = needed
    return 0


cdef void drop_fragments(Fragments* fragments) noexcept:
    cdef UnfinishedMessages all_of
    if fragments.counted:
        all_of = <UnfinishedMessages>fragments.unfinished
        all_of.bytes -= fragments.counted
        if fragments.previous is NULL:
            all_of.first = fragments.next
        else:
            fragments.previous.next = fragments.next
        if fragments.next is not NULL:
            fragments.next.previous = fragments.previous
        fragments.counted = 0
    fragments.part_ns = 0
    fragments.is_read = False
    PyMem_Free(fragments.head)
    fragments.head = NULL
    Py_CLEAR(fragments.payload)
    fragments.payload_size = 0
