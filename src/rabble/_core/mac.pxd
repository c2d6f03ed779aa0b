# MACs with a key for each message. Nothing here needs the GIL.

from libc.stdint cimport uint8_t, uint64_t

from rabble._core.linux cimport iovec

cdef enum:
    MAC_KEY_BYTES = 32
    TAG_BYTES = 16

# The tag of the bytes of these pieces, as the message of that number under a key.
cdef void make_tag(
    uint8_t* tag, const uint8_t* key, uint64_t number, const iovec* pieces, int count
) noexcept nogil

# In the same time wherever they differ.
cdef bint tags_equal(const uint8_t* one, const uint8_t* other) noexcept nogil
