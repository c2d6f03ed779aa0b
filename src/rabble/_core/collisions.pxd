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

cdef inline bint is_harmless(object cls, Py_ssize_t n) noexcept:
    """Whether what such elements hash to cannot take time: nobody can choose it, or they are few.
    """
    if cls is str or cls is bytes:
        return True
    return n <= HASHES_NEAR and (cls is int or cls is float or cls is bool or cls is type(None))

# How many of the elements have the same hash at most; UnknownMessageError if they cannot be hashed,
# or if they were chosen to take time.
cdef Py_ssize_t most_of_one_hash(BufferReader* r, list items, bint is_set) except -1
cdef int check_same_hash(BufferReader* r) except -1     # ... together with those within elements

# Raise what came of hashing and comparing, which may be a user's code, if `status` is -1.
cdef int check_hashable(BufferReader* r, int status) except -1
