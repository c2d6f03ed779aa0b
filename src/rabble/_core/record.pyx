"""Records: what an authenticated stream is cut into below its frames.

A record is a piece of the stream with a tag in front, under the key of its direction and with its
number. So bytes that were changed, dropped, repeated, moved or sent back are not what the next
record verifies.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from rabble._core.byteorder cimport load_32, store_32
from rabble._core.linux cimport iovec
from rabble._core.mac cimport MAC_KEY_BYTES, TAG_BYTES, make_tag, tags_equal

__all__ = ["RECORD_LIMITS", "Records"]

#: Bytes of a head, and of the longest body: for tests.
RECORD_LIMITS = {"RECORD_HEAD": RECORD_HEAD, "RECORD_BYTES_MAX": RECORD_BYTES_MAX}


cdef void seal_record(
    RecordStream* stream, const iovec* pieces, int count, unsigned char* head
) noexcept nogil:
    cdef size_t size = 0
    cdef int n
    for n in range(count):
        size += pieces[n].iov_len
    store_32(head, <uint32_t>size)
    make_tag(head + 4, stream.key, stream.count, pieces, count)
    stream.count += 1


cdef Py_ssize_t verify_record(
    RecordStream* stream, const unsigned char* data, size_t size
) noexcept nogil:
    cdef uint8_t tag[TAG_BYTES]
    cdef iovec body
    if size < 4:
        return 0
    body.iov_len = load_32(data)
    if not 1 <= body.iov_len <= RECORD_BYTES_MAX:
        return -1
    if size < RECORD_HEAD + body.iov_len:
        return 0
    body.iov_base = <void*>(data + RECORD_HEAD)
    make_tag(tag, stream.key, stream.count, &body, 1)
    if not tags_equal(tag, data + 4):
        return -1
    stream.count += 1
    return body.iov_len


# It refers to no object, so there is nothing for the garbage collector to see.
@cython.final
cdef class Records:
    """The records of one direction of a stream, at one of its ends. For tests.

    :param key: 32 bytes, of that direction.
    :raises ValueError: if it is of another length.
    """

    cdef RecordStream stream

    def __cinit__(self, bytes key not None):
        if len(key) != MAC_KEY_BYTES:
            raise ValueError(f"key must be {MAC_KEY_BYTES} bytes, not {len(key)}")
        memcpy(self.stream.key, PyBytes_AS_STRING(key), MAC_KEY_BYTES)

    @property
    def count(self):
        """How many records were sealed or verified."""
        return self.stream.count

    def seal(self, *pieces):
        """The next record of these bytes.

        :param pieces: at most 8, which follow each other; 1 to 81,920 bytes.
        """
        cdef iovec places[8]
        cdef unsigned char head[RECORD_HEAD]
        cdef bytes body = b"".join(pieces)
        if len(pieces) > 8 or not 1 <= PyBytes_GET_SIZE(body) <= RECORD_BYTES_MAX:
            raise ValueError(f"{len(pieces)} pieces of {len(body)} bytes are no record's")
        for n, piece in enumerate(pieces):
            places[n].iov_base = PyBytes_AS_STRING(piece)
            places[n].iov_len = PyBytes_GET_SIZE(piece)
        seal_record(&self.stream, places, len(pieces), head)
        return PyBytes_FromStringAndSize(<char*>head, RECORD_HEAD) + body

    def verify(self, bytes data not None):
        """What `verify_record` says of these bytes."""
        return verify_record(
            &self.stream, <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )
