from cpython.object cimport PyObject

cdef extern from *:
    """
    #define RABBLE_CLASS(value) ((PyObject *)Py_TYPE(value))
    """
    # The real class of a value, borrowed.
    PyObject* RABBLE_CLASS(object value) noexcept

# How a `Check` looks at a value.
cdef enum Kind:
    KIND_INSTANCE = 1     # of `cls` or a subclass of it
    KIND_TYPES = 2        # of one of the classes in `parts`, or a subclass of one
    KIND_LITERAL = 3      # one of the values in `parts`, of the same type
    KIND_UNION = 4        # by one of the checks in `parts`
    KIND_ITEMS = 5        # of `cls`, each item by `item`
    KIND_PLACES = 6       # a tuple, as long as `parts`, each item by the check in its place
    KIND_ENTRIES = 7      # a dict, each key by `item` and each value by `entry`
    KIND_ABSTRACT = 8     # ... of `parts`; a class that is not known here passes

cdef class Check:
    cdef int kind
    cdef object cls       # a class, or None
    cdef tuple parts      # classes, values or checks: see `Kind`
    # Of a long literal: (class, value) of each that is compared; the others are in `parts`.
    cdef frozenset known
    cdef Check item       # None: whatever it is
    cdef Check entry      # None: whatever it is
    cdef readonly str text    # what is expected, in the words of the annotation

# Whether a value is what a check wants. No code of a user's runs, and each part is looked at once
# for each check that is nested as deep as it.
cdef bint fits(Check check, object value) except -1

# What the first part of a value is that does not fit, and what was expected there.
cdef str misfit(Check check, object value)

# The class whose direct instances pass at once; None if there is none.
cdef object quick_class(Check check)
