# Writing: a buffer that grows, and the numbers and headers of msgpack. Nothing here needs the GIL.

from libc.stdint cimport int64_t, uint64_t

from rabble._core.byteorder cimport store_16, store_32, store_64

cdef enum Kind:
    KIND_MAP
    KIND_ARRAY

cdef struct BufferWriter:
    unsigned char* data     # what was written so far; moves when it grows
    Py_ssize_t size         # how much that is
    Py_ssize_t capacity     # of memory that PyMem_RawMalloc gave
    Py_ssize_t limit        # a size beyond which it does not grow
    Py_ssize_t elements     # how many elements containers may still have
    Py_ssize_t memory       # how many bytes of memory they may still take where they are decoded
    int depth               # how many containers may still be opened
    int hashed              # sets and keys of dicts around what is written

# Each stores at `p`, where there is room for the largest, and returns how many bytes it took.

cdef inline int put_sized(unsigned char* p, unsigned char tag, Py_ssize_t n) noexcept nogil:
    """A number of 1, 2 or 4 bytes, behind the first, second or third tag from `tag` on."""
    if n < 1 << 8:
        p[0] = tag
        p[1] = <unsigned char>n
        return 2
    if n < 1 << 16:
        p[0] = tag + 1
        store_16(p + 1, n)
        return 3
    p[0] = tag + 2
    store_32(p + 1, n)
    return 5

cdef inline int put_int(unsigned char* p, int64_t n) noexcept nogil:
    if -32 <= n < 128:
        p[0] = <unsigned char>n
        return 1
    if 0 <= n < <int64_t>1 << 32:
        return put_sized(p, 0xcc, n)
    if n >= 0:
        p[0] = 0xcf
        store_64(p + 1, <uint64_t>n)
        return 9
    if n >= -(1 << 7):
        p[0] = 0xd0
        p[1] = <unsigned char>n
        return 2
    if n >= -(1 << 15):
        p[0] = 0xd1
        store_16(p + 1, n)
        return 3
    if n >= -(<int64_t>1 << 31):
        p[0] = 0xd2
        store_32(p + 1, n)
        return 5
    p[0] = 0xd3
    store_64(p + 1, <uint64_t>n)
    return 9

cdef inline int put_str_head(unsigned char* p, Py_ssize_t size) noexcept nogil:
    if size < 32:
        p[0] = <unsigned char>(0xa0 | size)
        return 1
    return put_sized(p, 0xd9, size)

cdef inline int put_ext_head(unsigned char* p, int code, Py_ssize_t size) noexcept nogil:
    """The header of an extension, which has one form up to 255 bytes, and one above."""
    if size < 1 << 8:
        p[0] = 0xc7
        p[1] = <unsigned char>size
        p[2] = <unsigned char>code
        return 3
    p[0] = 0xc9
    store_32(p + 1, size)
    p[5] = <unsigned char>code
    return 6

cdef inline int put_bytes_head(unsigned char* p, Py_ssize_t size) noexcept nogil:
    return put_sized(p, 0xc4, size)

cdef inline int put_head(unsigned char* p, int kind, Py_ssize_t n) noexcept nogil:
    """The header of a container."""
    if n < 16:
        p[0] = <unsigned char>((0x80 if kind == KIND_MAP else 0x90) | n)
        return 1
    if n < 1 << 16:
        p[0] = 0xde if kind == KIND_MAP else 0xdc
        store_16(p + 1, n)
        return 3
    p[0] = 0xdf if kind == KIND_MAP else 0xdd
    store_32(p + 1, n)
    return 5
