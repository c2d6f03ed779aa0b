"""Exceptions, taken by the C API."""

__all__ = []

# What is taken for an exception that was lost: without memory the interpreter may end a call
# without one. Made once, so that it is there then.
cdef object LOST = MemoryError("there was no memory for the exception itself")


cdef object what_failed():
    error = take_failure()
    return LOST if error is None else error
