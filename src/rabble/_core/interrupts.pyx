"""Interrupts: how the executor's thread is got out of a `receive` that does not return."""

cimport cython
from cpython.object cimport PyObject

from rabble._core.errors import Interrupted

__all__ = []

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long thread_id, PyObject* exc) noexcept


@cython.final
cdef class Interrupts:
    """The interrupts of one executor."""

    def __cinit__(self):
        self.considered_at = -1

    cdef int ask(self, bint in_receive, int64_t delivered) except -1:
        """Interrupt a `receive`, or anything that runs at two asks with no delivery between them.

        It reaches Python code, and ends no call into C. The watchdog asks again after a while, as
        somebody's code may have caught it.
        """
        if in_receive or delivered == self.considered_at:
            self.pending = True
            PyThreadState_SetAsyncExc(self.thread_id, <PyObject*>Interrupted)
        self.considered_at = delivered
        return 0

    cdef bint note(self, object error) noexcept:
        if type(error) is not Interrupted:
            return False
        self.pending = False
        return True
