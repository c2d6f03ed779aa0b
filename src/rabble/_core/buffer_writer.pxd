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
    int depth               # how many containers may still be opened

# Each stores at `p`, where there is room for the largest, and returns how many bytes it took.

cdef inline int put_int(unsigned char* p, int64_t n) noexcept nogil:
    if -32 <= n < 128:
        p[0] = <unsigned char>n
        return 1
    if n >= 0:
        if n < 1 << 8:
            p[0] = 0xcc
            p[1] = <unsigned char>n
            return 2
        if n < 1 << 16:
            p[0] = 0xcd
            store_16(p + 1, n)
            return 3
        if n < <int64_t>1 << 32:
            p[0] = 0xce
            store_32(p + 1, n)
            return 5
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
    if size < 1 << 8:
        p[0] = 0xd9
        p[1] = <unsigned char>size
        return 2
    if size < 1 << 16:
        p[0] = 0xda
        store_16(p + 1, size)
        return 3
    p[0] = 0xdb
    store_32(p + 1, size)
    return 5

cdef inline int put_bytes_head(unsigned char* p, Py_ssize_t size) noexcept nogil:
    if size < 1 << 8:
        p[0] = 0xc4
        p[1] = <unsigned char>size
        return 2
    if size < 1 << 16:
        p[0] = 0xc5
        store_16(p + 1, size)
        return 3
    p[0] = 0xc6
    store_32(p + 1, size)
    return 5

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
