# Records: what an authenticated stream is cut into below its frames. Nothing here needs the GIL.

from libc.stdint cimport uint8_t, uint64_t

from rabble._core.linux cimport iovec
from rabble._core.mac cimport MAC_KEY_BYTES

cdef enum:
    RECORD_HEAD = 20                # bytes: length of the body (4), its tag (16)
    RECORD_BYTES_MAX = 80 << 10     # of a body: what one flush has, and a message above that

# One direction of a stream, at either end.
cdef struct RecordStream:
    uint8_t key[MAC_KEY_BYTES]
    uint64_t count                  # records sealed, or verified, so far: the number of the next

# Fill in the head of the next record, whose body is the bytes of these pieces.
cdef void seal_record(
    RecordStream* stream, const iovec* pieces, int count, unsigned char* head
) noexcept nogil

# Look at the next record, at the beginning of `data`. Returns > 0: the size of its body, which
# stands behind its head, and is what the peer sealed; 0: it is not complete; -1: it is none of the
# peer's, or not the next one.
cdef Py_ssize_t verify_record(
    RecordStream* stream, const unsigned char* data, size_t size
) noexcept nogil
