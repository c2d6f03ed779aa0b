"""Collisions: what the elements of a set, or the keys of a map, hash to: a stranger may choose it.

CPython's hashes are no secret but for str, bytes and dates. Numbers of one hash, or such as stand
in each other's way through the table, take time that grows with the square of how many there are.
So the places that they would get are worked out before they are compared.
"""

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject

from rabble._core.buffer_reader cimport BufferReader, unknown
from rabble._core.failure cimport take_failure
from rabble._core.texts cimport described, must_pass

__all__ = []

cdef extern from *:
    """
    /* Where CPython's dict and set put what has these hashes, step by step: see `same_hashes`.
       Its own hashes are not random but for str, bytes and dates, so whoever chooses the numbers
       chooses the places too. Multiples of 2**44, say, take 40 steps. */
    #define RABBLE_STEPS_MEAN_MAX 128
    typedef struct {
        int32_t index;  /* + 1; 0: nobody is here */
        int32_t rank;   /* of those that have this hash, one step from another */
    } rabble_slot;

    static inline Py_ssize_t rabble_place(
        rabble_slot *table, size_t mask, const Py_hash_t *hashes, Py_ssize_t i, int is_set,
        Py_ssize_t *steps
    ) {
        size_t perturb = (size_t)hashes[i], at = perturb & mask, probe, last;
        int32_t rank = 1;
        for (;;) {
            *steps -= 1;
            last = is_set && at + 9 <= mask ? at + 9 : at;
            for (probe = at; probe <= last; probe++) {
                if (table[probe].index == 0) {
                    table[probe].index = (int32_t)i + 1;
                    table[probe].rank = rank;
                    return rank;
                }
                if (hashes[table[probe].index - 1] == hashes[i] && rank <= table[probe].rank)
                    rank = table[probe].rank + 1;
            }
            if (*steps < 0) return rank;
            perturb >>= 5;
            at = (at * 5 + 1 + perturb) & mask;
        }
    }

    static Py_ssize_t rabble_same_hashes(const Py_hash_t *hashes, Py_ssize_t n, int is_set) {
        Py_ssize_t most = 1, same, i, j, size = 8, steps = n * RABBLE_STEPS_MEAN_MAX + 1024;
        rabble_slot *table = NULL, *more;
        if (n <= 16 || n >= INT32_MAX) {
            for (i = 0; i < n && n <= 16; i++) {
                for (same = 1, j = 0; j < i; j++) same += hashes[j] == hashes[i];
                if (same > most) most = same;
            }
            return n <= 16 ? most : 0;
        }
        for (i = 0; i < n && steps >= 0; i++) {
            /* They grow before this one in a dict, after the last one in a set. */
            if (table == NULL || (is_set ? i * 5 >= (size - 1) * 3 : i >= size * 2 / 3)) {
                Py_ssize_t least = is_set ? (i > 50000 ? i * 2 + 1 : i * 4 + 1) : i * 3;
                if (table != NULL) while (size < least) size *= 2;
                more = (rabble_slot *)PyMem_RawRealloc(table, size * sizeof(rabble_slot));
                if (more == NULL) {
                    PyMem_RawFree(table);
                    return -1;
                }
                table = more;
                memset(table, 0, size * sizeof(rabble_slot));
                for (j = 0; j < i && steps >= 0; j++)
                    rabble_place(table, (size_t)size - 1, hashes, j, is_set, &steps);
            }
            same = rabble_place(table, (size_t)size - 1, hashes, i, is_set, &steps);
            if (same > most) most = same;
        }
        PyMem_RawFree(table);
        return steps < 0 ? 0 : most;
    }
    """
    # The most that have one hash; 0 if to find their places takes too long; -1: no memory.
    Py_ssize_t rabble_same_hashes(
        const Py_hash_t* hashes, Py_ssize_t n, bint is_set
    ) noexcept nogil

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject* value) noexcept
    # -1 with its exception pending, for who calls it to look at.
    Py_hash_t PyObject_Hash(PyObject* value) noexcept


cdef list unseen_list(Py_ssize_t n):
    """A list with empty places, which `gc.get_objects()` does not show."""
    cdef list out = PyList_New(n)
    PyObject_GC_UnTrack(<PyObject*>out)
    return out


cdef Py_ssize_t most_of_one_hash(BufferReader* r, list items, bint is_set) except -1:
    """How many of the elements have the same hash at most."""
    cdef Py_ssize_t i, most
    cdef Py_ssize_t n = PyList_GET_SIZE(items)
    cdef Py_hash_t near[HASHES_NEAR]
    cdef Py_hash_t* hashes = near
    if n > HASHES_NEAR:
        hashes = <Py_hash_t*>PyMem_Malloc(n * sizeof(Py_hash_t))
        if hashes is NULL:
            raise MemoryError
    try:
        for i in range(n):
            hashes[i] = PyObject_Hash(PyList_GET_ITEM(items, i))
            if hashes[i] == -1:
                check_hashable(r, -1)
        most = rabble_same_hashes(hashes, n, is_set)
    finally:
        if hashes != near:
            PyMem_Free(hashes)
    if most < 0:
        raise MemoryError
    if most == 0:
        raise unknown(r, "the elements of a set, or keys of a map, have hashes that were chosen")
    return most


cdef int check_same_hash(BufferReader* r) except -1:
    if r.same_hash > SAME_HASH_MAX:
        raise unknown(
            r, f"more than {SAME_HASH_MAX} elements of a set, or keys of a map, have the same hash"
        )
    return 0


cdef int check_hashable(BufferReader* r, int status) except -1:
    """Raise what came of hashing and comparing, which may be a user's code."""
    if status >= 0:
        return 0
    error = take_failure()
    if must_pass(error):
        raise error
    raise unknown(
        r, f"an element of a set, or a key of a map, cannot be one here: {described(error)}"
    ) from error
