"""Notices: what the runtime asks of an executor, each the message of an envelope to its pid.

They take their turn in the run queue, like what processes ask. `system_messages` handles them.
"""

cimport cython

__all__ = []


@cython.final
cdef class Discard:
    """Remove a pid, if it is still `target`'s."""


@cython.final
cdef class Connected:
    """A connection to another node is established."""


@cython.final
cdef class Undelivered:
    """A service was given this and did not take it."""


@cython.final
@cython.freelist(256)
cdef class Notice:
    """Send a message of the runtime to a life, if it still is one."""
