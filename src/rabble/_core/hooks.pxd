from libc.stdint cimport int64_t

from rabble._core.interrupts cimport Interrupts

cdef class HookCaller:
    cdef object target             # has the methods: see `rabble.hooks`
    cdef Interrupts interrupts
    cdef int64_t failed            # how often it raised when it was told

    # Tell it. What it raises is counted: nobody is there to be told of that.
    cdef int call(self, str what, object about, object error) except -1
