from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from rabble._core.byteorder cimport load_16, load_32
from rabble._core.failure cimport owned

cdef struct BufferReader:
    const unsigned char* start  # of the whole; errors count from here
    const unsigned char* at     # what is read next
    const unsigned char* end    # of the whole, or of the extension being read
    Py_ssize_t owed             # elements announced and not yet read: each takes a byte at least
    Py_ssize_t elements         # how many elements containers may still have
    Py_ssize_t memory           # how many bytes of memory they may still take, see values.pxd
    int depth                   # how many containers may still be opened
    int nested                  # extensions around what is read that are no containers
    int hashed                  # sets and keys of dicts around what is read
    Py_ssize_t same_hash        # of what was read: most elements of one hash, by all levels

# Errors to be raised, which name the byte at which the reader is.
cdef object malformed(BufferReader* r, str what)  # DecodeError
cdef object unknown(BufferReader* r, str what)  # UnknownMessageError
cdef object beyond(BufferReader* r, str what)   # DecodeLimitError
cdef object too_large(BufferReader* r, str what)  # DecodedSizeError
# ... and of the pending exception: the next bytes are not UTF-8, or whatever else it is.
cdef object not_utf8(BufferReader* r)

cdef extern from "Python.h":
    # NULL with its exception pending, for who calls it to look at.
    PyObject* decode_utf8 "PyUnicode_DecodeUTF8" (
        const char* data, Py_ssize_t size, const char* errors
    ) noexcept

cdef inline int check_end(BufferReader* r) except -1:
    if r.at != r.end:
        raise malformed(r, f"{r.end - r.at} bytes too many")
    return 0

cdef inline int check_length(BufferReader* r, Py_ssize_t n) except -1:
    if n > r.end - r.at:
        raise beyond(r, f"{n} bytes are announced, {r.end - r.at} are left")
    return 0

cdef inline str read_str(BufferReader* r, Py_ssize_t n):
    cdef PyObject* text
    check_length(r, n)
    text = decode_utf8(<const char*>r.at, n, NULL)
    if text is NULL:
        raise not_utf8(r)
    r.at += n
    return <str>owned(text)

cdef inline Py_ssize_t str_header(BufferReader* r) except -2:
    """The length of the string that begins here; -1 if none does."""
    cdef unsigned char tag
    cdef Py_ssize_t n
    if r.at >= r.end:
        return -1
    tag = r.at[0]
    if tag & 0xe0 == 0xa0:
        r.at += 1
        return tag & 31
    n = tag - 0xd8
    if n < 1 or n > 3:
        return -1
    return read_size(r, 1 << (n - 1))

cdef inline Py_ssize_t array_header(BufferReader* r) except -2:
    """The length of the array that begins here; -1 if none does."""
    cdef unsigned char tag
    if r.at >= r.end:
        return -1
    tag = r.at[0]
    if tag & 0xf0 == 0x90:
        r.at += 1
        return tag & 15
    if tag != 0xdc and tag != 0xdd:
        return -1
    return read_size(r, 2 if tag == 0xdc else 4)

cdef inline Py_ssize_t read_size(BufferReader* r, int width) except -2:
    """The size in the `width` bytes behind the tag that stands here."""
    cdef const unsigned char* p = r.at + 1
    if r.end - p < width:
        raise malformed(r, "the data ends within a size")
    r.at = p + width
    return p[0] if width == 1 else load_16(p) if width == 2 else load_32(p)

cdef inline Py_ssize_t width_of(unsigned char tag) noexcept:
    """How many bytes of number or size follow a tag of 0xc4 to 0xd3 or 0xd9 to 0xdf."""
    if tag <= 0xc6:
        return 1 << (tag - 0xc4)
    if tag <= 0xc9:
        return 1 << (tag - 0xc7)
    if tag <= 0xcb:
        return 4 << (tag - 0xca)
    if tag <= 0xcf:
        return 1 << (tag - 0xcc)
    if tag <= 0xd3:
        return 1 << (tag - 0xd0)
    if tag <= 0xdb:
        return 1 << (tag - 0xd9)
    return 2 if tag == 0xdc or tag == 0xde else 4
