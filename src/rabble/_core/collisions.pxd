from cpython.list cimport PyList_SET_ITEM
from cpython.ref cimport Py_INCREF

from rabble._core.buffer_reader cimport BufferReader

cdef enum:
    SAME_HASH_MAX = 32          # elements of one hash in a set or dict, times those in an element
    HASHES_NEAR = 16            # so few elements take no memory for their hashes, nor much time

# A list with empty places, which `gc.get_objects()` does not show; and how one of them is filled.
cdef list unseen_list(Py_ssize_t n)

cdef inline void put_item(list items, Py_ssize_t i, object item) noexcept:
    Py_INCREF(item)
    PyList_SET_ITEM(items, i, item)

cdef inline bint begins_harmless(unsigned char tag, Py_ssize_t n) noexcept:
    """Whether what such elements hash to cannot take time: nobody can choose it, or they are few.

    They are scalars, known by their tags: to read, hash and compare them runs no code of anybody's.
    """
    if 0xa0 <= tag <= 0xbf or 0xc4 <= tag <= 0xc6 or 0xd9 <= tag <= 0xdb:
        return True
    return n <= HASHES_NEAR and (
        tag < 0x80 or tag >= 0xe0 or 0xca <= tag <= 0xd3 or tag == 0xc0 or 0xc2 <= tag <= 0xc3
    )

# How many of the elements have the same hash at most; UnknownMessageError if they cannot be hashed,
# or if they were chosen to take time.
cdef Py_ssize_t most_of_one_hash(BufferReader* r, list items, bint is_set) except -1
cdef int check_same_hash(BufferReader* r) except -1     # ... together with those within elements

# Raise what came of hashing and comparing, which may be a user's code, if `status` is -1.
cdef int check_hashable(BufferReader* r, int status) except -1
