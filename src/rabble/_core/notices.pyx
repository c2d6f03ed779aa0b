"""Notices: what the runtime asks of an executor, each the message of an envelope to its pid.

They take their turn in the run queue, like what processes ask. `system_messages` handles them.
"""

cimport cython
from cpython.object cimport PyObject

from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport new_envelope
from rabble._core.ids cimport CorrelationId, Pid

__all__ = []


@cython.final
cdef class Discard:
    """Remove a pid, if it is still `target`'s."""


@cython.final
cdef class Connected:
    """A connection to another node is established; or what tells of that follows in the queue."""


@cython.final
cdef class Undelivered:
    """A service was given this and did not take it."""


@cython.final
@cython.freelist(256)
cdef class Notice:
    """Send a message of the runtime to a life, if it still is one."""


@cython.final
cdef class Notifier:
    """The notices of one executor. It belongs to the executor's thread."""

    cdef int notify(self, Entry entry, object msg, CorrelationId correlation_id=None) except -1:
        cdef Notice notice = Notice.__new__(Notice)
        notice.entry = entry
        notice.msg = msg
        notice.correlation_id = correlation_id
        self.run_queue.append(new_envelope(self.pid, notice, None, None))
        return 0

    cdef int notify_all(self, dict entries, object msg) except -1:
        cdef Entry entry
        # Of a list: while an envelope is made other threads may run.
        for entry in list(entries.values()):
            self.notify(entry, msg)
        return 0

    cdef int notify_pid(self, Pid to, object msg, CorrelationId correlation_id=None) except -1:
        cdef PyObject* found = self.table.find(to)
        if found is not NULL:
            return self.notify(<Entry>found, msg, correlation_id)
        self.run_queue.append(new_envelope(to, msg, self.pid, correlation_id))
        return 0
